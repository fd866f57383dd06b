"""Every source, read from small files made here: splits, forms, damage and refusals."""

from __future__ import annotations

import gzip
import io
import math
import os
import pickle
import struct
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maestro_edge.errors import DataError, MissingExtra
from maestro_edge.recipes.data import Data, Split, load
from maestro_edge.recipes.images import ImageFiles
from maestro_edge.recipes.run import create
from maestro_edge.training import TrainSettings, train

Bytes = npt.NDArray[np.uint8]
PREFIXES = {"train": "train", "test": "t10k"}


def numbered(count: int, *shape: int) -> Bytes:
    """Images that are told apart by their values: number i in base 256 in the first two."""
    images = np.zeros((count, *shape), np.uint8)
    flat = images.reshape(count, math.prod(shape))
    flat[:, 0], flat[:, 1] = np.arange(count) % 256, np.arange(count) // 256
    return images


def idx(array: Bytes) -> bytes:
    return struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()


def write_idx(folder: Path, images: Bytes, labels: Bytes, *, split: str = "train", packed: bool = False) -> None:
    for name, array in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
        path = folder / f"{PREFIXES[split]}-{name}{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))


def mnist(folder: Path, *, train: int = 40, test: int = 10, packed: bool = False) -> Path:
    """A folder of idx files, `train` + `test` numbered images, ten classes in turn."""
    for split, count in (("train", train), ("test", test)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        write_idx(folder, numbered(count, 28, 28), labels, split=split, packed=packed)
    return folder


def batch(count: int) -> bytes:
    """A CIFAR-10 batch as Python 2 and numpy 1 wrote it: protocol 2, bytes as keys, numpy.core."""
    content = {b"data": numbered(count, 3072), b"labels": [row % 10 for row in range(count)]}
    return pickle.dumps(content, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def batches(count: int = 20) -> dict[str, bytes]:
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    return {name: batch(count) for name in names}


def png(value: int, size: tuple[int, int] = (32, 32)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (value, 2 * value, 255 - value)).save(stream, "PNG")
    return stream.getvalue()


def pictures(train: int = 5, test: int = 2) -> dict[str, bytes]:
    """File name → PNG: `train` + `test` images, told apart by their colour, of the classes cat and ant."""
    names = [f"train/{label}/{number}.png" for label in ("cat", "ant") for number in range(train)]
    names += [f"test/{label}/{number}.png" for label in ("cat", "ant") for number in range(test)]
    return {name: png(value) for value, name in enumerate(names)}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def write_tar(path: Path, files: dict[str, bytes], *, packed: bool = False) -> Path:
    with tarfile.open(path, "w:gz" if packed else "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def counted(*splits: Split) -> Counter[tuple[bytes, int]]:
    """The (image, target) pairs of the splits together."""
    pairs = [(image, int(target)) for s in splits for image, target in zip(s.inputs, s.targets, strict=True)]
    return Counter((image.numpy().tobytes(), target) for image, target in pairs)


def same(one: Data, other: Data) -> bool:
    splits = ((one.train, other.train), (one.validation, other.validation), (one.test, other.test))
    return all(torch.equal(a.inputs, b.inputs) and torch.equal(a.targets, b.targets) for a, b in splits)


def refusal(source: str) -> str:
    """The message with which `source` is refused: one line."""
    with pytest.raises(DataError) as caught:
        load(source)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_digits_are_split_in_three() -> None:
    """The 1,797 digits come as 32x32 in 0..255, about 65/15/20 %, each class in each split."""
    data = load("digits")

    sizes = [len(data.train), len(data.validation), len(data.test)]

    assert sum(sizes) == 1797
    assert [round(size / 1797, 2) for size in sizes] == pytest.approx([0.65, 0.15, 0.20], abs=0.011)
    assert data.train.inputs.shape[1:] == (1, 32, 32)
    assert data.train.inputs.dtype == torch.uint8
    assert (int(data.train.inputs.min()), int(data.train.inputs.max())) == (0, 255)
    assert all(len(set(split.targets.tolist())) == 10 for split in (data.train, data.validation, data.test))
    assert (data.labels, data.flip) == (tuple("0123456789"), False)


def test_digits_change_with_the_seed_only() -> None:
    """The same seed gives the same splits, another seed others."""
    data = load("digits", seed=3)

    again, other = load("digits", seed=3), load("digits", seed=4)

    assert same(data, again)
    assert not same(data, other)


def test_digits_never_share_an_image() -> None:
    """Each digit image is in one split only."""
    data = load("digits")

    together = counted(data.train, data.validation, data.test)

    assert together.total() == 1797
    assert max(together.values()) == 1


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(0, 2**31), st.booleans())
def test_train_and_validation_share_nothing_and_lose_nothing(
    tmp_path_factory: pytest.TempPathFactory, classes: list[int], seed: int, packed: bool
) -> None:
    """Every image of the idx files is in train or in validation, unchanged but for the padding."""
    folder = tmp_path_factory.mktemp("idx")
    labels = np.array([*classes, *classes], np.uint8)
    images = numbered(len(labels), 28, 28)
    images[:, 5, 7] = 200
    write_idx(folder, images, labels, packed=packed)
    write_idx(folder, images[:1], labels[:1], split="test", packed=packed)

    data = load(f"mnist:{folder}", seed=seed)

    padded = torch.from_numpy(np.pad(images, ((0, 0), (2, 2), (2, 2)))).unsqueeze(1)
    assert counted(data.train, data.validation) == counted(Split(padded, torch.from_numpy(labels).long()))
    assert set(data.train.targets.tolist()) == set(data.validation.targets.tolist()) == set(classes)
    assert same(data, load(f"mnist:{folder}", seed=seed))


def test_validation_is_a_tenth_of_each_class(tmp_path: Path) -> None:
    """A tenth of each class of train becomes validation; the test split stays as it is."""
    mnist(tmp_path, train=400, test=30)

    data = load(f"mnist:{tmp_path}")

    assert data.validation.targets.bincount().tolist() == [4] * 10
    assert data.train.targets.bincount().tolist() == [36] * 10
    assert data.test.targets.tolist() == [number % 10 for number in range(30)]


def test_validation_is_at_most_5000_images(tmp_path: Path) -> None:
    """Of 50,500 train images a tenth would be 5,050."""
    mnist(tmp_path, train=50_500)

    data = load(f"mnist:{tmp_path}")

    assert (len(data.train), len(data.validation)) == (45_500, 5000)
    assert data.flip is False


def test_fashion_mnist_has_its_names(tmp_path: Path) -> None:
    """Fashion-MNIST reads the files of MNIST's form, with its own labels."""
    mnist(tmp_path, packed=True)

    data = load(f"fashion-mnist:{tmp_path}")

    assert (data.labels[0], data.labels[9], len(data.labels)) == ("T-shirt/top", "Ankle boot", 10)
    assert (data.name, data.flip) == ("fashion-mnist", True)


def test_mean_and_std_are_those_of_the_train_pixels() -> None:
    """Normalised train images have mean 0 and standard deviation 1, in float32."""
    data = load("digits")

    normalised = data.normalise(data.train.inputs)

    assert normalised.dtype == torch.float32
    assert float(normalised.mean()) == pytest.approx(0, abs=1e-5)
    assert float(normalised.std(correction=0)) == pytest.approx(1, abs=1e-5)


def test_mean_and_std_are_per_channel(tmp_path: Path) -> None:
    """Red, green and blue each have their own mean and standard deviation."""
    write(tmp_path, pictures())

    data = load(f"folder:{tmp_path}")

    pixels = data.train.inputs.double() / 255
    assert data.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist())
    assert data.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist())
    assert data.normalise(data.test.inputs).shape == (4, 3, 32, 32)


