"""export(): write a file, run that very file, compare it with the model, and only then let it stand."""

from __future__ import annotations

import hashlib
import math
import shutil
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from maestro_edge.errors import ExportError
from maestro_edge.runtimes.conversion import contiguous_copy
from maestro_edge.runtimes.protocol import Array, Runtime
from maestro_edge.values import Precision

__all__ = ["LIMITS", "Agreement", "compare", "digest", "eager_outputs", "export", "size_bytes"]

_LARGEST_SQNR_DB = 200.0
"""Equal outputs have no noise; this stands for infinity."""
_EIGHT_BITS_DB = 50.0
"""SQNR of a sine in 8 bits: nothing int8 holds more, so a float in front of it loses nothing by becoming one."""


class Agreement(NamedTuple):
    """How near a file's outputs are to the model's: largest |error|, SQNR in dB, share of equal top-1."""

    max_abs_error: float
    sqnr_db: float
    top1_agreement: float


class Limits(NamedTuple):
    """The least agreement that a file ships with; `max_error` is relative to the largest output."""

    sqnr_db: float
    top1_agreement: float
    max_error: float

    def admits(self, agreement: Agreement, largest: float) -> bool:
        return (
            agreement.sqnr_db >= self.sqnr_db
            and agreement.top1_agreement >= self.top1_agreement
            and agreement.max_abs_error <= self.max_error * largest
        )


_FP32: Final = Limits(sqnr_db=60, top1_agreement=1, max_error=0.01)
# Rounding weights to halves leaves 60 dB and more, arithmetic in halves less: Core ML's may use either.
_FP16: Final = Limits(sqnr_db=40, top1_agreement=0.95, max_error=0.05)
# Rounding to 8 bits leaves 25 dB and more, ranges that clip less than 20 (tests/test_int8.py holds both). Noise
# of a tenth of the signal may turn near ties of classes; more than one sample in ten is no tie.
_INT8: Final = Limits(sqnr_db=20, top1_agreement=0.9, max_error=0.25)
LIMITS: Final[dict[Precision, Limits]] = {
    "fp32": _FP32,
    "fp16": _FP16,
    "int8-dynamic": _INT8,
    "int8-static": _INT8,
}


