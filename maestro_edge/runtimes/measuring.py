"""Measuring and running files through the runner, as every runtime that has one does."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maestro_edge.devices import Device, LocalDevice
from maestro_edge.errors import DeviceError
from maestro_edge.runtimes.jobs import push_all, run_job
from maestro_edge.runtimes.protocol import Array, MeasuringProtocol
from maestro_edge.values import Alone, DeviceFacts, Timing

__all__ = [
    "batched",
    "is_disturbed",
    "kernel_kind",
    "measuring_job",
    "predict_on",
    "run_alone",
    "run_ops",
    "run_predict",
    "run_time",
]


def run_time(
    runtime: str, device: Device, paths: Mapping[str, Path], protocol: MeasuringProtocol
) -> dict[str, Timing]:
    """Measure files through the runner; noisy ones are measured again and the calmest result is kept."""
    files = push_all(device, paths)
    base = {"task": "time", "runtime": runtime, **measuring_job(device, protocol)}
    best: dict[str, Timing] = {}
    for attempt in range(protocol.repeats + 1):
        noisy = [n for n in files if n not in best or best[n].spread > protocol.spread_limit]
        if not noisy:
            break
        job = {**base, "files": {name: files[name] for name in noisy}, "seed": protocol.seed + attempt}
        result = run_job(device, job, timeout_s=protocol.timeout_s)
        disturbed = is_disturbed(result, protocol)
        for name in noisy:
            timing = Timing.of([ns / 1e6 for ns in result["samples_ns"][name]], disturbed=disturbed)
            if name not in best or timing.spread < best[name].spread:
                best[name] = timing
    return best


TRACE_BATCH = 5
"""Traces resolve one tick: a sample is the mean of this many consecutive runs."""
_TICK_MS = 0.001


def run_ops(
    runtime: str, device: Device, paths: Mapping[str, Path], protocol: MeasuringProtocol
) -> dict[str, Any]:
    """The runner's times of every operator of whole networks."""
    job = {
        "task": "ops",
        "runtime": runtime,
        "files": push_all(device, paths),
        "cold_runs": TRACE_BATCH,
        "runs_per_round": TRACE_BATCH,
        **measuring_job(device, protocol),
    }
    return run_job(device, job, timeout_s=protocol.timeout_s)


def batched(runs_ms: Sequence[float], *, disturbed: bool) -> Timing:
    """The timing of an operator from its runs in order; the first batch is cold.

    A kernel that is over within a tick of the clock gets its mean over all runs, or else a tick shared among them.
    """
    runs = runs_ms[TRACE_BATCH:]
    starts = range(0, len(runs) - TRACE_BATCH + 1, TRACE_BATCH)
    samples = [sum(runs[start : start + TRACE_BATCH]) / TRACE_BATCH for start in starts]
    if statistics.median(samples) == 0:
        samples = [max(sum(runs), _TICK_MS) / len(runs)] * len(samples)
    return Timing.of(samples, disturbed=disturbed)


def kernel_kind(name: str) -> str | None:
    """XNNPACK calls them "Convolution (NHWC, F32) IGEMM #2" and "Fully Connected (NC, F32) GEMM #1"."""
    if name.startswith(("Convolution", "DWConvolution")):
        return "conv2d"
    return "linear" if name.startswith("Fully Connected") else None


def run_alone(runtime: str, device: Device, path: Path, protocol: MeasuringProtocol) -> Alone:
    """Run one file in a process of its own."""
    job = {
        "task": "solo",
        "runtime": runtime,
        "files": push_all(device, {"file": path}),
        "seconds": protocol.alone_s,
        **measuring_job(device, protocol),
    }
    result = run_job(device, job, timeout_s=protocol.timeout_s)
    return Alone.model_validate({name: result.get(name) for name in Alone.model_fields})


def measuring_job(device: Device, protocol: MeasuringProtocol) -> dict[str, Any]:
    """What every measuring job says: the protocol, and the cores to run on once the device is cool enough."""
    facts = cool_down(device, protocol)
    bound = facts.big_cores if len(facts.big_cores) >= protocol.threads else ()
    return {
        **protocol.model_dump(include={"threads", "warmup_ms", "rounds", "slice_ms", "seed"}),
        "cores": list(bound) if facts.cores is None or len(bound) < facts.cores else [],
    }


def cool_down(device: Device, protocol: MeasuringProtocol) -> DeviceFacts:
    """The device's facts once it is at most `cool_to_c` warm, or does not tell.

    Raises:
        DeviceError: it stays warmer for `cool_s`.
    """
    begin = time.monotonic()
    while True:
        facts = device.facts()
        if protocol.cool_to_c is None or facts.temperature_c is None or facts.temperature_c <= protocol.cool_to_c:
            return facts
        if time.monotonic() - begin > protocol.cool_s:
            raise DeviceError(
                f"{device.name}: still {facts.temperature_c:.0f} °C after {protocol.cool_s:g} s, wanted "
                f"{protocol.cool_to_c:g} °C: cool it, or allow more with --cool-to"
            )
        time.sleep(2)


def is_disturbed(result: Mapping[str, Any], protocol: MeasuringProtocol) -> bool:
    """Whether other programs, or a virtual machine's host, took more than `load_limit` cores in the meantime."""
    others = result.get("others_cores")
    return isinstance(others, int | float) and others > protocol.load_limit


def run_predict(runtime: str, path: Path, inputs: Array) -> Array:
    """Run a file on samples in a process of its own: a bad file may crash the runtime.

    Raises:
        DeviceError: the runner failed.
    """
    device = LocalDevice()
    try:
        return predict_on(device, runtime, path, inputs)
    finally:
        device.close()


def predict_on(device: Device, runtime: str, path: Path, inputs: Array) -> Array:
    """Outputs (N, ...) of a file on `inputs` (N, ...), each sample run alone on the device.

    Raises:
        DeviceError: the runner failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "samples.npy"
        np.save(local, inputs)
        samples = device.push(local, local.name)
        job = {
            "task": "predict",
            "runtime": runtime,
            "threads": 1,
            "files": push_all(device, {"file": path}),
            "samples": samples,
            "outputs": samples.removesuffix(local.name) + "outputs.npy",
        }
        run_job(device, job, timeout_s=600)
        device.pull("outputs.npy", Path(folder) / "outputs.npy")
        result: Array = np.load(Path(folder) / "outputs.npy", allow_pickle=False)
        return result
