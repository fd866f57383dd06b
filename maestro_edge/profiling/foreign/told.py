"""What a file from elsewhere tells, what its reader knows besides, and the table that both make."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import get_args

from pydantic import ValidationError

from maestro_edge.errors import TableError
from maestro_edge.values import (
    NOT_TOLD,
    DeviceFacts,
    LatencyRow,
    LatencyTable,
    NetworkRow,
    OperatorRow,
    Precision,
)

__all__ = ["Facts", "Told"]


@dataclass(frozen=True)
class Facts:
    """On what was measured, as far as it is told; None is not told."""

    device: str | None = None
    soc: str | None = None
    os: str | None = None
    runtime: str | None = None
    runtime_version: str | None = None
    precision: str | None = None
    threads: int | None = None
    created: str | None = None

    def over(self, other: Facts, path: object) -> Facts:
        """These facts, completed by `other`'s.

        Raises:
            TableError: the two disagree.
        """
        for name, own in vars(self).items():
            told = getattr(other, name)
            if own is not None and told is not None and own != told:
                raise TableError(f"{path}: says {name} {told!r}, not {own!r}: drop --{name.replace('_', '-')}")
        return replace(other, **{name: own for name, own in vars(self).items() if own is not None})


@dataclass(frozen=True)
class Told:
    """What one foreign file holds."""

    facts: Facts = Facts()
    rows: tuple[LatencyRow, ...] = ()
    operators: tuple[OperatorRow, ...] = ()
    networks: tuple[NetworkRow, ...] = ()

    def table(self, path: object) -> LatencyTable:
        """An imported table.

        Raises:
            TableError: nothing is in it, or what a table cannot do without is not told.
        """
        facts = self.facts
        if not (self.rows or self.operators or self.networks):
            raise TableError(f"{path}: holds no time of a layer, an operator or a network")
        for name in ("device", "runtime", "precision"):
            if getattr(facts, name) is None:
                raise TableError(f"{path}: does not tell the {name}: give --{name}")
        if facts.precision not in get_args(Precision):
            choice = ", ".join(get_args(Precision))
            raise TableError(f"{path}: precision {facts.precision!r}, which is none of {choice}: give --precision")
        try:
            return LatencyTable.model_validate(
                {
                    "source": "imported",
                    "device": DeviceFacts(
                        name=facts.device or NOT_TOLD,
                        soc=facts.soc or NOT_TOLD,
                        arch=NOT_TOLD,
                        cores=None,
                        os=facts.os or NOT_TOLD,
                    ),
                    "runtime": facts.runtime,
                    "runtime_version": facts.runtime_version or NOT_TOLD,
                    "precision": facts.precision,
                    "threads": facts.threads,
                    "created": facts.created or NOT_TOLD,
                    "rows": self.rows,
                    "operators": self.operators,
                    "networks": self.networks,
                }
            )
        except ValidationError as error:
            first = error.errors()[0]
            raise TableError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
