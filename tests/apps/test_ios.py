"""The iOS app, as far as it goes without Apple: its logic run by Swift, its sources against stubs of frameworks.

Debian's Swift (444 MB, fetched once) is unpacked below .cache and sees a /usr of its own; nothing is installed on
this machine.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from maestro_edge.bundling import bundle as make_bundle
from maestro_edge.runtimes import digest, load, size_bytes
from maestro_edge.runtimes.coreml import combine
from maestro_edge.values import DeviceFacts, InputSpec, Manifest, MeasuredMs, Variant
from tests.apps.ios.swift import Check, Swift, bring_swift

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "lab"
PACKAGE = ROOT / "apps" / "ios"
HERE = Path(__file__).parent / "ios"
INPUT = InputSpec(shape=(1, 3, 8, 8), mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26))

STUBS = (
    "AppleFoundation",
    "CoreGraphics",
    "CoreML",
    "CryptoKit",
    "UniformTypeIdentifiers",
    "UIKit",
    "SwiftUI",
    "PhotosUI",
)
"""In the order in which they import one another."""

Change = Callable[[dict[str, Any]], object]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]


@pytest.fixture(scope="session")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Swift:
    """The compiler, the package manager and the test library, 6.0.3."""
    return bring_swift(CACHE, tmp_path_factory.mktemp("swift"))


def sources(folder: str) -> list[Path]:
    return sorted((PACKAGE / folder).glob("*.swift"))


# --- the logic, run


def test_the_package_passes_its_tests(swift: Swift) -> None:
    """`swift test`, which also runs every case of selection.json."""
    cases = json.loads((PACKAGE.parent / "testdata" / "selection.json").read_text())

    done = swift.run(
        "/usr/libexec/swift/bin/swift-test",
        "--disable-sandbox",
        "--package-path",
        PACKAGE,
        "--scratch-path",
        swift.home / "build",
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Test run with \d+ tests passed", done.stdout)
    assert done.stdout.count("Passing 1 argument given") == len(cases["choose"]) + len(cases["adapt"])


@pytest.fixture(scope="module")
def check(swift: Swift) -> Check:
    program = swift.folder / "check"
    done = swift.compile(
        *("-warnings-as-errors", "-parse-as-library", "-o", program),
        *sources("Sources/MaestroBundle"),
        HERE / "check.swift",
    )
    assert done.returncode == 0, done.stderr
    return Check(swift, program)


def test_quantiles_equal_numpy(check: Check) -> None:
    """One sample, few, many, and both ends."""
    random = np.random.default_rng(0)
    cases = [
        {"samples": random.lognormal(size=size).tolist(), "share": share}
        for size in (1, 2, 3, 10, 101)
        for share in (0.0, 0.1, 0.5, 0.9, 1.0)
    ]

    found = check.ask(quantiles=cases)["quantiles"]

    expected = [np.quantile(case["samples"], case["share"]) for case in cases]
    assert np.allclose(found, expected, rtol=1e-12)


def load_linux_app() -> ModuleType:
    path = ROOT / "apps" / "linux" / "classify.py"
    spec = importlib.util.spec_from_file_location("classify", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def picture(image: Pixels, spec: dict[str, Any]) -> dict[str, Any]:
    height, width, channels = image.shape
    return {
        "height": height,
        "width": width,
        "channels": channels,
        "bytes": image.ravel().tolist(),
        "input": spec,
    }


def random_image(height: int, width: int, channels: int) -> Pixels:
    seed = height * 1000 + width
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def spec_of(channels: int, height: int, width: int, **more: Any) -> dict[str, Any]:
    mean, std = [0.4, 0.5, 0.6][:channels], [0.2, 0.25, 0.3][:channels]
    return {"shape": [1, channels, height, width], "mean": mean, "std": std, "layout": "NCHW", **more}


def test_images_are_fed_as_the_linux_app_feeds_them(check: Check) -> None:
    """Enlarged, shrunk, of equal size, in grey and in colour, to grey and to colour."""
    app = load_linux_app()
    sizes = [(8, 8, 8, 8), (1, 1, 5, 7), (40, 31, 8, 9), (9, 200, 32, 32), (5, 5, 64, 3), (97, 64, 96, 64)]
    cases = [
        (random_image(height, width, given), spec_of(wanted, to_height, to_width))
        for height, width, to_height, to_width in sizes
        for given in (1, 3)
        for wanted in (1, 3)
    ]

    found = check.ask(pictures=[picture(image, spec) for image, spec in cases])["pictures"]

    for (image, spec), output in zip(cases, found, strict=True):
        expected = app.prepare(image, spec).ravel()
        assert np.allclose(output, expected, atol=2e-5), (image.shape, spec)
        if image.shape[:2] == tuple(spec["shape"][2:]):
            assert np.array_equal(np.float32(output), expected)


def test_channels_may_be_last(check: Check) -> None:
    image = random_image(20, 30, 3)
    last = spec_of(3, 8, 9, layout="NHWC", shape=[1, 8, 9, 3])

    first, transposed = check.ask(pictures=[picture(image, spec_of(3, 8, 9)), picture(image, last)])["pictures"]

    assert np.array_equal(np.reshape(first, (3, 8, 9)), np.reshape(transposed, (8, 9, 3)).transpose(2, 0, 1))


@pytest.mark.parametrize(("height", "width"), [(50, 21), (21, 50), (16, 16)])
def test_a_cropped_image_is_its_centre(check: Check, height: int, width: int) -> None:
    """As Pillow resizes a box: the largest of the input's aspect ratio, in the middle."""
    image = random_image(height, width, 1)
    spec = {**spec_of(1, 8, 12, resize="crop"), "mean": [0.0], "std": [1.0]}

    (found,) = check.ask(pictures=[picture(image, spec)])["pictures"]

    scale = min(height / 8, width / 12)
    box = ((width - 12 * scale) / 2, (height - 8 * scale) / 2, (width + 12 * scale) / 2, (height + 8 * scale) / 2)
    plane = Image.fromarray(image[:, :, 0].astype(np.float32))
    expected = np.asarray(plane.resize((12, 8), Image.Resampling.BILINEAR, box=box)) / 255
    assert np.allclose(np.reshape(found, (8, 12)), expected, atol=1e-5)


