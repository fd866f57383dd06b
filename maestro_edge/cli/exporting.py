"""From plans to what ships: export, verify, deploy, bundle, report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from maestro_edge.cli.console import claimed, command, console, fail, steps
from maestro_edge.cli.options import (
    TIMED,
    BudgetKb,
    BudgetMemory,
    BudgetMj,
    BudgetMmacs,
    BudgetMs,
    BudgetP90,
    BudgetParams,
    DeviceName,
    Elastic,
    OwnModel,
    Precisions,
    Profiles,
    Rounds,
    RunFolder,
    Threads,
    Timed,
    layout_of,
    plan_budgets,
    precisions_of,
    protocol_of,
)

if TYPE_CHECKING:
    from maestro_edge.recipes.run import Progress, Run


@command
def export(
    run: RunFolder,
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            "--runtime",
            help="executorch, litert, onnx or coreml; repeat it. [default: executorch, litert, coreml] Written "
            "but not run here: executorch-coreml, executorch-vulkan, executorch-ethos-u.",
        ),
    ] = None,
    rival: Annotated[
        list[str] | None,
        typer.Option(help="Also export the dense network in this precision, such as int8-static; repeat it."),
    ] = None,
    elastic: Annotated[
        bool, typer.Option("--elastic", help="One file a runtime for all its plans, weights stored once.")
    ] = False,
    layout: Annotated[str, typer.Option(help="How apps feed images: nchw or nhwc.")] = "nchw",
    combine: Annotated[
        bool, typer.Option("--combine", help="One Core ML package of all Core ML files, a function for each.")
    ] = False,
    device: DeviceName = "local",
    model: OwnModel = None,
) -> None:
    """Write every plan and the dense network for each runtime; each file is run and compared first."""
    from maestro_edge.recipes.run import open_run
    from maestro_edge.recipes.variants import combine_run, export_run
    from maestro_edge.runtimes import load_all
    from maestro_edge.terminal import delegation_lines, variants_table

    fed = layout_of(layout)
    rivals = precisions_of(rival, ())
    runtimes, opened = load_all(runtime or (*TIMED, "coreml")), open_run(run, model=model)
    with steps() as step, claimed(device, alone=False) as connected:
        manifest, log = export_run(
            opened,
            connected,
            runtimes,
            rivals=rivals,
            elastic=elastic,
            layout=fed,
            progress=step("export"),
        )
        if combine:
            manifest = combine_run(opened, manifest)
    for line in (*log, *delegation_lines(manifest)):
        console().print(line)
    console().print(variants_table(manifest))


@command
def verify(
    run: RunFolder,
    runtime: Timed = None,
    device: DeviceName = "local",
    profiles: Profiles = Path("profiles"),
    threads: Threads = 1,
    rounds: Rounds = 5,
    fleet: Annotated[
        bool, typer.Option("--fleet", help="The files of 'fleet --export', which are only timed.")
    ] = False,
    model: OwnModel = None,
) -> None:
    """Time the exported files on the device; what misses a budget is planned again until it holds."""
    from maestro_edge.recipes.fleets import time_fleet
    from maestro_edge.recipes.run import open_run
    from maestro_edge.runtimes import load_all
    from maestro_edge.terminal import variants_table

    runtimes, opened = load_all(runtime or TIMED), open_run(run, model=model)
    if fleet:
        with steps() as step, claimed(device) as connected:
            timed = time_fleet(opened, runtimes, connected, protocol=protocol_of(threads), progress=step("verify"))
        console().print(variants_table(timed))
        return
    with steps() as step, claimed(device) as connected:
        log = [
            line
            for item in runtimes
            for line in _verify_on(opened, item, connected, profiles, protocol_of(threads), rounds, step)
        ]
    _print_verified(opened, log)


@command
def deploy(
    run: RunFolder,
    budget_ms: BudgetMs = None,
    budget_p90_ms: BudgetP90 = None,
    budget_kb: BudgetKb = None,
    budget_memory_mb: BudgetMemory = None,
    budget_mmacs: BudgetMmacs = None,
    budget_params: BudgetParams = None,
    budget_mj: BudgetMj = None,
    runtime: Timed = None,
    device: DeviceName = "local",
    profiles: Profiles = Path("profiles"),
    threads: Threads = 1,
    precision: Precisions = None,
    exact: Annotated[bool, typer.Option("--exact", help="Solve exactly (HiGHS) instead of greedily.")] = False,
    elastic: Elastic = False,
    rounds: Rounds = 5,
    model: OwnModel = None,
) -> None:
    """Profile if need be, plan, export and measure, again until every budget holds on the device or cannot."""
    budgets = plan_budgets(
        budget_ms, budget_p90_ms, budget_kb, budget_memory_mb, budget_mmacs, budget_params, budget_mj
    )
    from maestro_edge.recipes.plans import clear_plans, plan_run, sensitivity_of
    from maestro_edge.recipes.run import open_run
    from maestro_edge.recipes.tables import table_of
    from maestro_edge.recipes.variants import export_run
    from maestro_edge.runtimes import load_all

    precisions = precisions_of(precision)
    runtimes, opened = load_all(runtime or TIMED), open_run(run, model=model)
    protocol = protocol_of(threads)
    log: list[str] = []
    with steps() as step, claimed(device) as connected:
        tables = [
            table_of(
                opened,
                item,
                connected,
                profiles=profiles,
                protocol=protocol,
                precision=each,
                progress=step(f"{item.name} {each}"),
            )
            for item in runtimes
            for each in precisions
        ]
        sensitivity = sensitivity_of(opened, tables, progress=step("sensitivity"))
        clear_plans(opened)
        for table in tables:
            log += table.doubts(opened.network)
            for made in plan_run(opened, table, sensitivity, budgets, exact=exact, elastic=elastic):
                log += made.hints()
        log += export_run(opened, connected, runtimes, elastic=elastic, progress=step("export"))[1]
        for item in runtimes:
            log += _verify_on(opened, item, connected, profiles, protocol, rounds, step)
    _print_verified(opened, log)


def _verify_on(
    run: Run,
    runtime: Any,
    device: Any,
    profiles: Path,
    protocol: Any,
    rounds: int,
    step: Callable[[str], Progress],
) -> list[str]:
    from maestro_edge.recipes.deploy import verify_run

    progress = step(f"verify {runtime.name}")
    return verify_run(
        run, runtime, device, profiles=profiles, protocol=protocol, rounds=rounds, progress=progress
    )[1]


def _print_verified(run: Run, log: list[str]) -> None:
    """What happened and the variants; a budget that is still missed is a failure."""
    from maestro_edge.terminal import variants_table
    from maestro_edge.values import Manifest

    for line in log:
        console().print(line)
    manifest = Manifest.load(run.manifest_path)
    console().print(variants_table(manifest))
    missed = [variant.name for variant in manifest.variants if variant.missed]
    if missed:
        fail(f"{', '.join(missed)}: over budget when measured: raise the budget, or train and profile lower ranks")


@command
def bundle(
    run: RunFolder,
    plan: Annotated[
        list[str] | None,
        typer.Argument(help="Plans that are wanted, such as litert-2ms; default all.", show_default=False),
    ] = None,
    app: Annotated[
        Literal["android", "ios", "linux", "web"] | None,
        typer.Option("--app", help="Drop it into this app, without what it cannot run."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to make, default RUN/bundle; of --app the app's, default apps/APP.")
    ] = None,
    fleet: Annotated[bool, typer.Option("--fleet", help="The files of 'fleet --export', timed before.")] = False,
    model: OwnModel = None,
) -> None:
    """Collect the exported files, their manifest and the labels in the folder that an app reads."""
    from maestro_edge.recipes.bundles import bundle_run
    from maestro_edge.recipes.run import open_run

    made = bundle_run(open_run(run, model=model), out, app=app, names=plan or (), fleet=fleet)
    console().print(f"bundle  {made}")


@command
def report(
    run: RunFolder,
    device: DeviceName = "local",
    profiles: Profiles = Path("profiles"),
    threads: Threads = 1,
    model: OwnModel = None,
) -> None:
    """Write one HTML page with the figures of a run."""
    from maestro_edge.recipes.reports import report_run
    from maestro_edge.recipes.run import open_run
    from maestro_edge.recipes.tables import load_table
    from maestro_edge.runtimes import load_all

    opened = open_run(run, model=model)
    made_on = sorted({(item.runtime, item.precision) for item in opened.plans()})
    with claimed(device, alone=False) as connected:
        tables = [
            load_table(opened, load_all([name])[0], connected, profiles=profiles, threads=threads, precision=each)
            for name, each in made_on
        ]
    console().print(f"report  {report_run(opened, tables)}")
