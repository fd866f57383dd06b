"""Core ML packages are written whole, read back from disk and evaluated op by op."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maestro_edge.errors import DeviceError, ExportError, MissingExtra
from maestro_edge.runtimes.coreml import CoreML
from maestro_edge.runtimes.mil import Program, evaluate, quiet_coremltools
from maestro_edge.values import LayerSpec

SHAPE = (1, 3, 32, 32)
TOLERANCE = 1e-5


class Residual(nn.Module):
    """Stride, dilation, padding, batch norm and a projection shortcut, as in a ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 7, stride=2, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.left = nn.Conv2d(16, 32, 3, stride=2, padding=2, dilation=2, bias=False)
        self.left_norm = nn.BatchNorm2d(32)
        self.right = nn.Conv2d(16, 32, 1, stride=2)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.stem(x))), 3, 1, 1)
        x = F.relu(self.left_norm(self.left(x)) + self.right(x))
        logits: Tensor = self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


class Encoder(nn.Module):
    """Patches, a class token and one pre-norm attention block."""

    def __init__(self, *, masked: bool = False) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 32))
        self.norms = nn.ModuleList([nn.LayerNorm(32), nn.LayerNorm(32)])
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)
        self.head = nn.Linear(32, 10)
        self.masked = masked

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)  # (N, 16, 32)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)  # (N, 17, 32)
        n, length, width = x.shape
        q, k, v = self.qkv(self.norms[0](x)).view(n, length, 3, 4, width // 4).permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=self.masked)
        x = x + self.out(attended.transpose(1, 2).reshape(n, length, width))
        x = x + self.down(F.gelu(self.up(self.norms[1](x))))
        logits: Tensor = self.head(x[:, -1] if self.masked else x[:, 0])
        return logits


class StockEncoder(nn.Module):
    """torch's own encoder layer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 8, 8)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, activation="gelu", batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        logits: Tensor = self.head(self.layer(tokens).mean(1))
        return logits


class Pools(nn.Module):
    """Pools with padding, with and without the border in the average, rounded down and up, of a stride or none."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(x, 3, 2, 1)
        x = torch.cat([F.avg_pool2d(x, 3, 1, 1), F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)], dim=1)
        x = torch.cat([F.max_pool2d(x, 3, 2, 1, ceil_mode=True), F.max_pool2d(x, 2, padding=1)], dim=1)
        x = torch.cat(
            [F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=own) for own in (True, False)], 1
        )
        x = torch.cat([F.max_pool2d(x, 2), F.avg_pool2d(x, 2)], dim=1)
        return x.flatten(1)


