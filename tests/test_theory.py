"""The theory of ordered training on linear maps, where the answer is known (method.md §6; ICML 2024, §4)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from maestro_edge.ordered import Ordered, order, ordered_layers
from maestro_edge.training.penalty import add_penalty_gradient, layer_penalty
from maestro_edge.training.samplers import PairSampler
from maestro_edge.training.shrinking import shrink


def ordered_linear(inputs: int, outputs: int, *, seed: int) -> Ordered:
    """The plain SVD of a random start, in double precision, without bias."""
    torch.manual_seed(seed)
    dense = nn.Linear(inputs, outputs, bias=False).double()
    return ordered_layers(order(dense, where=lambda name, module: True))[""]


def risk(layer: Ordered, rank: int, target: Tensor, root: Tensor) -> Tensor:
    """E‖(W_rank − A) x‖² for inputs of second moment Σ, exactly: ‖Σ^½ (W_rank − A)ᵀ‖_F²."""
    layer.use(rank)
    found: Tensor = layer(root)
    layer.use(None)
    return (found - root @ target.T).square().sum()


def descend(layer: Ordered, target: Tensor, *, steps: int, lr: float) -> None:
    """SGD on one sampled prefix a step, as in training."""
    generator = torch.Generator().manual_seed(0)
    sampler = PairSampler()
    optimizer = torch.optim.SGD(layer.parameters(), lr=lr, momentum=0.9)
    for _ in range(steps):
        (drawn,) = sampler.draw({"": layer.rank}, generator)
        rank = drawn[""]
        assert isinstance(rank, int)
        optimizer.zero_grad()
        risk(layer, rank, target, torch.eye(target.shape[1]).double()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def converge(layer: Ordered, target: Tensor, root: Tensor, *, penalty: float = 0.0, steps: int = 400) -> None:
    """L-BFGS on the mean risk over all prefixes, plus the group lasso through its closed-form gradient."""
    optimizer = torch.optim.LBFGS(
        layer.parameters(),
        max_iter=steps,
        history_size=50,
        tolerance_grad=1e-12,
        tolerance_change=1e-15,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        optimizer.zero_grad()
        losses = [risk(layer, rank, target, root) for rank in range(1, layer.rank + 1)]
        loss = torch.stack(losses).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        if not penalty:
            return float(loss.detach())
        add_penalty_gradient({"": layer}, {"": penalty})
        return float(loss.detach()) + penalty * layer_penalty(layer)

    optimizer.step(closure)  # type: ignore[no-untyped-call]


def component_norms(layer: Ordered) -> Tensor:
    """(r,) ‖u_b‖ ‖v_b‖ of each component on its own."""
    norms: Tensor = layer.u.detach().norm(dim=1) * layer.v.detach().norm(dim=1)
    return norms


def test_whitened_inputs_give_the_truncated_svds() -> None:
    """(a) Sampling prefixes under Σ = I learns the SVD of the target, in order, and nothing beyond its rank."""
    torch.manual_seed(123)
    target = (torch.randn(9, 3) @ torch.randn(3, 6)).double()
    left, scale, right = torch.linalg.svd(target, full_matrices=False)
    assert scale[:3].tolist() == pytest.approx([9.5465, 6.9242, 3.6651], abs=1e-4)
    layer = ordered_linear(6, 9, seed=2)

    descend(layer, target, steps=1500, lr=0.006)
    sampled = component_norms(layer)
    converge(layer, target, torch.eye(6).double())

    assert sampled.tolist() == pytest.approx(scale.tolist(), abs=0.1)
    norms = component_norms(layer)
    assert norms[:3].tolist() == pytest.approx(scale[:3].tolist(), abs=1e-3)
    assert float(norms[3:].max()) < 2e-3
    for rank in range(1, 7):
        truncated = left[:, :rank] * scale[:rank] @ right[:rank]
        torch.testing.assert_close(layer.merged(rank), truncated, atol=1e-3, rtol=0)


def principal(deviations: list[float]) -> tuple[Tensor, Tensor]:
    """Random orthonormal directions (as columns), and Σ^½ with these standard deviations along them."""
    torch.manual_seed(7)
    directions: Tensor = torch.linalg.qr(torch.randn(len(deviations), len(deviations)).double())[0]
    root: Tensor = directions * torch.tensor(deviations).double() @ directions.T
    return directions, root


def test_the_identity_gives_projectors_on_the_principal_components() -> None:
    """(b) With A = I and a faint group lasso, prefix b projects on the b leading directions of the inputs."""
    directions, root = principal([5.0, 3.0, 1.5, 0.7])
    layer = ordered_linear(4, 4, seed=0)

    converge(layer, torch.eye(4).double(), root, penalty=1e-4, steps=300)

    for rank in range(1, 5):
        projector = directions[:, :rank] @ directions[:, :rank].T
        torch.testing.assert_close(layer.merged(rank), projector, atol=1e-3, rtol=0)


def test_the_lasso_drops_the_directions_that_carry_least() -> None:
    """(b) A stronger lasso empties the trailing components for good, and shrink() finds how many are left."""
    directions, root = principal([5.0, 3.0, 1.5, 0.1, 0.05])
    layer = ordered_linear(5, 5, seed=0)

    converge(layer, torch.eye(5).double(), root, penalty=0.05)
    ranks = shrink(layer, torch.optim.SGD(layer.parameters(), lr=0.1))

    assert ranks == {"": 3}
    projector = directions[:, :3] @ directions[:, :3].T
    torch.testing.assert_close(layer.merged(3), projector, atol=0.05, rtol=0)


def test_the_inputs_decide_the_order_not_the_weights_alone() -> None:
    """(c) Inputs ten times larger along the weaker direction reverse the order of the plain SVD."""
    target = torch.diag(torch.tensor([1.0, 3.0]))
    inputs = torch.randn(500, 2) * torch.tensor([10.0, 1.0])
    dense = nn.Linear(2, 2, bias=False)
    dense.weight.data.copy_(target)

    plain = ordered_layers(order(dense, where=lambda name, module: True))[""]
    whitened = ordered_layers(order(dense, where=lambda name, module: True, calibration=[inputs]))[""]

    torch.testing.assert_close(plain.merged(1), torch.diag(torch.tensor([0.0, 3.0])), atol=1e-6, rtol=0)
    # The sample's two directions are correlated a little, so the best plane is tilted a little.
    torch.testing.assert_close(whitened.merged(1), torch.diag(torch.tensor([1.0, 0.0])), atol=0.1, rtol=0)


def test_training_learns_the_whitened_order() -> None:
    """(c) For a general Σ the learned prefixes are the best ones for A Σ^½, not the truncated SVDs of A."""
    target = torch.diag(torch.tensor([1.0, 3.0])).double()
    root = torch.diag(torch.tensor([10.0, 1.0])).double()
    layer = ordered_linear(2, 2, seed=0)

    converge(layer, target, root)

    leading = torch.diag(torch.tensor([1.0, 0.0])).double()
    torch.testing.assert_close(layer.merged(1), leading, atol=1e-3, rtol=0)
    torch.testing.assert_close(layer.merged(2), target, atol=1e-3, rtol=0)
