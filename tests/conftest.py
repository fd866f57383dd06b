"""Doubles at the two seams: a runtime whose times follow exact arithmetic, and small data and models."""

from __future__ import annotations

import hashlib
import json
import math
import signal
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from maestro_edge.devices import Device
from maestro_edge.errors import DeviceError, ExportError
from maestro_edge.ordered import trace
from maestro_edge.runtimes.probe import probe_module
from maestro_edge.runtimes.protocol import Array, MeasuringProtocol
from maestro_edge.runtimes.runner import LOADERS
from maestro_edge.training import TrainSet
from maestro_edge.values import Alone, LayerSpec, Precision, Rank, Timing, write_atomically

REST_MS = 0.25

# Under a shell's "&" SIGINT is ignored, and would be by all that tests start to interrupt it.
signal.signal(signal.SIGINT, signal.default_int_handler)


class FakeRuntime:
    """Files are JSON with the time they take: a staircase of 16 channels per layer plus `REST_MS`.

    `slowdown` multiplies every measured time, as a hotter device would; `wrong` adds an error to every output.
    """

    name = "fake"
    suffix = ".fake"
    rank_step = 16
    forks_after: str | None = None

    def __init__(self, *, slowdown: float = 1.0, wrong: float = 0.0, version: str = "1.0") -> None:
        self.slowdown, self.wrong, self._version = slowdown, wrong, version
        self.models: dict[str, nn.Module] = {}
        self.measured: list[str] = []
        self.exports = 0

    @property
    def version(self) -> str:
        return self._version

    def version_on(self, device: Device) -> str:
        return self._version

    def runner_sha256(self, device: Device) -> None:
        """Nothing native measures."""

    def export(
        self,
        model: nn.Module,
        inputs: tuple[Tensor, ...],
        path: Path,
        precision: Precision = "fp32",
        *,
        calibration: Sequence[Tensor] | None = None,
    ) -> None:
        self.exports += 1
        network = trace(model, inputs)
        content = json.dumps({"ms": REST_MS + sum(layer_ms(layer.spec) for layer in network.layers)}).encode()
        content += b"\n" + hashlib.sha256(str(self.exports).encode()).hexdigest().encode()
        self.models[hashlib.sha256(content).hexdigest()] = model.eval()
        write_atomically(path, content)

    def predict(self, path: Path, inputs: Array) -> Array:
        model = self.models.get(hashlib.sha256(path.read_bytes()).hexdigest())
        if model is None:
            raise ExportError(f"{path.name} does not run: it is no file of this runtime")
        with torch.no_grad():
            outputs: Array = model(torch.from_numpy(inputs)).numpy()
        return outputs + np.float32(self.wrong)

    def measure(self, device: Device, paths: Mapping[str, Path], protocol: MeasuringProtocol) -> dict[str, Timing]:
        self.measured += list(paths)
        timings = {}
        for name, path in paths.items():
            try:
                ms = json.loads(path.read_text().splitlines()[0])["ms"] * self.slowdown
            except (OSError, ValueError) as error:
                raise DeviceError(f"fake: {path.name} is no file of this runtime") from error
            timings[name] = Timing.of([0.99 * ms, ms, 1.01 * ms])
        return timings

    def measure_alone(self, device: Device, path: Path, protocol: MeasuringProtocol) -> Alone:
        ms = self.measure(device, {"alone": path}, protocol)["alone"].median_ms
        self.measured.pop()
        return Alone(load_ms=10 * ms, first_ms=2 * ms, peak_kib=1024)

    def write_probe(self, spec: LayerSpec, rank: Rank, path: Path, precision: Precision = "fp32") -> None:
        module, inputs = probe_module(spec, rank)
        ms = sum(layer_ms(layer.spec) for layer in trace(module, inputs).layers)
        write_atomically(path, json.dumps({"ms": ms}).encode())


def layer_ms(spec: LayerSpec) -> float:
    """Exact arithmetic: channels rounded up to 16, one microsecond per 1,000 MACs, 1 µs a layer."""
    padded = math.ceil(spec.out_channels / 16) * 16
    return 0.001 + padded * spec.fan_in * math.prod(spec.output_size) / 1e6


def outputs_of(runtime: str, path: Path, inputs: Array) -> Array:
    """What the runner's `predict` gives, in this process: for files that are known to crash nothing."""
    program = LOADERS[runtime](str(path), 1, None)
    outputs = []
    for sample in inputs:
        program.feed(np.ascontiguousarray(sample[None]))
        outputs.append(np.array(program.run()))
    return np.concatenate(outputs)


class TinyNet(nn.Module):
    """Two convolutions with BatchNorm and a classifier: (N, 1, 8, 8) → (N, 3)."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.conv1(x)))
        x = torch.relu(self.norm2(self.conv2(x)))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


@pytest.fixture
def tiny() -> nn.Module:
    """A seeded TinyNet in eval mode."""
    torch.manual_seed(0)
    return TinyNet().eval()


def tiny_data(count: int = 96) -> TrainSet:
    """Three classes of 8 x 8 images told apart by where they are bright."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(3, (count,), generator=generator)
    images = torch.rand(count, 1, 8, 8, generator=generator)
    for index, target in enumerate(targets.tolist()):
        images[index, :, :, 2 * target : 2 * target + 3] += 2
    return TrainSet(name="tiny", inputs=images, targets=targets, prepare=lambda x: x - 1)


def write_mnist(folder: Path, count: int) -> None:
    """Files of MNIST's form, `count` to train and validate on, 40 to test: bright rows tell the class."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for prefix, number in (("train", count), ("t10k", 40)):
        targets = torch.arange(number) % 10
        images = torch.randint(64, (number, 28, 28), generator=generator)
        for index, target in enumerate(targets.tolist()):
            images[index, 2 * target : 2 * target + 4] += 180
        head, tail = struct.pack(">4I", 2051, number, 28, 28), struct.pack(">2I", 2049, number)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(head + images.to(torch.uint8).numpy().tobytes())
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(tail + targets.to(torch.uint8).numpy().tobytes())
