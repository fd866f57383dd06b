"""Every kind of layer, in every form: the same function at full rank, prefixes that agree, true prices."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from maestro_edge.devices import LocalDevice
from maestro_edge.errors import ModelError
from maestro_edge.ordered import (
    Ordered,
    OrderedConv1d,
    OrderedConv2d,
    OrderedEmbedding,
    OrderedLinear,
    OrderedSpatialConv2d,
    at_ranks,
    cut,
    explain,
    order,
    ordered_layers,
    trace,
)
from maestro_edge.runtimes import MeasuringProtocol, export, load
from maestro_edge.runtimes.probe import probe_module
from maestro_edge.values import DENSE, LayerSpec, Rank
from tests.conftest import outputs_of

quick = settings(max_examples=40, deadline=None)
ONCE = MeasuringProtocol(rounds=2, warmup_ms=0, slice_ms=0.1, repeats=0)


def every(name: str, module: nn.Module) -> bool:
    return True


def same(found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=tolerance)


class Conv1D(nn.Module):
    """The one of transformers, of which GPT-2 is made: a Linear with a weight of (in, out)."""

    __module__ = "transformers.pytorch_utils"

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.randn(nf))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.flatten(0, -2), self.weight).view(*x.shape[:-1], self.nf)


class Case(NamedTuple):
    """A layer, inputs it runs on, and whether it becomes a spatial pair."""

    layer: nn.Module
    inputs: Tensor
    spatial: bool = False

    def ordered(self, calibration: list[Tensor] | None = None) -> nn.Module:
        return order(self.layer, where=every, spatial=every if self.spatial else None, calibration=calibration)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """The kinds beside Linear and plain Conv2d, whose properties test_ordered has."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    kind = draw(st.sampled_from(["conv1d", "grouped 1d", "grouped 2d", "spatial", "embedding", "transposed"]))
    batch, bias = draw(st.integers(1, 3)), draw(st.booleans())
    if kind == "embedding":
        tokens, features = draw(st.integers(1, 12)), draw(st.integers(1, 8))
        padding = draw(st.sampled_from([None, 0]))
        return Case(nn.Embedding(tokens, features, padding), torch.randint(tokens, (batch, 4)))
    if kind == "transposed":
        nf, nx = draw(st.integers(1, 9)), draw(st.integers(1, 9))
        return Case(Conv1D(nf, nx), torch.randn(batch, 3, nx))
    sizes = 1 if kind.endswith("1d") else 2
    groups = draw(st.integers(2, 3)) if kind.startswith("grouped") else 1
    inputs, outputs = draw(st.integers(2 if groups > 1 else 1, 4)) * groups, draw(st.integers(1, 5)) * groups
    kernel, stride, zeros, dilation = (
        tuple(draw(st.integers(low, high)) for _ in range(sizes)) for low, high in ((1, 3), (1, 2), (0, 2), (1, 2))
    )
    conv = nn.Conv1d if sizes == 1 else nn.Conv2d
    layer = conv(inputs, outputs, kernel, stride, zeros, dilation, groups, bias)  # type: ignore[arg-type]
    edges = [draw(st.integers(5, 8)) for _ in range(sizes)]
    return Case(layer, torch.randn(batch, inputs, *edges), kind == "spatial")


def weight_of(layer: nn.Module) -> Tensor:
    assert isinstance(layer.weight, Tensor)
    return layer.weight


def varied(case: Case) -> list[Tensor]:
    if case.inputs.is_floating_point():
        return [torch.randn_like(case.inputs), torch.randn_like(case.inputs)]
    return [case.inputs]


# --- the function -----------------------------------------------------------------------------------------


@quick
@given(cases(), st.booleans())
def test_every_kind_computes_the_same_at_full_rank_and_when_cut(case: Case, whitened: bool) -> None:
    """The dense layer, the ordered one and the stock ones, at every rank."""
    model = case.ordered(varied(case) if whitened else None)
    layer = ordered_layers(model)[""]

    same(model(case.inputs), case.layer(case.inputs))
    for rank in range(1, layer.rank + 1):
        with at_ranks(model, {"": rank}):
            wanted = model(case.inputs)
        truncated = copy.deepcopy(layer)
        truncated.keep(rank)
        same(cut(model, {"": rank})(case.inputs), wanted)
        same(truncated(case.inputs), wanted)
        same(truncated.weight, weight_of(truncated.fold(rank)))


