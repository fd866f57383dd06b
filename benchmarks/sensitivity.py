"""What the sensitivities of all options of a network cost, and how far those that stop early are from all inputs.

    python -m benchmarks.sensitivity CIFAR10 WEIGHTS_FOLDER [--networks resnet20 resnet18] [--inputs 2048]
        [--ranks 12] [--all-inputs resnet20] [--tolerances 0.1] [--threads 1]

Writes results/sensitivity.json and .png beside this file, after every measurement; what is there
already is kept. CIFAR10 is a tar or folder of CIFAR-10. A network whose NAME.safetensors is not in
WEIGHTS_FOLDER is first trained there: ResNet-18 for 3 epochs of 5,000 images, ResNet-20 for 2.
Every Linear and Conv2d is ordered from the plain SVD, and has --ranks ranks spread evenly up to break-even (as
many as there are below it). Validation images.

    plain        whole forwards, one option after another; one rank of each layer on 64 inputs, extrapolated
    all inputs   from remembered prefixes, tolerance 0
    adaptive     the same, each option until it is settled

Deviations are those of the loss increases of adaptive from all inputs, in its own standard errors, over the
options that did not use all inputs. Interactions: rank assignments of chain() from the adaptive table, measured
whole on 512 inputs beside the sum of the layers' increases; corrected from every other one, tried on those
between. Then plans from the corrected table against those from the first, at equal multiply-accumulates.

Seconds are of the process's own time (CPU) and of the clock (wall): other work ran on the machine, as the load
(runnable processes) says.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.nested_accuracy import RESULTS
from maestro_edge.devices import LocalDevice
from maestro_edge.ordered import at_ranks, order, trace
from maestro_edge.planning import chain, corrected, measure_interaction, measure_sensitivity
from maestro_edge.recipes import data as datasets
from maestro_edge.recipes.run import augment
from maestro_edge.recipes.vision import resnet18, resnet20
from maestro_edge.training import TrainSet, TrainSettings, evaluate, train
from maestro_edge.values import Network, Sensitivity, write_atomically

NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, TrainSettings]] = {
    "resnet20": (resnet20, 5_000, TrainSettings(epochs=2, batch_size=128, lr=0.2)),
    "resnet18": (resnet18, 5_000, TrainSettings(epochs=3, batch_size=128, lr=0.1)),
}
PLAIN_INPUTS = 64
PLAN_SHARES = (0.75, 0.6, 0.45, 0.3)


def trained(name: str, data: datasets.Data, weights: Path) -> nn.Module:
    """The network with the weights of the file, which is made where there is none."""
    make, images, settings = NETWORKS[name]
    torch.manual_seed(0)
    model = make()
    if not weights.exists():
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        chosen = torch.arange(images)
        train_set = TrainSet(
            name="cifar10",
            inputs=data.train.inputs[chosen],
            targets=data.train.targets[chosen],
            prepare=data.normalise,
            augment=lambda batch, generator: augment(batch, generator, shift=3, flip=True),
        )
        model, _ = train(model, train_set, settings)
        weights.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, weights)
    model.load_state_dict(load_file(weights))
    return model.eval()


def ranks_of(network: Network, count: int) -> dict[str, list[int]]:
    """So many of each layer, spread evenly up to break-even."""
    return {
        layer.name: sorted(
            {max(1, int(layer.spec.break_even_rank * k / count)) for k in range(1, count + 1)}
            - {layer.spec.full_rank}
        )
        for layer in network.ordered
    }


class Clock:
    """Seconds since it was made, by the clock and of this process."""

    def __init__(self) -> None:
        self.wall, self.cpu, self.load = time.perf_counter(), time.process_time(), os.getloadavg()[0]

    def read(self) -> dict[str, float]:
        return {
            "wall_s": round(time.perf_counter() - self.wall, 1),
            "cpu_s": round(time.process_time() - self.cpu, 1),
            "load": round((self.load + os.getloadavg()[0]) / 2, 1),
        }


@torch.no_grad()
def plain(model: nn.Module, ranks: dict[str, list[int]], inputs: Tensor, count: int) -> dict[str, Any]:
    """Seconds of one whole forward for each option and the uncut network on `count` inputs, extrapolated."""
    few = inputs[:PLAIN_INPUTS]
    model(few)
    clock = Clock()
    for layer, known in ranks.items():
        with at_ranks(model, {layer: known[len(known) // 2]}):
            model(few)
    found = clock.read()
    runs = 1 + sum(map(len, ranks.values()))
    factor = runs / len(ranks) * count / PLAIN_INPUTS
    return {
        **found,
        "extrapolated_cpu_s": round(found["cpu_s"] * factor),
        "extrapolated_from": f"{len(ranks)} options on {PLAIN_INPUTS} inputs",
    }


def summary(found: Sensitivity) -> dict[str, Any]:
    """How many inputs the options took."""
    n = [cut.n for cuts in found.options.values() for cut in cuts.values()]
    return {
        "options": len(n),
        "base_loss": round(found.base_loss, 4),
        "base_top1": round(found.base_top1, 4),
        "inputs": {"mean": round(statistics.mean(n)), "median": statistics.median(n), "most": max(n)},
        "settled_in_two_chunks": sum(each <= 128 for each in n),
    }


def deviations(few: Sensitivity, whole: Sensitivity) -> dict[str, Any]:
    """Of the options that did not use all inputs; the last is in units of the uncut loss."""
    errors, absolute = [], []
    for layer, cuts in few.options.items():
        for rank, cut in cuts.items():
            late = whole.option(layer, rank)
            absolute.append(abs(cut.loss_increase - late.loss_increase) / whole.base_loss)
            if cut.n < late.n:
                errors.append(abs(cut.loss_increase - late.loss_increase) / cut.loss_se)
    return {
        "compared": len(errors),
        "median_in_se": round(statistics.median(errors), 2),
        "largest_in_se": round(max(errors), 2),
        "within_two_se": round(sum(each <= 2 for each in errors) / len(errors), 3),
        "median_share_of_base_loss": round(statistics.median(absolute), 4),
    }


def interactions(model: nn.Module, network: Network, found: Sensitivity, inputs: Tensor, targets: Tensor) -> Any:
    """How wrong sums are, before and after a correction, and what a second plan gains."""
    assignments = chain(network, found, profiles=6)
    measured = [measure_interaction(model, found, ranks, inputs, targets) for ranks in assignments]
    known = corrected(found, [(each.ranks, each.measured.loss_increase) for each in measured[::2]])
    rows = [
        {
            "macs": round(network.macs(each.ranks) / network.macs({}), 3),
            "measured": round(each.measured.loss_increase, 4),
            "measured_se": round(each.measured.loss_se, 4),
            "sum": round(each.additive, 4),
            "corrected": round(sum(known.increase(*option) for option in each.ranks.items()), 4),
            "corrected_on_it": index % 2 == 0,
        }
        for index, each in enumerate(measured)
    ]
    plans = []
    for share in PLAN_SHARES:
        row: dict[str, float] = {}
        for way, table in (("first", found), ("second", known)):
            profiles = chain(network, table, profiles=400)
            fitting = [ranks for ranks in profiles if network.macs(ranks) <= share * network.macs({})]
            ranks = fitting[0] if fitting else profiles[-1]
            row[f"{way}_macs"] = round(network.macs(ranks) / network.macs({}), 3)
            increase = measure_interaction(model, found, ranks, inputs, targets).measured
            row[f"{way}_increase"], row[f"{way}_se"] = round(increase.loss_increase, 4), round(increase.loss_se, 4)
        plans.append(row)
    return {"inputs": len(targets), "assignments": rows, "plans": plans}


def draw(found: Sensitivity, whole: Sensitivity, path: Path) -> None:
    """Loss increases at the share of the break-even rank, with two standard errors, of six layers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.2))
    names = list(found.options)
    for number, name in enumerate(names[:: max(1, len(names) // 5)]):
        ranks = sorted(found.options[name])
        cuts = [found.options[name][rank] for rank in ranks]
        shares = [rank / ranks[-1] for rank in ranks]
        bars = [2 * cut.loss_se for cut in cuts]
        axes.errorbar(shares, [cut.loss_increase for cut in cuts], bars, label=name, color=f"C{number}", capsize=2)
        axes.plot(shares, [whole.increase(name, rank) for rank in ranks], "x", color=f"C{number}")
    axes.set_xlabel("rank as a share of the largest evaluated")
    axes.set_ylabel("loss increase ± 2 standard errors (×: all inputs)")
    axes.set_yscale("symlog", linthresh=0.01)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--ranks", type=int, default=12, help="of each layer")
    parser.add_argument("--inputs", type=int, default=2048)
    parser.add_argument("--all-inputs", nargs="*", default=["resnet20"], choices=list(NETWORKS))
    parser.add_argument("--tolerances", nargs="+", type=float, default=[0.1])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    path = given.out / "sensitivity.json"
    networks: dict[str, Any] = json.loads(path.read_text())["networks"] if path.exists() else {}
    data = datasets.load(f"cifar10:{given.data}", seed=0)
    inputs = data.normalise(data.validation.inputs[torch.arange(given.inputs)])
    targets = data.validation.targets[: given.inputs]

    def keep(name: str, key: str, value: object) -> None:
        networks[name][key] = value
        result = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "torch": torch.__version__,
            "networks": networks,
        }
        write_atomically(path, (json.dumps(result, indent=1) + "\n").encode())
        print(name, key, json.dumps(value), flush=True)

    for name in given.networks:
        have = networks.setdefault(name, {"device": LocalDevice().facts().model_dump()})
        dense = trained(name, data, given.weights / f"{name}.safetensors")
        model = order(dense, where=lambda layer, module: True)
        network = trace(model, (inputs[:1],))
        ranks = ranks_of(network, given.ranks)
        setting = {"inputs": given.inputs, "threads": given.threads, "layers": len(ranks)}
        if "plain" not in have:
            keep(name, "dense", evaluate(dense, inputs[:512], targets[:512], lambda x: x)._asdict())
            keep(name, "plain", {**setting, **plain(model, ranks, inputs, given.inputs)})

        def measured(
            name: str, key: str, tolerance: float, of: tuple[nn.Module, Network, dict[str, list[int]]]
        ) -> Sensitivity:
            kept = given.weights / f"{name}-{given.inputs}-{given.ranks}-{tolerance:g}.json"
            if kept.exists():
                return Sensitivity.load(kept)
            clock = Clock()
            found = measure_sensitivity(of[0], of[1], [], inputs, targets, ranks=of[2], tolerance=tolerance)
            found.save(kept)
            about = {
                "given_inputs": given.inputs,
                "ranks_a_layer": given.ranks,
                "threads": given.threads,
                "tolerance": tolerance,
            }
            keep(name, key, {**about, **clock.read(), **summary(found)})
            return found

        parts = (model, network, ranks)
        few = {each: measured(name, f"adaptive {each:g}", each, parts) for each in given.tolerances}
        whole = measured(name, "all inputs", 0.0, parts) if name in given.all_inputs else None
        for tolerance, found in few.items():
            if whole is not None:
                keep(name, f"deviations {tolerance:g}", deviations(found, whole))
        if "interactions" not in have:
            first = few[given.tolerances[0]]
            keep(name, "interactions", interactions(model, network, first, inputs[:512], targets[:512]))
        if whole is not None:
            draw(few[given.tolerances[0]], whole, given.out / "sensitivity.png")


if __name__ == "__main__":
    main()
