"""order(), cut(), explain() and trace(): the same function before and after, and a reason for every refusal."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune

from maestro_edge.errors import ModelError
from maestro_edge.ordered import (
    Ordered,
    OrderedConv2d,
    OrderedLinear,
    at_ranks,
    cut,
    explain,
    order,
    ordered_layers,
    trace,
    use_ranks,
)
from maestro_edge.values import DENSE, Rank

quick = settings(max_examples=40, deadline=None)
STOCK = (nn.Linear, nn.Conv2d, nn.Sequential, nn.BatchNorm2d, nn.ReLU, nn.Flatten)


def every(name: str, module: nn.Module) -> bool:
    return True


def same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


class Case(NamedTuple):
    """A model around one layer, inputs it runs on, and the layer's name in it ('' when it is the root)."""

    model: nn.Module
    inputs: Tensor
    name: str


@st.composite
def convs(draw: st.DrawFn) -> nn.Conv2d:
    """Every Conv2d that can be ordered: 'same' only where it is symmetric and torch allows it."""
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    paddings: list[str | tuple[int, int]] = ["same", "valid", (0, 0), (1, 2), (2, 1)]
    padding = draw(st.sampled_from(paddings))
    stride = (1, 1) if padding == "same" else draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    if padding == "same":
        kernel = (kernel[0] // 2 * 2 + 1, kernel[1] // 2 * 2 + 1)
    channels = draw(st.tuples(st.integers(1, 5), st.integers(1, 10)))
    return nn.Conv2d(*channels, kernel, stride, padding, dilation, bias=draw(st.booleans()))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A Linear on (N, n) or (N, T, n), or a Conv2d on (N, C, H, W); alone or inside a Sequential."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    batch = draw(st.integers(1, 3))
    layer: nn.Module
    if draw(st.booleans()):
        layer = draw(convs())
        assert isinstance(layer, nn.Conv2d)
        height, width = draw(st.tuples(st.integers(5, 8), st.integers(5, 8)))
        inputs = torch.randn(batch, layer.in_channels, height, width)
    else:
        features = draw(st.integers(1, 10))
        layer = nn.Linear(features, draw(st.integers(1, 10)), bias=draw(st.booleans()))
        tokens = draw(st.sampled_from([(), (1,), (4,)]))
        inputs = torch.randn(batch, *tokens, features)
    if draw(st.booleans()):
        return Case(layer, inputs, "")
    return Case(nn.Sequential(layer, nn.ReLU()), inputs, "0")


def calibration(kind: str, like: Tensor) -> list[Tensor] | None:
    """No batches, varied ones, or batches that excite only one or two directions."""
    shape = (4, *like.shape[1:])
    if kind == "plain":
        return None
    if kind == "varied":
        return [torch.randn(shape), torch.randn(shape)]
    if kind == "constant":
        return [torch.full(shape, 0.5)]
    basis = torch.randn(2, *like.shape[1:])
    return [torch.tensordot(torch.randn(4, 2), basis, dims=1) for _ in range(2)]


starts = st.sampled_from(["plain", "varied", "constant", "few directions"])


def ordered_case(case: Case, start: str = "plain") -> tuple[nn.Module, Ordered]:
    model = order(case.model, where=every, calibration=calibration(start, case.inputs))
    return model, ordered_layers(model)[case.name]


def network() -> nn.Sequential:
    """Two convolutions around a BatchNorm, and a classifier: (N, 3, 8, 8) to (N, 5)."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
    model = nn.Sequential(
        OrderedDict(
            body=body,
            conv=nn.Conv2d(12, 16, 3, stride=2, padding=1, bias=False),
            flat=nn.Flatten(),
            head=nn.Linear(256, 5),
        )
    )
    return model.eval()


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 8, 8)


# --- order ------------------------------------------------------------------------------------------------


@quick
@given(cases(), starts)
def test_an_ordered_model_computes_what_the_dense_one_does(case: Case, start: str) -> None:
    """Full rank is exact for every layer and both starts, however few directions calibration shows."""
    wanted = case.model(case.inputs)

    model, layer = ordered_case(case, start)

    same(model(case.inputs), wanted)
    assert layer.rank == layer.full_rank


@pytest.mark.parametrize(("inputs", "outputs"), [(3, 12), (12, 3), (7, 7)])
@pytest.mark.parametrize("start", ["varied", "constant", "few directions"])
def test_a_rank_deficient_calibration_loses_nothing(inputs: int, outputs: int, start: str) -> None:
    """m > n, m < n and m = n keep their directions although the data never excites most of them."""
    torch.manual_seed(1)
    case = Case(nn.Linear(inputs, outputs), torch.randn(20, inputs), "")

    model, _ = ordered_case(case, start)

    same(model(case.inputs), case.model(case.inputs))


def test_a_layer_that_calibration_never_excites_is_still_exact() -> None:
    """Inputs that are all zero, as behind a dead ReLU, say nothing about the order and cost nothing."""
    torch.manual_seed(1)
    dense = nn.Linear(3, 9)
    inputs = torch.randn(5, 3)

    model = order(dense, where=every, calibration=[torch.zeros(4, 3)])

    same(model(inputs), dense(inputs))


def test_a_bias_far_above_the_signal_loses_nothing() -> None:
    """Outputs that are nearly all bias leave only rounding in the moment; the function stays."""
    torch.manual_seed(0)
    dense = nn.Linear(6, 24)
    inputs = torch.randn(5, 6)
    faint = torch.randn(64, 1) @ torch.randn(1, 6) * 1e-5

    model = order(dense, where=every, calibration=[faint])

    same(model(inputs), dense(inputs))


@quick
@given(cases(), starts)
def test_order_and_cut_leave_their_input_alone(case: Case, start: str) -> None:
    """Weights, mode and forward hooks of the model that is given stay as they were."""
    case.model.train()
    dense = copy.deepcopy(case.model.state_dict())

    model, layer = ordered_case(case, start)
    ordered = copy.deepcopy(model.state_dict())
    stock = cut(model, {case.name: 1})
    for parameter in stock.parameters():
        parameter.data.zero_()

    assert case.model.training
    assert not any(module._forward_hooks for module in case.model.modules())
    torch.testing.assert_close(case.model.state_dict(), dense, atol=0, rtol=0)
    torch.testing.assert_close(model.state_dict(), ordered, atol=0, rtol=0)
    assert layer.active_rank is None


@pytest.mark.parametrize(
    "training",
    [
        True,
        False,
    ],
)
def test_order_and_cut_keep_the_mode(training: bool) -> None:
    """A model in eval mode is ordered and cut into models in eval mode, one in training mode likewise."""
    model = network().train(training)

    ordered = order(model, where=every, calibration=[images()])
    stock = cut(ordered, {"conv": 2})

    assert {module.training for module in (*ordered.modules(), *stock.modules())} == {training}


@pytest.mark.parametrize("verb", ["order", "trace"])
def test_a_frozen_norm_stays_frozen(verb: str) -> None:
    """A BatchNorm in eval mode inside a model in training mode is a choice of the user."""
    model = network().train()
    model.get_submodule("body.1").eval()

    if verb == "order":
        model = order(model, where=every, calibration=[images()])  # type: ignore[assignment]
    else:
        trace(model, (images(),))

    assert not model.get_submodule("body.1").training


def test_a_model_with_nothing_to_order_is_refused() -> None:
    """The message points at explain(), which has the reasons."""
    with pytest.raises(ModelError, match="no layer of this model can be ordered: see explain"):
        order(nn.Sequential(nn.ReLU(), nn.Linear(2, 2)))


def test_an_ordered_model_cannot_be_ordered_again() -> None:
    """Its layers are no longer stock ones."""
    model = order(network(), where=every)

    with pytest.raises(ModelError, match="no layer"):
        order(model, where=every)


def test_calibration_that_misses_a_layer_is_refused_by_name() -> None:
    """No batches at all reach no layer."""
    with pytest.raises(ModelError, match=r"never reached layer 'body\.0'"):
        order(network(), where=every, calibration=[])


def test_calibration_of_another_shape_is_refused() -> None:
    """Batches that the model does not run on are our error, not torch's."""
    with pytest.raises(ModelError):
        order(network(), where=every, calibration=[torch.randn(2, 4)])


# --- the start --------------------------------------------------------------------------------------------


def output_error(weight: Tensor, approximation: Tensor, inputs: Tensor) -> float:
    """Mean ‖(W − W') x‖² over (N, n) inputs."""
    return float((inputs.double() @ (weight - approximation).double().T).square().sum(1).mean())


def best_error(weight: Tensor, inputs: Tensor, rank: int) -> float:
    """The least possible: the squared tail of the singular values of W Σ^½, its root from eigenvectors of Σ."""
    moment = inputs.double().T @ inputs.double() / len(inputs)
    energies, directions = torch.linalg.eigh(moment)
    root = directions * energies.clamp_min(0).sqrt() @ directions.T
    return float(torch.linalg.svdvals(weight.double() @ root)[rank:].square().sum())


@quick
@given(
    st.integers(1, 10),
    st.integers(1, 10),
    st.integers(1, 10),
    st.floats(0.05, 1),
    st.integers(0, 2**16),
)
def test_the_whitened_start_is_optimal_at_every_rank(
    outputs: int, inputs: int, directions: int, decay: float, seed: int
) -> None:
    """On its calibration inputs it reaches the optimum, so it is never worse than the plain SVD."""
    torch.manual_seed(seed)
    dense = nn.Linear(inputs, outputs)
    scales = decay ** torch.arange(min(directions, inputs))
    seen = torch.randn(40, len(scales)) * scales @ torch.randn(len(scales), inputs)
    weight = dense.weight.detach()

    plain = ordered_layers(order(dense, where=every))[""]
    whitened = ordered_layers(order(dense, where=every, calibration=[seen[:20], seen[20:]]))[""]

    tolerance = 1e-5 * output_error(weight, torch.zeros_like(weight), seen) + 1e-12
    for rank in range(1, whitened.rank + 1):
        error = output_error(weight, whitened.merged(rank), seen)
        assert error <= output_error(weight, plain.merged(rank), seen) + tolerance
        assert error == pytest.approx(best_error(weight, seen, rank), abs=tolerance)


@quick
@given(st.integers(1, 10), st.integers(1, 10), st.integers(0, 2**16))
def test_the_plain_start_is_the_balanced_svd(outputs: int, inputs: int, seed: int) -> None:
    """Every prefix is the truncated SVD and both rows of a component have the same norm."""
    torch.manual_seed(seed)
    dense = nn.Linear(inputs, outputs)
    left, scale, right = torch.linalg.svd(dense.weight.detach(), full_matrices=False)

    layer = ordered_layers(order(dense, where=every))[""]

    same(layer.u.norm(dim=1), scale.sqrt())
    same(layer.v.norm(dim=1), scale.sqrt())
    below = [*scale[1:].tolist(), 0.0]
    for rank in range(1, layer.rank + 1):
        # Of two singular values that are almost equal, either vector may come first.
        if scale[rank - 1] - below[rank - 1] > 0.01 * scale[0] or rank == layer.rank:
            same(layer.merged(rank), left[:, :rank] * scale[:rank] @ right[:rank])


# --- cut --------------------------------------------------------------------------------------------------


@quick
@given(cases(), starts)
def test_cut_computes_what_the_ordered_model_does_at_the_same_rank(case: Case, start: str) -> None:
    """At every rank, and so does the ordered model truncated for good."""
    model, layer = ordered_case(case, start)
    model.eval()

    for rank in range(1, layer.rank + 1):
        with at_ranks(model, {case.name: rank}):
            wanted = model(case.inputs)
        truncated = copy.deepcopy(model)
        ordered_layers(truncated)[case.name].keep(rank)
        same(cut(model, {case.name: rank})(case.inputs), wanted)
        same(truncated(case.inputs), wanted)
        same(cut(truncated, {})(case.inputs), wanted)


@quick
@given(cases())
def test_cut_gives_one_layer_from_break_even_on_and_two_below(case: Case) -> None:
    """Only stock modules remain, with contiguous weights and as many parameters as LayerSpec says."""
    model, layer = ordered_case(case)
    traced = trace(model, (case.inputs,))
    spec = traced.layers[0].spec

    choices: list[Rank] = [*range(1, layer.rank + 1), DENSE]
    for rank in choices:
        stock = cut(model, {case.name: rank})

        folded = rank == DENSE or rank >= spec.break_even_rank
        params = sum(parameter.numel() for parameter in stock.parameters())
        leaves = [module for module in stock.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
        assert all(type(module) in STOCK for module in stock.modules())
        assert len(leaves) == (1 if folded else 2)
        assert folded == (rank == DENSE or layer.above_break_even(rank))
        assert params == spec.params(DENSE if folded else rank)
        assert params == traced.params({} if folded else {case.name: rank})
        assert all(parameter.is_contiguous() for parameter in stock.parameters())


@quick
@given(cases(), starts)
def test_a_cut_layer_holds_the_first_components(case: Case, start: str) -> None:
    """A lower rank is a prefix of a higher one: one training serves every rank."""
    model, layer = ordered_case(case, start)

    for rank in range(1, layer.rank + 1):
        if layer.above_break_even(rank):
            break
        stock = cut(model, {case.name: rank})
        first, second = (module for module in stock.modules() if isinstance(module, nn.Linear | nn.Conv2d))

        assert torch.equal(first.weight, layer.v[:rank])
        assert torch.equal(second.weight.flatten(1), layer.u[:rank].T)
        assert first.bias is None
        assert (second.bias is None) == (layer.bias is None)


@pytest.mark.parametrize("rank", [16, DENSE, None])
def test_full_rank_dense_and_unnamed_give_one_layer(rank: Rank | None) -> None:
    """The folded layer has the dense model's own weights, hyper-parameters and parameter count."""
    dense = network()
    model = order(dense, where=every)

    stock = cut(model, {} if rank is None else {"conv": rank})

    conv = stock.get_submodule("conv")
    assert type(conv) is nn.Conv2d
    assert (conv.stride, conv.padding) == ((2, 2), (1, 1))
    same(conv.weight, dense.get_submodule("conv").weight)  # type: ignore[arg-type]
    assert sum(p.numel() for p in stock.parameters()) == sum(p.numel() for p in dense.parameters())


@quick
@given(st.integers(1, 12), st.integers(1, 16), st.integers(1, 5))
def test_a_whole_network_is_cut_at_once(body: int, conv: int, head: int) -> None:
    """Ranks of all layers together: the same outputs, and the parameters that Network.params adds up."""
    model = order(network(), where=every)
    inputs = images()
    ranks: dict[str, Rank] = {"body.0": body, "conv": conv, "head": head}
    traced = trace(model, (inputs,))

    stock = cut(model, ranks)

    with at_ranks(model, ranks):
        same(stock(inputs), model(inputs))
    priced: dict[str, Rank] = {
        layer.name: rank
        for layer in traced.ordered
        if (rank := ranks[layer.name]) != DENSE and rank < layer.spec.break_even_rank
    }
    assert sum(p.numel() for p in stock.parameters()) == traced.params(priced)
    assert trace(stock, (inputs,)).params({}) == traced.params(priced)
    assert all(type(module) in STOCK for module in stock.modules())


def channels_last(model: nn.Module) -> nn.Module:
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def test_channels_last_changes_nothing() -> None:
    """The training loop's memory format orders, runs and cuts to the same function."""
    dense, inputs = network(), images()
    wanted = dense(inputs)

    model = channels_last(order(channels_last(copy.deepcopy(dense)), where=every, calibration=[inputs]))
    seen = inputs.contiguous(memory_format=torch.channels_last)

    same(model(seen), wanted)
    for rank in (1, 3, 5):
        ranks: dict[str, Rank] = {"body.0": rank, "conv": rank, "head": rank}
        with at_ranks(model, ranks):
            cut_wanted = model(inputs)
        same(cut(model, ranks)(inputs), cut_wanted)


def test_cut_weights_are_contiguous_after_channels_last() -> None:
    """Exporters read plain weights, whatever memory format the training used."""
    model = channels_last(order(network(), where=every))

    stock = cut(model, {"body.0": 2, "conv": 3})

    assert all(parameter.is_contiguous() for parameter in stock.parameters())


def test_a_cut_model_holds_no_memory_of_what_was_cut() -> None:
    """Each weight owns exactly its own bytes."""
    model = order(network(), where=every)

    stock = cut(model, {"body.0": 1, "conv": 1, "head": 1})

    assert all(p.untyped_storage().nbytes() == 4 * p.numel() for p in stock.parameters())


def test_a_double_model_stays_double() -> None:
    """Orderings and cuts keep the type of the weights."""
    model = order(network().double(), where=every)

    stock = cut(model, {"conv": 2})

    assert {parameter.dtype for parameter in (*model.parameters(), *stock.parameters())} == {torch.float64}


# --- ranks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, -1, 17])
@pytest.mark.parametrize("verb", ["cut", "use_ranks", "at_ranks"])
def test_a_rank_out_of_range_is_refused_with_the_layers_name(rank: int, verb: str) -> None:
    """Nothing is set, and the message has the range."""
    model = order(network(), where=every)
    ranks: dict[str, Rank] = {"head": 2, "conv": rank}

    with pytest.raises(ModelError, match=f"layer 'conv' has ranks 1 to 16 or dense, not {rank}"):
        run(verb, model, ranks)

    assert {layer.active_rank for layer in ordered_layers(model).values()} == {None}


@pytest.mark.parametrize("verb", ["cut", "use_ranks", "at_ranks"])
def test_an_unknown_layer_is_refused_with_the_known_names(verb: str) -> None:
    """A layer that exists but is not ordered counts as unknown."""
    model = order(network(), where=every)

    with pytest.raises(ModelError, match=r"'body\.1' is not an ordered layer; .* body\.0, conv, head"):
        run(verb, model, {"body.1": 2})


def run(verb: str, model: nn.Module, ranks: dict[str, Rank]) -> None:
    if verb == "cut":
        cut(model, ranks)
    elif verb == "use_ranks":
        use_ranks(model, ranks)
    else:
        with at_ranks(model, ranks):
            pass


@pytest.mark.parametrize("rank", [0, -3])
def test_a_layer_refuses_a_rank_below_one(rank: int) -> None:
    """A layer of rank 0 would pass nothing on."""
    layer = ordered_layers(order(network(), where=every))["conv"]

    with pytest.raises(ModelError, match=f"a rank of {rank} is below 1"):
        layer.use(rank)


def test_use_ranks_stays_and_unnamed_layers_use_all() -> None:
    """Each call replaces all ranks of the one before."""
    model = order(network(), where=every)

    use_ranks(model, {"conv": 4, "head": 2})
    use_ranks(model, {"conv": 3, "head": DENSE})

    assert {name: layer.used for name, layer in ordered_layers(model).items()} == {
        "body.0": 12,
        "conv": 3,
        "head": 5,
    }


def test_at_ranks_restores_what_was_used_before_on_an_exception() -> None:
    """Nested blocks unwind in order."""
    model = order(network(), where=every)
    layer = ordered_layers(model)["conv"]
    use_ranks(model, {"conv": 7})

    with at_ranks(model, {"conv": 5}):
        with pytest.raises(KeyboardInterrupt), at_ranks(model, {"conv": 2, "head": 1}) as inside:
            assert inside is model
            assert layer.used == 2
            raise KeyboardInterrupt
        assert layer.used == 5

    assert layer.used == 7
    assert ordered_layers(model)["head"].active_rank is None


def test_a_layer_that_shrank_below_its_rank_in_use_uses_what_is_left() -> None:
    """keep() wins over use()."""
    layer = ordered_layers(order(network(), where=every))["conv"]
    layer.use(9)

    layer.keep(4)

    assert (layer.rank, layer.used, layer.full_rank) == (4, 4, 16)


def test_an_ordered_layer_prints_its_rank() -> None:
    """print(model) tells what shrinking did."""
    model = order(network(), where=every)

    text = repr(model)

    assert "OrderedConv2d(12, 16, kernel_size=(3, 3), rank=16)" in text
    assert "OrderedLinear(256, 5, rank=5)" in text


# --- explain ----------------------------------------------------------------------------------------------


class Tied(nn.Module):
    """An embedding whose weight is also the head's, beside a free Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 24)
        self.free = nn.Linear(24, 24)
        self.head = nn.Linear(24, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.free(self.embedding(tokens)))
        return out


class Twins(nn.Module):
    """Two Linears that share one Parameter, and one module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(20, 20)
        self.right = nn.Linear(20, 20)
        self.right.weight = self.left.weight
        self.once = nn.Linear(20, 20)
        self.again = self.once
        self.free = nn.Linear(20, 30)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.free(self.again(self.once(self.left(x) + self.right(x))))
        return out


class Attends(nn.Module):
    """Attention, which reads its projection's weight without calling it, and a free Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(24, 2, batch_first=True)
        self.free = nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.free(self.attention(x, x, x, need_weights=False)[0])
        return out


def beside(special: nn.Module, features: int) -> nn.Module:
    """`special`, then a Linear that can be ordered."""
    return nn.Sequential(OrderedDict(special=special, flat=nn.Flatten(), free=nn.Linear(features, 20)))


EXPLAINED = {
    "depthwise": (beside(nn.Conv2d(4, 8, 3, groups=4), 72), (4, 5, 5), "special", "depthwise"),
    "depthwise conv1d": (beside(nn.Conv1d(4, 4, 3, groups=4), 12), (4, 5), "special", "depthwise"),
    "reflect": (
        beside(nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect"), 200),
        (4, 5, 5),
        "special",
        "padding mode 'reflect'",
    ),
    "even kernel": (
        beside(nn.Conv2d(4, 8, (3, 2), padding="same"), 200),
        (4, 5, 5),
        "special",
        "padding 'same' with an even kernel is not symmetric",
    ),
    "conv3d": (beside(nn.Conv3d(4, 8, 3), 216), (4, 5, 5, 5), "special", "a Conv3d cannot be ordered"),
    "transposed": (
        beside(nn.ConvTranspose2d(4, 8, 1), 200),
        (4, 5, 5),
        "special",
        "a ConvTranspose2d cannot be ordered",
    ),
    "weight norm": (
        beside(nn.utils.parametrizations.weight_norm(nn.Linear(6, 5)), 5),
        (6,),
        "special",
        "a ParametrizedLinear cannot be ordered",
    ),
    "embedding": (Tied(), (), "embedding", "its weight is tied to 'head'"),
    "tied head": (Tied(), (), "head", "its weight is tied to 'embedding'"),
    "left twin": (Twins(), (20,), "left", "its weight is tied to 'right'"),
    "right twin": (Twins(), (20,), "right", "its weight is tied to 'left'"),
    "two names": (Twins(), (20,), "once", "shared: the same module has several names"),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("case", EXPLAINED)
def test_a_layer_that_stays_dense_has_its_reason_and_the_model_computes_the_same(case: str) -> None:
    """The rest of the model is ordered around it, and cut."""
    model, shape, name, reason = EXPLAINED[case]
    model.eval()
    inputs = torch.randn(3, *shape) if shape else torch.arange(6).view(2, 3)

    reasons = {choice.name: choice.reason for choice in explain(model, where=every)}
    ordered = order(model, where=every, calibration=[inputs])
    stock = cut(ordered, {})

    assert reasons[name] == reason
    assert reasons["free"] == ""
    assert set(ordered_layers(ordered)) == {"free"}
    same(ordered(inputs), model(inputs))
    same(stock(inputs), model(inputs))
    assert not any(isinstance(module, Ordered) for module in stock.modules())


def test_a_pruned_layer_stays_dense_until_the_pruning_is_permanent() -> None:
    """Its weight is a product that torch makes anew, and that it does not copy."""
    pruned = nn.Linear(6, 5)
    prune.random_unstructured(pruned, "weight", 3)  # type: ignore[no-untyped-call]
    model = beside(pruned, 5)

    reasons = {choice.name: choice.reason for choice in explain(model, where=every)}

    assert reasons["special"] == "its weight is computed anew in every forward, as by weight_norm or pruning"
    with pytest.raises(ModelError, match="cannot be copied: it keeps a tensor computed with gradients"):
        order(model, where=every)
    prune.remove(pruned, "weight")  # type: ignore[no-untyped-call]
    assert set(ordered_layers(order(model, where=every))) == {"special", "free"}


def test_small_layers_stay_dense_by_default() -> None:
    """Break-even at or below 16 leaves no rank that a runtime would compute faster."""
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 33), nn.Conv2d(4, 32, 3))

    found = [(choice.kind, choice.reason, choice.ordered) for choice in explain(model)]

    assert found == [
        ("Linear", "too small to gain from a lower rank", False),
        ("Linear", "", True),
        ("Conv2d", "", True),
    ]


def test_the_predicate_chooses_by_name_and_module() -> None:
    """It is asked for layers that can be ordered only."""
    asked = []

    def where(name: str, module: nn.Module) -> bool:
        asked.append((name, type(module)))
        return name == "free"

    model = beside(nn.Conv2d(4, 8, 3, groups=4), 72)
    model.append(nn.Linear(20, 20))  # type: ignore[operator]

    choices = explain(model, where=where)

    assert [choice.reason for choice in choices] == ["depthwise", "", "not chosen"]
    assert asked == [("free", nn.Linear), ("3", nn.Linear)]
    assert list(ordered_layers(order(model, where=where))) == ["free"]


# --- trace ------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """conv-bn-relu, conv-bn-add-relu, head: defined in another order than executed."""

    def __init__(self, *, inplace: bool = False) -> None:
        super().__init__()
        self.head = nn.Linear(6, 4)
        self.second = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.first = nn.Conv2d(3, 6, (3, 5), stride=(2, 1), padding="valid", dilation=(1, 1))
        self.norm1, self.norm2 = nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.scale = nn.Parameter(torch.ones(1))
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.first(x)))
        y = self.norm2(self.second(x))
        if self.inplace:
            y += x
        else:
            y = y + x
        out: Tensor = self.head(F.relu(y).mean((2, 3)) * self.scale)
        return out


def test_trace_lists_calls_in_execution_order_with_their_shapes() -> None:
    """Ordered and dense layers alike, whatever order they were defined in."""
    model = order(Residual(), where=lambda name, _: name == "second")

    traced = trace(model, (torch.randn(2, 3, 9, 8),), name="residual")

    first, second, head = traced.layers
    assert traced.name == "residual"
    assert [(layer.name, layer.ordered) for layer in traced.layers] == [
        ("first", False),
        ("second", True),
        ("head", False),
    ]
    assert (first.spec.input_size, first.spec.output_size) == ((9, 8), (4, 4))
    assert (first.spec.kernel, first.spec.stride, first.spec.padding) == ((3, 5), (2, 1), (0, 0))
    assert (second.spec.input_size, second.spec.padding, second.spec.bias) == ((4, 4), (1, 1), False)
    assert (head.spec.kind, head.spec.input_size, head.spec.batch) == ("linear", (), 2)


@quick
@given(cases())
def test_the_output_size_of_a_spec_is_that_of_the_layer(case: Case) -> None:
    """Strides, paddings and dilations count, for dense and ordered layers alike."""
    outputs = case.model(case.inputs)
    model, _ = ordered_case(case)

    dense = trace(case.model, (case.inputs,)).layers[0].spec
    spec = trace(model, (case.inputs,)).layers[0].spec

    assert spec == dense
    assert spec.batch == len(case.inputs)
    assert spec.output_size == (outputs.shape[2:] if spec.kind == "conv2d" else outputs.shape[1:-1])
    assert spec.activation == ("relu" if case.name else "none")


def test_relu_is_fused_through_a_norm_but_not_through_a_residual_add() -> None:
    """What runtimes fuse into the layer, and nothing else."""
    traced = trace(Residual(), (torch.randn(1, 3, 9, 8),))

    assert [layer.spec.activation for layer in traced.layers] == ["relu", "none", "none"]


def test_relu_is_not_fused_through_an_inplace_residual_add() -> None:
    """torchvision's ResNet adds in place."""
    traced = trace(Residual(inplace=True), (torch.randn(1, 3, 9, 8),))

    assert [layer.spec.activation for layer in traced.layers] == ["relu", "none", "none"]


@pytest.mark.parametrize(
    ("tail", "activation"),
    [
        ((nn.ReLU(),), "relu"),
        ((nn.ReLU(inplace=True),), "relu"),
        ((nn.BatchNorm2d(4), nn.ReLU()), "relu"),
        ((nn.BatchNorm2d(4), nn.ReLU(inplace=True)), "relu"),
        ((nn.GELU(),), "none"),
        ((nn.MaxPool2d(2), nn.ReLU()), "none"),
        ((), "none"),
    ],
    ids=["relu", "inplace", "norm-relu", "norm-inplace", "gelu", "pool-relu", "nothing"],
)
def test_the_activation_of_a_layer_is_the_relu_right_behind_it(
    tail: tuple[nn.Module, ...], activation: str
) -> None:
    """Modules in and out of place; the order makes no difference."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), *tail)
    inputs = (torch.randn(1, 3, 6, 6),)

    dense = trace(model, inputs).layers[0].spec
    ordered = trace(order(model, where=every), inputs).layers[0].spec

    assert dense.activation == ordered.activation == activation


def test_other_params_are_what_lies_outside_of_the_layers() -> None:
    """Norms and loose parameters; their sum with the layers is the whole model."""
    model = Residual()

    traced = trace(model, (torch.randn(1, 3, 9, 8),))

    assert traced.other_params == 2 * 6 + 2 * 6 + 1
    assert traced.params({}) == sum(parameter.numel() for parameter in model.parameters())


def test_tied_weights_are_counted_once() -> None:
    """The sum is the number of parameters that the model holds."""
    model = Tied()

    traced = trace(model, (torch.arange(4)[None],))

    assert traced.params({}) == sum(parameter.numel() for parameter in model.parameters())


def test_trace_keeps_the_mode_and_removes_its_hooks() -> None:
    """Running statistics stay as they were, too."""
    model = network().train()
    before = copy.deepcopy(model.state_dict())

    trace(model, (images(),))

    assert {module.training for module in model.modules()} == {True}
    assert not any(module._forward_hooks for module in model.modules())
    torch.testing.assert_close(model.state_dict(), before, atol=0, rtol=0)


class Twice(nn.Module):
    """One Linear called two times."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(self.layer(x))
        return out


def test_an_ordered_layer_called_twice_is_refused_by_name() -> None:
    """A dense one is not: it is measured twice."""
    inputs = (torch.randn(1, 5),)

    dense = trace(Twice(), inputs)

    assert [layer.name for layer in dense.layers] == ["layer", "layer"]
    assert dense.macs({}) == 50
    with pytest.raises(ModelError, match="layer 'layer' is called 2 times in one forward"):
        trace(order(Twice(), where=every), inputs)


def test_the_parameters_of_a_layer_called_twice_are_counted_once() -> None:
    """Calls cost time, not memory."""
    model = Twice()

    traced = trace(model, (torch.randn(1, 5),))

    assert traced.params({}) == sum(parameter.numel() for parameter in model.parameters())


def broken(layer: nn.Module, *shape: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return nn.Sequential(layer), (torch.randn(*shape),)


class NoArgument(nn.Module):
    """Takes nothing."""

    def forward(self) -> None:
        pass


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        broken(nn.Linear(4, 4), 2, 5),
        broken(nn.Conv2d(3, 4, 3), 2, 5, 8, 8),
        (NoArgument(), (torch.randn(2),)),
        broken(nn.Flatten(5), 2, 2),
        (nn.Embedding(4, 2), (torch.tensor([7]),)),
        (Attends(), (torch.randn(2, 3, 25),)),
    ],
    ids=["linear", "conv", "signature", "dimension", "index", "attention"],
)
def test_a_model_that_does_not_run_on_its_inputs_is_one_line(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """The shapes, torch's own reason, and no trace left behind."""
    model.train()
    shape = ", ".join(map(str, inputs[0].shape))

    with pytest.raises(ModelError) as caught:
        trace(model, inputs, name="toy")

    message = str(caught.value)
    assert message.startswith(f"toy does not run on inputs of shape ({shape}")
    assert "\n" not in message
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
def test_trace_refuses_a_padding_that_it_cannot_describe() -> None:
    """A LayerSpec has the same zeros on both sides."""
    model = beside(nn.Conv2d(4, 8, 2, padding="same"), 200)

    with pytest.raises(ModelError, match="padding 'same' with an even kernel"):
        trace(model, (torch.randn(1, 4, 5, 5),))


def test_the_fingerprint_ignores_weights_and_follows_shapes() -> None:
    """A latency table stays valid after training, not after a change of the network."""
    one, two = network(), network()
    nn.init.normal_(two.get_submodule("head").weight)  # type: ignore[arg-type]

    prints = [trace(model, (images(count),)).fingerprint for model, count in ((one, 2), (two, 2), (one, 3))]

    assert prints[0] == prints[1] != prints[2]


def test_both_kinds_are_ordered_layers() -> None:
    """ordered_layers() lists them in the order of their definition."""
    layers = ordered_layers(order(network(), where=every))

    assert [(name, type(layer)) for name, layer in layers.items()] == [
        ("body.0", OrderedConv2d),
        ("conv", OrderedConv2d),
        ("head", OrderedLinear),
    ]
