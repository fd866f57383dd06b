"""What TFLite's benchmark_model prints with --enable_op_profiling=true: its table in run order.

The last "Run Order" section is read, that of the regular runs: one of the initialisation may stand before it.
Columns are found by their [names], as versions differ. Nothing is told of the device, the threads or shapes.
"""

from __future__ import annotations

import re
from pathlib import Path

from maestro_edge.errors import TableError
from maestro_edge.profiling.foreign.reading import checked_ms, checked_number, read_text
from maestro_edge.profiling.foreign.told import Facts, Told
from maestro_edge.values import NetworkRow, OperatorRow, Stated

__all__ = ["read"]

_SECTION = re.compile(r"=+ ([^=]+?) =+\s*$")
_COLUMN = re.compile(r"\[([^\]]+)\]")


def read(path: Path, network: str | None) -> Told:
    """Operators in the order in which they ran, and the whole network.

    Raises:
        TableError: there is no such table, it was cut off, or a cell is no time.
    """
    lines = read_text(path).splitlines()
    starts = [n for n, line in enumerate(lines) if (m := _SECTION.search(line)) and m[1] == "Run Order"]
    if not starts:
        raise TableError(f"{path}: no 'Run Order' section: run benchmark_model with --enable_op_profiling=true")
    begin = starts[-1] + 1
    titles = [line for line in lines[:begin] if "Profiling Info for" in line]
    if titles and "Initialization" in titles[-1]:
        raise TableError(f"{path}: only the initialisation's operators, not the runs': was the file cut off?")
    end = next((n for n in range(begin, len(lines)) if _SECTION.search(lines[n])), len(lines))
    name, rest = network or path.stem, "\n".join(lines[end:])
    executed = re.search(r"Number of nodes executed: (\d+)", rest)
    timings = re.search(r"Timings \(microseconds\): count=(\S+).*? avg=(\S+)(?: std=(\S+))?", rest)
    n = None if timings is None else max(1, int(checked_number(timings[1], str(path), "count")))
    operators = _operators(path, lines, begin, end, name, n)
    if executed is None or int(executed[1]) != len(operators):
        told = "nothing" if executed is None else executed[1]
        raise TableError(f"{path}: {len(operators)} nodes in run order, {told} said to be executed: cut off?")
    networks: tuple[NetworkRow, ...] = ()
    if timings is not None:
        mean, std = (
            None if value is None else checked_ms(value, str(path), "Timings", ms_per_unit=1e-3)
            for value in (timings[2], timings[3])
        )
        stated = Stated(ms=mean or 0.0, statistic="mean", n=n, std_ms=std)
        networks = (NetworkRow(network=name, timing=stated),)
    return Told(Facts(runtime="tflite"), operators=operators, networks=networks)


def _operators(
    path: Path, lines: list[str], begin: int, end: int, network: str, n: int | None
) -> tuple[OperatorRow, ...]:
    header = [name.lower() for name in _COLUMN.findall(lines[begin])] if begin < len(lines) else []
    missing = [name for name in ("node type", "avg ms", "name") if name not in header]
    if missing:
        raise TableError(f"{path}: line {begin + 1}: no column [{missing[0]}]")
    found = []
    for number, line in enumerate(lines[begin + 1 : end], start=begin + 2):
        if not line.strip() or "\t" not in line:
            continue
        cells = [cell.strip() for cell in line.strip().split("\t")]
        where = f"{path}: line {number}"
        if len(cells) != len(header):
            raise TableError(f"{where}: {len(cells)} cells under a header of {len(header)}: was the file cut off?")
        row = dict(zip(header, cells, strict=True))
        stated = Stated(ms=checked_ms(row["avg ms"], where, "[avg ms]"), statistic="mean", n=n)
        found.append(OperatorRow(network=network, name=row["name"], kind=row["node type"], timing=stated))
    return tuple(found)
