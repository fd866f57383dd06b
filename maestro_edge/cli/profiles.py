"""`maestro-edge profiles`: what is to be printed of latency tables; measuring.py makes commands of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from maestro_edge.errors import TableError

if TYPE_CHECKING:
    from maestro_edge.values import LatencyRow, LatencyTable

__all__ = ["COMMANDS", "Step"]


class Step(NamedTuple):
    """Work that takes a while: it reports (done, total, what) and returns what is to be printed."""

    title: str
    work: Callable[[Callable[[int, int, str], None]], object]


Folder = Annotated[Path, typer.Option("--profiles", help="Folder of latency tables.")]
TableFile = Annotated[Path, typer.Argument(help="A latency table (JSON).", show_default=False)]


def list_tables(profiles: Folder = Path("profiles")) -> Iterator[object]:
    """List the latency tables of a folder."""
    from rich.table import Table

    from maestro_edge.values import LatencyTable

    paths = sorted(profiles.glob("*.json"))
    if not paths:
        raise TableError(f"{profiles}: no latency table there: run 'profile' or 'profiles import'")
    shown = Table()
    shown.add_column("device", overflow="fold")  # a name is what its tables' files begin with: no part is left out
    for heading in ("runtime", "version", "precision"):
        shown.add_column(heading)
    for heading in ("threads", "rows", "date", "source", "left-out error"):
        shown.add_column(heading, justify="right")
    for path in paths:
        table = LatencyTable.load(path)
        errors = [f"{100 * fit.loo_mape:.1f} %" for fit in table.calibrations]
        shown.add_row(
            table.device.name,
            table.runtime,
            table.runtime_version,
            table.precision,
            _or_not_told(table.threads),
            _count(table),
            table.created[:10],
            table.source,
            ", ".join(errors) or "not calibrated",
        )
    yield shown


def show(file: TableFile) -> Iterator[object]:
    """Show a table's rows: ms, spread, and each rank beside its dense layer."""
    from rich.table import Table

    from maestro_edge.values import DENSE, LatencyTable

    table = LatencyTable.load(file)
    yield (
        f"{table.title}, {table.precision}, threads {_or_not_told(table.threads)}: {table.source}, "
        f"{table.created}\n{table.device.soc}, {table.device.os}"
    )
    shown = Table("layer", "rank")
    for heading in ("ms", "spread", "dense / ms", "MACs break even at", "row is"):
        shown.add_column(heading, justify="right")
    dense_ms = {row.spec: row.ms for row in table.rows if row.rank == DENSE}
    for row in table.rows:
        dense = dense_ms.get(row.spec)
        shown.add_row(
            str(row.spec),
            str(row.rank),
            f"{row.ms:.4f}",
            _spread(row),
            "" if dense is None or row.rank == DENSE or row.ms <= 0 else f"{dense / row.ms:.2f}x",
            f"{row.spec.break_even_rank:.1f}" if row.rank == DENSE else "",
            row.method,
        )
    yield shown
    for fit in table.calibrations:
        yield (
            f"network {fit.network}: {fit.slope:.3f} × (layers + {fit.rest_ms:.3f}) {fit.intercept_ms:+.3f} ms, "
            f"left-out error {100 * fit.loo_mape:.1f} % on {len(fit.networks)} networks"
        )
    if table.operators or table.networks:
        yield f"{len(table.operators)} operators and {len(table.networks)} whole networks of other tools"


def diff(before: TableFile, after: TableFile) -> Iterator[object]:
    """Compare the rows that two tables have in common."""
    from maestro_edge.profiling.checking import compare
    from maestro_edge.values import LatencyTable

    old, new = LatencyTable.load(before), LatencyTable.load(after)
    found = compare(old, new)
    spec, rank = found.worst
    yield f"{old.title} ({old.source}) → {new.title} ({new.source})"
    yield (
        f"{len(found.ratios)} rows in common, {found.only_before} only before, {found.only_after} only after\n"
        f"after / before: median {found.median:.3f}, worst {found.ratios[spec, rank]:.3f} ({spec} at rank {rank})"
    )
    if old.rank_step != new.rank_step:
        yield f"rank step: {_or_not_told(old.rank_step)} before, {_or_not_told(new.rank_step)} after"
    yield f"steps moved: {len(found.moved)}"
    yield from found.moved


def validate(
    files: Annotated[list[Path], typer.Argument(help="Latency tables (JSON).", show_default=False)],
    spread_limit: Annotated[
        float, typer.Option(min=0, help="Interquartile range over median that is too much.")
    ] = 0.5,
) -> Iterator[object]:
    """Check tables: every problem is one line, and the exit code is 1 if there is any."""
    from maestro_edge.profiling.checking import problems
    from maestro_edge.values import LatencyTable

    wrong = 0
    for path in files:
        try:
            found = tuple(
                f"{path}: {what}" for what in problems(LatencyTable.load(path), spread_limit=spread_limit)
            )
        except TableError as error:
            found = (str(error),)
        wrong += bool(found)
        yield from found or (f"{path}: sound",)
    if wrong:
        raise TableError(f"{wrong} of {len(files)} tables are not sound")


