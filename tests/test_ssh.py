"""Devices over ssh: commands really run, through a server in this process; what local devices do, they do too."""

from __future__ import annotations

import errno
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncssh
import pytest
import torch
from torch import nn

from maestro_edge.devices import Device, LocalDevice, SshDevice, connect
from maestro_edge.devices.claims import clean
from maestro_edge.errors import DeviceError, MissingExtra
from maestro_edge.ordered import order, trace
from maestro_edge.profiling import profile
from maestro_edge.runtimes import MeasuringProtocol, load
from maestro_edge.values import DENSE
from tests.ssh_server import Files, SshServer

HOSTILE = "a 'b' \"c\"; $(touch pwned) `id` * -x\n.txt"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SshServer]:
    """A board with an empty home, and a user whose keys and known_hosts fit."""
    home, user = tmp_path / "board's home", tmp_path / "user"
    home.mkdir()
    monkeypatch.setenv("HOME", str(user))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    running = SshServer(home, user)
    yield running
    running.stop()


@pytest.fixture(params=["local", "ssh"])
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    """Every kind of device that runs programs here."""
    opened: Device = LocalDevice() if request.param == "local" else board(request.getfixturevalue("server"))
    yield opened
    opened.close()


def board(server: SshServer) -> SshDevice:
    """Without Python: a search for numpy takes longer than most tests."""
    return SshDevice(server.target, python="none")


def refused(action: Callable[[], object], message: str) -> DeviceError:
    """The error of an action: one line that says `message`."""
    with pytest.raises(DeviceError, match=message) as caught:
        action()
    assert "\n" not in str(caught.value)
    return caught.value


def stored(server: SshServer) -> list[Path]:
    """The files by hash on the board."""
    return sorted((server.home / ".cache" / "maestro-edge-device" / "files").iterdir())


def test_a_file_goes_there_and_back(device: Device, tmp_path: Path) -> None:
    """Its bytes are the same, and the path that push returns is one for programs there."""
    content = bytes(range(256)) * 2000
    (tmp_path / HOSTILE).write_bytes(content)

    path = device.push(tmp_path / HOSTILE, "in/file.bin")
    device.run(["cp", path, "out.bin"], timeout_s=20)
    device.pull("out.bin", tmp_path / "back.bin")

    assert (tmp_path / "back.bin").read_bytes() == content


def test_a_folder_goes_with_all_that_is_in_it(device: Device, tmp_path: Path) -> None:
    """Below the name that it is given; what was there of that name is replaced."""
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_text("a")
    (folder / "deep" / HOSTILE).write_text("b")
    device.push(folder, "files")
    (folder / "a.txt").unlink()
    (folder / "a.txt").write_text("new")

    path = device.push(folder, "files")

    found = device.run(["find", path, "-type", "f", "-print0"], timeout_s=20).split("\0")[:-1]
    assert sorted(found) == sorted([f"{path}/a.txt", f"{path}/deep/{HOSTILE}"])
    assert device.run(["cat", f"{path}/a.txt", f"files/deep/{HOSTILE}"], timeout_s=20) == "newb"


def test_hostile_names_mean_nothing(device: Device, tmp_path: Path) -> None:
    """Quotes, line ends and commands in names are names."""
    source = tmp_path / "source"
    source.write_text("content")

    path = device.push(source, HOSTILE)
    device.pull(HOSTILE, tmp_path / HOSTILE)

    assert Path(path).name == HOSTILE and (tmp_path / HOSTILE).read_text() == "content"
    assert device.run(["printf", "%s|", path, HOSTILE, "$HOME"], timeout_s=20) == f"{path}|{HOSTILE}|$HOME|"
    assert "pwned" not in device.run(["ls"], timeout_s=20).replace(HOSTILE, "")


def test_a_program_that_was_pushed_runs(device: Device, tmp_path: Path) -> None:
    """It stays executable."""
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\nprintf '%s' \"$1\"\n")
    tool.chmod(0o755)

    path = device.push(tool, "tool")

    assert device.run([path, "ran"], timeout_s=20) == "ran"


def test_a_program_for_another_processor_is_told(device: Device, tmp_path: Path) -> None:
    """The header of a program for a machine that does not exist."""
    tool = tmp_path / "tool"
    tool.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xee\xee" + bytes(44))
    tool.chmod(0o755)
    path = device.push(tool, "tool")

    refused(lambda: device.run([path], timeout_s=20), "tool .*built for another processor")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["no-such-program-here"], "no-such-program-here is not installed"),
        (["./no-such-file"], "./no-such-file is not installed"),
        (["sh", "-c", "echo early; echo first >&2; echo last words >&2; exit 7"], "ended with code 7: last words"),
        (["sh", "-c", "exit 97"], "ended with code 97: no message"),
        (["sleep", "60"], "took longer than 0.5 s and was ended"),
    ],
)
def test_a_failed_command_is_one_line(device: Device, argv: list[str], message: str) -> None:
    """It names the device; missing, failing and hanging are told apart; the device still works."""
    error = refused(lambda: device.run(argv, timeout_s=0.5 if argv[0] == "sleep" else 20), message)

    assert str(error).startswith(f"{device.name}: ")
    assert device.run(["printf", "fine"], timeout_s=20) == "fine"


