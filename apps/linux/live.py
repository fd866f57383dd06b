"""Classify what a camera sees, and keep a budget: `python live.py BUNDLE --camera 0 --budget-ms 2.5`.

It needs classify.py beside it and, for a camera, picamera2 or OpenCV; a folder of images, shown again and again,
serves as one too. While it runs it goes to another variant when a budget is missed, when there is room for a more
accurate one, or when the board is hot. With `--bench FILE` it times every variant instead, by turns, and writes
each sample to a JSON file.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

sys.path.insert(0, str(Path(__file__).parent))
import classify as app  # it tells what is missing
import numpy as np
from classify import ClassifyError, Variant

if TYPE_CHECKING:
    from classify import Pixels, Run, Tensor

THERMAL = Path("/sys/class/thermal")
PI_HOT_BITS = 0xE  # frequency capped, throttled, soft limit; bit 0 is low voltage, which is no heat
SUFFIXES = (".png", ".pgm", ".ppm", ".npy", ".jpg", ".jpeg")
NO_CAMERA = (
    "a camera needs picamera2 (apt install python3-picamera2) or OpenCV (pip install opencv-python-headless)"
)


# --- what is seen


def frames(source: str) -> Iterator[Pixels]:
    """Images (H, W, 1 or 3), RGB, without end of a camera and of a folder, to the end of a video."""
    if Path(source).is_dir():
        return folder_frames(Path(source))
    if source.isdigit() and find_spec("picamera2") and (found := pi_frames(int(source))):
        return found
    if find_spec("cv2"):
        return video_frames(source)
    raise ClassifyError(f"{source}: {NO_CAMERA}")


def folder_frames(folder: Path) -> Iterator[Pixels]:
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ClassifyError(f"{folder}: no images ({', '.join(SUFFIXES)}): give a folder that has some")
    for path in itertools.cycle(paths):
        yield app.read_image(path)


def pi_frames(number: int) -> Iterator[Pixels] | None:
    """Of a Raspberry Pi's own camera; None where there is none of this number."""
    camera_of = importlib.import_module("picamera2").Picamera2
    if number >= len(camera_of.global_camera_info()):
        return None

    def seen() -> Iterator[Pixels]:
        camera = camera_of(number)
        # Its names count bytes of a little-endian word: BGR888 is red first.
        camera.configure(camera.create_video_configuration({"size": (640, 480), "format": "BGR888"}))
        camera.start()
        try:
            while True:
                yield camera.capture_array()
        finally:
            camera.stop()

    return seen()


def video_frames(source: str) -> Iterator[Pixels]:
    cv2 = importlib.import_module("cv2")
    video = cv2.VideoCapture(int(source) if source.isdigit() else source)
    if not video.isOpened():
        raise ClassifyError(f"{source}: OpenCV opens no such camera or video: give a number, a file or a folder")
    try:
        while (read := video.read())[0]:
            yield np.ascontiguousarray(read[1][:, :, ::-1])  # OpenCV's order is blue, green, red
    finally:
        video.release()


# --- how warm it is


def temperature_c() -> float | None:
    """The warmest zone of the processor, or the first zone; None where the system tells none."""
    zones = []
    for zone in sorted(THERMAL.glob("thermal_zone*")):
        raw = app.first_line(str(zone / "temp"))
        if re.fullmatch(r"-?\d+", raw):
            kind = app.first_line(str(zone / "type")).lower()
            processor = any(word in kind for word in ("cpu", "soc", "pkg", "tsens"))
            zones.append((processor, int(raw) / (1000 if abs(int(raw)) >= 1000 else 1)))
    of_processor = [celsius for processor, celsius in zones if processor]
    return max(of_processor) if of_processor else zones[0][1] if zones else None


