"""Events of an ExecuTorch ETDump, saved by the Inspector: save_data_to_tsv(), or to_dataframe().to_csv().

The unit stands in the headers, as in "p50 (ms)". Events of the framework and calls of whole delegates are left
out: the delegate's own operators are there beside them. A column of raw samples, where there is one, is kept.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from maestro_edge.errors import TableError
from maestro_edge.profiling.foreign.reading import checked_ms, read_csv, read_text
from maestro_edge.profiling.foreign.told import Facts, Told
from maestro_edge.values import OperatorRow, Stated, Timing

__all__ = ["read"]

_MS = {"ns": 1e-6, "us": 1e-3, "ms": 1.0, "s": 1e3}
_FRAMEWORK = re.compile(r"Method::|Program::|OPERATOR_CALL|DELEGATE_CALL")


def read(path: Path, network: str | None) -> Told:
    """Operators in the order of their events.

    Raises:
        TableError: the columns are not the Inspector's, or a cell is no time.
    """
    first = read_text(path).partition("\n")[0]
    unit = re.search(r"\bp50 \((\w+)\)", first)
    if unit is None or unit[1] not in _MS:
        raise TableError(f"{path}: no column such as 'p50 (ms)': save with Inspector.save_data_to_tsv()")
    median, scale = f"p50 ({unit[1]})", _MS[unit[1]]
    operators = []
    for where, row in read_csv(path, ["event_name", median], delimiter="\t" if "\t" in first else ","):
        name = row["event_name"]
        if _FRAMEWORK.search(name) or not row[median]:
            continue
        operators.append(
            OperatorRow(
                network=network or path.stem,
                name=name,
                kind=name.partition(" #")[0],
                timing=_timing(row, median, scale, where),
            )
        )
    return Told(Facts(runtime="executorch"), operators=tuple(operators))


def _timing(row: dict[str, str], median: str, scale: float, where: str) -> Timing | Stated:
    raw = row.get("raw", "")
    if raw.startswith("["):
        try:
            samples = json.loads(raw, parse_constant=str)
        except (ValueError, RecursionError) as error:
            raise TableError(f"{where}: raw {raw[:40]!r} is no list of numbers") from error
        if len(samples) >= 2:
            return Timing.of([checked_ms(sample, where, "raw", ms_per_unit=scale) for sample in samples])
    return Stated(ms=checked_ms(row[median], where, median, ms_per_unit=scale), statistic="median")
