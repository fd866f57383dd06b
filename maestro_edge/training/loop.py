"""train(): one loop for a dense model and for an ordered one, interruptible and exactly resumable."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from maestro_edge.errors import CheckpointError, TrainingError
from maestro_edge.ordered import at_ranks, ordered_layers
from maestro_edge.training.checkpoint import load_checkpoint, restore_model, save_checkpoint
from maestro_edge.training.penalty import layer_penalty, shrink_towards_zero
from maestro_edge.training.samplers import Sampler, SamplerName, make_sampler
from maestro_edge.training.shrinking import shrink
from maestro_edge.values import Value

__all__ = ["Epoch", "TrainSet", "TrainSettings", "train"]


class TrainSettings(Value):
    """The hyper-parameters of one run; learning rate: linear warm-up, then one cosine down to zero.

    `penalty` is λ of the group lasso. Raw λ multiplies the plain sum of the paper and does not carry over
    between networks; normalised, every layer's penalty is divided by its value at the start.
    """

    epochs: PositiveInt = 10
    batch_size: PositiveInt = 64
    lr: PositiveFloat = 0.1
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: NonNegativeFloat = 5e-4
    warmup_epochs: NonNegativeFloat = 1.0
    clip_norm: PositiveFloat = 1.0
    sampler: SamplerName = "sandwich"
    penalty: NonNegativeFloat = 0.0
    penalty_form: Literal["normalised", "raw"] = "normalised"
    shrink_below: NonNegativeFloat = 1e-7
    bf16: bool = True
    seed: int = 0


@dataclass(frozen=True)
class TrainSet:
    """(N, C, H, W) images and (N,) targets; `prepare` makes a raw batch an input, `augment` varies it first."""

    name: str
    images: Tensor
    targets: Tensor
    prepare: Callable[[Tensor], Tensor]
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None


class Epoch(Value):
    """One line of a training's history."""

    epoch: int
    loss: float
    seconds: float
    ranks: dict[str, int]


