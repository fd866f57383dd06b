"""bundle(): the folder that an app reads, complete or not there at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from maestro_edge.errors import TableError
from maestro_edge.runtimes import digest
from maestro_edge.values import Manifest

__all__ = ["bundle", "manifest_schema"]


def bundle(folder: Path, manifest: Manifest, files: Mapping[str, Path]) -> Path:
    """Copy the variants' files and `manifest.json` into `folder`, replacing a bundle that is there.

    `files` gives the source of every `Variant.file`. All is made beside `folder` and renamed into place.

    Raises:
        TableError: a file is missing or was changed after its export, leaves the folder, or the folder
            cannot be written or holds something else than a bundle.
    """
    folder = Path(folder).resolve()
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        _refuse_others(folder)
        aside.mkdir(parents=True)
        for file, sha256 in dict.fromkeys((variant.file, variant.sha256) for variant in manifest.variants):
            _copy(files.get(file), aside, file, sha256)
        manifest.save(aside / "manifest.json")
        old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
        if folder.exists():
            folder.rename(old)
        try:
            aside.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise TableError(f"{folder}: the bundle cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def _refuse_others(folder: Path) -> None:
    """Only a bundle may be replaced: all that lies in the folder is named by its manifest."""
    if not folder.exists() or not any(folder.iterdir()):
        return
    refusal = f"{folder} holds something else than a bundle: choose another folder or empty it"
    try:
        old = Manifest.load(folder / "manifest.json")
    except TableError as error:
        raise TableError(refusal) from error
    known = {"manifest.json", *(variant.file for variant in old.variants)}
    if any(item.name not in known for item in folder.iterdir()):
        raise TableError(refusal)


def _copy(source: Path | None, folder: Path, name: str, sha256: str) -> None:
    if "/" in name or "\\" in name or name in ("", ".", "..", "manifest.json"):
        raise TableError(f"variant file {name!r} leaves the bundle folder: use a plain file name")
    if source is None or not source.exists():
        raise TableError(f"{name} is missing: export the variant again")
    if digest(source) != sha256:
        raise TableError(f"{name} was changed after its export (another sha256): export the variant again")
    if source.is_dir():
        shutil.copytree(source, folder / name)
    else:
        shutil.copyfile(source, folder / name)


def manifest_schema() -> str:
    """What a manifest.json may hold, as JSON Schema (2020-12): the text of apps/manifest.schema.json."""
    found = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Manifest.model_json_schema()}
    return json.dumps(found, indent=1) + "\n"
