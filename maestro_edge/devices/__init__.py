"""Devices: push, pull, run, facts. A device knows nothing of runtimes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from maestro_edge.devices.adb import AdbDevice, AdbListing, discover_adb
from maestro_edge.devices.local import LocalDevice
from maestro_edge.devices.ssh import SshDevice
from maestro_edge.errors import DeviceError
from maestro_edge.values import DeviceFacts

__all__ = ["AdbDevice", "AdbListing", "Device", "LocalDevice", "SshDevice", "connect", "discover", "discover_adb"]


class Device(Protocol):
    """Where files are measured: a private folder, and a way to move files and run programs there."""

    name: str
    """What `connect` takes and messages say: local, ssh:USER@HOST:PORT, adb:SERIAL, browser."""

    python: str
    """The interpreter on the device that has the runtimes; empty where there is none, as on a phone."""

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


def connect(name: str, *, announce: Callable[[str, str], object] | None = None) -> Device:
    """The device of a name: `local`, `ssh:USER@HOST[:PORT]` a board, `adb:SERIAL` a phone, `browser` a page.

    A phone on the network is `adb:HOST:PORT`; the page is served at `browser:PORT` or `browser:HOST:PORT` where a
    port is wanted, and `announce(url, qr_text)` is told when somebody should open it.

    Raises:
        DeviceError: there is none of that name.
    """
    kind, _, target = name.partition(":")
    if name == "local":
        return LocalDevice()
    if kind == "ssh":
        return SshDevice(target)
    if kind == "adb":
        return AdbDevice(target)
    if kind == "browser":
        from maestro_edge.devices.browser import connect_browser

        return connect_browser(name, announce)
    raise DeviceError(f"no device {name!r}: write 'local', 'ssh:USER@HOST', 'adb:SERIAL' or 'browser'")


def discover() -> tuple[str, ...]:
    """Names that `connect` takes now, phones among them; boards and browsers are known to their users alone."""
    phones: tuple[AdbListing, ...] = ()
    with contextlib.suppress(DeviceError):  # without adb there are no phones
        phones = discover_adb()
    return ("local", *(f"adb:{phone.serial}" for phone in phones if phone.state == "device"))
