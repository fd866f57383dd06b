"""Mixed precision: layers in int8 beside fp32, measured, planned where faster, exported as the plan says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from maestro_edge.devices import LocalDevice
from maestro_edge.errors import ExportError, TableError
from maestro_edge.ordered import at_ranks, cut, order, trace
from maestro_edge.planning import account, corrected, measure_interaction, plan, plan_fleet
from maestro_edge.planning.rounding import round_activations, round_weights, rounding
from maestro_edge.planning.sensitivity import measure_sensitivity
from maestro_edge.profiling import profile
from maestro_edge.profiling.checking import problems
from maestro_edge.recipes.deploy import verify_run
from maestro_edge.recipes.plans import plan_run, sensitivity_of
from maestro_edge.recipes.run import create
from maestro_edge.recipes.tables import check_prediction, profile_run
from maestro_edge.recipes.trainings import train_run
from maestro_edge.recipes.variants import export_run
from maestro_edge.runtimes import Agreement, MeasuringProtocol, export, export_elastic, load
from maestro_edge.runtimes.agreement import compare
from maestro_edge.runtimes.mixed_litert import mark
from maestro_edge.terminal import plan_table
from maestro_edge.training import TrainSettings
from maestro_edge.values import (
    DENSE,
    Cut,
    LatencyRow,
    LatencyTable,
    LayerSpec,
    Manifest,
    Precision,
    Quantity,
    Rank,
    RankPlan,
    Sensitivity,
    Timing,
    write_atomically,
)
from tests.command import here
from tests.conftest import REST_MS, FakeRuntime, layer_ms
from tests.test_gauge import X, every, mlp
from tests.test_int8 import graph, scales
from tests.test_planning import losses_of
from tests.test_run import small

LINEAR = LayerSpec(kind="linear", in_channels=64, out_channels=96)
QUICK = MeasuringProtocol(rounds=4, warmup_ms=1, slice_ms=1, repeats=0, pause_s=0)


class Mixing(FakeRuntime):
    """In int8 some layers take half their time, the others twice: see int8_ms()."""

    def export_mixed(
        self, model: nn.Module, inputs: tuple[Tensor, ...], path: Path, int8: Collection[str]
    ) -> None:
        layers = trace(model, inputs).layers
        chosen = {layer.name for layer in layers for name in int8 if f"{layer.name}.".startswith(f"{name}.")}
        assert len(chosen) >= len(int8), "every name is that of a layer, or of a pair"
        times = (int8_ms(each.spec) if each.name in chosen else layer_ms(each.spec) for each in layers)
        content = json.dumps({"ms": REST_MS + sum(times), "int8": sorted(chosen), "path": str(path)}).encode()
        self.models[hashlib.sha256(content).hexdigest()] = model
        write_atomically(path, content)

    def write_probe(self, spec: LayerSpec, rank: Rank, path: Path, precision: Precision = "fp32") -> None:
        super().write_probe(spec, rank, path, precision)
        if precision == "int8-dynamic":
            ms = sum(map(int8_ms, spec.parts(rank)))
            write_atomically(path, json.dumps({"ms": ms}).encode())


def int8_ms(spec: LayerSpec) -> float:
    """Faster is what reads 64 or 128 channels, or leaves more than 128."""
    return layer_ms(spec) * (0.5 if spec.in_channels in (64, 128) or spec.out_channels > 128 else 2)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> LatencyTable:
    """Of two Linears, 128→192 and 192→128: the first is faster in int8, the second slower."""
    folder = tmp_path_factory.mktemp("table")
    return profile(mlp(), X, Mixing(), LocalDevice(), folder=folder, precision="mixed")


# Values


def test_a_layer_in_int8_is_another_spec_of_the_same_network() -> None:
    """So are the parts that it is cut into; a parameter is a byte, and nothing else changes."""
    spec = LINEAR.quantised

    assert LayerSpec.model_validate_json(spec.model_dump_json()) == spec != LINEAR
    assert LayerSpec.model_validate({"kind": "linear", "in_channels": 64, "out_channels": 96}) == LINEAR
    assert [part.int8 for part in spec.parts(16)] == [True, True]
    assert (spec.plain, LINEAR.gauged.plain) == (LINEAR, LINEAR)
    assert (spec.size_bytes(16), spec.params(16)) == (LINEAR.size_bytes(16) / 4, LINEAR.params(16))
    assert str(spec) == "linear 64→96 int8 on 1"
    network = trace(mlp(), X)
    assert network.in_int8(["0"]).fingerprint == network.fingerprint
    assert [layer.spec.int8 for layer in network.in_int8(["0"]).layers] == [True, False]


@pytest.mark.parametrize(
    "other",
    [
        {"kind": "embedding"},
        {"factors": "gauge"},
        {"kind": "conv2d", "groups": 64},
        {"kind": "conv2d", "groups": 2},
        {"kind": "conv2d", "in_channels": 1},
    ],
    ids=str,
)
def test_layers_that_have_no_kernel_in_int8_are_refused(other: dict[str, object]) -> None:
    """A convolution of one channel is a depthwise one."""
    content = LINEAR.model_dump() | {"input_size": (8, 8)} | other
    assert not LayerSpec.model_validate(content).has_int8

    with pytest.raises(ValidationError, match="is in int8"):
        LayerSpec.model_validate(content | {"int8": True})


# Measured


def test_a_mixed_table_has_rows_of_both(table: LatencyTable, tmp_path: Path) -> None:
    """At the same ranks and dense; whole networks of both follow from their sum."""
    network = trace(mlp(), X)

    for layer in network.ordered:
        assert table.ranks(layer.spec.quantised) == table.ranks(layer.spec)
        for rank in table.ranks(layer.spec):
            expected = sum(map(int8_ms, layer.spec.parts(rank)))
            assert table.row(layer.spec.quantised, rank).ms == pytest.approx(expected, rel=1e-6)
    assert [item.int8 for item in table.calibration(network).networks].count(()) > 3
    assert table.calibration(network).loo_mape < 1e-4
    first, second = (layer.spec for layer in network.ordered)
    ms = REST_MS + int8_ms(first) + sum(map(layer_ms, second.parts(16)))
    assert table.predict_ms(network.in_int8(["0"]), {"2": 16}) == pytest.approx(ms, rel=1e-4)
    assert LatencyTable.load(table.save(tmp_path / table.file_name)) == table
    assert ".mixed-t1" in table.file_name and problems(table) == ()
    with pytest.raises(ValidationError, match="rows of layers in int8 beside others is mixed, not fp32"):
        LatencyTable.model_validate(table.model_dump() | {"precision": "fp32"})


def test_the_ranks_at_which_int8_is_faster(table: LatencyTable) -> None:
    """Than in fp32 at that rank, and than dense in fp32."""
    first, second = (layer.spec for layer in trace(mlp(), X).ordered)

    assert table.int8_ranks(first) == (*table.ranks(first)[:-1], DENSE) != (DENSE,)
    assert table.int8_ranks(second) == ()
    slow = [
        row if row.rank == DENSE else row.model_copy(update={"timing": Timing.of([9, 9])}) for row in table.rows
    ]
    assert table.model_copy(update={"rows": tuple(slow)}).int8_ranks(first) == (DENSE,)
    assert table.int8_ranks(first.model_copy(update={"groups": 2})) == ()


def test_probes_of_layers_in_int8_are_timed(tmp_path: Path) -> None:
    """LiteRT's, at a rank: both operators are in int8."""
    runtime, device, spec = load("litert"), LocalDevice(), LINEAR.model_copy(update={"input_size": (16,)})
    paths = {"fp32": tmp_path / "fp32.tflite", "int8": tmp_path / "int8.tflite"}
    runtime.write_probe(spec, DENSE, paths["fp32"])
    runtime.write_probe(spec.quantised, 16, paths["int8"], "int8-dynamic")

    timings = runtime.measure(device, paths, QUICK)

    device.close()
    assert all(timing.median_ms > 0 for timing in timings.values())
    assert [scales(inputs[1]) for _, inputs in graph(paths["int8"])] == [1, 1]
    assert [scales(inputs[1]) for _, inputs in graph(paths["fp32"])] == [0]


