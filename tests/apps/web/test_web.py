"""The web app in Chromium, as a user has it: served by its own serve.py, with LiteRT.js and a bundle beside it."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from playwright.sync_api import Locator, Page, expect

from maestro_edge.runtimes.litert import LiteRT
from maestro_edge.runtimes.silence import silence
from maestro_edge.values import Precision
from tests.apps.web.site import INPUT, LABELS, Net, Site, Visit, classify, describe, expected, write_manifest

KEPT = "caches.keys().then((names) => caches.open(names.find((name) => name.includes('files'))))"


def shown(page: Page) -> dict[str, float]:
    """Labels and probabilities on the page, the likeliest first."""
    rows = page.locator("#top li")
    expect(rows.first).to_be_visible(timeout=60_000)
    return {
        row.locator("span").inner_text(): float(row.get_attribute("data-probability") or "nan")
        for row in rows.all()
    }


def give(page: Page, image: Path) -> None:
    page.locator("#file").set_input_files(image)
    expect(page.get_by_role("img", name="Image of")).to_be_visible(timeout=60_000)


def running(page: Page) -> Locator:
    return page.locator("#variant")


def kept_files(page: Page) -> int:
    """How many of the bundle's files the browser has."""
    found: int = page.evaluate(f"{KEPT}.then((cache) => cache.keys()).then((keys) => keys.length)")
    return found


# --- results


@pytest.mark.parametrize("name", ["small", "large", "grey"])
def test_probabilities_equal_eager(site: Site, visit: Visit, app_bundle: Path, name: str) -> None:
    """Image file to softmax through the page, whatever the image's size; without complaints or other origins."""
    image = app_bundle.parent / "images" / f"{name}.png"
    page = visit.open(site)

    give(page, image)

    expect(running(page)).to_have_text("litert-dense")
    found, wanted = shown(page), expected(app_bundle, "litert-dense", image)
    assert next(iter(found)) == max(wanted, key=lambda label: wanted[label])
    assert found == pytest.approx(wanted, abs=1e-3)
    assert visit.errors == []
    assert {url for url in visit.asked if not url.startswith((site.url, "blob:"))} == set()


def test_the_slider_changes_the_variant(site: Site, visit: Visit, app_bundle: Path, tmp_path: Path) -> None:
    """By keyboard, to both ends; `web-*.png` in the test's folder is what a user sees, on a phone too."""
    image = app_bundle.parent / "images" / "large.png"
    page = visit.open(site)
    give(page, image)
    expect(page.locator("#p50")).to_contain_text("ms")

    page.get_by_label("Budget for one run").press("Home")

    expect(running(page)).to_have_text("litert-small")
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("status").first).to_have_text("Paused.")
    assert shown(page) == pytest.approx(expected(app_bundle, "litert-small", image), abs=1e-3)
    page.screenshot(path=tmp_path / "web-desktop.png", full_page=True)
    page.set_viewport_size({"width": 390, "height": 844})
    page.screenshot(path=tmp_path / "web-phone.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.get_by_label("Budget for one run").press("End")
    expect(running(page)).to_have_text("litert-dense")


def test_all_variants_are_timed_as_the_profiler_times(site: Site, visit: Visit) -> None:
    """One button; what no page runs is left as it was."""
    page = visit.open(site)

    page.get_by_role("button", name="Measure all here").click()

    rows = page.locator("#rows tr")
    expect(rows.nth(3)).to_contain_text("p90")
    assert ["p90" in text for text in rows.all_inner_texts()] == [False, True, True, True]
    assert visit.errors == []


def test_an_image_is_dropped_and_the_camera_runs(site: Site, visit: Visit, app_bundle: Path) -> None:
    """Chromium's own test picture stands for the camera's."""
    image = base64.b64encode((app_bundle.parent / "images" / "small.png").read_bytes()).decode()
    page = visit.open(site)

    page.evaluate(
        """async ([image]) => {
        const data = new DataTransfer();
        const bytes = Uint8Array.from(atob(image), (letter) => letter.charCodeAt(0));
        data.items.add(new File([bytes], "small.png", {type: "image/png"}));
        document.dispatchEvent(new DragEvent("drop", {dataTransfer: data, cancelable: true}));
    }""",
        [image],
    )

    expect(page.get_by_role("img", name="Image of 32 × 32 pixels")).to_be_visible()
    page.get_by_role("button", name="Camera").click()
    expect(page.get_by_role("img", name="Image of 640 × 480 pixels")).to_be_visible()
    page.locator("#file").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": b"no image"})
    expect(page.locator("#notice")).to_contain_text("a.png is no image that this browser reads")


def test_variants_of_one_file_run_their_entries(site: Site, visit: Visit, app_bundle: Path) -> None:
    """An elastic file: each variant is a signature of it. A file that does not run is left out, and said to be."""
    import litert_torch

    path, x = site.model / "elastic.tflite", (torch.zeros(INPUT.shape),)
    with silence():
        converter = litert_torch.signature("small", Net(4).eval(), x)
        converter.signature("large", Net(16).eval(), x).convert().export(str(path))
    (site.model / "none.tflite").write_bytes(b"verified, but no model")
    write_manifest(
        site.model,
        describe(site.model / "none.tflite", "none", p50=9, accuracy=1),
        describe(path, "litert-half", p50=4, accuracy=0.9, entry="large"),
        describe(path, "litert-small", p50=0.004, accuracy=0.8, entry="small"),
    )
    image = app_bundle.parent / "images" / "small.png"
    page = visit.open(site)
    give(page, image)

    large = shown(page)
    page.get_by_label("Budget for one run").press("Home")
    expect(running(page)).to_have_text("litert-small")
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("status").first).to_have_text("Paused.")

    assert large == pytest.approx(expected(site.model, "litert-half", image), abs=1e-3)
    assert shown(page) == pytest.approx(expected(site.model, "litert-small", image), abs=1e-3)
    expect(page.locator("#failed")).to_contain_text("Left out: none does not run here")


