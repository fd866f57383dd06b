"""Decoding image files: one to a tensor, or a large set of any sizes only when it is indexed."""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor

from maestro_edge.errors import DataError, MissingExtra

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["IMAGE_SUFFIX", "ImageFiles", "class_files", "decode"]

IMAGE_SUFFIX: Final = r"\.(?i:png|jpe?g)"

Box = tuple[float, float, float, float]

_SCALE: Final = (0.08, 1.0)
_LOG_RATIO: Final = (math.log(3 / 4), math.log(4 / 3))
_SHORT_SIDE: Final = 256 / 224
# A leading dot is a system's own file or folder.
_IMAGE: Final = re.compile(rf"[^/.][^/]*/[^/.][^/]*{IMAGE_SUFFIX}")


class ImageFiles:
    """Image files that stand where a uint8 tensor (N, 3, size, size) stands: only what is indexed is decoded.

    It has a length and a shape and takes a slice or a LongTensor, nothing else. Each image is cropped at the
    centre, 224/256 of its shorter side. With `varied` a random part of it is taken and half are mirrored:
    8 to 100 % of the area, sides 3:4 to 4:3 (Szegedy et al., CVPR 2015, §6; torchvision's RandomResizedCrop).
    The crops depend on `seed` and on which images are asked for together, so that a training that shuffles
    sees others every epoch and, resumed, the same again.
    """

    def __init__(self, paths: Sequence[Path], *, size: int = 224, varied: bool = False, seed: int = 0) -> None:
        self.paths, self.size, self.varied, self.seed = tuple(paths), size, varied, seed

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.paths), 3, self.size, self.size))

    @property
    def dtype(self) -> torch.dtype:
        return torch.uint8

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        """The chosen images, (B, 3, size, size) uint8.

        Raises:
            DataError: one of them is no whole PNG or JPEG of 8 bits.
            MissingExtra: Pillow is not installed.
        """
        places = torch.arange(len(self))[index]
        key = hashlib.sha256(f"{self.seed}:{places.tolist()}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key[:7], "big"))
        seeds = torch.randint(2**62, (len(places),), generator=generator).tolist()
        images = torch.empty(len(places), 3, self.size, self.size, dtype=torch.uint8)
        # Pillow decodes and resizes without holding the interpreter's lock.
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            for row, image in enumerate(pool.map(self._crop, (self.paths[place] for place in places), seeds)):
                images[row] = image
        return images

    def _crop(self, path: Path, seed: int) -> Tensor:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error}): get the file again") from error
        image = _open(str(path), content)
        from PIL.Image import Resampling  # there, as the image could be opened

        generator = torch.Generator().manual_seed(seed)
        box = _random_box(*image.size, generator) if self.varied else _centre_box(*image.size)
        cropped = image.resize((self.size, self.size), Resampling.BILINEAR, box=box)
        pixels = torch.from_numpy(np.array(cropped)).permute(2, 0, 1)  # (3, size, size)
        mirrored = self.varied and float(torch.rand((), generator=generator)) < 0.5
        return pixels.flip(2) if mirrored else pixels


def _centre_box(width: int, height: int) -> Box:
    side = min(width, height) / _SHORT_SIDE
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _random_box(width: int, height: int, generator: torch.Generator) -> Box:
    for _ in range(10):  # a wide crop of a tall image may not fit: drawn again, as torchvision does
        share, log_ratio, x, y = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        area = width * height * (_SCALE[0] + share * (_SCALE[1] - _SCALE[0]))
        ratio = math.exp(_LOG_RATIO[0] + log_ratio * (_LOG_RATIO[1] - _LOG_RATIO[0]))
        wide, high = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if wide <= width and high <= height:
            left, top = x * (width - wide), y * (height - high)
            return left, top, left + wide, top + high
    return _centre_box(width, height)


def class_files(folder: Path) -> tuple[tuple[str, ...], list[Path], Tensor]:
    """Classes, image files CLASS/* and their class indices, shuffled: the first of them are a sample of all.

    Raises:
        DataError: there are none.
    """
    every = (path.relative_to(folder).as_posix() for path in folder.glob("*/*"))
    found = sorted(name for name in every if _IMAGE.fullmatch(name))
    if not found:
        raise DataError(f"{folder}: no images: give a folder a class, with .png or .jpg files in it")
    labels = tuple(sorted({name.split("/")[0] for name in found}))
    index = {label: place for place, label in enumerate(labels)}
    shuffled = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))
    names = [found[place] for place in shuffled.tolist()]
    return labels, [folder / name for name in names], torch.tensor([index[name.split("/")[0]] for name in names])


def decode(name: str, content: bytes) -> Tensor:
    """The (3, H, W) uint8 pixels of a PNG or JPEG.

    Raises:
        DataError: it is neither, is damaged, or has 16 bits a pixel.
        MissingExtra: Pillow is not installed.
    """
    return torch.from_numpy(np.array(_open(name, content))).permute(2, 0, 1)


def _open(name: str, content: bytes) -> Image:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("pillow", "train") from error
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
            mode, decoded = image.mode, image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"image {name!r} is not a whole PNG or JPEG: replace or remove it") from error
    if mode.startswith("I"):  # Pillow would clip 16 bits to white, not scale them
        raise DataError(f"image {name!r} has 16 bits a pixel: convert it to 8")
    return decoded
