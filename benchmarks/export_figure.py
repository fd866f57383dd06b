"""The figure of exports.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.export_cost import MOST_MIB, MOST_SECONDS
from maestro_edge.runtimes import RUNTIMES

MARKERS = {"dense": "s", "plan": "o", "entry": "x"}
MOST_BYTES, MOST_TIME = 1.02, 1.05
"""What an elastic file should have at most of its largest plan alone, and an entry take of its plan alone."""


def draw(cases: Sequence[Mapping[str, Any]], costs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A panel a case, accuracy against p50 and bytes as area; then elastic files and exports beside their aims."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    networks, places = ([*dict.fromkeys(case[key] for case in cases)] for key in ("network", "on"))
    figure = pyplot.figure(figsize=(4.2 * max(2, len(places)), 3.4 * (len(networks) + 1)))
    grid = figure.add_gridspec(len(networks) + 1, 2 * max(2, len(places)))
    for case in cases:
        row, column = networks.index(case["network"]), places.index(case["on"])
        _draw_case(figure.add_subplot(grid[row, 2 * column : 2 * column + 2]), case)
    half = max(2, len(places))
    _draw_elastic(figure.add_subplot(grid[-1, :half]), cases)
    known = [row for row in costs if "export_s" in row]
    if known:
        _draw_costs(figure.add_subplot(grid[-1, half:]), known)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _draw_case(panel: Any, case: Mapping[str, Any]) -> None:
    largest = max(row["size_bytes"] for row in case["candidates"])
    for precision in dict.fromkeys(row["precision"] for row in case["candidates"]):
        for kind, marker in MARKERS.items():
            rows = [row for row in case["candidates"] if (row["kind"], row["precision"]) == (kind, precision)]
            if rows:
                panel.scatter(
                    [row["p50_ms"] for row in rows],
                    [row["top1"] for row in rows],
                    [20 + 100 * row["size_bytes"] / largest for row in rows],
                    "C0" if precision == "fp32" else "C1",
                    marker,
                    alpha=0.7,
                    label=f"{kind}, {precision}",
                )
    panel.set(title=f"{case['network']}, {case['on']}", xlabel="p50 in ms", ylabel="test top-1 %")
    panel.set_xlim(left=0)
    panel.grid(alpha=0.3)
    panel.legend(fontsize=7)


def _draw_elastic(panel: Any, cases: Sequence[Mapping[str, Any]]) -> None:
    found = [
        (f"{case['network']}\n{case['on']}", case["elastic"]) for case in cases if case["elastic"] is not None
    ]
    for place, (_, each) in enumerate(found):
        ratios = [*each["p50_over_alone"].values()]
        panel.plot([place] * len(ratios), ratios, "x", color="C0", label=None if place else "p50, each entry")
        panel.plot(place, each["over_the_largest_alone"], "o", color="C2", label=None if place else "bytes")
    panel.axhline(MOST_TIME, color="C0", lw=1, ls="--")
    panel.axhline(MOST_BYTES, color="C2", lw=1, ls="--")
    panel.set_xticks(range(len(found)), [name for name, _ in found], fontsize=6)
    panel.set(title="elastic file over its parts alone (dashed: aims)", ylabel="ratio")
    panel.legend(fontsize=7)


def _draw_costs(panel: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    for number, network in enumerate(dict.fromkeys(row["network"] for row in rows)):
        for runtime, marker in zip(RUNTIMES, "osx^", strict=True):
            own = [row for row in rows if (row["network"], row["runtime"]) == (network, runtime)]
            points = [(row["export_s"], row["peak_mib"]) for row in own]
            if points:
                panel.plot(*zip(*points, strict=True), marker, color=f"C{number}", label=f"{network}, {runtime}")
    panel.axvline(MOST_SECONDS, color="0.4", lw=1, ls="--")
    panel.axhline(MOST_MIB, color="0.4", lw=1, ls="--")
    panel.set(title="each export in a fresh process", xlabel="seconds of the call", ylabel="peak MiB")
    panel.set(xlim=(0, None), ylim=(0, None))
    panel.legend(fontsize=6, loc="lower right", ncols=2)
