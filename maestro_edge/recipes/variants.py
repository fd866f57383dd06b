"""Exporting plans as variants, and verifying on the device that each keeps its budget."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from maestro_edge.devices import Device
from maestro_edge.errors import BudgetError, TableError
from maestro_edge.planning import plan
from maestro_edge.profiling import Conditions, measure_calmly, recalibrate
from maestro_edge.recipes.run import Progress, Run
from maestro_edge.recipes.steps import load_table
from maestro_edge.runtimes import Agreement, MeasuringProtocol, Runtime, digest, export, size_bytes
from maestro_edge.training import load_checkpoint
from maestro_edge.values import (
    InputSpec,
    LatencyTable,
    Manifest,
    MeasuredMs,
    NetworkTiming,
    RankPlan,
    Saved,
    Sensitivity,
    Timing,
    Variant,
)

__all__ = ["export_run", "verify_run"]

_GATE_SAMPLES = 32


class ExportRecord(Saved):
    """A finished export: `key` holds all that it depends on, so that an interrupted step skips it."""

    key: str
    variant: Variant


def export_run(
    run: Run, device: Device, runtimes: Sequence[Runtime], *, progress: Progress | None = None
) -> Manifest:
    """Export dense and every plan, each to the runtime that its table was measured with.

    A runtime without plans of its own, as Core ML where no iPhone was measured, follows those of the first other.

    Raises:
        BudgetError: there are no plans.
        DataError: the run is of text: a manifest tells an app how to feed images.
        ExportError: a file cannot be made, or does not compute what the model does.
    """
    run.require_images("export")
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


def export_variant(run: Run, runtime: Runtime, item: RankPlan | None) -> Variant:
    """Export and gate one plan (None: dense) and describe the file; times are not measured yet."""
    name = f"{runtime.name}-{'dense' if item is None else f'{item.budget_ms:g}ms'}"
    path = run.folder / "files" / f"{name}{runtime.suffix}"
    record = run.folder / "work" / "exports" / f"{name}.json"
    key = _export_key(run, runtime, item)
    if record.exists() and path.exists():
        done = ExportRecord.load(record)
        if done.key == key and done.variant.sha256 == digest(path):
            return done.variant
    ranks = {} if item is None else item.ranks
    gauge = () if item is None else item.gauge
    model = run.dense if item is None else run.variant(ranks, gauge=gauge)
    samples = run.data.normalise(run.data.validation.inputs[:_GATE_SAMPLES])
    agreement: Agreement = export(model, samples, path, runtime)
    timed = item is not None and item.runtime == runtime.name
    variant = Variant(
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
        macs=run.network.in_gauge(gauge).macs(ranks),
        ranks={layer.name: ranks.get(layer.name, "dense") for layer in run.network.ordered},
        gauge=gauge,
        planned_on=None if item is None else f"{item.device}/{item.runtime}-{item.runtime_version}",
    )
    ExportRecord(key=key, variant=variant).save(record)
    return variant


def _export_key(run: Run, runtime: Runtime, item: RankPlan | None) -> str:
    """Weights, plan and runtime."""
    checkpoints = [name for name in ("dense", "ordered") if (run.folder / name / "checkpoint.json").exists()]
    weights = [load_checkpoint(run.folder / name)[0].sha256 for name in checkpoints]
    planned = None if item is None else item.model_dump(mode="json")
    content = json.dumps([weights, planned, runtime.name, runtime.version], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


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
    protocol = protocol.flow_only() if table.source == "emulated" else protocol
    say = progress or (lambda done, total, what: None)
    manifest, timings = _measured(run, manifest, runtime, device, protocol)
    say(1, 2, f"{runtime.name}: measured")
    over = [v for v in _of(manifest, runtime) if _is_over(v)]
    log = list(table.doubts(run.network)) if table.source == "emulated" else []
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
    control = next(name for name in paths if name.endswith("-dense"))
    timings = measure_calmly(runtime, device, paths, control=control, conditions=Conditions(protocol))
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
            layers_ms=table.layers_ms(run.network.in_gauge(variant.gauge), variant.ranks),
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
    over = variant.measured_ms.p50 / table.predict_ms(run.network.in_gauge(variant.gauge), variant.ranks)
    margin = 1 - min(1.0, 1 / over) * 0.97
    was = f"{variant.name} measured {variant.measured_ms.p50:.3f} ms, over {variant.budget_ms:g} ms"
    try:
        gauge = run.gauge_ranks(table)
        item = plan(run.network, table, sensitivity, variant.budget_ms, margin=margin, gauge=gauge)
    except BudgetError as error:
        return manifest, f"{was}; it cannot be planned lower: {error}"
    item.save(run.folder / "plans" / f"{item.name}.json")
    new = export_variant(run, runtime, item)
    variants = tuple(new if old.name == new.name else old for old in manifest.variants)
    return manifest.model_copy(update={"variants": variants}), f"{was}; planned again"