# --- bundles


def described(path: Path, runtime: str, measured_ms: MeasuredMs | None) -> Variant:
    return Variant(
        name=f"{runtime}-dense",
        runtime=runtime,
        runtime_version="1.0",
        precision="fp32",
        file=path.name,
        sha256=digest(path),
        size_bytes=size_bytes(path),
        budget_ms=None,
        predicted_ms=None,
        measured_ms=measured_ms,
        accuracy=0.9,
        max_abs_error=0,
        sqnr_db=200,
        top1_agreement=1,
        params=1,
        macs=1,
        ranks={},
    )


@pytest.fixture(scope="module")
def app_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stands in for the bundle that the other apps run: here files are only told apart, so that any bytes do."""
    program = tmp_path_factory.mktemp("made") / "executorch-dense.pte"
    program.write_bytes(np.random.default_rng(0).bytes(1000))
    variant = described(program, "executorch", MeasuredMs(p50=1.0, p90=1.5, n=100))
    device = DeviceFacts(name="board", soc="none", arch="aarch64", cores=4, os="linux")
    labels = ("a", "b", "c", "d")
    manifest = Manifest(device=device, model="tiny", labels=labels, input=INPUT, variants=(variant,))
    return make_bundle(program.parent / "bundle", manifest, {program.name: program})


@pytest.fixture(scope="module")
def apple_bundle(app_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of all apps; in it a Core ML package, which is a folder, and one of two functions."""
    folder = tmp_path_factory.mktemp("apple") / "bundle"
    shutil.copytree(app_bundle, folder)
    manifest = Manifest.load(folder / "manifest.json")
    package = folder / "coreml-dense.mlpackage"
    model, example = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4)).eval(), torch.zeros(manifest.input.shape)
    load("coreml").export(model, (example,), package)
    both = folder / "coreml.mlpackage"
    combine({"large": package, "small": package}, both, example.numpy())
    together = [
        described(both, "coreml", None).model_copy(update={"name": f"coreml-{entry}", "entry": entry})
        for entry in ("large", "small")
    ]
    variants = (*manifest.variants, *together, described(package, "coreml", None))
    manifest.model_copy(update={"variants": variants}).save(folder / "manifest.json")
    return folder


@pytest.fixture
def broken(apple_bundle: Path, tmp_path: Path) -> Path:
    """A copy for a test to break; it is reached through a link, as a phone's folders may be."""
    shutil.copytree(apple_bundle, tmp_path / "real" / "bundle")
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    return tmp_path / "linked" / "bundle"


def test_a_bundle_opens_with_every_file(check: Check, apple_bundle: Path, broken: Path) -> None:
    """Its files and folders are as the manifest says, also where two variants share one, however it is reached."""
    names = [variant.name for variant in Manifest.load(apple_bundle / "manifest.json").variants]

    direct, linked = check.ask(bundles=[str(apple_bundle), str(broken)])["bundles"]

    assert "coreml-dense" in names
    assert direct == linked
    assert direct == {"variants": names, "entries": {"coreml-large": "large", "coreml-small": "small"}}


def edit(folder: Path, change: Change) -> None:
    path = folder / "manifest.json"
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


