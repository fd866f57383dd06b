"""Sixteen architectures of transformers, small."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from maestro_edge.recipes.hugging_face import TEXT_MODELS
from maestro_edge.recipes.models import load_model
from tests.architecture_contract import Case, settled

TRANSFORMER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
PATCHES = {"image_size": 32, "patch_size": 8}
TOKENS = {"vocab_size": 50, "max_position_embeddings": 16}
TWO_STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1]}

CONFIGS: dict[str, dict[str, Any]] = {
    "resnet": {"embedding_size": 8, "layer_type": "basic", **TWO_STAGES},
    "regnet": {"embedding_size": 8, "groups_width": 8, "hidden_sizes": [16, 24], "depths": [1, 1]},
    "convnext": {"num_stages": 2, "layer_scale_init_value": 1.0, **TWO_STAGES},
    "mobilenet_v2": {"depth_multiplier": 0.25, "image_size": 32},
    "efficientnet": {
        "width_coefficient": 0.25,
        "hidden_dim": 320,
        "image_size": 32,
        "kernel_sizes": [3],
        "in_channels": [32],
        "out_channels": [64],
        "strides": [2],
        "num_block_repeats": [1],
        "expand_ratios": [4],
    },
    "vit": {**TRANSFORMER, **PATCHES},
    "deit": {**TRANSFORMER, **PATCHES},
    "swin": {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4, "image_size": 32},
    "poolformer": {
        "num_encoder_blocks": 2,
        "patch_sizes": [7, 3],
        "strides": [4, 2],
        "padding": [2, 1],
        "layer_scale_init_value": 1.0,
        **TWO_STAGES,
    },
    "levit": {
        "image_size": 128,
        "hidden_sizes": [16, 24, 32],
        "num_attention_heads": [1, 1, 2],
        "depths": [0, 0, 1],
        "key_dim": [8, 8, 8],
    },
    "segformer": {
        "num_encoder_blocks": 2,
        "sr_ratios": [2, 1],
        "patch_sizes": [7, 3],
        "strides": [4, 2],
        "num_attention_heads": [1, 2],
        "mlp_ratios": [2, 2],
        "decoder_hidden_size": 16,
        **TWO_STAGES,
    },
    "dinov2": {**TRANSFORMER, **PATCHES, "mlp_ratio": 2},
    "bert": {**TRANSFORMER, **TOKENS},
    "distilbert": {**TOKENS, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32},
    "gpt2": {"vocab_size": 50, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2},
    "llama": {**TRANSFORMER, **TOKENS, "num_key_value_heads": 1},
}


def case_of(kind: str, folder: Path) -> Iterator[Case]:
    """One of CONFIGS; its configuration is written to `folder`."""
    path = folder / "config.json"
    path.write_text(json.dumps({"model_type": kind, **CONFIGS[kind]}))
    torch.manual_seed(0)
    dense = load_model(f"hf:{path}", channels=3, classes=4)
    shorten(dense)
    edge = CONFIGS[kind].get("image_size", 32)
    inputs = torch.randint(50, (3, 8)) if kind in TEXT_MODELS else torch.randn(3, 3, edge, edge)
    yield from settled(dense, inputs)


def shorten(model: nn.Module) -> None:
    """Leave MobileNet one block that adds its input, of 16: their number is not in its configuration."""
    made: Any
    for made in model.modules():
        if type(made).__name__ == "MobileNetV2Model":
            made.layer = made.layer[:2]
            width = made.layer[-1].reduce_1x1.convolution.out_channels
            head = made.conv_1x1.convolution.out_channels
            made.conv_1x1 = type(made.conv_1x1)(made.config, width, head, kernel_size=1)
