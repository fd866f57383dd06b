"""The Runtime seam: what a runtime offers, and how times are taken."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from maestro_edge.devices import Device
from maestro_edge.errors import ExportError, MissingExtra
from maestro_edge.values import Alone, Delegation, LayerSpec, Precision, Rank, Timing, Value

__all__ = [
    "Array",
    "MeasuringProtocol",
    "MixingRuntime",
    "Operator",
    "Runtime",
    "TracingRuntime",
    "mixing",
    "package_version",
]

Array = npt.NDArray[np.float32]


class MeasuringProtocol(Value):
    """How times are taken: threads fixed, warm-up until steady, then rounds over all files in random order.

    Each visit runs a file once untimed and then at least twice, for about `slice_ms`: 20 samples or more. Once
    the control's time is known, fast files get up to three times `rounds`, until a run takes `run_s`: what a host
    does to a virtual machine often lasts longer than ten rounds of a small network. Files whose spread
    (interquartile range over median) stays above `spread_limit` are measured again, up to `repeats` times, and the
    calmest is kept. Whole runs are repeated until `calm_runs` of them agree within `drift_limit` on a control file
    and other programs kept at most `load_limit` cores busy, after a pause of `pause_s` each time that is not so;
    what never became calm is marked as disturbed, and a row whose spread is still above `noise_limit` is refused.
    Threads are bound to the big cores where the device tells them. Before each run the device cools down to
    `cool_to_c`, for at most `cool_s`.
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
