"""Small networks to start from, and loading a model by its reference."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maestro_edge.errors import ModelError
from maestro_edge.recipes.hugging_face import hugging_face_model, timm_model
from maestro_edge.recipes.pretrained import efficientnet_lite0, minilm

__all__ = ["DEFAULT_MODEL", "ResNet8", "load_model", "resnet8"]

DEFAULT_MODEL = "maestro_edge.recipes.models:resnet8"
LIBRARIES = {"hf": hugging_face_model, "timm": timm_model}
PRETRAINED = {"efficientnet-lite0": efficientnet_lite0, "minilm": minilm}


class Block(nn.Module):
    """The basic residual block (He et al., CVPR 2016, §3.3), with a projection where the size changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.project: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.project = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.project(x))


class ResNet8(nn.Module):
    """Three residual blocks of `width`, 2 `width` and 4 `width` channels after a 3 x 3 stem."""

    def __init__(self, *, channels: int, classes: int, width: int, stem_stride: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, stem_stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(
            Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2)
        )
        self.classifier = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.norm(self.stem(x))))  # (N, 4 width, H / 8, W / 8)
        logits: Tensor = self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def resnet8(channels: int = 1, classes: int = 10) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """ResNet-8 of width 64 with a strided stem, for (N, `channels`, 32, 32) images; 49 M MACs."""
    model = ResNet8(channels=channels, classes=classes, width=64, stem_stride=2)
    return model, (torch.zeros(1, channels, 32, 32),)


def load_model(reference: str, *, channels: int, classes: int) -> nn.Module:
    """The module that `package.module:function` returns (alone, or first beside its example inputs).

    `channels` and `classes` are passed where the function has such parameters. `hf:TYPE` and
    `hf:path/config.json` make a model of transformers, `timm:NAME` one of timm, with random weights;
    `efficientnet-lite0` and `minilm` are pretrained.

    Raises:
        ModelError: the reference has another form, does not import, or returns no module.
        MissingExtra: the package that it needs is not installed.
    """
    if reference in PRETRAINED:
        return PRETRAINED[reference](channels=channels, classes=classes)
    module_name, separator, function_name = reference.partition(":")
    if not separator or not module_name or not function_name:
        raise ModelError(
            f"{reference!r} is not a model: give package.module:function, hf:TYPE, hf:path/config.json, "
            f"timm:NAME, {' or '.join(PRETRAINED)}"
        )
    if module_name in LIBRARIES:
        return LIBRARIES[module_name](function_name, channels=channels, classes=classes)
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ModelError(f"model {reference!r} cannot be imported: {error}") from error
    known: dict[str, Any] = {"channels": channels, "classes": classes}
    taken = {name: known[name] for name in inspect.signature(function).parameters if name in known}
    made = function(**taken)
    model = made[0] if isinstance(made, tuple) else made
    if not isinstance(model, nn.Module):
        raise ModelError(f"model {reference!r} returns a {type(model).__name__}, not a torch module")
    return model
