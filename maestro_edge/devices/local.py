"""This machine as a device: programs run as processes of their own, in a folder of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path

from maestro_edge.devices.posix import FACTS_SCRIPT, parse_facts
from maestro_edge.errors import DeviceError
from maestro_edge.values import DeviceFacts

__all__ = ["LocalDevice"]


class LocalDevice:
    """Runs on this machine; `python` is the interpreter that runs now."""

    def __init__(self) -> None:
        self.name, self.python = "local", sys.executable
        self._folder = Path(tempfile.mkdtemp(prefix="maestro-edge-"))
        self._remove = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    def push(self, local: Path, remote: str) -> str:
        target = self._folder / remote
        try:
            if local.is_dir():
                shutil.copytree(local, target, dirs_exist_ok=True, copy_function=_link)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                _link(local, target)
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
        except OSError as error:
            raise DeviceError(
                f"local: {argv[0]} did not start ({error.strerror}): was it built for another processor?"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise DeviceError(f"local: {command} took longer than {timeout_s:g} s and was ended") from error
        if done.returncode != 0:
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            raise DeviceError(
                f"local: {command} ended with code {done.returncode}: {lines[-1] if lines else 'no message'}"
            )
        return done.stdout.decode(errors="replace")

    def facts(self) -> DeviceFacts:
        return parse_facts(self.run(["sh", "-c", FACTS_SCRIPT], timeout_s=30), device=self.name)

    def close(self) -> None:
        self._remove()


def _link(source: str | Path, target: str | Path) -> None:
    """No copy where that can be: a session pushes hundreds of files."""
    source, target = Path(source), Path(target)
    target.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copy(source, target)
