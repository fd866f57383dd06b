"""Core ML: ML programs for Apple devices, exported and checked on any machine, timed on Apple's only."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NoReturn

import torch
from torch import Tensor, nn

from maestro_edge.errors import DeviceError, ExportError
from maestro_edge.runtimes.agreement import LIMITS, compare
from maestro_edge.runtimes.conversion import converting, export_error, exported_program, refuse_precision
from maestro_edge.runtimes.jobs import of_entry
from maestro_edge.runtimes.mil import Program, quiet_coremltools
from maestro_edge.runtimes.probe import probe_module
from maestro_edge.runtimes.protocol import Array, package_version
from maestro_edge.values import LayerSpec, Precision, Rank

__all__ = ["CoreML", "combine"]

SAMPLES_AT_ONCE: Final = 16
"""Samples evaluated side by side: every activation of the network is held for each of them."""

_PRECISIONS: Final[tuple[Precision, ...]] = ("fp32", "fp16", "int8-dynamic", "palettised-6bit", "int4-weights")
_BLOCK: Final = 32
"""Input channels that share a scale in 4 bits."""

_ELSEWHERE = (
    "Core ML runs on Apple's devices: 'maestro-edge profiles probes' writes what an iPhone measures by itself, "
    "or plan on another runtime's table"
)


class CoreML:
    """Core ML on iOS 18, macOS 15 and later.

    int8-dynamic, palettised-6bit and int4-weights hold their weights in so many bits and compute in floats.
    """

    name = "coreml"
    suffix = ".mlpackage"
    # Apple publishes no channel multiple for the Neural Engine or GPU, and none was measured: 16 is a guess.
    rank_step = 16
    forks_after: str | None = None

    @property
    def version(self) -> str:
        return package_version("coremltools", "coreml")

    def version_on(self, device: object) -> NoReturn:
        raise DeviceError(_ELSEWHERE)

    def runner_sha256(self, device: object) -> NoReturn:
        raise DeviceError(_ELSEWHERE)

    def export(
        self,
        model: nn.Module,
        inputs: tuple[Tensor, ...],
        path: Path,
        precision: Precision = "fp32",
        *,
        calibration: Sequence[Tensor] | None = None,
    ) -> None:
        """Write a package with the shapes of `inputs`, its output named "output"; one at `path` is replaced.

        The input is named "input"; several are named "input_0", "input_1", ...

        Raises:
            ExportError: the model cannot be converted, Core ML has no such precision, or `path` cannot be
                written; nothing of it is left.
            MissingExtra: coremltools is not installed.
        """
        path = Path(path)
        refuse_precision("Core ML", precision, _PRECISIONS)
        with _new_package(path) as package:
            _convert(model, inputs, package, precision, path.name)

    def predict(self, path: Path, inputs: Array) -> Array:
        """What the saved package, or one of its functions, gives for `inputs` (N, C, H, W), each alone: (N, ...).

        Raises:
            ExportError: the package cannot be read or checked here, or takes other inputs.
            MissingExtra: coremltools is not installed.
        """
        package, function = of_entry(path)
        return _run(Program(package, function or "main"), inputs)

    def measure(self, device: object, paths: Mapping[str, Path], protocol: object) -> NoReturn:
        """Core ML is timed by Apple's tools on Apple's devices.

        Raises:
            DeviceError: always.
        """
        raise DeviceError(
            f"{len(paths)} Core ML package(s) cannot be timed from this machine: "
            "measure layers on the iPhone ('maestro-edge profiles probes'), or the packages with Xcode"
        )

    def measure_alone(self, device: object, path: Path, protocol: object) -> NoReturn:
        raise DeviceError(_ELSEWHERE)

    def write_probe(self, spec: LayerSpec, rank: Rank, path: Path, precision: Precision = "fp32") -> None:
        module, inputs = probe_module(spec, rank)
        # the example is NHWC in memory, which coremltools refuses; Core ML chooses the layout by itself
        self.export(module, tuple(each.contiguous() for each in inputs), path, precision)


def combine(packages: Mapping[str, Path], path: Path, inputs: Array) -> None:
    """Put several exported packages of one network into one at `path`, a function by name for each of them.

    Weights that two of them share byte by byte are stored once; those of another rank or precision are not the
    same. The first is what an app gets that names none. Every function is evaluated on `inputs` (N, C, H, W) and
    must give what its own package gives: that one was gated when it was exported.

    Raises:
        ExportError: there are less than two, one cannot be read, or a function computes something else; nothing
            is left at `path`.
        MissingExtra: coremltools is not installed.
    """
    if len(packages) < 2:
        raise ExportError(f"{path.name}: {len(packages)} Core ML package(s) to combine: export two or more first")
    with _new_package(Path(path)) as package:
        with quiet_coremltools() as coremltools:
            functions = coremltools.utils.MultiFunctionDescriptor()
            functions.default_function_name = next(iter(packages))
            try:
                for name, source in packages.items():
                    functions.add_function(str(source), "main", name)
                coremltools.utils.save_multifunction(functions, str(package))
            except Exception as error:
                raise export_error("Core ML", path, error) from error
        for name, source in packages.items():
            expected, found = _run(Program(source), inputs), _run(Program(package, name), inputs)
            agreement = compare(expected, found)
            if not LIMITS["fp32"].admits(agreement, float(abs(expected).max())):
                raise ExportError(f"{path.name}: function {name} differs from {source.name}: {agreement}")


def _run(program: Program, inputs: Array) -> Array:
    samples = torch.tensor(inputs, dtype=torch.float32).unsqueeze(1)  # (N, 1, C, H, W)
    with torch.no_grad():
        outputs = torch.func.vmap(lambda sample: program(sample)[0], chunk_size=SAMPLES_AT_ONCE)(samples)
    result: Array = outputs.squeeze(1).numpy()  # (N, 1, ...) before
    return result


@contextmanager
def _new_package(path: Path) -> Iterator[Path]:
    """A package to be written, which takes the place of `path` when the block ends well."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            package = Path(folder) / f"new{CoreML.suffix}"
            yield package
            _make_readable(package)
            if path.exists():  # a folder cannot be renamed onto another
                path.rename(Path(folder) / "old")
            package.rename(path)
    except OSError as error:
        raise ExportError(
            f"{path}: cannot be written ({error.strerror or error}): export to another folder"
        ) from error


