"""nn.MultiheadAttention as four Linears: the same function under every option, alone and inside torch's layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maestro_edge.errors import ModelError
from maestro_edge.ordered import OrderedLinear, at_ranks, cut, explain, order, ordered_layers, trace
from maestro_edge.ordered.attention import Attention
from maestro_edge.values import Rank

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "out_proj"]


def every(name: str, module: nn.Module) -> bool:
    return True


def same(found: Tensor | None, wanted: Tensor | None) -> None:
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def attention(**options: Any) -> nn.MultiheadAttention:
    """Width 12, three heads, biases that are not zero, in eval mode."""
    torch.manual_seed(0)
    made = nn.MultiheadAttention(12, 3, **options)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made.eval()


def batches(*, batch_first: bool, kdim: int = 12, vdim: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (2, 4, 12), keys and values (2, 5, ...), or with the first two sizes exchanged."""
    q, k, v = torch.randn(2, 4, 12), torch.randn(2, 5, kdim), torch.randn(2, 5, vdim)
    return (q, k, v) if batch_first else (q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1))


MASKS: dict[str, dict[str, Tensor]] = {
    "none": {},
    "bool": {"attn_mask": torch.rand(4, 5, generator=torch.Generator().manual_seed(0)) < 0.3},
    "additive": {"attn_mask": torch.linspace(-2, 2, 20).view(4, 5)},
    "per head": {"attn_mask": torch.linspace(-2, 2, 120).view(6, 4, 5)},
    "padding": {"key_padding_mask": torch.tensor([[False] * 5, [False, False, False, True, True]])},
    "both": {
        "attn_mask": torch.ones(4, 5).triu(2).bool(),
        "key_padding_mask": torch.tensor([[False] * 5, [False, False, False, False, True]]),
    },
}


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"bias": False}, {"kdim": 7, "vdim": 9}], ids=["stock", "no bias", "kdim"]
)
def test_separate_projections_attend_as_the_joint_ones(
    batch_first: bool, masks: str, need_weights: bool, options: dict[str, Any]
) -> None:
    """Outputs and returned weights, whatever hides which key from which query."""
    stock = attention(batch_first=batch_first, **options)
    sizes = {key: value for key, value in options.items() if key != "bias"}
    inputs = batches(batch_first=batch_first, **sizes)
    wanted, wanted_weights = stock(*inputs, **MASKS[masks], need_weights=need_weights)

    model = order(stock, where=every)

    found, weights = model(*inputs, **MASKS[masks], need_weights=need_weights)
    assert list(ordered_layers(model)) == PROJECTIONS
    same(found, wanted)
    same(weights, wanted_weights)


def test_the_weights_of_each_head_are_returned_when_asked_for() -> None:
    """(N, heads, L, S) instead of their mean."""
    stock = attention(batch_first=True)
    inputs = batches(batch_first=True)

    _, weights = order(stock, where=every)(*inputs, average_attn_weights=False)

    assert weights.shape == (2, 3, 4, 5)
    same(weights, stock(*inputs, average_attn_weights=False)[1])


@pytest.mark.parametrize("need_weights", [True, False])
def test_a_single_sequence_needs_no_batch(need_weights: bool) -> None:
    """(L, E) in, (L, E) out, with masks of one sample."""
    stock = attention()
    q, k, v = torch.randn(4, 12), torch.randn(5, 12), torch.randn(5, 12)
    hidden = torch.tensor([False, False, True, False, False])

    found, weights = order(stock, where=every)(q, k, v, key_padding_mask=hidden, need_weights=need_weights)

    wanted, wanted_weights = stock(q, k, v, key_padding_mask=hidden, need_weights=need_weights)
    same(found, wanted)
    same(weights, wanted_weights)


