"""`maestro-edge demo`: the whole job in one command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maestro_edge.cli.console import claimed, command, console, steps
from maestro_edge.cli.options import (
    TIMED,
    DataSource,
    DenseEpochs,
    Epochs,
    Profiles,
    Seed,
    Threads,
    Timed,
    budgets_ms,
    protocol_of,
)

if TYPE_CHECKING:
    from maestro_edge.recipes.run import Run


@command
def demo(
    data: DataSource = "digits",
    out: Annotated[Path, typer.Option(help="Run folder; an interrupted demo goes on there.")] = Path("runs/demo"),
    budget_ms: Annotated[
        list[str] | None, typer.Option(help="Latency budget; repeat it. Default: three spread ones.")
    ] = None,
    runtime: Timed = None,
    profiles: Profiles = Path("profiles"),
    threads: Threads = 1,
    epochs: Epochs = None,
    dense_epochs: DenseEpochs = None,
    seed: Seed = 0,
    fresh: Annotated[bool, typer.Option(help="Remove a demo that is in the folder already.")] = False,
) -> None:
    """Run the whole job on this machine: train, profile, plan, export, verify, bundle, report."""
    budgets = budgets_ms(budget_ms)
    from maestro_edge.recipes.demo import DENSE_TRAINING, NESTED_TRAINING, run_demo
    from maestro_edge.recipes.reports import require_report
    from maestro_edge.recipes.run import create, remove
    from maestro_edge.runtimes import load_all
    from maestro_edge.terminal import variants_table

    timed, untimed = load_all(runtime or TIMED), load_all(["coreml"])
    require_report()
    if fresh:
        remove(out)
    run = create(out, data=data, seed=seed)
    console().print(_data_line(run))
    with steps() as step, claimed("local") as device:
        manifest, log = run_demo(
            run,
            device,
            timed,
            untimed,
            profiles=profiles,
            protocol=protocol_of(threads),
            budgets_ms=budgets,
            dense=_epochs(DENSE_TRAINING, dense_epochs),
            nested=_epochs(NESTED_TRAINING, epochs),
            step=step,
        )
    for line in log:
        console().print(line)
    console().print(variants_table(manifest))
    console().print(f"bundle  {out / 'bundle'}\nreport  {out / 'report.html'}")


def _epochs(settings: Any, epochs: int | None) -> Any:
    return settings if epochs is None else settings.model_copy(update={"epochs": epochs})


def _data_line(run: Run) -> str:
    found = run.data
    return (
        f"{run.facts.data}: {len(found.train)} training, {len(found.validation)} validation, "
        f"{len(found.test)} test images, {len(found.labels)} classes; model {run.facts.model}"
    )
