"""The main job on a run folder: each step is a function that reads what the steps before it left there.

run.json          which data and model          plans/*.json       one a runtime and budget
dense/, ordered/  checkpoints                   files/             exports and their manifest.json
sensitivity.json  loss per layer and rank       bundle/            what an app reads
work/             what profiling can go on from report.html
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maestro_edge.bundling import bundle
from maestro_edge.devices import Device
from maestro_edge.errors import BudgetError, CheckpointError, TableError
from maestro_edge.ordered import cut, order, ordered_layers, trace
from maestro_edge.planning import measure_sensitivity, plan
from maestro_edge.profiling import measure_networks, profile, recalibrate
from maestro_edge.recipes import data as datasets
from maestro_edge.recipes.models import DEFAULT_MODEL, load_model
from maestro_edge.reporting import write_report
from maestro_edge.runtimes import Agreement, MeasuringProtocol, Runtime, digest, export, load, size_bytes
from maestro_edge.training import (
    Score,
    TrainSet,
    TrainSettings,
    batches,
    evaluate,
    load_checkpoint,
    restore_model,
    save_checkpoint,
    train,
)
from maestro_edge.training import (
    recalibrate as recalibrate_norms,
)
from maestro_edge.values import (
    InputSpec,
    LatencyTable,
    Manifest,
    MeasuredMs,
    Network,
    NetworkTiming,
    Rank,
    RankPlan,
    Saved,
    Sensitivity,
    Timing,
    Variant,
)

__all__ = ["Run", "RunFacts", "create", "open_run"]

Progress = Callable[[int, int, str], None]

_CALIBRATION_IMAGES = 512
_SENSITIVITY_IMAGES = 512
_GATE_SAMPLES = 32


class RunFacts(Saved):
    """What a run folder is about."""

    data: str
    model: str
    seed: int


def create(folder: Path, *, data: str, model: str = DEFAULT_MODEL, seed: int = 0) -> Run:
    """A run folder of this data and model; one that is there already must be of the same.

    Raises:
        CheckpointError: the folder holds another run.
        DataError: the data cannot be read, or the folder not written.
    """
    facts = RunFacts(data=data, model=model, seed=seed)
    path = folder / "run.json"
    if path.exists():
        if RunFacts.load(path) != facts:
            raise CheckpointError(f"{folder} holds a run of other data or model: choose another folder")
        return Run(folder, facts)
    run = Run(folder, facts)
    _ = run.data
    facts.save(path)
    return run


def open_run(folder: Path, *, model: str | None = None) -> Run:
    """The run in a folder. A model of your own must be named again: a folder never decides what is imported.

    Raises:
        CheckpointError: there is no run, or its model is not one of maestro_edge's and not named.
    """
    path = folder / "run.json"
    if not path.exists():
        raise CheckpointError(f"{folder} is not a run folder (no run.json): make one with 'maestro-edge train'")
    facts = RunFacts.load(path)
    if not facts.model.startswith("maestro_edge.recipes.") and facts.model != model:
        raise CheckpointError(f"{folder} is a run of {facts.model}: add --model {facts.model} to load that code")
    return Run(folder, facts)


def remove(folder: Path) -> None:
    """Remove a run folder; a folder that holds anything else is refused.

    Raises:
        CheckpointError: it is not a run folder.
    """
    if not folder.exists():
        return
    if not (folder / "run.json").exists():
        raise CheckpointError(f"{folder} is not a run folder: remove it yourself if that is meant")
    shutil.rmtree(folder)


@dataclass(frozen=True)
class Run:
    """A run folder and what its steps share."""

    folder: Path
    facts: RunFacts

    @cached_property
    def data(self) -> datasets.Data:
        return datasets.load(self.facts.data, seed=self.facts.seed)

    @property
    def example(self) -> tuple[Tensor, ...]:
        """One prepared image, (1, C, H, W)."""
        return (self.data.normalise(self.data.test.images[:1]),)

    @property
    def labels(self) -> tuple[str, ...]:
        return self.data.labels

    def new_model(self) -> nn.Module:
        """The untrained dense model, the same every time."""
        torch.manual_seed(self.facts.seed)
        channels = self.data.train.images.shape[1]
        return load_model(self.facts.model, channels=channels, classes=len(self.labels))

    def calibration(self) -> list[Tensor]:
        """Training images for BatchNorm statistics and whitening; never validation or test."""
        images = self.data.train.images
        chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(self.facts.seed))
        return list(batches(images[chosen[:_CALIBRATION_IMAGES]], self.data.normalise, size=128))

    def train_set(self) -> TrainSet:
        shape = self.data.train.images.shape
        return TrainSet(
            name=self.facts.data,
            images=self.data.train.images,
            targets=self.data.train.targets,
            prepare=self.data.normalise,
            augment=lambda images, generator: augment(
                images, generator, shift=max(1, shape[-1] // 10), flip=self.data.flip
            ),
        )

    def score(self, model: nn.Module, split: datasets.Split) -> Score:
        return evaluate(model, split.images, split.targets, self.data.normalise)

    def load(self, name: str) -> nn.Module:
        """The model of the checkpoint `dense` or `ordered`.

        Raises:
            CheckpointError: it is missing, damaged or of another model.
        """
        checkpoint, tensors = load_checkpoint(self.folder / name)
        return restore_model(self.new_model(), checkpoint, tensors).eval()

    @cached_property
    def ordered(self) -> nn.Module:
        return self.load("ordered")

    @cached_property
    def network(self) -> Network:
        return trace(self.ordered, self.example, name=self.facts.model.rpartition(":")[2])

    def variant(self, ranks: Mapping[str, Rank]) -> nn.Module:
        """Stock layers at `ranks`, BatchNorm recalibrated on training images."""
        return recalibrate_norms(cut(self.ordered, ranks), self.calibration()).eval()

    def checkpoint_ranks(self) -> dict[str, int]:
        """The ranks that training left."""
        return load_checkpoint(self.folder / "ordered")[0].ranks

    def plans(self) -> list[RankPlan]:
        """The plans made so far, by runtime and falling budget."""
        found = [RankPlan.load(path) for path in sorted((self.folder / "plans").glob("*.json"))]
        return sorted(found, key=lambda item: (item.runtime, -item.budget_ms))

    @property
    def manifest_path(self) -> Path:
        return self.folder / "files" / "manifest.json"


def augment(images: Tensor, generator: torch.Generator, *, shift: int, flip: bool) -> Tensor:
    """Each of the (N, C, H, W) images shifted by up to `shift` pixels (zeros come in), half of them mirrored."""
    n, _, height, width = images.shape
    padded = F.pad(images, (shift, shift, shift, shift))
    tops = torch.randint(2 * shift + 1, (n,), generator=generator)
    lefts = torch.randint(2 * shift + 1, (n,), generator=generator)
    rows = (tops[:, None] + torch.arange(height))[:, None, :, None]
    columns = (lefts[:, None] + torch.arange(width))[:, None, None, :]
    channels = torch.arange(images.shape[1])[None, :, None, None]
    shifted = padded[torch.arange(n)[:, None, None, None], channels, rows, columns]
    if flip:
        mirrored = torch.rand(n, generator=generator) < 0.5
        shifted[mirrored] = shifted[mirrored].flip(-1)
    return shifted


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
    full = recalibrate_norms(cut(ordered, {}), run.calibration())
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


def check_prediction(
    run: Run,
    table: LatencyTable,
    runtime: Runtime,
    device: Device,
    *,
    count: int,
    seed: int = 1,
    protocol: MeasuringProtocol | None = None,
    progress: Progress | None = None,
) -> tuple[float, float]:
    """(MAPE, largest error) of the prediction over random rank assignments the calibration has not seen."""
    networks = measure_networks(
        run.ordered,
        run.example,
        table,
        runtime,
        device,
        folder=run.folder / "work",
        count=count,
        seed=seed,
        protocol=protocol,
        progress=progress,
    )
    calibration = table.calibration(run.network)
    errors = [abs(calibration.whole_ms(item.layers_ms) / item.timing.median_ms - 1) for item in networks]
    return sum(errors) / len(errors), max(errors)


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
    """The saved sensitivity table where it covers all ranks of `tables`, else a new one."""
    path = run.folder / "sensitivity.json"
    if path.exists():
        saved = Sensitivity.load(path)
        layers = ordered_layers(run.ordered)
        wanted = {
            (layer.name, str(rank))
            for layer in run.network.ordered
            for table in tables
            for rank in table.ranks(layer.spec)
            if rank != "dense" and rank <= layers[layer.name].rank
        }
        covered = {(name, rank) for name, ranks in saved.losses.items() for rank in ranks}
        if saved.network == run.network.fingerprint and wanted <= covered:
            return saved
    validation = run.data.validation
    inputs = run.data.normalise(validation.images[:_SENSITIVITY_IMAGES])
    targets = validation.targets[:_SENSITIVITY_IMAGES]
    made = measure_sensitivity(run.ordered, run.network, tables, inputs, targets, progress=progress)
    made.save(path)
    return made


def plan_run(
    run: Run, table: LatencyTable, sensitivity: Sensitivity, budgets_ms: Iterable[float]
) -> list[RankPlan]:
    """Plan every budget on a table, then save all plans; none is saved when one cannot be made."""
    made = [plan(run.network, table, sensitivity, budget_ms) for budget_ms in budgets_ms]
    for item in made:
        item.save(run.folder / "plans" / f"{item.name}.json")
    return made


def export_run(
    run: Run, device: Device, runtimes: Sequence[Runtime], *, progress: Progress | None = None
) -> Manifest:
    """Export dense and every plan: each to the runtime that its table was measured with, and to Core ML.

    Core ML cannot be timed here: its files follow the plans of the first other runtime.

    Raises:
        BudgetError: there are no plans.
        ExportError: a file cannot be made, or does not compute what the model does.
    """
    plans = run.plans()
    if not plans:
        raise BudgetError(f"{run.folder} has no plans: run 'maestro-edge plan {run.folder} --budget-ms …'")
    jobs: list[tuple[Runtime, RankPlan | None]] = []
    for runtime in runtimes:
        chosen = [item for item in plans if item.runtime == runtime.name]
        if not chosen:
            chosen = [item for item in plans if item.runtime == plans[0].runtime]
        jobs += [(runtime, None), *((runtime, item) for item in chosen)]
    variants = []
    for done, (runtime, item) in enumerate(jobs, start=1):
        variants.append(export_variant(run, runtime, item))
        if progress is not None:
            progress(done, len(jobs), f"exporting {variants[-1].file}")
    manifest = Manifest(
        device=device.facts(),
        model=run.network.name,
        labels=run.labels,
        input=InputSpec(shape=tuple(run.example[0].shape), mean=run.data.mean, std=run.data.std),
        variants=tuple(variants),
    )
    manifest.save(run.manifest_path)
    return manifest


def dense_model(run: Run) -> nn.Module:
    """The rival: the dense training's network, or the ordered one at full rank where validation prefers it."""
    full = run.variant({})
    if not (run.folder / "dense" / "checkpoint.json").exists():
        return full
    dense = recalibrate_norms(run.load("dense"), run.calibration()).eval()
    candidates = [(run.score(model, run.data.validation), model) for model in (dense, full)]
    return max(candidates, key=lambda pair: (pair[0].top1, -pair[0].loss))[1]


