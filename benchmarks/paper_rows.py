"""The paper's LeNet on MNIST in full: what its λ grid finds, and one run that is told the size instead.

    python -m benchmarks.paper_rows DATA_FOLDER [--seeds 0 1 2]

Writes results/paper_rows.json after every seed; what is there already is kept. One thread. For each λ of the grid:
the paper's method (one (layer, rank) pair a step, raw λ, from scratch) trains ten epochs and finds ranks. Its
parameters are then the target of one run of ours, of as many epochs, without a λ; and, as a control of the same
cost, nine dense epochs are cut by SVD to the ranks that the paper's method found and trained for one more.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.nested_accuracy import RESULTS, TASKS, Trial
from maestro_edge.devices import LocalDevice
from maestro_edge.ordered import cut, order, ordered_layers
from maestro_edge.training import Target, TrainSettings
from maestro_edge.training.loop import split
from maestro_edge.values import write_atomically

GRID = (1e-2, 3e-2, 1e-1)
TASK = dataclasses.replace(TASKS["mnist"], test=10_000)
WAYS = ("paper", "ours", "control")


def where(name: str, module: nn.Module) -> bool:
    """All layers but the first, of one channel, and the classifier."""
    return name not in ("conv1", "classifier")


def row(trial: Trial, model: nn.Module, seconds: float) -> dict[str, Any]:
    """Size and test score of a model, an ordered one cut to the ranks that it has."""
    ranks = {name: layer.rank for name, layer in ordered_layers(model).items()}
    network = trial.network(cut(model, ranks))
    found = {"params": network.params({}), "macs": network.macs({}), "seconds": round(seconds, 1), "ranks": ranks}
    return {"top1": trial.score(model, ranks), **found}  # a stock network passes through cut() as it is


def run(folder: Path, seed: int) -> dict[str, Any]:
    """All rows of one seed."""
    trial = Trial("mnist", TASK, folder, seed)
    settings = trial.settings
    dense, dense_s = trial.train(trial.new_model(), settings)
    whole = trial.network(order(dense, where=where))
    lines = []
    for penalty in GRID:
        paper, paper_s = trial.train(order(trial.new_model().eval(), where=where), _paper(settings, penalty))
        found = row(trial, paper, paper_s)
        ours, ours_s = _ours(trial, settings.model_copy(update={"target": Target(params=found["params"])}))
        control, control_s = _control(trial, settings, found["ranks"])
        lines.append(
            {
                "penalty": penalty,
                "paper": found,
                "ours": row(trial, ours, ours_s),
                "control": row(trial, control, control_s),
            }
        )
        print(json.dumps(lines[-1]), flush=True)
    top1 = trial.score(order(dense, where=where), {})
    size = {"params": whole.params({}), "macs": whole.macs({}), "seconds": round(dense_s, 1)}
    return {"seed": seed, "dense": {"top1": top1, **size}, "rows": lines}


def _paper(settings: TrainSettings, penalty: float) -> TrainSettings:
    return settings.model_copy(update={"sampler": "pairs", "penalty": penalty, "penalty_form": "raw"})


def _ours(trial: Trial, settings: TrainSettings) -> tuple[nn.Module, float]:
    first, second = split(settings.model_copy(update={"dense_share": 0.2})) or (settings, settings)
    warm, warm_s = trial.train(trial.new_model(), first)
    model, seconds = trial.train(order(warm, where=where, calibration=trial.calibration), second)
    return model, warm_s + seconds


def _control(trial: Trial, settings: TrainSettings, ranks: Mapping[str, int]) -> tuple[nn.Module, float]:
    epochs = settings.epochs
    dense, dense_s = trial.train(trial.new_model(), settings.model_copy(update={"epochs": epochs - 1}))
    small = order(dense, where=where)
    for name, layer in ordered_layers(small).items():
        layer.keep(ranks[name])
    polish = settings.model_copy(update={"epochs": 1, "lr": 0.2 * settings.lr, "warmup_epochs": 0.1})
    polished, seconds = trial.train(cut(small, ranks), polish)
    return polished, dense_s + seconds


def summary(trials: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over the seeds for each λ; top-1 with its sample standard deviation."""
    lines = []
    for index, penalty in enumerate(GRID):
        line: dict[str, Any] = {"penalty": penalty, "seeds": len(trials)}
        for way in WAYS:
            rows = [trial["rows"][index][way] for trial in trials]
            top1 = [found["top1"] for found in rows]
            line[way] = {
                "top1": round(statistics.mean(top1), 2),
                "top1_sd": round(statistics.stdev(top1), 2) if len(top1) > 1 else None,
                "params": round(statistics.mean(found["params"] for found in rows)),
                "macs": round(statistics.mean(found["macs"] for found in rows)),
                "seconds": round(statistics.mean(found["seconds"] for found in rows), 1),
            }
        misses = [t["rows"][index]["ours"]["params"] / t["rows"][index]["paper"]["params"] - 1 for t in trials]
        line["worst_landing"] = round(max(map(abs, misses)), 4)
        lines.append(line)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    path = given.out / "paper_rows.json"
    trials: list[dict[str, Any]] = json.loads(path.read_text())["trials"] if path.exists() else []
    for seed in given.seeds:
        if any(trial["seed"] == seed for trial in trials):
            continue
        trials.append(run(given.data, seed))
        result = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": LocalDevice().facts().model_dump(),
            "torch": torch.__version__,
            "threads": 1,
            "settings": TASK.settings.model_dump(),
            "dense": [trial["dense"] for trial in trials],
            "summary": summary(trials),
            "trials": trials,
        }
        write_atomically(path, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
