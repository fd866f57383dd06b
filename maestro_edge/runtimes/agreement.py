"""How near a file's outputs are to the model's, and how near they must be in each precision to ship."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np

from maestro_edge.errors import ExportError
from maestro_edge.runtimes.protocol import Array
from maestro_edge.values import Precision

__all__ = ["LIMITS", "Agreement", "Limits", "compare", "sqnr_db"]

_LARGEST_SQNR_DB = 200.0
"""Equal outputs have no noise; this stands for infinity."""


class Agreement(NamedTuple):
    """Largest |error|, SQNR in dB, share of equal top-1, and cosine of the angle between all outputs."""

    max_abs_error: float
    sqnr_db: float
    top1_agreement: float
    cosine: float

    def __str__(self) -> str:
        return (
            f"SQNR {self.sqnr_db:.1f} dB, largest error {self.max_abs_error:.3g}, cosine {self.cosine:.5f}, "
            f"{100 * self.top1_agreement:.1f} % equal top-1"
        )


class Limits(NamedTuple):
    """The least agreement that a file ships with.

    `max_error` is relative to the largest output; `accuracy_drop` is what top-1 on labelled images may lose.
    """

    sqnr_db: float
    top1_agreement: float
    cosine: float
    max_error: float
    accuracy_drop: float

    def admits(self, agreement: Agreement, largest: float) -> bool:
        return (
            agreement.sqnr_db >= self.sqnr_db
            and agreement.top1_agreement >= self.top1_agreement
            and agreement.cosine >= self.cosine
            and agreement.max_abs_error <= self.max_error * largest
        )


# Rounding weights to halves leaves 60 dB and more, arithmetic in halves less: Core ML's may use either. Rounding
# to 8 bits leaves 25 dB and more, ranges that clip less than 20 (tests/test_int8.py holds both); palettes of 64
# weights leave 34, 4 bits 22 (tests/test_coreml_weights.py). Noise of a tenth of the signal may turn near ties of
# classes; more than one sample in ten is no tie. Cosine alone sees a direction that a few large outputs hide.
# Accuracy is noisy too: a percent is within the luck of 2,000 images.
_INT8: Final = Limits(sqnr_db=20, top1_agreement=0.9, cosine=0.995, max_error=0.25, accuracy_drop=0.05)
LIMITS: Final[dict[Precision, Limits]] = {
    "fp32": Limits(sqnr_db=60, top1_agreement=1, cosine=0.99999, max_error=0.01, accuracy_drop=0.005),
    "fp16": Limits(sqnr_db=40, top1_agreement=0.95, cosine=0.9999, max_error=0.05, accuracy_drop=0.01),
    "int8-dynamic": _INT8,
    "int8-static": _INT8,
    "mixed": _INT8,
    "palettised-6bit": _INT8,
    "int4-weights": Limits(sqnr_db=15, top1_agreement=0.8, cosine=0.98, max_error=0.4, accuracy_drop=0.1),
}
"""One line a precision; what falls below it is no rounding but a fault."""


def compare(expected: Array, actual: Array) -> Agreement:
    """Agreement of two (N, ..., classes) outputs.

    Raises:
        ExportError: their shapes differ, or the file gives something that is not a number.
    """
    if expected.shape != actual.shape:
        raise ExportError(f"the file returns shape {actual.shape}, the model {expected.shape}")
    if not np.isfinite(actual).all():
        raise ExportError("the file returns NaN or infinity on real samples")
    error = np.abs(actual.astype(np.float64) - expected)
    same = float((expected.argmax(-1) == actual.argmax(-1)).mean())
    return Agreement(float(error.max()), sqnr_db(expected, actual), same, _cosine(expected, actual))


def sqnr_db(expected: Array, actual: Array) -> float:
    """Signal over noise, at most 200 dB; minus infinity where something is not a number."""
    if not np.isfinite(actual).all():
        return -math.inf
    noise = float(np.square(actual.astype(np.float64) - expected).sum())
    signal = float(np.square(expected, dtype=np.float64).sum())
    if noise == 0:
        return _LARGEST_SQNR_DB
    return min(10 * math.log10(max(signal, 1e-300) / noise), _LARGEST_SQNR_DB)


def _cosine(expected: Array, actual: Array) -> float:
    """Of all outputs as one vector; 1 where both are zero."""
    a, b = (array.astype(np.float64).ravel() for array in (expected, actual))
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    if lengths == 0:
        return float(not a.any() and not b.any())
    return min(1.0, max(-1.0, float(a @ b) / lengths))
