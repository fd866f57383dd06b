"""The command line: the pipeline's verbs on a run folder. The only module that prints."""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal, ParamSpec, TypeVar

import typer

from maestro_edge.errors import MaestroError

if TYPE_CHECKING:
    from rich.console import Console

    from maestro_edge.recipes.run import Progress, Run
    from maestro_edge.values import LatencyTable

P = ParamSpec("P")
T = TypeVar("T")

app = typer.Typer(
    help="One ordered training, many devices: variants that keep a latency budget when measured.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RunFolder = Annotated[Path, typer.Argument(help="Run folder, as made by 'train'.", show_default=False)]
OwnModel = Annotated[str | None, typer.Option("--model", help="The run's own package.module:function.")]
DataSource = Annotated[
    str, typer.Option("--data", help="digits, or cifar10:PATH, mnist:PATH, fashion-mnist:PATH, folder:PATH.")
]
ModelName = Annotated[str, typer.Argument(help="A package.module:function that returns a torch module.")]
DeviceName = Annotated[str, typer.Option("--device", help="Where to measure; see 'devices'.")]
Profiles = Annotated[Path, typer.Option("--profiles", help="Folder of latency tables.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads that the runtime uses.")]
Timed = Annotated[list[str] | None, typer.Option("--runtime", help="executorch or litert; repeat for both.")]
Seed = Annotated[int, typer.Option(help="Seeds data split, weights and sampling.")]
Epochs = Annotated[int | None, typer.Option("--epochs", min=1, help="Epochs of nested training.")]
DenseEpochs = Annotated[int | None, typer.Option("--dense-epochs", min=1, help="Epochs of dense training.")]

_DEFAULT_MODEL = "maestro_edge.recipes.models:resnet8"
_TIMED = ("executorch", "litert")


def main() -> None:
    """Entry point of `maestro-edge`; models of the current folder can be named."""
    sys.path.insert(0, "")
    app()


@functools.cache
def _console() -> Console:
    """Standard output under another number: converters' noise on 1 and 2 is cut off, this is not."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 120
    return Console(file=os.fdopen(os.dup(1), "w"), highlight=False, width=width)


def _fail(message: str) -> None:
    typer.echo(f"maestro-edge: {' '.join(message.split())}", err=True)
    raise typer.Exit(1)


def _command(function: Callable[P, T]) -> Callable[P, T]:
    """Expected failures and Ctrl-C become one line and exit code 1."""

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except MaestroError as error:
            _fail(str(error))
        except OSError as error:
            _fail(f"{error.filename or 'system'}: {error.strerror or error}")
        except KeyboardInterrupt:
            _fail("interrupted; the same command goes on where it stopped")
        finally:
            if _console.cache_info().currsize:
                _console().file.close()
                _console.cache_clear()
        raise AssertionError

    return app.command()(guarded)


@contextmanager
def _steps() -> Iterator[Callable[[str], Progress]]:
    """A progress display; the yielded function begins a step and returns its callback (done, total, what)."""
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("[bold]{task.fields[title]:<20}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    console = _console()
    noted: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        noted.append(signum)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        with Bars(*columns, console=console, redirect_stdout=False, redirect_stderr=False) as bars:

            def begin(title: str) -> Progress:
                task = bars.add_task("", total=1, title=title)

                def show(done: int, total: int, what: str) -> None:
                    bars.update(task, completed=done, total=total, description=what)
                    if noted:
                        # A converter's C++ swallowed the exception that was raised inside of it.
                        raise KeyboardInterrupt

                return show

            yield begin
    finally:
        signal.signal(signal.SIGINT, before)


@_command
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
    budgets = _budgets(budget_ms)
    from maestro_edge.recipes.demo import DENSE_TRAINING, NESTED_TRAINING, run_demo
    from maestro_edge.recipes.run import create, remove
    from maestro_edge.recipes.steps import load_runtimes, require_report
    from maestro_edge.terminal import variants_table

    timed, untimed = load_runtimes(runtime or _TIMED), load_runtimes(["coreml"])
    require_report()
    if fresh:
        remove(out)
    run = create(out, data=data, seed=seed)
    _console().print(_data_line(run))
    with _steps() as step, _device("local") as device:
        manifest, log = run_demo(
            run,
            device,
            timed,
            untimed,
            profiles=profiles,
            protocol=_protocol(threads),
            budgets_ms=budgets,
            dense=_epochs(DENSE_TRAINING, dense_epochs),
            nested=_epochs(NESTED_TRAINING, epochs),
            step=step,
        )
    for line in log:
        _console().print(line)
    _console().print(variants_table(manifest))
    _console().print(f"bundle  {out / 'bundle'}\nreport  {out / 'report.html'}")


@_command
def data(source: Annotated[str, typer.Argument(help="As for --data.")] = "digits", seed: Seed = 0) -> None:
    """Read a data set and show its split into training, validation and test."""
    from maestro_edge.recipes.data import load

    found = load(source, seed=seed)
    shape = "x".join(map(str, found.train.images.shape[1:]))
    _console().print(
        f"{source}: {len(found.train)} training, {len(found.validation)} validation, {len(found.test)} test "
        f"images of {shape}, {len(found.labels)} classes"
    )


@_command
def order(model: ModelName = _DEFAULT_MODEL, data: DataSource = "digits", seed: Seed = 0) -> None:
    """Show which layers become ordered, which stay dense and why, and that the function is kept."""
    import torch

    from maestro_edge.ordered import explain
    from maestro_edge.ordered import order as make_ordered
    from maestro_edge.recipes.run import Run, RunFacts

    run = Run(Path(), RunFacts(data=data, model=model, seed=seed))
    dense = run.new_model().eval()
    from rich.table import Table

    table = Table("layer", "kind", "ordered")
    for choice in explain(dense):
        table.add_row(choice.name, choice.kind, "yes" if choice.ordered else f"no: {choice.reason}")
    _console().print(table)
    inputs = run.data.normalise(run.data.train.images[:8])
    with torch.no_grad():
        error = (make_ordered(dense)(inputs) - dense(inputs)).abs().max().item()
    _console().print(f"largest difference between the ordered model and the dense one: {error:.2g}")


@_command
def train(
    model: ModelName = _DEFAULT_MODEL,
    data: DataSource = "digits",
    out: Annotated[Path, typer.Option(help="Run folder; an interrupted training goes on there.")] = Path(
        "runs/train"
    ),
    epochs: Epochs = None,
    dense_epochs: DenseEpochs = None,
    weights: Annotated[
        Path | None, typer.Option(help="Trained dense weights (.safetensors) to start from.")
    ] = None,
    sampler: Annotated[
        Literal["sandwich", "pairs"],
        typer.Option(help="sandwich: cut all layers together; pairs: the paper's, from scratch."),
    ] = "sandwich",
    penalty: Annotated[float, typer.Option(min=0, help="λ of the group lasso, normalised per layer.")] = 0.0,
    seed: Seed = 0,
) -> None:
    """Train dense (or start from weights), order the layers, and train all ranks together."""
    from maestro_edge.recipes.demo import DENSE_TRAINING, NESTED_TRAINING, PAPER_TRAINING
    from maestro_edge.recipes.run import create
    from maestro_edge.recipes.steps import train_run

    run = create(out, data=data, model=model, seed=seed)
    nested = PAPER_TRAINING if sampler == "pairs" else NESTED_TRAINING
    nested = _epochs(nested.model_copy(update={"penalty": penalty, "seed": seed}), epochs)
    dense = None if sampler == "pairs" or weights else _epochs(DENSE_TRAINING, dense_epochs)
    with _steps() as step:
        scores = train_run(run, dense=dense, nested=nested, weights=weights, progress=step("train"))
    for name, score in scores.items():
        _console().print(f"{name:8} validation loss {score.loss:.3f}, top-1 {100 * score.top1:.1f} %")
    ranks = ", ".join(f"{name} {rank}" for name, rank in run.checkpoint_ranks().items())
    _console().print(f"ranks    {ranks}\nsaved    {out / 'ordered'}")


@_command
def devices() -> None:
    """List what can be measured on, and its runtimes."""
    from rich.table import Table

    from maestro_edge.devices import connect, discover
    from maestro_edge.errors import MissingExtra
    from maestro_edge.runtimes import RUNTIMES, load

    table = Table("device", "soc", "cores", "os", "governor", "temperature", "runtimes")
    for name in discover():
        facts = connect(name).facts()
        found = []
        for runtime in map(load, RUNTIMES):
            try:
                found.append(f"{runtime.name} {runtime.version}")
            except MissingExtra as error:
                found.append(f"{runtime.name}: {error}")
        heat = "not readable" if facts.temperature_c is None else f"{facts.temperature_c:.0f} °C"
        governor = facts.governor or "not readable"
        table.add_row(
            f"{name} ({facts.name})", facts.soc, str(facts.cores), facts.os, governor, heat, "\n".join(found)
        )
    _console().print(table)


@_command
def profile(
    run: RunFolder,
    runtime: Timed = None,
    device: DeviceName = "local",
    profiles: Profiles = Path("profiles"),
    threads: Threads = 1,
    check: Annotated[
        int, typer.Option(min=0, help="Measure this many random networks and print the prediction's error.")
    ] = 0,
    model: OwnModel = None,
) -> None:
    """Measure every distinct layer at its ranks on a device, and write the latency table."""
    from maestro_edge.recipes.run import open_run
    from maestro_edge.recipes.steps import check_prediction, load_runtimes, profile_run

    runtimes, opened = load_runtimes(runtime or _TIMED), open_run(run, model=model)
    with _steps() as step, _device(device) as connected:
        for item in runtimes:
            table = profile_run(
                opened,
                item,
                connected,
                profiles=profiles,
                protocol=_protocol(threads),
                progress=step(f"profile {item.name}"),
            )
            _console().print(_table_line(table, profiles))
            if check:
                found = check_prediction(
                    opened, table, item, connected, count=check, progress=step(f"check {item.name}")
                )
                _console().print(
                    f"{table.title}: prediction against measurement over {check} random rank assignments: "
                    f"MAPE {100 * found.mape:.1f} %, worst {100 * found.worst:.1f} %; the dense network takes "
                    f"{100 * found.drift:+.1f} % against its time in the table"
                )


@_command
def plan(
    run: RunFolder,
    budget_ms: Annotated[list[str], typer.Option(help="Latency budget in milliseconds; repeat it.")],
    runtime: Timed = None,
    device: DeviceName = "local",
    profiles: Profiles = Path("profiles"),
    threads: Threads = 1,
    model: OwnModel = None,
) -> None:
    """Choose every layer's rank under each budget; prints what each layer costs."""
    budgets = _budgets(budget_ms)
    from maestro_edge.recipes.run import open_run
    from maestro_edge.recipes.steps import load_runtimes, load_table, plan_run, sensitivity_of
    from maestro_edge.terminal import plan_table

    runtimes, opened = load_runtimes(runtime or _TIMED), open_run(run, model=model)
    with _device(device) as connected:
        tables = [load_table(opened, item, connected, profiles=profiles, threads=threads) for item in runtimes]
    with _steps() as step:
        sensitivity = sensitivity_of(opened, tables, progress=step("sensitivity"))
    for table in tables:
        for made in plan_run(opened, table, sensitivity, budgets):
            _console().print(plan_table(made))


@_command
def export(
    run: RunFolder,
    runtime: Annotated[
        list[str] | None, typer.Option("--runtime", help="executorch, litert or coreml; default all.")
    ] = None,
    device: DeviceName = "local",
    model: OwnModel = None,
) -> None:
    """Write every plan and the dense network for each runtime; each file is run and compared first."""
    from maestro_edge.recipes.run import open_run
    from maestro_edge.recipes.steps import load_runtimes
    from maestro_edge.recipes.variants import export_run
    from maestro_edge.terminal import variants_table

    runtimes, opened = load_runtimes(runtime or (*_TIMED, "coreml")), open_run(run, model=model)
    with _steps() as step, _device(device) as connected:
        manifest = export_run(opened, connected, runtimes, progress=step("export"))
    _console().print(variants_table(manifest))


@_command
def verify(
    run: RunFolder,
    runtime: Timed = None,
    device: DeviceName = "local",
    profiles: Profiles = Path("profiles"),
    threads: Threads = 1,
    model: OwnModel = None,
) -> None:
    """Time the exported files on the device; what misses its budget is planned again once."""
    from maestro_edge.recipes.run import open_run
    from maestro_edge.recipes.steps import load_runtimes
    from maestro_edge.recipes.variants import verify_run
    from maestro_edge.terminal import variants_table
    from maestro_edge.values import Manifest

    runtimes, opened = load_runtimes(runtime or _TIMED), open_run(run, model=model)
    log: list[str] = []
    with _steps() as step, _device(device) as connected:
        for item in runtimes:
            log += verify_run(
                opened,
                item,
                connected,
                profiles=profiles,
                protocol=_protocol(threads),
                progress=step(f"verify {item.name}"),
            )[1]
    for line in log:
        _console().print(line)
    _console().print(variants_table(Manifest.load(opened.manifest_path)))


@_command
def bundle(
    run: RunFolder,
    out: Annotated[Path | None, typer.Option(help="Folder to make; default RUN/bundle.")] = None,
    model: OwnModel = None,
) -> None:
    """Collect the exported files and their manifest in the folder that an app reads."""
    from maestro_edge.recipes.run import open_run
    from maestro_edge.recipes.steps import bundle_run

    _console().print(f"bundle  {bundle_run(open_run(run, model=model), out)}")


@_command
def report(
    run: RunFolder,
    device: DeviceName = "local",
    profiles: Profiles = Path("profiles"),
    threads: Threads = 1,
    model: OwnModel = None,
) -> None:
    """Write one HTML page with the figures of a run."""
    from maestro_edge.recipes.run import open_run
    from maestro_edge.recipes.steps import load_runtimes, load_table, report_run

    opened = open_run(run, model=model)
    names = sorted({item.runtime for item in opened.plans()})
    with _device(device) as connected:
        tables = [
            load_table(opened, item, connected, profiles=profiles, threads=threads)
            for item in load_runtimes(names)
        ]
    _console().print(f"report  {report_run(opened, tables)}")


def _budgets(given: list[str] | None) -> tuple[float, ...]:
    from maestro_edge.values import check_budget

    return tuple(check_budget(budget) for budget in given or ())


def _epochs(settings: Any, epochs: int | None) -> Any:
    return settings if epochs is None else settings.model_copy(update={"epochs": epochs})


def _protocol(threads: int) -> Any:
    from maestro_edge.runtimes import MeasuringProtocol

    return MeasuringProtocol(threads=threads)


@contextmanager
def _device(name: str) -> Iterator[Any]:
    from maestro_edge.devices import connect

    device = connect(name)
    try:
        yield device
    finally:
        device.close()


def _data_line(run: Run) -> str:
    found = run.data
    return (
        f"{run.facts.data}: {len(found.train)} training, {len(found.validation)} validation, "
        f"{len(found.test)} test images, {len(found.labels)} classes; model {run.facts.model}"
    )


def _table_line(table: LatencyTable, profiles: Path) -> str:
    fit = table.calibrations[0]
    return (
        f"{table.title}: {len(table.rows)} rows, {fit.rest_ms:.3f} ms outside the layers, whole networks "
        f"within {100 * fit.loo_mape:.1f} % (leave one out)  →  {profiles / table.file_name}"
    )


if __name__ == "__main__":
    main()