def probes(
    run: Annotated[Path, typer.Argument(help="Run folder, as made by 'train'.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Folder to make; default RUN/probes.")] = None,
    runtime: Annotated[Literal["coreml"], typer.Option(help="Whose files; others need no carrying.")] = "coreml",
    precision: Annotated[
        Literal["fp32", "fp16", "int8-dynamic"], typer.Option(help="Of the files that are measured.")
    ] = "fp32",
    model: Annotated[str | None, typer.Option(help="The run's own package.module:function.")] = None,
) -> Iterator[object]:
    """Write what an iPhone has to measure, a folder for apps/ios; an interrupted one goes on there."""
    from maestro_edge.profiling.probes import PROBES, write_probes
    from maestro_edge.recipes.run import open_run
    from maestro_edge.runtimes import load

    opened, folder = open_run(run, model=model), out or run / "probes"
    exporter = load(runtime)
    _ = exporter.version  # a missing package is told before any work

    def work(progress: Callable[[int, int, str], None]) -> str:
        bundle = write_probes(
            opened.ordered,
            opened.example,
            exporter,
            folder=folder,
            name=opened.network.name,
            precision=precision,
            progress=progress,
        )
        return (
            f"{len(bundle.layers)} layers and {len(bundle.networks)} whole networks of {bundle.network.name}, "
            f"{precision}  →  {folder / PROBES}\napps/ios/README.md tells how an iPhone measures them; then "
            f"'maestro-edge profiles import answers.json --format iphone --probes {folder}'"
        )

    yield Step(f"{runtime} probes", work)


def import_file(
    file: Annotated[Path, typer.Argument(help="What another tool or machine wrote.", show_default=False)],
    kind: Annotated[
        Literal["iphone", "tflite", "etdump", "lut", "ai-hub", "mobile-benchmark", "table"],
        typer.Option("--format", help="What wrote it; iphone is apps/ios, table is our own JSON."),
    ],
    probes: Annotated[
        Path | None, typer.Option(help="Folder that iphone's answers are to; default the file's.")
    ] = None,
    profiles: Folder = Path("profiles"),
    device: Annotated[str | None, typer.Option(help="Where the file does not tell it.")] = None,
    runtime: Annotated[str | None, typer.Option(help="Where the file does not tell it.")] = None,
    runtime_version: Annotated[str | None, typer.Option(help="Where the file does not tell it.")] = None,
    precision: Annotated[str | None, typer.Option(help="Where the file does not tell it.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Where the file does not tell them.")] = None,
    column: Annotated[
        str | None, typer.Option(help="device|cores|precision of mobile-benchmark; precision of ai-hub.")
    ] = None,
    unit: Annotated[str | None, typer.Option(help="ns, us, ms or s of a lut.")] = None,
    name: Annotated[str | None, typer.Option(help="The network's name; default the file's.")] = None,
    force: Annotated[bool, typer.Option(help="Replace a table of that name.")] = False,
) -> Iterator[object]:
    """Write another tool's times as a latency table, marked as imported; an iPhone's answers as measured."""
    if kind == "iphone":
        from maestro_edge.profiling.answers import answered_table

        table = answered_table(file, probes).save_over(profiles)
        yield f"{table.title}: {_count(table)} rows, {table.source}  →  {profiles / table.file_name}"
        return
    from maestro_edge.profiling.foreign import Facts, import_table

    given = Facts(
        device=device, runtime=runtime, runtime_version=runtime_version, precision=precision, threads=threads
    )
    table = import_table(file, kind, given=given, column=column, unit=unit, name=name)
    path = profiles / table.file_name
    if path.exists() and not force:
        raise TableError(f"{path}: is there already: --force replaces it")
    yield f"{table.title}: {_count(table)}, {table.source}  →  {table.save(path)}"


COMMANDS: dict[str, Callable[..., Iterator[object]]] = {
    "list": list_tables,
    "show": show,
    "diff": diff,
    "validate": validate,
    "probes": probes,
    "import": import_file,
}
"""Each yields what is to be printed, or a step whose progress is shown first."""


def _or_not_told(value: int | None) -> str:
    return "not told" if value is None else str(value)


def _count(table: LatencyTable) -> str:
    counts = {"": len(table.rows), " operators": len(table.operators), " networks": len(table.networks)}
    return ", ".join(f"{count}{what}" for what, count in counts.items() if count) or "0"


def _spread(row: LatencyRow) -> str:
    from maestro_edge.values import Estimate

    if isinstance(row.timing, Estimate):
        return f"{row.timing.low_ms:.4f}–{row.timing.high_ms:.4f} ({100 * row.timing.coverage:.0f} %)"
    return "not told" if row.spread is None else f"{100 * row.spread:.1f} %"
