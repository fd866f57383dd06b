"""A private folder on a device that keeps files by their sha256: what it has is not sent again.

`files/SHA256` is a file that arrived whole, `work/SESSION/` the folder a session runs in, whose names are links to
those files. Every script takes what it needs as arguments after its own text (`sh -c SCRIPT sh ARGUMENT ...`): no
name is ever pasted into one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TypeVar

from maestro_edge.errors import DeviceError

T = TypeVar("T")

__all__ = ["CLEAN", "PREPARE", "Store"]

_SUMS = """
sums() { if command -v sha256sum >/dev/null; then sha256sum -- "$@"; else shasum -a 256 -- "$@"; fi; }
"""

PREPARE = """
umask 077
base="${1:-$HOME/.cache}/maestro-edge-device"
mkdir -p -- "$base/files" "$base/work/$2" && chmod 700 "$base" && cd -- "$base" || exit 95
command -v sha256sum >/dev/null || command -v shasum >/dev/null || { echo 'no sha256sum' >&2; exit 95; }
find files work -mindepth 1 -maxdepth 1 -mtime +30 -exec rm -rf {} +
echo "folder=$(pwd)"
python="${3:-python3}"
case "$python" in "~/"*) python="$HOME/${python#??}" ;; esac
echo "python=$("$python" -c 'import sys, numpy; print(sys.executable)' 2>/dev/null </dev/null)"
"""
"""CACHE SESSION PYTHON: make the folder, drop what is 30 days old, tell where it is and whose python has numpy."""

_HELD = f"""{_SUMS}
cd -- "$1/files" || exit 95
shift
sums "$@" 2>/dev/null
true
"""
"""BASE SHA256...: of the files that the device has, read again from its storage, `SHA256  NAME`."""

_PLACE = f"""{_SUMS}
cd -- "$1" && mkdir -p -- "$2" || exit 95
shift 2
files=../../files
chmod 500 .part-* 2>/dev/null
sums .part-* 2>/dev/null | while read -r sum part; do
  if [ ".part-$sum" = "$part" ]; then mv -f -- "$part" "$files/$sum"; else rm -f -- "$part"; fi
done
while [ $# -gt 1 ]; do
  case "$2" in */*) [ -d "${{2%/*}}" ] || mkdir -p -- "${{2%/*}}" ;; esac
  ln -f -- "$files/$1" "$2" 2>/dev/null || cp -f -- "$files/$1" "$2" 2>/dev/null || echo "missing $1"
  shift 2
done
"""
"""WORK FOLDER (SHA256 NAME)...: keep the parts that arrived whole, give names to files; tell `missing SHA256`."""

CLEAN = 'cd / && rm -rf -- "$1"'
"""BASE: remove all of it."""


class Store:
    """The folder as one connection knows it: what was seen or sent is neither asked for nor sent again.

    `script` runs a shell script with arguments there, for a step that errors name; `upload` sends files to paths
    there, and returns why the device refused them, or nothing.
    """

    def __init__(
        self,
        name: str,
        base: str,
        session: str,
        script: Callable[..., str],
        upload: Callable[[Mapping[str, Path]], str],
    ) -> None:
        self.name, self.base, self.work = name, base, f"{base}/work/{session}"
        self._script, self._upload = script, upload
        self._held: set[str] = set()
        self._placed: dict[str, str] = {}

    def push(self, local: Path, remote: str) -> str:
        """Bring a file or a whole folder; a file that arrives damaged is sent once more.

        Raises:
            DeviceError: it cannot be read here, or does not arrive whole.
        """
        try:
            files = _files(local, self.inside(remote))
            digests = {name: _sha256(path) for name, path in files.items()}
        except OSError as error:
            raise DeviceError(f"{self.name}: cannot push {local} ({error.strerror})") from error
        paths = {digests[name]: path for name, path in files.items()}
        step = f"pushing {local.name}"
        self._look(step, [digest for digest in paths if digest not in self._held])
        for _ in range(2):
            missing = {digest: path for digest, path in paths.items() if digest not in self._held}
            self._send({f"{self.work}/.part-{digest}": path for digest, path in missing.items()})
            self._place(step, digests, remote if local.is_dir() else ".")
            if self._held.issuperset(paths):
                return f"{self.work}/{remote}"
        raise DeviceError(f"{self.name}: {local.name} arrived damaged twice: is its storage failing or full?")

    def inside(self, remote: str) -> str:
        """`remote`, if it stays inside the folder.

        Raises:
            DeviceError: it does not.
        """
        path = PurePosixPath(remote)
        if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in remote:
            raise DeviceError(f"{self.name}: {remote!r} is no name inside the private folder")
        return remote

    def _send(self, files: Mapping[str, Path]) -> None:
        if not files or not (refused := self._upload(files)):
            return
        need_kib = sum(path.stat().st_size for path in files.values()) / 1024
        told = re.search(r"(\d+)\s+\d+%", self._script("asking for free space", 'df -Pk -- "$1"', self.base))
        free_kib = float(told[1]) if told else 0.0
        full = "no space" in refused.lower() or free_kib < need_kib
        raise DeviceError(
            f"{self.name}: {'its disk is full' if full else 'it refused files'} ({refused}; {need_kib / 1024:.1f} "
            f"MiB to push, {free_kib / 1024:.1f} MiB free): make room, or 'maestro-edge devices clean {self.name}'"
        )

    def _look(self, step: str, digests: Sequence[str]) -> None:
        for some in _batches(digests):
            told = (line.split() for line in self._script(step, _HELD, self.base, *some).splitlines())
            self._held.update(words[0] for words in told if len(words) == 2 and words[0] == words[1])

    def _place(self, step: str, digests: Mapping[str, str], folder: str) -> None:
        new = [(digest, name) for name, digest in digests.items() if self._placed.get(name) != digest]
        for some in _batches(new):
            told = self._script(step, _PLACE, self.work, folder, *(word for pair in some for word in pair))
            missing = {line.removeprefix("missing ") for line in told.splitlines() if line.startswith("missing ")}
            self._held.difference_update(missing)
            self._held.update(digest for digest, _ in some if digest not in missing)
            self._placed.update((name, digest) for digest, name in some if digest not in missing)


def _files(local: Path, remote: str) -> dict[str, Path]:
    if not local.is_dir():
        return {remote: local}
    found = (path for path in sorted(local.rglob("*")) if not path.is_dir())
    return {f"{remote}/{path.relative_to(local).as_posix()}": path for path in found}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """A command line is at most 128 KiB long."""
    return (items[start : start + 100] for start in range(0, len(items), 100))
