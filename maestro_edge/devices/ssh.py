"""A Raspberry Pi, a Jetson or any POSIX host over ssh: asyncssh in one thread, behind calls that wait."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
import re
import shlex
import socket
import threading
import uuid
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from maestro_edge.devices import failures
from maestro_edge.devices.posix import FACTS_SCRIPT, guarded, parse_facts
from maestro_edge.devices.store import CLEAN, PREPARE, Store
from maestro_edge.errors import DeviceError, MissingExtra
from maestro_edge.values import DeviceFacts, write_atomically

if TYPE_CHECKING:
    import asyncssh

__all__ = ["SshDevice"]

T = TypeVar("T")

_TARGET = re.compile(r"(?:([^\s@:/-][^\s@:/]*)@)?(\w[\w.-]*|\[[0-9A-Fa-f:.]+\])(?::(\d{1,5}))?")
_KNOWN_HOSTS = {
    "UserKnownHostsFile": ("~/.ssh/known_hosts", "~/.ssh/known_hosts2"),
    "GlobalKnownHostsFile": ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2"),
}
"""Options of ssh_config and what they are by default."""

_STEP_S = 600.0
"""For our own scripts there; a connection that is silent is given up within a minute."""


class SshDevice:
    """`target` is USER@HOST:PORT as ssh knows it: ~/.ssh/config, keys, the agent and ProxyJump count.

    `python` names the interpreter that has the runtimes (python3 where it is empty), `cache` the folder of the
    device in which maestro-edge-device/ is made (~/.cache where it is empty). Files stay there by their hash.

    Raises:
        DeviceError: it cannot be reached, or its key is not known; each reason has a message of its own.
        MissingExtra: asyncssh is not installed.
    """

    def __init__(self, target: str, *, python: str = "", cache: str = "", timeout_s: float = 20.0) -> None:
        try:
            import asyncssh  # noqa: F401 - refused here, not at the first call
        except ImportError as error:
            raise MissingExtra("asyncssh", "ssh") from error
        self.name, self.python = f"ssh:{target}", ""
        self._host = _Host(self.name, target)
        self._wanted, self._cache, self._timeout_s = python or "python3", cache, timeout_s
        self._session = uuid.uuid4().hex[:12]
        self._connection: asyncssh.SSHClientConnection | None = None
        self._sftp: asyncssh.SFTPClient | None = None
        self._store: Store | None = None
        self._connect()

    def push(self, local: Path, remote: str) -> str:
        return self._connect().push(local, remote)

    def pull(self, remote: str, local: Path) -> None:
        store = self._connect()
        path = f"{store.work}/{store.inside(remote)}"
        content = self._wait(f"pulling {remote}", _download(self._files(), path))
        if content is None:
            raise _error(f"{self.name}: cannot pull {remote} (No such file or directory)")
        write_atomically(local, content)

    def run(self, argv: Sequence[str], *, timeout_s: float) -> str:
        store, name = self._connect(), failures.program(argv)
        if not argv[0]:
            raise DeviceError(f"{self.name} has no {self._wanted} with numpy: install them there, or name another")
        # A login shell may be no sh: it is only asked to start one.
        command = shlex.join(["sh", "-c", guarded(argv, folder=store.work)])
        code, output, message = self._wait(f"running {name}", _execute(self._live, command, timeout_s))
        if code is None:
            raise _error(f"{self.name}: {name} took longer than {timeout_s:g} s and was ended")
        if code == 97 and store.work in message:
            self._connection = None  # a new one makes the folder
            raise _error(f"{self.name}: its private folder is gone: run the same command again")
        if code:
            why = failures.reason(argv, code, message, folder=store.work, script=self._script)
            raise _error(f"{self.name}: {why}")
        return output

    def facts(self) -> DeviceFacts:
        self._connect()
        return parse_facts(self._script("reading facts", FACTS_SCRIPT), device=self.name)

    def close(self) -> None:
        """Remove this session's folder; files by hash stay for the next one."""
        if self._store is not None and self._connection is not None:
            self._leave(self._store.work)

    def clean(self) -> None:
        """Remove what any session of any version left there."""
        self._leave(self._connect().base)

    def _leave(self, folder: str) -> None:
        self._script("cleaning", CLEAN, folder)
        self._wait("closing", _close(self._live))
        self._connection = None

    @property
    def _live(self) -> asyncssh.SSHClientConnection:
        if self._connection is None:
            raise DeviceError(f"{self.name}: the connection was lost: run the same command again")
        return self._connection

    def _connect(self) -> Store:
        """The store over a living connection; a lost one is opened again."""
        if self._store is not None and self._connection is not None and not self._connection.is_closed():
            return self._store
        self._sftp = self._store = None
        self._connection = self._wait("connecting", self._host.connect(self._timeout_s))
        told = self._script("making a private folder", PREPARE, self._cache, self._session, self._wanted)
        found = dict(line.split("=", 1) for line in told.splitlines() if "=" in line)
        if not found.get("folder", "").startswith("/"):
            raise DeviceError(f"{self.name}: its shell told no private folder: is it a POSIX system?")
        self.python = found.get("python", "")
        self._store = Store(self.name, found["folder"], self._session, self._script, self._upload)
        return self._store

    def _script(self, step: str, script: str, *arguments: str) -> str:
        command = shlex.join(["sh", "-c", script, "sh", *arguments])
        code, output, message = self._wait(step, _execute(self._live, command, _STEP_S))
        if code != 0:
            raise _error(f"{self.name}: {step} failed with code {code}: {message}")
        return output

    def _upload(self, files: Mapping[str, Path]) -> str:
        return self._wait(f"pushing {len(files)} file(s)", _upload(self._files(), files))

    def _files(self) -> asyncssh.SFTPClient:
        if self._sftp is None:
            self._sftp = self._wait("opening sftp", _open_sftp(self._live))
        if self._sftp is None:
            raise DeviceError(f"{self.name}: {failures.NO_SFTP}")
        return self._sftp

    def _wait(self, step: str, work: Coroutine[Any, Any, T]) -> T:
        """What `work` returns; after a lost connection the next call opens another."""
        import asyncssh

        lost = asyncssh.DisconnectError, asyncssh.ChannelOpenError, asyncssh.SFTPConnectionLost, ConnectionError
        future = asyncio.run_coroutine_threadsafe(work, _loop())
        try:
            return future.result()
        except (asyncssh.SFTPNoConnection, *lost) as error:
            self._connection = None
            raise _error(
                f"{self.name}: the connection was lost while {step} ({error}): "
                "the same command goes on where it stopped"
            ) from error
        except (asyncssh.Error, OSError) as error:
            raise _error(f"{self.name}: {step} failed: {error}") from error
        except BaseException:
            future.cancel()  # Ctrl-C: what runs there ends too
            raise


