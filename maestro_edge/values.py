"""The values that pass between the stages: frozen, versioned, saved as JSON, loaded back with a clear error."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from statistics import median, quantiles
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from maestro_edge.errors import BudgetError, DataError, TableError

__all__ = [
    "DENSE",
    "NOT_TOLD",
    "UNITS",
    "Alone",
    "Budget",
    "Calibration",
    "Choice",
    "Cut",
    "Delegation",
    "DeviceFacts",
    "Estimate",
    "InputSpec",
    "LatencyRow",
    "LatencyTable",
    "Layer",
    "LayerPlan",
    "LayerSpec",
    "Layout",
    "Manifest",
    "MeasuredMs",
    "Network",
    "NetworkRow",
    "NetworkTiming",
    "OperatorRow",
    "Precision",
    "Promise",
    "Quantity",
    "Rank",
    "RankPlan",
    "Round",
    "Sensitivity",
    "Source",
    "Stated",
    "Timing",
    "Totals",
    "Value",
    "Variant",
    "check_budget",
    "check_budgets",
    "refuse_unwritable",
    "variant_name",
    "write_atomically",
]

DENSE: Final = "dense"
"""The option that leaves a layer as it was: one stock layer."""

NOT_TOLD: Final = "not told"
"""What stands where an imported file says nothing, and a text has to stand."""

Rank = PositiveInt | Literal["dense"]
Precision = Literal["fp32", "fp16", "int8-dynamic", "int8-static", "palettised-6bit", "int4-weights"]
"""Of weights and arithmetic; a file's inputs and outputs are floats in all. In fp16 the weights are halves, and
the arithmetic too where the device has it. In int8-dynamic activations get their scales while the network runs, in
int8-static from samples when it is exported. The last two are of weights alone, on Core ML: each layer's are one
of 64 floats, or 4 bits with a scale for every 32."""

Layout = Literal["NCHW", "NHWC"]
"""Of the images that a file is fed: one channel after the other, or the channels of each pixel together."""

Source = Literal["measured", "imported", "modelled", "emulated"]
"""Emulated: timed on a device whose processor is emulated: the flow is real, the times say nothing of a device."""

Quantity = Literal["ms", "p90_ms", "size_bytes", "memory_bytes", "macs", "params", "energy_mj"]
"""What a budget may bound: median and 90th percentile of a run, bytes of the exported file, peak bytes of the
process that runs it, counts of one forward pass, and energy of one run."""

UNITS: Final[Mapping[Quantity, tuple[float, str]]] = {
    "ms": (1, "ms"),
    "p90_ms": (1, "ms at p90"),
    "size_bytes": (1e3, "kB of file"),
    "memory_bytes": (1e6, "MB of memory"),
    "macs": (1e6, "MMACs"),
    "params": (1, "parameters"),
    "energy_mj": (1, "mJ"),
}
"""How quantities are told: of what size the unit is, and its name."""

Milliseconds = Annotated[float, Field(gt=0)]
Pair = tuple[int, int]


class Value(BaseModel):
    """A frozen value: unknown fields, NaN and infinity are refused when it is made."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy whose cached properties are worked out anew: pydantic would copy them too."""
        copied = super().model_copy(update=update, deep=deep)
        for name in set(vars(copied)) - set(type(self).model_fields):
            del vars(copied)[name]
        return copied


