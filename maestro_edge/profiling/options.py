"""Which ranks are worth measuring, and which whole networks hold them all."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Mapping

from maestro_edge.values import DENSE, LayerSpec, Network, Rank

__all__ = [
    "Key",
    "calibrating_ranks",
    "covering_ranks",
    "gauge_rows",
    "int8_rows",
    "layer_options",
    "mixtures",
    "random_ranks",
    "rank_options",
    "wanted_rows",
]

Key = tuple[LayerSpec, Rank]


def rank_options(spec: LayerSpec, *, step: int, rank: int | None = None, limit: int = 6) -> tuple[int, ...]:
    """Ranks on the runtime's steps, below break-even and not above `rank`, ascending, at most `limit`.

    Above break-even a layer is deployed dense. Where there are more than `limit`, they are thinned evenly,
    keeping the smallest and the largest.
    """
    top = min(spec.full_rank if rank is None else rank, spec.full_rank)
    found = [r for r in range(step, top + 1, step) if r < spec.break_even_rank]
    if len(found) <= limit:
        return tuple(found)
    return tuple(found[round(i * (len(found) - 1) / (limit - 1))] for i in range(limit))


Options = Mapping[str, tuple[int, ...]]


def _smallest(options: Options) -> dict[str, Rank]:
    """The rank set in which every layer is at its first option."""
    return {name: ranks[0] for name, ranks in options.items() if ranks}


def random_ranks(options: Options, count: int, *, seed: int) -> list[dict[str, Rank]]:
    """Seeded random rank sets: each layer at one of its options or dense, all equally likely."""
    draw = random.Random(seed)
    return [{name: draw.choice((*ranks, DENSE)) for name, ranks in options.items() if ranks} for _ in range(count)]


def layer_options(network: Network, ranks: Mapping[str, int], *, step: int) -> dict[str, tuple[int, ...]]:
    """The ranks to measure of each ordered layer that has `ranks[name]` components."""
    return {layer.name: rank_options(layer.spec, step=step, rank=ranks[layer.name]) for layer in network.ordered}


def gauge_rows(network: Network, names: Collection[str], ranks: Mapping[str, int], *, step: int) -> set[Key]:
    """The distinct specs of the layers `names` in gauge form, at ranks on the runtime's steps below full rank."""
    return {
        (layer.spec.gauged, rank)
        for layer in network.ordered
        if layer.name in names
        for rank in rank_options(layer.spec.gauged, step=step, rank=ranks[layer.name])
    }


def int8_rows(network: Network, options: Options) -> set[Key]:
    """The distinct specs of the ordered layers that may be in int8, dense and at their ranks."""
    keys: set[Key] = set()
    for layer in network.ordered:
        if layer.spec.has_int8:
            keys.add((layer.spec.quantised, DENSE))
            keys.update((layer.spec.quantised, rank) for rank in options[layer.name])
    return keys


def mixtures(network: Network, count: int, *, seed: int) -> list[tuple[str, ...]]:
    """Names of ordered layers in int8: first all that may be, then `count` times a random half of them."""
    draw = random.Random(seed)
    names = [layer.name for layer in network.ordered if layer.spec.has_int8]
    return [tuple(names), *(tuple(name for name in names if draw.random() < 0.5) for _ in range(count))]


def wanted_rows(network: Network, options: Options) -> set[Key]:
    """Every distinct spec dense, and at the ranks of the layers that have it."""
    keys: set[Key] = {(layer.spec, DENSE) for layer in network.layers}
    for layer in network.ordered:
        keys.update((layer.spec, rank) for rank in options[layer.name])
    return keys


def calibrating_ranks(options: Options, *, seed: int) -> list[dict[str, Rank]]:
    """Rank sets of the whole networks that calibrate a table: dense, all at their smallest, and five mixed."""
    return [{}, _smallest(options), *random_ranks(options, 5, seed=seed)]


def covering_ranks(network: Network, options: Options, *, seed: int) -> list[dict[str, Rank]]:
    """The same, of networks that are traced: each layer shape is at each of its ranks in one of them at least.

    Layers of one shape share its ranks out, so that few networks hold them all: as many as the shape needs that
    has the most ranks to a layer, but three at least. Where ranks are left over, layers are at random ones or
    dense, as in `random_ranks`.
    """
    alike: dict[tuple[LayerSpec, tuple[int, ...]], list[str]] = {}
    for layer in network.ordered:
        if options[layer.name]:
            alike.setdefault((layer.spec, options[layer.name]), []).append(layer.name)
    count = max([3, *(math.ceil((len(ranks) - 1) / len(names)) for (_, ranks), names in alike.items())])
    draw = random.Random(seed)
    mixed: list[dict[str, Rank]] = [{} for _ in range(count)]
    for (_, ranks), names in alike.items():
        wanted: list[Rank] = [*ranks[1:]]  # all are at their smallest in a set of their own
        wanted += [draw.choice((*ranks, DENSE)) for _ in range(count * len(names) - len(wanted))]
        draw.shuffle(wanted)
        for index, rank in enumerate(wanted):
            mixed[index % count][names[index // count]] = rank
    return [{}, _smallest(options), *mixed]
