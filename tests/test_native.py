"""The native runner, built here and run without Python: the same answers as runner.py's."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from maestro_edge.devices import LocalDevice
from maestro_edge.errors import DeviceError, RunnerError
from maestro_edge.runtimes import MeasuringProtocol, digest, versions_on
from maestro_edge.runtimes.executorch import ExecuTorch
from maestro_edge.runtimes.jobs import python_versions, run_job, version_on
from maestro_edge.runtimes.measuring import predict_on, run_alone
from maestro_edge.runtimes.native import ARCHITECTURES, build, push_native
from maestro_edge.values import DeviceFacts
from tests.conftest import TinyNet, outputs_of

QUICK = MeasuringProtocol(rounds=4, warmup_ms=1, slice_ms=1, repeats=0)
HOSTILE = ['say "hi"\nname x', "$(touch broken); 'é' \\ {}", ""]
RUNTIME = ExecuTorch()


class Phone(LocalDevice):
    """This machine without its Python."""

    def __init__(self, *, python: str = "", arch: str | None = None) -> None:
        super().__init__()
        self.name, self.python, self._arch = "phone", python, arch

    def facts(self) -> DeviceFacts:
        facts = super().facts()
        return facts if self._arch is None else facts.model_copy(update={"arch": self._arch})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """small.pte, large.pte and both entries of both.pte take an image (1, 1, 8, 8), words.pte (1, 6) ids."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("files")
    for name, width in (("small", 8), ("large", 256)):
        RUNTIME.export(TinyNet(width).eval(), (torch.randn(1, 1, 8, 8),), folder / f"{name}.pte")
    models = {f"w{width}": TinyNet(width).eval() for width in (8, 256)}
    RUNTIME.export_entries(models, (torch.randn(1, 1, 8, 8),), folder / "both.pte")
    words = nn.Sequential(nn.Embedding(20, 16), nn.Linear(16, 4)).eval()
    RUNTIME.export(words, (torch.zeros(1, 6, dtype=torch.int64),), folder / "words.pte")
    return folder


def test_a_phone_has_the_version_it_was_built_from() -> None:
    """Without Python there is ExecuTorch alone, and other runtimes say what is missing."""
    phone = Phone()

    assert versions_on(phone) == {"executorch": version("executorch")}
    with pytest.raises(DeviceError, match="install ai-edge-litert"):
        version_on(phone, "litert")
    with pytest.raises(DeviceError, match="no Python for litert: choose executorch"):
        run_job(phone, {"task": "time", "runtime": "litert"}, timeout_s=9)


def test_files_of_any_name_are_timed(folder: Path) -> None:
    """Names come back as they went, each with its own samples."""
    paths = dict.fromkeys(HOSTILE, folder / "small.pte") | {"large": folder / "large.pte"}

    timings = RUNTIME.measure(Phone(), paths, QUICK)

    assert set(timings) == set(paths)
    assert all(timing.n >= 2 * QUICK.rounds for timing in timings.values())
    assert all(timings[name].median_ms < timings["large"].median_ms for name in HOSTILE)


def test_operators_are_those_that_python_finds(folder: Path) -> None:
    """The same kernels in the same order, with as many samples."""
    path = {"words": folder / "words.pte", "net": folder / "small.pte"}

    native, python = (RUNTIME.measure_ops(device, path, QUICK) for device in (Phone(), LocalDevice()))

    listed = {name: [(each.kind, each.timing.n) for each in found] for name, found in native.items()}
    assert listed == {name: [(each.kind, each.timing.n) for each in found] for name, found in python.items()}
    assert [kind for kind, _ in listed["net"]] == ["conv2d", "conv2d", "linear"]


def test_a_file_alone_tells_its_start_and_memory(folder: Path) -> None:
    """The process is small: neither Python nor torch is in it."""
    alone = run_alone("executorch", Phone(), folder / "small.pte", QUICK)

    assert alone.load_ms > 0 and alone.first_ms > 0
    assert alone.peak_kib is not None and 1_000 < alone.peak_kib < 100_000


@pytest.mark.parametrize("name", ["small.pte", "both.pte#w8", "both.pte#w256", "words.pte"])
def test_outputs_are_pythons(name: str, folder: Path) -> None:
    """Real numbers and ids, five samples, each run alone; of a file with several methods the one that is named."""
    random = np.random.default_rng(0)
    images = random.standard_normal((5, 1, 8, 8)).astype(np.float32)
    inputs: Any = random.integers(20, size=(5, 6)) if name == "words.pte" else images

    outputs = predict_on(Phone(), "executorch", folder / name, inputs)

    expected = outputs_of("executorch", folder / name, inputs)
    assert outputs.shape == expected.shape and outputs.dtype == expected.dtype
    assert float(np.abs(outputs - expected).max()) < 1e-5 < float(np.abs(expected).max())


