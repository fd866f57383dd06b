"""The dense layers that can be ordered: the matrix each holds, the rows it puts out, and why another cannot."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from maestro_edge.errors import ModelError

__all__ = [
    "an",
    "is_transposed_linear",
    "matrices",
    "output_rows",
    "refusal",
    "spatial_matrix",
    "symmetric_padding",
]


def is_transposed_linear(module: nn.Module) -> bool:
    """Whether it is the Conv1D of transformers, a Linear whose weight is (in, out); GPT-2 is made of them."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def matrices(layer: nn.Module) -> Tensor:
    """(G, m / G, n) weights of a layer as one matrix of outputs x inputs for each of its G groups."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if isinstance(layer, nn.Embedding) or is_transposed_linear(layer):
        return weight.T[None]
    groups = layer.groups if isinstance(layer, nn.Conv1d | nn.Conv2d) else 1
    return torch.unflatten(weight.flatten(1), 0, (groups, -1))


def spatial_matrix(conv: nn.Conv2d) -> Tensor:
    """(1, O kw, C kh) weights of a Conv2d of one group, for a pair of kernels kh x 1 and 1 x kw."""
    return conv.weight.permute(0, 3, 1, 2).flatten(2).flatten(0, 1)[None]


def output_rows(layer: nn.Module, output: Tensor) -> Tensor:
    """(G, rows, m / G) outputs of a layer without its bias, in double precision."""
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        output = output.movedim(-3 if isinstance(layer, nn.Conv2d) else -2, -1)
    rows = output.reshape(-1, output.shape[-1]).double()
    bias = getattr(layer, "bias", None)
    rows = rows if bias is None else rows - bias
    groups = layer.groups if isinstance(layer, nn.Conv1d | nn.Conv2d) else 1
    return torch.unflatten(rows, 1, (groups, -1)).transpose(0, 1)


def refusal(layer: nn.Module) -> str:
    """Why this layer cannot be ordered wherever it stands; empty when it can."""
    if type(layer) not in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding) and not is_transposed_linear(layer):
        return f"{an(layer)} cannot be ordered"
    weight = layer._parameters.get("weight")
    if weight is None:
        return "its weight is computed anew in every forward, as by weight_norm or pruning"
    if not weight.is_floating_point():
        return f"its weight is {str(weight.dtype).removeprefix('torch.')}, not real numbers"
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        return _conv_refusal(layer)
    if isinstance(layer, nn.Embedding):
        options = {
            "max_norm": layer.max_norm,
            "sparse": layer.sparse,
            "scale_grad_by_freq": layer.scale_grad_by_freq,
        }
        found = [name for name, value in options.items() if value]
        return f"its option {found[0]} works on whole rows" if found else ""
    return ""


def _conv_refusal(conv: nn.Conv1d | nn.Conv2d) -> str:
    if conv.groups > 1 and conv.groups == conv.in_channels:
        return "depthwise"
    if conv.padding_mode != "zeros":
        return f"padding mode {conv.padding_mode!r}"
    try:
        symmetric_padding(conv)
    except ModelError as error:
        return str(error)
    return ""


def an(layer: nn.Module) -> str:
    """The layer's kind with its article: "an Embedding", "an LSTM", "a Conv3d"."""
    kind = type(layer).__name__
    return f"{'an' if kind[0] in 'AEIOU' or kind.startswith('LSTM') else 'a'} {kind}"


def symmetric_padding(conv: nn.Conv1d | nn.Conv2d) -> tuple[int, ...]:
    """The zeros on each side, (H, W) of a Conv2d; 'same' with an odd kernel and 'valid' are turned into numbers.

    Raises:
        ModelError: 'same' needs one more zero on one side than on the other.
    """
    if not isinstance(conv.padding, str):
        return tuple(int(side) for side in conv.padding)
    if conv.padding == "valid":
        return tuple(0 for _ in conv.kernel_size)
    total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    if any(t % 2 for t in total):
        raise ModelError("padding 'same' with an even kernel is not symmetric")
    return tuple(t // 2 for t in total)
