"""One profiler at a time on a device: a claim that says who holds it, and what frees it."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from maestro_edge.errors import DeviceError

if TYPE_CHECKING:
    from maestro_edge.devices import Device

__all__ = ["claim", "clean"]

_POLL_S = 1.0

_PLACE = """
for d in "$1" /tmp /data/local/tmp; do [ -n "$d" ] && [ -d "$d" ] && [ -w "$d" ] && break; done
c="$d/maestro-edge.claim"
"""
"""The claim is a symbolic link whose target is its owner: made at once or not at all, with all that it says."""

_TAKE = f"""{_PLACE}
if [ -n "$3" ] && mkdir "$c.stale" 2>/dev/null; then
  [ "$(readlink "$c")" = "$3" ] && rm -f "$c"
  rmdir "$c.stale"
fi
ln -s "$2" "$c" 2>/dev/null
readlink "$c" || true
"""
"""FOLDER MINE STALE: take the claim, after removing it if it is still STALE; tell whose it is now."""

_GIVE = f"""{_PLACE}
[ "$(readlink "$c")" = "$2" ] && rm -f "$c"
true
"""

_FREE = f"""{_PLACE}
rmdir "$c.stale" 2>/dev/null
rm -f "$c"
"""


@runtime_checkable
class _Keeping(Protocol):
    """A device that keeps files between sessions."""

    def clean(self) -> None: ...


@contextmanager
def claim(
    device: Device, *, wait_s: float = 0.0, waiting: Callable[[str], None] | None = None, folder: str = ""
) -> Iterator[None]:
    """Hold the device alone; `waiting` is told once who holds it, if that is not us.

    All users of a device share a claim, in a folder that all may write (`folder` on the device instead). One
    whose process on this host is dead is taken over.

    Raises:
        DeviceError: another still holds it after `wait_s`.
    """
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    mine = json.dumps([socket.gethostname(), os.getpid(), since, os.urandom(4).hex()])
    _take(device, mine, folder, wait_s, waiting or (lambda message: None))
    try:
        yield
    finally:
        with suppress(DeviceError):  # a claim left on a lost device is stale as soon as this process ends
            _run(device, _GIVE, folder, mine)


def clean(device: Device, *, folder: str = "") -> None:
    """Remove what any session of any version left on the device, its claim included; what runs there fails.

    Raises:
        DeviceError: it could not be removed.
    """
    _run(device, _FREE, folder)
    if isinstance(device, _Keeping):
        device.clean()
    else:
        device.close()


def _take(device: Device, mine: str, folder: str, wait_s: float, waiting: Callable[[str], None]) -> None:
    until = time.monotonic() + wait_s
    stale, told, given_back = "", False, 0
    while (owner := _run(device, _TAKE, folder, mine, stale)) != mine:
        if not owner:
            given_back += 1  # between our two looks; again and again means that there can be none
            if given_back == 10:
                raise DeviceError(f"{device.name}: no folder there takes a claim: is its disk full?")
            continue
        if stale != owner and _is_dead(owner):
            stale = owner
            continue
        message = f"{device.name} is in use by {_describe(owner)}"
        if (left_s := until - time.monotonic()) <= 0:
            raise DeviceError(f"{message}: wait, or 'maestro-edge devices clean {device.name}'")
        if not told:
            waiting(f"{message}: waiting up to {wait_s:.0f} s")
            told = True
        time.sleep(min(_POLL_S, left_s))


def _owner(claim: str) -> tuple[str, int, datetime] | None:
    try:
        host, process, since, _ = json.loads(claim)
        return str(host), int(process), datetime.fromisoformat(since)
    except (ValueError, TypeError):
        return None


def _describe(claim: str) -> str:
    owner = _owner(claim)
    if owner is None:
        return repr(claim)
    since = owner[2].astimezone()
    today = since.date() == datetime.now().astimezone().date()
    return f"{owner[0]}, process {owner[1]}, since {since:{'%H:%M' if today else '%Y-%m-%d %H:%M'}}"


def _is_dead(claim: str) -> bool:
    """Only of this host's processes that can be known; on Windows, signal 0 would end them."""
    owner = _owner(claim)
    if owner is None or owner[0] != socket.gethostname() or os.name != "posix":
        return False
    try:
        os.kill(owner[1], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _run(device: Device, script: str, *arguments: str) -> str:
    return device.run(["sh", "-c", script, "sh", *arguments], timeout_s=30).strip()
