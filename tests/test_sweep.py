"""The front of accuracy against time: which files stand on it, what beats the others, what is written."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from maestro_edge.devices import LocalDevice
from maestro_edge.errors import TableError
from maestro_edge.recipes.bundles import bundle_run
from maestro_edge.recipes.fleets import export_fleet, time_fleet
from maestro_edge.recipes.plans import fleet_run, sensitivity_of
from maestro_edge.recipes.run import Run, create
from maestro_edge.recipes.sweep import Front, beaten_by, spread, sweep_run
from maestro_edge.recipes.tables import profile_run
from maestro_edge.recipes.trainings import train_run
from maestro_edge.reporting import front_figure, write_front
from maestro_edge.runtimes.protocol import Array
from maestro_edge.values import LatencyTable, Manifest, MeasuredMs, Sensitivity, Variant
from tests.conftest import FakeRuntime
from tests.test_reporting import variant
from tests.test_run import DENSE, NESTED, PROTOCOL, small


def file(name: str, p50: float, accuracy: float) -> Variant:
    update = {"name": name, "validation_accuracy": accuracy, "measured_ms": MeasuredMs(p50=p50, p90=p50, n=20)}
    return variant("litert", 0.9).model_copy(update=update)


def test_a_file_is_beaten_by_what_is_faster_and_as_accurate() -> None:
    """Equal files do not beat each other; an int8 network may beat a plan."""
    files = [
        *(file("plan", 1.0, 0.90), file("dense", 2.0, 0.92), file("int8", 0.9, 0.91)),
        *(file("small", 0.5, 0.80), file("twin", 0.5, 0.80), file("slow", 3.0, 0.92)),
    ]

    assert beaten_by(files) == {"plan": "int8", "slow": "dense"}


def test_budgets_are_spread_by_ratio_and_never_below_the_lowest() -> None:
    """From the fastest plan up to just below dense."""
    budgets = spread(1.0, 16.0, 4)

    assert budgets == pytest.approx([1.0, 2.0, 4.0, 8.0], rel=1e-3)
    assert budgets[0] >= 1.0 and len(spread(2.0, 1.0, 3)) == 3


class Swept:
    def __init__(self, folder: Path) -> None:
        self.run: Run = create(folder / "run", data="digits")
        self.run.__dict__["data"] = small(self.run.data)
        train_run(self.run, dense=DENSE, nested=NESTED)
        self.runtime, self.device = FakeRuntime(), LocalDevice()
        self.table: LatencyTable = profile_run(
            self.run, self.runtime, self.device, profiles=folder / "profiles", protocol=PROTOCOL
        )
        self.losses: Sensitivity = sensitivity_of(self.run, [self.table])
        self.front: Front = sweep_run(
            self.run, self.runtime, self.device, [self.table], self.losses, protocol=PROTOCOL, count=3
        )


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Swept:
    return Swept(tmp_path_factory.mktemp("swept"))


def test_a_sweep_measures_plans_and_dense_networks_together(swept: Swept) -> None:
    """Three plans from the fastest up, and the dense network in three precisions; the CSV tells them by time."""
    front, folder = swept.front, swept.run.folder

    rivals = [each for each in front.variants if not each.is_planned]
    plans = [each for each in front.variants if each.is_planned]
    assert {each.precision for each in rivals} == {"fp32", "int8-dynamic", "int8-static"} and len(plans) == 3
    for each in plans:
        assert each.measured_ms and each.budget_ms and each.measured_ms.p50 <= each.budget_ms
        assert each.validation_accuracy is not None
    assert front.beaten == beaten_by(front.variants)
    assert Front.load(folder / "sweep-fake.json") == front
    with (folder / "sweep-fake.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [row["name"] for row in rows] == [
        each.name for each in sorted(front.variants, key=lambda each: each.measured("ms") or 0)
    ]
    assert {row["name"]: row["beaten_by"] for row in rows if row["beaten_by"]} == front.beaten


class WrongInEightBits(FakeRuntime):
    """Files in int8 compute something else."""

    def predict(self, path: Path, inputs: Array) -> Array:
        return super().predict(path, inputs) + np.float32(99 if "int8" in path.name else 0)


def test_a_rival_that_its_gate_refuses_is_left_out_and_told(swept: Swept) -> None:
    """A sweep does not fail for what nobody planned."""
    wrong = WrongInEightBits(version="2.0")

    front = sweep_run(swept.run, wrong, swept.device, [swept.table], swept.losses, protocol=PROTOCOL, count=1)

    assert [each.precision for each in front.variants] == ["fp32", "fp32"]
    assert len(front.left_out) == 2 and "int8-static-dense is left out:" in front.left_out[1]


def test_the_front_is_drawn(swept: Swept, tmp_path: Path) -> None:
    """A hollow mark for what is beaten, a star for each dense network."""
    figure = front_figure(swept.front.variants, swept.front.beaten)

    marks = [line for line in figure.axes[0].lines if line.get_marker() not in ("None", None, "")]
    assert len(marks) == len(swept.front.variants)
    assert sum(mark.get_marker() == "*" for mark in marks) == 3
    assert sum(mark.get_markerfacecolor() == "none" for mark in marks) == len(swept.front.beaten)
    assert (
        write_front(tmp_path / "front.png", swept.front.variants, swept.front.beaten).read_bytes()[1:4] == b"PNG"
    )


def test_a_fleet_goes_into_one_bundle_whose_devices_choose_by_their_soc(
    swept: Swept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of equal speed share a file, any other device gets the smallest; what was not timed is refused."""
    monkeypatch.setattr("maestro_edge.recipes.fleets.load", lambda name: swept.runtime)
    devices = [
        swept.table.device.model_copy(update={"name": name, "soc": soc})
        for name, soc in (("here", "A1"), ("twin 2", "A2"), ("large", "A3"))
    ]
    tables = [swept.table.model_copy(update={"device": device}) for device in devices]
    low, high = (swept.table.predict_ms(swept.run.network, {}) * share for share in (0.6, 1.2))

    groups = fleet_run(swept.run, tables, swept.losses, [low, low, high], tolerance=0.0)
    path = export_fleet(swept.run, groups, devices)
    with pytest.raises(TableError, match=r"verify .* --fleet"):
        bundle_run(swept.run, tmp_path / "early", fleet=True)
    timed = time_fleet(swept.run, [swept.runtime], swept.device, protocol=PROTOCOL)
    folder = bundle_run(swept.run, tmp_path / "bundle", fleet=True)

    bundled = Manifest.load(folder / "manifest.json")
    assert bundled == timed == Manifest.load(path)
    assert [(each.soc, each.variant) for each in bundled.choices] == [
        *(("A1", "fake-fleet-1"), ("A2", "fake-fleet-1"), ("A3", "fake-fleet-2"), (None, "fake-fleet-1")),
    ]
    shared, own = bundled.variants
    assert shared.planned_on == f"here, twin 2/fake-{swept.table.runtime_version}" and shared.macs < own.macs
    assert all(each.measured_ms is not None and each.budgets == () for each in bundled.variants)
    assert {item.name for item in folder.iterdir()} == {shared.file, own.file, "manifest.json", "labels.txt"}
    assert (path.parent / "twin-2").is_dir() and not (tmp_path / "early").exists()


def test_a_fleet_has_no_emulated_device(swept: Swept, tmp_path: Path) -> None:
    """Its times say nothing, and a file would be chosen by them."""
    table = swept.table.model_copy(update={"source": "emulated"})
    wide = 2 * swept.table.predict_ms(swept.run.network, {})
    groups = fleet_run(swept.run, [table], swept.losses, [wide], tolerance=0.0)

    with pytest.raises(TableError, match="emulated device: give a measured one"):
        export_fleet(swept.run, groups, [table.device])