# What it costs


def test_rounding_keeps_what_int8_keeps() -> None:
    """Zero, the ends of the range, and all else within half a step of it."""
    torch.manual_seed(0)
    weight, x = torch.randn(6, 4, 3, 3), torch.randn(5, 7)
    weight[2] = 0

    by_channel, in_all = (round_weights(weight, by_channel=each) for each in (True, False))
    by_row = round_activations(x, over=(1,))

    largest = weight.abs().amax((1, 2, 3), keepdim=True)
    assert (by_channel - weight).abs().le(largest / 254 + 1e-6).all()
    assert (in_all - weight).abs().max() <= largest.max() / 254 + 1e-6
    assert len(set(in_all.flatten().tolist())) <= 255 and (by_channel[2] == 0).all()
    scaled = weight * torch.tensor([1.0, 9, 1, 0.1, 1, 1]).reshape(-1, 1, 1, 1)
    assert torch.allclose(
        round_weights(scaled, by_channel=True), by_channel * scaled / weight.where(weight != 0, 1)
    )
    step = (x.amax(1).clamp_min(0) - x.amin(1).clamp_max(0)) / 255
    assert ((by_row - x).abs() <= step[:, None] * 1.01).all() and all(
        len(set(row.tolist())) <= 256 for row in by_row
    )
    assert (round_activations(torch.zeros(2, 3), over=(0, 1)) == 0).all()