class _Host:
    """Where to connect, and what known_hosts says of its key."""

    def __init__(self, name: str, target: str) -> None:
        match = _TARGET.fullmatch(target)
        if match is None:
            raise DeviceError(f"{name!r} names no device: write ssh:USER@HOST or ssh:USER@HOST:PORT, no password")
        self.name, self.user, self.host, self.port = name, match[1], match[2].strip("[]"), match[3]
        self.entry, self.known, self.offered = self.host, False, ""

    async def connect(self, timeout_s: float) -> asyncssh.SSHClientConnection:
        import asyncssh

        try:
            async with asyncio.timeout(timeout_s):
                return await self._open()
        except (asyncssh.Error, OSError, ValueError) as error:
            raise _error(f"{self.name}: {self._refusal(error, timeout_s)}") from error

    async def _open(self) -> asyncssh.SSHClientConnection:
        import asyncssh

        here = self

        class Client(asyncssh.SSHClient):
            def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
                here.offered = f"{key.get_algorithm()} {key.get_fingerprint()}"
                return False

        def match(host: str, address: str, port: int | None) -> Any:
            files = [cast("Sequence[str]", options.config.get(key, usual)) for key, usual in _KNOWN_HOSTS.items()]
            paths = map(os.path.expanduser, itertools.chain(*files))
            readable = [path for path in paths if os.access(path, os.R_OK)]
            found = asyncssh.match_known_hosts(asyncssh.read_known_hosts(readable), host, address, port)
            self.entry, self.known = f"[{host}]:{port}" if port else host, any(found)
            return found

        options = asyncssh.SSHClientConnectionOptions(
            config=(),
            host=self.host,
            port=int(self.port) if self.port else (),
            username=self.user or (),
            password_auth=False,
            kbdint_auth=False,
            keepalive_interval=15,
            # After the types that are known, as ssh does: or a key of another type is told as no key at all.
            server_host_key_algs="+ssh-ed25519,ecdsa-sha2-nistp256,rsa-sha2-512",
        )
        # Our own look-up: asyncssh takes a config file without known hosts for a wish not to verify.
        return await asyncssh.connect(self.host, options=options, known_hosts=match, client_factory=Client)

    def _refusal(self, error: Exception, timeout_s: float) -> str:
        import asyncssh

        port = f"-p {self.port} " if self.port else ""
        login = port + shlex.quote(f"{self.user}@{self.host}" if self.user else self.host)
        match error:
            case asyncssh.HostKeyNotVerifiable() if self.known:
                why = failures.CHANGED_KEY
            case asyncssh.HostKeyNotVerifiable():
                why = failures.UNKNOWN_KEY
            case asyncssh.PermissionDenied():
                why = failures.NOT_LET_IN
            case socket.gaierror():
                why = failures.NO_HOST
            case ConnectionRefusedError():
                why = failures.REFUSED
            case TimeoutError():
                why = failures.SILENT
            case _:
                why = "connecting failed: {error}"
        return why.format(
            error=error, host=self.host, login=login, entry=self.entry, offered=self.offered, timeout_s=timeout_s
        )


