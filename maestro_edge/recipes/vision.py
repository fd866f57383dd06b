"""The image networks of the paper's experiments, of stock torch layers, each made by `(channels, classes)`.

Convolutions before a BatchNorm have no bias: the norm's own shift replaces it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maestro_edge.recipes.models import Block

__all__ = ["LeNet", "ResNet", "SmallCnn", "Vgg", "lenet", "resnet18", "resnet20", "resnet50", "small_cnn", "vgg19"]

VGG19: Final = ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4)


class LeNet(nn.Module):
    """LeNet-5 with ReLU and max-pooling, for (N, C, 32, 32): what pads the images is the data's task."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.hidden1 = nn.Linear(400, 120)
        self.hidden2 = nn.Linear(120, 84)
        self.classifier = nn.Linear(84, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)  # (N, 6, 14, 14)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)  # (N, 16, 5, 5)
        x = F.relu(self.hidden2(F.relu(self.hidden1(x.flatten(1)))))
        logits: Tensor = self.classifier(x)
        return logits


def lenet(channels: int = 1, classes: int = 10) -> nn.Module:
    """LeNet-5 (LeCun et al., 1998, §II.B): 61,706 parameters for MNIST padded to 32 x 32; 0.42 M MACs.

    Maestro's reference code has the same layers (maestro/models/lenet.py), but feeds 28 x 28: its first
    hidden layer has 256 inputs, not the 400 of LeCun's 32 x 32.
    """
    return LeNet(channels, classes)


class SmallCnn(nn.Module):
    """Three convolutions with BatchNorm, each halved by max-pooling, and one hidden layer."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        widths = (channels, 32, 64, 128)
        self.stages = nn.Sequential(*(_conv_norm_relu(*pair) for pair in pairwise(widths)))
        self.hidden = nn.Linear(128 * 4, 192)
        self.classifier = nn.Linear(192, classes)

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = F.max_pool2d(stage(x), 2)
        x = F.adaptive_max_pool2d(x, 2).flatten(1)  # (N, 512)
        logits: Tensor = self.classifier(F.relu(self.hidden(x)))
        return logits


def small_cnn(channels: int = 1, classes: int = 10) -> nn.Module:
    """A small network for Fashion-MNIST, (N, C, 32, 32): 193 k parameters, 9.8 M MACs with one channel."""
    return SmallCnn(channels, classes)


class Bottleneck(nn.Module):
    """The 1 x 1, 3 x 3, 1 x 1 block (He et al., CVPR 2016, §4.1), its stride in the 3 x 3 convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        width = outputs // 4
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(outputs)
        self.project: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.project = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(self.norm3(self.conv3(y)) + self.project(x))


class ResNet(nn.Module):
    """A residual network: `depths` blocks of `widths` channels a stage, each stage but the first halving the size.

    The stem is 3 x 3 for small images, and with `large` the 7 x 7 of stride 2 and max-pooling of ImageNet's.
    """

    def __init__(
        self,
        block: type[Block] | type[Bottleneck],
        *,
        channels: int,
        classes: int,
        stem: int,
        widths: tuple[int, ...],
        depths: tuple[int, ...],
        large: bool = False,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, stem, 7 if large else 3, 2 if large else 1, 3 if large else 1, bias=False)
        self.norm = nn.BatchNorm2d(stem)
        self.pool: nn.Module = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()
        self.stages = nn.Sequential()
        inputs = stem
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            strides = (1 if stage == 0 else 2, *(1,) * (depth - 1))
            blocks = [
                block(inputs if place == 0 else width, width, stride) for place, stride in enumerate(strides)
            ]
            self.stages.append(nn.Sequential(*blocks))
            inputs = width
        self.classifier = nn.Linear(inputs, classes)
        _he_start(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.norm(self.stem(x))))
        x = self.stages(x)
        logits: Tensor = self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def resnet20(channels: int = 3, classes: int = 10) -> nn.Module:
    """ResNet-20 for CIFAR (He et al., CVPR 2016, §4.2): 0.27 M parameters, 41 M MACs.

    Its shortcuts are projections where the size changes, not the padded identities of that section: a
    runtime without a strided slice runs them too.
    """
    return ResNet(Block, channels=channels, classes=classes, stem=16, widths=(16, 32, 64), depths=(3, 3, 3))


def resnet18(channels: int = 3, classes: int = 10) -> nn.Module:
    """ResNet-18 with a 3 x 3 stem for 32 x 32 images: 11.17 M parameters, 0.555 GMACs (the paper).

    The reference code's resnet18 has the stem of ImageNet instead, which has other numbers than the paper's.
    """
    widths, depths = (64, 128, 256, 512), (2, 2, 2, 2)
    return ResNet(Block, channels=channels, classes=classes, stem=64, widths=widths, depths=depths)


def resnet50(channels: int = 3, classes: int = 1000) -> nn.Module:
    """ResNet-50 v1.5, as torchvision's, for 224 x 224 images: 25.56 M parameters, 4.09 GMACs."""
    widths, depths = (256, 512, 1024, 2048), (3, 4, 6, 3)
    return ResNet(
        Bottleneck, channels=channels, classes=classes, stem=64, widths=widths, depths=depths, large=True
    )


class Vgg(nn.Module):
    """VGG with BatchNorm for 32 x 32 images: stages of 3 x 3 convolutions, each halved, and one classifier."""

    def __init__(self, channels: int, classes: int, *, stages: tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        self.features = nn.Sequential()
        inputs = channels
        for widths in stages:
            for width in widths:
                self.features.append(_conv_norm_relu(inputs, width))
                inputs = width
            self.features.append(nn.MaxPool2d(2))
        self.classifier = nn.Linear(inputs, classes)
        _he_start(self)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.flatten(self.features(x), 1))
        return logits


def vgg19(channels: int = 3, classes: int = 10) -> nn.Module:
    """VGG-19 for 32 x 32 images: 20.04 M parameters, 0.398 GMACs (the paper; maestro/models/vggs.py)."""
    return Vgg(channels, classes, stages=VGG19)


def _conv_norm_relu(inputs: int, outputs: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def _he_start(model: nn.Module) -> None:
    # torch's own start lets the signal of a 19-layer network fade before its norms are of use.
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
