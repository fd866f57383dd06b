"""What the exported files take, on every runtime, and what exporting them takes.

    python -m benchmarks.exports CIFAR10 [--networks resnet20 vit] [--on executorch litert browser]
        [--work FOLDER] [--out FOLDER]
    python -m benchmarks.exports --quick --out FOLDER

CIFAR10 is cifar10-jpeg.tar or the folder of Python batches. Networks are trained as closed_loop.py does it, and
kept in --work, its folder. For each network and runtime three plans are made on this machine's table. Dense and
plans are exported alone, in fp32 and in the network's int8 (static, of the transformer dynamic), and the plans
once more as entries of an elastic file. So they are planned to share it (`plan --elastic`); `free_plans` has what
plans of the same budgets that need not share reach. The browser, headless Chromium (chromium.py says what it
needs), gets the files of LiteRT.

All candidates of a runtime are timed interleaved in one run, on one thread; ratios are to the dense fp32 file.
Load and first run are medians of fresh processes (cold_start.py), in the browser of pages that were just opened;
the runtime itself was loaded before. On LiteRT all are run as signatures, as entries have to be. Top-1 is on the
test images: of the file itself, but in fp32 outside the browser of its model, whose outputs are the file's.

An elastic file should have at most 2 % more bytes than the largest of its parts alone, and its entries take at
most 5 % longer. An export should take at most 15 s, imports included, and 1.5 GB in a process of its own
(export_cost.py), also that of ResNet-18 at 224 x 224. What a runtime refuses is in `left_out`, with the reason.

Writes results/exports.json and .png beside this file after every step; what is there already is kept. --quick goes
through everything with tiny networks on digits and few runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.chromium import open_browser
from benchmarks.closed_loop import NETWORKS, TINY, accuracy, planned, trained
from benchmarks.cold_start import start_cold
from benchmarks.export_cost import LARGE, measured
from benchmarks.export_figure import MOST_BYTES, MOST_TIME, draw
from benchmarks.export_files import Candidate, exported
from benchmarks.nested_accuracy import RESULTS
from maestro_edge.devices import Device, LocalDevice
from maestro_edge.profiling import Conditions, measure_calmly
from maestro_edge.recipes.plans import sensitivity_of
from maestro_edge.recipes.run import Run
from maestro_edge.recipes.tables import table_of
from maestro_edge.runtimes import RUNTIMES, MeasuringProtocol, Runtime, load
from maestro_edge.values import Precision, Timing, write_atomically

SHARES = (0.15, 0.45, 0.75)
"""Of the way from the fastest plan to dense, by ratio."""
INT8: dict[str, Precision] = {"resnet20": "int8-static", "resnet8": "int8-static"}
LEAST_RATIO = 1.3
STARTS = 3
ON = {"executorch": "executorch", "litert": "litert", "browser": "litert"}
"""Where files run, and whose they are."""
_CONTROL = "dense dense fp32"


class Start(NamedTuple):
    """A cold start, and top-1 (0 to 1) on the test images."""

    load_ms: float
    first_ms: float
    top1: float


Starter = Callable[[Candidate], Start]


@contextmanager
def started(run: Run, where: str, runtime: Runtime, other: Path) -> Iterator[tuple[Device, Starter]]:
    """The device that files run on, and what starts one there, cold but for the runtime, which `other` loads.

    The starter raises ValueError where the file does not run there.
    """
    if where != "browser":
        device = LocalDevice()

        def start_process(candidate: Candidate) -> Start:
            return Start(*start_cold(runtime.name, candidate.path, other), candidate.top1)

        try:
            yield device, start_process
        finally:
            device.close()
        return
    images = run.data.normalise(run.data.test.inputs).numpy()
    targets = run.data.test.targets.numpy()
    known: dict[str, float] = {}
    with open_browser() as chromium:

        def start_page(candidate: Candidate) -> Start:
            count = 1 if candidate.name in known else len(images)
            cold = chromium.start_cold(candidate.path, images[:count])
            known.setdefault(candidate.name, float(np.mean(cold.classes == targets[:count])))
            return Start(cold.load_ms, cold.first_ms, known[candidate.name])

        yield chromium.device, start_page


def run_case(run: Run, where: str, profiles: Path, protocol: MeasuringProtocol, starts: int) -> dict[str, Any]:
    """Every candidate of a network on one runtime."""
    runtime, local = load(ON[where]), LocalDevice()
    table = table_of(run, runtime, local, profiles=profiles, protocol=protocol)
    local.close()
    losses = sensitivity_of(run, [table])
    free = planned(run, table, losses, SHARES, least_ratio=LEAST_RATIO)
    plans = planned(run, table, losses, SHARES, least_ratio=LEAST_RATIO, elastic=True)
    candidates, left_out = exported(run, runtime, plans, INT8.get(run.folder.name, "int8-dynamic"))
    cold: dict[str, list[Start]] = {}
    with started(run, where, runtime, candidates[0].path) as (device, start):
        for each in candidates:
            try:
                cold[each.name] = [start(each) for _ in range(starts)]
            except ValueError as error:
                left_out[each.name] = str(error)
        ran = [each for each in candidates if each.name in cold]
        paths = {each.name: each.path for each in ran}
        timings = measure_calmly(runtime, device, paths, control=_CONTROL, conditions=Conditions(protocol))
        facts, version = device.facts().model_dump(), runtime.version_on(device)
    dense = next(each for each in ran if each.name == _CONTROL)
    rows = [_row(each, cold[each.name], timings[each.name], dense, timings[_CONTROL]) for each in ran]
    return {
        "network": run.folder.name,
        "on": where,
        "runtime_version": version,
        "device": facts,
        "planned_on": table.title,
        "starts": starts,
        "test_images": len(run.data.test),
        "elastic": elastic(rows),
        "free_plans": {
            each.tag: {"top1": accuracy(run, each.ranks), "predicted_ms": round(each.predicted_ms, 4)}
            for each in free
        },
        "left_out": left_out,
        "candidates": rows,
    }


def _row(
    each: Candidate, starts: Sequence[Start], timing: Timing, dense: Candidate, dense_timing: Timing
) -> dict[str, Any]:
    return {
        "kind": each.kind,
        "plan": each.plan,
        "precision": each.precision,
        "size_bytes": each.size_bytes,
        "size_of_dense": round(each.size_bytes / dense.size_bytes, 4),
        "load_ms": round(statistics.median(start.load_ms for start in starts), 2),
        "first_ms": round(statistics.median(start.first_ms for start in starts), 3),
        "p50_ms": round(timing.median_ms, 4),
        "p90_ms": round(timing.p90_ms, 4),
        "p50_of_dense": round(timing.median_ms / dense_timing.median_ms, 4),
        "n": timing.n,
        "spread": round(timing.spread, 4),
        "disturbed": timing.disturbed,
        "top1": round(100 * starts[0].top1, 2),
        "params": each.params,
        "macs": each.macs,
    }


def elastic(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The elastic file of the plans beside each of them alone; None where there is none."""
    alone = {row["plan"]: row for row in rows if (row["kind"], row["precision"]) == ("plan", "fp32")}
    entries = {row["plan"]: row for row in rows if row["kind"] == "entry"}
    both = [plan for plan in alone if plan in entries]
    if not both:
        return None
    together, sizes = entries[both[0]]["size_bytes"], [alone[plan]["size_bytes"] for plan in both]
    times = {plan: round(entries[plan]["p50_ms"] / alone[plan]["p50_ms"], 4) for plan in both}
    return {
        "size_bytes": together,
        "over_the_largest_alone": round(together / max(sizes), 4),
        "of_all_alone": round(together / sum(sizes), 4),
        "p50_over_alone": times,
        "kept": {
            "size": together <= MOST_BYTES * max(sizes),
            "time": all(ratio <= MOST_TIME for ratio in times.values()),
        },
    }


