"""The paper's rows: LeNet on MNIST over its λ grid, and ResNet-18 on CIFAR-10 cut without retraining.

    python -m benchmarks.paper_rows DATA_FOLDER [--rows lenet resnet18] [--seeds 0 1 2] [--work FOLDER]
        [--images 10000] [--epochs 8] [--out FOLDER]

Writes results/paper_rows.json and .png as results come; what is there already is kept. One thread. With --work, an
interrupted training of ResNet-18 goes on where it was.

LeNet, for each λ of the grid: the paper's method (one (layer, rank) pair a step, raw λ, from scratch) trains ten
epochs and finds ranks. Its parameters are then the target of one run of ours, of as many epochs, without a λ; and,
as a control of the same cost, nine dense epochs are cut by SVD to the ranks that the paper's method found and
trained for one more.

ResNet-18, once (seed 0), on a part of the training images: dense (ordered after training by the whitened SVD), the
paper's method and ours are trained for the same cost; each is cut to three sizes without retraining, and each cut
network is polished for one epoch. With other --images and --epochs (all: 50000, less the validation split) the
results go to an --out of their own.
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

from benchmarks.nested_accuracy import DENSE_SHARE, RESULTS, TASKS, Task, Trial
from maestro_edge.devices import LocalDevice
from maestro_edge.ordered import cut, order, ordered_layers
from maestro_edge.training import Target, TrainSettings
from maestro_edge.training.settings import bf16_is_fast, split
from maestro_edge.values import write_atomically

GRID = (1e-2, 3e-2, 1e-1)
TASK = dataclasses.replace(TASKS["mnist"], test=10_000)
WAYS = ("paper", "ours", "control")

GMACS = (0.39, 0.22, 0.1)
RESNET18 = Task(
    "maestro_edge.recipes.vision:resnet18",
    "cifar10:{}/cifar10-jpeg.tar",
    TrainSettings(epochs=8, batch_size=128, lr=0.1),
    train=10_000,
    sensitivity=128,
)
RESNET18_SAMPLERS = {"paper": "pairs", "ours": "alternating"}
RESNET18_WAYS = ("dense", *RESNET18_SAMPLERS)


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


def resnet18(trial: Trial, way: str, ratio: float, work: Path | None) -> dict[str, Any]:
    """One training, its cuts to GMACS without retraining, and those after an epoch of polish.

    `ratio` is the measured cost of the way's step over a dense one.
    """
    settings = trial.settings
    folder = None if work is None else work / way
    if way == "dense":
        dense, seconds = trial.train(trial.new_model(), settings, folder=folder)
        model, epochs = order(dense, calibration=trial.calibration), float(settings.epochs)
    elif way == "paper":
        paper = _paper(settings, 16e-6).model_copy(update={"epochs": max(1, round(settings.epochs / ratio))})
        model, seconds = trial.train(order(trial.new_model().eval()), paper, folder=folder)
        epochs = float(paper.epochs)
    else:
        first, second = split(settings.model_copy(update={"dense_share": DENSE_SHARE})) or (settings, settings)
        second = second.model_copy(update={"epochs": max(1, round((settings.epochs - first.epochs) / ratio))})
        warm, warm_s = trial.train(trial.new_model(), first, folder=folder and folder / "dense")
        model, seconds = trial.train(order(warm, calibration=trial.calibration), second, folder=folder)
        epochs, seconds = float(first.epochs + second.epochs), warm_s + seconds
    network = trial.network(model)
    whole = {"top1": trial.score(model, {}), "epochs": epochs, "seconds": round(seconds, 1)}
    print(way, json.dumps(whole), flush=True)
    plans = trial.plans(model, [gmacs * 1e9 / network.macs({}) for gmacs in GMACS])
    polish = settings.model_copy(update={"epochs": 1, "lr": 0.2 * settings.lr, "warmup_epochs": 0.1})
    cuts = []
    for gmacs, plan in zip(GMACS, plans, strict=True):
        line = {"gmacs": gmacs, "reached": round(network.macs(plan) / 1e9, 4), "params": network.params(plan)}
        polished, polish_s = trial.train(cut(model, plan), polish)
        cuts.append({**line, "top1": trial.score(model, plan), "polished": trial.score(polished, {})})
        cuts[-1]["polish_s"] = round(polish_s, 1)
        print(way, json.dumps(cuts[-1]), flush=True)
    return {
        "device": LocalDevice().facts().name,
        "bf16": bf16_is_fast("cpu"),
        "whole": whole,
        "gmacs_dense": round(network.macs({}) / 1e9, 4),
        "cuts": cuts,
    }


def draw(result: Mapping[str, Any], path: Path) -> None:
    """LeNet's accuracy against its parameters, and ResNet-18's against its MACs before and after polish."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9.6, 3.8))
    names = {"paper": "paper's λ grid", "ours": "ours, told that size", "control": "dense, SVD, one epoch"}
    for way, label in names.items():
        rows = [line[way] for line in result.get("summary", [])]
        sd = [row["top1_sd"] or 0.0 for row in rows]
        left.errorbar([row["params"] for row in rows], [row["top1"] for row in rows], sd, label=label, marker="o")
    left.set_title(f"LeNet on MNIST, {len(result.get('trials', []))} seeds")
    left.set_xlabel("parameters")
    for index, way in enumerate(RESNET18_WAYS):
        found = result.get("resnet18", {}).get(way)
        if found is None:
            continue
        gmacs = [found["gmacs_dense"], *(cut["reached"] for cut in found["cuts"])]
        for kind, style in (("top1", "o--"), ("polished", "o-")):
            scores = [found["whole"]["top1"], *(cut[kind] for cut in found["cuts"])]
            label = f"{way}, {'polished' if kind == 'polished' else 'not retrained'}"
            right.plot(gmacs, scores, style, color=f"C{index}", label=label)
    images = result.get("resnet18", {}).get("train", RESNET18.train)
    right.set_title(f"ResNet-18 on {images:,} images of CIFAR-10")
    right.set_xlabel("GMACs")
    for axes in (left, right):
        axes.set_ylabel("test top-1 %")
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rows", nargs="+", default=["lenet", "resnet18"], choices=["lenet", "resnet18"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of LeNet")
    parser.add_argument("--ways", nargs="+", default=list(RESNET18_WAYS), choices=RESNET18_WAYS)
    parser.add_argument("--work", type=Path, help="folder of ResNet-18's checkpoints")
    parser.add_argument("--images", type=int, default=RESNET18.train, help="that train ResNet-18")
    parser.add_argument("--epochs", type=int, default=RESNET18.settings.epochs, help="of the dense ResNet-18")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    path = given.out / "paper_rows.json"
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def save() -> None:
        result["date"] = datetime.now(UTC).isoformat(timespec="seconds")
        result["device"] = LocalDevice().facts().model_dump()
        result["torch"], result["threads"] = torch.__version__, 1
        write_atomically(path, (json.dumps(result, indent=1) + "\n").encode())
        draw(result, given.out / "paper_rows.png")

    if "lenet" in given.rows:
        trials = result.setdefault("trials", [])
        for seed in given.seeds:
            if any(trial["seed"] == seed for trial in trials):
                continue
            trials.append(run(given.data, seed))
            result["settings"] = TASK.settings.model_dump()
            result["dense"] = [trial["dense"] for trial in trials]
            result["summary"] = summary(trials)
            save()
    if "resnet18" in given.rows:
        settings = RESNET18.settings.model_copy(update={"epochs": given.epochs})
        found = result.setdefault("resnet18", {"train": given.images, "settings": settings.model_dump()})
        images, epochs = found["train"], found["settings"]["epochs"]
        if (images, epochs) != (given.images, given.epochs):
            parser.error(f"{path} has rows of {images} images and {epochs} epochs: give another --out")
        task = dataclasses.replace(RESNET18, train=given.images, settings=settings)
        trial = Trial("cifar10", task, given.data, seed=0)
        ratios = found.setdefault("step_ratios", {"dense": 1.0})
        for way in given.ways:
            if way not in ratios:
                sampler = RESNET18_SAMPLERS[way]
                ratios[way] = trial.step_ratios({sampler: sampler})[sampler]
                save()
            if way not in found:
                found[way] = resnet18(trial, way, ratios[way], given.work)
                save()


if __name__ == "__main__":
    main()
