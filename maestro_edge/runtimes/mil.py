"""What a saved ML program computes, evaluated in torch: Core ML itself runs on Apple devices only.

The program and its weights are read back from the package on disk, so what is checked is the file that ships,
not the model it came from. Each op is computed in fp32 as the MIL op reference defines it
(https://apple.github.io/coremltools/source/coremltools.converters.mil.mil.ops.defs.html).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from maestro_edge.errors import ExportError, MissingExtra
from maestro_edge.runtimes.conversion import first_line
from maestro_edge.runtimes.silence import silence

__all__ = ["Program", "evaluate", "quiet_coremltools"]


_ADVICE: Final = "replace it in the model, or leave Core ML out"


def evaluate(path: Path, inputs: Mapping[str, Tensor] | Tensor) -> list[Tensor]:
    """The outputs of the package at `path`; shapes are the package's own, so a batch of 1 stays 1.

    Raises:
        ExportError: the package cannot be read, or uses an op that is not known here.
        MissingExtra: coremltools is not installed.
    """
    return Program(path)(inputs)


class Program:
    """A function of a saved ML program with its weights in memory, to be called any number of times.

    Raises:
        ExportError: the package cannot be read, has no such function, or uses an op that is not known here.
        MissingExtra: coremltools is not installed.
    """

    def __init__(self, path: Path, function: str = "main") -> None:
        self.file = Path(path).name
        block, self._constants = _read(Path(path), function)
        self._inputs: dict[str, Any] = block.inputs
        self._outputs: list[Any] = block.outputs
        self._operations = [each for each in block.operations if not _is_constant(each.op_type)]

    def __call__(self, inputs: Mapping[str, Tensor] | Tensor) -> list[Tensor]:
        """Evaluate on inputs by name, or on the only input.

        Raises:
            ExportError: the inputs are not those of the program, or an op cannot be computed.
        """
        values = self._constants | self._bind(inputs)
        for operation in self._operations:
            values.update(zip(operation.outputs, self._compute(operation, values), strict=True))
        return [values[output] for output in self._outputs]

    def _bind(self, inputs: Mapping[str, Tensor] | Tensor) -> dict[Any, Tensor]:
        if isinstance(inputs, Tensor):
            inputs = {next(iter(self._inputs)): inputs}
        given = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
        wanted = {name: tuple(variable.shape) for name, variable in self._inputs.items()}
        if given != wanted:
            raise ExportError(f"{self.file} takes inputs of shapes {wanted}, not {given}: give those")
        return {self._inputs[name]: tensor for name, tensor in inputs.items()}

    def _compute(self, operation: Any, values: Mapping[Any, Tensor]) -> list[Tensor]:
        layer = f"{self.file}: the op {operation.op_type!r} (layer {operation.outputs[0].name!r})"
        try:
            result = OPS[operation.op_type](Call(operation, values))
        except (LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ExportError(f"{layer} cannot be computed ({first_line(error)}): {_ADVICE}") from error
        results = [result] if isinstance(result, Tensor) else list(result)
        shapes = [tuple(tensor.shape) for tensor in results]
        declared = [tuple(variable.shape) for variable in operation.outputs]
        if shapes != declared:
            raise ExportError(f"{layer} gives shapes {shapes}, the file declares {declared}: export it again")
        return results


class Call:
    """One op with the tensors it reads; each argument is asked for by its name in the MIL reference."""

    def __init__(self, operation: Any, values: Mapping[Any, Tensor]) -> None:
        self._operation = operation
        self._values = values

    def tensor(self, name: str) -> Tensor:
        return self._values[getattr(self._operation, name)]

    def optional(self, name: str) -> Tensor | None:
        return None if getattr(self._operation, name) is None else self.tensor(name)

    def tensors(self, name: str) -> list[Tensor]:
        return [self._values[variable] for variable in getattr(self._operation, name)]

    def constant(self, name: str) -> Any:
        """A value fixed in the file; its default if the file leaves it out."""
        value = getattr(self._operation, name).val
        if value is None:
            raise ValueError(f"its {name} is not a constant")
        return value

    def flag(self, name: str) -> bool:
        return bool(self.constant(name))

    def number(self, name: str) -> float:
        return float(self.constant(name))

    def text(self, name: str) -> str:
        return str(self.constant(name))

    def ints(self, name: str, default: Sequence[int] = ()) -> list[int]:
        if getattr(self._operation, name) is None:
            return list(default)
        return [int(value) for value in self.constant(name)]


Op = Callable[[Call], Tensor | Sequence[Tensor]]


def _unary(function: Callable[[Tensor], Tensor]) -> Op:
    return lambda call: function(call.tensor("x"))


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Op:
    return lambda call: function(call.tensor("x"), call.tensor("y"))


def _with_alpha(function: Callable[[Tensor, float], Tensor]) -> Op:
    return lambda call: function(call.tensor("x"), call.number("alpha"))


def _with_epsilon(function: Callable[[Tensor], Tensor]) -> Op:
    return lambda call: function(call.tensor("x") + call.number("epsilon"))


def _reduce(function: Callable[..., Tensor]) -> Op:
    def reduce(call: Call) -> Tensor:
        x = call.tensor("x")
        return function(x, dim=call.ints("axes", range(x.dim())), keepdim=call.flag("keep_dims"))

    return reduce


def _gelu(call: Call) -> Tensor:
    approximate = {"EXACT": "none", "TANH_APPROXIMATION": "tanh"}[call.text("mode")]
    return F.gelu(call.tensor("x"), approximate=approximate)


def _matmul(call: Call) -> Tensor:
    x, y = call.tensor("x"), call.tensor("y")
    return (x.mT if call.flag("transpose_x") else x) @ (y.mT if call.flag("transpose_y") else y)


def _attention(call: Call) -> Tensor:
    query, mask = call.tensor("query"), call.optional("attn_mask")
    scores = query @ call.tensor("key").mT / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1) @ call.tensor("value")


def _batch_norm(call: Call) -> Tensor:
    weights = call.tensor("mean"), call.tensor("variance"), call.optional("gamma"), call.optional("beta")
    return F.batch_norm(call.tensor("x"), *weights, eps=call.number("epsilon"))


def _layer_norm(call: Call) -> Tensor:
    x, gamma, beta = call.tensor("x"), call.optional("gamma"), call.optional("beta")
    axes = [axis % x.dim() for axis in call.ints("axes")]
    shape = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]
    centred = x - x.mean(axes, keepdim=True)
    normal = centred / (centred.square().mean(axes, keepdim=True) + call.number("epsilon")).sqrt()
    scaled = normal if gamma is None else normal * gamma.reshape(shape)
    return scaled if beta is None else scaled + beta.reshape(shape)


def _padding(call: Call, size: Sequence[int], kernel: Sequence[int], dilations: Sequence[int]) -> list[int]:
    """(before, after) of each spatial axis, flat; where their sum is odd, `same` puts the one more after."""
    kind, strides = call.text("pad_type"), call.ints("strides")
    if kind == "custom":
        return call.ints("pad")
    sides = []
    for length, edge, step, dilation in zip(size, kernel, strides, dilations, strict=True):
        missing = (math.ceil(length / step) - 1) * step + (edge - 1) * dilation + 1 - length
        total = 0 if kind == "valid" else max(0, missing)
        before = total // 2 if kind == "same" else total - total // 2
        sides += [before, total - before]
    return sides


def _pad(x: Tensor, sides: Sequence[int], value: float = 0.0, mode: str = "constant") -> Tensor:
    """Pad the last axes by (before, after) in the order of the axes; torch wants the last axis first."""
    pairs = [side for axis in range(len(sides) - 2, -1, -2) for side in sides[axis : axis + 2]]
    while pairs[-2:] == [0, 0]:  # torch refuses to reflect or replicate channels, even by none
        del pairs[-2:]
    return F.pad(x, pairs, mode, value if mode == "constant" else None)


def _conv(call: Call) -> Tensor:
    x, weight, dilations = call.tensor("x"), call.tensor("weight"), call.ints("dilations")
    padded = _pad(x, _padding(call, x.shape[2:], weight.shape[2:], dilations))
    convolve = (F.conv1d, F.conv2d, F.conv3d)[x.dim() - 3]
    bias, strides, groups = call.optional("bias"), call.ints("strides"), int(call.constant("groups"))
    return convolve(padded, weight, bias, strides, 0, dilations, groups)


def _pool(call: Call, x: Tensor, pools: Sequence[Callable[..., Tensor]], border: float) -> Tensor:
    pool, kernel, strides = pools[x.dim() - 3], call.ints("kernel_sizes"), call.ints("strides")
    sides = _padding(call, x.shape[2:], kernel, [1] * len(kernel))
    if sides[::2] == sides[1::2]:  # always so in ceil mode, where windows are bounded by torch's own padding
        return pool(x, kernel, strides, sides[::2], ceil_mode=call.flag("ceil_mode"))
    return pool(_pad(x, sides, border), kernel, strides)


def _max_pool(call: Call) -> Tensor:
    return _pool(call, call.tensor("x"), (F.max_pool1d, F.max_pool2d, F.max_pool3d), -math.inf)


def _avg_pool(call: Call) -> Tensor:
    x, pools = call.tensor("x"), (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
    average = _pool(call, x, pools, 0.0)
    if not call.flag("exclude_padding_from_average"):
        return average
    return average / _pool(call, torch.ones_like(x), pools, 0.0)  # the part of each window inside of x


def _reshape(call: Call) -> Tensor:
    x, shape = call.tensor("x"), call.ints("shape")
    return x.reshape([size or x.shape[axis - len(shape)] for axis, size in enumerate(shape)])


def _squeeze(call: Call) -> Tensor:
    x = call.tensor("x")
    return x.squeeze(tuple(call.ints("axes", [axis for axis, size in enumerate(x.shape) if size == 1])))


def _expand_dims(call: Call) -> Tensor:
    x, axes = call.tensor("x"), call.ints("axes")
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _concat(call: Call) -> Tensor:
    if call.flag("interleave"):
        raise ValueError("an interleaved concat is not known here")
    return torch.cat(call.tensors("values"), int(call.constant("axis")))


def _split(call: Call) -> Sequence[Tensor]:
    x, axis, sizes = call.tensor("x"), int(call.constant("axis")), call.ints("split_sizes")
    return torch.split(x, sizes or x.shape[axis] // int(call.constant("num_splits")), axis)


def _slice_by_index(call: Call) -> Tensor:
    x = call.tensor("x")
    no, begins, ends = [0] * x.dim(), call.ints("begin"), call.ints("end")
    points, steps = call.ints("squeeze_mask", no), call.ints("stride", [1] * x.dim())
    first = [None if free else at for at, free in zip(begins, call.ints("begin_mask", no), strict=True)]
    last = [None if free else at for at, free in zip(ends, call.ints("end_mask", no), strict=True)]
    slices = [slice(*bounds) for bounds in zip(first, last, steps, strict=True)]
    return x[tuple(at if point else part for at, point, part in zip(begins, points, slices, strict=True))]


def _slice_by_size(call: Call) -> Tensor:
    x = call.tensor("x")
    for axis, (begin, size) in enumerate(zip(call.ints("begin"), call.ints("size"), strict=True)):
        start = begin % x.shape[axis]
        x = x.narrow(axis, start, x.shape[axis] - start if size == -1 else size)
    return x


def _gather(call: Call) -> Tensor:
    x, indices, axis = call.tensor("x"), call.tensor("indices"), int(call.constant("axis"))
    if int(call.constant("batch_dims")):
        raise ValueError("a batched gather is not known here")
    axis %= x.dim()
    return x.index_select(axis, indices.flatten()).reshape(x.shape[:axis] + indices.shape + x.shape[axis + 1 :])


def _cast(call: Call) -> Tensor:
    dtypes = {"bool": torch.bool, "int32": torch.int32, "fp16": torch.float32, "fp32": torch.float32}
    return call.tensor("x").to(dtypes[call.text("dtype")])


_SAME_IN_TORCH = ("abs", "erf", "exp", "relu", "sigmoid", "sqrt", "square", "tanh")
_SAME_OF_TWO_IN_TORCH = ("add", "maximum", "minimum", "mul", "pow", "sub")

OPS: Final[dict[str, Op]] = {
    **{name: _unary(getattr(torch, name)) for name in _SAME_IN_TORCH},
    **{name: _binary(getattr(torch, name)) for name in _SAME_OF_TWO_IN_TORCH},
    "avg_pool": _avg_pool,
    "batch_norm": _batch_norm,
    "cast": _cast,
    "clip": lambda call: call.tensor("x").clamp(call.number("alpha"), call.number("beta")),
    "concat": _concat,
    "conv": _conv,
    "elu": _with_alpha(F.elu),
    "expand_dims": _expand_dims,
    "gather": _gather,
    "gelu": _gelu,
    "identity": _unary(torch.clone),
    "inverse": _with_epsilon(torch.reciprocal),
    "layer_norm": _layer_norm,
    "leaky_relu": _with_alpha(F.leaky_relu),
    "linear": lambda call: F.linear(call.tensor("x"), call.tensor("weight"), call.optional("bias")),
    "log": _with_epsilon(torch.log),
    "matmul": _matmul,
    "max_pool": _max_pool,
    "pad": lambda call: _pad(call.tensor("x"), call.ints("pad"), call.number("constant_val"), call.text("mode")),
    "real_div": _binary(torch.true_divide),
    "reduce_max": _reduce(torch.amax),
    "reduce_mean": _reduce(torch.mean),
    "reduce_min": _reduce(torch.amin),
    "reduce_sum": _reduce(torch.sum),
    "relu6": _unary(F.relu6),
    "reshape": _reshape,
    "rsqrt": _with_epsilon(torch.rsqrt),
    "scaled_dot_product_attention": _attention,
    "sigmoid_hard": lambda call: (call.tensor("x") * call.number("alpha") + call.number("beta")).clamp(0, 1),
    "silu": _unary(F.silu),
    "slice_by_index": _slice_by_index,
    "slice_by_size": _slice_by_size,
    "softmax": lambda call: call.tensor("x").softmax(int(call.constant("axis"))),
    "split": _split,
    "squeeze": _squeeze,
    "stack": lambda call: torch.stack(call.tensors("values"), int(call.constant("axis"))),
    "thresholded_relu": _with_alpha(lambda x, alpha: torch.where(x >= alpha, x, 0.0)),
    "tile": lambda call: call.tensor("x").repeat(call.ints("reps")),
    "transpose": lambda call: call.tensor("x").permute(call.ints("perm")),
}
"""One function a MIL op; what is missing here is refused when a package is read."""


def _is_constant(op_type: str) -> bool:
    return op_type == "const" or op_type.startswith("constexpr_")


def _constants(operations: Iterable[Any]) -> dict[Any, Tensor]:
    """Every number in the file by its variable; compressed weights are decompressed."""
    constants = {}
    for operation in operations:
        variable = operation.outputs[0]
        if _is_constant(operation.op_type) and not isinstance(variable.val, str):
            compressed = operation.op_type != "const"
            array = np.asarray(operation.materialized_val_inference() if compressed else variable.val)
            constants[variable] = torch.tensor(array.astype(np.float32) if array.dtype.kind == "f" else array)
    return constants


def _read(path: Path, name: str) -> tuple[Any, dict[Any, Tensor]]:
    """A function of a package in coremltools' own MIL, and its constants."""
    with quiet_coremltools() as coremltools:
        from coremltools.converters.mil.frontend.milproto import load

        try:
            package = coremltools.models.MLModel(str(path), skip_model_load=True)
            spec = package.get_spec()
            _refuse_unknown_ops(path, spec)
            # coremltools reads weights through mmap: a file that ends early raises here, not later
            program = load.load(spec, spec.specificationVersion, package.weights_dir)
            if name not in program.functions:
                raise ExportError(f"{path}: has no function {name!r}, but {', '.join(program.functions)}")
            function = program.functions[name]
            return function, _constants(function.operations)
        except ExportError:
            raise
        except Exception as error:
            raise ExportError(
                f"{path}: not a readable ML program ({first_line(error)}): export it again"
            ) from error


def _refuse_unknown_ops(path: Path, spec: Any) -> None:
    for function in spec.mlProgram.functions.values():
        for operation in function.block_specializations[function.opset].operations:
            if operation.type not in OPS and not _is_constant(operation.type):
                raise ExportError(
                    f"{path.name} uses the op {operation.type!r} (layer {operation.outputs[0].name!r}), "
                    f"which cannot be checked on this machine: {_ADVICE}"
                )


@contextmanager
def quiet_coremltools() -> Iterator[Any]:
    """coremltools, imported at first use (5 s); what it prints, logs and warns in the block is dropped.

    Raises:
        MissingExtra: it is not installed.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with silence():
            try:
                import coremltools
            except ImportError as error:
                raise MissingExtra("coremltools", "coreml") from error
            yield coremltools
    finally:
        logging.disable(disabled)
