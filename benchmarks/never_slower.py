"""A replay: is any layer of any plan slower than the dense layer that it stands for, when both are measured again?

    python -m benchmarks.never_slower FOLDER… [--out FOLDER]

FOLDER/plans holds plans: a run's folder, or one of .cache/closed_loop/plans/ of `benchmarks.closed_loop`. Every
distinct (layer shape, rank) that a plan chose is written as a file of one layer beside its dense layer, and both
are timed anew, interleaved, on one thread; nothing of the table that chose is used. Writes
results/never_slower.json and .png beside this file (never_slower-vit is the same of a ViT's plans). Single layers
on ExecuTorch carry the runtime's own call on both sides.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.nested_accuracy import RESULTS
from maestro_edge.devices import LocalDevice
from maestro_edge.runtimes import MeasuringProtocol, load
from maestro_edge.values import DENSE, LayerSpec, Rank, RankPlan, write_atomically

_AT_ONCE = 24
"""Files that are timed in one interleaved run."""


def chosen(folders: Sequence[Path]) -> dict[str, dict[tuple[LayerSpec, Rank], int]]:
    """Per runtime, each (spec, rank) below dense that a plan chose, and in how many plans."""
    found: dict[str, dict[tuple[LayerSpec, Rank], int]] = {}
    for folder in folders:
        for path in sorted((folder / "plans").glob("*.json")):
            plan = RankPlan.load(path)
            options = found.setdefault(plan.runtime, {})
            for layer in plan.layers:
                if layer.rank != DENSE:
                    options[layer.spec, layer.rank] = options.get((layer.spec, layer.rank), 0) + 1
    return found


def replay(runtime_name: str, options: Mapping[tuple[LayerSpec, Rank], int]) -> list[dict[str, Any]]:
    """Times of each chosen option and of its dense layer, measured side by side."""
    runtime, device, protocol = load(runtime_name), LocalDevice(), MeasuringProtocol()
    rows, pending = [], list(options)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        while pending:
            batch, pending = pending[: _AT_ONCE // 2], pending[_AT_ONCE // 2 :]
            paths = {}
            for index, (spec, rank) in enumerate(batch):
                for kind, own, at in (("chosen", spec, rank), ("dense", _plain(spec), DENSE)):
                    path = folder / f"{index}-{kind}{runtime.suffix}"
                    path.unlink(missing_ok=True)
                    runtime.write_probe(own, at, path)
                    paths[f"{index}-{kind}"] = path
            timings = runtime.measure(device, paths, protocol)
            for index, (spec, rank) in enumerate(batch):
                mine, dense = timings[f"{index}-chosen"], timings[f"{index}-dense"]
                rows.append(
                    {
                        "layer": str(spec),
                        "form": spec.factors,
                        "rank": rank,
                        "plans": options[spec, rank],
                        "ms": mine.median_ms,
                        "dense_ms": dense.median_ms,
                        "ratio": round(mine.median_ms / dense.median_ms, 4),
                        "spread": round(max(mine.spread, dense.spread), 4),
                    }
                )
            print(f"{runtime_name}: {len(rows)} of {len(options)}", flush=True)
    device.close()
    return rows


def _plain(spec: LayerSpec) -> LayerSpec:
    return spec.model_copy(update={"factors": "channel"})


def draw(results: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Chosen over dense, every option a mark; nothing may be above the line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.2))
    for name, rows in results.items():
        axes.plot([row["dense_ms"] for row in rows], [row["ratio"] for row in rows], "o", ms=4, label=name)
    axes.axhline(1, color="0.4", lw=1)
    axes.set(xscale="log", xlabel="dense layer in ms, measured again", ylabel="chosen option over dense")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    results = {name: replay(name, options) for name, options in chosen(given.runs).items()}
    lines = {
        name: {
            "options": len(rows),
            "layers_in_plans": sum(row["plans"] for row in rows),
            "slower_than_dense": sum(row["ratio"] > 1 for row in rows),
            "median_ratio": round(statistics.median(row["ratio"] for row in rows), 4),
            "worst_ratio": max(row["ratio"] for row in rows),
        }
        for name, rows in results.items()
    }
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": LocalDevice().facts().model_dump(),
        "torch": torch.__version__,
        "threads": 1,
        "summary": lines,
        "layers": results,
    }
    write_atomically(given.out / "never_slower.json", (json.dumps(result, indent=1) + "\n").encode())
    draw(results, given.out / "never_slower.png")
    print(json.dumps(lines, indent=1))


if __name__ == "__main__":
    main()
