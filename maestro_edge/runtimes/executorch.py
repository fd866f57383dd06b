"""ExecuTorch with the XNNPACK backend: .pte files, and the time of every operator from its event trace."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from maestro_edge.devices import Device
from maestro_edge.errors import DeviceError, ExportError, MissingExtra
from maestro_edge.runtimes.conversion import contiguous_copy, export_error
from maestro_edge.runtimes.probe import probe_module
from maestro_edge.runtimes.protocol import (
    Array,
    MeasuringProtocol,
    package_version,
    push_all,
    run_job,
    run_predict,
    run_time,
)
from maestro_edge.runtimes.silence import silence
from maestro_edge.values import LayerSpec, Precision, Rank, Timing, write_atomically

__all__ = ["ExecuTorch"]

_BATCH = 5
"""Event traces resolve 1 µs: a sample is the mean of this many consecutive runs."""


class ExecuTorch:
    """ExecuTorch on the CPU; fp32 XNNPACK kernels compute channels in tiles of 16."""

    name = "executorch"
    suffix = ".pte"
    rank_step = 16

    @property
    def version(self) -> str:
        return package_version("executorch", "executorch")

    def export(
        self, model: nn.Module, inputs: tuple[Tensor, ...], path: Path, precision: Precision = "fp32"
    ) -> None:
        with silence():
            try:
                from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
                from executorch.exir import to_edge_transform_and_lower
            except ImportError as error:
                raise MissingExtra("executorch", "executorch") from error
            try:
                program = torch.export.export(contiguous_copy(model), inputs)
                lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
                content = bytes(lowered.to_executorch().buffer)
            except Exception as error:
                raise export_error("ExecuTorch", path, error) from error
        write_atomically(path, content)

    def predict(self, path: Path, inputs: Array) -> Array:
        try:
            return run_predict(self.name, path, inputs)
        except DeviceError as error:
            raise ExportError(f"{path.name} does not run: {_explain(str(error))}") from error

    def measure(self, device: Device, paths: Mapping[str, Path], protocol: MeasuringProtocol) -> dict[str, Timing]:
        return run_time(self.name, device, paths, protocol)

    def measure_ops(
        self, device: Device, paths: Mapping[str, Path], protocol: MeasuringProtocol
    ) -> dict[str, list[tuple[str, Timing]]]:
        """Times of the Linear and Conv2d operators inside whole networks, in execution order."""
        job = {
            "task": "ops",
            "runtime": self.name,
            "threads": protocol.threads,
            "files": push_all(device, paths),
            "cold_runs": _BATCH,
            "rounds": protocol.rounds,
            "runs_per_round": _BATCH,
            "seed": protocol.seed,
        }
        traces = run_job(device, job, timeout_s=protocol.timeout_s)["traces"]
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / "trace.etdump"
            result = {}
            for name, remote in traces.items():
                device.pull(Path(remote).name, local)
                result[name] = _operators(local)
        return result

    def write_probe(self, spec: LayerSpec, rank: Rank, path: Path) -> None:
        self.export(*probe_module(spec, rank), path)


def _operators(trace: Path) -> list[tuple[str, Timing]]:
    with silence():
        from executorch.devtools import Inspector

        blocks = Inspector(etdump_path=str(trace)).event_blocks
    operators = []
    for event in next((block.events for block in blocks if block.name == "Execute"), ()):
        kind = _kind(event.name) if event.is_delegated_op else None
        if kind is not None and event.perf_data is not None:
            runs = event.perf_data.raw[_BATCH:]  # the first runs are cold
            starts = range(0, len(runs) - _BATCH + 1, _BATCH)
            operators.append((kind, Timing.of([sum(runs[i : i + _BATCH]) / _BATCH for i in starts])))
    return operators


def _kind(event: str) -> str | None:
    """XNNPACK calls them "Convolution (NHWC, F32) IGEMM #2" and "Fully Connected (NC, F32) GEMM #1"."""
    if event.startswith("Convolution") or event.startswith("DWConvolution"):
        return "conv2d"
    return "linear" if event.startswith("Fully Connected") else None


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
