"""What every architecture must do once it is ordered, and as a file; each library's tests inherit these."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from maestro_edge.ordered import Ordered, at_ranks, cut, order, ordered_layers
from maestro_edge.runtimes import load
from maestro_edge.runtimes.runner import ExecuTorch
from maestro_edge.values import Rank

SIZES = (1, 3 / 4, 1 / 2, 1 / 4, 1 / 8)


class Case(NamedTuple):
    """A dense model in eval mode, the same ordered, inputs, and the dense outputs."""

    dense: nn.Module
    ordered: nn.Module
    inputs: Tensor
    wanted: Tensor

    def ranks(self, size: float) -> dict[str, Rank]:
        return {name: max(1, int(size * layer.rank)) for name, layer in ordered_layers(self.ordered).items()}


def settled(dense: nn.Module, inputs: Tensor) -> Iterator[Case]:
    """The case of a model just made; no gradients are kept until the generator is left."""
    with torch.no_grad():
        settle(dense, inputs)
        yield Case(dense, order(dense, where=lambda name, module: True).eval(), inputs, dense(inputs))


def settle(model: nn.Module, inputs: Tensor) -> None:
    """Weights of unit gain, no biases or layer scales near zero, and each norm's statistics those of the inputs.

    As initialised, signals fade to 1e-30 on their way to the logits, and any two models agree on those.
    """
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.kaiming_normal_(parameter)
        elif parameter.abs().max() < 1e-3:
            nn.init.normal_(parameter, std=0.1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 1.0
    model.train()(inputs)
    model.eval()


def same(found: Tensor, wanted: Tensor) -> None:
    """Within 1e-4 of the largest output."""
    torch.testing.assert_close(found, wanted, atol=1e-4 * float(wanted.abs().max()), rtol=0)


class ArchitectureContract:
    """Inherit, and give a fixture `case`."""

    def test_the_ordered_architecture_computes_what_the_dense_one_does(self, case: Case) -> None:
        """Most of its weights are in ordered layers, and the outputs stay."""
        found = case.ordered(case.inputs)

        assert len(ordered_layers(case.ordered)) >= 4
        assert float(case.wanted.std()) > 1e-2
        same(found, case.wanted)

    def test_the_ordered_architecture_takes_a_training_step(self, case: Case) -> None:
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

    def test_the_architecture_cut_at_five_sizes_computes_what_the_ordered_one_does(self, case: Case) -> None:
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


class FileContract:
    """Inherit, and give a fixture `case`; apart from the other, because exports take long."""

    def test_the_cut_architecture_runs_as_an_executorch_file(self, case: Case, tmp_path: Path) -> None:
        """Images and 64-bit token ids alike; every third layer is thin, the others are folded."""
        stock = cut(case.ordered, dict(list(case.ranks(1 / 4).items())[::3]))
        path = tmp_path / "model.pte"
        stock(case.inputs)  # some keep tables that a first forward fills

        load("executorch").export(stock, (case.inputs[:1],), path)

        program = ExecuTorch(str(path), 1, None)
        program.feed(case.inputs[:1].numpy())
        same(torch.tensor(program.run()), stock(case.inputs[:1]))
