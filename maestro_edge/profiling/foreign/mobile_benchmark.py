"""The CSV files of github.com/qed-usc/mobile-ml-benchmark: times in µs, one column a device, cores and precision.

`…_ops_gpu.csv` has an operator a row with its shapes, `…_e2e.csv` a network a row with mean and standard
deviation. A column is named device|cores|precision, such as pixel4|gpu|float. How often was measured, the
runtime's version and which floating point it is are not told.
"""

from __future__ import annotations

import ast
import csv
import io
from pathlib import Path

from maestro_edge.errors import TableError
from maestro_edge.profiling.features import operator_features, with_shape
from maestro_edge.profiling.foreign.reading import checked_ms, checked_number, read_csv, read_text
from maestro_edge.profiling.foreign.told import Facts, Told
from maestro_edge.values import NetworkRow, OperatorRow, Stated

__all__ = ["columns", "read"]

_MS = 1e-3
_WINDOWS = {"MAX_POOL_2D", "AVERAGE_POOL_2D"}
_UNWEIGHTED = {*_WINDOWS, "MEAN", "CONCATENATION"}


def columns(path: Path) -> tuple[str, ...]:
    """The device|cores|precision of a file, in its order."""
    header = next(csv.reader(io.StringIO(read_text(path))), [])
    found = ["|".join(name.split("|")[:3]) for name in header if name.count("|") in (2, 3)]
    return tuple(dict.fromkeys(name for name in found if not name.endswith("|kernel")))


def read(path: Path, column: str | None) -> Told:
    """One column of an operators' or of a networks' file.

    Raises:
        TableError: there is no such column, or a cell is no time or no shape.
    """
    known = columns(path)
    if column not in known:
        raise TableError(f"{path}: no column {column!r}: give --column, one of {', '.join(known) or 'none found'}")
    device, cores, precision = column.split("|")
    facts = Facts(
        device=device,
        runtime="tflite-gpu" if cores == "gpu" else "tflite",
        precision=None if precision == "float" else precision,
        threads=_threads(cores),
    )
    header = next(csv.reader(io.StringIO(read_text(path))))
    if "feature" in header:
        return Told(facts, operators=_operators(path, column))
    return Told(facts, networks=_networks(path, column))


def _threads(cores: str) -> int | None:
    """One thread a core: 1large2med is three."""
    counts = [int(letter) for letter in cores if letter.isdigit()]
    return sum(counts) if counts else None


def _networks(path: Path, column: str) -> tuple[NetworkRow, ...]:
    mean, std = f"{column}|mean", f"{column}|std"
    found = []
    for where, row in read_csv(path, ["model", mean, std]):
        stated = Stated(
            ms=checked_ms(row[mean], where, mean, ms_per_unit=_MS),
            statistic="mean",
            std_ms=checked_ms(row[std], where, std, ms_per_unit=_MS),
        )
        found.append(NetworkRow(network=row["model"], timing=stated))
    return tuple(found)


def _operators(path: Path, column: str) -> tuple[OperatorRow, ...]:
    found = []
    for where, row in read_csv(path, ["model", "operation", "feature", column]):
        found.append(
            OperatorRow(
                network=row["model"],
                name=row.get(column.rpartition("|")[0] + "|kernel", ""),
                kind=row["operation"],
                features=_features(row["operation"], row["feature"], where),
                timing=Stated(ms=checked_ms(row[column], where, column, ms_per_unit=_MS), statistic="not told"),
            )
        )
    return tuple(found)


def _features(kind: str, text: str, where: str) -> dict[str, float]:
    try:
        shapes = ast.literal_eval(text)
        shapes = {str(name): value for name, value in shapes.items()}
    except (ValueError, SyntaxError, AttributeError, MemoryError, RecursionError) as error:
        raise TableError(f"{where}: feature {text[:40]!r} is no dictionary") from error

    def number(name: str, absent: float) -> float:
        value = shapes.get(name)
        return absent if value in (None, "-") else checked_number(value, where, name)

    size, channels = number("Input_shape", 1), number("Input_channel", 1)
    out, taps, filters = number("Output_shape", 1), number("Kernel", 1), number("Filter", channels)
    groups = max(1.0, number("Group", 1))
    if kind == "FULLY_CONNECTED":
        size = out = 1.0
    elif kind == "MEAN":  # over all pixels: its kernel is the whole image
        out, taps, filters, groups = 1.0, size, channels, channels
    elif kind == "DEPTHWISE_CONV_2D" or kind in _WINDOWS:
        filters = groups = channels
    elif kind == "CONCATENATION":  # "Kernel" counts what is joined; nothing is multiplied
        taps, groups = 1.0, channels
    if channels < 1 or filters < 1 or out < 1:
        raise TableError(f"{where}: an operator of {channels:g} → {filters:g} channels and {out:g} pixels a side")
    found = operator_features(
        kind,
        pixels_in=size**2,
        pixels_out=out**2,
        in_channels=channels,
        out_channels=filters,
        taps=taps**2,
        stride=number("Stride", 1),
        groups=groups,
        weighted=kind not in _UNWEIGHTED,
    )
    return with_shape(found)
