"""Data sets from the usual files, as tensors in three splits that never share an image or a sentence pair."""

from __future__ import annotations

import gzip
import io
import math
import pickle
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from maestro_edge.errors import DataError, MissingExtra
from maestro_edge.recipes.images import IMAGE_SUFFIX, ImageFiles, class_files, decode
from maestro_edge.recipes.multi30k import Pairs, load_corpus

__all__ = ["Data", "Split", "load"]

# fmt: off
DIGITS: Final = tuple("0123456789")
FASHION: Final = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
                  "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
CIFAR10: Final = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# fmt: on
IMAGENET_STATISTICS: Final = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # torchvision's; counting takes hours
BATCHES: Final = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
BATCH: Final = re.compile(r"(cifar-10-batches-py/)?(data_batch_[1-5]|test_batch)")
# A leading dot is a system's own file or folder: ._1.png, .ipynb_checkpoints.
IMAGE: Final = re.compile(rf"(train|test)/[^/.][^/]*/[^/.][^/]*{IMAGE_SUFFIX}")


@dataclass(frozen=True, eq=False)  # == on tensors gives a tensor, not a bool
class Split:
    """Inputs and targets: (N, C, H, W) uint8 images and their (N,) classes, or those of multi30k."""

    inputs: Tensor
    targets: Tensor

    @property
    def images(self) -> Tensor:
        """The inputs of a data set of images."""
        return self.inputs

    def __len__(self) -> int:
        return len(self.targets)

    def at(self, chosen: Tensor) -> Split:
        """What is chosen by a mask, (N,) bool."""
        return Split(self.inputs[chosen], self.targets[chosen])


