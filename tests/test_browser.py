"""The browser device against a client in a thread that plays the page; a real one is in tests/devices."""

from __future__ import annotations

import base64
import hashlib
import http.client
import io
import json
import shutil
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from maestro_edge.devices import connect
from maestro_edge.devices.browser import BrowserDevice, lan_address, qr_text
from maestro_edge.devices.litert_js import PACKAGES, Package, load_litert_js
from maestro_edge.devices.page_answers import About, check_answer
from maestro_edge.errors import DeviceError
from maestro_edge.runtimes.jobs import run_job, versions_on
from maestro_edge.runtimes.measuring import run_time
from maestro_edge.runtimes.protocol import MeasuringProtocol

PIXEL = "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 Chrome/138.0.0.0 Mobile Safari/537.36"
ABOUT: dict[str, Any] = {
    "versions": {"litert": "js-2.5.3"},
    "page": {
        "user_agent": PIXEL,
        "cores": 8,
        "memory_gib": 8.0,
        "gpu": "Mali-G715",
        "model": None,
        "isolated": False,
        "features": ["relaxed-simd"],
    },
}


class Reply(NamedTuple):
    """What the server answered."""

    status: int
    body: bytes
    headers: http.client.HTTPMessage


class FakePage:
    """Speaks to the server as profile.js does; `answers` gives the answer to a job."""

    def __init__(self, url: str, answers: Callable[[dict[str, Any]], Any] | None = None) -> None:
        parts = urlsplit(url)
        self.address, self.root = (str(parts.hostname), parts.port), parts.path
        self.cookie, self.visit = "", "0"
        self.answers = answers or play
        self.thread = threading.Thread(target=self.serve, daemon=True)

    def ask(self, method: str, path: str, body: bytes | None = None, *, root: str | None = None) -> Reply:
        connection = http.client.HTTPConnection(*self.address, timeout=20)
        try:
            connection.request(method, (self.root if root is None else root) + path, body, {"Cookie": self.cookie})
            reply = connection.getresponse()
            return Reply(reply.status, reply.read(), reply.headers)
        finally:
            connection.close()

    def claim(self) -> Reply:
        reply = self.ask("POST", "claim")
        if reply.status == 200:
            self.cookie, self.visit = reply.headers["Set-Cookie"].partition(";")[0], reply.body.decode()
        return reply

    def job(self) -> Reply:
        return self.ask("GET", f"job?visit={self.visit}")

    def answer(self, name: str, content: bytes) -> Reply:
        return self.ask("POST", f"answer/{name}?visit={self.visit}", content)

    def serve(self) -> None:
        self.claim()
        while (reply := self.job()).status in (200, 204):
            if reply.status == 200:
                self.answer(reply.headers["X-Job"], json.dumps(self.answers(json.loads(reply.body))).encode())


def play(job: dict[str, Any]) -> Any:
    """The answer of a device that takes 1 ms for everything."""
    return (
        ABOUT
        if job["task"] == "about"
        else {"samples_ns": {name: [1000] * job["rounds"] for name in job["files"]}}
    )


class Opened(NamedTuple):
    """A device whose page has claimed the session, and what the device said."""

    device: BrowserDevice
    page: FakePage
    said: list[str]


def make(**options: Any) -> BrowserDevice:
    return BrowserDevice(host="127.0.0.1", library=lambda: {"index.js": b"lib"}, **options)


@pytest.fixture
def opened() -> Iterator[Opened]:
    """The page is played by the test itself."""
    said: list[str] = []
    device = make(silence_s=0.2, say=said.append, announce=lambda url, qr: None)
    page = FakePage(device.url)
    page.claim()
    yield Opened(device, page, said)
    device.close()


@pytest.fixture
def served() -> Iterator[BrowserDevice]:
    """A page opens as soon as it is announced and answers every job."""
    device = make(announce=lambda url, qr: FakePage(url).thread.start())
    yield device
    device.close()


