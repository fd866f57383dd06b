"""answered_table(): a latency table of what an iPhone measured, from its `answers.json` and the probes it ran.

The answers hold raw samples, in ns by file, of the very files that were exported here, taken by our own app under
our own protocol: they differ from what a device on a cable answers in how they were carried. So the table is
measured, not imported, and its rows are probes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field, StringConstraints, ValidationError

from maestro_edge.errors import TableError
from maestro_edge.profiling.calibration import calibrated
from maestro_edge.profiling.foreign.reading import read_json
from maestro_edge.profiling.measuring import Conditions, pooled_runs, refuse_noise, whole_run
from maestro_edge.profiling.probes import PROBES, FileName, ProbeBundle, Schedule, Sha256
from maestro_edge.runtimes import MeasuringProtocol
from maestro_edge.values import (
    NOT_TOLD,
    DeviceFacts,
    LatencyRow,
    LatencyTable,
    NetworkTiming,
    Timing,
    Value,
)

__all__ = ["Answers", "answered_table"]

_REPEATS: Final = range(2, 21)
"""Samples a file has in one round: see `Schedule`."""
_MOST_NS: Final = 3_600_000_000_000
_HOT: Final = ("serious", "critical")
"""Thermal states in which iOS reduces the clocks (ProcessInfo.ThermalState)."""

ThermalState = Literal["nominal", "fair", "serious", "critical"]
Word = Annotated[str, StringConstraints(pattern=r"^\w[\w.,-]{0,39}$")]
Samples = Annotated[list[Annotated[int, Field(ge=1, le=_MOST_NS)]], Field(max_length=100_000)]


class _Answer(Value):
    model_config = ConfigDict(strict=True)


class AboutPhone(_Answer):
    """What an iPhone tells of itself; `machine` is such as iPhone17,1, which names the chip."""

    machine: Word
    arch: Word
    cores: int = Field(ge=1, le=4096)
    memory_gib: float = Field(gt=0)
    system: Literal["iOS", "iPadOS"]
    version: Word
    build: Word


class PhoneRun(_Answer):
    """One run over the files of a stage: what the other devices' runner answers, and in which state it was."""

    stage: int = Field(ge=0)
    thermal_before: ThermalState
    thermal_after: ThermalState
    low_power: bool
    samples_ns: dict[FileName, Samples]

    @property
    def is_hot(self) -> bool:
        return self.thermal_before in _HOT or self.thermal_after in _HOT

    def timings(self) -> dict[str, Timing]:
        return {
            name: Timing.of([ns / 1e6 for ns in samples], disturbed=self.is_hot)
            for name, samples in self.samples_ns.items()
        }


class Answers(_Answer):
    """`answers.json`: every stage's runs in order; `probes_sha256` is that of the bytes of `probes.json`."""

    schema_version: Literal[1]
    probes_sha256: Sha256
    created: Annotated[str, StringConstraints(max_length=40)]
    compute_units: Literal["all", "cpuOnly", "cpuAndGPU", "cpuAndNeuralEngine"]
    device: AboutPhone
    runs: list[PhoneRun]

    def facts(self) -> DeviceFacts:
        about = self.device
        return DeviceFacts(
            name=about.machine,
            soc=NOT_TOLD,
            arch=about.arch,
            cores=about.cores,
            os=f"{about.system} {about.version}",
            build=about.build,
            memory_gib=round(about.memory_gib, 1),
            throttled=any(run.is_hot for run in self.runs),
        )

    @property
    def runtime_version(self) -> str:
        """Core ML is a part of the system, and the compute units decide times as much as its version does."""
        return f"{self.device.version}-{self.device.build}-{self.compute_units}"


