"""Runtimes: what runs exported files. load() gives one by name; export() writes and gates a file."""

from __future__ import annotations

from collections.abc import Iterable

from maestro_edge.errors import ExportError
from maestro_edge.runtimes.agreement import Agreement
from maestro_edge.runtimes.conversion import images_as, model_for, names_for
from maestro_edge.runtimes.elastic import export_elastic
from maestro_edge.runtimes.gate import (
    check_accuracy,
    digest,
    export,
    export_counted,
    export_unchecked,
    size_bytes,
)
from maestro_edge.runtimes.jobs import versions_on
from maestro_edge.runtimes.protocol import (
    MeasuringProtocol,
    MixingRuntime,
    Operator,
    Runtime,
    TracingRuntime,
    mixing,
    package_version,
)

__all__ = [
    "RUNTIMES",
    "WRITTEN_ONLY",
    "Agreement",
    "MeasuringProtocol",
    "MixingRuntime",
    "Operator",
    "Runtime",
    "TracingRuntime",
    "check_accuracy",
    "digest",
    "export",
    "export_counted",
    "export_elastic",
    "export_unchecked",
    "images_as",
    "load",
    "load_all",
    "mixing",
    "model_for",
    "names_for",
    "package_version",
    "size_bytes",
    "versions_on",
]

RUNTIMES = ("executorch", "litert", "onnx", "coreml")
WRITTEN_ONLY = ("executorch-coreml", "executorch-vulkan", "executorch-ethos-u")
"""ExecuTorch's backends for hardware that no machine here has: files are written when asked for, and not run."""


def load(name: str) -> Runtime:
    """The runtime of a name; its package is imported only when it is used.

    Raises:
        ExportError: there is none of that name.
    """
    if name == "executorch" or name in WRITTEN_ONLY:
        from maestro_edge.runtimes.executorch import BACKENDS, ExecuTorch

        return ExecuTorch(BACKENDS[name])
    if name == "litert":
        from maestro_edge.runtimes.litert import LiteRT

        return LiteRT()
    if name == "onnx":
        from maestro_edge.runtimes.onnx import ONNX

        return ONNX()
    if name == "coreml":
        from maestro_edge.runtimes.coreml import CoreML

        return CoreML()
    raise ExportError(f"no runtime {name!r}: choose one of {', '.join((*RUNTIMES, *WRITTEN_ONLY))}")


def load_all(names: Iterable[str]) -> list[Runtime]:
    """Runtimes by name, refused before any work when a package is missing.

    Raises:
        MissingExtra: names the install command.
        ExportError: there is no such runtime.
    """
    runtimes = [load(name) for name in names]
    for runtime in runtimes:
        _ = runtime.version
    return runtimes
