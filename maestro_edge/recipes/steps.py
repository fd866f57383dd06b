"""The steps of the main job on a run folder, each a function: train, profile, plan, report."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from torch import Tensor, nn

from maestro_edge.devices import Device
from maestro_edge.errors import CheckpointError, TableError
from maestro_edge.ordered import cut, order, ordered_layers, trace
from maestro_edge.planning import (
    Budgets,
    Shared,
    corrected,
    measure_interaction,
    measure_sensitivity,
    plan,
    plan_fleet,
    plan_nested,
)
from maestro_edge.profiling import measure_networks, profile
from maestro_edge.recipes.chains import chain_sampler
from maestro_edge.recipes.run import Progress, Run
from maestro_edge.reporting import write_report
from maestro_edge.runtimes import MeasuringProtocol, Runtime, load, package_version
from maestro_edge.training import (
    Score,
    TrainSettings,
    load_checkpoint,
    recalibrate,
    restore_model,
    save_checkpoint,
    start_tracking,
    train,
)
from maestro_edge.values import (
    Cut,
    LatencyTable,
    Manifest,
    Precision,
    RankPlan,
    Sensitivity,
    refuse_unwritable,
)

__all__ = [
    "PredictionCheck",
    "Trained",
    "check_prediction",
    "clear_plans",
    "fleet_run",
    "load_runtimes",
    "load_table",
    "plan_run",
    "profile_run",
    "report_run",
    "require_report",
    "sensitivity_of",
    "table_path",
    "train_recipe",
    "train_run",
]

_INTERACTION_INPUTS = 512
"""Validation inputs on which a whole plan is evaluated."""
_CARRIED = "coreml"
"""The runtime whose device measures by itself: its files are carried there, its answers back."""


def train_run(
    run: Run,
    *,
    dense: TrainSettings | None,
    nested: TrainSettings,
    weights: Path | None = None,
    table: LatencyTable | None = None,
    progress: Progress | None = None,
) -> dict[str, Score]:
    """Train dense, order with the whitened start, train nested; returns validation scores of both.

    Without `dense` and `weights` the ordered model starts from the SVD of an untrained one, as in the paper.

    Raises:
        CheckpointError: given weights do not fit the model.
    """
    scores = {}
    model, data = run.new_model(), run.train_set()
    calibration = None
    if weights is not None:
        model.load_state_dict(_read_weights(weights, model))
        _save_dense(run, model)
    elif dense is not None:
        model, _ = train(
            model,
            data,
            dense,
            name=run.facts.model,
            folder=run.folder / "dense",
            rebuild=run.new_model,
            progress=_reporting(progress, "dense training"),
        )
    if weights is not None or dense is not None:
        scores["dense"] = run.score(model, run.data.validation)
        calibration = run.calibration()
    folder = run.folder / "ordered"
    chained = chain_sampler(run, nested, folder, table=table, progress=progress)
    resumed = (folder / "checkpoint.json").exists()
    ordered = model if resumed else order(model.eval(), calibration=calibration)
    ordered, _ = train(
        ordered,
        data,
        nested,
        name=run.facts.model,
        folder=folder,
        rebuild=run.new_model,
        sampler=None if calibration is None else chained,
        table=table,
        progress=_reporting(progress, "nested training"),
    )
    full = recalibrate(cut(ordered, {}), run.calibration())
    scores["ordered"] = run.score(full, run.data.validation)
    return scores


class Trained(NamedTuple):
    """What one recipe's run came to on validation data; sizes are of the network cut to the ranks it learned."""

    score: Score
    dense: Score | None
    params: int
    macs: int
    ranks: dict[str, int]


