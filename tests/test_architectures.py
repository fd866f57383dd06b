"""Sixteen architectures of transformers, small: ordered, trained a step, cut at five sizes, exported and run."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from maestro_edge.ordered import Ordered, at_ranks, cut, order, ordered_layers
from maestro_edge.recipes.hugging_face import TEXT_MODELS
from maestro_edge.recipes.models import load_model
from maestro_edge.runtimes import load
from maestro_edge.runtimes.runner import ExecuTorch
from maestro_edge.values import Rank

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
SIZES = (1, 3 / 4, 1 / 2, 1 / 4, 1 / 8)


class Case(NamedTuple):
    """A dense model in eval mode, the same ordered, inputs, and the dense outputs."""

    dense: nn.Module
    ordered: nn.Module
    inputs: Tensor
    wanted: Tensor

    def ranks(self, size: float) -> dict[str, Rank]:
        return {name: max(1, int(size * layer.rank)) for name, layer in ordered_layers(self.ordered).items()}


@pytest.fixture(scope="module", params=CONFIGS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    kind = request.param
    path = tmp_path_factory.mktemp(kind) / "config.json"
    path.write_text(json.dumps({"model_type": kind, **CONFIGS[kind]}))
    torch.manual_seed(0)
    dense = load_model(f"hf:{path}", channels=3, classes=4)
    shorten(dense)
    edge = CONFIGS[kind].get("image_size", 32)
    inputs = torch.randint(50, (3, 8)) if kind in TEXT_MODELS else torch.randn(3, 3, edge, edge)
    with torch.no_grad():
        settle(dense, inputs)
        wanted = dense(inputs)
        yield Case(dense, order(dense, where=lambda name, module: True).eval(), inputs, wanted)


def settle(model: nn.Module, inputs: Tensor) -> None:
    """Weights of unit gain, no zero biases, and each norm's statistics those of the inputs.

    As initialised, signals fade to 1e-30 on their way to the logits, and any two models agree on those.
    """
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.kaiming_normal_(parameter)
        elif not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 1.0
    model.train()(inputs)
    model.eval()


def shorten(model: nn.Module) -> None:
    """Leave MobileNet one block that adds its input: their number is not in its configuration."""
    for module in model.modules():
        if type(module).__name__ == "MobileNetV2Model":
            blocks = module.layer
            assert isinstance(blocks, nn.ModuleList)
            module.layer = nn.ModuleList(b for i, b in enumerate(blocks) if i < 2 or not b.use_residual)


def same(found: Tensor, wanted: Tensor) -> None:
    """Within 1e-4 of the largest output."""
    torch.testing.assert_close(found, wanted, atol=1e-4 * float(wanted.abs().max()), rtol=0)


def test_the_ordered_architecture_computes_what_the_dense_one_does(case: Case) -> None:
    """Most of its weights are in ordered layers, and the outputs stay."""
    found = case.ordered(case.inputs)

    assert len(ordered_layers(case.ordered)) >= 4
    assert float(case.wanted.std()) > 1e-2
    same(found, case.wanted)


def test_the_ordered_architecture_takes_a_training_step(case: Case) -> None:
    """The loss is finite, and both factors of every ordered layer move."""
    model = copy.deepcopy(case.ordered).train()
    before = copy.deepcopy(model.state_dict())

    with torch.enable_grad():
        outputs = model(case.inputs)
        loss = nn.functional.cross_entropy(outputs.flatten(0, -2), torch.arange(outputs[..., 0].numel()) % 4)
        loss.backward()  # type: ignore[no-untyped-call]
    torch.optim.SGD(model.parameters(), lr=0.1).step()

    assert torch.isfinite(loss)
    after = model.state_dict()
    assert all(torch.isfinite(value).all() for value in after.values() if value.is_floating_point())
    for name, layer in ordered_layers(model).items():
        for factor in (layer.u, layer.v):
            assert factor.grad is not None
            assert factor.grad.any(), name
    assert not all(torch.equal(after[f"{name}.u"], before[f"{name}.u"]) for name in ordered_layers(model))


def test_the_architecture_cut_at_five_sizes_computes_what_the_ordered_one_does(case: Case) -> None:
    """And holds stock layers, fewer weights the smaller the size."""
    params = []
    for size in SIZES:
        stock = cut(case.ordered, case.ranks(size))
        with at_ranks(case.ordered, case.ranks(size)):
            wanted = case.ordered(case.inputs)

        same(stock(case.inputs), wanted)
        assert not any(isinstance(module, Ordered) for module in stock.modules())
        params.append(sum(parameter.numel() for parameter in stock.parameters()))
    assert params[0] == sum(parameter.numel() for parameter in case.dense.parameters())
    assert params == sorted(params, reverse=True)
    assert params[-1] < params[0]


def test_the_cut_architecture_runs_as_an_executorch_file(case: Case, tmp_path: Path) -> None:
    """Images and 64-bit token ids alike; every third layer is thin, the others are folded."""
    stock = cut(case.ordered, dict(list(case.ranks(1 / 4).items())[::3]))
    path = tmp_path / "model.pte"
    stock(case.inputs)  # some keep tables that a first forward fills

    load("executorch").export(stock, (case.inputs[:1],), path)

    program = ExecuTorch(str(path), 1, None)
    program.feed(case.inputs[:1].numpy())
    same(torch.tensor(program.run()), stock(case.inputs[:1]))
