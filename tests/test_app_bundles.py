"""Bundles in apps: where they go, what comes along, what runs without a budget, and the schema."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from maestro_edge.bundling import APPS, asset_folder, bundle, fallbacks, selected
from maestro_edge.errors import TableError
from maestro_edge.runtimes import digest
from maestro_edge.values import Budget, Choice, Manifest, MeasuredMs, Variant
from tests.test_bundling import beside, exported, manifest, tree, variant

ROOT = Path(__file__).parents[1]
SCHEMA = Draft202012Validator(json.loads((ROOT / "apps" / "manifest.schema.json").read_text()))


def timed(name: str, p50: float | None, accuracy: float, *, budget_ms: float | None = None) -> Variant:
    """`runtime-rest` measured here; planned where it has a budget."""
    made = variant(f"{name}.bin", "0" * 64)
    return made.model_copy(
        update={
            "name": name,
            "runtime": name.partition("-")[0],
            "measured_ms": p50 and MeasuredMs(p50=p50, p90=p50, n=20),
            "accuracy": 0.5,
            "validation_accuracy": accuracy,
            "budget_ms": budget_ms,
            "budgets": () if budget_ms is None else (Budget(quantity="ms", limit=budget_ms),),
            "ranks": {"conv": "dense" if budget_ms is None else 4},
        }
    )


VARIANTS = (
    *(timed("litert-dense", 2.0, 0.95), timed("litert-1ms", 0.9, 0.93, budget_ms=1.0)),
    *(timed("litert-0.5ms", 0.6, 0.94, budget_ms=0.5), timed("executorch-dense", 1.5, 0.95)),
    *(timed("executorch-1ms", 1.1, 0.94, budget_ms=1.0), timed("coreml-dense", None, 0.95)),
)


# --- what comes along


def test_a_device_runs_the_best_plan_that_held_and_dense_where_none_did() -> None:
    """Per runtime, the best first: plans that missed, and what was not measured, are no choice."""
    chosen = fallbacks(VARIANTS)

    assert chosen == (
        Choice(runtime="executorch", variant="executorch-dense"),
        Choice(runtime="litert", variant="litert-1ms"),
    )


def test_of_equally_accurate_plans_the_faster_is_chosen() -> None:
    """The validation images decide; those of the test split choose nothing."""
    better = timed("litert-1ms", 0.9, 0.93, budget_ms=1.0).model_copy(update={"accuracy": 0.9})
    faster = timed("litert-0.9ms", 0.8, 0.93, budget_ms=0.9)

    assert fallbacks([better, faster]) == (Choice(runtime="litert", variant="litert-0.9ms"),)


def test_an_app_gets_the_runtimes_that_it_can_run() -> None:
    """Choices of others go too."""
    made = manifest(*VARIANTS).model_copy(update={"choices": fallbacks(VARIANTS)})

    web = selected(made, runtimes=APPS["web"].runtimes)

    assert [each.name for each in web.variants] == ["litert-dense", "litert-1ms", "litert-0.5ms"]
    assert [each.variant for each in web.choices] == ["litert-1ms"]


def test_plans_by_name_come_with_the_dense_networks() -> None:
    """Of every runtime that the app runs."""
    made = selected(manifest(*VARIANTS), runtimes=("litert", "executorch"), names=["litert-0.5ms"])

    assert [each.name for each in made.variants] == ["litert-dense", "litert-0.5ms", "executorch-dense"]


@pytest.mark.parametrize(
    ("app", "names", "message"),
    [
        ("web", ["litert-9ms"], "no plan 'litert-9ms' to bundle: there is litert-dense, litert-1ms, litert-0.5ms"),
        ("web", ["executorch-1ms"], "no plan 'executorch-1ms' to bundle"),
        ("linux", ["coreml-dense"], "no plan 'coreml-dense'"),
    ],
)
def test_a_plan_that_the_app_cannot_have_is_named(app: str, names: list[str], message: str) -> None:
    with pytest.raises(TableError, match=message):
        selected(manifest(*VARIANTS), runtimes=APPS[app].runtimes, names=names)


def test_an_app_without_any_variant_is_refused() -> None:
    """An empty bundle would replace a good one."""
    with pytest.raises(TableError, match=r"small has no variant for litert: run 'maestro-edge export'"):
        selected(manifest(VARIANTS[-1]), runtimes=APPS["web"].runtimes)


# --- where it goes


@pytest.mark.parametrize("app", APPS)
def test_a_bundle_goes_into_the_assets_of_a_project(app: str, tmp_path: Path) -> None:
    """The folder need not be there yet; the app's own files stay."""
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "main.file").write_bytes(b"mine")
    made, files = exported(tmp_path / "files", {"a.pte": b"A"})

    folder = bundle(asset_folder(app, tmp_path / "project"), made, files)

    assert folder == tmp_path / "project" / APPS[app].assets
    assert set(tree(folder)) == {"a.pte", "labels.txt", "manifest.json"}
    assert (tmp_path / "project" / "main.file").read_bytes() == b"mine"


def test_in_a_checkout_the_app_of_that_name_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere the project is asked for; a folder that is not there is most likely misspelt."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "apps" / "web").mkdir(parents=True)

    with pytest.raises(TableError, match=r"no apps/web here: .* give --out, the app's folder"):
        asset_folder("web")
    (tmp_path / "apps" / "manifest.schema.json").write_text("{}")
    with pytest.raises(TableError, match="no apps/linux here"):
        asset_folder("linux")
    with pytest.raises(TableError, match="webb: no such folder"):
        asset_folder("web", tmp_path / "webb")
    assert asset_folder("web") == tmp_path / "apps" / "web" / "model"


