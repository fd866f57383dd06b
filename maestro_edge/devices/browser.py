"""A browser as a device: a phone, tablet or laptop opens a page on this network, and the page is the runner."""

from __future__ import annotations

import io
import json
import logging
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from maestro_edge.devices.litert_js import load_litert_js
from maestro_edge.devices.local import LocalDevice
from maestro_edge.devices.page_answers import About
from maestro_edge.devices.page_server import PageServer
from maestro_edge.devices.page_session import Job, PageSession
from maestro_edge.errors import DeviceError, MissingExtra
from maestro_edge.values import DeviceFacts, write_atomically

__all__ = ["BrowserDevice", "connect_browser", "lan_address", "qr_text"]

Announce = Callable[[str, str], object]
_LOG = logging.getLogger(__name__)


class BrowserDevice:
    """Files are served to one page, which measures them with LiteRT.js and posts the times back.

    `announce(url, qr_text)` is called once, when a page is first needed; then `wait_s` are given to open it.
    `say` hears when the page comes and goes. Threads need a secure context: with `host="127.0.0.1"` and
    `adb reverse tcp:PORT tcp:PORT` an Android phone has one.

    Raises:
        DeviceError: the address cannot be used, or LiteRT.js is neither in the cache nor to be fetched.
        MissingExtra: a package of the extra `browser` is not installed.
    """

    name = "browser"
    python = "browser"
    """What stands for an interpreter: the page."""

    def __init__(
        self,
        *,
        port: int = 0,
        host: str | None = None,
        announce: Announce | None = None,
        say: Callable[[str], None] = _LOG.warning,
        wait_s: float = 300.0,
        silence_s: float = 20.0,
        library: Callable[[], Mapping[str, bytes]] = load_litert_js,
    ) -> None:
        self._say, self._wait_s = say, wait_s
        self._announce = announce or (lambda url, _: say(f"browser: open {url} on the device to be measured"))
        self._files: dict[str, Path] = {}
        self._answers: dict[str, bytes] = {}
        self._about: About | None = None
        self._announced = False
        self._session = PageSession(silence_s)
        self._server = PageServer(self._session, self._files, library(), host or lan_address(), port)
        self._folder = LocalDevice()

    @property
    def url(self) -> str:
        """Where the page is; whoever knows it first may answer, so it is shown to the user alone."""
        return self._server.url

    def push(self, local: Path, remote: str) -> str:
        if local.is_dir():
            for item in sorted(local.iterdir()):
                self.push(item, f"{remote}/{item.name}")
            return remote
        known = self._files.get(remote)
        # Counted: what a page may ask for by name is never joined to a path.
        self._files[remote] = Path(self._folder.push(local, known.name if known else str(len(self._files))))
        return remote

    def pull(self, remote: str, local: Path) -> None:
        if remote not in self._answers:
            raise DeviceError(f"browser: cannot pull {remote}: the page posted no such file")
        write_atomically(local, self._answers.pop(remote))

    def run(self, argv: Sequence[str], *, timeout_s: float) -> str:
        if len(argv) != 4 or argv[0] != self.python or argv[2] not in self._files:
            raise DeviceError(f"browser: cannot run {argv[0]!r}: a page runs the jobs of the runner only")
        job = Job(argv[2], self._files[argv[2]].read_bytes())
        self._answers[argv[3]] = self._ask(job, timeout_s)
        return ""

    def facts(self) -> DeviceFacts:
        if self._about is None:
            content = self._ask(Job("facts", json.dumps({"task": "about"}).encode()), 60)
            failure = json.loads(content).get("error")
            if failure is not None:
                raise DeviceError(f"browser: the page told no facts: {failure}")
            self._about = About.model_validate_json(content)
        return self._about.facts()

    def close(self) -> None:
        self._session.close()
        self._server.close()
        self._folder.close()

    def _ask(self, job: Job, timeout_s: float) -> bytes:
        self._wait_for_page()
        answer = self._session.run(job, timeout_s, self._tell_of_silence)
        if answer is not None:
            return answer
        silent_s = self._session.silent_s
        if silent_s > self._session.silence_s:
            raise DeviceError(
                f"browser: the page went away {silent_s:.0f} s ago and did not come back in time: "
                f"start again, keep the page in front and the screen on"
            )
        raise DeviceError(f"browser: the page took longer than {timeout_s:g} s: allow more time or fewer rounds")

    def _wait_for_page(self) -> None:
        if not self._announced:
            self._announced = True
            self._announce(self.url, qr_text(self.url))
        if not self._session.wait_for_page(self._wait_s):
            raise DeviceError(
                f"browser: nobody opened {self.url} within {self._wait_s:g} s: open it in a browser on the same "
                "network; does a firewall stand in between?"
            )

    def _tell_of_silence(self) -> None:
        self._say(f"browser: the page is silent: open {self.url} again in the same browser, keep the screen on")


def connect_browser(name: str, announce: Announce | None = None) -> BrowserDevice:
    """The device of `browser`, `browser:PORT` or `browser:HOST:PORT`.

    Raises:
        DeviceError: the name is none of these, or its address cannot be used.
    """
    match = re.fullmatch(r"browser(?::(?:([^:]+):)?(\d{1,5}))?", name)
    if match is None or int(match[2] or 0) > 65535:
        raise DeviceError(f"no device {name!r}: write browser, browser:PORT or browser:HOST:PORT")
    return BrowserDevice(host=match[1], port=int(match[2] or 0), announce=announce)


def qr_text(url: str) -> str:
    """The address as a QR code of half blocks, light on dark, as terminals are.

    Raises:
        MissingExtra: segno is not installed.
    """
    try:
        import segno
    except ImportError as error:
        raise MissingExtra("segno", "browser") from error
    text = io.StringIO()
    segno.make(url, error="l", micro=False).terminal(text, compact=True, border=2)
    return text.getvalue()


def lan_address() -> str:
    """This machine's address on its network; 127.0.0.1 where it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: it only picks the address that would send
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])
