"""Attention in ExecuTorch files: written out where it has no mask, left to PyTorch where it has one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from maestro_edge.runtimes import load
from maestro_edge.runtimes.attention import plain_attention
from maestro_edge.runtimes.silence import silence
from maestro_edge.values import Precision


class Attention(nn.Module):
    """Self-attention of four heads in a residual: (N, L, 32) → (N, L, 32), the last `hidden` tokens masked."""

    def __init__(self, *, hidden: int = 0, scale: float | None = None, is_causal: bool = False) -> None:
        super().__init__()
        self.ins, self.out = nn.ModuleList(nn.Linear(32, 32) for _ in range(3)), nn.Linear(32, 32)
        self.hidden, self.scale, self.is_causal = hidden, scale, is_causal

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (each(x).unflatten(2, (4, 8)).transpose(1, 2) for each in self.ins)
        tokens = x.shape[1]
        mask = (torch.arange(tokens) < tokens - self.hidden)[None] if self.hidden else None
        heads = scaled_dot_product_attention(query, key, value, mask, scale=self.scale, is_causal=self.is_causal)
        attended: Tensor = self.out(heads.transpose(1, 2).flatten(2))
        return x + attended


def operators(model: nn.Module) -> set[str]:
    with silence():
        program = plain_attention(torch.export.export(model.eval(), (torch.randn(1, 6, 32),)))
    return {str(node.target).removeprefix("aten.") for node in program.graph.nodes if node.op == "call_function"}


@pytest.mark.parametrize("scale", [None, 0.1])
def test_without_a_mask_it_is_written_out_and_equal(scale: float | None) -> None:
    torch.manual_seed(0)
    model, x = Attention(scale=scale).eval(), torch.randn(1, 6, 32)
    with silence():
        program = plain_attention(torch.export.export(model, (x,)))
    torch.testing.assert_close(program.module()(x), model(x))
    assert "scaled_dot_product_attention.default" not in operators(model)


@pytest.mark.parametrize("model", [Attention(hidden=2), Attention(is_causal=True)])
def test_with_a_mask_it_stays(model: Attention) -> None:
    assert "scaled_dot_product_attention.default" in operators(model)


def test_heads_that_share_keys_stay() -> None:
    class Shared(Attention):
        def forward(self, x: Tensor) -> Tensor:
            query, key, value = (each(x).unflatten(2, (4, 8)).transpose(1, 2) for each in self.ins)
            heads = scaled_dot_product_attention(query, key[:, :2], value[:, :2], enable_gqa=True)
            attended: Tensor = self.out(heads.transpose(1, 2).flatten(2))
            return x + attended

    assert "scaled_dot_product_attention.default" in operators(Shared())


@pytest.mark.parametrize("precision", ["fp32", "int8-static"])
def test_xnnpack_takes_the_whole_graph(tmp_path: Path, precision: Precision) -> None:
    torch.manual_seed(0)
    model, x = Attention().eval(), torch.randn(1, 6, 32)
    path, runtime = tmp_path / "attention.pte", load("executorch")
    delegation = runtime.export(model, (x,), path, precision, calibration=[x])
    assert delegation is not None and delegation.fallbacks == ()
    tolerance = 1e-5 if precision == "fp32" else 0.1
    torch.testing.assert_close(
        torch.from_numpy(runtime.predict(path, x.numpy())), model(x).detach(), atol=tolerance, rtol=tolerance
    )


def test_core_ml_keeps_its_own_operator(tmp_path: Path) -> None:
    path = tmp_path / "attention.pte"
    load("executorch-coreml").export(Attention().eval(), (torch.randn(1, 6, 32),), path)
    assert b"scaled_dot_product_attention" in path.read_bytes()
