"""Exporting the dense network and every plan as variants: gated files and what describes them."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from maestro_edge.devices import Device
from maestro_edge.errors import BudgetError, ExportError
from maestro_edge.recipes.data import Split
from maestro_edge.recipes.run import Progress, Run
from maestro_edge.runtimes import (
    WRITTEN_ONLY,
    Agreement,
    Runtime,
    check_accuracy,
    digest,
    export_counted,
    export_unchecked,
    images_as,
    model_for,
    names_for,
    size_bytes,
)
from maestro_edge.runtimes.coreml import combine
from maestro_edge.runtimes.elastic import ElasticRuntime, entry_name, export_elastic
from maestro_edge.runtimes.forking import side_by_side
from maestro_edge.training import load_checkpoint
from maestro_edge.values import (
    DENSE,
    Budget,
    DeviceFacts,
    InputSpec,
    Layout,
    Manifest,
    Precision,
    Rank,
    RankPlan,
    Saved,
    Variant,
    variant_name,
)

__all__ = ["combine_run", "export_entries", "export_run", "export_variant", "export_variants", "manifest_of"]

_GATE_SAMPLES = 32
_FILE_IMAGES = 2000
"""Images that a file is scored on by itself; each is a run of its own."""
_COMBINED: Final = "coreml"
"""The runtime whose files of one can be put together."""
_ONLY_STATIC: Final = "executorch-ethos-u"
"""Of this hardware, which computes in int8 alone, the dense network and plans are exported in that."""


Job = tuple[Runtime, RankPlan | Precision]
"""A plan, or the dense network in a precision, for a runtime."""


class ExportRecord(Saved):
    """A finished export: `key` holds all that it depends on, so that an interrupted step skips it."""

    key: str
    variant: Variant


def export_run(
    run: Run,
    device: Device,
    runtimes: Sequence[Runtime],
    *,
    rivals: Sequence[Precision] = (),
    elastic: bool = False,
    layout: Layout = "NCHW",
    progress: Progress | None = None,
) -> tuple[Manifest, list[str]]:
    """Export dense and every plan, each to the runtime and in the precision that its table was measured with.

    A runtime without plans of its own, as Core ML where no iPhone was measured, follows those of the first other.
    All files are fed images in `layout`. `rivals` are precisions in which the dense network is exported too; one
    that its gate refuses is left out, and told in the lines beside the manifest. With `elastic`, the plans of a
    runtime are entries of one file where its format can share their weights.

    Raises:
        BudgetError: there are no plans, or an elastic one bounds the bytes of a file.
        DataError: the run is of text: a manifest tells an app how to feed images.
        ExportError: a file cannot be made, or does not compute what the model does.
    """
    run.require_images("export")
    plans = run.plans()
    if not plans:
        raise BudgetError(f"{run.folder} has no plans: run 'maestro-edge plan {run.folder} --budget-ms …'")
    jobs: list[Job] = []
    several: list[Variant] = []
    doubled: list[str] = []
    for done, runtime in enumerate(runtimes, start=1):
        chosen = [item for item in plans if item.runtime == runtime.name]
        if not chosen:
            chosen = [item for item in plans if item.runtime == plans[0].runtime]
        dense: Precision = "int8-static" if runtime.name == _ONLY_STATIC else "fp32"
        chosen = [item for item in chosen if dense == "fp32" or dense == item.precision]
        jobs += [(runtime, dense), *((runtime, rival) for rival in rivals)]
        if elastic and isinstance(runtime, ElasticRuntime) and runtime.name not in WRITTEN_ONLY:
            several += export_entries(run, runtime, chosen, layout=layout)
            doubled += _stored_twice(several[-1].file, chosen)
            if progress is not None:
                progress(done, len(runtimes), f"exported {several[-1].file}")
        else:
            jobs += [(runtime, item) for item in chosen]
    variants, log = export_variants(run, jobs, progress, layout=layout)
    manifest = manifest_of(run, device.facts(), [*variants, *several], layout)
    manifest.save(run.manifest_path)
    return manifest, [*log, *doubled]


def export_variants(
    run: Run, jobs: Sequence[Job], progress: Progress | None = None, *, layout: Layout = "NCHW"
) -> tuple[list[Variant], list[str]]:
    """Export plans and dense networks; lines for those in int8 that were refused, which no plan asked for.

    Side by side where the runtime's files can be made so: each leaves its record, by which it is found here.
    """
    found: dict[int, Variant | ExportError] = {}  # of what is done in this process

    def attempt(index: int) -> None:
        runtime, item = jobs[index]
        try:
            found[index] = export_variant(run, runtime, item, layout=layout)
        except ExportError as error:
            if isinstance(item, RankPlan) or item == "fp32" or runtime.name in WRITTEN_ONLY:
                raise
            found[index] = error

    count = itertools.count(1)

    def step() -> None:
        if progress is not None:
            progress(next(count), len(jobs), "exported and compared")

    for runtime, indices in itertools.groupby(range(len(jobs)), key=lambda index: jobs[index][0]):
        side_by_side([partial(attempt, index) for index in indices], step, forks_after=runtime.forks_after)
    variants, log = [], []
    for index, (runtime, item) in enumerate(jobs):
        if index not in found:
            attempt(index)
        made = found[index]
        if isinstance(made, Variant):
            variants.append(made)
        else:
            assert not isinstance(item, RankPlan)
            log.append(f"{variant_name(runtime.name, item, DENSE)} is left out: {made}")
    return variants, log


def combine_run(run: Run, manifest: Manifest) -> Manifest:
    """Put all Core ML variants into one package, files/coreml.mlpackage in the run's folder, as entries of it.

    Saves and returns the manifest that says so. Their own packages stay where they are, for the next export.

    Raises:
        BudgetError: a plan bounds the bytes of a file, which holds others too.
        ExportError: there are less than two, or a function does not compute what its variant does.
    """
    files, path = run.folder / "files", run.folder / "files" / f"{_COMBINED}.mlpackage"
    alone = [each for each in manifest.variants if each.runtime == _COMBINED]
    for each in alone:
        _refuse_bytes(each.name, each.budgets, "--combine")
    entries = {each.name: entry_name(each.name.removeprefix(f"{_COMBINED}-")) for each in alone}
    images = images_as(manifest.input.layout, _gate_images(run)).numpy()
    combine({entries[each.name]: files / each.file for each in alone}, path, images)
    together = {"file": path.name, "sha256": digest(path), "size_bytes": size_bytes(path)}
    variants = tuple(
        each.model_copy(update={**together, "entry": entries[each.name]}) if each.name in entries else each
        for each in manifest.variants
    )
    manifest = manifest.model_copy(update={"variants": variants})
    manifest.save(run.manifest_path)
    return manifest


def manifest_of(run: Run, device: DeviceFacts, variants: Sequence[Variant], layout: Layout = "NCHW") -> Manifest:
    """What describes `variants` to apps; `device` is where they are timed."""
    shape, data = tuple(images_as(layout, run.example[0]).shape), run.data
    return Manifest(
        device=device,
        model=run.network.name,
        labels=run.labels,
        input=InputSpec(shape=shape, layout=layout, resize=data.resize, mean=data.mean, std=data.std),
        variants=tuple(variants),
    )


def export_variant(
    run: Run,
    runtime: Runtime,
    item: RankPlan | Precision,
    *,
    folder: Path | None = None,
    name: str | None = None,
    layout: Layout = "NCHW",
) -> Variant:
    """Export and gate one plan, or the dense network in a precision, and describe the file; it is not timed yet.

    It goes to `folder`, or to files/ in the run's, and is called `name`, or after its budgets. Where rounding may
    cost accuracy, that is the file's own, on at most 2,000 images of a split.

    Raises:
        ExportError: it cannot be written, differs from the model, or loses more accuracy than its precision may.
    """
    plan = item if isinstance(item, RankPlan) else None
    precision: Precision = item.precision if isinstance(item, RankPlan) else item
    if item == "mixed":
        raise ExportError("mixed is of plans, which say what of a network is in int8: choose another precision")
    ranks: Mapping[str, Rank] = {} if plan is None else plan.ranks
    name = name or variant_name(runtime.name, precision, DENSE if plan is None else plan.tag)
    path = (folder or run.folder / "files") / f"{name}{runtime.suffix}"
    record = run.folder / "work" / "exports" / f"{name}.json"
    key = _export_key(run, runtime, precision, plan, layout)
    if record.exists() and path.exists():
        done = ExportRecord.load(record)
        if done.key == key and done.variant.sha256 == digest(path):
            return done.variant.model_copy(update=_promised(runtime, item))
    gauge = () if plan is None else plan.gauge
    model = run.dense if plan is None else run.variant(ranks, gauge=gauge)
    made = _write(run, model, path, runtime, precision, layout, () if plan is None else plan.int8)
    variant = _described(run, runtime, item, model, path, made, layout, name=name)
    ExportRecord(key=key, variant=variant).save(record)
    return variant.model_copy(update=_promised(runtime, item))


def export_entries(
    run: Run, runtime: Runtime, plans: Sequence[RankPlan], *, layout: Layout = "NCHW"
) -> list[Variant]:
    """Export and gate one elastic file of the plans, and describe its entries; they are not timed yet.

    Raises:
        BudgetError: a plan bounds the bytes of a file, which holds others too.
        ExportError: a plan is not in fp32, or as runtimes.elastic.export_elastic().
    """
    for item in plans:
        _refuse_bytes(item.name, item.budgets, "--elastic")
    precision: Precision = next((item.precision for item in plans if item.precision != "fp32"), "fp32")
    path = run.folder / "files" / f"{runtime.name}-elastic{runtime.suffix}"
    records = [run.folder / "work" / "exports" / f"{path.stem}-{entry_name(item.tag)}.json" for item in plans]
    keys = [_export_key(run, runtime, precision, item, layout) for item in plans]
    key = hashlib.sha256("".join(keys).encode()).hexdigest()
    known = [ExportRecord.load(record) for record in records if record.exists()]
    sha256 = digest(path) if path.exists() else None
    if len(known) == len(plans) and all((each.key, each.variant.sha256) == (key, sha256) for each in known):
        made = [each.variant for each in known]
    else:
        models = {entry_name(item.tag): run.variant(item.ranks, gauge=item.gauge) for item in plans}
        given = {entry: model_for(layout, model) for entry, model in models.items()}
        agreements = export_elastic(
            given, images_as(layout, _gate_images(run)), path, runtime, precision=precision
        )
        made = [
            _described(
                run,
                runtime,
                item,
                models[entry],
                path,
                agreements[entry]._asdict(),
                layout,
                name=variant_name(runtime.name, precision, item.tag),
                entry=entry,
            )
            for item, entry in zip(plans, models, strict=True)
        ]
        for record, variant in zip(records, made, strict=True):
            ExportRecord(key=key, variant=variant).save(record)
    promised = [_promised(runtime, item) for item in plans]
    return [variant.model_copy(update=update) for variant, update in zip(made, promised, strict=True)]


def _stored_twice(file: str, plans: Sequence[RankPlan]) -> list[str]:
    """A line where an elastic file has two forms of a layer, which share nothing."""
    dense = [{layer.name for layer in item.layers if layer.rank == DENSE} for item in plans]
    count = len({name for some in dense for name in some} - dense[0].intersection(*dense))
    if not count:
        return []
    return [
        f"{file} holds {count} layers both dense and as pairs: plan all its budgets in one call with --elastic"
    ]


def _refuse_bytes(name: str, budgets: Sequence[Budget], option: str) -> None:
    if any(budget.quantity == "size_bytes" for budget in budgets):
        raise BudgetError(f"plan {name} bounds the bytes of a file of its own: export without {option}")


def _described(
    run: Run,
    runtime: Runtime,
    item: RankPlan | Precision,
    model: nn.Module,
    path: Path,
    made: Mapping[str, Any],
    layout: Layout,
    *,
    name: str,
    entry: str | None = None,
) -> Variant:
    """What was exported, with its accuracy; `made` is what its gate found."""
    plan = item if isinstance(item, RankPlan) else None
    precision: Precision = item.precision if isinstance(item, RankPlan) else item
    ranks: Mapping[str, Rank] = {} if plan is None else plan.ranks
    gauge = () if plan is None else plan.gauge
    return Variant(
        name=name,
        runtime=runtime.name,
        runtime_version=runtime.version,
        precision=precision,
        file=path.name,
        entry=entry,
        sha256=digest(path),
        size_bytes=size_bytes(path),
        budget_ms=None,
        predicted_ms=None,
        measured_ms=None,
        **_accuracies(run, model, path, runtime, precision, layout),
        **made,
        params=sum(parameter.numel() for parameter in model.parameters()),
        macs=run.network.in_gauge(gauge).macs(ranks),
        ranks={layer.name: ranks.get(layer.name, DENSE) for layer in run.network.ordered},
        gauge=gauge,
        int8=() if plan is None else plan.int8,
    )


def _gate_images(run: Run) -> Tensor:
    return run.data.normalise(run.data.validation.inputs[:_GATE_SAMPLES])


def _write(
    run: Run,
    model: nn.Module,
    path: Path,
    runtime: Runtime,
    precision: Precision,
    layout: Layout,
    int8: Sequence[str],
) -> dict[str, Any]:
    """Make the file; what the gate and the backend say of it. A file that cannot be run here has no agreement."""
    images = _gate_images(run)
    calibration = run.calibration() if precision == "int8-static" else None
    given = model_for(layout, model), images_as(layout, images), path, runtime
    ranges = None if calibration is None else [images_as(layout, batch) for batch in calibration]
    if runtime.name in WRITTEN_ONLY:
        delegation = export_unchecked(*given, precision=precision, calibration=ranges)
        return {**dict.fromkeys(Agreement._fields), "delegation": delegation}
    made = export_counted(*given, precision=precision, calibration=ranges, int8=names_for(layout, int8))
    return {**made.agreement._asdict(), "delegation": made.delegation}


def _accuracies(
    run: Run, model: nn.Module, path: Path, runtime: Runtime, precision: Precision, layout: Layout
) -> dict[str, Any]:
    """Top-1 on the test split and on validation images: all variants' are on the same ones.

    In fp32 it is the model's, whose outputs are the file's. Elsewhere it is the file's, refused where it is too
    far below.
    """

    def own(split: Split) -> float:
        inputs, targets = split.inputs[:_FILE_IMAGES], split.targets[:_FILE_IMAGES]
        found = runtime.predict(path, images_as(layout, run.data.normalise(inputs)).numpy()).argmax(-1)
        return float((found == targets.numpy()).mean())

    held = run.data.validation
    held = Split(held.inputs[:_FILE_IMAGES], held.targets[:_FILE_IMAGES])
    of_model = run.score(model, held).top1
    if precision == "fp32" or runtime.name in WRITTEN_ONLY:
        return {"accuracy": run.score(model, run.data.test).top1, "validation_accuracy": of_model}
    of_file = own(held)
    check_accuracy(path, own=of_file, model=of_model, precision=precision)
    return {"accuracy": own(run.data.test), "validation_accuracy": of_file}


def _promised(runtime: Runtime, item: RankPlan | Precision) -> dict[str, object]:
    """What of a variant may change while its file stays."""
    if not isinstance(item, RankPlan):
        return {}
    return {
        "budget_ms": item.budget_ms,
        "budgets": item.budgets,
        "predicted_ms": item.predicted_ms if item.runtime == runtime.name else None,
        "planned_on": f"{item.device}/{item.runtime}-{item.runtime_version}",
    }


def _export_key(run: Run, runtime: Runtime, precision: Precision, plan: RankPlan | None, layout: Layout) -> str:
    """Weights, ranks and their forms, precisions, runtime and layout: what a file's content depends on."""
    checkpoints = [name for name in ("dense", "ordered") if (run.folder / name / "checkpoint.json").exists()]
    weights = [load_checkpoint(run.folder / name)[0].sha256 for name in checkpoints]
    content = json.dumps(
        [weights, plan and [plan.ranks, plan.gauge, plan.int8], precision, runtime.name, runtime.version, layout],
        sort_keys=True,
    )
    return hashlib.sha256(content.encode()).hexdigest()
