"""The group lasso against autograd, shrinking against optimizers' state, and what the samplers draw."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from maestro_edge.errors import TrainingError
from maestro_edge.ordered import Ordered, order, ordered_layers
from maestro_edge.training.penalty import add_penalty_gradient, layer_penalty, shrink_towards_zero
from maestro_edge.training.samplers import PairSampler, Sampler, SandwichSampler, _share, make_sampler
from maestro_edge.training.shrinking import shrink
from maestro_edge.values import Rank

quick = settings(max_examples=40, deadline=None)


def every(name: str, module: nn.Module) -> bool:
    return True


@st.composite
def layers(draw: st.DrawFn) -> Ordered:
    """An ordered Linear or Conv2d with random factors."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    inputs, outputs = draw(st.tuples(st.integers(1, 8), st.integers(1, 8)))
    dense: nn.Module
    if draw(st.booleans()):
        dense = nn.Linear(inputs, outputs)
    else:
        dense = nn.Conv2d(inputs, outputs, draw(st.tuples(st.integers(1, 3), st.integers(1, 3))))
    layer = ordered_layers(order(dense, where=every))[""]
    nn.init.normal_(layer.u)
    nn.init.normal_(layer.v)
    return layer


def naive(u: Tensor, v: Tensor) -> Tensor:
    """Σ_b ‖U_b:‖ + ‖V_b:‖, a norm of whole tails each."""
    return torch.stack([u[b:].norm() + v[b:].norm() for b in range(len(u))]).sum()


def set_factors(layer: Ordered, u: Tensor, v: Tensor) -> None:
    layer.u.data.copy_(u)
    layer.v.data.copy_(v.view_as(layer.v))


# --- penalty ----------------------------------------------------------------------------------------------


@quick
@given(layers())
def test_the_penalty_is_the_sum_of_the_tail_norms(layer: Ordered) -> None:
    """Row norms first give the same value as the norm of every tail."""
    assert layer_penalty(layer) == pytest.approx(float(naive(layer.u.detach(), layer.v.detach())), rel=1e-5)


@quick
@given(layers(), st.floats(1e-6, 10))
def test_the_closed_form_gradient_is_that_of_autograd(layer: Ordered, weight: float) -> None:
    """Shapes and values, for a Linear and a Conv2d."""
    wanted = torch.autograd.grad(weight * naive(layer.u, layer.v), (layer.u, layer.v))

    add_penalty_gradient({"layer": layer}, {"layer": weight})

    for factor, gradient in zip((layer.u, layer.v), wanted, strict=True):
        assert factor.grad is not None
        torch.testing.assert_close(factor.grad, gradient, atol=1e-5 * weight, rtol=1e-4)


