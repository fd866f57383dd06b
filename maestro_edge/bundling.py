"""bundle(): the folder that an app reads, complete or not there at all, and where each app has it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from maestro_edge.errors import TableError
from maestro_edge.runtimes import digest
from maestro_edge.values import DENSE, Choice, Manifest, Variant

__all__ = ["APPS", "App", "asset_folder", "bundle", "fallbacks", "manifest_schema", "selected"]

_MANIFEST = "manifest.json"
_LABELS = "labels.txt"


class App(NamedTuple):
    """Where below its root an app has its bundle, and the runtimes that it can run."""

    assets: str
    runtimes: tuple[str, ...]


APPS: Final[Mapping[str, App]] = {
    "android": App("app/src/main/assets/model", ("litert", "executorch")),
    "ios": App("MaestroDemo/model", ("coreml", "executorch")),
    "linux": App("model", ("litert", "executorch", "onnx")),
    "web": App("model", ("litert",)),
}


def bundle(folder: Path, manifest: Manifest, files: Mapping[str, Path]) -> Path:
    """Copy the variants' files, `manifest.json` and `labels.txt` into `folder`, replacing a bundle that is there.

    `files` gives the source of every `Variant.file`; one that several variants share is copied once. All is made
    beside `folder` and renamed into place; where the same bundle is there already, nothing is touched.

    Raises:
        TableError: a file is missing or was changed after its export, leaves the folder, a label has several
            lines, or the folder cannot be written or holds something else than a bundle.
    """
    folder = Path(folder).resolve()
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        _refuse_others(folder)
        for variant in manifest.variants:
            _check(files.get(variant.file), variant)
        texts = {_MANIFEST: manifest.model_dump_json(indent=1), _LABELS: _lines(manifest.labels)}
        if _holds(folder, manifest, texts):
            return folder
        aside.mkdir(parents=True)
        for name in _names(manifest):
            _copy(files[name], aside / name)
        for name, text in texts.items():
            (aside / name).write_bytes(text.encode())
        _replace(folder, aside)
    except OSError as error:
        raise TableError(f"{folder}: the bundle cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def asset_folder(app: str, root: Path | None = None) -> Path:
    """Where the app whose project is `root` has its bundle; default apps/NAME of the checkout one is in.

    Raises:
        TableError: there is no such app or project, or the folder is reached over a link.
    """
    if app not in APPS:
        raise TableError(f"no app {app!r}: choose {', '.join(APPS)}")
    if root is None:
        root = Path("apps", app)
        if not (root.is_dir() and Path("apps", "manifest.schema.json").is_file()):
            raise TableError(
                f"no {root} here: call it in a checkout of maestro_edge, or give --out, the app's folder"
            )
    if not root.is_dir():
        raise TableError(f"{root}: no such folder: --out is the folder of an app's project")
    folder = root.resolve() / APPS[app].assets
    # A link could lead out of the project, and what it leads to would be replaced.
    if folder.resolve() != folder:
        raise TableError(f"{folder} leads to {folder.resolve()}: replace the link by a folder")
    return folder


def selected(
    manifest: Manifest, *, runtimes: Collection[str] | None = None, names: Collection[str] = ()
) -> Manifest:
    """The same for apps that run only `runtimes`, of all plans with `names` alone; dense in fp32 is always kept.

    Raises:
        TableError: a name is no variant's, or of another runtime, or nothing is left.
    """
    here = [variant for variant in manifest.variants if runtimes is None or variant.runtime in runtimes]
    for name in names:
        if name not in {variant.name for variant in here}:
            have = ", ".join(variant.name for variant in here) or "nothing"
            raise TableError(f"no plan {name!r} to bundle: there is {have}")
    chosen = tuple(variant for variant in here if not names or variant.name in names or _is_dense(variant))
    if not chosen:
        wanted = " or ".join(runtimes or ("any runtime",))
        raise TableError(
            f"{manifest.model} has no variant for {wanted}: run 'maestro-edge export' for one of them"
        )
    kept = {variant.name for variant in chosen}
    choices = tuple(choice for choice in manifest.choices if choice.variant in kept)
    return manifest.model_copy(update={"variants": chosen, "choices": choices})


def fallbacks(variants: Collection[Variant]) -> tuple[Choice, ...]:
    """For any device, per runtime: the most accurate plan that held its budgets when measured, else dense.

    The best runtime comes first. Validation accuracy decides where it is known, then the lower p50.
    """
    best = []
    for runtime in dict.fromkeys(variant.runtime for variant in variants):
        measured = [each for each in variants if each.runtime == runtime and each.measured_ms]
        held = [each for each in measured if each.is_planned and not each.missed]
        if rivals := held or [each for each in measured if _is_dense(each)]:
            best.append(min(rivals, key=_merit))
    return tuple(Choice(runtime=each.runtime, variant=each.name) for each in sorted(best, key=_merit))


def _merit(variant: Variant) -> tuple[float, float]:
    """Lower is better."""
    known, ms = variant.validation_accuracy, variant.measured_ms
    assert ms is not None
    return -(variant.accuracy if known is None else known), ms.p50


def _is_dense(variant: Variant) -> bool:
    plain = variant.precision == "fp32" and not variant.is_planned
    return plain and all(rank == DENSE for rank in variant.ranks.values())


def _names(manifest: Manifest) -> list[str]:
    return list(dict.fromkeys(variant.file for variant in manifest.variants))


def _refuse_others(folder: Path) -> None:
    """Only a bundle may be replaced: all that lies in the folder is named by its manifest."""
    if not folder.exists() or not any(folder.iterdir()):
        return
    refusal = f"{folder} holds something else than a bundle: choose another folder or empty it"
    try:
        old = Manifest.load(folder / _MANIFEST)
    except TableError as error:
        raise TableError(refusal) from error
    known = {_MANIFEST, _LABELS, *_names(old)}
    if any(item.name not in known for item in folder.iterdir()):
        raise TableError(refusal)


def _check(source: Path | None, variant: Variant) -> None:
    name = variant.file
    if "/" in name or "\\" in name or name in ("", ".", "..", _MANIFEST, _LABELS):
        raise TableError(f"variant file {name!r} leaves the bundle folder: use a plain file name")
    if source is None or not source.exists():
        raise TableError(f"{name} is missing: export the variant again")
    if digest(source) != variant.sha256:
        raise TableError(f"{name} was changed after its export (another sha256): export the variant again")


def _lines(labels: Collection[str]) -> str:
    several = [label for label in labels if label.splitlines() != [label]]
    if several:
        raise TableError(f"label {several[0]!r} is not one line: name the classes in one line each")
    return "".join(f"{label}\n" for label in labels)


def _holds(folder: Path, manifest: Manifest, texts: Mapping[str, str]) -> bool:
    """Whether the folder is that bundle already, byte for byte."""
    wanted = {*texts, *_names(manifest)}
    if not folder.is_dir() or {item.name for item in folder.iterdir()} != wanted:
        return False
    return all((folder / name).read_bytes() == text.encode() for name, text in texts.items()) and all(
        digest(folder / variant.file) == variant.sha256 for variant in manifest.variants
    )


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)


def _replace(folder: Path, aside: Path) -> None:
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


def manifest_schema() -> str:
    """What a manifest.json may hold, as JSON Schema (2020-12): the text of apps/manifest.schema.json."""
    found = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Manifest.model_json_schema()}
    return json.dumps(found, indent=1) + "\n"