@quick
@given(cases())
def test_every_kind_costs_what_its_spec_says(case: Case) -> None:
    """Parameters at every rank, multiply-accumulates as torch counts them, and one layer from break-even on."""
    model = case.ordered()
    layer = ordered_layers(model)[""]
    traced = trace(model, (case.inputs,))
    (only,) = traced.layers

    assert only.ordered
    assert only.spec.full_rank == layer.full_rank == layer.rank
    assert only.spec.output_size == _size(only.spec, model(case.inputs))
    choices: list[Rank] = [*range(1, layer.rank + 1), DENSE]
    for rank in choices:
        stock = cut(model, {"": rank})
        folded = rank == DENSE or layer.above_break_even(rank)
        assert only.spec.folds(rank) == folded
        assert len(list(stock.children())) == (0 if folded else 2)
        params = sum(parameter.numel() for parameter in stock.parameters())
        assert params == traced.params({"": rank}) == only.spec.params(DENSE if folded else rank)
        assert _macs(stock, case.inputs) == traced.macs({"": rank})
        assert [type(m).__module__.split(".")[0] for m in stock.modules()] == ["torch"] * (1 if folded else 3)


def _size(spec: LayerSpec, output: Tensor) -> tuple[int, ...]:
    return output.shape[2:] if spec.kind.startswith("conv") else output.shape[1:-1]


def _macs(module: nn.Module, inputs: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(inputs)
    return int(counter.get_total_flops()) // 2


@quick
@given(cases())
def test_a_lower_rank_is_a_contiguous_prefix_of_a_higher_one(case: Case) -> None:
    """For grouped and spatial factors too: cutting copies nothing while it trains."""
    layer = ordered_layers(case.ordered())[""]

    for factor in (layer.u, layer.v):
        assert factor.shape[0] == layer.rank
        assert factor[: layer.rank // 2 + 1].is_contiguous()
    shares = layer.importances()
    assert (shares[:-1] >= shares[1:] - 1e-6).all()


@pytest.mark.parametrize(
    ("layer", "spatial", "kind"),
    [
        (nn.Conv1d(6, 8, 3, 2, 1), False, OrderedConv1d),
        (nn.Conv2d(6, 8, 3, groups=2), False, OrderedConv2d),
        (nn.Conv2d(6, 8, 3), True, OrderedSpatialConv2d),
        (nn.Embedding(20, 6), False, OrderedEmbedding),
        (Conv1D(8, 6), False, OrderedLinear),
    ],
    ids=["conv1d", "grouped", "spatial", "embedding", "transposed"],
)
def test_a_layer_prints_its_sizes_and_rank(layer: nn.Module, spatial: bool, kind: type[nn.Module]) -> None:
    """print(model) tells which form a layer has and what shrinking did."""
    model = order(layer, where=every, spatial=every if spatial else None)

    assert type(model) is kind
    assert repr(model).startswith(kind.__name__)
    assert repr(model).endswith(f"rank={ordered_layers(model)[''].rank})")


def test_a_grouped_rank_counts_for_each_group() -> None:
    """Rank 2 of 3 groups: 6 channels between two grouped convolutions."""
    model = order(nn.Conv2d(12, 30, 3, groups=3), where=every)

    first, second = cut(model, {"": 2}).children()

    assert isinstance(first, nn.Conv2d)
    assert isinstance(second, nn.Conv2d)
    assert (first.in_channels, first.out_channels, first.groups) == (12, 6, 3)
    assert (second.in_channels, second.out_channels, second.groups) == (6, 30, 3)
    assert ordered_layers(model)[""].full_rank == 10


def test_a_spatial_pair_divides_stride_padding_and_dilation() -> None:
    """Rows first, then columns; its rank may exceed the number of output channels."""
    dense = nn.Conv2d(6, 4, (3, 5), (2, 1), (1, 2), (1, 2))
    model = order(dense, where=every, spatial=[""])

    first, second = cut(model, {"": 3}).children()

    assert isinstance(first, nn.Conv2d)
    assert isinstance(second, nn.Conv2d)
    assert (first.kernel_size, first.stride, first.padding, first.dilation) == ((3, 1), (2, 1), (1, 0), (1, 1))
    assert (second.kernel_size, second.stride, second.padding, second.dilation) == ((1, 5), (1, 1), (0, 2), (1, 2))
    assert ordered_layers(model)[""].full_rank == 18


def test_a_tables_own_padding_row_gets_no_gradient() -> None:
    """As nn.Embedding promises for padding_idx."""
    model = order(nn.Embedding(9, 6, padding_idx=2), where=every)
    layer = ordered_layers(model)[""]

    model(torch.tensor([[2, 2, 4]])).sum().backward()

    assert layer.v.grad is not None
    assert not layer.v.grad[:, 2].any()
    assert layer.v.grad[:, 4].any()
    assert cut(model, {"": 1}).get_submodule("0").padding_idx == 2


def test_channels_last_training_reaches_grouped_and_spatial_layers() -> None:
    """The memory format of the training loop keeps the function."""
    dense = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1, groups=2), nn.Conv2d(12, 6, 3))
    inputs = torch.randn(2, 8, 9, 9)
    model = order(dense, where=every, spatial=["1"])

    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    same(model(inputs.contiguous(memory_format=torch.channels_last)), dense(inputs))


