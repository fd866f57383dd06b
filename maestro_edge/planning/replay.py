"""Running a model again on one batch with a layer cut, from remembered outputs of all that comes before it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from maestro_edge.ordered import OrderedEmbedding, ordered_layers

__all__ = ["Replay", "forwards", "merged_once", "replaying"]


class _Call:
    """One call of a module in the recorded run, and what it returned if that may stand for the call."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.end = 0  # the first call that is neither this one nor inside of it
        self.output: Any = None
        self.versions: list[int] | None = None  # None where the output is not kept


class Replay:
    """A model whose modules return what they returned before, up to the first call of the layer that is cut.

    The calls of one run are numbered as they begin, so a module and the calls inside of it are a range: where
    all of it comes before the cut, none of it runs. What a module changes in place, or passes on without a copy
    (Identity, a view), is computed again; an output that is changed in place later is remembered as a copy.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._calls: list[_Call] = []
        self._changed: set[int] = set()
        self._now = 0
        self._cut_at: int | None = None
        self._keeps: Callable[[nn.Module], bool] = lambda module: True

    def record(self, inputs: Tensor) -> Tensor:
        """The logits of the model on `inputs` (N, …), whose outputs are remembered in place of earlier ones."""
        while True:
            self._calls, self._cut_at = [], None
            logits = self._run(inputs)
            changed = {
                index
                for index, call in enumerate(self._calls)
                if call.versions is not None and call.versions != _versions(call.output)
            }
            if changed <= self._changed:
                self._inputs = inputs
                return logits
            # Their values are gone: run once more, and copy these before they change.
            self._changed |= changed

    def after(self, layers: Iterable[str]) -> Tensor:
        """The logits on the recorded inputs, computed from the first call of any of the named layers on."""
        modules = {self.model.get_submodule(name) for name in layers}
        calls = (index for index, call in enumerate(self._calls) if call.module in modules)
        # The model itself is not among the calls: it is computed as a whole.
        self._cut_at = next(calls, 0)
        return self._run(self._inputs)

    def kept_bytes(self) -> int:
        """Bytes of memory that the recorded outputs take."""
        tensors = [tensor for call in self._calls for tensor in _tensors(call.output)]
        kept = {
            storage.data_ptr(): storage.nbytes() for storage in (tensor.untyped_storage() for tensor in tensors)
        }
        return sum(kept.values())

    def prove(self, inputs: Tensor, layers: Iterable[str]) -> None:
        """Find out on a few `inputs` what may be remembered: any module, those without others inside, or none.

        A module may do more than return something, such as fill a cache that a later one reads. From every layer
        on, the uncut model must give the very same logits, also when other inputs ran in between.
        """
        layers = list(layers)
        for keeps in (_any, _childless, _none):
            self._keeps, self._changed = keeps, set()
            logits = self.record(inputs)
            if all(self._repeats(layer, logits) for layer in layers):
                return

    def _repeats(self, layer: str, logits: Tensor) -> bool:
        self._cut_at = 0
        self._run(self._inputs.flip(0))
        return torch.equal(self.after([layer]), logits)

    def forward_of(self, module: nn.Module) -> Callable[..., Any]:
        """What stands for the module's forward."""
        compute = module.forward

        def forward(*args: Any, **named: Any) -> Any:
            if self._cut_at is None:
                return self._recorded(module, compute, args, named)
            index = self._now
            if index < self._cut_at:
                call = self._calls[index]
                assert call.module is module, "the model calls other modules than when it was recorded"
                if call.versions is not None and call.end <= self._cut_at:
                    self._now = call.end
                    return copy.deepcopy(call.output) if index in self._changed else call.output
            self._now += 1
            return compute(*args, **named)

        return forward

    def _run(self, inputs: Tensor) -> Tensor:
        self._now = 0
        logits: Tensor = self.model(inputs)
        return logits

    def _recorded(
        self, module: nn.Module, compute: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any]
    ) -> Any:
        index, call = self._now, _Call(module)
        self._calls.append(call)
        self._now += 1
        received = [value for value in (*args, *named.values()) if isinstance(value, Tensor)]
        before = [tensor._version for tensor in received]
        output = compute(*args, **named)
        call.end = self._now
        returned = _tensors(output)
        held = {tensor.untyped_storage().data_ptr() for tensor in received if tensor.layout == torch.strided}
        own = all(tensor.untyped_storage().data_ptr() not in held for tensor in returned)
        untouched = before == [tensor._version for tensor in received]
        if self._keeps(module) and returned and own and untouched:
            call.output = copy.deepcopy(output) if index in self._changed else output
            call.versions = _versions(call.output)
        return output


def _any(module: nn.Module) -> bool:
    return True


def _childless(module: nn.Module) -> bool:
    return next(module.children(), None) is None


def _none(module: nn.Module) -> bool:
    return False


def _tensors(output: Any) -> list[Tensor]:
    """The tensors of an output that can be remembered, one or tuples of them; none where it holds more."""
    found: list[Tensor] = []
    waiting = [output]
    while waiting:
        value = waiting.pop()
        if isinstance(value, tuple):
            waiting.extend(value)
        elif isinstance(value, Tensor) and value.layout == torch.strided and not value.is_nested:
            found.append(value)
        elif value is not None:
            return []  # a list or an object might be changed by whoever gets it
    return found


def _versions(output: Any) -> list[int]:
    """How often each tensor has been changed in place."""
    return [tensor._version for tensor in _tensors(output)]


@contextmanager
def replaying(model: nn.Module) -> Iterator[Replay]:
    """A Replay of `model`, whose modules have their own forwards back after the block."""
    replay = Replay(model)
    inside = [module for module in model.modules() if module is not model]
    with forwards({module: replay.forward_of(module) for module in inside}):
        yield replay


@contextmanager
def merged_once(model: nn.Module) -> Iterator[None]:
    """Let the ordered layers of `model` multiply U Vᵀ out once, not in every forward at full rank.

    The weights must not change inside the block.
    """
    layers = ordered_layers(model).values()
    merged = (layer for layer in layers if not isinstance(layer, OrderedEmbedding))
    with forwards({layer: _merged(layer) for layer in merged if layer.above_break_even(layer.rank)}):
        yield


def _merged(layer: Any) -> Callable[..., Any]:
    compute, stock = layer.forward, layer.fold(layer.rank)
    # fold() multiplies in double: this is the very weight that the layer itself would use.
    active, layer.active_rank = layer.active_rank, None
    stock.weight = nn.Parameter(layer.weight.detach().contiguous(), requires_grad=False)
    layer.active_rank = active
    return lambda x: stock.forward(x) if layer.used == layer.rank else compute(x)


@contextmanager
def forwards(replaced: dict[Any, Callable[..., Any]]) -> Iterator[None]:
    """The given modules with these forwards; one that had a forward of its own, as of a hook, gets that back."""
    before = {module: vars(module).get("forward") for module in replaced}
    try:
        for module, forward in replaced.items():
            module.forward = forward
        yield
    finally:
        for module, own in before.items():
            vars(module).pop("forward", None)
            if own is not None:
                module.forward = own
