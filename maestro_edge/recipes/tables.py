"""Latency tables of a run: measured, checked on other networks, found again."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from maestro_edge.devices import Device
from maestro_edge.errors import TableError
from maestro_edge.profiling import measure_networks, profile
from maestro_edge.recipes.run import Progress, Run
from maestro_edge.runtimes import MeasuringProtocol, Runtime
from maestro_edge.values import LatencyTable, Precision, refuse_unwritable

__all__ = ["PredictionCheck", "check_prediction", "load_table", "profile_run", "table_of", "table_path"]

_CARRIED = "coreml"
"""The runtime whose device measures by itself: its files are carried there, its answers back."""


def profile_run(
    run: Run,
    runtime: Runtime,
    device: Device,
    *,
    profiles: Path,
    protocol: MeasuringProtocol,
    precision: Precision = "fp32",
    emulated: bool = False,
    gauge: bool = False,
    like: LatencyTable | None = None,
    progress: Progress | None = None,
) -> LatencyTable:
    """Measure the run's model on a device, and write the table to `profiles`.

    Raises:
        DataError: `profiles` cannot be written; nothing was measured.
    """
    refuse_unwritable(profiles)
    table = profile(
        run.ordered,
        run.example,
        runtime,
        device,
        folder=run.folder / "work",
        name=run.network.name,
        precision=precision,
        protocol=protocol,
        emulated=emulated,
        gauge=gauge,
        like=like,
        progress=progress,
    )
    return table.save_over(profiles)


def table_of(
    run: Run,
    runtime: Runtime,
    device: Device,
    *,
    profiles: Path,
    protocol: MeasuringProtocol,
    precision: Precision = "fp32",
    progress: Progress | None = None,
) -> LatencyTable:
    """The device's table that is calibrated for the run's network, profiled now where there is none.

    Raises:
        TableError: there is one that cannot be read, or that something else measured: it is not measured over.
    """
    where: dict[str, Any] = {"profiles": profiles, "threads": protocol.threads, "precision": precision}
    known = table_path(runtime, device, **where).exists()
    table = load_table(run, runtime, device, **where) if known else None
    if table is None or all(fit.network != run.network.fingerprint for fit in table.calibrations):
        return profile_run(
            run, runtime, device, profiles=profiles, protocol=protocol, precision=precision, progress=progress
        )
    if progress is not None:
        progress(1, 1, f"known: {table.file_name}")
    return table


class PredictionCheck(NamedTuple):
    """Errors over networks the calibration has not seen; `drift` is how much slower dense is now than then.

    `mape_at_equal_speed` leaves that drift out: times are taken in units of the dense network's, then and now.
    """

    mape: float
    worst: float
    drift: float
    mape_at_equal_speed: float


def check_prediction(
    run: Run,
    table: LatencyTable,
    runtime: Runtime,
    device: Device,
    *,
    count: int,
    protocol: MeasuringProtocol | None = None,
    progress: Progress | None = None,
) -> PredictionCheck:
    """Predict and measure `count` random rank assignments."""
    dense, *networks = measure_networks(
        run.ordered,
        run.example,
        table,
        runtime,
        device,
        folder=run.folder / "work",
        count=count,
        protocol=protocol,
        progress=progress,
    )
    calibration = table.calibration(run.network)
    ratios = [calibration.whole_ms(item.layers_ms) / item.timing.median_ms for item in networks]
    drift = dense.timing.median_ms / calibration.networks[0].timing.median_ms
    errors = [abs(ratio - 1) for ratio in ratios]
    return PredictionCheck(
        fmean(errors), max(errors), drift - 1, fmean(abs(ratio * drift - 1) for ratio in ratios)
    )


def load_table(
    run: Run,
    runtime: Runtime,
    device: Device,
    *,
    profiles: Path,
    threads: int,
    precision: Precision = "fp32",
) -> LatencyTable:
    """The table of this runtime and device; where it was not measured, one that was modelled, or emulated.

    Of Core ML it is that of the iPhone, which is not connected.

    Raises:
        TableError: it was not made, or with another version; or several iPhones' are there.
    """
    if runtime.name == _CARRIED:
        return _carried_table(run, runtime, profiles)
    name, version = device.facts().name, runtime.version_on(device)
    path = table_path(runtime, device, profiles=profiles, threads=threads, precision=precision)
    if not path.exists():
        others = sorted(found.name for found in profiles.glob(f"{name}.{runtime.name}-*.json"))
        hint = f" (found {', '.join(others)})" if others else ""
        command = f"maestro-edge profile {run.folder} --runtime {runtime.name}"
        command += "" if precision == "fp32" else f" --precision {precision}"
        raise TableError(f"no table {path}{hint}: run '{command}'")
    table = LatencyTable.load(path)
    table.require(runtime=runtime.name, runtime_version=version, threads=threads, device=name, precision=precision)
    return table


def table_path(runtime: Runtime, device: Device, *, profiles: Path, threads: int, precision: Precision) -> Path:
    """Where the table of this runtime and device is or would be; a modelled or emulated one where only that is."""
    stem = f"{device.facts().name}.{runtime.name}-{runtime.version_on(device)}.{precision}-t{threads}"
    measured, *others = (profiles / f"{stem}{source}.json" for source in ("", ".modelled", ".emulated"))
    return next((path for path in (measured, *others) if path.exists()), measured)


def _carried_table(run: Run, runtime: Runtime, profiles: Path) -> LatencyTable:
    """The one table that says how fast this network is there."""
    found = {}
    for path in sorted(profiles.glob(f"*.{runtime.name}-*.fp32.json")):
        table = LatencyTable.load(path)
        if any(fit.network == run.network.fingerprint for fit in table.calibrations):
            found[path.name] = table
    if not found:
        raise TableError(
            f"no table of {run.network.name} on {runtime.name} in {profiles}: 'maestro-edge profiles probes "
            f"{run.folder}' begins one, apps/ios/README.md tells the rest"
        )
    if len(found) > 1:
        raise TableError(f"{len(found)} tables ({', '.join(found)}): give --profiles, a folder with one of them")
    return next(iter(found.values()))
