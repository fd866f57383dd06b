"""Devices: push, pull, run, facts. A device knows nothing of runtimes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from maestro_edge.devices.local import LocalDevice
from maestro_edge.errors import DeviceError
from maestro_edge.values import DeviceFacts

__all__ = ["Device", "LocalDevice", "connect", "discover"]


class Device(Protocol):
    """Where files are measured: a private folder, and a way to move files and run programs there."""

    python: str
    """The interpreter on the device that has the runtimes."""

    def push(self, local: Path, remote: str) -> str:
        """Copy a file or folder into the private folder under the name `remote`; returns its path there.

        Raises:
            DeviceError: it could not be copied.
        """
        ...

    def pull(self, remote: str, local: Path) -> None:
        """Copy a file out of the private folder.

        Raises:
            DeviceError: it is not there or could not be copied.
        """
        ...

    def run(self, argv: Sequence[str], *, timeout_s: float) -> str:
        """Run a program in the private folder (never through a shell) and return what it printed.

        Raises:
            DeviceError: it is missing, failed, or took longer than `timeout_s`.
        """
        ...

    def facts(self) -> DeviceFacts:
        """What the device says of itself now."""
        ...

    def close(self) -> None:
        """Remove the private folder."""
        ...


def connect(name: str) -> Device:
    """The device of a name; `local` is this machine.

    Raises:
        DeviceError: there is none of that name.
    """
    if name == "local":
        return LocalDevice()
    raise DeviceError(f"no device {name!r}: this version measures on 'local' only")


def discover() -> tuple[str, ...]:
    """Names that `connect` takes now."""
    return ("local",)