def export(
    model: nn.Module,
    samples: Tensor,
    path: Path,
    runtime: Runtime,
    *,
    precision: Precision = "fp32",
    calibration: Sequence[Tensor] | None = None,
) -> Agreement:
    """Write `model` (stock layers) for `runtime` and gate it on `samples` (N, ...), each run alone.

    The file is made beside `path`, executed by the runtime in the app's layout and compared with eager fp32;
    it takes the name `path` only when it agrees within `LIMITS`. `calibration` is batches of inputs, not those
    of `samples`: int8-static takes its ranges from them.

    Raises:
        ExportError: it cannot be written or run, or differs; the message names the first layer that does.
    """
    path = Path(path)
    model, samples = contiguous_copy(model), samples.contiguous()
    expected = eager_outputs(model, samples)
    aside = path.with_name(f".{path.stem}.part{runtime.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        runtime.export(model, (samples[:1],), aside, precision, calibration=calibration)
        agreement = compare(expected, runtime.predict(aside, samples.numpy()))
        if not LIMITS[precision].admits(agreement, float(np.abs(expected).max())):
            raise ExportError(
                f"{path.name} computes something else than the model: SQNR {agreement.sqnr_db:.1f} dB, largest "
                f"error {agreement.max_abs_error:.3g}, {100 * agreement.top1_agreement:.1f} % equal top-1; "
                f"{difference(model, samples, runtime, precision, calibration)}"
            )
        _remove(path)
        aside.replace(path)
    except OSError as error:
        raise ExportError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        _remove(aside)
    return agreement


@torch.no_grad()
def eager_outputs(model: nn.Module, samples: Tensor) -> Array:
    """What a file is compared with, (N, ..., classes).

    Raises:
        ExportError: the model returns something else than one tensor.
    """
    output = model(samples)
    if not isinstance(output, Tensor):
        raise ExportError(f"the model returns a {type(output).__name__}: wrap it to return one tensor")
    result: Array = output.float().numpy()
    return result


def compare(expected: Array, actual: Array) -> Agreement:
    """Agreement of two (N, ..., classes) outputs.

    Raises:
        ExportError: their shapes differ, or the file gives something that is not a number.
    """
    if expected.shape != actual.shape:
        raise ExportError(f"the file returns shape {actual.shape}, the model {expected.shape}")
    if not np.isfinite(actual).all():
        raise ExportError("the file returns NaN or infinity on real samples")
    error = actual.astype(np.float64) - expected
    noise, signal = float(np.square(error).sum()), float(np.square(expected, dtype=np.float64).sum())
    sqnr_db = _LARGEST_SQNR_DB if noise == 0 else 10 * math.log10(max(signal, 1e-300) / noise)
    same = float((expected.argmax(-1) == actual.argmax(-1)).mean())
    return Agreement(float(np.abs(error).max()), min(sqnr_db, _LARGEST_SQNR_DB), same)


class _Intermediates(nn.Module):
    """A model that returns the flattened outputs of its leaf layers side by side: (N, total).

    Each is divided by its largest value in `peaks`: side by side, int8 numbers have one scale.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.names: list[str] = []
        self.sizes: list[int] = []
        self.peaks: dict[str, float] = {}

    def forward(self, x: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        names: list[str] = []

        def keep(name: str, output: object) -> None:
            if isinstance(output, Tensor) and output.shape[0] == x.shape[0]:
                names.append(name)
                outputs.append(output.flatten(1) / self.peaks.get(name, 1.0))

        hooks = [
            module.register_forward_hook(lambda _, __, output, name=name: keep(name, output))
            for name, module in self.model.named_modules()
            if name and not list(module.children())
        ]
        try:
            last = self.model(x)
        finally:
            for hook in hooks:
                hook.remove()
        keep("the output", last)
        self.names, self.sizes = names, [output.shape[1] for output in outputs]
        return torch.cat(outputs, dim=1)

    @torch.no_grad()
    def learn_peaks(self, samples: Tensor) -> None:
        outputs, start = self(samples), 0
        for name, size in zip(self.names, self.sizes, strict=True):
            self.peaks[name] = float(outputs[:, start : start + size].abs().max()) or 1.0
            start += size


def difference(
    model: nn.Module,
    samples: Tensor,
    runtime: Runtime,
    precision: Precision,
    calibration: Sequence[Tensor] | None = None,
) -> str:
    """Where the file leaves the model, found by exporting it with all its layers' outputs.

    In floats that is the first layer that differs, in int8 the one across which most SQNR is lost.
    """
    try:
        layers = _sqnr_by_layer(model, samples[:2], runtime, precision, calibration)
    except ExportError as error:
        return f"the layer is unknown (they cannot be exported one by one: {error})"
    if precision in ("fp32", "fp16"):
        below = (name for name, sqnr_db in layers if sqnr_db < LIMITS[precision].sqnr_db)
        return f"first layer that differs: {next(below, 'none alone, they agree one by one')}"
    held = [(name, min(sqnr_db, _EIGHT_BITS_DB)) for name, sqnr_db in layers]
    _, name, before, after = max(
        (before - after, name, before, after) for (_, before), (name, after) in pairwise(held)
    )
    return f"most is lost in layer {name}: {before:.1f} dB before, {after:.1f} dB behind it"


def _sqnr_by_layer(
    model: nn.Module,
    samples: Tensor,
    runtime: Runtime,
    precision: Precision,
    calibration: Sequence[Tensor] | None,
) -> list[tuple[str, float]]:
    """SQNR behind every leaf layer in execution order, that of the input (no noise) first."""
    probe = _Intermediates(model).eval()
    probe.learn_peaks(samples)
    expected = eager_outputs(probe, samples)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"layers{runtime.suffix}"
        runtime.export(probe, (samples[:1],), path, precision, calibration=calibration)
        actual = runtime.predict(path, samples.numpy())
    layers, start = [("the input", _LARGEST_SQNR_DB)], 0
    for name, size in zip(probe.names, probe.sizes, strict=True):
        part = slice(start, start + size)
        layers.append((name, compare(expected[:, part], actual[:, part]).sqnr_db))
        start += size
    return layers


def digest(path: Path) -> str:
    """sha256 of a file; of a folder, that of its lines "sha256  relative/path" sorted by path."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    files = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
    lines = [f"{digest(files[name])}  {name}" for name in sorted(files)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def size_bytes(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists():
        path.unlink()
