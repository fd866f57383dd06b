"""Exporting the dense network and every plan as variants: gated files and what describes them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from maestro_edge.devices import Device
from maestro_edge.errors import BudgetError
from maestro_edge.recipes.run import Progress, Run
from maestro_edge.runtimes import Agreement, Runtime, digest, export, size_bytes
from maestro_edge.training import load_checkpoint
from maestro_edge.values import InputSpec, Manifest, RankPlan, Saved, Variant

__all__ = ["export_run", "export_variant"]

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
    name = f"{runtime.name}-{'dense' if item is None else item.tag}"
    path = run.folder / "files" / f"{name}{runtime.suffix}"
    record = run.folder / "work" / "exports" / f"{name}.json"
    key = _export_key(run, runtime, item)
    if record.exists() and path.exists():
        done = ExportRecord.load(record)
        if done.key == key and done.variant.sha256 == digest(path):
            return done.variant.model_copy(update=_promised(runtime, item))
    ranks = {} if item is None else item.ranks
    model = run.dense if item is None else run.variant(ranks)
    samples = run.data.normalise(run.data.validation.inputs[:_GATE_SAMPLES])
    agreement: Agreement = export(model, samples, path, runtime)
    variant = Variant(
        name=name,
        runtime=runtime.name,
        runtime_version=runtime.version,
        precision="fp32",
        file=path.name,
        sha256=digest(path),
        size_bytes=size_bytes(path),
        budget_ms=None,
        predicted_ms=None,
        measured_ms=None,
        accuracy=run.score(model, run.data.test).top1,
        max_abs_error=agreement.max_abs_error,
        sqnr_db=agreement.sqnr_db,
        top1_agreement=agreement.top1_agreement,
        params=sum(parameter.numel() for parameter in model.parameters()),
        macs=run.network.macs(ranks),
        ranks={layer.name: ranks.get(layer.name, "dense") for layer in run.network.ordered},
    )
    ExportRecord(key=key, variant=variant).save(record)
    return variant.model_copy(update=_promised(runtime, item))


def _promised(runtime: Runtime, item: RankPlan | None) -> dict[str, object]:
    """What of a variant may change while its file stays."""
    if item is None:
        return {}
    return {
        "budget_ms": item.budget_ms,
        "budgets": item.budgets,
        "predicted_ms": item.predicted_ms if item.runtime == runtime.name else None,
        "planned_on": f"{item.device}/{item.runtime}-{item.runtime_version}",
    }


def _export_key(run: Run, runtime: Runtime, item: RankPlan | None) -> str:
    """Weights, ranks and runtime: what a file's content depends on."""
    checkpoints = [name for name in ("dense", "ordered") if (run.folder / name / "checkpoint.json").exists()]
    weights = [load_checkpoint(run.folder / name)[0].sha256 for name in checkpoints]
    ranks = None if item is None else item.ranks
    content = json.dumps([weights, ranks, runtime.name, runtime.version], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
