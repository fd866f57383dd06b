"""Jobs: what goes to the runner on a device, in Python or native, and the one JSON document that comes back."""

from __future__ import annotations

import json
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maestro_edge.devices import Device
from maestro_edge.errors import DeviceError, MaestroError, RunnerError
from maestro_edge.runtimes.native import job_lines, push_native

__all__ = [
    "FILES",
    "of_entry",
    "push_all",
    "python_versions",
    "run_job",
    "version_on",
    "versions_on",
    "with_entry",
]

_PACKAGES = {
    "litert": "ai-edge-litert (pip)",
    "executorch": "executorch (pip)",
    "onnx": "onnxruntime (pip)",
}
_RUNNER = Path(__file__).with_name("runner.py")
_ABOUT = {"task": "about"}
_NATIVE = "executorch"
"""The one runtime that also runs without Python."""


def python_versions(device: Device) -> dict[str, str]:
    """The runtimes that the device's Python has; none where there is no Python.

    Raises:
        DeviceError: the runner cannot run there.
    """
    return _versions(device, _run_python(device, _ABOUT, timeout_s=60)) if device.python else {}


def versions_on(device: Device) -> dict[str, str]:
    """The runtimes that a device has, and their versions; ExecuTorch comes along where it lacks it.

    Raises:
        DeviceError: no runner can run there.
    """
    versions = python_versions(device)
    try:
        return _with_native(device, versions)
    except MaestroError:  # asked for by name, version_on() tells why it cannot come along
        if not device.python:
            raise
        return versions


def version_on(device: Device, runtime: str) -> str:
    """Version of one runtime on a device.

    Raises:
        DeviceError: it is not there, or the runner cannot run.
        MissingExtra: executorch should come along and is not installed here.
    """
    versions = python_versions(device)
    if runtime == _NATIVE:
        versions = _with_native(device, versions)
    if runtime not in versions:
        have = ", ".join(f"{name} {version}" for name, version in versions.items()) or "no runtime"
        raise DeviceError(f"{device.name} has {have}, not {runtime}: install {_PACKAGES[runtime]} there")
    return versions[runtime]


def _with_native(device: Device, versions: dict[str, str]) -> dict[str, str]:
    if _NATIVE in versions:
        return versions
    return versions | _versions(device, _run_native(device, _ABOUT, timeout_s=60))


def _versions(device: Device, result: dict[str, Any]) -> dict[str, str]:
    return {str(name): str(version) for name, version in _checked(device, result)["versions"].items()}


def run_job(device: Device, job: Mapping[str, Any], *, timeout_s: float) -> dict[str, Any]:
    """Push a runner and a job, run it, read back its one JSON document.

    ExecuTorch's jobs go to the native runner where the device has no Python, or one without executorch.

    Raises:
        RunnerError: the runtime could not do the job.
        DeviceError: the device failed, or the answer is not what a runner writes.
        MissingExtra: the native runner cannot be built, as executorch is not installed here.
    """
    if device.python:
        result = _run_python(device, job, timeout_s=timeout_s)
        if result.get("missing") != _NATIVE:
            return _checked(device, result)
    elif job["runtime"] != _NATIVE:
        raise DeviceError(f"{device.name} has no Python for {job['runtime']}: choose {_NATIVE}, which needs none")
    return _checked(device, _run_native(device, job, timeout_s=timeout_s))


def _run_python(device: Device, job: Mapping[str, Any], *, timeout_s: float) -> dict[str, Any]:
    return _run(device, [device.python, device.push(_RUNNER, "runner.py")], json.dumps(job), timeout_s)


def _run_native(device: Device, job: Mapping[str, Any], *, timeout_s: float) -> dict[str, Any]:
    return _run(device, push_native(device), job_lines(job), timeout_s)


def _run(device: Device, command: Sequence[str], job: str, timeout_s: float) -> dict[str, Any]:
    name = uuid.uuid4().hex[:8]
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "job"
        local.write_text(job)
        job_path = device.push(local, f"{name}.job.json")
        device.run([*command, job_path, job_path.removesuffix(".job.json") + ".result.json"], timeout_s=timeout_s)
        answer = Path(folder) / "result"
        device.pull(f"{name}.result.json", answer)
        try:
            result = json.loads(answer.read_bytes())
        except ValueError as error:
            raise DeviceError(f"{device.name}: the runner answered no JSON: {error}") from error
    if not isinstance(result, dict):
        raise DeviceError(f"{device.name}: the runner failed: {result}")
    return result


def _checked(device: Device, result: dict[str, Any]) -> dict[str, Any]:
    if "error" in result:
        raise RunnerError(f"{device.name}: the runner failed: {result['error']}")
    return result


FILES = "files"
"""The folder on a device that `push_all` makes."""


def with_entry(path: Path, entry: str | None) -> Path:
    """One entry of an elastic file, wherever a runtime takes the path of a file; None is a file of one."""
    return path if entry is None else path.with_name(f"{path.name}#{entry}")


def of_entry(path: Path) -> tuple[Path, str]:
    """What with_entry() put together: the file and its entry, "" where it has but one."""
    file, mark, entry = path.name.rpartition("#")
    return (path.with_name(file), entry) if mark and entry.isidentifier() and not path.exists() else (path, "")


def push_all(device: Device, paths: Mapping[str, Path]) -> dict[str, str]:
    """Push files under names that no layer or plan name can spoil; returns name → path on the device.

    Entries are "#entry" behind the path of their file, which is pushed once.
    """
    sources = {name: of_entry(path) for name, path in paths.items()}
    kept = dict.fromkeys(source for source, _ in sources.values())
    files = {source: f"file-{index}{source.suffix}" for index, source in enumerate(kept)}
    with tempfile.TemporaryDirectory() as folder:  # one folder is one step, also where each step is slow
        for source, file in files.items():
            Path(folder, file).symlink_to(source.resolve())
        there = device.push(Path(folder), FILES)
    return {
        name: f"{there}/{files[source]}" + (f"#{entry}" if entry else "")
        for name, (source, entry) in sources.items()
    }
