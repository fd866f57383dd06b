"""Latency look-up tables as JSON, keyed as once-for-all's: "Conv-input:224x224x3-output:112x112x16".

A value is a number, or an object with "mean" and perhaps "count" (runs) and "std". An entry is a block of a
network, not one layer, so that it becomes an operator. The unit is not told: the reader of the file has to say it.
NetAdapt pickles its tables: a pickle runs code and is never read; write it as JSON first.
"""

from __future__ import annotations

import re
from pathlib import Path

from maestro_edge.errors import TableError
from maestro_edge.profiling.features import operator_features
from maestro_edge.profiling.foreign.reading import checked_ms, checked_number, optional_ms, read_json
from maestro_edge.profiling.foreign.told import Facts, Told
from maestro_edge.values import OperatorRow, Stated

__all__ = ["UNITS", "read"]

UNITS = {"ns": 1e-6, "us": 1e-3, "ms": 1.0, "s": 1e3}
_FIELD = re.compile(r"^(\w+):(.+)$")


def read(path: Path, network: str | None, unit: str | None) -> Told:
    """Every entry as an operator.

    Raises:
        TableError: no unit was given, or an entry is malformed.
    """
    if unit not in UNITS:
        raise TableError(f"{path}: a look-up table does not tell its unit: give --unit, one of {', '.join(UNITS)}")
    entries = read_json(path)
    if not isinstance(entries, dict):
        raise TableError(f"{path}: a {type(entries).__name__}, not an object of entries")
    operators = []
    for key, value in entries.items():
        where = f"{path}: key {key[:80]!r}"
        entry = value if isinstance(value, dict) else {"mean": value}
        count = entry.get("count")
        stated = Stated(
            ms=checked_ms(entry.get("mean"), where, "mean", ms_per_unit=UNITS[unit]),
            statistic="mean" if isinstance(value, dict) else "not told",
            n=None if count is None else max(1, int(checked_number(count, where, "count"))),
            std_ms=optional_ms(entry.get("std"), where, "std", ms_per_unit=UNITS[unit]),
        )
        kind, *fields = key.split("-")
        features = _features(kind, fields, where)
        operators.append(
            OperatorRow(network=network or path.stem, name=key, kind=kind, features=features, timing=stated)
        )
    return Told(Facts(), operators=tuple(operators))


def _features(kind: str, fields: list[str], where: str) -> dict[str, float] | None:
    told = {match[1]: match[2] for field in fields if (match := _FIELD.match(field))}
    if "input" not in told or "output" not in told:
        return None
    before, after = (_sizes(told.pop(name), where) for name in ("input", "output"))
    extra = {name: checked_number(value, where, name) for name, value in told.items()}
    return {
        **operator_features(
            kind,
            pixels_in=before[0],
            pixels_out=after[0],
            in_channels=before[1],
            out_channels=after[1],
            taps=extra.pop("kernel", 1.0) ** 2,
            stride=extra.pop("stride", 1.0),
        ),
        **extra,
    }


def _sizes(text: str, where: str) -> tuple[float, float]:
    """Pixels and channels of HxWxC, or 1 and C."""
    sizes = [checked_number(size, where, "size") for size in text.split("x")]
    if len(sizes) not in (1, 3) or min(sizes) < 1:
        raise TableError(f"{where}: size {text[:40]!r} is neither HxWxC nor C")
    return (sizes[0] * sizes[1], sizes[2]) if len(sizes) == 3 else (1.0, sizes[0])
