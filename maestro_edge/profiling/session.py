"""profile(): a latency table of one model on one device and runtime, measured, resumable."""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import TypeAdapter
from torch import Tensor, nn

from maestro_edge.devices import Device
from maestro_edge.errors import ExportError, RunnerError, TableError
from maestro_edge.ordered import cut, gauge_layers, ordered_layers, trace
from maestro_edge.profiling.calibration import calibrated
from maestro_edge.profiling.edges import find_step, widest
from maestro_edge.profiling.matching import assign, averaged
from maestro_edge.profiling.measuring import (
    PROBES_A_RUN,
    Conditions,
    Journal,
    measure_calmly,
    measure_operators,
    pooled,
    refuse_noise,
)
from maestro_edge.profiling.options import (
    Key,
    calibrating_ranks,
    covering_ranks,
    gauge_rows,
    int8_rows,
    layer_options,
    mixtures,
    random_ranks,
    wanted_rows,
)
from maestro_edge.profiling.predictor import complete
from maestro_edge.profiling.transfer import transferred
from maestro_edge.runtimes import MeasuringProtocol, Runtime, TracingRuntime, mixing, size_bytes
from maestro_edge.runtimes.forking import side_by_side
from maestro_edge.values import (
    DENSE,
    LatencyRow,
    LatencyTable,
    NetworkTiming,
    Precision,
    Rank,
    Timing,
    write_atomically,
)

__all__ = ["measure_networks", "profile"]

Progress = Callable[[int, int, str], None]
Ranks = dict[str, Rank]

_ALONE = 3
"""Networks of mixed ranks that are also run alone; each takes a start of the runtime."""
_MIXED = 3
"""Random networks of mixed precision, beside one with all layers in int8, that calibrate a table of it."""
_FEW_LAYERS, _FEW_NETWORKS = 7, 3
"""What is measured where all else is modelled from another table: ten in all."""
_LEAST_MS = 1e-6
"""A row is above zero, whatever the noise of a difference."""
_EXPORTS = threading.Lock()
_DENSE = "{}"
"""Name of the dense network, the control of every run: see `_Whole`."""


class _Whole(NamedTuple):
    """A whole network: ranks of its layers (dense where not named), and those of them in int8."""

    ranks: Ranks
    int8: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return json.dumps(self.ranks, sort_keys=True) + "".join(f" {layer}" for layer in self.int8)

    @property
    def digest(self) -> str:
        low = {layer: rank for layer, rank in self.ranks.items() if rank != DENSE}  # the others are not cut
        return _digest([low, self.int8] if self.int8 else low)


def profile(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    runtime: Runtime,
    device: Device,
    *,
    folder: Path,
    name: str = "model",
    precision: Precision = "fp32",
    protocol: MeasuringProtocol | None = None,
    emulated: bool = False,
    gauge: bool = False,
    like: LatencyTable | None = None,
    progress: Progress | None = None,
) -> LatencyTable:
    """Measure every distinct LayerSpec of an ordered model at its ranks and dense, and fit whole networks.

    All files are exported in one `precision`. Where the runtime tells operator times, rows are taken inside whole
    networks; elsewhere each is a probe of its own. `folder` keeps exported files and finished runs: an interrupted
    profile goes on there. The table of an `emulated` device says so. With `gauge` it also has the gauge form of
    each layer that may take it, always by probes: what one takes more or less than the dense layer's probe beside
    it is added to the dense layer's row. A mixed table has fp32 rows, and those of each ordered layer in int8,
    by probes in the same way; networks of both are in its fit.

    With `like`, a table of another device or of other networks, only seven probes and three whole networks are
    measured; the other rows are modelled from its rows (a layer that it lacks by `complete`), with intervals, and
    the table says that it is modelled.

    Raises:
        DeviceError: the device or the runtime failed.
        TableError: `like` is of another runtime or precision, was not measured itself, or is too small; or the
            device is emulated.
        ExportError: the model cannot be exported, gauge forms are asked for in int8, or a file of the runtime has
            one precision where a mixed table is asked for.
    """
    protocol = protocol or MeasuringProtocol()
    if precision == "mixed":
        mixing(runtime)
    if gauge and precision != "fp32":
        raise ExportError(f"gauge forms are measured in fp32, not {precision}: profile them apart")
    if like is not None:
        _require_like(like, runtime, precision, gauge=gauge, emulated=emulated)
    session = _Session(model, inputs, runtime, device, folder, name, precision, protocol, progress)
    if gauge:
        session.gauge = gauge_layers(model, inputs)
    table = session.run() if like is None else session.run_like(like)
    return table.model_copy(update={"source": "emulated"}) if emulated else table


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
    protocol = protocol or MeasuringProtocol()
    session = _Session(model, inputs, runtime, device, folder, name, table.precision, protocol, progress)
    options = {
        layer.name: tuple(r for r in table.ranks(layer.spec) if r != DENSE) for layer in session.network.ordered
    }
    ranks = random_ranks(options, count, seed=seed)
    int8 = mixtures(session.network, count, seed=seed)[1:] if table.precision == "mixed" else [()] * count
    sets = [_Whole({}), *map(_Whole, ranks, int8)]
    session.total = len(sets) + 1
    session.conditions.fastest_ms = table.calibration(session.network).networks[0].timing.median_ms
    paths = session.export_networks(sets)
    return session.whole(sets, paths, table, stage=f"check-{seed}")


