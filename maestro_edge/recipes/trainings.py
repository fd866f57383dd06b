"""Training of a run: dense, then ordered, or a recipe in one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from maestro_edge.errors import CheckpointError
from maestro_edge.ordered import cut, order, ordered_layers, trace
from maestro_edge.recipes.chains import chain_sampler
from maestro_edge.recipes.run import Progress, Run
from maestro_edge.runtimes import package_version
from maestro_edge.training import (
    Score,
    TrainSettings,
    load_checkpoint,
    recalibrate,
    restore_model,
    save_checkpoint,
    start_tracking,
    train,
)
from maestro_edge.values import LatencyTable

__all__ = ["Trained", "train_recipe", "train_run"]


def train_run(
    run: Run,
    *,
    dense: TrainSettings | None,
    nested: TrainSettings,
    weights: Path | None = None,
    table: LatencyTable | None = None,
    progress: Progress | None = None,
) -> dict[str, Score]:
    """Train dense, order with the whitened start, train nested; returns validation scores of both.

    Without `dense` and `weights` the ordered model starts from the SVD of an untrained one, as in the paper.

    Raises:
        CheckpointError: given weights do not fit the model.
    """
    scores = {}
    model, data = run.new_model(), run.train_set()
    calibration = None
    if weights is not None:
        model.load_state_dict(_read_weights(weights, model))
        _save_dense(run, model)
    elif dense is not None:
        model, _ = train(
            model,
            data,
            dense,
            name=run.facts.model,
            folder=run.folder / "dense",
            rebuild=run.new_model,
            progress=_reporting(progress, "dense training"),
        )
    if weights is not None or dense is not None:
        scores["dense"] = run.score(model, run.data.validation)
        calibration = run.calibration()
    folder = run.folder / "ordered"
    chained = chain_sampler(run, nested, folder, table=table, progress=progress)
    resumed = (folder / "checkpoint.json").exists()
    ordered = model if resumed else order(model.eval(), calibration=calibration)
    ordered, _ = train(
        ordered,
        data,
        nested,
        name=run.facts.model,
        folder=folder,
        rebuild=run.new_model,
        sampler=None if calibration is None else chained,
        table=table,
        progress=_reporting(progress, "nested training"),
    )
    full = recalibrate(cut(ordered, {}), run.calibration())
    scores["ordered"] = run.score(full, run.data.validation)
    return scores


class Trained(NamedTuple):
    """What one recipe's run came to on validation data; sizes are of the network cut to the ranks it learned."""

    score: Score
    dense: Score | None
    params: int
    macs: int
    ranks: dict[str, int]


def train_recipe(
    run: Run,
    settings: TrainSettings,
    *,
    ordered: bool = True,
    table: LatencyTable | None = None,
    tracker: str | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train a recipe in one run: dense for the settings' share, then ordered in place, down to their target.

    Without a dense share the layers are ordered before the first step, as in the paper; not `ordered`, the
    network is trained as it is. The dense part's network, which stopped at the learning rate of the turn, is
    kept as the run's `dense`.
    """
    folder = run.folder / ("ordered" if ordered else "dense")
    model = run.new_model()
    if ordered and not settings.dense_share:
        model = order(model)
    accelerator = _tracking(tracker, run.folder)
    chained = chain_sampler(run, settings, folder, table=table, progress=progress)
    model, _ = train(
        model,
        run.train_set(),
        settings,
        name=run.facts.model,
        folder=folder,
        rebuild=run.new_model,
        sampler=chained if ordered and settings.dense_share else None,
        table=table,
        accelerator=accelerator,
        progress=_reporting(progress, run.facts.model.rpartition(":")[2]),
    )
    if accelerator is not None:
        accelerator.end_training()
    warm_up, dense = folder / "dense", None
    if (warm_up / "checkpoint.json").exists():
        checkpoint, tensors = load_checkpoint(warm_up)
        rival = restore_model(run.new_model(), checkpoint, tensors)
        dense = run.score(rival, run.data.validation)
        _save_dense(run, rival)
    ranks = {name: layer.rank for name, layer in ordered_layers(model).items()}
    small = recalibrate(cut(model, ranks), run.calibration()) if ranks else model
    network = trace(small, run.example)
    return Trained(run.score(small, run.data.validation), dense, network.params({}), network.macs({}), ranks)


def _tracking(tracker: str | None, folder: Path) -> Any:
    """An accelerator that logs to `tracker`; None leaves the choice to train()."""
    if tracker is None:
        return None
    package_version(tracker, tracker)
    return start_tracking(tracker, folder)


def _reporting(progress: Progress | None, what: str) -> Callable[[int, int, float], None] | None:
    if progress is None:
        return None
    return lambda step, steps, loss: progress(step, steps, f"{what}, loss {loss:.3f}")


def _read_weights(path: Path, model: nn.Module) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from error
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    for name in {**expected, **found}:
        if expected.get(name) != found.get(name):
            raise CheckpointError(
                f"{path}: tensor {name!r} has shape {found.get(name)}, the model expects {expected.get(name)}"
            )
    return tensors


def _save_dense(run: Run, model: nn.Module) -> None:
    save_checkpoint(
        run.folder / "dense",
        model,
        name=run.facts.model,
        data=run.facts.data,
        input_shape=tuple(run.example[0].shape),
        classes=len(run.labels),
    )
