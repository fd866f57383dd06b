"""The Runtime seam, and what every runtime that measures through the runner shares."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from maestro_edge.devices import Device, LocalDevice
from maestro_edge.errors import DeviceError, ExportError, MissingExtra
from maestro_edge.runtimes.jobs import push_all, run_job
from maestro_edge.values import Alone, Delegation, DeviceFacts, LayerSpec, Precision, Rank, Timing, Value

__all__ = [
    "Array",
    "MeasuringProtocol",
    "MixingRuntime",
    "Operator",
    "Runtime",
    "TracingRuntime",
    "mixing",
    "package_version",
    "predict_on",
    "run_predict",
    "run_time",
]

Array = npt.NDArray[np.float32]


class MeasuringProtocol(Value):
    """How times are taken: threads fixed, warm-up until steady, then rounds over all files in random order.

    Each visit runs a file once untimed and then at least twice, for about `slice_ms`: 20 samples or more. Once
    the control's time is known, fast files get up to three times `rounds`, until a run takes `run_s`: what a host
    does to a virtual machine often lasts longer than ten rounds of a small network. Files
    whose spread (interquartile range over median) stays above `spread_limit` are measured again, up to `repeats`
    times, and the calmest is kept. Whole runs are repeated until `calm_runs` of them agree within `drift_limit`
    on a control file and other programs kept at most `load_limit` cores busy, after a pause of `pause_s` each
    time that is not so; what never became calm is marked as disturbed, and a row whose spread is still above
    `noise_limit` is refused. Threads are bound to the big cores where
    the device tells them. Before each run the device cools down to `cool_to_c`, for at most `cool_s`.
    """

    threads: PositiveInt = 1
    load_limit: PositiveFloat = 0.2
    cool_to_c: float | None = None
    cool_s: PositiveFloat = 300.0
    warmup_ms: NonNegativeFloat = 20.0
    rounds: PositiveInt = 10
    run_s: NonNegativeFloat = 10.0
    slice_ms: PositiveFloat = 5.0
    spread_limit: PositiveFloat = 0.1
    repeats: NonNegativeInt = 2
    noise_limit: PositiveFloat = 1.0
    drift_limit: PositiveFloat = 0.04
    calm_runs: PositiveInt = 2
    most_runs: PositiveInt = 4
    pause_s: NonNegativeFloat = 1.0
    alone_s: PositiveFloat = 0.3
    seed: int = 0
    timeout_s: PositiveFloat = 600.0

    def paced(self, files: int, run_ms: float) -> Self:
        """With more rounds, at most three times as many, where one over `files` of about `run_ms` is short."""
        round_ms = files * (run_ms + max(self.slice_ms, 2 * run_ms))
        rounds = math.ceil(1000 * self.run_s / round_ms)
        return self.model_copy(update={"rounds": min(max(self.rounds, rounds), 3 * self.rounds)})

    def flow_only(self) -> Self:
        """With as few runs as statistics can be made of: of emulated devices, whose times say nothing."""
        few = {"warmup_ms": 0.0, "rounds": 2, "run_s": 0.0, "slice_ms": 0.1, "repeats": 0}
        return self.model_copy(
            update={**few, "calm_runs": 1, "most_runs": 1, "alone_s": 0.1, "noise_limit": 1000.0}
        )


class Operator(NamedTuple):
    """One Linear or Conv2d kernel inside a whole network, in execution order.

    `weights` is the shape of its weights, (out, in) or (out, kh, kw, in / groups), where the file tells it.
    """

    kind: str
    timing: Timing
    weights: tuple[int, ...] | None = None


class Runtime(Protocol):
    """What runs exported files: export, run and time them. A runtime knows nothing of transports."""

    name: str
    suffix: str
    rank_step: int
    """Ranks between two multiples of this take the same time."""
    forks_after: str | None
    """The module with which a process can be forked to export; None where an exporter in C++ has threads."""

    @property
    def version(self) -> str:
        """Version of the package that exports, installed here.

        Raises:
            MissingExtra: it is not installed.
        """
        ...

    def version_on(self, device: Device) -> str:
        """Version of the runtime that measures on `device`.

        Raises:
            DeviceError: it is not there.
        """
        ...

    def runner_sha256(self, device: Device) -> str | None:
        """sha256 of the native runner that measures on `device`; None where the device's Python does."""
        ...

    def export(
        self,
        model: nn.Module,
        inputs: tuple[Tensor, ...],
        path: Path,
        precision: Precision = "fp32",
        *,
        calibration: Sequence[Tensor] | None = None,
    ) -> Delegation | None:
        """Write `model` (stock layers, eval mode) for example `inputs` to `path`, whole or not at all.

        Returns what the accelerated backend takes of the graph; None where that is not told.

        `calibration` is batches of inputs, (N, C, H, W) or (N, ...) ids, whose ranges int8-static takes over.

        Raises:
            ExportError: the model cannot be expressed, int8-static has no samples, or the file cannot be written.
        """
        ...

    def predict(self, path: Path, inputs: Array) -> Array:
        """Outputs (N, ...) of the file itself on `inputs` (N, C, H, W), each sample run alone.

        Raises:
            ExportError: the file cannot be loaded or run.
        """
        ...

    def measure(self, device: Device, paths: Mapping[str, Path], protocol: MeasuringProtocol) -> dict[str, Timing]:
        """Times of the files on the device: input fed, network run, output read.

        Raises:
            DeviceError: the device cannot run them.
        """
        ...

    def measure_alone(self, device: Device, path: Path, protocol: MeasuringProtocol) -> Alone:
        """Cold start, peak memory and energy of one file in a process of its own.

        Raises:
            DeviceError: the device cannot run it.
        """
        ...

    def write_probe(self, spec: LayerSpec, rank: Rank, path: Path, precision: Precision = "fp32") -> None:
        """Write a file that holds this one layer at this rank, with random weights."""
        ...


@runtime_checkable
class TracingRuntime(Runtime, Protocol):
    """A runtime that also tells the time of every operator inside a whole network."""

    def measure_ops(
        self, device: Device, paths: Mapping[str, Path], protocol: MeasuringProtocol
    ) -> dict[str, list[Operator]]:
        """Per file the Linear and Conv2d operators ("linear" or "conv2d") in execution order.

        Raises:
            DeviceError: the device cannot run them, or gives no such times.
        """
        ...


@runtime_checkable
class MixingRuntime(Runtime, Protocol):
    """A runtime whose files can have some layers in int8-dynamic and all else in fp32."""

    def export_mixed(
        self, model: nn.Module, inputs: tuple[Tensor, ...], path: Path, int8: Collection[str]
    ) -> Delegation | None:
        """As export(), with the Linears and convolutions of or within the modules named `int8` in int8-dynamic.

        Raises:
            ExportError: as export(), or an operator of one of them is not found.
        """
        ...


def mixing(runtime: Runtime) -> MixingRuntime:
    """The runtime, where its files can mix precisions.

    Raises:
        ExportError: they cannot.
    """
    if not isinstance(runtime, MixingRuntime):
        raise ExportError(
            f"files of {runtime.name} have one precision for all layers, none is mixed: choose another runtime, "
            "such as litert, or another precision"
        )
    return runtime


def package_version(package: str, extra: str) -> str:
    """The installed version of `package`, without importing it.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return version(package)
    except PackageNotFoundError as error:
        raise MissingExtra(package, extra) from error


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
