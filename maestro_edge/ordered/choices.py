"""explain(): which layers of a model become ordered, and why each of the others stays dense."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from maestro_edge.errors import ModelError
from maestro_edge.ordered.attention import Attention, attention_refusal
from maestro_edge.ordered.dense import is_transposed_linear, matrices, refusal

__all__ = ["Choice", "Where", "attentions_of", "explain"]

Where = Callable[[str, nn.Module], bool] | Iterable[str]

_SMALLEST_GAIN = 16
"""A layer that only ranks up to this could speed up stays dense: runtimes compute 16 channels at once, and a
classifier of 10 classes at rank 2 costs the whole network its accuracy."""

_NOT_CHOSEN = "not chosen"
_HELD = "its parent uses the weight without calling the layer"
_LISTED = "listed with its attention"
_HOLDS_WEIGHTS = (nn.Linear, _ConvNd, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, nn.RNNBase, nn.RNNCellBase)


@dataclass(frozen=True)
class Choice:
    """Whether a layer becomes ordered; `reason` says why not, and is empty when it does."""

    name: str
    kind: str
    reason: str

    @property
    def ordered(self) -> bool:
        return not self.reason


def explain(model: nn.Module, *, where: Where | None = None) -> tuple[Choice, ...]:
    """Every Linear, convolution and Embedding, and what holds weights like them, with why it stays dense, if so.

    An nn.MultiheadAttention is listed as the four Linears that order() separates it into. `where` is that of
    order().

    Raises:
        ModelError: `where` names a layer that is not there or cannot be ordered.
    """
    named = None if where is None or callable(where) else {where} if isinstance(where, str) else set(where)
    predicate = where if callable(where) else None
    ties = _Ties(model)
    choices = []
    for name, module, held in _layers(model):
        reason = held or refusal(module) or ties.refusal(name, module)
        if named is not None:
            if name in named and reason:
                raise ModelError(f"layer {name!r} cannot be ordered: {reason}")
            reason = reason or ("" if name in named else _NOT_CHOSEN)
        elif not reason and not _trainable(module):
            reason = "frozen: name it in where= to order it"
        elif not reason:
            reason = (
                _gains_nothing(module) if predicate is None else "" if predicate(name, module) else _NOT_CHOSEN
            )
        choices.append(Choice(name, type(module).__name__, reason))
    _refuse_unknown(named or set(), choices)
    return tuple(choices)


def _refuse_unknown(named: set[str], choices: list[Choice]) -> None:
    unknown = sorted(named - {choice.name for choice in choices})
    if unknown:
        possible = [choice.name for choice in choices if choice.reason in ("", _NOT_CHOSEN)]
        inside = [name for name in possible if name.startswith(f"{unknown[0]}.")]
        known = ", ".join((inside or possible)[:8]) or "none here"
        raise ModelError(f"layer {unknown[0]!r} is none that can be ordered; those are such as {known}")


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Name, layer, and a reason that its parents give to leave it dense."""
    held: dict[str, str] = {}
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, nn.MultiheadAttention):
            reason = attention_refusal(module)
            if not reason:
                # The Linears are copies: order() separates its own copy of the model.
                for child, linear in Attention(module).named_children():
                    yield prefix + child, linear, ""
            else:
                yield name, module, reason
            held[f"{prefix}out_proj"] = _HELD if reason else _LISTED
        elif isinstance(module, nn.TransformerEncoderLayer) and _keeps(module.self_attn):
            for child in ("linear1", "linear2"):
                held[prefix + child] = _HELD
        holds = isinstance(module, _HOLDS_WEIGHTS) or is_transposed_linear(module)
        if holds and held.get(name) != _LISTED:
            yield name, module, held.get(name, "")


def _keeps(attention: nn.Module) -> bool:
    return isinstance(attention, nn.MultiheadAttention) and bool(attention_refusal(attention))


class _Ties:
    """Which modules have several names and which parameters several owners."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
        self.owners: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            self.owners.setdefault(id(parameter), []).append(name.rpartition(".")[0])
        self.model = model

    def refusal(self, name: str, layer: nn.Module) -> str:
        """Empty when the layer's weight is its own."""
        parent, _, child = name.rpartition(".")
        inside = self.model.get_submodule(parent) if parent or child else None
        holder = inside if isinstance(inside, nn.MultiheadAttention) else layer
        if self.modules[id(holder)] > 1:
            return "shared: the same module has several names"
        if isinstance(holder, nn.MultiheadAttention):
            weights = list(holder.parameters())
            mine = {parent, f"{parent}.out_proj" if parent else "out_proj"}
        else:
            weights, mine = [layer.weight], {name}  # type: ignore[list-item]
        others = [owner for weight in weights for owner in self.owners.get(id(weight), []) if owner not in mine]
        return f"its weight is tied to {others[0]!r}" if others else ""


def _trainable(layer: nn.Module) -> bool:
    weight = layer.weight
    return isinstance(weight, Tensor) and weight.requires_grad


def _gains_nothing(layer: nn.Module) -> str:
    if isinstance(layer, nn.Embedding):
        return "looked up, not multiplied: name it in where= to save its memory"
    _, m, n = matrices(layer).shape
    return "" if m * n / (m + n) > _SMALLEST_GAIN else "too small to gain from a lower rank"


def attentions_of(model: nn.Module, chosen: Iterable[str]) -> set[str]:
    """Names of the attentions to separate for the chosen layers: their own, and that of their encoder layer.

    An encoder layer's fast path reads the weights of its Linears too, unless its attention is separated.
    """
    found = set()
    for name in chosen:
        parent = name.rpartition(".")[0]
        module = model.get_submodule(parent) if name else model
        if isinstance(module, nn.MultiheadAttention):
            found.add(parent)
        elif isinstance(module, nn.TransformerEncoderLayer) and isinstance(
            module.self_attn, nn.MultiheadAttention
        ):
            found.add(f"{parent}.self_attn" if parent else "self_attn")
    return found