def export_variant(run: Run, runtime: Runtime, item: RankPlan | None) -> Variant:
    """Export and gate one plan (None: dense) and describe the file; times are not measured yet."""
    ranks = {} if item is None else item.ranks
    model = dense_model(run) if item is None else run.variant(ranks)
    label = "dense" if item is None else f"{item.budget_ms:g}ms"
    name = f"{runtime.name}-{label}"
    path = run.folder / "files" / f"{name}{runtime.suffix}"
    samples = run.data.normalise(run.data.validation.images[:_GATE_SAMPLES])
    agreement: Agreement = export(model, samples, path, runtime)
    timed = item is not None and item.runtime == runtime.name
    return Variant(
        name=name,
        runtime=runtime.name,
        runtime_version=runtime.version,
        precision="fp32",
        file=path.name,
        sha256=digest(path),
        size_bytes=size_bytes(path),
        budget_ms=None if item is None else item.budget_ms,
        predicted_ms=item.predicted_ms if item is not None and timed else None,
        measured_ms=None,
        accuracy=run.score(model, run.data.test).top1,
        max_abs_error=agreement.max_abs_error,
        sqnr_db=agreement.sqnr_db,
        top1_agreement=agreement.top1_agreement,
        params=sum(parameter.numel() for parameter in model.parameters()),
        macs=run.network.macs(ranks),
        ranks={layer.name: ranks.get(layer.name, "dense") for layer in run.network.ordered},
        planned_on=None if item is None else f"{item.device}/{item.runtime}-{item.runtime_version}",
    )


