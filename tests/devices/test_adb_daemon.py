"""Phones over the real adb and adbd: the contract, and what happens when the cable is pulled."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from maestro_edge.devices import connect, discover, discover_adb
from maestro_edge.devices.adb import AdbDevice
from maestro_edge.errors import DeviceError
from tests.device_contract import DeviceContract, refused, wait_until_gone
from tests.devices.peers import Phone, free_port

SMALL = "/data/small"
"""Where there is room for 1 MiB."""


@pytest.fixture
def folder() -> str:
    """A folder on the phone: what a dying phone keeps is in no other test's."""
    return f"/data/local/tmp/{uuid.uuid4().hex}"


@pytest.fixture
def device(phone: Phone, folder: str) -> Iterator[AdbDevice]:
    """A connection to the phone."""
    connected = AdbDevice(phone.serial, cache=folder)
    yield connected
    connected.close()


class TestContract(DeviceContract):
    """The contract of devices, on Android's own daemon."""


def test_the_phone_is_found_by_the_name_that_connect_takes(phone: Phone) -> None:
    """And tells its facts as a phone does."""
    device = connect(phone.name)

    facts = device.facts()

    device.close()
    assert phone.name in discover()
    assert [(listed.serial, listed.state) for listed in discover_adb()] == [(phone.serial, "device")]
    assert (facts.soc, facts.os.partition(",")[0]) == ("Lab Emulated", "Android 16")
    assert facts.name.startswith("lab-phone-")


def test_a_port_where_nothing_listens_is_no_phone(phone: Phone) -> None:
    """The phones that are there are listed."""
    connect(phone.name).close()

    with pytest.raises(DeviceError, match=rf"is not there: adb sees {phone.serial}"):
        connect(f"adb:127.0.0.1:{free_port()}")


def test_two_clients_have_names_of_their_own(phone: Phone, folder: str, tmp_path: Path) -> None:
    """What one pushes, runs and closes does not touch the other; cleaning leaves nothing of either."""
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    first, second = AdbDevice(phone.serial, cache=folder), AdbDevice(phone.serial, cache=folder)
    first.push(tmp_path / "one", "file")

    path = second.push(tmp_path / "two", "file")
    first.close()

    assert second.run(["cat", path], timeout_s=60) == "two"
    second.close()
    first.clean()
    assert list(here(phone, folder).iterdir()) == []


def test_two_clients_push_the_same_files_at_once(phone: Phone, tmp_path: Path) -> None:
    """Neither sees a half file of the other's."""
    files = [tmp_path / f"file-{number}" for number in range(5)]
    for file in files:
        file.write_bytes(os.urandom(2_000_000))
    devices = [AdbDevice(phone.serial) for _ in range(2)]
    digests: list[list[str]] = []

    def push_all(device: AdbDevice) -> None:
        paths = [device.push(file, file.name) for file in files]
        printed = device.run(["sha256sum", *paths], timeout_s=60)
        digests.append([line.split()[0] for line in printed.splitlines()])

    threads = [threading.Thread(target=push_all, args=(device,)) for device in devices]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(digests) == 2
    assert digests[0] == digests[1]
    assert len(set(digests[0])) == 5
    for device in devices:
        device.close()


def test_a_phone_that_is_full_is_said_to_be_full(phone: Phone, tmp_path: Path) -> None:
    """What had arrived before stays whole, and smaller files still go."""
    device = AdbDevice(phone.serial, cache=SMALL)
    (tmp_path / "small").write_bytes(b"x" * 1000)
    (tmp_path / "big").write_bytes(os.urandom(3_000_000))
    path = device.push(tmp_path / "small", "small")

    with pytest.raises(DeviceError) as error:
        device.push(tmp_path / "big", "big")

    assert "its disk is full" in refused(error, device)
    assert device.run(["cat", path], timeout_s=60) == "x" * 1000
    device.push(tmp_path / "small", "again")
    device.close()


