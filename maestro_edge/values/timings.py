"""What was measured on a device: samples, rows of layers, whole networks and their fit."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median, quantiles
from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator

from maestro_edge.errors import TableError
from maestro_edge.values.base import Rank, Value
from maestro_edge.values.networks import LayerSpec

__all__ = [
    "Alone",
    "Calibration",
    "DeviceFacts",
    "Estimate",
    "LatencyRow",
    "NetworkRow",
    "NetworkTiming",
    "OperatorRow",
    "Stated",
    "Timing",
]


class DeviceFacts(Value):
    """What is known of a device; None where it cannot be read."""

    name: str
    soc: str
    arch: str
    simd: str | None = Field(default=None, description="widest vector instructions of an x86: avx512 or avx2")
    cores: PositiveInt | None
    os: str
    build: str | None = Field(default=None, description="of a phone's or board's system image")
    memory_gib: float | None = None
    governor: str | None = None
    core_mhz: tuple[PositiveInt, ...] = Field(default=(), description="maximum of each core")
    temperature_c: float | None = None
    throttled: bool | None = None

    @property
    def big_cores(self) -> tuple[int, ...]:
        """The cores that share the highest maximum frequency; none where that is not known."""
        top = max(self.core_mhz, default=0)
        return tuple(core for core, mhz in enumerate(self.core_mhz) if mhz == top)


class Timing(Value):
    """The samples of one measured thing in milliseconds, and what follows from them."""

    n: PositiveInt
    median_ms: float = Field(ge=0)
    p90_ms: float = Field(ge=0)
    spread: float = Field(ge=0, description="interquartile range over median")
    samples_ms: tuple[float, ...]
    disturbed: bool = Field(
        default=False, description="the device was busy with other programs, or slower than before"
    )

    @classmethod
    def of(cls, samples_ms: Sequence[float], *, disturbed: bool = False) -> Self:
        """Summarise raw samples; at least two are needed for a spread."""
        if len(samples_ms) < 2:
            raise TableError(f"{len(samples_ms)} sample(s) are no measurement: take at least 2")
        middle = median(samples_ms)
        low, _, high = quantiles(samples_ms, n=4, method="inclusive")
        p90 = quantiles(samples_ms, n=10, method="inclusive")[8]
        return cls(
            n=len(samples_ms),
            median_ms=middle,
            p90_ms=p90,
            spread=max(0.0, high - low) / middle if middle > 0 else 0.0,
            samples_ms=tuple(round(sample, 6) for sample in samples_ms),
            disturbed=disturbed,
        )


class Stated(Value):
    """The one number that a file from elsewhere tells instead of samples; None is what it does not tell."""

    ms: float = Field(ge=0)
    statistic: Literal["mean", "median", "not told"]
    n: PositiveInt | None = None
    std_ms: float | None = Field(default=None, ge=0)


class Estimate(Value):
    """What a model expects, and the interval that holds the measured time as often as `coverage` says."""

    ms: float = Field(gt=0)
    low_ms: float = Field(gt=0)
    high_ms: float = Field(gt=0)
    coverage: float = Field(gt=0, lt=1)


class LatencyRow(Value):
    """One layer spec at one rank: timed on the device, taken from a file, or estimated."""

    spec: LayerSpec
    rank: Rank
    method: Literal["in-model", "probe", "imported", "modelled"]
    timing: Timing | Stated | Estimate

    @model_validator(mode="after")
    def _method_fits(self) -> Self:
        kinds = {"imported": (Timing, Stated), "modelled": (Estimate,)}
        if not isinstance(self.timing, kinds.get(self.method, (Timing,))):
            raise ValueError(f"a row that is {self.method} cannot hold a {type(self.timing).__name__}")
        return self

    @property
    def ms(self) -> float:
        return self.timing.median_ms if isinstance(self.timing, Timing) else self.timing.ms

    @property
    def samples_ms(self) -> tuple[float, ...]:
        """Raw samples; none of a row that was imported as one number, or estimated."""
        return self.timing.samples_ms if isinstance(self.timing, Timing) else ()

    @property
    def spread(self) -> float | None:
        """Interquartile range over median; None where there are no samples."""
        return self.timing.spread if isinstance(self.timing, Timing) else None


class OperatorRow(Value):
    """An operator that another tool timed in a network: it trains a predictor, and no plan reads it."""

    network: str
    name: str
    kind: str
    features: dict[str, float] | None = Field(default=None, description="None where the file tells no shapes")
    timing: Timing | Stated

    @property
    def ms(self) -> float:
        return self.timing.median_ms if isinstance(self.timing, Timing) else self.timing.ms


class NetworkRow(Value):
    """A whole network that another tool timed, of which no layers are known."""

    network: str
    timing: Timing | Stated

    @property
    def ms(self) -> float:
        return self.timing.median_ms if isinstance(self.timing, Timing) else self.timing.ms


class Alone(Value):
    """A file run alone in a process of its own: cold start, the process's peak memory, energy of one run.

    Memory holds the runtime too; energy is the whole device's, None where it cannot be read.
    """

    load_ms: float = Field(ge=0)
    first_ms: float = Field(ge=0)
    peak_kib: PositiveInt | None = None
    energy_mj: float | None = Field(default=None, ge=0)


class NetworkTiming(Value):
    """A whole exported network: the sum of its layers' rows beside what was measured."""

    ranks: dict[str, Rank]
    layers_ms: float
    timing: Timing
    alone: Alone | None = None
    size_bytes: PositiveInt | None = Field(default=None, description="of the exported file")
    int8: tuple[str, ...] = Field(default=(), description="layers in int8 of a mixed network")


class Calibration(Value):
    """From the sum of layers to the whole network: ms = slope * (rest_ms + layers) + intercept_ms.

    The two parameters are a least-squares fit of the relative error on whole networks measured on the
    device; `loo_mape` is the mean absolute percentage error with each network left out of its own fit.
    """

    network: str = Field(description="fingerprint of the network")
    rest_ms: float = Field(ge=0, description="time outside the Linear and Conv2d layers")
    slope: float = Field(gt=0)
    intercept_ms: float
    loo_mape: float = Field(ge=0)
    networks: tuple[NetworkTiming, ...]

    def whole_ms(self, layers_ms: float) -> float:
        return self.slope * (self.rest_ms + layers_ms) + self.intercept_ms