def test_both_int8_precisions_run(site: Site, visit: Visit, app_bundle: Path) -> None:
    """Their inputs and outputs are floats, which is what LiteRT.js wants; equal to the same files run natively."""
    image, x = app_bundle.parent / "images" / "small.png", torch.zeros(INPUT.shape)
    fed = classify.prepare(classify.read_image(image), INPUT.model_dump())
    precisions: tuple[Precision, ...] = ("int8-static", "int8-dynamic")
    wanted, variants = [], []
    for precision in precisions:
        path = site.model / f"{precision}.tflite"
        LiteRT().export(Net(16).eval(), (x,), path, precision, calibration=[torch.from_numpy(fed)])
        wanted.append(torch.from_numpy(LiteRT().predict(path, fed)).softmax(1)[0].tolist())
        p50, accuracy = (4.0, 0.9) if precision == "int8-static" else (0.004, 0.8)
        variants.append(describe(path, precision, p50=p50, accuracy=accuracy, precision=precision))
    write_manifest(site.model, *variants)
    page = visit.open(site)
    give(page, image)

    static = shown(page)
    page.get_by_label("Budget for one run").press("Home")
    expect(running(page)).to_have_text("int8-dynamic")
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("status").first).to_have_text("Paused.")

    for found, odds in zip((static, shown(page)), wanted, strict=True):
        assert found == pytest.approx(dict(zip(LABELS, odds, strict=True)), abs=0.02)


# --- offline


def test_it_works_offline_after_the_first_load(site: Site, visit: Visit, app_bundle: Path) -> None:
    """Every variant; with the network back, a new bundle is there on the next load."""
    image = app_bundle.parent / "images" / "small.png"
    page = visit.open(site)
    while kept_files(page) < 3:
        page.wait_for_timeout(200)

    visit.context.set_offline(True)
    site.close()  # whatever a service worker is told of the network
    page.reload()

    expect(page.get_by_role("status").first).to_contain_text("Ready")
    give(page, image)
    assert shown(page) == pytest.approx(expected(app_bundle, "litert-dense", image), abs=1e-3)
    page.get_by_label("Budget for one run").press("Home")
    expect(running(page)).to_have_text("litert-small")


def test_a_new_bundle_takes_the_place_of_the_old_one(site: Site, visit: Visit) -> None:
    """Its manifest is asked for first, and files that it does not name are dropped."""
    page = visit.open(site)

    def keep_one(raw: dict[str, Any]) -> None:
        raw.update(model="newer", variants=[each for each in raw["variants"] if each["name"] == "litert-half"])

    site.edit_manifest(keep_one)
    page.reload()

    expect(page.get_by_role("heading", name="newer")).to_be_visible()
    expect(running(page)).to_have_text("litert-half")
    assert kept_files(page) <= 1


# --- refusals


def flip(site: Site, name: str) -> None:
    path = site.model / name
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def swap(site: Site) -> None:
    shutil.copy(site.model / "litert-half.tflite", site.model / "litert-dense.tflite")


BREAKAGES: dict[str, tuple[Callable[[Site], object], str, str]] = {
    "first file": (lambda site: flip(site, "litert-dense.tflite"), "its sha256 is not the manifest's", "copy"),
    "other file": (lambda site: flip(site, "litert-small.tflite"), "its sha256 is not the manifest's", "copy"),
    "swapped": (swap, "bytes, not", "copy the bundle again"),
    "file gone": (lambda site: (site.model / "litert-dense.tflite").unlink(), "is missing (HTTP 404)", "bundle"),
    "newer": (
        lambda site: site.edit_manifest(lambda raw: raw.update(schema_version=2)),
        "schema 2, this app reads schema 1",
        "update this app",
    ),
    "no bundle": (lambda site: shutil.rmtree(site.model), "manifest.json is missing (HTTP 404)", "--app web"),
    "labels": (lambda site: site.edit_manifest(lambda raw: raw["labels"].pop()), "4 scores for 3 labels", "again"),
    "no runtime": (lambda site: (site.folder / "build").unlink(), "LiteRT.js cannot be loaded", "make web-app"),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_what_cannot_be_used_is_said_with_what_to_do(site: Site, visit: Visit, breakage: str) -> None:
    """One page with what happened and the remedy, and nothing else."""
    break_it, what, advice = BREAKAGES[breakage]
    break_it(site)

    visit.page.goto(site.url)

    expect(visit.page.get_by_role("alert")).to_contain_text(what)
    expect(visit.page.get_by_role("alert")).to_contain_text(advice)
    expect(visit.page.get_by_role("main")).to_be_hidden()


def test_a_browser_without_webassembly_is_told_so(site: Site, visit: Visit) -> None:
    """As where a user or an administrator has it switched off."""
    visit.page.add_init_script("delete globalThis.WebAssembly")

    visit.page.goto(site.url)

    expect(visit.page.get_by_role("alert")).to_contain_text("This browser runs no WebAssembly")
