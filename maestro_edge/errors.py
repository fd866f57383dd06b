"""Every error that maestro_edge raises on purpose.

MaestroError
├── DataError         a data set that is missing, truncated or of another form
├── ModelError        a model that cannot be ordered, traced, cut or rebuilt
├── CheckpointError   a checkpoint that is missing, truncated, or of another model or schema
├── TrainingError     a training that cannot start or go on, such as a loss that is not a number
├── TableError        a saved value (table, plan, manifest) of another schema, model, device or runtime
├── BudgetError       a budget that is not a time, or that no plan can keep
├── ExportError       a file that could not be written, or that computes something else than the model
├── DeviceError       a device that is not there, or a command on it that failed
│   └── RunnerError   the device answers, but its runtime could not do a job
└── MissingExtra      an optional package that is not installed

Each message is one line: what happened, with the values, and what to do.
"""

from __future__ import annotations

__all__ = [
    "BudgetError",
    "CheckpointError",
    "DataError",
    "DeviceError",
    "ExportError",
    "MaestroError",
    "MissingExtra",
    "ModelError",
    "RunnerError",
    "TableError",
    "TrainingError",
]


class MaestroError(Exception):
    """The root: catch this to catch all that maestro_edge raises on purpose."""


class DataError(MaestroError):
    """A data set is missing, truncated or of another form than its name says."""


class ModelError(MaestroError):
    """A model cannot be ordered, traced, cut or rebuilt."""


class CheckpointError(MaestroError):
    """A checkpoint is missing, truncated, or belongs to another model or schema."""


class TrainingError(MaestroError):
    """A training cannot start or cannot go on."""


class TableError(MaestroError):
    """A saved value has another schema, model, device, runtime or version than asked for."""


class BudgetError(MaestroError):
    """A budget is not a positive time, or no plan can keep it."""


class ExportError(MaestroError):
    """A file could not be written, or computes something else than the model it came from."""


class DeviceError(MaestroError):
    """A device is not there, or a command on it failed."""


class RunnerError(DeviceError):
    """The runner ran on the device and answered that its runtime could not do the job."""


class MissingExtra(MaestroError):  # noqa: N818 - reads as what it is
    """An optional package is not installed; the message names the `pip install` that brings it."""

    def __init__(self, package: str, extra: str | None) -> None:
        # None: a package whose own dependencies would replace torch.
        what = f"--no-deps {package}" if extra is None else f"'maestro-edge[{extra}]'"
        super().__init__(f"{package} is not installed: pip install {what}")
