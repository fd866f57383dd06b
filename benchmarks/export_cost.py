"""What one export costs: its seconds, and the peak memory of the process that does nothing else.

    python -m benchmarks.export_cost NETWORK RUNTIME fp32|int8-static|int8-dynamic|…|elastic FOLDER

Exports an untrained network, which costs what a trained one does, in this process, and prints one JSON object.
NETWORK is one of closed_loop.py or `resnet18-224`. As in `maestro-edge export` the file is run and compared before
it gets its name, and in int8-static its ranges are of a batch of 128 images. `elastic` is one file of the network
at three shares of every layer's break-even rank. measured() does it in a fresh process: exports.py calls that.
Linux: the peak is the resident set's high-water mark in /proc, as getrusage's is inherited from the parent.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.closed_loop import NETWORKS, TINY
from benchmarks.profiling import CASES
from maestro_edge.errors import ExportError
from maestro_edge.ordered import cut, order, trace
from maestro_edge.recipes.models import load_model
from maestro_edge.runtimes import export, export_elastic, load, size_bytes
from maestro_edge.runtimes.runner import peak_kib
from maestro_edge.values import Network, Precision, Rank

LARGE = "resnet18-224"
MOST_SECONDS, MOST_MIB = 15.0, 1500.0
"""What an export should take at most."""
_SHARES = (0.25, 0.5, 0.75)
_TILE = 16
_CALIBRATION, _SAMPLES = 128, 8


def made(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """An untrained network and the shape of its input."""
    torch.manual_seed(0)
    if name in CASES:
        make, shape = CASES[name]
        return make().eval(), shape
    return load_model((NETWORKS | TINY)[name][0], channels=3, classes=10).eval(), (1, 3, 32, 32)


def uniform(network: Network) -> dict[str, dict[str, Rank]]:
    """Ranks that are one share of every layer's break-even rank, in tiles; by a name for an entry."""
    return {
        f"share_{100 * share:.0f}": {
            each.name: max(_TILE, int(share * each.spec.break_even_rank) // _TILE * _TILE)
            for each in network.ordered
        }
        for share in _SHARES
    }


def cuts(model: nn.Module, example: Tensor) -> dict[str, nn.Module]:
    """The network at uniform() ranks."""
    ordered = order(model)
    ranks = uniform(trace(ordered, (example,)))
    return {name: cut(ordered, each).eval() for name, each in ranks.items()}


def exported(name: str, runtime_name: str, precision: Precision | None, folder: Path) -> dict[str, Any]:
    """One export in this process; None is the elastic file."""
    (model, shape), runtime = made(name), load(runtime_name)
    samples = torch.randn(_SAMPLES, *shape[1:])
    path = folder / f"{name}{runtime.suffix}"
    models = cuts(model, samples[:1]) if precision is None else {}
    ranges = [torch.randn(_CALIBRATION, *shape[1:])] if precision == "int8-static" else None
    begin = time.perf_counter()
    try:
        if precision is None:
            export_elastic(models, samples, path, runtime)
        else:
            export(model, samples, path, runtime, precision=precision, calibration=ranges)
    except ExportError as error:
        return {"left_out": str(error)}
    peak = peak_kib()
    assert peak is not None, "no /proc here"
    return {
        "size_bytes": size_bytes(path),
        "export_s": round(time.perf_counter() - begin, 2),
        "cpu_s": round(time.process_time(), 2),
        "peak_mib": round(peak / 1024),
        "threads": torch.get_num_threads(),
    }


def measured(name: str, runtime: str, kind: str) -> dict[str, Any]:
    """One export in a fresh process: `export_s` are the seconds of the call, with all that it imports first.

    `process_s` are from the start of the process to its end, Python's and torch's own included, `cpu_s` processor
    seconds of all of it, and `load` is how many processes wanted to run meanwhile.
    """
    row = {"network": name, "runtime": runtime, "kind": kind}
    before, begin = os.getloadavg()[0], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.export_cost", name, runtime, kind, folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise SystemExit(f"{name} for {runtime} in {kind}: {done.stderr.strip()[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    if "left_out" in found:
        return {**row, **found}
    return {
        **row,
        **found,
        "process_s": round(seconds, 2),
        "load": round((before + os.getloadavg()[0]) / 2, 1),
        "kept": {"export_s": found["export_s"] <= MOST_SECONDS, "peak_mib": found["peak_mib"] <= MOST_MIB},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=[*NETWORKS, *TINY, LARGE])
    parser.add_argument("runtime")
    parser.add_argument("kind")
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    precision = None if given.kind == "elastic" else given.kind
    print(json.dumps(exported(given.network, given.runtime, precision, given.folder)))


if __name__ == "__main__":
    main()
