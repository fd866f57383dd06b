"""The closed loop: time the exported files on the device, and plan again what is over a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from maestro_edge.devices import Device
from maestro_edge.errors import BudgetError, TableError
from maestro_edge.planning import account, plan, within
from maestro_edge.profiling import Conditions, measure_calmly, recalibrate
from maestro_edge.recipes.run import Progress, Run
from maestro_edge.recipes.tables import load_table
from maestro_edge.recipes.variants import export_entries, export_variants
from maestro_edge.runtimes import MeasuringProtocol, Runtime, digest
from maestro_edge.runtimes.jobs import with_entry
from maestro_edge.values import (
    DENSE,
    LatencyTable,
    Manifest,
    MeasuredMs,
    Network,
    NetworkTiming,
    Precision,
    Quantity,
    RankPlan,
    Round,
    Sensitivity,
    Timing,
    Variant,
    variant_name,
)

__all__ = ["MOST_ROUNDS", "measure_variants", "verify_run"]

MOST_ROUNDS = 5
_SLACK = 0.03
"""Left free, each round more, when a plan is made again: what was over once is noisy too."""
_MOVED = 0.1
"""A dense network this far from its time in the table: another speed of the device, not noise."""
_OF_A_PROCESS: tuple[Quantity, ...] = ("memory_bytes", "energy_mj")


def verify_run(
    run: Run,
    runtime: Runtime,
    device: Device,
    *,
    profiles: Path,
    protocol: MeasuringProtocol,
    rounds: int = MOST_ROUNDS,
    progress: Progress | None = None,
) -> tuple[Manifest, list[str]]:
    """Time the runtime's files on the device, interleaved; what is over a budget is planned and exported again.

    After every round but the last of `rounds` the table's fit takes in what was measured, and each variant that
    missed a budget gets a plan that is below it by what its measurement was above its prediction, between the
    plans of smaller and larger budgets where that can be. Where other programs disturbed a measurement that
    missed a budget, or the dense network stayed slower than when the table was measured, it is only taken again,
    once. It ends when every budget holds when measured, or what misses one cannot be planned lower. Returns the
    manifest, whose variants tell their rounds, and a line for every variant that was planned again or still
    misses a budget, and for a dense network that does not take what it did when its table was measured.

    Raises:
        TableError: nothing was exported, or a file was changed since.
    """
    manifest = Manifest.load(run.manifest_path)
    precisions = {variant.precision for variant in _of(manifest, runtime) if variant.is_planned} or {"fp32"}
    tables = {
        each: load_table(run, runtime, device, profiles=profiles, threads=protocol.threads, precision=each)
        for each in sorted(precisions)
    }
    emulated = [table for table in tables.values() if table.source == "emulated"]
    protocol = protocol.flow_only() if emulated else protocol
    log = [doubt for table in emulated for doubt in table.doubts(run.network)]
    for variant in _of(manifest, runtime):
        manifest = _with(manifest, variant.model_copy(update={"rounds": ()}))
    waited = False
    dense_ms = {
        each: table.calibration(run.network).networks[0].timing.median_ms for each, table in tables.items()
    }
    for count in range(1, rounds + 1):
        before = {} if emulated or waited else dense_ms  # what stays slow is what the device is now
        measured, timings = measure_variants(
            run, _of(manifest, runtime), runtime, device, protocol, dense_ms=before
        )
        for variant in measured:
            manifest = _with(manifest, _noted(variant))
        manifest.save(run.manifest_path)
        if progress is not None:
            progress(count, rounds, f"{runtime.name}: measured, round {count}")
        missing = [variant for variant in _of(manifest, runtime) if variant.missed]
        if not missing or count == rounds:
            break
        if not waited and any(timings[variant.name].disturbed for variant in missing):
            # A plan made for a moment in which something else ran would give ranks away; a busy device stays so.
            waited = True
            log.append(f"round {count}: {runtime.name} was disturbed while budgets were missed; measured again")
            continue
        for each in {variant.precision for variant in missing}:
            tables[each] = _recalibrated(run, manifest, tables[each], timings)
            tables[each].save(profiles / tables[each].file_name)
        made: dict[str, RankPlan] = {}
        for variant in missing:
            was = f"round {count}: {variant.name} {_excess(variant)}"
            try:
                item = _replanned(run, manifest, made, tables[variant.precision], variant, slack=_SLACK * count)
            except BudgetError as error:
                log.append(f"{was}; it cannot be planned lower: {error}")
                continue
            item.save(run.folder / "plans" / f"{item.name}.json")
            made[variant.name] = item
            log.append(f"{was}; planned again for {item.predicted_ms:.3f} ms")
        if not made:
            break
        for new in _exported(run, runtime, manifest, made):
            manifest = _with(manifest, new)
    if progress is not None:
        progress(rounds, rounds, f"{runtime.name}: verified")
    manifest.save(run.manifest_path)
    for variant in _of(manifest, runtime):
        if variant.missed:
            log.append(f"{variant.name} still {_excess(variant)}")
        elif not emulated and not variant.is_planned and variant.measured_ms is not None:
            table_ms, now_ms = dense_ms.get(variant.precision), variant.measured_ms.p50
            if table_ms is not None and abs(now_ms / table_ms - 1) > _MOVED:
                log.append(
                    f"{variant.name} takes {now_ms:.4g} ms, {now_ms / table_ms:.2f} times its {table_ms:.4g} ms "
                    "in the table: where that lasts, profile and plan again for what the device is now"
                )
    return manifest, log


def _exported(run: Run, runtime: Runtime, manifest: Manifest, made: Mapping[str, RankPlan]) -> list[Variant]:
    """The variants of new plans; beside those in one file its other entries, as they were measured."""
    old, layout = {each.name: each for each in _of(manifest, runtime)}, manifest.input.layout
    alone = [(runtime, item) for name, item in made.items() if old[name].entry is None]
    found, _ = export_variants(run, alone, layout=layout)
    plans = {
        variant_name(runtime.name, item.precision, item.tag): item
        for item in run.plans()
        if item.runtime == runtime.name
    }
    for file in sorted({old[name].file for name in made if old[name].entry is not None}):
        entries = [plans[each.name] for each in old.values() if each.file == file]
        found += export_entries(run, runtime, entries, layout=layout)
    kept = (
        {} if each.name in made else {"measured_ms": old[each.name].measured_ms, "alone": old[each.name].alone}
        for each in found
    )
    return [
        each.model_copy(update={"rounds": old[each.name].rounds, **same})
        for each, same in zip(found, kept, strict=True)
    ]


def _of(manifest: Manifest, runtime: Runtime) -> list[Variant]:
    return [variant for variant in manifest.variants if variant.runtime == runtime.name]


def _with(manifest: Manifest, new: Variant) -> Manifest:
    variants = tuple(new if old.name == new.name else old for old in manifest.variants)
    return manifest.model_copy(update={"variants": variants})


def _excess(variant: Variant) -> str:
    """What a variant measures above its budgets, in words."""
    parts = []
    for budget in variant.missed:
        value = variant.measured(budget.quantity)
        parts.append(f"measures {value:.4g}, over its budget of {budget}")
    return " and ".join(parts)


def measure_variants(
    run: Run,
    variants: Sequence[Variant],
    runtime: Runtime,
    device: Device,
    protocol: MeasuringProtocol,
    *,
    files: Mapping[str, Path] | None = None,
    dense_ms: Mapping[Precision, float] | None = None,
) -> tuple[list[Variant], dict[str, Timing]]:
    """The runtime's variants timed in one interleaved run, and the timings; the first dense one is the control.

    `dense_ms` tells what the dense network took before, by precision: where the control is slower than that, it is
    measured again as on a disturbed device. `files` gives the source of every `Variant.file`; default those in
    files/ of the run's folder.

    Raises:
        TableError: a file is missing, or was changed since its export.
    """
    paths = {}
    for variant in variants:
        path = run.folder / "files" / variant.file if files is None else files[variant.file]
        if not path.exists() or digest(path) != variant.sha256:
            raise TableError(f"{path} is missing or was changed after its export: export again")
        paths[variant.name] = with_entry(path, variant.entry)
    control = next(variant for variant in variants if not variant.is_planned)
    conditions = Conditions(protocol, (dense_ms or {}).get(control.precision, math.inf))
    timings = measure_calmly(runtime, device, paths, control=control.name, conditions=conditions)
    measured = []
    for variant in variants:
        timing = timings[variant.name]
        ms = MeasuredMs(p50=timing.median_ms, p90=timing.p90_ms, n=timing.n)
        update: dict[str, object] = {"measured_ms": ms}
        if any(budget.quantity in _OF_A_PROCESS for budget in variant.budgets):
            update["alone"] = runtime.measure_alone(device, paths[variant.name], protocol)
        measured.append(variant.model_copy(update=update))
    return measured, timings


def _noted(variant: Variant) -> Variant:
    """With a round for what was measured."""
    if variant.predicted_ms is None or variant.measured_ms is None:
        return variant
    done = Round(predicted_ms=variant.predicted_ms, measured_ms=variant.measured_ms, missed=variant.missed)
    return variant.model_copy(update={"rounds": (*variant.rounds, done)})


def _recalibrated(
    run: Run, manifest: Manifest, table: LatencyTable, timings: Mapping[str, Timing]
) -> LatencyTable:
    measured = [
        NetworkTiming(
            ranks=variant.ranks,
            int8=variant.int8,
            layers_ms=table.layers_ms(_formed(run, variant), variant.ranks),
            timing=timings[variant.name],
            alone=variant.alone,
            # Which layers are in gauge form is not told with a network's time: its parameters would be wrong.
            size_bytes=None if variant.gauge or variant.entry else variant.size_bytes,
        )
        for variant in manifest.variants
        if variant.name in timings and variant.precision == table.precision
    ]
    return recalibrate(table, run.network, measured)


def _formed(run: Run, variant: Variant) -> Network:
    """The run's network with the layers of the variant in their form and precision."""
    return run.network.in_gauge(variant.gauge).in_int8(variant.int8)


