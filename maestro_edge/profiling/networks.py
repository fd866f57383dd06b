"""Milliseconds of whole networks of which nothing was measured, from their operators alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from maestro_edge.profiling.calibration import fit_kinds, kinds_left_out_ms
from maestro_edge.profiling.features import Features, kind_of
from maestro_edge.profiling.predictor import Predictor, conformal_quantile
from maestro_edge.values import Estimate

__all__ = ["NetworkPredictor"]

_LEAST_MS = 1e-9


@dataclass(frozen=True)
class NetworkPredictor:
    """A predictor of operators, and what their sums of each kind make of a whole network."""

    operators: Predictor
    slopes: Mapping[str, float]
    intercept_ms: float
    width: float
    coverage: float

    @classmethod
    def fit(
        cls,
        operators: Mapping[str, Sequence[tuple[Features, float]]],
        whole_ms: Mapping[str, float],
        groups: Mapping[str, str] | None = None,
        *,
        coverage: float = 0.9,
    ) -> NetworkPredictor:
        """Train on networks whose operators (features and ms) and whole time are known.

        Slopes are fitted to operators as they were measured: predictions' errors would draw them to the mean. The
        interval is of networks whose operators were predicted and whose time no slope has seen; `groups` tells
        networks that are much alike and are held out together.

        Raises:
            TableError: too few operators or networks.
            MissingExtra: scikit-learn is not installed.
        """
        rows = [(name, features, ms) for name, found in operators.items() for features, ms in found]
        predictor = Predictor.fit(
            [features for _, features, _ in rows],
            [ms for _, _, ms in rows],
            [(groups or {}).get(name, name) for name, _, _ in rows],
            coverage=coverage,
        )
        kinds = sorted({kind_of(features) for _, features, _ in rows})
        names = list(operators)
        summed, predicted = np.zeros((2, len(names), len(kinds)))
        for (name, features, ms), held_out_ms in zip(rows, predictor.held_out_ms, strict=True):
            at = names.index(name), kinds.index(kind_of(features))
            summed[at] += ms
            predicted[at] += held_out_ms
        measured = np.array([whole_ms[name] for name in names])
        slopes, intercept_ms = fit_kinds(summed, measured)
        left_out = np.maximum(kinds_left_out_ms(summed, measured, predicted), _LEAST_MS)
        width = conformal_quantile(np.abs(np.log(left_out / measured)), coverage)
        return cls(predictor, dict(zip(kinds, slopes.tolist(), strict=True)), intercept_ms, width, coverage)

    def predict(self, operators: Sequence[Features]) -> Estimate:
        """Milliseconds of a network, with an interval.

        Raises:
            TableError: an operator is of a kind that was never measured.
        """
        mean = fmean(self.slopes.values())  # of a kind that was never seen with a stride, or without
        estimates = zip(operators, self.operators.predict(operators), strict=True)
        summed = sum(self.slopes.get(kind_of(features), mean) * estimate.ms for features, estimate in estimates)
        ms = max(summed + self.intercept_ms, _LEAST_MS)
        wide = float(np.exp(self.width))
        return Estimate(ms=ms, low_ms=ms / wide, high_ms=ms * wide, coverage=self.coverage)
