"""ONNX files: one piece that tells nothing of this machine, layers known by their kernels, exact probes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from maestro_edge.devices import LocalDevice
from maestro_edge.errors import DeviceError, ExportError
from maestro_edge.ordered import order, trace
from maestro_edge.planning import plan
from maestro_edge.profiling import profile
from maestro_edge.runtimes import MeasuringProtocol
from maestro_edge.runtimes.agreement import compare
from maestro_edge.runtimes.onnx import ONNX, _runs_by_layer
from maestro_edge.runtimes.onnx_graph import label_layers, layer_of, write_layer
from maestro_edge.runtimes.probe import probe_module
from maestro_edge.runtimes.runner import Onnx
from maestro_edge.values import DENSE, Cut, LayerSpec, Precision, Rank, Sensitivity
from tests.conftest import TinyNet

QUICK = MeasuringProtocol(
    rounds=4, warmup_ms=1, slice_ms=1, repeats=0, noise_limit=1000.0, calm_runs=1, most_runs=1, pause_s=0
)
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8-dynamic", "int8-static")
SHAPE = (2, 8, 8)


class Branches(nn.Module):
    """A residual, a depthwise convolution, tokens and a product of activations: (N, 2, 8, 8) → (N, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 16, 3, padding=1)
        self.main = nn.Conv2d(16, 16, 3, padding=1)
        self.side = nn.Conv2d(16, 16, 1)
        self.depth = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.token = nn.Linear(16, 24)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.main(x) + self.side(x))
        tokens = self.token(self.depth(x).flatten(2).transpose(1, 2))
        mixed = torch.softmax(tokens @ tokens.transpose(1, 2) / 24, -1) @ tokens
        logits: Tensor = self.head(mixed.mean(1))
        return logits


WEIGHTS = [(16, 3, 3, 2), (16, 3, 3, 16), (16, 1, 1, 16), (16, 3, 3, 1), (24, 16), (5, 24)]


def images(count: int, seed: int) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One network in every precision, alone in its folder."""
    torch.manual_seed(0)
    model, folder = Branches().eval(), tmp_path_factory.mktemp("onnx")
    paths: dict[str, Path] = {precision: folder / f"{precision}.onnx" for precision in PRECISIONS}
    for precision in PRECISIONS:
        ONNX().export(model, (images(1, 0),), paths[precision], precision, calibration=[images(16, 1)])
    return paths


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_file_is_whole_and_fits_old_runtimes(precision: Precision, files: dict[str, Path]) -> None:
    """Weights inside, no path of who exported it, and a version that a JetPack of 2023 reads."""
    import onnx

    content = files[precision].read_bytes()

    model = onnx.load_from_string(content)
    assert {path.name for path in files[precision].parent.iterdir()} == {path.name for path in files.values()}
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert b".py" not in content and str(Path(torch.__file__).parent).encode() not in content
    assert (model.ir_version, [item.version for item in model.opset_import if not item.domain]) == (8, [18])
    ends = [(end.name, end.type.tensor_type.elem_type) for end in (*model.graph.input, *model.graph.output)]
    assert ends == [("input", onnx.TensorProto.FLOAT), ("output", onnx.TensorProto.FLOAT)]


def weights(path: Path) -> dict[str, int]:
    """Bytes of a file's weights by the name of their type."""
    import onnx

    found: dict[str, int] = {}
    for tensor in onnx.load(path).graph.initializer:
        kind = onnx.TensorProto.DataType.Name(tensor.data_type)
        found[kind] = found.get(kind, 0) + onnx.numpy_helper.to_array(tensor).nbytes
    return found


def test_each_precision_holds_its_weights(files: dict[str, Path]) -> None:
    """Halves in fp16, int8 in the Linear layers alone where it is dynamic, in all where it is static."""
    held = {precision: weights(path) for precision, path in files.items()}
    linear, all_layers = (sum(int(np.prod(shape)) for shape in shapes) for shapes in (WEIGHTS[4:], WEIGHTS))

    assert held["fp16"]["FLOAT16"] == 2 * all_layers
    assert linear <= held["int8-dynamic"]["INT8"] < all_layers
    assert held["int8-static"]["INT8"] >= all_layers


