"""Debian's Swift, unpacked below a cache, and the app's logic as a program of it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.devices.debian import native_architecture, system
from tests.devices.programs import OWN_USR

__all__ = ["Check", "Swift", "bring_swift"]

_PACKAGES: Final = ["swiftlang", "libc6-dev", "libstdc++-14-dev"]


class Swift(NamedTuple):
    """Programs of Debian's Swift, or made by it."""

    root: Path
    home: Path
    """Where Swift keeps what it makes of its own headers, else below the user's home."""
    folder: Path
    """Of this run."""

    def run(self, program: Path | str, *arguments: str | Path, told: str = "") -> subprocess.CompletedProcess[str]:
        script = self.folder / "own-usr.sh"
        script.write_text(OWN_USR.format(program=program, root=self.root))
        environment = {"HOME": str(self.home), "PATH": os.environ["PATH"]}
        argv = ["sh", str(script), *map(str, arguments)]
        return subprocess.run(argv, input=told, capture_output=True, text=True, check=False, env=environment)

    def compile(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return self.run("/usr/bin/swiftc", "-swift-version", "6", *arguments)

    def module(self, name: str, sources: Sequence[Path], into: Path) -> None:
        """What `import NAME` finds, without any code."""
        kind: list[str | Path] = ["-emit-module", "-parse-as-library", "-module-name", name, "-I", into]
        done = self.compile(*kind, "-emit-module-path", into / f"{name}.swiftmodule", *sources)
        assert done.returncode == 0, done.stderr


def bring_swift(cache: Path, folder: Path) -> Swift:
    """Swift from Debian, fetched once; `folder` takes what is made with it."""
    home = cache / "swift-home"
    home.mkdir(parents=True, exist_ok=True)
    return Swift(system(cache, native_architecture(), _PACKAGES), home, folder)


class Check(NamedTuple):
    """The app's logic as a program: JSON in, JSON out."""

    swift: Swift
    program: Path

    def ask(self, **request: Any) -> dict[str, Any]:
        told = {"quantiles": [], "pictures": [], "bundles": [], **request}
        done = self.swift.run(self.program, told=json.dumps(told))
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def refusal(self, folder: Path) -> str:
        """The one line that a broken bundle is refused with."""
        (answer,) = self.ask(bundles=[str(folder)])["bundles"]
        assert "\n" not in answer["refusal"]
        return str(answer["refusal"])
