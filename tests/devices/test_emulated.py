"""A board and a phone with 64-bit ARM, emulated: flows and results are real, times are not looked at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from maestro_edge.devices import Device, connect
from maestro_edge.errors import DeviceError
from maestro_edge.runtimes import MeasuringProtocol, load
from maestro_edge.runtimes.jobs import python_versions, run_job
from tests.devices.peers import Board, Phone

CORTEX_A76 = "0xd0b"


@pytest.fixture
def pi(emulated_board: Board) -> Iterator[Device]:
    """A connection to the board."""
    connected = connect(emulated_board.name)
    yield connected
    connected.close()


@pytest.fixture
def arm_phone(emulated_phone: Phone) -> Iterator[Device]:
    """A connection to the phone."""
    connected = connect(emulated_phone.name)
    yield connected
    connected.close()


@pytest.mark.parametrize("fixture", ["pi", "arm_phone"])
def test_it_is_another_machine_than_this(fixture: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Its facts, its files and its programs are those of the other side."""
    device: Device = request.getfixturevalue(fixture)
    (tmp_path / "file").write_bytes(bytes(range(256)))

    path = device.push(tmp_path / "file", "a folder/file")
    device.run(["cp", path, "back"], timeout_s=120)
    device.pull("back", tmp_path / "back")

    assert (tmp_path / "back").read_bytes() == bytes(range(256))
    assert device.facts().arch == "aarch64"
    assert CORTEX_A76 in device.run(["cat", "/proc/cpuinfo"], timeout_s=120)


def test_the_board_tells_its_runtimes(pi: Device) -> None:
    """The runner and the interpreter are found; LiteRT is the one of that machine."""
    assert set(python_versions(pi)) == {"litert"}


def test_a_network_computes_the_same_there(pi: Device, tmp_path: Path) -> None:
    """LiteRT for 64-bit ARM, with its own kernels, against PyTorch here."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)).eval()
    inputs = torch.randn(2, 3, 8, 8)
    path = tmp_path / "model.tflite"
    runtime = load("litert")
    runtime.export(model, (inputs[:1],), path)
    np.save(tmp_path / "samples.npy", inputs.numpy())
    samples = pi.push(tmp_path / "samples.npy", "samples.npy")

    job = {
        "task": "predict",
        "runtime": "litert",
        "threads": 1,
        "files": {"model": pi.push(path, "model.tflite")},
        "samples": samples,
        "outputs": samples.replace("samples.npy", "outputs.npy"),
    }
    run_job(pi, job, timeout_s=280)
    pi.pull("outputs.npy", tmp_path / "outputs.npy")

    with torch.no_grad():
        expected = model(inputs).numpy()
    np.testing.assert_allclose(
        np.load(tmp_path / "outputs.npy", allow_pickle=False), expected, rtol=1e-3, atol=1e-4
    )


def test_a_measurement_goes_through(pi: Device, tmp_path: Path) -> None:
    """Samples come back; what they say of time is the emulator's."""
    runtime = load("litert")
    path = tmp_path / "model.tflite"
    runtime.export(nn.Linear(8, 4).eval(), (torch.zeros(1, 8),), path)

    timings = runtime.measure(
        pi, {"model": path}, MeasuringProtocol(rounds=2, slice_ms=0.1, warmup_ms=0, repeats=0)
    )

    assert timings["model"].n >= 2


def test_a_program_for_this_machine_is_refused_by_an_arm_phone(arm_phone: Device, tmp_path: Path) -> None:
    """As it would be by a real one: here for want of its loader."""
    program = tmp_path / "runner"
    program.write_bytes(Path("/bin/true").read_bytes())
    program.chmod(0o755)
    path = arm_phone.push(program, "runner")

    with pytest.raises(DeviceError, match=r"runner was built for another processor|runner did not start"):
        arm_phone.run([path], timeout_s=60)
