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
    from maestro_edge.training import Score, TrainSettings
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
    """Standard output under another number: converters' noise on 1 and 2 is cut off, this is not.

    Of several processes that torchrun started, the first prints.
    """
    from rich.console import Console

    if os.environ.get("RANK", "0") != "0":
        return Console(quiet=True)

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
    shape = "x".join(map(str, found.train.inputs.shape[1:]))
    _console().print(
        f"{source}: {len(found.train)} training, {len(found.validation)} validation, {len(found.test)} test "
        f"{'rows' if found.is_text else 'images'} of {shape}, {len(found.labels)} classes"
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
    inputs = run.data.normalise(run.data.train.inputs[:8])
    with torch.no_grad():
        error = (make_ordered(dense)(inputs) - dense(inputs)).abs().max().item()
    _console().print(f"largest difference between the ordered model and the dense one: {error:.2g}")


@_command
def recipes() -> None:
    """List the recipes that 'train' knows, the paper's experiments among them."""
    from rich.table import Table

    from maestro_edge.recipes.paper import RECIPES

    table = Table("recipe", "data", "what")
    for name, make in RECIPES.items():
        table.add_row(name, f"{make().data}:PATH", make().description)
    _console().print(table)


@_command
def train(
    model: Annotated[
        str, typer.Argument(help="A recipe (see 'recipes'), or a package.module:function, hf:NAME or timm:NAME.")
    ] = _DEFAULT_MODEL,
    data: Annotated[
        str | None,
        typer.Option(
            help="digits, or KIND:PATH as for 'data'; a recipe takes the PATH alone.", show_default="digits"
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Run folder; an interrupted training goes on there.")] = Path(
        "runs/train"
    ),
    epochs: Epochs = None,
    dense_epochs: DenseEpochs = None,
    weights: Annotated[
        Path | None, typer.Option(help="Trained dense weights (.safetensors) to start from.")
    ] = None,
    sampler: Annotated[
        Literal["alternating", "sandwich", "shared", "independent", "pairs"] | None,
        typer.Option(help="Which ranks a step runs at; pairs is the paper's, from scratch."),
    ] = None,
    target_macs: Annotated[
        float | None, typer.Option(help="Land on this many multiply-accumulates, in 1e9.")
    ] = None,
    target_params: Annotated[int | None, typer.Option(help="Land on this many parameters.")] = None,
    target_bytes: Annotated[int | None, typer.Option(help="Land on this many bytes of fp32 weights.")] = None,
    target_ms: Annotated[
        float | None, typer.Option(help="Land on these milliseconds of --runtime's table of the run in --out.")
    ] = None,
    penalty: Annotated[float, typer.Option(min=0, help="λ of the group lasso, chosen by hand.")] = 0.0,
    penalty_form: Annotated[
        Literal["normalised", "raw"], typer.Option(help="λ per layer's start, or of the paper's plain sum.")
    ] = "normalised",
    way: Annotated[
        Literal["ordered", "dense", "paper"],
        typer.Option("--as", help="A recipe's training: ours, its dense network, or the paper's method."),
    ] = "ordered",
    lr: Annotated[float | None, typer.Option(help="Peak learning rate, instead of the recipe's.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Instead of the recipe's.")] = None,
    dense_share: Annotated[
        float | None, typer.Option(min=0, max=0.99, help="Share of a recipe's epochs before it is ordered.")
    ] = None,
    track: Annotated[str | None, typer.Option(help="A recipe's tracker, such as tensorboard.")] = None,
    runtime: Annotated[str, typer.Option(help="Whose table --target-ms is meant on.")] = "executorch",
    profiles: Profiles = Path("profiles"),
    seed: Seed = 0,
) -> None:
    """Train a recipe or your own model: dense first, then all ranks together, down to a target if one is given."""
    targets = {"macs": target_macs and 1e9 * target_macs, "params": target_params, "size_bytes": target_bytes}
    given = {name: value for name, value in {**targets, "ms": target_ms}.items() if value is not None}
    if len(given) > 1:
        _fail(f"{len(given)} targets ({', '.join(given)}): give one of --target-macs, -params, -bytes and -ms")
    if given and penalty:
        _fail("a target chooses λ itself: drop --penalty or the target")
    changes: dict[str, Any] = {"epochs": epochs, "lr": lr, "batch_size": batch_size, "sampler": sampler}
    changes = {**{name: value for name, value in changes.items() if value is not None}, "seed": seed}
    if penalty:
        changes |= {"penalty": penalty, "penalty_form": penalty_form, "target": None}
    if given:
        changes |= {"target": given}
    if ":" in model:
        dense_changes = {"lr": lr, "batch_size": batch_size}
        _train_model(
            model, data or "digits", out, changes, dense_changes, dense_epochs, weights, runtime, profiles
        )
        return
    if dense_share is not None:
        changes["dense_share"] = dense_share
    _train_recipe(model, data, out, changes, way, track, runtime, profiles)


def _train_recipe(
    name: str,
    data: str | None,
    out: Path,
    changes: dict[str, Any],
    way: Literal["ordered", "dense", "paper"],
    track: str | None,
    runtime: str,
    profiles: Path,
) -> None:
    from maestro_edge.recipes.paper import RECIPES
    from maestro_edge.recipes.run import create
    from maestro_edge.recipes.steps import train_recipe

    make = RECIPES.get(name.replace("-", "_"))
    if make is None:
        _fail(f"no recipe {name!r}: choose {', '.join(RECIPES)}, or give package.module:function")
        return
    recipe = make()
    if data is None:
        _fail(f"recipe {name} needs its data: --data PATH of {recipe.data}")
        return
    source = data if data.startswith(f"{recipe.data}:") or not Path(data).exists() else f"{recipe.data}:{data}"
    settings = _changed(getattr(recipe, way), changes)
    run = create(out, data=source, model=recipe.model, seed=settings.seed)
    table = _target_table(run, settings, runtime, profiles)
    with _steps() as step:
        found = train_recipe(
            run, settings, ordered=way != "dense", table=table, tracker=track, progress=step(recipe.name)
        )
    if found.dense is not None:
        _console().print(f"dense warm-up        {_score_text(found.dense, run.data.is_text)}")
    _console().print(f"at the learned ranks {_score_text(found.score, run.data.is_text)}")
    sizes = f"{found.params:,} params, {found.macs / 1e9:.4g} GMACs, {4 * found.params / 1e6:.4g} MB"
    _console().print(f"size                 {sizes} (target: {settings.target or 'none'})")
    _print_ranks(found.ranks, out / ("ordered" if way != "dense" else "dense"))


def _train_model(
    model: str,
    data: str,
    out: Path,
    changes: dict[str, Any],
    dense_changes: dict[str, Any],
    dense_epochs: int | None,
    weights: Path | None,
    runtime: str,
    profiles: Path,
) -> None:
    from maestro_edge.recipes.demo import DENSE_TRAINING, NESTED_TRAINING, PAPER_TRAINING
    from maestro_edge.recipes.run import create
    from maestro_edge.recipes.steps import train_run

    paper = changes.get("sampler") == "pairs"
    nested = _changed(PAPER_TRAINING if paper else NESTED_TRAINING, changes)
    run = create(out, data=data, model=model, seed=nested.seed)
    dense_changes = {"epochs": dense_epochs, **dense_changes}
    dense_changes = {name: value for name, value in dense_changes.items() if value is not None}
    dense = None if paper or weights else _changed(DENSE_TRAINING, dense_changes)
    table = _target_table(run, nested, runtime, profiles)
    with _steps() as step:
        scores = train_run(run, dense=dense, nested=nested, weights=weights, table=table, progress=step("train"))
    for name, score in scores.items():
        _console().print(f"{name:8} {_score_text(score, run.data.is_text)}")
    _print_ranks(run.checkpoint_ranks(), out / "ordered")


def _changed(settings: TrainSettings, changes: dict[str, Any]) -> TrainSettings:
    from pydantic import ValidationError

    try:
        return type(settings).model_validate({**settings.model_dump(), **changes})
    except ValidationError as error:
        first = error.errors()[0]
        _fail(f"{'.'.join(map(str, first['loc']))}: {first['msg']} (given {first['input']!r})")
        raise


def _target_table(run: Run, settings: TrainSettings, runtime: str, profiles: Path) -> LatencyTable | None:
    if settings.target is None or settings.target.ms is None:
        return None
    from maestro_edge.recipes.steps import load_runtimes, load_table

    with _device("local") as device:
        return load_table(run, load_runtimes([runtime])[0], device, profiles=profiles, threads=1)


def _score_text(score: Score, is_text: bool) -> str:
    quality = f"perplexity {score.perplexity:.2f}" if is_text else f"top-1 {100 * score.top1:.1f} %"
    return f"validation loss {score.loss:.3f}, {quality}"


def _print_ranks(ranks: dict[str, int], folder: Path) -> None:
    text = ", ".join(f"{name} {rank}" for name, rank in ranks.items()) or "none: a dense network"
    _console().print(f"ranks    {text}\nsaved    {folder}")


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
