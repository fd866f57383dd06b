"""chain_sampler(): the default sampler, with the sizes that plans will want of the network that it trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from maestro_edge.errors import CheckpointError, TableError
from maestro_edge.ordered import Ordered, ordered_layers, trace
from maestro_edge.planning import chain, measure_sensitivity
from maestro_edge.recipes.run import Progress, Run
from maestro_edge.training import AlternatingSampler, Sampler, TrainSettings
from maestro_edge.values import LatencyTable, Rank, Saved

__all__ = ["Chain", "chain_sampler"]

_SHARES = (0.06, 0.12, 0.25, 0.4, 0.6, 0.8)
_PROFILES = 8


class Chain(Saved):
    """Nested rank profiles of a network, from large to small."""

    network: str
    profiles: tuple[dict[str, Rank], ...]


def chain_sampler(
    run: Run,
    settings: TrainSettings,
    folder: Path,
    *,
    table: LatencyTable | None = None,
    progress: Progress | None = None,
) -> Callable[[nn.Module], Sampler | None]:
    """What makes the sampler of a training in `folder` from its trained start; None stands for the settings' own.

    Only the alternating sampler has a chain, and only of a network that is meant to be cut to many sizes: a
    target or a penalty moves the ranks themselves. The chain comes from losses on training inputs, never
    validation, and costs as `table` says, else multiply-accumulates. It is kept in the folder: a resumed
    training, and every process of one, goes on with the same.

    Raises:
        CheckpointError: the folder holds the chain of another network.
        TableError: the table lacks a layer of the network, or has no rank that is faster than dense.
    """

    def make(model: nn.Module) -> Sampler | None:
        if settings.sampler != "alternating" or settings.target is not None or settings.penalty:
            return None
        path = folder / "chain.json"
        if not path.exists():
            if (folder / "checkpoint.json").exists():
                return None  # resumed, and begun without a chain
            _find(run, model, table, progress).save(path)
        found = Chain.load(path)
        if ordered_layers(model) and trace(model, run.example).fingerprint != found.network:
            raise CheckpointError(f"{path} is of another network: choose another folder")
        return AlternatingSampler(profiles=found.profiles)

    return make


def _tried(layer: Ordered) -> set[int]:
    return {max(1, round(share * layer.rank)) for share in _SHARES}


def _find(run: Run, model: nn.Module, table: LatencyTable | None, progress: Progress | None) -> Chain:
    network = trace(model, run.example)
    ranks = {
        name: sorted(rank for rank in _tried(layer) if not layer.above_break_even(rank))
        for name, layer in ordered_layers(model).items()
    }
    sensitivity = measure_sensitivity(
        model,
        network,
        [] if table is None else [table],
        *run.loss_inputs(run.data.train),
        ranks=ranks if table is None else None,
        progress=progress,
    )
    try:
        profiles = chain(network, sensitivity, table=table, profiles=_PROFILES)
    except TableError:
        if table is not None:
            raise
        profiles = ()  # so small a network that no rank of any layer is cheaper than the layer
    return Chain(network=network.fingerprint, profiles=profiles)
