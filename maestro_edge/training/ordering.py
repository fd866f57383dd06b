"""Ordering: what one training step of an ordered model does besides the step itself, for any training loop."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from maestro_edge.errors import TrainingError
from maestro_edge.ordered import at_ranks, ordered_layers, trace
from maestro_edge.training.penalty import layer_penalty, shrink_towards_zero
from maestro_edge.training.samplers import Sampler, SamplerName, make_sampler
from maestro_edge.training.shrinking import needed_ranks, shrink_to
from maestro_edge.training.target import Controller, Sizes, Target
from maestro_edge.values import LatencyTable, Rank

__all__ = ["Ordering", "PenaltyForm", "require_finite", "soft_cross_entropy"]

PenaltyForm = Literal["normalised", "raw"]
Loss = Callable[[Tensor], Tensor]
Distil = Callable[[Tensor, Tensor], Tensor]

_SHRINK_EVERY = 25
"""Steps between two looks for empty components: cutting costs copies, not cutting costs time at every step."""


def soft_cross_entropy(logits: Tensor, teacher: Tensor) -> Tensor:
    """Mean cross-entropy of (..., C) logits with the teacher's softmax as the target."""
    classes = logits.shape[-1]
    return F.cross_entropy(logits.reshape(-1, classes), teacher.reshape(-1, classes).softmax(1))