class _Session:
    def __init__(
        self,
        model: nn.Module,
        inputs: tuple[Tensor, ...],
        runtime: Runtime,
        device: Device,
        folder: Path,
        name: str,
        precision: Precision,
        protocol: MeasuringProtocol,
        progress: Progress | None,
    ) -> None:
        self.model, self.inputs, self.runtime, self.device = model, inputs, runtime, device
        self.precision = precision
        self.others: Precision = "fp32" if precision == "mixed" else precision
        self.protocol, self.progress = protocol, progress or (lambda done, total, what: None)
        self.conditions = Conditions(protocol)
        self.network = trace(model, inputs, name=name)
        self.ranks = {layer: module.rank for layer, module in ordered_layers(model).items()}
        self.options: Mapping[str, tuple[int, ...]] = {}
        self.gauge: tuple[str, ...] = ()
        self.rank_step: int | None = None
        self.done = self.total = 0
        self.runtime_version = runtime.version_on(device)
        shapes = _digest([self.network.fingerprint, self.ranks])
        self.files = folder / f"{runtime.name}-{runtime.version}-{precision}-{shapes}"
        self.folder = self.files / f"{device.facts().name}-{self._key()}"
        self.rows_path = self.folder / "rows.json"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.journal = Journal(self.folder)

    def _key(self) -> str:
        """What must be equal for old rows to count, besides the network and the device: versions and protocol."""
        return _digest([self.runtime_version, self.protocol.model_dump(exclude={"seed"})])

    def run(self) -> LatencyTable:
        self.rank_step = self._found_step()
        self.options = layer_options(self.network, self.ranks, step=self.rank_step or self.runtime.rank_step)
        traced = isinstance(self.runtime, TracingRuntime)
        sets = self._calibrating(traced=traced)
        probing = 0 if traced else math.ceil(len(self._wanted()) / PROBES_A_RUN)
        probing_forms = math.ceil(2 * len(self._forms()) / PROBES_A_RUN)
        self.total = self.done + len(sets) + max(1, probing) + probing_forms + 1
        paths = self.export_networks(sets)
        rows = self._finished()
        if not self._wanted() <= set(rows):
            found = self._rows_in_model(sets, paths)
            rows = self._rows_by_probe(rows, paths[_DENSE]) if found is None else rows | found
            self._note(rows)
        if not self._forms() <= set(rows):
            rows = self._with_forms(rows, paths[_DENSE])
        table = self._table(rows)
        networks = self._with_alone(self.whole(sets, paths, table), paths)
        try:
            refuse_noise(table, networks[0].timing.median_ms, self.protocol, self.device.name)
        finally:  # what was refused must not be read again by the session that follows
            self.journal.clear()
            self.rows_path.unlink()
        return calibrated(table, self.network, networks)

    def run_like(self, reference: LatencyTable) -> LatencyTable:
        """A few layers and networks measured, all other rows from those of `reference`."""
        self.rank_step = reference.rank_step
        self.options = layer_options(self.network, self.ranks, step=self.rank_step or self.runtime.rank_step)
        known = complete(reference, sorted(self._wanted(), key=str))
        rows = sorted(
            (known.row(*key) for key in self._wanted()), key=lambda row: (row.ms, str((row.spec, row.rank)))
        )
        few = {round(i * (len(rows) - 1) / (_FEW_LAYERS - 1)) for i in range(_FEW_LAYERS)}
        sets = [
            _Whole(ranks) for ranks in calibrating_ranks(self.options, seed=self.protocol.seed)[:_FEW_NETWORKS]
        ]
        # Apart from a whole session that was interrupted, and from one like a table with other ranks.
        self.journal = Journal(self.folder / f"like-{_digest([item.name for item in sets])}")
        self.journal.folder.mkdir(exist_ok=True)
        self.total = len(sets) + 2
        paths = self.export_networks(sets)
        probed = self._probed([(rows[index].spec, rows[index].rank) for index in sorted(few)], paths[_DENSE])
        found = {
            (row.spec, row.rank): row for row in transferred(rows, {k: t.median_ms for k, t in probed.items()})
        }
        table = self._table(found | {key: _row(key, "probe", timing) for key, timing in probed.items()})
        networks = self._with_alone(self.whole(sets, paths, table), paths)
        self.journal.clear()
        return calibrated(table, self.network, networks)

    def _calibrating(self, *, traced: bool) -> list[_Whole]:
        """The whole networks that calibrate the table, the dense one first."""
        seed = self.protocol.seed
        if traced:
            plain = covering_ranks(self.network, self.options, seed=seed)
        else:
            plain = calibrating_ranks(self.options, seed=seed)
        sets = [_Whole(ranks) for ranks in plain]
        if self.precision == "mixed":
            ranks = [{}, *random_ranks(self.options, _MIXED, seed=seed + 1)]
            sets += map(_Whole, ranks, mixtures(self.network, _MIXED, seed=seed))
        return sets

    def _with_alone(
        self, networks: Sequence[NetworkTiming], paths: Mapping[str, Path]
    ) -> tuple[NetworkTiming, ...]:
        """The dense network and the last ones are also run alone, for cold start, memory and energy.

        A page in a browser cannot run one: its table has none of these.
        """
        some = {0, *range(len(networks) - _ALONE, len(networks))}
        found = []
        for index, item in enumerate(networks):
            if index in some:
                with suppress(RunnerError):
                    path = paths[_Whole(item.ranks, item.int8).name]
                    alone = self.runtime.measure_alone(self.device, path, self.protocol)
                    item = item.model_copy(update={"alone": alone})
            found.append(item)
        return tuple(found)

    def _found_step(self) -> int | None:
        """The step of the staircase on this device, found once for a runtime's version and number of threads."""
        spec = widest(self.network)
        if spec is None:
            return None
        about = [
            self.device.facts().name,
            self.runtime.name,
            self.runtime_version,
            self.precision,
            self.protocol.threads,
        ]
        known = self.files.parent / f"step-{_digest(about)}.json"
        if known.exists():
            return _STEP.validate_json(known.read_bytes())

        def times_ms(ranks: Sequence[int]) -> dict[int, float]:
            self._step("finding the steps of the staircase")
            files = {str(rank): self.folder / f"edge-{rank}{self.runtime.suffix}" for rank in ranks}
            tasks = [
                partial(self.runtime.write_probe, spec, int(rank), path, self.others)
                for rank, path in files.items()
                if not path.exists()
            ]
            side_by_side(tasks, lambda: None, forks_after=self.runtime.forks_after)
            timings = self.runtime.measure(self.device, files, self.protocol)
            return {rank: timings[str(rank)].median_ms for rank in ranks}

        self.total = 5
        step = find_step(times_ms, expected=self.runtime.rank_step)
        write_atomically(known, _STEP.dump_json(step))
        return step

    def _measure(self, paths: Mapping[str, Path], stage: str) -> dict[str, Timing]:
        return measure_calmly(
            self.runtime,
            self.device,
            paths,
            control=_DENSE,
            conditions=self.conditions,
            journal=self.journal,
            stage=stage,
        )

    def _step(self, what: str) -> None:
        self.done += 1
        self.progress(self.done, self.total, what)

    def _wanted(self) -> set[Key]:
        return wanted_rows(self.network, self.options)

    def export_networks(self, sets: Sequence[_Whole]) -> dict[str, Path]:
        """Files of whole networks by name, kept in the folder; times do not depend on the weights."""
        paths = {item.name: self.files / f"network-{item.digest}{self.runtime.suffix}" for item in sets}
        with _EXPORTS:  # several devices may be profiled at once: the first to come exports for all
            missing = {paths[item.name]: item for item in sets if not paths[item.name].exists()}
            self.done += len(sets) - len(missing)
            side_by_side(
                [partial(self._export, item, path) for path, item in missing.items()],
                lambda: self._step("exporting whole networks"),
                forks_after=self.runtime.forks_after,
            )
        return paths

    def _export(self, item: _Whole, path: Path) -> None:
        model = cut(self.model, item.ranks).eval()
        if item.int8:
            mixing(self.runtime).export_mixed(model, self.inputs, path, item.int8)
            return
        # Static ranges come from the example: accuracy does not matter here, and times do not depend on them.
        calibration = self.inputs if self.precision == "int8-static" else None
        self.runtime.export(model, self.inputs, path, self.others, calibration=calibration)

    def whole(
        self, sets: Sequence[_Whole], paths: Mapping[str, Path], table: LatencyTable, *, stage: str = "whole"
    ) -> tuple[NetworkTiming, ...]:
        """Times of whole networks, interleaved in one run, beside the sum of their layers' rows."""
        timings = self._measure(paths, stage)
        self._step("measuring whole networks")
        return tuple(
            NetworkTiming(
                ranks=item.ranks,
                int8=item.int8,
                layers_ms=table.layers_ms(self.network.in_int8(item.int8), item.ranks),
                timing=timings[item.name],
                size_bytes=size_bytes(paths[item.name]),
            )
            for item in sets
        )

    def _rows_in_model(self, sets: Sequence[_Whole], paths: Mapping[str, Path]) -> dict[Key, LatencyRow] | None:
        """Rows from the operators of whole networks; None when operators and layers do not correspond."""
        if not isinstance(self.runtime, TracingRuntime):
            return None
        traced = [item for item in sets if not item.int8]  # what rounds an int8 layer's input is no layer's
        files = {item.name: paths[item.name] for item in traced}
        operators = measure_operators(
            self.runtime, self.device, files, control=_DENSE, protocol=self.protocol, journal=self.journal
        )
        self._step("measuring operators in whole networks")
        samples: dict[Key, list[Timing]] = {}
        for item in traced if operators is not None else ():
            assert operators is not None
            found = assign(self._keys(item.ranks), operators[item.name])
            if found is None:
                return None
            for key, timing in averaged(found).items():
                samples.setdefault(key, []).append(timing)
        return {key: _row(key, "in-model", pooled(timings)) for key, timings in samples.items()} or None

    def _keys(self, ranks: Mapping[str, Rank]) -> list[Key]:
        return [(layer.spec, ranks.get(layer.name, DENSE)) for layer in self.network.layers]

    def _rows_by_probe(self, rows: dict[Key, LatencyRow], dense: Path) -> dict[Key, LatencyRow]:
        missing = sorted(self._wanted() - set(rows), key=str)
        for start in range(0, len(missing), PROBES_A_RUN):
            timings = self._probed(missing[start : start + PROBES_A_RUN], dense)
            rows |= {key: _row(key, "probe", timing) for key, timing in timings.items()}
            self._note(rows)
        return rows

    def _probed(self, keys: Sequence[Key], dense: Path) -> dict[Key, Timing]:
        """Times of one-layer files, interleaved in one run; the journal knows it again by what is measured."""
        stage = f"probes-{_digest([[spec.model_dump(mode='json'), rank] for spec, rank in keys])}"
        files, named = {}, {}
        for index, (spec, rank) in enumerate(keys):
            path = self.folder / f"probe-{index}{self.runtime.suffix}"
            self.runtime.write_probe(spec, rank, path, "int8-dynamic" if spec.int8 else self.others)
            files[path.stem], named[path.stem] = path, (spec, rank)
        timings = self._measure({**files, _DENSE: dense}, stage)
        self._step("measuring layers")
        for path in files.values():
            path.unlink()
        return {key: timings[name] for name, key in named.items()}

    def _forms(self) -> set[Key]:
        """Rows of other forms of layers: gauge forms, and int8 in a mixed table."""
        if self.precision == "mixed":
            return int8_rows(self.network, self.options)
        step = self.rank_step or self.runtime.rank_step
        return gauge_rows(self.network, self.gauge, self.ranks, step=step)

    def _with_forms(self, rows: dict[Key, LatencyRow], dense: Path) -> dict[Key, LatencyRow]:
        """With the rows of other forms, which no operator times tell: a concat's kernel is no layer's, nor is one
        that rounds what an int8 layer is fed.

        Beside each form its dense layer is probed: both feed and read the same tensors, and the difference is what
        the form changes in a network.
        """
        missing = sorted(self._forms() - set(rows), key=str)
        for start in range(0, len(missing), PROBES_A_RUN // 2):
            keys = missing[start : start + PROBES_A_RUN // 2]
            plain: dict[Key, Key] = {key: (key[0].plain, DENSE) for key in keys}
            timings = self._probed(sorted({*keys, *plain.values()}, key=str), dense)
            for key in keys:
                shift_ms = rows[plain[key]].ms - timings[plain[key]].median_ms
                samples = [max(_LEAST_MS, ms + shift_ms) for ms in timings[key].samples_ms]
                rows[key] = _row(key, "probe", Timing.of(samples, disturbed=timings[key].disturbed))
            self._note(rows)
        return rows

    def _note(self, rows: Mapping[Key, LatencyRow]) -> None:
        write_atomically(self.rows_path, _ROWS.dump_json(tuple(rows.values())))

    def _finished(self) -> dict[Key, LatencyRow]:
        try:
            rows = _ROWS.validate_json(self.rows_path.read_bytes())
        except (OSError, ValueError):
            return {}  # nothing measured yet, or nothing that can be read: measure it again
        wanted = self._wanted() | self._forms()
        return {(row.spec, row.rank): row for row in rows if (row.spec, row.rank) in wanted}

    def _table(self, rows: Mapping[Key, LatencyRow]) -> LatencyTable:
        return LatencyTable(
            source="modelled" if any(row.method == "modelled" for row in rows.values()) else "measured",
            device=self.device.facts(),
            runtime=self.runtime.name,
            runtime_version=self.runtime_version,
            precision=self.precision,
            threads=self.protocol.threads,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            rows=tuple(rows.values()),
            runner_sha256=self.runtime.runner_sha256(self.device),
            rank_step=self.rank_step,
        )


def _require_like(
    like: LatencyTable, runtime: Runtime, precision: Precision, *, gauge: bool, emulated: bool
) -> None:
    if emulated:
        raise TableError("times of an emulated device say nothing to model others from: measure a real one")
    if gauge or precision == "mixed":
        raise TableError("a table like another has no gauge forms and one precision: measure a whole one")
    if like.source not in ("measured", "imported"):
        raise TableError(f"{like.title} was {like.source}: give a measured table to model another from")
    if (like.runtime, like.precision) != (runtime.name, precision):
        raise TableError(
            f"{like.title} is of {like.runtime} in {like.precision}, not of {runtime.name} in {precision}: "
            "give a table of that"
        )


_STEP: TypeAdapter[int | None] = TypeAdapter(int | None)
_ROWS: TypeAdapter[tuple[LatencyRow, ...]] = TypeAdapter(tuple[LatencyRow, ...])


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _row(key: Key, method: Literal["in-model", "probe"], timing: Timing) -> LatencyRow:
    return LatencyRow(spec=key[0], rank=key[1], method=method, timing=timing)
