"""A board with sshd and a phone with adbd, of this architecture or emulated; all ends with the tests."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path

import asyncssh

from tests.devices.debian import emulator, native_architecture, system

HERE = Path(__file__).parent
PACKAGES = ["adbd", "coreutils", "dash", "findutils", "grep", "libstdc++6", "openssh-server", "python3", "sed"]
WHEELS = ["ai-edge-litert==2.3.*", "numpy"]
ARM64 = (
    r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:"
    r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
)
"""How programs for 64-bit ARM begin, and the bits of it that count."""


class Process:
    """A program that is killed when these tests end, however they end."""

    def __init__(self, argv: list[str], log: Path, port: int) -> None:
        self.log, self.port = log, port
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *argv], stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
        self._wait_for_port()

    def kill(self) -> None:
        """End it at once, with all that it started, as a pulled cable or a dead battery would."""
        self._process.kill()
        self._process.wait()
        give_up = time.monotonic() + 10
        while answers(self.port):
            assert time.monotonic() < give_up, f"port {self.port} still answers"
            time.sleep(0.02)

    def _wait_for_port(self) -> None:
        give_up = time.monotonic() + 30
        while not answers(self.port):
            ended = self._process.poll()
            late = time.monotonic() > give_up
            assert ended is None and not late, f"nothing listens on port {self.port}: {self.log.read_text()}"
            time.sleep(0.05)


class Peer:
    """A small Debian on a port of the loopback; what is below `data` outlives its death."""

    def __init__(self, cache: Path, data: Path, architecture: str) -> None:
        self.data, self.port = data, free_port()
        self._root = system(cache, architecture, PACKAGES, WHEELS)
        self._qemu = "" if architecture == native_architecture() else str(emulator(cache, architecture))
        data.mkdir()
        self.prepare()
        self.start()

    def prepare(self) -> None:
        """Write what the daemon reads."""
        raise NotImplementedError

    def daemon(self) -> list[str]:
        """What runs in it."""
        raise NotImplementedError

    def start(self) -> None:
        """Switch it on, and wait until it listens."""
        alone = ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child"]
        enter = ["sh", str(HERE / "enter.sh"), str(self._root), str(self.data), self._qemu, ARM64]
        self._process = Process([*alone, *enter, *self.daemon()], self.data.with_suffix(".log"), self.port)

    def kill(self) -> None:
        """Switch it off without a warning."""
        self._process.kill()


class Phone(Peer):
    """Android's own adbd; getprop is ours, and there is nothing else of Android."""

    def prepare(self) -> None:
        (self.data / "bin").mkdir()
        shutil.copy(HERE / "getprop", self.data / "bin/getprop")
        (self.data / "bin/getprop").chmod(0o755)
        self.serial = f"127.0.0.1:{self.port}"
        self.name = f"adb:{self.serial}"

    def daemon(self) -> list[str]:
        return [f"ADBD_PORT={self.port}", "/usr/sbin/adbd"]


class Board(Peer):
    """OpenSSH's sshd, with a key that only these tests have; `python3` there has numpy and LiteRT."""

    def prepare(self) -> None:
        make_key(self.data / "host_key")
        settings = {
            "AuthorizedKeysFile": "/data/authorized_keys",
            "HostKey": "/data/host_key",
            "ListenAddress": f"127.0.0.1:{self.port}",
            "PasswordAuthentication": "no",
            "PidFile": "none",
            "StrictModes": "no",
            "Subsystem": "sftp internal-sftp",
            "UsePAM": "no",
        }
        if self._qemu:
            settings["SetEnv"] = "QEMU_CPU=cortex-a76"
        (self.data / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        self.name = f"ssh:user@127.0.0.1:{self.port}"

    def daemon(self) -> list[str]:
        return ["/usr/sbin/sshd", "-D", "-e", "-f", "/data/sshd_config"]

    def introduce(self, folder: Path) -> None:
        """Make the user of a `.ssh` folder and this board know each other, as `ssh-copy-id` does."""
        shutil.copy(folder / "id_ed25519.pub", self.data / "authorized_keys")
        with (folder / "known_hosts").open("a") as known:
            known.write(f"[127.0.0.1]:{self.port} {(self.data / 'host_key.pub').read_text()}")


def adb_program(cache: Path, folder: Path) -> Path:
    """An adb of the same version as adbd, as a program in `folder`, whatever the C library of this machine is."""
    root = system(cache, native_architecture(), ["adb"])
    (loader,) = root.glob("usr/lib*/ld-linux-*.so.*")
    (android,) = root.glob("usr/lib/*/android")
    folder.mkdir()
    program = folder / "adb"
    libraries = f"{android.parent}:{android}"
    program.write_text(f'#!/bin/sh\nexec "{loader}" --library-path "{libraries}" "{root}/usr/bin/adb" "$@"\n')
    program.chmod(0o755)
    return program


def make_key(path: Path) -> None:
    """What `ssh-keygen -t ed25519 -N '' -f path` writes, where there is no ssh-keygen."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    path.touch(mode=0o600)
    key.write_private_key(path)
    key.write_public_key(f"{path}.pub")


def free_port() -> int:
    """A port that nothing listens on; it is above 5555 to 5585, which adb would take for emulators."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(port: int) -> bool:
    """Whether something listens on the loopback."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