class Ordering:
    """Trains the ranks of an ordered model in any loop: backward() for loss.backward(), update() after the step.

    The sampler says which rank sets a step runs. The first learns the task; when there are several the first
    is the full one, and the others learn its predictions (in-place distillation, Yu & Huang, ICCV 2019, §3.2).
    `penalty` is λ of the group lasso: raw it multiplies the plain sum of the paper, which does not carry over
    between networks; normalised, every layer's penalty is divided by its value at the start. With a `target`
    no λ is chosen: a controller moves it so that the network lands on the target after `end` of the `steps`.

    Raises:
        TrainingError: nothing to order, a frozen layer, an optimizer without the factors, a target that is out
            of reach or misses what it needs.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        sampler: SamplerName | Sampler = "alternating",
        penalty: float = 0.0,
        penalty_form: PenaltyForm = "normalised",
        shrink_below: float = 1e-7,
        target: Target | None = None,
        steps: int | None = None,
        example: tuple[Tensor, ...] | None = None,
        table: LatencyTable | None = None,
        seed: int = 0,
    ) -> None:
        self.model, self.optimizer = model, optimizer
        _check(model, optimizer, whole=target is not None or penalty > 0)
        self.sampler = make_sampler(sampler) if isinstance(sampler, str) else sampler
        self.penalty, self.penalty_form, self.shrink_below = penalty, penalty_form, shrink_below
        self.generator = torch.Generator().manual_seed(seed)
        self.step = 0
        self.start_penalties = {name: layer_penalty(layer) for name, layer in self.layers.items()}
        self._sets: tuple[Mapping[str, Rank], ...] | None = None
        self._full_drawn = False
        self.controller = None
        self._weights: dict[str, float] = {}
        if target is not None:
            if steps is None or example is None:
                raise TrainingError(
                    "a target needs steps= (of the whole run) and example= (inputs of one forward)"
                )
            if penalty:
                raise TrainingError(f"a target chooses λ itself: drop penalty={penalty} or the target")
            self.controller = Controller(Sizes(trace(model, example), target, table), steps=steps)
            self._weights = self._target_weights(self.controller.sizes)
            # Half of the way at the highest learning rate would empty a component of mean norm.
            lr = max(float(group["lr"]) for group in optimizer.param_groups)
            self.penalty = 2 / (lr * (self.controller.last - self.controller.first))

    @property
    def layers(self) -> dict[str, Any]:
        return ordered_layers(self.model)

    @property
    def ranks(self) -> dict[str, int]:
        """Components that each layer still has."""
        return {name: layer.rank for name, layer in self.layers.items()}

    @property
    def current_penalty(self) -> float:
        """λ of the last step; 0 when the target has been landed on."""
        if self.controller is None:
            return self.penalty
        return self.penalty * self.controller.factor if self.controller.active(self.step) else 0.0

    @property
    def size(self) -> float:
        """The network's size at its present ranks, in the target's unit."""
        assert self.controller is not None, "a run without a target has no size"
        return self.controller.sizes(self.ranks)

    @property
    def sets(self) -> tuple[Mapping[str, Rank], ...]:
        """The rank sets of this step: the same in every micro-batch of it, and in every process."""
        if self._sets is None:
            polishing = self.controller is not None and self.step >= self.controller.polish
            self._sets = ({},) if polishing else self.sampler.draw(self.ranks, self.generator)
            self._full_drawn = self._full_drawn or {} in self._sets
        return self._sets

    def backward(
        self,
        forward: Callable[[], Tensor],
        loss: Loss,
        *,
        distil: Distil = soft_cross_entropy,
        backward: Callable[[Tensor], None] = torch.Tensor.backward,
        unsynced: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> float:
        """Run `forward` and the backward pass at every rank set of this step; the loss of the first.

        `forward()` gives (..., C) logits, `loss(logits)` the task's mean loss; `distil(logits, teacher)` is what
        the smaller sets minimise. `backward` may be an accelerator's; all passes but the last run inside
        `unsynced()`, which may be DDP's no_sync: gradients are then exchanged once a step.

        Raises:
            TrainingError: the loss is not finite, the model is in eval mode, or a norm got a batch of 1.
        """
        value, teacher = 0.0, None
        for index, ranks in enumerate(self.sets):
            quiet = unsynced() if index + 1 < len(self.sets) else nullcontext()
            with quiet, at_ranks(self.model, ranks):
                part, logits = self._pass(ranks, forward, loss, distil, teacher)
                if teacher is None:
                    value, teacher = require_finite(part, self.model, self.step), logits.detach()
                backward(part)
        return value

    def loss(self, forward: Callable[[], Tensor], loss: Loss, *, distil: Distil = soft_cross_entropy) -> Tensor:
        """What backward() minimises, as one tensor: for trainers that call backward themselves.

        All passes of the step are held in memory until then.
        """
        parts, teacher = [], None
        for ranks in self.sets:
            with at_ranks(self.model, ranks):
                part, logits = self._pass(ranks, forward, loss, distil, teacher)
            teacher = logits.detach() if teacher is None else teacher
            parts.append(part)
        require_finite(parts[0], self.model, self.step)
        return torch.stack(parts).sum()

    def _pass(
        self,
        ranks: Mapping[str, Rank],
        forward: Callable[[], Tensor],
        loss: Loss,
        distil: Distil,
        teacher: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        if not self.model.training:
            raise TrainingError(
                "the model is in eval mode, where BatchNorm and dropout do not train: model.train()"
            )
        # The full network's running statistics are its own, unless the sampler never runs it.
        with _norms_kept(self.model) if ranks and self._full_drawn else nullcontext():
            logits = _run(forward)
        if teacher is None:
            return loss(logits), logits
        return distil(logits, teacher) / (len(self.sets) - 1), logits

    @torch.no_grad()
    def update(self) -> bool:
        """Apply the penalty, move λ, drop empty components; call it after optimizer.step().

        True when layers got smaller: their parameters are then new objects, and DDP must wrap the model again.
        """
        step, self.step, self._sets = self.step, self.step + 1, None
        controller = self.controller
        if controller is None:
            if self.penalty:
                shrink_towards_zero(self.layers, self._steps())
        elif controller.active(step):
            self._towards_target(step, controller)
            if self.step == controller.last:
                return shrink_to(self.model, self.optimizer, self._landing(controller))
        return self.step % _SHRINK_EVERY == 0 and self.shrink()

    def shrink(self) -> bool:
        """Drop the components that the penalty has emptied; whether there were any."""
        if not self.current_penalty:
            return False
        # Towards a target only what is exactly zero goes: the controller counts on the rest.
        below = self.shrink_below if self.controller is None else sys.float_info.min
        return shrink_to(self.model, self.optimizer, needed_ranks(self.model, below))

    def _towards_target(self, step: int, controller: Controller) -> None:
        floor, lr = controller.line(step + 1), float(self.optimizer.param_groups[0]["lr"])
        survivors, shortened = shrink_towards_zero(
            self.layers,
            {name: self.current_penalty * lr * weight for name, weight in self._weights.items()},
            fits=lambda ranks: controller.sizes(ranks) >= floor,
        )
        controller.told(step, controller.sizes(survivors), shortened)

    def _landing(self, controller: Controller) -> dict[str, int]:
        """The ranks nearest to the target: what the penalty left above it goes by importance for its cost."""
        sizes = controller.sizes
        importances = {
            name: layer.importances() / (layer.importances()[0] * max(math.sqrt(sizes.saving(name)), 1e-30))
            for name, layer in self.layers.items()
        }
        ceiling = max(float(values[0]) for values in importances.values())
        layer_ranks = needed_ranks(self.model, sys.float_info.min)

        def at(threshold: float) -> dict[str, int]:
            return {
                name: max(1, min(layer_ranks[name], int((values >= threshold * ceiling).sum())))
                for name, values in importances.items()
            }

        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (
                (middle, high) if controller.sizes(at(middle)) > controller.sizes.target.value else (low, middle)
            )
        return min(
            (at(low), at(high)), key=lambda ranks: abs(controller.sizes(ranks) / controller.sizes.target.value - 1)
        )

    def _steps(self) -> dict[str, float]:
        step = self.current_penalty * float(self.optimizer.param_groups[0]["lr"])
        if self.penalty_form == "raw":
            return dict.fromkeys(self.layers, step)
        return {name: step / max(self.start_penalties[name], 1e-12) for name in self.layers}

    def _target_weights(self, sizes: Sizes) -> dict[str, float]:
        """How hard λ pulls at each layer: its components' mean norm, times the root of what one of them saves.

        So λ is a relative shrinkage, and layers give up more where that brings more. In proportion to what it
        brings would empty the few large layers: on LeNet at an eighth of its size that lost 1.5 points.
        """
        savings = {name: math.sqrt(sizes.saving(name)) for name in self.layers}
        mean = sum(savings.values()) / len(savings)
        return {
            name: float(layer.u.detach().flatten(1).norm(dim=1).mean()) * savings[name] / max(mean, 1e-300)
            for name, layer in self.layers.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs: JSON values, and the generator's state as a tensor."""
        return {
            "step": self.step,
            "penalty": self.penalty,
            "factor": None if self.controller is None else self.controller.factor,
            "start_penalties": dict(self.start_penalties),
            "weights": dict(self._weights),
            "sampler": self.sampler.state,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step, self.penalty = state["step"], state["penalty"]
        self.start_penalties, self._weights = dict(state["start_penalties"]), dict(state["weights"])
        self.sampler.restore(list(state["sampler"]))
        self.generator.set_state(state["generator"])
        if self.controller is not None:
            self.controller.factor = state["factor"]


def _check(model: nn.Module, optimizer: Optimizer, *, whole: bool) -> None:
    layers = ordered_layers(model)
    if not layers:
        raise TrainingError("the model has no ordered layer: call order(model) first")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, layer in layers.items():
        if not (layer.u.requires_grad and layer.v.requires_grad):
            raise TrainingError(
                f"layer {name!r} is frozen (requires_grad is False), its ranks cannot be ordered: unfreeze it, or "
                "leave it dense with where="
            )
        if id(layer.u) not in held or id(layer.v) not in held:
            raise TrainingError(f"the optimizer does not hold the factors of {name!r}: make it after order()")
        if whole and hasattr(layer.u, "full_tensor"):
            raise TrainingError(
                f"the factors of {name!r} are sharded (FSDP), a penalty or target needs whole ones: train with "
                "DDP, or without both"
            )


def _run(forward: Callable[[], Tensor]) -> Tensor:
    try:
        return forward()
    except ValueError as error:
        if "more than 1 value per channel" in str(error):
            raise TrainingError(
                f"a batch of 1 with BatchNorm cannot train ({error}): use 2 samples or more"
            ) from error
        raise


def require_finite(loss: Tensor, model: nn.Module, step: int) -> float:
    """The value of a loss.

    Raises:
        TrainingError: it is infinite or not a number; names the step and the layers with the largest weights.
    """
    value = float(loss.detach())
    if not math.isfinite(value):
        raise TrainingError(
            f"the loss is {value} at step {step}: lower the learning rate or clip the gradient; "
            f"largest norms: {_largest_norms(model)}"
        )
    return value


def _largest_norms(model: nn.Module, count: int = 4) -> str:
    """The layers whose weights are largest, not-a-number first."""
    norms = {name: float(p.detach().norm()) for name, p in model.named_parameters()}
    worst = sorted(norms, key=lambda name: norms[name] if math.isfinite(norms[name]) else math.inf, reverse=True)
    return ", ".join(f"{name} {norms[name]:.3g}" for name in worst[:count])


@contextmanager
def _norms_kept(model: nn.Module) -> Iterator[None]:
    """BatchNorm normalises by the batch at hand, but its running statistics stay those of the full ranks."""
    norms = [(m, m.momentum) for m in model.modules() if isinstance(m, _BatchNorm)]
    for norm, _ in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in norms:
            norm.momentum = momentum