EMULATED = [
    (nn.Linear(48, 40), (6, 7, 48)),
    (nn.Conv2d(16, 32, 3, padding=1), (6, 16, 8, 8)),
    (nn.Conv2d(16, 32, 1), (6, 16, 8, 8)),
    (nn.Conv2d(16, 32, 1, stride=2), (6, 16, 8, 8)),
]


@pytest.mark.parametrize(("layer", "shape"), EMULATED, ids=str)
@torch.no_grad()
def test_the_emulation_is_what_xnnpack_computes(layer: nn.Module, shape: tuple[int, ...], tmp_path: Path) -> None:
    """The weights are the file's; the activations' ranges are those of its kernels."""
    torch.manual_seed(0)
    model, x, runtime = order(nn.Sequential(layer).eval(), where=every), torch.randn(shape), load("litert")
    spec, path = trace(model, (x[:1],)).layers[0].spec.quantised, tmp_path / "probe.tflite"
    runtime.write_probe(spec, DENSE, path, "int8-dynamic")
    weight, bias = weights_of(path)
    assert isinstance(layer.weight, Tensor)
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)  # type: ignore[operator]
    model = order(nn.Sequential(layer).eval(), where=every)

    with rounding(model) as rounded, rounded.of(["0"]):
        expected = model(x)

    if x.dim() == 4:
        x, expected = x.permute(0, 2, 3, 1), expected.permute(0, 2, 3, 1)
    actual = runtime.predict(path, x.contiguous().numpy())
    assert compare(expected.numpy(), actual).sqnr_db > 90


