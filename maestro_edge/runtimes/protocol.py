"""The Runtime seam, and what every runtime that measures through the runner shares."""

from __future__ import annotations

import json
import tempfile
import uuid
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from maestro_edge.devices import Device, LocalDevice
from maestro_edge.errors import DeviceError, MissingExtra
from maestro_edge.values import LayerSpec, Precision, Rank, Timing, Value

__all__ = [
    "Array",
    "MeasuringProtocol",
    "Runtime",
    "TracingRuntime",
    "package_version",
    "run_predict",
    "run_time",
]

Array = npt.NDArray[np.float32]


class MeasuringProtocol(Value):
    """How times are taken: threads fixed, warm-up, then rounds over all files in random order.

    Each visit runs a file once untimed and then for about `slice_ms`. Files whose spread (interquartile range
    over median) stays above `spread_limit` are measured again, up to `repeats` times, and the calmest is kept.
    Whole runs are repeated until `calm_runs` of them agree within `drift_limit` on a control file, after a
    pause of `pause_s` each time they do not.
    """

    threads: PositiveInt = 1
    warmup_ms: NonNegativeFloat = 20.0
    rounds: PositiveInt = 10
    slice_ms: PositiveFloat = 5.0
    spread_limit: PositiveFloat = 0.1
    repeats: NonNegativeInt = 2
    drift_limit: PositiveFloat = 0.04
    calm_runs: PositiveInt = 2
    most_runs: PositiveInt = 4
    pause_s: NonNegativeFloat = 1.0
    seed: int = 0
    timeout_s: PositiveFloat = 600.0


class Runtime(Protocol):
    """What runs exported files: export, run and time them. A runtime knows nothing of transports."""

    name: str
    suffix: str
    rank_step: int
    """Ranks between two multiples of this take the same time."""

    @property
    def version(self) -> str:
        """Version of the installed package.

        Raises:
            MissingExtra: it is not installed.
        """
        ...

    def export(
        self, model: nn.Module, inputs: tuple[Tensor, ...], path: Path, precision: Precision = "fp32"
    ) -> None:
        """Write `model` (stock layers, eval mode) for example `inputs` to `path`, whole or not at all.

        Raises:
            ExportError: the model cannot be expressed or the file cannot be written.
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

    def write_probe(self, spec: LayerSpec, rank: Rank, path: Path) -> None:
        """Write a file that holds this one layer at this rank, with random weights."""
        ...


@runtime_checkable
class TracingRuntime(Runtime, Protocol):
    """A runtime that also tells the time of every operator inside a whole network."""

    def measure_ops(
        self, device: Device, paths: Mapping[str, Path], protocol: MeasuringProtocol
    ) -> dict[str, list[tuple[str, Timing]]]:
        """Per file the Linear and Conv2d operators ("linear" or "conv2d") in execution order.

        Raises:
            DeviceError: the device cannot run them, or gives no such times.
        """
        ...


def package_version(package: str, extra: str) -> str:
    """The installed version of `package`, without importing it.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return version(package)
    except PackageNotFoundError as error:
        raise MissingExtra(package, extra) from error


_RUNNER = Path(__file__).with_name("runner.py")


def run_job(device: Device, job: Mapping[str, Any], *, timeout_s: float) -> dict[str, Any]:
    """Push the runner and a job, run it, read back its one JSON document.

    Raises:
        DeviceError: the runner failed, or its answer is not what a runner writes.
    """
    name = uuid.uuid4().hex[:8]
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "job.json"
        local.write_text(json.dumps(job))
        runner = device.push(_RUNNER, "runner.py")
        job_path = device.push(local, f"{name}.job.json")
        result_path = job_path.replace(".job.json", ".result.json")
        device.run([device.python, runner, job_path, result_path], timeout_s=timeout_s)
        answer = Path(folder) / "result.json"
        device.pull(f"{name}.result.json", answer)
        try:
            result = json.loads(answer.read_bytes())
        except ValueError as error:
            raise DeviceError(f"the {job['runtime']} runner answered no JSON: {error}") from error
    if not isinstance(result, dict) or "error" in result:
        reason = result.get("error") if isinstance(result, dict) else result
        raise DeviceError(f"the {job['runtime']} runner failed: {reason}")
    return result


def push_all(device: Device, paths: Mapping[str, Path]) -> dict[str, str]:
    """Push files under names that no layer or plan name can spoil; returns name → path on the device."""
    return {
        name: device.push(path, f"file-{index}{path.suffix}") for index, (name, path) in enumerate(paths.items())
    }


def run_time(
    runtime: str, device: Device, paths: Mapping[str, Path], protocol: MeasuringProtocol
) -> dict[str, Timing]:
    """Measure files through the runner; noisy ones are measured again and the calmest result is kept."""
    files = push_all(device, paths)
    best: dict[str, Timing] = {}
    for attempt in range(protocol.repeats + 1):
        noisy = [n for n in files if n not in best or best[n].spread > protocol.spread_limit]
        if not noisy:
            break
        job = {
            "task": "time",
            "runtime": runtime,
            "files": {name: files[name] for name in noisy},
            **protocol.model_dump(include={"threads", "warmup_ms", "rounds", "slice_ms"}),
            "seed": protocol.seed + attempt,
        }
        samples = run_job(device, job, timeout_s=protocol.timeout_s)["samples_ns"]
        for name in noisy:
            timing = Timing.of([ns / 1e6 for ns in samples[name]])
            if name not in best or timing.spread < best[name].spread:
                best[name] = timing
    return best


def run_predict(runtime: str, path: Path, inputs: Array) -> Array:
    """Run a file on samples in a process of its own: a bad file may crash the runtime.

    Raises:
        DeviceError: the runner failed.
    """
    device = LocalDevice()
    try:
        with tempfile.TemporaryDirectory() as folder:
            samples, outputs = Path(folder) / "samples.npy", Path(folder) / "outputs.npy"
            np.save(samples, inputs)
            job = {
                "task": "predict",
                "runtime": runtime,
                "threads": 1,
                "files": push_all(device, {"file": path}),
                "samples": str(samples),
                "outputs": str(outputs),
            }
            run_job(device, job, timeout_s=600)
            result: Array = np.load(outputs, allow_pickle=False)
            return result
    finally:
        device.close()