async def _execute(
    connection: asyncssh.SSHClientConnection, command: str, timeout_s: float
) -> tuple[int | None, str, str]:
    """Exit code (None: it took longer than `timeout_s`), output, and the last line of errors."""
    import asyncssh

    async with connection.create_process(command, encoding=None, request_pty=False) as process:
        try:
            done = await process.wait(timeout=timeout_s)
        except TimeoutError:
            process.stdin.write_eof()  # its guard ends the program
            with contextlib.suppress(TimeoutError):
                await process.wait(timeout=5)
            return None, "", ""
    if done.returncode is None:
        raise asyncssh.ConnectionLost("no exit code came")
    output, errors = cast("bytes", done.stdout), cast("bytes", done.stderr)
    lines = errors.decode(errors="replace").strip().splitlines()
    return done.returncode, output.decode(errors="replace"), lines[-1] if lines else "no message"


async def _open_sftp(connection: asyncssh.SSHClientConnection) -> asyncssh.SFTPClient | None:
    import asyncssh

    try:
        return await connection.start_sftp_client()
    except (asyncssh.ChannelOpenError, asyncssh.SFTPError):
        if connection.is_closed():
            raise
        return None


async def _upload(sftp: asyncssh.SFTPClient, files: Mapping[str, Path]) -> str:
    """Send files side by side; why the device refused one, or nothing."""
    import asyncssh

    places = asyncio.Semaphore(8)

    async def put(path: str, local: Path) -> None:
        async with places:
            await sftp.put(os.fsencode(local), path, follow_symlinks=True)

    try:
        await asyncio.gather(*(put(path, local) for path, local in files.items()))
    except (asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection):
        raise
    except asyncssh.SFTPError as error:
        return str(error)
    return ""


async def _download(sftp: asyncssh.SFTPClient, path: str) -> bytes | None:
    import asyncssh

    try:
        async with sftp.open(path, "rb") as file:
            return cast("bytes", await file.read())
    except (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath):
        return None


async def _close(connection: asyncssh.SSHClientConnection) -> None:
    connection.close()
    await connection.wait_closed()


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """One loop in one thread for all devices; connections keep themselves alive there."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="ssh", daemon=True).start()
    return loop


def _error(text: str) -> DeviceError:
    """Names and messages of others may have line ends."""
    return DeviceError(" ".join(text.split()))