class Activations(nn.Module):
    """What stands between the layers of mobile networks and of encoders."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(3, 12, 3, padding="same", groups=3)
        self.norm = nn.GroupNorm(3, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.norm(self.depthwise(x)))
        a, b, c = x.chunk(3, dim=1)
        a, b = F.relu6(a) + F.silu(b) + F.gelu(c, approximate="tanh"), F.hardsigmoid(a) * torch.tanh(b)
        x = torch.stack([F.leaky_relu(a, 0.1), F.elu(b), torch.sigmoid(c)]).amax(0)
        x = F.pad(x, (1, 2, 3, 4)) / torch.rsqrt(x.square().mean((1, 2, 3), keepdim=True) + 1)
        x = x[:, 1:3, ::4, 2:-3:4].flatten(1)
        return x + F.softmax(x, dim=-1)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "residual": Residual,
    "low-rank": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.Conv2d(8, 16, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(16 * 256, 12, bias=False), nn.Linear(12, 10),
    ),
    "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 32), nn.ReLU(), nn.Linear(32, 10)),
    "encoder": Encoder,
    "causal-encoder": lambda: Encoder(masked=True),
    "stock-encoder": StockEncoder,
    "pools": Pools,
    "activations": Activations,
}  # fmt: skip


def network(name: str) -> nn.Module:
    """A network whose batch norms have seen data, so that folding them is not a no-op."""
    torch.manual_seed(0)
    model = NETWORKS[name]()
    with torch.no_grad():
        for _ in range(3):
            model(2 * torch.randn(8, *SHAPE[1:]) + 1)
    return model.eval()


def samples(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, *SHAPE[1:]), dtype=np.float32)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """The low-rank network and its package; copy it before changing it."""
    model, path = network("low-rank"), tmp_path_factory.mktemp("saved") / "low-rank.mlpackage"
    CoreML().export(model, (torch.randn(SHAPE),), path)
    return model, path


@pytest.fixture
def package(saved: tuple[nn.Module, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved[1], tmp_path / "copy.mlpackage"))


def weights_of(package: Path) -> Path:
    return package / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"


def save_mil(build: Callable[[Any, Any], Any], shape: tuple[int, ...], path: Path) -> None:
    """Save a program written in MIL: `build(mb, x)` gives its outputs."""
    with quiet_coremltools() as coremltools:
        from coremltools.converters.mil import Builder

        spec, target = Builder.TensorSpec(shape), coremltools.target.iOS18
        program = Builder.program(input_specs=[spec], opset_version=target)(lambda x: build(Builder, x))
        coremltools.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=target,
            compute_precision=coremltools.precision.FLOAT32,
            package_dir=str(path),
            skip_model_load=True,
        )


def reference(build: Callable[[Any, Any], Any], value: np.ndarray) -> list[np.ndarray]:
    """What coremltools itself computes, in numpy, when the input is a constant."""
    with quiet_coremltools() as coremltools:
        from coremltools.converters.mil import Builder
        from coremltools.converters.mil.mil import Function

        with Function({}, opset_version=coremltools.target.iOS18):
            return [np.asarray(output.val) for output in build(Builder, Builder.const(val=value.copy()))]


@pytest.mark.parametrize("name", NETWORKS)
def test_package_computes_the_network(name: str, tmp_path: Path) -> None:
    """The saved package gives what eager torch gives, sample by sample."""
    model, path, inputs = network(name), tmp_path / "model.mlpackage", samples(20)
    CoreML().export(model, (torch.randn(SHAPE),), path)

    outputs = CoreML().predict(path, inputs)

    expected = model(torch.tensor(inputs)).detach().numpy()
    assert outputs.dtype == np.float32
    assert outputs.shape == expected.shape
    assert np.abs(outputs - expected).max() < TOLERANCE


def test_package_says_what_it_takes(saved: tuple[nn.Module, Path]) -> None:
    """Inputs and outputs have the names that an app looks for."""
    with quiet_coremltools() as coremltools:
        description = coremltools.utils.load_spec(str(saved[1])).description

    assert [feature.name for feature in description.input] == ["input"]
    assert [feature.name for feature in description.output] == ["output"]


def test_package_is_readable_by_all(saved: tuple[nn.Module, Path]) -> None:
    """A web server that is not the owner can serve the package."""
    files = [saved[1], *saved[1].rglob("*")]

    modes = {oct(file.stat().st_mode & 0o777) for file in files}

    assert modes == {"0o755", "0o644"}


def test_two_inputs_are_numbered(tmp_path: Path) -> None:
    """Each input of several has a name and is bound by it."""

    class Difference(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a - 2 * b

    a, b = torch.randn(1, 4), torch.randn(1, 4)
    CoreML().export(Difference(), (a, b), tmp_path / "two.mlpackage")

    outputs = evaluate(tmp_path / "two.mlpackage", {"input_1": b, "input_0": a})

    torch.testing.assert_close(outputs, [a - 2 * b])


def test_export_replaces_a_package(package: Path) -> None:
    """Exporting again to the same path leaves the new package alone there."""
    model = network("mlp")

    CoreML().export(model, (torch.randn(SHAPE),), package)

    torch.testing.assert_close(evaluate(package, torch.tensor(samples(1))), [model(torch.tensor(samples(1)))])
    assert list(package.parent.iterdir()) == [package]


def test_a_wrong_weight_on_disk_changes_the_prediction(saved: tuple[nn.Module, Path], package: Path) -> None:
    """The check sees the file that ships: one flipped sign in weight.bin shows."""
    weight = next(saved[0].parameters()).detach().numpy()
    content = weights_of(package).read_bytes()
    assert content.count(weight.tobytes()) == 1
    weights_of(package).write_bytes(content.replace(weight.tobytes(), (-weight).tobytes()))

    wrong = CoreML().predict(package, samples(4))

    assert np.abs(wrong - CoreML().predict(saved[1], samples(4))).max() > 100 * TOLERANCE


def shorten(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no-package": shutil.rmtree,
    "no-manifest": lambda package: (package / "Manifest.json").unlink(),
    "short-program": lambda package: shorten(package / "Data" / "com.apple.CoreML" / "model.mlmodel", 2000),
    "empty-program": lambda package: shorten(package / "Data" / "com.apple.CoreML" / "model.mlmodel", 0),
    "no-weights": lambda package: weights_of(package).unlink(),
    "short-weights": lambda package: shorten(weights_of(package), 10_000),
    "empty-weights": lambda package: shorten(weights_of(package), 0),
    "zeroed-weights": lambda package: weights_of(package).write_bytes(bytes(200_000)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_package_is_refused(damage: str, package: Path) -> None:
    """Whatever is missing or cut short is one line of ExportError."""
    DAMAGES[damage](package)

    with pytest.raises(ExportError, match="not a readable ML program") as caught:
        CoreML().predict(package, samples(1))

    assert "\n" not in str(caught.value)


def test_an_unknown_op_is_refused_by_name(tmp_path: Path) -> None:
    """What cannot be evaluated is not passed over in silence."""

    class Cumulative(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.cumsum(dim=1)

    path = tmp_path / "sum.mlpackage"
    CoreML().export(Cumulative(), (torch.randn(1, 4),), path)

    with pytest.raises(ExportError, match=r"sum\.mlpackage uses the op 'cumsum' \(layer 'output'\)"):
        Program(path)


def test_an_op_in_an_unknown_form_is_refused_by_name(tmp_path: Path) -> None:
    """An interleaved concat is not computed as a plain one."""
    path = tmp_path / "concat.mlpackage"
    save_mil(lambda mb, x: mb.concat(values=(x, mb.exp(x=x)), axis=1, interleave=True), (1, 4), path)

    with pytest.raises(ExportError, match=r"'concat' .* cannot be computed \(an interleaved concat"):
        evaluate(path, torch.randn(1, 4))


@pytest.mark.parametrize("inputs", [torch.zeros(2, 3, 32, 32), {"image": torch.zeros(SHAPE)}])
def test_other_inputs_are_refused(inputs: Any, saved: tuple[nn.Module, Path]) -> None:
    """A batch or a name that the package does not take is an error that names the right ones."""
    with pytest.raises(ExportError, match=r"takes inputs of shapes \{'input': \(1, 3, 32, 32\)\}"):
        evaluate(saved[1], inputs)


def test_a_failed_export_leaves_nothing(tmp_path: Path) -> None:
    """A model that coremltools cannot convert is one line, and no file."""

    class Bessel(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = torch.special.bessel_j0(x)
            return y

    with pytest.raises(ExportError, match=r"^a\.mlpackage: cannot be exported to Core ML \(.*bessel") as caught:
        CoreML().export(Bessel(), (torch.randn(1, 4),), tmp_path / "a.mlpackage")

    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_keeps_what_was_there(package: Path) -> None:
    """The package of an earlier export is whole after a failed one."""

    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("cannot\nbe traced")

    before = CoreML().predict(package, samples(1))

    with pytest.raises(ExportError, match="cannot be exported to Core ML"):
        CoreML().export(Broken(), (torch.randn(SHAPE),), package)

    np.testing.assert_array_equal(CoreML().predict(package, samples(1)), before)
    assert list(package.parent.iterdir()) == [package]


def test_an_unwritable_folder_is_an_error(tmp_path: Path) -> None:
    """A path below a file is refused before the model is converted."""
    (tmp_path / "file").touch()

    with pytest.raises(ExportError, match="cannot be written"):
        CoreML().export(network("mlp"), (torch.randn(SHAPE),), tmp_path / "file" / "a.mlpackage")


def test_nothing_is_printed(package: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The progress bars and warnings of coremltools stay away from the terminal."""
    CoreML().export(network("mlp"), (torch.randn(SHAPE),), package)
    CoreML().predict(package, samples(1))

    assert capfd.readouterr() == ("", "")