def verify_run(
    run: Run,
    runtime: Runtime,
    device: Device,
    *,
    profiles: Path,
    protocol: MeasuringProtocol,
    progress: Progress | None = None,
) -> tuple[Manifest, list[str]]:
    """Time the runtime's files on the device, interleaved; re-plan once what is over its budget.

    Returns the manifest with measured times, and a line for every variant that was re-planned or still
    misses its budget.

    Raises:
        TableError: nothing was exported, or a file was changed since.
    """
    manifest = Manifest.load(run.manifest_path)
    table = load_table(run, runtime, device, profiles=profiles, threads=protocol.threads)
    say = progress or (lambda done, total, what: None)
    manifest, timings = _measured(run, manifest, runtime, device, protocol)
    say(1, 2, f"{runtime.name}: measured")
    over = [v for v in _of(manifest, runtime) if _is_over(v)]
    log: list[str] = []
    if over:
        table = _recalibrated(run, manifest, table, timings)
        table.save(profiles / table.file_name)
        for variant in over:
            manifest, line = _replanned(run, manifest, table, runtime, variant)
            log.append(line)
        manifest, _ = _measured(run, manifest, runtime, device, protocol)
    for variant in _of(manifest, runtime):
        if _is_over(variant):
            assert variant.measured_ms is not None
            log.append(
                f"{variant.name} still measures {variant.measured_ms.p50:.3f} ms, over its budget of "
                f"{variant.budget_ms:g} ms"
            )
    say(2, 2, f"{runtime.name}: verified")
    manifest.save(run.manifest_path)
    return manifest, log