def _replanned(
    run: Run,
    manifest: Manifest,
    made: Mapping[str, RankPlan],
    table: LatencyTable,
    variant: Variant,
    *,
    slack: float,
) -> RankPlan:
    """A plan below each missed budget by what the measurement was above the table's present prediction.

    `made` are the plans that take others' places in this round.
    """
    sensitivity = Sensitivity.load(run.folder / "sensitivity.json")
    margins: dict[Quantity, float] = {}
    for budget in variant.missed:
        value = variant.measured(budget.quantity)
        assert value is not None
        predicted = account(budget.quantity, run.network, table).of_ranks(_formed(run, variant), variant.ranks)
        margins[budget.quantity] = 1 - min(1.0, predicted / value) * (1 - slack)
    kept = [
        each
        for each in manifest.variants
        if (each.runtime, each.precision) == (variant.runtime, variant.precision)
        and each.is_planned
        and each.name != variant.name
        and (each.name in made or not each.missed)
    ]
    ranks = {each.name: made[each.name].ranks if each.name in made else each.ranks for each in kept}
    small = [ranks[each.name] for each in kept if within(each.budgets, variant.budgets)]
    large = [ranks[each.name] for each in kept if within(variant.budgets, each.budgets)]
    given, gauge = (run.network, table, sensitivity, variant.budgets), run.gauge_ranks(table)
    dense = _dense_in_file(manifest, variant)
    if dense is not None:
        with suppress(BudgetError):  # else its file holds some layers in two forms
            return plan(*given, margin=margins, dense=dense, at_least=small, at_most=large)
    try:
        return plan(*given, margin=margins, gauge=gauge, at_least=small, at_most=large)
    except BudgetError:
        return plan(*given, margin=margins, gauge=gauge)


def _dense_in_file(manifest: Manifest, variant: Variant) -> frozenset[str] | None:
    """The layers that are dense in the variant's file, where its entries agree in that; else None."""
    entries = [each for each in manifest.variants if variant.entry and each.file == variant.file]
    dense = {frozenset(name for name, rank in each.ranks.items() if rank == DENSE) for each in entries}
    return dense.pop() if len(dense) == 1 else None
