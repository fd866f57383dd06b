"""From data and a network to an ordered one: data, order, recipes, train."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from maestro_edge.cli.console import claimed, command, console, fail, steps
from maestro_edge.cli.options import (
    DEFAULT_MODEL,
    DataSource,
    DenseEpochs,
    Epochs,
    ModelName,
    Profiles,
    Seed,
)

if TYPE_CHECKING:
    from maestro_edge.recipes.run import Run
    from maestro_edge.training import Score, TrainSettings
    from maestro_edge.values import LatencyTable


@command
def data(source: Annotated[str, typer.Argument(help="As for --data.")] = "digits", seed: Seed = 0) -> None:
    """Read a data set and show its split into training, validation and test."""
    from maestro_edge.recipes.data import load

    found = load(source, seed=seed)
    shape = "x".join(map(str, found.train.inputs.shape[1:]))
    console().print(
        f"{source}: {len(found.train)} training, {len(found.validation)} validation, {len(found.test)} test "
        f"{'rows' if found.is_text else 'images'} of {shape}, {len(found.labels)} classes"
    )


@command
def order(model: ModelName = DEFAULT_MODEL, data: DataSource = "digits", seed: Seed = 0) -> None:
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
    console().print(table)
    inputs = run.data.normalise(run.data.train.inputs[:8])
    with torch.no_grad():
        error = (make_ordered(dense)(inputs) - dense(inputs)).abs().max().item()
    console().print(f"largest difference between the ordered model and the dense one: {error:.2g}")


@command
def recipes() -> None:
    """List the recipes that 'train' knows, the paper's experiments among them."""
    from rich.table import Table

    from maestro_edge.recipes.paper import RECIPES

    table = Table("recipe", "data", "what")
    for name, make in RECIPES.items():
        table.add_row(name, f"{make().data}:PATH", make().description)
    console().print(table)


@command
def train(
    model: Annotated[
        str, typer.Argument(help="A recipe (see 'recipes'), or a package.module:function, hf:NAME or timm:NAME.")
    ] = DEFAULT_MODEL,
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
        fail(f"{len(given)} targets ({', '.join(given)}): give one of --target-macs, -params, -bytes and -ms")
    if given and penalty:
        fail("a target chooses λ itself: drop --penalty or the target")
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
    from maestro_edge.recipes.trainings import train_recipe

    make = RECIPES.get(name.replace("-", "_"))
    if make is None:
        fail(f"no recipe {name!r}: choose {', '.join(RECIPES)}, or give package.module:function")
        return
    recipe = make()
    if data is None:
        fail(f"recipe {name} needs its data: --data PATH of {recipe.data}")
        return
    source = data if data.startswith(f"{recipe.data}:") or not Path(data).exists() else f"{recipe.data}:{data}"
    settings = _changed(getattr(recipe, way), changes)
    run = create(out, data=source, model=recipe.model, seed=settings.seed)
    table = _measured_table(run, settings, chain_ms, runtime, profiles)
    with steps() as step:
        found = train_recipe(
            run, settings, ordered=way != "dense", table=table, tracker=track, progress=step(recipe.name)
        )
    if found.dense is not None:
        console().print(f"dense warm-up        {_score_text(found.dense, run.data.is_text)}")
    console().print(f"at the learned ranks {_score_text(found.score, run.data.is_text)}")
    sizes = f"{found.params:,} params, {found.macs / 1e9:.4g} GMACs, {4 * found.params / 1e6:.4g} MB"
    console().print(f"size                 {sizes} (target: {settings.target or 'none'})")
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
    from maestro_edge.recipes.trainings import train_run

    paper = changes.get("sampler") == "pairs"
    nested = _changed(PAPER_TRAINING if paper else NESTED_TRAINING, changes)
    run = create(out, data=data, model=model, seed=nested.seed)
    dense_changes = {"epochs": dense_epochs, **dense_changes}
    dense_changes = {name: value for name, value in dense_changes.items() if value is not None}
    dense = None if paper or weights else _changed(DENSE_TRAINING, dense_changes)
    table = _measured_table(run, nested, chain_ms, runtime, profiles)
    with steps() as step:
        scores = train_run(run, dense=dense, nested=nested, weights=weights, table=table, progress=step("train"))
    for name, score in scores.items():
        console().print(f"{name:8} {_score_text(score, run.data.is_text)}")
    _print_ranks(run.checkpoint_ranks(), out / "ordered")


def _changed(settings: TrainSettings, changes: dict[str, Any]) -> TrainSettings:
    from pydantic import ValidationError

    try:
        return type(settings).model_validate({**settings.model_dump(), **changes})
    except ValidationError as error:
        first = error.errors()[0]
        fail(f"{'.'.join(map(str, first['loc']))}: {first['msg']} (given {first['input']!r})")
        raise


def _measured_table(
    run: Run, settings: TrainSettings, chain_ms: bool, runtime: str, profiles: Path
) -> LatencyTable | None:
    if not chain_ms and (settings.target is None or settings.target.ms is None):
        return None
    from maestro_edge.recipes.tables import load_table
    from maestro_edge.runtimes import load_all

    with claimed("local", alone=False) as device:
        return load_table(run, load_all([runtime])[0], device, profiles=profiles, threads=1)


def _score_text(score: Score, is_text: bool) -> str:
    quality = f"perplexity {score.perplexity:.2f}" if is_text else f"top-1 {100 * score.top1:.1f} %"
    return f"validation loss {score.loss:.3f}, {quality}"


def _print_ranks(ranks: dict[str, int], folder: Path) -> None:
    text = ", ".join(f"{name} {rank}" for name, rank in ranks.items()) or "none: a dense network"
    console().print(f"ranks    {text}\nsaved    {folder}")
