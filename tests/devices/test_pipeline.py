"""The whole job on every kind of peer, through the command line: profile → plan → export → verify."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from maestro_edge.devices import connect
from maestro_edge.values import LatencyTable, Manifest, RankPlan, Source
from tests.command import ROOT, here, refused
from tests.devices.peers import Board, Phone

MODEL = "tests.devices.tiny:build"
BUDGET_MS = "60000"
"""Kept by whatever a device does in less than a minute: when it is missed is tests/test_run.py's."""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds `run`, of an epoch of each training on digits: one training, many devices."""
    folder = tmp_path_factory.mktemp("trained")
    done = here("train", MODEL, "--out", "run", "--epochs", "1", "--dense-epochs", "1", folder=folder)
    assert done.code == 0, done.err
    return folder


@pytest.fixture
def profiles(tmp_path: Path) -> Path:
    """Tables of one device."""
    return tmp_path / "profiles"


def steps(device: str, runtime: str, profiles: Path, *, emulated: bool = False) -> Iterator[tuple[str, ...]]:
    """The four commands."""
    tables = ("--profiles", str(profiles))
    for step, *options in (
        ("profile", *tables, *(["--emulated"] if emulated else [])),
        ("plan", *tables, "--budget-ms", BUDGET_MS),
        ("export",),
        ("verify", *tables),
    ):
        yield step, "run", "--model", MODEL, "--runtime", runtime, "--device", device, *options


def run_here(folder: Path, device: str, runtime: str, profiles: Path, *, emulated: bool = False) -> None:
    """All four in this process; what they print, pytest captures."""
    for argv in steps(device, runtime, profiles, emulated=emulated):
        for _ in range(3):
            done = here(*argv, folder=folder)
            if "varies by" not in done.err:
                break  # a busy machine is refused by name, and then asked for the same again
        assert done.code == 0, (argv, done.err)


def check(folder: Path, profiles: Path, runtime: str, source: Source, name: str) -> None:
    """A table of that device and its plan, and files that were timed there and kept their budget."""
    (path,) = profiles.iterdir()
    table = LatencyTable.load(path)
    (plan,) = [RankPlan.load(file) for file in (folder / "run/plans").glob(f"{runtime}-*")]
    manifest = Manifest.load(folder / "run/files/manifest.json")
    dense, small = manifest.variants

    assert path.name.startswith(f"{name}.{runtime}-")
    assert path.name.endswith(".emulated.json") == (source == "emulated")
    assert (table.source, table.device.name) == (source, name)
    assert {rank for layer in plan.layers for rank in table.ranks(layer.spec)} == {16, 32, "dense"}
    assert len(table.calibrations[0].networks) >= 3
    assert (plan.device, plan.runtime, plan.source) == (name, runtime, source)
    assert manifest.device.name == name
    assert (dense.budget_ms, small.budget_ms) == (None, float(BUDGET_MS))
    for variant in manifest.variants:
        assert variant.runtime == runtime
        assert variant.measured_ms is not None
        assert 0 < variant.measured_ms.p50 <= float(BUDGET_MS)
        assert (folder / "run/files" / variant.file).exists()


def name_of(device: str) -> str:
    """What its tables are named after."""
    connected = connect(device)
    try:
        return connected.facts().name
    finally:
        connected.close()


def test_a_board_over_ssh(board: Board, folder: Path, profiles: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """LiteRT in the board's own Python."""
    run_here(folder, board.name, "litert", profiles)

    check(folder, profiles, "litert", "measured", name_of(board.name))
    assert " ✓" in capfd.readouterr().out


def test_a_phone_over_adb(
    compilers: None, phone: Phone, folder: Path, profiles: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """ExecuTorch's native runner, which comes along."""
    run_here(folder, phone.name, "executorch", profiles)

    check(folder, profiles, "executorch", "measured", name_of(phone.name))
    assert " ✓" in capfd.readouterr().out


def test_an_emulated_board(
    emulated_board: Board, folder: Path, profiles: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """LiteRT for 64-bit ARM; every step says what its times are worth, and no app gets them."""
    run_here(folder, emulated_board.name, "litert", profiles, emulated=True)

    check(folder, profiles, "litert", "emulated", name_of(emulated_board.name))
    assert len(re.findall(r"emulated: its\s+times\s+say\s+nothing", capfd.readouterr().out)) == 3
    assert "emulated" in refused(here("bundle", "run", "--model", MODEL, folder=folder))


def test_an_emulated_phone(compilers: None, emulated_phone: Phone, folder: Path, profiles: Path) -> None:
    """The native runner for 64-bit ARM."""
    run_here(folder, emulated_phone.name, "executorch", profiles, emulated=True)

    check(folder, profiles, "executorch", "emulated", name_of(emulated_phone.name))


def test_a_browser(chromium: Browser, folder: Path, profiles: Path) -> None:
    """A page that is opened at the address which each command prints, and LiteRT.js."""
    for argv in steps("browser:127.0.0.1:0", "litert", profiles):
        with (
            subprocess.Popen(
                [sys.executable, "-m", "maestro_edge.cli", *argv],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            ) as process,
            chromium.new_context() as context,
        ):
            try:
                assert process.stdout is not None
                address = next((line for line in process.stdout if line.startswith("http://")), None)
                if address is not None:
                    context.new_page().goto(address.strip())
                _, errors = process.communicate(timeout=600)
            finally:
                process.kill()
        assert process.returncode == 0 and address is not None, (argv, errors)

    (table,) = profiles.iterdir()
    assert table.name.startswith("chrome-")
    check(folder, profiles, "litert", "measured", LatencyTable.load(table).device.name)
