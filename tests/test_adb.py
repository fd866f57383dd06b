"""Phones over adb, with a stand-in for the adb program; the real daemon is in tests/devices."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from maestro_edge.devices import connect, discover, discover_adb
from maestro_edge.devices.adb import AdbDevice
from maestro_edge.errors import DeviceError
from tests.device_contract import DeviceContract, refused

FAKE = Path(__file__).with_name("fake_adb.sh")


@pytest.fixture
def phone(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a fake adb, which is on the PATH before any other and has the device PHONE1."""
    home = tmp_path_factory.mktemp("phone")
    for name, content in {"devices": "PHONE1\tdevice\n", "features": "cmd\nshell_v2", "listening": ""}.items():
        (home / name).write_text(content)
    program = home / "bin" / "adb"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec sh {shlex.join([str(FAKE), str(home)])} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return home


@pytest.fixture
def device(phone: Path) -> Iterator[AdbDevice]:
    """PHONE1, with a private folder below that of the fake."""
    connected = AdbDevice("PHONE1", cache=str(phone / "a cache"))
    yield connected
    connected.close()


def calls(phone: Path, command: str) -> int:
    """How often adb was asked to do it."""
    return (phone / "calls").read_text().splitlines().count(command)


class TestContract(DeviceContract):
    """The contract of devices, through the fake."""


def test_a_session_leaves_files_by_hash_and_cleaning_leaves_nothing(phone: Path, tmp_path: Path) -> None:
    """The next session need not send them; another one that is open sees its own names."""
    (tmp_path / "file").write_text("content")
    first, second = (AdbDevice("PHONE1", cache=str(phone / "cache")) for _ in range(2))
    first.push(tmp_path / "file", "file")
    path = second.push(tmp_path / "file", "file")

    first.close()

    assert second.run(["cat", path], timeout_s=60) == "content"
    second.close()
    assert [path.read_text() for path in (phone / "cache").rglob("*") if path.is_file()] == ["content"]
    first.clean()
    assert list((phone / "cache").iterdir()) == []


def test_a_file_that_is_there_is_not_sent_again(phone: Path, device: AdbDevice, tmp_path: Path) -> None:
    """Whatever it is called, and whichever connection sent it."""
    (tmp_path / "file").write_text("content")
    device.push(tmp_path / "file", "one")
    other = AdbDevice("PHONE1", cache=str(phone / "a cache"))

    device.push(tmp_path / "file", "two")
    other.push(tmp_path / "file", "one")

    assert calls(phone, "push") == 1


def test_a_push_that_was_cut_short_goes_on(phone: Path, device: AdbDevice, tmp_path: Path) -> None:
    """A new connection sends what the old one had not, and takes nothing that is half."""
    for name in "ab":
        (tmp_path / name).write_text(name * 1000)
    device.push(tmp_path / "a", "a")
    (phone / "pull-cable").write_text("push")

    with pytest.raises(DeviceError) as error:
        device.push(tmp_path / "b", "b")

    assert "the connection was lost while pushing 1 file(s)" in refused(error, device)
    assert "goes on where it stopped" in str(error.value)
    (phone / "pull-cable").unlink()
    (phone / "devices").write_text("PHONE1\tdevice\n")
    again = AdbDevice("PHONE1", cache=str(phone / "a cache"))
    paths = [again.push(tmp_path / name, name) for name in "ab"]
    assert again.run(["cat", *paths], timeout_s=60) == "a" * 1000 + "b" * 1000
    assert calls(phone, "push") == 3


def test_a_cable_pulled_in_a_run_is_no_success(phone: Path, device: AdbDevice) -> None:
    """The adb program ends with code 0 then, as if the program had."""
    (phone / "pull-cable").write_text("shell")

    with pytest.raises(DeviceError) as error:
        device.run(["sleep", "60"], timeout_s=30)

    assert "the connection was lost while running 60" in refused(error, device)
    device.close()


def test_a_cable_pulled_in_a_pull_leaves_no_half_file(phone: Path, device: AdbDevice, tmp_path: Path) -> None:
    """The file appears whole or not at all."""
    device.run(["sh", "-c", "echo content > result"], timeout_s=30)
    (phone / "pull-cable").write_text("pull")

    with pytest.raises(DeviceError) as error:
        device.pull("result", tmp_path / "result")

    assert "the connection was lost while pulling result" in refused(error, device)
    assert list(tmp_path.iterdir()) == []


