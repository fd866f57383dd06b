"""The command line: the pipeline's verbs on a run folder. The only package that prints."""

from __future__ import annotations

import sys

# Importing a module adds its commands.
from maestro_edge.cli import demo, exporting, measuring, planning, training  # noqa: F401
from maestro_edge.cli.console import app

__all__ = ["app", "main"]


def main() -> None:
    """Entry point of `maestro-edge`; models of the current folder can be named."""
    sys.path.insert(0, "")
    app()