# --- the start --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("whitened", [True, False])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(12, 20), (4, 12)),
        (nn.Conv2d(12, 16, 3, groups=2), (4, 12, 6, 6)),
        (nn.Conv1d(8, 6, 3), (4, 8, 9)),
    ],
    ids=["linear", "grouped", "conv1d"],
)
def test_the_start_is_as_exact_as_the_weights_type(
    layer: nn.Module, shape: tuple[int, ...], dtype: torch.dtype, whitened: bool
) -> None:
    """Decomposed in double precision, kept in the type of the weight."""
    dense = copy.deepcopy(layer).to(dtype)
    batch = torch.randn(shape, dtype=dtype)

    model = order(dense, where=every, calibration=[batch] if whitened else None)

    made = ordered_layers(model)[""]
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    product = made.shaped(made.product(made.u.double(), made.v.double()))
    wanted = weight_of(dense).double()
    error = float((product - wanted).detach().norm() / wanted.detach().norm())
    assert error < max(2 * torch.finfo(dtype).eps, 1e-14)


@pytest.mark.parametrize("seen", ["varied", "constant", "zero"])
def test_each_group_is_ordered_by_its_own_outputs(seen: str) -> None:
    """Every prefix of every group is the best for what that group saw, however little that was."""
    torch.manual_seed(0)
    dense = nn.Conv1d(12, 9, 3, groups=3, bias=False)
    inputs = {"varied": torch.randn(8, 12, 7), "constant": torch.ones(2, 12, 7), "zero": torch.zeros(2, 12, 7)}[
        seen
    ]
    inputs = inputs * torch.linspace(0.1, 3, 12)[:, None]

    layer = ordered_layers(order(dense, where=every, calibration=[inputs[:1], inputs[1:]]))[""]
    alone = [
        ordered_layers(order(part, where=every, calibration=[inputs[:, 4 * g : 4 * g + 4]]))[""]
        for g, part in enumerate(_groups(dense))
    ]

    for rank in range(1, layer.rank + 1):
        same(layer.merged(rank), torch.cat([each.merged(rank) for each in alone]), 1e-4)


def _groups(conv: nn.Conv1d) -> list[nn.Conv1d]:
    parts = []
    for rows in conv.weight.detach().chunk(conv.groups):
        part = nn.Conv1d(rows.shape[1], rows.shape[0], rows.shape[2], bias=False)
        part.weight = nn.Parameter(rows.clone())
        parts.append(part)
    return parts


def test_the_whitened_start_of_a_conv1d_is_better_than_the_plain_one() -> None:
    """On inputs of uneven channels, at every rank."""
    torch.manual_seed(0)
    dense = nn.Conv1d(8, 10, 3, 2, 1)
    inputs = torch.randn(16, 8, 12) * torch.logspace(-2, 1, 8)[:, None]
    plain, whitened = order(dense, where=every), order(dense, where=every, calibration=[inputs])

    for rank in range(1, 10):
        errors = []
        for model in (plain, whitened):
            with at_ranks(model, {"": rank}):
                errors.append(float((model(inputs) - dense(inputs)).detach().square().mean()))

        assert errors[1] <= errors[0] * (1 + 1e-4)


def test_moments_are_streamed_over_batches() -> None:
    """Many batches and their concatenation start from the same factors."""
    dense = nn.Conv2d(4, 6, 3, groups=2)
    inputs = torch.randn(6, 4, 5, 5)

    one = ordered_layers(order(dense, where=every, calibration=[inputs]))[""]
    many = ordered_layers(order(dense, where=every, calibration=(x[None] for x in inputs)))[""]

    for rank in range(1, one.rank + 1):
        same(one.merged(rank), many.merged(rank))


