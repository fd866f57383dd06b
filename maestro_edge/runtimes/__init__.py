"""Runtimes: what runs exported files. load() gives one by name; export() writes and gates a file."""

from __future__ import annotations

from maestro_edge.errors import ExportError
from maestro_edge.runtimes.elastic import export_elastic
from maestro_edge.runtimes.gate import Agreement, digest, export, size_bytes
from maestro_edge.runtimes.jobs import versions_on
from maestro_edge.runtimes.protocol import (
    MeasuringProtocol,
    Operator,
    Runtime,
    TracingRuntime,
    package_version,
)

__all__ = [
    "RUNTIMES",
    "Agreement",
    "MeasuringProtocol",
    "Operator",
    "Runtime",
    "TracingRuntime",
    "digest",
    "export",
    "export_elastic",
    "load",
    "package_version",
    "size_bytes",
    "versions_on",
]

RUNTIMES = ("executorch", "litert", "onnx", "coreml")


def load(name: str) -> Runtime:
    """The runtime of a name; its package is imported only when it is used.

    Raises:
        ExportError: there is none of that name.
    """
    if name == "executorch":
        from maestro_edge.runtimes.executorch import ExecuTorch

        return ExecuTorch()
    if name == "litert":
        from maestro_edge.runtimes.litert import LiteRT

        return LiteRT()
    if name == "onnx":
        from maestro_edge.runtimes.onnx import ONNX

        return ONNX()
    if name == "coreml":
        from maestro_edge.runtimes.coreml import CoreML

        return CoreML()
    raise ExportError(f"no runtime {name!r}: choose one of {', '.join(RUNTIMES)}")
