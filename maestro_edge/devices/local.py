"""This machine as a device: programs run as processes of their own, in a folder of their own."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path

from maestro_edge.errors import DeviceError
from maestro_edge.values import DeviceFacts

__all__ = ["LocalDevice"]


class LocalDevice:
    """Runs on this machine; `python` is the interpreter that runs now."""

    def __init__(self) -> None:
        self.python = sys.executable
        self._folder = Path(tempfile.mkdtemp(prefix="maestro-edge-"))
        self._remove = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    def push(self, local: Path, remote: str) -> str:
        target = self._folder / remote
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            try:
                os.link(local.resolve(), target)  # no copy: a session pushes hundreds of files
            except OSError:
                shutil.copyfile(local, target)
        except OSError as error:
            raise DeviceError(f"local: cannot push {local} ({error.strerror}): is the disk full?") from error
        return str(target)

    def pull(self, remote: str, local: Path) -> None:
        try:
            shutil.copyfile(self._folder / remote, local)
        except OSError as error:
            raise DeviceError(f"local: cannot pull {remote} ({error.strerror})") from error

    def run(self, argv: Sequence[str], *, timeout_s: float) -> str:
        command = Path(argv[1] if len(argv) > 1 else argv[0]).name
        try:
            done = subprocess.run(
                list(argv), cwd=self._folder, capture_output=True, timeout=timeout_s, check=False
            )
        except FileNotFoundError as error:
            raise DeviceError(f"local: {argv[0]} is not installed") from error
        except subprocess.TimeoutExpired as error:
            raise DeviceError(f"local: {command} took longer than {timeout_s:g} s and was ended") from error
        if done.returncode != 0:
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            raise DeviceError(
                f"local: {command} ended with code {done.returncode}: {lines[-1] if lines else 'no message'}"
            )
        return done.stdout.decode(errors="replace")

    def facts(self) -> DeviceFacts:
        soc = _cpu_name()
        arch = platform.machine()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        slug = re.sub(r"[^a-z0-9]+", "-", soc.lower()).strip("-") or "unknown"
        return DeviceFacts(
            name=f"{slug}-{cores}c",
            soc=soc,
            arch=arch,
            cores=cores,
            os=_os_name(),
            memory_gib=_memory_gib(),
            governor=_read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            temperature_c=_temperature_c(),
        )

    def close(self) -> None:
        self._remove()


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip("\0\n ") or None
    except OSError:
        return None


def _cpu_name() -> str:
    board = _read("/proc/device-tree/model")
    if board:
        return board
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _os_name() -> str:
    try:
        return f"{platform.freedesktop_os_release()['PRETTY_NAME']}, {platform.system()} {platform.release()}"
    except (OSError, KeyError):
        return f"{platform.system()} {platform.release()}"


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None


def _temperature_c() -> float | None:
    raw = _read("/sys/class/thermal/thermal_zone0/temp")
    return float(raw) / 1000 if raw and raw.lstrip("-").isdigit() else None
