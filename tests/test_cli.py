"""The command line on real input: one short demo on LiteRT, then what users do with its folder, well and badly."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from maestro_edge.cli import app
from maestro_edge.recipes.models import resnet8
from maestro_edge.training import load_checkpoint
from maestro_edge.values import DENSE, LatencyTable, Manifest, RankPlan

ROOT = Path(__file__).parents[1]


class Done(NamedTuple):
    """Exit code, standard output and standard error of a finished command."""

    code: int
    out: str
    err: str


def maestro(*argv: str | Path, folder: Path, timeout_s: float = 880) -> Done:
    done = subprocess.run(
        [sys.executable, "-m", "maestro_edge.cli", *map(str, argv)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def here(*argv: str, folder: Path) -> Done:
    """The same in this process, for what is refused: no second of imports a call."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        done = CliRunner().invoke(app, list(argv))
    finally:
        os.chdir(before)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return Done(done.exit_code, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Done]]:
    """One epoch of each training, LiteRT and Core ML: (folder that holds runs/demo and profiles, output)."""
    folder = tmp_path_factory.mktemp("demo")
    done = maestro("demo", "--runtime", "litert", "--epochs", "1", "--dense-epochs", "2", folder=folder)
    yield folder, done


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
    assert all(v.sqnr_db > 60 and v.top1_agreement == 1 for v in manifest.variants)
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

    data = load("digits")
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


def test_plan_prints_every_layer_and_the_totals(run: Path) -> None:
    """Rank, params, MACs, kB and ms per layer, with the totals beside dense."""
    done = maestro("plan", "runs/demo", "--runtime", "litert", "--budget-ms", "1000", folder=run)

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
        assert done.code == 0, (argv, done.err)

    manifest = Manifest.load(run / "out" / "bundle" / "manifest.json")
    assert {v.budget_ms for v in manifest.variants} >= {None, 900.0}
    assert all((run / "out" / "bundle" / v.file).exists() for v in manifest.variants)


def refused(done: Done) -> str:
    """The one line of a refusal."""
    assert done.code == 1, done
    lines = done.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("maestro-edge: "), done.err
    assert "Traceback" not in done.out
    return lines[0]


@pytest.mark.parametrize("budget", ["0", "-1", "nan", "inf", "soon"])
def test_a_budget_that_is_no_time_is_refused(budget: str, tmp_path: Path) -> None:
    """Before anything heavy is imported, and nothing is written."""
    line = refused(here("plan", "runs/x", f"--budget-ms={budget}", folder=tmp_path))

    assert "is not a time" in line and budget in line
    assert list(tmp_path.iterdir()) == []


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
        (("profile", "runs/demo", "--runtime", "onnx"), "no runtime 'onnx'"),
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


def test_ctrl_c_stops_training_and_the_same_command_goes_on(tmp_path: Path) -> None:
    """One line, exit code 1, a whole checkpoint; the second call ends where an uninterrupted one would."""
    argv = ["train", "--out", "run", "--epochs", "1", "--dense-epochs", "3"]
    command = [sys.executable, "-m", "maestro_edge.cli", *argv]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    checkpoint = tmp_path / "run" / "dense" / "checkpoint.json"
    deadline = time.monotonic() + 600
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=240)

    line = refused(Done(process.returncode, out, err))
    stopped = json.loads(checkpoint.read_text())["training"]
    again = here(*argv, folder=tmp_path)

    assert "goes on where it stopped" in line
    assert 1 <= stopped["epoch"] < 3
    assert again.code == 0
    assert json.loads(checkpoint.read_text())["training"]["epoch"] == 3


def has_begun(step: str, folder: Path, process: subprocess.Popen[str]) -> bool:
    """Whether a step is in the middle of its work."""
    if step == "profile":
        return len(list((folder / "work").rglob("network-*.tflite"))) > 5
    if step == "export":
        return bool(list((folder / "work" / "exports").glob("*.json")))
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return any("runner.py" in Path(f"/proc/{child}/cmdline").read_text() for child in children)


