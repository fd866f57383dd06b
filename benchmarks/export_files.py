"""The files that exports.py compares: dense and plans alone and in int8, the same as entries of elastic files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from maestro_edge.errors import ExportError
from maestro_edge.recipes.run import Run
from maestro_edge.recipes.variants import export_entries, export_variant
from maestro_edge.runtimes import Runtime
from maestro_edge.runtimes.jobs import with_entry
from maestro_edge.values import Precision, RankPlan, Variant

_ALONE = {"litert": "serving_default"}
"""What a file of one is called by where entries are called in another way than such files."""


class Candidate(NamedTuple):
    """A file, or one of its entries; `plan` is its plan's tag, its share, or dense; top-1 is 0 to 1."""

    kind: str
    plan: str
    precision: Precision
    path: Path
    size_bytes: int
    top1: float
    params: int
    macs: int

    @property
    def name(self) -> str:
        return " ".join((self.kind, self.plan, self.precision))


def exported(
    run: Run, runtime: Runtime, plans: Sequence[RankPlan], int8: Precision
) -> tuple[list[Candidate], dict[str, str]]:
    """Dense, plans and entries in fp32 and in int8, and why some of them cannot be."""
    found: list[Candidate] = []
    left_out: dict[str, str] = {}

    def add(kind: str, plan: str, each: Variant) -> None:
        path = with_entry(run.folder / "files" / each.file, each.entry or _ALONE.get(runtime.name))
        about = each.precision, path, each.size_bytes, each.accuracy, each.params, each.macs
        found.append(Candidate(kind, plan, *about))

    for precision in ("fp32", int8):
        own = [item.model_copy(update={"precision": precision}) for item in plans]
        alone: list[tuple[str, str, RankPlan | Precision]] = [("dense", "dense", precision)]
        for kind, plan, item in [*alone, *(("plan", each.tag, each) for each in own)]:
            try:
                add(kind, plan, export_variant(run, runtime, item))
            except ExportError as error:
                left_out[f"{kind} {plan} {precision}"] = str(error)
        try:
            for each, variant in zip(own, export_entries(run, runtime, own), strict=True):
                add("entry", each.tag, variant)
        except ExportError as error:
            left_out[f"elastic file {precision}"] = str(error)
    return found, left_out
