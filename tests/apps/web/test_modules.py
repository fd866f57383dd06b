"""The web app's own modules, called in Chromium: the rules of apps/README.md, and what hashlib and numpy say."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Page

from tests.apps.web.site import ROOT, classify

Pixels = NDArray[np.uint8]

MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no schema": (lambda raw: raw.pop("schema_version"), "schema null"),
    "no labels": (lambda raw: raw.pop("labels"), "labels is missing"),
    "no sha256": (lambda raw: raw["variants"][1].pop("sha256"), "variant 1: sha256 is missing"),
    "text as time": (lambda raw: raw["variants"][1]["measured_ms"].update(p50="1"), "variant 1: p50 is missing"),
    "no time": (lambda raw: raw["variants"][1]["measured_ms"].update(p50=0), "variant 1: p50 is missing"),
    "two channels": (lambda raw: raw["input"].update(shape=[1, 2, 8, 8]), "not one float32 image"),
    "odd resize": (lambda raw: raw["input"].update(resize="fit"), "not one float32 image"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_that_does_not_fit_is_refused(modules: Page, app_bundle: Path, name: str) -> None:
    """Before anything of it is used; whole, it is accepted."""
    change, what = MANIFESTS[name]
    text = (app_bundle / "manifest.json").read_text()
    raw = json.loads(text)
    change(raw)

    assert parse(modules, text) == "accepted"
    assert what in parse(modules, json.dumps(raw))
    assert "cut short" in parse(modules, text[:-20])


def parse(page: Page, text: str) -> Any:
    return page.evaluate(
        """async (text) => {
        const {parseManifest} = await import("/bundle.js");
        try { parseManifest(text); return "accepted"; } catch (error) { return error.message; }
    }""",
        text,
    )


def test_a_name_leads_out_of_the_folder_nowhere(modules: Page) -> None:
    """What a server would read as another folder is refused or written so that it reads it as a name."""
    names = ["../a", "a/../../b", "/etc/passwd", "a\\b", "", ".", "http://x/y", "a//b", "sub/a b#?.tflite"]

    found = modules.evaluate(
        """async (names) => {
        const {addressOf} = await import("/bundle.js");
        return names.map((name) => {
            try { return addressOf(name); } catch (error) { return null; }
        });
    }""",
        names,
    )

    assert found == [None] * 8 + ["model/sub/a%20b%23%3F.tflite"]


def test_the_vectors_of_all_apps(modules: Page) -> None:
    """The one file of cases that every app's choosing and changing is held to."""
    vectors = json.loads((ROOT / "apps" / "testdata" / "selection.json").read_text())

    chosen, following = modules.evaluate(
        """async ({choose: first, adapt: later}) => {
        const {choose, adapt} = await import("/selection.js");
        return [
            first.map(({budget_ms: budgetMs, ...rest}) => choose({budgetMs, ...rest})?.name ?? null),
            later.map(({budget_ms: budgetMs, live_ms: liveMs, current, variants, ...rest}) => adapt({
                budgetMs, liveMs, variants, current: variants.find(({name}) => name === current), ...rest}).name),
        ];
    }""",
        vectors,
    )

    assert len(chosen) == len(vectors["choose"]) > 20 and len(following) == len(vectors["adapt"]) > 15
    for case, name in zip(vectors["choose"], chosen, strict=True):
        assert name == case["chosen"], case["case"]
    for case, name in zip(vectors["adapt"], following, strict=True):
        assert name == case["next"], case["case"]


