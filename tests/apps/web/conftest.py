"""The web app served with a bundle, and Chromium to open it; what cannot be brought fails."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from maestro_edge.devices.web_app import write_web_runtime
from maestro_edge.runtimes.litert import LiteRT
from tests.apps.web.site import CACHE, INPUT, WEB, WIDTHS, Net, Site, Visit, describe, serve, write_manifest
from tests.devices.programs import bring_npm, open_chromium

expect.set_options(timeout=90_000)  # of a machine that has other work too


@pytest.fixture(scope="session")
def app_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three LiteRT variants and one of ExecuTorch; `images` lie beside it.

    By the manifest the small one is a thousand times faster, so that no device keeps the slider's least budget.
    """
    folder = tmp_path_factory.mktemp("made") / "bundle"
    folder.mkdir()
    for name, width in WIDTHS.items():
        LiteRT().export(Net(width).eval(), (torch.zeros(INPUT.shape),), folder / f"{name}.tflite")
    (folder / "executorch-dense.pte").write_bytes(b"no page reads this")
    (folder.parent / "images").mkdir()
    for seed, (name, size) in enumerate([("small", (32, 32)), ("large", (90, 120)), ("grey", (40, 33))]):
        pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
        image = Image.fromarray(pixels).convert("L" if name == "grey" else "RGB")
        image.save(folder.parent / "images" / f"{name}.png")
    measured = {"litert-dense": (4.0, 0.9), "litert-half": (2.0, 0.8), "litert-small": (0.004, 0.7)}
    variants = [
        describe(folder / f"{name}.tflite", name, p50=p50, accuracy=accuracy)
        for name, (p50, accuracy) in measured.items()
    ]
    pte = folder / "executorch-dense.pte"
    return write_manifest(
        folder, describe(pte, "executorch-dense", p50=1.0, accuracy=0.95, runtime="executorch"), *variants
    )


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Debian's Chromium, unpacked below .cache."""
    programs = tmp_path_factory.mktemp("bin")
    with open_chromium(CACHE, programs) as opened:
        yield opened


@pytest.fixture(scope="session")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make web-app` makes."""
    folder = tmp_path_factory.mktemp("web")
    (CACHE / "home").mkdir(parents=True, exist_ok=True)
    (folder / "maestro-edge").symlink_to(CACHE / "home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        bring_npm(CACHE, folder)
        write_web_runtime(folder / "build")
    return folder / "build"


@pytest.fixture(scope="session")
def modules(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A page of the app's origin, for calls of its modules."""
    server = serve.make_server(WEB)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    page = browser.new_page()
    page.goto(f"http://127.0.0.1:{server.server_port}/")
    yield page
    page.close()
    server.shutdown()
    server.server_close()


@pytest.fixture
def site(tmp_path: Path, runtime: Path, app_bundle: Path) -> Iterator[Site]:
    site = Site(tmp_path, runtime, app_bundle)
    yield site
    site.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    visit = Visit(browser)
    yield visit
    visit.context.close()