def test_images_of_one_colour_can_be_normalised(tmp_path: Path) -> None:
    """A channel with one grey level has no spread, and is not divided by zero."""
    write(tmp_path, dict.fromkeys(pictures(), png(7)))

    data = load(f"folder:{tmp_path}")

    assert data.normalise(data.train.inputs).abs().max() < 1e-3


def test_cifar10_batches_are_channel_first_rows(tmp_path: Path) -> None:
    """A row of 3,072 bytes is red, green, blue, each 32x32; data batches 1 to 5 are train."""
    files = batches()

    data = load(f"cifar10:{write(tmp_path, files)}")

    assert (len(data.train) + len(data.validation), len(data.test)) == (100, 20)
    assert data.test.inputs.shape == (20, 3, 32, 32)
    assert data.test.inputs[:, 0, 0, 0].tolist() == list(range(20))
    assert data.test.targets.tolist() == [number % 10 for number in range(20)]
    assert (data.labels[0], data.labels[9], data.flip) == ("airplane", "truck", True)


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-py/", "./cifar-10-batches-py/"])
def test_cifar10_batches_are_found_in_every_form(tmp_path: Path, inner: str) -> None:
    """A folder, a tar and a tar.gz of the same batches give the same splits."""
    files = {inner + name: content for name, content in batches().items()}
    folder = write(tmp_path / "folder", files)
    tars = [write_tar(tmp_path / "a.tar", files), write_tar(tmp_path / "a.tar.gz", files, packed=True)]

    data = load(f"cifar10:{folder}", seed=1)

    assert all(same(data, load(f"cifar10:{path}", seed=1)) for path in tars)


