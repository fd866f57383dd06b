"""LiteRT with XNNPACK: .tflite files, and one-layer probes written straight as flatbuffers."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from maestro_edge.devices import Device
from maestro_edge.errors import DeviceError, ExportError, MaestroError, MissingExtra
from maestro_edge.runtimes.conversion import (
    calibration_inputs,
    contiguous_copy,
    converting,
    export_error,
    refuse_precision,
)
from maestro_edge.runtimes.delegation import of_tflite
from maestro_edge.runtimes.elastic_litert import Product, overlap_buffers
from maestro_edge.runtimes.jobs import version_on
from maestro_edge.runtimes.measuring import (
    batched,
    is_disturbed,
    kernel_kind,
    run_alone,
    run_ops,
    run_predict,
    run_time,
)
from maestro_edge.runtimes.mixed_litert import mark, outputs_of
from maestro_edge.runtimes.norms import Folded, fold_norms, parameter
from maestro_edge.runtimes.pools import pad_before_pools
from maestro_edge.runtimes.probe import probe_module
from maestro_edge.runtimes.protocol import Array, MeasuringProtocol, Operator, package_version
from maestro_edge.runtimes.silence import silence
from maestro_edge.runtimes.tflite import weight_shapes, write_layer
from maestro_edge.values import Alone, Delegation, LayerSpec, Precision, Rank, Timing, write_atomically

__all__ = ["LiteRT"]

_PRECISIONS: Final[tuple[Precision, ...]] = ("fp32", "fp16", "int8-dynamic", "int8-static")


class LiteRT:
    """LiteRT on the CPU; XNNPACK kernels compute channels in tiles of 16."""

    name = "litert"
    suffix = ".tflite"
    rank_step = 16
    forks_after: str | None = None

    @property
    def version(self) -> str:
        package_version("litert-torch", "litert")  # refused now, not after an hour of training
        return package_version("ai-edge-litert", "litert")

    def version_on(self, device: Device) -> str:
        return version_on(device, self.name)

    def runner_sha256(self, device: Device) -> None:
        """None: Python or a page measures."""

    def export(
        self,
        model: nn.Module,
        inputs: tuple[Tensor, ...],
        path: Path,
        precision: Precision = "fp32",
        *,
        calibration: Sequence[Tensor] | None = None,
    ) -> Delegation:
        refuse_precision("LiteRT", precision, _PRECISIONS)
        samples = calibration_inputs(inputs, calibration) if precision == "int8-static" else []

        def in_precision(content: bytes) -> bytes:
            if precision == "fp32":
                return content
            return _halved(content) if precision == "fp16" else _quantized(content, samples)

        return _export(contiguous_copy(model), inputs, path, in_precision)

    def export_mixed(
        self, model: nn.Module, inputs: tuple[Tensor, ...], path: Path, int8: Collection[str]
    ) -> Delegation:
        marked = contiguous_copy(model)
        marks = mark(marked, int8)

        def in_precision(content: bytes) -> bytes:
            outputs = outputs_of(content, marks)
            return _quantized(content, (), outputs) if outputs else content

        return _export(marked, inputs, path, in_precision)

    def export_entries(self, models: Mapping[str, nn.Module], inputs: tuple[Tensor, ...], path: Path) -> None:
        """A signature for each model; inputs and outputs are called as in a file of one."""
        folded: dict[str, Folded] = {}

        def convert(converter: Any) -> Any:
            folded.update(fold_norms(models, inputs, columns=True))
            for name, item in folded.items():
                converter = converter.signature(name, item.graph, inputs)
            return converter.convert()

        content = _converted(path, convert)
        # The converter would fold products into the layers, whose weights then differ again.
        products = {
            name: [
                Product(parameter(item.graph, layer.args[1]).numpy(), ratio.numpy())
                for layer, ratio in item.ratios.items()
            ]
            for name, item in folded.items()
        }
        write_atomically(path, overlap_buffers(content, products))

    def predict(self, path: Path, inputs: Array) -> Array:
        try:
            return run_predict(self.name, path, inputs)
        except DeviceError as error:
            raise ExportError(f"{path.name} does not run: {error}") from error

    def measure(self, device: Device, paths: Mapping[str, Path], protocol: MeasuringProtocol) -> dict[str, Timing]:
        return run_time(self.name, device, paths, protocol)

    def measure_alone(self, device: Device, path: Path, protocol: MeasuringProtocol) -> Alone:
        return run_alone(self.name, device, path, protocol)

    def measure_ops(
        self, device: Device, paths: Mapping[str, Path], protocol: MeasuringProtocol
    ) -> dict[str, list[Operator]]:
        """Times of the Linear and Conv2d kernels inside whole networks, with the shapes of their weights."""
        result = run_ops(self.name, device, paths, protocol)
        disturbed = is_disturbed(result, protocol)
        found = {}
        for name, kernels in result["ops"].items():
            timed = [(kernel_kind(kernel), runs_us) for kernel, runs_us in kernels]
            layers = [(kind, runs_us) for kind, runs_us in timed if kind is not None]
            shapes = weight_shapes(paths[name])
            if len(shapes) != len(layers):
                return {each: [] for each in paths}  # XNNPACK split or merged an operator: probes instead
            found[name] = [
                Operator(kind, batched([us / 1000 for us in runs_us], disturbed=disturbed), shape)
                for (kind, runs_us), shape in zip(layers, shapes, strict=True)
            ]
        return found

    def write_probe(self, spec: LayerSpec, rank: Rank, path: Path, precision: Precision = "fp32") -> None:
        """0.6 ms a probe where the converter takes 1.5 s and more."""
        refuse_precision("LiteRT", precision, _PRECISIONS)
        if spec.kind == "embedding" and precision == "int8-dynamic":
            self.export(*probe_module(spec, rank), path, precision)
        else:
            write_atomically(path, write_layer(spec, rank, precision))


def _export(
    module: nn.Module, inputs: tuple[Tensor, ...], path: Path, in_precision: Callable[[bytes], bytes]
) -> Delegation:
    """Convert in fp32, then let `in_precision` change what the file holds."""

    def convert(litert_torch: Any) -> Any:
        return litert_torch.convert(pad_before_pools(module, inputs), inputs)

    content = _converted(path, convert, in_precision)
    with silence():
        delegation = of_tflite(content)
    write_atomically(path, content)
    return delegation


def _converted(
    path: Path, convert: Callable[[Any], Any], change: Callable[[bytes], bytes] = lambda content: content
) -> bytes:
    """The .tflite file of what `convert` makes with litert_torch, then changed; `path` names it in errors."""
    with silence(), converting(), tempfile.TemporaryDirectory() as folder:
        try:
            import litert_torch
        except ImportError as error:
            raise MissingExtra("litert-torch", "litert") from error
        whole = Path(folder) / "model.tflite"
        try:
            convert(litert_torch).export(str(whole))
            return change(whole.read_bytes())
        except MaestroError:
            raise
        except Exception as error:
            raise export_error("LiteRT", path, error) from error


def _quantized(content: bytes, samples: Sequence[Tensor], outputs: Sequence[str] = ()) -> bytes:
    """The model in int8, static with the ranges of `samples`, dynamic without any; its ends stay floats.

    Dynamic are only the operators of these `outputs`, where any are given.
    """
    from ai_edge_quantizer import calibrator, qtyping, quantizer, recipe_manager
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.utils.qsv_utils import min_max_update

    recipe, operators = recipe_manager.RecipeManager(), qtyping.TFLOperationName
    ranges = None
    if samples:
        recipe.add_static_config(".*", operators.ALL_SUPPORTED, activation_num_bits=8, weight_num_bits=8)
        for end in (operators.INPUT, operators.OUTPUT):
            recipe.add_quantization_config(".*", end, algorithm_key=AlgorithmName.NO_QUANTIZE)
        # the quantizer's own calibrate() averages the samples' ranges, which clips most of them
        observer = calibrator.Calibrator(content, num_threads=1, qsv_update_func=min_max_update)
        arrays = [sample.numpy() for sample in samples]
        feeds = [{"args_0": array.astype(_IDS.get(array.dtype.name, array.dtype))} for array in arrays]
        observer.calibrate({"serving_default": feeds}, recipe)
        ranges = observer.get_model_qsvs()
    else:
        # tflite-runtime 2.14 knows one scale a channel in convolutions only; elsewhere it computes something else
        # the quantizer ends each operator's outputs with a semicolon
        which = f"^(?:{'|'.join(map(re.escape, outputs))});$" if outputs else ".*"
        recipe.add_dynamic_config(which, operators.ALL_SUPPORTED, 8, qtyping.QuantGranularity.TENSORWISE)
        recipe.add_dynamic_config(which, operators.CONV_2D, 8, qtyping.QuantGranularity.CHANNELWISE)
        # XNNPACK has no dynamic kernel for these: int8 would be slower than floats
        recipe.add_quantization_config(which, operators.DEPTHWISE_CONV_2D, algorithm_key=AlgorithmName.NO_QUANTIZE)
    made = quantizer.Quantizer(content, recipe.get_quantization_recipe()).quantize(ranges)
    return bytes(made.quantized_model)


def _halved(content: bytes) -> bytes:
    """The model with float16 weights, which the runtime widens when it loads where it has no such arithmetic."""
    from ai_edge_quantizer import qtyping, quantizer, recipe_manager
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    weights = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
    config = qtyping.OpQuantizationConfig(
        weight_tensor_config=weights, compute_precision=qtyping.ComputePrecision.FLOAT
    )
    recipe = recipe_manager.RecipeManager()
    recipe.add_quantization_config(
        ".*",
        qtyping.TFLOperationName.ALL_SUPPORTED,
        op_config=config,
        algorithm_key=AlgorithmName.FLOAT_CASTING,
    )
    return bytes(quantizer.Quantizer(content, recipe.get_quantization_recipe()).quantize().quantized_model)


_IDS = {"int64": "int32"}
"""What the converter makes of PyTorch's ids."""
