"""From one device to another: a handful of measurements there, and what is known of all else here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from maestro_edge.errors import TableError
from maestro_edge.profiling.predictor import Floats, conformal_quantile
from maestro_edge.values import Estimate, LatencyRow, LayerSpec, Rank

__all__ = ["Transfer", "transferred"]

_SHRINKAGE = 0.1
_HUBER, _REWEIGHTINGS = 1.5, 30
"""What is off by more standard deviations counts less, in proportion."""


@dataclass(frozen=True)
class Transfer:
    """ms there = reference × a factor that depends on how the references here relate to each other.

    The first reference is the one most alike, such as the same number of threads; others tell what kind of
    work it is: many small layers gain less from threads. All is linear in logarithms, shrunk towards a
    constant factor, so that ten measurements suffice. With one reference the order of the items is kept.
    """

    weights: Floats
    width: float
    coverage: float

    @classmethod
    def fit(
        cls, references_ms: Sequence[Sequence[float]], ms: Sequence[float], *, coverage: float = 0.8
    ) -> Transfer:
        """Fit on items (layers or networks) with their times by reference here, and measured there.

        Raises:
            TableError: a time is not positive, or there are too few items for the interval's coverage.
        """
        x, y = _columns(references_ms), np.log(_checked(np.asarray(ms, float)))
        ratio = y - np.log(np.asarray(references_ms, float)[:, 0])
        left_out = [
            ratio[index] - x[index] @ _solve(np.delete(x, index, 0), np.delete(ratio, index))
            for index in range(len(y))
        ]
        return cls(_solve(x, ratio), conformal_quantile(np.abs(left_out), coverage), coverage)

    def predict(self, references_ms: Sequence[Sequence[float]]) -> list[Estimate]:
        """Milliseconds there, with an interval, of items that were only timed here."""
        x = _columns(references_ms)
        middle = np.asarray(references_ms, float)[:, 0] * np.exp(x @ self.weights)
        wide = float(np.exp(self.width))
        return [
            Estimate(ms=ms, low_ms=ms / wide, high_ms=ms * wide, coverage=self.coverage) for ms in middle.tolist()
        ]


def transferred(
    rows: Sequence[LatencyRow], measured_ms: Mapping[tuple[LayerSpec, Rank], float]
) -> list[LatencyRow]:
    """`rows` of another device, or of a predictor, as they should be where a few of them were measured.

    The interval of a row that was an estimate before is as wide as both together, and holds at least as often as
    both do (union bound).

    Raises:
        TableError: as `Transfer.fit`.
    """
    known = {(row.spec, row.rank): row.ms for row in rows}
    model = Transfer.fit([[known[key]] for key in measured_ms], list(measured_ms.values()))
    found = []
    for row, there in zip(rows, model.predict([[row.ms] for row in rows]), strict=True):
        if isinstance(row.timing, Estimate):
            here = row.timing
            there = Estimate(
                ms=there.ms,
                low_ms=there.low_ms * here.low_ms / here.ms,
                high_ms=there.high_ms * here.high_ms / here.ms,
                coverage=there.coverage + here.coverage - 1,
            )
        found.append(LatencyRow(spec=row.spec, rank=row.rank, method="modelled", timing=there))
    return found


def _columns(references_ms: Sequence[Sequence[float]]) -> Floats:
    """1, log of the first reference, log of each other over the first."""
    logs = np.log(_checked(np.asarray(references_ms, float)))
    return np.concatenate([np.ones((len(logs), 1)), logs[:, :1], logs[:, 1:] - logs[:, :1]], axis=1)


def _solve(x: Floats, ratio: Floats) -> Floats:
    """Ridge regression whose constant is not shrunk, with the weights of Huber (Annals of Math. Statistics, 1964).

    Columns are centred so that the constant cannot matter. One time of ten that went wrong is not followed.
    """
    weights, found = np.ones_like(ratio), np.zeros(x.shape[1])
    for _ in range(_REWEIGHTINGS):
        shares = weights / weights.sum()
        centre, middle = shares @ x[:, 1:], shares @ ratio
        inner = x[:, 1:] - centre
        slopes = np.linalg.solve(
            inner.T @ (weights[:, None] * inner) + _SHRINKAGE * np.eye(inner.shape[1]),
            inner.T @ (weights * (ratio - middle)),
        )
        found = np.concatenate([[middle - centre @ slopes], slopes])
        off = np.abs(ratio - x @ found)
        # 1.4826 medians are a standard deviation where errors are normal; no time is exact to a thousandth.
        deviation = max(1.4826 * float(np.median(off)), 1e-3)
        weights = np.minimum(1.0, _HUBER * deviation / np.maximum(off, 1e-12))
    return found


def _checked(ms: Floats) -> Floats:
    if not (np.isfinite(ms).all() and (ms > 0).all()):
        raise TableError("a time of 0 ms or less cannot be transferred: measure it again")
    return ms
