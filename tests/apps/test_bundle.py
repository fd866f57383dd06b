"""The bundle that the apps' tests are given is what they take it for."""

from __future__ import annotations

from pathlib import Path

from maestro_edge.recipes.images import decode
from maestro_edge.values import DENSE, Manifest
from tests.apps.small import CLASSES


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
