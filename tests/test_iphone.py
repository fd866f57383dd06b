"""What is carried to an iPhone and back: probes that are whole, answers that make a table or one clear line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from typer.testing import CliRunner

from maestro_edge.cli import app
from maestro_edge.devices import LocalDevice
from maestro_edge.errors import DataError, DeviceError, ExportError, TableError
from maestro_edge.ordered import order, trace
from maestro_edge.profiling import random_ranks
from maestro_edge.profiling.answers import answered_table
from maestro_edge.profiling.checking import problems
from maestro_edge.profiling.options import layer_options, wanted_rows
from maestro_edge.profiling.probes import PROBES, ProbeBundle, write_probes
from maestro_edge.recipes.run import Run, create
from maestro_edge.recipes.tables import load_table
from maestro_edge.runtimes import MeasuringProtocol, digest, load
from maestro_edge.training import save_checkpoint
from maestro_edge.values import DENSE, LatencyTable, Timing
from tests.conftest import REST_MS, FakeRuntime, TinyNet, layer_ms

EXAMPLE = (torch.zeros(1, 1, 8, 8),)
PROTOCOL = MeasuringProtocol(rounds=3)
Change = Callable[[dict[str, Any]], object]


def ordered() -> nn.Module:
    torch.manual_seed(0)
    return order(TinyNet().eval())


def written(folder: Path, runtime: FakeRuntime | None = None) -> ProbeBundle:
    return write_probes(ordered(), EXAMPLE, runtime or FakeRuntime(), folder=folder, protocol=PROTOCOL)


def answers(folder: Path, time_ms: Callable[[Path], float]) -> dict[str, Any]:
    """What the app writes where every file takes `time_ms`, two samples a round."""
    bundle = ProbeBundle.load(folder / PROBES)
    counts = range(2 * bundle.schedule.rounds)
    runs = [
        {
            "stage": index,
            "thermal_before": "nominal",
            "thermal_after": "fair",
            "low_power": False,
            "samples_ns": {
                name: [round(1e6 * time_ms(folder / name)) + (count % 3 - 1) for count in counts] for name in stage
            },
        }
        for index, stage in enumerate(bundle.schedule.stages)
        for _ in range(bundle.schedule.runs)
    ]
    return {
        "schema_version": 1,
        "probes_sha256": hashlib.sha256((folder / PROBES).read_bytes()).hexdigest(),
        "created": "2026-11-25T09:31:37Z",
        "compute_units": "all",
        "device": {
            "machine": "iPhone17,1",
            "arch": "arm64",
            "cores": 6,
            "memory_gib": 7.48,
            "system": "iOS",
            "version": "18.6.2",
            "build": "22G100",
        },
        "runs": runs,
    }


def exact_ms(path: Path) -> float:
    """The time that FakeRuntime wrote into a file: the sum of its layers, and REST_MS of a whole network."""
    return float(json.loads(path.read_text().splitlines()[0])["ms"])


def changed(folder: Path, change: Change) -> Path:
    """The answers of a phone that keeps to FakeRuntime's times, with one thing changed."""
    content = answers(folder, exact_ms)
    change(content)
    path = folder.parent / "answers.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture(scope="module")
def probes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished bundle that no test changes."""
    folder = tmp_path_factory.mktemp("bundle") / "probes"
    written(folder)
    return folder


def test_a_bundle_holds_every_layer_at_its_ranks_and_the_networks_that_calibrate(probes: Path) -> None:
    """Each file is there with its sha256 and input, and the dense network is in every stage."""
    bundle = ProbeBundle.load(probes / PROBES)

    network = trace(ordered(), EXAMPLE)
    options = layer_options(network, {layer.name: layer.spec.full_rank for layer in network.ordered}, step=16)
    assert {(item.spec, item.rank) for item in bundle.layers} == wanted_rows(network, options)
    assert all(digest(probes / item.file) == item.sha256 for item in bundle.files)
    assert bundle.fingerprint == bundle.network.fingerprint == network.fingerprint
    assert len(bundle.networks) == 7
    assert len({item.file for item in bundle.networks}) == 3  # of one layer with two ranks
    shapes = {item.file: item.input_shape for item in bundle.files}
    assert shapes[bundle.schedule.control] == (1, 1, 8, 8)
    assert {shapes[item.file] for item in bundle.layers if item.spec.kind == "linear"} == {(1, 48)}
    assert all(bundle.schedule.control in stage for stage in bundle.schedule.stages)
    assert (bundle.schedule.rounds, bundle.schedule.runs) == (3, PROTOCOL.most_runs)


class Interrupted(FakeRuntime):
    """Ctrl-C at the n-th file."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.left = at

    def export(self, model: nn.Module, inputs: tuple[Tensor, ...], path: Path, *args: Any, **kwargs: Any) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        super().export(model, inputs, path, *args, **kwargs)


