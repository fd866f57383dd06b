"""The command line on real input: trainings, devices and what is refused before any work."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import save_file

from maestro_edge.ordered import order, ordered_layers
from maestro_edge.recipes.vision import small_cnn
from maestro_edge.training import load_checkpoint
from tests.command import ROOT, Done, here, maestro, refused, shown
from tests.conftest import write_mnist

SMALL = ("maestro_edge.recipes.vision:small_cnn", "--data", "mnist:mnist")
"""A fifth of the default's multiply-accumulates, and few images of MNIST's form in the folder of a test."""


@pytest.mark.parametrize("budget", ["0", "-1", "nan", "inf", "soon"])
def test_a_budget_that_is_no_time_is_refused(budget: str, tmp_path: Path) -> None:
    """Before anything heavy is imported, and nothing is written."""
    line = refused(here("plan", "runs/x", f"--budget-ms={budget}", folder=tmp_path))

    assert "is not a time" in line and budget in line
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_stops_training_and_the_same_command_goes_on(tmp_path: Path) -> None:
    """One line, exit code 1, a whole checkpoint; the second call ends where an uninterrupted one would."""
    write_mnist(tmp_path / "mnist", 600)
    argv = ["train", *SMALL, "--out", "run", "--epochs", "1", "--dense-epochs", "3"]
    command = [sys.executable, "-m", "maestro_edge.cli", *argv]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    checkpoint = tmp_path / "run" / "dense" / "checkpoint.json"
    deadline = time.monotonic() + 600
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
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


def test_a_chain_in_milliseconds_needs_a_table(tmp_path: Path) -> None:
    """That is said before the training, with the command that makes one."""
    line = refused(here("train", "--out", "run", "--epochs", "1", "--chain-ms", folder=tmp_path))

    assert "no table" in line and "maestro-edge profile" in line


def test_given_weights_start_the_ordered_model(tmp_path: Path) -> None:
    """Dense weights of one's own replace the dense training; weights of another shape are refused by tensor."""
    write_mnist(tmp_path / "mnist", 200)
    state = small_cnn().state_dict()
    save_file(state, tmp_path / "dense.safetensors")
    state["hidden.weight"] = state["hidden.weight"][:8].clone()
    save_file(state, tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"junk")
    argv = ("train", *SMALL, "--epochs", "1", "--weights")

    done = here(*argv, "dense.safetensors", "--out", "a", folder=tmp_path)

    assert done.code == 0 and (tmp_path / "a" / "ordered" / "checkpoint.json").exists()
    assert "hidden.weight" in refused(here(*argv, "other.safetensors", "--out", "b", folder=tmp_path))
    assert "broken.safetensors" in refused(here(*argv, "broken.safetensors", "--out", "c", folder=tmp_path))


def test_the_papers_sampler_trains_from_scratch_and_shrinks(tmp_path: Path) -> None:
    """--sampler pairs: no dense training, and the lasso takes components away."""
    write_mnist(tmp_path / "mnist", 300)
    argv = ("train", *SMALL, "--batch-size", "16", "--epochs", "3", "--out", "run")

    done = here(*argv, "--sampler", "pairs", "--penalty", "60", folder=tmp_path)

    assert done.code == 0, done.err
    assert not (tmp_path / "run" / "dense").exists()
    ranks = load_checkpoint(tmp_path / "run" / "ordered")[0].ranks
    full = {name: layer.rank for name, layer in ordered_layers(order(small_cnn())).items()}
    assert set(ranks) == set(full) and all(ranks[name] <= full[name] for name in full)
    assert sum(ranks.values()) < sum(full.values())


def test_order_lists_every_layer_with_its_reason(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What stays dense says why, and the function is kept."""
    done = shown("order", folder=tmp_path, capfd=capfd)

    assert done.code == 0
    assert "no: too small to gain from a lower rank" in done.out
    difference = re.search(r"dense one: ([\d.e-]+)", done.out)
    assert difference and float(difference[1]) < 1e-5


def test_devices_names_this_machine_and_its_runtimes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """SoC, cores and the versions of what can run here; a device that is not there says so in its row."""
    done = shown("devices", "--device", "nowhere:1", folder=tmp_path, capfd=capfd)

    assert done.code == 0
    for word in ("local", "executorch 1.5.1", "litert 2.3", "onnx 1.32", "nowhere:1", "no device"):
        assert word in done.out


def test_devices_clean_says_what_it_did(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It is a command of its own below devices; a device that is none is refused."""
    done = shown("devices", "clean", "local", folder=tmp_path, capfd=capfd)

    assert "nothing of maestro-edge is left" in done.out
    assert "no device 'nowhere'" in refused(here("devices", "clean", "nowhere", folder=tmp_path))


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
        "fleet",
        "export",
        "verify",
        "deploy",
        "sweep",
        "bundle",
        "report",
    ]
    assert [name for name in found if name in order] == order
    assert min(seconds) < 0.5


def test_a_recipe_trains_and_lands_on_its_target(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
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

    done, again = (shown(*argv, folder=tmp_path, capfd=capfd) for _ in range(2))

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

    line = refused(here("train", *argv, folder=tmp_path))

    assert re.search(message, line)
    assert not (tmp_path / "runs" / "train" / "ordered").exists()


def test_the_recipes_are_listed(capfd: pytest.CaptureFixture[str]) -> None:
    """Every one, with the data that it reads."""
    from maestro_edge.recipes.paper import RECIPES

    done = shown("recipes", folder=ROOT, capfd=capfd)

    assert all(name in done.out for name in RECIPES)
    assert "multi30k:PATH" in done.out
