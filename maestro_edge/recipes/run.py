"""The main job on a run folder: each step is a function that reads what the steps before it left there.

run.json          which data and model          plans/*.json       one a runtime and budget
dense/, ordered/  checkpoints                   files/             exports and their manifest.json
sensitivity.json  what each rank costs          bundle/            what an app reads
work/             what profiling can go on from probes/            what an iPhone measures
report.html
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maestro_edge.errors import CheckpointError, DataError
from maestro_edge.ordered import cut, gauge_layers, gauge_ranks, trace
from maestro_edge.recipes import data as datasets
from maestro_edge.recipes.models import DEFAULT_MODEL, load_model
from maestro_edge.recipes.multi30k import trimmed
from maestro_edge.training import (
    Score,
    TrainSet,
    batches,
    evaluate,
    load_checkpoint,
    restore_model,
)
from maestro_edge.training import (
    recalibrate as recalibrate,
)
from maestro_edge.values import (
    LatencyTable,
    Network,
    Rank,
    RankPlan,
    Saved,
)

__all__ = ["Run", "RunFacts", "create", "open_run"]

Progress = Callable[[int, int, str], None]

_CALIBRATION_IMAGES = 512
_LOSS_IMAGES = 2048  # at most: an option that fewer decide uses fewer
_LOSS_PAIRS = 512
_LOSS_NUMBERS = 2**26  # 256 MiB of prepared images, and 512 images in any case


class RunFacts(Saved):
    """What a run folder is about."""

    data: str
    model: str
    seed: int


def create(folder: Path, *, data: str, model: str = DEFAULT_MODEL, seed: int = 0) -> Run:
    """A run folder of this data and model; one that is there already must be of the same.

    Raises:
        CheckpointError: the folder holds another run.
        DataError: the data cannot be read, or the folder not written.
    """
    facts = RunFacts(data=data, model=model, seed=seed)
    path = folder / "run.json"
    if path.exists():
        if RunFacts.load(path) != facts:
            raise CheckpointError(f"{folder} holds a run of other data or model: choose another folder")
        return Run(folder, facts)
    run = Run(folder, facts)
    _ = run.data
    facts.save(path)
    return run


def open_run(folder: Path, *, model: str | None = None) -> Run:
    """The run in a folder. A model of your own must be named again: a folder never decides what is imported.

    Raises:
        CheckpointError: there is no run, or its model is not one of maestro_edge's and not named.
    """
    path = folder / "run.json"
    if not path.exists():
        raise CheckpointError(f"{folder} is not a run folder (no run.json): make one with 'maestro-edge train'")
    facts = RunFacts.load(path)
    if not facts.model.startswith("maestro_edge.recipes.") and facts.model != model:
        raise CheckpointError(f"{folder} is a run of {facts.model}: add --model {facts.model} to load that code")
    return Run(folder, facts)


def remove(folder: Path) -> None:
    """Remove a run folder; a folder that holds anything else is refused.

    Raises:
        CheckpointError: it is not a run folder.
    """
    if not folder.exists():
        return
    if not (folder / "run.json").exists():
        raise CheckpointError(f"{folder} is not a run folder: remove it yourself if that is meant")
    shutil.rmtree(folder)


@dataclass(frozen=True)
class Run:
    """A run folder and what its steps share."""

    folder: Path
    facts: RunFacts

    @cached_property
    def data(self) -> datasets.Data:
        return datasets.load(self.facts.data, seed=self.facts.seed)

    @property
    def example(self) -> tuple[Tensor, ...]:
        """One prepared image, (1, C, H, W), or row of tokens."""
        return (self.data.normalise(self.data.train.inputs[:1]),)

    @property
    def labels(self) -> tuple[str, ...]:
        return self.data.labels

    def require_images(self, step: str) -> None:
        """Refuse a step that makes what an app for images reads.

        Raises:
            DataError: the data set is text.
        """
        if self.data.is_text:
            raise DataError(f"{self.folder} is a run of {self.facts.data}: {step} needs a data set of images")

    def new_model(self) -> nn.Module:
        """The untrained dense model, the same every time."""
        torch.manual_seed(self.facts.seed)
        channels = self.data.train.inputs.shape[1]
        return load_model(self.facts.model, channels=channels, classes=len(self.labels))

    def calibration(self) -> list[Tensor]:
        """Training inputs for BatchNorm statistics and whitening; never validation or test."""
        inputs = self.data.train.inputs
        chosen = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(self.facts.seed))
        return list(batches(inputs[chosen[:_CALIBRATION_IMAGES]], self.data.normalise, size=128))

    def train_set(self) -> TrainSet:
        inputs = self.data.train.inputs

        def varied(images: Tensor, generator: torch.Generator) -> Tensor:
            return augment(images, generator, shift=max(1, images.shape[-1] // 10), flip=self.data.flip)

        # Words stay where they are, and image files are cropped and mirrored as they are decoded.
        as_given = self.data.is_text or not isinstance(inputs, Tensor)
        return TrainSet(
            name=self.facts.data,
            inputs=inputs,
            targets=self.data.train.targets,
            prepare=self.data.normalise,
            augment=None if as_given else varied,
            trim=trimmed if self.data.is_text else None,
        )

    def loss_inputs(self, split: datasets.Split) -> tuple[Tensor, Tensor]:
        """Prepared inputs (N, …) and targets of `split` that sensitivities are measured on."""
        fitting = max(512, _LOSS_NUMBERS // math.prod(self.example[0].shape))
        count = _LOSS_PAIRS if self.data.is_text else min(_LOSS_IMAGES, fitting)
        inputs, targets = split.inputs[:count], split.targets[:count]
        if self.data.is_text:
            inputs, targets = trimmed(inputs, targets)
        return self.data.normalise(inputs), targets

    def score(self, model: nn.Module, split: datasets.Split) -> Score:
        return evaluate(model, split.inputs, split.targets, self.data.normalise)

    def load(self, name: str) -> nn.Module:
        """The model of the checkpoint `dense` or `ordered`.

        Raises:
            CheckpointError: it is missing, damaged or of another model.
        """
        checkpoint, tensors = load_checkpoint(self.folder / name)
        return restore_model(self.new_model(), checkpoint, tensors).eval()

    @cached_property
    def ordered(self) -> nn.Module:
        return self.load("ordered")

    @cached_property
    def network(self) -> Network:
        return trace(self.ordered, self.example, name=self.facts.model.rpartition(":")[2])

    def variant(self, ranks: Mapping[str, Rank], *, gauge: Collection[str] = ()) -> nn.Module:
        """Stock layers at `ranks`, those of `gauge` in that form, BatchNorm recalibrated on training images."""
        return recalibrate(cut(self.ordered, ranks, gauge=gauge), self.calibration()).eval()

    def gauge_ranks(self, table: LatencyTable) -> dict[str, tuple[int, ...]]:
        """The ranks with a time in `table` at which each layer's weights allow the gauge form as it was timed."""
        timed = {layer.name: table.gauge_ranks(layer.spec) for layer in self.network.ordered}
        if not any(timed.values()):
            return {}
        usable = gauge_layers(self.ordered, self.example)
        return gauge_ranks(self.ordered, {name: timed[name] for name in usable})

    @cached_property
    def dense(self) -> nn.Module:
        """The rival: the dense training's network, or the ordered one at full rank where validation prefers it."""
        full = self.variant({})
        if not (self.folder / "dense" / "checkpoint.json").exists():
            return full
        dense = recalibrate(self.load("dense"), self.calibration()).eval()
        candidates = [(self.score(model, self.data.validation), model) for model in (dense, full)]
        return max(candidates, key=lambda pair: (pair[0].top1, -pair[0].loss))[1]

    def checkpoint_ranks(self) -> dict[str, int]:
        """The ranks that training left."""
        return load_checkpoint(self.folder / "ordered")[0].ranks

    def plans(self) -> list[RankPlan]:
        """The plans made so far, by runtime and falling budget."""
        found = [RankPlan.load(path) for path in sorted((self.folder / "plans").glob("*.json"))]
        return sorted(found, key=lambda item: (item.runtime, [-budget.limit for budget in item.budgets]))

    @property
    def manifest_path(self) -> Path:
        return self.folder / "files" / "manifest.json"


def augment(images: Tensor, generator: torch.Generator, *, shift: int, flip: bool) -> Tensor:
    """Each of the (N, C, H, W) images shifted by up to `shift` pixels (zeros come in), half of them mirrored."""
    n, _, height, width = images.shape
    padded = F.pad(images, (shift, shift, shift, shift))
    tops = torch.randint(2 * shift + 1, (n,), generator=generator)
    lefts = torch.randint(2 * shift + 1, (n,), generator=generator)
    rows = (tops[:, None] + torch.arange(height))[:, None, :, None]
    columns = (lefts[:, None] + torch.arange(width))[:, None, None, :]
    channels = torch.arange(images.shape[1])[None, :, None, None]
    shifted = padded[torch.arange(n)[:, None, None, None], channels, rows, columns]
    if flip:
        mirrored = torch.rand(n, generator=generator) < 0.5
        shifted[mirrored] = shifted[mirrored].flip(-1)
    return shifted
