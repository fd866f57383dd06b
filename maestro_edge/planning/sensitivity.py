"""How much the validation loss rises when one layer alone is cut."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from maestro_edge.ordered import at_ranks, evaluating, ordered_layers
from maestro_edge.values import DENSE, LatencyTable, Network, Sensitivity

__all__ = ["measure_sensitivity"]


@torch.no_grad()
def measure_sensitivity(
    model: nn.Module,
    network: Network,
    tables: Sequence[LatencyTable],
    inputs: Tensor,
    targets: Tensor,
    *,
    ranks: Mapping[str, Sequence[int]] | None = None,
    path: Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Sensitivity:
    """Mean cross-entropy on prepared validation `inputs` (N, …), each layer cut alone to each measured rank.

    The ranks are those of the tables, and those given beside them. A target of -100 does not count.

    BatchNorm uses the statistics of these inputs: a cut network is recalibrated before it ships, so the
    statistics of the uncut one would charge each cut for an error that it will not have. With `path` every
    finished layer is saved there, and what was saved for the same network, weights and images is kept.
    """
    options = _measured_ranks(model, network, tables, ranks or {})
    total = 1 + sum(map(len, options.values()))
    done = 0

    def loss() -> float:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total, "cutting one layer at a time")
        logits = model(inputs).float()
        return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.flatten()).item()

    with _batch_statistics(model):
        table = _saved(path, network, len(targets), loss())
        losses = {layer: dict(known) for layer, known in table.losses.items()}
        for layer, asked in options.items():
            known = losses.setdefault(layer, {})
            missing = [rank for rank in asked if str(rank) not in known]
            done += len(asked) - len(missing)
            for rank in missing:
                with at_ranks(model, {layer: rank}):
                    known[str(rank)] = loss()
            table = table.model_copy(update={"losses": losses})
            if missing and path is not None:
                table.save(path)
    return table


def _saved(path: Path | None, network: Network, images: int, base_loss: float) -> Sensitivity:
    """What `path` holds for this network, weights and images; the uncut loss tells the weights apart."""
    fresh = Sensitivity(network=network.fingerprint, images=images, base_loss=base_loss, losses={})
    if path is None or not path.exists():
        return fresh
    found = Sensitivity.load(path)
    same = found.network == fresh.network and found.images == images
    return found if same and math.isclose(found.base_loss, base_loss, rel_tol=1e-5) else fresh


def _measured_ranks(
    model: nn.Module, network: Network, tables: Sequence[LatencyTable], ranks: Mapping[str, Sequence[int]]
) -> dict[str, list[int]]:
    """The ranks of each ordered layer that any of the tables has a time for or that are given, ascending."""
    layers = ordered_layers(model)
    found = {}
    for layer in network.ordered:
        timed = (rank for table in tables for rank in table.ranks(layer.spec) if rank != DENSE)
        in_gauge = (rank for table in tables for rank in table.gauge_ranks(layer.spec))
        asked = {*timed, *in_gauge, *ranks.get(layer.name, ())}
        found[layer.name] = sorted(rank for rank in asked if 1 <= rank <= layers[layer.name].rank)
    return found


@contextmanager
def _batch_statistics(model: nn.Module) -> Iterator[None]:
    """Eval mode, but BatchNorm normalises by the batch at hand and learns nothing from it."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    saved = [
        (norm, norm.momentum, None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone())
        for norm in norms
    ]
    with evaluating(model):
        for norm in norms:
            norm.momentum = 0.0
            norm.train()
        try:
            yield
        finally:
            for norm, momentum, counted in saved:
                norm.momentum = momentum
                if counted is not None and norm.num_batches_tracked is not None:
                    norm.num_batches_tracked.copy_(counted)
