"""Classify an image with one file of a maestro-edge bundle: `python classify.py BUNDLE IMAGE`.

Needs numpy and one runtime: ai-edge-litert, tflite-runtime, onnxruntime or executorch. It is one file for
Python 3.9 and later, so that copying it to a board is installing it; live.py beside it runs on a camera. In
order: read the manifest, choose a variant, check its file, read the image, run, report. An expected failure is
one line on stderr and exit code 1.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import hashlib
import importlib
import io
import json
import math
import os
import platform
import re
import struct
import sys
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

try:
    import numpy as np
except ImportError:
    sys.exit("classify: numpy is not installed here: pip install numpy")

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]  # (H, W, 1 or 3)
    Tensor = NDArray[np.float32]  # (1, C, H, W) or (1, H, W, C)
    Run = Callable[[Tensor], Tensor]

PACKAGES = {
    "litert": ("ai_edge_litert", "tflite_runtime"),
    "executorch": ("executorch",),
    "onnx": ("onnxruntime",),
}
CHANNEL_AXES = {"NCHW": 1, "NHWC": 3}
WARM_UP_RUNS = 3
MAX_PIXELS = 1 << 26

Variant = dict[str, Any]  # one of the manifest's variants as it was read, with at least VARIANT_KEYS
MANIFEST_KEYS = {"device": dict, "labels": list, "input": dict, "variants": list}
INPUT_KEYS = {"shape": list, "layout": str, "dtype": str, "mean": list, "std": list}
VARIANT_KEYS = {
    **dict.fromkeys(("name", "runtime", "runtime_version", "file", "sha256"), str),
    **{"size_bytes": int, "accuracy": (int, float), "ranks": dict, "measured_ms": (dict, type(None))},
}
CHOICE_KEYS = {
    **{"variant": str, "soc": (str, type(None)), "runtime": (str, type(None))},
    "memory_gib": (int, float, type(None)),
}


class ClassifyError(Exception):
    """An expected failure: what happened and what to do."""


def require(where: str, found: Any, wanted: dict[str, Any]) -> None:
    """Refuse an object that lacks one of the wanted keys, or has it in another type."""
    for key, kind in wanted.items():
        if not (isinstance(found, dict) and key in found and isinstance(found[key], kind)):
            raise ClassifyError(f"{where}: {key!r} is missing or of a wrong type: make the bundle again")


def load_manifest(bundle: Path) -> dict[str, Any]:
    """Read BUNDLE/manifest.json and check what is used of it."""
    path = bundle / "manifest.json"
    try:
        raw = json.loads(path.read_bytes())
    except ValueError as error:
        raise ClassifyError(f"{path}: cut short or not JSON ({error}): copy the bundle again") from error
    schema = raw.get("schema_version") if isinstance(raw, dict) else None
    if schema != 1:
        newer = isinstance(schema, int) and schema > 1
        advice = "a newer schema: update classify.py" if newer else "make the bundle again"
        raise ClassifyError(f"{path}: schema {schema!r}, this app reads schema 1; {advice}")
    require(f"{path}", raw, MANIFEST_KEYS)
    require(f"{path}: device", raw["device"], {"name": str})
    require(f"{path}: input", raw["input"], INPUT_KEYS)
    shape, layout, dtype, mean, std = (raw["input"][key] for key in INPUT_KEYS)
    known = layout in CHANNEL_AXES and dtype == "float32" and len(shape) == 4 and shape[0] == 1
    channels = shape[CHANNEL_AXES[layout]] if known else None
    if channels not in (1, 3) or not len(mean) == len(std) == channels:
        wanted = "one float32 image of 1 or 3 channels, NCHW or NHWC"
        raise ClassifyError(f"{path}: input is not {wanted}: {raw['input']}")
    if raw["input"].get("resize", "stretch") not in ("stretch", "crop"):
        raise ClassifyError(
            f"{path}: resize is {raw['input']['resize']!r}, not stretch or crop: make the bundle again"
        )
    for index, variant in enumerate(raw["variants"]):
        require(f"{path}: variant {index}", variant, VARIANT_KEYS)
        if variant["measured_ms"] is not None:
            number = (int, float)
            require(f"{path}: variant {index}", variant["measured_ms"], {"p50": number, "p90": number})
    require(f"{path}", {"choices": [], **raw}, {"choices": list})
    choices = [{"soc": None, "memory_gib": None, "runtime": None, **choice} for choice in raw.get("choices", [])]
    for index, choice in enumerate(choices):
        require(f"{path}: choice {index}", choice, CHOICE_KEYS)
    return {**raw, "choices": choices}


def reachable(variants: Sequence[Variant], runtimes: Collection[str]) -> list[Variant]:
    """The variants whose runtime is here and which ran on the device that the bundle was made for."""
    return [v for v in variants if v["runtime"] in runtimes and v["measured_ms"] is not None]


def best(variants: Sequence[Variant]) -> Variant | None:
    """The highest accuracy; of equal ones the lowest p50; of equal ones the first listed."""
    return max(variants, key=lambda v: (v["accuracy"], -v["measured_ms"]["p50"]), default=None)


def choose(
    variants: Sequence[Variant],
    budget_ms: float | None,
    runtimes: Collection[str],
    choices: Sequence[dict[str, Any]] = (),
    soc: str | None = None,
    memory_gib: float | None = None,
) -> Variant | None:
    """The variant to run, by the rules of apps/README.md; None when none is left.

    Without a budget the manifest's `choices` decide for the device's `soc` and memory, where one fits.
    """
    here = reachable(variants, runtimes)
    if budget_ms is not None:
        return best([v for v in here if v["measured_ms"]["p50"] <= budget_ms])
    for choice in choices:
        device_fits = choice["soc"] in (None, soc) and (choice["memory_gib"] or 0) <= (memory_gib or 0)
        for variant in here:
            named = variant["name"] == choice["variant"] and choice["runtime"] in (None, variant["runtime"])
            if device_fits and named:
                return variant
    return best(here)


def adapt(
    variants: Sequence[Variant],
    current: Variant,
    live_ms: float,
    budget_ms: float | None,
    hot: bool,
    runtimes: Collection[str],
) -> Variant:
    """The variant to go on with after runs of `live_ms` (median), by the rules of apps/README.md."""
    here = reachable(variants, runtimes)
    limit_ms = math.inf if budget_ms is None else budget_ms

    def expected_ms(variant: Variant) -> float:
        return float(variant["measured_ms"]["p50"] / current["measured_ms"]["p50"] * live_ms)

    if hot or live_ms > limit_ms:
        within = [v for v in here if expected_ms(v) <= limit_ms and not (hot and expected_ms(v) >= live_ms)]
        return best(within) or min(here, key=expected_ms)
    if budget_ms is None:
        return current
    better = [v for v in here if v["accuracy"] > current["accuracy"] and expected_ms(v) <= 0.9 * budget_ms]
    return best(better) or current


def first_line(*paths: str) -> str:
    """Of the first of these files that can be read; boards end it with a zero byte."""
    for path in paths:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            return Path(path).read_text().strip("\0\n ")
    return ""


def device() -> tuple[str, float | None]:
    """The SoC by the name that profiles give it, and GiB of memory."""
    board = first_line("/proc/device-tree/model", "/sys/firmware/devicetree/base/model")
    cpus, memory = (Path(f"/proc/{name}") for name in ("cpuinfo", "meminfo"))
    cpu = re.search(r"^model name[^:]*: *(.*)", cpus.read_text() if cpus.exists() else "", re.MULTILINE)
    kib = re.search(r"^MemTotal: *(\d+)", memory.read_text() if memory.exists() else "", re.MULTILINE)
    soc = board or (cpu[1].strip() if cpu else "") or platform.machine()
    return soc, round(int(kib[1]) / 2**20, 1) if kib else None


def installed(wanted: str | None) -> list[str]:
    """The runtimes that are here; what else a manifest names is passed over."""
    here = [name for name, packages in PACKAGES.items() if any(map(find_spec, packages))]
    runtimes = [name for name in here if wanted in (None, name)]
    if not runtimes:
        raise ClassifyError(f"{wanted or 'a runtime'} must be installed first: README.md has the pip line")
    return runtimes


def pick(manifest: dict[str, Any], args: argparse.Namespace) -> Variant:
    """`choose` among what the arguments allow; asked for by name alone, a variant need not be measured."""
    runtimes, variants = installed(args.runtime), manifest["variants"]
    usable: list[Variant] = [v for v in variants if v["runtime"] in runtimes and args.variant in (None, v["name"])]
    if usable and args.variant and args.budget_ms is None:
        return usable[0]
    chosen = choose(usable, args.budget_ms, runtimes, manifest["choices"], *device())
    if chosen:
        return chosen
    times_ms = [v["measured_ms"]["p50"] for v in reachable(usable, runtimes)]
    if times_ms:
        fastest = f"the fastest variant, {min(times_ms):.4g} ms"
        raise ClassifyError(f"a budget of {args.budget_ms:g} ms is below {fastest}: raise the budget")
    wanted = f"variant {args.variant!r}" if args.variant else "variant"
    have = ", ".join(f"{v['name']} ({v['runtime']})" for v in variants) or "nothing"
    raise ClassifyError(f"no {wanted} measured with {' or '.join(runtimes)}: the bundle has {have}")


def checked_file(bundle: Path, variant: Variant) -> Path:
    """The variant's file, once it is known to lie in the bundle and to be the one that was measured."""
    path: Path = (bundle / variant["file"]).resolve()
    if Path(variant["file"]).is_absolute() or bundle.resolve() not in path.parents:
        raise ClassifyError(f"{variant['file']!r} leaves the bundle folder: make the bundle again")
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    size = path.stat().st_size
    if size != variant["size_bytes"]:
        raise ClassifyError(f"{path}: {size} bytes, not {variant['size_bytes']}: copy the bundle again")
    if digest.hexdigest() != variant["sha256"]:
        raise ClassifyError(f"{path}: its sha256 is not the manifest's: copy the bundle again")
    return path