def test_an_interrupted_export_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """No half bundle is left for the phone, and what was whole is not exported again; what is not, is."""
    seen: list[str] = []
    folder = tmp_path / "probes"
    with pytest.raises(KeyboardInterrupt):
        written(folder, Interrupted(at=2))
    assert not (folder / PROBES).exists()
    again = FakeRuntime()

    bundle = write_probes(
        ordered(),
        EXAMPLE,
        again,
        folder=folder,
        protocol=PROTOCOL,
        progress=lambda done, total, what: seen.append(f"{done}/{total} {what}"),
    )

    assert again.exports == 1
    assert seen[-1] == f"{len(bundle.files)}/{len(bundle.files)} exporting {bundle.files[-1].file}"
    before = (folder / PROBES).read_bytes()
    assert written(folder, Interrupted(at=0)) == bundle
    assert (folder / PROBES).read_bytes() == before


def test_a_file_that_was_damaged_is_exported_again(tmp_path: Path) -> None:
    """Only that one; the probes then tell its new sha256."""
    bundle, runtime = written(tmp_path / "probes"), FakeRuntime()
    (tmp_path / "probes" / bundle.networks[1].file).write_text("cut off")

    again = written(tmp_path / "probes", runtime)

    assert runtime.exports == 1
    assert [old.file for old, new in zip(bundle.files, again.files, strict=True) if old != new] == [
        bundle.networks[1].file
    ]
    assert ProbeBundle.load(tmp_path / "probes" / PROBES) == again


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, probes: Path) -> None:
    """Strangers' files, a file, and the probes of another precision."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")

    with pytest.raises(DataError, match="something else"):
        written(tmp_path / "mine")
    with pytest.raises(DataError, match="is a file"):
        written(tmp_path / "mine" / "thesis.txt")
    with pytest.raises(DataError, match="another network, precision or version"):
        write_probes(ordered(), EXAMPLE, FakeRuntime(), folder=probes, precision="int8-dynamic")
    with pytest.raises(DataError, match="another network, precision or version"):
        written(probes, FakeRuntime(version="2.0"))
    assert [item.name for item in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_network_of_several_inputs_is_refused(tmp_path: Path) -> None:
    """The app feeds one."""
    with pytest.raises(ExportError, match="takes 2 inputs"):
        write_probes(ordered(), (*EXAMPLE, *EXAMPLE), FakeRuntime(), folder=tmp_path)


def test_answers_make_a_measured_table(probes: Path) -> None:
    """Rows are the layers' times, the calibration holds what lies outside, other networks are predicted."""
    table = answered_table(changed(probes, lambda content: None), probes)

    network = trace(ordered(), EXAMPLE)
    assert (table.source, table.threads, {row.method for row in table.rows}) == ("measured", None, {"probe"})
    for layer in network.layers:
        assert table.row(layer.spec, DENSE).ms == pytest.approx(layer_ms(layer.spec), abs=2e-6)
    fit = table.calibration(network)
    assert fit.rest_ms == pytest.approx(REST_MS, abs=1e-5)
    assert fit.slope == pytest.approx(1, abs=1e-3)
    assert fit.loo_mape < 1e-3
    options = {layer.name: (16, 32) for layer in network.ordered if table.ranks(layer.spec) != (DENSE,)}
    for ranks in random_ranks(options, 4, seed=9):
        layers = [part for layer in network.layers for part in layer.spec.parts(ranks.get(layer.name, DENSE))]
        assert table.predict_ms(network, ranks) == pytest.approx(REST_MS + sum(map(layer_ms, layers)), rel=1e-3)
    timing = table.rows[0].timing
    assert isinstance(timing, Timing) and timing.n == PROTOCOL.most_runs * 2 * PROTOCOL.rounds
    assert problems(table) == table.doubts(network) == ()