def weights_of(path: Path) -> tuple[Tensor, Tensor]:
    """Of the only layer of a .tflite file, as torch has them: (m, n) or (m, n, kh, kw), and (m,)."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    _, weight, bias = next(inputs for name, inputs in graph(path) if name in ("CONV_2D", "FULLY_CONNECTED"))
    steps = np.array(weight.quantization.scale, np.float32)
    stored = np.frombuffer(bytes(model.buffers[weight.buffer].data), np.int8).reshape(weight.shape)
    values = torch.from_numpy(stored * steps.reshape(-1, *(1 for _ in weight.shape[1:])))
    values = values.permute(0, 3, 1, 2) if values.dim() == 4 else values
    return values, torch.from_numpy(np.frombuffer(bytes(model.buffers[bias.buffer].data), np.float32).copy())


def test_what_int8_costs_is_measured_where_it_is_faster(table: LatencyTable, tmp_path: Path) -> None:
    """Each layer alone, at each rank and dense, by the emulation; what was saved is gone on with."""
    model, network = mlp(), trace(mlp(), X)
    inputs, targets = torch.randn(48, 128), torch.arange(48) % 128
    path = tmp_path / "sensitivity.json"

    found = measure_sensitivity(model, network, [table], inputs, targets, tolerance=0, chunk=12, path=path)

    assert {layer: tuple(cuts) for layer, cuts in found.int8.items()} == {
        "0": table.int8_ranks(network.ordered[0].spec)
    }
    for rank in found.int8["0"]:
        with torch.no_grad(), rounding(model) as rounded, rounded.of(["0"]), at_ranks(model, {"0": rank}):
            loss = float(F.cross_entropy(model(inputs), targets))
        assert found.base_loss + found.increase("0", rank, int8=True) == pytest.approx(loss, abs=1e-5)
    dense = found.option("0", DENSE, int8=True)
    assert 0 < abs(dense.loss_increase) < 0.01 and found.charge("0", DENSE) == 0 < dense.charge
    assert Sensitivity.load(path) == found
    assert measure_sensitivity(model, network, [table], inputs, targets, tolerance=0, chunk=12, path=path) == found
    with pytest.raises(TableError, match="no sensitivity of layer '2' at rank dense in int8"):
        found.option("2", DENSE, int8=True)
    both = measure_interaction(model, found, {"2": 16}, inputs, targets, int8=["0"])
    assert both.additive == pytest.approx(found.increase("2", 16) + found.increase("0", DENSE, int8=True))


def test_what_layers_cost_together_corrects_int8_too() -> None:
    """The increases of the chosen options then come to what was measured of them all."""
    alone = losses(int8_rise=0.1)

    known = corrected(alone, [({"0": 48, "2": 16}, 3.0)], int8=[["0"]])

    assert known.increase("0", 48, int8=True) + known.increase("2", 16) == pytest.approx(3.0)
    assert known.increase("0", 48, int8=True) > known.increase("0", 48)


# Planned


def losses(*, int8_rise: float) -> Sensitivity:
    """Each component that is cut away costs as much; int8 costs something beside."""
    network = trace(mlp(), X)
    found = losses_of(
        network, {layer.name: {rank: 1 - rank / 128 for rank in (16, 32, 48, 64)} for layer in network.ordered}
    )
    rises: dict[Rank, float] = {DENSE: 0.0}
    rises.update((rank, cut.loss_increase) for rank, cut in found.options["0"].items())
    int8 = {
        layer.name: {
            rank: Cut(loss_increase=rise + int8_rise, loss_se=0, top1_drop=0, top1_se=0, n=8)
            for rank, rise in rises.items()
        }
        for layer in network.ordered
    }
    return found.model_copy(update={"int8": int8})


@pytest.mark.parametrize("exact", [False, True])
def test_a_plan_takes_int8_where_it_is_faster_and_costs_little(table: LatencyTable, exact: bool) -> None:
    """Not where it is slower, nor where it costs more than a cut, nor where the budget needs none of it."""
    network = trace(mlp(), X)
    dense_ms = table.predict_ms(network, {})
    budget_ms = 1.001 * table.predict_ms(network.in_int8(["0"]), {})

    made = plan(network, table, losses(int8_rise=0.01), budget_ms, margin=0.0, exact=exact)
    dear = plan(network, table, losses(int8_rise=9.0), budget_ms, margin=0.0, exact=exact)
    ample = plan(network, table, losses(int8_rise=0.01), 1.001 * dense_ms, margin=0.0, exact=exact)

    assert (made.int8, made.ranks) == (("0",), {"0": DENSE, "2": DENSE})
    assert (made.precision, made.name) == ("mixed", f"fake-mixed-{made.tag}")
    assert made.predicted_ms == pytest.approx(budget_ms / 1.001)
    assert dear.int8 == () and dear.loss_increase > made.loss_increase
    assert ample.int8 == () and set(ample.ranks.values()) == {DENSE}
    assert RankPlan.model_validate_json(made.model_dump_json()) == made
    saved = made.totals(dense=True).size_bytes - made.totals().size_bytes
    assert saved == 3 * network.ordered[0].spec.params()


def test_bytes_of_int8_count_for_a_quarter(table: LatencyTable) -> None:
    """Of a file or of memory; parameters and MACs are as many."""
    spec = trace(mlp(), X).ordered[0].spec
    network = trace(mlp(), X)

    quantities: tuple[Quantity, ...] = ("size_bytes", "params", "macs")
    of = {each: account(each, network, table).of_layer for each in quantities}

    assert of["size_bytes"](spec.quantised, DENSE) == of["size_bytes"](spec, DENSE) / 4
    assert of["params"](spec.quantised, 16) == of["params"](spec, 16)
    assert of["macs"](spec.quantised, 16) == of["macs"](spec, 16)


def test_what_cannot_be_mixed_says_so(table: LatencyTable, tmp_path: Path) -> None:
    """A runtime of one precision, a fleet, an elastic file, a dense network without a plan: a line each."""
    model, samples = cut(mlp(), {}), torch.randn(4, 128)

    with pytest.raises(ExportError, match="files of fake have one precision for all layers") as caught:
        profile(mlp(), X, FakeRuntime(), LocalDevice(), folder=tmp_path, precision="mixed")
    assert "\n" not in str(caught.value)
    with pytest.raises(ExportError, match="files of coreml have one precision for all layers"):
        export(model, samples, tmp_path / "x", load("coreml"), precision="mixed", int8=["0"])
    with pytest.raises(ExportError, match="no use for mixed: choose fp32, fp16, int8-dynamic or int8-static"):
        load("litert").export(model, X, tmp_path / "x", "mixed")
    with pytest.raises(TableError, match="is a mixed table, devices of a fleet share ranks alone"):
        plan_fleet(trace(mlp(), X), [table, table], losses(int8_rise=0), [1.0, 1.0])
    with pytest.raises(ExportError, match="an elastic file is in fp32, not mixed"):
        export_elastic({"r16": model}, samples, tmp_path / "x", load("litert"), precision="mixed")
    with pytest.raises(ExportError, match="no linear layer or convolution '1' to be in int8"):
        mark(model, ["1"])
    assert list(tmp_path.iterdir()) == []


def test_a_mixed_file_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    """The layer across which most is lost is looked for in a mixed file, too."""
    runtime = Mixing(wrong=1e3)

    with pytest.raises(ExportError, match=r"most is lost in layer \w+"):
        export(cut(mlp(), {}), torch.randn(4, 128), tmp_path / "x.fake", runtime, precision="mixed", int8=["0"])

    assert list(tmp_path.iterdir()) == []


# Exported


class Small(nn.Module):
    """Two convolutions with a norm, and three Linears of one shape in two lists: (N, 1, 8, 8) → (N, 16)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(32, 48, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(48)
        self.inner = nn.Linear(48, 16, bias=False)
        self.left = nn.ModuleList([nn.Linear(16, 16, bias=False)])
        self.right = nn.ModuleList([nn.Linear(16, 16, bias=False)])
        self.head = nn.Linear(16, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv2(torch.relu(self.conv1(x)))))
        x = torch.relu(self.inner(x.mean((2, 3))))
        logits: Tensor = self.head(torch.relu(self.left[0](x)) - torch.relu(self.right[0](x)))
        return logits