def costs_of(networks: Sequence[str], *, quick: bool) -> Iterator[tuple[str, str, str]]:
    """Network, runtime and kind of each export whose cost is measured."""
    for network in networks if quick else (*networks, LARGE):
        kinds = ("fp32",) if quick else ("fp32", INT8.get(network, "int8-dynamic"), "elastic")
        for runtime in ("executorch", "litert") if quick else RUNTIMES:
            for kind in kinds:
                yield network, runtime, kind


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--networks", nargs="+", choices=[*NETWORKS, *TINY])
    parser.add_argument("--on", nargs="+", default=list(ON), choices=list(ON))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    if given.quick == (given.data is not None):
        parser.error("give the CIFAR-10 data, or --quick, which needs none")
    if given.quick and given.out == RESULTS:
        parser.error("--quick is no result: give --out")
    networks = given.networks or (list(TINY) if given.quick else ["resnet20", "vit"])
    work = given.work or (given.out / "work" if given.quick else Path(".cache/closed_loop"))
    source = "digits" if given.quick else f"cifar10:{given.data}"
    protocol = MeasuringProtocol().flow_only() if given.quick else MeasuringProtocol()
    torch.set_num_threads(1)
    path = given.out / "exports.json"
    kept = json.loads(path.read_text()) if path.exists() else {"cases": [], "exporting": []}
    cases, costs = kept["cases"], kept["exporting"]

    def keep(rows: list[dict[str, Any]], row: dict[str, Any]) -> None:
        rows.append(row)
        result = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": LocalDevice().facts().model_dump(),
            "torch": torch.__version__,
            "threads": 1,
            "quick": given.quick,
            "exporting": costs,
            "cases": cases,
        }
        write_atomically(path, (json.dumps(result, indent=1) + "\n").encode())
        draw(cases, costs, given.out / "exports.png")
        print(json.dumps({key: value for key, value in row.items() if key != "device"}), flush=True)

    for network in networks:
        run = None
        for where in given.on:
            if any((case["network"], case["on"]) == (network, where) for case in cases):
                continue
            run = run or trained(network, source, work, 1 if given.quick else None)
            keep(cases, run_case(run, where, work / "profiles", protocol, 1 if given.quick else STARTS))
    for network, runtime, kind in costs_of(networks, quick=given.quick):
        if all((row["network"], row["runtime"], row["kind"]) != (network, runtime, kind) for row in costs):
            keep(costs, measured(network, runtime, kind))


if __name__ == "__main__":
    main()
