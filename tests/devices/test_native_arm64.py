"""The native runner on a phone with 64-bit ARM, emulated: no Python there, the outputs and operators of here."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch

from maestro_edge.devices import Device, LocalDevice, connect
from maestro_edge.errors import RunnerError
from maestro_edge.runtimes import MeasuringProtocol, versions_on
from maestro_edge.runtimes.executorch import ExecuTorch
from maestro_edge.runtimes.measuring import predict_on
from tests.conftest import TinyNet
from tests.devices.peers import Phone

QUICK = MeasuringProtocol(rounds=2, warmup_ms=0, slice_ms=0.1, repeats=0)
RUNTIME = ExecuTorch()


@pytest.fixture(scope="module")
def device(compilers: None, emulated_phone: Phone) -> Iterator[Device]:
    """A connection to the phone; what is built for it is kept with the lab."""
    connected = connect(emulated_phone.name)
    yield connected
    connected.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network for images (1, 1, 8, 8)."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("files") / "net.pte"
    RUNTIME.export(TinyNet().eval(), (torch.randn(1, 1, 8, 8),), path)
    return path


def test_the_phone_gets_its_runtime(device: Device) -> None:
    """The version that exports here."""
    assert versions_on(device) == {"executorch": version("executorch")}


def test_outputs_are_those_of_this_machine(device: Device, path: Path) -> None:
    """ARM's kernels against this machine's."""
    images = np.random.default_rng(0).standard_normal((3, 1, 8, 8)).astype(np.float32)

    outputs = predict_on(device, "executorch", path, images)

    expected = RUNTIME.predict(path, images)
    assert outputs.shape == expected.shape
    assert float(np.abs(outputs - expected).max()) < 1e-5 < float(np.abs(expected).max())


def test_files_and_operators_are_timed(device: Device, path: Path) -> None:
    """Samples come back, of the same operators as here; what they say of time is the emulator's."""
    timings = RUNTIME.measure(device, {"$(touch broken) 'net'": path}, QUICK)
    there, here = (RUNTIME.measure_ops(each, {"net": path}, QUICK)["net"] for each in (device, LocalDevice()))

    assert timings["$(touch broken) 'net'"].n >= 4
    assert [each.kind for each in there] == [each.kind for each in here] == ["conv2d", "conv2d", "linear"]


def test_a_truncated_file_is_one_clear_error(device: Device, path: Path, tmp_path: Path) -> None:
    """It comes back from the phone as the runner wrote it."""
    (tmp_path / "net.pte").write_bytes(path.read_bytes()[:2000])

    with pytest.raises(RunnerError, match="truncated or not an ExecuTorch program"):
        RUNTIME.measure(device, {"net": tmp_path / "net.pte"}, QUICK)