def test_times_are_refused() -> None:
    """Core ML cannot be timed here, and the error says where it can."""
    with pytest.raises(DeviceError, match="on the iPhone"):
        CoreML().measure(None, {"dense": Path("dense.mlpackage")}, None)


def test_a_missing_coremltools_is_named(monkeypatch: pytest.MonkeyPatch, saved: tuple[nn.Module, Path]) -> None:
    """Without the extra, the error is the pip command that brings it."""
    monkeypatch.setitem(sys.modules, "coremltools", None)

    with pytest.raises(MissingExtra, match=r"pip install 'maestro-edge\[coreml\]'"):
        Program(saved[1])


def test_version_is_that_of_coremltools() -> None:
    """A table belongs to one version, which is known without the slow import."""
    assert CoreML().version.startswith("9.")


@pytest.mark.parametrize(
    ("spec", "takes", "gives"),
    [
        (LayerSpec(kind="linear", in_channels=8, out_channels=6, input_size=(), bias=True), (1, 8), (1, 6)),
        (
            LayerSpec(kind="conv2d", in_channels=8, out_channels=6, kernel=(3, 3), input_size=(5, 5)),
            (1, 8, 5, 5),
            (1, 6, 3, 3),
        ),
    ],
    ids=["linear", "conv2d"],
)
def test_a_probe_is_a_package(
    spec: LayerSpec, takes: tuple[int, ...], gives: tuple[int, ...], tmp_path: Path
) -> None:
    """One low-rank layer can be taken to the iPhone."""
    CoreML().write_probe(spec, 2, tmp_path / "probe.mlpackage")

    assert evaluate(tmp_path / "probe.mlpackage", torch.randn(takes))[0].shape == gives


