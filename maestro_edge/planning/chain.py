"""chain(): nested rank profiles from large to small, each the best of its size that its larger ones allow."""

from __future__ import annotations

import math
from heapq import heapify, heappop, heappush

from maestro_edge.errors import TableError
from maestro_edge.planning.greedy import Knapsack, Option, hulls
from maestro_edge.values import DENSE, LatencyTable, Layer, Network, Rank, Sensitivity

__all__ = ["chain"]


def chain(
    network: Network, sensitivity: Sensitivity, *, table: LatencyTable | None = None, profiles: int = 8
) -> tuple[dict[str, Rank], ...]:
    """At most `profiles` nested rank profiles, evenly spread in the logarithm of their cost.

    FlexRank (ICML 2026) finds its chain by dynamic programming; here every layer walks down the convex hull of
    its (cost, loss) options and the step of the whole network that gives up the least loss for its cost goes
    first, which is optimal at every size that the walk stops at (Fox, Operations Research 1966). Cost is in
    multiply-accumulates, or in milliseconds of `table`: training then spends itself on sizes the device uses.

    Raises:
        TableError: the sensitivities are of another network, or offer no cheaper rank.
    """
    if sensitivity.network != network.fingerprint:
        raise TableError(f"the sensitivity table is of another network than {network.name}: measure it again")
    ranks = {layer.name: _ranks(layer, sensitivity, table) for layer in network.ordered}
    options = {
        layer.name: [
            Option((_cost(layer, r, table),), sensitivity.increase(layer.name, r)) for r in ranks[layer.name]
        ]
        for layer in network.ordered
    }
    problem = Knapsack.of(list(options.values()), [0.0])
    corners = hulls(problem.costs[0], problem.losses)
    paths = {name: _falling(path.tolist(), ranks[name]) for name, path in zip(options, corners, strict=True)}
    walked = _walk(options, paths)
    if not walked:
        raise TableError(f"no rank in the sensitivities of {network.name} is cheaper than dense: add smaller ones")
    dense = sum(_cost(layer, DENSE, table) for layer in network.layers)
    costs = [dense - saved for saved, _ in walked]
    chosen = _spread(costs, dense, profiles)
    return tuple({name: ranks[name][paths[name][at]] for name, at in walked[i][1].items()} for i in chosen)


def _ranks(layer: Layer, sensitivity: Sensitivity, table: LatencyTable | None) -> list[Rank]:
    known = sorted(sensitivity.options.get(layer.name, {}))
    timed = known if table is None else [rank for rank in known if rank in table.ranks(layer.spec)]
    dense = _cost(layer, DENSE, table)
    return [*(rank for rank in timed if _cost(layer, rank, table) < dense), DENSE]


def _falling(path: list[int], ranks: list[Rank]) -> list[int]:
    """The hull without options whose rank is above an earlier one's: a noisy table may have some."""
    kept: list[int] = []
    for at in path:
        rank = ranks[at]
        before = DENSE if not kept else ranks[kept[-1]]
        if before == DENSE or (rank != DENSE and rank < before):
            kept.append(at)
    return kept


def _cost(layer: Layer, rank: Rank, table: LatencyTable | None) -> float:
    return float(layer.spec.macs(rank)) if table is None else table.row(layer.spec, rank).ms


def _walk(options: dict[str, list[Option]], paths: dict[str, list[int]]) -> list[tuple[float, dict[str, int]]]:
    """After each step: what it has saved in all, and how far down its hull each layer is."""

    def price(name: str, at: int) -> float:
        here, there = (options[name][paths[name][i]] for i in (at, at + 1))
        return (there.loss - here.loss) / (here.costs[0] - there.costs[0])

    position = dict.fromkeys(paths, 0)
    # A rank may cost less and lose less than dense: the walk starts where each layer's hull does.
    saved = sum(options[name][-1].costs[0] - options[name][path[0]].costs[0] for name, path in paths.items())
    steps = [(price(name, 0), name) for name, path in paths.items() if len(path) > 1]
    heapify(steps)
    walked = []
    while steps:
        _, name = heappop(steps)
        at = position[name] = position[name] + 1
        saved += options[name][paths[name][at - 1]].costs[0] - options[name][paths[name][at]].costs[0]
        if at + 1 < len(paths[name]):
            heappush(steps, (price(name, at), name))
        walked.append((saved, dict(position)))
    return walked


def _spread(costs: list[float], dense: float, count: int) -> list[int]:
    """Indices of at most `count` costs, evenly spread between dense and the last in their logarithm."""
    wanted = [dense * (costs[-1] / dense) ** (k / count) for k in range(1, count + 1)]
    nearest = {min(range(len(costs)), key=lambda i: abs(math.log(costs[i] / cost))) for cost in wanted}
    return sorted(nearest)
