"""The README is true: its Python runs, its commands exist, its numbers are those of the committed results."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.main import get_command

import maestro_edge as me
from maestro_edge.cli import app
from maestro_edge.errors import DeviceError
from maestro_edge.recipes import data as datasets

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
RESULTS = json.loads((ROOT / "benchmarks" / "results" / "demo.json").read_text())


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_version_runs_in_eight_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The block as it stands, on digits and LiteRT: it prints the file's agreement and the predicted ms."""
    code = blocks("python")[0]
    assert len([line for line in code.splitlines() if line and not line.startswith("import")]) == 8
    digits = datasets.load("digits")
    model = nn.Sequential(
        nn.Conv2d(1, 48, 3, stride=2),
        nn.ReLU(),
        nn.Conv2d(48, 48, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(48, 10),
    )
    batches = [digits.normalise(digits.train.inputs[:128])]
    train_set = me.TrainSet("digits", digits.train.inputs[:192], digits.train.targets[:192], digits.normalise)
    names = {
        "model": model.eval(),
        "example": (torch.zeros(1, 1, 32, 32),),
        "batches": batches,
        "train_set": train_set,
        "validation_inputs": digits.normalise(digits.validation.inputs[:64]),
        "validation_targets": digits.validation.targets[:64],
        "samples": digits.normalise(digits.validation.inputs[:8]),
        "budget_ms": 50.0,
        "work": tmp_path,
    }

    lines = compile(code.replace("epochs=6", "epochs=1"), "README.md", "exec")
    try:
        exec(lines, names)
    except DeviceError as error:  # the machine was too busy for a row: a user does what the message says
        assert "measure again" in str(error)
        exec(lines, names)

    assert "SQNR" in capsys.readouterr().out
    assert (tmp_path / "small.tflite").exists()
    assert isinstance(names["plan"], me.RankPlan)
    with torch.no_grad():
        assert names["small"](names["samples"]).shape == (8, 10)  # type: ignore[operator]


def test_the_own_loop_runs_with_at_most_six_changed_lines() -> None:
    """The second block as it stands: four of its lines are ours, and the network lands on its target."""
    code = blocks("python")[1]
    digits = datasets.load("digits")
    inputs, targets = digits.normalise(digits.train.inputs[:256]), digits.train.targets[:256]
    model = nn.Sequential(nn.Flatten(), nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 10))
    names: dict[str, Any] = {
        "me": me,
        "torch": torch,
        "F": torch.nn.functional,
        "model": model,
        "batches": [inputs[:64]],
        "macs": 40_000,
        "steps": 64,
        "example": (inputs[:1],),
        "loader": [(inputs[i : i + 32], targets[i : i + 32]) for _ in range(8) for i in range(0, 256, 32)],
    }

    exec(compile(code, "README.md", "exec"), names)

    assert sum("me." in line or "ordering." in line for line in code.splitlines()) <= 6
    assert abs(names["ordering"].size / 40_000 - 1) < 0.05


def test_every_command_and_option_of_the_readme_exists() -> None:
    """Each `maestro-edge …` line parses against the real command line."""
    lines = re.findall(r"^ {4}maestro-edge (.*?)(?: +#.*)?$", README, re.MULTILINE)
    group = get_command(app)

    assert len(lines) == 13
    for line in lines:
        name, *argv = shlex.split(line)
        command = group.commands[name]  # type: ignore[attr-defined]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in argv if word.startswith("--")} <= known, line


def test_the_make_targets_exist() -> None:
    """Those that the README names, and CI begins with its test command."""
    makefile = (ROOT / "Makefile").read_text()

    for target in ("demo", "test", "test-devices", "test-apps"):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE) and f"make {target}" in README
    steps = re.findall(r"^make (\S+)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert steps == ["test", "test-devices", "test-apps"]


def test_the_workflow_runs_every_test_target() -> None:
    """By the targets that the Makefile has, so that each of its jobs is one command at home."""
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    targets = re.findall(r"^(test\S*):", (ROOT / "Makefile").read_text(), re.MULTILINE)

    assert sorted(re.findall(r"run: make (\S+)$", workflow, re.MULTILINE)) == sorted(targets)


def test_the_table_is_that_of_the_committed_results() -> None:
    """Every measured, predicted and accuracy figure of the README's table stands in results/demo.json."""
    rows = re.findall(r"^\| (\S+) \| (\S+) \| (\S+) \| ([\d.]+) \| ([\d.]+)× \| ([\d.]+) \|", README, re.MULTILINE)
    variants = {v["variant"]: v for v in RESULTS["variants"] if v["measured_ms"]}

    assert {row[0] for row in rows} == set(variants)
    for name, budget, predicted, measured, speed_up, accuracy in rows:
        found = variants[name]
        assert budget == ("–" if found["budget_ms"] is None else f"{found['budget_ms']:g}")
        assert predicted == ("–" if found["predicted_ms"] is None else f"{found['predicted_ms']:.3f}")
        assert measured == f"{found['measured_ms']['p50']:.3f}"
        assert speed_up == f"{found['speed_up']:.2f}"
        assert accuracy == f"{100 * found['test_accuracy']:.1f}"
    for check in RESULTS["prediction"].values():
        assert f"{100 * check['mape']:.1f} %" in README


def test_the_nested_accuracies_are_those_of_the_committed_results() -> None:
    """Fashion-MNIST at a quarter of the dense multiply-accumulates, and dense."""
    found = json.loads((ROOT / "benchmarks" / "results" / "nested_accuracy.json").read_text())["summary"][
        "fashion"
    ]
    quarter = {way: row["macs"][3] for way, row in found.items() if way != "seeds"}

    text = " ".join(README.split())
    assert f"keeps {quarter['alternating + chain']:.1f} % (dense: {found['dense + SVD']['macs'][0]:.1f} %)" in text
    assert (
        f"SVD keeps {quarter['dense + SVD']:.1f} %, the whitened one {quarter['dense + whitened SVD']:.1f} %"
        in text
    )
    pairs = quarter["Maestro's pairs"]
    assert f"sampler {pairs:.1f} %" in text
    assert f"idea {quarter['FlexRank-like chain']:.1f} %" in text


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    """At most 120 lines; every relative link is a file."""
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)

    assert len(README.splitlines()) <= 120
    assert links and all((ROOT / link).exists() for link in links)
