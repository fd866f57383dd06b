"""The demo's table, and the prediction's error on networks that no calibration has seen.

    python benchmarks/demo.py [RUN_FOLDER]

Writes results/demo.json and results/demo.png beside this file. A run folder that is given is continued; without
one everything is made anew in a temporary folder. Run it on a quiet machine.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from maestro_edge.devices import LocalDevice
from maestro_edge.recipes.demo import run_demo
from maestro_edge.recipes.run import Progress, create
from maestro_edge.recipes.tables import check_prediction, load_table
from maestro_edge.reporting import pareto_figure
from maestro_edge.runtimes import MeasuringProtocol, load_all
from maestro_edge.values import Manifest, Variant, write_atomically

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "executorch", "ai-edge-litert", "litert-torch", "coremltools", "numpy")
NETWORKS = 10


def main(folder: Path) -> None:
    """Run the demo in `folder`, then measure random networks against their predictions."""
    device, protocol = LocalDevice(), MeasuringProtocol()
    timed = load_all(["executorch", "litert"])
    run, profiles = create(folder / "run", data="digits"), folder / "profiles"
    seconds: dict[str, float] = {}
    started = time.perf_counter()

    def step(title: str) -> Progress:
        print(title, flush=True)

        def note(done: int, total: int, what: str) -> None:
            seconds[title] = round(time.perf_counter() - started - sum(_without(seconds, title)), 1)

        return note

    manifest, log = run_demo(
        run, device, timed, load_all(["coreml"]), profiles=profiles, protocol=protocol, step=step
    )
    total_s = time.perf_counter() - started
    prediction = {}
    for runtime in timed:
        table = load_table(run, runtime, device, profiles=profiles, threads=protocol.threads)
        check = check_prediction(run, table, runtime, device, count=NETWORKS, protocol=protocol)
        calibration = table.calibration(run.network)
        prediction[table.title] = {
            "networks": NETWORKS,
            "mape": round(check.mape, 4),
            "worst": round(check.worst, 4),
            "drift_of_dense": round(check.drift, 4),
            "leave_one_out_mape": round(calibration.loo_mape, 4),
        }
        print(f"{table.title}: {check}", flush=True)
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": manifest.device.model_dump(),
        "packages": {name: version(name) for name in PACKAGES},
        "threads": protocol.threads,
        "total_s": round(total_s, 1),
        "step_s": seconds,
        "verification": log,
        "variants": [_row(variant, manifest) for variant in manifest.variants],
        "prediction": prediction,
    }
    write_atomically(RESULTS / "demo.json", (json.dumps(result, indent=1) + "\n").encode())
    pareto_figure(manifest).savefig(RESULTS / "demo.png", dpi=150)
    print(json.dumps(result["variants"], indent=1))


def _without(seconds: dict[str, float], title: str) -> list[float]:
    return [value for name, value in seconds.items() if name != title]


def _row(variant: Variant, manifest: Manifest) -> dict[str, Any]:
    """A variant in a line; speed-up is over the dense export of the same runtime, timed in the same run."""
    dense = next(v for v in manifest.variants if v.runtime == variant.runtime and v.budget_ms is None)
    measured = variant.measured_ms
    keep = measured is None or variant.budget_ms is None or measured.p50 <= variant.budget_ms
    return {
        "variant": variant.name,
        "budget_ms": variant.budget_ms,
        "predicted_ms": variant.predicted_ms,
        "measured_ms": None if measured is None else measured.model_dump(),
        "within_budget": None if measured is None or variant.budget_ms is None else keep,
        "speed_up": None
        if measured is None or dense.measured_ms is None
        else round(dense.measured_ms.p50 / measured.p50, 2),
        "test_accuracy": round(variant.accuracy, 4),
        "size_bytes": variant.size_bytes,
        "params": variant.params,
        "macs": variant.macs,
        "max_abs_error": variant.max_abs_error,
        "sqnr_db": None if variant.sqnr_db is None else round(variant.sqnr_db, 1),
    }


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
