"""Accuracy of one trained network at many sizes, without retraining: six ways to train it at equal cost.

    python benchmarks/nested_accuracy.py DATA_FOLDER [--tasks mnist fashion cifar10 multi30k] [--seeds 0 1 2]

Writes results/nested_accuracy.json and .png beside this file, after every (task, seed); what is there already is
kept. DATA_FOLDER holds mnist/, fashion-mnist/, cifar10-jpeg.tar and multi30k/. One thread. Cost is counted in
seconds of optimisation: each way's epochs follow from the measured time of its step over a dense step's. The test
split is only evaluated; learning rates and the default sampler were chosen on validation images of other runs.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from maestro_edge.devices import LocalDevice
from maestro_edge.ordered import cut, order, ordered_layers, trace
from maestro_edge.planning import chain, measure_sensitivity
from maestro_edge.recipes import data as datasets
from maestro_edge.recipes.models import load_model
from maestro_edge.recipes.multi30k import trimmed
from maestro_edge.recipes.run import augment
from maestro_edge.training import (
    AlternatingSampler,
    ChainSampler,
    Sampler,
    TrainSet,
    TrainSettings,
    evaluate,
    recalibrate,
    train,
)
from maestro_edge.training.settings import split
from maestro_edge.values import Network, Rank, Sensitivity, write_atomically

RESULTS = Path(__file__).parent / "results"
SHARES = (1.0, 0.75, 0.5, 0.25, 0.125)
SENSITIVITY_SHARES = (0.06, 0.12, 0.25, 0.4, 0.6, 0.8)
DENSE_SHARE = 0.6
"""Share of the cost that is dense training, for the ways that begin with it."""


@dataclasses.dataclass(frozen=True)
class Task:
    """What is trained, for the cost of how many dense epochs, and on how much of the data."""

    model: str
    source: str
    settings: TrainSettings
    train: int
    test: int = 3000
    sensitivity: int = 512


TASKS = {
    "mnist": Task(
        "maestro_edge.recipes.vision:lenet",
        "mnist:{}/mnist",
        TrainSettings(epochs=10, batch_size=128, lr=0.05, weight_decay=1e-4),
        train=10_000,
    ),
    "fashion": Task(
        "maestro_edge.recipes.vision:small_cnn",
        "fashion-mnist:{}/fashion-mnist",
        TrainSettings(epochs=10, batch_size=128, lr=0.1),
        train=10_000,
    ),
    "cifar10": Task(
        "maestro_edge.recipes.vision:small_cnn",
        "cifar10:{}/cifar10-jpeg.tar",
        TrainSettings(epochs=10, batch_size=128, lr=0.1),
        train=10_000,
    ),
    "cifar10-resnet20": Task(
        "maestro_edge.recipes.vision:resnet20",
        "cifar10:{}/cifar10-jpeg.tar",
        TrainSettings(epochs=10, batch_size=128, lr=0.2),
        train=10_000,
        test=2000,
        sensitivity=128,
    ),
    "multi30k": Task(
        "maestro_edge.recipes.translation:small_transformer",
        "multi30k:{}/multi30k",
        TrainSettings(epochs=6, batch_size=64, optimizer="adamw", lr=2e-3, weight_decay=1e-2, warmup_epochs=0.5),
        train=6_000,
        test=500,
        sensitivity=64,
    ),
}

WAYS = (
    "dense + SVD",
    "dense + whitened SVD",
    "Maestro's pairs",
    "FlexRank-like chain",
    "alternating",
    "alternating + chain",
)
OURS = WAYS[4:]


class Trial:
    """One task with one seed: the data, and what the five ways share."""

    def __init__(self, name: str, task: Task, folder: Path, seed: int) -> None:
        self.name, self.task, self.seed = name, task, seed
        self.data = datasets.load(task.source.format(folder), seed=0)
        self.settings = task.settings.model_copy(update={"seed": seed})
        chosen = torch.randperm(len(self.data.train), generator=torch.Generator().manual_seed(0))[: task.train]
        inputs = self.data.train.inputs
        shift = None if self.data.is_text else max(1, inputs.shape[-1] // 10)
        self.train_set = TrainSet(
            name=name,
            inputs=inputs[chosen],
            targets=self.data.train.targets[chosen],
            prepare=self.data.normalise,
            augment=None
            if shift is None or name in ("mnist", "fashion")
            else lambda images, generator: augment(images, generator, shift=shift, flip=self.data.flip),
            trim=trimmed if self.data.is_text else None,
        )
        size = self.settings.batch_size
        self.calibration = [self._prepared(slice(i * size, (i + 1) * size)) for i in range(8)]

    def _prepared(self, chosen: slice) -> torch.Tensor:
        return self.data.normalise(self.train_set.batch(torch.arange(chosen.start, chosen.stop))[0])

    def new_model(self) -> nn.Module:
        torch.manual_seed(self.seed)
        channels = 1 if self.data.is_text else self.data.train.inputs.shape[1]
        return load_model(self.task.model, channels=channels, classes=len(self.data.labels))

    def network(self, model: nn.Module) -> Network:
        return trace(model, (self.calibration[0][:1],), name=self.name)

    def train(
        self,
        model: nn.Module,
        settings: TrainSettings,
        sampler: Sampler | None = None,
        *,
        folder: Path | None = None,
    ) -> tuple[nn.Module, float]:
        """The trained model, and the seconds of processor time that it took: one thread, whatever else runs.

        With a folder it is checkpointed and goes on there; the seconds are then those of this process.
        """
        began = time.process_time()
        model, _ = train(model, self.train_set, settings, sampler=sampler, folder=folder, rebuild=self.new_model)
        return model.eval(), time.process_time() - began

    def sensitivity(self, model: nn.Module, *, on_train: bool) -> Sensitivity:
        """Of validation inputs; of training inputs where it decides how to train."""
        held, count = self.data.validation, self.task.sensitivity
        inputs = (self.train_set.inputs if on_train else held.inputs)[torch.arange(count)]
        targets = (self.train_set.targets if on_train else held.targets)[:count]
        if self.data.is_text:
            inputs, targets = trimmed(inputs, targets)
        ranks = {
            name: sorted({max(1, round(share * layer.rank)) for share in SENSITIVITY_SHARES})
            for name, layer in ordered_layers(model).items()
        }
        return measure_sensitivity(
            model,
            self.network(model),
            [],
            self.data.normalise(inputs),
            targets,
            ranks=ranks,
        )

    def step_ratios(self, samplers: Mapping[str, Sampler | str]) -> dict[str, float]:
        """Processor time of sixteen steps over that of dense ones; interleaved, medians."""
        times: dict[str, list[float]] = {name: [] for name in ("dense", *samplers)}
        short = dataclasses.replace(
            self.train_set,
            inputs=self.train_set.inputs[torch.arange(16 * self.settings.batch_size)],
            targets=self.train_set.targets[: 16 * self.settings.batch_size],
        )
        one = self.settings.model_copy(update={"epochs": 1, "warmup_epochs": 0.0})
        for _ in range(3):
            for name in times:
                model = self.new_model()
                sampler = None if name == "dense" else samplers[name]
                model = model if sampler is None else order(model.eval())
                settings = one.model_copy(update={"sampler": sampler}) if isinstance(sampler, str) else one
                began = time.process_time()
                train(model, short, settings, sampler=None if isinstance(sampler, str) else sampler)
                times[name].append(time.process_time() - began)
        dense = statistics.median(times["dense"][1:])
        return {name: statistics.median(found[1:]) / dense for name, found in times.items() if name != "dense"}

    def score(self, ordered: nn.Module, ranks: Mapping[str, Rank]) -> float:
        """Test top-1 in per cent, or perplexity, of the cut network with its BatchNorm recalibrated."""
        small = recalibrate(cut(ordered, ranks), self.calibration)
        test = self.data.test
        count = min(self.task.test, len(test))
        inputs, targets = test.inputs[torch.arange(count)], test.targets[:count]
        if self.data.is_text:
            inputs, targets = trimmed(inputs, targets)
        found = evaluate(small, inputs, targets, self.data.normalise, size=100)
        return round(found.perplexity if self.data.is_text else 100 * found.top1, 2)

    def scores(self, ordered: nn.Module) -> dict[str, list[float]]:
        """At each share of the ranks, and of the multiply-accumulates under a greedy plan."""
        layers = ordered_layers(ordered)
        by_rank = [
            self.score(ordered, {name: max(1, round(share * layer.rank)) for name, layer in layers.items()})
            for share in SHARES
        ]
        plans = self.plans(ordered, SHARES)
        dense = self.network(ordered)
        by_macs = [self.score(ordered, plan) for plan in plans]
        reached = [round(dense.macs(plan) / dense.macs({}), 3) for plan in plans]
        return {"ranks": by_rank, "macs": by_macs, "macs_reached": reached}

    def plans(self, ordered: nn.Module, shares: Sequence[float]) -> list[Mapping[str, Rank]]:
        """For each share of the dense multiply-accumulates: a greedy plan from validation images."""
        network = self.network(ordered)
        profiles = [{}, *chain(network, self.sensitivity(ordered, on_train=False), profiles=400)]
        dense = network.macs({})

        def largest(share: float) -> Mapping[str, Rank]:
            fitting = (profile for profile in profiles if network.macs(profile) <= share * dense * 1.005)
            return next(fitting, profiles[-1])

        return [largest(share) for share in shares]

    def run(self) -> dict[str, Any]:
        """Scores and cost of every way."""
        epochs = self.settings.epochs
        samplers: dict[str, Sampler | str] = {"pairs": "pairs", "alternating": "alternating"}
        ratios = self.step_ratios(samplers)
        found: dict[str, Any] = {}

        dense, dense_s = self.train(self.new_model(), self.settings)
        for way, batches in zip(WAYS[:2], (None, self.calibration), strict=True):
            found[way] = {"seconds": dense_s, **self.scores(order(dense, calibration=batches))}

        pairs = self.settings.model_copy(
            update={"sampler": "pairs", "epochs": max(1, round(epochs / ratios["pairs"]))}
        )
        model, seconds = self.train(order(self.new_model().eval()), pairs)
        found[WAYS[2]] = {"seconds": seconds, "epochs": pairs.epochs, **self.scores(model)}

        whole = self.settings.model_copy(update={"dense_share": DENSE_SHARE})
        first, second = split(whole) or (whole, whole)
        warm, warm_s = self.train(self.new_model(), first)
        start = order(warm, calibration=self.calibration)

        began = time.process_time()
        sensitivity = self.sensitivity(start, on_train=True)
        profiles = chain(self.network(start), sensitivity, profiles=8)
        chain_s = time.process_time() - began
        ratios["chain"] = self.step_ratios({"chain": ChainSampler(profiles)})["chain"]
        left = epochs - first.epochs
        for way, sampler, ratio, spent in (
            (WAYS[3], ChainSampler(profiles), ratios["chain"], chain_s),
            (WAYS[4], None, ratios["alternating"], 0.0),
            (WAYS[5], AlternatingSampler(profiles=profiles), ratios["alternating"], chain_s),
        ):
            settings = second.model_copy(update={"epochs": max(1, round(left / ratio))})
            model, seconds = self.train(copy.deepcopy(start), settings, sampler)
            found[way] = {
                "seconds": warm_s + spent + seconds,
                "epochs": [first.epochs, settings.epochs],
                **self.scores(model),
            }
        device = LocalDevice().facts().name
        return {"task": self.name, "seed": self.seed, "device": device, "step_ratios": ratios, "ways": found}


def summary(trials: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and sample standard deviation over the seeds, for each task and way."""
    result: dict[str, Any] = {}
    for task in dict.fromkeys(trial["task"] for trial in trials):
        mine = [trial["ways"] for trial in trials if trial["task"] == task]
        result[task] = {"seeds": len(mine)}
        for way in WAYS:
            rows = [ways[way] for ways in mine]
            line: dict[str, Any] = {}
            for kind in ("ranks", "macs"):
                columns = list(zip(*(row[kind] for row in rows), strict=True))
                line[kind] = [round(statistics.mean(column), 2) for column in columns]
                line[f"{kind}_sd"] = [
                    round(statistics.stdev(column), 2) if len(column) > 1 else None for column in columns
                ]
            result[task][way] = line
    return result