def _convert(model: nn.Module, inputs: tuple[Tensor, ...], package: Path, precision: Precision, name: str) -> None:
    names = ["input"] if len(inputs) == 1 else [f"input_{index}" for index in range(len(inputs))]
    with converting(), quiet_coremltools() as coremltools:
        tensor_type = coremltools.TensorType
        try:
            converted = coremltools.convert(
                _exported_program(model, inputs),
                convert_to="mlprogram",
                minimum_deployment_target=coremltools.target.iOS18,
                compute_precision=getattr(coremltools.precision, "FLOAT16" if precision == "fp16" else "FLOAT32"),
                inputs=[tensor_type(key, each.shape) for key, each in zip(names, inputs, strict=True)],
                outputs=[tensor_type("output")],
                package_dir=str(package),
                skip_model_load=True,
            )
            if precision in _COMPRESSED:
                _COMPRESSED[precision](coremltools.optimize.coreml, converted).save(str(package))
        except Exception as error:
            raise export_error("Core ML", Path(name), error) from error


def _to_8_bits(optimize: Any, converted: Any) -> Any:
    """One scale a channel; Core ML itself chooses how it computes with them."""
    symmetric = optimize.OpLinearQuantizerConfig(mode="linear_symmetric")
    return optimize.linear_quantize_weights(converted, optimize.OptimizationConfig(global_config=symmetric))


def _to_4_bits(optimize: Any, converted: Any) -> Any:
    """One scale for each block of input channels, or a channel's for layers that blocks do not divide.

    coremltools leaves those in floats without a word; the second pass finds only them.
    """
    for granularity in ("per_block", "per_channel"):
        symmetric = optimize.OpLinearQuantizerConfig(
            mode="linear_symmetric", dtype="int4", granularity=granularity, block_size=_BLOCK
        )
        config = optimize.OptimizationConfig(global_config=symmetric)
        converted = optimize.linear_quantize_weights(converted, config)
    return converted


def _to_palette(optimize: Any, converted: Any) -> Any:
    """64 values a layer, evenly spaced: on networks that were tried as near as those that k-means finds."""
    palette = optimize.OpPalettizerConfig(mode="uniform", nbits=6)
    return optimize.palettize_weights(converted, optimize.OptimizationConfig(global_config=palette))


_COMPRESSED: Final[Mapping[Precision, Callable[[Any, Any], Any]]] = {
    "int8-dynamic": _to_8_bits,
    "int4-weights": _to_4_bits,
    "palettised-6bit": _to_palette,
}


def _exported_program(model: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    # coremltools 9.0 drops the `approximate` of an exported GELU and would write every tanh GELU as an exact
    # one (https://github.com/apple/coremltools/pull/2863); spelled out, it finds the tanh GELU again
    return exported_program(model, inputs).run_decompositions({torch.ops.aten.gelu.default: _gelu})


def _gelu(x: Tensor, *, approximate: str = "none") -> Any:
    """Hendrycks and Gimpel, Gaussian error linear units, section 2; an exact GELU is left as it is."""
    if approximate == "none":
        return NotImplemented
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3))))


def _make_readable(package: Path) -> None:
    """coremltools lets only the owner read the weights: a web server could not serve the bundle."""
    for item in (package, *package.rglob("*")):
        item.chmod(0o755 if item.is_dir() else 0o644)