def unfilter(kinds: Pixels, lines: Pixels) -> Pixels:
    """Undo the PNG row filters (PNG specification, section 9): (H,), (H, W, C) → (H, W, C).

    A pixel needs those to its left, above and above left, so the pixels of an anti-diagonal do not need each
    other: H + W array steps rather than H * W Python ones.
    """
    height, width, channels = lines.shape
    out = np.zeros((height + 1, width + 1, channels), np.int16)
    for diagonal in range(height + width - 1):
        y = np.arange(max(0, diagonal - width + 1), min(height, diagonal + 1))
        x = diagonal - y
        left, up, corner = out[y + 1, x], out[y, x + 1], out[y, x]
        to_left, to_up, to_corner = abs(up - corner), abs(left - corner), abs(left + up - 2 * corner)
        paeth = np.where(to_up <= to_corner, up, corner)
        paeth = np.where((to_left <= to_up) & (to_left <= to_corner), left, paeth)
        guess = np.choose(kinds[y, None], [np.zeros_like(left), left, up, (left + up) >> 1, paeth])
        out[y + 1, x + 1] = (lines[y, x] + guess) & 255
    return out[1:, 1:].astype(np.uint8)


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The (type, content) pairs of a PNG, each with its checksum verified."""
    at, kind = 8, b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, at)
        content = data[at + 8 : at + 8 + length]
        if struct.unpack_from(">I", data, at + 8 + length) != (zlib.crc32(kind + content),):
            raise ValueError(f"wrong checksum of {kind!r}")
        yield kind, content
        at += 12 + length


def decode_png(data: bytes) -> Pixels | None:
    """An 8-bit PNG without its alpha; None for other depths and interlaced ones."""
    chunks = list(png_chunks(data))
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[0][1])
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour)
    if depth != 8 or interlaced or channels is None:
        return None
    if not 0 < width * height <= MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels")
    packed = b"".join(content for kind, content in chunks if kind == b"IDAT")
    # Bounded: a few bytes that inflate to gigabytes would fill the memory of a small board.
    raw = zlib.decompressobj().decompress(packed, height * (1 + width * channels))
    lines = np.frombuffer(raw, np.uint8).reshape(height, 1 + width * channels)
    pixels = unfilter(lines[:, 0], lines[:, 1:].reshape(height, width, channels))
    if colour != 3:
        return pixels[:, :, : 3 if channels > 2 else 1]
    palette = b"".join(content for kind, content in chunks if kind == b"PLTE").ljust(768, b"\0")
    return np.frombuffer(palette, np.uint8, 768).reshape(256, 3)[pixels[:, :, 0]]


def decode(data: bytes) -> Pixels | None:
    """The pixels of a PNG, PGM, PPM or .npy; None for what only Pillow may be able to read."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return decode_png(data)
    pnm = re.match(rb"P([56])" + 2 * rb"(?:\s|#[^\n]*\n)+(\d{1,5})" + rb"(?:\s|#[^\n]*\n)+255\s", data)
    if pnm:
        width, height, channels = int(pnm[2]), int(pnm[3]), 1 if pnm[1] == b"5" else 3
        pixels = np.frombuffer(data, np.uint8, width * height * channels, pnm.end())
        return pixels.reshape(height, width, channels)
    if data.startswith(b"\x93NUMPY"):
        array = np.asarray(np.load(io.BytesIO(data), allow_pickle=False))
        array = array[:, :, None] if array.ndim == 2 else array
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in (1, 3):
            raise ValueError(f"{array.dtype} {array.shape} is not uint8 (H, W), (H, W, 1) or (H, W, 3)")
        return array
    return None