@pytest.mark.parametrize("kind", ["cifar10", "folder"])
def test_image_folders_and_tars_are_the_same(tmp_path: Path, kind: str) -> None:
    """A folder of images and tars of it, in whatever order, give the same splits and sorted labels."""
    files = pictures()
    folder = write(tmp_path / "folder", files)
    backwards = {f"./{name}": content for name, content in reversed(files.items())}
    tars = [write_tar(tmp_path / "a.tar", backwards), write_tar(tmp_path / "a.tar.gz", files, packed=True)]

    data = load(f"{kind}:{folder}")

    assert (data.labels, data.name, data.flip) == (("ant", "cat"), kind, True)
    assert (len(data.train), len(data.validation), len(data.test)) == (8, 2, 4)
    assert all(same(data, load(f"{kind}:{path}")) for path in tars)


def test_images_keep_their_class_and_orientation(tmp_path: Path) -> None:
    """A 20 wide, 10 high JPEG is (3, 10, 20), and its target is its folder's place among the labels."""
    jpeg, stream = Image.new("L", (20, 10), 90), io.BytesIO()
    jpeg.save(stream, "JPEG")
    files = {name.replace(".png", ".JPEG"): stream.getvalue() for name in pictures() if "cat" in name}
    files |= {name: png(0, (20, 10)) for name in pictures() if "ant" in name}

    data = load(f"folder:{write(tmp_path, files)}")

    assert data.test.inputs.shape == (4, 3, 10, 20)
    assert all(image[0, 0, 0] == 90 * int(t) for image, t in zip(data.test.inputs, data.test.targets, strict=True))


def test_the_first_images_are_of_several_classes(tmp_path: Path) -> None:
    """Images are not in the order of their classes: a prefix is a sample."""
    write(tmp_path, pictures(train=30, test=30))

    data = load(f"folder:{tmp_path}")

    assert len(set(data.train.targets[:20].tolist())) == 2
    assert len(set(data.test.targets[:20].tolist())) == 2


def test_other_files_in_a_folder_are_left_alone(tmp_path: Path) -> None:
    """Hidden files, notes and deeper folders are no images."""
    others = ["train/cat/._0.png", "train/.cache/0.png", "train/cat/note.txt", "train/cat/old/0.png", "x.png"]

    data = load(f"folder:{write(tmp_path, pictures() | dict.fromkeys(others, b'?'))}")

    assert len(data.train) + len(data.validation) == 10
    assert data.labels == ("ant", "cat")


def test_a_tar_writes_nothing(tmp_path: Path) -> None:
    """A member that points out of the tar, as any other member, is not extracted."""
    (tmp_path / "in").mkdir()
    files = pictures() | {"../../train/cat/evil.png": png(1), "/train/cat/evil.png": png(1)}
    path = write_tar(tmp_path / "in" / "a.tar", files)

    data = load(f"folder:{path}")

    assert len(data.train) + len(data.validation) == 10
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]