@pytest.mark.parametrize("step", ["profile", "export", "verify"])
def test_ctrl_c_stops_the_other_long_steps(run: Path, step: str) -> None:
    """One line and exit code 1, no half-written file; what was finished is kept and the command then succeeds."""
    folder = run / "runs" / "demo"
    shutil.rmtree(folder / "work" / "exports")
    for path in [*folder.glob("work/*/rows.json"), *sorted(folder.glob("work/*/network-*"))[5:]]:
        path.unlink()
    process = subprocess.Popen(
        [sys.executable, "-m", "maestro_edge.cli", step, "runs/demo", "--runtime", "litert"],
        cwd=run,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 600
    while not has_begun(step, folder, process):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=240)
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("work/*/network-*")}

    line = refused(Done(process.returncode, out, err))
    leftovers = [path for path in run.rglob("*") if ".part" in path.name]
    again = here(step, "runs/demo", "--runtime", "litert", folder=run)

    assert "interrupted" in line
    assert leftovers == []
    assert again.code == 0, again.err
    assert all(path.stat().st_mtime_ns == before for path, before in kept.items())


def test_a_chain_in_milliseconds_needs_a_table(tmp_path: Path) -> None:
    """That is said before the training, with the command that makes one."""
    line = refused(here("train", "--out", "run", "--epochs", "1", "--chain-ms", folder=tmp_path))

    assert "no table" in line and "maestro-edge profile" in line


def test_given_weights_start_the_ordered_model(tmp_path: Path) -> None:
    """Dense weights of one's own replace the dense training; weights of another shape are refused by tensor."""
    model, _ = resnet8()
    save_file(model.state_dict(), tmp_path / "dense.safetensors")
    state = model.state_dict()
    state["stem.weight"] = state["stem.weight"][:8].clone()
    save_file(state, tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"junk")
    argv = ("train", "--epochs", "1", "--weights")

    done = here(*argv, "dense.safetensors", "--out", "a", folder=tmp_path)

    assert done.code == 0 and (tmp_path / "a" / "ordered" / "checkpoint.json").exists()
    assert "stem.weight" in refused(here(*argv, "other.safetensors", "--out", "b", folder=tmp_path))
    assert "broken.safetensors" in refused(here(*argv, "broken.safetensors", "--out", "c", folder=tmp_path))


def test_the_papers_sampler_trains_from_scratch_and_shrinks(tmp_path: Path) -> None:
    """--sampler pairs: no dense training, and the lasso takes components away."""
    argv = ("train", "--sampler", "pairs", "--penalty", "60", "--epochs", "3", "--out", "run")

    done = here(*argv, folder=tmp_path)

    assert done.code == 0, done.err
    assert not (tmp_path / "run" / "dense").exists()
    ranks = load_checkpoint(tmp_path / "run" / "ordered")[0].ranks
    assert ranks["blocks.0.conv1"] <= 64 and sum(ranks.values()) < 64 + 64 + 128 + 128 + 64 + 256 + 256 + 128


def test_order_lists_every_layer_with_its_reason(tmp_path: Path) -> None:
    """What stays dense says why, and the function is kept."""
    done = maestro("order", folder=tmp_path)

    assert done.code == 0
    assert "no: too small to gain from a lower rank" in done.out
    difference = re.search(r"dense one: ([\d.e-]+)", done.out)
    assert difference and float(difference[1]) < 1e-5


def test_devices_names_this_machine_and_its_runtimes(tmp_path: Path) -> None:
    """SoC, cores and the versions of what can run here; a device that is not there says so in its row."""
    done = maestro("devices", "--device", "nowhere:1", folder=tmp_path)

    assert done.code == 0
    for word in ("local", "executorch 1.5.1", "litert 2.3", "nowhere:1", "no device"):
        assert word in done.out


def test_devices_clean_says_what_it_did(tmp_path: Path) -> None:
    """It is a command of its own below devices; a device that is none is refused."""
    assert "nothing of maestro-edge is left" in maestro("devices", "clean", "local", folder=tmp_path).out

    assert maestro("devices", "clean", "nowhere", folder=tmp_path).code == 1