RANKS: dict[str, Rank] = {"conv2": 16}
INT8 = ("conv2", "right.0")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Tensor, Path, Agreement]:
    """An ordered network, samples, its LiteRT file with a pair and one of two like-named Linears in int8."""
    torch.manual_seed(0)
    dense, samples = Small(), torch.randn(16, 1, 8, 8)
    assert dense.norm.running_var is not None
    dense.norm.running_var.uniform_(0.2, 3)
    model, path = order(dense.eval(), where=every), tmp_path_factory.mktemp("mixed") / "net.tflite"
    stock = cut(model, RANKS).eval()
    return model, samples, path, export(stock, samples, path, load("litert"), precision="mixed", int8=INT8)


def test_a_mixed_file_has_the_chosen_layers_in_int8(exported: tuple[nn.Module, Tensor, Path, Agreement]) -> None:
    """Both operators of a pair, with a scale a channel; of two Linears whose names end alike the right one."""
    model, _, path, _ = exported

    weights = [inputs[1] for name, inputs in graph(path) if name in ("CONV_2D", "FULLY_CONNECTED")]
    rounded = [name for name, inputs in graph(path) if any(scales(tensor) for tensor in inputs)]

    assert [scales(weight) for weight in weights if len(weight.shape) == 4] == [16, 48]
    assert rounded == ["CONV_2D", "CONV_2D", "FULLY_CONNECTED"]
    (weight,) = [weight for weight in weights if len(weight.shape) == 2 and scales(weight)]
    own = model.get_submodule("right.0").weight.detach().abs().max() / 127  # type: ignore[operator]
    assert weight.quantization.scale[0] == pytest.approx(float(own), rel=1e-4)


@torch.no_grad()
def test_a_mixed_file_computes_what_is_emulated(exported: tuple[nn.Module, Tensor, Path, Agreement]) -> None:
    """Far nearer than it is to fp32, from which it differs by no more than int8 may."""
    model, samples, path, agreement = exported

    with rounding(model) as rounded, rounded.of(INT8), at_ranks(model, RANKS):
        expected = model(samples).numpy()

    found = compare(expected, load("litert").predict(path, samples.numpy()))
    assert 25 < agreement.sqnr_db < 60
    assert found.sqnr_db > 90


# All together