def in_thread(call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Run what waits for a page; the list gets its result or its error."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(call())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, found


def time_job(device: BrowserDevice, timeout_s: float = 10) -> tuple[threading.Thread, list[Any]]:
    job = {"task": "time", "runtime": "litert", "files": {"a": "file-0"}, "rounds": 2, "threads": 1}
    return in_thread(lambda: run_job(device, job, timeout_s=timeout_s))


def test_a_runtime_measures_through_the_page(served: BrowserDevice, tmp_path: Path) -> None:
    """The same calls as for a device with Python."""
    file = tmp_path / "probe.tflite"
    file.write_bytes(b"x")

    timings = run_time("litert", served, {"{}": file}, MeasuringProtocol(rounds=4))

    assert timings["{}"].samples_ms == (0.001,) * 4
    assert versions_on(served) == {"litert": "js-2.5.3"}
    assert served.facts().name == "chrome-138-android-8c"


def test_the_page_gets_the_files_that_were_pushed_and_no_other(opened: Opened, tmp_path: Path) -> None:
    """A name is looked up, never joined to a path; a file pushed again replaces the first."""
    file = tmp_path / "probe.tflite"
    for content in (b"old", b"new"):
        file.write_bytes(content)
        opened.device.push(file, "file-0.tflite")
        file.unlink()

    assert opened.page.ask("GET", "files/file-0.tflite").body == b"new"
    for wrong in (
        "files/file-1",
        "files/../page.css",
        "files/..%2F..%2Fbrowser.py",
        "../browser.py",
        "%2Fetc%2Fpasswd",
    ):
        assert opened.page.ask("GET", wrong).status == 404
    assert FakePage(opened.device.url).ask("GET", "files/file-0.tflite").status == 403


@pytest.mark.parametrize("root", ["/", "", "/favicon.ico", "/x/", "//", "/%C3%A9/"])
def test_without_the_token_nothing_is_found(opened: Opened, root: str) -> None:
    """Not even that something is there."""
    for path in ("", "claim", "job", "litert/index.js"):
        assert opened.page.ask("GET", path, root=root or "/").status == 404


def test_a_token_is_whole_and_not_guessed(opened: Opened) -> None:
    """22 characters at random; a part of it, or it without its slash, opens nothing."""
    root = opened.page.root

    assert len(root) == 24
    assert opened.page.ask("GET", "", root=root).status == 200
    for wrong in (root[:-1], root[:-2] + "/", root[:-1] + "x/", root.swapcase(), "/" + root):
        assert opened.page.ask("GET", "", root=wrong).status == 404


def test_the_page_and_its_headers(opened: Opened) -> None:
    """Isolated, so that threads work; a content policy without inline scripts; nothing cached, no token leaked."""
    for path, kind in (
        ("", "text/html"),
        ("profile.js", "text/javascript"),
        ("litert/index.js", "text/javascript"),
    ):
        reply = opened.page.ask("GET", path)

        assert (reply.status, reply.headers.get_content_type()) == (200, kind)
        assert reply.headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert reply.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        assert reply.headers["Referrer-Policy"] == "no-referrer"
        assert reply.headers["Cache-Control"] == "no-store"
        assert "default-src 'none'" in reply.headers["Content-Security-Policy"]
        assert "unsafe-inline" not in reply.headers["Content-Security-Policy"]


def test_a_second_browser_may_not_join(opened: Opened) -> None:
    """Whoever photographs the QR code comes too late, whatever cookie is invented."""
    second = FakePage(opened.device.url)
    second.cookie = "maestro_edge=guess"

    assert second.claim().status == 409
    second.visit = opened.page.visit
    assert [second.job().status, second.answer("facts", b"{}").status] == [403, 403]
    assert second.ask("POST", f"beat?visit={second.visit}").status == 403
    assert opened.page.ask("POST", f"beat?visit={opened.page.visit}").status == 204


def test_the_session_is_in_a_cookie_that_no_script_reads(opened: Opened) -> None:
    """It is sent to this address only."""
    cookie = opened.page.claim().headers["Set-Cookie"]

    assert "HttpOnly" in cookie
    assert f"Path={opened.page.root}" in cookie
    assert "SameSite=strict" in cookie


GARBAGE = {
    b"": "Invalid JSON",
    b"[]": "top level",
    b'{"samples_ns": {"a": [1, 2]}} x': "Invalid JSON",
    b'{"samples_ns": {"a": [1, NaN]}}': "samples_ns.a.1",
    b'{"samples_ns": {"a": [1, Infinity]}}': "samples_ns.a.1",
    b'{"samples_ns": {"a": [1, 1e999]}}': "samples_ns.a.1",
    b'{"samples_ns": {"a": [1, -5]}}': "samples_ns.a.1",
    b'{"samples_ns": {"a": [1, 0]}}': "samples_ns.a.1",
    b'{"samples_ns": {"a": [1, 1.5]}}': "samples_ns.a.1",
    b'{"samples_ns": {"a": [1, "2"]}}': "samples_ns.a.1",
    b'{"samples_ns": {"a": [1, true]}}': "samples_ns.a.1",
    b'{"samples_ns": {"a": [1, 2], "b": [1, 2]}}': "times of 2 files",
    b'{"samples_ns": {}}': "times of 0 files",
    b'{"samples_ns": {"a": []}}': "0 samples of 'a' in 2 rounds",
    b'{"samples_ns": {"a": [1, 2, 3]}}': "3 samples of 'a' in 2 rounds",
    b'{"samples_ns": {"a": [' + b"1, " * 41 + b"1]}}": "42 samples of 'a' in 2 rounds",
    b'{"samples_ns": {"a": [1, 3600000000000]}}': "3.6e+03 s in the",
    b'{"samples_ns": {"a": [1, 2]}, "more": 1}': "more",
    b'{"error": 5}': "samples_ns: Field required",
    b'{"error": ""}': "samples_ns: Field required",
    json.dumps(ABOUT).encode(): "no answer to 'time'",
    b'{"samples_ns": {"a\\n": [1, "2"]}}': "samples_ns.a .1",
    b"\xff\xfe": "Invalid JSON",
    b"[" * 100_000: "Invalid JSON",
}


def test_garbage_is_refused_and_the_job_goes_on(opened: Opened) -> None:
    """Each with one line that says why; the right answer that follows still counts."""
    thread, found = time_job(opened.device)
    job = opened.page.job().headers["X-Job"]

    for garbage, reason in GARBAGE.items():
        reply = opened.page.answer(job, garbage)
        assert (reply.status, reply.body.count(b"\n")) == (422, 0), garbage
        assert reason in reply.body.decode(), garbage
    assert opened.page.answer("other.job.json", b'{"samples_ns": {"a": [5, 6]}}').status == 404
    assert opened.page.answer(job, b" " * (4 * 2**20 + 1)).status == 413
    assert opened.page.answer(job, b'{"samples_ns": {"a": [5, 6]}}').status == 204
    thread.join(5)

    assert found == [{"samples_ns": {"a": [5, 6]}}]
    assert opened.page.answer(job, b'{"samples_ns": {"a": [7, 8]}}').status == 404


def test_a_page_that_comes_back_gets_the_job_again(opened: Opened) -> None:
    """The user hears that it went; its older self may neither ask nor answer."""
    thread, found = time_job(opened.device)
    job = opened.page.job().headers["X-Job"]
    thread.join(1)  # longer than silence_s and the 0.5 s between two looks
    old = opened.page.visit

    opened.page.claim()
    again = opened.page.job()
    late = opened.page.ask("POST", f"answer/{job}?visit={old}", b'{"samples_ns": {"a": [1, 1]}}')
    opened.page.answer(job, b'{"samples_ns": {"a": [5, 6]}}')
    thread.join(5)

    assert (again.status, again.headers["X-Job"], late.status) == (200, job, 409)
    assert found == [{"samples_ns": {"a": [5, 6]}}]
    assert [line.partition(":")[2][:19] for line in opened.said] == [" the page is silent"]


def test_a_page_that_stays_away_is_an_error_with_the_remedy(opened: Opened) -> None:
    """The job is taken back: a page that wakes up later finds none."""
    thread, found = time_job(opened.device, timeout_s=0.7)
    opened.page.job()
    thread.join(5)

    with pytest.raises(DeviceError, match=r"went away .* keep the page in front and the screen on"):
        raise found[0]
    assert opened.page.answer("facts", b"{}").status == 404


def test_a_page_that_is_slow_is_told_from_one_that_is_gone() -> None:
    """Signs of life alone do not extend the time."""
    device = make(announce=lambda url, qr: FakePage(url).claim())

    with pytest.raises(DeviceError, match=r"took longer than 0\.3 s: allow more time"):
        run_job(device, {"task": "about"}, timeout_s=0.3)

    device.close()


def test_an_error_on_the_page_ends_the_job(opened: Opened) -> None:
    """Its words reach the user."""
    thread, found = time_job(opened.device)
    opened.page.answer(opened.page.job().headers["X-Job"], b'{"error": "2 threads need https"}')
    thread.join(5)

    with pytest.raises(DeviceError, match="browser: the runner failed: 2 threads need https"):
        raise found[0]


def test_nobody_opens_the_page() -> None:
    """The address is told once, with its QR code; then the wait ends."""
    told: list[tuple[str, str]] = []
    device = make(wait_s=0.05, announce=lambda url, qr: told.append((url, qr)))

    for _ in range(2):
        with pytest.raises(DeviceError, match=r"nobody opened http://127\.0\.0\.1:\d+/.* within 0\.05 s"):
            device.facts()

    device.close()
    assert told == [(device.url, qr_text(device.url))]
    assert "█" in told[0][1]


def test_a_page_that_waits_hears_that_all_is_done(opened: Opened) -> None:
    """410, which profile.js shows as done."""
    replies: list[Reply] = []
    thread = threading.Thread(target=lambda: replies.append(opened.page.job()))
    thread.start()

    opened.device.close()
    thread.join(5)

    assert [reply.status for reply in replies] == [410]


def test_only_jobs_of_the_runner_run(opened: Opened, tmp_path: Path) -> None:
    """A page is no shell, and has no files but its answers."""
    with pytest.raises(DeviceError, match="cannot run 'sh'"):
        opened.device.run(["sh", "-c", "true"], timeout_s=1)
    with pytest.raises(DeviceError, match="cannot pull x"):
        opened.device.pull("x", tmp_path / "x")


def test_a_port_in_use_is_named() -> None:
    """With what to do."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]

        with pytest.raises(DeviceError, match=f"port {port} of 127.0.0.1 cannot be used"):
            make(port=port)


@pytest.mark.parametrize(
    "name", ["browser:", "browser:x", "browser:70000", "browser:a:b", "browser::1", "browsers"]
)
def test_a_name_that_is_none_of_a_browser(name: str) -> None:
    """Refused before anything is bound or fetched."""
    with pytest.raises(DeviceError, match="no device"):
        connect(name)


def test_the_lan_address_is_one_of_this_machine() -> None:
    """It can be bound."""
    with socket.create_server((lan_address(), 0)):
        pass


MAC = "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7)"
AGENTS = {
    PIXEL: ("chrome-138-android-8c", "Android, chrome 138"),
    PIXEL.replace("Android 10; K", "Android 14; SM-S911B"): ("chrome-138-android-8c", "Android 14, chrome 138"),
    f"{MAC} AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.1 Safari/605.1.15": (
        "safari-18-macos-8c",
        "macOS, safari 18",
    ),
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 Version/17.5 Safari/604.1": (
        "safari-17-ios-8c",
        "iOS 17.5, safari 17",
    ),
    "Mozilla/5.0 (Android 14; Mobile; rv:128.0) Gecko/128.0 Firefox/128.0": (
        "firefox-128-android-8c",
        "Android 14, firefox 128",
    ),
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) Chrome/138.0.0.0 Safari/537.36 Edg/138.0.0.0": (
        "edge-138-windows-8c",
        "Windows, edge 138",
    ),
    "curl": ("browser-unknown-8c", "unknown, browser"),
}


@pytest.mark.parametrize("agent", AGENTS)
def test_facts_of_a_user_agent(agent: str) -> None:
    """Browser, system and cores make the name; what the browser says in full is kept."""
    about = About.model_validate(ABOUT | {"page": ABOUT["page"] | {"user_agent": agent}})

    facts = about.facts()

    assert (facts.name, facts.os) == AGENTS[agent]
    assert (facts.build, facts.soc, facts.arch) == (agent, "Mali-G715", "wasm32+relaxed-simd")


@pytest.mark.parametrize("field, value", [("cores", 0), ("cores", "8"), ("memory_gib", -1.0), ("user_agent", "")])
def test_facts_that_cannot_be_are_refused(field: str, value: Any) -> None:
    """They name files and stand in tables."""
    answer = json.dumps(ABOUT | {"page": ABOUT["page"] | {field: value}}).encode()

    with pytest.raises(ValueError, match=f"page.{field}"):
        check_answer({"task": "about"}, answer, elapsed_s=1)


def package(folder: Path, content: bytes = b'from "@litertjs/wasm-utils";') -> Package:
    """A tarball with one file, where `fetch_from` finds it."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name in ("package/dist/index.js", "package/other.js"):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    (folder / "lib-1.0.tgz").write_bytes(archive.getvalue())
    digest = base64.b64encode(hashlib.sha512(archive.getvalue()).digest()).decode()
    return Package("lib", "1.0", digest, {"package/dist/index.js": "index.js"})


def fetch_from(folder: Path) -> Callable[[Package, Path], None]:
    """What npm does, from a folder."""

    def fetch(package: Package, into: Path) -> None:
        shutil.copyfile(folder / package.tarball, into / package.tarball)

    return fetch


def test_the_library_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the cache gives it, with the import that a browser resolves; other files of it are not served."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pinned = package(tmp_path)

    first = load_litert_js([pinned], fetch_from(tmp_path))
    (tmp_path / "lib-1.0.tgz").unlink()

    assert first == load_litert_js([pinned], fetch_from(tmp_path)) == {"index.js": b'from "./wasm-utils.js";'}


def test_a_damaged_cache_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not have the pinned sum is never served."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pinned = package(tmp_path)
    load_litert_js([pinned], fetch_from(tmp_path))
    cached = tmp_path / "cache" / "maestro-edge" / "lib-1.0.tgz"
    cached.write_bytes(cached.read_bytes()[:-1])

    assert load_litert_js([pinned], fetch_from(tmp_path))
    assert [path.name for path in cached.parent.iterdir()] == ["lib-1.0.tgz"]


def test_a_package_that_is_not_the_pinned_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pinned = package(tmp_path)
    package(tmp_path, b"evil")

    with pytest.raises(DeviceError, match="not the pinned package"):
        load_litert_js([pinned], fetch_from(tmp_path))
    assert not (tmp_path / "cache").exists()


def test_names_of_tarballs_are_those_of_npm() -> None:
    """The scope becomes a part of the file's name."""
    assert [package.tarball for package in PACKAGES] == [
        "litertjs-core-2.5.3.tgz",
        "litertjs-wasm-utils-2.5.3.tgz",
    ]


def test_offline_without_a_cache_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that is wanted, and where to put it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pinned = package(tmp_path)
    (tmp_path / "lib-1.0.tgz").unlink()

    with pytest.raises(
        DeviceError,
        match=r"go online once, or run 'npm pack lib@1.0' elsewhere and put its file at .*cache.*lib-1.0.tgz",
    ):
        load_litert_js([pinned], fetch_from(tmp_path))