def test_an_embedding_is_ordered_by_the_tokens_it_sees() -> None:
    """Rank 2 is exact on two tokens when only those are in the calibration."""
    dense = nn.Embedding(30, 8)
    tokens = torch.tensor([[3, 7, 3]])
    model = order(dense, where=every, calibration=[tokens])

    with at_ranks(model, {"": 2}):
        found = model(tokens)

    same(found, dense(tokens), 1e-3)


def test_weights_without_a_finite_value_are_refused_by_name() -> None:
    """An SVD of NaN would fail in LAPACK, or worse, not at all."""
    for value in (float("nan"), float("inf")):
        model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20))
        with torch.no_grad():
            weight_of(model[1])[3, 4] = value

        with pytest.raises(ModelError, match="layer '1' has weights that are NaN or infinite"):
            order(model, where=every)
        assert list(ordered_layers(order(model, where=["0"]))) == ["0"]


def test_calibration_that_overflows_is_refused_by_name() -> None:
    """A NaN in one sample would spoil the whole moment."""
    with pytest.raises(ModelError, match="layer '' gives NaN or infinity on the calibration batches"):
        order(nn.Linear(4, 4), where=every, calibration=[torch.full((2, 4), float("nan"))])


# --- where ------------------------------------------------------------------------------------------------


def model_of_kinds() -> nn.Module:
    """A depthwise convolution, a frozen one, one in groups, one to pair, and an embedding beside them."""
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {
            "depthwise": nn.Conv2d(8, 8, 3, groups=8),
            "frozen": nn.Conv2d(8, 8, 3),
            "grouped": nn.Conv2d(8, 8, 3, groups=2),
            "plain": nn.Conv2d(8, 8, 3),
            "words": nn.Embedding(50, 40),
        }
    )
    model["frozen"].requires_grad_(False)
    return model


def test_names_order_exactly_those_layers() -> None:
    """One name, a list or a set."""
    for where in ("plain", ["plain"], {"plain"}, iter(["plain"])):
        assert list(ordered_layers(order(model_of_kinds(), where=where))) == ["plain"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("depthwise", "layer 'depthwise' cannot be ordered: depthwise"),
        ("plan", "layer 'plan' is none that can be ordered; those are such as frozen, grouped, plain, words"),
        ("", "layer '' is none that can be ordered; those are such as"),
    ],
)
def test_a_named_layer_that_cannot_be_ordered_is_refused(name: str, message: str) -> None:
    """A predicate that is true for everything passes over it."""
    with pytest.raises(ModelError, match=message):
        order(model_of_kinds(), where=["plain", name])

    assert "depthwise" not in ordered_layers(order(model_of_kinds(), where=every))


def test_a_frozen_layer_is_ordered_when_it_is_named_and_stays_frozen() -> None:
    """Its factors take no gradient, nor do the layers it is cut into."""
    model = model_of_kinds()

    reasons = {choice.name: choice.reason for choice in explain(model, where=every)}
    ordered = order(model, where=["frozen", "plain"])
    layers = ordered_layers(ordered)
    stock = cut(ordered, {"frozen": 2, "plain": 2})

    assert reasons["frozen"] == "frozen: name it in where= to order it"
    assert {name: layer.u.requires_grad or layer.v.requires_grad for name, layer in layers.items()} == {
        "frozen": False,
        "plain": True,
    }
    assert {p.requires_grad for p in stock.get_submodule("frozen").parameters()} == {False}
    assert {p.requires_grad for p in stock.get_submodule("plain").parameters()} == {True}


def test_an_embedding_is_ordered_when_asked_for_only() -> None:
    """It takes no multiplications: a lower rank saves memory and adds time."""
    default = {choice.name: choice.reason for choice in explain(model_of_kinds())}

    assert default["words"] == "looked up, not multiplied: name it in where= to save its memory"
    assert isinstance(ordered_layers(order(model_of_kinds(), where=["words"]))["words"], OrderedEmbedding)


@pytest.mark.parametrize("option", ["max_norm", "sparse", "scale_grad_by_freq"])
def test_an_embedding_that_works_on_whole_rows_stays_dense(option: str) -> None:
    """There are no whole rows between its two layers."""
    layer = nn.Embedding(9, 6, **{option: 1.0 if option == "max_norm" else True})  # type: ignore[arg-type]

    with pytest.raises(ModelError, match=f"its option {option} works on whole rows"):
        order(layer, where=[""])


