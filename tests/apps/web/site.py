"""What the web app's tests stand on: a small bundle, the app's folder served, and a tab that listens."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import threading
from collections.abc import Callable
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from playwright.sync_api import Browser, Page, expect
from torch import nn

from maestro_edge.values import DeviceFacts, InputSpec, Manifest, MeasuredMs, Variant

ROOT = Path(__file__).parents[3]
WEB = ROOT / "apps" / "web"
CACHE = ROOT / ".cache" / "lab"
LABELS = ("blue", "columns", "red", "rows")
INPUT = InputSpec(shape=(1, 3, 32, 32), mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26))
DEVICE = DeviceFacts(name="test-board", soc="none", arch="x86_64", cores=2, os="linux")
WIDTHS = {"litert-dense": 64, "litert-half": 16, "litert-small": 4}


def load_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


classify = load_file(ROOT / "apps" / "linux" / "classify.py")
serve = load_file(WEB / "serve.py")


class Net(nn.Module):
    """3x32x32 → 4: enough to tell a wrong layout or normalisation from a right one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(width)
        self.first = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(width * 256, len(LABELS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.head(x.flatten(1))  # type: ignore[no-any-return]


def describe(path: Path, name: str, *, p50: float, accuracy: float, **more: Any) -> Variant:
    content = path.read_bytes()
    values: dict[str, Any] = {
        "runtime": "litert",
        "runtime_version": "1.0",
        "precision": "fp32",
        "file": path.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "size_bytes": len(content),
        "budget_ms": None,
        "predicted_ms": None,
        "measured_ms": MeasuredMs(p50=p50, p90=1.25 * p50, n=100),
        "max_abs_error": 0,
        "sqnr_db": 200,
        "top1_agreement": 1,
        "params": 1,
        "macs": 1,
        "ranks": {"first": "dense", "second": "dense" if "dense" in name else 4},
    }
    return Variant(name=name, accuracy=accuracy, **(values | more))


def write_manifest(folder: Path, *variants: Variant) -> Path:
    manifest = Manifest(device=DEVICE, model="tiny", labels=LABELS, input=INPUT, variants=variants)
    manifest.save(folder / "manifest.json")
    return folder


class Site:
    """The app's folder with a bundle, which a test may change while it is served."""

    def __init__(self, folder: Path, runtime: Path, bundle: Path) -> None:
        names = shutil.ignore_patterns("build", "model", "__pycache__")
        self.folder = shutil.copytree(WEB, folder / "site", ignore=names)
        self.model = shutil.copytree(bundle, self.folder / "model")
        (self.folder / "build").symlink_to(runtime)
        self.server: ThreadingHTTPServer = serve.make_server(self.folder)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def edit_manifest(self, change: Callable[[dict[str, Any]], object]) -> None:
        path = self.model / "manifest.json"
        raw = json.loads(path.read_text())
        change(raw)
        path.write_text(json.dumps(raw))

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(10)


class Visit:
    """A tab of a browser of its own, and what it complained of."""

    def __init__(self, browser: Browser, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.asked: list[str] = []
        self.errors: list[str] = []
        self.context.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)

    def open(self, site: Site) -> Page:
        """The app, ready for an image."""
        self.page.goto(site.url)
        expect(self.page.get_by_role("status").first).to_contain_text("Ready")
        return self.page


def expected(bundle: Path, name: str, image: Path) -> dict[str, float]:
    """Labels and probabilities of the eager network, fed as the Linux app feeds."""
    manifest = Manifest.load(bundle / "manifest.json")
    fed = classify.prepare(classify.read_image(image), manifest.input.model_dump())
    with torch.no_grad():
        odds = Net(WIDTHS[name]).eval()(torch.from_numpy(fed)).softmax(1)[0]
    return dict(zip(manifest.labels, odds.tolist(), strict=True))
