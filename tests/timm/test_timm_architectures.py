"""Architectures of timm: ordered, trained a step, cut at five sizes, exported and run. Without timm they fail."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest
import torch

from maestro_edge.recipes.models import load_model
from tests.architecture_contract import ArchitectureContract, Case, FileContract, settled

SIDES: Final = {
    "resnet18": 64,
    "resnext26ts": 64,
    "regnety_002": 64,
    "mobilenetv2_035": 64,
    "mobilenetv3_small_050": 64,
    "tf_mobilenetv3_small_minimal_100": 64,
    "mobilenetv4_conv_small_035": 64,
    "efficientnet_b0": 64,
    "convnext_atto": 64,
    "poolformer_s12": 64,
    "mobilevit_xxs": 64,
    "vit_tiny_patch16_224": 224,
    "deit_tiny_distilled_patch16_224": 224,
    "swin_tiny_patch4_window7_224": 224,
    "mixer_s32_224": 224,
    "levit_128s": 224,
}
"""Small models of each kind, and the side of their images: 64 where any will do, else what is built into them."""


@pytest.fixture(scope="module", params=SIDES)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    torch.manual_seed(0)
    dense = load_model(f"timm:{request.param}", channels=3, classes=4)
    side = SIDES[request.param]
    yield from settled(dense, torch.randn(3, 3, side, side))


class TestContract(ArchitectureContract, FileContract):
    """The contract of architectures, on those of timm."""
