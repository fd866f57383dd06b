"""profile(): a latency table of one model on one device and runtime, measured, resumable."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter
from torch import Tensor, nn

from maestro_edge.devices import Device
from maestro_edge.errors import DeviceError
from maestro_edge.ordered import cut, ordered_layers, trace
from maestro_edge.profiling.calibration import fit
from maestro_edge.profiling.measuring import Conditions, measure_calmly
from maestro_edge.profiling.options import layer_options, random_ranks, uniform_ranks
from maestro_edge.runtimes import MeasuringProtocol, Runtime, TracingRuntime
from maestro_edge.values import (
    DENSE,
    LatencyRow,
    LatencyTable,
    LayerSpec,
    NetworkTiming,
    Rank,
    Timing,
    write_atomically,
)

__all__ = ["measure_networks", "profile"]

Progress = Callable[[int, int, str], None]
Ranks = dict[str, Rank]
Key = tuple[LayerSpec, Rank]

_PROBES_A_RUN = 48
_DENSE = "{}"
"""Name of the dense network, the control of every run: see `_name`."""


def profile(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    runtime: Runtime,
    device: Device,
    *,
    folder: Path,
    name: str = "model",
    protocol: MeasuringProtocol | None = None,
    progress: Progress | None = None,
) -> LatencyTable:
    """Measure every distinct LayerSpec of an ordered model at its ranks and dense, and fit whole networks.

    Where the runtime tells operator times, rows are taken inside whole networks; elsewhere each is a probe
    of its own. `folder` keeps exported files and finished rows: an interrupted profile goes on there.

    Raises:
        DeviceError: the device or the runtime failed.
        ExportError: the model cannot be exported.
    """
    session = _Session(model, inputs, runtime, device, folder, name, protocol or MeasuringProtocol(), progress)
    return session.run()


def measure_networks(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    table: LatencyTable,
    runtime: Runtime,
    device: Device,
    *,
    folder: Path,
    count: int,
    seed: int = 1,
    name: str = "model",
    protocol: MeasuringProtocol | None = None,
    progress: Progress | None = None,
) -> tuple[NetworkTiming, ...]:
    """Export and measure the dense network, then `count` random rank sets that no calibration has seen."""
    session = _Session(model, inputs, runtime, device, folder, name, protocol or MeasuringProtocol(), progress)
    sets = [{}, *random_ranks(session.options, count, seed=seed)]
    session.total = len(sets) + 1
    session.conditions.fastest_ms = table.calibration(session.network).networks[0].timing.median_ms
    paths = session.export_networks(sets)
    return session.whole(sets, paths, table)


class _Session:
    def __init__(
        self,
        model: nn.Module,
        inputs: tuple[Tensor, ...],
        runtime: Runtime,
        device: Device,
        folder: Path,
        name: str,
        protocol: MeasuringProtocol,
        progress: Progress | None,
    ) -> None:
        self.model, self.inputs, self.runtime, self.device = model, inputs, runtime, device
        self.protocol, self.progress = protocol, progress or (lambda done, total, what: None)
        self.conditions = Conditions(protocol)
        self.network = trace(model, inputs, name=name)
        ranks = {layer: module.rank for layer, module in ordered_layers(model).items()}
        self.options = layer_options(self.network, ranks, step=runtime.rank_step)
        self.done = self.total = 0
        self.folder = folder / f"{runtime.name}-{runtime.version}-{self._key()}"
        self.journal = self.folder / "rows.json"
        self.folder.mkdir(parents=True, exist_ok=True)

    def _key(self) -> str:
        """What must be equal for old files and rows to count: network, weights' ranks, device, protocol."""
        facts = [
            self.network.fingerprint,
            self.options,
            self.device.facts().name,
            self.protocol.model_dump(exclude={"seed"}),
        ]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:10]

    def run(self) -> LatencyTable:
        traced = isinstance(self.runtime, TracingRuntime)
        uniform = uniform_ranks(self.options)
        # Uniform sets alone span the sizes but not the mixtures; where they are not measured, more are mixed.
        mixed = random_ranks(self.options, 3 if traced else 5, seed=self.protocol.seed)
        sets = [*(uniform if traced else uniform[:2]), *mixed]
        probing = 0 if traced else math.ceil(len(self._wanted()) / _PROBES_A_RUN)
        self.total = len(sets) + max(1, probing) + 1
        paths = self.export_networks(sets)
        rows = self._finished()
        if set(rows) < self._wanted():
            found = self._rows_in_model(uniform, paths) if traced else None
            rows = self._rows_by_probe(rows, paths[_DENSE]) if found is None else found
            self._note(rows)
        table = self._table(rows)
        networks = self.whole(sets, paths, table)
        dense_ms = networks[0].timing.median_ms
        rest_ms = max(0.0, dense_ms - networks[0].layers_ms)
        return table.model_copy(update={"calibrations": (fit(self.network, networks, rest_ms),)})

    def _measure(self, paths: Mapping[str, Path]) -> dict[str, Timing]:
        return measure_calmly(self.runtime, self.device, paths, control=_DENSE, conditions=self.conditions)

    def _step(self, what: str) -> None:
        self.done += 1
        self.progress(self.done, self.total, what)

    def _wanted(self) -> set[Key]:
        """Every distinct spec dense, and at the ranks of the layers that have it."""
        keys: set[Key] = {(layer.spec, DENSE) for layer in self.network.layers}
        for layer in self.network.ordered:
            keys.update((layer.spec, rank) for rank in self.options[layer.name])
        return keys

    def export_networks(self, sets: Sequence[Ranks]) -> dict[str, Path]:
        """Files of whole networks by name, kept in the folder; times do not depend on the weights."""
        paths = {}
        for ranks in sets:
            key = hashlib.sha256(json.dumps(ranks, sort_keys=True).encode()).hexdigest()[:12]
            path = self.folder / f"network-{key}{self.runtime.suffix}"
            if not path.exists():
                self.runtime.export(cut(self.model, ranks).eval(), self.inputs, path)
            paths[_name(ranks)] = path
            self._step("exporting whole networks")
        return paths

    def whole(
        self, sets: Sequence[Ranks], paths: Mapping[str, Path], table: LatencyTable
    ) -> tuple[NetworkTiming, ...]:
        """Times of whole networks, interleaved in one run, beside the sum of their layers' rows."""
        timings = self._measure(paths)
        self._step("measuring whole networks")
        return tuple(
            NetworkTiming(
                ranks=ranks,
                layers_ms=table.layers_ms(self.network, ranks),
                timing=timings[_name(ranks)],
            )
            for ranks in sets
        )

    def _rows_in_model(self, uniform: Sequence[Ranks], paths: Mapping[str, Path]) -> dict[Key, LatencyRow] | None:
        """Rows from the operators of whole networks; None when operators and layers do not correspond."""
        runtime = self.runtime
        assert isinstance(runtime, TracingRuntime)
        files = {_name(ranks): paths[_name(ranks)] for ranks in uniform}

        def run() -> tuple[float, dict[Key, list[float]]]:
            samples: dict[Key, list[float]] = {}
            operators = _measure_ops(runtime, self.device, files, self.protocol)
            if not all(self._assign(ranks, operators[_name(ranks)], samples) for ranks in uniform):
                return 0.0, {}
            return sum(timing.median_ms for _, timing in operators[_DENSE]), samples

        # The traced control is slower than the untraced one: it has conditions of its own.
        runs = Conditions(self.protocol).calm_runs(run)
        self._step("measuring operators in whole networks")
        if not all(runs):
            return None
        keys = list(runs[0])
        return {key: _row(key, "in-model", Timing.of([s for each in runs for s in each[key]])) for key in keys}

    def _keys(self, ranks: Mapping[str, Rank]) -> list[Key]:
        return [(layer.spec, ranks.get(layer.name, DENSE)) for layer in self.network.layers]

    def _assign(
        self, ranks: Ranks, operators: Sequence[tuple[str, Timing]], samples: dict[Key, list[float]]
    ) -> bool:
        """Give a network's operators to its layers in execution order: one when dense, two at a rank."""
        keys = self._keys(ranks)
        if len(operators) != sum(1 if rank == DENSE else 2 for _, rank in keys):
            return False
        timings = iter(timing.samples_ms for _, timing in operators)
        for key in keys:
            first = next(timings)
            both = first if key[1] == DENSE else [a + b for a, b in zip(first, next(timings), strict=True)]
            samples.setdefault(key, []).extend(both)
        return True

    def _rows_by_probe(self, rows: dict[Key, LatencyRow], dense: Path) -> dict[Key, LatencyRow]:
        missing = sorted(self._wanted() - set(rows), key=str)
        for start in range(0, len(missing), _PROBES_A_RUN):
            files, keys = {}, {}
            for index, (spec, rank) in enumerate(missing[start : start + _PROBES_A_RUN], start=start):
                path = self.folder / f"probe-{index}{self.runtime.suffix}"
                self.runtime.write_probe(spec, rank, path)
                files[path.stem], keys[path.stem] = path, (spec, rank)
            with_control = {**files, _DENSE: dense}
            timings = self._measure(with_control)
            rows |= {key: _row(key, "probe", timings[name]) for name, key in keys.items()}
            self._note(rows)
            self._step("measuring layers")
            for path in files.values():
                path.unlink()
        return rows

    def _note(self, rows: Mapping[Key, LatencyRow]) -> None:
        write_atomically(self.journal, _ROWS.dump_json(tuple(rows.values())))

    def _finished(self) -> dict[Key, LatencyRow]:
        try:
            rows = _ROWS.validate_json(self.journal.read_bytes())
        except (OSError, ValueError):
            return {}  # nothing measured yet, or nothing that can be read: measure it again
        return {(row.spec, row.rank): row for row in rows if (row.spec, row.rank) in self._wanted()}

    def _table(self, rows: Mapping[Key, LatencyRow]) -> LatencyTable:
        return LatencyTable(
            source="measured",
            device=self.device.facts(),
            runtime=self.runtime.name,
            runtime_version=self.runtime.version,
            precision="fp32",
            threads=self.protocol.threads,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            rows=tuple(rows.values()),
        )


_ROWS: TypeAdapter[tuple[LatencyRow, ...]] = TypeAdapter(tuple[LatencyRow, ...])


def _name(ranks: Mapping[str, Rank]) -> str:
    return json.dumps(ranks, sort_keys=True)


def _row(key: Key, method: Literal["in-model", "probe"], timing: Timing) -> LatencyRow:
    return LatencyRow(spec=key[0], rank=key[1], method=method, timing=timing)


def _measure_ops(
    runtime: TracingRuntime, device: Device, files: Mapping[str, Path], protocol: MeasuringProtocol
) -> dict[str, list[tuple[str, Timing]]]:
    try:
        return runtime.measure_ops(device, files, protocol)
    except DeviceError:
        # A runtime built without its tracer still runs: no operators means probes instead.
        return {name: [] for name in files}
