"""A browser device in a real browser: Debian's Chromium, without a window, driven by Playwright."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from playwright.sync_api import Browser, BrowserContext, Page, ViewportSize, expect
from torch import nn

from maestro_edge.devices.browser import BrowserDevice, lan_address
from maestro_edge.errors import DeviceError
from maestro_edge.ordered import order
from maestro_edge.profiling import profile
from maestro_edge.runtimes.jobs import run_job
from maestro_edge.runtimes.litert import LiteRT
from maestro_edge.runtimes.protocol import MeasuringProtocol

QUICK = MeasuringProtocol(
    rounds=3, noise_limit=100, warmup_ms=2, slice_ms=2, repeats=0, calm_runs=1, most_runs=1, timeout_s=120
)
PHONE: ViewportSize = {"width": 390, "height": 844}


class SmallNet(nn.Module):
    """A convolution and a classifier: (1, 3, 16, 16) → (1, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 64, 3, padding=1)
        self.second = nn.Conv2d(64, 64, 3, padding=1)
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        logits: torch.Tensor = self.head(x.mean((2, 3)))
        return logits


@pytest.fixture
def context(chromium: Browser) -> Iterator[BrowserContext]:
    """The size of a phone's screen."""
    context = chromium.new_context(viewport=PHONE)
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext) -> Page:
    """A tab."""
    return context.new_page()


@pytest.fixture
def device(page: Page) -> Iterator[BrowserDevice]:
    """A device whose page opens as soon as it is announced."""
    device = BrowserDevice(host="127.0.0.1", announce=lambda url, qr: page.goto(url), wait_s=20)
    yield device
    device.close()


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """SmallNet as a .tflite file."""
    path = tmp_path / "small.tflite"
    LiteRT().export(SmallNet().eval(), (torch.randn(1, 3, 16, 16),), path)
    return path


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where SmallNet's files are kept, which are the same for one thread and for two."""
    return tmp_path_factory.mktemp("exports")


@pytest.mark.parametrize("threads", [1, 2])
def test_a_model_is_profiled_from_end_to_end(device: BrowserDevice, exports: Path, threads: int) -> None:
    """Probes and whole networks, measured in the page, become a table of LiteRT.js."""
    torch.manual_seed(0)
    model = order(SmallNet())
    protocol = QUICK.model_copy(update={"threads": threads})

    table = profile(model, (torch.randn(1, 3, 16, 16),), LiteRT(), device, folder=exports, protocol=protocol)

    assert (table.runtime, table.runtime_version, table.threads) == ("litert", "js-2.5.3", threads)
    assert table.device.name.startswith("chrome-")
    assert table.device.name.endswith(f"-linux-{os.cpu_count()}c")
    assert {row.method for row in table.rows} == {"probe"}
    assert all(row.ms > 0 for row in table.rows)
    (calibration,) = table.calibrations
    assert len(calibration.networks) >= 3
    assert all(network.timing.median_ms > 0 for network in calibration.networks)


def in_page(device: BrowserDevice, job: dict[str, Any], *, timeout_s: float = 60) -> Future[Any]:
    """Run a job while this thread, the only one that Playwright works in, looks at the page."""
    device.facts()  # opens the page
    return ThreadPoolExecutor(1).submit(run_job, device, job, timeout_s=timeout_s)


def time_job(device: BrowserDevice, file: Path, **options: Any) -> dict[str, Any]:
    files = {"net": device.push(file, "file-0.tflite")}
    job = {"task": "time", "runtime": "litert", "files": files, "threads": 1, "seed": 0}
    return {**job, "rounds": 2, "warmup_ms": 1, "slice_ms": 1, **options}


def test_an_error_is_seen_on_the_page_and_by_the_host(page: Page, device: BrowserDevice, tmp_path: Path) -> None:
    """A file that is no model; the page then waits for the next job."""
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(b"no model")

    job = in_page(device, time_job(device, broken))

    expect(page.get_by_role("alert")).to_be_visible(timeout=30_000)
    expect(page.get_by_role("status")).to_contain_text("Waiting for the computer", timeout=30_000)
    page.screenshot(path=tmp_path / "page-error.png")
    with pytest.raises(DeviceError, match="the runner failed: Error: net: Failed to load"):
        job.result(30)


def test_a_second_browser_sees_that_it_is_too_late(page: Page, device: BrowserDevice, chromium: Browser) -> None:
    """Its page says so, and the first is not disturbed."""
    page.goto(device.url)
    expect(page.get_by_role("status")).to_contain_text("Waiting for the computer")

    with chromium.new_context() as other:
        second = other.new_page()
        second.goto(device.url)

        expect(second.get_by_role("alert")).to_contain_text("another browser was here first")
    assert device.facts().cores == os.cpu_count()


def test_a_job_goes_on_in_a_page_that_is_reloaded(page: Page, device: BrowserDevice, network: Path) -> None:
    """As a phone does with a tab that it had put away."""
    job = in_page(device, time_job(device, network, rounds=60, slice_ms=50))
    expect(page.get_by_role("status")).to_contain_text("round", timeout=30_000)

    page.reload()

    while not job.done():
        page.wait_for_timeout(100)
    assert len(job.result()["samples_ns"]["net"]) >= 60


def test_without_isolation_one_thread_works_and_two_are_refused(page: Page, network: Path) -> None:
    """As over plain http on a LAN, where the timer is coarse too."""
    host = lan_address()
    if host.startswith("127."):
        pytest.fail("this machine has no address on a network: connect it to one")
    device = BrowserDevice(host=host, announce=lambda url, qr: page.goto(url))

    one = in_page(device, time_job(device, network))
    while not one.done():
        page.wait_for_timeout(100)
    two = ThreadPoolExecutor(1).submit(run_job, device, time_job(device, network, threads=2), timeout_s=60)
    expect(page.get_by_role("alert")).to_contain_text("2 threads need https", timeout=30_000)

    assert not device.facts().os.endswith("(isolated)")
    assert all(ns > 0 for ns in one.result()["samples_ns"]["net"])
    with pytest.raises(DeviceError, match="use 1 thread"):
        two.result(30)
    device.close()


def test_the_page_fits_a_phone_and_says_when_it_is_done(
    page: Page, device: BrowserDevice, network: Path, tmp_path: Path
) -> None:
    """Nothing is cut off; `page-*.png` in the test's folder is what a user sees."""
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if "Content Security" in message.text else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    job = in_page(device, time_job(device, network, rounds=60, slice_ms=50))
    expect(page.get_by_role("status")).to_contain_text("round", timeout=30_000)

    page.screenshot(path=tmp_path / "page-measuring.png")
    while not job.done():
        page.wait_for_timeout(100)
    device.close()

    expect(page.get_by_role("status")).to_have_text("Done. You can close this page.")
    page.screenshot(path=tmp_path / "page-done.png")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert errors == []
