"""What the apps' tests run: a small network of four classes that tell a wrongly fed image from a right one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor, nn

from maestro_edge.devices import LocalDevice
from maestro_edge.recipes.bundles import bundle_run
from maestro_edge.recipes.demo import spread_budgets
from maestro_edge.recipes.deploy import measure_variants
from maestro_edge.recipes.plans import plan_run, sensitivity_of
from maestro_edge.recipes.run import Run, create
from maestro_edge.recipes.tables import profile_run
from maestro_edge.recipes.trainings import train_run
from maestro_edge.recipes.variants import export_run, export_variants
from maestro_edge.runtimes import MeasuringProtocol, Runtime, load
from maestro_edge.training import TrainSettings
from tests.conftest import REST_MS, FakeRuntime, layer_ms

__all__ = ["CLASSES", "MODEL", "build", "make_bundle", "paint"]

CLASSES = ("blue", "columns", "red", "rows")
"""Swapped channels mistake blue for red, swapped axes columns for rows; in the order of the labels."""

MODEL = "tests.apps.small:build"

_TRAINING = TrainSettings(epochs=4, batch_size=32, lr=0.05, bf16=False)
_PROTOCOL = MeasuringProtocol(calm_runs=1, most_runs=1, pause_s=0)


class Small(nn.Module):
    """Three convolutions and a classifier, 12 M MACs: at low ranks it is several times faster than dense."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(channels, 32, 4, stride=4, bias=False), nn.BatchNorm2d(32)
        self.second, self.norm2 = nn.Conv2d(32, 128, 3, padding=1, bias=False), nn.BatchNorm2d(128)
        self.third, self.norm3 = nn.Conv2d(128, 128, 3, padding=1, bias=False), nn.BatchNorm2d(128)
        self.head = nn.Linear(128, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.first(x)).relu()  # (N, 32, 8, 8) of images (N, C, 32, 32)
        x = self.norm2(self.second(x)).relu()
        x = self.norm3(self.third(x)).relu()  # (N, 128, 8, 8)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def build(channels: int, classes: int) -> nn.Module:
    """As a run calls it."""
    return Small(channels, classes)


def paint(label: str, height: int, width: int, seed: int) -> npt.NDArray[np.uint8]:
    """A noisy image (H, W, 3) of one of CLASSES: a colour, or six grey stripes."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    place = {"columns": x / width, "rows": y / height}.get(label)
    if place is None:
        pixels = np.full((height, width, 3), 60.0)
        pixels[:, :, 0 if label == "red" else 2] += random.uniform(80, 140)
    else:
        wave = np.sin(2 * np.pi * (6 * place + random.random()))
        pixels = np.repeat(120 + random.uniform(60, 100) * wave[:, :, None], 3, axis=2)
    return np.clip(pixels + random.normal(0, 12, pixels.shape), 0, 255).astype(np.uint8)


def make_bundle(folder: Path) -> Path:
    """`folder`/bundle: the dense network and two plans, each for LiteRT and for ExecuTorch, timed on this machine.

    Beside it `run`, the run that it is of, and `images`: CLASS.png of the input's size and CLASS-large.png of
    another and of another aspect ratio. The latency tables are in proportion to MACs: profiling takes minutes.
    """
    _write_data(folder / "data")
    run, device = create(folder / "run", data=f"folder:{folder / 'data'}", model=MODEL), LocalDevice()
    train_run(run, dense=_TRAINING, nested=_TRAINING)
    runtimes = [load("litert"), load("executorch")]
    for runtime in runtimes:
        _plan(run, runtime, device, folder / "profiles")
    manifest, _ = export_run(run, device, runtimes)
    measured = []
    for runtime in runtimes:
        of_runtime = [variant for variant in manifest.variants if variant.runtime == runtime.name]
        measured += measure_variants(run, of_runtime, runtime, device, _PROTOCOL)[0]
    manifest.model_copy(update={"variants": tuple(measured)}).save(run.manifest_path)
    for number, label in enumerate(CLASSES):
        _save(paint(label, 32, 32, 9000 + number), folder / "images" / f"{label}.png")
        _save(paint(label, 90, 120, 9100 + number), folder / "images" / f"{label}-large.png")
    return bundle_run(run, folder / "bundle")


def _write_data(folder: Path) -> None:
    for seed in range(360):
        label, split = CLASSES[seed % 4], "train" if seed < 280 else "test"
        _save(paint(label, 32, 32, seed), folder / split / label / f"{seed}.png")


def _save(pixels: npt.NDArray[np.uint8], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _plan(run: Run, runtime: Runtime, device: LocalDevice, profiles: Path) -> None:
    """Two plans on a table whose dense network takes what this machine measures."""
    dense, _ = export_variants(run, [(runtime, "fp32")])
    (timed,), _ = measure_variants(run, dense, runtime, device, _PROTOCOL)
    assert timed.measured_ms is not None
    network = run.network
    of_macs = FakeRuntime(version=runtime.version)
    of_macs.name = runtime.name
    of_macs.slowdown = timed.measured_ms.p50 / (REST_MS + sum(layer_ms(layer.spec) for layer in network.layers))
    table = profile_run(run, of_macs, device, profiles=profiles, protocol=_PROTOCOL)
    table = table.model_copy(update={"source": "modelled"})
    sensitivity = sensitivity_of(run, [table])
    large, _, small = spread_budgets(network, [table], sensitivity)
    plan_run(run, table, sensitivity, (large, small))
