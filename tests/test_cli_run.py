"""One short demo on LiteRT by the command line, then what users do with its folder, well and badly."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from maestro_edge.values import DENSE, LatencyTable, Manifest, RankPlan
from tests.command import ROOT, Done, here, maestro, refused, shown
from tests.conftest import write_mnist


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """Few images and epochs, LiteRT and Core ML: (folder that holds runs/demo, profiles and mnist, output)."""
    folder = tmp_path_factory.mktemp("demo")
    write_mnist(folder / "mnist", 400)
    short = ("--data", "mnist:mnist", "--epochs", "1", "--dense-epochs", "2")
    return folder, maestro("demo", "--runtime", "litert", *short, folder=folder)


@pytest.fixture
def run(demo: tuple[Path, Done], tmp_path: Path) -> Path:
    """A copy of the demo's folder that a test may spoil."""
    shutil.copytree(demo[0], tmp_path / "copy")
    return tmp_path / "copy"


def test_the_demo_leaves_a_complete_bundle(demo: tuple[Path, Done]) -> None:
    """Three budgets and dense for each runtime, every file as the manifest says, a table and a report."""
    folder, done = demo

    assert done.code == 0, done.err
    manifest = Manifest.load(folder / "runs" / "demo" / "bundle" / "manifest.json")
    litert = [v for v in manifest.variants if v.runtime == "litert"]
    assert [v.budget_ms is None for v in litert] == [True, False, False, False]
    assert all(v.measured_ms is not None and v.measured_ms.n >= 20 for v in litert)
    assert all(v.sqnr_db is not None and v.sqnr_db > 60 and v.top1_agreement == 1 for v in manifest.variants)
    assert all(v.delegated == 1 and v.fallbacks == () for v in litert)
    assert all(v.measured_ms is None for v in manifest.variants if v.runtime == "coreml")
    assert len([v for v in manifest.variants if v.runtime == "coreml"]) == 4
    assert len(list((folder / "profiles").glob("*.litert-*.json"))) == 1
    assert (folder / "runs" / "demo" / "report.html").read_text().count("data:image") >= 4


def test_the_demo_prints_its_table(demo: tuple[Path, Done]) -> None:
    """Measured beside predicted, speed-up and accuracy, and nothing of what converters say."""
    out = demo[1].out

    assert re.search(r"litert-dense .*1\.00x", out)
    assert "not measured" in out and "top-1 %" in out
    assert "WARNING" not in out and "INFO" not in out and demo[1].err == ""


def test_no_plan_is_slower_than_dense(demo: tuple[Path, Done]) -> None:
    """In every plan each layer's chosen option was measured at most as slow as dense."""
    plans = [RankPlan.load(path) for path in (demo[0] / "runs" / "demo" / "plans").glob("*.json")]

    assert len(plans) == 3
    assert all(layer.ms <= layer.dense_ms for plan in plans for layer in plan.layers)
    assert any(layer.rank != DENSE for plan in plans for layer in plan.layers)