def decode_with_pillow(path: Path, data: bytes) -> Pixels:
    """Any other format, turned upright as its EXIF says."""
    try:
        from PIL import Image, ImageOps
    except ImportError:
        formats = "8-bit PNG (not interlaced), PGM, PPM and .npy"
        raise ClassifyError(f"{path}: only {formats} are read without Pillow: pip install pillow") from None
    try:
        picture = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        if picture.mode[0] in "IF":  # Pillow clips the 16-bit and float modes to 8 bits, where others scale
            raise ValueError(picture.mode)
        return np.atleast_3d(np.asarray(picture.convert("L" if picture.mode in ("1", "L", "LA") else "RGB")))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ClassifyError(f"{path}: not an image that Pillow reads to 8 bits: give a PNG or JPEG") from error


def read_image(path: Path) -> Pixels:
    data = path.read_bytes()
    try:
        image = decode(data)
    except (ValueError, IndexError, EOFError, struct.error, zlib.error) as error:
        raise ClassifyError(f"{path}: a damaged or unsuitable image ({error}): give another") from error
    image = decode_with_pillow(path, data) if image is None else image
    if image.size == 0:
        raise ClassifyError(f"{path}: an image without pixels: give another")
    return image


def resize_weights(size: int, to: int, part: float) -> Tensor:
    """Bilinear resizing as a (to, size) matrix, antialiased when shrinking as in Pillow and torchvision.

    Only the centred `part` of the size is resized; what borders it counts as in Pillow's `box`.
    """
    step = part / to
    distance = np.arange(size) + 0.5 - ((size - part) / 2 + (np.arange(to)[:, None] + 0.5) * step)
    weights = np.maximum(0, 1 - abs(distance) / max(step, 1))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def prepare(image: Pixels, spec: dict[str, Any]) -> Tensor:
    """Pixels to what the model is fed, (1, C, H, W) or (1, H, W, C): stretched, or the centre of that shape."""
    axis = CHANNEL_AXES[spec["layout"]]
    channels = spec["shape"][axis]
    height, width = (size for each, size in enumerate(spec["shape"]) if each not in (0, axis))
    if image.shape[2] > channels:  # ITU-R 601 luma in the fixed point of Pillow's convert("L")
        image = ((image @ np.array([[19595], [38470], [7471]]) + 0x8000) >> 16).astype(np.uint8)
    pixels: NDArray[Any] = np.moveaxis(image, 2, 0).astype(np.float32)
    rows, columns = pixels.shape[1:]
    if (rows, columns) != (height, width):
        scale = min(rows / height, columns / width)
        part = (scale * height, scale * width) if spec.get("resize") == "crop" else (rows, columns)
        down, along = resize_weights(rows, height, part[0]), resize_weights(columns, width, part[1])
        pixels = down @ pixels @ along.T
    mean, std = (np.array(spec[key], np.float32)[:, None, None] for key in ("mean", "std"))
    return np.ascontiguousarray(np.moveaxis(((pixels / 255 - mean) / std)[None], 1, axis), np.float32)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Drop what C libraries print on file descriptors 1 and 2, so that stdout holds only the app's lines."""
    sys.stdout.flush()
    kept = os.dup(1), os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(kept[2], 1)
    os.dup2(kept[2], 2)
    try:
        yield
    finally:
        ctypes.CDLL(None).fflush(None)  # or what C still buffers comes out after the return of stdout
        os.dup2(kept[0], 1)
        os.dup2(kept[1], 2)
        for descriptor in kept:
            os.close(descriptor)


