"""What a training step costs against a dense step: samplers, penalty, shrinking, memory.

    python -m benchmarks.training_cost [--rounds 8]

Writes results/training_cost.json and .png beside this file. One thread, bf16 autocast and channels_last, as in
train(). Inputs are random: cost does not depend on them. Every round runs all cases in random order, each for four
steps (one turn of the default sampler) on the same start; ratios are to the dense steps of the same round. Peak
memory is the resident set's high-water mark of a process of its own, beside that of one that only imports.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.nested_accuracy import RESULTS
from maestro_edge.devices import LocalDevice
from maestro_edge.ordered import order, ordered_layers, trace
from maestro_edge.planning import chain
from maestro_edge.recipes.vision import resnet18, resnet20
from maestro_edge.training import ChainSampler, Ordering
from maestro_edge.training.samplers import SamplerName
from maestro_edge.values import Cut, Network, Sensitivity, write_atomically

NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet20": (resnet20, 128),
    "resnet18": (resnet18, 128),
}
SAMPLERS: tuple[SamplerName, ...] = ("alternating", "sandwich", "shared", "independent", "pairs")
STEPS = 4


class Case:
    """A network that is trained on one random batch, dense (no sampler) or ordered."""

    def __init__(self, model: nn.Module, batch: int, sampler: Any, penalty: float = 0.0) -> None:
        self.model = model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(batch, 3, 32, 32, generator=generator)
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.targets = torch.randint(10, (batch,), generator=generator)
        self.ordering = (
            None if sampler is None else Ordering(self.model, self.optimizer, sampler=sampler, penalty=penalty)
        )
        self.update_s = 0.0

    def step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        if self.ordering is None:
            self._loss(self._forward()).backward()  # type: ignore[no-untyped-call]
        else:
            self.ordering.backward(self._forward, self._loss)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        began = time.perf_counter()
        if self.ordering is not None:
            self.ordering.update()
        self.update_s += time.perf_counter() - began

    def _forward(self) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits: Tensor = self.model(self.images)
        return logits.float()

    def _loss(self, logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, self.targets)

    def seconds(self) -> tuple[float, float]:
        """Of one step, and of the update() in it, on average over a turn of the sampler."""
        self.update_s, began = 0.0, time.perf_counter()
        for _ in range(STEPS):
            self.step()
        return (time.perf_counter() - began) / STEPS, self.update_s / STEPS


def halved(model: nn.Module) -> nn.Module:
    """The ordered model with all layers at the largest common share of their ranks that halves the MACs."""
    network = _network(model)
    full = {name: layer.rank for name, layer in ordered_layers(model).items()}
    fitting = (
        ranks
        for percent in range(99, 0, -1)
        if network.macs(ranks := {name: max(1, rank * percent // 100) for name, rank in full.items()})
        <= network.macs({}) / 2
    )
    for name, rank in next(fitting).items():
        ordered_layers(model)[name].keep(rank)
    return model


def profiles(model: nn.Module) -> ChainSampler:
    """A chain for its cost alone: every layer loses in proportion to what it gives up."""
    network = _network(model)
    options = {
        name: {
            max(1, layer.rank * tenth // 10): Cut(
                loss_increase=1.0 - tenth / 10, loss_se=0.0, top1_drop=0.0, top1_se=0.0, n=1
            )
            for tenth in range(1, 9)
        }
        for name, layer in ordered_layers(model).items()
    }
    made = Sensitivity(network=network.fingerprint, images=1, base_loss=0, base_top1=1, n=1, options=options)
    return ChainSampler(chain(network, made))


def _network(model: nn.Module) -> Network:
    return trace(model, (torch.zeros(1, 3, 32, 32),))


def cases(name: str) -> dict[str, Case]:
    """All that is compared on a network."""
    make, batch = NETWORKS[name]
    torch.manual_seed(0)
    dense = make()
    ordered = order(dense.eval())
    made = {"dense": Case(make(), batch, None)}
    for sampler in SAMPLERS:
        made[sampler] = Case(order(dense), batch, sampler)
    made["chain"] = Case(order(dense), batch, profiles(ordered))
    made["full ranks only"] = Case(order(dense), batch, _Full())
    made["alternating, penalty"] = Case(order(dense), batch, "alternating", penalty=1e-6)
    for sampler in ("alternating", "sandwich"):
        made[f"{sampler}, half the MACs"] = Case(halved(order(dense)), batch, sampler)
    return made


class _Full:
    """Only full ranks: what the factors cost by themselves."""

    @property
    def state(self) -> list[int]:
        return []

    def draw(self, full: Any, generator: torch.Generator) -> Any:
        return ({},)

    def restore(self, state: list[int]) -> None:
        del state


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Median ratios to a dense step with their interquartile ranges, and the penalty's share of a step."""
    made = cases(name)
    ratios: dict[str, list[float]] = {case: [] for case in made}
    shares: list[float] = []
    dense_s: list[float] = []
    shuffled = random.Random(0)
    for case in made.values():
        case.seconds()
    for _ in range(rounds):
        names = list(made)
        shuffled.shuffle(names)
        times = {key: made[key].seconds() for key in names}
        dense_s.append(times["dense"][0])
        for key, (seconds, update_s) in times.items():
            ratios[key].append(seconds / times["dense"][0])
            if key == "alternating, penalty":
                shares.append(update_s / seconds)
    rows = {}
    for key, found in ratios.items():
        low, middle, high = statistics.quantiles(found, n=4, method="inclusive")
        rows[key] = {"ratio": round(middle, 3), "iqr": round(high - low, 3)}
    return {
        "batch": NETWORKS[name][1],
        "dense_step_s": round(statistics.median(dense_s), 4),
        "rounds": rounds,
        "steps": rows,
        "penalty_share_of_step": round(statistics.median(shares), 4),
    }


