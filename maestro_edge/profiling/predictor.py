"""Milliseconds of layers that nobody measured, learned from rows that somebody did, with honest intervals."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from maestro_edge.errors import MissingExtra, TableError
from maestro_edge.profiling.features import Features, layer_features
from maestro_edge.values import Estimate, LatencyRow, LatencyTable, LayerSpec, Rank

__all__ = ["Predictor", "complete", "conformal_quantile"]

Floats = npt.NDArray[np.float64]

_FEWEST_ROWS, _FOLDS = 20, 5
_TREES, _MOST_SMOOTH = 100, 500
"""A Gaussian process costs the cube of its rows, and where they are thousands the trees alone are nearer."""
_LEAST_DEVIATION = 0.02
"""Of log ms, where all trees agree: as near as two measurements of one operator are."""


def conformal_quantile(scores: Floats, coverage: float) -> float:
    """The score that a new one exceeds in at most 1 - coverage of the cases (split conformal prediction).

    Raises:
        TableError: there are too few scores for such a coverage.
    """
    rank = math.ceil((len(scores) + 1) * coverage)
    if rank > len(scores):
        raise TableError(
            f"{len(scores)} measurements do not carry an interval of {100 * coverage:.0f} %: "
            "measure more, or ask for less"
        )
    return float(np.sort(scores)[rank - 1])


@dataclass(frozen=True)
class Predictor:
    """Extremely randomised trees on what a linear trend leaves of log ms; of small tables a Gaussian process too.

    The trend carries growth beyond what was measured, the process the smooth part of a small table, the trees the
    steps. The interval is the deviation that the process tells, or else the trees among themselves, times a factor
    found on rows whose whole group was held out (normalised conformal prediction: Papadopoulos et al., JAIR 2011).
    """

    names: tuple[str, ...]
    model: _Model
    factor: float
    coverage: float
    held_out_ms: Floats
    """Of each row it was trained on, by a model that had not seen the row's group."""

    @classmethod
    def fit(
        cls, features: Sequence[Features], ms: Sequence[float], groups: Sequence[str], *, coverage: float = 0.9
    ) -> Predictor:
        """Train on rows; those of one group (a network, a shape) are held out together.

        Raises:
            TableError: too few rows or groups, or a time that is not positive.
            MissingExtra: scikit-learn is not installed.
        """
        kinds = sorted(set(groups))
        if len(ms) < _FEWEST_ROWS or len(kinds) < 2:
            raise TableError(
                f"{len(ms)} rows of {len(kinds)} groups do not train a predictor: measure {_FEWEST_ROWS} or more"
            )
        if not all(math.isfinite(value) and value > 0 for value in ms):
            raise TableError("a row of 0 ms or less cannot train a predictor: measure it again")
        names = tuple(sorted({name for row in features for name in row}))
        x, y = _matrix(features, names), np.log(np.asarray(ms, float))
        fold = {group: index % _FOLDS for index, group in enumerate(kinds)}
        folds = np.array([fold[group] for group in groups])
        held_out, deviation = np.empty_like(y), np.empty_like(y)
        for index in sorted(set(fold.values())):
            own = folds == index
            held_out[own], deviation[own] = _Model.fit(x[~own], y[~own]).predict(x[own])
        factor = conformal_quantile(np.abs(y - held_out) / deviation, coverage)
        return cls(names, _Model.fit(x, y), factor, coverage, np.exp(held_out))

    def predict(self, features: Sequence[Features]) -> list[Estimate]:
        """Milliseconds and interval of operators that need not have been seen.

        Raises:
            TableError: a kind or a property that no row had.
        """
        unknown = sorted({name for row in features for name, value in row.items() if value} - set(self.names))
        if unknown:
            raise TableError(f"no row has {unknown[0]!r}, so nothing is known of it: measure one that has")
        mean, deviation = self.model.predict(_matrix(features, self.names))
        width = self.factor * deviation
        return [
            Estimate(ms=middle, low_ms=low, high_ms=high, coverage=self.coverage)
            for middle, low, high in zip(
                np.exp(mean).tolist(), np.exp(mean - width).tolist(), np.exp(mean + width).tolist(), strict=True
            )
        ]