def load_litert(path: Path, threads: int, entry: str | None) -> Run:
    package = next(name for name in PACKAGES["litert"] if find_spec(name))
    make = importlib.import_module(f"{package}.interpreter").Interpreter
    interpreter = make(model_path=str(path), num_threads=threads)
    interpreter.allocate_tensors()  # first: tflite-runtime runs a signature without XNNPACK otherwise
    if entry is not None:  # a signature of a file that several variants share
        names = interpreter.get_signature_list().get(entry, {}).get("inputs")
        if not names:
            raise ValueError(f"it has no signature {entry!r}")
        call = interpreter.get_signature_runner(entry)
        return lambda image: np.asarray(next(iter(call(**{names[0]: image}).values())))
    feed, fetch = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def run(image: Tensor) -> Tensor:
        interpreter.set_tensor(feed, image)
        interpreter.invoke()
        return np.asarray(interpreter.get_tensor(fetch))

    return run


@functools.lru_cache(maxsize=1)  # once: a loaded method keeps the threads that it found
def executorch_bindings(threads: int) -> Any:
    try:
        bindings = importlib.import_module("executorch.extension.pybindings._C")
    except ImportError:  # the public name, but it brings the exporter in: 5 s rather than 2
        bindings = importlib.import_module("executorch.extension.pybindings.portable_lib")
    bindings._unsafe_reset_threadpool(threads)
    return bindings


