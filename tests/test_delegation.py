"""What an accelerated backend takes of a graph, backends of other hardware, and programs that run wrongly."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from maestro_edge.devices import LocalDevice
from maestro_edge.errors import DeviceError, ExportError, MissingExtra
from maestro_edge.runtimes import (
    MeasuringProtocol,
    export,
    export_counted,
    export_unchecked,
    images_as,
    load,
    model_for,
)
from maestro_edge.runtimes.executorch import ExecuTorch
from maestro_edge.runtimes.gate import Exported
from maestro_edge.runtimes.pools import pad_before_pools
from maestro_edge.values import Delegation, Precision


class Pooled(nn.Module):
    """A padded max pool behind a ReLU, as in a ResNet's stem, one of what may be negative, and a layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.first, self.second = nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(3, 2, 1)
        self.scale = nn.LayerNorm(16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(torch.relu(self.norm(self.conv(x))))
        x = self.second(-x)
        logits: Tensor = self.head(self.scale(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)))
        return logits


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


class Files(NamedTuple):
    """One network for each of two runtimes, and for LiteRT fed in NHWC."""

    model: nn.Module
    made: dict[str, Exported]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    torch.manual_seed(0)
    model, folder = Pooled().eval(), tmp_path_factory.mktemp("files")
    made = {}
    for name in ("litert", "executorch"):
        made[name] = export_counted(model, images(4, 3, 12, 12), folder / f"net-{name}", load(name))
    fed = model_for("NHWC", model), images_as("NHWC", images(4, 3, 12, 12))
    made["nhwc"] = export_counted(*fed, folder / "net-nhwc", load("litert"))
    return Files(model, made)


def test_litert_tells_what_xnnpack_leaves(files: Files) -> None:
    """The pool of negative values alone: the one behind the ReLU is padded with zeros."""
    made = files.made["litert"]

    assert made.delegation is not None
    assert (made.delegation.backend, made.delegation.fallbacks) == ("XNNPACK", ("PADV2",))
    assert made.delegation.taken == made.delegation.operators - 1 > 5


def test_executorch_tells_what_xnnpack_leaves(files: Files) -> None:
    """Its pools are taken as they are, a layer norm is not."""
    made = files.made["executorch"].delegation

    assert made is not None
    assert made.fallbacks == ("layer_norm",)
    assert made.taken == made.operators - 1 > 5


def test_a_file_fed_pixel_by_pixel_computes_the_same_with_one_operator_less(files: Files) -> None:
    """NHWC is what LiteRT computes in."""
    nchw, nhwc = files.made["litert"], files.made["nhwc"]

    assert nhwc.agreement.sqnr_db > 90
    assert nchw.delegation is not None and nhwc.delegation is not None
    assert nhwc.delegation.operators == nchw.delegation.operators - 1


@pytest.mark.parametrize(
    ("delegation", "told"),
    [
        (Delegation(backend="XNNPACK", taken=4, operators=4), "XNNPACK took 4 of 4 operators"),
        (
            Delegation(backend="XNNPACK", taken=41, operators=43, fallbacks=("layer_norm", "softmax")),
            "XNNPACK took 41 of 43 operators; layer_norm, softmax run elsewhere",
        ),
        (
            Delegation(backend="Vulkan", taken=2, operators=3, fallbacks=("mean",)),
            "Vulkan took 2 of 3 operators; mean runs elsewhere",
        ),
    ],
)
def test_a_share_reads_as_a_sentence(delegation: Delegation, told: str) -> None:
    """What export prints."""
    assert str(delegation) == told


class Stem(nn.Module):
    """Pools in every form that the rewriting meets: (N, 3, 9, 10) → (N, 3, ...)."""

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.pool(torch.relu(x))
        return y


@pytest.mark.parametrize(
    ("pool", "rewritten"),
    [
        (nn.MaxPool2d(3, 2, 1), True),
        (nn.MaxPool2d((3, 5), (1, 2), (1, 2)), True),
        (nn.MaxPool2d(3, 1, 1, dilation=2), True),
        (nn.MaxPool2d(3, 2, 1, ceil_mode=True), False),
        (nn.MaxPool2d(2), False),
    ],
    ids=["stem", "uneven", "dilated", "ceil", "no padding"],
)
def test_padding_before_a_pool_changes_no_bit(pool: nn.MaxPool2d, rewritten: bool) -> None:
    """Zeros never win over what is not below zero, except where windows would become other ones."""
    model, x = Stem(pool).eval(), images(1, 3, 9, 10)

    found = pad_before_pools(model, (x,))

    assert (found is not model) == rewritten
    assert torch.equal(found(x), model(x))


