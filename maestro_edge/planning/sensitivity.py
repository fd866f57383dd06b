"""What every option of every layer costs: loss and top-1 on validation inputs when one layer alone is cut."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from maestro_edge.errors import TableError
from maestro_edge.ordered import ordered_layers
from maestro_edge.planning.paired import CHUNK, Paired, Uncut, joined, pairing
from maestro_edge.values import DENSE, Cut, LatencyTable, Layer, Network, Rank, Sensitivity

__all__ = ["TOLERANCE", "measure_sensitivity"]

Progress = Callable[[int, int, str], None]


class _Option(NamedTuple):
    """What a layer may become: cut to a rank, in int8, or both."""

    rank: Rank
    int8: bool = False


TOLERANCE = 0.1
"""`benchmarks/sensitivity.py` tells what this saves, and how far the result is from that of all inputs."""

_LEAST_CHUNKS = 2
_FLOOR = 0.1
"""Share of the uncut loss below which an increase need not be told from another: twenty layers, each wrong by a
standard error of a tenth of this, make a plan's increase wrong by less than 5 % of the loss."""


@torch.no_grad()
def measure_sensitivity(
    model: nn.Module,
    network: Network,
    tables: Sequence[LatencyTable],
    inputs: Tensor,
    targets: Tensor,
    *,
    ranks: Mapping[str, Sequence[int]] | None = None,
    tolerance: float = TOLERANCE,
    chunk: int = CHUNK,
    path: Path | None = None,
    progress: Progress | None = None,
) -> Sensitivity:
    """Loss and top-1 on prepared validation `inputs` (N, …), each layer cut alone to each rank that may pay.

    The ranks are those that any of the tables has no slower than dense, and those given beside them; of a mixed
    table also int8 where it is faster, as emulated here (planning/rounding.py). Targets are (N,) or (N, T); one
    of -100 does not count.

    Inputs run in chunks of a fixed random order. An option is settled, and gets no more of them, when after two
    chunks or more the standard error of its loss increase is below `tolerance` times the increase, or times a
    tenth of the uncut loss where that is more; a tolerance of 0 uses all inputs. Intervals after such a rule
    hold in the limit of a small tolerance (Chow and Robbins, Annals of Mathematical Statistics 1965; Nádas,
    ibid. 1969, for a relative one); where few inputs settle an option they are somewhat too narrow.

    What comes before the cut layer is remembered from the uncut run of the chunk, and forgotten with it.
    BatchNorm uses the statistics of the chunk: a cut network is recalibrated before it ships, so the statistics
    of the uncut one would charge each cut for an error that it will not have.

    With `path` every finished layer of a chunk is saved there, and what was saved for the same network, weights
    and inputs is gone on with.

    Raises:
        DataError: no target counts.
    """
    asked = _asked(model, network, tables, ranks or {})
    of = _Of(network.fingerprint, _fingerprint(model, inputs, targets, chunk), len(targets))
    with pairing(model, inputs, targets, chunk=chunk) as paired:
        session = _Session(paired, asked, of, tolerance, path)
        for index in range(len(paired)):
            for _ in session.run(index):
                if progress is not None:
                    progress(*session.done(), "cutting one layer at a time")
    return session.made()


class _Of(NamedTuple):
    """What a saved table has in common with the one to be made, when it can be gone on with."""

    network: str
    measured_on: str
    images: int


