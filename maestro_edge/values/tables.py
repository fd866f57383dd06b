"""LatencyTable: what a network's layers take on one device."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Self

from pydantic import Field, PositiveInt, model_validator

from maestro_edge.errors import TableError
from maestro_edge.values.base import DENSE, Precision, Rank, Saved, Source
from maestro_edge.values.networks import LayerSpec, Network
from maestro_edge.values.timings import Calibration, DeviceFacts, LatencyRow, NetworkRow, OperatorRow, Timing

__all__ = ["DOUBTFUL_ERROR", "LatencyTable"]


DOUBTFUL_ERROR = 0.05
"""Leave-one-out error of a calibration above which a plan says so."""


class LatencyTable(Saved):
    """Milliseconds per layer on one device, runtime, version, precision and number of threads.

    The source is that of its weakest row: one that is modelled makes the table modelled, and its file's name
    says so. `threads` is None where an imported file does not tell them, and where the runtime alone decides
    (Core ML).
    """

    source: Source
    device: DeviceFacts
    runtime: str
    runtime_version: str
    precision: Precision
    threads: PositiveInt | None
    created: str
    rows: tuple[LatencyRow, ...]
    calibrations: tuple[Calibration, ...] = ()
    runner_sha256: str | None = Field(default=None, description="of the native runner; None where Python measured")
    rank_step: PositiveInt | None = Field(default=None, description="found on the device; None where assumed")
    operators: tuple[OperatorRow, ...] = ()
    networks: tuple[NetworkRow, ...] = ()

    @model_validator(mode="after")
    def _source_fits(self) -> Self:
        methods = {row.method for row in self.rows}
        if "modelled" in methods and self.source != "modelled":
            raise ValueError(f"a table with modelled rows is modelled, not {self.source}")
        timed = self.source in ("measured", "emulated")
        if timed and ("imported" in methods or self.operators or self.networks):
            raise ValueError(f"a table with imported rows is imported, not {self.source}")
        if self.precision != "mixed" and any(row.spec.int8 for row in self.rows):
            raise ValueError(f"a table with rows of layers in int8 beside others is mixed, not {self.precision}")
        return self

    @property
    def title(self) -> str:
        return f"{self.device.name}/{self.runtime}-{self.runtime_version}"

    @property
    def file_name(self) -> str:
        threads = "" if self.threads is None else f"-t{self.threads}"
        source = "" if self.source == "measured" else f".{self.source}"
        stem = f"{self.device.name}.{self.runtime}-{self.runtime_version}.{self.precision}{threads}{source}"
        return re.sub(r"[^\w.+-]+", "-", stem) + ".json"

    @property
    def disturbed(self) -> bool:
        """Whether the device was busy, or slower than before, while something in it was measured."""
        timings = [row.timing for row in self.rows if isinstance(row.timing, Timing)]
        timings += [item.timing for fit in self.calibrations for item in fit.networks]
        return any(timing.disturbed for timing in timings)

    @cached_property
    def _by_layer(self) -> dict[tuple[LayerSpec, Rank], LatencyRow]:
        return {(row.spec, row.rank): row for row in self.rows}

    def row(self, spec: LayerSpec, rank: Rank) -> LatencyRow:
        """The row of a spec at a rank.

        Raises:
            TableError: it was not measured.
        """
        try:
            return self._by_layer[spec, rank]
        except KeyError:
            raise TableError(
                f"{self.title} has no row for {spec} at rank {rank}: profile the model first"
            ) from None

    def gauge_ranks(self, spec: LayerSpec) -> tuple[int, ...]:
        """The ranks at which the gauge form of a spec was measured, ascending; none where it has no such form."""
        if not spec.has_gauge:
            return ()
        return tuple(rank for rank in self.ranks(spec.gauged) if rank != DENSE)

    def int8_ranks(self, spec: LayerSpec) -> tuple[Rank, ...]:
        """The ranks, dense among them, at which a spec is faster in int8 than in fp32, and than dense in fp32."""
        if not spec.has_int8:
            return ()
        times = {rank: self.row(spec, rank).ms for rank in self.ranks(spec)}
        dense_ms = times.get(DENSE, math.inf)
        return tuple(
            rank
            for rank in self.ranks(spec.quantised)
            if 0 < self.row(spec.quantised, rank).ms < min(dense_ms, times.get(rank, math.inf))
        )

    def ranks(self, spec: LayerSpec) -> tuple[Rank, ...]:
        """The ranks measured for a spec, ascending, dense last."""
        found = [row.rank for row in self.rows if row.spec == spec]
        return (*sorted(rank for rank in found if rank != DENSE), *(rank for rank in found if rank == DENSE))

    def calibration(self, network: Network) -> Calibration:
        """The whole-network fit of `network`.

        Raises:
            TableError: this network was not measured as a whole.
        """
        for calibration in self.calibrations:
            if calibration.network == network.fingerprint:
                return calibration
        raise TableError(f"{self.title} is not calibrated for {network.name}: profile the model first")

    def layers_ms(self, network: Network, ranks: Mapping[str, Rank]) -> float:
        """Sum of the measured rows over every Linear and Conv2d of the network."""
        return sum(self.row(layer.spec, ranks.get(layer.name, DENSE)).ms for layer in network.layers)

    def predict_ms(self, network: Network, ranks: Mapping[str, Rank]) -> float:
        """Predicted milliseconds of the whole network at `ranks`."""
        return self.calibration(network).whole_ms(self.layers_ms(network, ranks))

    def doubts(self, network: Network) -> tuple[str, ...]:
        """What makes the table's predictions of `network` doubtful, in words; nothing when all is well."""
        error = self.calibration(network).loo_mape
        if self.source == "emulated":
            return (
                f"{self.title} was emulated: its times say nothing of a device, plans on it only try the flow",
            )
        found = []
        if error > DOUBTFUL_ERROR:
            found.append(
                f"{self.title} predicts whole networks within {100 * error:.1f} % only, more than "
                f"{100 * DOUBTFUL_ERROR:.0f} %: profile again on a calm device, or trust 'verify' alone"
            )
        if self.disturbed:
            found.append(
                f"{self.title} was measured while the device was busy or slower than before: profile again"
            )
        modelled = sum(row.method == "modelled" for row in self.rows)
        if modelled:
            found.append(f"{modelled} of {len(self.rows)} rows of {self.title} are modelled: trust 'verify' alone")
        return tuple(found)

    def over(self, older: LatencyTable) -> Self:
        """This table with what only `older` has: rows of other layers and fits of other networks.

        Nothing of a table with another device, runtime version, precision or number of threads is taken.
        """
        if (older.file_name, older.source) != (self.file_name, self.source):
            return self
        have = {(row.spec, row.rank) for row in self.rows}
        fitted = {fit.network for fit in self.calibrations}
        return self.model_copy(
            update={
                "rows": (*self.rows, *(row for row in older.rows if (row.spec, row.rank) not in have)),
                "calibrations": (
                    *self.calibrations,
                    *(fit for fit in older.calibrations if fit.network not in fitted),
                ),
            }
        )

    def save_over(self, profiles: Path) -> Self:
        """Save in the folder `profiles`, with what a table of that name there has of other layers and networks.

        Raises:
            TableError: what is there cannot be read.
        """
        path = profiles / self.file_name
        table = self.over(type(self).load(path)) if path.exists() else self
        table.save(path)
        return table

    def require(
        self, *, runtime: str, runtime_version: str, threads: int, device: str, precision: Precision = "fp32"
    ) -> None:
        """Refuse a table that was measured with something else.

        Raises:
            TableError: names the first thing that differs.
        """
        wanted = {
            "device": (self.device.name, device),
            "runtime": (self.runtime, runtime),
            "runtime version": (self.runtime_version, runtime_version),
            "threads": (self.threads, threads),
            "precision": (self.precision, precision),
        }
        for what, (have, want) in wanted.items():
            if have != want:
                raise TableError(f"{self.title} was measured with {what} {have}, not {want}: profile again")
