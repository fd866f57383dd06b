"""The Android app and its bundle, on a JVM: what it refuses, when it changes the variant, what it measures."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from maestro_edge.values import DeviceFacts, InputSpec, Manifest, MeasuredMs, Variant
from tests.apps.android_build import CACHE, Tools
from tests.apps.android_driver import Logic

BOTH = ["litert", "executorch"]
ACCURACY = {"dense": 0.95, "plan": 0.9, "small": 0.8}
P50_MS = {"dense": 4.0, "plan": 2.0, "small": 1.0}
DEVICE = DeviceFacts(name="phone", soc="none", arch="aarch64", cores=8, os="Android 14")


@pytest.fixture(scope="module")
def logic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Logic]:
    with Logic(Tools(CACHE, tmp_path_factory.mktemp("bin"))) as started:
        yield started


def describe(name: str, runtime: str, content: bytes, *, is_measured: bool = True) -> Variant:
    """A variant of `name`, whose file is that of its name."""
    return Variant(
        name=name,
        runtime=runtime,
        runtime_version="1.0",
        precision="fp32",
        file=f"{name}.bin",
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        budget_ms=None,
        predicted_ms=None,
        measured_ms=MeasuredMs(p50=P50_MS[name], p90=P50_MS[name], n=9) if is_measured else None,
        accuracy=ACCURACY.get(name, 1),
        max_abs_error=0,
        sqnr_db=200,
        top1_agreement=1,
        params=1,
        macs=1,
        ranks={"conv": "dense"},
    )


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Three variants that may run and one that no phone runs; no runtime is here, so that any bytes will do."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    variants = []
    for name, runtime in {"dense": "litert", "plan": "executorch", "small": "litert", "apple": "coreml"}.items():
        content = name.encode() * 100
        (folder / f"{name}.bin").write_bytes(content)
        variants.append(describe(name, runtime, content, is_measured=runtime != "coreml"))
    fed = InputSpec(shape=(1, 3, 4, 4), mean=(0, 0, 0), std=(1, 1, 1))
    Manifest(device=DEVICE, model="m", labels=("a", "b"), input=fed, variants=tuple(variants)).save(
        folder / "manifest.json"
    )
    return folder


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = bundle / "manifest.json"
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


def asked(bundle: Path, variant: str = "dense") -> dict[str, str]:
    """A request for a file, unpacked beside the bundle."""
    return {"bundle": str(bundle), "cache": str(bundle.parent / "cache"), "variant": variant}


# --- files


def test_the_files_of_a_real_bundle_are_unpacked(logic: Logic, app_bundle: Path, tmp_path: Path) -> None:
    """Each is the manifest's; asked again, the one that is there is taken."""
    manifest = Manifest.load(app_bundle / "manifest.json")
    request = {"bundle": str(app_bundle), "cache": str(tmp_path)}
    for variant in manifest.variants:
        path = Path(logic.ask("file", **request, variant=variant.name))
        first = path.stat().st_mtime_ns

        again = logic.ask("file", **request, variant=variant.name)

        assert Path(again).stat().st_mtime_ns == first
        assert path.read_bytes() == (app_bundle / variant.file).read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {variant.file for variant in manifest.variants}


def test_an_old_file_is_replaced(logic: Logic, bundle: Path) -> None:
    """What an older version of the app unpacked, or was cut short, never runs."""
    old = bundle.parent / "cache/dense.bin"
    old.parent.mkdir()
    for content in (b"old" * 200, b"", b"dense" * 99):
        old.write_bytes(content)

        found = logic.ask("file", **asked(bundle))

        assert Path(found).read_bytes() == b"dense" * 100


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "499 bytes, not 500"),
        (lambda path: path.write_bytes(b"other" * 100), "its sha256 is not the manifest's"),
        (lambda path: path.unlink(), "is not in the bundle"),
    ],
    ids=["truncated", "swapped", "missing"],
)
def test_a_damaged_file_is_refused(
    logic: Logic, bundle: Path, damage: Callable[[Path], object], message: str
) -> None:
    """By name, and nothing of it stays."""
    damage(bundle / "dense.bin")

    line = logic.refusal("file", **asked(bundle))

    assert "dense.bin" in line and message in line
    assert list((bundle.parent / "cache").glob("*")) == []


