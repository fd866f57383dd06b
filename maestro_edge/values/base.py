"""What every value has: it is frozen and checked, and those that are saved come back with a clear error."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from maestro_edge.errors import DataError, TableError

__all__ = [
    "DENSE",
    "NOT_TOLD",
    "UNITS",
    "Layout",
    "Milliseconds",
    "Pair",
    "Precision",
    "Quantity",
    "Rank",
    "Saved",
    "Source",
    "Value",
    "refuse_unwritable",
    "write_atomically",
]


DENSE: Final = "dense"
"""The option that leaves a layer as it was: one stock layer."""

NOT_TOLD: Final = "not told"
"""What stands where an imported file says nothing, and a text has to stand."""

Rank = PositiveInt | Literal["dense"]
Precision = Literal["fp32", "fp16", "int8-dynamic", "int8-static", "mixed", "palettised-6bit", "int4-weights"]
"""Of weights and arithmetic; a file's inputs and outputs are floats in all. In fp16 the weights are halves, and
the arithmetic too where the device has it. In int8-dynamic activations get their scales while the network runs, in
int8-static from samples when it is exported. In mixed a plan says which layers are in int8-dynamic; all else is in
fp32. The last two are of weights alone, on Core ML: each layer's are one of 64 floats, or 4 bits with a scale for
every 32."""

Layout = Literal["NCHW", "NHWC"]
"""Of the images that a file is fed: one channel after the other, or the channels of each pixel together."""

Source = Literal["measured", "imported", "modelled", "emulated"]
"""Emulated: timed on a device whose processor is emulated: the flow is real, the times say nothing of a device."""

Quantity = Literal["ms", "p90_ms", "size_bytes", "memory_bytes", "macs", "params", "energy_mj"]
"""What a budget may bound: median and 90th percentile of a run, bytes of the exported file, peak bytes of the
process that runs it, counts of one forward pass, and energy of one run."""

UNITS: Final[Mapping[Quantity, tuple[float, str]]] = {
    "ms": (1, "ms"),
    "p90_ms": (1, "ms at p90"),
    "size_bytes": (1e3, "kB of file"),
    "memory_bytes": (1e6, "MB of memory"),
    "macs": (1e6, "MMACs"),
    "params": (1, "parameters"),
    "energy_mj": (1, "mJ"),
}
"""How quantities are told: of what size the unit is, and its name."""

Milliseconds = Annotated[float, Field(gt=0)]
Pair = tuple[int, int]


class Value(BaseModel):
    """A frozen value: unknown fields, NaN and infinity are refused when it is made."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy whose cached properties are worked out anew: pydantic would copy them too."""
        copied = super().model_copy(update=update, deep=deep)
        for name in set(vars(copied)) - set(type(self).model_fields):
            del vars(copied)[name]
        return copied


class Saved(Value):
    """A value with a schema version, saved as one JSON file."""

    schema_version: Literal[1] = 1

    def save(self, path: Path) -> Path:
        """Write beside `path`, then rename: a reader never sees half a file."""
        write_atomically(path, self.model_dump_json(indent=1).encode())
        return path

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            TableError: the file is missing, truncated, of another schema or not such a value.
        """
        kind = cls.__name__
        try:
            raw = json.loads(Path(path).read_bytes())
        except FileNotFoundError as error:
            raise TableError(f"{path}: no such file; a {kind} was expected there") from error
        except (OSError, ValueError, RecursionError) as error:
            raise TableError(f"{path}: not a readable {kind} ({error}): make it again") from error
        found = raw.get("schema_version") if isinstance(raw, dict) else None
        reads = cls.model_fields["schema_version"].default
        if found != reads:
            raise TableError(
                f"{path}: {kind} schema {found!r}, this maestro_edge reads schema {reads}: make it again or update"
            )
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            first = error.errors()[0]
            # Pydantic also names the branch of a union, which no file holds.
            places = [str(place) for place in first["loc"] if place not in ("Timing", "Stated", "Estimate")]
            where = ".".join(places) or "top level"
            raise TableError(f"{path}: not a valid {kind}: {where}: {first['msg']}") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` beside `path` and rename it into place.

    Raises:
        DataError: the folder cannot be written.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(content)
        aside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        reason = error.strerror or error
        raise DataError(f"{path}: cannot be written ({reason}): choose a folder you may write to") from error


def refuse_unwritable(folder: Path) -> None:
    """Refuse before long work what write_atomically() would fail with behind it; nothing is made.

    Raises:
        DataError: the folder, or what is there of the path to it, cannot be written.
    """
    folder = Path(folder)
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    reason = "is no folder" if not there.is_dir() else "" if os.access(there, os.W_OK) else "is read-only"
    if reason:
        raise DataError(f"{folder}: cannot be written ({there} {reason}): choose a folder you may write to")
