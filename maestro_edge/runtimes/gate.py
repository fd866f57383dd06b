"""export(): write a file, run that very file, compare it with the model, and only then let it stand."""

from __future__ import annotations

import hashlib
import math
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from maestro_edge.errors import ExportError
from maestro_edge.runtimes.conversion import contiguous_copy
from maestro_edge.runtimes.protocol import Array, Runtime
from maestro_edge.values import Precision

__all__ = ["Agreement", "compare", "digest", "export", "size_bytes"]

_SMALLEST_SQNR_DB = {"fp32": 60.0}
_LARGEST_SQNR_DB = 200.0
"""Equal outputs have no noise; this stands for infinity."""


class Agreement(NamedTuple):
    """How near a file's outputs are to the model's: largest |error|, SQNR in dB, share of equal top-1."""

    max_abs_error: float
    sqnr_db: float
    top1_agreement: float


def export(
    model: nn.Module, samples: Tensor, path: Path, runtime: Runtime, *, precision: Precision = "fp32"
) -> Agreement:
    """Write `model` (stock layers) for `runtime` and gate it on `samples` (N, ...), each run alone.

    The file is made beside `path`, executed by the runtime in the app's layout and compared with eager;
    it takes the name `path` only when it agrees (fp32: SQNR ≥ 60 dB and the same top-1).

    Raises:
        ExportError: it cannot be written or run, or differs; the message names the first layer that does.
    """
    path = Path(path)
    model, samples = contiguous_copy(model), samples.contiguous()
    expected = _eager(model, samples)
    aside = path.with_name(f".{path.stem}.part{runtime.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        runtime.export(model, (samples[:1],), aside, precision)
        agreement = compare(expected, runtime.predict(aside, samples.numpy()))
        if agreement.sqnr_db < _SMALLEST_SQNR_DB[precision] or agreement.top1_agreement < 1:
            layer = first_difference(model, samples, runtime, precision)
            raise ExportError(
                f"{path.name} computes something else than the model: SQNR {agreement.sqnr_db:.1f} dB, largest "
                f"error {agreement.max_abs_error:.3g}, {100 * agreement.top1_agreement:.1f} % equal top-1; "
                f"first layer that differs: {layer}"
            )
        _remove(path)
        aside.replace(path)
    except OSError as error:
        raise ExportError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        _remove(aside)
    return agreement


@torch.no_grad()
def _eager(model: nn.Module, samples: Tensor) -> Array:
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
    """A model that returns the flattened outputs of its leaf layers side by side: (N, total)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.names: list[str] = []
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        names: list[str] = []

        def keep(name: str, output: object) -> None:
            if isinstance(output, Tensor) and output.shape[0] == x.shape[0]:
                names.append(name)
                outputs.append(output.flatten(1))

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


def first_difference(model: nn.Module, samples: Tensor, runtime: Runtime, precision: Precision) -> str:
    """Name of the first layer whose output differs when the model is exported with all its layers' outputs."""
    probe = _Intermediates(model).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"layers{runtime.suffix}"
        try:
            expected = _eager(probe, samples[:2])
            runtime.export(probe, (samples[:1],), path, precision)
            actual = runtime.predict(path, samples[:2].numpy())
        except ExportError as error:
            return f"unknown (the layers cannot be exported one by one: {error})"
    with torch.no_grad():
        probe(samples[:1])
    start = 0
    for name, size in zip(probe.names, probe.sizes, strict=True):
        part = slice(start, start + size)
        if compare(expected[:, part], actual[:, part]).sqnr_db < _SMALLEST_SQNR_DB[precision]:
            return name
        start += size
    return "none alone: they agree one by one"


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