def test_a_full_phone_is_said_to_be_full(phone: Path, device: AdbDevice, tmp_path: Path) -> None:
    """With what to do about it."""
    (tmp_path / "big").write_text("x")
    (phone / "full").touch()

    with pytest.raises(DeviceError) as error:
        device.push(tmp_path / "big", "big")

    assert "its disk is full" in refused(error, device)
    assert "make room" in str(error.value)


def test_a_file_that_arrives_damaged_is_refused(phone: Path, device: AdbDevice, tmp_path: Path) -> None:
    """Its digest is taken on the phone."""
    (tmp_path / "file").write_text("x")
    (phone / "damage").touch()

    with pytest.raises(DeviceError) as error:
        device.push(tmp_path / "file", "file")

    assert "damaged" in refused(error, device)
    assert device.run(["ls", "-A"], timeout_s=60) == ""


def test_a_program_of_another_machine_is_told_from_a_missing_one(device: AdbDevice, tmp_path: Path) -> None:
    """The remedy is another build."""
    program = tmp_path / "runner"
    program.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xff\xff" + bytes(44))
    program.chmod(0o755)
    path = device.push(program, "runner")

    with pytest.raises(DeviceError) as error:
        device.run([path], timeout_s=60)

    assert "runner was built for another processor" in refused(error, device)


@pytest.mark.parametrize(
    ("state", "remedy"),
    [
        ("unauthorized", "accept its dialog"),
        ("offline", "plug the cable in again"),
        ("no permissions (missing udev rules? user is in the plugdev group); see [http://x.org]", "udev rules"),
        ("recovery", "start Android"),
    ],
)
def test_a_phone_that_is_not_ready_says_what_to_do(phone: Path, state: str, remedy: str) -> None:
    """When connecting, and in the list."""
    (phone / "devices").write_text(f"PHONE1\t{state}\n")

    with pytest.raises(DeviceError) as error:
        connect("adb:PHONE1")

    (listed,) = discover_adb()
    assert str(error.value) == f"adb:PHONE1 is {listed.state}: {listed.remedy}"
    assert state.startswith(listed.state)
    assert remedy in listed.remedy
    assert discover() == ("local",)


def test_a_phone_that_is_not_there_is_told_from_those_that_are(phone: Path) -> None:
    """So is the case that there is none."""
    with pytest.raises(DeviceError, match=r"adb:NOPE is not there: adb sees PHONE1 \(device\)"):
        connect("adb:NOPE")
    (phone / "devices").write_text("")
    with pytest.raises(DeviceError, match="adb sees no device: connect the cable"):
        connect("adb:PHONE1")


def test_a_phone_on_the_network_is_connected_to(phone: Path) -> None:
    """Also when an earlier connection went stale; where none listens, it is not there."""
    (phone / "listening").write_text("192.0.2.1:5555")
    (phone / "devices").write_text("192.0.2.1:5555\toffline\n")

    device = AdbDevice("192.0.2.1:5555", cache=str(phone))

    assert device.name == "adb:192.0.2.1:5555"
    assert discover() == ("local", "adb:192.0.2.1:5555")
    device.close()
    with pytest.raises(DeviceError, match=r"adb:192\.0\.2\.2:5555 is not there"):
        connect("adb:192.0.2.2:5555")


@pytest.mark.parametrize("serial", ["", " ", "a\nb", "-l", "x;touch broken", "$(touch broken)", "-d:1", "a b"])
def test_no_serial_is_more_than_a_serial(phone: Path, serial: str) -> None:
    """Neither a shell nor adb reads it as something else; adb would take an empty one for any device."""
    with pytest.raises(DeviceError) as error:
        connect(f"adb:{serial}")

    assert "\n" not in str(error.value)
    assert "adb sees PHONE1 (device)" in str(error.value)
    assert calls(phone, "connect") == 0


def test_a_phone_without_exit_codes_is_refused(phone: Path) -> None:
    """A failed program would look like one that worked."""
    (phone / "features").write_text("cmd")

    with pytest.raises(DeviceError, match="Android 7 or later is needed"):
        connect("adb:PHONE1")


def test_adb_itself_may_be_missing(phone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has no phone needs no adb; who names one is told where to get it."""
    monkeypatch.setenv("PATH", str(phone))

    with pytest.raises(DeviceError, match=r"adb is not installed: apt install adb"):
        connect("adb:PHONE1")
    assert discover() == ("local",)


def test_a_name_of_no_kind_is_refused() -> None:
    """The message lists the kinds."""
    with pytest.raises(DeviceError, match="'adb:SERIAL'"):
        connect("phone")
