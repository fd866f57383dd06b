"""Layers and networks as their shapes alone: what decides how long they take."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Literal, Self

from pydantic import PositiveInt, model_validator

from maestro_edge.values.base import DENSE, Pair, Rank, Value

__all__ = ["Layer", "LayerSpec", "Network"]


class LayerSpec(Value):
    """All that decides how long a layer takes: equal specs are measured once, for every network.

    `input_size` is (H, W) for conv2d, (L,) for conv1d, and the leading sizes without the batch, such as
    (tokens,), for linear and embedding. A conv1d uses the first of each pair; an embedding has as many
    `in_channels` as tokens in its vocabulary. `factors` tells a k x k and a 1 x 1 convolution ("channel") from a
    k x 1 and a 1 x k one ("spatial"), and from two side by side whose first leaves r of the outputs ("gauge").
    `int8` tells a layer of a mixed network that is in int8-dynamic from those in fp32.
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
    int8: bool = False

    @model_validator(mode="after")
    def _has_factors(self) -> Self:
        if self.factors == "gauge" and not self.has_gauge:
            raise ValueError("only a linear layer, and a convolution of one group, has a gauge form")
        if self.int8 and not self.has_int8:
            raise ValueError(
                "only a linear layer, and a convolution of one group, is in int8, and in no gauge form"
            )
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
    def has_int8(self) -> bool:
        """Whether it may be in int8 in a mixed network.

        XNNPACK has no dynamic kernel for depthwise convolutions, of which one of a single channel is one; an
        embedding computes nothing.
        """
        depthwise = self.kind != "linear" and self.in_channels == self.groups
        return self.kind != "embedding" and self.groups == 1 and not depthwise and self.factors != "gauge"

    @property
    def quantised(self) -> LayerSpec:
        """The same layer in int8-dynamic: a mixed table's rows of it are those of this spec.

        Raises:
            ValidationError: it is none that may be.
        """
        return LayerSpec.model_validate(self.model_dump() | {"int8": True})

    @property
    def plain(self) -> LayerSpec:
        """The layer that this is a form of: no gauge form, in the precision of the others."""
        factors = "channel" if self.factors == "gauge" else self.factors
        return self.model_copy(update={"factors": factors, "int8": False})

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
                "int8": self.int8,
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
        """Bytes of the layer's weights at `rank`: in fp32, or in int8 where it says so."""
        return (1 if self.int8 else 4) * self.params(rank)

    def __str__(self) -> str:
        size = "x".join(map(str, self.input_size)) or "1"
        pair = ("" if self.factors == "channel" else f" {self.factors}") + (" int8" if self.int8 else "")
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

    def in_int8(self, names: Collection[str]) -> Network:
        """The same network with these layers in int8."""
        layers = (
            layer.model_copy(update={"spec": layer.spec.quantised}) if layer.name in names else layer
            for layer in self.layers
        )
        return self.model_copy(update={"layers": tuple(layers)}) if names else self

    @cached_property
    def fingerprint(self) -> str:
        """Changes when a layer, its shape or its order changes; not with weights, precision or the gauge form."""
        content = json.dumps([_identity(layer) for layer in self.layers], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    def params(self, ranks: Mapping[str, Rank]) -> int:
        """Parameters of the whole network at `ranks` (dense where not named), each folded from break-even on."""
        once = {layer.name: layer.spec for layer in self.layers}
        return self.other_params + sum(spec.params(_deployed(name, spec, ranks)) for name, spec in once.items())

    def size_bytes(self, ranks: Mapping[str, Rank]) -> int:
        """Bytes of the parameters at `ranks`, in fp32 but for layers in int8, each folded from break-even on."""
        once = {layer.name: layer.spec for layer in self.layers}
        layers = (spec.size_bytes(_deployed(name, spec, ranks)) for name, spec in once.items())
        return 4 * self.other_params + sum(layers)

    def macs(self, ranks: Mapping[str, Rank]) -> int:
        """Multiply-accumulates of the layers of one forward pass at `ranks`, each folded from break-even on."""
        return sum(layer.spec.macs(_deployed(layer.name, layer.spec, ranks)) for layer in self.layers)


def _deployed(name: str, spec: LayerSpec, ranks: Mapping[str, Rank]) -> Rank:
    """What cut() makes of a layer: dense from break-even on."""
    rank = ranks.get(name, DENSE)
    return DENSE if spec.folds(rank) else rank


def _identity(layer: Layer) -> object:
    content = layer.model_dump(mode="json", exclude={"spec": {"int8"}})
    if layer.spec.factors != "spatial":
        del content["spec"]["factors"]  # tables were calibrated before there was another form
    return content
