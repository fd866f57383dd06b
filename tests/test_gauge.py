"""The gauge form: the same function as the pair in fewer weights, measured on request, planned where faster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from maestro_edge.devices import LocalDevice
from maestro_edge.errors import BudgetError, ExportError, ModelError
from maestro_edge.ordered import Gauge, cut, gauge_layers, gauge_ranks, order, ordered_layers, trace
from maestro_edge.ordered.gauge import gauged, pivots
from maestro_edge.planning import plan, reachable_ms
from maestro_edge.planning.sensitivity import measure_sensitivity
from maestro_edge.profiling import profile, rank_options
from maestro_edge.recipes.deploy import verify_run
from maestro_edge.recipes.plans import plan_run
from maestro_edge.recipes.plans import sensitivity_of as sensitivity_of_run
from maestro_edge.recipes.run import create
from maestro_edge.recipes.tables import profile_run
from maestro_edge.recipes.trainings import train_run
from maestro_edge.recipes.variants import export_run
from maestro_edge.runtimes import MeasuringProtocol, export, load
from maestro_edge.training import TrainSettings
from maestro_edge.values import DENSE, LatencyRow, LatencyTable, LayerSpec, RankPlan, Sensitivity, Timing
from tests.conftest import REST_MS, FakeRuntime, TinyNet, layer_ms, outputs_of
from tests.test_planning import losses_of
from tests.test_run import small


def every(name: str, module: nn.Module) -> bool:
    return True


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def off(actual: Tensor, expected: Tensor) -> float:
    """The largest error relative to the largest output."""
    return float(((actual - expected).abs().max() / expected.abs().max()).detach())


def pair(u: Tensor, v: Tensor) -> nn.Sequential:
    """(m, r) and (r, n) as two Linears with a bias."""
    (outputs, rank), inputs = u.shape, v.shape[1]
    first, second = nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs)
    with torch.no_grad():
        first.weight.copy_(v)
        second.weight.copy_(u)
    return nn.Sequential(first, second).eval()


# The same function


@settings(deadline=None, max_examples=60)
@given(
    inputs=st.integers(2, 40),
    outputs=st.integers(2, 40),
    share=st.floats(0, 1),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_linear_layer_computes_the_same(inputs: int, outputs: int, share: float, bias: bool, seed: int) -> None:
    """At every rank below both sides, also above the pair's break-even, in as many weights as the spec says."""
    torch.manual_seed(seed)
    model = order(nn.Sequential(nn.Linear(inputs, outputs, bias=bias)).eval(), where=every)
    rank = 1 + int(share * (min(inputs, outputs) - 2))
    x = torch.randn(5, 3, inputs)
    spec = trace(model, (x,)).layers[0].spec.gauged

    made = cut(model, {"0": rank}, gauge=["0"])

    assert off(made(x), cut(model, {"0": rank})(x)) < 1e-4
    assert parameters(made) == spec.params(rank) == rank * (inputs + outputs - rank) + bias * outputs
    assert spec.macs(rank) == 15 * rank * (inputs + outputs - rank) < spec.macs()


CONVOLUTIONS = [
    (nn.Conv2d(6, 16, 3, stride=2, padding=1), (2, 6, 9, 9)),
    (nn.Conv2d(8, 12, 1, bias=False), (2, 8, 5, 5)),
    (nn.Conv2d(4, 10, (3, 5), padding=(0, 2), dilation=2), (1, 4, 16, 16)),
    (nn.Conv1d(6, 14, 3, stride=2, padding=1), (2, 6, 11)),
]