def complete(
    table: LatencyTable, wanted: Iterable[tuple[LayerSpec, Rank]], *, coverage: float = 0.9
) -> LatencyTable:
    """The table with a modelled row for every wanted layer that it lacks; the table is then a modelled one.

    Raises:
        TableError: the table has too few rows, or none of a kind that is wanted, or was emulated.
        MissingExtra: scikit-learn is not installed.
    """
    if table.source == "emulated":
        raise TableError(f"{table.title} was emulated: nothing can be learned from its times")
    have = {(row.spec, row.rank) for row in table.rows}
    missing = [key for key in dict.fromkeys(wanted) if key not in have]
    if not missing:
        return table
    known = [row for row in table.rows if row.method != "modelled"]
    predictor = Predictor.fit(
        [layer_features(row.spec, row.rank) for row in known],
        [row.ms for row in known],
        [str(row.spec) for row in known],
        coverage=coverage,
    )
    estimates = predictor.predict([layer_features(spec, rank) for spec, rank in missing])
    rows = [
        LatencyRow(spec=spec, rank=rank, method="modelled", timing=estimate)
        for (spec, rank), estimate in zip(missing, estimates, strict=True)
    ]
    return table.model_copy(update={"source": "modelled", "rows": (*table.rows, *rows)})


def _matrix(features: Sequence[Features], names: Sequence[str]) -> Floats:
    values: Floats = np.array([[row.get(name, 0.0) for name in names] for row in features], np.float64)
    return np.log1p(values)


@dataclass(frozen=True)
class _Model:
    """Fitted estimators of scikit-learn on standardised logarithms; no process where rows are many."""

    scaler: Any
    trend: Any
    trees: Any
    process: Any

    @classmethod
    def fit(cls, x: Floats, y: Floats) -> _Model:
        try:
            from sklearn.ensemble import ExtraTreesRegressor
            from sklearn.linear_model import Ridge
            from sklearn.preprocessing import StandardScaler
        except ImportError as error:
            raise MissingExtra("scikit-learn", "predict") from error

        scaler = StandardScaler().fit(x)
        z = scaler.transform(x)
        trend = Ridge(1.0).fit(z, y)
        rest = y - trend.predict(z)
        trees = ExtraTreesRegressor(_TREES, max_features=0.5, random_state=0)
        # Slow rows weigh more: they make up the network's time.
        trees.fit(z, rest, sample_weight=np.exp(0.3 * (y - y.mean())))
        return cls(scaler, trend, trees, _fit_process(z, rest) if len(y) <= _MOST_SMOOTH else None)

    def predict(self, x: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation of log ms."""
        z = self.scaler.transform(x)
        each = np.array([tree.predict(z) for tree in self.trees.estimators_])
        rest, deviation = each.mean(0), np.hypot(each.std(0), _LEAST_DEVIATION)
        if self.process is not None:
            smooth, deviation = self.process.predict(z, return_std=True)
            rest = (rest + smooth) / 2
        mean: Floats = self.trend.predict(z) + rest
        return mean, deviation


def _fit_process(z: Floats, rest: Floats) -> Any:
    """Equal operators count once, with their mean and the noise that so many leave."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    distinct, inverse, counts = np.unique(z, axis=0, return_inverse=True, return_counts=True)
    means = np.bincount(inverse.ravel(), rest) / counts
    kernel = ConstantKernel(1.0, (1e-3, 1e2)) * Matern(5.0, (0.5, 1e2), nu=1.5) + WhiteKernel(0.02, (1e-5, 1.0))
    with warnings.catch_warnings():  # a parameter at its bound is no failure
        warnings.simplefilter("ignore")
        return GaussianProcessRegressor(kernel, alpha=_LEAST_DEVIATION**2 / counts).fit(distinct, means)
