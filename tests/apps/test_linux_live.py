"""The Linux app's live mode as a service runs it: a process of its own, on images that come again and again."""

from __future__ import annotations

import configparser
import importlib.util
import json
import math
import os
import pty
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import pytest

from tests.apps.small import CLASSES
from tests.devices.debian import kept, output
from tests.devices.programs import bring

ROOT = Path(__file__).parents[2]
APP = ROOT / "apps" / "linux"
CACHE = ROOT / ".cache" / "lab"
OPENCV = "opencv-python-headless==4.14.0.94"


def load_live() -> ModuleType:
    spec = importlib.util.spec_from_file_location("live", APP / "live.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


live = load_live()


def run_live(*args: object, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-E", str(APP / "live.py"), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, **env})


def states(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """What each window told."""
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def edited(bundle: Path, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    copied = shutil.copytree(bundle, folder)
    raw = json.loads((copied / "manifest.json").read_text())
    change(raw)
    (copied / "manifest.json").write_text(json.dumps(raw))
    return copied


@pytest.fixture(scope="module")
def benchmark(app_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every variant's times here, by turns."""
    path = tmp_path_factory.mktemp("bench") / "times.json"
    images = app_bundle.parent / "images"
    done = run_live(app_bundle, "--camera", images, "--window", 4, "--frames", 80, "--bench", path)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.count("(80 runs)") == 6
    assert [item.name for item in path.parent.iterdir()] == ["times.json"]
    return json.loads(path.read_text())  # type: ignore[no-any-return]


@pytest.fixture
def slow_board(app_bundle: Path, benchmark: dict[str, Any], tmp_path: Path) -> tuple[Path, float, list[str]]:
    """A bundle made on a board ten times as fast as this one, of a dense and a small network of LiteRT.

    And a budget that here only the small one keeps, and their names.
    """
    dense, _, small = (each for each in benchmark["variants"] if each["runtime"] == "litert")
    here_ms = {each["name"]: median(each["samples_ms"]) for each in (dense, small)}

    def change(raw: dict[str, Any]) -> None:
        raw["choices"] = []
        raw["variants"] = [each for each in raw["variants"] if each["name"] in here_ms]
        for variant, accuracy in zip(raw["variants"], (0.9, 0.8), strict=True):
            p50 = here_ms[variant["name"]] / 10
            variant.update(accuracy=accuracy, measured_ms={"p50": p50, "p90": p50, "n": 20})

    folder = edited(app_bundle, tmp_path / "bundle", change)
    return folder, math.sqrt(math.prod(here_ms.values())), list(here_ms)


def test_the_benchmark_tells_every_sample(benchmark: dict[str, Any]) -> None:
    """Of every variant, and when and how warm each round was."""
    assert [len(each["samples_ms"]) for each in benchmark["variants"]] == [80] * 6
    assert all(ms > 0 for each in benchmark["variants"] for ms in each["samples_ms"])
    assert len(benchmark["rounds"]) == 20 and benchmark["images_a_round"] == 4
    assert set(benchmark["rounds"][0]) == {"unix_s", "temperature_c", "throttled"}
    assert benchmark["device"]["soc"] == live.app.device()[0]


@pytest.mark.parametrize("runtime", ["litert", "executorch"])
def test_each_image_is_told_by_its_class(app_bundle: Path, runtime: str) -> None:
    """Of the input's size and of another; one window an image."""
    images = app_bundle.parent / "images"
    every = ("--camera", images, "--window", 1, "--frames", 8, "--json")

    found = states(run_live(app_bundle, "--runtime", runtime, *every))

    paths = sorted(path.stem.removesuffix("-large") for path in images.iterdir())
    assert [state["top"]["label"] for state in found] == paths and set(paths) == set(CLASSES)


def test_a_missed_budget_changes_the_variant(app_bundle: Path, slow_board: tuple[Path, float, list[str]]) -> None:
    """The bundle promised that the dense network keeps it; measured here it does not, and the small one does."""
    folder, budget_ms, (dense, small) = slow_board
    images = app_bundle.parent / "images"

    found = states(run_live(folder, "--camera", images, "--budget-ms", budget_ms, "--frames", 100, "--json"))

    assert [state["name"] for state in found] == [dense, small, small, small, small]
    assert found[0]["p50_ms"] > budget_ms and found[0]["next"] == small
    assert min(state["p50_ms"] for state in found[1:]) <= budget_ms


def test_a_wide_budget_changes_nothing(app_bundle: Path, slow_board: tuple[Path, float, list[str]]) -> None:
    folder, budget_ms, (dense, _) = slow_board

    found = states(
        run_live(
            *(folder, "--camera", app_bundle.parent / "images", "--budget-ms", 1000 * budget_ms),
            *("--frames", 60, "--json"),
        )
    )

    assert [state["next"] for state in found] == [dense] * 3


@pytest.mark.parametrize(
    ("bits", "hot"), [("0x4", True), ("0x80008", True), ("0x0", False), ("0x1", False), ("0x40000", False)]
)
def test_a_hot_pi_goes_to_the_faster_variant(
    bits: str, hot: bool, app_bundle: Path, slow_board: tuple[Path, float, list[str]], tmp_path: Path
) -> None:
    """Throttled now; low voltage, and heat since the start, are none."""
    folder, _, (dense, small) = slow_board
    program = tmp_path / "bin" / "vcgencmd"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\n[ "$1" = get_throttled ] && echo "throttled={bits}"\n')
    program.chmod(0o755)
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    given = ("--camera", app_bundle.parent / "images", "--frames", 20, "--hot-c", 999, "--json")

    (state,) = states(run_live(folder, *given, PATH=path))

    assert (state["hot"], state["name"], state["next"]) == (hot, dense, small if hot else dense)


def test_a_damaged_variant_is_left_out_while_another_runs(
    app_bundle: Path, slow_board: tuple[Path, float, list[str]]
) -> None:
    """The camera goes on with what runs."""
    folder, budget_ms, (dense, small) = slow_board
    file = folder / f"{small}.tflite"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    images = app_bundle.parent / "images"

    done = run_live(folder, "--camera", images, "--budget-ms", budget_ms, "--frames", 40, "--json")

    assert [state["next"] for state in states(done)] == [dense] * 2
    assert done.stderr.startswith(f"live: {small} is left out: ") and done.stderr.count("\n") == 1
    assert "its sha256 is not the manifest's" in done.stderr


def test_a_terminal_shows_one_line(app_bundle: Path) -> None:
    """Written anew each time; it ends with the line's end."""
    main, other = pty.openpty()
    images = app_bundle.parent / "images"
    command = [sys.executable, str(APP / "live.py"), str(app_bundle), "--camera", str(images), "--frames", "60"]
    subprocess.run(command, stdout=other, check=True, timeout=300)
    os.close(other)

    told = os.read(main, 65536).decode()

    os.close(main)
    lines = told.removesuffix("\r\n").split("\r\033[K")
    assert lines[0] == "" and len(lines) == 4 and told.count("\n") == 1
    assert all("  p50 " in line for line in lines[1:])


def test_a_service_that_is_stopped_ends_in_peace(app_bundle: Path) -> None:
    """SIGTERM, with exit code 0 and no traceback."""
    images = app_bundle.parent / "images"
    command = [sys.executable, str(APP / "live.py"), str(app_bundle), "--camera", str(images), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["top"]["label"] in CLASSES
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)

    assert (process.returncode, errors) == (0, "")


VIDEO = """
import cv2, sys
writer = cv2.VideoWriter(sys.argv[1], cv2.VideoWriter_fourcc(*"MJPG"), 10, (120, 90))
picture = cv2.imread(sys.argv[2])
for _ in range(6):
    writer.write(picture)
writer.release()
"""


@pytest.mark.parametrize("label", ["red", "columns"])
def test_opencv_reads_a_video_to_its_end(label: str, app_bundle: Path, tmp_path: Path) -> None:
    """Its colours are in another order, which must not turn red into blue."""

    def fill(root: Path) -> None:
        output(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", f"--target={root}", OPENCV)

    opencv = kept(CACHE, ["opencv", OPENCV], fill)
    video, image = tmp_path / "video.avi", app_bundle.parent / "images" / f"{label}-large.png"
    environment = {**os.environ, "PYTHONPATH": str(opencv)}
    subprocess.run([sys.executable, "-c", VIDEO, str(video), str(image)], env=environment, check=True)
    command = [str(APP / "live.py"), str(app_bundle), "--camera", str(video), "--window", "3", "--json"]

    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=300, check=False
    )

    assert [state["top"]["label"] for state in states(done)] == [label] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--camera", "0"), "a camera needs picamera2"),
        (("--camera", "EMPTY"), "no images (.png"),
        (("--camera", "EMPTY", "--bench", "b.json"), "no images (.png"),
        (("--window", "0"), "'0' is not a number"),
        (("--budget-ms", "1e-9", "--camera", "EMPTY"), "below the fastest variant"),
        (("--bench", "b.json", "--variant", "gone"), "no variant to time"),
    ],
)
def test_a_refusal_is_one_line(options: tuple[str, ...], message: str, app_bundle: Path, tmp_path: Path) -> None:
    given = [str(tmp_path) if option == "EMPTY" else option for option in options]

    done = run_live(app_bundle, *given)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("live: ") and done.stderr.count("\n") == 1 and message in done.stderr


@pytest.mark.parametrize(
    ("zones", "celsius"),
    [
        ({}, None),
        ({"acpitz": "27800"}, 27.8),
        ({"gpu-thermal": "90000", "cpu-thermal": "61234", "soc-thermal": "60000"}, 61.234),
        ({"x86_pkg_temp": "71", "acpitz": "-20000"}, 71.0),
        ({"cpu-thermal": "broken"}, None),
    ],
)
def test_the_warmest_zone_of_the_processor_counts(
    zones: dict[str, str], celsius: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousandths of a degree, or degrees; of no processor's zones the first."""
    monkeypatch.setattr(live, "THERMAL", tmp_path)
    for number, (kind, raw) in enumerate(zones.items()):
        folder = tmp_path / f"thermal_zone{number}"
        folder.mkdir()
        (folder / "type").write_text(f"{kind}\n")
        (folder / "temp").write_text(f"{raw}\n")

    assert live.temperature_c() == celsius


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    """systemd-analyze verify, with a program in place of the board's, and the app takes its arguments."""
    unit = APP / "maestro-edge.service"
    parsed = configparser.ConfigParser(interpolation=None)
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read(unit)
    python, script, *arguments = shlex.split(parsed["Service"]["ExecStart"])
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    copied = tmp_path / unit.name
    copied.write_text(unit.read_text().replace(python, str(program)))
    analyze = bring(CACHE, tmp_path, "/usr/bin/systemd-analyze", "systemd")

    done = subprocess.run(
        [str(analyze), "verify", "--man=no", str(copied)], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert Path(script).name == "live.py"
    assert live.parse_args(arguments).camera == "0"
