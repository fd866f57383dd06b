"""The command line: the pipeline's verbs on a run folder. The only module that prints."""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal, ParamSpec, TypeVar

import typer
from typer.core import TyperGroup

from maestro_edge.cli_profiles import COMMANDS, Step
from maestro_edge.errors import MaestroError

if TYPE_CHECKING:
    from rich.console import Console

    from maestro_edge.recipes.run import Progress, Run
    from maestro_edge.training import Score, TrainSettings
    from maestro_edge.values import Budget, LatencyTable, Layout, Network, Precision, Quantity

P = ParamSpec("P")
T = TypeVar("T")

_PIPELINE = (
    *("demo", "data", "order", "recipes", "train", "devices", "runners", "profile", "profiles"),
    *("plan", "fleet", "export", "verify", "deploy", "sweep", "bundle", "report"),
)


class _Pipeline(TyperGroup):
    """Commands in the order of the work: typer puts those with commands of their own last."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=_PIPELINE.index)


app = typer.Typer(
    cls=_Pipeline,
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
Timed = Annotated[
    list[str] | None,
    typer.Option("--runtime", help="executorch, litert or onnx; repeat it. [default: executorch, litert]"),
]
BudgetMs = Annotated[
    list[str] | None, typer.Option("--budget-ms", help="Median milliseconds of a run; repeat it for more plans.")
]
BudgetP90 = Annotated[str | None, typer.Option(help="Milliseconds that 9 of 10 runs keep; for every plan.")]
BudgetKb = Annotated[str | None, typer.Option(help="Size of the file, in 1,000 bytes; for every plan.")]
BudgetMemory = Annotated[str | None, typer.Option(help="Peak memory of the process, in 1e6 bytes.")]
BudgetMmacs = Annotated[str | None, typer.Option(help="Multiply-accumulates of a run, in 1e6; for every plan.")]
BudgetParams = Annotated[str | None, typer.Option(help="Parameters; for every plan.")]
BudgetMj = Annotated[str | None, typer.Option(help="Millijoules of a run, where the table has them.")]
Precisions = Annotated[
    list[str] | None,
    typer.Option(
        "--precision",
        help="fp32, fp16, int8-dynamic, int8-static; on Core ML palettised-6bit, int4-weights too; repeat it to "
        "have plans in each. [default: fp32]",
    ),
]
Rounds = Annotated[int, typer.Option(min=1, max=5, help="Measurements at most; with 1 nothing is planned again.")]
Seed = Annotated[int, typer.Option(help="Seeds data split, weights and sampling.")]
Epochs = Annotated[int | None, typer.Option("--epochs", min=1, help="Epochs of nested training.")]
DenseEpochs = Annotated[int | None, typer.Option("--dense-epochs", min=1, help="Epochs of dense training.")]

_DEFAULT_MODEL = "maestro_edge.recipes.models:resnet8"
_TIMED = ("executorch", "litert")
_CLAIM_S = 600.0
"""How long a device that another session measures on is waited for."""


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


def _guarded(function: Callable[P, T]) -> Callable[P, T]:
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

    return guarded


def _command(function: Callable[P, T]) -> Callable[P, T]:
    return app.command()(_guarded(function))


def _printing(function: Callable[P, Iterator[object]]) -> Callable[P, None]:
    """Print what a command yields, and what its steps return."""

    @functools.wraps(function)
    def printing(*args: P.args, **kwargs: P.kwargs) -> None:
        for shown in function(*args, **kwargs):
            if isinstance(shown, Step):
                with _steps() as step:
                    shown = shown.work(step(shown.title))
            _console().print(shown)

    return printing


profiles_app = typer.Typer(
    help="Look at, compare, check and import latency tables; probes for iPhones.", no_args_is_help=True
)
for _name, _function in COMMANDS.items():
    profiles_app.command(_name)(_guarded(_printing(_function)))
app.add_typer(profiles_app, name="profiles")


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
    chain_ms: Annotated[
        bool, typer.Option("--chain-ms", help="Train the sizes that are cheap on --runtime's table, not in MACs.")
    ] = False,
    runtime: Annotated[str, typer.Option(help="Whose table --target-ms and --chain-ms mean.")] = "executorch",
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
            model,
            data or "digits",
            out,
            changes,
            dense_changes,
            dense_epochs,
            weights,
            chain_ms,
            runtime,
            profiles,
        )
        return
    if dense_share is not None:
        changes["dense_share"] = dense_share
    _train_recipe(model, data, out, changes, way, track, chain_ms, runtime, profiles)


def _train_recipe(
    name: str,
    data: str | None,
    out: Path,
    changes: dict[str, Any],
    way: Literal["ordered", "dense", "paper"],
    track: str | None,
    chain_ms: bool,
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
    table = _measured_table(run, settings, chain_ms, runtime, profiles)
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
    chain_ms: bool,
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
    table = _measured_table(run, nested, chain_ms, runtime, profiles)
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


def _measured_table(
    run: Run, settings: TrainSettings, chain_ms: bool, runtime: str, profiles: Path
) -> LatencyTable | None:
    if not chain_ms and (settings.target is None or settings.target.ms is None):
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


devices_app = typer.Typer(help="List what can be measured on, its runtimes, and what is missing.")
app.add_typer(devices_app, name="devices")


@devices_app.callback(invoke_without_command=True)
@_guarded
def devices(
    context: typer.Context,
    device: Annotated[
        list[str] | None, typer.Option(help="Also look at this one, such as ssh:pi@raspberrypi; repeat it.")
    ] = None,
) -> None:
    """List what can be measured on, its runtimes, and what is missing."""
    if context.invoked_subcommand is not None:
        return
    from maestro_edge.profiling.inventory import list_devices
    from maestro_edge.terminal import devices_table

    _console().print(devices_table(list_devices(device or ())))


@devices_app.command("clean")
@_guarded
def clean_device(device: Annotated[str, typer.Argument(help="Such as ssh:pi@raspberrypi or adb:SERIAL.")]) -> None:
    """Remove everything that any session left on a device; what is measured there now fails."""
    from maestro_edge.devices import connect
    from maestro_edge.devices.claims import clean

    clean(connect(device))
    _console().print(f"{device}: nothing of maestro-edge is left there")


@_command
def runners() -> None:
    """Build the native ExecuTorch runner for phones and boards without Python, and show where it is."""
    from maestro_edge.runtimes import digest, size_bytes
    from maestro_edge.runtimes.native import ARCHITECTURES, build

    for arch in ARCHITECTURES:
        folder = build(arch)
        megabytes = size_bytes(folder) / 1e6
        _console().print(f"{arch}  {megabytes:.1f} MB  sha256 {digest(folder)}\n  {folder}", soft_wrap=True)


@_command
def profile(
    run: RunFolder,
    runtime: Timed = None,
    device: Annotated[
        list[str] | None, typer.Option(help="Where to measure; repeat it for several at once. [default: local]")
    ] = None,
    profiles: Profiles = Path("profiles"),
    threads: Threads = 1,
    precision: Annotated[
        Literal["fp32", "fp16", "int8-dynamic", "int8-static"],
        typer.Option(help="Of the files that are measured."),
    ] = "fp32",
    check: Annotated[
        int, typer.Option(min=0, help="Measure this many random networks and print the prediction's error.")
    ] = 0,
    governor: Annotated[
        str | None, typer.Option(help="Set this frequency governor meanwhile (needs root there), then restore it.")
    ] = None,
    cool_to: Annotated[
        float | None, typer.Option(help="Wait before each run until the device is at most this warm, in °C.")
    ] = None,
    emulated: Annotated[
        bool, typer.Option(help="The devices are emulated: mark their tables, and repeat nothing for calm.")
    ] = False,
    gauge: Annotated[
        bool,
        typer.Option("--gauge", help="Also measure layers in gauge form, which plans then choose where faster."),
    ] = False,
    model: OwnModel = None,
) -> None:
    """Measure every distinct layer at its ranks on one or more devices, and write the latency tables."""
    from concurrent.futures import ThreadPoolExecutor

    from maestro_edge.recipes.run import open_run
    from maestro_edge.recipes.steps import load_runtimes

    load_runtimes(runtime or _TIMED)
    open_run(run, model=model)
    names = device or ["local"]
    protocol = _protocol(threads).model_copy(update={"cool_to_c": cool_to})
    protocol = protocol.flow_only() if emulated else protocol
    with _steps() as step, ThreadPoolExecutor(len(names)) as pool:

        def one(name: str) -> list[str]:
            # A thread of its own works on a model of its own: tracing hooks into its modules.
            own = open_run(run, model=model)
            return _profile_on(
                name,
                own,
                runtime,
                profiles,
                protocol,
                precision,
                check,
                governor,
                step,
                emulated=emulated,
                gauge=gauge,
            )

        for found in [pool.submit(one, name) for name in names]:
            for line in found.result():
                _console().print(line)


def _profile_on(
    name: str,
    run: Run,
    runtimes: list[str] | None,
    profiles: Path,
    protocol: Any,
    precision: Any,
    check: int,
    governor: str | None,
    step: Callable[[str], Progress],
    *,
    emulated: bool,
    gauge: bool,
) -> list[str]:
    from maestro_edge.profiling import governor as set_governor
    from maestro_edge.recipes.steps import check_prediction, load_runtimes, profile_run

    lines = []
    with _device(name) as device, set_governor(device, governor):
        for item in load_runtimes(runtimes or _TIMED):
            title = item.name if name == "local" else f"{item.name} on {name}"
            table = profile_run(
                run,
                item,
                device,
                profiles=profiles,
                protocol=protocol,
                precision=precision,
                emulated=emulated,
                gauge=gauge,
                progress=step(title),
            )
            lines.append(_table_line(table, run.network, profiles))
            lines += [f"[yellow]{doubt}[/yellow]" for doubt in table.doubts(run.network)]
            if check:
                found = check_prediction(
                    run, table, item, device, count=check, protocol=protocol, progress=step(f"check {title}")
                )
                lines.append(
                    f"{table.title}: prediction against measurement over {check} random rank assignments: "
                    f"MAPE {100 * found.mape:.1f} %, worst {100 * found.worst:.1f} %; the dense network takes "
                    f"{100 * found.drift:+.1f} % against its time in the table (MAPE at equal speed "
                    f"{100 * found.mape_at_equal_speed:.1f} %)"
                )
    return lines


@_command
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
    device: DeviceName = "local",
    profiles: Profiles = Path("profiles"),
    threads: Threads = 1,
    model: OwnModel = None,
) -> None:
    """Choose every layer's rank under each budget; prints what each layer costs and the gap to the optimum."""
    budgets = _plan_budgets(
        budget_ms, budget_p90_ms, budget_kb, budget_memory_mb, budget_mmacs, budget_params, budget_mj
    )
    from maestro_edge.recipes.run import open_run
    from maestro_edge.recipes.steps import load_runtimes, load_table, plan_run, sensitivity_of
    from maestro_edge.terminal import plan_table

    precisions = _precisions(precision)
    runtimes, opened = load_runtimes(runtime or _TIMED), open_run(run, model=model)
    with _device(device, alone=False) as connected:
        tables = [
            load_table(opened, item, connected, profiles=profiles, threads=threads, precision=each)
            for item in runtimes
            for each in precisions
        ]
    with _steps() as step:
        sensitivity = sensitivity_of(opened, tables, progress=step("sensitivity"))
    for table in tables:
        for doubt in table.doubts(opened.network):
            _console().print(f"[yellow]{doubt}[/yellow]")
        for made in plan_run(opened, table, sensitivity, budgets, nested=nested, exact=exact):
            for hint in made.hints():
                _console().print(f"[yellow]{hint}[/yellow]")
            _console().print(plan_table(made))


