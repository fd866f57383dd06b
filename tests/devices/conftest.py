"""The lab: boards and phones with real daemons. What cannot be started fails; nothing is skipped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.devices.debian import native_architecture
from tests.devices.peers import Board, Phone, Process, adb_program, free_port, make_key
from tests.devices.programs import bring, bring_npm, open_chromium

CACHE = Path(__file__).parents[2] / ".cache" / "lab"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is downloaded, unpacked or emulated takes longer than other tests may."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for this run; the tests see its adb, its keys and its home."""
    folder = tmp_path_factory.mktemp("lab")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        patch.setenv("ADB_MDNS", "0")
        patch.setenv("ADB_LOCAL_TRANSPORT_MAX_PORT", "5553")  # none: it looks for emulators from 5555 on
        patch.setenv("ANDROID_ADB_SERVER_PORT", str(port := free_port()))
        patch.delenv("SSH_AUTH_SOCK", raising=False)
        (folder / ".ssh").mkdir(mode=0o700)
        make_key(folder / ".ssh" / "id_ed25519")
        (CACHE / "home").mkdir(parents=True, exist_ok=True)  # runners, their SDK and LiteRT.js
        (folder / ".cache").mkdir()
        (folder / ".cache/maestro-edge").symlink_to(CACHE / "home")
        adb = adb_program(CACHE, folder / "bin")
        patch.setenv("PATH", f"{adb.parent}{os.pathsep}{os.environ['PATH']}")
        server = Process([str(adb), "nodaemon", "server"], folder / "adb.log", port)
        yield folder
        server.kill()


@pytest.fixture(scope="session")
def compilers(lab: Path) -> None:
    """What builds the native runners."""
    bring(CACHE, lab / "bin", "/usr/bin/g++", "g++")
    bring(CACHE, lab / "bin", "/usr/bin/aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu")


@pytest.fixture(scope="session")
def chromium(lab: Path) -> Iterator[Browser]:
    """One browser for all; each test has a context of its own."""
    bring_npm(CACHE, lab / "bin")  # it fetches LiteRT.js
    with open_chromium(CACHE, lab / "bin") as browser:
        yield browser


@pytest.fixture(scope="session")
def phone(lab: Path) -> Iterator[Phone]:
    """adbd of this architecture; a test that kills it starts it again."""
    started = Phone(CACHE, lab / "phone", native_architecture())
    yield started
    started.kill()


@pytest.fixture(scope="session")
def emulated_phone(lab: Path) -> Iterator[Phone]:
    """adbd for 64-bit ARM."""
    started = Phone(CACHE, lab / "emulated-phone", "arm64")
    yield started
    started.kill()


@pytest.fixture(scope="session")
def board(lab: Path) -> Iterator[Board]:
    """sshd of this architecture."""
    started = Board(CACHE, lab / "board", native_architecture())
    started.introduce(lab / ".ssh")
    yield started
    started.kill()


@pytest.fixture(scope="session")
def emulated_board(lab: Path) -> Iterator[Board]:
    """sshd for 64-bit ARM: what a Raspberry Pi 5 runs, hundreds of times slower."""
    started = Board(CACHE, lab / "emulated-board", "arm64")
    started.introduce(lab / ".ssh")
    yield started
    started.kill()
