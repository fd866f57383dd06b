"""The contract of every runtime: the file that ships is run, and computes what the model does."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from maestro_edge.devices import LocalDevice
from maestro_edge.errors import DeviceError, ExportError, MissingExtra
from maestro_edge.ordered import cut, order, trace
from maestro_edge.profiling.matching import assign
from maestro_edge.runtimes import RUNTIMES, MeasuringProtocol, digest, export, load, size_bytes
from maestro_edge.runtimes.agreement import compare
from maestro_edge.runtimes.protocol import Array, Runtime, TracingRuntime
from maestro_edge.runtimes.silence import silence
from maestro_edge.values import DENSE, LayerSpec, Rank
from tests.conftest import FakeRuntime, TinyNet, outputs_of

TIMED = ("executorch", "litert", "onnx")
QUICK = MeasuringProtocol(rounds=4, warmup_ms=1, slice_ms=1, repeats=0)


class Awkward(nn.Module):
    """Strides, dilation, uneven padding and a Linear on a sequence: (N, 3, 16, 16) → (N, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 32, (3, 5), stride=2, padding=(1, 2))
        self.b = nn.Conv2d(32, 32, 3, padding=2, dilation=2)
        self.c = nn.Conv2d(32, 32, 3, padding="same")
        self.d = nn.Linear(64, 48)
        self.e = nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.c(torch.relu(self.b(torch.relu(self.a(x))))))
        logits: Tensor = self.e(torch.relu(self.d(x.flatten(2))).mean(1))
        return logits