@pytest.mark.parametrize("link", ["app", "app/src/main/assets", "app/src/main/assets/model"])
def test_a_link_below_the_project_is_refused(link: str, tmp_path: Path) -> None:
    """What it leads to would be replaced: outside of the project or inside."""
    project, other = tmp_path / "project", tmp_path / "other"
    for folder in ((project / link).parent, other):
        folder.mkdir(parents=True)
    (project / link).symlink_to(other)

    with pytest.raises(TableError, match=r"other.*: replace the link by a folder"):
        asset_folder("android", project)

    assert list(other.iterdir()) == []


# --- how it is written


def test_the_labels_are_lines_of_a_file(tmp_path: Path) -> None:
    """Of the manifest, in its order."""
    folder = bundle(tmp_path / "bundle", *exported(tmp_path / "files", {"a.pte": b"A"}))

    assert (folder / "labels.txt").read_text() == "cat\ndog\n"


@pytest.mark.parametrize("label", ["", "cat\ndog", "cat\n"])
def test_a_label_that_is_not_a_line_is_refused(label: str, tmp_path: Path) -> None:
    """The labels behind it would each be one off."""
    made, files = exported(tmp_path / "files", {"a.pte": b"A"})

    with pytest.raises(TableError, match="is not one line"):
        bundle(tmp_path / "bundle", made.model_copy(update={"labels": ("dog", label)}), files)

    assert not (tmp_path / "bundle").exists()


def test_the_same_bundle_again_touches_nothing(tmp_path: Path) -> None:
    """No byte, no time, no inode: a build that watches the folder does nothing."""
    made, files = exported(tmp_path / "files", {"a.pte": b"A", "b.pte": b"B"})
    folder = bundle(tmp_path / "place" / "bundle", made, files)
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (folder, *folder.iterdir())}

    bundle(folder, made, files)

    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (folder, *folder.iterdir())} == before
    assert beside(folder) == ["bundle"]


@pytest.mark.parametrize("damage", ["changed", "gone", "labels"])
def test_a_damaged_bundle_is_made_anew(damage: str, tmp_path: Path) -> None:
    """Whatever of it was damaged."""
    made, files = exported(tmp_path / "files", {"a.pte": b"A"})
    folder = bundle(tmp_path / "bundle", made, files)
    whole = tree(folder)
    if damage == "gone":
        (folder / "a.pte").unlink()
    else:
        (folder / ("labels.txt" if damage == "labels" else "a.pte")).write_bytes(b"damaged")

    bundle(folder, made, files)

    assert tree(folder) == whole


def test_a_file_that_variants_share_is_copied_once(tmp_path: Path) -> None:
    """Each of them is an entry of it; another sha256 for the same file is a mistake."""
    made, files = exported(tmp_path / "files", {"all.pte": b"A"})
    (only,) = made.variants
    entries = tuple(only.model_copy(update={"name": name, "entry": name}) for name in ("small", "large"))

    folder = bundle(tmp_path / "bundle", made.model_copy(update={"variants": entries}), files)

    assert set(tree(folder)) == {"all.pte", "labels.txt", "manifest.json"}
    other = (entries[0], entries[1].model_copy(update={"sha256": "0" * 64}))
    with pytest.raises(TableError, match=r"all\.pte was changed"):
        bundle(tmp_path / "bundle", made.model_copy(update={"variants": other}), files)


# --- the schema that apps are written against


def as_json(made: Manifest) -> dict[str, Any]:
    return json.loads(made.model_dump_json())  # type: ignore[no-any-return]


def test_a_bundled_manifest_fits_the_schema(tmp_path: Path) -> None:
    """With everything that may be left out, and without."""
    full = manifest(*VARIANTS).model_copy(update={"choices": (Choice(soc="A1", memory_gib=4, variant="x"),)})
    made, files = exported(tmp_path / "files", {"a.pte": b"A"})

    folder = bundle(tmp_path / "bundle", made, files)

    SCHEMA.validate(json.loads((folder / "manifest.json").read_text()))
    SCHEMA.validate(as_json(full))


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw.update(schema_version=2),
        lambda raw: raw.pop("labels"),
        lambda raw: raw.update(author="me"),
        lambda raw: raw["input"].update(layout="HWC"),
        lambda raw: raw["input"].update(resize="pad"),
        lambda raw: raw["input"].update(shape=[1, 3, 0, 8]),
        lambda raw: raw["variants"][0].update(accuracy=93.0),
        lambda raw: raw["variants"][0].update(ranks={"conv": -1}),
        lambda raw: raw["variants"][0]["measured_ms"].update(p50="fast"),
        lambda raw: raw["choices"][0].pop("variant"),
    ],
)
def test_a_broken_manifest_does_not_fit_the_schema(damage: Callable[[dict[str, Any]], object]) -> None:
    """Nor does it load."""
    raw = as_json(manifest(*VARIANTS).model_copy(update={"choices": fallbacks(VARIANTS)}))
    assert SCHEMA.is_valid(raw)

    damage(raw)

    assert not SCHEMA.is_valid(raw)


def test_the_sources_of_a_bundle_may_be_links(tmp_path: Path) -> None:
    """A copy of what they lead to is in the bundle, no link."""
    made, files = exported(tmp_path / "files", {"a.pte": b"A"})
    link = tmp_path / "link.pte"
    link.symlink_to(files["a.pte"])

    folder = bundle(tmp_path / "bundle", made, {"a.pte": link})
    shutil.rmtree(tmp_path / "files")

    assert digest(folder / "a.pte") == made.variants[0].sha256 and not (folder / "a.pte").is_symlink()