def test_a_truncated_or_missing_manifest_is_refused(check: Check, broken: Path, tmp_path: Path) -> None:
    path = broken / "manifest.json"
    path.write_text(path.read_text()[:-20])

    assert "cut short" in check.refusal(broken)
    assert "manifest.json cannot be read" in check.refusal(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.update(schema_version=2), "a newer schema: update this app"),
        (lambda raw: raw.update(schema_version=0), "schema 0, this app reads schema 1"),
        (lambda raw: raw.update(schema_version="1"), "schema_version is of a wrong type"),
        (lambda raw: raw.pop("schema_version"), "schema_version is missing"),
        (lambda raw: raw.pop("labels"), "labels is missing"),
        (lambda raw: raw["variants"][-1].pop("sha256"), "sha256 is missing"),
        (lambda raw: raw["variants"][0].update(accuracy="high"), "variants.0.accuracy is of a wrong type"),
        (lambda raw: raw["variants"][0].update(accuracy=1.5), "and an accuracy of 1.5 cannot all be"),
        (lambda raw: raw["variants"][0]["measured_ms"].update(p50=0), "cannot all be"),
        (lambda raw: raw["input"].update(layout="NWHC"), "input.layout has a value that does not fit"),
        (lambda raw: raw["input"].update(shape=[1, 2, 8, 8]), "not one float32 image of 1 or 3 channels"),
        (lambda raw: raw["input"].update(shape=[3, 8]), "not one float32 image"),
        (lambda raw: raw["input"].update(dtype="int8"), "not one float32 image"),
        (lambda raw: raw["input"].update(std=[1, 0, 1]), "not one float32 image"),
    ],
)
def test_an_unusable_manifest_is_refused(check: Check, broken: Path, change: Change, message: str) -> None:
    edit(broken, change)

    line = check.refusal(broken)

    assert line.startswith("manifest.json") and message in line


@pytest.mark.parametrize("kind", ["flip", "cut", "delete", "added", "moved"])
def test_a_damaged_package_is_refused(check: Check, broken: Path, kind: str) -> None:
    """A bit, a byte, the folder, a file too many, a file under another name."""
    package = broken / "coreml-dense.mlpackage"
    largest = max((path for path in package.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = largest.read_bytes()
    if kind in ("flip", "cut"):
        largest.write_bytes(content[:-1] + (bytes([content[-1] ^ 1]) if kind == "flip" else b""))
    elif kind == "delete":
        shutil.rmtree(package)
    elif kind == "added":
        (package / ".empty").touch()
    else:
        largest.rename(largest.with_name("other"))

    line = check.refusal(broken)

    expected = {"cut": f"{size_bytes(package)} bytes, not" if kind == "cut" else "", "delete": "is missing"}
    assert line.startswith("coreml-dense.mlpackage")
    assert expected.get(kind, "its sha256 is not the manifest's") in line


@pytest.mark.parametrize("name", ["../outside.pte", "/etc/passwd", ".", "..", "", "link.pte", "a/../b", "a\\b"])
def test_a_file_outside_of_the_bundle_is_refused(check: Check, broken: Path, name: str) -> None:
    """Also one that is there, and is the right one."""
    file = Manifest.load(broken / "manifest.json").variants[0].file
    outside = shutil.copy(broken / file, broken.parent / "outside.pte")
    (broken / "link.pte").symlink_to(outside)
    edit(broken, lambda raw: raw["variants"][0].update(file=name))

    assert "leaves the bundle folder" in check.refusal(broken)


# --- the apps' sources, against stubs


@pytest.fixture(scope="module")
def modules(swift: Swift) -> Path:
    """MaestroBundle as it is, and stubs of Apple's frameworks: what the apps use of them and nothing else."""
    folder = swift.folder / "modules"
    folder.mkdir()
    swift.module("MaestroBundle", sources("Sources/MaestroBundle"), folder)
    for name in STUBS:
        swift.module(name, [HERE / "stubs" / f"{name}.swift"], folder)
    return folder


@pytest.fixture(scope="module")
def executorch(swift: Swift) -> Path:
    """The stub of a package that an app may have or not."""
    folder = swift.folder / "executorch"
    folder.mkdir()
    swift.module("ExecuTorch", [HERE / "stubs" / "ExecuTorch.swift"], folder)
    return folder


def type_check(swift: Swift, folders: Sequence[Path], files: Sequence[Path]) -> subprocess.CompletedProcess[str]:
    found = [argument for folder in folders for argument in ("-I", folder)]
    return swift.compile("-typecheck", "-warnings-as-errors", "-parse-as-library", *found, *files)


@pytest.mark.parametrize("app", ["MaestroDemo", "MaestroProbes"])
def test_the_apps_type_check(swift: Swift, modules: Path, app: str) -> None:
    """Also under Swift 6's rules of concurrency, without a warning."""
    done = type_check(swift, [modules], [*sources(app), *sources("Shared")])

    assert done.returncode == 0, done.stderr


def test_the_demo_type_checks_with_executorch(swift: Swift, modules: Path, executorch: Path) -> None:
    done = type_check(swift, [modules, executorch], [*sources("MaestroDemo"), *sources("Shared")])

    assert done.returncode == 0, done.stderr


def test_a_wrong_member_does_not_type_check(swift: Swift, modules: Path, tmp_path: Path) -> None:
    """What makes the tests above worth something."""
    text = (PACKAGE / "MaestroDemo" / "CoreMLNetwork.swift").read_text()
    wrong = tmp_path / "CoreMLNetwork.swift"
    wrong.write_text(text.replace("model.prediction(from:", "model.predictions(from:"))
    others = [path for path in sources("MaestroDemo") if path.name != wrong.name]

    done = type_check(swift, [modules], [wrong, *others, *sources("Shared")])

    assert done.returncode != 0 and "predictions" in done.stderr
