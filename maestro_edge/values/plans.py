"""What cuts cost, and the rank of every layer that was chosen by it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, PositiveInt

from maestro_edge.errors import TableError
from maestro_edge.values.base import DENSE, Milliseconds, Precision, Rank, Saved, Source, Value
from maestro_edge.values.budgets import Budget
from maestro_edge.values.networks import LayerSpec

__all__ = ["Cut", "LayerPlan", "Promise", "RankPlan", "Sensitivity", "Totals", "variant_name"]


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
    int8: dict[str, dict[Rank, Cut]] = Field(
        default={}, description="layer → rank → what it costs in int8 too, as emulated in PyTorch"
    )

    def option(self, layer: str, rank: Rank, *, int8: bool = False) -> Cut:
        """What is known of this layer at this rank; of a dense one in int8 only.

        Raises:
            TableError: it was not evaluated there.
        """
        known: Mapping[Any, Cut] = (self.int8 if int8 else self.options).get(layer, {})
        if rank not in known:
            form = f"rank {rank}{' in int8' if int8 else ''}"
            raise TableError(f"no sensitivity of layer {layer!r} at {form}: evaluate it first")
        return known[rank]

    def increase(self, layer: str, rank: Rank, *, int8: bool = False) -> float:
        """How much the loss rises above the uncut network's; 0 for dense, unless in int8.

        Raises:
            TableError: this layer was not evaluated at this rank.
        """
        return 0.0 if rank == DENSE and not int8 else self.option(layer, rank, int8=int8).loss_increase

    def charge(self, layer: str, rank: Rank, *, int8: bool = False) -> float:
        """What a plan counts for the layer at this rank, see Cut; 0 for dense, unless in int8.

        Raises:
            TableError: this layer was not evaluated at this rank.
        """
        return 0.0 if rank == DENSE and not int8 else self.option(layer, rank, int8=int8).charge

    def accuracy_drop(self, layer: str, rank: Rank) -> float:
        """How much top-1 (0 to 1) falls below the uncut network's; 0 for dense.

        Raises:
            TableError: this layer was not evaluated at this rank.
        """
        return 0.0 if rank == DENSE else self.option(layer, rank).top1_drop


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
    """A whole network in numbers; `size_bytes` is that of its parameters, in fp32 but for layers in int8."""

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
    def int8(self) -> tuple[str, ...]:
        """Names of the layers in int8 of a mixed plan."""
        return tuple(layer.name for layer in self.layers if layer.spec.int8)

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
        chosen = [(layer.spec.plain, DENSE) if dense else (layer.spec, layer.rank) for layer in self.layers]
        params = self.other_params + sum(spec.params(rank) for spec, rank in chosen)
        return Totals(
            params=params,
            macs=self.other_macs + sum(spec.macs(rank) for spec, rank in chosen),
            size_bytes=4 * self.other_params + sum(spec.size_bytes(rank) for spec, rank in chosen),
            ms=self.dense_ms if dense else self.predicted_ms,
        )


def variant_name(runtime: str, precision: Precision, tag: str) -> str:
    """Of a file and its plan; fp32 goes without saying."""
    return "-".join((runtime, *(() if precision == "fp32" else (precision,)), tag))
