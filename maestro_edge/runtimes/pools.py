"""Padded max pools as an accelerated runtime takes them: XNNPACK has no padding by minus infinity."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn

__all__ = ["pad_before_pools"]

_ATEN: Final = torch.ops.aten
_AT_LEAST_ZERO: Final = {_ATEN.relu.default, _ATEN.relu_.default, _ATEN.relu6.default, _ATEN.sigmoid.default}
_KEEP_THE_LEAST: Final = {_ATEN.max_pool2d.default, _ATEN.dropout.default, _ATEN.contiguous.default}
"""What gives nothing below zero when it is given nothing below zero."""


def pad_before_pools(model: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """`model` with every padded max pool behind a ReLU preceded by a padding of zeros; itself if there is none.

    A model is looked through if it has a module MaxPool2d. As no pixel is below zero, a border of zeros never wins
    over one, so the outputs are the same bit by bit. A pool of other values stays as it is, and splits the graph
    there.
    """
    if not any(isinstance(module, nn.MaxPool2d) for module in model.modules()):
        return model  # most networks: the second tracing is spared
    module: nn.Module = torch.export.export(model, inputs).module(check_guards=False)
    graph: Any = module.graph
    pools = [node for node in graph.nodes if node.target == _ATEN.max_pool2d.default and _can_be_padded(node)]
    if not pools:
        return model
    for pool in pools:
        source, kernel, stride, padding, *others = pool.args
        rows, columns = padding if len(padding) == 2 else 2 * padding
        with graph.inserting_before(pool):
            zeros = ([columns, columns, rows, rows], "constant", 0.0)
            padded = graph.call_function(_ATEN.pad.default, (source, *zeros))
        pool.args = (padded, kernel, stride, [0, 0], *others)
    module.recompile()  # type: ignore[operator]
    module.training = False  # eval() is refused by what was exported, though it was in eval mode
    return module


def _can_be_padded(pool: Any) -> bool:
    """With a padding, rounded down (rounding up bounds windows by it), of what is not below zero."""
    arguments = dict(enumerate(pool.args))
    padding, rounds_up = arguments.get(3, [0]), arguments.get(5, False)
    return any(padding) and not rounds_up and _is_at_least_zero(pool.args[0])


def _is_at_least_zero(node: Any) -> bool:
    while node.target in _KEEP_THE_LEAST:
        node = node.args[0]
    return node.target in _AT_LEAST_ZERO