def train(
    model: nn.Module,
    data: TrainSet,
    settings: TrainSettings,
    *,
    name: str = "model",
    folder: Path | None = None,
    rebuild: Callable[[], nn.Module] | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> tuple[nn.Module, tuple[Epoch, ...]]:
    """Train `model` (in place unless resumed) and return it with its history.

    With `folder` a checkpoint is written after every epoch and at Ctrl-C; a run whose folder holds one with
    the same settings goes on there and ends with the same weights as an uninterrupted run. `rebuild` makes
    the untrained dense model that a checkpoint is loaded into (needed to resume an ordered, shrunk model).
    `progress(step, steps, loss)` is called once a step.

    Raises:
        TrainingError: the data is smaller than one batch, or the loss is not finite.
        CheckpointError: the folder holds a checkpoint that does not fit.
    """
    if len(data.images) < settings.batch_size:
        raise TrainingError(
            f"{len(data.images)} images are fewer than one batch of {settings.batch_size}: lower batch_size"
        )
    run = _Run(model, data, settings, name, folder)
    if folder is not None and (folder / "checkpoint.json").exists():
        run.resume(folder, rebuild or (lambda: model))
    with _deferred_interrupt() as interrupted:
        while run.epoch < settings.epochs:
            run.run_step(progress)
            if interrupted():
                run.save()
                raise KeyboardInterrupt
    return run.model, tuple(run.history)


class _Run:
    """The state of a training between two steps: exactly what a checkpoint holds."""

    def __init__(
        self, model: nn.Module, data: TrainSet, settings: TrainSettings, name: str, folder: Path | None
    ) -> None:
        self.data, self.settings, self.name, self.folder = data, settings, name, folder
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.sampler: Sampler = make_sampler(settings.sampler)
        self.epoch = self.step = 0
        self.loss_sum = self.seconds = 0.0
        self.history: list[Epoch] = []
        self._attach(model)
        self.start_penalties = {n: layer_penalty(layer) for n, layer in ordered_layers(model).items()}

    def _attach(self, model: nn.Module) -> None:
        self.model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model.train()
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=self.settings.lr,
            momentum=self.settings.momentum,
            weight_decay=self.settings.weight_decay,
        )

    @property
    def steps_per_epoch(self) -> int:
        return len(self.data.images) // self.settings.batch_size

    def run_step(self, progress: Callable[[int, int, float], None] | None) -> None:
        started = time.perf_counter()
        loss = self._optimise(*self._batch())
        self.loss_sum += loss
        self.seconds += time.perf_counter() - started
        self.step += 1
        done = self.epoch * self.steps_per_epoch + self.step
        if progress is not None:
            progress(done, self.settings.epochs * self.steps_per_epoch, loss)
        if self.step == self.steps_per_epoch:
            self._end_epoch()

    def _batch(self) -> tuple[Tensor, Tensor]:
        """The batch of this step: the order of an epoch depends on its number alone, so it can be resumed."""
        shuffled = torch.Generator().manual_seed(self.settings.seed * 100_003 + self.epoch)
        permutation = torch.randperm(len(self.data.images), generator=shuffled)
        start = self.step * self.settings.batch_size
        chosen = permutation[start : start + self.settings.batch_size]
        images = self.data.images[chosen]
        if self.data.augment is not None:
            images = self.data.augment(images, self.generator)
        inputs = self.data.prepare(images)
        inputs = inputs.contiguous(memory_format=torch.channels_last) if inputs.ndim == 4 else inputs
        return inputs, self.data.targets[chosen]

    def _optimise(self, inputs: Tensor, targets: Tensor) -> float:
        layers = ordered_layers(self.model)
        full = {name: layer.rank for name, layer in layers.items()}
        sets = self.sampler.draw(full, self.generator) if layers else ({},)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._backward(inputs, targets, sets)
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} at step {self.step} of epoch {self.epoch}: lower lr "
                f"(now {self.settings.lr}); the last checkpoint is intact"
            )
        nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr()
        self.optimizer.step()
        if self.settings.penalty > 0:
            raw, step = self.settings.penalty_form == "raw", self.settings.penalty * self._lr()
            shrink_towards_zero(layers, {n: step / (1.0 if raw else self.start_penalties[n]) for n in layers})
        return loss

    def _backward(self, inputs: Tensor, targets: Tensor, sets: tuple[Mapping[str, Any], ...]) -> float:
        """Cross-entropy for the first rank set; the others learn its (detached) predictions."""
        loss, teacher = 0.0, torch.empty(0)
        for index, ranks in enumerate(sets):
            with (
                at_ranks(self.model, ranks),
                torch.autocast("cpu", torch.bfloat16, enabled=self.settings.bf16),
            ):
                logits = self.model(inputs).float()
            if index == 0:
                part = F.cross_entropy(logits, targets)
                loss, teacher = float(part.detach()), logits.detach().softmax(1)
            else:
                part = F.cross_entropy(logits, teacher) / (len(sets) - 1)
            part.backward()  # type: ignore[no-untyped-call]
        return loss

    def _lr(self) -> float:
        total = self.settings.epochs * self.steps_per_epoch
        warmup = min(total - 1, self.settings.warmup_epochs * self.steps_per_epoch)
        now = self.epoch * self.steps_per_epoch + self.step
        if now < warmup:
            return self.settings.lr * (now + 1) / (warmup + 1)
        return self.settings.lr * 0.5 * (1 + math.cos(math.pi * (now - warmup) / (total - warmup)))

    def _end_epoch(self) -> None:
        if self.settings.penalty > 0:
            shrink(self.model, self.optimizer, below=self.settings.shrink_below)
        ranks = {name: layer.rank for name, layer in ordered_layers(self.model).items()}
        mean = self.loss_sum / self.steps_per_epoch
        self.history.append(Epoch(epoch=self.epoch, loss=mean, seconds=self.seconds, ranks=ranks))
        self.epoch, self.step, self.loss_sum, self.seconds = self.epoch + 1, 0, 0.0, 0.0
        self.save()

    def save(self) -> None:
        if self.folder is None:
            return
        names = {id(p): name for name, p in self.model.named_parameters()}
        buffers = {
            f"momentum.{names[id(p)]}": state["momentum_buffer"]
            for p, state in self.optimizer.state.items()
            if state.get("momentum_buffer") is not None
        }
        save_checkpoint(
            self.folder,
            self.model,
            name=self.name,
            data=self.data.name,
            input_shape=(1, *self.data.images.shape[1:]),
            classes=int(self.data.targets.max()) + 1,
            tensors={"generator": self.generator.get_state(), **buffers},
            training={
                "settings": self.settings.model_dump(),
                "epoch": self.epoch,
                "step": self.step,
                "loss_sum": self.loss_sum,
                "seconds": self.seconds,
                "sampler": self.sampler.state,
                "start_penalties": self.start_penalties,
                "history": [line.model_dump() for line in self.history],
            },
        )

    def resume(self, folder: Path, rebuild: Callable[[], nn.Module]) -> None:
        checkpoint, tensors = load_checkpoint(folder)
        saved = checkpoint.training
        if saved.get("settings") != self.settings.model_dump() or checkpoint.data != self.data.name:
            raise CheckpointError(
                f"{folder} holds a training with other settings or data: choose another folder or remove it"
            )
        self._attach(restore_model(rebuild(), checkpoint, tensors))
        for name, parameter in self.model.named_parameters():
            buffer = tensors.get(f"momentum.{name}")
            if buffer is not None:
                self.optimizer.state[parameter] = {"momentum_buffer": buffer}
        self.generator.set_state(tensors["generator"])
        self.sampler.restore(saved["sampler"])
        self.epoch, self.step = saved["epoch"], saved["step"]
        self.loss_sum, self.seconds = saved["loss_sum"], saved["seconds"]
        self.start_penalties = saved["start_penalties"]
        self.history = [Epoch.model_validate(line) for line in saved["history"]]


@contextmanager
def _deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Ctrl-C inside the block is only noted, so that a step is never left half done."""
    noted = False

    def note(signum: int, frame: FrameType | None) -> None:
        nonlocal noted
        noted = True

    try:
        before = signal.signal(signal.SIGINT, note)
    except ValueError:  # not the main thread: Ctrl-C does not arrive here
        yield lambda: False
        return
    try:
        yield lambda: noted
    finally:
        signal.signal(signal.SIGINT, before)
