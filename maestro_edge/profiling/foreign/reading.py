"""Reading files that strangers wrote: a size limit, numbers that are times, one error with line or key."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from maestro_edge.errors import TableError

__all__ = ["checked_ms", "checked_number", "optional_ms", "read_csv", "read_json", "read_text"]

_MOST_BYTES = 64 * 2**20
_MOST_MS = 3_600_000.0


def read_text(path: Path) -> str:
    """The file as UTF-8 text.

    Raises:
        TableError: missing, larger than 64 MiB, binary or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise TableError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise TableError(f"{path}: byte {error.start} is no UTF-8 text; pickles are never read") from error
    if len(content) > _MOST_BYTES:
        raise TableError(f"{path}: larger than {_MOST_BYTES // 2**20} MiB: not a table of one device")
    if "\0" in text:
        raise TableError(f"{path}: holds zero bytes: not a text")
    return text


def read_json(path: Path) -> Any:
    """The JSON value of a file; NaN, which JSON has not, is refused.

    Raises:
        TableError: not JSON.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number of JSON")

    try:
        return json.loads(read_text(path), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise TableError(f"{path}: not JSON ({error}): was the file cut off?") from error


def read_csv(path: Path, needed: Sequence[str], *, delimiter: str = ",") -> Iterator[tuple[str, dict[str, str]]]:
    """Rows under the header, each with where it stands; a row of another length than the header is refused.

    Raises:
        TableError: a needed column is missing, or a row is malformed.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        missing = [name for name in needed if name not in header]
        if missing or len(set(header)) < len(header):
            what = f"no column {missing[0]!r}" if missing else "two columns of one name"
            raise TableError(f"{path}: {what} among {', '.join(header[:12])!r}")
        for row in reader:
            where = f"{path}: line {reader.line_num}"
            if len(row) != len(header):
                raise TableError(
                    f"{where}: {len(row)} cells under a header of {len(header)}: was the file cut off?"
                )
            yield where, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise TableError(f"{path}: line {reader.line_num}: {error}") from error


def checked_number(value: object, where: str, what: str) -> float:
    """A finite number that is not negative.

    Raises:
        TableError: it is not one.
    """
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError
        number = float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise TableError(f"{where}: {what} is {str(value)[:40]!r}, not a number of 0 or more")
    return number


def checked_ms(value: object, where: str, what: str, *, ms_per_unit: float = 1.0) -> float:
    """A time in milliseconds, of one hour at most.

    Raises:
        TableError: it is not one.
    """
    ms = checked_number(value, where, what) * ms_per_unit
    if ms > _MOST_MS:
        raise TableError(f"{where}: {what} is {ms:.3g} ms, more than an hour: is the unit right?")
    return ms


def optional_ms(value: object, where: str, what: str, *, ms_per_unit: float = 1.0) -> float | None:
    """None where nothing stands."""
    return None if value in (None, "", "-") else checked_ms(value, where, what, ms_per_unit=ms_per_unit)
