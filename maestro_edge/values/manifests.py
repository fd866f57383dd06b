"""What a bundle says of its files: how each was made, checked and timed, and which a device takes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from maestro_edge.values.base import Layout, Milliseconds, Precision, Quantity, Rank, Saved, Value
from maestro_edge.values.budgets import Budget, check_budgets
from maestro_edge.values.timings import Alone, DeviceFacts

__all__ = ["Choice", "Delegation", "InputSpec", "Manifest", "MeasuredMs", "Round", "Variant"]


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
        default=None,
        description="signature, method or function of a file that holds several; None: the file's only one",
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
    int8: tuple[str, ...] = Field(default=(), description="layers in int8 of a mixed file, all others are in fp32")
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