def peak_mib(name: str, case: str) -> float:
    """Of a process that runs four steps of one case; of none when it is `imports`."""
    command = [sys.executable, "-m", "benchmarks.training_cost", "--peak", name, case]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def _print_peak(name: str, case: str) -> None:
    if case != "imports":
        make, batch = NETWORKS[name]
        Case(
            make() if case == "dense" else order(make().eval()), batch, None if case == "dense" else case
        ).seconds()
    # Not getrusage's ru_maxrss: a process inherits that of the one that started it.
    lines = Path("/proc/self/status").read_text().splitlines()
    print(int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024)


def draw(results: dict[str, Any], path: Path) -> None:
    """A bar a case."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(results), figsize=(5.2 * len(results), 3.8), sharey=True)
    for panel, (name, found) in zip(panels, results.items(), strict=True):
        rows = found["steps"]
        panel.barh(
            list(rows), [row["ratio"] for row in rows.values()], xerr=[row["iqr"] / 2 for row in rows.values()]
        )
        panel.axvline(1, color="black", linewidth=1)
        panel.set_title(f"{name}, batch {found['batch']}")
        panel.set_xlabel("seconds of a step / dense step")
    panels[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--peak", nargs=2, metavar=("NETWORK", "CASE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.peak:
        _print_peak(*given.peak)
        return
    results = {name: measure(name, given.rounds) for name in NETWORKS}
    for name, found in results.items():
        found["peak_mib"] = {
            case: round(peak_mib(name, case)) for case in ("imports", "dense", "alternating", "sandwich")
        }
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": LocalDevice().facts().model_dump(),
        "torch": torch.__version__,
        "threads": 1,
        "networks": results,
    }
    write_atomically(given.out / "training_cost.json", (json.dumps(result, indent=1) + "\n").encode())
    draw(results, given.out / "training_cost.png")
    for name, found in results.items():
        steps = found["steps"]
        before, after = steps["alternating"]["ratio"], steps["alternating, half the MACs"]["ratio"]
        print(
            f"{name}: default {before} x dense (must be <= 1.5), at half the MACs {after} (must be < 1), penalty "
            f"{100 * found['penalty_share_of_step']:.1f} % of a step (must be <= 3), peak MiB {found['peak_mib']}"
        )


if __name__ == "__main__":
    main()