class Malicious:
    """Unpickled without care, it leaves a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_calls_the_shell_is_refused(tmp_path: Path, protocol: int) -> None:
    """A batch that names os.system is refused before the call."""
    mark = tmp_path / "ran"
    evil = pickle.dumps({b"data": Malicious(mark), b"labels": [0]}, protocol=protocol)
    write(tmp_path / "data", batches() | {"data_batch_3": evil})

    message = refusal(f"cifar10:{tmp_path / 'data'}")

    assert "data_batch_3" in message
    assert "'system'" in message
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["object", "int64", "float32", "V8", "i1,O"])
def test_a_batch_of_anything_but_bytes_is_refused(tmp_path: Path, kind: str) -> None:
    """The pickle does not choose the type of its array: no pointers, no wider numbers."""
    rows = np.zeros((2, 3072), dtype=kind)
    write(tmp_path, batches() | {"test_batch": pickle.dumps({b"data": rows, b"labels": [0, 1]}, protocol=2)})

    message = refusal(f"cifar10:{tmp_path}")

    assert "test_batch: not a CIFAR-10 batch" in message


def test_labels_in_a_column_are_flat_targets(tmp_path: Path) -> None:
    """Targets are (N,), also when a batch has them as (N, 1)."""
    content = pickle.dumps({b"data": numbered(2, 3072), b"labels": [[3], [5]]}, protocol=2)
    write(tmp_path, batches() | {"test_batch": content})

    data = load(f"cifar10:{tmp_path}")

    assert data.test.targets.tolist() == [3, 5]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_batch_is_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, drawn: st.DataObject
) -> None:
    """Whatever byte of a batch is changed or cut off, nothing but DataError comes out."""
    content = bytearray(batch(20))
    keep = drawn.draw(st.integers(0, len(content)))
    spots = [*range(200), *range(len(content) - 200, len(content))]
    content[drawn.draw(st.sampled_from(spots))] = drawn.draw(st.integers(0, 255))
    folder = write(tmp_path_factory.mktemp("batch"), batches() | {"test_batch": bytes(content[:keep])})

    try:
        outcome = str(len(load(f"cifar10:{folder}").test))
    except DataError as error:
        outcome = str(error)

    assert "\n" not in outcome


@pytest.mark.parametrize(
    "source", ["imagenet", "multi30k", "cifar10", "mnist:", "digits:x", "", ":", "cifar100:somewhere"]
)
def test_an_unknown_source_lists_what_is_known(source: str) -> None:
    """The message repeats what was asked for and names all sources."""
    message = refusal(source)

    assert repr(source) in message
    assert "digits, cifar10:PATH, mnist:PATH" in message
    assert "folder:PATH, imagenet:PATH or multi30k:PATH" in message


@pytest.mark.parametrize("kind", ["cifar10", "mnist", "fashion-mnist", "folder", "imagenet", "multi30k"])
def test_a_missing_path_is_named(tmp_path: Path, kind: str) -> None:
    """The message says which path is not there."""
    message = refusal(f"{kind}:{tmp_path / 'nowhere'}")

    assert f"{tmp_path / 'nowhere'}: no such" in message


BROKEN_IDX = [
    ("images-idx3-ubyte", lambda whole: whole[:-1], "declares 40 x 28 x 28 = 31360 bytes, holds 31359"),
    ("images-idx3-ubyte", lambda whole: whole + b"x", "holds 31361"),
    ("images-idx3-ubyte", lambda whole: whole[:7], "7 bytes, less than a header of 16"),
    ("images-idx3-ubyte", lambda _: idx(np.zeros(40, np.uint8)), "magic number 2049, not 2051"),
    ("images-idx3-ubyte", lambda _: idx(np.zeros((40, 28, 20), np.uint8)), "28x20, not 28x28"),
    ("images-idx3-ubyte", lambda _: idx(np.zeros((0, 28, 28), np.uint8)), "0 images but 40 labels"),
    ("labels-idx1-ubyte", lambda _: idx(np.zeros(39, np.uint8)), "40 images but 39 labels"),
    ("labels-idx1-ubyte", lambda _: idx(np.full(40, 10, np.uint8)), "labels from 10 to 10, not 0 to 9"),
    (
        "labels-idx1-ubyte",
        lambda _: idx(np.arange(40, dtype=np.uint8).clip(0, 1)),
        "class '0' has 1 train image",
    ),
]


@pytest.mark.parametrize(("name", "damage", "expected"), BROKEN_IDX)
def test_a_broken_idx_file_is_refused_with_its_numbers(
    tmp_path: Path, name: str, damage: object, expected: str
) -> None:
    """Truncated, of another type, of another size, of another count: each says so."""
    path = mnist(tmp_path) / f"train-{name}"
    assert callable(damage)
    path.write_bytes(damage(path.read_bytes()))

    message = refusal(f"mnist:{tmp_path}")

    assert expected in message


def test_a_truncated_gz_is_refused(tmp_path: Path) -> None:
    """A download that stopped half-way is named."""
    path = mnist(tmp_path, packed=True) / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-9])

    message = refusal(f"mnist:{tmp_path}")

    assert f"{path}: cannot be read" in message


def test_idx_files_without_images_are_refused(tmp_path: Path) -> None:
    """Nothing can be measured on an empty test split."""
    mnist(tmp_path, test=0)

    message = refusal(f"mnist:{tmp_path}")

    assert "0 images but 0 labels" in message


def test_a_missing_idx_file_is_named(tmp_path: Path) -> None:
    """The message names the file, plain and packed."""
    (mnist(tmp_path) / "t10k-images-idx3-ubyte").unlink()

    message = refusal(f"mnist:{tmp_path}")

    assert "t10k-images-idx3-ubyte: no such file, nor t10k-images-idx3-ubyte.gz" in message


def test_missing_batches_are_named(tmp_path: Path) -> None:
    """CIFAR-10 without one of its batches would be another data set."""
    files = batches()
    del files["data_batch_4"]

    message = refusal(f"cifar10:{write(tmp_path, files)}")

    assert "no data_batch_4 beside data_batch_1, data_batch_2" in message


def test_batches_of_cifar100_are_refused(tmp_path: Path) -> None:
    """CIFAR-100 has fine labels, not labels."""
    other = pickle.dumps({b"data": numbered(2, 3072), b"fine_labels": [0, 1]}, protocol=2)

    message = refusal(f"cifar10:{write(tmp_path, batches() | {'test_batch': other})}")

    assert "KeyError: b'labels'" in message


@pytest.mark.parametrize("kind", ["cifar10", "folder"])
def test_an_empty_folder_says_what_it_should_hold(tmp_path: Path, kind: str) -> None:
    """Nothing that could be read is an error, not an empty data set."""
    message = refusal(f"{kind}:{tmp_path}")

    assert "train/ and test/ (.png, .jpg), not none" in message


@pytest.mark.parametrize("lost", ["test/", "train/", "test/ant", "train/cat"])
def test_classes_without_images_are_refused(tmp_path: Path, lost: str) -> None:
    """Train and test hold the same classes."""
    files = {name: content for name, content in pictures().items() if not name.startswith(lost)}

    message = refusal(f"folder:{write(tmp_path, files)}")

    assert "the same classes" in message


def test_images_of_different_size_are_refused(tmp_path: Path) -> None:
    """The message names an image, and both sizes."""
    files = pictures() | {"test/cat/1.png": png(1, (20, 10))}

    message = refusal(f"folder:{write(tmp_path, files)}")

    assert "test/cat/1.png" in message
    assert "20x10" in message
    assert "32x32" in message


@pytest.mark.parametrize("content", [b"", b"GIF89a", png(1)[:-30], png(1)[:40]])
def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path, content: bytes) -> None:
    """Empty, of another format or truncated."""
    files = pictures() | {"train/cat/3.png": content}

    message = refusal(f"folder:{write(tmp_path, files)}")

    assert "'train/cat/3.png' is not a whole PNG or JPEG" in message


def test_an_image_of_16_bits_is_refused(tmp_path: Path) -> None:
    """Pillow would make it white."""
    stream = io.BytesIO()
    Image.fromarray(np.full((32, 32), 40_000, np.uint16)).save(stream, "PNG")

    message = refusal(f"folder:{write(tmp_path, pictures() | {'train/cat/3.png': stream.getvalue()})}")

    assert "16 bits" in message


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_tar_never_loses_images(tmp_path_factory: pytest.TempPathFactory, drawn: st.DataObject) -> None:
    """A tar that is cut anywhere, or has a header damaged, is refused or still gives all its images."""
    files = pictures(train=2, test=1)
    path = write_tar(tmp_path_factory.mktemp("tar") / "a.tar", files, packed=drawn.draw(st.booleans()))
    content = bytearray(path.read_bytes())
    content[drawn.draw(st.integers(0, len(content) - 1))] ^= drawn.draw(st.sampled_from([0, 1, 255]))
    path.write_bytes(content[: drawn.draw(st.one_of(st.none(), st.integers(0, len(content))))])

    try:
        data = load(f"folder:{path}")
        outcome = f"{len(data.train) + len(data.validation) + len(data.test)} images"
    except DataError as error:
        outcome = str(error)

    assert outcome == f"{len(files)} images" or ": " in outcome
    assert "\n" not in outcome


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_tar_with_a_broken_header_is_refused(tmp_path: Path, damage: str) -> None:
    """Python's tarfile would silently end there, and give the images before."""
    path = write_tar(tmp_path / "a.tar", pictures())
    content = bytearray(path.read_bytes())
    header = bytes(content).index(b"test/ant/1.png")
    content[header + 3] ^= 255

    path.write_bytes(content[: header + 100] if damage == "cut" else content)

    assert "cut or damaged after 13 files" in refusal(f"folder:{path}")


