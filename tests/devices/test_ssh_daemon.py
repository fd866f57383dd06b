"""Boards over the real sshd: the contract, a runtime that measures there, and a board that dies in the middle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from maestro_edge.devices import Device, connect
from maestro_edge.errors import DeviceError
from maestro_edge.runtimes import MeasuringProtocol, load
from maestro_edge.runtimes.jobs import python_versions
from tests.device_contract import DeviceContract, refused
from tests.devices.peers import Board


@pytest.fixture
def device(board: Board) -> Iterator[Device]:
    """A connection to the board."""
    connected = connect(board.name)
    yield connected
    connected.close()


class TestContract(DeviceContract):
    """The contract of devices, on OpenSSH."""


def test_a_runtime_measures_there(device: Device, tmp_path: Path) -> None:
    """Export here, push, run the board's own LiteRT, read the times back."""
    runtime = load("litert")
    path = tmp_path / "model.tflite"
    runtime.export(nn.Linear(8, 4).eval(), (torch.zeros(1, 8),), path)

    timings = runtime.measure(device, {"model": path}, MeasuringProtocol(rounds=3, slice_ms=0.1, warmup_ms=0))

    assert runtime.version_on(device) == python_versions(device)["litert"]
    assert timings["model"].n >= 3


def test_a_board_that_dies_in_a_run(board: Board, device: Device) -> None:
    """It is an error that says so; the same device works again when the board is back."""
    device.run(["true"], timeout_s=60)
    board.kill()
    try:
        with pytest.raises(DeviceError) as error:
            device.run(["true"], timeout_s=60)
    finally:
        board.start()

    refused(error, device)
    assert device.run(["echo", "back"], timeout_s=60) == "back\n"
