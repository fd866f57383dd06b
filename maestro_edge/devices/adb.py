"""A phone as a device, over USB or the network, through the `adb` program."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from maestro_edge.devices import failures
from maestro_edge.devices.posix import FACTS_SCRIPT, guarded, parse_facts
from maestro_edge.devices.store import CLEAN, PREPARE, Store
from maestro_edge.errors import DeviceError
from maestro_edge.values import DeviceFacts

__all__ = ["AdbDevice", "AdbListing", "discover_adb"]

COMMAND_S, TRANSFER_S = 60.0, 900.0
"""A phone that answers no later than this has lost its connection."""

DONE = "maestro-edge:done"
"""Ends what a finished command prints: when the cable is pulled, `adb shell` may end with code 0."""

AGAIN = "the same command goes on where it stopped"

DIALOG = "unlock the phone and accept its dialog 'Allow USB debugging?'"
REMEDIES = {
    "device": "",
    "unauthorized": DIALOG,
    "authorizing": DIALOG,
    "offline": "plug the cable in again, or switch USB debugging off and on",
    "no permissions": "install udev rules (Debian: android-sdk-platform-tools-common), plug the cable in again",
}
"""By state of `adb devices`; all others are those of a phone that did not start Android."""


class AdbListing(NamedTuple):
    """A device that the adb program sees; only in the state "device" can it be used."""

    serial: str
    state: str
    remedy: str


def discover_adb() -> tuple[AdbListing, ...]:
    """The devices that the adb program sees, and what to do about those that cannot be used.

    Raises:
        DeviceError: adb is not installed or does not answer.
    """
    return tuple(AdbListing(serial, state, _remedy(state)) for serial, state in _states().items())


class AdbDevice:
    """One phone by its serial, which is HOST:PORT for one on the network; it needs Android 7 or later.

    `cache` is a folder of the phone in which its shell user may write and run programs. Files stay there by
    their hash; a phone that comes back after the cable was pulled is used again.

    Raises:
        DeviceError: it is not there, or not ready.
    """

    python = ""

    def __init__(self, serial: str, *, cache: str = "/data/local/tmp") -> None:
        self.name, self._serial = f"adb:{serial}", serial
        if not serial.strip() or not serial.isprintable():
            raise DeviceError(
                f"{self.name!r} names no device: write adb:SERIAL or adb:HOST:PORT; {_there(_states())}"
            )
        self._require_ready()
        if "shell_v2" not in _adb(self.name, "-s", serial, "features").stdout.split():
            raise DeviceError(f"{self.name}: its adb gives no exit codes: Android 7 or later is needed")
        session = uuid.uuid4().hex[:12]
        told = self._script("making a private folder", PREPARE, cache, session, "false")
        base = told.partition("folder=")[2].partition("\n")[0]
        self._store = Store(self.name, base, session, self._script, self._upload)

    def push(self, local: Path, remote: str) -> str:
        return self._store.push(local, remote)

    def pull(self, remote: str, local: Path) -> None:
        path, step = f"{self._store.work}/{self._store.inside(remote)}", f"pulling {remote}"
        aside = local.with_name(f".{local.name}.{os.getpid()}.part")
        try:
            if refused := self._transfer(step, "pull", path, str(aside.absolute())):
                raise DeviceError(f"{self.name}: cannot pull {remote} ({refused})")
            aside.replace(local)
        except OSError as error:
            raise DeviceError(f"{self.name}: cannot pull {remote} to {local} ({error.strerror})") from error
        finally:
            aside.unlink(missing_ok=True)

    def run(self, argv: Sequence[str], *, timeout_s: float) -> str:
        work, name = self._store.work, failures.program(argv)
        code, output, message = self._execute(f"running {name}", guarded(argv, folder=work), timeout_s)
        if code == 97 and work in message:
            raise DeviceError(f"{self.name}: its private folder is gone: run the same command again")
        if code:
            raise DeviceError(
                f"{self.name}: {failures.reason(argv, code, message, folder=work, script=self._script)}"
            )
        return output

    def facts(self) -> DeviceFacts:
        return parse_facts(self._script("reading facts", FACTS_SCRIPT), device=self.name)

    def close(self) -> None:
        """Remove this session's folder; files by hash stay for the next one."""
        with contextlib.suppress(DeviceError):  # PREPARE removes the folder of a phone that was gone another day
            self._script("cleaning", CLEAN, self._store.work)

    def clean(self) -> None:
        """Remove what any session of any version left there."""
        self._script("cleaning", CLEAN, self._store.base)

    def _require_ready(self) -> None:
        states = _states()
        if states.get(self._serial) != "device" and re.fullmatch(r"[^\s-]\S*:\d+", self._serial):
            states = self._reconnect()
        state = states.get(self._serial)
        if state is None:
            raise DeviceError(f"{self.name} is not there: {_there(states)}")
        if state != "device":
            raise DeviceError(f"{self.name} is {state}: {_remedy(state)}")

    def _reconnect(self) -> dict[str, str]:
        """Connect to a phone on the network; only a new connection ends the state "offline" at once."""
        for _ in range(10):
            _adb(self.name, "disconnect", self._serial)
            answer = _adb(self.name, "connect", self._serial).stdout
            states = _states()
            # While adb still drops the old connection, it may say "already connected" and have none afterwards.
            if states.get(self._serial, "offline") != "offline" or "connected to" not in answer:
                break
            time.sleep(0.2)
        return states

    def _script(self, step: str, script: str, *arguments: str) -> str:
        command = shlex.join(["sh", "-c", script, "sh", *arguments])
        code, output, message = self._execute(step, command, TRANSFER_S)
        if code:
            raise DeviceError(f"{self.name}: {step} failed with code {code}: {message}")
        return output

    def _execute(self, step: str, command: str, timeout_s: float) -> tuple[int, str, str]:
        """Exit code, output, and the last line of standard error."""
        command = f"({command}); c=$?; printf '\\n%s\\n' {shlex.quote(DONE)} >&2; exit $c"
        late = f"{step.removeprefix('running ')} took longer than {timeout_s:g} s and was ended"
        done = _adb(self.name, "-s", self._serial, "shell", command, timeout_s=timeout_s, late=late)
        message, finished, _ = done.stderr.rpartition(f"\n{DONE}\n")
        if not finished:
            raise self._lost(step)
        return done.returncode, done.stdout, _last_line(message)

    def _upload(self, files: Mapping[str, Path]) -> str:
        """Send files to paths of one folder, by links of these names: adb takes many at a time."""
        with tempfile.TemporaryDirectory() as folder:
            links = [Path(folder, PurePosixPath(remote).name) for remote in files]
            for link, local in zip(links, files.values(), strict=True):
                link.symlink_to(local.resolve())
            return self._transfer(
                f"pushing {len(files)} file(s)", "push", *map(str, links), f"{self._store.work}/"
            )

    def _transfer(self, step: str, *arguments: str) -> str:
        """Why adb could not push or pull files, or nothing."""
        late = f"{step} took longer than {TRANSFER_S:g} s: {AGAIN}"
        done = _adb(self.name, "-s", self._serial, *arguments, timeout_s=TRANSFER_S, late=late)
        if done.returncode == 0:
            return ""
        # adb tells some reasons on its standard output, and none or few of a broken connection.
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith(("adb: ", "error: "))]
        reasons = [line for line in said if re.search("cannot|remote", line)]
        if not reasons:
            raise self._lost(step)
        return reasons[0].removeprefix("adb: error: ")

    def _lost(self, step: str) -> DeviceError:
        remedy = "connect it again"
        with contextlib.suppress(DeviceError):
            remedy = REMEDIES.get(_states().get(self._serial, "device")) or remedy
        return DeviceError(f"{self.name}: the connection was lost while {step}: {remedy}, then {AGAIN}")