def test_a_file_that_is_no_tar_is_refused(tmp_path: Path) -> None:
    """Any other file is refused in one line."""
    path = tmp_path / "a.tar"
    path.write_bytes(b"no tar" * 200)

    message = refusal(f"cifar10:{path}")

    assert "give a folder or a whole tar" in message


def of_any_size(folder: Path, *, train: int = 4, val: int = 2) -> Path:
    """ImageNet's form: PNG and JPEG of different sizes, each of one colour, of the classes cat and ant."""
    for split, count in (("train", train), ("val", val)):
        for label, value in (("cat", 200), ("ant", 20)):
            (folder / split / label).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                image = Image.new("RGB", (300 + 50 * number, 240 - 10 * number), (value, value, value))
                image.save(folder / split / label / f"{number}.{('png', 'JPEG')[number % 2]}")
    return folder


def test_imagenet_is_decoded_when_it_is_indexed(tmp_path: Path) -> None:
    """Files of any size give (B, 3, 224, 224) bytes, of the class of their target; val is the test split."""
    data = load(f"imagenet:{of_any_size(tmp_path)}")

    chosen = data.train.inputs[torch.tensor([3, 0])]
    test = data.test.inputs[1:4]

    assert (len(data.train), len(data.validation), len(data.test)) == (6, 2, 4)
    assert data.train.inputs.shape == (6, 3, 224, 224)
    assert (chosen.shape, chosen.dtype) == ((2, 3, 224, 224), torch.uint8)
    assert [int(image.float().mean()) for image in chosen] == [
        (20, 200)[int(data.train.targets[k])] for k in (3, 0)
    ]
    assert [int(image.float().mean()) for image in test] == [
        (20, 200)[int(data.test.targets[k])] for k in (1, 2, 3)
    ]
    assert (data.labels, data.name, len(data.mean)) == (("ant", "cat"), "imagenet", 3)
    assert data.resize == "crop" and load("digits").resize == "stretch"


