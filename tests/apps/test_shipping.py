"""One run from training to the Linux app by the command line alone: as an elastic file, and as a fleet's files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from maestro_edge.bundling import APPS
from maestro_edge.planning import reachable_ms
from maestro_edge.recipes.plans import sensitivity_of
from maestro_edge.recipes.run import Run, open_run
from maestro_edge.runtimes.elastic import entry_name
from maestro_edge.values import LatencyTable, Manifest, Variant
from tests.command import ROOT, Done, here

MODEL = "tests.apps.test_shipping:build"
OWN = ("--model", MODEL)
LITERT = ("--runtime", "litert")


class Wide(nn.Module):
    """A convolution that is several times faster at low ranks, and what has to stand around it."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(channels, 128, 8, stride=8, bias=False), nn.BatchNorm2d(128)
        self.second, self.norm2 = nn.Conv2d(128, 128, 3, padding=1, bias=False), nn.BatchNorm2d(128)
        self.head = nn.Linear(128, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.first(x)).relu()  # (N, 128, 4, 4) of images (N, C, 32, 32)
        logits: Tensor = self.head(self.norm2(self.second(x)).relu().mean((2, 3)))
        return logits


def build(channels: int, classes: int) -> nn.Module:
    """As a run calls it."""
    return Wide(channels, classes)


class Profiled(NamedTuple):
    """A folder with `run` and `profiles`; budgets in ms, one for the dense network and one for low ranks."""

    folder: Path
    run: Run
    table: LatencyTable
    budgets: tuple[str, str]

    def call(self, *argv: str) -> Done:
        return here(argv[0], "run", *argv[1:], *OWN, folder=self.folder)

    def do(self, *argv: str) -> None:
        done = self.call(*argv)
        assert done.code == 0, (argv, done.err)


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> Profiled:
    """Trained for an epoch on digits and profiled on this machine, by few runs, of which nobody is told."""
    folder = tmp_path_factory.mktemp("shipping")
    epochs = ("--epochs", "1", "--dense-epochs", "1")
    done = here("train", MODEL, "--data", "digits", "--out", "run", *epochs, folder=folder)
    assert done.code == 0, done.err
    done = here("profile", "run", *LITERT, "--emulated", *OWN, folder=folder)
    assert done.code == 0, done.err
    run = open_run(folder / "run", model=MODEL)
    (path,) = (folder / "profiles").glob("*.json")
    # What is planned on an emulated device's table is not bundled.
    table = LatencyTable.load(path).model_copy(update={"source": "measured"})
    table.save(path.with_name(table.file_name))
    dense_ms = table.predict_ms(run.network, {})
    fastest_ms = reachable_ms(run.network, table, sensitivity_of(run, [table]))
    return Profiled(folder, run, table, (f"{4 * dense_ms:.3g}", f"{1.2 * fastest_ms:.3g}"))


@pytest.fixture(scope="module")
def image(profiled: Profiled) -> Path:
    """A digit of the test split."""
    path = profiled.folder / "digit.png"
    Image.fromarray(profiled.run.data.test.inputs[0, 0].numpy()).save(path)
    return path


def classified(bundle: Path, image: Path, variant: Variant) -> dict[str, float]:
    """What the Linux app says, in a process that does not know this package: label → probability."""
    app = ROOT / "apps" / "linux" / "classify.py"
    command = [sys.executable, "-E", str(app), str(bundle), str(image), "--variant", variant.name, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=image.parent, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return {top["label"]: top["probability"] for top in found["top"]}


def expected(run: Run, variant: Variant) -> dict[str, float]:
    """What the network that was exported computes, its five likeliest labels."""
    model = run.variant(variant.ranks) if variant.planned_on else run.dense
    with torch.no_grad():
        chances, classes = model(run.data.normalise(run.data.test.inputs[:1])).softmax(1)[0].topk(5)
    return {run.labels[index]: chance for index, chance in zip(classes.tolist(), chances.tolist(), strict=True)}


def test_plans_go_to_the_app_as_entries_of_one_file(profiled: Profiled, image: Path, tmp_path: Path) -> None:
    """Planned, exported together, timed and bundled; the app runs each entry, and dense, which is alone."""
    budgets = [argument for ms in profiled.budgets for argument in ("--budget-ms", ms)]

    profiled.do("plan", *LITERT, *budgets)
    profiled.do("export", *LITERT, "--elastic")
    verified = profiled.call("verify", *LITERT, "--rounds", "1")
    profiled.do("bundle", "--app", "linux", "--out", str(tmp_path))

    # Timed once only: a machine that is slower now may miss a budget, which is said.
    assert verified.code == 0 or "over budget when measured: raise the budget" in verified.err
    folder = tmp_path / APPS["linux"].assets
    dense, *entries = Manifest.load(folder / "manifest.json").variants
    assert [each.file for each in entries] == ["litert-elastic.tflite"] * 2
    assert [each.entry for each in entries] == [entry_name(f"{ms}ms") for ms in profiled.budgets]
    assert entries[0].ranks != entries[1].ranks and dense.entry is None
    assert {each.name for each in folder.iterdir()} == {
        *("labels.txt", "manifest.json", "litert-dense.tflite", "litert-elastic.tflite")
    }
    for each in (dense, *entries):
        assert each.measured_ms is not None
        assert classified(folder, image, each) == pytest.approx(expected(profiled.run, each), abs=1e-4)


def test_a_fleet_goes_to_the_app_with_a_choice_for_each_device(
    profiled: Profiled, image: Path, tmp_path: Path
) -> None:
    """This machine, and a twin that has less time and is not here: a file each, timed here; the app runs both."""
    here_too = profiled.table.device
    twin = here_too.model_copy(update={"name": "twin", "soc": "T2"})
    tables = [profiled.table.model_copy(update={"device": each}) for each in (here_too, twin)]
    given = ["--export", "--tolerance", "0"]
    for number, (table, ms) in enumerate(zip(tables, profiled.budgets, strict=True)):
        given += ["--table", str(table.save(tmp_path / f"{number}.json")), "--budget-ms", ms]

    profiled.do("fleet", *given)
    profiled.do("verify", *LITERT, "--fleet")
    profiled.do("bundle", "--fleet", "--app", "linux", "--out", str(tmp_path))

    folder = tmp_path / APPS["linux"].assets
    manifest = Manifest.load(folder / "manifest.json")
    assert [each.name for each in manifest.variants] == ["litert-fleet-1", "litert-fleet-2"]
    assert [(each.soc, each.variant) for each in manifest.choices] == [
        *((here_too.soc, "litert-fleet-1"), ("T2", "litert-fleet-2"), (None, "litert-fleet-2"))
    ]
    for each in manifest.variants:
        assert each.measured_ms is not None
        assert classified(folder, image, each) == pytest.approx(expected(profiled.run, each), abs=1e-4)
