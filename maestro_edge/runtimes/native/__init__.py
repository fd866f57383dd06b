"""The native ExecuTorch runner: what devices without Python, such as phones, run in place of runner.py."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from maestro_edge.devices import Device
from maestro_edge.errors import DeviceError
from maestro_edge.runtimes.native.building import ARCHITECTURES, LOADERS, build

__all__ = ["ARCHITECTURES", "build", "job_lines", "push_native"]


def push_native(device: Device) -> list[str]:
    """Bring the runner for the device's architecture; returns the command that takes a job and a result path.

    It is started by its own loader, as Android, Alpine or an old Debian has another one or none.

    Raises:
        DeviceError: there is no runner for it, or it cannot be built or pushed.
        MissingExtra: executorch is not installed here.
    """
    arch = device.facts().arch
    if arch not in LOADERS:
        raise DeviceError(
            f"{device.name} is {arch}, the native runner is made for {' and '.join(ARCHITECTURES)}: "
            "install Python with executorch there, or measure on another device"
        )
    folder = device.push(build(arch), f"runner-{arch}")
    return [f"{folder}/{LOADERS[arch]}", f"{folder}/runner"]


def job_lines(job: Mapping[str, Any]) -> str:
    """A job of runner.py as the lines that the native runner reads; names stay JSON, so that any name will do."""
    options = {key: value for key, value in job.items() if key != "files"}
    if "cores" in options:
        options["cores"] = " ".join(map(str, options["cores"]))
    lines = [f"{key} {value}" for key, value in options.items()]
    for name, path in job.get("files", {}).items():
        lines += [f"name {json.dumps(name)}", f"file {path}"]
    return "\n".join(lines) + "\n"
