"""int8 as a precision: what files hold, how exact they are, what is refused, how layers are timed in them."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from maestro_edge.devices import Device, LocalDevice
from maestro_edge.errors import ExportError
from maestro_edge.ordered import cut, order, trace
from maestro_edge.runtimes import MeasuringProtocol, export, load
from maestro_edge.runtimes.agreement import compare
from maestro_edge.runtimes.executorch import ExecuTorch
from maestro_edge.runtimes.litert import LiteRT
from maestro_edge.values import DENSE, LatencyTable, LayerSpec, Precision, Rank
from tests.conftest import FakeRuntime, outputs_of

QUICK = MeasuringProtocol(rounds=4, warmup_ms=1, slice_ms=1, repeats=0)
SHAPE = (1, 8, 8)
NAMES = ("executorch", "litert", "onnx")


def images(count: int, seed: int) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A bare Sequential whose norms have seen data, one of its convolutions at rank 16.

    ExecuTorch's folding of a norm once failed where the convolution has no module above it.
    """
    torch.manual_seed(0)
    layers = {
        "conv1": nn.Conv2d(1, 48, 3, padding=1, bias=False),
        "norm1": nn.BatchNorm2d(48),
        "relu1": nn.ReLU(),
        "conv2": nn.Conv2d(48, 48, 3, stride=2, padding=1, bias=False),
        "norm2": nn.BatchNorm2d(48),
        "relu2": nn.ReLU(),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flat": nn.Flatten(),
        "head": nn.Linear(48, 3),
    }
    model = nn.Sequential(OrderedDict(layers)).train()
    with torch.no_grad():
        for seed in range(20):
            model(images(32, seed))
    return cut(order(model.eval()), {"conv2": 16}).eval()


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    device = LocalDevice()
    yield device
    device.close()


def exported(network: nn.Module, folder: Path, name: str, precision: Precision) -> Path:
    runtime = load(name)
    path = folder / f"net-{precision}{runtime.suffix}"
    runtime.export(network, (images(1, 0),), path, precision, calibration=[images(40, 1), images(8, 2)])
    return path


