"""What the Android app decides and computes, run on a JVM: its own classes, with Android's org.json."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maestro_edge.devices.posix import parse_facts
from maestro_edge.values import DeviceFacts
from tests.apps.android_build import CACHE, ROOT, Tools
from tests.apps.android_driver import Logic

VECTORS = json.loads((ROOT / "apps/testdata/selection.json").read_text())
BOTH = ["litert", "executorch"]


@pytest.fixture(scope="module")
def logic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Logic]:
    with Logic(Tools(CACHE, tmp_path_factory.mktemp("bin"))) as started:
        yield started


@pytest.fixture(scope="module")
def linux() -> ModuleType:
    """The app for Linux, which is the measure."""
    spec = importlib.util.spec_from_file_location("classify", ROOT / "apps/linux/classify.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- selection


@pytest.mark.parametrize("case", VECTORS["choose"], ids=lambda case: case["case"])
def test_choose_passes_the_vectors_of_all_apps(logic: Logic, case: dict[str, Any]) -> None:
    """What to start with, of budget, choices and device."""
    assert logic.ask("choose", **case) == case["chosen"]


@pytest.mark.parametrize("case", VECTORS["adapt"], ids=lambda case: case["case"])
def test_adapt_passes_the_vectors_of_all_apps(logic: Logic, case: dict[str, Any]) -> None:
    """What to go on with, of the times of the last runs, the budget and the heat."""
    assert logic.ask("adapt", **case) == case["next"]


def test_the_slider_reaches_every_variant(logic: Logic) -> None:
    """From exactly the fastest to above the slowest that may run, and no budget last."""
    times = {"litert": 2.0, "executorch": 0.5, "coreml": 0.1}
    variants = [
        {"name": name, "runtime": name, "accuracy": 0.9, "measured_ms": {"p50": ms, "p90": ms}}
        for name, ms in times.items()
    ]

    steps = logic.ask("steps", variants=variants, runtimes=BOTH)

    assert steps[0] == 0.5 and steps[-2] == pytest.approx(2.5) and steps[-1] is None
    assert steps[:-1] == sorted(steps[:-1])
    assert logic.ask("steps", variants=[], runtimes=BOTH) == [None]


# --- statistics and preparation


def test_quantiles_equal_numpy(logic: Logic) -> None:
    """Of one sample up to many, at the ends too."""
    random = np.random.default_rng(0)
    for size in (1, 2, 3, 10, 101):
        samples = random.exponential(size=size)
        for share in (0.0, 0.1, 0.5, 0.9, 1.0):
            found = logic.ask("quantile", samples=samples.tolist(), share=share)

            assert found == pytest.approx(np.quantile(samples, share), rel=1e-12)


def test_the_likeliest_labels_are_those_of_the_softmax(logic: Logic) -> None:
    """Five of seven, of equal ones the first; large logits do not overflow."""
    logits = [1.0, 3.0, 3.0, 1000.0, -5.0, 999.0, 2.0]

    found = logic.ask("likeliest", logits=logits, labels=list("abcdefg"))

    odds = np.exp(np.array(logits) - 1000)
    assert [label for label, _ in found] == ["d", "f", "b", "c", "g"]
    assert [share for _, share in found] == pytest.approx(np.sort(odds / odds.sum())[::-1][:5].tolist())


def manifest(**changes: Any) -> str:
    """A manifest whose input is changed."""
    three = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}
    fed = {"shape": [1, 3, 8, 8], "layout": "NCHW", "dtype": "float32", "resize": "stretch", **three, **changes}
    return json.dumps({"schema_version": 1, "labels": ["a"], "input": fed, "choices": [], "variants": []})


def feed(logic: Logic, pixels: np.ndarray[Any, Any], **changes: Any) -> np.ndarray[Any, Any]:
    """What the app makes of pixels (H, W, 3), in the shape of the input."""
    height, width, _ = pixels.shape
    packed = (pixels.astype(int) @ np.array([1 << 16, 1 << 8, 1])) | -1 << 24  # opaque, as Android's bitmaps
    text = manifest(**changes)
    flat = logic.ask("prepare", manifest=text, width=width, height=height, pixels=packed.ravel().tolist())
    return np.array(flat, np.float32).reshape(json.loads(text)["input"]["shape"])


@pytest.mark.parametrize("size", [(8, 8), (20, 30), (5, 3), (1, 1), (97, 8), (8, 41)], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_preparation_equals_the_linux_app(
    logic: Logic, linux: ModuleType, size: tuple[int, int], channels: int
) -> None:
    """Larger, smaller and equal, on either side; in colour and grey."""
    pixels = np.random.default_rng(size).integers(0, 256, (*size, 3), np.uint8)
    fed = {"shape": [1, channels, 8, 8], "mean": [0.4, 0.5, 0.6][:channels], "std": [0.2, 0.25, 0.3][:channels]}

    found = feed(logic, pixels, **fed)

    assert np.allclose(found, linux.prepare(pixels, {**fed, "layout": "NCHW"}), atol=1e-4)


@pytest.mark.parametrize("size", [(20, 30), (31, 10), (12, 12), (9, 40), (3, 3)], ids=str)
@pytest.mark.parametrize("shape", [(8, 8), (6, 12), (8, 12)], ids=str)
def test_crop_takes_the_largest_centred_part(logic: Logic, size: tuple[int, int], shape: tuple[int, int]) -> None:
    """As Pillow resizes a box, of wide and of tall images to squares and other aspects, and in part pixels."""
    pixels = np.random.default_rng(3).integers(0, 256, (*size, 3), np.uint8)
    (rows, columns), (height, width) = size, shape
    scale = min(rows / height, columns / width)
    left, top = (columns - scale * width) / 2, (rows - scale * height) / 2
    box = (left, top, columns - left, rows - top)

    found = feed(logic, pixels, shape=[1, 3, *shape], resize="crop", mean=[0, 0, 0], std=[1, 1, 1])

    planes = [Image.fromarray(pixels[:, :, channel].astype(np.float32)) for channel in range(3)]
    to, how = (width, height), Image.Resampling.BILINEAR
    expected = [np.asarray(plane.resize(to, how, box=box)) / 255 for plane in planes]
    assert np.allclose(found[0], expected, atol=1e-4)


def test_channels_last_is_the_same_turned(logic: Logic) -> None:
    pixels = np.random.default_rng(4).integers(0, 256, (11, 13, 3), np.uint8)

    last = feed(logic, pixels, layout="NHWC", shape=[1, 6, 8, 3])

    assert np.array_equal(last.transpose(0, 3, 1, 2), feed(logic, pixels, shape=[1, 3, 6, 8]))


def test_images_of_the_bundle(logic: Logic, linux: ModuleType, app_bundle: Path) -> None:
    """With the real manifest, on real files."""
    text = (app_bundle / "manifest.json").read_text()
    for path in sorted((app_bundle.parent / "images").glob("*.png")):
        pixels = np.asarray(Image.open(path).convert("RGB"))

        found = feed(logic, pixels, **json.loads(text)["input"])

        assert np.allclose(found, linux.prepare(pixels, json.loads(text)["input"]), atol=1e-4)


# --- benchmark and facts


def test_facts_are_those_of_a_profile_over_adb(logic: Logic, tmp_path: Path) -> None:
    """The choice for a processor, made of a profile, is found by the app on the same phone."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:        7727184 kB\nMemFree: 1 kB\n")
    for core, khz in enumerate((1704000, 2914000)):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{core}/cpufreq"
        folder.mkdir(parents=True)
        (folder / "cpuinfo_max_freq").write_text(f"{khz}\n")
        (folder / "scaling_governor").write_text("sched_pixel\n")
    phone = {"manufacturer": "Google", "model": "Pixel 8", "release": "14", "fingerprint": "google/shiba:14"}

    found = logic.ask(
        "facts", **phone, soc_manufacturer="Google", soc_model="Tensor G3", cores=2, root=str(tmp_path)
    )
    older = logic.ask(
        "facts", **phone, soc_manufacturer="unknown", soc_model=None, cores=2, root=str(tmp_path / "none")
    )

    text = "arch=x\ncores=2\nkernel=Linux 1\nphone=Google Pixel 8\nsoc=Google Tensor G3\nbuild=google/shiba:14\n"
    text += "memory_kib=7727184\nandroid=14\ngovernor=sched_pixel\nkhz0=1704000\nkhz1=2914000\n"
    told, here = DeviceFacts.model_validate(found), {"arch", "os"}
    assert told.model_dump(exclude=here) == parse_facts(text, device="phone").model_dump(exclude=here)
    assert told.os.startswith("Android 14, Linux ")
    assert (older["soc"], older["memory_gib"], older["core_mhz"]) == ("Google Pixel 8", None, [])


def test_a_result_is_written_whole_and_in_its_folder(logic: Logic, tmp_path: Path) -> None:
    """An old one is replaced; a name that leaves the folder is refused, as any app may send one."""
    for text in ("old and long", "new"):
        path = logic.ask("write", folder=str(tmp_path), name="out.json", text=text)

    assert [Path(path).read_text(), [path.name for path in tmp_path.iterdir()]] == ["new", ["out.json"]]
    for name in ("", "../out.json", "a/b.json", ".json", "out.txt", "/out.json", "..json"):
        assert "is not a plain file name" in logic.refusal("write", folder=str(tmp_path), name=name, text="")