@_command
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
    budgets = _budgets(budget_ms)
    from maestro_edge.recipes.fleets import export_fleet
    from maestro_edge.recipes.run import open_run
    from maestro_edge.recipes.steps import fleet_run, sensitivity_of
    from maestro_edge.terminal import fleet_table
    from maestro_edge.values import LatencyTable

    opened, tables = open_run(run, model=model), [LatencyTable.load(path) for path in table]
    if len(budgets) not in (1, len(tables)):
        _fail(f"{len(tables)} tables and {len(budgets)} budgets: give one budget for all, or one for each")
    with _steps() as step:
        sensitivity = sensitivity_of(opened, tables, progress=step("sensitivity"))
    each = budgets if len(budgets) > 1 else budgets * len(tables)
    groups = fleet_run(opened, tables, sensitivity, each, tolerance=tolerance)
    for found in tables:
        for doubt in found.doubts(opened.network):
            _console().print(f"[yellow]{doubt}[/yellow]")
    _console().print(fleet_table([group.plans for group in groups]))
    _console().print(f"plans   {run / 'fleet'}")
    if export:
        with _steps() as step:
            path = export_fleet(opened, groups, [found.device for found in tables], progress=step("export"))
        _console().print(f"files   {path}")


@_command
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
        bool, typer.Option("--combine", help="Also one Core ML package, a function for each Core ML file.")
    ] = False,
    device: DeviceName = "local",
    model: OwnModel = None,
) -> None:
    """Write every plan and the dense network for each runtime; each file is run and compared first."""
    from maestro_edge.recipes.run import open_run
    from maestro_edge.recipes.steps import load_runtimes
    from maestro_edge.recipes.variants import combine_run, export_run
    from maestro_edge.terminal import delegation_lines, variants_table

    fed = _layout(layout)
    rivals = _precisions(rival, ())
    runtimes, opened = load_runtimes(runtime or (*_TIMED, "coreml")), open_run(run, model=model)
    with _steps() as step, _device(device, alone=False) as connected:
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
            log.append(f"all Core ML files in one: {combine_run(opened, manifest)}")
    for line in (*log, *delegation_lines(manifest)):
        _console().print(line)
    _console().print(variants_table(manifest))