def test_a_pool_of_negative_values_is_left_alone() -> None:
    """A border of zeros would win there."""
    model, x = nn.Sequential(nn.MaxPool2d(3, 2, 1)).eval(), -1 - images(1, 3, 8, 8).abs()

    assert pad_before_pools(model, (x,)) is model


@pytest.mark.parametrize(("name", "backend"), [("executorch-vulkan", "Vulkan"), ("executorch-coreml", "Core ML")])
def test_files_for_other_hardware_are_written_and_nothing_is_claimed(
    name: str, backend: str, files: Files, tmp_path: Path
) -> None:
    """What is delegated is known, what it computes is not: running and timing are refused."""
    runtime, path = load(name), tmp_path / "net.pte"

    made = export_unchecked(files.model, images(1, 3, 12, 12), path, runtime)

    assert made is not None and made.backend == backend and made.taken > 3
    assert [found.name for found in tmp_path.iterdir()] == ["net.pte"] and path.stat().st_size > 1000
    with pytest.raises(ExportError, match=f"files for {backend} neither run nor are timed"):
        runtime.predict(path, images(1, 3, 12, 12).numpy())
    with pytest.raises(DeviceError, match="neither run nor are timed"):
        runtime.measure(LocalDevice(), {"net": path}, MeasuringProtocol())
    with pytest.raises(ExportError, match="neither run"):
        export(files.model, images(1, 3, 12, 12), tmp_path / "gated.pte", runtime)
    assert not (tmp_path / "gated.pte").exists()


def test_ethos_u_needs_packages_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their dependencies would replace ours, so they are not among the extras: one line tells how to add them."""
    runtime, path = load("executorch-ethos-u"), tmp_path / "net.pte"
    monkeypatch.setitem(sys.modules, "tosa_serializer", None)

    with pytest.raises(MissingExtra, match="pip install --no-deps tosa-tools"):
        runtime.export(nn.Linear(4, 2), (images(1, 4),), path, "int8-static", calibration=[images(4, 4)])

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "precision", "choice"),
    [
        ("executorch", "int4-weights", "fp32, int8-dynamic or int8-static"),
        ("litert", "palettised-6bit", "fp32, fp16, int8-dynamic or int8-static"),
        ("executorch-vulkan", "int8-static", "fp32 or fp16"),
        ("executorch-ethos-u", "fp32", "int8-static"),
    ],
)
def test_a_precision_that_a_runtime_lacks_is_refused(
    name: str, precision: Precision, choice: str, tmp_path: Path
) -> None:
    """With those that it has."""
    with pytest.raises(ExportError, match=rf"has no use for {precision}: choose {choice}$"):
        load(name).export(nn.Linear(4, 2), (images(1, 4),), tmp_path / "net", precision)


class OtherLayout(ExecuTorch):
    """Traces the model for images whose channels lie together, which the app then feeds one after the other."""

    def export(
        self,
        model: nn.Module,
        inputs: tuple[Tensor, ...],
        path: Path,
        precision: Precision = "fp32",
        *,
        calibration: Sequence[Tensor] | None = None,
    ) -> Delegation:
        fed = tuple(each.to(memory_format=torch.channels_last) for each in inputs)
        return super().export(model, fed, path, precision, calibration=calibration)


def test_a_program_fed_the_other_layout_is_caught(tmp_path: Path) -> None:
    """ExecuTorch takes it without a word and computes garbage: only a run in the app's layout shows it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)).eval()

    with pytest.raises(ExportError, match="computes something else than the model"):
        export(model, images(4, 3, 8, 8), tmp_path / "net.pte", OtherLayout())

    assert list(tmp_path.iterdir()) == []


def test_a_program_whose_weights_are_missing_is_one_error(tmp_path: Path) -> None:
    """The runner loads it, in a process that may crash; what is told is no bare number."""
    from executorch.exir import ExecutorchBackendConfig, to_edge

    path = tmp_path / "net.pte"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        edge = to_edge(torch.export.export(nn.Linear(4, 2).eval(), (images(1, 4),)))
        made = edge.to_executorch(ExecutorchBackendConfig(external_constants=True))
    path.write_bytes(made.buffer)

    with pytest.raises(ExportError, match=r"net\.pte does not run: .*weights in a file of their own") as caught:
        load("executorch").predict(path, images(1, 4).numpy())

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["executorch", "litert"])
def test_a_bare_convolution_and_its_norm_are_exported(name: str, tmp_path: Path) -> None:
    """ExecuTorch's folding of a norm once crashed where nothing stands around the two."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    for _ in range(3):
        model(2 * images(16, 3, 6, 6) + 1)

    agreement = export(model.eval(), images(4, 3, 6, 6), tmp_path / "net", load(name))

    assert agreement.sqnr_db > 90 and np.isclose(agreement.cosine, 1)
