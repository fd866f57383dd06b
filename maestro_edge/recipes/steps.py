"""The steps of the main job on a run folder, each a function: train, profile, plan, bundle, report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from torch import Tensor, nn

from maestro_edge.bundling import bundle
from maestro_edge.devices import Device
from maestro_edge.errors import CheckpointError, TableError
from maestro_edge.ordered import cut, order
from maestro_edge.planning import measure_sensitivity, plan
from maestro_edge.profiling import measure_networks, profile
from maestro_edge.recipes.run import Progress, Run
from maestro_edge.reporting import write_report
from maestro_edge.runtimes import MeasuringProtocol, Runtime, load, package_version
from maestro_edge.training import Score, TrainSettings, recalibrate, save_checkpoint, train
from maestro_edge.values import LatencyTable, Manifest, RankPlan, Sensitivity

__all__ = [
    "PredictionCheck",
    "bundle_run",
    "check_prediction",
    "load_runtimes",
    "load_table",
    "plan_run",
    "profile_run",
    "report_run",
    "require_report",
    "sensitivity_of",
    "train_run",
]

_SENSITIVITY_IMAGES = 512


def train_run(
    run: Run,
    *,
    dense: TrainSettings | None,
    nested: TrainSettings,
    weights: Path | None = None,
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
    start = run.folder / "ordered" / "checkpoint.json"
    ordered = model if start.exists() else order(model.eval(), calibration=calibration)
    ordered, _ = train(
        ordered,
        data,
        nested,
        name=run.facts.model,
        folder=run.folder / "ordered",
        rebuild=run.new_model,
        progress=_reporting(progress, "nested training"),
    )
    full = recalibrate(cut(ordered, {}), run.calibration())
    scores["ordered"] = run.score(full, run.data.validation)
    return scores


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
    progress: Progress | None = None,
) -> LatencyTable:
    """Measure the run's model on a device, and write the table to `profiles`."""
    table = profile(
        run.ordered,
        run.example,
        runtime,
        device,
        folder=run.folder / "work",
        name=run.network.name,
        protocol=protocol,
        progress=progress,
    )
    table.save(profiles / table.file_name)
    return table


class PredictionCheck(NamedTuple):
    """Errors over networks the calibration has not seen; `drift` is how much slower dense is now than then."""

    mape: float
    worst: float
    drift: float


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
    errors = [abs(calibration.whole_ms(item.layers_ms) / item.timing.median_ms - 1) for item in networks]
    then_ms = calibration.networks[0].timing.median_ms
    return PredictionCheck(fmean(errors), max(errors), dense.timing.median_ms / then_ms - 1)


def load_table(run: Run, runtime: Runtime, device: Device, *, profiles: Path, threads: int) -> LatencyTable:
    """The table of this runtime and device.

    Raises:
        TableError: it was not made, or with another version.
    """
    name = device.facts().name
    path = profiles / f"{name}.{runtime.name}-{runtime.version}.fp32-t{threads}.json"
    if not path.exists():
        others = sorted(found.name for found in profiles.glob(f"{name}.{runtime.name}-*.json"))
        hint = f" (found {', '.join(others)})" if others else ""
        raise TableError(
            f"no table {path}{hint}: run 'maestro-edge profile {run.folder} --runtime {runtime.name}'"
        )
    table = LatencyTable.load(path)
    table.require(runtime=runtime.name, runtime_version=runtime.version, threads=threads, device=name)
    return table


def sensitivity_of(run: Run, tables: Sequence[LatencyTable], *, progress: Progress | None = None) -> Sensitivity:
    """Loss of each layer at each rank of `tables` on validation images; what was evaluated before is kept."""
    validation = run.data.validation
    return measure_sensitivity(
        run.ordered,
        run.network,
        tables,
        run.data.normalise(validation.images[:_SENSITIVITY_IMAGES]),
        validation.targets[:_SENSITIVITY_IMAGES],
        path=run.folder / "sensitivity.json",
        progress=progress,
    )


def plan_run(
    run: Run, table: LatencyTable, sensitivity: Sensitivity, budgets_ms: Iterable[float]
) -> list[RankPlan]:
    """Plan every budget on a table, then save all plans; none is saved when one cannot be made."""
    made = [plan(run.network, table, sensitivity, budget_ms) for budget_ms in budgets_ms]
    for item in made:
        item.save(run.folder / "plans" / f"{item.name}.json")
    return made


def bundle_run(run: Run, folder: Path | None = None) -> Path:
    """The app's folder, from the exported files and their manifest."""
    manifest = Manifest.load(run.manifest_path)
    files = {variant.file: run.folder / "files" / variant.file for variant in manifest.variants}
    return bundle(folder or run.folder / "bundle", manifest, files)


def report_run(run: Run, tables: Sequence[LatencyTable]) -> Path:
    """The report page of what is in the run folder."""
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
