"""train(): one loop for a dense model and for an ordered one, on one process or many, exactly resumable."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from maestro_edge.errors import CheckpointError, TrainingError
from maestro_edge.ordered import order, ordered_layers, trace
from maestro_edge.training.checkpoint import load_checkpoint, restore_model, save_checkpoint
from maestro_edge.training.evaluation import IGNORED
from maestro_edge.training.optimizers import make_optimizer, optimizer_state, restore_optimizer
from maestro_edge.training.ordering import Ordering, require_finite
from maestro_edge.training.samplers import Sampler
from maestro_edge.training.settings import Epoch, TrainSet, TrainSettings, bf16_is_fast, split
from maestro_edge.training.target import Sizes
from maestro_edge.values import LatencyTable

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["start_tracking", "train"]

Progress = Callable[[int, int, float], None]

_CALIBRATION_BATCHES = 8

MakeSampler = Callable[[nn.Module], Sampler | None]
"""What makes a sampler of the ordered network; None leaves the choice to the settings."""


def train(
    model: nn.Module,
    data: TrainSet,
    settings: TrainSettings,
    *,
    name: str = "model",
    folder: Path | None = None,
    rebuild: Callable[[], nn.Module] | None = None,
    progress: Progress | None = None,
    accelerator: Accelerator | None = None,
    sampler: Sampler | MakeSampler | None = None,
    table: LatencyTable | None = None,
    save_every_s: float = 600.0,
) -> tuple[nn.Module, tuple[Epoch, ...]]:
    """Train `model` (in place unless resumed or ordered on the way) and return it with its history.

    With `folder` a checkpoint is written after every epoch, every `save_every_s` and at Ctrl-C; a run whose
    folder holds one with the same settings goes on there and ends with the same weights as an uninterrupted
    run. `rebuild` makes the untrained dense model that a checkpoint is loaded into (needed to resume an
    ordered, shrunk model). `progress(step, steps, loss)` is called once a step. Under torchrun every process
    calls train() alike: they share each batch, draw the same ranks, and the first writes. `accelerator` brings
    its own precision, devices and trackers; `sampler` is one that the settings cannot name, or makes one of the
    ordered network that the ranks start from, in the first process first; `table` is what a target in ms is
    meant on. The model comes back to the device that it was on.

    Raises:
        TrainingError: the data is smaller than one batch, the loss is not finite, the target is out of reach.
        CheckpointError: the folder holds a checkpoint that does not fit.
    """
    _check(model, data, settings)
    phases = split(settings)
    options: Any = {"name": name, "progress": progress, "accelerator": accelerator, "save_every_s": save_every_s}
    last: Any = {"folder": folder, "sampler": sampler, "table": table, **options}
    if phases is None or ordered_layers(model):
        return _train(model, data, settings, rebuild=rebuild, **last)
    if settings.target is not None:
        # Out of reach is refused now, not after the dense epochs.
        example = data.prepare(data.inputs[torch.arange(1)])
        Sizes(trace(order(model), (example,), name=name), settings.target, table)
    rebuild = rebuild or (lambda: model)
    dense_folder = None if folder is None else folder / "dense"
    model, before = _train(
        model, data, phases[0], folder=dense_folder, rebuild=rebuild, sampler=None, table=None, **options
    )
    resumed = folder is not None and (folder / "checkpoint.json").exists()
    batches = (data.prepare(data.batch(chosen)[0]) for chosen in _calibration(data, settings))
    ordered, after = _train(
        order(model.eval(), calibration=None if resumed else batches), data, phases[1], rebuild=rebuild, **last
    )
    return ordered, (*before, *(line.model_copy(update={"epoch": line.epoch + len(before)}) for line in after))


def _calibration(data: TrainSet, settings: TrainSettings) -> list[Tensor]:
    """Indices of the batches that the whitened start sees."""
    size = min(len(data.inputs), max(settings.batch_size, 64))
    chosen = torch.randperm(len(data.inputs), generator=torch.Generator().manual_seed(settings.seed))
    return list(torch.split(chosen[: _CALIBRATION_BATCHES * size], size))


def _check(model: nn.Module, data: TrainSet, settings: TrainSettings) -> None:
    if len(data.inputs) < settings.batch_size:
        raise TrainingError(
            f"{len(data.inputs)} inputs are fewer than one batch of {settings.batch_size}: lower batch_size"
        )
    norms = any(isinstance(module, _BatchNorm) for module in model.modules())
    if norms and settings.batch_size // settings.accumulate < 2:
        raise TrainingError(
            f"a micro-batch of {settings.batch_size // settings.accumulate} (batch_size {settings.batch_size}, "
            f"accumulate {settings.accumulate}) with BatchNorm cannot train: use 2 samples or more"
        )
    for layer_name, layer in ordered_layers(model).items():
        if not layer.u.requires_grad:
            raise TrainingError(
                f"layer {layer_name!r} is frozen (requires_grad is False), its ranks cannot be ordered: unfreeze "
                "it, or leave it dense with where="
            )


def _train(
    model: nn.Module,
    data: TrainSet,
    settings: TrainSettings,
    *,
    name: str,
    folder: Path | None,
    rebuild: Callable[[], nn.Module] | None,
    progress: Progress | None,
    accelerator: Accelerator | None,
    sampler: Sampler | MakeSampler | None,
    table: LatencyTable | None,
    save_every_s: float,
) -> tuple[nn.Module, tuple[Epoch, ...]]:
    accelerator, home = accelerator or _accelerator(), next(model.parameters()).device
    if callable(sampler):
        with accelerator.main_process_first():
            sampler = sampler(model)
    run = _Run(model, data, settings, name, folder, accelerator, sampler, table, save_every_s)
    if folder is not None and (folder / "checkpoint.json").exists():
        run.resume(folder, rebuild or (lambda: model))
    generators = torch.get_rng_state()
    with _deferred_interrupt() as interrupted:
        while run.epoch < settings.epochs:
            run.run_step(progress)
            if interrupted():
                run.save()
                raise KeyboardInterrupt
    torch.set_rng_state(generators)
    return run.module.to(home), tuple(run.history)


def _accelerator() -> Accelerator:
    from accelerate import Accelerator

    return Accelerator()


def start_tracking(tracker: str, folder: Path) -> Accelerator:
    """An accelerator that logs every epoch to `tracker`, such as tensorboard, under `folder`."""
    from accelerate import Accelerator

    accelerator = Accelerator(log_with=tracker, project_dir=folder)
    accelerator.init_trackers("tracking")
    return accelerator


class _Run:
    """The state of a training between two steps: exactly what a checkpoint holds."""

    def __init__(
        self,
        model: nn.Module,
        data: TrainSet,
        settings: TrainSettings,
        name: str,
        folder: Path | None,
        accelerator: Accelerator,
        sampler: Sampler | None,
        table: LatencyTable | None,
        save_every_s: float,
    ) -> None:
        self.data, self.settings, self.name, self.folder = data, settings, name, folder
        self.accelerator, self.sampler, self.table = accelerator, sampler, table
        self.save_every_s, self.saved_at = save_every_s, time.monotonic()
        if "FSDP" in str(accelerator.distributed_type):
            raise TrainingError(
                "train() slices whole parameters, FSDP shards them: use DDP, or Ordering in your own loop after "
                "fully_shard(), without penalty and target"
            )
        self.parts = accelerator.num_processes * settings.accumulate
        if settings.batch_size % self.parts:
            raise TrainingError(
                f"a batch of {settings.batch_size} cannot be split evenly into {self.parts} parts "
                f"({accelerator.num_processes} processes × accumulate {settings.accumulate}): change batch_size"
            )
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.epoch = self.step = 0
        self.loss_sum = self.seconds = 0.0
        self.history: list[Epoch] = []
        self._attach(model)

    def _attach(self, model: nn.Module) -> None:
        self.module = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.module.train()
        self._wrap()
        self.optimizer = make_optimizer(self.module, self.settings)
        self.ordering = None
        if ordered_layers(self.module):
            self.ordering = Ordering(
                self.module,
                self.optimizer,
                sampler=self.sampler or self.settings.sampler,
                penalty=self.settings.penalty,
                penalty_form=self.settings.penalty_form,
                shrink_below=self.settings.shrink_below,
                target=self.settings.target,
                steps=self.total_steps,
                example=(self._prepared(torch.arange(1)),),
                table=self.table,
                seed=self.settings.seed,
            )
        elif self.settings.target is not None:
            raise TrainingError(
                f"a target of {self.settings.target} needs ordered layers: order(model), or give a dense_share"
            )

    def _wrap(self) -> None:
        self.model = self.accelerator.prepare_model(self.module)

    @property
    def steps_per_epoch(self) -> int:
        return len(self.data.inputs) // self.settings.batch_size

    @property
    def total_steps(self) -> int:
        return self.settings.epochs * self.steps_per_epoch

    @property
    def done(self) -> int:
        return self.epoch * self.steps_per_epoch + self.step

    def run_step(self, progress: Progress | None) -> None:
        started = time.perf_counter()
        # Dropout's masks depend on the step alone (and differ between processes), so a resumed run repeats them.
        torch.manual_seed((self.settings.seed * 1_000_003 + self.done) * 64 + self.accelerator.process_index)
        try:
            loss = self._optimise()
        except TrainingError as error:
            raise TrainingError(
                f"{error} (epoch {self.epoch}, lr {self._lr():.3g}); {self._last_good()}"
            ) from error
        self.loss_sum += loss
        self.seconds += time.perf_counter() - started
        self.step += 1
        if progress is not None:
            progress(self.done, self.total_steps, loss)
        if self.step == self.steps_per_epoch:
            self._end_epoch()
        elif time.monotonic() - self.saved_at > self.save_every_s:
            self.save()

    def _last_good(self) -> str:
        if self.folder is None or not (self.folder / "checkpoint.json").exists():
            return "there is no checkpoint yet"
        return f"the last good checkpoint is {self.folder}"

    def _batch(self) -> Tensor:
        """Indices of this step: the order of an epoch depends on its number alone, so it can be resumed."""
        shuffled = torch.Generator().manual_seed(self.settings.seed * 100_003 + self.epoch)
        permutation = torch.randperm(len(self.data.inputs), generator=shuffled)
        start = self.step * self.settings.batch_size
        return permutation[start : start + self.settings.batch_size]

    def _prepared(self, chosen: Tensor) -> Tensor:
        return self._prepare(self.data.inputs[chosen])

    def _prepare(self, raw: Tensor) -> Tensor:
        inputs = self.data.prepare(raw).to(self.accelerator.device)
        return inputs.contiguous(memory_format=torch.channels_last) if inputs.ndim == 4 else inputs

    def _micro_batches(self, chosen: Tensor) -> list[tuple[Tensor, Tensor]]:
        """This process's shares of the batch, one for each micro-batch."""
        index, processes = self.accelerator.process_index, self.accelerator.num_processes
        mine = [index + processes * micro for micro in range(self.settings.accumulate)]
        if self.data.augment is None and self.data.trim is None:
            targets = self.data.targets[chosen].to(self.accelerator.device)
            return [(self._prepared(chosen[part :: self.parts]), targets[part :: self.parts]) for part in mine]
        # All processes vary the whole batch alike, then take their share: one process would do the same.
        raw, targets = self.data.batch(chosen)
        targets = targets.to(self.accelerator.device)
        if self.data.augment is not None:
            raw = self.data.augment(raw, self.generator)
        return [(self._prepare(raw[part :: self.parts]), targets[part :: self.parts]) for part in mine]

    def _optimise(self) -> float:
        chosen = self._batch()
        processes = self.accelerator.num_processes
        # Gradients add up over micro-batches, but DDP takes their mean over the processes.
        share = (self.data.targets[chosen] != IGNORED).sum().item() / processes
        self.optimizer.zero_grad(set_to_none=True)
        loss = 0.0
        micro_batches = self._micro_batches(chosen)
        for index, (inputs, targets) in enumerate(micro_batches):
            last = index + 1 == len(micro_batches)
            with self._unsynced() if not last else nullcontext():
                loss += self._backward(inputs, targets, share) / processes
        loss = self._summed(loss)
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        if norm is not None and not math.isfinite(float(norm)):
            raise TrainingError(
                f"the gradient's norm is {float(norm)} at step {self.done}: lower the learning rate"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr()
        self.optimizer.step()
        if self.ordering is not None and self.ordering.update():
            self._wrap()
        return loss

    def _backward(self, inputs: Tensor, targets: Tensor, share: float) -> float:
        """One micro-batch: sums over its targets, divided by the whole batch's count a process.

        Parts may hold unequal numbers of targets; this way they add up to the mean over the whole batch.
        """
        kept = targets.flatten() != IGNORED

        def forward() -> Tensor:
            with self._autocast():
                logits: Tensor = self.model(inputs)
            return logits.float()

        def task(logits: Tensor) -> Tensor:
            flat = logits.reshape(-1, logits.shape[-1])
            smoothing = self.settings.label_smoothing
            loss = F.cross_entropy(flat, targets.flatten(), label_smoothing=smoothing, reduction="sum")
            return loss / share

        def distil(logits: Tensor, teacher: Tensor) -> Tensor:
            flat, taught = (x.reshape(-1, x.shape[-1])[kept] for x in (logits, teacher))
            return F.cross_entropy(flat, taught.softmax(1), reduction="sum") / share

        if self.ordering is None:
            loss = task(forward())
            value = require_finite(loss, self.module, self.done)
            self.accelerator.backward(loss)
            return value
        return self.ordering.backward(
            forward, task, distil=distil, backward=self.accelerator.backward, unsynced=self._unsynced
        )

    def _unsynced(self) -> AbstractContextManager[Any]:
        quiet: AbstractContextManager[Any] = self.accelerator.no_sync(self.model)
        return quiet

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.accelerator.mixed_precision != "no":
            brought: AbstractContextManager[Any] = self.accelerator.autocast()
            return brought
        device, asked = self.accelerator.device.type, self.settings.bf16
        return torch.autocast(device, torch.bfloat16, enabled=bf16_is_fast(device) if asked is None else asked)

    def _summed(self, loss: float) -> float:
        if self.accelerator.num_processes == 1:
            return loss
        return float(self.accelerator.reduce(torch.tensor(loss, device=self.accelerator.device), reduction="sum"))

    def _lr(self) -> float:
        warmup = min(self.total_steps - 1, self.settings.warmup_epochs * self.steps_per_epoch)
        if self.done < warmup:
            return self.settings.lr * (self.done + 1) / (warmup + 1)
        share = (self.done - warmup) / (self.total_steps - warmup)
        last = self.settings.final_lr
        return self.settings.lr * (last + (1 - last) * 0.5 * (1 + math.cos(math.pi * share)))

    def _end_epoch(self) -> None:
        ordering = self.ordering
        if ordering is not None and ordering.shrink():
            self._wrap()
        line = Epoch(
            epoch=self.epoch,
            loss=self.loss_sum / self.steps_per_epoch,
            seconds=self.seconds,
            ranks={} if ordering is None else ordering.ranks,
            penalty=0.0 if ordering is None else ordering.current_penalty,
            size=None if ordering is None or ordering.controller is None else ordering.size,
        )
        self.history.append(line)
        if self.accelerator.trackers:
            self.accelerator.log({"loss": line.loss, "lr": self._lr(), "penalty": line.penalty}, step=self.done)
        self.epoch, self.step, self.loss_sum, self.seconds = self.epoch + 1, 0, 0.0, 0.0
        self.save()

    def save(self) -> None:
        self.saved_at = time.monotonic()
        if self.folder is None or not self.accelerator.is_main_process:
            return
        tensors, values = optimizer_state(self.module, self.optimizer)
        ordering: dict[str, Any] = {} if self.ordering is None else self.ordering.state_dict()
        if ordering:
            tensors["ordering.generator"] = ordering.pop("generator")
        save_checkpoint(
            self.folder,
            self.module,
            name=self.name,
            data=self.data.name,
            input_shape=(1, *self.data.inputs.shape[1:]),
            classes=int(self.data.targets.max()) + 1,
            tensors={"generator": self.generator.get_state(), **tensors},
            training={
                "settings": self.settings.model_dump(),
                "epoch": self.epoch,
                "step": self.step,
                "loss_sum": self.loss_sum,
                "seconds": self.seconds,
                "ordering": ordering,
                "optimizer": values,
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
        restore_optimizer(self.module, self.optimizer, tensors, saved["optimizer"])
        self.generator.set_state(tensors["generator"])
        if self.ordering is not None:
            self.ordering.load_state_dict({**saved["ordering"], "generator": tensors["ordering.generator"]})
        self.epoch, self.step = saved["epoch"], saved["step"]
        self.loss_sum, self.seconds = saved["loss_sum"], saved["seconds"]
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