@quick
@given(layers())
def test_the_gradient_adds_to_the_one_that_is_there(layer: Ordered) -> None:
    """The loss has run backward before; only layers that are named get more."""
    other = ordered_layers(order(nn.Linear(3, 3), where=every))[""]
    layer.u.grad = torch.ones_like(layer.u)
    wanted = torch.autograd.grad(0.5 * naive(layer.u, layer.v), (layer.u, layer.v))

    add_penalty_gradient({"layer": layer}, {"layer": 0.5, "other": 9.0})

    torch.testing.assert_close(layer.u.grad, 1 + wanted[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(layer.v.grad, wanted[1], atol=1e-5, rtol=1e-4)
    assert other.u.grad is None
    assert layer.bias is None or layer.bias.grad is None


@quick
@given(layers(), st.integers(0, 8), st.sampled_from([0.0, 1e-30, 1e-13]))
def test_the_gradient_is_finite_where_components_are_zero(layer: Ordered, first: int, value: float) -> None:
    """A norm has no gradient at zero: the step is zero there, as is the one of a tail that is nearly so."""
    layer.u.data[first:] = value
    layer.v.data[first:] = value

    add_penalty_gradient({"layer": layer}, {"layer": 1.0})

    for factor in (layer.u, layer.v):
        assert factor.grad is not None
        assert factor.grad.isfinite().all()
        assert float(factor.grad.flatten(1).norm(dim=1).max()) <= layer.rank + 1e-3
        assert value or not factor.grad[first:].any()


def test_a_zero_row_in_the_middle_gets_no_gradient() -> None:
    """Its own tail is not zero, so its slope is, and its neighbours keep theirs."""
    layer = ordered_layers(order(nn.Linear(4, 4), where=every))[""]
    layer.u.data[1] = 0

    add_penalty_gradient({"layer": layer}, {"layer": 1.0})

    assert layer.u.grad is not None
    assert not layer.u.grad[1].any()
    assert layer.u.grad[0].any()
    assert layer.u.grad[3].any()


# --- shrinking --------------------------------------------------------------------------------------------


@quick
@given(layers(), st.floats(1e-6, 5))
def test_importances_are_products_of_tail_norms_and_never_increase(layer: Ordered, below: float) -> None:
    """So the components that shrink() keeps are a prefix, as many as reach the threshold."""
    u, v = layer.u.detach(), layer.v.detach()
    naive_importances = [float(u[b:].norm() * v[b:].norm()) for b in range(layer.rank)]

    importances = layer.importances().tolist()
    ranks = shrink(layer, SGD(layer.parameters(), lr=0.1), below=below)

    assert importances == pytest.approx(naive_importances, rel=1e-4)
    assert importances == sorted(importances, reverse=True)
    assert ranks == {"": max(1, sum(importance >= below for importance in importances))}
    assert layer.rank == ranks[""]


def model_of_three() -> nn.Module:
    """conv 16, conv 16, head 10 in an ordered network on (N, 3, 6, 6)."""
    torch.manual_seed(0)
    dense = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(576, 10),
    )
    return order(dense, where=every)


def empty_tail(layer: Ordered, kept: int) -> None:
    layer.u.data[kept:] = 0
    layer.v.data[kept:] = 0


def step(model: nn.Module, optimizer: Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.randn(4, 3, 6, 6)).square().mean().backward()
    optimizer.step()


def make_optimizer(name: str, model: nn.Module) -> Optimizer:
    if name == "sgd":
        return SGD(model.parameters(), lr=0.01)
    if name == "momentum":
        return SGD(model.parameters(), lr=0.01, momentum=0.9)
    if name == "adam":
        return Adam(model.parameters(), lr=0.01)
    return AdamW(model.parameters(), lr=0.01, amsgrad=True)


PER_WEIGHT = {
    "sgd": set(),
    "momentum": {"momentum_buffer"},
    "adam": {"exp_avg", "exp_avg_sq"},
    "amsgrad": {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"},
}


@pytest.mark.parametrize("name", PER_WEIGHT)
def test_shrinking_cuts_parameters_and_optimizer_state_alike(name: str) -> None:
    """What is kept is bit for bit what was there; the old tensors are gone and the next step runs."""
    model = model_of_three()
    optimizer = make_optimizer(name, model)
    step(model, optimizer)
    layer = ordered_layers(model)["2"]
    empty_tail(layer, 5)
    old_u, old_v = layer.u, layer.v
    before = {key: dict(optimizer.state[key]) for key in (old_u, old_v) if key in optimizer.state}
    untouched = ordered_layers(model)["0"].u

    ranks = shrink(model, optimizer)

    assert ranks == {"0": 16, "2": 5, "5": 10}
    assert ordered_layers(model)["0"].u is untouched
    for old, new in ((old_u, layer.u), (old_v, layer.v)):
        assert torch.equal(new, old[:5])
        assert old not in optimizer.state
        state = optimizer.state.get(new, {})
        assert PER_WEIGHT[name] <= set(state)
        for key in PER_WEIGHT[name]:
            assert torch.equal(state[key], before[old][key][:5])
            assert state[key].untyped_storage().nbytes() == new.untyped_storage().nbytes()
        assert set(state) == set(before.get(old, {}))
    held = Counter(id(p) for group in optimizer.param_groups for p in group["params"])
    assert held == Counter(id(p) for p in model.parameters())
    step(model, optimizer)
    assert layer.u.grad is not None
    assert layer.u.grad.shape == layer.u.shape == (5, 16)
    assert not torch.equal(layer.u, old_u[:5])


def test_shrinking_keeps_the_groups_of_an_optimizer() -> None:
    """Each new tensor stands where its old one stood, with that group's learning rate."""
    model = model_of_three()
    names = [name for name, _ in model.named_parameters()]
    optimizer = SGD(
        [
            {"params": [p for name, p in model.named_parameters() if name.endswith("u")], "lr": 0.1},
            {"params": [p for name, p in model.named_parameters() if not name.endswith("u")], "lr": 0.2},
        ]
    )
    empty_tail(ordered_layers(model)["0"], 2)

    shrink(model, optimizer)

    by_id = {id(p): name for name, p in model.named_parameters()}
    groups = [(group["lr"], [by_id[id(p)] for p in group["params"]]) for group in optimizer.param_groups]
    assert groups == [
        (0.1, [name for name in names if name.endswith("u")]),
        (0.2, [name for name in names if not name.endswith("u")]),
    ]


@pytest.mark.parametrize("kept", [1, 4, 9])
def test_dropping_empty_components_leaves_the_function_alone(kept: int) -> None:
    """Zero components add nothing, in every layer."""
    model = model_of_three()
    inputs = torch.randn(2, 3, 6, 6)
    for layer in ordered_layers(model).values():
        empty_tail(layer, kept)
    wanted = model(inputs)

    ranks = shrink(model, make_optimizer("momentum", model))

    assert ranks == {"0": kept, "2": kept, "5": kept}
    torch.testing.assert_close(model(inputs), wanted, atol=1e-5, rtol=1e-5)


def test_a_component_in_use_behind_an_empty_one_is_kept() -> None:
    """Only a tail can go: what is kept is a prefix."""
    model = model_of_three()
    layer = ordered_layers(model)["2"]
    empty_tail(layer, 6)
    layer.u.data[2:4] = 0
    layer.v.data[2:4] = 0

    shrink(model, make_optimizer("sgd", model))

    assert layer.rank == 6


def test_a_network_that_is_all_zero_keeps_one_component_a_layer() -> None:
    """No convolution of rank 0, no endless loop, and training goes on."""
    model = model_of_three()
    optimizer = make_optimizer("momentum", model)
    for layer in ordered_layers(model).values():
        empty_tail(layer, 0)

    first = shrink(model, optimizer)
    second = shrink(model, optimizer)
    step(model, optimizer)

    assert first == second == {"0": 1, "2": 1, "5": 1}
    assert model(torch.randn(2, 3, 6, 6)).shape == (2, 10)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_a_frozen_factor_stays_frozen() -> None:
    """Shrinking makes new tensors, not new choices."""
    model = model_of_three()
    layer = ordered_layers(model)["0"]
    layer.v.requires_grad_(False)
    empty_tail(layer, 3)

    shrink(model, make_optimizer("sgd", model))

    assert (layer.u.requires_grad, layer.v.requires_grad) == (True, False)


# --- samplers ---------------------------------------------------------------------------------------------

full_ranks = st.dictionaries(st.text("abc", min_size=1, max_size=2), st.integers(1, 12), min_size=1, max_size=5)


def pairs(sampler: Sampler, full: dict[str, int], generator: torch.Generator, draws: int) -> list[object]:
    """The (layer, rank) pairs of the next draws; each draw is one set that names one layer."""
    found: list[object] = []
    for _ in range(draws):
        (drawn,) = sampler.draw(full, generator)
        (pair,) = drawn.items()
        found.append(pair)
    return found


@quick
@given(full_ranks, st.integers(0, 2**16))
def test_every_pair_is_drawn_once_a_round(full: dict[str, int], seed: int) -> None:
    """Uniform over (layer, rank) pairs, without replacement, round after round."""
    sampler, generator = PairSampler(), torch.Generator().manual_seed(seed)
    all_pairs = [(name, rank) for name, most in full.items() for rank in range(1, most + 1)]

    for _ in range(3):
        drawn = pairs(sampler, full, generator, len(all_pairs))

        assert Counter(drawn) == Counter(all_pairs)


@quick
@given(full_ranks, st.integers(0, 2**16), st.data())
def test_a_new_round_begins_when_ranks_shrink(full: dict[str, int], seed: int, data: st.DataObject) -> None:
    """No rank that is gone is drawn, and all that are left are."""
    sampler, generator = PairSampler(), torch.Generator().manual_seed(seed)
    pairs(sampler, full, generator, data.draw(st.integers(1, sum(full.values()))))
    less = {name: data.draw(st.integers(1, most)) for name, most in full.items()}
    changed = less != full

    drawn = pairs(sampler, less, generator, sum(less.values()))

    allowed = {(name, rank) for name, most in less.items() for rank in range(1, most + 1)}
    assert set(drawn) <= allowed
    assert not changed or set(drawn) == allowed


@pytest.mark.parametrize("name", ["pairs", "sandwich"])
def test_the_same_seed_draws_the_same_ranks(name: str) -> None:
    """Two processes with one seed train the same network; another seed differs."""
    full = {"a": 9, "b": 5, "c": 14}

    def draws(seed: int) -> list[object]:
        sampler, generator = make_sampler(name), torch.Generator().manual_seed(seed)  # type: ignore[arg-type]
        return [sampler.draw(full, generator) for _ in range(40)]

    assert draws(3) == draws(3)
    assert draws(3) != draws(4)


@pytest.mark.parametrize("name", ["pairs", "sandwich"])
@pytest.mark.parametrize("done", [0, 1, 7, 27, 28])
def test_a_restored_sampler_goes_on_exactly(name: str, done: int) -> None:
    """Its state and the generator's are all a resumed run needs; later draws do not change a saved state."""
    full = {"a": 9, "b": 5, "c": 14}
    generator = torch.Generator().manual_seed(1)
    sampler = make_sampler(name)  # type: ignore[arg-type]
    for _ in range(done):
        sampler.draw(full, generator)
    state, bits = sampler.state, generator.get_state()
    wanted = [sampler.draw(full, generator) for _ in range(60)]

    resumed = make_sampler(name)  # type: ignore[arg-type]
    resumed.restore(state)
    generator.set_state(bits)

    assert [resumed.draw(full, generator) for _ in range(60)] == wanted
    assert all(isinstance(entry, int) for entry in state)


@quick
@given(full_ranks, st.floats(0.01, 1), st.integers(0, 2**16))
def test_the_sandwich_is_full_then_smallest_then_random(full: dict[str, int], smallest: float, seed: int) -> None:
    """Every layer is cut in the last two, to a rank it has, never below the smallest share."""
    sampler, generator = SandwichSampler(smallest=smallest), torch.Generator().manual_seed(seed)

    for _ in range(6):
        first, second, third = sampler.draw(full, generator)

        assert first == {}
        assert second == {name: max(1, math.ceil(most * smallest - 1e-9)) for name, most in full.items()}
        assert set(third) == set(full)
        for name, rank in third.items():
            assert isinstance(rank, int)
            assert lowest(second[name]) <= rank <= full[name]


def lowest(rank: Rank) -> int:
    assert isinstance(rank, int)
    return rank


def test_the_random_set_shares_a_fraction_every_other_step() -> None:
    """One fraction for all layers, then one for each."""
    sampler, generator = SandwichSampler(), torch.Generator().manual_seed(0)
    full = {"a": 1000, "b": 1000, "c": 1000}

    thirds = [sampler.draw(full, generator)[2] for _ in range(20)]

    assert [len(set(third.values())) for third in thirds] == [1, 3] * 10


def test_shares_of_a_rank_are_exact() -> None:
    """k of n is k for every fraction k/n: ceil alone is one too many for 3.4 % of them."""
    wrong = [(k, n) for n in range(1, 65) for k in range(1, n + 1) if _share(n, k / n) != k]

    assert wrong == []
    assert _share(10, 0.1 + 0.2) == 3


@pytest.mark.parametrize(
    ("rank", "fraction", "wanted"), [(7, 0.5, 4), (1, 0.01, 1), (9, 1e-12, 1), (16, 1 / 8, 2), (17, 1 / 8, 3)]
)
def test_a_share_between_two_ranks_is_the_higher_and_at_least_one(rank: int, fraction: float, wanted: int) -> None:
    """No layer is cut below the fraction that was asked for."""
    assert _share(rank, fraction) == wanted


@pytest.mark.parametrize("smallest", [0.0, -0.5, 1.5, math.nan])
def test_a_smallest_fraction_outside_of_its_range_is_refused(smallest: float) -> None:
    """The message has the value."""
    with pytest.raises(TrainingError, match=r"smallest fraction of .* is not in \(0, 1\]"):
        SandwichSampler(smallest=smallest)


def test_an_unknown_sampler_is_refused_with_the_known_ones() -> None:
    """A chain is not among them: it needs its profiles."""
    with pytest.raises(
        TrainingError, match="no sampler 'dice': choose alternating, sandwich, shared, independent, pairs"
    ):
        make_sampler("dice")  # type: ignore[arg-type]


def test_the_proximal_step_minimises_its_objective() -> None:
    """No nearby point has a lower ½‖x − w‖² + τ Σ_b ‖x_{b:}‖, and weak tails become exactly zero."""
    torch.manual_seed(0)
    layer = ordered_layers(order(nn.Linear(6, 5, bias=False), where=lambda name, module: True))[""]
    before = {"u": layer.u.detach().clone(), "v": layer.v.detach().clone()}
    tau = 0.8

    shrink_towards_zero({"": layer}, {"": tau})

    def objective(x: torch.Tensor, w: torch.Tensor) -> float:
        tails = sum(float(x[b:].norm()) for b in range(len(x)))
        return 0.5 * float((x - w).square().sum()) + tau * tails

    for name, w in before.items():
        found = getattr(layer, name).detach()
        best = objective(found, w)
        for _ in range(300):
            nearby = found + 0.01 * torch.randn_like(found) * (torch.rand(len(found), 1) < 0.5)
            assert objective(nearby, w) >= best - 1e-6
        assert (found[-1] == 0).all()


def test_a_proximal_step_of_zero_changes_nothing() -> None:
    """And on factors that are all zero it stays finite."""
    layer = ordered_layers(order(nn.Linear(6, 5), where=lambda name, module: True))[""]
    before = layer.u.detach().clone()

    shrink_towards_zero({"": layer}, {"": 0.0})
    unchanged = layer.u.detach().clone()
    layer.u.data.zero_()
    shrink_towards_zero({"": layer}, {"": 1.0})

    assert torch.allclose(unchanged, before)
    assert (layer.u == 0).all()
