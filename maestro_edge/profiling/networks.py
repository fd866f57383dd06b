"""Milliseconds of whole networks of which nothing was measured, from their operators alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from maestro_edge.profiling.calibration import fit_line, left_out_ms
from maestro_edge.profiling.features import Features
from maestro_edge.profiling.predictor import Predictor, conformal_quantile
from maestro_edge.values import Estimate

__all__ = ["NetworkPredictor"]


@dataclass(frozen=True)
class NetworkPredictor:
    """A predictor of operators, and the line from their sum to the whole network."""

    operators: Predictor
    slope: float
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

        The line is fitted to sums that were predicted for held-out networks, as it will be used; `groups` tells
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
        sums = dict.fromkeys(operators, 0.0)
        for (name, _, _), ms in zip(rows, predictor.held_out_ms, strict=True):
            sums[name] += float(ms)
        summed = np.array(list(sums.values()))
        measured = np.array([whole_ms[name] for name in sums])
        slope, intercept_ms = fit_line(summed, measured)
        errors = np.abs(np.log(np.maximum(left_out_ms(summed, measured), 1e-9) / measured))
        return cls(predictor, slope, intercept_ms, conformal_quantile(errors, coverage), coverage)

    def predict(self, operators: Sequence[Features]) -> Estimate:
        """Milliseconds of a network, with an interval.

        Raises:
            TableError: an operator is of a kind that was never measured.
        """
        summed = sum(estimate.ms for estimate in self.operators.predict(operators))
        ms = max(self.slope * summed + self.intercept_ms, 1e-9)
        wide = float(np.exp(self.width))
        return Estimate(ms=ms, low_ms=ms / wide, high_ms=ms * wide, coverage=self.coverage)
