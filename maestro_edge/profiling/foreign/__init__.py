"""Tables of other tools and machines in the one schema; `source` says that they are imported.

A file with plain operators becomes `operators`, which train a predictor and which no plan reads; `layers_of` gives
them to the layers of a traced network, in execution order, where kinds and counts agree. Whole networks become
`networks`. What a file does not tell is None or "not told", never a guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Literal

from maestro_edge.errors import TableError
from maestro_edge.profiling.foreign import ai_hub, etdump, lut, mobile_benchmark, tflite
from maestro_edge.profiling.foreign.told import Facts, Told
from maestro_edge.values import DENSE, LatencyRow, LatencyTable, Network, OperatorRow, Stated

__all__ = ["Facts", "Format", "import_table", "layers_of"]

Format = Literal["tflite", "etdump", "lut", "ai-hub", "mobile-benchmark", "table"]

_WEIGHTED = {"conv2d": ("conv",), "conv1d": ("conv",), "linear": ("fully", "linear", "addmm", "gemm")}
"""Words in other tools' names of kinds that mean a layer with weights."""


def import_table(
    path: Path,
    kind: Format,
    *,
    given: Facts | None = None,
    column: str | None = None,
    unit: str | None = None,
    name: str | None = None,
) -> LatencyTable:
    """Read a file of another tool; `given` tells what the file does not, `name` the network's name.

    `column` chooses among a file's tables: device|cores|precision of mobile-benchmark, the precision of ai-hub.

    Raises:
        TableError: malformed, or something that a table needs is not told.
    """
    given = given or Facts()
    if kind == "table":
        return _handed_off(path)
    if kind == "tflite":
        told = tflite.read(path, name)
    elif kind == "etdump":
        told = etdump.read(path, name)
    elif kind == "lut":
        told = lut.read(path, name, unit)
    elif kind == "ai-hub":
        told = ai_hub.read(path, given.device, given.runtime, column)
    else:
        told = mobile_benchmark.read(path, column)
    return Told(given.over(told.facts, path), told.rows, told.operators, told.networks).table(path)


def _handed_off(path: Path) -> LatencyTable:
    """Our own JSON from another machine: its measured rows are imported here."""
    table = LatencyTable.load(path)
    if table.source in ("modelled", "emulated"):
        raise TableError(f"{path}: this table is {table.source}: hand over the measured one")
    return table.model_copy(update={"source": "imported"})


def layers_of(network: Network, operators: Sequence[OperatorRow]) -> tuple[LatencyRow, ...]:
    """Dense rows of a network's layers from one run's operators, in execution order.

    Layers of equal shape share a row, the mean of theirs.

    Raises:
        TableError: the operators with weights are not as many, or of other kinds, than the layers.
    """
    weighted = [(kind, row) for row in operators if (kind := _kind(row)) is not None]
    layers = network.layers
    if len(weighted) != len(layers):
        raise TableError(f"{len(weighted)} operators with weights, but {network.name} has {len(layers)} layers")
    found: dict[object, list[float]] = {}
    for layer, (kind, row) in zip(layers, weighted, strict=True):
        if kind != ("linear" if layer.spec.kind == "linear" else "conv"):
            raise TableError(f"operator {row.name!r} ({row.kind}) stands where {layer.name}, {layer.spec}, should")
        found.setdefault(layer.spec, []).append(row.ms)
    return tuple(
        LatencyRow(
            spec=spec, rank=DENSE, method="imported", timing=Stated(ms=fmean(found[spec]), statistic="mean")
        )
        for spec in dict.fromkeys(layer.spec for layer in layers)
    )


def _kind(row: OperatorRow) -> str | None:
    words = row.kind.lower()
    if any(word in words for word in _WEIGHTED["conv2d"]):
        return "conv"
    return "linear" if any(word in words for word in _WEIGHTED["linear"]) else None