def every_op(mb: Any, x: Any) -> tuple[Any, ...]:
    """Ops of x (1, 2, 4, 6), all positive, that coremltools can also compute by itself."""
    row = np.linspace(-1, 1, 6, dtype=np.float32)
    square = np.linspace(-1, 1, 36, dtype=np.float32).reshape(6, 6)
    shifted = mb.sub(x=x, y=np.float32(1))
    flat = mb.reshape(x=x, shape=[8, 6])
    return (
        mb.abs(x=shifted),
        mb.clip(x=x, alpha=np.float32(0.5), beta=np.float32(1.5)),
        mb.elu(x=shifted, alpha=np.float32(0.7)),
        mb.erf(x=shifted),
        mb.expand_dims(x=flat, axes=[-1, 0]),
        mb.gather(x=x, indices=[[3, 0, 1], [2, 2, 1]], axis=2),
        mb.identity(x=x),
        mb.inverse(x=x, epsilon=np.float32(0.1)),
        mb.layer_norm(x=x, axes=[-1], gamma=row, beta=row + 1, epsilon=np.float32(0.1)),
        mb.layer_norm(x=x, axes=[1, 2], epsilon=np.float32(0.1)),
        mb.leaky_relu(x=shifted, alpha=np.float32(0.2)),
        mb.linear(x=flat, weight=square, bias=row),
        mb.log(x=x, epsilon=np.float32(0.1)),
        mb.matmul(x=x, y=square, transpose_x=False, transpose_y=True),
        mb.matmul(x=x, y=mb.exp(x=x), transpose_x=True),
        mb.maximum(x=shifted, y=row),
        mb.minimum(x=shifted, y=row),
        mb.pad(x=x, pad=[1, 2, 0, 3], mode="constant", constant_val=np.float32(2)),
        mb.pad(x=x, pad=[0, 0, 0, 0, 1, 2, 0, 3], mode="reflect"),
        mb.pad(x=x, pad=[1, 0, 2, 2], mode="replicate"),
        mb.pow(x=x, y=np.float32(1.5)),
        mb.real_div(x=x, y=row),
        mb.reduce_max(x=x, axes=[1, -1], keep_dims=True),
        mb.reduce_mean(x=x, axes=[-2], keep_dims=False),
        mb.reduce_min(x=x, keep_dims=True),
        mb.reduce_sum(x=x, axes=[2, 3], keep_dims=False),
        mb.relu6(x=mb.mul(x=shifted, y=np.float32(9))),
        mb.reshape(x=x, shape=[0, -1, 0]),
        mb.rsqrt(x=x, epsilon=np.float32(0.1)),
        mb.scaled_dot_product_attention(query=x, key=mb.tanh(x=x), value=mb.square(x=x)),
        mb.scaled_dot_product_attention(query=x, key=x, value=x, attn_mask=np.tri(4, dtype=bool)),
        mb.scaled_dot_product_attention(query=x, key=x, value=x, attn_mask=np.tri(4, dtype=np.float32)),
        mb.sigmoid_hard(x=shifted, alpha=np.float32(0.6), beta=np.float32(0.4)),
        mb.slice_by_index(x=x, begin=[0, 1, -3, 1], end=[0, 0, -1, 6], stride=[1, 1, 1, 2],
                          end_mask=[True, False, False, False], squeeze_mask=[False, True, False, False]),
        mb.slice_by_size(x=x, begin=[0, 1, -4, 2], size=[1, 1, 3, -1]),
        mb.softmax(x=x, axis=1),
        *mb.split(x=x, num_splits=3, axis=-1),
        *mb.split(x=x, split_sizes=[1, 3], axis=2),
        mb.sqrt(x=x),
        mb.squeeze(x=mb.reduce_max(x=x, axes=[2], keep_dims=True), axes=[2]),
        mb.stack(values=(x, shifted), axis=2),
        mb.thresholded_relu(x=mb.add(x=x, y=np.float32(0)), alpha=np.float32(0.8)),
        mb.tile(x=x, reps=[1, 2, 1, 3]),
        mb.transpose(x=x, perm=[0, 3, 1, 2]),
        mb.cast(x=mb.mul(x=x, y=np.float32(4)), dtype="int32"),
    )  # fmt: skip


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "beside-others"])
def test_ops_agree_with_coremltools(alone: bool, tmp_path: Path) -> None:
    """Each op computes what coremltools' own numpy does, alone and as one of several samples."""
    value = np.random.default_rng(0).uniform(0.1, 2, (1, 2, 4, 6)).astype(np.float32)
    save_mil(every_op, value.shape, tmp_path / "ops.mlpackage")
    program, x = Program(tmp_path / "ops.mlpackage"), torch.tensor(value)

    if alone:
        outputs = program(x)
    else:
        several = torch.func.vmap(lambda sample: tuple(program(sample)))(torch.stack([x + 1, x]))
        outputs = [output[1] for output in several]

    expected = reference(every_op, value)
    assert len(outputs) == len(expected)
    for output, array in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(output.numpy(), array, rtol=1e-5, atol=1e-5)


