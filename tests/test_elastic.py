"""Elastic files: every entry computes what its plan does alone, in the bytes of the largest where it can."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from maestro_edge.devices import LocalDevice
from maestro_edge.errors import DeviceError, ExportError
from maestro_edge.ordered import cut, order
from maestro_edge.runtimes import MeasuringProtocol, load, size_bytes
from maestro_edge.runtimes.elastic import entry_name, export_elastic, owners
from maestro_edge.runtimes.flatbuffer import pack
from maestro_edge.runtimes.jobs import of_entry, with_entry
from maestro_edge.runtimes.norms import fold_norms
from maestro_edge.runtimes.tflite import libraries, write_layer
from maestro_edge.training import recalibrate
from maestro_edge.values import LayerSpec, Rank
from tests.conftest import outputs_of

ELASTIC = ("executorch", "litert")
QUICK = MeasuringProtocol(rounds=2, warmup_ms=0, slice_ms=0.1, repeats=0)
PLANS: dict[str, dict[str, Rank]] = {
    "r8": {"first": 8, "second": 8, "hidden": 16},
    "r16": {"first": 16, "second": 16, "hidden": 24},
    "half": {"first": "dense", "second": 16, "hidden": 32},
}


class Block(nn.Module):
    """A residual block, whose second norm has no ReLU behind it, and a Linear pair: (N, 3, 8, 8) → (N, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(64)
        self.first = nn.Conv2d(64, 64, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(64)
        self.second = nn.Conv2d(64, 64, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(64)
        self.last = nn.Conv2d(64, 64, 3, stride=2, bias=False)
        self.norm3 = nn.BatchNorm2d(64)
        self.hidden = nn.Linear(64, 128)
        self.head = nn.Linear(128, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        y = torch.relu(self.norm1(self.first(x)))
        x = torch.relu(self.norm2(self.second(y)) + x)
        x = nn.functional.relu6(self.norm3(self.last(x))).mean((2, 3))
        logits: Tensor = self.head(torch.relu(self.hidden(x)))
        return logits


def samples(count: int) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    """Three nested plans of one network; BatchNorm statistics are each one's own."""
    torch.manual_seed(0)
    model = Block()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1, 1)  # also channels that are turned around
            nn.init.normal_(module.bias)
    ordered = order(recalibrate(model, [samples(64)]).eval(), where=["first", "second", "hidden"])
    return {name: recalibrate(cut(ordered, ranks), [samples(64)]).eval() for name, ranks in PLANS.items()}


@pytest.fixture(scope="module", params=ELASTIC)
def elastic(
    request: pytest.FixtureRequest, models: dict[str, nn.Module], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """A runtime's name, and the elastic file of the three plans."""
    runtime = load(request.param)
    path = tmp_path_factory.mktemp("elastic") / f"net{runtime.suffix}"
    agreements = export_elastic(models, samples(4), path, runtime)
    assert list(agreements) == list(models)
    return request.param, path


def test_every_entry_computes_its_plan(elastic: tuple[str, Path], models: dict[str, nn.Module]) -> None:
    """With norms, activations and residual sums of all kinds, to the rounding of fp32."""
    name, path = elastic

    outputs = {entry: outputs_of(name, with_entry(path, entry), samples(4).numpy()) for entry in models}

    for entry, model in models.items():
        with torch.no_grad():
            expected = model(samples(4)).numpy()
        assert np.abs(outputs[entry] - expected).max() <= 1e-5 * np.abs(expected).max()
    assert np.abs(outputs["r8"] - outputs["half"]).max() > 1e-2, "the plans are different functions"


def test_weights_are_stored_once(elastic: tuple[str, Path], models: dict[str, nn.Module], tmp_path: Path) -> None:
    """Beyond the largest plan alone there is what it does not hold, and the description of three graphs."""
    name, path = elastic
    runtime = load(name)
    runtime.export(models["half"], (samples(1),), tmp_path / f"half{runtime.suffix}")

    beyond = size_bytes(path) - size_bytes(tmp_path / f"half{runtime.suffix}")

    first_pair = 4 * 16 * (9 * 64 + 64)  # the largest plan holds this layer dense
    weights = 4 * sum(parameter.numel() for parameter in models["half"].parameters())
    description = size_bytes(tmp_path / f"half{runtime.suffix}") - weights
    assert first_pair < beyond < first_pair + 3 * description


class Wide(nn.Module):
    """A convolution, one of width 1 and a Linear of many channels: (N, 3, 4, 4) → (N, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 192, 1)
        self.conv = nn.Conv2d(192, 192, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(192)
        self.point = nn.Conv2d(192, 192, 1)
        self.hidden = nn.Linear(192, 512)
        self.head = nn.Linear(512, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(torch.relu(self.stem(x)))))
        logits: Tensor = self.head(torch.relu(self.hidden(self.point(x).mean((2, 3)))))
        return logits


@pytest.mark.parametrize("name", ELASTIC)
def test_plans_that_agree_on_forms_take_the_bytes_of_the_largest(name: str, tmp_path: Path) -> None:
    """Within 2 %, whatever the kind of layer, and with the numbers of each plan."""
    torch.manual_seed(0)
    runtime, images = load(name), torch.randn(4, 3, 4, 4)
    ordered = order(recalibrate(Wide(), [images]).eval(), where=["conv", "point", "hidden"])
    shares: dict[str, dict[str, Rank]] = {
        f"r{rank}": {"conv": rank, "point": rank // 2, "hidden": rank} for rank in (32, 64, 128)
    }
    plans = {entry: recalibrate(cut(ordered, ranks), [images]).eval() for entry, ranks in shares.items()}
    together, alone = tmp_path / f"all{runtime.suffix}", tmp_path / f"alone{runtime.suffix}"

    agreements = export_elastic(plans, images, together, runtime)
    runtime.export(plans["r128"], (images[:1],), alone)

    assert size_bytes(together) <= 1.02 * size_bytes(alone)
    assert all(found.max_abs_error < 1e-4 for found in agreements.values())


def test_entries_are_timed_side_by_side(elastic: tuple[str, Path], models: dict[str, nn.Module]) -> None:
    """measure() and measure_alone() take an entry for a file; one that is not there is an error."""
    name, path = elastic
    runtime, device = load(name), LocalDevice()

    timings = runtime.measure(device, {entry: with_entry(path, entry) for entry in models}, QUICK)
    alone = runtime.measure_alone(device, with_entry(path, "r16"), QUICK)

    assert {entry: timing.n >= 4 for entry, timing in timings.items()} == dict.fromkeys(models, True)
    assert alone.load_ms > 0
    with pytest.raises(DeviceError, match=r"r99|0x"):
        runtime.measure(device, {"r99": with_entry(path, "r99")}, QUICK)
    device.close()


def test_plans_fold_the_scale_of_the_smallest(models: dict[str, nn.Module]) -> None:
    """Equal layers have equal weights afterwards, and only what follows a difference is multiplied."""
    folded = fold_norms(models, (samples(1),), columns=True)
    graphs = {name: item.multiply() for name, item in folded.items()}

    products = {
        name: sum("mul" in str(node.target) for node in graph.graph.nodes) for name, graph in graphs.items()
    }
    assert products == {"r8": 0, "r16": 3, "half": 2}, "the stem sees the same images in all plans"
    for layer in ("stem_weight_folded", "last_weight_folded"):
        weights = [graph.get_parameter(layer) for graph in graphs.values()]
        assert all(torch.equal(weight, weights[0]) for weight in weights)
    for name, graph in graphs.items():
        with torch.no_grad():
            torch.testing.assert_close(graph(samples(1)), models[name](samples(1)), rtol=1e-4, atol=1e-5)


@given(st.lists(st.binary(max_size=3)))
def test_owners_are_the_longest_that_begin_so(contents: list[bytes]) -> None:
    """Against every pair."""
    found = owners(contents)

    for content, owner in zip(contents, found, strict=True):
        assert contents[owner].startswith(content)
        assert found[owner] == owner
        longer = [each for each in contents if each.startswith(contents[owner])]
        assert all(each == contents[owner] for each in longer)


def test_an_entry_is_named_behind_its_file(tmp_path: Path) -> None:
    """A file whose own name holds the mark stays a file."""
    path = tmp_path / "net#r8.pte"
    odd = tmp_path / "net#r8"
    odd.write_text("")

    assert of_entry(with_entry(path, "r16")) == (path, "r16")
    assert of_entry(with_entry(path, None)) == (path, "")
    assert of_entry(odd) == (odd, "")


@pytest.mark.parametrize(("tag", "name"), [("1.5ms", "at_1_5ms"), ("r64", "r64"), ("2ms-3-MB", "at_2ms_3_MB")])
def test_a_tag_becomes_an_identifier(tag: str, name: str) -> None:
    """One that methods and signatures can be called by."""
    assert entry_name(tag) == name and name.isidentifier()


@pytest.mark.parametrize(
    ("runtime", "precision", "name", "reason"),
    [
        ("coreml", "fp32", "r8", "share weights that are equal, not a rank that is part of a higher one"),
        ("litert", "int8-static", "r8", "an elastic file is in fp32, not int8-static"),
        ("litert", "fp32", "1.5ms", "'1.5ms' is no name"),
    ],
)
def test_what_cannot_be_elastic_is_refused(
    runtime: str, precision: str, name: str, reason: str, models: dict[str, nn.Module], tmp_path: Path
) -> None:
    """In one line, before anything is written."""
    with pytest.raises(ExportError, match=reason) as caught:
        export_elastic({name: models["r8"]}, samples(2), tmp_path / "x", load(runtime), precision=precision)  # type: ignore[arg-type]

    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


def told(value: object) -> object:
    """All that an object of flatc's object API holds."""
    if isinstance(value, list | tuple | np.ndarray):
        return [told(each) for each in value]
    return {name: told(each) for name, each in vars(value).items()} if hasattr(value, "__dict__") else value


@settings(deadline=None, max_examples=20)
@given(ranks=st.lists(st.sampled_from([4, 8, 16]), min_size=1, max_size=4), bias=st.booleans())
def test_what_is_equal_stands_once_and_reads_the_same(ranks: list[int], bias: bool) -> None:
    """Subgraphs of one or of several ranks: as any flatbuffer is read, and equal ones cost next to nothing."""
    schema, flatbuffers = libraries()
    spec = LayerSpec(kind="linear", in_channels=24, out_channels=16, bias=bias)
    models = [
        schema.ModelT.InitFromObj(schema.Model.GetRootAs(write_layer(spec, rank), 0))
        for rank in (ranks[0], *ranks)
    ]
    model = models[0]
    model.subgraphs = [each.subgraphs[0] for each in models]
    plain = flatbuffers.Builder(0)
    plain.Finish(model.Pack(plain), b"TFL3")

    packed = pack(model, b"TFL3")

    assert told(schema.ModelT.InitFromObj(schema.Model.GetRootAs(packed, 0))) == told(
        schema.ModelT.InitFromObj(schema.Model.GetRootAs(bytes(plain.Output()), 0))
    )
    assert len(packed) < len(plain.Output())
    sizes = []
    for count in (9, 18):
        model.subgraphs = [each.subgraphs[0] for each in models[:1]] * count
        sizes.append(len(pack(model, b"TFL3")))
    assert sizes[1] - sizes[0] <= 4 * 9 + 4, "a graph that is there already costs a pointer"