def test_a_tables_name_tells_phone_system_and_compute_units(probes: Path, tmp_path: Path) -> None:
    """Core ML's version is the system's; another choice of units is another table."""
    table = answered_table(changed(probes, lambda content: content.update(compute_units="cpuOnly")), probes)

    assert table.file_name == "iPhone17-1.fake-18.6.2-22G100-cpuOnly.fp32.json"
    assert (table.device.os, table.device.build, table.device.throttled) == ("iOS 18.6.2", "22G100", False)
    table.save_over(tmp_path)
    assert LatencyTable.load(tmp_path / table.file_name) == table


def slower(run: dict[str, Any], factor: float = 2.0) -> None:
    run["samples_ns"] = {name: [round(factor * ns) for ns in found] for name, found in run["samples_ns"].items()}


def test_runs_of_a_slow_or_hot_phone_are_left_out(probes: Path) -> None:
    """The control tells the slow one, the thermal state the hot one; neither moves a row."""

    def disturb(content: dict[str, Any]) -> None:
        slower(content["runs"][0])
        content["runs"][1]["thermal_after"] = "serious"
        slower(content["runs"][1], 0.9)

    table = answered_table(changed(probes, disturb), probes)

    calm = answered_table(changed(probes, lambda content: None), probes)
    assert [row.ms for row in table.rows] == [row.ms for row in calm.rows]
    assert table.device.throttled and not table.disturbed


def test_a_phone_that_was_always_hot_makes_a_doubtful_table(probes: Path) -> None:
    """It says so when it is planned on."""
    hot = changed(probes, lambda content: [run.update(thermal_before="critical") for run in content["runs"]])

    table = answered_table(hot, probes)

    assert table.disturbed and table.doubts(trace(ordered(), EXAMPLE))


def test_a_layer_that_never_became_steady_is_refused(probes: Path) -> None:
    """As in profile(), by name."""

    def spread(content: dict[str, Any]) -> None:
        control = ProbeBundle.load(probes / PROBES).schedule.control
        for run in content["runs"]:
            for name, found in run["samples_ns"].items():
                if name != control:
                    run["samples_ns"][name] = [ns * (1 + 4 * (index % 2)) for index, ns in enumerate(found)]

    with pytest.raises(DeviceError, match=r"iPhone17,1: .* at rank .* varies by \d+ % of"):
        answered_table(changed(probes, spread), probes)


def first_samples(content: dict[str, Any]) -> Any:
    return next(iter(content["runs"][0]["samples_ns"].values()))