@pytest.mark.parametrize("need_weights", [True, False])
def test_the_causal_hint_changes_nothing(need_weights: bool) -> None:
    """It says what the mask is, which has to be given."""
    stock = attention(batch_first=True)
    x = torch.randn(2, 5, 12)
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    model = order(stock, where=every)

    found, _ = model(x, x, x, attn_mask=mask, is_causal=True, need_weights=need_weights)

    same(found, stock(x, x, x, attn_mask=mask, is_causal=True, need_weights=need_weights)[0])
    with pytest.raises(ModelError, match="give the causal mask too"):
        model(x, x, x, is_causal=True)


@pytest.mark.parametrize("need_weights", [True, False])
def test_dropout_drops_in_training_and_not_in_evaluation(need_weights: bool) -> None:
    """With the probability of the attention it came from."""
    model = order(attention(batch_first=True, dropout=0.5), where=every)
    x = torch.randn(2, 5, 12)

    first, second = (model.train()(x, x, x, need_weights=need_weights)[0] for _ in range(2))
    third, fourth = (model.eval()(x, x, x, need_weights=need_weights)[0] for _ in range(2))

    assert not torch.equal(first, second)
    assert torch.equal(third, fourth)


class Encoder(nn.Module):
    """torch's encoder behind a free Linear: (N, L, 12) to the same."""

    def __init__(self, layers: int = 2, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(12, 12)
        layer = nn.TransformerEncoderLayer(12, 4, 24, batch_first=True, **options)
        self.encoder = nn.TransformerEncoder(layer, layers)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        out: Tensor = self.encoder(self.embed(x), src_key_padding_mask=padding)
        return out


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"norm_first": True}, {"activation": "gelu"}], ids=["post", "pre", "gelu"]
)
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")
def test_an_encoder_is_ordered_whole(training: bool, options: dict[str, Any]) -> None:
    """Projections and feed-forward alike, with and without torch's fast path, which is not taken any more."""
    model = Encoder(dropout=0.0, **options).train(training)
    x = torch.randn(2, 5, 12)

    with torch.no_grad():
        wanted = model(x)
        ordered = order(model, where=every, calibration=[x])
        found = ordered(x)

    assert len(ordered_layers(ordered)) == 1 + 2 * 6
    same(found, wanted)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning")
def test_a_padded_batch_is_encoded_alike_where_it_is_not_padding() -> None:
    """torch's encoder would make it a nested tensor and leave zeros at the padding."""
    model = Encoder().eval()
    x = torch.randn(2, 5, 12)
    padding = torch.tensor([[False] * 5, [False, False, False, True, True]])

    with torch.no_grad():
        found = order(model, where=every)(x, padding)
        wanted = model(x, padding)

    same(found[~padding], wanted[~padding])


def test_ranks_reach_the_layers_inside_an_encoder() -> None:
    """A fast path that read the weights would not see them; the cut model agrees in eval mode too."""
    model = order(Encoder().eval(), where=every)
    x = torch.randn(2, 5, 12)
    ranks: dict[str, Rank] = dict.fromkeys(ordered_layers(model), 2)

    with torch.no_grad():
        full = model(x)
        with at_ranks(model, ranks):
            low = model(x)
        stock = cut(model, ranks)(x)

    assert float((low - full).abs().max()) > 1e-3
    same(stock, low)


@pytest.mark.parametrize("name", ["encoder.layers.0.linear1", "encoder.layers.1.self_attn.v_proj"])
def test_one_layer_inside_an_encoder_is_ordered_alone(name: str) -> None:
    """Its own encoder layer gives up the fast path, and no other attention is touched."""
    model = Encoder().eval()
    x = torch.randn(2, 5, 12)

    with torch.no_grad():
        ordered = order(model, where=[name])
        found, wanted = ordered(x), model(x)

    assert list(ordered_layers(ordered)) == [name]
    assert [type(module) for module in ordered.modules()].count(Attention) == 1
    same(found, wanted)


