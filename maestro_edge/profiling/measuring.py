"""Measuring on a machine that others use too: a control file tells calm runs from disturbed ones."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from maestro_edge.devices import Device
from maestro_edge.runtimes import MeasuringProtocol, Runtime
from maestro_edge.values import Timing

__all__ = ["Conditions", "measure_calmly"]

T = TypeVar("T")


class Conditions:
    """The fastest time of the control so far, against which every run of a session is judged.

    Inside one run all files are interleaved and meet the same conditions, so a run that the whole machine
    slowed down looks as steady as a calm one: only other runs of the same control show it.
    """

    def __init__(self, protocol: MeasuringProtocol, fastest_ms: float = math.inf) -> None:
        self.protocol, self.fastest_ms = protocol, fastest_ms

    def calm_runs(self, run: Callable[[], tuple[float, T]]) -> list[T]:
        """Repeat `run`, which returns its control's ms first, until `protocol.calm_runs` were calm.

        A run is calm when its control lies at most `drift_limit` above the fastest. After `most_runs` the
        runs that agree with the fastest of them have to do: the machine is slower now than it was.
        """
        found: list[tuple[float, T]] = []
        for _ in range(self.protocol.most_runs):
            found.append(run())
            self.fastest_ms = min(self.fastest_ms, found[-1][0])
            calm = self._near(found, self.fastest_ms)
            if len(calm) >= self.protocol.calm_runs:
                return calm
            if not calm or calm[-1] is not found[-1][1]:
                time.sleep(self.protocol.pause_s)  # let pass whatever else keeps the machine busy
        return self._near(found, min(ms for ms, _ in found))

    def _near(self, found: list[tuple[float, T]], fastest_ms: float) -> list[T]:
        return [result for ms, result in found if ms <= fastest_ms * (1 + self.protocol.drift_limit)]


def measure_calmly(
    runtime: Runtime, device: Device, paths: Mapping[str, Path], *, control: str, conditions: Conditions
) -> dict[str, Timing]:
    """Times of the files on the device, pooled over the runs in which the file named `control` was calm."""

    def run() -> tuple[float, dict[str, Timing]]:
        timings = runtime.measure(device, paths, conditions.protocol)
        return timings[control].median_ms, timings

    runs = conditions.calm_runs(run)
    return {name: Timing.of([s for timings in runs for s in timings[name].samples_ms]) for name in paths}
