"""ONNX Runtime: .onnx files, in int8 by its own quantizer, and the time of every layer from its profiler."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from maestro_edge.devices import Device
from maestro_edge.errors import DeviceError, ExportError, MissingExtra
from maestro_edge.runtimes.conversion import calibration_inputs, contiguous_copy, export_error, refuse_precision
from maestro_edge.runtimes.jobs import version_on
from maestro_edge.runtimes.measuring import batched, is_disturbed, run_alone, run_ops, run_predict, run_time
from maestro_edge.runtimes.onnx_graph import (
    INPUT,
    OPSET,
    OUTPUT,
    halved,
    label_layers,
    layer_of,
    load_onnx,
    tidied,
    write_layer,
)
from maestro_edge.runtimes.probe import probe_module
from maestro_edge.runtimes.protocol import Array, MeasuringProtocol, Operator, package_version
from maestro_edge.runtimes.silence import silence
from maestro_edge.values import Alone, LayerSpec, Precision, Rank, Timing, write_atomically

__all__ = ["ONNX"]

_PRECISIONS: Final[tuple[Precision, ...]] = ("fp32", "fp16", "int8-dynamic", "int8-static")


class ONNX:
    """ONNX Runtime on the CPU; a file is one .onnx with its weights inside.

    In fp16 the weights are halves, widened when the file is loaded: arithmetic in halves casts back and forth on
    most processors. In int8-dynamic only Linear layers are int8, as convolutions would run slower than in fp32.
    int8 weights have seven bits: with eight, x86 processors without VNNI compute something else. A Jetson builds
    TensorRT's engine from an fp32 or fp16 file, on the device and for it alone, with
    `trtexec --onnx=model.onnx --saveEngine=model.engine --fp16`; it takes no zero points, so no int8 file.
    """

    name = "onnx"
    suffix = ".onnx"
    # A first guess: what one x86 processor with AVX2 shows. Profiling finds the edges of each device.
    rank_step = 8
    forks_after: str | None = None

    @property
    def version(self) -> str:
        for package in ("onnx", "onnxscript"):
            package_version(package, "onnx")  # refused now, not after an hour of training
        return package_version("onnxruntime", "onnx")

    def version_on(self, device: Device) -> str:
        return version_on(device, self.name)

    def runner_sha256(self, device: Device) -> None:
        """None: Python measures."""

    def export(
        self,
        model: nn.Module,
        inputs: tuple[Tensor, ...],
        path: Path,
        precision: Precision = "fp32",
        *,
        calibration: Sequence[Tensor] | None = None,
    ) -> None:
        """The input is named "input", several "input_0", "input_1", ..., the output "output"."""
        refuse_precision("ONNX Runtime", precision, _PRECISIONS)
        samples = calibration_inputs(inputs, calibration) if precision == "int8-static" else []
        with silence():
            load_onnx()
            try:
                import onnxscript  # noqa: F401 - what torch.onnx.export needs
            except ImportError as error:
                raise MissingExtra("onnxscript", "onnx") from error
            try:
                content = _in_precision(_exported(model, inputs), precision, samples)
            except MissingExtra:
                raise
            except Exception as error:
                raise export_error("ONNX", path, error) from error
        write_atomically(path, content)

    def predict(self, path: Path, inputs: Array) -> Array:
        try:
            return run_predict(self.name, path, inputs)
        except DeviceError as error:
            raise ExportError(f"{path.name} does not run: {_explain(str(error))}") from error

    def measure(self, device: Device, paths: Mapping[str, Path], protocol: MeasuringProtocol) -> dict[str, Timing]:
        return run_time(self.name, device, paths, protocol)

    def measure_alone(self, device: Device, path: Path, protocol: MeasuringProtocol) -> Alone:
        return run_alone(self.name, device, path, protocol)

    def measure_ops(
        self, device: Device, paths: Mapping[str, Path], protocol: MeasuringProtocol
    ) -> dict[str, list[Operator]]:
        """Times of the layers' kernels inside whole networks, in the order of the file, with their weights.

        Where a kernel cannot be told from others, no network has operators.
        """
        shapes, labelled = {}, {}
        with tempfile.TemporaryDirectory() as folder:
            for index, (name, path) in enumerate(paths.items()):
                content, shapes[name] = label_layers(path.read_bytes())
                labelled[name] = Path(folder) / f"{index}{self.suffix}"
                labelled[name].write_bytes(content)
            result = run_ops(self.name, device, labelled, protocol)
        disturbed = is_disturbed(result, protocol)
        found = {}
        for name, kernels in result["ops"].items():
            runs_us = _runs_by_layer(kernels)
            if sorted(runs_us) != list(range(len(shapes[name]))):
                return {each: [] for each in paths}  # kernels were merged or split: probes instead
            found[name] = [
                Operator(
                    "conv2d" if len(shape) > 2 else "linear",
                    batched([us / 1000 for us in runs_us[index]], disturbed=disturbed),
                    shape,
                )
                for index, shape in enumerate(shapes[name])
            ]
        return found

    def write_probe(self, spec: LayerSpec, rank: Rank, path: Path, precision: Precision = "fp32") -> None:
        """Written without the exporter, which would take seconds."""
        refuse_precision("ONNX Runtime", precision, _PRECISIONS)
        samples = list(probe_module(spec, rank)[1]) if precision == "int8-static" else []
        with silence():
            content = _in_precision(write_layer(spec, rank), precision, samples)
        write_atomically(path, content)


def _exported(model: nn.Module, inputs: tuple[Tensor, ...]) -> bytes:
    names = [INPUT] if len(inputs) == 1 else [f"{INPUT}_{index}" for index in range(len(inputs))]
    exported: Any = torch.onnx.export(
        torch.export.export(contiguous_copy(model), inputs),
        input_names=names,
        output_names=[OUTPUT],
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    return tidied(exported.model_proto.SerializeToString())


def _in_precision(content: bytes, precision: Precision, samples: Sequence[Tensor]) -> bytes:
    if precision == "fp32":
        return content
    return halved(content) if precision == "fp16" else _quantized(content, samples)


class _Samples:
    """What the quantizer reads its ranges from."""

    def __init__(self, samples: Sequence[Tensor]) -> None:
        self.left = iter(samples)

    def get_next(self) -> dict[str, Any] | None:
        sample = next(self.left, None)
        return None if sample is None else {INPUT: sample.contiguous().numpy()}


def _quantized(content: bytes, samples: Sequence[Tensor]) -> bytes:
    """The graph in int8, static with the ranges of `samples`, dynamic without any; its ends stay floats.

    Weights have one scale a channel. x86 processors without VNNI add pairs of products in 16 bits, which eight-bit
    weights overflow.
    """
    try:
        from onnxruntime import quantization
    except ImportError as error:
        raise MissingExtra("onnxruntime", "onnx") from error
    with tempfile.TemporaryDirectory() as folder:
        # files: of a graph in memory the quantizer moves the weights elsewhere
        whole, smaller = Path(folder) / "whole.onnx", Path(folder) / "smaller.onnx"
        whole.write_bytes(content)
        if samples:
            quantization.quantize_static(
                whole,
                smaller,
                _Samples(samples),
                quant_format=quantization.QuantFormat.QDQ,
                calibrate_method=quantization.CalibrationMethod.MinMax,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                per_channel=True,
                reduce_range=True,
            )
        else:
            quantization.quantize_dynamic(
                whole,
                smaller,
                op_types_to_quantize=["MatMul"],  # a Gemm is made one first
                weight_type=quantization.QuantType.QInt8,
                per_channel=True,
                reduce_range=True,
            )
        return tidied(smaller.read_bytes())


def _runs_by_layer(kernels: Sequence[tuple[str, list[int]]]) -> dict[int, list[int]]:
    """Microseconds run by run; none of a layer that several kernels share."""
    found: dict[int, list[int]] = {}
    for name, runs_us in kernels:
        operator, _, kernel = name.partition(" ")
        index = layer_of(kernel) if any(each in operator for each in ("Conv", "Gemm", "MatMul")) else None
        if index is not None:
            found[index] = [] if index in found else runs_us
    return {index: runs_us for index, runs_us in found.items() if runs_us}


_MEANINGS = {
    "INVALID_PROTOBUF": "the file is truncated or not an ONNX graph",
    "INVALID_ARGUMENT": "an input has another shape or type than the model was exported for",
}


def _explain(message: str) -> str:
    """ONNX Runtime's errors name files of its own, and fill several lines."""
    meaning = next((meaning for code, meaning in _MEANINGS.items() if code in message), None)
    return meaning or " ".join(message.split())