@_command
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
    from maestro_edge.recipes.steps import load_runtimes
    from maestro_edge.terminal import variants_table

    runtimes, opened = load_runtimes(runtime or _TIMED), open_run(run, model=model)
    if fleet:
        with _steps() as step, _device(device) as connected:
            timed = time_fleet(opened, runtimes, connected, protocol=_protocol(threads), progress=step("verify"))
        _console().print(variants_table(timed))
        return
    with _steps() as step, _device(device) as connected:
        log = [
            line
            for item in runtimes
            for line in _verify_on(opened, item, connected, profiles, _protocol(threads), rounds, step)
        ]
    _print_verified(opened, log)


@_command
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
    rounds: Rounds = 5,
    model: OwnModel = None,
) -> None:
    """Profile if need be, plan, export and measure, again until every budget holds on the device or cannot."""
    budgets = _plan_budgets(
        budget_ms, budget_p90_ms, budget_kb, budget_memory_mb, budget_mmacs, budget_params, budget_mj
    )
    from maestro_edge.recipes.deploy import table_of
    from maestro_edge.recipes.run import open_run
    from maestro_edge.recipes.steps import clear_plans, load_runtimes, plan_run, sensitivity_of
    from maestro_edge.recipes.variants import export_run

    precisions = _precisions(precision)
    runtimes, opened = load_runtimes(runtime or _TIMED), open_run(run, model=model)
    protocol = _protocol(threads)
    log: list[str] = []
    with _steps() as step, _device(device) as connected:
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
            for made in plan_run(opened, table, sensitivity, budgets, exact=exact):
                log += made.hints()
        log += export_run(opened, connected, runtimes, progress=step("export"))[1]
        for item in runtimes:
            log += _verify_on(opened, item, connected, profiles, protocol, rounds, step)
    _print_verified(opened, log)