def test_imagenet_splits_share_no_file(tmp_path: Path) -> None:
    """Each file of train is in train or validation, by the seed, and none is in both."""
    of_any_size(tmp_path, train=10)

    data, again, other = (load(f"imagenet:{tmp_path}", seed=seed) for seed in (0, 0, 1))

    assert same_files(data, again) and not same_files(data, other)
    assert not {*files(data.train)} & {*files(data.validation)}
    assert len({*files(data.train), *files(data.validation)}) == 20


def files(split: Split) -> tuple[Path, ...]:
    inputs: object = split.inputs
    assert isinstance(inputs, ImageFiles)
    return inputs.paths


def same_files(one: Data, other: Data) -> bool:
    return files(one.train) == files(other.train) and files(one.validation) == files(other.validation)


def gradient(folder: Path, width: int, height: int) -> list[Path]:
    """An image whose red grows with x and whose green grows with y, both from 0 to 255."""
    columns, rows = np.linspace(0, 255, width), np.linspace(0, 255, height)
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = columns[None, :].round(), rows[:, None].round()
    Image.fromarray(pixels).save(folder / "gradient.png")
    return [folder / "gradient.png"]


@pytest.mark.parametrize(("width", "height"), [(512, 256), (256, 512), (100, 100)])
def test_evaluation_crops_the_centre(tmp_path: Path, width: int, height: int) -> None:
    """A square of 224/256 of the shorter side, as resizing to 256 and cropping 224 from the centre gives."""
    crop = ImageFiles(gradient(tmp_path, width, height))[:1][0].float()

    half = min(width, height) * 224 / 256 / 2
    left, right = (255 * (0.5 + side * half / width) for side in (-1, 1))
    assert float(crop[0].amin()) == pytest.approx(left, abs=3)
    assert float(crop[0].amax()) == pytest.approx(right, abs=3)
    assert float(crop[1].mean()) == pytest.approx(127.5, abs=1)


