"""Calls of the command line, as a program or in this process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from typer.testing import CliRunner

from maestro_edge.cli import app

ROOT = Path(__file__).parents[1]


class Done(NamedTuple):
    """Exit code, standard output and standard error of a finished command."""

    code: int
    out: str
    err: str


def maestro(*argv: str | Path, folder: Path, timeout_s: float = 880) -> Done:
    done = subprocess.run(
        [sys.executable, "-m", "maestro_edge.cli", *map(str, argv)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def here(*argv: str, folder: Path) -> Done:
    """The same in this process, without seconds of imports a call; what it prints is left out."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        done = CliRunner().invoke(app, list(argv))
    finally:
        os.chdir(before)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return Done(done.exit_code, done.stdout, done.stderr)


def shown(*argv: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> Done:
    """The same with what it prints, which goes to the file descriptor itself."""
    done = here(*argv, folder=folder)
    return done._replace(out=capfd.readouterr().out)


def refused(done: Done) -> str:
    """The one line of a refusal."""
    assert done.code == 1, done
    lines = done.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("maestro-edge: "), done.err
    assert "Traceback" not in done.out
    return lines[0]