@pytest.fixture(scope="module")
def static(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("static")
    return {name: exported(network, folder, name, "int8-static") for name in NAMES}


@pytest.fixture(scope="module")
def dynamic(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("dynamic")
    return {name: exported(network, folder, name, "int8-dynamic") for name in NAMES}


@torch.no_grad()
def sqnr_db(network: nn.Module, name: str, path: Path) -> float:
    """On images that no calibration has seen, fed as floats."""
    samples = images(24, 100)
    return compare(network(samples).numpy(), outputs_of(name, path, samples.numpy())).sqnr_db


@pytest.mark.parametrize("name", NAMES)
def test_static_ranges_hold_all_that_calibration_showed(
    name: str, network: nn.Module, static: dict[str, Path]
) -> None:
    """The moving average that LiteRT's quantizer takes by itself clips: it left this network 17 dB."""
    assert sqnr_db(network, name, static[name]) > 25


@pytest.mark.parametrize("name", NAMES)
def test_dynamic_files_need_no_samples(name: str, network: nn.Module, dynamic: dict[str, Path]) -> None:
    """Their activations are scaled one by one, which is more exact."""
    assert sqnr_db(network, name, dynamic[name]) > 30


def graph(path: Path) -> list[tuple[str, list[Any]]]:
    """The operators of a .tflite file by name, with their input tensors."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    (part,) = model.subgraphs
    return [
        (
            names[model.operatorCodes[operator.opcodeIndex].builtinCode],
            [part.tensors[index] for index in operator.inputs if index >= 0],
        )
        for operator in part.operators
    ]


def scales(tensor: Any) -> int:
    """How many scales an int8 tensor has; 0 for floats."""
    quantization = tensor.quantization
    return 0 if quantization is None or quantization.scale is None else len(quantization.scale)


def test_dynamic_linear_layers_have_one_scale(dynamic: dict[str, Path]) -> None:
    """tflite-runtime 2.14 computes something else with one for each channel, except in convolutions."""
    operators = graph(dynamic["litert"])

    linear = [scales(inputs[1]) for name, inputs in operators if name == "FULLY_CONNECTED"]
    convolutions = [scales(inputs[1]) for name, inputs in operators if name == "CONV_2D"]

    assert linear == [1]
    assert convolutions == [16, 48]


def test_static_files_compute_in_int8_between_float_ends(static: dict[str, Path]) -> None:
    """Apps feed and read floats; nothing between stays one."""
    names = [name for name, _ in graph(static["litert"])]
    weights = [scales(inputs[1]) for name, inputs in graph(static["litert"]) if name == "FULLY_CONNECTED"]

    assert (names[0], names[-1]) == ("QUANTIZE", "DEQUANTIZE")
    assert not {"QUANTIZE", "DEQUANTIZE"} & set(names[1:-1])
    assert weights == [3]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("calibration", "reason"),
    [(None, "got none: give `calibration`"), ([], "got none"), ([torch.zeros(4, 3)], r"shape \(3,\), the input")],
)
def test_static_without_fitting_samples_is_refused(
    name: str, calibration: Sequence[Tensor] | None, reason: str, network: nn.Module, tmp_path: Path
) -> None:
    """One line that says what is missing, and no file."""
    runtime = load(name)

    with pytest.raises(ExportError, match=reason):
        export(network, images(4, 0), tmp_path / "x", runtime, precision="int8-static", calibration=calibration)

    assert list(tmp_path.iterdir()) == []


def test_core_ml_says_which_precisions_it_offers(network: nn.Module, tmp_path: Path) -> None:
    """Static is not among them."""
    with pytest.raises(ExportError, match="no use for int8-static: choose fp32, fp16, int8-dynamic, palett"):
        export(network, images(4, 0), tmp_path / "x", load("coreml"), precision="int8-static")


def test_core_ml_holds_weights_in_int8(network: nn.Module, tmp_path: Path) -> None:
    """The package on disk is read back and agrees."""
    path = tmp_path / "net.mlpackage"

    agreement = export(network, images(4, 0), path, load("coreml"), precision="int8-dynamic")

    assert 30 < agreement.sqnr_db < 80


def test_ranges_that_clip_are_refused_and_leave_no_file(network: nn.Module, tmp_path: Path) -> None:
    """Calibrated on images of a tenth the contrast: too far off to ship."""
    with pytest.raises(ExportError, match=r"SQNR \d+\.\d dB.* most is lost in layer \w+") as caught:
        export(
            network,
            images(8, 0),
            tmp_path / "net.tflite",
            load("litert"),
            precision="int8-static",
            calibration=[images(16, 1) / 10],
        )

    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


class Coarse(FakeRuntime):
    """Rounds the weights of every layer to 8 bits, those of one to a few steps."""

    def export(
        self,
        model: nn.Module,
        inputs: tuple[Tensor, ...],
        path: Path,
        precision: Precision = "fp32",
        *,
        calibration: Sequence[Tensor] | None = None,
    ) -> None:
        model = copy.deepcopy(model)
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                step = module.weight.data.abs().max() / (2 if name.endswith("third") else 127)
                module.weight.data = (module.weight.data / step).round() * step
        super().export(model, inputs, path)


def test_the_layer_that_loses_most_is_named(tmp_path: Path) -> None:
    """Noise grows through all of them; the one that adds the most of it is meant, not the first."""
    torch.manual_seed(0)
    model = nn.Sequential()
    for name in ("first", "second", "third", "fourth"):
        model.add_module(name, nn.Linear(32, 32))
    samples = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))

    with pytest.raises(ExportError, match=r"most is lost in layer third: .* dB before, .* dB behind it"):
        export(model.eval(), samples, tmp_path / "x.fake", Coarse(), precision="int8-dynamic")

    assert list(tmp_path.iterdir()) == []


def test_every_layer_of_an_int8_file_has_its_operators(
    network: nn.Module, static: dict[str, Path], dynamic: dict[str, Path], device: Device
) -> None:
    """One for a dense layer, two at a rank, in order; the conversions between are no layers."""
    files = {"static": static["executorch"], "dynamic": dynamic["executorch"]}

    operators = ExecuTorch().measure_ops(device, files, QUICK)

    layers = [layer.spec.kind for layer in trace(network, (images(1, 0),)).layers]
    assert layers == ["conv2d", "conv2d", "conv2d", "linear"]
    # XNNPACK computes the 1 x 1 convolution of a pair as a matrix product
    for name in files:
        assert [operator.kind for operator in operators[name]] == ["conv2d", "conv2d", "linear", "linear"]


SPECS: list[tuple[LayerSpec, Rank]] = [
    (
        LayerSpec(
            kind="conv2d",
            in_channels=8,
            out_channels=24,
            kernel=(3, 5),
            stride=(2, 2),
            padding=(1, 2),
            input_size=(12, 10),
            activation="relu",
        ),
        4,
    ),
    (LayerSpec(kind="conv2d", in_channels=8, out_channels=8, kernel=(3, 3), groups=8, input_size=(6, 6)), DENSE),
    (LayerSpec(kind="linear", in_channels=12, out_channels=20, input_size=(7,)), 4),
]


@pytest.mark.parametrize("precision", ["int8-dynamic", "int8-static"])
@pytest.mark.parametrize(("spec", "rank"), SPECS, ids=str)
def test_litert_probes_run_in_int8(spec: LayerSpec, rank: Rank, precision: Precision, tmp_path: Path) -> None:
    """They have the weights of the fp32 probe: rounded, they compute nearly the same."""
    runtime = LiteRT()
    paths = {each: tmp_path / f"{each}.tflite" for each in ("fp32", precision)}
    x = np.random.default_rng(0).standard_normal((1, *spec.input_size, spec.in_channels)).astype(np.float32)

    for each, path in paths.items():
        runtime.write_probe(spec, rank, path, each)
    exact, rounded = (outputs_of("litert", path, x) for path in paths.values())

    assert compare(exact, rounded).sqnr_db > 10
    layers = [inputs for name, inputs in graph(paths[precision]) if "CONV" in name or name == "FULLY_CONNECTED"]
    assert len(layers) == len(spec.parts(rank))
    # dynamic depthwise convolutions stay floats: XNNPACK has no kernel for them
    if precision == "int8-static" or spec.groups == 1:
        assert all(scales(inputs[1]) > 0 for inputs in layers)
        # equal ones make tflite-runtime 2.14 leave a dynamic convolution out
        assert all(len(set(inputs[1].quantization.scale)) == scales(inputs[1]) for inputs in layers)


def test_an_executorch_probe_is_int8(tmp_path: Path, device: Device) -> None:
    """It comes through the same quantizer as whole networks."""
    path = tmp_path / "probe.pte"

    ExecuTorch().write_probe(SPECS[2][0], 4, path, "int8-dynamic")

    operators = ExecuTorch().measure_ops(device, {"probe": path}, QUICK)["probe"]
    assert [operator.kind for operator in operators] == ["linear", "linear"]


def test_tables_of_each_precision_have_files_of_their_own(tmp_path: Path) -> None:
    """One written when there was fp32 only is still read."""
    old = tmp_path / "old.json"
    old.write_text(
        '{"schema_version": 1, "source": "measured", "runtime": "litert", "runtime_version": "2.3.0", "rows": [],'
        ' "device": {"name": "pi", "soc": "x", "arch": "aarch64", "os": "y", "cores": 4},'
        ' "precision": "fp32", "threads": 1, "created": "2026-01-01T00:00:00+00:00"}'
    )

    table = LatencyTable.load(old)

    int8 = table.model_copy(update={"precision": "int8-static"})
    assert LatencyTable.load(int8.save(tmp_path / int8.file_name)) == int8
    assert (table.file_name, int8.file_name) == (
        "pi.litert-2.3.0.fp32-t1.json",
        "pi.litert-2.3.0.int8-static-t1.json",
    )