BAD: dict[str, tuple[Change, str]] = {
    "another bundle": (lambda c: c.update(probes_sha256="0" * 64), "answers other probes than"),
    "no digest": (lambda c: c.update(probes_sha256="abc"), "probes_sha256: String should match"),
    "another schema": (lambda c: c.update(schema_version=2), "schema_version: Input should be 1"),
    "a field too many": (lambda c: c.update(owner="me"), "owner: Extra inputs"),
    "a field too few": (lambda c: c.pop("device"), "device: Field required"),
    "another unit": (lambda c: c.update(compute_units="tpu"), "compute_units: Input should be"),
    "another system": (lambda c: c["device"].update(system="Android"), "device.system: Input"),
    "a path as a name": (lambda c: c["device"].update(machine="../x"), "device.machine: String"),
    "no date": (lambda c: c.update(created="yesterday"), "created: Invalid isoformat"),
    "no time zone": (lambda c: c.update(created="2026-11-25T09:31:37"), "has no time zone"),
    "a run too few": (lambda c: c["runs"].pop(), "3 runs of stage 1, not 4"),
    "a run too many": (lambda c: c["runs"].append(c["runs"][0]), "5 runs of stage 0, not 4"),
    "no run": (lambda c: c.update(runs=[]), "0 runs of stage 0"),
    "no such stage": (lambda c: c["runs"][0].update(stage=7), "run 0: of stage 7, the probes have 2"),
    "a stage below 0": (lambda c: c["runs"][0].update(stage=-1), "runs.0.stage: Input"),
    "low power": (lambda c: c["runs"][2].update(low_power=True), "run 2: in low-power mode"),
    "no such state": (lambda c: c["runs"][0].update(thermal_before="warm"), "runs.0.thermal_before"),
    "a file too few": (lambda c: c["runs"][0]["samples_ns"].popitem(), "run 0: no samples of"),
    "a file too many": (lambda c: c["runs"][0]["samples_ns"].update(x=[1, 1]), "run 0: its stage has no x"),
    "an escape": (lambda c: c["runs"][0]["samples_ns"].update({"\x1b[2J\n": [1]}), "String should match"),
    "a sample too few": (lambda c: first_samples(c).pop(), "run 0: 5 samples of"),
    "too many samples": (lambda c: first_samples(c).extend([1] * 60), "run 0: 66 samples of"),
    "a negative time": (lambda c: first_samples(c).__setitem__(0, -5), "greater than or equal to 1"),
    "no time": (lambda c: first_samples(c).__setitem__(0, 0), "greater than or equal to 1"),
    "NaN": (lambda c: first_samples(c).__setitem__(0, float("nan")), "NaN is no number of JSON"),
    "infinity": (lambda c: first_samples(c).__setitem__(0, float("inf")), "Infinity is no number of JSON"),
    "a fraction": (lambda c: first_samples(c).__setitem__(0, 1.5), "valid integer"),
    "a text": (lambda c: first_samples(c).__setitem__(0, "12"), "valid integer"),
    "yes": (lambda c: first_samples(c).__setitem__(0, True), "valid integer"),
    "two hours": (lambda c: first_samples(c).__setitem__(0, 10**13), "less than or equal to"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_what_is_wrong_with_answers_is_one_line(
    change: Change, message: str, probes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """On standard error, with exit code 1, and no table written."""
    done = importing(changed(probes, change), "--probes", probes, "--profiles", tmp_path)

    assert (done[0], capfd.readouterr().out) == (1, "")
    assert message in done[1]
    assert done[1].count("\n") == 1 and done[1].rstrip("\n").isprintable()
    assert not list(tmp_path.iterdir())


def importing(*argv: str | Path) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["profiles", "import", *map(str, argv), "--format", "iphone"])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stderr


@settings(max_examples=25, deadline=None)
@given(share=st.floats(0, 0.999))
def test_a_file_cut_off_anywhere_is_refused(share: float, probes: Path) -> None:
    """Never another exception, and never a table."""
    path = changed(probes, lambda content: None)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])

    with pytest.raises(TableError, match=r"answers\.json"):
        answered_table(path, probes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(fingerprint="0" * 12), "the network's fingerprint is"),
        (lambda c: c["files"].pop(), "name different files"),
        (lambda c: c["schedule"]["stages"][0].remove(c["schedule"]["control"]), "without the control"),
        (lambda c: c["files"][0].update(file="../x"), "files.0.file: String should match"),
        (lambda c: c.update(networks=c["networks"][1:]), "not the dense one"),
        (lambda c: c.update(schema_version=2), "schema 2"),
    ],
)
def test_probes_that_were_changed_are_refused(change: Change, message: str, probes: Path, tmp_path: Path) -> None:
    """They would be measured, or summed, as something that they are not."""
    content = json.loads((probes / PROBES).read_text())
    change(content)
    (tmp_path / PROBES).write_text(json.dumps(content))

    with pytest.raises(TableError, match=message):
        answered_table(changed(probes, lambda content: None), tmp_path)