def draw(result: Mapping[str, Any], path: Path) -> None:
    """One panel a task: score against the share of the multiply-accumulates."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(result), figsize=(4.2 * len(result), 3.8), squeeze=False)
    for panel, (task, lines) in zip(panels[0], result.items(), strict=True):
        for way in WAYS:
            sd = [0.0 if value is None else value for value in lines[way]["macs_sd"]]
            width = 2.2 if way in OURS else 1.2
            panel.errorbar(SHARES, lines[way]["macs"], sd, label=way, marker="o", markersize=3, linewidth=width)
        panel.set_title(f"{task}, {lines['seeds']} seeds")
        panel.set_xscale("log", base=2)
        panel.set_xticks(SHARES, ["1", "3/4", "1/2", "1/4", "1/8"])
        panel.set_xlabel("share of the dense MACs")
        if task == "multi30k":  # the paper's sampler goes to thousands; what differs elsewhere shall be seen
            panel.set_ylim(0.9 * min(lines[way]["macs"][0] for way in WAYS), 60)
        panel.set_ylabel("test perplexity" if task == "multi30k" else "test top-1 %")
        panel.grid(alpha=0.3)
    panels[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    path = given.out / "nested_accuracy.json"
    trials: list[dict[str, Any]] = json.loads(path.read_text())["trials"] if path.exists() else []
    for seed in given.seeds:
        for name in given.tasks:
            if any(trial["task"] == name and trial["seed"] == seed for trial in trials):
                continue
            print(name, seed, flush=True)
            trials.append(Trial(name, TASKS[name], given.data, seed).run())
            result = {
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "device": LocalDevice().facts().model_dump(),
                "torch": torch.__version__,
                "threads": 1,
                "shares": SHARES,
                "settings": {
                    task: {"model": TASKS[task].model, **TASKS[task].settings.model_dump()} for task in TASKS
                },
                "summary": summary(trials),
                "trials": trials,
            }
            write_atomically(path, (json.dumps(result, indent=1) + "\n").encode())
            draw(summary(trials), given.out / "nested_accuracy.png")
            print(json.dumps(trials[-1], indent=None), flush=True)


if __name__ == "__main__":
    main()
