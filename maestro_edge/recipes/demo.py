"""The whole main job in one call: from data to a bundle whose variants keep measured budgets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from maestro_edge.devices import Device
from maestro_edge.planning import reachable_ms
from maestro_edge.recipes.bundles import bundle_run
from maestro_edge.recipes.deploy import verify_run
from maestro_edge.recipes.plans import clear_plans, plan_run, sensitivity_of
from maestro_edge.recipes.reports import report_run
from maestro_edge.recipes.run import Progress, Run
from maestro_edge.recipes.tables import load_table, profile_run
from maestro_edge.recipes.trainings import train_run
from maestro_edge.recipes.variants import export_run
from maestro_edge.runtimes import MeasuringProtocol, Runtime
from maestro_edge.training import TrainSettings
from maestro_edge.values import LatencyTable, Manifest, Network, Sensitivity

__all__ = ["DENSE_TRAINING", "NESTED_TRAINING", "PAPER_TRAINING", "run_demo", "spread_budgets"]

DENSE_TRAINING = TrainSettings(epochs=8, lr=0.1)
NESTED_TRAINING = TrainSettings(epochs=6, lr=0.05)
PAPER_TRAINING = TrainSettings(epochs=14, lr=0.05, sampler="pairs")


def run_demo(
    run: Run,
    device: Device,
    timed: Sequence[Runtime],
    untimed: Sequence[Runtime],
    *,
    profiles: Path,
    protocol: MeasuringProtocol,
    budgets_ms: Sequence[float] = (),
    dense: TrainSettings | None = DENSE_TRAINING,
    nested: TrainSettings = NESTED_TRAINING,
    step: Callable[[str], Progress],
) -> tuple[Manifest, list[str]]:
    """Train, profile, plan, export, verify, bundle, report; finished steps of an interrupted run are kept.

    `timed` runtimes are profiled, planned for and verified on `device`; `untimed` ones only exported.
    Without `budgets_ms` three are spread between the dense network and the fastest plan. `step(title)` begins
    a step and returns its progress callback. Returns the manifest and the lines of the verification.
    """
    train_run(run, dense=dense, nested=nested, progress=step("train"))
    tables = []
    for runtime in timed:
        progress = step(f"profile {runtime.name}")
        tables.append(profile_run(run, runtime, device, profiles=profiles, protocol=protocol, progress=progress))
    sensitivity = sensitivity_of(run, tables, progress=step("sensitivity"))
    budgets = tuple(budgets_ms) or spread_budgets(run.network, tables, sensitivity)
    planning = step("plan")
    clear_plans(run)
    for done, table in enumerate(tables, start=1):
        plan_run(run, table, sensitivity, budgets)
        planning(done, len(tables), f"planned for {table.runtime}")
    export_run(run, device, [*timed, *untimed], progress=step("export"))
    log: list[str] = []
    for runtime in timed:
        progress = step(f"verify {runtime.name}")
        log += verify_run(run, runtime, device, profiles=profiles, protocol=protocol, progress=progress)[1]
    finishing = step("bundle and report")
    bundle_run(run)
    finishing(1, 2, "bundled")
    tables = [load_table(run, r, device, profiles=profiles, threads=protocol.threads) for r in timed]
    report_run(run, tables)
    finishing(2, 2, "written")
    return Manifest.load(run.manifest_path), log


def spread_budgets(
    network: Network, tables: Iterable[LatencyTable], sensitivity: Sensitivity
) -> tuple[float, ...]:
    """Three budgets in ms, spread evenly by ratio between dense and the fastest plan of the slowest runtime."""
    tables = list(tables)
    dense_ms = min(table.predict_ms(network, {}) for table in tables)
    fastest_ms = 1.12 * max(reachable_ms(network, table, sensitivity) for table in tables)
    ratio = dense_ms / fastest_ms
    # Two digits: a budget is a round number that somebody asks for.
    return tuple(float(f"{fastest_ms * ratio**share:.2g}") for share in (0.6, 0.35, 0.1))
