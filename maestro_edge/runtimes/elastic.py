"""Elastic files: one file holds several plans of a network, their weights once; an app switches as it runs.

Plans that are cut from one ordered network share most of what they hold. The first layer of a pair at rank r is
the first r rows of that at a higher rank, so its bytes are the beginning of the other's, and a file that lets
contents overlap needs the longer only (`owners`). How the columns of the second layer are shared is a matter of
the format: elastic_litert.py, elastic_executorch.py. What BatchNorm makes different is kept apart by norms.py. A
layer that is dense in one plan and a pair in another has no weights in common and is stored twice: plans for one
file agree on forms (planning.dense_in_all).

LiteRT prepares all entries when it loads the file, so that it takes longer to load than one plan alone (of
ResNet-20 5 ms, not 2; of a ViT of 13 MB 63 to 82 ms, not 2 to 4: benchmarks/results/exports.json).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn

from maestro_edge.errors import ExportError
from maestro_edge.runtimes.agreement import LIMITS, Agreement, compare
from maestro_edge.runtimes.conversion import contiguous_copy
from maestro_edge.runtimes.gate import eager_outputs, written_aside
from maestro_edge.runtimes.jobs import with_entry
from maestro_edge.runtimes.protocol import Runtime
from maestro_edge.values import Precision

__all__ = ["ElasticRuntime", "entry_name", "export_elastic", "owners"]


@runtime_checkable
class ElasticRuntime(Runtime, Protocol):
    """A runtime whose files can hold several entries that share their weights."""

    def export_entries(self, models: Mapping[str, nn.Module], inputs: tuple[Tensor, ...], path: Path) -> None:
        """Write `models` (stock layers, eval mode) by the name of their entry to `path`, whole or not at all.

        Raises:
            ExportError: a model cannot be expressed, or the file cannot be written.
        """
        ...


def export_elastic(
    models: Mapping[str, nn.Module],
    samples: Tensor,
    path: Path,
    runtime: Runtime,
    *,
    precision: Precision = "fp32",
) -> dict[str, Agreement]:
    """Write one file with an entry for each of `models`, gate every entry on `samples` (N, ...), each run alone.

    The models are stock layers, as cut() and recalibrate() leave the plans of one ordered network; their names are
    identifiers (`entry_name`). The file takes the name `path` only when all entries agree with eager fp32 as
    runtimes.export() asks of a single one.

    Raises:
        ExportError: the runtime has no such files, the precision is not fp32, a name is no identifier, or the file
            cannot be written or run, or one of its entries differs from its model.
    """
    path = Path(path)
    elastic = _able(runtime, models, precision)
    samples = samples.contiguous()
    with written_aside(path, runtime) as aside:
        elastic.export_entries(models, (samples[:1],), aside)
        return {name: _gated(elastic, aside, name, model, samples, path.name) for name, model in models.items()}


def _able(runtime: Runtime, models: Mapping[str, nn.Module], precision: Precision) -> ElasticRuntime:
    if not isinstance(runtime, ElasticRuntime):
        # Core ML's multifunction packages share constants that are equal, never the beginning of one.
        raise ExportError(
            f"files of {runtime.name} share weights that are equal, not a rank that is part of a higher one: "
            "export its plans apart"
        )
    if precision != "fp32":
        raise ExportError(
            f"an elastic file is in fp32, not {precision}: each rank has scales of its own, so nothing would be "
            "shared: export the plans apart"
        )
    wrong = [name for name in models if name != entry_name(name)]
    if wrong or not models:
        what = f"{wrong[0]!r} is no name" if wrong else "there is none"
        raise ExportError(f"an elastic file has entries with names such as r64: {what}")
    return runtime


def _gated(runtime: Runtime, file: Path, name: str, model: nn.Module, samples: Tensor, called: str) -> Agreement:
    expected = eager_outputs(contiguous_copy(model), samples)
    agreement = compare(expected, runtime.predict(with_entry(file, name), samples.numpy()))
    if not LIMITS["fp32"].admits(agreement, float(np.abs(expected).max())):
        raise ExportError(
            f"{called}: entry {name} computes something else than its model: {agreement}: export the plans apart"
        )
    return agreement


def entry_name(tag: str) -> str:
    """The tag of a plan as an identifier: "1.5ms" is "at_1_5ms"."""
    name = re.sub(r"[^0-9A-Za-z]+", "_", tag).strip("_")
    return name if name[:1].isalpha() else f"at_{name}"


def owners(contents: Sequence[bytes]) -> list[int]:
    """For each of `contents` the index of the longest one that begins with it: itself where none does.

    What begins with a string follows it in sorted order, so the next one tells.
    """
    found = list(range(len(contents)))
    order = sorted(found, key=lambda index: (contents[index], index))
    for index, after in reversed(list(pairwise(order))):
        if contents[after].startswith(contents[index]):
            found[index] = found[after]
    return found
