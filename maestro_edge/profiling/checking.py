"""Is a saved table sound, and what changed between two: words for people who review tables like code."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from maestro_edge.errors import TableError
from maestro_edge.values import DENSE, Estimate, LatencyRow, LatencyTable, LayerSpec, Rank, Timing

__all__ = ["Difference", "compare", "problems"]

_SPREAD_LIMIT, _SPREAD_SHARE = 0.5, 0.02
"""A row is noisy when its interquartile range is as much of itself, and of the sum of all dense rows."""

_MOVED = 0.1
"""Change of a step, from one rank to the next, that counts as moved."""


def problems(table: LatencyTable, *, spread_limit: float = _SPREAD_LIMIT) -> tuple[str, ...]:
    """What is wrong with a table that loads, one sentence each, with the row; nothing when all is well."""
    return (*_of_rows(table, spread_limit), *_of_the_whole(table))


def _of_rows(table: LatencyTable, spread_limit: float) -> Iterator[str]:
    dense_ms = sum(row.ms for row in table.rows if row.rank == DENSE)
    for row in table.rows:
        where = f"{row.spec} at rank {row.rank}"
        if row.ms <= 0:
            yield f"{where}: takes {row.ms:g} ms"
        if row.rank != DENSE and row.rank > row.spec.full_rank:
            yield f"{where}: above its full rank, {row.spec.full_rank}"
        if isinstance(row.timing, Estimate) and not row.timing.low_ms <= row.ms <= row.timing.high_ms:
            yield f"{where}: {row.ms:g} ms is outside its interval"
        if isinstance(row.timing, Timing):
            yield from (f"{where}: {what}" for what in _of_samples(row.timing))
        spread = row.spread or 0.0
        if spread > spread_limit and spread * row.ms > _SPREAD_SHARE * dense_ms:
            yield f"{where}: varies by {100 * spread:.0f} %, more than {100 * spread_limit:.0f} %"


def _of_samples(timing: Timing) -> Iterator[str]:
    if min(timing.samples_ms, default=0.0) < 0:
        yield f"a sample of {min(timing.samples_ms):g} ms"
    elif timing.n != len(timing.samples_ms):
        yield f"says {timing.n} samples and holds {len(timing.samples_ms)}"
    elif not math.isclose(timing.median_ms, median(timing.samples_ms), rel_tol=1e-3, abs_tol=2e-6):
        yield f"says a median of {timing.median_ms:g} ms, its samples {median(timing.samples_ms):g}"


def _of_the_whole(table: LatencyTable) -> Iterator[str]:
    for (spec, rank), count in Counter((row.spec, row.rank) for row in table.rows).items():
        if count > 1:
            yield f"{spec} at rank {rank}: {count} rows"
    dense = {row.spec for row in table.rows if row.rank == DENSE}
    for spec in dict.fromkeys(row.spec.plain for row in table.rows):
        if spec not in dense:
            yield f"{spec}: no dense row, so no plan can leave it as it is"
    if not (table.rows or table.operators or table.networks):
        yield "holds no time at all"


@dataclass(frozen=True)
class Difference:
    """Of two tables' common rows: later ms over earlier ms."""

    ratios: dict[tuple[LayerSpec, Rank], float]
    only_before: int
    only_after: int
    moved: tuple[str, ...]

    @property
    def median(self) -> float:
        return median(self.ratios.values())

    @property
    def worst(self) -> tuple[LayerSpec, Rank]:
        """The row whose time changed most, up or down."""
        return max(self.ratios, key=lambda key: abs(math.log(self.ratios[key])))


def compare(before: LatencyTable, after: LatencyTable) -> Difference:
    """What changed from one table to another.

    Raises:
        TableError: they have no row in common, or a row of 0 ms.
    """
    old, new = ({(row.spec, row.rank): row for row in table.rows} for table in (before, after))
    common = [key for key in old if key in new]
    if not common:
        raise TableError(f"{before.title} and {after.title} have no layer in common: nothing to compare")
    if any(table[key].ms <= 0 for key in common for table in (old, new)):
        raise TableError("a row of 0 ms cannot be compared: see 'profiles validate'")
    ratios = {key: new[key].ms / old[key].ms for key in common}
    return Difference(ratios, len(old) - len(common), len(new) - len(common), tuple(_moved(old, new, common)))


Rows = dict[tuple[LayerSpec, Rank], LatencyRow]


def _moved(old: Rows, new: Rows, common: list[tuple[LayerSpec, Rank]]) -> Iterator[str]:
    """Steps from one common rank of a layer to the next, dense last, that became higher or lower."""
    for spec in dict.fromkeys(spec for spec, _ in common):
        ranks: list[Rank] = sorted(rank for own, rank in common if own == spec and rank != DENSE)
        ranks += [DENSE] if (spec, DENSE) in old and (spec, DENSE) in new else []
        for low, high in pairwise(ranks):
            was, now = (table[spec, high].ms / table[spec, low].ms for table in (old, new))
            if abs(now / was - 1) > _MOVED:
                yield f"{spec}, rank {low} → {high}: ×{was:.2f} before, ×{now:.2f} after"
