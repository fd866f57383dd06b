"""The solvers on tables with real staircases: how far from the optimum, and how long they take.

    python -m benchmarks.solver [--count 100]

Writes results/solver.json and .png. Layers are drawn, with their measured milliseconds at every measured rank,
from the tables in profiles/; the loss of a rank is generated: a random scale and decay a layer, with noise. In
"wrong steps" 8 to 20 % of the ranks are made slower than the next larger one, in "two budgets" multiply-
accumulates are a second budget, and "small" is small enough for every combination to be tried. A budget lies 15
to 85 % between the fastest plan and the one of least loss. The rival is a greedy solver that lowers one layer
by one rank at a time.

Gaps are shares of the optimum's rise of the loss above the least one possible. One thread, this machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.nested_accuracy import RESULTS
from maestro_edge.devices import LocalDevice
from maestro_edge.planning import Option, solve, solve_exactly
from maestro_edge.values import DENSE, LatencyTable, write_atomically

PROFILES = Path(__file__).parents[1] / "profiles"
KINDS = ("small", "real staircases", "wrong steps", "two budgets")
Layers = list[list[Option]]


def curves() -> list[list[tuple[float, float, float]]]:
    """Of every measured layer, for its ranks ascending and dense last: (share, ms, MACs).

    The share, which losses are generated from, is 1 for dense and 1 / 1.2 for the largest measured rank.
    """
    found = []
    for path in sorted(PROFILES.glob("*.json")):
        table = LatencyTable.load(path)
        for spec in dict.fromkeys(row.spec for row in table.rows):
            numbers = [int(rank) for rank in table.ranks(spec) if rank != DENSE]
            if len(numbers) < 3:
                continue
            full = max(numbers) * 1.2
            curve = [(r / full, table.row(spec, r).ms, float(spec.macs(r))) for r in sorted(numbers)]
            found.append([*curve, (1.0, table.row(spec, DENSE).ms, float(spec.macs(DENSE)))])
    return found


def network(
    kind: str, measured: Sequence[Sequence[tuple[float, float, float]]], rng: np.random.Generator
) -> Layers:
    """Layers drawn from the measured ones, options with (ms) or (ms, MACs), dense last."""
    layers = []
    for _ in range(6 if kind == "small" else int(rng.integers(8, 60))):
        curve = measured[int(rng.integers(len(measured)))]
        if kind == "small":
            curve = [*curve[: 5 if len(curve) > 6 else len(curve) - 1], curve[-1]]
        ms = np.array([point[1] for point in curve])
        if kind == "wrong steps":
            wrong = rng.random(len(ms) - 1) < rng.uniform(0.08, 0.2)
            ms[:-1] = np.where(wrong, ms[1:] * rng.uniform(1.02, 1.3, len(ms) - 1), ms[:-1])
        scale, decay = rng.lognormal(-3, 1), rng.uniform(2, 8)
        shares = np.array([point[0] for point in curve])
        losses = scale * np.exp(-decay * shares) * rng.lognormal(0, 0.1, len(ms))
        losses[-1] = 0.0
        costs = [
            (t, point[2]) if kind == "two budgets" else (t,) for t, point in zip(ms.tolist(), curve, strict=True)
        ]
        layers.append([Option(cost, float(loss)) for cost, loss in zip(costs, losses, strict=True)])
    return layers


def budgets(layers: Layers, rng: np.random.Generator) -> list[float]:
    share = rng.uniform(0.15, 0.85)
    found = []
    for index in range(len(layers[0][0].costs)):
        low = sum(min(option.costs[index] for option in options) for options in layers)
        high = sum(min(options, key=lambda option: (option.loss, option.costs)).costs[index] for options in layers)
        found.append(low + share * rng.uniform(0.9, 1.1) * (high - low))
    return found


def total(layers: Layers, chosen: Sequence[int], index: int) -> float:
    return sum(options[at].costs[index] for options, at in zip(layers, chosen, strict=True))


def one_rank_at_a_time(layers: Layers, limits: Sequence[float]) -> float | None:
    """Loss of the plan: while over budget, the layer whose next lower rank adds the least loss takes it."""
    chosen = [len(options) - 1 for options in layers]
    while any(total(layers, chosen, index) > limit for index, limit in enumerate(limits)):
        rises = [
            (options[at - 1].loss - options[at].loss, layer)
            for layer, (options, at) in enumerate(zip(layers, chosen, strict=True))
            if at > 0
        ]
        if not rises:
            return None
        chosen[min(rises)[1]] -= 1
    return sum(options[at].loss for options, at in zip(layers, chosen, strict=True))


def by_trying_all(layers: Layers, limits: Sequence[float]) -> float:
    every = itertools.product(*(range(len(options)) for options in layers))
    return min(
        sum(options[at].loss for options, at in zip(layers, chosen, strict=True))
        for chosen in every
        if all(total(layers, chosen, index) <= limit for index, limit in enumerate(limits))
    )


def timed(solver: Callable[..., Any], *given: Any) -> tuple[Any, float]:
    began = time.process_time()
    return solver(*given), time.process_time() - began


def run(kind: str, count: int) -> dict[str, Any]:
    """Gaps and processor seconds over `count` networks."""
    rng, measured = np.random.default_rng(KINDS.index(kind)), curves()
    gaps: list[float] = []
    rival: list[float] = []
    stuck = 0
    proven = 0
    seconds: dict[str, list[float]] = {"greedy": [], "exact": []}
    brute: list[float] = []
    while len(gaps) < count:
        layers = network(kind, measured, rng)
        limits = budgets(layers, rng)
        least = sum(min(option.loss for option in options) for options in layers)
        greedy, greedy_s = timed(solve, layers, limits)
        exact, exact_s = timed(solve_exactly, layers, limits)
        rise = exact.loss - least
        if rise < 1e-6:
            continue  # the budget binds nothing: no gap can be told
        gaps.append((greedy.loss - exact.loss) / rise)
        seconds["greedy"].append(greedy_s)
        seconds["exact"].append(exact_s)
        proven += exact.loss - exact.bound <= 1e-4 * rise
        stepwise = one_rank_at_a_time(layers, limits)
        if stepwise is None:
            stuck += 1
        else:
            rival.append((stepwise - exact.loss) / rise)
        if kind == "small":
            brute.append(abs(by_trying_all(layers, limits) - exact.loss))
    return {
        "kind": kind,
        "networks": count,
        "greedy": spread(gaps),
        "one rank at a time": {**spread(rival), "found none": stuck},
        "exact_proven": proven,
        "exact_against_all_combinations": max(brute) if brute else None,
        "seconds": {name: {"mean": statistics.mean(s), "worst": max(s)} for name, s in seconds.items()},
        "gaps": gaps,
        "rival_gaps": rival,
    }


def spread(gaps: Sequence[float]) -> dict[str, float]:
    if not gaps:
        return {}
    return {
        "mean": statistics.mean(gaps),
        "median": statistics.median(gaps),
        "worst": max(gaps),
    }


def large() -> list[dict[str, float]]:
    """1,000 layers of 64 random options at three budgets."""
    rng = np.random.default_rng(0)
    layers = []
    for _ in range(1000):
        ms, losses = np.sort(rng.lognormal(0, 1, 64)), np.sort(rng.lognormal(-3, 1, 64))[::-1]
        layers.append([Option((float(a),), float(b)) for a, b in zip(ms, losses, strict=True)])
    low = sum(options[0].costs[0] for options in layers)
    high = sum(options[-1].costs[0] for options in layers)
    lines = []
    for share in (0.1, 0.3, 0.6):
        limits = [low + share * (high - low)]
        greedy, greedy_s = timed(solve, layers, limits)
        exact, exact_s = timed(solve_exactly, layers, limits)
        gap = (greedy.loss - exact.loss) / exact.loss
        lines.append({"share": share, "greedy_s": greedy_s, "exact_s": exact_s, "gap": gap})
    return lines


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Sorted gaps, both greedy ways."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.8))
    for index, row in enumerate(rows):
        for key, style in (("gaps", "-"), ("rival_gaps", ":")):
            gaps = [max(100 * gap, 1e-3) for gap in sorted(row[key])]
            label = f"{row['kind']}, {'ours' if key == 'gaps' else 'one rank at a time'}"
            axes.plot(np.linspace(0, 100, len(gaps)), gaps, style, color=f"C{index}", label=label)
    axes.set_yscale("log")
    axes.set_xlabel("share of the networks, %")
    axes.set_ylabel("loss above the optimum, %")
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    rows = []
    for kind in KINDS:
        rows.append(run(kind, given.count))
        print(json.dumps({key: value for key, value in rows[-1].items() if "gaps" not in key}), flush=True)
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": LocalDevice().facts().model_dump(),
        "rows": rows,
        "large": large(),
    }
    print(json.dumps(result["large"]))
    write_atomically(given.out / "solver.json", (json.dumps(result, indent=1) + "\n").encode())
    draw(rows, given.out / "solver.png")


if __name__ == "__main__":
    main()