def test_a_missing_file_is_told_on_both_sides(device: Device, tmp_path: Path) -> None:
    """And no file is begun here."""
    refused(lambda: device.push(tmp_path / "gone", "x"), r"cannot push .*gone \(No such file or directory\)")
    refused(lambda: device.pull("gone", tmp_path / "x"), r"cannot pull gone \(No such file or directory\)")

    assert list(tmp_path.glob("*x*")) == []


def test_facts_are_those_of_this_machine(device: Device) -> None:
    """All devices here are one machine."""
    assert device.facts().arch == os.uname().machine
    assert device.facts().cores == LocalDevice().facts().cores


def test_names_are_read_as_they_should_be(server: SshServer) -> None:
    """connect() takes the name that the device then has; anything else is refused, a password above all."""
    device = connect(f"ssh:{server.target}")
    device.close()

    assert device.name == f"ssh:{server.target}"
    for target in ("", "-oProxyCommand=x", "user:secret@host", "a b@host", "host:port", "u@h:22:22", "u@-h"):
        refused(lambda target=target: connect(f"ssh:{target}"), "names no device")  # type: ignore[misc]


def test_the_private_folder_is_private_and_is_left(server: SshServer, tmp_path: Path) -> None:
    """Closing removes the session's names and keeps the files by hash; cleaning removes all of it."""
    (tmp_path / "x").write_text("content")
    base = server.home / ".cache" / "maestro-edge-device"
    device = board(server)
    device.push(tmp_path / "x", "x")
    mode = base.stat().st_mode & 0o777

    device.close()
    kept, sessions = len(stored(server)), list((base / "work").iterdir())
    clean(connect(device.name))

    assert (mode, kept, sessions) == (0o700, 1, [])
    assert not base.exists() and base.parent.exists()


def test_another_folder_can_be_named(server: SshServer, tmp_path: Path) -> None:
    """For a board whose home is too small."""
    device = SshDevice(server.target, cache=str(tmp_path / "big disk"))
    device.clean()

    assert list((tmp_path / "big disk").iterdir()) == [] and list(server.home.iterdir()) == []


def test_a_python_without_numpy_is_none(server: SshServer, tmp_path: Path) -> None:
    """Facts need none; a run that does says so."""
    device = SshDevice(server.target, python=str(tmp_path / "python"))

    assert device.python == "" and (device.facts().cores or 0) >= 1
    refused(lambda: device.run([device.python, "runner.py"], timeout_s=5), "has no .*python with numpy")
    device.close()


def test_a_hundred_files_take_few_commands_and_none_the_next_time(server: SshServer, tmp_path: Path) -> None:
    """A session that pushes them again, or another one, sends nothing."""
    folder = tmp_path / "probes"
    folder.mkdir()
    for index in range(100):
        (folder / f"probe-{index}.tflite").write_bytes(os.urandom(100))
    device, sent = board(server), []
    begun = len(server.commands)

    device.push(folder, "files")
    first = len(server.commands) - begun
    device.push(folder, "files")
    second = len(server.commands) - begun - first
    times = [path.stat().st_mtime_ns for path in stored(server)]
    device.close()
    device = board(server)
    device.push(folder, "files")
    sent = [path.stat().st_mtime_ns for path in stored(server)]
    device.close()

    assert (first, second, len(times)) == (2, 0, 100)
    assert sent == times


def test_a_file_that_was_spoilt_there_is_sent_again(server: SshServer, tmp_path: Path) -> None:
    """Files by hash are read again by every session."""
    (tmp_path / "x").write_text("content")
    device = board(server)
    device.push(tmp_path / "x", "x")
    device.close()
    (spoilt,) = stored(server)
    spoilt.chmod(0o600)
    spoilt.write_text("conten")

    device = board(server)
    device.push(tmp_path / "x", "x")

    assert device.run(["cat", "x"], timeout_s=20) == "content"
    device.close()


