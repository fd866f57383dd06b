"""Milliseconds of layers that nobody measured, learned from rows that somebody did, with honest intervals."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
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
_OF_COST = ("padded_macs", "moved")
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
    """Costs of work and traffic, and what they leave of log ms by extremely randomised trees; of small tables by a
    Gaussian process too.

    The costs carry growth beyond what was measured, the process the smooth part of a small table, the trees the
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
        fit = partial(_Model.fit, names)
        fold = {group: index % _FOLDS for index, group in enumerate(kinds)}
        folds = np.array([fold[group] for group in groups])
        held_out, deviation = np.empty_like(y), np.empty_like(y)
        for index in sorted(set(fold.values())):
            own = folds == index
            held_out[own], deviation[own] = fit(x[~own], y[~own]).predict(x[own])
        factor = conformal_quantile(np.abs(y - held_out) / deviation, coverage)
        return cls(names, fit(x, y), factor, coverage, np.exp(held_out))

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
    return values


@dataclass(frozen=True)
class _Costs:
    """Milliseconds as a sum: a constant, and so much for each unit of work and of traffic, of each kind its own.

    None is negative: a larger operator's time grows as its work does, beyond what was measured too. Where a
    roofline (Williams et al., CACM 2009) takes the larger of work and traffic, this adds them, which is linear.
    """

    columns: tuple[int, ...]
    kinds: tuple[int, ...]
    units: Floats
    weights: Floats
    """Of shape (kinds + 1, columns + 1), of `units`; the last row is of kinds with too few rows for their own."""
    least_ms: float
    """A tenth of the smallest that was measured: no sum is below it."""

    @classmethod
    def fit(cls, names: Sequence[str], x: Floats, ms: Floats) -> _Costs:
        from scipy.optimize import nnls

        columns = tuple(names.index(name) for name in _OF_COST if name in names)
        kinds = tuple(index for index, name in enumerate(names) if name.startswith("kind:"))
        units = np.concatenate([[1.0], np.maximum(x[:, columns].max(0), 1.0)])
        scaled = _with_constant(x, columns) / units

        def least(rows: npt.NDArray[np.bool_]) -> Floats:
            weights, _ = nnls(scaled[rows] / ms[rows, None], np.ones(rows.sum()))  # of the relative error
            return np.asarray(weights, float)

        pooled = least(np.ones(len(ms), bool))
        own = (x[:, kind] > 0 for kind in kinds)
        weights = [least(rows) if rows.sum() >= _FEWEST_ROWS else pooled for rows in own]
        return cls(columns, kinds, units, np.array([*weights, pooled]), float(ms.min()) / 10)

    def log_ms(self, x: Floats) -> Floats:
        scaled = _with_constant(x, self.columns) / self.units
        is_of = np.column_stack([x[:, self.kinds] > 0, np.ones(len(x), bool)])
        found = (scaled * self.weights[is_of.argmax(1)]).sum(1)
        logs: Floats = np.log(np.maximum(found, self.least_ms))
        return logs


def _with_constant(x: Floats, columns: Sequence[int]) -> Floats:
    return np.column_stack([np.ones(len(x)), x[:, columns]])


@dataclass(frozen=True)
class _Model:
    """Costs, and fitted estimators of scikit-learn on standardised logarithms; no process where rows are many."""

    costs: _Costs
    scaler: Any
    trees: Any
    process: Any

    @classmethod
    def fit(cls, names: Sequence[str], x: Floats, y: Floats) -> _Model:
        try:
            from sklearn.ensemble import ExtraTreesRegressor
            from sklearn.preprocessing import StandardScaler
        except ImportError as error:
            raise MissingExtra("scikit-learn", "predict") from error

        costs = _Costs.fit(names, x, np.exp(y))
        scaler = StandardScaler().fit(np.log1p(x))
        z = scaler.transform(np.log1p(x))
        rest = y - costs.log_ms(x)
        trees = ExtraTreesRegressor(_TREES, max_features=0.5, random_state=0)
        # Slow rows weigh more: they make up the network's time.
        trees.fit(z, rest, sample_weight=np.exp(0.3 * (y - y.mean())))
        return cls(costs, scaler, trees, _fit_process(z, rest) if len(y) <= _MOST_SMOOTH else None)

    def predict(self, x: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation of log ms."""
        z = self.scaler.transform(np.log1p(x))
        each = np.array([tree.predict(z) for tree in self.trees.estimators_])
        rest, deviation = each.mean(0), np.hypot(each.std(0), _LEAST_DEVIATION)
        if self.process is not None:
            smooth, deviation = self.process.predict(z, return_std=True)
            rest = (rest + smooth) / 2
        mean: Floats = self.costs.log_ms(x) + rest
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
