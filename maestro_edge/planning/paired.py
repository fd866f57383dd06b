"""A network cut against the same network uncut, input by input: what the cut costs, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from maestro_edge.errors import DataError
from maestro_edge.ordered import at_ranks, evaluating, ordered_layers
from maestro_edge.planning.replay import Replay, merged_once, replaying
from maestro_edge.planning.rounding import Rounding, rounding
from maestro_edge.values import DENSE, Cut, Rank

__all__ = ["CHUNK", "Paired", "Uncut", "joined", "pairing"]

CHUNK = 64
"""Inputs that run at once: enough for the batch statistics of BatchNorm, few enough that an option that two
chunks decide costs little."""

_KEPT_BYTES = 2**31
_PROOF = 8  # inputs on which it is found out what may be remembered
_IGNORED = -100  # what torch's cross-entropy leaves out: padding in a batch of sentences


class Uncut(NamedTuple):
    """Mean cross-entropy and top-1 (0 to 1) of the uncut network over the n targets that count."""

    loss: float
    top1: float
    n: int

    def joined(self, other: Uncut) -> Uncut:
        """The means over the targets of both."""
        n = self.n + other.n
        loss, top1 = ((self.n * a + other.n * b) / n for a, b in zip(self[:2], other[:2], strict=True))
        return Uncut(loss, top1, n)


class _Outcome(NamedTuple):
    """Of each input, (N,): the sum of its cross-entropies, and how many of its targets were top-1."""

    loss: Tensor
    right: Tensor


class Paired:
    """A model on chunks of inputs (N, …) in random order: first uncut, then at any ranks.

    A chunk is smaller than asked for where what is remembered of it would take more than 2 GiB.
    `until[k]` is the number of targets that count in the chunks before the k-th.
    """

    def __init__(self, replay: Replay, inputs: Tensor, targets: Tensor, size: int, rounded: Rounding) -> None:
        # Files are often sorted by class, and a chunk has to be a sample of all.
        order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
        self._inputs, self._targets, self._replay, self._rounded = inputs, targets, replay, rounded
        few = inputs[order[:_PROOF]]
        self._layout = self._proven_layout(few)
        fitting = _KEPT_BYTES * len(few) // max(1, replay.kept_bytes())
        size = max(1, min(size, max(_PROOF, fitting)))
        # Chunks of one size: BatchNorm could do nothing with a last one of a single input.
        self._chunks = order.tensor_split(math.ceil(len(inputs) / size))
        counts = [int((targets[chosen] != _IGNORED).sum()) for chosen in self._chunks]
        self.until = list(accumulate(counts, initial=0))

    def __len__(self) -> int:
        return len(self._chunks)

    def begin(self, chunk: int) -> Uncut:
        """Run the uncut model on this chunk, in which a target must count."""
        chosen = self._chunks[chunk]
        self._wanted = self._targets[chosen]
        self._weights = (self._wanted != _IGNORED).reshape(len(chosen), -1).sum(1).double()
        logits = self._replay.record(self._inputs[chosen].contiguous(memory_format=self._layout))
        self._base = _outcome(logits, self._wanted)
        n = int(self._weights.sum())
        return Uncut(float(self._base.loss.sum()) / n, float(self._base.right.sum()) / n, n)

    def cut(self, ranks: Mapping[str, Rank], *, int8: Collection[str] = ()) -> Cut:
        """What these ranks, and int8 in the layers named, cost on the chunk that began last."""
        with at_ranks(self._replay.model, ranks), self._rounded.of(int8):
            changed = {name for name, rank in ranks.items() if rank != DENSE} | set(int8)
            found = _outcome(self._replay.after(changed), self._wanted)
        loss, loss_se = _mean(found.loss - self._base.loss, self._weights)
        drop, drop_se = _mean(self._base.right - found.right, self._weights)
        n = int(self._weights.sum())
        return Cut(loss_increase=loss, loss_se=loss_se, top1_drop=drop, top1_se=drop_se, n=n)

    def _proven_layout(self, few: Tensor) -> torch.memory_format:
        """Channels last for images, where the model takes it: convolutions on processors are faster so."""
        layers = ordered_layers(self._replay.model)
        if few.dim() == 4:
            try:
                self._replay.prove(few.contiguous(memory_format=torch.channels_last), layers)
                return torch.channels_last
            except RuntimeError:
                pass  # a view() needs the usual layout, or the model fails in any: the next line tells
        self._replay.prove(few, layers)
        return torch.contiguous_format


def _outcome(logits: Tensor, targets: Tensor) -> _Outcome:
    rows, flat = logits.float().reshape(-1, logits.shape[-1]), targets.flatten()
    losses = F.cross_entropy(rows, flat, reduction="none", ignore_index=_IGNORED).double()
    right = (rows.argmax(1) == flat).double()
    return _Outcome(losses.reshape(len(targets), -1).sum(1), right.reshape(len(targets), -1).sum(1))


def _mean(sums: Tensor, weights: Tensor) -> tuple[float, float]:
    """The mean over all targets and its standard error; (N,) sums over each input's targets, and their numbers.

    Inputs are the samples, not targets: the words of one sentence are right or wrong together. So it is a ratio
    of two means, with the standard error of one (Cochran, Sampling Techniques, 1977, §2.11); with one target an
    input, that is the ordinary one. One input alone tells no error: its own value stands for it.
    """
    total, inputs = float(weights.sum()), int((weights > 0).sum())
    mean = float(sums.sum()) / total
    if inputs < 2:
        return mean, abs(mean)
    spread = float((sums - mean * weights).square().sum())
    return mean, math.sqrt(spread * inputs / (inputs - 1)) / total


def joined(known: Cut | None, new: Cut) -> Cut:
    """What two sets of inputs say together, each with its own error (stratified sampling, Cochran, §5.3-5.4)."""
    if known is None:
        return new
    n = known.n + new.n
    return Cut(
        loss_increase=(known.n * known.loss_increase + new.n * new.loss_increase) / n,
        loss_se=math.hypot(known.n * known.loss_se, new.n * new.loss_se) / n,
        top1_drop=(known.n * known.top1_drop + new.n * new.top1_drop) / n,
        top1_se=math.hypot(known.n * known.top1_se, new.n * new.top1_se) / n,
        n=n,
    )


@contextmanager
def pairing(model: nn.Module, inputs: Tensor, targets: Tensor, *, chunk: int) -> Iterator[Paired]:
    """The model as Paired inside the block, untouched after it; BatchNorm uses the statistics of each chunk.

    Raises:
        DataError: no target counts.
    """
    if not bool((targets != _IGNORED).any()):
        raise DataError(f"none of the targets of {len(targets)} inputs counts (all are {_IGNORED}): give others")
    with (
        _batch_statistics(model),
        at_ranks(model, {}),
        merged_once(model),
        rounding(model) as rounded,
        replaying(model) as replay,  # last: it counts the calls of all that the others put in
    ):
        yield Paired(replay, inputs, targets, chunk, rounded)


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