def test_int8_weights_have_seven_bits(files: dict[str, Path]) -> None:
    """With eight, x86 processors without VNNI compute something else."""
    import onnx

    for precision in ("int8-dynamic", "int8-static"):
        values = [
            onnx.numpy_helper.to_array(tensor)
            for tensor in onnx.load(files[precision]).graph.initializer
            if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1
        ]
        assert 32 < max(int(np.abs(each).max()) for each in values) <= 64


def test_a_truncated_file_is_one_clear_line(files: dict[str, Path], tmp_path: Path) -> None:
    """Of what ONNX Runtime says, which names a temporary file."""
    short = tmp_path / "short.onnx"
    content = files["fp32"].read_bytes()
    short.write_bytes(content[: len(content) // 2])

    with pytest.raises(ExportError) as caught:
        ONNX().predict(short, images(1, 0).numpy())

    assert str(caught.value) == "short.onnx does not run: the file is truncated or not an ONNX graph"


def test_an_input_of_another_shape_is_one_clear_line(files: dict[str, Path]) -> None:
    """The original fills several lines."""
    with pytest.raises(ExportError, match=r"fp32\.onnx does not run: an input has another shape"):
        ONNX().predict(files["fp32"], np.zeros((1, 3, 8, 8), np.float32))


def test_every_kernel_is_given_to_its_layer(files: dict[str, Path]) -> None:
    """Whatever is fused, reordered or quantized: one kernel a layer, and none of a product of activations."""
    device = LocalDevice()

    operators = ONNX().measure_ops(device, dict(files), QUICK)

    device.close()
    for precision in PRECISIONS:
        assert sorted(each.weights or () for each in operators[precision]) == sorted(WEIGHTS), precision
        assert {each.kind for each in operators[precision]} == {"conv2d", "linear"}
        assert all(each.timing.n >= 2 and each.timing.median_ms > 0 for each in operators[precision])


def test_labels_do_not_change_what_is_computed(files: dict[str, Path], tmp_path: Path) -> None:
    """The copy that is measured is the same graph under other names."""
    labelled = tmp_path / "labelled.onnx"

    labelled.write_bytes(label_layers(files["fp32"].read_bytes())[0])

    outputs = []
    for path in (files["fp32"], labelled):
        program = Onnx(str(path), 1, None)
        program.feed(images(1, 3).numpy())
        outputs.append(program.run())
    np.testing.assert_array_equal(*outputs)


def test_kernels_that_were_split_belong_to_no_layer() -> None:
    """And other operators count for none, even where they carry a layer's name."""
    kernels = [
        ("Conv maestro_layer_0_active_nchwc_kernel_time", [5]),
        ("Reshape maestro_layer_1__reshape_kernel_time", [1]),
        ("Gemm maestro_layer_1_/MatMulAddFusion_kernel_time", [7]),
        ("Gemm maestro_layer_12__0_kernel_time", [1]),
        ("Gemm maestro_layer_12__1_kernel_time", [1]),
        ("MatMul node_attention_kernel_time", [9]),
    ]

    assert _runs_by_layer(kernels) == {0: [5], 1: [7]}
    assert layer_of("fused maestro_layer_12_") == 12
    assert layer_of("node_layer_12_") is None


SPECS: list[tuple[LayerSpec, Rank]] = [
    (
        LayerSpec(
            kind="conv2d",
            in_channels=8,
            out_channels=24,
            kernel=(3, 5),
            stride=(2, 1),
            padding=(1, 2),
            dilation=(1, 2),
            input_size=(12, 14),
            activation="relu",
        ),
        4,
    ),
    (LayerSpec(kind="conv2d", in_channels=8, out_channels=8, kernel=(3, 3), groups=8, input_size=(6, 6)), DENSE),
    (
        LayerSpec(
            kind="conv2d", in_channels=8, out_channels=16, kernel=(3, 3), input_size=(6, 6), factors="spatial"
        ),
        4,
    ),
    (
        LayerSpec(
            kind="conv1d", in_channels=6, out_channels=10, kernel=(3, 1), padding=(1, 0), input_size=(9,), batch=2
        ),
        4,
    ),
    (LayerSpec(kind="linear", in_channels=12, out_channels=20, input_size=(7,)), 4),
    (LayerSpec(kind="linear", in_channels=12, out_channels=20, activation="relu"), DENSE),
    (LayerSpec(kind="linear", in_channels=12, out_channels=20, factors="gauge", activation="relu"), 4),
    (LayerSpec(kind="embedding", in_channels=30, out_channels=16, input_size=(5,)), 4),
]


@pytest.mark.parametrize(("spec", "rank"), SPECS, ids=str)
def test_a_probe_is_the_layer(spec: LayerSpec, rank: Rank, tmp_path: Path) -> None:
    """PyTorch's layer with the weights of the file gives what the file gives, nearly so in other precisions."""
    import onnx

    torch.manual_seed(0)
    module, (x,) = probe_module(spec, rank)
    written = onnx.load_from_string(write_layer(spec, rank)).graph.initializer
    with torch.no_grad():
        for parameter, tensor in zip(module.parameters(), written, strict=True):
            values = torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
            parameter.copy_(values if values.shape == parameter.shape else values.T)
        expected = module(x).numpy()

    for precision, least_db in zip(PRECISIONS, (100, 50, 20, 20), strict=True):
        path = tmp_path / f"{precision}.onnx"
        torch.manual_seed(0)  # static ranges come from the same input
        ONNX().write_probe(spec, rank, path, precision)
        program = Onnx(str(path), 1, None)
        program.feed(x.contiguous().numpy())
        agreement = compare(expected, program.run())
        assert program.shape == tuple(x.shape)
        assert agreement.sqnr_db > least_db, (precision, agreement)


def test_a_device_without_it_says_what_to_install() -> None:
    """In the one line of every missing runtime."""

    class Bare(LocalDevice):
        def run(self, argv: object, *, timeout_s: float) -> str:
            Path(str(argv[-1])).write_text('{"versions": {"litert": "2.3.0"}}')  # type: ignore[index]
            return ""

    device = Bare()

    with pytest.raises(DeviceError, match=r"has litert 2\.3\.0, not onnx: install onnxruntime \(pip\) there"):
        ONNX().version_on(device)

    device.close()


def test_a_table_and_a_plan_are_made_with_it(tmp_path: Path) -> None:
    """Rows come from inside whole networks, and a plan chooses among them."""
    torch.manual_seed(0)
    model, inputs = order(TinyNet(24).eval(), where=["conv2"]), (torch.randn(1, 1, 8, 8),)
    device = LocalDevice()

    table = profile(model, inputs, ONNX(), device, folder=tmp_path, protocol=QUICK)

    device.close()
    network = trace(model, inputs)
    cuts = {
        rank: Cut(loss_increase=1 / rank, loss_se=0, top1_drop=0, top1_se=0, n=8)
        for rank in table.ranks(network.ordered[0].spec)
        if rank != DENSE
    }
    losses = Sensitivity(
        network=network.fingerprint, images=8, base_loss=0.5, base_top1=0.9, n=8, options={"conv2": cuts}
    )
    made = plan(network, table, losses, 1000.0)
    assert (table.runtime, table.source) == ("onnx", "measured")
    assert {row.method for row in table.rows} == {"in-model"}
    assert list(cuts) == [8, 16]
    assert (made.runtime, made.predicted_ms <= 1000) == ("onnx", True)
