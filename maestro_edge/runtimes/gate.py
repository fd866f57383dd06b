"""export(): write a file, run that very file, compare it with the model, and only then let it stand."""

from __future__ import annotations

import hashlib
import math
import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from maestro_edge.errors import ExportError
from maestro_edge.runtimes.agreement import LIMITS, Agreement, compare, sqnr_db
from maestro_edge.runtimes.conversion import contiguous_copy
from maestro_edge.runtimes.protocol import Array, Runtime, mixing
from maestro_edge.values import Delegation, Precision

__all__ = [
    "Exported",
    "check_accuracy",
    "digest",
    "eager_outputs",
    "export",
    "export_counted",
    "export_unchecked",
    "size_bytes",
    "written_aside",
]

_EIGHT_BITS_DB = 50.0
"""SQNR of a sine in 8 bits: nothing int8 holds more, so a float in front of it loses nothing by becoming one."""


class Exported(NamedTuple):
    """A file that stands: how near it is to its model, and what the accelerated backend takes of it."""

    agreement: Agreement
    delegation: Delegation | None


def export(
    model: nn.Module,
    samples: Tensor,
    path: Path,
    runtime: Runtime,
    *,
    precision: Precision = "fp32",
    calibration: Sequence[Tensor] | None = None,
    int8: Collection[str] = (),
) -> Agreement:
    """Write `model` (stock layers) for `runtime` and gate it on `samples` (N, ...), each run alone.

    The file is made beside `path`, executed by the runtime in the app's layout and compared with eager fp32;
    it takes the name `path` only when it agrees within `LIMITS`. `calibration` is batches of inputs, not those
    of `samples`: int8-static takes its ranges from them. Where the precision is mixed, `int8` names the modules
    that are in int8-dynamic.

    Raises:
        ExportError: it cannot be written or run, or differs; the message names the first layer that does.
    """
    return export_counted(
        model, samples, path, runtime, precision=precision, calibration=calibration, int8=int8
    ).agreement


def export_counted(
    model: nn.Module,
    samples: Tensor,
    path: Path,
    runtime: Runtime,
    *,
    precision: Precision = "fp32",
    calibration: Sequence[Tensor] | None = None,
    int8: Collection[str] = (),
) -> Exported:
    """As `export`; tells the backend's share as well.

    Raises:
        ExportError: as `export`.
    """
    path = Path(path)
    model, samples = contiguous_copy(model), samples.contiguous()
    expected = eager_outputs(model, samples)
    with written_aside(path, runtime) as aside:
        delegation = _write(model, samples, aside, runtime, precision, calibration, int8)
        actual = runtime.predict(aside, samples.numpy())
        try:
            agreement = compare(expected, actual)
            admitted = LIMITS[precision].admits(agreement, float(np.abs(expected).max()))
            fault = None if admitted else f"{path.name} computes something else than the model: {agreement}"
        except ExportError as error:
            fault = f"{path.name}: {error}"
        if fault is not None:
            raise ExportError(f"{fault}; {difference(model, samples, runtime, precision, calibration, int8)}")
    return Exported(agreement, delegation)


def _write(
    model: nn.Module,
    samples: Tensor,
    path: Path,
    runtime: Runtime,
    precision: Precision,
    calibration: Sequence[Tensor] | None,
    int8: Collection[str],
) -> Delegation | None:
    if precision == "mixed":
        return mixing(runtime).export_mixed(model, (samples[:1],), path, int8)
    return runtime.export(model, (samples[:1],), path, precision, calibration=calibration)


def export_unchecked(
    model: nn.Module,
    samples: Tensor,
    path: Path,
    runtime: Runtime,
    *,
    precision: Precision = "fp32",
    calibration: Sequence[Tensor] | None = None,
) -> Delegation | None:
    """Write a file that nothing on this machine can run: what it computes is not known.

    Raises:
        ExportError: it cannot be written.
    """
    with written_aside(Path(path), runtime) as aside:
        inputs = (samples[:1].contiguous(),)
        return runtime.export(contiguous_copy(model), inputs, aside, precision, calibration=calibration)


@contextmanager
def written_aside(path: Path, runtime: Runtime) -> Iterator[Path]:
    """A name beside `path` that becomes it when the block ends well, and is removed otherwise."""
    aside = path.with_name(f".{path.stem}.part{runtime.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        _remove(path)
        aside.replace(path)
    except OSError as error:
        raise ExportError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        _remove(aside)


def check_accuracy(path: Path, *, own: float, model: float, precision: Precision) -> None:
    """Remove a file whose own top-1 is further below its model's, on the same images, than `LIMITS` allows.

    Raises:
        ExportError: it is.
    """
    if model - own > LIMITS[precision].accuracy_drop:
        _remove(path)
        raise ExportError(
            f"{path.name} is right on {100 * own:.1f} % of the validation images, its model on "
            f"{100 * model:.1f} %: {precision} costs this network too much, choose another precision"
        )


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
    int8: Collection[str] = (),
) -> str:
    """Where the file leaves the model, found by exporting it with all its layers' outputs.

    In floats that is the first layer that differs, in int8 the one across which most SQNR is lost.
    """
    try:
        layers = _sqnr_by_layer(model, samples[:2], runtime, precision, calibration, int8)
    except ExportError as error:
        return f"the layer is unknown (they cannot be exported one by one: {error})"
    if precision in ("fp32", "fp16"):
        below = (name for name, db in layers if db < LIMITS[precision].sqnr_db)
        return f"first layer that differs: {next(below, 'none alone, they agree one by one')}"
    held = [(name, min(max(db, -_EIGHT_BITS_DB), _EIGHT_BITS_DB)) for name, db in layers]
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
    int8: Collection[str],
) -> list[tuple[str, float]]:
    """SQNR behind every leaf layer in execution order, that of the input (no noise) first."""
    probe = _Intermediates(model).eval()
    probe.learn_peaks(samples)
    expected = eager_outputs(probe, samples)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"layers{runtime.suffix}"
        inside = [f"model.{name}" for name in int8]
        _write(probe, samples, path, runtime, precision, calibration, inside)
        actual = runtime.predict(path, samples.numpy())
    layers, start = [("the input", math.inf)], 0
    for name, size in zip(probe.names, probe.sizes, strict=True):
        part = slice(start, start + size)
        layers.append((name, sqnr_db(expected[:, part], actual[:, part])))
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