def load_executorch(path: Path, threads: int, entry: str | None) -> Run:
    import torch

    program = executorch_bindings(threads)._load_program(str(path))
    method = program.load_method(entry or "forward")

    def run(image: Tensor) -> Tensor:
        method.set_inputs([torch.from_numpy(image)])
        method.execute()
        return np.array(method.get_outputs()[0])

    return run


def load_onnx(path: Path, threads: int, entry: str | None) -> Run:
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.force_spinning_stop", "1")  # as it was measured
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = session.get_inputs()[0].name

    def run(image: Tensor) -> Tensor:
        return np.asarray(session.run(None, {feed: image})[0])

    return run


def warm(path: Path, image: Tensor, variant: Variant, threads: int) -> Run:
    """The variant's file, or its entry in it, loaded and run a few times."""
    load = {"litert": load_litert, "executorch": load_executorch, "onnx": load_onnx}[variant["runtime"]]
    try:
        run = load(path, threads, variant.get("entry"))
        for _ in range(WARM_UP_RUNS):
            run(image)
    except Exception as error:  # those of ONNX Runtime have no other base
        runtime, shape = variant["runtime"], image.shape
        raise ClassifyError(f"{runtime} cannot run {path} on an input of {shape}: {error}") from error
    return run


def timed(run: Run, image: Tensor) -> tuple[Tensor, float]:
    """The output and the milliseconds of one run: feed, run, read, as an app does."""
    start = time.perf_counter()
    output = run(image)
    return output, 1e3 * (time.perf_counter() - start)


def measure(path: Path, image: Tensor, variant: Variant, args: argparse.Namespace) -> tuple[Tensor, list[float]]:
    """The model's output, and the milliseconds of each timed run."""
    samples_ms = []
    with silence():
        run = warm(path, image, variant, args.threads)
        for _ in range(args.runs):
            output, ms = timed(run, image)
            samples_ms.append(ms)
    return output, samples_ms


def likeliest(output: Tensor, labels: Sequence[str], count: int = 5) -> list[dict[str, Any]]:
    """Labels and their softmax probabilities, the likeliest first."""
    logits = output.ravel().astype(np.float64)
    if len(logits) != len(labels) or not np.isfinite(logits).all():
        raise ClassifyError(f"the model gave {output} for {len(labels)} labels: make the bundle again")
    odds = np.exp(logits - logits.max())
    return [{"label": labels[i], "probability": odds[i] / odds.sum()} for i in np.argsort(-odds)[:count]]