def _adb(
    name: str,
    *arguments: str,
    timeout_s: float = COMMAND_S,
    late: str = "adb does not answer: run 'adb kill-server'",
) -> subprocess.CompletedProcess[str]:
    """Run adb with an input that stays open, for `guarded` ends a program with its input.

    Raises:
        DeviceError: adb is not installed, or takes longer than `timeout_s`, of which `late` tells.
    """
    never, kept_open = os.pipe()
    try:
        return subprocess.run(
            ["adb", *arguments],
            stdin=never,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except FileNotFoundError as error:
        raise DeviceError(
            f"{name}: the program adb is not installed: apt install adb (Debian, Ubuntu), "
            "brew install android-platform-tools (macOS), or Android's SDK Platform-Tools on the PATH"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise DeviceError(f"{name}: {late}") from error
    finally:
        os.close(never)
        os.close(kept_open)


def _states() -> dict[str, str]:
    """State by serial, as `adb devices` lists them."""
    done = _adb("adb", "devices")
    if done.returncode != 0:
        raise DeviceError(f"adb cannot list devices: {_last_line(done.stderr)}")
    listed = (line.rpartition("\t") for line in done.stdout.splitlines())
    # Linux without udev rules: "no permissions (user in plugdev group; are your udev rules wrong?); see [...]"
    return {serial: state.partition(" (")[0].strip() for serial, tab, state in listed if tab}


def _remedy(state: str) -> str:
    return REMEDIES.get(state, "start Android on it")


def _there(states: dict[str, str]) -> str:
    if not states:
        return "adb sees no device: connect the cable and switch on USB debugging in its developer options"
    return "adb sees " + ", ".join(f"{serial} ({state})" for serial, state in states.items())


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1].strip()
