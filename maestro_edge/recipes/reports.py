"""The report page of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from maestro_edge.recipes.run import Run
from maestro_edge.reporting import write_report
from maestro_edge.runtimes import package_version
from maestro_edge.values import LatencyTable, Manifest

__all__ = ["report_run", "require_report"]


def report_run(run: Run, tables: Sequence[LatencyTable]) -> Path:
    """The report page of what is in the run folder.

    Raises:
        DataError: the run is of text, which has no exported variants to report.
    """
    run.require_images("report")
    manifest = Manifest.load(run.manifest_path)
    return write_report(run.folder / "report.html", manifest=manifest, plans=run.plans(), tables=tables)


def require_report() -> None:
    """Refuse before any work what would fail at its end.

    Raises:
        MissingExtra: names the install command.
    """
    for package in ("matplotlib", "jinja2"):
        package_version(package, "report")