def test_a_program_of_another_architecture_is_named_so(device: AdbDevice, tmp_path: Path) -> None:
    """Instead of a shell's complaint."""
    program = tmp_path / "runner"
    program.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xf3\x00" + bytes(44))
    program.chmod(0o755)
    path = device.push(program, "runner")

    with pytest.raises(DeviceError, match="runner was built for another processor"):
        device.run([path], timeout_s=60)


def test_a_program_ends_when_the_client_is_killed(phone: Phone, device: AdbDevice) -> None:
    """Without a word from the program: its input ends, and the guard kills it."""
    script = "import sys, maestro_edge; maestro_edge.connect(sys.argv[1]).run(sys.argv[2:], timeout_s=99)"
    program = ["sh", "-c", "echo $$ > /data/new && mv /data/new /data/pid; exec sleep 300"]
    client = subprocess.Popen([sys.executable, "-c", script, phone.name, *program])
    wait_until((phone.data / "pid").exists)

    client.kill()
    client.wait()

    wait_until_gone(device, (phone.data / "pid").read_text())


def test_a_phone_that_dies_in_a_run(phone: Phone, device: AdbDevice, folder: str) -> None:
    """adb ends with code 0 then; here it is an error, and a new connection works."""
    running = (phone.data / "running").exists

    message = broken(
        phone, device, lambda: device.run(["sh", "-c", "> /data/running; sleep 60"], timeout_s=50), running
    )

    assert "the connection was lost while running -c" in message
    again = AdbDevice(phone.serial, cache=folder)
    assert again.run(["echo", "back"], timeout_s=60) == "back\n"
    again.close()


def test_a_phone_that_dies_in_a_push(phone: Phone, device: AdbDevice, folder: str, tmp_path: Path) -> None:
    """The same push goes on with the next connection: what had arrived is not sent again, nothing half is used."""
    content = os.urandom(1_000_000) * 300
    (tmp_path / "big").write_bytes(content)
    (tmp_path / "small").write_bytes(content[:1_000_000])
    device.push(tmp_path / "small", "small")
    there = here(phone, folder)
    (arrived,) = there.glob("*/files/*")
    stamp = arrived.stat().st_mtime_ns

    message = broken(phone, device, lambda: device.push(tmp_path / "big", "big"), lambda: part_of(there))

    assert "the connection was lost while pushing 1 file(s)" in message
    assert list(arrived.parent.iterdir()) == [arrived]
    again = AdbDevice(phone.serial, cache=folder)
    again.push(tmp_path / "small", "small")
    path = again.push(tmp_path / "big", "big")
    assert arrived.stat().st_mtime_ns == stamp
    assert again.run(["sha256sum", path], timeout_s=60).split()[0] == hashlib.sha256(content).hexdigest()
    again.close()


def test_a_phone_that_dies_in_a_pull(phone: Phone, device: AdbDevice, tmp_path: Path) -> None:
    """No half file is left, and an older one stays."""
    device.run(["sh", "-c", "head -c 300000000 /dev/zero > big"], timeout_s=60)
    (tmp_path / "big").write_text("old")

    message = broken(phone, device, lambda: device.pull("big", tmp_path / "big"), lambda: part_of(tmp_path))

    assert "the connection was lost while pulling big" in message
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("big", "old")]


def here(phone: Phone, folder: str) -> Path:
    """Where a folder of the phone is on this machine."""
    return phone.data / folder.removeprefix("/data/")


def part_of(folder: Path) -> bool:
    """Whether some of a file, and not all of 300 MB, is below."""
    return any(path.stat().st_size for path in folder.rglob(".*part*"))


def broken(phone: Phone, device: AdbDevice, action: Callable[[], object], begun: Callable[[], bool]) -> str:
    """The message of `action` when the phone dies after it has begun; the phone is switched on again."""

    def kill() -> None:
        wait_until(begun)
        phone.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(DeviceError) as error:
        action()
    killer.join()
    phone.start()
    message = refused(error, device)
    assert "goes on where it stopped" in message
    return message


def wait_until(condition: Callable[[], bool]) -> None:
    """Return when it holds."""
    give_up = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)
