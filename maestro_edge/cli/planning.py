"""From tables to plans: plan, fleet, sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
    RunFolder,
    Threads,
    Timed,
    budgets_ms,
    plan_budgets,
    precisions_of,
    protocol_of,
)


@command
def plan(
    run: RunFolder,
    budget_ms: BudgetMs = None,
    budget_p90_ms: BudgetP90 = None,
    budget_kb: BudgetKb = None,
    budget_memory_mb: BudgetMemory = None,
    budget_mmacs: BudgetMmacs = None,
    budget_params: BudgetParams = None,
    budget_mj: BudgetMj = None,
    runtime: Annotated[
        list[str] | None,
        typer.Option(help="executorch, litert, onnx, or coreml where an iPhone was measured; repeat it."),
    ] = None,
    precision: Precisions = None,
    exact: Annotated[bool, typer.Option("--exact", help="Solve exactly (HiGHS) instead of greedily.")] = False,
    nested: Annotated[
        bool, typer.Option(help="Larger budgets never lower a layer's rank; without, each plan is by itself.")
    ] = True,
    elastic: Elastic = False,
    device: DeviceName = "local",
    profiles: Profiles = Path("profiles"),
    threads: Threads = 1,
    model: OwnModel = None,
) -> None:
    """Choose every layer's rank under each budget; prints what each layer costs and the gap to the optimum."""
    budgets = plan_budgets(
        budget_ms, budget_p90_ms, budget_kb, budget_memory_mb, budget_mmacs, budget_params, budget_mj
    )
    from maestro_edge.recipes.plans import plan_run, sensitivity_of
    from maestro_edge.recipes.run import open_run
    from maestro_edge.recipes.tables import load_table
    from maestro_edge.runtimes import load_all
    from maestro_edge.terminal import plan_table

    precisions = precisions_of(precision)
    runtimes, opened = load_all(runtime or TIMED), open_run(run, model=model)
    with claimed(device, alone=False) as connected:
        tables = [
            load_table(opened, item, connected, profiles=profiles, threads=threads, precision=each)
            for item in runtimes
            for each in precisions
        ]
    with steps() as step:
        sensitivity = sensitivity_of(opened, tables, progress=step("sensitivity"))
    for table in tables:
        for doubt in table.doubts(opened.network):
            console().print(f"[yellow]{doubt}[/yellow]")
        for made in plan_run(opened, table, sensitivity, budgets, nested=nested, exact=exact, elastic=elastic):
            for hint in made.hints():
                console().print(f"[yellow]{hint}[/yellow]")
            console().print(plan_table(made))


@command
def fleet(
    run: RunFolder,
    table: Annotated[
        list[Path], typer.Option(help="A device's latency table, such as profiles/…json; repeat it.")
    ],
    budget_ms: Annotated[
        list[str], typer.Option(help="Median milliseconds: once for all tables, or once for each in their order.")
    ],
    tolerance: Annotated[
        float, typer.Option(min=0, help="Share of the loss that a device may give up for a shared variant.")
    ] = 0.02,
    export: Annotated[bool, typer.Option("--export", help="Also export and check one file a variant.")] = False,
    model: OwnModel = None,
) -> None:
    """Plan for several devices at once, with one variant where it serves several; no device need be connected."""
    budgets = budgets_ms(budget_ms)
    from maestro_edge.recipes.fleets import export_fleet
    from maestro_edge.recipes.plans import fleet_run, sensitivity_of
    from maestro_edge.recipes.run import open_run
    from maestro_edge.terminal import fleet_table
    from maestro_edge.values import LatencyTable

    opened, tables = open_run(run, model=model), [LatencyTable.load(path) for path in table]
    if len(budgets) not in (1, len(tables)):
        fail(f"{len(tables)} tables and {len(budgets)} budgets: give one budget for all, or one for each")
    with steps() as step:
        sensitivity = sensitivity_of(opened, tables, progress=step("sensitivity"))
    each = budgets if len(budgets) > 1 else budgets * len(tables)
    groups = fleet_run(opened, tables, sensitivity, each, tolerance=tolerance)
    for found in tables:
        for doubt in found.doubts(opened.network):
            console().print(f"[yellow]{doubt}[/yellow]")
    console().print(fleet_table([group.plans for group in groups]))
    console().print(f"plans   {run / 'fleet'}")
    if export:
        with steps() as step:
            path = export_fleet(opened, groups, [found.device for found in tables], progress=step("export"))
        console().print(f"files   {path}")


@command
def sweep(
    run: RunFolder,
    count: Annotated[int, typer.Option(min=1, help="Budgets between the fastest plan and dense.")] = 8,
    runtime: Timed = None,
    device: DeviceName = "local",
    profiles: Profiles = Path("profiles"),
    threads: Threads = 1,
    precision: Precisions = None,
    model: OwnModel = None,
) -> None:
    """Measure the whole front of accuracy against time, with the dense network in fp32 and int8 beside it."""
    from maestro_edge.recipes.plans import sensitivity_of
    from maestro_edge.recipes.reports import require_report
    from maestro_edge.recipes.run import open_run
    from maestro_edge.recipes.sweep import sweep_run
    from maestro_edge.recipes.tables import table_of
    from maestro_edge.reporting import write_front
    from maestro_edge.runtimes import load_all
    from maestro_edge.terminal import front_table

    require_report()
    precisions = precisions_of(precision)
    runtimes, opened = load_all(runtime or TIMED), open_run(run, model=model)
    opened.require_images("sweep")
    protocol = protocol_of(threads)
    given: dict[str, Any] = {"profiles": profiles, "protocol": protocol}
    with steps() as step, claimed(device) as connected:
        tables = {
            item.name: [
                table_of(opened, item, connected, precision=each, progress=step(f"{item.name} {each}"), **given)
                for each in precisions
            ]
            for item in runtimes
        }
        losses = sensitivity_of(
            opened, [table for found in tables.values() for table in found], progress=step("sensitivity")
        )
        fronts = {
            item.name: sweep_run(
                opened,
                item,
                connected,
                tables[item.name],
                losses,
                protocol=protocol,
                count=count,
                progress=step(f"sweep {item.name}"),
            )
            for item in runtimes
        }
    for name, front in fronts.items():
        for line in front.left_out:
            console().print(line)
        console().print(front_table(front.variants, front.beaten))
        figure = write_front(run / f"sweep-{name}.png", front.variants, front.beaten)
        console().print(f"front   {run / f'sweep-{name}.csv'}\nfigure  {figure}")
