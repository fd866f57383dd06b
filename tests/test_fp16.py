"""fp16: half the bytes, nearly the same numbers, times of its own, refused where it gains nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from maestro_edge.devices import LocalDevice
from maestro_edge.errors import ExportError
from maestro_edge.ordered import order, trace
from maestro_edge.planning import account
from maestro_edge.profiling import profile
from maestro_edge.runtimes import MeasuringProtocol, export, load, size_bytes
from maestro_edge.values import LayerSpec
from tests.conftest import TinyNet

QUICK = MeasuringProtocol(
    rounds=4, warmup_ms=1, slice_ms=1, repeats=0, noise_limit=1000.0, calm_runs=1, most_runs=1, pause_s=0
)
SAMPLES = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def wide() -> nn.Module:
    torch.manual_seed(0)
    return TinyNet(128).eval()


@pytest.mark.parametrize("name", ["litert", "onnx", "coreml"])
def test_a_file_in_halves_is_half_as_large_and_passes_its_gate(name: str, tmp_path: Path) -> None:
    """Weights alone are rounded on LiteRT and ONNX Runtime; Core ML's program computes in halves too."""
    runtime, model = load(name), wide()
    whole, half = (tmp_path / f"{precision}{runtime.suffix}" for precision in ("fp32", "fp16"))

    export(model, SAMPLES, whole, runtime)
    agreement = export(model, SAMPLES, half, runtime, precision="fp16")

    assert 0.45 < size_bytes(half) / size_bytes(whole) < 0.65
    assert agreement.sqnr_db > 50 and agreement.top1_agreement == 1
    assert agreement.max_abs_error > 0


def test_executorch_refuses_halves(tmp_path: Path) -> None:
    """They would be as large; what to take instead is said."""
    with pytest.raises(ExportError, match="has no use for fp16: choose fp32, int8-dynamic or int8-static"):
        export(wide(), SAMPLES, tmp_path / "net.pte", load("executorch"), precision="fp16")
    assert list(tmp_path.iterdir()) == []


SPECS = [
    LayerSpec(kind="conv2d", in_channels=8, out_channels=16, kernel=(3, 3), padding=(1, 1), input_size=(6, 6)),
    LayerSpec(kind="conv2d", in_channels=64, out_channels=64, kernel=(3, 3), groups=64, input_size=(6, 6)),
    LayerSpec(kind="linear", in_channels=24, out_channels=16, input_size=(5,)),
]


@pytest.mark.parametrize("spec", SPECS, ids=["conv", "depthwise", "linear"])
def test_probes_in_halves_run_and_are_smaller(spec: LayerSpec, tmp_path: Path) -> None:
    """A single layer written straight as a file, of the same numbers as in floats but for rounding."""
    runtime = load("litert")
    outputs, sizes = [], []
    shape = (1, *spec.input_size, spec.in_channels)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    for precision in ("fp32", "fp16"):
        path = tmp_path / f"{precision}.tflite"
        runtime.write_probe(spec, "dense", path, precision)
        outputs.append(runtime.predict(path, x))
        sizes.append(path.stat().st_size)

    assert sizes[1] < sizes[0]
    np.testing.assert_allclose(outputs[1], outputs[0], atol=2e-3)
    assert not np.array_equal(outputs[0], outputs[1])


def test_a_table_in_halves_predicts_its_own_bytes(tmp_path: Path) -> None:
    """Times inside whole networks, as in floats; the files that were measured tell the bytes of others."""
    torch.manual_seed(0)
    model, inputs = order(TinyNet(48).eval(), where=["conv2"]), (torch.randn(1, 1, 8, 8),)

    table = profile(
        model, inputs, load("litert"), LocalDevice(), folder=tmp_path, protocol=QUICK, precision="fp16"
    )

    assert table.precision == "fp16" and ".fp16-t1" in table.file_name
    assert {row.method for row in table.rows} == {"in-model"}
    network = trace(model, inputs)
    bytes_of = account("size_bytes", network, table).of_ranks
    for item in table.calibrations[0].networks:
        assert item.size_bytes is not None
        assert bytes_of(network, item.ranks) == pytest.approx(item.size_bytes, rel=0.05)