@pytest.mark.parametrize(("layer", "shape"), CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("rank", [1, 5])
def test_a_convolution_computes_the_same(layer: nn.Module, shape: tuple[int, ...], rank: int) -> None:
    """Stride, padding and dilation stay in the first layer; sizes and costs are those of its spec."""
    torch.manual_seed(0)
    model, x = order(nn.Sequential(layer).eval(), where=every), torch.randn(shape)
    network = trace(model, (x,))

    made = cut(model, {"0": rank}, gauge=["0"])

    spec = network.layers[0].spec.gauged
    assert off(made(x), cut(model, {"0": rank})(x)) < 1e-4
    assert parameters(made) == spec.params(rank)
    parts = [item.spec for item in trace(made, (x,)).layers]
    assert [part.model_copy(update={"activation": "none"}) for part in parts] == list(spec.parts(rank))
    assert network.in_gauge(["0"]).macs({"0": rank}) == trace(made, (x,)).macs({})


def test_rows_at_either_end_need_no_order() -> None:
    """Outputs are joined as they are where the first or the last rows span the others; the better end is taken."""
    torch.manual_seed(0)
    u, v, x = torch.randn(20, 6), torch.randn(6, 15), torch.randn(4, 15)
    weak = u.clone()
    weak[1] = weak[0]

    first, last = gauged(pair(torch.cat([weak[2:], weak[:2]]), v)), gauged(pair(weak, v))

    assert first.order is None and first.ahead
    assert last.order is None and not last.ahead
    assert off(last(x), pair_outputs(last, weak, v, x)) < 1e-5


def pair_outputs(made: Gauge, u: Tensor, v: Tensor, x: Tensor) -> Tensor:
    """U Vᵀ x and the bias that the gauge form holds, in float64."""
    first, second = made.first, made.second
    assert isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
    known = first.bias.double(), second.bias.double() + second.weight.double() @ first.bias.double()
    bias = torch.cat(known if made.ahead else known[::-1])
    if made.order is not None:
        bias = bias[made.order]
    return (x.double() @ v.double().T @ u.double().T + bias).float()


@pytest.mark.parametrize("spoilt", ["dead outputs", "equal outputs", "no component", "tiny component"])
def test_ill_conditioned_factors_are_no_matter(spoilt: str) -> None:
    """Rows that do not span the others at either end, and components of almost nothing: rows are chosen freely."""
    torch.manual_seed(1)
    u, v, x = torch.randn(24, 8), torch.randn(8, 30), torch.randn(16, 30)
    if spoilt == "dead outputs":
        u[[1, 22]] = 0
    elif spoilt == "equal outputs":
        u[1], u[22] = u[0] * (1 + 1e-7), u[23]
    elif spoilt == "no component":
        u[:, 3] = u[:, 4]
    else:
        left, values, right = torch.linalg.svd(u, full_matrices=False)
        u = left * torch.cat([values[:-1], values[-1:] * 1e-7]) @ right
    made = pair(u, v)

    form = gauged(made)

    assert off(form(x), made(x)) < 1e-5
    assert (form.order is not None) == (spoilt in ("dead outputs", "equal outputs"))


@settings(deadline=None, max_examples=40)
@given(outputs=st.integers(2, 60), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_no_row_needs_much_of_the_chosen_ones(outputs: int, share: float, seed: int) -> None:
    """All coefficients are at most 2, whatever the basis: its rows are of very different lengths here."""
    generator = torch.Generator().manual_seed(seed)
    rank = 1 + int(share * (outputs - 2))
    scales = 10.0 ** torch.randint(-6, 3, (outputs, 1), generator=generator)
    basis = torch.linalg.qr(scales * torch.randn(outputs, rank, generator=generator).double()).Q

    rows = pivots(basis)

    assert rows.tolist() == sorted(set(rows.tolist())) and len(rows) == rank
    assert torch.linalg.solve(basis[rows], basis, left=False).abs().max() <= 2 + 1e-6


def test_a_cut_in_gauge_form_keeps_type_training_and_generator() -> None:
    """As every cut: bfloat16 stays, frozen weights stay frozen, torch's generator stays where it was."""
    model = nn.Sequential(nn.Linear(12, 9)).to(torch.bfloat16).eval().requires_grad_(False)
    ordered, state = order(model, where=["0"]), torch.random.get_rng_state()

    made = cut(ordered, {"0": 4}, gauge=["0"])

    assert torch.equal(torch.random.get_rng_state(), state)
    assert {(p.dtype, p.requires_grad) for p in made.parameters()} == {(torch.bfloat16, False)}
    assert not made[0].training  # type: ignore[index]
    assert made[0].weight.dtype == torch.bfloat16  # type: ignore[index]  # what models ask of one layer
    assert len(made.state_dict()) == 4


REFUSED = [
    (nn.Conv2d(8, 8, 3, groups=2), 2, None, "no gauge form at rank 2"),
    pytest.param(nn.Conv2d(8, 8, 3), 2, every, "no gauge form at rank 2", id="spatial pair"),
    (nn.Embedding(20, 8), 2, None, "no gauge form at rank 2"),
    (nn.Linear(8, 12), 8, None, "no gauge form at rank 8"),
    (nn.Linear(8, 12), DENSE, None, "has no rank"),
]


@pytest.mark.parametrize(("layer", "rank", "spatial", "message"), REFUSED, ids=str)
def test_what_has_no_gauge_form_is_refused(layer: nn.Module, rank: int, spatial: object, message: str) -> None:
    """Grouped and spatial convolutions, embeddings, full rank, and a layer that stays dense."""
    model = order(nn.Sequential(layer).eval(), where=every, spatial=spatial)  # type: ignore[arg-type]

    with pytest.raises(ModelError, match=message):
        cut(model, {"0": rank}, gauge=["0"])
    with pytest.raises(ModelError, match="'1' is to be in gauge form but has no rank"):
        cut(model, {}, gauge=["1"])


def test_a_pair_of_other_layers_is_refused() -> None:
    """gauged() alone says so, too."""
    with pytest.raises(ModelError, match="a pair of Embedding and Linear has no gauge form"):
        gauged(nn.Sequential(nn.Embedding(9, 2), nn.Linear(2, 5)))
    with pytest.raises(ModelError, match="or a spatial one"):
        gauged(nn.Sequential(nn.Conv2d(3, 2, (3, 1)), nn.Conv2d(2, 5, (1, 3))))
    with pytest.raises(ModelError, match="rank 5 to 5 outputs"):
        gauged(nn.Sequential(nn.Linear(9, 5), nn.Linear(5, 5)))


# Which layers, at which ranks


def test_layers_in_front_of_a_norm_stay_pairs(tiny: nn.Module) -> None:
    """A BatchNorm folds into one layer, not into two side by side."""
    assert gauge_layers(order(tiny, where=every), (torch.zeros(1, 1, 8, 8),)) == ("head",)


def test_ranks_whose_outputs_would_need_an_order_are_left_out() -> None:
    """One dead output at each end: no rank that meets both is offered; full rank never is."""
    torch.manual_seed(0)
    dense = nn.Linear(16, 12)
    with torch.no_grad():
        dense.weight[[2, 8]] = 0
    model = order(nn.Sequential(dense).eval(), where=every)

    usable = gauge_ranks(model, {"0": [1, 2, 3, 4, 5, 12, 13]})["0"]

    assert usable == (1, 2, 3)
    for rank in usable:
        form = cut(model, {"0": rank}, gauge=["0"])[0]  # type: ignore[index]
        assert isinstance(form, Gauge) and form.order is None


def test_a_spec_in_gauge_form() -> None:
    """It breaks even at full rank, prints as what it is, and does not change a network's fingerprint."""
    model, x = order(nn.Sequential(nn.Linear(48, 64), nn.ReLU()).eval(), where=every), torch.zeros(2, 48)
    network = trace(model, (x,))
    spec = network.layers[0].spec

    assert spec.break_even_rank == pytest.approx(27.4, abs=0.1)
    assert spec.gauged.break_even_rank == 48
    assert spec.folds(28) and not spec.gauged.folds(47) and spec.gauged.folds(48)
    assert str(spec.gauged) == "linear 48→64 gauge on 1"
    assert spec.gauged.parts(DENSE) == (spec,)
    assert network.in_gauge(["0"]).fingerprint == network.fingerprint
    assert network.in_gauge(["0"]).params({"0": 47}) == 47 * (48 + 64 - 47) + 64
    assert rank_options(spec.gauged, step=16) == (16, 32)
    with pytest.raises(ValidationError, match="has a gauge form"):
        LayerSpec.model_validate({**spec.model_dump(), "kind": "embedding", "factors": "gauge"})


# Exported


class Small(nn.Module):
    """A convolution and two Linears: (N, 3, 8, 8) → (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.hidden = nn.Linear(16, 24)
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x)).mean((2, 3))
        logits: Tensor = self.head(torch.relu(self.hidden(x)))
        return logits


@pytest.mark.parametrize("name", ["executorch", "litert"])
def test_the_form_computes_the_same_in_the_runtime(name: str, tmp_path: Path) -> None:
    """Joined ahead or behind, and put in order: the exported file agrees with the pair in eager."""
    torch.manual_seed(0)
    dense = Small()
    with torch.no_grad():
        dense.hidden.weight[[0, 23]] = 0  # these outputs must be put in order
    model, ranks = order(dense.eval(), where=every), {"conv": 8, "hidden": 12, "head": 6}
    made, samples = cut(model, ranks, gauge=list(ranks)), torch.randn(4, 3, 8, 8)
    runtime, path = load(name), tmp_path / f"small{load(name).suffix}"

    agreement = export(made, samples, path, runtime)

    orders = {name: made.get_submodule(name).order is not None for name in ranks}
    assert orders == {"conv": False, "hidden": True, "head": False}
    assert agreement.sqnr_db > 90
    expected = cut(model, ranks)(samples)
    assert off(torch.from_numpy(outputs_of(name, path, samples.numpy())), expected) < 1e-4


PROBES = [
    LayerSpec(kind="linear", in_channels=12, out_channels=20, input_size=(7,)),
    LayerSpec(kind="conv2d", in_channels=8, out_channels=24, input_size=(6, 6), activation="relu"),
    LayerSpec(kind="conv1d", in_channels=6, out_channels=16, kernel=(3, 1), padding=(1, 0), input_size=(10,)),
]


@pytest.mark.parametrize("spec", PROBES, ids=str)
def test_litert_probes_of_the_form_run(spec: LayerSpec, tmp_path: Path) -> None:
    """Two layers, a concat and what stands behind it, written without a converter."""
    runtime, path = load("litert"), tmp_path / "probe.tflite"

    runtime.write_probe(spec.gauged, 5, path)

    sizes = (*spec.input_size, 1) if spec.kind == "conv1d" else spec.input_size
    output = outputs_of("litert", path, np.ones((1, *sizes, spec.in_channels), np.float32))
    outputs = (*spec.output_size, 1) if spec.kind == "conv1d" else spec.output_size
    assert output.shape == (1, *outputs, spec.out_channels)
    assert (output.min() == 0) == (spec.activation == "relu")


# Measured


def mlp() -> nn.Module:
    """Two ordered Linears, (N, 128) → (N, 128), of which a pair breaks even at rank 76."""
    torch.manual_seed(0)
    return order(nn.Sequential(nn.Linear(128, 192), nn.ReLU(), nn.Linear(192, 128)).eval(), where=every)


X = (torch.zeros(1, 128),)
RANKS = (16, 32, 48, 80, 96, 112)
"""Six of the steps below the full rank of 128."""


def test_profiling_measures_the_form_on_request(tmp_path: Path) -> None:
    """Each layer that may take it at its ranks up to full, and nothing of the kind without being asked."""
    model, runtime = mlp(), FakeRuntime()

    without = profile(model, X, runtime, LocalDevice(), folder=tmp_path / "a")
    table = profile(model, X, runtime, LocalDevice(), folder=tmp_path / "b", gauge=True)

    network = trace(model, X)
    for layer in network.ordered:
        assert without.gauge_ranks(layer.spec) == ()
        assert table.ranks(layer.spec) == without.ranks(layer.spec)
        assert table.gauge_ranks(layer.spec) == RANKS
        for rank in RANKS:
            row = table.row(layer.spec.gauged, rank)
            assert row.ms == pytest.approx(sum(map(layer_ms, layer.spec.gauged.parts(rank))), rel=1e-6)
    assert table.calibrations[0].rest_ms == pytest.approx(REST_MS)


def test_a_row_of_the_form_is_what_it_changes_of_the_dense_layers(tmp_path: Path) -> None:
    """Probes also feed and read; the dense layer's probe beside the form's tells how much of it is that."""

    class Feeding(FakeRuntime):
        """Adds 5 ms to every probe, once it is told to."""

        def write_probe(self, spec: LayerSpec, rank: object, path: Path, precision: object = "fp32") -> None:
            super().write_probe(spec, rank, path)  # type: ignore[arg-type]
            if self.in_gauge:
                path.write_text(f'{{"ms": {5 + float(path.read_text()[7:-1])}}}')

        in_gauge = False

    model, runtime = mlp(), Feeding()
    plain = profile(model, X, runtime, LocalDevice(), folder=tmp_path / "a")
    exact = profile(model, X, runtime, LocalDevice(), folder=tmp_path / "b", gauge=True)
    runtime.in_gauge = True

    fed = profile(model, X, runtime, LocalDevice(), folder=tmp_path / "c", gauge=True)

    for spec in (layer.spec for layer in trace(model, X).ordered):
        fed_ms, dense_ms = fed.row(spec.gauged, 16).ms, fed.row(spec, DENSE).ms
        assert dense_ms == pytest.approx(5 + plain.row(spec, DENSE).ms)
        assert fed_ms - dense_ms == pytest.approx(exact.row(spec.gauged, 16).ms - exact.row(spec, DENSE).ms)


def test_the_form_is_measured_in_floats_only(tmp_path: Path) -> None:
    """A variant in gauge form is fp32."""
    with pytest.raises(ExportError, match="measured in fp32, not int8-static"):
        profile(mlp(), X, FakeRuntime(), LocalDevice(), folder=tmp_path, precision="int8-static", gauge=True)


# Planned


def measured_table(tmp_path: Path, times_ms: Mapping[int, float] | None = None) -> LatencyTable:
    """FakeRuntime's table of mlp(), the first layer's gauge rows replaced by these times."""
    table = profile(mlp(), X, FakeRuntime(), LocalDevice(), folder=tmp_path, gauge=True)
    first = trace(mlp(), X).ordered[0].spec.gauged
    rows: list[LatencyRow] = []
    for row in table.rows:
        ms = (times_ms or {}).get(row.rank) if row.spec == first and row.rank != DENSE else None
        rows.append(row if ms is None else row.model_copy(update={"timing": Timing.of([ms, ms])}))
    return table.model_copy(update={"rows": tuple(rows)})


def sensitivity_of(table: LatencyTable) -> Sensitivity:
    """Each component that is cut away costs as much."""
    network = trace(mlp(), X)
    ranks = (*RANKS, 64)
    return losses_of(network, {layer.name: {r: (128 - r) / 128 for r in ranks} for layer in network.ordered})


def test_sensitivities_are_measured_at_the_forms_ranks_too(tmp_path: Path) -> None:
    """Above break-even, where no pair was timed, a plan needs the loss of the form's ranks."""
    table = measured_table(tmp_path)

    found = measure_sensitivity(mlp(), trace(mlp(), X), [table], torch.randn(8, 128), torch.arange(8))

    assert set(found.options["0"]) == {16, 32, 48, 64, 80, 96, 112}


def test_a_plan_takes_the_form_where_it_is_faster(tmp_path: Path) -> None:
    """At a rank above break-even, where no pair is worth its time, and says so; the cut is what it counted."""
    model, network = mlp(), trace(mlp(), X)
    table = measured_table(tmp_path)
    every_rank = gauge_ranks(model, {"0": RANKS, "2": RANKS})
    budget_ms = 1.0001 * table.predict_ms(network.in_gauge(["0"]), {"0": 96})

    without = plan(network, table, sensitivity_of(table), budget_ms, margin=0.0)
    made = plan(network, table, sensitivity_of(table), budget_ms, margin=0.0, gauge=every_rank)

    assert without.gauge == () and made.gauge
    loss = {id(p): sum(layer.loss_increase for layer in p.layers) for p in (without, made)}
    assert loss[id(made)] < loss[id(without)]
    assert made.predicted_ms <= budget_ms
    stock = cut(model, made.ranks, gauge=made.gauge)
    assert parameters(stock) == made.totals().params
    assert trace(stock, X).macs({}) == made.totals().macs
    again = RankPlan.load(made.save(tmp_path / "plan.json"))
    assert (again.ranks, again.gauge) == (made.ranks, made.gauge)
    forms = {layer.name: layer.spec.factors for layer in made.layers}
    assert all(layer.ms < layer.dense_ms for layer in made.layers if forms[layer.name] == "gauge")


def test_a_plan_never_takes_a_form_that_is_slower(tmp_path: Path) -> None:
    """Not one slower than dense, nor one slower than the pair of its rank."""
    network, fast = trace(mlp(), X), measured_table(tmp_path / "fast")
    spec = network.ordered[0].spec
    pairs_ms = {rank: fast.row(spec, rank).ms for rank in (16, 32, 48)}
    table = measured_table(tmp_path / "slow", dict.fromkeys(RANKS, fast.row(spec, DENSE).ms * 1.001) | pairs_ms)
    allowed = {"0": RANKS}

    found = [plan_at(table, share, allowed) for share in (0.0, 0.3, 0.6, 0.9)]

    assert all(made.gauge == () for made in found)
    assert any(plan_at(fast, share, allowed).gauge for share in (0.3, 0.6, 0.9, 1.0))


def plan_at(table: LatencyTable, share: float, allowed: Mapping[str, Sequence[int]]) -> RankPlan:
    """Under a budget so far from the fastest plan to the dense network."""
    network, losses = trace(mlp(), X), sensitivity_of(table)
    fastest_ms = reachable_ms(network, table, losses, gauge=allowed)
    budget_ms = fastest_ms + share * (table.predict_ms(network, {}) - fastest_ms)
    return plan(network, table, losses, budget_ms * 1.0001, margin=0.0, gauge=allowed)


def test_a_plan_takes_the_form_only_where_it_is_allowed(tmp_path: Path) -> None:
    """Where a layer's weights need their outputs put in order, the table's time is not what it takes."""
    network, table = trace(mlp(), X), measured_table(tmp_path, dict.fromkeys(RANKS, 0.001))
    losses = sensitivity_of(table)
    tight_ms = table.predict_ms(network.in_gauge(["0"]), {"0": 48, "2": 16})

    made = plan(network, table, losses, tight_ms * 1.0001, margin=0.0, gauge={"0": (48,)})

    assert (made.gauge, made.ranks["0"]) == (("0",), 48)
    with pytest.raises(BudgetError, match="below the fastest plan"):
        plan(network, table, losses, tight_ms, margin=0.0)


def perceptron(channels: int, classes: int) -> nn.Module:
    """(N, 1, 32, 32) → (N, 10), for a run."""
    return nn.Sequential(
        nn.AvgPool2d(4),
        nn.Flatten(),
        nn.Linear(64, 192),
        nn.ReLU(),
        nn.Linear(192, 192),
        nn.ReLU(),
        nn.Linear(192, classes),
    )


def test_a_run_exports_what_its_plan_says(tmp_path: Path) -> None:
    """Profiled with the form, planned, exported, verified: the file's MACs and times are those of the form."""
    run = create(tmp_path / "run", data="digits", model="tests.test_gauge:perceptron")
    run.__dict__["data"] = small(run.data)
    train_run(run, dense=None, nested=TrainSettings(epochs=1, batch_size=32, bf16=False))
    runtime, device, protocol = FakeRuntime(), LocalDevice(), MeasuringProtocol(pause_s=0)
    tables = tmp_path / "profiles"
    table = profile_run(run, runtime, device, profiles=tables, protocol=protocol, gauge=True)
    tight_ms = table.predict_ms(run.network.in_gauge(["4"]), {"4": 144}) / 0.979

    (made,) = plan_run(run, table, sensitivity_of_run(run, [table]), [tight_ms])
    export_run(run, device, [runtime])
    manifest, notes = verify_run(run, runtime, device, profiles=tables, protocol=protocol)

    variant = manifest.variants[1]
    assert variant.gauge == made.gauge != ()
    assert (variant.macs, variant.params) == (made.totals().macs, made.totals().params)
    assert variant.measured_ms is not None
    assert variant.measured_ms.p50 == pytest.approx(made.predicted_ms, rel=1e-3)
    assert notes == []


def test_ordered_layers_of_a_gauge_cut_are_gone() -> None:
    """Nothing of ours but the concat is left, and what was cut is not cut in place."""
    model = order(TinyNet().eval(), where=every)

    made = cut(model, {"head": 2}, gauge=["head"])

    assert ordered_layers(made) == {} and len(ordered_layers(model)) == 3
    assert [type(layer) for layer in made.get_submodule("head").children()] == [nn.Linear, nn.Linear]