class Saved(Value):
    """A value with a schema version, saved as one JSON file."""

    schema_version: Literal[1] = 1

    def save(self, path: Path) -> Path:
        """Write beside `path`, then rename: a reader never sees half a file."""
        write_atomically(path, self.model_dump_json(indent=1).encode())
        return path

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            TableError: the file is missing, truncated, of another schema or not such a value.
        """
        kind = cls.__name__
        try:
            raw = json.loads(Path(path).read_bytes())
        except FileNotFoundError as error:
            raise TableError(f"{path}: no such file; a {kind} was expected there") from error
        except (OSError, ValueError, RecursionError) as error:
            raise TableError(f"{path}: not a readable {kind} ({error}): make it again") from error
        found = raw.get("schema_version") if isinstance(raw, dict) else None
        reads = cls.model_fields["schema_version"].default
        if found != reads:
            raise TableError(
                f"{path}: {kind} schema {found!r}, this maestro_edge reads schema {reads}: make it again or update"
            )
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            first = error.errors()[0]
            # Pydantic also names the branch of a union, which no file holds.
            places = [str(place) for place in first["loc"] if place not in ("Timing", "Stated", "Estimate")]
            where = ".".join(places) or "top level"
            raise TableError(f"{path}: not a valid {kind}: {where}: {first['msg']}") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` beside `path` and rename it into place.

    Raises:
        DataError: the folder cannot be written.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(content)
        aside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        reason = error.strerror or error
        raise DataError(f"{path}: cannot be written ({reason}): choose a folder you may write to") from error


def refuse_unwritable(folder: Path) -> None:
    """Refuse before long work what write_atomically() would fail with behind it; nothing is made.

    Raises:
        DataError: the folder, or what is there of the path to it, cannot be written.
    """
    folder = Path(folder)
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    reason = "is no folder" if not there.is_dir() else "" if os.access(there, os.W_OK) else "is read-only"
    if reason:
        raise DataError(f"{folder}: cannot be written ({there} {reason}): choose a folder you may write to")


class LayerSpec(Value):
    """All that decides how long a layer takes: equal specs are measured once, for every network.

    `input_size` is (H, W) for conv2d, (L,) for conv1d, and the leading sizes without the batch, such as
    (tokens,), for linear and embedding. A conv1d uses the first of each pair; an embedding has as many
    `in_channels` as tokens in its vocabulary. `factors` tells a k x k and a 1 x 1 convolution ("channel") from a
    k x 1 and a 1 x k one ("spatial"), and from two side by side whose first leaves r of the outputs ("gauge").
    """

    kind: Literal["linear", "conv2d", "conv1d", "embedding"]
    in_channels: PositiveInt
    out_channels: PositiveInt
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: PositiveInt = 1
    bias: bool = True
    activation: Literal["none", "relu"] = "none"
    input_size: tuple[PositiveInt, ...] = ()
    batch: PositiveInt = 1
    factors: Literal["channel", "spatial", "gauge"] = "channel"

    @model_validator(mode="after")
    def _has_factors(self) -> Self:
        if self.factors == "gauge" and not self.has_gauge:
            raise ValueError("only a linear layer, and a convolution of one group, has a gauge form")
        return self

    @property
    def has_gauge(self) -> bool:
        """Whether it may be two layers side by side: see `ordered.gauge`."""
        return self.kind != "embedding" and self.groups == 1 and self.factors != "spatial"

    @property
    def gauged(self) -> LayerSpec:
        """The same layer in gauge form: a table's rows of it are those of this spec.

        Raises:
            ValidationError: it has none.
        """
        return LayerSpec.model_validate(self.model_dump() | {"factors": "gauge"})

    @property
    def fan_in(self) -> int:
        """Inputs that one output sees: n of the m x n matrix that each group holds."""
        return self.in_channels // self.groups * math.prod(self.kernel)

    @property
    def full_rank(self) -> int:
        """The smaller side of the m x n matrix that is factorised, one for each group."""
        if self.factors == "spatial":
            return min(self.out_channels * self.kernel[1], self.in_channels * self.kernel[0])
        return min(self.out_channels // self.groups, self.fan_in)

    @property
    def _weights(self) -> tuple[int, int]:
        """Weights of the dense layer, and of one component of two thin ones."""
        dense = self.out_channels * self.fan_in
        if self.factors == "spatial":
            return dense, self.out_channels * self.kernel[1] + self.in_channels * self.kernel[0]
        return dense, self.out_channels + self.groups * self.fan_in

    @property
    def break_even_rank(self) -> float:
        """The rank at which two layers hold as many weights as the dense one: m n / (m + n) of its matrix.

        In gauge form the lesser of m and n.
        """
        if self.factors == "gauge":
            return float(self.full_rank)
        dense, component = self._weights
        return dense / component

    def folds(self, rank: Rank) -> bool:
        """Whether the layer is deployed as one: it is dense, or its rank is at or above break-even."""
        dense, _ = self._weights
        return rank == DENSE or self._factor_weights(rank) >= dense or rank >= self.full_rank

    def _factor_weights(self, rank: int) -> int:
        """Weights of both layers: r (m + n), less the r x r identity of a gauge form."""
        saved = rank * rank if self.factors == "gauge" else 0
        return rank * self._weights[1] - saved

    @property
    def output_size(self) -> tuple[int, ...]:
        """(H, W) or (L,) of a convolution's output; the leading sizes of the others."""
        if self.kind in ("linear", "embedding"):
            return self.input_size
        edges = zip(self.input_size, self.kernel, self.stride, self.padding, self.dilation, strict=False)
        return tuple((size + 2 * pad - dil * (k - 1) - 1) // step + 1 for size, k, step, pad, dil in edges)

    def parts(self, rank: Rank) -> tuple[LayerSpec, ...]:
        """The layers that it is deployed as at `rank`: itself when dense, else two.

        In gauge form the second computes the outputs that the first does not; an activation stands behind both.
        """
        if rank == DENSE:
            return (self.model_copy(update={"factors": "channel"}),)
        first = self._first(rank)
        alike = self.factors == "gauge"
        # What reads the r channels: 1 wide, or 1 x kw of a spatial pair.
        second: dict[str, object] = {"kind": "linear" if self.kind == "embedding" else self.kind}
        if self.factors == "spatial":
            second |= {
                name: (default, getattr(self, name)[1])
                for name, default in (("kernel", 1), ("stride", 1), ("padding", 0), ("dilation", 1))
            }
        return first, LayerSpec.model_validate(
            {
                **second,
                "in_channels": first.out_channels,
                "out_channels": self.out_channels - rank if alike else self.out_channels,
                "groups": self.groups,
                "bias": self.bias,
                "activation": "none" if alike else self.activation,
                "input_size": first.output_size,
                "batch": self.batch,
            }
        )

    def _first(self, rank: int) -> LayerSpec:
        """What leaves r channels a group: as wide as the layer, or kh x 1 of a spatial pair."""
        update: dict[str, object] = {"out_channels": self.groups * rank, "bias": False, "activation": "none"}
        if self.factors == "gauge":
            update |= {"bias": self.bias, "factors": "channel"}
        if self.factors == "spatial":
            update |= {
                "kernel": (self.kernel[0], 1),
                "stride": (self.stride[0], 1),
                "padding": (self.padding[0], 0),
                "dilation": (self.dilation[0], 1),
                "factors": "channel",
            }
        return self.model_copy(update=update)

    def params(self, rank: Rank = DENSE) -> int:
        """Weights and bias of the layer at `rank`."""
        weights = self._weights[0] if rank == DENSE else self._factor_weights(rank)
        return weights + (self.out_channels if self.bias else 0)

    def macs(self, rank: Rank = DENSE) -> int:
        """Multiply-accumulates of one forward pass at `rank`, bias not counted; looking up takes none."""
        return self.batch * sum(
            part.out_channels * part.fan_in * math.prod(part.output_size)
            for part in self.parts(rank)
            if part.kind != "embedding"
        )

    def size_bytes(self, rank: Rank = DENSE) -> int:
        """Bytes of the layer's fp32 weights at `rank`."""
        return 4 * self.params(rank)

    def __str__(self) -> str:
        size = "x".join(map(str, self.input_size)) or "1"
        pair = "" if self.factors == "channel" else f" {self.factors}"
        if self.kind in ("linear", "embedding"):
            return f"{self.kind} {self.in_channels}→{self.out_channels}{pair} on {size}"
        sizes = len(self.input_size)
        kernel = "x".join(map(str, self.kernel[:sizes]))
        stride = f" /{self.stride[0]}" if self.stride != (1, 1) else ""
        name = "conv1d" if self.kind == "conv1d" else "conv"
        groups = f" in {self.groups} groups" if self.groups > 1 else ""
        return f"{name} {kernel} {self.in_channels}→{self.out_channels}{stride}{groups}{pair} on {size}"


class Layer(Value):
    """One call of a layer with weights in a network, in execution order."""

    name: str
    spec: LayerSpec
    ordered: bool


class Network(Value):
    """A traced network: its calls of layers in execution order, and what lies outside of them."""

    name: str
    layers: tuple[Layer, ...]
    other_params: int = 0

    @property
    def ordered(self) -> tuple[Layer, ...]:
        return tuple(layer for layer in self.layers if layer.ordered)

    def in_gauge(self, names: Collection[str]) -> Network:
        """The same network with these layers in gauge form; each must be given a rank."""
        layers = (
            layer.model_copy(update={"spec": layer.spec.gauged}) if layer.name in names else layer
            for layer in self.layers
        )
        return self.model_copy(update={"layers": tuple(layers)}) if names else self

    @cached_property
    def fingerprint(self) -> str:
        """Changes when a layer, its shape or its order changes; not with the weights, nor with the gauge form."""
        content = json.dumps([_identity(layer) for layer in self.layers], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    def params(self, ranks: Mapping[str, Rank]) -> int:
        """Parameters of the whole network at `ranks` (dense where not named), each folded from break-even on."""
        once = {layer.name: layer.spec for layer in self.layers}
        return self.other_params + sum(spec.params(_deployed(name, spec, ranks)) for name, spec in once.items())

    def macs(self, ranks: Mapping[str, Rank]) -> int:
        """Multiply-accumulates of the layers of one forward pass at `ranks`, each folded from break-even on."""
        return sum(layer.spec.macs(_deployed(layer.name, layer.spec, ranks)) for layer in self.layers)


def _deployed(name: str, spec: LayerSpec, ranks: Mapping[str, Rank]) -> Rank:
    """What cut() makes of a layer: dense from break-even on."""
    rank = ranks.get(name, DENSE)
    return DENSE if spec.folds(rank) else rank


def _identity(layer: Layer) -> object:
    content = layer.model_dump(mode="json")
    if layer.spec.factors != "spatial":
        del content["spec"]["factors"]  # tables were calibrated before there was another form
    return content


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


DOUBTFUL_ERROR = 0.05
"""Leave-one-out error of a calibration above which a plan says so."""


class LatencyTable(Saved):
    """Milliseconds per layer on one device, runtime, version, precision and number of threads.

    The source is that of its weakest row: one that is modelled makes the table modelled, and its file's name
    says so. `threads` is None where an imported file does not tell them, and where the runtime alone decides
    (Core ML).
    """

    source: Source
    device: DeviceFacts
    runtime: str
    runtime_version: str
    precision: Precision
    threads: PositiveInt | None
    created: str
    rows: tuple[LatencyRow, ...]
    calibrations: tuple[Calibration, ...] = ()
    runner_sha256: str | None = Field(default=None, description="of the native runner; None where Python measured")
    rank_step: PositiveInt | None = Field(default=None, description="found on the device; None where assumed")
    operators: tuple[OperatorRow, ...] = ()
    networks: tuple[NetworkRow, ...] = ()

    @model_validator(mode="after")
    def _source_fits(self) -> Self:
        methods = {row.method for row in self.rows}
        if "modelled" in methods and self.source != "modelled":
            raise ValueError(f"a table with modelled rows is modelled, not {self.source}")
        timed = self.source in ("measured", "emulated")
        if timed and ("imported" in methods or self.operators or self.networks):
            raise ValueError(f"a table with imported rows is imported, not {self.source}")
        return self

    @property
    def title(self) -> str:
        return f"{self.device.name}/{self.runtime}-{self.runtime_version}"

    @property
    def file_name(self) -> str:
        threads = "" if self.threads is None else f"-t{self.threads}"
        source = "" if self.source == "measured" else f".{self.source}"
        stem = f"{self.device.name}.{self.runtime}-{self.runtime_version}.{self.precision}{threads}{source}"
        return re.sub(r"[^\w.+-]+", "-", stem) + ".json"

    @property
    def disturbed(self) -> bool:
        """Whether the device was busy, or slower than before, while something in it was measured."""
        timings = [row.timing for row in self.rows if isinstance(row.timing, Timing)]
        timings += [item.timing for fit in self.calibrations for item in fit.networks]
        return any(timing.disturbed for timing in timings)

    @cached_property
    def _by_layer(self) -> dict[tuple[LayerSpec, Rank], LatencyRow]:
        return {(row.spec, row.rank): row for row in self.rows}

    def row(self, spec: LayerSpec, rank: Rank) -> LatencyRow:
        """The row of a spec at a rank.

        Raises:
            TableError: it was not measured.
        """
        try:
            return self._by_layer[spec, rank]
        except KeyError:
            raise TableError(
                f"{self.title} has no row for {spec} at rank {rank}: profile the model first"
            ) from None

    def gauge_ranks(self, spec: LayerSpec) -> tuple[int, ...]:
        """The ranks at which the gauge form of a spec was measured, ascending; none where it has no such form."""
        if not spec.has_gauge:
            return ()
        return tuple(rank for rank in self.ranks(spec.gauged) if rank != DENSE)

    def ranks(self, spec: LayerSpec) -> tuple[Rank, ...]:
        """The ranks measured for a spec, ascending, dense last."""
        found = [row.rank for row in self.rows if row.spec == spec]
        return (*sorted(rank for rank in found if rank != DENSE), *(rank for rank in found if rank == DENSE))

    def calibration(self, network: Network) -> Calibration:
        """The whole-network fit of `network`.

        Raises:
            TableError: this network was not measured as a whole.
        """
        for calibration in self.calibrations:
            if calibration.network == network.fingerprint:
                return calibration
        raise TableError(f"{self.title} is not calibrated for {network.name}: profile the model first")

    def layers_ms(self, network: Network, ranks: Mapping[str, Rank]) -> float:
        """Sum of the measured rows over every Linear and Conv2d of the network."""
        return sum(self.row(layer.spec, ranks.get(layer.name, DENSE)).ms for layer in network.layers)

    def predict_ms(self, network: Network, ranks: Mapping[str, Rank]) -> float:
        """Predicted milliseconds of the whole network at `ranks`."""
        return self.calibration(network).whole_ms(self.layers_ms(network, ranks))

    def doubts(self, network: Network) -> tuple[str, ...]:
        """What makes the table's predictions of `network` doubtful, in words; nothing when all is well."""
        error = self.calibration(network).loo_mape
        if self.source == "emulated":
            return (
                f"{self.title} was emulated: its times say nothing of a device, plans on it only try the flow",
            )
        found = []
        if error > DOUBTFUL_ERROR:
            found.append(
                f"{self.title} predicts whole networks within {100 * error:.1f} % only, more than "
                f"{100 * DOUBTFUL_ERROR:.0f} %: profile again on a calm device, or trust 'verify' alone"
            )
        if self.disturbed:
            found.append(
                f"{self.title} was measured while the device was busy or slower than before: profile again"
            )
        modelled = sum(row.method == "modelled" for row in self.rows)
        if modelled:
            found.append(f"{modelled} of {len(self.rows)} rows of {self.title} are modelled: trust 'verify' alone")
        return tuple(found)

    def over(self, older: LatencyTable) -> Self:
        """This table with what only `older` has: rows of other layers and fits of other networks.

        Nothing of a table with another device, runtime version, precision or number of threads is taken.
        """
        if (older.file_name, older.source) != (self.file_name, self.source):
            return self
        have = {(row.spec, row.rank) for row in self.rows}
        fitted = {fit.network for fit in self.calibrations}
        return self.model_copy(
            update={
                "rows": (*self.rows, *(row for row in older.rows if (row.spec, row.rank) not in have)),
                "calibrations": (
                    *self.calibrations,
                    *(fit for fit in older.calibrations if fit.network not in fitted),
                ),
            }
        )

    def save_over(self, profiles: Path) -> Self:
        """Save in the folder `profiles`, with what a table of that name there has of other layers and networks.

        Raises:
            TableError: what is there cannot be read.
        """
        path = profiles / self.file_name
        table = self.over(type(self).load(path)) if path.exists() else self
        table.save(path)
        return table

    def require(
        self, *, runtime: str, runtime_version: str, threads: int, device: str, precision: Precision = "fp32"
    ) -> None:
        """Refuse a table that was measured with something else.

        Raises:
            TableError: names the first thing that differs.
        """
        wanted = {
            "device": (self.device.name, device),
            "runtime": (self.runtime, runtime),
            "runtime version": (self.runtime_version, runtime_version),
            "threads": (self.threads, threads),
            "precision": (self.precision, precision),
        }
        for what, (have, want) in wanted.items():
            if have != want:
                raise TableError(f"{self.title} was measured with {what} {have}, not {want}: profile again")


class Cut(Value):
    """What a network cut to lower ranks loses against itself uncut, on the same inputs.

    The rise of the mean cross-entropy in nats and the fall of top-1 (0 to 1), each with the standard error of
    the mean of the differences between the two, over inputs.
    """

    loss_increase: float
    loss_se: float = Field(ge=0)
    top1_drop: float = Field(ge=-1, le=1)
    top1_se: float = Field(ge=0)
    n: PositiveInt = Field(description="targets that count, on which it was measured")

    @property
    def charge(self) -> float:
        """What a plan counts for it: the rise of the loss and one standard error, and no gain for a fall.

        The least of many noisy numbers is below its true value, so a plan that took every fall for a gain would
        cut what nothing forces it to cut.
        """
        return max(0.0, self.loss_increase) + self.loss_se


class Sensitivity(Saved):
    """What each layer of an ordered network, cut alone to each of some ranks, costs on validation inputs.

    The uncut network's loss and top-1 are of the `n` targets that any option needed.
    """

    schema_version: Literal[2] = 2  # type: ignore[assignment]
    network: str = Field(description="fingerprint of the network")
    measured_on: str = Field(default="", description="fingerprint of the weights and inputs")
    images: PositiveInt = Field(description="inputs that were given")
    base_loss: float
    base_top1: float = Field(ge=0, le=1)
    n: PositiveInt
    options: dict[str, dict[PositiveInt, Cut]] = Field(description="layer → rank → what it costs")

    def option(self, layer: str, rank: int) -> Cut:
        """What is known of this layer at this rank.

        Raises:
            TableError: it was not evaluated there.
        """
        try:
            return self.options[layer][rank]
        except KeyError:
            raise TableError(f"no sensitivity of layer {layer!r} at rank {rank}: evaluate it first") from None

    def increase(self, layer: str, rank: Rank) -> float:
        """How much the loss rises above the uncut network's; 0 for dense.

        Raises:
            TableError: this layer was not evaluated at this rank.
        """
        return 0.0 if rank == DENSE else self.option(layer, rank).loss_increase

    def charge(self, layer: str, rank: Rank) -> float:
        """What a plan counts for the layer at this rank, see Cut; 0 for dense.

        Raises:
            TableError: this layer was not evaluated at this rank.
        """
        return 0.0 if rank == DENSE else self.option(layer, rank).charge

    def accuracy_drop(self, layer: str, rank: Rank) -> float:
        """How much top-1 (0 to 1) falls below the uncut network's; 0 for dense.

        Raises:
            TableError: this layer was not evaluated at this rank.
        """
        return 0.0 if rank == DENSE else self.option(layer, rank).top1_drop


class Budget(Value):
    """At most `limit` of one quantity, in its unit."""

    quantity: Quantity
    limit: float = Field(gt=0)

    def __str__(self) -> str:
        return self.say(self.limit, digits=6)

    def say(self, value: float, digits: int = 4) -> str:
        """A number of this quantity, with its unit."""
        scale, unit = UNITS[self.quantity]
        text = f"{value / scale:,.0f}" if abs(value / scale) >= 1000 else f"{value / scale:.{digits}g}"
        return f"{text} {unit}"

    @property
    def tag(self) -> str:
        """Short, for names of files."""
        scale, unit = UNITS[self.quantity]
        return f"{self.limit / scale:g}{unit}".replace(" ", "-")


class Promise(Value):
    """What a plan makes of a budget: what the solver kept below, and what it predicts."""

    budget: Budget
    planned: float = Field(description="the limit less the margin for the prediction's error")
    predicted: float
    dense: float = Field(description="predicted for the dense network")


class LayerPlan(Value):
    """What a plan chose for one layer; `spec` tells its form."""

    name: str
    spec: LayerSpec
    rank: Rank
    ms: float
    dense_ms: float
    loss_increase: float
    charge: float = Field(description="what the solver counted for it, see Cut.charge")


class Totals(Value):
    """A whole network in numbers; `size_bytes` is that of its fp32 parameters."""

    params: int
    macs: int
    size_bytes: int
    ms: float


class RankPlan(Saved):
    """A rank or dense for every ordered layer, chosen under budgets on one table.

    `least_charge` is what no choice within the budgets can be below: the optimum, or a bound of it.
    """

    network: str
    network_name: str
    device: str
    runtime: str
    runtime_version: str
    precision: Precision
    threads: PositiveInt | None
    source: Source = Field(default="measured", description="of the table")
    promises: tuple[Promise, ...] = Field(min_length=1)
    least_charge: float
    measured_loss: Cut | None = Field(
        default=None, description="of all layers cut together, on validation inputs: the sum is an approximation"
    )
    predicted_ms: Milliseconds
    dense_ms: Milliseconds = Field(description="predicted for the dense network")
    layers: tuple[LayerPlan, ...]
    other_ms: float = Field(description="predicted outside the ordered layers")
    other_params: int
    other_macs: int

    @property
    def ranks(self) -> dict[str, Rank]:
        return {layer.name: layer.rank for layer in self.layers}

    @property
    def budgets(self) -> tuple[Budget, ...]:
        return tuple(promise.budget for promise in self.promises)

    @property
    def budget_ms(self) -> float | None:
        """The budget of the median time, if it has one."""
        return next((budget.limit for budget in self.budgets if budget.quantity == "ms"), None)

    @property
    def tag(self) -> str:
        """Its budgets, short."""
        return "-".join(budget.tag for budget in self.budgets)

    @property
    def gauge(self) -> tuple[str, ...]:
        """Names of the layers in gauge form."""
        return tuple(layer.name for layer in self.layers if layer.spec.factors == "gauge")

    @property
    def name(self) -> str:
        return variant_name(self.runtime, self.precision, self.tag)

    @property
    def loss_increase(self) -> float:
        """Predicted above the uncut network's: the layers' increases added up."""
        return sum(layer.loss_increase for layer in self.layers)

    @property
    def charge(self) -> float:
        """What the solver made as small as it could: the layers' charges added up."""
        return sum(layer.charge for layer in self.layers)

    @property
    def gap(self) -> float:
        """How much more charge than the optimum the plan has at most, in the loss's own unit."""
        return max(0.0, self.charge - self.least_charge)

    def hints(self) -> tuple[str, ...]:
        """Budgets that are likely of another unit, in words: they bound nothing."""
        return tuple(
            f"a budget of {promise.budget} is {promise.budget.limit / promise.dense:.0f} times what the dense "
            f"network takes, {promise.budget.say(promise.dense)}: was another unit meant?"
            for promise in self.promises
            if promise.budget.limit > 100 * promise.dense
        )

    def totals(self, *, dense: bool = False) -> Totals:
        """The whole network at the chosen ranks, or dense; ms is predicted."""
        chosen = [(layer.spec, DENSE if dense else layer.rank) for layer in self.layers]
        params = self.other_params + sum(spec.params(rank) for spec, rank in chosen)
        return Totals(
            params=params,
            macs=self.other_macs + sum(spec.macs(rank) for spec, rank in chosen),
            size_bytes=4 * params,
            ms=self.dense_ms if dense else self.predicted_ms,
        )


def variant_name(runtime: str, precision: Precision, tag: str) -> str:
    """Of a file and its plan; fp32 goes without saying."""
    return "-".join((runtime, *(() if precision == "fp32" else (precision,)), tag))


class MeasuredMs(Value):
    """A whole file timed on the device."""

    p50: Milliseconds
    p90: Milliseconds
    n: PositiveInt


class InputSpec(Value):
    """How an app feeds the model: resized, (pixel / 255 - mean) / std per channel, in this layout and shape.

    `resize` is `stretch` to H × W, or `crop`: first to the largest centred part of the input's aspect ratio.
    """

    shape: tuple[PositiveInt, ...]
    layout: Layout = "NCHW"
    dtype: Literal["float32"] = "float32"
    resize: Literal["stretch", "crop"] = "stretch"
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Round(Value):
    """What a plan of this variant was predicted and then measured to take, before the next one was made."""

    predicted_ms: Milliseconds
    measured_ms: MeasuredMs
    missed: tuple[Budget, ...] = ()


class Delegation(Value):
    """How much of a file's graph the accelerated `backend` takes; `fallbacks` names the other operators once."""

    backend: str
    taken: NonNegativeInt
    operators: PositiveInt
    fallbacks: tuple[str, ...] = ()

    def __str__(self) -> str:
        count = f"{self.backend} took {self.taken} of {self.operators} operators"
        if not self.fallbacks:
            return count
        return f"{count}; {', '.join(self.fallbacks)} run{'s' if len(self.fallbacks) == 1 else ''} elsewhere"


class Variant(Value):
    """One exported file: what it is, how exact it is, what it was predicted and measured to take.

    `sha256` of a folder (Core ML) is that of the lines "sha256  relative/path" sorted by path.
    `measured_ms` is None where this device cannot run the file. `sqnr_db` is capped at 200. `budget_ms` is the
    one of `budgets` that bounds the median time; `rounds` are all its plans' measurements, the last one's too.
    A file that could not be run where it was exported has no agreement, and the accuracy of its model.
    """

    name: str
    runtime: str
    runtime_version: str
    precision: Precision
    file: str
    entry: str | None = Field(
        default=None, description="signature or method of an elastic file; None: the file's only one"
    )
    sha256: str
    size_bytes: PositiveInt
    budget_ms: Milliseconds | None
    budgets: tuple[Budget, ...] = ()
    predicted_ms: Milliseconds | None
    measured_ms: MeasuredMs | None
    rounds: tuple[Round, ...] = ()
    alone: Alone | None = Field(default=None, description="where peak memory or energy is bounded")
    accuracy: float = Field(ge=0, le=1, description="top-1 on the test split; in int8 the file's own")
    validation_accuracy: float | None = Field(
        default=None, ge=0, le=1, description="what chooses among variants; the test split chooses nothing"
    )
    max_abs_error: float | None = Field(ge=0, description="None where the file was not run: nothing is known")
    sqnr_db: float | None
    top1_agreement: float | None = Field(ge=0, le=1)
    cosine: float | None = Field(default=None, ge=-1, le=1)
    delegation: Delegation | None = Field(default=None, description="None where the runtime does not tell")
    params: PositiveInt
    macs: PositiveInt
    ranks: dict[str, Rank]
    gauge: tuple[str, ...] = Field(default=(), description="layers in gauge form")
    planned_on: str | None = Field(default=None, description="device/runtime of the table that chose the ranks")

    @property
    def bounds(self) -> tuple[Budget, ...]:
        """Its budgets, also where a file tells the one in ms alone."""
        return self.budgets or (() if self.budget_ms is None else check_budgets(self.budget_ms))

    @property
    def was_run(self) -> bool:
        """Executed and compared with the model when it was exported."""
        return self.max_abs_error is not None

    @property
    def delegated(self) -> float | None:
        """The share of its operators that the accelerated backend takes."""
        return None if self.delegation is None else self.delegation.taken / self.delegation.operators

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """Names of the operators that the accelerated backend leaves to others."""
        return () if self.delegation is None else self.delegation.fallbacks

    @property
    def is_planned(self) -> bool:
        """Made for a budget; the others are the rivals that nothing was chosen in."""
        return bool(self.bounds)

    def measured(self, quantity: Quantity) -> float | None:
        """What a budget of `quantity` is held against; None where it was not measured."""
        ms, alone = self.measured_ms, self.alone
        if quantity in ("ms", "p90_ms"):
            return None if ms is None else ms.p50 if quantity == "ms" else ms.p90
        if quantity == "memory_bytes":
            return None if alone is None or alone.peak_kib is None else 1024.0 * alone.peak_kib
        if quantity == "energy_mj":
            return None if alone is None else alone.energy_mj
        return {"size_bytes": self.size_bytes, "macs": self.macs, "params": self.params}[quantity]

    @property
    def missed(self) -> tuple[Budget, ...]:
        """The budgets that the measurement is above."""
        found = []
        for budget in self.bounds:
            value = self.measured(budget.quantity)
            if value is not None and value > budget.limit:
                found.append(budget)
        return tuple(found)


class Choice(Value):
    """The variant for the devices that it describes; None describes any."""

    soc: str | None = None
    memory_gib: float | None = Field(default=None, gt=0, description="at least this much")
    runtime: str | None = None
    variant: str


class Manifest(Saved):
    """What an app reads: the only description of a bundle folder.

    `choices` are for apps without a budget: the first that fits the device decides, so the last is the fallback.
    """

    device: DeviceFacts
    model: str
    labels: tuple[str, ...]
    input: InputSpec
    choices: tuple[Choice, ...] = ()
    variants: tuple[Variant, ...]


def check_budget(given: float | str, quantity: Quantity = "ms") -> float:
    """A budget as a positive finite number, in the unit that the quantity is told in.

    Raises:
        BudgetError: it is not.
    """
    value = _positive(given)
    if value is None:
        what = "a time: give positive milliseconds, such as 2.5"
        if quantity not in ("ms", "p90_ms"):
            what = f"an amount of {UNITS[quantity][1]}: give a positive number"
        raise BudgetError(f"a budget of {given!r} is not {what}")
    return value


def check_budgets(budgets: float | str | Budget | Sequence[Budget]) -> tuple[Budget, ...]:
    """Budgets, of which a number stands for milliseconds.

    Raises:
        BudgetError: there is none, one is not positive and finite, or two are of one quantity.
    """
    if isinstance(budgets, Budget):
        return (budgets,)
    if isinstance(budgets, Sequence) and not isinstance(budgets, str):
        quantities = [budget.quantity for budget in budgets]
        twice = next((quantity for quantity in quantities if quantities.count(quantity) > 1), None)
        if twice or not quantities:
            what = f"two budgets of {UNITS[twice][1]}" if twice else "no budget"
            raise BudgetError(f"{what}: give one of each quantity that is bounded")
        return tuple(budgets)
    return (Budget(quantity="ms", limit=check_budget(budgets)),)


def _positive(number: float | str) -> float | None:
    try:
        value = float(number)
    except (TypeError, ValueError, OverflowError):
        return None
    return value if math.isfinite(value) and value > 0 else None