def samples(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_cut_network_computes_the_same_in_the_runtime(name: str, tmp_path: Path) -> None:
    """Low rank, strided, dilated, folded and thin layers: the exported file agrees with eager."""
    torch.manual_seed(0)
    model = cut(order(Awkward().eval(), where=lambda name, module: True), {"a": 8, "b": 16, "c": 16, "d": 8})
    runtime = load(name)

    agreement = export(model, samples(6, 3, 16, 16), tmp_path / f"net{runtime.suffix}", runtime)

    assert agreement.max_abs_error < 1e-5 and agreement.sqnr_db > 90 and agreement.top1_agreement == 1
    assert [path.name for path in tmp_path.iterdir()] == [f"net{runtime.suffix}"]
    assert size_bytes(tmp_path / f"net{runtime.suffix}") > 4 * sum(p.numel() for p in model.parameters())


class Trio(nn.Module):
    """Three convolutions of one shape, whose weights a careless converter could swap."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(*(nn.Conv2d(16, 16, 3, padding=1, bias=False) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.convs(x).mean((2, 3))
        return y


@pytest.mark.parametrize("name", RUNTIMES)
def test_weights_in_channels_last_keep_their_layers(name: str, tmp_path: Path) -> None:
    """litert_torch 0.10 gives equal-shaped layers each other's weights unless they are contiguous."""
    torch.manual_seed(0)
    model = Trio().eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    runtime = load(name)

    agreement = export(model, samples(4, 16, 8, 8), tmp_path / f"trio{runtime.suffix}", runtime)

    assert agreement.sqnr_db > 90
    assert not model.convs[0].weight.is_contiguous(), "the user's model is left as it was"


class Liar(nn.Module):
    """Computes something else while it is exported."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.third = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if torch.compiler.is_exporting():
            x = x * 1.5
        logits: Tensor = self.third(torch.relu(self.second(x)))
        return logits


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_file_that_differs_is_refused_by_layer_and_removed(name: str, tmp_path: Path) -> None:
    """The message names the first layer that differs; an older file at the path is kept."""
    runtime = load(name)
    path = tmp_path / f"liar{runtime.suffix}"
    path.write_text("an older file")

    with pytest.raises(ExportError, match="first layer that differs: second") as caught:
        export(Liar().eval(), samples(4, 8), path, runtime)

    assert "\n" not in str(caught.value)
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "an older file"


class Bottomless(Liar):
    """Gives infinity behind its second layer while it is exported."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x))
        logits: Tensor = self.third(x / 0 if torch.compiler.is_exporting() else x)
        return logits


class Eager(FakeRuntime):
    """Runs files as they would be exported."""

    def predict(self, path: Path, inputs: Array) -> Array:
        exported = torch.export.export(self.models[digest(path)], (torch.from_numpy(inputs),))
        outputs: Array = exported.module()(torch.from_numpy(inputs)).detach().numpy()
        return outputs


def test_a_file_that_gives_no_numbers_is_refused_by_layer(tmp_path: Path) -> None:
    """Infinity is where the difference begins, not a failure to look for it."""
    with pytest.raises(ExportError, match=r"NaN or infinity .*; first layer that differs: third"):
        export(Bottomless().eval(), samples(4, 8), tmp_path / "x.fake", Eager())
    assert list(tmp_path.iterdir()) == []


class Branching(nn.Module):
    """Data-dependent control flow: no exporter can follow it."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x - 1


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_model_that_cannot_be_exported_leaves_nothing(name: str, tmp_path: Path) -> None:
    """One line, and an empty folder."""
    runtime = load(name)

    with pytest.raises(ExportError, match="cannot be exported") as caught:
        export(Branching(), samples(2, 4), tmp_path / f"x{runtime.suffix}", runtime)

    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    """A file stands where the folder should be."""
    (tmp_path / "file").write_text("")

    with pytest.raises(ExportError, match="cannot be written"):
        export(nn.Linear(4, 2), samples(2, 4), tmp_path / "file" / "x.fake", FakeRuntime())


def test_nothing_but_a_tensor_is_exported(tmp_path: Path) -> None:
    """A model that returns a tuple is refused before any file is made."""

    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    with pytest.raises(ExportError, match="returns a tuple"):
        export(Pair(), samples(2, 4), tmp_path / "x.fake", FakeRuntime())


class Files(NamedTuple):
    """What one runtime wrote, to be run: a convolution of few and of many channels, and a probe."""

    runtime: Runtime
    paths: dict[str, Path]


@pytest.fixture(scope="module", params=TIMED)
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Files:
    runtime, folder = load(request.param), tmp_path_factory.mktemp("files")
    paths = {name: folder / f"{name}{runtime.suffix}" for name in ("small", "large", "probe")}
    for name, width in (("small", 16), ("large", 256)):
        runtime.export(nn.Conv2d(16, width, 3, padding=1), (samples(1, 16, 32, 32),), paths[name])
    runtime.write_probe(SPECS[0][0], 8, paths["probe"])
    return Files(runtime, paths)


def test_a_truncated_file_does_not_take_us_down(files: Files, tmp_path: Path) -> None:
    """The runtime may crash on it: that happens in another process and comes back as an error."""
    content = files.paths["small"].read_bytes()
    path = tmp_path / f"net{files.runtime.suffix}"
    path.write_bytes(content[: len(content) // 3])

    with pytest.raises(ExportError, match="does not run") as caught:
        files.runtime.predict(path, samples(1, 16, 32, 32).numpy())

    assert "\n" not in str(caught.value)


def test_files_are_timed_interleaved(files: Files) -> None:
    """A network of many more MACs takes longer; each has samples, median, p90 and spread. So has a probe."""
    device = LocalDevice()

    timings = files.runtime.measure(device, files.paths, QUICK)

    assert timings["small"].median_ms < timings["large"].median_ms
    assert timings["probe"].median_ms > 0
    assert all(t.n == len(t.samples_ms) >= 4 and t.p90_ms >= t.median_ms for t in timings.values())
    device.close()


def test_core_ml_cannot_be_timed_here(tmp_path: Path) -> None:
    """It says so instead of making a number up."""
    with pytest.raises(DeviceError, match="Core ML"):
        load("coreml").measure(LocalDevice(), {"x": tmp_path / "x.mlpackage"}, QUICK)


@pytest.mark.parametrize("name", TIMED)
def test_a_runtime_tells_the_time_of_every_layer(name: str, tmp_path: Path) -> None:
    """Operators come in execution order: one for a dense layer, two for a thin pair."""
    torch.manual_seed(0)
    runtime, device = load(name), LocalDevice()
    assert isinstance(runtime, TracingRuntime)
    model = cut(order(TinyNet().eval()), {"conv2": 16})
    path = tmp_path / f"net{runtime.suffix}"
    runtime.export(model, (samples(1, 1, 8, 8),), path)

    operators = runtime.measure_ops(device, {"net": path}, QUICK)["net"]

    assert len(operators) == len(trace(model, (samples(1, 1, 8, 8),)).layers) == 4
    assert all(each.timing.n >= 2 and each.timing.median_ms > 0 for each in operators)
    device.close()


class Branches(nn.Module):
    """Two layers of one shape, side by side as queries and keys are, and a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.thin, self.thick = nn.Linear(512, 512), nn.Linear(512, 512)
        self.depthwise = nn.Conv1d(128, 128, 3, groups=128, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(x)
        y: Tensor = self.thin(x) * self.thick(x)
        return y


@pytest.mark.parametrize("name", TIMED)
def test_the_times_of_branches_are_not_mixed_up(name: str, tmp_path: Path) -> None:
    """ExecuTorch runs the first factors of both, then the second ones: the file tells which weights are whose."""
    runtime, device, inputs = load(name), LocalDevice(), (samples(1, 128, 512),)
    assert isinstance(runtime, TracingRuntime)
    ordered, ranks = order(Branches().eval()), {"thin": 8, "thick": 192}
    path = tmp_path / f"branches{runtime.suffix}"
    runtime.export(cut(ordered, ranks), inputs, path)
    layers = trace(ordered, inputs).layers

    operators = runtime.measure_ops(device, {"net": path}, QUICK)["net"]

    calls = assign([(layer.spec, ranks.get(layer.name, DENSE)) for layer in layers], operators)
    assert calls is not None
    ms = {layer.name: timing.median_ms for layer, (_, timing) in zip(layers, calls, strict=True)}
    assert ms["thick"] > 5 * ms["thin"]
    device.close()


SPECS: list[tuple[LayerSpec, Rank]] = [
    (
        LayerSpec(kind="conv2d", in_channels=8, out_channels=24, kernel=(3, 3), padding=(1, 1), input_size=(9, 9)),
        8,
    ),
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
        DENSE,
    ),
    (LayerSpec(kind="conv2d", in_channels=8, out_channels=8, kernel=(3, 3), groups=8, input_size=(6, 6)), DENSE),
    (LayerSpec(kind="conv2d", in_channels=8, out_channels=16, kernel=(1, 1), input_size=(6, 6)), 4),
    (LayerSpec(kind="linear", in_channels=12, out_channels=20, input_size=(7,)), 4),
    (LayerSpec(kind="linear", in_channels=12, out_channels=20, activation="relu"), DENSE),
]


@pytest.mark.parametrize(("spec", "rank"), SPECS, ids=str)
def test_litert_probes_have_the_shape_of_the_layer(spec: LayerSpec, rank: Rank, tmp_path: Path) -> None:
    """Probes are written without a converter: the runtime itself must take them, with the right sizes."""
    runtime, path = load("litert"), tmp_path / "probe.tflite"

    runtime.write_probe(spec, rank, path)

    shape = (*spec.input_size, spec.in_channels)
    output = outputs_of("litert", path, samples(1, *shape).numpy())
    assert output.shape == (1, *spec.output_size, spec.out_channels)
    assert np.abs(output).max() > 0
    assert spec.activation == "none" or output.min() == 0


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("executorch", "executorch.exir", "executorch"),
        ("litert", "litert_torch", "litert"),
        ("onnx", "onnx", "onnx"),
        ("onnx", "onnxscript", "onnx"),
        ("coreml", "coremltools", "coreml"),
    ],
)
def test_a_missing_package_names_its_install(
    name: str, module: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line with the pip command."""
    monkeypatch.setitem(sys.modules, module, None)

    with pytest.raises(MissingExtra, match=rf"pip install 'maestro-edge\[{extra}\]'"):
        load(name).export(nn.Linear(4, 2), (samples(1, 4),), tmp_path / "x")


def test_an_unknown_runtime_is_refused() -> None:
    """The message lists the known ones."""
    with pytest.raises(ExportError, match="executorch, litert, onnx, coreml"):
        load("tensorrt")


def test_silence_leaves_logging_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX's quantizer calls logging.warning(), which would set up a program's logging for it."""
    monkeypatch.setattr(logging.root, "handlers", [])

    with silence():
        logging.warning("noise")

    assert logging.root.handlers == []


def test_compare_measures_error_and_noise() -> None:
    """Largest error, SQNR and top-1 of two small outputs, by hand."""
    expected = np.array([[1.0, 0.0], [0.0, 2.0]], np.float32)
    actual = np.array([[1.0, 0.1], [0.0, 2.0]], np.float32)

    agreement = compare(expected, actual)

    assert agreement.max_abs_error == pytest.approx(0.1)
    assert agreement.sqnr_db == pytest.approx(10 * np.log10(5 / 0.01), rel=1e-4)
    assert agreement.top1_agreement == 1
    assert agreement.cosine == pytest.approx(5 / np.sqrt(5 * 5.01))
    assert compare(expected, expected).sqnr_db == 200
    assert compare(expected, -expected).cosine == pytest.approx(-1)
    assert compare(0 * expected, 0 * expected).cosine == 1
    with pytest.raises(ExportError, match="NaN"):
        compare(expected, np.full_like(expected, np.nan))
    with pytest.raises(ExportError, match="shape"):
        compare(expected, expected[:1])


def test_a_folder_has_one_digest(tmp_path: Path) -> None:
    """It changes with any content or name in it, and not with the folder's own name."""
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "weights").write_bytes(b"abc")
    before = digest(tmp_path / "one")

    assert before == digest(tmp_path / "two")
    (tmp_path / "two" / "sub" / "weights").write_bytes(b"abd")
    assert before != digest(tmp_path / "two")
