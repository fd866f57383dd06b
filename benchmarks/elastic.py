"""What an elastic file costs: its bytes beside those of its plans alone, and each entry's time beside its plan's.

    python -m benchmarks.elastic [RUN_FOLDER] [--runtime NAME…] [--out FOLDER]

With RUN_FOLDER its plans are taken, those of each runtime. Without, they are of an untrained ResNet-8 on digits,
which has the bytes and the time of a trained one: three plans at shares of every layer's break-even rank, once by
themselves and once with the dense network as a fourth. Entries and the files of the plans alone are timed
interleaved in one run, on one thread, both as signatures on LiteRT. Writes results/elastic.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.nested_accuracy import RESULTS
from maestro_edge.devices import LocalDevice
from maestro_edge.ordered import order, trace
from maestro_edge.recipes.run import Run, create, open_run
from maestro_edge.runtimes import MeasuringProtocol, Runtime, export, export_elastic, load, size_bytes
from maestro_edge.runtimes.elastic import entry_name
from maestro_edge.runtimes.jobs import with_entry
from maestro_edge.training import recalibrate
from maestro_edge.values import write_atomically

_SHARES = (0.25, 0.5, 0.75)
_TILE = 16
_ALONE = {"litert": "serving_default"}
"""What a file of one is called by where entries are called in another way than such files."""
Models = dict[str, nn.Module]


def untrained(folder: Path) -> Run:
    """A run whose ordered network was only started from its dense one."""
    run = create(folder / "run", data="digits")
    dense = recalibrate(run.new_model(), run.calibration()).eval()
    run.__dict__["ordered"] = order(dense, calibration=run.calibration())
    return run


def cuts(run: Run) -> dict[str, Models]:
    """Plans at shares of every layer's break-even rank, without and with the dense network."""
    layers = trace(run.ordered, run.example).ordered
    models = {
        f"share_{100 * share:.0f}": run.variant(
            {each.name: max(_TILE, int(share * each.spec.break_even_rank) // _TILE * _TILE) for each in layers}
        )
        for share in _SHARES
    }
    return {"pairs": models, "pairs and dense": {**models, "dense": run.variant({})}}


def planned(run: Run, runtime: Runtime) -> dict[str, Models]:
    """The run's own plans of the runtime."""
    plans = [item for item in run.plans() if item.runtime == runtime.name and item.precision == "fp32"]
    return {"plans": {entry_name(item.tag): run.variant(item.ranks, gauge=item.gauge) for item in plans}}


def compared(runtime: Runtime, models: Mapping[str, nn.Module], samples: Tensor, folder: Path) -> dict[str, Any]:
    """Bytes and times of one elastic file and of its plans alone."""
    path = folder / f"elastic{runtime.suffix}"
    agreements = export_elastic(models, samples, path, runtime)
    paths = {}
    for name, model in models.items():
        single = folder / f"{name}{runtime.suffix}"
        export(model, samples, single, runtime)
        paths[f"alone {name}"] = with_entry(single, _ALONE.get(runtime.name))
        paths[f"entry {name}"] = with_entry(path, name)
    device = LocalDevice()
    timings = runtime.measure(device, paths, MeasuringProtocol())
    device.close()
    bytes_alone = {name: size_bytes(folder / f"{name}{runtime.suffix}") for name in models}
    largest = max(bytes_alone.values())
    return {
        "size_bytes": size_bytes(path),
        "over_the_largest_alone": round(size_bytes(path) / largest, 4),
        "of_all_alone": round(size_bytes(path) / sum(bytes_alone.values()), 4),
        "plans": [
            {
                "plan": name,
                "size_bytes_alone": bytes_alone[name],
                "ms_alone": (alone := timings[f"alone {name}"]).median_ms,
                "ms_entry": (entry := timings[f"entry {name}"]).median_ms,
                "ratio": round(entry.median_ms / alone.median_ms, 4),
                "spread": round(max(alone.spread, entry.spread), 4),
                "max_abs_error": agreements[name].max_abs_error,
            }
            for name in models
        ],
    }


def measured(folder: Path | None, names: Sequence[str]) -> dict[str, Any]:
    """By runtime and set of plans."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as work:
        run = untrained(Path(work)) if folder is None else open_run(folder)
        samples = run.data.normalise(run.data.validation.inputs[:8])
        for name in names:
            runtime = load(name)
            for kind, models in (cuts(run) if folder is None else planned(run, runtime)).items():
                own = Path(work) / name / kind
                own.mkdir(parents=True)
                found.setdefault(name, {})[kind] = compared(runtime, models, samples, own)
                print(name, kind, json.dumps(found[name][kind]), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--runtime", nargs="+", default=["executorch", "litert"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": LocalDevice().facts().model_dump(),
        "torch": torch.__version__,
        "runtimes": {name: load(name).version for name in given.runtime},
        "threads": 1,
        "results": measured(given.run, given.runtime),
    }
    write_atomically(given.out / "elastic.json", (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