def test_the_spatial_predicate_is_asked_for_the_chosen_convolutions_of_one_group() -> None:
    """A name that is none of them is refused."""
    asked = []

    def spatial(name: str, module: nn.Module) -> bool:
        asked.append(name)
        return True

    model = order(model_of_kinds(), where=every, spatial=spatial)

    assert asked == ["plain"]
    assert {name: type(layer) for name, layer in ordered_layers(model).items()} == {
        "grouped": OrderedConv2d,
        "plain": OrderedSpatialConv2d,
        "words": OrderedEmbedding,
    }
    with pytest.raises(ModelError, match="layer 'grouped' cannot become a spatial pair"):
        order(model_of_kinds(), where=every, spatial=["grouped"])


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.LSTM(4, 4), "an LSTM cannot be ordered"),
        (nn.EmbeddingBag(4, 4), "an EmbeddingBag cannot be ordered"),
        (nn.Bilinear(4, 4, 4), "a Bilinear cannot be ordered"),
        (nn.Linear(4, 4, dtype=torch.complex64), "its weight is complex64, not real numbers"),
    ],
    ids=["lstm", "bag", "bilinear", "complex"],
)
def test_what_holds_other_weights_is_listed_with_its_reason(layer: nn.Module, reason: str) -> None:
    """Nothing that has weights to save is passed over in silence."""
    (choice,) = explain(layer, where=every)

    assert choice.reason == reason


# --- cut --------------------------------------------------------------------------------------------------


def test_order_and_cut_leave_torchs_generator_alone() -> None:
    """A training that is cut in between goes on as if it were not."""
    model = model_of_kinds()
    state = torch.get_rng_state()

    ordered = order(model, where=every, spatial=["plain"])
    cut(ordered, {})
    cut(ordered, dict.fromkeys(ordered_layers(ordered), 1))

    assert torch.equal(torch.get_rng_state(), state)


def test_a_cut_layer_answers_what_models_ask_of_the_one_it_was() -> None:
    """ViT asks for the weight's type, MobileNet for the stride; the parameters are listed once all the same."""
    model = order(nn.Conv2d(8, 8, 3, 2), where=every)

    for stock in (model, cut(model, {"": 2}), copy.deepcopy(cut(model, {"": 2})).double(), cut(model, {})):
        dtype = next(stock.parameters()).dtype
        assert weight_of(stock).dtype == dtype
        assert [getattr(stock, name) for name in ("stride", "kernel_size")] == [(2, 2), (3, 3)]
    assert list(cut(model, {"": 2}).state_dict()) == ["0.weight", "1.weight", "1.bias"]


# --- specs and probes -------------------------------------------------------------------------------------

SPECS: list[tuple[LayerSpec, Rank]] = [
    (LayerSpec(kind="conv1d", in_channels=8, out_channels=12, kernel=(3, 1), stride=(2, 1), input_size=(9,)), 4),
    (
        LayerSpec(kind="conv1d", in_channels=8, out_channels=12, kernel=(3, 1), padding=(1, 0), input_size=(9,)),
        DENSE,
    ),
    (
        LayerSpec(kind="conv1d", in_channels=8, out_channels=12, kernel=(3, 1), groups=2, input_size=(9,)),
        2,
    ),
    (
        LayerSpec(kind="conv2d", in_channels=8, out_channels=24, kernel=(3, 3), groups=2, input_size=(6, 6)),
        4,
    ),
    (
        LayerSpec(
            kind="conv2d",
            in_channels=8,
            out_channels=12,
            kernel=(3, 5),
            stride=(2, 1),
            padding=(1, 2),
            input_size=(9, 8),
            activation="relu",
            factors="spatial",
        ),
        5,
    ),
    (LayerSpec(kind="embedding", in_channels=40, out_channels=12, bias=False, input_size=(5,)), 4),
    (LayerSpec(kind="embedding", in_channels=40, out_channels=12, bias=False, input_size=(5,)), DENSE),
]


def example(spec: LayerSpec, *shape: int) -> Tensor:
    return torch.randint(spec.in_channels, shape) if spec.kind == "embedding" else torch.randn(*shape)


