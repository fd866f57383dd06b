"""ExecuTorch with the XNNPACK backend: .pte files, and the time of every operator from its event trace."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maestro_edge.devices import Device
from maestro_edge.errors import DeviceError, ExportError, MissingExtra
from maestro_edge.runtimes.conversion import calibration_inputs, contiguous_copy, export_error
from maestro_edge.runtimes.elastic_executorch import overlap_segments, transpose_linears
from maestro_edge.runtimes.gate import digest
from maestro_edge.runtimes.jobs import FILES, python_versions, version_on
from maestro_edge.runtimes.native import build
from maestro_edge.runtimes.norms import fold_norms
from maestro_edge.runtimes.probe import probe_module
from maestro_edge.runtimes.protocol import (
    Array,
    MeasuringProtocol,
    Operator,
    batched,
    is_disturbed,
    kernel_kind,
    package_version,
    run_alone,
    run_ops,
    run_predict,
    run_time,
)
from maestro_edge.runtimes.silence import silence
from maestro_edge.values import Alone, LayerSpec, Precision, Rank, Timing, write_atomically

__all__ = ["ExecuTorch"]


class ExecuTorch:
    """ExecuTorch on the CPU; XNNPACK kernels compute channels in tiles of 16.

    In int8-dynamic only Linear layers are int8: convolutions would run slower than in fp32.
    """

    name = "executorch"
    suffix = ".pte"
    rank_step = 16

    @property
    def version(self) -> str:
        return package_version("executorch", "executorch")

    def version_on(self, device: Device) -> str:
        return version_on(device, self.name)

    def runner_sha256(self, device: Device) -> str | None:
        """sha256 of the native runner that measures on `device`, and its libraries; None where Python does.

        Raises:
            DeviceError: no runner can run there.
        """
        return None if self.name in python_versions(device) else digest(build(device.facts().arch))

    def export(
        self,
        model: nn.Module,
        inputs: tuple[Tensor, ...],
        path: Path,
        precision: Precision = "fp32",
        *,
        calibration: Sequence[Tensor] | None = None,
    ) -> None:
        if precision == "fp16":
            # What XNNPACK makes of a model in halves for x86 is as large as in floats.
            raise ExportError("ExecuTorch files gain nothing in fp16: choose fp32, int8-dynamic or int8-static")
        samples = calibration_inputs(inputs, calibration) if precision == "int8-static" else []

        def traced() -> Any:
            program = torch.export.export(contiguous_copy(model), inputs)
            if precision == "fp32":
                return program
            return torch.export.export(_quantized(program, inputs, samples), inputs)

        write_atomically(path, _lowered(traced, path))

    def export_entries(self, models: Mapping[str, nn.Module], inputs: tuple[Tensor, ...], path: Path) -> None:
        """A method for each model."""

        def traced() -> dict[str, Any]:
            folded = fold_norms(models, inputs, columns=False)
            graphs = transpose_linears({name: item.multiply() for name, item in folded.items()})
            return {name: torch.export.export(graph, inputs) for name, graph in graphs.items()}

        write_atomically(path, overlap_segments(_lowered(traced, path)))

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
        """Times of the Linear and Conv2d operators inside whole networks, in execution order."""
        result = run_ops(self.name, device, paths, protocol)
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / "trace.etdump"
            found = {}
            for name, remote in result["traces"].items():
                device.pull(f"{FILES}/{Path(remote).name}", local)  # beside its file
                found[name] = _operators(local, disturbed=is_disturbed(result, protocol))
        return found

    def write_probe(self, spec: LayerSpec, rank: Rank, path: Path, precision: Precision = "fp32") -> None:
        module, inputs = probe_module(spec, rank)
        self.export(module, inputs, path, precision, calibration=inputs)


def _lowered(trace: Callable[[], Any], path: Path) -> bytes:
    """The .pte file of the program that `trace` gives, or of several by method."""
    with silence():
        try:
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower
        except ImportError as error:
            raise MissingExtra("executorch", "executorch") from error
        try:
            lowered = to_edge_transform_and_lower(trace(), partitioner=[XnnpackPartitioner()])
            return bytes(lowered.to_executorch().buffer)
        except Exception as error:
            raise export_error("ExecuTorch", path, error) from error


def _quantized(program: Any, inputs: tuple[Tensor, ...], samples: Sequence[Tensor]) -> Any:
    """An int8 model, static with the ranges of `samples`, dynamic without any."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = XNNPACKQuantizer()
    # prepare_pt2e folds norms into convolutions; tracing the patterns of unfolded ones would take seconds
    quantizer.SUPPORTED_PATTERNS = [each for each in quantizer.SUPPORTED_PATTERNS if not each.is_qat]
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=not samples)
    if samples:
        quantizer.set_global(config)
    else:
        quantizer.set_operator_type(torch.ops.aten.linear.default, config)
    prepared = prepare_pt2e(program.module(), quantizer)
    with torch.no_grad():
        for sample in samples or inputs:
            prepared(sample)
    return convert_pt2e(prepared)


def _operators(trace: Path, *, disturbed: bool) -> list[Operator]:
    with silence():
        from executorch.devtools import Inspector

        blocks = Inspector(etdump_path=str(trace)).event_blocks
    operators = []
    for event in next((block.events for block in blocks if block.name == "Execute"), ()):
        kind = kernel_kind(event.name) if event.is_delegated_op else None
        if kind is not None and event.perf_data is not None:
            operators.append(Operator(kind, batched(event.perf_data.raw, disturbed=disturbed)))
    return operators


_CODES = {
    "0x10": "an input has another shape than the model was exported for",
    "0x12": "an input has another type, or there are more or fewer inputs than exported",
    "0x20": "the weights it was exported with are missing",
    "0x23": "the file is truncated or not an ExecuTorch program",
}


def _explain(message: str) -> str:
    """ExecuTorch's errors are bare numbers."""
    for code, meaning in _CODES.items():
        if message.lower().rstrip().endswith(code) or f"{code})" in message or f"{code}," in message:
            return f"{meaning} ({code})"
    return message