@_command
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
    from maestro_edge.recipes.deploy import table_of
    from maestro_edge.recipes.run import open_run
    from maestro_edge.recipes.steps import load_runtimes, require_report, sensitivity_of
    from maestro_edge.recipes.sweep import sweep_run
    from maestro_edge.reporting import write_front
    from maestro_edge.terminal import front_table

    require_report()
    precisions = _precisions(precision)
    runtimes, opened = load_runtimes(runtime or _TIMED), open_run(run, model=model)
    opened.require_images("sweep")
    protocol = _protocol(threads)
    given: dict[str, Any] = {"profiles": profiles, "protocol": protocol}
    with _steps() as step, _device(device) as connected:
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
            _console().print(line)
        _console().print(front_table(front.variants, front.beaten))
        figure = write_front(run / f"sweep-{name}.png", front.variants, front.beaten)
        _console().print(f"front   {run / f'sweep-{name}.csv'}\nfigure  {figure}")


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
        _console().print(line)
    manifest = Manifest.load(run.manifest_path)
    _console().print(variants_table(manifest))
    missed = [variant.name for variant in manifest.variants if variant.missed]
    if missed:
        _fail(
            f"{', '.join(missed)}: over budget when measured: raise the budget, or train and profile lower ranks"
        )


@_command
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
    _console().print(f"bundle  {made}")


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
    made_on = sorted({(item.runtime, item.precision) for item in opened.plans()})
    with _device(device) as connected:
        tables = [
            load_table(
                opened, load_runtimes([name])[0], connected, profiles=profiles, threads=threads, precision=each
            )
            for name, each in made_on
        ]
    _console().print(f"report  {report_run(opened, tables)}")