def answered_table(path: Path, probes: Path | None = None) -> LatencyTable:
    """The measured table of an iPhone's answers to the bundle in the folder `probes`; default where `path` lies.

    Raises:
        TableError: either file is malformed, or the answers are not those to this bundle.
        DeviceError: a layer that matters never became steady.
    """
    probes = (path.parent if probes is None else probes) / PROBES
    bundle = ProbeBundle.load(probes)
    answers = _read(path)
    if answers.probes_sha256 != hashlib.sha256(probes.read_bytes()).hexdigest():
        raise TableError(f"{path}: answers other probes than {probes}: give their folder with --probes")
    timings = _calm(bundle, _stages(path, bundle, answers.runs))
    rows = tuple(
        LatencyRow(spec=item.spec, rank=item.rank, method="probe", timing=timings[item.file])
        for item in bundle.layers
    )
    table = LatencyTable(
        source="measured",
        device=answers.facts(),
        runtime=bundle.runtime,
        runtime_version=answers.runtime_version,
        precision=bundle.precision,
        threads=None,
        created=answers.created,
        rows=rows,
    )
    refuse_noise(table, timings[bundle.schedule.control].median_ms, _protocol(bundle), answers.device.machine)
    return _fitted(path, table, bundle, timings)


def _read(path: Path) -> Answers:
    raw = read_json(path)
    try:
        answers = Answers.model_validate(raw)
        if datetime.fromisoformat(answers.created).tzinfo is None:
            raise TableError(f"{path}: created: {answers.created!r} has no time zone")
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "top level"
        raise TableError(f"{path}: {_one_line(where + ': ' + first['msg'])}") from None
    except ValueError as error:
        raise TableError(f"{path}: created: {_one_line(str(error))}") from None
    return answers


def _one_line(text: str) -> str:
    """Keys are whatever the file holds: nothing of it may control a terminal, or fill it."""
    return "".join(letter if letter.isprintable() else " " for letter in text)[:300]


def _stages(path: Path, bundle: ProbeBundle, runs: Sequence[PhoneRun]) -> list[list[PhoneRun]]:
    """The runs of each stage, complete."""
    for index, run in enumerate(runs):
        _check_run(f"{path}: run {index}", bundle.schedule, run)
    wanted = bundle.schedule.runs
    stages = [[run for run in runs if run.stage == stage] for stage in range(len(bundle.schedule.stages))]
    for stage, found in enumerate(stages):
        if len(found) != wanted:
            raise TableError(f"{path}: {len(found)} runs of stage {stage}, not {wanted}: was it ended early?")
    return stages


def _check_run(where: str, schedule: Schedule, run: PhoneRun) -> None:
    if run.stage >= len(schedule.stages):
        raise TableError(f"{where}: of stage {run.stage}, the probes have {len(schedule.stages)}")
    if run.low_power:
        raise TableError(f"{where}: in low-power mode: end it in the phone's settings and measure again")
    asked = schedule.stages[run.stage]
    differ = set(asked) ^ set(run.samples_ns)
    if differ:
        name = min(differ)
        what = "no samples of" if name in asked else "its stage has no"
        raise TableError(f"{where}: {what} {name} ({len(differ)} such): measure again")
    for name, samples in run.samples_ns.items():
        repeats, rest = divmod(len(samples), schedule.rounds)
        if rest or repeats not in _REPEATS:
            raise TableError(f"{where}: {len(samples)} samples of {name} in {schedule.rounds} rounds")


def _protocol(bundle: ProbeBundle) -> MeasuringProtocol:
    """All runs are there already: whatever is calm among them counts, and nothing is waited for."""
    runs = bundle.schedule.runs
    return MeasuringProtocol(calm_runs=runs, most_runs=runs, pause_s=0)


def _calm(bundle: ProbeBundle, stages: Sequence[Sequence[PhoneRun]]) -> dict[str, Timing]:
    """Times of all files, judged by the control as in profile(); the last stage's are the control's own."""
    conditions = Conditions(_protocol(bundle))
    control = bundle.schedule.control
    timings: dict[str, Timing] = {}
    for stage in stages:
        runs = [whole_run(run.timings(), control) for run in stage]
        timings |= pooled_runs(conditions.calm_runs(runs.__getitem__))
    return timings


def _fitted(path: Path, table: LatencyTable, bundle: ProbeBundle, timings: Mapping[str, Timing]) -> LatencyTable:
    networks = [
        NetworkTiming(
            ranks=item.ranks,
            layers_ms=table.layers_ms(bundle.network, item.ranks),
            timing=timings[item.file],
        )
        for item in bundle.networks
    ]
    try:
        return calibrated(table, bundle.network, networks)
    except ValidationError as error:
        raise TableError(f"{path}: these times fit no line: {error.errors()[0]['msg']}: measure again") from error