class _Session:
    """What is known of the options that are asked for, chunk after chunk."""

    def __init__(
        self, paired: Paired, asked: Mapping[str, Sequence[_Option]], of: _Of, tolerance: float, path: Path | None
    ) -> None:
        self.paired, self.asked, self.of, self.tolerance, self.path = paired, asked, of, tolerance, path
        self.settled: set[tuple[str, _Option]] = set()
        self.cuts: dict[str, dict[_Option, Cut]] = {}
        found = _saved(path, of)
        self.base = None if found is None else Uncut(found.base_loss, found.base_top1, found.n)
        if found is not None:
            for int8, known in ((False, found.options), (True, found.int8)):
                for layer, cuts in known.items():
                    self.cuts.setdefault(layer, {}).update(
                        (_Option(rank, int8), cut) for rank, cut in cuts.items()
                    )

    def run(self, index: int) -> Iterator[None]:
        """Measure on this chunk what needs it, one step after another."""
        before, after = self.paired.until[index : index + 2]
        if before == after:
            return  # padding alone
        needed = {
            layer: [
                each for each in options if self._seen(layer, each) == before and not self._settled(layer, each)
            ]
            for layer, options in self.asked.items()
        }
        if self.base is not None and not any(needed.values()):
            return
        uncut = self.paired.begin(index)
        if self.base is None or self.base.n == before:
            self.base = uncut if self.base is None else self.base.joined(uncut)
            yield
        for layer, options in needed.items():
            cuts = self.cuts.setdefault(layer, {})
            for option in options:
                int8 = (layer,) if option.int8 else ()
                cuts[option] = joined(cuts.get(option), self.paired.cut({layer: option.rank}, int8=int8))
                yield
            if options and self.path is not None:
                self.made().save(self.path)

    def made(self) -> Sensitivity:
        assert self.base is not None, "there is always a chunk with a target that counts"
        return Sensitivity(
            **self.of._asdict(),
            base_loss=self.base.loss,
            base_top1=self.base.top1,
            n=self.base.n,
            options=self._cuts(int8=False),
            int8=self._cuts(int8=True),
        )

    def _cuts(self, *, int8: bool) -> dict[str, dict[Any, Cut]]:
        """By layer and rank, ascending, dense last."""
        found = {
            layer: {option.rank: cuts[option] for option in sorted(cuts, key=_height) if option.int8 == int8}
            for layer, cuts in self.cuts.items()
        }
        return {layer: cuts for layer, cuts in found.items() if cuts}

    def done(self) -> tuple[int, int]:
        """Runs done or saved, and all that there could be."""
        options = [(layer, option) for layer, asked in self.asked.items() for option in asked]
        chunks = len(self.paired)
        done = sum(chunks if self._settled(*each) else self._chunks(self._seen(*each)) for each in options)
        return 1 + done, 1 + len(options) * chunks

    def _seen(self, layer: str, option: _Option) -> int:
        cut = self.cuts.get(layer, {}).get(option)
        return 0 if cut is None else cut.n

    def _chunks(self, n: int) -> int:
        """How many chunks hold the first n targets that count."""
        return sum(end <= n for end in self.paired.until[1:])

    def _settled(self, layer: str, option: _Option) -> bool:
        cut = self.cuts.get(layer, {}).get(option)
        if cut is None or self.base is None or self._chunks(cut.n) < _LEAST_CHUNKS:
            return False
        # For good: the mean uncut loss still moves with every chunk, and with it the limit.
        if cut.loss_se < self.tolerance * max(cut.loss_increase, _FLOOR * self.base.loss):
            self.settled.add((layer, option))
        return (layer, option) in self.settled


def _height(option: _Option) -> float:
    return math.inf if option.rank == DENSE else option.rank


def _saved(path: Path | None, of: _Of) -> Sensitivity | None:
    """What `path` holds, if it is of this network, weights and inputs."""
    if path is None or not path.exists():
        return None
    try:
        found = Sensitivity.load(path)
    except TableError:
        return None  # of an older version, or damaged: it would be made again in any case
    return found if of == (found.network, found.measured_on, found.images) else None


def _fingerprint(model: nn.Module, inputs: Tensor, targets: Tensor, chunk: int) -> str:
    """Changes with the weights and all that decides which inputs run together."""
    content = hashlib.sha256(str((chunk, tuple(inputs.shape), str(inputs.dtype))).encode())
    for tensor in (*model.state_dict().values(), inputs, targets):
        # As bytes: numpy has no bfloat16.
        flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        content.update(memoryview(flat.numpy()))
    return content.hexdigest()[:12]


def _asked(
    model: nn.Module, network: Network, tables: Sequence[LatencyTable], ranks: Mapping[str, Sequence[int]]
) -> dict[str, list[_Option]]:
    """The ranks of each ordered layer that a table makes worth a cut or that are given, then those in int8."""
    layers = ordered_layers(model)
    found = {}
    for layer in network.ordered:
        paying = (rank for table in tables for rank in (*_paying(table, layer), *table.gauge_ranks(layer.spec)))
        asked = {*ranks.get(layer.name, ()), *paying}
        most = layers[layer.name].rank
        rounded = {_Option(rank, int8=True) for table in tables for rank in table.int8_ranks(layer.spec)}
        found[layer.name] = [
            *(_Option(rank) for rank in sorted(asked) if 1 <= rank <= most),
            *(each for each in sorted(rounded, key=_height) if each.rank == DENSE or 1 <= each.rank <= most),
        ]
    return found


def _paying(table: LatencyTable, layer: Layer) -> list[int]:
    """The ranks that are not slower than dense: no plan takes another."""
    timed = table.ranks(layer.spec)
    limit = table.row(layer.spec, DENSE).ms if DENSE in timed else float("inf")
    return [rank for rank in timed if rank != DENSE and table.row(layer.spec, rank).ms <= limit]
