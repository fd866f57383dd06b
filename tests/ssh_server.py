"""An ssh server in this process whose commands really run, in a folder that stands for the device."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import asyncssh

T = TypeVar("T")


class Files(asyncssh.SFTPServer):
    """Files of this machine; a test's subclass fails in its own way."""


class SshServer:
    """Listens on loopback in a thread of its own; `home` is the device's, `user` the home of who calls."""

    def __init__(self, home: Path, user: Path) -> None:
        self.home, self.user = home, user
        self.commands: list[str] = []
        self.connections: list[asyncssh.SSHServerConnection] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.key = asyncssh.generate_private_key("ssh-ed25519")
        self._client_key = asyncssh.generate_private_key("ssh-ed25519")
        ssh = user / ".ssh"
        ssh.mkdir(parents=True)
        self._client_key.write_private_key(ssh / "id_ed25519")
        self._listener = self._do(self._listen())
        self.port = self._listener.get_port()
        self.know(self.key)

    @property
    def target(self) -> str:
        return f"pi@127.0.0.1:{self.port}"

    def know(self, *keys: asyncssh.SSHKey) -> None:
        """What the user's known_hosts says of this server."""
        lines = [f"[127.0.0.1]:{self.port} {key.export_public_key().decode()}" for key in keys]
        (self.user / ".ssh" / "known_hosts").write_text("".join(lines))

    def serve(self, files: type[Files] | None) -> None:
        """Files in another way, or none at all, for connections to come."""

        async def update() -> None:
            self._listener.update(sftp_factory=files)

        self._do(update())

    def drop(self) -> None:
        """Cut every connection, as a pulled plug does."""
        self._loop.call_soon_threadsafe(self.cut)

    def stop(self) -> None:
        self._do(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    def cut(self) -> None:
        """The same from inside the server."""
        for connection in self.connections:
            connection.abort()
        self.connections.clear()

    async def _listen(self) -> asyncssh.SSHAcceptor:
        server = self

        class Listener(asyncssh.SSHServer):
            def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
                server.connections.append(conn)

            def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> bool:
                return True

        return await asyncssh.listen(
            "127.0.0.1",
            0,
            server_factory=Listener,
            server_host_keys=[self.key],
            authorized_client_keys=asyncssh.import_authorized_keys(self._client_key.export_public_key().decode()),
            process_factory=self._run,
            sftp_factory=Files,
            encoding=None,
        )

    async def _stop(self) -> None:
        self._listener.close()
        self.cut()
        await self._listener.wait_closed()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _run(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        """As sshd does: a login shell, whose input ends with the connection and which nobody kills."""
        assert process.command is not None
        self.commands.append(process.command)
        child = await asyncio.create_subprocess_exec(
            "sh",
            "-c",
            process.command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "HOME": str(self.home)},
        )
        assert child.stdin and child.stdout and child.stderr
        feeding = asyncio.create_task(_feed(process, child.stdin))
        await asyncio.gather(_pump(child.stdout, process.stdout), _pump(child.stderr, process.stderr))
        with contextlib.suppress(OSError):
            process.exit(await child.wait())
        await feeding


async def _feed(process: asyncssh.SSHServerProcess[bytes], child: asyncio.StreamWriter) -> None:
    with contextlib.suppress(asyncssh.Error, OSError):
        while data := await process.stdin.read(65536):
            child.write(data)
    child.close()


async def _pump(source: asyncio.StreamReader, target: Any) -> None:
    while data := await source.read(65536):
        with contextlib.suppress(asyncssh.Error, OSError):
            target.write(data)