def throttled() -> bool:
    """Whether a Raspberry Pi says that heat slows it now."""
    if shutil.which("vcgencmd") is None:
        return False
    try:
        told = subprocess.run(
            ["vcgencmd", "get_throttled"], capture_output=True, text=True, timeout=2, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    bits = re.fullmatch(r"throttled=0x([0-9a-fA-F]+)", told.stdout.strip())
    return bool(bits and int(bits[1], 16) & PI_HOT_BITS)


# --- live


class Live:
    """A variant that runs, its last times, and what it went through."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.manifest = args, app.load_manifest(args.bundle)
        self.runtimes, self.usable = app.installed(args.runtime), self.manifest["variants"]
        self.variant: Variant = app.pick(self.manifest, args)
        self.run: Run | None = None
        self.samples_ms: list[float] = []

    def start(self, image: Tensor) -> None:
        """Load the variant; one that fails later, while another runs, is left out from then on."""
        self.run = start(self.variant, image, self.args)

    def see(self, pixels: Pixels) -> dict[str, Any] | None:
        """Run on an image; what there is to tell once the window of times is full."""
        image = app.prepare(pixels, self.manifest["input"])
        if self.run is None:
            self.start(image)
        assert self.run is not None
        try:
            output, ms = app.timed(self.run, image)
        except (RuntimeError, SystemError, ValueError) as error:
            raise ClassifyError(f"{self.variant['name']} failed while it ran: {error}") from error
        self.samples_ms.append(ms)
        if len(self.samples_ms) < self.args.window:
            return None
        state = self.state(output)
        if self.args.variant is None:
            state["next"] = self.go_on(image, state)
        self.samples_ms.clear()
        return state

    def state(self, output: Tensor) -> dict[str, Any]:
        p50, p90 = np.quantile(self.samples_ms, [0.5, 0.9]).tolist()
        celsius = temperature_c()
        return {
            "name": self.variant["name"],
            "runtime": self.variant["runtime"],
            "p50_ms": p50,
            "p90_ms": p90,
            "n": len(self.samples_ms),
            "budget_ms": self.args.budget_ms,
            "temperature_c": celsius,
            "hot": throttled() or (celsius is not None and celsius >= self.args.hot_c),
            "top": app.likeliest(output, self.manifest["labels"], 1)[0],
            "next": self.variant["name"],
        }

    def go_on(self, image: Tensor, state: dict[str, Any]) -> str:
        """Change to what `adapt` says; the name of what runs next."""
        while True:
            told = (self.usable, self.variant, state["p50_ms"], self.args.budget_ms, state["hot"], self.runtimes)
            following = app.adapt(*told)
            if following is self.variant:
                break
            try:
                self.run = start(following, image, self.args)
            except (ClassifyError, OSError) as error:
                self.usable = [each for each in self.usable if each is not following]
                print(f"live: {following['name']} is left out: {' '.join(str(error).split())}", file=sys.stderr)
                continue
            self.variant = following
            break
        return str(self.variant["name"])


def start(variant: Variant, image: Tensor, args: argparse.Namespace) -> Run:
    path = app.checked_file(args.bundle, variant)
    with app.silence():
        return app.warm(path, image, variant, args.threads)


class Screen:
    """One line that is written anew on a terminal, a line a second elsewhere; changes of variant stay."""

    def __init__(self, as_json: bool) -> None:
        self.as_json, self.terminal, self.last_s = as_json, sys.stdout.isatty() and not as_json, 0.0

    def show(self, state: dict[str, Any]) -> None:
        switched = state["next"] != state["name"]
        if self.as_json:
            print(json.dumps(state), flush=True)
            return
        if self.terminal or switched or time.monotonic() - self.last_s >= 1:
            self.last_s = time.monotonic()
            end = "" if self.terminal and not switched else "\n"
            print(("\r\033[K" if self.terminal else "") + line_of(state), end=end, flush=True)


def line_of(state: dict[str, Any]) -> str:
    parts = [f"{state['name']}  p50 {state['p50_ms']:.3f} ms, p90 {state['p90_ms']:.3f} ms"]
    if state["budget_ms"] is not None:
        kept = "kept" if state["p50_ms"] <= state["budget_ms"] else "missed"
        parts.append(f"budget {state['budget_ms']:g} ms {kept}")
    if state["temperature_c"] is not None:
        parts.append(f"{state['temperature_c']:.0f} °C{' hot' if state['hot'] else ''}")
    parts.append(f"{state['top']['probability']:.0%} {state['top']['label']}")
    return "  ".join(parts) + (f"  → {state['next']}" if state["next"] != state["name"] else "")


# --- benchmark


def bench(args: argparse.Namespace) -> dict[str, Any]:
    """Times of all variants that are usable here, or of `--variant`, by turns on the same images."""
    manifest, runtimes = app.load_manifest(args.bundle), app.installed(args.runtime)
    wanted = [v for v in manifest["variants"] if v["runtime"] in runtimes and args.variant in (None, v["name"])]
    if not wanted:
        have = ", ".join(v["name"] for v in manifest["variants"]) or "nothing"
        raise ClassifyError(f"no variant to time with {' or '.join(runtimes)}: the bundle has {have}")
    seen = itertools.islice(frames(args.camera), args.window)
    images = [app.prepare(pixels, manifest["input"]) for pixels in seen]
    if not images:
        raise ClassifyError(f"{args.camera}: not one image came: check the source")
    timed = [(variant, start(variant, images[0], args), list[float]()) for variant in wanted]
    rounds = []
    for _ in range(max(1, round((args.frames or 200) / len(images)))):
        rounds.append({"unix_s": time.time(), "temperature_c": temperature_c(), "throttled": throttled()})
        for _, run, samples_ms in timed:
            app.timed(run, images[0])  # what ran before has left its own data in the caches
            samples_ms += [app.timed(run, image)[1] for image in images]
    soc, memory_gib = app.device()
    described = ("name", "runtime", "file", "sha256")
    return {
        "schema_version": 1,
        "device": {"soc": soc, "memory_gib": memory_gib, "arch": platform.machine(), "os": platform.platform()},
        "threads": args.threads,
        "images_a_round": len(images),
        "rounds": rounds,
        "variants": [
            {**{key: variant[key] for key in described}, "samples_ms": samples_ms}
            for variant, _, samples_ms in timed
        ],
    }


def write_whole(path: Path, text: str) -> None:
    """Beside the file and then in its place: a reader never sees half of it."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        aside.write_text(text)
        aside.replace(path)
    finally:
        if aside.exists():
            aside.unlink()


# --- command line


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = app.parser_of("live.py", __doc__)
    parser.add_argument("--camera", default="0", metavar="SOURCE", help="number, video, or folder; default: 0")
    parser.add_argument("--window", type=app.count, default=20, help="runs that are judged at a time, default: 20")
    parser.add_argument("--frames", type=app.count, help="stop after so many; default: never, of --bench 200")
    parser.add_argument("--hot-c", type=float, default=80.0, help="°C from which the board is hot, default: 80")
    parser.add_argument("--bench", type=Path, metavar="FILE", help="time every variant, write all samples to FILE")
    parser.add_argument("--json", action="store_true", help="print one JSON object a window")
    return parser.parse_args(argv)


def run_live(argv: Sequence[str] | None) -> None:
    args = parse_args(argv)
    if args.bench is not None:
        found = bench(args)
        write_whole(args.bench, json.dumps(found, indent=1) + "\n")
        for each in found["variants"]:
            p50, p90 = np.quantile(each["samples_ms"], [0.5, 0.9])
            print(f"{each['name']}  p50 {p50:.3f} ms, p90 {p90:.3f} ms ({len(each['samples_ms'])} runs)")
        return
    live, screen = Live(args), Screen(args.json)
    for pixels in itertools.islice(frames(args.camera), args.frames):
        state = live.see(pixels)
        if state is not None:
            screen.show(state)
    if screen.terminal:
        print()


def leave(number: int, frame: object) -> NoReturn:
    """systemd ends a service by SIGTERM: an expected end."""
    sys.exit(0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, leave)
    sys.exit(app.main(None, run_live, "live"))