@dataclass(frozen=True, eq=False)
class Data:
    """Three disjoint splits; `mean` and `std` are per channel, of the train pixels / 255; none for text.

    `flip` says whether a mirrored image is still of the same class, `resize` what was done to those of another
    size: see InputSpec.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    labels: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    resize: Literal["stretch", "crop"] = "stretch"

    @property
    def is_text(self) -> bool:
        return not self.mean

    def normalise(self, inputs: Tensor) -> Tensor:
        """(pixel / 255 - mean) / std of uint8 images (N, C, H, W): float32, on their device; text as it is."""
        if self.is_text:
            return inputs
        mean = torch.tensor(self.mean, dtype=torch.float32, device=inputs.device).view(-1, 1, 1)
        std = torch.tensor(self.std, dtype=torch.float32, device=inputs.device).view(-1, 1, 1)
        return (inputs.to(torch.float32) / 255 - mean) / std


Parts = tuple[tuple[str, ...], Split, Split]  # labels, train and test as the files give them

KINDS: Final = ("cifar10", "mnist", "fashion-mnist", "folder", "imagenet", "multi30k")


def load(source: str, *, seed: int = 0) -> Data:
    """Read `digits`, or `KIND:PATH` with cifar10, mnist, fashion-mnist, folder, imagenet or multi30k.

    `digits` (in scikit-learn; upsampled to 32x32) is split 65/15/20 % by `seed`. The others keep their test
    split; `seed` moves a tenth of each class of train, at most 5,000 images in all, to validation.
    MNIST and Fashion-MNIST are folders of idx files, padded to 32x32. CIFAR-10 is a folder or a tar of its
    Python batches, or of RGB images train/CLASS/* and test/CLASS/*, the form that `folder` reads too.
    ImageNet is a folder of images of any size, train/CLASS/* and val/CLASS/*, which is its test split here, as
    its test labels are secret; they are decoded when they are used, to 224x224. Multi30k keeps its three splits.

    Raises:
        DataError: the source is unknown, or its files are missing, damaged or of another form.
        MissingExtra: scikit-learn (for digits) or Pillow (for image files) is not installed.
    """
    if source == "digits":
        return _digits(seed)
    kind, _, place = source.partition(":")
    if kind not in KINDS or not place:
        known = f"digits, {', '.join(f'{each}:PATH' for each in KINDS[:-1])} or {KINDS[-1]}:PATH"
        raise DataError(f"unknown data source {source!r}: give {known}")
    path = Path(place).expanduser()
    if not path.exists():
        raise DataError(f"{path}: no such file or folder: give the place of the {kind} files")
    if kind == "multi30k":
        return _text(path)
    if kind == "imagenet":
        return _imagenet(path, seed)
    if kind in ("mnist", "fashion-mnist"):
        labels = DIGITS if kind == "mnist" else FASHION
        given, test = _idx_split(path, "train"), _idx_split(path, "t10k")
    else:
        files = _files(path)
        as_batches = kind == "cifar10" and any(BATCH.fullmatch(name) for name in files)
        labels, given, test = _batches(path, files) if as_batches else _class_folders(path, files)
    train, validation = _hold_out(given, min(len(given) // 10, 5000), seed, labels)
    return _data(kind, train, validation, test, labels, flip=kind != "mnist")


def _data(name: str, train: Split, validation: Split, test: Split, labels: tuple[str, ...], flip: bool) -> Data:
    # Counting grey levels is exact, and spares a float copy of all pixels.
    levels = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.stack([channel.flatten().bincount(minlength=256) for channel in train.inputs.unbind(1)])
    shares = counts / counts.sum(1, keepdim=True, dtype=torch.float64)  # (C, 256)
    mean = shares @ levels
    variance = (shares * (levels - mean[:, None]) ** 2).sum(1)
    std = variance.sqrt().clamp(min=1 / 255)  # a channel of one grey level would divide by zero
    return Data(name, train, validation, test, labels, tuple(mean.tolist()), tuple(std.tolist()), flip)


def _text(folder: Path) -> Data:
    corpus = load_corpus(folder)

    def split(pairs: Pairs) -> Split:
        return Split(pairs.inputs, pairs.targets)

    train, validation, test = map(split, (corpus.train, corpus.validation, corpus.test))
    return Data("multi30k", train, validation, test, corpus.words, mean=(), std=(), flip=False)


def _imagenet(folder: Path, seed: int) -> Data:
    labels, paths, targets = class_files(folder / "train")
    test_labels, test_paths, test_targets = class_files(folder / "val")
    if labels != test_labels:
        only = ", ".join(sorted({*labels} ^ {*test_labels})[:5])
        raise DataError(f"{folder}: train/ and val/ differ in the classes {only}: give both the same")
    places = Split(torch.arange(len(paths)), targets)
    kept, held = _hold_out(places, min(len(paths) // 10, 5000), seed, labels)

    def files(chosen: Split, *, varied: bool) -> Split:
        return _lazy([paths[place] for place in chosen.inputs.tolist()], chosen.targets, varied=varied, seed=seed)

    train, validation = files(kept, varied=True), files(held, varied=False)
    test = _lazy(test_paths, test_targets, varied=False, seed=seed)
    return Data("imagenet", train, validation, test, labels, *IMAGENET_STATISTICS, flip=True, resize="crop")


def _lazy(paths: list[Path], targets: Tensor, *, varied: bool, seed: int) -> Split:
    # Its length, shape, slices and rows are a tensor's; nothing else is asked of a split's inputs.
    return Split(cast(Tensor, ImageFiles(paths, varied=varied, seed=seed)), targets)


def _hold_out(split: Split, count: int, seed: int, labels: tuple[str, ...]) -> tuple[Split, Split]:
    """What is kept, and about `count` images held out: the same share of each class, one at least."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    held = torch.zeros(len(split), dtype=torch.bool)
    for label in sorted(set(split.targets.tolist())):
        of_class = order[split.targets[order] == label]
        if len(of_class) < 2:
            raise DataError(f"class {labels[label]!r} has 1 train image: give 2 or more, 1 is for validation")
        held[of_class[: max(1, len(of_class) * count // len(split))]] = True
    return split.at(~held), split.at(held)


def _digits(seed: int) -> Data:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtra("scikit-learn", "train") from error
    pixels, targets = load_digits(return_X_y=True)
    small = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) * (255 / 16)
    images = F.interpolate(small, size=32, mode="bilinear", align_corners=False).round().to(torch.uint8)
    whole = Split(images, torch.from_numpy(targets).long())
    rest, test = _hold_out(whole, len(whole) * 20 // 100, seed, DIGITS)
    train, validation = _hold_out(rest, len(whole) * 15 // 100, seed, DIGITS)
    return _data("digits", train, validation, test, DIGITS, flip=False)


def _checked(where: Path, images: Tensor, targets: Tensor) -> Split:
    if len(images) != len(targets) or not len(images):
        raise DataError(f"{where}: {len(images)} images but {len(targets)} labels: get the files again")
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high > 9:
        raise DataError(f"{where}: labels from {low} to {high}, not 0 to 9: get the files again")
    return Split(images, targets)


def _idx_split(folder: Path, prefix: str) -> Split:
    images = _idx(folder / f"{prefix}-images-idx3-ubyte", 3)
    targets = _idx(folder / f"{prefix}-labels-idx1-ubyte", 1)
    if images.shape[1:] != (28, 28):
        size = "x".join(map(str, images.shape[1:]))
        raise DataError(f"{folder}: {prefix} images are {size}, not 28x28: give files of MNIST's form")
    return _checked(folder / prefix, F.pad(images, (2, 2, 2, 2)).unsqueeze(1), targets.long())


def _idx(plain: Path, dimensions: int) -> Tensor:
    """A uint8 tensor from an idx file: magic number and sizes as big-endian uint32, then the values."""
    path = plain if plain.exists() else plain.with_name(f"{plain.name}.gz")
    try:
        content = path.read_bytes() if path == plain else gzip.decompress(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{plain}: no such file, nor {path.name}: put it there") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}): get the file again") from error
    header, magic = 4 + 4 * dimensions, 0x0800 + dimensions  # 08 stands for uint8
    if len(content) < header:
        raise DataError(f"{path}: {len(content)} bytes, less than a header of {header}: get the file again")
    found, *shape = struct.unpack(f">{1 + dimensions}I", content[:header])
    if found != magic:
        raise DataError(f"{path}: magic number {found}, not {magic}: give an idx{dimensions} file of uint8")
    held, declared = len(content) - header, math.prod(shape)
    if held != declared:
        sizes = " x ".join(map(str, shape))
        raise DataError(f"{path}: declares {sizes} = {declared} bytes, holds {held}: get the file again")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy())


def _files(path: Path) -> dict[str, bytes]:
    """The batches and images in a folder or a tar, sorted by name: either form gives the same splits."""
    import tarfile

    found: dict[str, bytes] = {}
    try:
        if path.is_dir():
            for file in (file for depth in ("*", "*/*", "*/*/*") for file in path.glob(depth)):
                name = file.relative_to(path).as_posix()
                if (BATCH.fullmatch(name) or IMAGE.fullmatch(name)) and file.is_file():
                    found[name] = file.read_bytes()
            return dict(sorted(found.items()))
        # Members are read into memory, never extracted: one named ../../x writes nothing.
        with tarfile.open(path) as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                if (BATCH.fullmatch(name) or IMAGE.fullmatch(name)) and (stream := tar.extractfile(member)):
                    found[name] = stream.read()
            # A header that is cut or damaged ends the loop as the end does: only there are zeros.
            if tar.fileobj:
                tar.fileobj.seek(tar.offset)
                if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise EOFError(f"cut or damaged after {len(found)} files")
    except Exception as error:  # tarfile lets those of its decompressors through
        reason = str(error).split("\n")[0].rstrip(":")
        raise DataError(f"{path}: cannot be read ({reason}): give a folder or a whole tar") from error
    return dict(sorted(found.items()))


def _class_folders(path: Path, files: dict[str, bytes]) -> Parts:
    names = [name for name in files if IMAGE.fullmatch(name)]
    # Sorted by name is sorted by class: shuffled, so that the first images of a split are a sample of all.
    shuffled = torch.randperm(len(names), generator=torch.Generator().manual_seed(0))
    names = [names[index] for index in shuffled.tolist()]
    splits, classes = [name.split("/")[0] for name in names], [name.split("/")[1] for name in names]
    pairs = set(zip(splits, classes, strict=True))
    labels = tuple(sorted({label for split, label in pairs if split == "train"}))
    if not labels or pairs != {(split, label) for split in ("train", "test") for label in labels}:
        found = ", ".join(f"{split}/{label}" for split, label in sorted(pairs)[:20]) or "none"
        raise DataError(f"{path}: give the same classes images in train/ and test/ (.png, .jpg), not {found}")
    targets = torch.tensor([labels.index(label) for label in classes])
    is_test = torch.tensor([split == "test" for split in splits])
    whole = Split(_decode(names, files), targets)
    return labels, whole.at(~is_test), whole.at(is_test)


def _decode(names: list[str], files: dict[str, bytes]) -> Tensor:
    """RGB images, (N, 3, H, W)."""
    images = [decode(name, files[name]) for name in names]
    for name, image in zip(names, images, strict=True):
        if image.shape != images[0].shape:
            size, first = ("x".join(map(str, each.shape[:0:-1])) for each in (image, images[0]))
            raise DataError(f"image {name!r} is {size}, {names[0]!r} is {first}: resize all to one size")
    return torch.stack(images)


def _batches(path: Path, files: dict[str, bytes]) -> Parts:
    found = {name.split("/")[-1]: name for name in files if BATCH.fullmatch(name)}
    if missing := [name for name in BATCHES if name not in found]:
        raise DataError(f"{path}: no {', '.join(missing)} beside {', '.join(found)}: get all six batches")
    *train, test = (_batch(path / found[name], files[found[name]]) for name in BATCHES)
    images, targets = torch.cat([part.inputs for part in train]), torch.cat([part.targets for part in train])
    return CIFAR10, Split(images, targets), test


def _batch(where: Path, content: bytes) -> Split:
    """Rows of 3 x 32 x 32 bytes under b"data", a list of integers under b"labels"."""
    try:
        batch = _BatchUnpickler(io.BytesIO(content), encoding="bytes").load()
        images = torch.from_numpy(batch[b"data"].reshape(-1, 3, 32, 32))
        targets = torch.tensor(batch[b"labels"], dtype=torch.int64).flatten()
    except Exception as error:  # a damaged pickle may raise almost anything
        reason = f"{type(error).__name__}: {error}".split("\n")[0]
        raise DataError(f"{where}: not a CIFAR-10 batch ({reason}): get the Python version again") from error
    return _checked(where, images, targets)


# Unpickling calls whatever the file names, os.system too, and a file from the net may name anything. Only the
# names in CIFAR-10's batches pass, and as stand-ins that make arrays of bytes: numpy's own dtype takes its
# flags from the file, and a forged one has bytes followed as pointers.
STAND_INS: Final[dict[tuple[str, str], Callable[..., Any]]] = {
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: np.empty(0, np.uint8),
    ("numpy._core.multiarray", "_reconstruct"): lambda *_: np.empty(0, np.uint8),
    ("numpy", "ndarray"): lambda *_: np.empty(0, np.uint8),
    ("numpy", "dtype"): lambda *_: np.dtype(np.uint8),
    ("_codecs", "encode"): lambda text, _: text.encode("latin1"),
}


class _BatchUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) not in STAND_INS:
            raise DataError(f"it asks for {module!r} {name!r}, which no such batch needs")
        return STAND_INS[module, name]