@pytest.mark.parametrize("name", ["../outside.bin", "a/../../outside.bin", ".", "", "/outside.bin", "a\0b"])
def test_a_file_outside_of_the_bundle_is_refused(logic: Logic, bundle: Path, name: str) -> None:
    """Although it has the right content."""
    shutil.copy(bundle / "dense.bin", bundle.parent / "outside.bin")
    edit(bundle, lambda raw: raw["variants"][0].update(file=name))

    assert "leaves the bundle folder" in logic.refusal("file", **asked(bundle))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda raw: raw.update(schema_version=2),
            "schema 2, this app reads schema 1; a newer schema: update the app",
        ),
        (lambda raw: raw.pop("schema_version"), "schema null, this app reads schema 1; make the bundle again"),
        (lambda raw: raw.update(schema_version="1"), "schema '1', this app reads schema 1; make the bundle again"),
        (lambda raw: raw.pop("labels"), "manifest.json: 'labels' is missing"),
        (lambda raw: raw.update(labels=[1]), "'0' is missing or of a wrong type"),
        (lambda raw: raw["variants"][1].pop("sha256"), "variant 1: 'sha256' is missing"),
        (lambda raw: raw["variants"][1].pop("measured_ms"), "variant 1: 'measured_ms' is missing"),
        (lambda raw: raw["variants"][0]["measured_ms"].update(p50="1"), "variant 0: 'p50' is missing"),
        (lambda raw: raw["variants"][0]["measured_ms"].update(p50=0), "variant 0: 'p50' is missing"),
        (lambda raw: raw["variants"][0].update(size_bytes=1.5), "variant 0: 'size_bytes' is missing"),
        (lambda raw: raw["input"].update(dtype="uint8"), "not one float32 image"),
        (lambda raw: raw["input"].update(shape=[1, 2, 4, 4]), "not one float32 image"),
        (lambda raw: raw["input"].update(std=[1]), "not one float32 image"),
        (lambda raw: raw["input"].update(resize="fit"), "not one float32 image"),
        (lambda raw: raw.update(choices=[{"soc": None}]), "choice 0: 'variant' is missing"),
    ],
)
def test_an_unusable_manifest_is_refused(
    logic: Logic, bundle: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit(bundle, change)

    assert message in logic.refusal("file", **asked(bundle))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema_version": 1, "labels": ["a"', "{} {}"])
def test_what_is_no_manifest_is_refused(logic: Logic, bundle: Path, text: str) -> None:
    (bundle / "manifest.json").write_text(text)

    assert "manifest.json: cut short or not JSON" in logic.refusal("file", **asked(bundle))


def test_a_missing_manifest_is_refused(logic: Logic, bundle: Path) -> None:
    (bundle / "manifest.json").unlink()

    assert "manifest.json is not in the bundle" in logic.refusal("file", **asked(bundle))


# --- switching


def live(logic: Logic, bundle: Path, *steps: dict[str, Any], slower: float = 1.0) -> Any:
    """Names of the variant after each step, on a phone that takes so many times the bundle's times."""
    times = {name: slower * ms for name, ms in P50_MS.items()}
    return logic.ask("live", **asked(bundle), runtimes=BOTH, times_ms=times, steps=steps)


def test_a_budget_chooses_and_none_takes_the_most_accurate(logic: Logic, bundle: Path) -> None:
    """Across both runtimes; on a device as fast as the bundle's nothing moves it afterwards."""
    steps: list[dict[str, Any]] = [
        step for ms in (None, 2.5, 1.0, None) for step in ({"budget_ms": ms}, {"runs": 60})
    ]

    assert live(logic, bundle, *steps) == ["dense", "dense", "plan", "plan", "small", "small", "dense", "dense"]


def test_a_slower_phone_gets_a_faster_variant(logic: Logic, bundle: Path) -> None:
    """After the first 20 runs, not before; and again when that is not enough."""
    steps: list[dict[str, Any]] = [{"budget_ms": 5.0}, {"runs": 19}, {"runs": 1}, {"runs": 60}]

    assert live(logic, bundle, *steps, slower=2) == ["dense", "dense", "plan", "plan"]
    assert live(logic, bundle, *steps, slower=4) == ["dense", "dense", "small", "small"]


def test_heat_goes_down_and_a_cool_phone_up_again(logic: Logic, bundle: Path) -> None:
    """One step each 20 runs while it is hot, and back within the budget."""
    steps: list[dict[str, Any]] = [
        {"budget_ms": 5.0},
        {"runs": 20, "hot": True},
        {"runs": 20, "hot": True},
        {"runs": 20, "hot": False},
    ]

    assert live(logic, bundle, *steps) == ["dense", "plan", "small", "dense"]


def test_a_budget_below_the_fastest_is_refused(logic: Logic, bundle: Path) -> None:
    request = {**asked(bundle), "times_ms": P50_MS, "steps": [{"budget_ms": 0.5}]}

    assert "a budget of 0.5000 ms is below the fastest variant, 1.000 ms" in logic.refusal(
        "live", **request, runtimes=BOTH
    )
    assert "the bundle has dense (litert), plan (executorch)" in logic.refusal("live", **request, runtimes=["x"])


# --- benchmark


def test_the_benchmark_tells_every_sample(logic: Logic, bundle: Path) -> None:
    """So many of each variant that its runtimes may run, measured before or not; what fails says why."""
    edit(bundle, lambda raw: raw["variants"][0].update(measured_ms=None, entry="forward_dense"))
    times = {"dense": 4.0, "small": 1.5}

    found = logic.ask("benchmark", **asked(bundle), runtimes=BOTH, times_ms=times, runs=12)

    dense, plan, small = found["variants"]
    assert (found["schema_version"], found["runs"], found["threads"]) == (1, 12, 1)
    assert (dense["name"], dense["entry"], dense["samples_ns"]) == ("dense", "forward_dense", [4_000_000] * 12)
    assert (small["samples_ns"], small["p50_ms"], small["p90_ms"]) == ([1_500_000] * 12, 1.5, 1.5)
    assert (plan["error"], "samples_ns" in plan, plan["entry"]) == ("plan cannot be loaded", False, None)