def test_the_linux_app_runs_the_bundle(demo: tuple[Path, Done], tmp_path: Path) -> None:
    """The app of apps/linux classifies an image with the demo's bundle, in a process without maestro_edge."""
    from PIL import Image

    from maestro_edge.recipes.data import load

    data = load(f"mnist:{demo[0] / 'mnist'}")
    image = tmp_path / "digit.png"
    Image.fromarray(data.test.inputs[0, 0].numpy()).save(image)
    app = ROOT / "apps" / "linux" / "classify.py"

    done = subprocess.run(
        [sys.executable, str(app), str(demo[0] / "runs" / "demo" / "bundle"), str(image), "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)


def test_plan_prints_every_layer_and_the_totals(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Rank, params, MACs, kB and ms per layer, with the totals beside dense."""
    argv = ("plan", "runs/demo", "--runtime", "litert", "--budget-ms", "1000")

    done = shown(*argv, folder=run, capfd=capfd)

    assert done.code == 0, done.err
    for word in ("blocks.2.conv2", "params", "MACs", "dense ms", "total", "dense network", "predicted"):
        assert word in done.out


def test_export_verify_bundle_and_report_run_on_their_own(run: Path) -> None:
    """Each step of the demo is a command; together they bundle a new budget."""
    for argv in (
        ("plan", "runs/demo", "--runtime", "litert", "--budget-ms", "900"),
        ("export", "runs/demo", "--runtime", "litert"),
        ("verify", "runs/demo", "--runtime", "litert"),
        ("bundle", "runs/demo", "--out", "out/bundle"),
        ("report", "runs/demo"),
    ):
        done = here(*argv, folder=run)
        # A host that became slower since the demo may leave a budget out of reach, which is said.
        late = argv[0] == "verify" and "over budget when measured: raise the budget" in done.err
        assert done.code == (1 if late else 0), (argv, done.err)

    manifest = Manifest.load(run / "out" / "bundle" / "manifest.json")
    assert {v.budget_ms for v in manifest.variants} >= {None, 900.0}
    assert all((run / "out" / "bundle" / v.file).exists() for v in manifest.variants)


def test_deploy_plans_exports_and_measures_in_one_call(run: Path) -> None:
    """A wide budget in ms and one in bytes: the table is known, the files are made, both hold."""
    budgets = ("--budget-ms", "90", "--budget-kb", "3000")

    done = here("deploy", "runs/demo", "--runtime", "litert", *budgets, folder=run)

    assert done.code == 0, done.err
    manifest = Manifest.load(run / "runs" / "demo" / "files" / "manifest.json")
    dense, made = manifest.variants
    assert not dense.is_planned and made.name == "litert-90ms-3000kB-of-file"
    assert made.size_bytes <= 3e6 < dense.size_bytes and made.missed == ()
    assert [done.measured_ms for done in made.rounds][-1] == made.measured_ms


def test_a_table_like_another_is_modelled(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Of the runtime of the one that is given; its rows, but for seven, are estimates, which `show` tells."""
    (table,) = (run / "profiles").glob("*.litert-*.json")

    done = shown("profile", "runs/demo", "--like", str(table), "--profiles", "out", folder=run, capfd=capfd)

    assert done.code == 0, done.err
    (path,) = (run / "out").glob("*.litert-*.modelled.json")
    rows = LatencyTable.load(path).rows
    assert sum(row.method == "probe" for row in rows) == 7
    assert {(row.spec, row.rank) for row in rows} == {
        (row.spec, row.rank) for row in LatencyTable.load(table).rows
    }
    assert f"{len(rows) - 7} of {len(rows)} rows" in " ".join(done.out.split())
    told = shown("profiles", "show", str(path), folder=run, capfd=capfd).out
    assert "modelled" in told and "(80 %)" in told
    other = here("profile", "runs/demo", "--runtime", "executorch", "--like", str(table), folder=run)
    assert "is of litert in fp32, not of executorch in fp32" in refused(other)


def test_sweep_writes_the_front(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One plan and the dense network in three precisions, as a table, a CSV and a figure."""
    done = here("sweep", "runs/demo", "--runtime", "litert", "--count", "1", folder=run)

    assert done.code == 0, done.err
    lines = (run / "runs" / "demo" / "sweep-litert.csv").read_text().splitlines()
    assert len(lines) == 5 and lines[0].startswith("name,precision,predicted_ms,p50_ms")
    assert {line.split(",")[1] for line in lines[1:]} == {"fp32", "int8-dynamic", "int8-static"}
    assert (run / "runs" / "demo" / "sweep-litert.png").read_bytes()[1:4] == b"PNG"
    assert "beaten by" in capfd.readouterr().out


def test_a_fleet_is_planned_from_its_tables(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The same table under two names: one variant serves both devices."""
    (table,) = (run / "profiles").glob("*.json")
    content = LatencyTable.load(table)
    twin = content.model_copy(update={"device": content.device.model_copy(update={"name": "twin"})})
    twin.save(run / "twin.json")
    ms = content.calibrations[0].networks[0].timing.median_ms

    argv = ("fleet", "runs/demo", "--table", str(table), "--table", "twin.json", "--budget-ms", f"{ms:.3g}")
    done = here(*argv, folder=run)

    assert done.code == 0, done.err
    names = [path.parent.name for path in (run / "runs" / "demo" / "fleet").glob("*/*.json")]
    assert sorted(names) == sorted([content.device.name, "twin"])
    assert len(re.findall(r"^│ 1 ", capfd.readouterr().out, re.MULTILINE)) == 2
    assert "give one budget for all" in refused(here(*argv, "--budget-ms", "1", "--budget-ms", "2", folder=run))


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ((), "no budget: give --budget-ms"),
        (
            ("--budget-ms", "1", "--precision", "int4"),
            "no precision 'int4': choose fp32, fp16, int8",
        ),
        (("--budget-ms", "1", "--precision", "int8-static"), "--precision int8-static'"),
        (("--budget-kb", "-3"), "a budget of '-3' is not an amount of kB of file"),
        (("--budget-mj", "3"), "has no energy"),
        (("--budget-ms", "90", "--budget-params", "10"), "out of reach is 10 parameters"),
    ],
    ids=["none", "precision", "table", "negative", "energy", "reach"],
)
def test_plans_that_cannot_be_made_are_one_line(run: Path, argv: tuple[str, ...], told: str) -> None:
    """Each says what is wrong, and no plan is written."""
    before = sorted(path.name for path in (run / "runs" / "demo" / "plans").iterdir())

    line = refused(here("plan", "runs/demo", "--runtime", "litert", *argv, folder=run))

    assert told in line
    assert sorted(path.name for path in (run / "runs" / "demo" / "plans").iterdir()) == before


def test_an_impossible_budget_names_the_reachable_minimum_and_saves_nothing(run: Path) -> None:
    """No plan file appears or changes, not even of the possible budget beside it."""
    plans = run / "runs" / "demo" / "plans"
    before = {path.name: path.read_bytes() for path in plans.iterdir()}

    line = refused(
        here("plan", "runs/demo", "--runtime", "litert", "--budget-ms", "500", "--budget-ms", "0.0001", folder=run)
    )

    assert re.search(r"below the fastest plan, [\d.]+ ms", line) and "milliseconds" in line
    assert {path.name: path.read_bytes() for path in plans.iterdir()} == before


@pytest.mark.parametrize("change", ["schema_version", "runtime_version", "truncated", "missing"])
def test_a_table_of_another_schema_or_version_is_refused(run: Path, change: str) -> None:
    """The line says what differs and what to do."""
    (path,) = (run / "profiles").glob("*.litert-*.json")
    raw = json.loads(path.read_text())
    if change == "truncated":
        path.write_text(path.read_text()[:200])
    elif change == "missing":
        path.rename(path.with_name(path.name.replace(LatencyTable.load(path).runtime_version, "0.1")))
    else:
        path.write_text(json.dumps({**raw, change: 7 if change == "schema_version" else "0.1"}))

    line = refused(here("plan", "runs/demo", "--runtime", "litert", "--budget-ms", "500", folder=run))

    assert "profile" in line or "make it again" in line


@pytest.mark.parametrize("damage", ["json", "weights"])
def test_a_damaged_checkpoint_is_refused(run: Path, damage: str) -> None:
    """Truncated JSON or weights: one line, nothing exported."""
    folder = run / "runs" / "demo" / "ordered"
    path = next(folder.glob("checkpoint.json" if damage == "json" else "weights-*"))
    path.write_bytes(path.read_bytes()[:-20])
    shutil.rmtree(run / "runs" / "demo" / "files")

    line = refused(here("export", "runs/demo", "--runtime", "litert", folder=run))

    assert "runs/demo/ordered" in line
    assert not (run / "runs" / "demo" / "files").exists()


def test_a_file_changed_after_its_export_is_not_measured_or_bundled(run: Path) -> None:
    """verify and bundle name the file."""
    file = run / "runs" / "demo" / "files" / "litert-dense.tflite"
    file.write_bytes(file.read_bytes()[:-8] + b"tampered")

    assert "litert-dense.tflite" in refused(here("verify", "runs/demo", "--runtime", "litert", folder=run))
    assert "litert-dense.tflite" in refused(here("bundle", "runs/demo", "--out", "b", folder=run))
    assert not (run / "b").exists()


def test_a_folder_that_cannot_be_written_is_one_line(run: Path) -> None:
    """A file stands where the folder should be (root may write anywhere else)."""
    (run / "file").write_text("")

    for argv in (
        ("train", "--out", "file/run", "--epochs", "1", "--dense-epochs", "1"),
        ("bundle", "runs/demo", "--out", "file/bundle"),
        ("profile", "runs/demo", "--runtime", "litert", "--profiles", "file/profiles"),
    ):
        assert "file" in refused(here(*argv, folder=run))


def test_names_that_do_not_exist_are_one_line(run: Path) -> None:
    """Run folder, device, runtime, data and model."""
    for argv, word in (
        (("export", "nowhere"), "not a run folder"),
        (("profile", "runs/demo", "--device", "usb:1"), "no device 'usb:1'"),
        (("profile", "runs/demo", "--runtime", "tensorrt"), "no runtime 'tensorrt'"),
        (("data", "imagenet"), "imagenet"),
        (("data", "mnist:nowhere"), "nowhere"),
        (("order", "no.such:model"), "no.such:model"),
        (("order", "resnet8"), "package.module:function"),
    ):
        assert word in refused(here(*argv, folder=run)), argv


def test_a_run_of_a_foreign_model_imports_nothing_unnamed(run: Path) -> None:
    """A folder from elsewhere must not decide which code is run."""
    facts = run / "runs" / "demo" / "run.json"
    facts.write_text(facts.read_text().replace("maestro_edge.recipes.models:resnet8", "os:getcwd"))

    assert "--model os:getcwd" in refused(here("export", "runs/demo", folder=run))


def test_a_model_of_ones_own_that_cannot_be_exported_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module of the current folder trains; its data-dependent branch is refused when it is first exported."""
    (tmp_path / "mynet.py").write_text(
        "from torch import nn\n\n\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, classes):\n"
        "        super().__init__()\n"
        "        self.conv = nn.Conv2d(1, 64, 3, stride=4)\n"
        "        self.hidden = nn.Linear(64, 64)\n"
        "        self.head = nn.Linear(64, classes)\n\n"
        "    def forward(self, x):\n"
        "        x = self.hidden(self.conv(x).mean((2, 3)))\n"
        "        return self.head(x if x.sum() > 0 else x * 2)\n\n\n"
        "def build(classes):\n"
        "    return Net(classes)\n"
    )
    write_mnist(tmp_path / "mnist", 100)
    short = ("--data", "mnist:mnist", "--epochs", "1", "--dense-epochs", "1")

    trained = maestro("train", "mynet:build", "--out", "run", *short, folder=tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # where the program looks by itself
    line = refused(here("profile", "run", "--model", "mynet:build", "--runtime", "litert", folder=tmp_path))

    assert trained.code == 0, trained.err
    assert "cannot be exported to LiteRT" in line
    assert not (tmp_path / "profiles").exists()


ONCE = {"profile": ("--emulated",), "export": (), "verify": ()}
"""Options by which a long step measures once: what comes of it is not looked at."""


def unfinished(step: str, folder: Path) -> int:
    """Forget two of the files that a step makes; returns how many there are when it is busy with the second."""
    pattern = {"profile": "work/*/network-*", "export": "work/exports/litert-*.json"}.get(step, "none")
    files = sorted(folder.glob(pattern))
    for path in files[:2]:
        path.unlink()
    return len(files) - 1


def has_begun(step: str, folder: Path, count: int, process: subprocess.Popen[str]) -> bool:
    """Whether a step is in the middle of its work."""
    if step == "profile":
        return len(list((folder / "work").rglob("network-*.tflite"))) >= count
    if step == "export":
        return len(list((folder / "work" / "exports").glob("litert-*.json"))) >= count
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return any("runner.py" in Path(f"/proc/{child}/cmdline").read_text() for child in children)


@pytest.mark.parametrize("step", ["profile", "export", "verify"])
def test_ctrl_c_stops_the_other_long_steps(run: Path, step: str) -> None:
    """One line and exit code 1, no half-written file; what was finished is kept and the command then goes through.

    A file that this machine, as busy as it is now, does not run within its budget is told so, and is no failure.
    """
    folder, argv = run / "runs" / "demo", (step, "runs/demo", "--runtime", "litert", *ONCE[step])
    count = unfinished(step, folder)
    process = subprocess.Popen(
        [sys.executable, "-m", "maestro_edge.cli", *argv],
        cwd=run,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 600
    while not has_begun(step, folder, count, process):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=240)
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("work/*/network-*")}

    line = refused(Done(process.returncode, out, err))
    leftovers = [path for path in run.rglob("*") if ".part" in path.name]
    again = here(*argv, folder=run)

    assert "interrupted" in line
    assert leftovers == []
    assert again.code == 0 or (step == "verify" and "over budget when measured" in again.err), again.err
    assert kept and all(path.stat().st_mtime_ns == before for path, before in kept.items())
