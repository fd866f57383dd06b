"""Whether a busy machine is noticed: a network is timed alone, then beside a busy loop, one and two threads.

    python -m benchmarks.under_load [--runtimes executorch litert]

Writes results/under_load.json and .png beside this file. A measurement that was taken beside a busy loop must be
marked as disturbed, or lie within 5 % of the calm one: "silently wrong" counts those that are neither.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.nested_accuracy import RESULTS
from maestro_edge.devices import LocalDevice
from maestro_edge.ordered import cut, order
from maestro_edge.profiling import Conditions, measure_calmly
from maestro_edge.recipes.vision import resnet18
from maestro_edge.runtimes import MeasuringProtocol, load
from maestro_edge.values import write_atomically

REPEATS = 5
LIMIT = 0.05


@contextmanager
def busy(loops: int) -> Iterator[None]:
    """Processes that keep one core busy each."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(loops)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def run(runtime_name: str, threads: int, folder: Path) -> list[dict[str, Any]]:
    """The dense network and one at ranks, calm and beside one and two busy loops."""
    runtime, device = load(runtime_name), LocalDevice()
    protocol = MeasuringProtocol(threads=threads, most_runs=2)
    torch.manual_seed(0)
    model = order(resnet18().eval())
    paths = {}
    for name, ranks in (("dense", {}), ("ranks", {key: 32 for key, _ in model.named_modules() if "conv" in key})):
        path = folder / f"{name}{runtime.suffix}"
        runtime.export(cut(model, ranks).eval(), (torch.randn(1, 3, 32, 32),), path)
        paths[name] = path

    def measure() -> dict[str, Any]:
        found = measure_calmly(runtime, device, paths, control="dense", conditions=Conditions(protocol))
        return {name: {"ms": timing.median_ms, "disturbed": timing.disturbed} for name, timing in found.items()}

    rows = []
    for repeat in range(REPEATS):
        calm = measure()
        for loops in (1, 2):
            with busy(loops):
                loaded = measure()
            for name in paths:
                ratio = loaded[name]["ms"] / calm[name]["ms"]
                flagged = loaded[name]["disturbed"]
                rows.append(
                    {
                        "runtime": runtime_name,
                        "threads": threads,
                        "repeat": repeat,
                        "network": name,
                        "busy_loops": loops,
                        "calm_ms": round(calm[name]["ms"], 4),
                        "calm_disturbed": calm[name]["disturbed"],
                        "loaded_ms": round(loaded[name]["ms"], 4),
                        "ratio": round(ratio, 3),
                        "flagged": flagged,
                        "silently_wrong": not flagged and abs(ratio - 1) > LIMIT,
                    }
                )
    device.close()
    return rows


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Loaded over calm time of every measurement, marked where it was flagged, and the band that needs no flag."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5.6, 3.8))
    axes.axhspan(1 - LIMIT, 1 + LIMIT, color="0.85", label="within 5 %")
    cases = list(dict.fromkeys((row["threads"], row["busy_loops"]) for row in rows))
    for flagged, marker, label in ((True, "o", "flagged as disturbed"), (False, "x", "not flagged")):
        found = [row for row in rows if row["flagged"] == flagged]
        places = [cases.index((row["threads"], row["busy_loops"])) for row in found]
        axes.plot(places, [row["ratio"] for row in found], marker, alpha=0.6, label=label)
    axes.set_xticks(range(len(cases)), [f"{threads} threads,\n{loops} busy loops" for threads, loops in cases])
    axes.set_ylabel("time beside busy loops / calm")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtimes", nargs="+", default=["executorch", "litert"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for runtime in given.runtimes:
        for threads in (1, 2):
            with tempfile.TemporaryDirectory() as folder:
                rows += run(runtime, threads, Path(folder))
    summary = {
        "measurements": len(rows),
        "flagged": sum(row["flagged"] for row in rows),
        "silently_wrong": sum(row["silently_wrong"] for row in rows),
        "calm_flagged": sum(row["calm_disturbed"] for row in rows),
        "largest_ratio": max(row["ratio"] for row in rows),
    }
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": LocalDevice().facts().model_dump(),
        "summary": summary,
        "rows": rows,
    }
    write_atomically(given.out / "under_load.json", (json.dumps(result, indent=1) + "\n").encode())
    draw(rows, given.out / "under_load.png")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