def test_answers_without_their_probes_are_refused(probes: Path, tmp_path: Path) -> None:
    """They are looked for beside the answers."""
    path = changed(probes, lambda content: None)

    with pytest.raises(TableError, match="a ProbeBundle was expected there"):
        answered_table(path)


def two_layers(classes: int = 10) -> nn.Module:
    """(N, 1, 32, 32) → (N, classes): one layer that may have rank 16, and one that may not."""
    return nn.Sequential(nn.Flatten(), nn.Linear(1024, 32), nn.ReLU(), nn.Linear(32, classes))


MODEL = "tests.test_iphone:two_layers"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run folder of two layers, as training leaves it."""
    made = create(tmp_path_factory.mktemp("run"), data="digits", model=MODEL)
    save_checkpoint(
        made.folder / "ordered",
        order(made.new_model().eval()),
        name=MODEL,
        data="digits",
        input_shape=(1, 1, 32, 32),
        classes=10,
    )
    return made


def maestro(*argv: str | Path, capfd: pytest.CaptureFixture[str]) -> str:
    """Output of a command that ends well."""
    done = CliRunner().invoke(app, list(map(str, argv)))
    assert done.exit_code == 0, (done.stderr, done.exception)
    return " ".join(capfd.readouterr().out.split())


def layers_ms(bundle: ProbeBundle) -> Callable[[Path], float]:
    """A phone that takes 1 ns for a weight, and 10 µs for a network."""
    ms = {item.file: 1e-6 * item.spec.params(item.rank) for item in bundle.layers}
    ms |= {item.file: 0.01 + 1e-6 * bundle.network.params(item.ranks) for item in bundle.networks}
    return lambda path: ms[path.name]


def test_a_run_is_carried_to_the_phone_and_planned_on_its_answers(
    run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Real packages, a simulated phone, then the command line's plan of Core ML."""
    out = maestro("profiles", "probes", run.folder, "--model", MODEL, "--out", tmp_path / "p", capfd=capfd)
    assert "coreml probes" in out and "5/5" in out and "3 layers and 7 whole networks" in out
    bundle = ProbeBundle.load(tmp_path / "p" / PROBES)
    assert all((tmp_path / "p" / item.file / "Manifest.json").exists() for item in bundle.files)
    (tmp_path / "p" / "answers.json").write_text(json.dumps(answers(tmp_path / "p", layers_ms(bundle))))

    command = ("import", tmp_path / "p" / "answers.json", "--format", "iphone", "--profiles", tmp_path)
    assert "3 rows, measured" in maestro("profiles", *command, capfd=capfd)

    budget = ("--runtime", "coreml", "--budget-ms", "0.04", "--profiles", tmp_path)
    planned = maestro("plan", run.folder, "--model", MODEL, *budget, capfd=capfd)
    assert "on iPhone17,1, coreml 18.6.2-22G100-all: budget 0.04 ms" in planned
    (made,) = run.plans()
    assert (made.runtime, made.ranks["1"], made.threads) == ("coreml", 16, None)


def test_the_table_of_a_phone_is_found_where_there_is_one(run: Run, tmp_path: Path) -> None:
    """Two phones' tables are told apart by the folder that is given."""

    def find() -> LatencyTable:
        return load_table(run, load("coreml"), LocalDevice(), profiles=tmp_path, threads=1)

    with pytest.raises(TableError, match="'maestro-edge profiles probes"):
        find()
    folder = tmp_path / "probes"
    bundle = write_probes(run.ordered, run.example, FakeRuntime(), folder=folder, protocol=PROTOCOL)
    path = changed(folder, lambda content: None)
    table = answered_table(path, folder).model_copy(update={"runtime": "coreml"})
    table.save_over(tmp_path)

    assert find() == table
    assert bundle.fingerprint == run.network.fingerprint
    table.model_copy(update={"runtime_version": "19.0"}).save_over(tmp_path)
    with pytest.raises(TableError, match=r"2 tables .* give --profiles"):
        find()
