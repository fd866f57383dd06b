"""The bundle that the apps' tests are given is what they take it for."""

from __future__ import annotations

from pathlib import Path

import pytest

from maestro_edge.bundling import APPS
from maestro_edge.recipes.images import decode
from maestro_edge.values import DENSE, Manifest
from tests.apps.small import CLASSES, MODEL
from tests.command import here, refused


def test_the_bundle_has_a_dense_network_and_two_plans_of_each_runtime(app_bundle: Path) -> None:
    """Measured here, nearly always right, and at the smallest ranks at least twice as fast as dense."""
    manifest = Manifest.load(app_bundle / "manifest.json")

    assert manifest.labels == CLASSES and manifest.input.shape == (1, 3, 32, 32)
    for runtime in ("litert", "executorch"):
        dense, large, small = (variant for variant in manifest.variants if variant.runtime == runtime)
        assert set(dense.ranks.values()) == {DENSE} and not dense.is_planned
        assert large.is_planned and small.is_planned and large.ranks != small.ranks
        assert min(dense.accuracy, large.accuracy, small.accuracy) > 0.9
        assert dense.measured_ms and small.measured_ms and dense.measured_ms.p50 > 2 * small.measured_ms.p50


def test_images_lie_beside_the_bundle(app_bundle: Path) -> None:
    """Each class in the input's size, and in another that has to be resized."""
    folder = app_bundle.parent / "images"

    sizes = {path.name: decode(path.name, path.read_bytes()).shape for path in folder.iterdir()}

    assert sizes == {
        **{f"{label}.png": (3, 32, 32) for label in CLASSES},
        **{f"{label}-large.png": (3, 90, 120) for label in CLASSES},
    }


@pytest.mark.parametrize(
    ("app", "runtimes"),
    [
        *(("android", {"litert", "executorch"}), ("ios", {"executorch"})),
        *(("linux", {"litert", "executorch"}), ("web", {"litert"})),
    ],
)
def test_the_command_drops_a_run_into_an_app(
    app: str, runtimes: set[str], app_bundle: Path, tmp_path: Path
) -> None:
    """What the app can run, and a choice for each runtime; of plans only the named one, when one is."""
    argv = ("bundle", str(app_bundle.parent / "run"), "--model", MODEL, "--app", app, "--out", str(tmp_path))
    folder = tmp_path / APPS[app].assets

    every = here(*argv, folder=tmp_path)
    manifest = Manifest.load(folder / "manifest.json")
    plan = next(each for each in manifest.variants if each.is_planned)
    one = here(*argv, plan.name, folder=tmp_path)
    fewer = Manifest.load(folder / "manifest.json")

    assert (every.code, one.code) == (0, 0)
    assert {each.runtime for each in manifest.variants} == {each.runtime for each in manifest.choices} == runtimes
    assert [each.name for each in fewer.variants if each.is_planned] == [plan.name]
    assert {each.name for each in folder.iterdir()} == {
        *("manifest.json", "labels.txt"),
        *(each.file for each in fewer.variants),
    }
    assert "give --out, the app's folder" in refused(here(*argv[:-2], folder=tmp_path))
