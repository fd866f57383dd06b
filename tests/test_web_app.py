"""The web app without a browser: its files fit together, and what serves and completes them; see tests/apps."""

from __future__ import annotations

import http.client
import importlib.util
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from maestro_edge.devices.web_app import write_web_runtime
from maestro_edge.errors import DataError

WEB = Path(__file__).parents[1] / "apps" / "web"
LIBRARY = {"index.js": b"library", "wasm/a.wasm": b"\0asm"}


def load_serve() -> ModuleType:
    spec = importlib.util.spec_from_file_location("serve", WEB / "serve.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    """What `make web-app` makes, with another library."""
    write_web_runtime(tmp_path / "build", library=lambda: LIBRARY)
    return tmp_path / "build"


@pytest.fixture
def address(runtime: Path) -> Iterator[tuple[str, int]]:
    """serve.py at work on the folder around `build`."""
    server = load_serve().make_server(runtime.parent)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield "127.0.0.1", server.server_port
    server.shutdown()
    server.server_close()
    thread.join(10)


def imported(path: Path) -> set[str]:
    """The relative names that a module imports."""
    return set(re.findall(r"""(?:from |import\()"(\.[^"]+)\"""", path.read_text()))


def test_what_the_modules_import_is_there(runtime: Path) -> None:
    """A name that is wrong would be seen in a browser only."""
    for path in [*WEB.glob("*.js"), *runtime.glob("*.js")]:
        for name in imported(path):
            folder = runtime if name.startswith("./build/") else path.parent
            assert (folder / name.removeprefix("./build/")).is_file(), f"{path.name} imports {name}"


def test_the_service_worker_keeps_the_whole_page() -> None:
    """A file that it does not list is missing without a network."""
    listed = re.search(r"const PAGE = \[(.*?)\]", (WEB / "sw.js").read_text(), re.DOTALL)
    ends = {".js", ".css", ".svg", ".webmanifest"}

    assert listed is not None
    found = set(re.findall(r'"([^"]+)"', listed[1]))

    assert found == {"./", *(path.name for path in WEB.iterdir() if path.suffix in ends)} - {"sw.js"}


def test_the_page_names_no_other_origin() -> None:
    """No CDN, no fonts, no counters."""
    text = {path.name: path.read_text() for path in WEB.iterdir() if path.suffix in {".js", ".css", ".html"}}

    assert len(text) > 10
    assert [name for name, content in text.items() if re.search(r"https?://", content)] == []


def test_every_element_that_a_script_wants_is_on_the_page() -> None:
    """And every label is of a control that is there."""
    html, script = (WEB / "index.html").read_text(), (WEB / "view.js").read_text()
    listed = re.search(r"const ids = \[(.*?)\]", script, re.DOTALL)
    ids = re.findall(r'\bid="([^"]+)"', html)

    assert listed is not None
    assert set(re.findall(r'"([^"]+)"', listed[1])) <= set(ids)
    assert set(re.findall(r'(?:for|aria-labelledby)="([^"]+)"', html)) <= set(ids)
    assert len(ids) == len(set(ids))


def test_the_runtime_is_the_library_and_the_pages_own_modules(runtime: Path) -> None:
    """The same two that the profiler's page measures with."""
    page = Path(__file__).parents[1] / "maestro_edge" / "devices" / "page"

    found = {
        path.relative_to(runtime).as_posix(): path.read_bytes() for path in runtime.rglob("*") if path.is_file()
    }

    shared = {name: (page / name).read_bytes() for name in ("program.js", "measure.js")}
    assert found == shared | {f"litert/{name}": content for name, content in LIBRARY.items()}


def test_a_folder_that_cannot_be_written_is_an_error_of_ours(tmp_path: Path) -> None:
    """With what to do."""
    (tmp_path / "file").touch()

    with pytest.raises(DataError, match="choose a folder you may write to"):
        write_web_runtime(tmp_path / "file" / "build", library=lambda: LIBRARY)


@pytest.mark.parametrize(
    ("path", "status", "kind"),
    [
        ("/build/program.js", 200, "text/javascript"),
        ("/build/litert/wasm/a.wasm", 200, "application/wasm"),
        ("/build/", 404, "text/html"),
        ("/../../etc/passwd", 404, "text/html"),
    ],
)
def test_files_are_served_isolated_and_folders_are_not_listed(
    address: tuple[str, int], path: str, status: int, kind: str
) -> None:
    """With the headers that threads need, and types that browsers insist on."""
    connection = http.client.HTTPConnection(*address, timeout=20)
    connection.request("GET", path)

    reply = connection.getresponse()

    assert (reply.status, reply.headers.get_content_type()) == (status, kind)
    assert reply.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert reply.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    connection.close()