def test_training_crops_vary_with_the_batch_only(tmp_path: Path) -> None:
    """The same batch gives the same crops, another batch or seed others; half are mirrored."""
    paths = gradient(tmp_path, 300, 200) * 40
    images = ImageFiles(paths, size=32, varied=True)

    crops = images[:]
    again, other, seeded = (
        images[:],
        images[torch.arange(39, -1, -1)],
        ImageFiles(paths, size=32, varied=True, seed=1)[:],
    )

    assert torch.equal(crops, again)
    assert not torch.equal(crops, other) and not torch.equal(crops, seeded)
    mirrored = crops[:, 0, 0, 0] > crops[:, 0, 0, -1]
    assert 8 < int(mirrored.sum()) < 32
    sides = [crops[:, channel].flatten(1).float() for channel in (0, 1)]
    red, green = ((side.amax(1) - side.amin(1)) / 255 for side in sides)
    area, ratio = red * green, 1.5 * red / green
    assert 0.06 <= float(area.amin()) <= float(area.amax()) <= 1
    assert 0.68 <= float(ratio.amin()) <= float(ratio.amax()) <= 1.45


def test_a_crop_that_never_fits_is_the_centre(tmp_path: Path) -> None:
    """A strip of 2 x 400 pixels has no part of sides 3:4 to 4:3 that is 8 % of it."""
    Image.new("RGB", (400, 2), (9, 9, 9)).save(tmp_path / "strip.png")

    crop = ImageFiles([tmp_path / "strip.png"], size=8, varied=True)[:]

    assert set(crop.flatten().tolist()) == {9}


def test_imagenet_names_what_is_missing(tmp_path: Path) -> None:
    """A folder without images, and a class that one split lacks."""
    (tmp_path / "empty" / "train" / "cat").mkdir(parents=True)
    of_any_size(tmp_path / "full")
    (tmp_path / "full" / "val" / "cat").rename(tmp_path / "full" / "val" / "dog")

    messages = [refusal(f"imagenet:{tmp_path / name}") for name in ("empty", "full")]

    assert f"{tmp_path / 'empty' / 'train'}: no images" in messages[0]
    assert "train/ and val/ differ in the classes cat, dog" in messages[1]


def test_a_damaged_file_of_imagenet_is_named_when_it_is_reached(tmp_path: Path) -> None:
    """Loading reads no image; indexing names the file that cannot be decoded, or is gone."""
    of_any_size(tmp_path)
    (tmp_path / "val" / "cat" / "0.png").write_bytes(b"cut")
    data = load(f"imagenet:{tmp_path}")

    with pytest.raises(DataError, match=r"val/cat/0\.png' is not a whole PNG or JPEG"):
        data.test.inputs[:]
    (tmp_path / "val" / "cat" / "0.png").unlink()
    with pytest.raises(DataError, match=r"val/cat/0\.png: cannot be read"):
        data.test.inputs[:]


def test_a_training_reads_images_of_any_size(tmp_path: Path) -> None:
    """The loop takes the files in place of a tensor, without the shifts for small images."""
    run = create(tmp_path / "run", data=f"imagenet:{of_any_size(tmp_path)}")
    once = TrainSettings(epochs=1, batch_size=3, bf16=False)

    model, history = train(run.new_model(), run.train_set(), once)

    assert run.train_set().augment is None
    assert math.isfinite(history[0].loss)
    assert 0 <= run.score(model, run.data.validation).top1 <= 1


def test_without_scikit_learn_the_digits_say_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is named."""
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)

    with pytest.raises(MissingExtra) as caught:
        load("digits")

    assert str(caught.value) == "scikit-learn is not installed: pip install 'maestro-edge[train]'"
    assert isinstance(caught.value.__cause__, ImportError)


def test_without_pillow_images_say_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is named."""
    write(tmp_path, pictures())
    monkeypatch.setitem(sys.modules, "PIL", None)

    with pytest.raises(MissingExtra) as caught:
        load(f"folder:{tmp_path}")

    assert str(caught.value) == "pillow is not installed: pip install 'maestro-edge[train]'"
    assert isinstance(caught.value.__cause__, ImportError)


def test_without_pillow_imagenet_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Listing the files needs no Pillow; the first index names the extra."""
    data = load(f"imagenet:{of_any_size(tmp_path)}")
    for name in [name for name in sys.modules if name.split(".")[0] == "PIL"]:
        monkeypatch.setitem(sys.modules, name, None)

    with pytest.raises(MissingExtra, match="pillow is not installed"):
        data.train.inputs[:1]