def train_recipe(
    run: Run,
    settings: TrainSettings,
    *,
    ordered: bool = True,
    table: LatencyTable | None = None,
    tracker: str | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train a recipe in one run: dense for the settings' share, then ordered in place, down to their target.

    Without a dense share the layers are ordered before the first step, as in the paper; not `ordered`, the
    network is trained as it is. The dense part's network, which stopped at the learning rate of the turn, is
    kept as the run's `dense`.
    """
    folder = run.folder / ("ordered" if ordered else "dense")
    model = run.new_model()
    if ordered and not settings.dense_share:
        model = order(model)
    accelerator = _tracking(tracker, run.folder)
    chained = chain_sampler(run, settings, folder, table=table, progress=progress)
    model, _ = train(
        model,
        run.train_set(),
        settings,
        name=run.facts.model,
        folder=folder,
        rebuild=run.new_model,
        sampler=chained if ordered and settings.dense_share else None,
        table=table,
        accelerator=accelerator,
        progress=_reporting(progress, run.facts.model.rpartition(":")[2]),
    )
    if accelerator is not None:
        accelerator.end_training()
    warm_up, dense = folder / "dense", None
    if (warm_up / "checkpoint.json").exists():
        checkpoint, tensors = load_checkpoint(warm_up)
        rival = restore_model(run.new_model(), checkpoint, tensors)
        dense = run.score(rival, run.data.validation)
        _save_dense(run, rival)
    ranks = {name: layer.rank for name, layer in ordered_layers(model).items()}
    small = recalibrate(cut(model, ranks), run.calibration()) if ranks else model
    network = trace(small, run.example)
    return Trained(run.score(small, run.data.validation), dense, network.params({}), network.macs({}), ranks)


def _tracking(tracker: str | None, folder: Path) -> Any:
    """An accelerator that logs to `tracker`; None leaves the choice to train()."""
    if tracker is None:
        return None
    package_version(tracker, tracker)
    return start_tracking(tracker, folder)


def _reporting(progress: Progress | None, what: str) -> Callable[[int, int, float], None] | None:
    if progress is None:
        return None
    return lambda step, steps, loss: progress(step, steps, f"{what}, loss {loss:.3f}")


def _read_weights(path: Path, model: nn.Module) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from error
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    for name in {**expected, **found}:
        if expected.get(name) != found.get(name):
            raise CheckpointError(
                f"{path}: tensor {name!r} has shape {found.get(name)}, the model expects {expected.get(name)}"
            )
    return tensors


def _save_dense(run: Run, model: nn.Module) -> None:
    save_checkpoint(
        run.folder / "dense",
        model,
        name=run.facts.model,
        data=run.facts.data,
        input_shape=tuple(run.example[0].shape),
        classes=len(run.labels),
    )


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
        progress=progress,
    )
    return table.save_over(profiles)


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
    """The table of this runtime and device; where it was not measured, one that was emulated.

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
    """Where the table of this runtime and device is, or would be: the emulated one where only that is there."""
    stem = f"{device.facts().name}.{runtime.name}-{runtime.version_on(device)}.{precision}-t{threads}"
    path, emulated = (profiles / f"{stem}{suffix}" for suffix in (".json", ".emulated.json"))
    return emulated if emulated.exists() and not path.exists() else path


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


def sensitivity_of(run: Run, tables: Sequence[LatencyTable], *, progress: Progress | None = None) -> Sensitivity:
    """Loss of each layer at each rank of `tables` on validation inputs; what was evaluated before is kept."""
    return measure_sensitivity(
        run.ordered,
        run.network,
        tables,
        *run.loss_inputs(run.data.validation),
        path=run.folder / "sensitivity.json",
        progress=progress,
    )


def plan_run(
    run: Run,
    table: LatencyTable,
    sensitivity: Sensitivity,
    budgets: Sequence[Budgets],
    *,
    nested: bool = True,
    exact: bool = False,
) -> list[RankPlan]:
    """Plan every budget (a number in ms, or several of one plan) on a table, then save all plans.

    What a plan's layers lose together is measured on validation inputs; sensitivities that were corrected by that
    make a second set of plans, which is kept if it loses less in all when measured. None is saved when one
    cannot be made.
    """
    gauge = run.gauge_ranks(table)
    inputs, targets = run.loss_inputs(run.data.validation)
    inputs, targets = inputs[:_INTERACTION_INPUTS], targets[:_INTERACTION_INPUTS]
    measured: dict[str, Cut] = {}

    def made(losses: Sensitivity) -> list[RankPlan]:
        given = run.network, table, losses
        if nested:
            plans = list(plan_nested(*given, budgets, exact=exact, gauge=gauge))
        else:
            plans = [plan(*given, each, exact=exact, gauge=gauge) for each in budgets]
        for item in plans:
            if _assigned(item) not in measured:
                found = measure_interaction(run.ordered, sensitivity, item.ranks, inputs, targets, int8=item.int8)
                measured[_assigned(item)] = found.measured
        return [item.model_copy(update={"measured_loss": measured[_assigned(item)]}) for item in plans]

    plans = made(sensitivity)
    observed = [(item.ranks, measured[_assigned(item)].loss_increase) for item in plans]
    fitted = corrected(sensitivity, observed, int8=[item.int8 for item in plans])
    if fitted is not sensitivity:
        plans = min(plans, made(fitted), key=_measured_loss)
    for item in plans:
        item.save(run.folder / "plans" / f"{item.name}.json")
    return plans


def _assigned(plan: RankPlan) -> str:
    """What it makes of the network's function; a gauge form leaves that as it is."""
    return str((plan.ranks, plan.int8))


def _measured_loss(plans: Sequence[RankPlan]) -> float:
    return sum(item.measured_loss.loss_increase for item in plans if item.measured_loss)


def fleet_run(
    run: Run,
    tables: Sequence[LatencyTable],
    sensitivity: Sensitivity,
    budgets: Sequence[Budgets],
    *,
    tolerance: float,
) -> tuple[Shared, ...]:
    """Plan for several devices at once; their plans go to fleet/DEVICE/ in the run's folder, as files of all."""
    groups = plan_fleet(run.network, tables, sensitivity, budgets, tolerance=tolerance)
    for item in (item for group in groups for item in group.plans):
        item.save(run.folder / "fleet" / re.sub(r"[^\w.+-]+", "-", item.device) / f"{item.name}.json")
    return groups


def clear_plans(run: Run) -> None:
    """Forget the plans made so far."""
    for path in (run.folder / "plans").glob("*.json"):
        path.unlink()


def report_run(run: Run, tables: Sequence[LatencyTable]) -> Path:
    """The report page of what is in the run folder.

    Raises:
        DataError: the run is of text, which has no exported variants to report.
    """
    run.require_images("report")
    manifest = Manifest.load(run.manifest_path)
    return write_report(run.folder / "report.html", manifest=manifest, plans=run.plans(), tables=tables)


def require_report() -> None:
    """Refuse before any work what would fail at its end.

    Raises:
        MissingExtra: names the install command.
    """
    for package in ("matplotlib", "jinja2"):
        package_version(package, "report")


def load_runtimes(names: Iterable[str]) -> list[Runtime]:
    """Runtimes by name, refused before any work when a package is missing.

    Raises:
        MissingExtra: names the install command.
        ExportError: there is no such runtime.
    """
    runtimes = [load(name) for name in names]
    for runtime in runtimes:
        _ = runtime.version
    return runtimes
