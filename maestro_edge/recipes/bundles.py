"""What of a run an app is given: its variants, or its fleet's files."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from maestro_edge.bundling import APPS, asset_folder, bundle, fallbacks, selected
from maestro_edge.errors import TableError
from maestro_edge.recipes.fleets import fleet_files, fleet_manifest_path
from maestro_edge.recipes.run import Run
from maestro_edge.values import Manifest

__all__ = ["bundle_run"]


def bundle_run(
    run: Run, out: Path | None = None, *, app: str | None = None, names: Collection[str] = (), fleet: bool = False
) -> Path:
    """Bundle the exported files, or the fleet's, in the folder `out`; default bundle/ in the run's.

    With `app` it goes into that app's project, whose folder `out` then is, without what the app cannot run.
    `names` are the plans that are wanted; default all.

    Raises:
        DataError: the run is of text, which no app takes.
        TableError: a plan is of an emulated device, whose times an app would take for a device's; nothing was
            exported, or of a fleet nothing measured; or as bundling.bundle(), asset_folder() and selected().
    """
    run.require_images("bundle")
    folder = asset_folder(app, out) if app is not None else out or run.folder / "bundle"
    manifest, files = _fleet(run) if fleet else _variants(run)
    manifest = selected(manifest, runtimes=None if app is None else APPS[app].runtimes, names=names)
    if not fleet:
        manifest = manifest.model_copy(update={"choices": fallbacks(manifest.variants)})
    return bundle(folder, manifest, files)


def _variants(run: Run) -> tuple[Manifest, dict[str, Path]]:
    for item in run.plans():
        if item.source == "emulated":
            raise TableError(f"plan {item.name} was made on an emulated {item.device}: plan on a measured table")
    manifest = Manifest.load(run.manifest_path)
    return manifest, {each.file: run.folder / "files" / each.file for each in manifest.variants}


def _fleet(run: Run) -> tuple[Manifest, dict[str, Path]]:
    manifest = Manifest.load(fleet_manifest_path(run))
    if all(variant.measured_ms is None for variant in manifest.variants):
        command = f"maestro-edge verify {run.folder} --fleet"
        raise TableError(
            f"the fleet's files were never timed, and apps run none such: run '{command}' on a device"
        )
    return manifest, fleet_files(run, manifest)