def classify(args: argparse.Namespace) -> dict[str, Any]:
    """All steps in order; returns what `--json` prints."""
    manifest = load_manifest(args.bundle)
    variant = pick(manifest, args)
    path = checked_file(args.bundle, variant)
    image = prepare(read_image(args.image), manifest["input"])
    output, samples_ms = measure(path, image, variant, args)
    p50, p90 = np.quantile(samples_ms, [0.5, 0.9]).tolist()
    return {
        **{key: variant[key] for key in ("name", "runtime", "runtime_version", "accuracy", "ranks")},
        "top": likeliest(output, manifest["labels"]),
        "latency_ms": {"p50": p50, "p90": p90, "n": args.runs},
        "threads": args.threads,
        "measured_ms": variant["measured_ms"],
        "measured_on": manifest["device"]["name"],
        "budget_ms": args.budget_ms,
    }


def report(result: dict[str, Any]) -> str:
    """The result as lines for a person."""
    here, there, budget_ms = result["latency_ms"], result["measured_ms"], result["budget_ms"]
    low_rank = sum(rank != "dense" for rank in result["ranks"].values())
    ranks = f"{low_rank} of {len(result['ranks'])} layers low rank" if low_rank else "dense"
    lines = [f"variant   {result['name']} ({result['runtime']}), {ranks}, accuracy {result['accuracy']:.1%}"]
    lines += [f"{top['probability']:8.2%}  {top['label']}" for top in result["top"]]
    how = f"{here['n']} runs, --threads {result['threads']}"
    lines.append(f"here      p50 {here['p50']:.3f} ms, p90 {here['p90']:.3f} ms ({how})")
    if there:
        where = f"{result['measured_on']}, {result['runtime']} {result['runtime_version']}"
        lines.append(f"measured  p50 {there['p50']:.3f} ms, p90 {there['p90']:.3f} ms ({where})")
    if budget_ms:
        lines.append(f"budget    {budget_ms:g} ms, {'kept' if here['p50'] <= budget_ms else 'exceeded'} here")
    return "\n".join(lines)


class Parser(argparse.ArgumentParser):
    """Reports a wrong argument like every other failure."""

    def error(self, message: str) -> NoReturn:
        raise ClassifyError(f"{message} (--help shows the usage)")


def budget(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a time: give positive milliseconds, such as 2.5")


def count(text: str) -> int:
    with contextlib.suppress(ValueError):
        if int(text) > 0:
            return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")


def parser_of(name: str, about: str | None) -> Parser:
    """The arguments that tell which variant runs how."""
    parser = Parser(prog=name, description=(about or "").split(":")[0])
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder with manifest.json and its files")
    parser.add_argument("--budget-ms", type=budget, help="the most accurate variant measured within this p50")
    parser.add_argument("--runtime", choices=sorted(PACKAGES), help="default: any that is installed")
    parser.add_argument("--variant", metavar="NAME", help="this variant of the manifest")
    parser.add_argument("--threads", type=count, default=1, help="default: %(default)s")
    return parser


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = parser_of("classify.py", __doc__)
    parser.add_argument("image", type=Path, metavar="IMAGE", help="PNG, PGM, PPM or .npy; others need Pillow")
    parser.add_argument("--runs", type=count, default=20, help="timed runs, default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args(argv)


def one_image(argv: Sequence[str] | None) -> None:
    args = parse_args(argv)
    result = classify(args)
    print(json.dumps(result) if args.json else report(result))


def main(
    argv: Sequence[str] | None = None,
    job: Callable[[Sequence[str] | None], None] = one_image,
    name: str = "classify",
) -> int:
    """The exit code of the job, whose expected failure is one line on stderr that begins with `name`."""
    try:
        job(argv)
        return 0
    except KeyboardInterrupt:
        return 130
    except OSError as error:  # every file that is read comes from the command line or the manifest
        message = f"{error.filename}: {error.strerror}: check the path" if error.filename else str(error)
    except ClassifyError as error:
        message = str(error)
    print(f"{name}:", *message.split(), file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