def windows(mb: Any, x: Any) -> tuple[Any, ...]:
    """Convolutions and pools of x (1, 4, 8, 8) whose padding is not the same on both sides."""
    weight = np.linspace(-1, 1, 4 * 2 * 4 * 4, dtype=np.float32).reshape(4, 2, 4, 4)
    one_sided = {"strides": [2, 2], "pad_type": "custom", "pad": [0, 1, 1, 0]}
    return (
        *(mb.conv(x=x, weight=weight, groups=2, strides=[1, 1], pad_type=kind) for kind in ("same", "same_lower")),
        mb.conv(x=x, weight=weight, groups=2, **one_sided),
        mb.max_pool(x=x, kernel_sizes=[3, 3], **one_sided),
        mb.avg_pool(x=x, kernel_sizes=[3, 3], exclude_padding_from_average=False, **one_sided),
        mb.avg_pool(x=x, kernel_sizes=[3, 3], exclude_padding_from_average=True, **one_sided),
    )


def test_one_sided_padding(tmp_path: Path) -> None:
    """`same` puts the odd row after and `same_lower` before; a border never wins a maximum."""
    save_mil(windows, (1, 4, 8, 8), tmp_path / "windows.mlpackage")
    x = -1 - torch.rand(1, 4, 8, 8)

    outputs = evaluate(tmp_path / "windows.mlpackage", x)

    weight = torch.linspace(-1, 1, 128).reshape(4, 2, 4, 4)
    average = F.avg_pool2d(F.pad(x, (1, 0, 0, 1)), 3, 2)
    inside = F.avg_pool2d(F.pad(torch.ones_like(x), (1, 0, 0, 1)), 3, 2)
    expected = [
        F.conv2d(F.pad(x, (1, 2, 1, 2)), weight, groups=2),
        F.conv2d(F.pad(x, (2, 1, 2, 1)), weight, groups=2),
        F.conv2d(F.pad(x, (1, 0, 0, 1)), weight, stride=2, groups=2),
        F.max_pool2d(F.pad(x, (1, 0, 0, 1), value=-100.0), 3, 2),
        average,
        average / inside,
    ]
    torch.testing.assert_close(outputs, expected, rtol=1e-5, atol=1e-5)


def test_an_unfused_batch_norm(tmp_path: Path) -> None:
    """A batch norm that coremltools could not fold into a convolution is computed."""
    model = nn.Sequential(nn.ReLU(), network("residual").get_submodule("norm"), nn.ReLU())
    CoreML().export(model, (torch.randn(1, 16, 4, 4),), tmp_path / "norm.mlpackage")
    x = torch.randn(1, 16, 4, 4)

    program = Program(tmp_path / "norm.mlpackage")

    torch.testing.assert_close(program(x), [model(x)], rtol=1e-5, atol=1e-5)


def test_compressed_weights_are_read(tmp_path: Path, package: Path) -> None:
    """Weights saved as 8-bit integers are decompressed, and differ from the fp32 ones by their steps."""
    with quiet_coremltools() as coremltools:
        optimize = coremltools.optimize.coreml
        config = optimize.OptimizationConfig(optimize.OpLinearQuantizerConfig(mode="linear_symmetric"))
        model = coremltools.models.MLModel(str(package), skip_model_load=True)
        optimize.linear_quantize_weights(model, config).save(str(tmp_path / "int8.mlpackage"))

    error = CoreML().predict(tmp_path / "int8.mlpackage", samples(4)) - CoreML().predict(package, samples(4))

    assert 1e-6 < np.abs(error).max() < 2e-2