class Cut(Files):
    """Loses the second half of the first `times` writes without a word."""

    times = 1

    def write(self, file_obj: object, offset: int, data: bytes) -> int:
        if type(self).times:
            type(self).times -= 1
            data = data[: len(data) // 2]
        return super().write(file_obj, offset, data)  # type: ignore[return-value]


@pytest.mark.parametrize("times", [1, 2])
def test_a_file_that_arrives_damaged_is_sent_once_more(
    server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """Twice is refused, and nothing of it stays under its hash."""
    monkeypatch.setattr(Cut, "times", times)
    server.serve(Cut)
    (tmp_path / "x").write_text("content")
    device = board(server)

    if times == 1:
        device.push(tmp_path / "x", "x")
        assert device.run(["cat", "x"], timeout_s=20) == "content"
    else:
        refused(lambda: device.push(tmp_path / "x", "x"), "x arrived damaged twice")
        assert stored(server) == []
    device.close()


class Full(Files):
    """A disk without room."""

    def write(self, file_obj: object, offset: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_told_with_its_numbers(server: SshServer, tmp_path: Path) -> None:
    """How much is free, how much is needed, and what makes room."""
    server.serve(Full)
    (tmp_path / "x").write_bytes(bytes(2**20))
    device = board(server)

    refused(
        lambda: device.push(tmp_path / "x", "x"),
        r"its disk is full \(No space left.*; 1.0 MiB to push, [\d.]+ MiB free\): .*devices clean ssh:pi@",
    )
    device.close()


def test_a_server_without_sftp_still_runs_and_says_so(server: SshServer, tmp_path: Path) -> None:
    """Facts and programs need none."""
    server.serve(None)
    (tmp_path / "x").write_text("content")
    device = board(server)

    refused(lambda: device.push(tmp_path / "x", "x"), "its sshd has no sftp: install")

    assert (device.facts().cores or 0) >= 1
    device.close()


class Unplugged(Files):
    """Cuts the connection in the middle of the first write or read."""

    unplug: Callable[[], None] | None = None

    def _once(self) -> None:
        cut, type(self).unplug = type(self).unplug, None
        if cut:
            cut()

    def write(self, file_obj: object, offset: int, data: bytes) -> int:
        self._once()
        return super().write(file_obj, offset, data)  # type: ignore[return-value]

    def read(self, file_obj: object, offset: int, size: int) -> bytes:
        self._once()
        return super().read(file_obj, offset, size)  # type: ignore[return-value]


def test_a_connection_lost_while_pushing_goes_on(
    server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says so, and the same call works again by itself."""
    server.serve(Unplugged)
    (tmp_path / "x").write_bytes(os.urandom(3_000_000))
    device = board(server)
    monkeypatch.setattr(Unplugged, "unplug", server.cut)

    refused(
        lambda: device.push(tmp_path / "x", "x"),
        "the connection was lost while pushing .*goes on where it stopped",
    )
    device.push(tmp_path / "x", "x")
    monkeypatch.setattr(Unplugged, "unplug", server.cut)
    refused(lambda: device.pull("x", tmp_path / "y"), "the connection was lost while pulling x")
    assert not (tmp_path / "y").exists()
    device.pull("x", tmp_path / "y")

    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()
    device.close()


def test_a_connection_lost_while_running_ends_the_program(server: SshServer) -> None:
    """Nothing goes on there that nobody reads; the next call connects again."""
    device = board(server)
    note = server.home / "process"

    def unplug() -> None:
        wait_for(note.exists)
        server.drop()

    threading.Thread(target=unplug).start()

    refused(
        lambda: device.run(
            ["sh", "-c", f'echo $$ > "{note}.part"; mv "{note}.part" "{note}"; exec sleep 60'], timeout_s=30
        ),
        "the connection was lost while running",
    )

    number = note.read_text().strip()
    wait_for(lambda: not alive(number))
    assert device.run(["printf", "again"], timeout_s=20) == "again"
    device.close()


def test_a_program_over_time_is_ended_there(server: SshServer) -> None:
    """Before the error is raised."""
    device = board(server)
    note = server.home / "process"

    refused(
        lambda: device.run(["sh", "-c", f'echo $$ > "{note}"; exec sleep 60'], timeout_s=0.5), "took longer than"
    )

    assert not alive(note.read_text().strip())
    device.close()


def alive(number: str) -> bool:
    """Whether a process runs; one that ended and was not waited for does not."""
    try:
        return " Z " not in re.sub(r"\(.*\)", "", Path("/proc", number, "stat").read_text())[:20]
    except FileNotFoundError:
        return False


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_folder_that_was_cleaned_meanwhile_is_made_again(server: SshServer, tmp_path: Path) -> None:
    """One error, then all works."""
    device = board(server)
    clean(board(server))

    refused(lambda: device.run(["true"], timeout_s=20), "its private folder is gone: run the same command again")

    assert device.run(["printf", "again"], timeout_s=20) == "again"
    device.close()


def test_an_unknown_host_key_is_refused(server: SshServer) -> None:
    """With its fingerprint and how to add it; nothing is added silently."""
    server.know()

    refused(
        lambda: board(server),
        rf"its host key \(ssh-ed25519 {re.escape(server.key.get_fingerprint())}\) is not known: "
        rf"run 'ssh -p {server.port} pi@127.0.0.1' once",
    )

    assert (server.user / ".ssh" / "known_hosts").read_text() == ""


@pytest.mark.parametrize("kind", ["ssh-ed25519", "ecdsa-sha2-nistp256"])
def test_a_changed_host_key_is_refused_otherwise(server: SshServer, kind: str) -> None:
    """Also one whose type changed: it says how to forget the old key, and what else it may mean."""
    server.know(asyncssh.generate_private_key(kind))

    refused(
        lambda: board(server),
        rf"its host key has CHANGED \(to ssh-ed25519 {re.escape(server.key.get_fingerprint())}\): .*"
        rf"ssh-keygen -R \[127.0.0.1\]:{server.port}' .*something else answers",
    )


def test_a_config_without_known_hosts_verifies_all_the_same(server: SshServer) -> None:
    """asyncssh alone would take any key then."""
    (server.user / ".ssh" / "config").write_text("Host *\n  UserKnownHostsFile none\n")

    refused(lambda: board(server), "its host key .* is not known")


def test_the_users_ssh_config_counts(server: SshServer) -> None:
    """An alias brings address, port, user and its own known hosts."""
    (server.user / ".ssh" / "known_hosts").rename(server.user / "elsewhere")
    (server.user / ".ssh" / "config").write_text(
        f"Host board\n  HostName 127.0.0.1\n  Port {server.port}\n  User pi\n  UserKnownHostsFile ~/elsewhere\n"
    )

    device = connect("ssh:board")

    assert device.run(["printf", "fine"], timeout_s=20) == "fine"
    device.close()


def test_a_jump_host_is_gone_through(server: SshServer) -> None:
    """ProxyJump of the config; here the board is its own jump host."""
    (server.user / ".ssh" / "config").write_text(
        f"Host board\n  HostName 127.0.0.1\n  Port {server.port}\n  User pi\n  ProxyJump {server.target}\n"
    )

    device = connect("ssh:board")

    assert len(server.connections) == 2
    assert device.run(["printf", "fine"], timeout_s=20) == "fine"
    device.close()


def test_keys_that_are_not_let_in_are_told(server: SshServer) -> None:
    """And how to add one."""
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(server.user / ".ssh" / "id_ed25519")

    refused(lambda: board(server), f"it lets in none of your keys .*'ssh-copy-id -p {server.port} pi@")


def test_what_does_not_answer_is_told_apart(server: SshServer) -> None:
    """No such name, nobody listening, somebody silent."""
    with socket.socket() as silent, socket.socket() as closed:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        closed.bind(("127.0.0.1", 0))

        refused(lambda: SshDevice("pi@no-such-host.invalid"), "no host is called no-such-host.invalid")
        refused(lambda: SshDevice(f"pi@127.0.0.1:{closed.getsockname()[1]}"), "it refuses connections: is sshd")
        refused(
            lambda: SshDevice(f"pi@127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.3), "no answer within 0.3 s"
        )


def test_without_asyncssh_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """None in sys.modules is an import that fails."""
    monkeypatch.setitem(sys.modules, "asyncssh", None)

    with pytest.raises(MissingExtra, match=r"asyncssh is not installed: pip install 'maestro-edge\[ssh\]'"):
        connect("ssh:pi@board")


def test_a_network_is_profiled_over_ssh(server: SshServer, tmp_path: Path) -> None:
    """Export here, LiteRT there, a table here: every layer dense and at its ranks, with the board's facts."""
    inputs = (torch.zeros(1, 64),)
    layers = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    model = order(layers.eval(), where=lambda name, module: name == "2")
    quick = MeasuringProtocol(
        rounds=2, noise_limit=100, warmup_ms=1, slice_ms=1, repeats=0, calm_runs=1, most_runs=1, pause_s=0
    )
    device = SshDevice(server.target, python=sys.executable)

    table = profile(model, inputs, load("litert"), device, folder=tmp_path / "run", protocol=quick)

    assert (table.runtime, table.source, table.device.cores) == ("litert", "measured", device.facts().cores)
    specs = [layer.spec for layer in trace(model, inputs).layers]
    assert all(table.row(spec, DENSE).ms > 0 for spec in specs) and table.ranks(specs[1]) == (16, DENSE)
    assert table.calibrations[0].networks
    device.close()