def _children_s() -> float:
    """Processor time of all programs that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_is_quick_and_reads_like_the_pipeline(tmp_path: Path) -> None:
    """Under half a second of processor time (best of five: the machine may be busy), every command in order."""
    seconds = []
    for _ in range(5):
        started = _children_s()
        done = maestro("--help", folder=tmp_path)
        seconds.append(_children_s() - started)

    found = re.findall(r"^│ (\w+)  ", done.out, re.MULTILINE)
    order = [
        "demo",
        "data",
        "order",
        "train",
        "devices",
        "profile",
        "plan",
        "export",
        "verify",
        "bundle",
        "report",
    ]
    assert [name for name in found if name in order] == order
    assert min(seconds) < 0.5


def test_a_model_of_ones_own_that_cannot_be_exported_is_one_line(tmp_path: Path) -> None:
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
    argv = ("train", "mynet:build", "--out", "run", "--epochs", "1", "--dense-epochs", "1")

    trained = maestro(*argv, folder=tmp_path)
    line = refused(maestro("profile", "run", "--model", "mynet:build", "--runtime", "litert", folder=tmp_path))

    assert trained.code == 0, trained.err
    assert "cannot be exported to LiteRT" in line
    assert not (tmp_path / "profiles").exists()


def test_a_recipe_trains_and_lands_on_its_target(tmp_path: Path) -> None:
    """One command on MNIST's files: dense warm-up, landed size beside the target, ranks, and it resumes."""
    write_mnist(tmp_path / "mnist", 600)
    argv = (
        "train",
        "lenet-mnist",
        "--data",
        "mnist",
        "--epochs",
        "5",
        "--batch-size",
        "32",
        "--target-params",
        "30000",
    )

    done = maestro(*argv, folder=tmp_path)
    again = maestro(*argv, folder=tmp_path)

    assert done.code == 0, done.err
    found = re.search(r"size +([\d,]+) params.*target: 30 k params", done.out)
    assert found and abs(int(found[1].replace(",", "")) / 30_000 - 1) < 0.05
    assert re.search(r"dense warm-up +validation loss", done.out)
    assert again.out.splitlines()[-5:] == done.out.splitlines()[-5:]
    assert (tmp_path / "runs" / "train" / "dense" / "checkpoint.json").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("lenet9", "--data", "x"), r"no recipe 'lenet9': choose lenet_mnist, "),
        (("lenet-mnist",), r"needs its data: --data PATH of mnist"),
        (
            ("lenet-mnist", "--data", "mnist", "--target-macs", "9"),
            r"a target of 9 G MACs is out of reach: .* dense",
        ),
        (
            ("lenet-mnist", "--data", "mnist", "--target-macs", "9", "--target-params", "9"),
            r"2 targets \(macs, params",
        ),
        (
            ("lenet-mnist", "--data", "mnist", "--target-macs", "9", "--penalty", "1"),
            r"drop --penalty or the target",
        ),
        (("lenet-mnist", "--data", "mnist", "--lr", "-1"), r"lr: Input should be greater than 0"),
    ],
)
def test_wrong_trainings_are_refused_in_one_line(tmp_path: Path, argv: tuple[str, ...], message: str) -> None:
    """Before any step of training."""
    write_mnist(tmp_path / "mnist", 600)

    done = maestro("train", *argv, folder=tmp_path)

    assert done.code == 1
    assert re.search(message, done.err) and len(done.err.splitlines()) == 1
    assert not (tmp_path / "runs" / "train" / "ordered").exists()


def test_the_recipes_are_listed() -> None:
    """Every one, with the data that it reads."""
    from maestro_edge.recipes.paper import RECIPES

    done = maestro("recipes", folder=ROOT)

    assert all(name in done.out for name in RECIPES)
    assert "multi30k:PATH" in done.out


def write_mnist(folder: Path, count: int) -> None:
    """Files of MNIST's form: bright rows tell the class."""
    import struct

    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for prefix, number in (("train", count), ("t10k", 40)):
        targets = torch.arange(number) % 10
        images = torch.randint(64, (number, 28, 28), generator=generator)
        for index, target in enumerate(targets.tolist()):
            images[index, 2 * target : 2 * target + 4] += 180
        head, tail = struct.pack(">4I", 2051, number, 28, 28), struct.pack(">2I", 2049, number)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(head + images.to(torch.uint8).numpy().tobytes())
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(tail + targets.to(torch.uint8).numpy().tobytes())