def _budgets(given: list[str] | None) -> tuple[float, ...]:
    from maestro_edge.values import check_budget

    return tuple(check_budget(budget) for budget in given or ())


def _plan_budgets(ms: list[str] | None, *others: str | None) -> list[tuple[Budget, ...]]:
    """The budgets of each plan: one of `ms`, and all others."""
    from maestro_edge.values import UNITS, Budget, check_budget

    quantities: tuple[Quantity, ...] = ("p90_ms", "size_bytes", "memory_bytes", "macs", "params", "energy_mj")
    common = tuple(
        Budget(quantity=quantity, limit=UNITS[quantity][0] * check_budget(given, quantity))
        for quantity, given in zip(quantities, others, strict=True)
        if given is not None
    )
    if not ms and not common:
        _fail("no budget: give --budget-ms, or another --budget-… of 'maestro-edge plan --help'")
    return [(Budget(quantity="ms", limit=limit), *common) for limit in _budgets(ms)] or [common]


def _precisions(given: list[str] | None, default: Sequence[Precision] = ("fp32",)) -> Sequence[Precision]:
    from typing import get_args

    from maestro_edge.values import Precision

    known: dict[str, Precision] = {name: name for name in get_args(Precision)}
    unknown = [name for name in given or () if name not in known]
    if unknown:
        _fail(f"no precision {unknown[0]!r}: choose {', '.join(known)}")
    return [known[name] for name in given] if given else default


def _layout(given: str) -> Layout:
    known: dict[str, Layout] = {"nchw": "NCHW", "nhwc": "NHWC"}
    if given.lower() not in known:
        _fail(f"no layout {given!r}: choose {' or '.join(known)}")
    return known[given.lower()]


def _epochs(settings: Any, epochs: int | None) -> Any:
    return settings if epochs is None else settings.model_copy(update={"epochs": epochs})


def _protocol(threads: int) -> Any:
    from maestro_edge.runtimes import MeasuringProtocol

    return MeasuringProtocol(threads=threads)


@contextmanager
def _device(name: str, *, alone: bool = True) -> Iterator[Any]:
    """The device, held `alone` where something is measured; a browser's address is shown."""
    from contextlib import nullcontext

    from maestro_edge.devices import connect
    from maestro_edge.devices.claims import claim

    device = connect(name, announce=_announce)
    say = _console().print
    try:
        shared = not alone or name.startswith("browser")  # a page takes one session as it is
        with nullcontext() if shared else claim(device, wait_s=_CLAIM_S, waiting=say):
            yield device
    finally:
        device.close()


def _announce(url: str, qr_code: str) -> None:
    _console().print(f"open this page in the browser of the device that is to be measured:\n{url}")
    _console().print(qr_code, soft_wrap=True)


def _data_line(run: Run) -> str:
    found = run.data
    return (
        f"{run.facts.data}: {len(found.train)} training, {len(found.validation)} validation, "
        f"{len(found.test)} test images, {len(found.labels)} classes; model {run.facts.model}"
    )


def _table_line(table: LatencyTable, network: Network, profiles: Path) -> str:
    fit = table.calibration(network)
    return (
        f"{table.title}: {len(table.rows)} rows, {fit.rest_ms:.3f} ms outside the layers, whole networks "
        f"within {100 * fit.loo_mape:.1f} % (leave one out)  →  {profiles / table.file_name}"
    )


if __name__ == "__main__":
    main()