def _of(manifest: Manifest, runtime: Runtime) -> list[Variant]:
    return [variant for variant in manifest.variants if variant.runtime == runtime.name]


def _is_over(variant: Variant) -> bool:
    measured, budget = variant.measured_ms, variant.budget_ms
    return measured is not None and budget is not None and measured.p50 > budget


def _measured(
    run: Run, manifest: Manifest, runtime: Runtime, device: Device, protocol: MeasuringProtocol
) -> tuple[Manifest, dict[str, Timing]]:
    """The manifest with this runtime's files timed in one interleaved run, and the timings."""
    paths = {}
    for variant in _of(manifest, runtime):
        path = run.folder / "files" / variant.file
        if not path.exists() or digest(path) != variant.sha256:
            raise TableError(f"{path} is missing or was changed after its export: export again")
        paths[variant.name] = path
    timings = runtime.measure(device, paths, protocol)
    updated = []
    for variant in manifest.variants:
        timing = timings.get(variant.name)
        if timing is not None and variant.runtime == runtime.name:
            ms = MeasuredMs(p50=timing.median_ms, p90=timing.p90_ms, n=timing.n)
            variant = variant.model_copy(update={"measured_ms": ms})
        updated.append(variant)
    return manifest.model_copy(update={"variants": tuple(updated)}), timings


def _recalibrated(
    run: Run, manifest: Manifest, table: LatencyTable, timings: Mapping[str, Timing]
) -> LatencyTable:
    measured = [
        NetworkTiming(
            ranks=variant.ranks,
            layers_ms=table.layers_ms(run.network, variant.ranks),
            timing=timings[variant.name],
        )
        for variant in manifest.variants
        if variant.name in timings
    ]
    return recalibrate(table, run.network, measured)


def _replanned(
    run: Run, manifest: Manifest, table: LatencyTable, runtime: Runtime, variant: Variant
) -> tuple[Manifest, str]:
    """Plan again below the budget by what the measurement was above its prediction, and export."""
    assert variant.measured_ms is not None and variant.budget_ms is not None
    sensitivity = Sensitivity.load(run.folder / "sensitivity.json")
    over = variant.measured_ms.p50 / table.predict_ms(run.network, variant.ranks)
    margin = 1 - min(1.0, 1 / over) * 0.97
    was = f"{variant.name} measured {variant.measured_ms.p50:.3f} ms, over {variant.budget_ms:g} ms"
    try:
        item = plan(run.network, table, sensitivity, variant.budget_ms, margin=margin)
    except BudgetError as error:
        return manifest, f"{was}; it cannot be planned lower: {error}"
    item.save(run.folder / "plans" / f"{item.name}.json")
    new = export_variant(run, runtime, item)
    variants = tuple(new if old.name == new.name else old for old in manifest.variants)
    return manifest.model_copy(update={"variants": variants}), f"{was}; planned again"


def bundle_run(run: Run, folder: Path | None = None) -> Path:
    """The app's folder, from the exported files and their manifest."""
    manifest = Manifest.load(run.manifest_path)
    files = {variant.file: run.folder / "files" / variant.file for variant in manifest.variants}
    return bundle(folder or run.folder / "bundle", manifest, files)


def report_run(run: Run, tables: Sequence[LatencyTable]) -> Path:
    """The report page of what is in the run folder."""
    manifest = Manifest.load(run.manifest_path)
    return write_report(run.folder / "report.html", manifest=manifest, plans=run.plans(), tables=tables)


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
