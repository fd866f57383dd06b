"""A network that was trained dense, then ordered with at most a fifth of that cost; against cutting it by SVD.

    python -m benchmarks.pretrained DATA_FOLDER [--seeds 0 1 2]

Writes results/pretrained.json and .png after every (task, seed); what is there already is kept. One thread.
DATA_FOLDER as for benchmarks/nested_accuracy.py, whose scores these are too; cost is processor time.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.nested_accuracy import RESULTS, SHARES, TASKS, Trial
from maestro_edge.devices import LocalDevice
from maestro_edge.ordered import order
from maestro_edge.values import write_atomically

COST_SHARE = 0.19
LR_SHARE = 0.2
"""The ordered epochs start at this share of the dense learning rate, which had ended at zero."""

CASES = {
    name: dataclasses.replace(TASKS[name], settings=TASKS[name].settings.model_copy(update={"epochs": 20}))
    for name in ("fashion", "cifar10")
}
WAYS = ("SVD", "whitened SVD", "whitened SVD, then ordered")


def run(name: str, folder: Path, seed: int) -> dict[str, Any]:
    """Scores of the three ways, and the seconds of both trainings."""
    trial = Trial(name, CASES[name], folder, seed)
    dense, dense_s = trial.train(trial.new_model(), trial.settings)
    ratio = trial.step_ratios({"alternating": "alternating"})["alternating"]
    epochs = max(1, int(COST_SHARE * trial.settings.epochs / ratio))
    start = order(dense, calibration=trial.calibration)
    settings = trial.settings.model_copy(
        update={"epochs": epochs, "lr": LR_SHARE * trial.settings.lr, "warmup_epochs": 0.1}
    )
    nested, nested_s = trial.train(copy.deepcopy(start), settings)
    models = dict(zip(WAYS, (order(dense), start, nested), strict=True))
    return {
        "task": name,
        "seed": seed,
        "dense_s": round(dense_s, 1),
        "ordered_s": round(nested_s, 1),
        "cost_share": round(nested_s / dense_s, 3),
        "ordered_epochs": epochs,
        "ways": {way: trial.scores(model) for way, model in models.items()},
    }


def summary(trials: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and sample standard deviation over the seeds."""
    result: dict[str, Any] = {}
    for task in dict.fromkeys(trial["task"] for trial in trials):
        mine = [trial for trial in trials if trial["task"] == task]
        result[task] = {"seeds": len(mine), "cost_share": [trial["cost_share"] for trial in mine]}
        for way in WAYS:
            line: dict[str, Any] = {}
            for kind in ("ranks", "macs"):
                columns = list(zip(*(trial["ways"][way][kind] for trial in mine), strict=True))
                line[kind] = [round(statistics.mean(column), 2) for column in columns]
                line[f"{kind}_sd"] = [round(statistics.stdev(c), 2) if len(c) > 1 else None for c in columns]
            result[task][way] = line
    return result


def draw(result: Mapping[str, Any], path: Path) -> None:
    """One panel a task: test top-1 against the share of the multiply-accumulates."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(result), figsize=(4.6 * len(result), 3.8), squeeze=False)
    for panel, (task, lines) in zip(panels[0], result.items(), strict=True):
        for way in WAYS:
            sd = [value or 0.0 for value in lines[way]["macs_sd"]]
            panel.errorbar(SHARES, lines[way]["macs"], sd, label=way, marker="o", markersize=3)
        panel.set_title(
            f"{task}, {lines['seeds']} seeds, at most {100 * max(lines['cost_share']):.0f} % of the cost"
        )
        panel.set_xscale("log", base=2)
        panel.set_xticks(SHARES, ["1", "3/4", "1/2", "1/4", "1/8"])
        panel.set_xlabel("share of the dense MACs")
        panel.set_ylabel("test top-1 %")
        panel.grid(alpha=0.3)
    panels[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    path = given.out / "pretrained.json"
    trials: list[dict[str, Any]] = json.loads(path.read_text())["trials"] if path.exists() else []
    for seed in given.seeds:
        for name in CASES:
            if any(trial["task"] == name and trial["seed"] == seed for trial in trials):
                continue
            trials.append(run(name, given.data, seed))
            result = {
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "device": LocalDevice().facts().model_dump(),
                "torch": torch.__version__,
                "threads": 1,
                "shares": SHARES,
                "models": {name: task.model for name, task in CASES.items()},
                "summary": summary(trials),
                "trials": trials,
            }
            write_atomically(path, (json.dumps(result, indent=1) + "\n").encode())
            draw(summary(trials), given.out / "pretrained.png")
            print(json.dumps(trials[-1]), flush=True)


if __name__ == "__main__":
    main()