def perceptron(channels: int, classes: int) -> nn.Module:
    """(N, 1, 32, 32) → (N, 10), for a run: one layer is ordered."""
    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(64, 160), nn.ReLU(), nn.Linear(160, classes))


def test_a_run_exports_what_its_plan_says(tmp_path: Path) -> None:
    """Profiled, planned, exported, verified: the file's layers in int8 and its time are those of the plan."""
    run = create(tmp_path / "run", data="digits", model="tests.test_mixed:perceptron")
    run.__dict__["data"] = small(run.data)
    train_run(run, dense=None, nested=TrainSettings(epochs=1, batch_size=32, bf16=False))
    runtime, device, tables = Mixing(), LocalDevice(), tmp_path / "profiles"
    table = profile_run(run, runtime, device, profiles=tables, protocol=QUICK, precision="mixed")
    sensitivity = sensitivity_of(run, [table])
    budget_ms = table.predict_ms(run.network.in_int8(["2"]), {}) / 0.979

    (made,) = plan_run(run, table, sensitivity, [budget_ms])
    checked = check_prediction(run, table, runtime, device, count=2, protocol=QUICK)
    manifest, log = export_run(run, device, [runtime], rivals=["mixed"], layout="NHWC")
    manifest, notes = verify_run(run, runtime, device, profiles=tables, protocol=QUICK)

    variant = manifest.variants[1]
    assert log == [
        "fake-mixed-dense is left out: mixed is of plans, which say what of a network is in int8: choose another "
        "precision"
    ]
    assert (variant.precision, variant.int8, variant.ranks["2"]) == ("mixed", made.int8, DENSE)
    assert made.int8 == ("2",)
    assert variant.measured_ms is not None
    assert variant.measured_ms.p50 == pytest.approx(made.predicted_ms, rel=1e-3)
    assert notes == [] and checked.worst < 1e-3
    told = {str(column.header): list(column.cells) for column in plan_table(made).columns}
    assert told["precision"][0] == "int8-dynamic"
    assert told["rank"][0] == "dense"


def test_the_command_line_plans_each_layers_precision(tmp_path: Path) -> None:
    """From a mixed table, in which int8 is made faster here, to a timed file whose manifest names its layers."""
    model = ("--model", "tests.test_mixed:perceptron")
    common = ("run", "--runtime", "litert", *model)

    trained = here("train", model[1], "--out", "run", "--epochs", "1", "--dense-epochs", "1", folder=tmp_path)
    profiled = here("profile", *common, "--precision", "mixed", "--emulated", folder=tmp_path)
    assert (trained.code, profiled.code) == (0, 0), (trained, profiled)
    (path,) = (tmp_path / "profiles").glob("*.mixed-t1.emulated.json")
    made = LatencyTable.load(path)
    (fit,) = made.calibrations
    rows = [row.model_copy(update={"timing": Timing.of([times_ms(row), times_ms(row)])}) for row in made.rows]
    fit = fit.model_copy(update={"rest_ms": 1.0, "slope": 1.0, "intercept_ms": 0.0})
    made.model_copy(update={"rows": tuple(rows), "calibrations": (fit,)}).save(path)
    planned = here("plan", *common, "--precision", "mixed", "--budget-ms", "8", folder=tmp_path)
    exported = here("export", *common, "--layout", "nhwc", folder=tmp_path)
    verified = here("verify", *common, "--rounds", "1", folder=tmp_path)

    assert (planned.code, exported.code, verified.code) == (0, 0, 0), (planned, exported, verified)
    (plan,) = [RankPlan.load(each) for each in (tmp_path / "run" / "plans").glob("*.json")]
    (variant,) = [
        each for each in Manifest.load(tmp_path / "run" / "files" / "manifest.json").variants if each.budgets
    ]
    assert (variant.precision, variant.int8) == ("mixed", plan.int8) == ("mixed", ("2",))
    assert variant.measured_ms is not None and variant.ranks == plan.ranks == {"2": DENSE}
    operators = graph(tmp_path / "run" / "files" / variant.file)
    weights = [inputs[1] for name, inputs in operators if name == "FULLY_CONNECTED"]
    assert [scales(weight) for weight in weights] == [1, 0]


def times_ms(row: LatencyRow) -> float:
    """A dense layer takes 4 ms and 2 in int8; a rank is hardly faster than that."""
    return (2.0 if row.spec.int8 else 4.0) - (0 if row.rank == DENSE else 0.1)
