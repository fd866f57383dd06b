"""Measuring on a machine that others use too: a control file tells calm runs from disturbed ones."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter

from maestro_edge.devices import Device
from maestro_edge.errors import DeviceError, RunnerError
from maestro_edge.runtimes import MeasuringProtocol, Operator, Runtime, TracingRuntime
from maestro_edge.values import LatencyTable, Timing, write_atomically

__all__ = [
    "PROBES_A_RUN",
    "Conditions",
    "Journal",
    "Measured",
    "measure_calmly",
    "measure_operators",
    "pooled",
    "pooled_runs",
    "refuse_noise",
    "whole_run",
]

PROBES_A_RUN = 48
"""One-layer files that are loaded and interleaved together, beside the control."""

_NOISE_SHARE = 0.02
"""A noisy row is refused when its interquartile range is above this share of the dense network's time."""

Operators = dict[str, list[Operator]]


class Measured(NamedTuple):
    """One run over all files: the control's ms, whether the device was busy or slow, and the times by name."""

    control_ms: float
    disturbed: bool
    operators: Operators


class Journal:
    """Finished runs of a session that has not ended yet: after a lost connection they need not be repeated."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, name: str, measure: Callable[[], Measured]) -> Measured:
        """The run of that name, measured unless it was before."""
        path = self.folder / f"run-{name}.json"
        try:
            return _MEASURED.validate_json(path.read_bytes())
        except (OSError, ValueError):
            pass  # not measured yet, or not whole
        found = measure()
        write_atomically(path, _MEASURED.dump_json(found))
        return found

    def clear(self) -> None:
        """The session has ended: the next one measures anew."""
        for path in self.folder.glob("run-*.json"):
            path.unlink()


_MEASURED: TypeAdapter[Measured] = TypeAdapter(Measured)


class Conditions:
    """The control's fastest undisturbed time so far, against which every run of a session is judged.

    Inside one run all files are interleaved and meet the same conditions, so a run that the whole machine
    slowed down looks as steady as a calm one: only other runs of the same control show it, or the time that
    other programs took.
    """

    def __init__(self, protocol: MeasuringProtocol, fastest_ms: float = math.inf) -> None:
        self.protocol, self.fastest_ms = protocol, fastest_ms

    def calm_runs(self, run: Callable[[int], Measured]) -> list[Measured]:
        """Repeat `run`, which is told how many went before, until `protocol.calm_runs` were calm.

        A run is calm when nobody else kept the device busy and its control lies at most `drift_limit` above
        the fastest. After `most_runs` those that agree with the fastest of them have to do: the machine is
        busy, or slower now than it was, which their timings then say.
        """
        found: list[Measured] = []
        for index in range(self.protocol.most_runs):
            found.append(run(index))
            quiet = [each for each in found if not each.disturbed]
            self.fastest_ms = min([self.fastest_ms, *(each.control_ms for each in quiet)])
            calm = self._near(quiet, self.fastest_ms)
            if len(calm) >= self.protocol.calm_runs:
                return calm
            if (not calm or calm[-1] is not found[-1]) and index + 1 < self.protocol.most_runs:
                time.sleep(self.protocol.pause_s)  # let pass whatever else keeps the machine busy
        rest = [each for each in found if not each.disturbed] or found
        kept = self._near(rest, min(each.control_ms for each in rest))
        return kept if self._near(kept, self.fastest_ms) else [_disturbed(each) for each in kept]

    def _near(self, found: list[Measured], fastest_ms: float) -> list[Measured]:
        return [each for each in found if each.control_ms <= fastest_ms * (1 + self.protocol.drift_limit)]


def _disturbed(run: Measured) -> Measured:
    operators = {
        name: [each._replace(timing=each.timing.model_copy(update={"disturbed": True})) for each in found]
        for name, found in run.operators.items()
    }
    return run._replace(disturbed=True, operators=operators)


def measure_calmly(
    runtime: Runtime,
    device: Device,
    paths: Mapping[str, Path],
    *,
    control: str,
    conditions: Conditions,
    journal: Journal | None = None,
    stage: str = "whole",
) -> dict[str, Timing]:
    """Times of the files on the device, pooled over the runs in which the file named `control` was calm."""

    def measure() -> Measured:
        protocol = conditions.protocol.paced(len(paths), conditions.fastest_ms)
        return whole_run(runtime.measure(device, paths, protocol), control)

    return pooled_runs(conditions.calm_runs(lambda index: _noted(journal, f"{stage}-{index}", measure)))


def whole_run(timings: Mapping[str, Timing], control: str) -> Measured:
    """One run over whole files, judged by its control."""
    disturbed = any(timing.disturbed for timing in timings.values())
    whole = {name: [Operator("network", timing)] for name, timing in timings.items()}
    return Measured(timings[control].median_ms, disturbed, whole)


def pooled_runs(runs: Sequence[Measured]) -> dict[str, Timing]:
    """Each file's samples of all `runs`."""
    return {name: pooled([run.operators[name][0].timing for run in runs]) for name in runs[0].operators}


def measure_operators(
    runtime: TracingRuntime,
    device: Device,
    paths: Mapping[str, Path],
    *,
    control: str,
    protocol: MeasuringProtocol,
    journal: Journal | None = None,
) -> Operators | None:
    """Times of every operator inside the files, pooled over calm runs; None where the runtime cannot tell.

    The traced control is slower than the untraced one, so that it has conditions of its own.
    """

    conditions = Conditions(protocol)

    def measure() -> Measured:
        operators = runtime.measure_ops(device, paths, protocol.paced(len(paths), conditions.fastest_ms))
        timings = [each.timing for found in operators.values() for each in found]
        control_ms = sum(each.timing.median_ms for each in operators[control])
        return Measured(control_ms, any(timing.disturbed for timing in timings), operators)

    try:
        runs = conditions.calm_runs(lambda index: _noted(journal, f"operators-{index}", measure))
    except RunnerError:
        # A runtime built without its tracer still runs: no operators means probes instead.
        return None
    first = runs[0].operators
    if any(len(run.operators[name]) != len(found) for run in runs for name, found in first.items()):
        return None
    return {
        name: [
            each._replace(timing=pooled([run.operators[name][index].timing for run in runs]))
            for index, each in enumerate(found)
        ]
        for name, found in first.items()
    }


def _noted(journal: Journal | None, name: str, measure: Callable[[], Measured]) -> Measured:
    return measure() if journal is None else journal.run(name, measure)


def pooled(timings: Sequence[Timing]) -> Timing:
    """All samples of several measurements of one thing."""
    samples = [sample for timing in timings for sample in timing.samples_ms]
    return Timing.of(samples, disturbed=any(timing.disturbed for timing in timings))


def refuse_noise(table: LatencyTable, dense_ms: float, protocol: MeasuringProtocol, device: str) -> None:
    """A row that never became steady, and is no small part of the dense network, spoils every plan.

    Raises:
        DeviceError: names the first such row.
    """
    for row in table.rows:
        spread = row.spread or 0.0
        if spread > protocol.noise_limit and spread * row.ms > _NOISE_SHARE * dense_ms:
            raise DeviceError(
                f"{device}: {row.spec} at rank {row.rank} varies by {100 * spread:.0f} % "
                f"of {row.ms:.3g} ms after {protocol.most_runs} runs: end what else runs there, then "
                "measure again; the exported files are kept"
            )