@pytest.mark.parametrize(("spec", "rank"), SPECS, ids=str)
def test_a_probe_is_the_layer_that_its_spec_describes(spec: LayerSpec, rank: Rank) -> None:
    """Traced, it gives the parts of the spec; it takes the example it comes with."""
    module, (inputs,) = probe_module(spec, rank)

    output = module(inputs)

    parts = [part.model_copy(update={"bias": True}) for part in spec.parts(rank) if part.kind != "embedding"]
    layers = trace(module, (inputs,)).layers
    assert [layer.spec.model_copy(update={"bias": True}) for layer in layers] == parts
    assert _size(spec, output) == spec.output_size
    assert spec.activation == "none" or float(output.detach().min()) == 0


@pytest.mark.parametrize(("spec", "rank"), SPECS, ids=str)
def test_a_litert_probe_of_every_kind_runs(spec: LayerSpec, rank: Rank, tmp_path: Path) -> None:
    """Channels last, a sequence as an image one wide, ids as 32-bit integers."""
    path = tmp_path / "probe.tflite"
    wide = (*spec.input_size, 1) if spec.kind == "conv1d" else spec.input_size
    inputs = example(spec, 1, *wide, *(() if spec.kind == "embedding" else (spec.in_channels,)))

    load("litert").write_probe(spec, rank, path)
    output = outputs_of("litert", path, inputs.numpy())

    one = (1,) if spec.kind == "conv1d" else ()
    assert output.shape == (1, *spec.output_size, *one, spec.out_channels)
    assert abs(output).max() > 0


def test_litert_probes_of_every_kind_are_timed(tmp_path: Path) -> None:
    """Side by side, each on inputs of its own kind."""
    runtime, device = load("litert"), LocalDevice()
    paths = {str(index): tmp_path / f"{index}.tflite" for index in range(len(SPECS))}
    for (spec, rank), path in zip(SPECS, paths.values(), strict=True):
        runtime.write_probe(spec, rank, path)

    timings = runtime.measure(device, paths, ONCE)

    device.close()
    assert set(timings) == set(paths) and all(timing.median_ms > 0 for timing in timings.values())


def test_executorch_probes_of_every_kind_run(tmp_path: Path) -> None:
    """Also with 64-bit ids as their input; timed side by side."""
    runtime, device, paths = load("executorch"), LocalDevice(), {}
    for index, (spec, rank) in enumerate((SPECS[0], SPECS[4], SPECS[5])):
        path, inputs = tmp_path / f"{index}.pte", probe_module(spec, rank)[1][0]

        runtime.write_probe(spec, rank, path)
        output = outputs_of("executorch", path, inputs.numpy())

        channels = output.shape[1] if spec.kind.startswith("conv") else output.shape[-1]
        assert channels == spec.out_channels, spec
        paths[str(index)] = path
    timings = runtime.measure(device, paths, ONCE)
    assert len(timings) == 3 and all(timing.median_ms > 0 for timing in timings.values())
    device.close()


def test_a_model_of_token_ids_is_exported_and_gated(tmp_path: Path) -> None:
    """Each sample is run alone, as 64-bit ids; the file is compared with the model."""
    torch.manual_seed(0)
    model = order(nn.Sequential(nn.Embedding(30, 12), nn.Linear(12, 9)).eval(), where=every)
    path = tmp_path / "ids.pte"

    agreement = export(cut(model, {"0": 3, "1": 2}), torch.randint(30, (3, 5)), path, load("executorch"))

    assert path.exists()
    assert agreement.max_abs_error < 1e-5
    assert agreement.top1_agreement == 1


def test_a_spec_prints_its_form() -> None:
    """One line of a table tells grouped, spatial and one-dimensional layers apart."""
    assert [str(spec) for spec, _ in SPECS[1:6]] == [
        "conv1d 3 8→12 on 9",
        "conv1d 3 8→12 in 2 groups on 9",
        "conv 3x3 8→24 in 2 groups on 6x6",
        "conv 3x5 8→12 /2 spatial on 9x8",
        "embedding 40→12 on 5",
    ]


def test_the_spatial_form_changes_a_fingerprint_and_the_channel_form_does_not() -> None:
    """Tables that were calibrated before there was another form stay valid."""
    inputs = (torch.randn(1, 8, 9, 9),)
    dense = nn.Conv2d(8, 12, 3)

    channel, spatial = (trace(order(dense, where=every, spatial=s), inputs) for s in (None, every))

    assert channel.fingerprint != spatial.fingerprint
    assert channel.layers[0].spec.factors == "channel"
    assert spatial.layers[0].spec.factors == "spatial"
    assert isinstance(ordered_layers(order(dense, where=every))[""], Ordered)