def prepared(page: Page, pixels: Pixels, spec: dict[str, Any], *, as_file: bool) -> NDArray[np.float32]:
    """What the page feeds: of RGBA pixels, or of a PNG that it decodes itself."""
    height, width = pixels.shape[:2]
    alpha = np.full((height, width, 1), 255, np.uint8)
    content = np.concatenate([np.repeat(pixels, 3 // pixels.shape[2], axis=2), alpha], axis=2).tobytes()
    if as_file:
        content = png(pixels)
    fed = page.evaluate(
        """async ([content, width, height, spec]) => {
        const {prepare} = await import("/prepare.js");
        const {readPicture} = await import("/pictures.js");
        const data = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
        return Array.from(prepare(width ? {data, width, height} : await readPicture(new Blob([data])), spec));
    }""",
        [base64.b64encode(content).decode(), 0 if as_file else width, height, spec],
    )
    return np.array(fed, np.float32)


def png(pixels: Pixels) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("as_file", [False, True], ids=["pixels", "file"])
@pytest.mark.parametrize(
    ("size", "to", "channels", "resize"),
    [
        ((32, 32), (32, 32), 3, "stretch"),
        ((90, 120), (32, 32), 3, "stretch"),
        ((5, 7), (16, 9), 3, "stretch"),
        ((1, 40), (3, 2), 3, "stretch"),
        ((33, 20), (8, 8), 1, "stretch"),
        ((90, 120), (32, 32), 3, "crop"),
        ((41, 30), (16, 32), 1, "crop"),
    ],
)
def test_an_image_is_fed_as_by_the_linux_app(
    modules: Page, size: tuple[int, int], to: tuple[int, int], channels: int, resize: str, as_file: bool
) -> None:
    """Crop, antialiased resizing, luma and normalisation, in both layouts."""
    pixels = np.random.default_rng(7).integers(0, 256, (*size, 3), np.uint8)
    mean, std = [0.4, 0.5, 0.6][:channels], [0.2, 0.3, 0.25][:channels]
    spec = {"shape": [1, channels, *to], "layout": "NCHW", "mean": mean, "std": std, "resize": resize}
    nhwc = {**spec, "shape": [1, *to, channels], "layout": "NHWC"}
    wanted = classify.prepare(pixels, spec)

    found = [prepared(modules, pixels, each, as_file=as_file) for each in (spec, nhwc)]

    assert np.allclose(found[0].reshape(wanted.shape), wanted, atol=1e-4)
    assert np.array_equal(found[1].reshape(*to, channels).transpose(2, 0, 1), found[0].reshape(channels, *to))


def test_digests_are_those_of_hashlib(modules: Page) -> None:
    """Also where a browser keeps its own for secure origins: around the block's size, empty and large."""
    sizes = [0, 1, 55, 56, 63, 64, 65, 119, 120, 100_001]

    found = modules.evaluate(
        """async (sizes) => {
        const {calculate, sha256} = await import("/sha256.js");
        const hex = (digest) => Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
        return Promise.all(sizes.map(async (size) => {
            const bytes = Uint8Array.from({length: size}, (_, index) => 7 * index);
            return [hex(calculate(bytes)), await sha256(bytes)];
        }));
    }""",
        sizes,
    )

    wanted = [hashlib.sha256(bytes(7 * index % 256 for index in range(size))).hexdigest() for size in sizes]
    assert found == [[digest, digest] for digest in wanted]


def test_quantiles_are_those_of_numpy(modules: Page) -> None:
    """Interpolated between neighbours."""
    values = np.random.default_rng(3).random(37).tolist()

    found = modules.evaluate(
        "([values, shares]) => import('/statistics.js').then((m) => shares.map((q) => m.quantile(values, q)))",
        [values, [0, 0.5, 0.9, 1]],
    )

    assert found == pytest.approx(np.quantile(values, [0, 0.5, 0.9, 1]).tolist())


CHANGES = """async ([manifest, times, budgetMs]) => {
    const {Classifier} = await import("/classifier.js");
    globalThis.fetch = async () => new Response("x");
    let now = null;
    let speed = 1;
    class Program {
        open() {}
        close() {}
        run(inputs, entry) { now = entry; return [0]; }
    }
    const sampleMs = async (run) => { await run(); return times[now] / speed; };
    const program = {Program, sampleMs, loadRuntime() {}, timerStep: () => 0, runsASample: () => 1};
    const classifier = new Classifier(manifest, {program});
    const names = [];
    const follow = async (runs) => {
        for (let i = 0; i < runs; i++) {
            if (names.at(-1) !== classifier.current.name) names.push(classifier.current.name);
            await classifier.classify(new Float32Array(1));
            await classifier.adapt();
        }
        names.push("|");
    };
    await classifier.start();
    await follow(20);
    await classifier.setBudget(budgetMs);
    await follow(200);
    speed = 10;
    await follow(200);
    await classifier.setBudget(null);
    return [...names, classifier.current.name];
}"""


def test_a_variant_that_was_too_slow_is_not_tried_again_and_again(modules: Page) -> None:
    """The ratio of times here, which is not the manifest's, is learned at a change; a faster device takes it."""
    file = {"file": "x", "sha256": hashlib.sha256(b"x").hexdigest(), "size_bytes": 1, "runtime": "litert"}
    told = {"dense": (4.0, 0.9), "half": (2.0, 0.8), "small": (0.5, 0.7)}
    variants = [
        {"name": name, "entry": name, "accuracy": accuracy, "measured_ms": {"p50": p50, "p90": p50}, **file}
        for name, (p50, accuracy) in told.items()
    ]
    manifest = {"variants": variants, "labels": ["one"], "input": {"shape": [1]}, "choices": []}

    found = modules.evaluate(CHANGES, [manifest, {"dense": 100, "half": 90, "small": 1}, 20])

    assert found == ["dense", "|", "small", "|", "small", "dense", "|", "dense"]