@pytest.mark.parametrize("share", [0, 0.02, 0.3, 0.9])
def test_a_truncated_file_is_one_clear_error(share: float, folder: Path, tmp_path: Path) -> None:
    """Wherever it ends."""
    content = (folder / "small.pte").read_bytes()
    (tmp_path / "net.pte").write_bytes(content[: int(share * len(content))])

    with pytest.raises(DeviceError, match="truncated or not an ExecuTorch program") as caught:
        RUNTIME.measure(Phone(), {"net": tmp_path / "net.pte"}, QUICK)

    assert "\n" not in str(caught.value)


def test_a_wrong_sample_is_told_from_the_right_one(folder: Path) -> None:
    """Both shapes are in the message; a type that no model takes is refused by name."""
    halves: Any = np.zeros((2, 1, 8, 8), np.float16)

    with pytest.raises(RunnerError, match=r"another shape .*\(1, 1, 8, 8\) and not \(1, 1, 9, 9\)"):
        predict_on(Phone(), "executorch", folder / "small.pte", np.zeros((2, 1, 9, 9), np.float32))
    with pytest.raises(RunnerError, match="another type"):
        predict_on(Phone(), "executorch", folder / "words.pte", np.zeros((2, 6), np.float32))
    with pytest.raises(RunnerError, match="neither float32 nor int64"):
        predict_on(Phone(), "executorch", folder / "small.pte", halves)


@pytest.mark.parametrize(
    ("job", "reason"),
    [
        ({"task": "dance"}, "no task dance"),
        ({"task": "time", "seed": 0}, "the job names no threads"),
        ({"task": "time", "seed": "many"}, "seed is no number: many"),
        ({"task": "about", "cores": [900]}, "cannot be bound to the cores 900"),
    ],
)
def test_a_job_that_cannot_be_done_is_answered(job: dict[str, object], reason: str) -> None:
    """The runner ends well and says why."""
    with pytest.raises(RunnerError, match=reason):
        run_job(Phone(), {"runtime": "executorch", **job}, timeout_s=9)


def test_a_python_without_executorch_makes_way(folder: Path, tmp_path: Path) -> None:
    """A board with numpy and another runtime measures natively, and the table can say with what."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for found in Path(np.__file__).parents[1].glob("numpy*"):
        (packages / found.name).symlink_to(found)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{packages}" exec "{sys.executable}" -S "$@"\n')
    python.chmod(0o755)
    board = Phone(python=str(python))

    assert python_versions(board) == {}
    assert version_on(board, "executorch") == version("executorch")
    assert RUNTIME.measure(board, {"net": folder / "small.pte"}, QUICK)["net"].median_ms > 0
    assert RUNTIME.runner_sha256(board) == digest(build(board.facts().arch))
    assert RUNTIME.runner_sha256(LocalDevice()) is None


def test_the_libraries_of_the_device_stay_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where LD_LIBRARY_PATH names some of the same names that do not fit."""
    phone = Phone()
    command = push_native(phone)
    for library in build(phone.facts().arch).glob("lib*"):
        (tmp_path / library.name).write_text("no library")
    (tmp_path / "job").write_text("task about\n")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))

    phone.run([*command, str(tmp_path / "job"), str(tmp_path / "result")], timeout_s=9)

    assert version("executorch") in (tmp_path / "result").read_text()
    assert not (tmp_path / "result.part").exists()
    with pytest.raises(DeviceError, match=r"runner ended with code 1: cannot write .*/nowhere/result"):
        phone.run([*command, str(tmp_path / "job"), str(tmp_path / "nowhere" / "result")], timeout_s=9)


def test_another_architecture_is_refused() -> None:
    """With what there is, and what to do."""
    with pytest.raises(DeviceError, match=r"phone is riscv64, .* x86_64 and aarch64: install Python"):
        push_native(Phone(arch="riscv64"))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_missing_compiler_names_its_package(arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is downloaded, and nothing is left."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(DeviceError, match=r"g\+\+ is not installed: apt install g\+\+"):
        build(arch)

    assert list(tmp_path.iterdir()) == []