def test_a_decoder_attends_to_itself_and_to_the_memory() -> None:
    """nn.TransformerDecoderLayer calls both of its attentions with masks by name."""
    torch.manual_seed(0)
    layer = nn.TransformerDecoderLayer(12, 3, 24, batch_first=True).eval()
    target, memory = torch.randn(2, 4, 12), torch.randn(2, 5, 12)
    mask = nn.Transformer.generate_square_subsequent_mask(4)

    ordered = order(layer, where=every)

    assert len(ordered_layers(ordered)) == 10
    found = ordered(target, memory, tgt_mask=mask, tgt_is_causal=True)
    same(found, layer(target, memory, tgt_mask=mask, tgt_is_causal=True))


def test_explain_lists_the_four_projections() -> None:
    """Under the names that where= and ranks use; a shared attention stays as it is."""
    stock = attention()
    twice = nn.ModuleList([stock, stock])

    found = [(choice.name, choice.kind, choice.reason) for choice in explain(stock, where=every)]
    shared = {choice.reason for choice in explain(twice, where=every)}

    assert found == [(name, "Linear", "") for name in PROJECTIONS]
    assert shared == {"shared: the same module has several names"}


class Watched(nn.MultiheadAttention):
    """Of a kind that only its author knows."""


@pytest.mark.parametrize(
    ("stock", "reason"),
    [
        (
            nn.MultiheadAttention(12, 3, add_bias_kv=True),
            "it attends to one more key (add_bias_kv or add_zero_attn)",
        ),
        (
            nn.MultiheadAttention(12, 3, add_zero_attn=True),
            "it attends to one more key (add_bias_kv or add_zero_attn)",
        ),
        (Watched(12, 3), "a Watched cannot be ordered"),
    ],
    ids=["bias_kv", "zero_attn", "subclass"],
)
def test_an_attention_that_is_more_than_four_linears_stays_whole(stock: nn.Module, reason: str) -> None:
    """Neither its projection nor the feed-forward beside it can be taken out."""
    layer = nn.TransformerEncoderLayer(12, 3, 24)
    layer.self_attn = stock  # type: ignore[assignment]

    reasons = {choice.name: choice.reason for choice in explain(layer, where=every)}

    held = "its parent uses the weight without calling the layer"
    assert reasons == {
        "self_attn": reason,
        "self_attn.out_proj": held,
        "linear1": held,
        "linear2": held,
    }


def test_a_weight_tied_to_an_attentions_is_reported_from_both_sides() -> None:
    """Each names the other."""
    stock, other = attention(), nn.Linear(12, 12)
    other.weight = stock.out_proj.weight
    model = nn.ModuleDict({"attention": stock, "other": other})

    reasons = {choice.name: choice.reason for choice in explain(model, where=every)}

    assert reasons["attention.q_proj"] == reasons["attention.out_proj"] == "its weight is tied to 'other'"
    assert reasons["other"] == "its weight is tied to 'attention.out_proj'"


def test_frozen_projections_stay_frozen_and_separating_draws_no_random_numbers() -> None:
    """The joint weight's flag goes to the three that it becomes."""
    stock = attention()
    assert stock.in_proj_weight is not None
    stock.in_proj_weight.requires_grad_(False)
    state = torch.get_rng_state()

    model = order(stock, where=every)

    assert torch.equal(torch.get_rng_state(), state)
    assert list(ordered_layers(model)) == ["out_proj"]
    assert {name: p.requires_grad for name, p in model.named_parameters() if "weight" in name} == {
        "q_proj.weight": False,
        "k_proj.weight": False,
        "v_proj.weight": False,
    }


def test_an_ordered_encoder_is_traced_and_exportable() -> None:
    """Each projection is a layer of its own; torch.export sees through the attention."""
    model = order(Encoder(1).eval(), where=every)
    x = torch.randn(1, 5, 12)
    stock = cut(model, dict.fromkeys(ordered_layers(model), 2))

    traced = trace(model, (x,))
    exported = torch.export.export(stock, (x,)).module()

    assert [layer.name.rpartition(".")[2] for layer in traced.ordered] == [
        "embed",
        *PROJECTIONS,
        "linear1",
        "linear2",
    ]
    assert all(isinstance(layer, OrderedLinear) for layer in ordered_layers(model).values())
    with torch.no_grad():
        same(exported(x), stock(x))
