"""bundle(): the folder that an app reads is complete or not there, and nothing of the user's is lost."""

from __future__ import annotations

import hashlib
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from maestro_edge.bundling import bundle, manifest_schema
from maestro_edge.errors import TableError
from maestro_edge.runtimes import digest
from maestro_edge.values import DENSE, DeviceFacts, InputSpec, Manifest, Variant


def variant(file: str, sha256: str) -> Variant:
    return Variant(
        name=file,
        runtime="executorch",
        runtime_version="1.5.1",
        precision="fp32",
        file=file,
        sha256=sha256,
        size_bytes=1,
        budget_ms=None,
        predicted_ms=None,
        measured_ms=None,
        accuracy=0.9,
        max_abs_error=1e-6,
        sqnr_db=120.0,
        top1_agreement=1.0,
        params=100,
        macs=1000,
        ranks={"conv": DENSE},
    )


def manifest(*variants: Variant) -> Manifest:
    return Manifest(
        device=DeviceFacts(name="pixel-8", soc="Tensor G3", arch="aarch64", cores=9, os="Android 15"),
        model="small",
        labels=("cat", "dog"),
        input=InputSpec(shape=(1, 3, 8, 8), mean=(0.5,), std=(0.2,)),
        variants=variants,
    )


def exported(folder: Path, contents: dict[str, bytes]) -> tuple[Manifest, dict[str, Path]]:
    """Files as an export leaves them, and the manifest that describes them."""
    folder.mkdir(exist_ok=True)
    files = {name: folder / name for name in contents}
    for name, content in contents.items():
        files[name].write_bytes(content)
    return manifest(*(variant(name, digest(path)) for name, path in files.items())), files


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` with its content."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def beside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.parent.iterdir())


@contextmanager
def files_no_larger_than(size_bytes: int) -> Iterator[None]:
    """A disk that is full after so many bytes, also for root."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the bundle goes: a place of its own, so that what is left beside it shows."""
    (tmp_path / "place").mkdir()
    return tmp_path / "place" / "bundle"


def test_a_bundle_holds_every_file_and_the_manifest_and_nothing_else(tmp_path: Path, folder: Path) -> None:
    """An app needs this folder only."""
    made, files = exported(tmp_path / "files", {"a.pte": b"A" * 1000, "b.tflite": b"B"})

    returned = bundle(folder, made, files)

    assert returned == folder
    assert Manifest.load(folder / "manifest.json") == made
    assert set(tree(folder)) == {"a.pte", "b.tflite", "labels.txt", "manifest.json"}
    assert all(digest(folder / item.file) == item.sha256 for item in made.variants)
    assert beside(folder) == ["bundle"]


def test_variants_of_one_file_have_it_copied_once(tmp_path: Path, folder: Path) -> None:
    """Entries of an elastic file, also where a file is a folder."""
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "weights").write_bytes(b"W")
    entries = [
        variant("net", digest(tmp_path / "net")).model_copy(update={"entry": name}) for name in ("r8", "r16")
    ]

    bundle(folder, manifest(*entries), {"net": tmp_path / "net"})

    assert set(tree(folder)) == {"net/weights", "manifest.json", "labels.txt"}
    assert [each.entry for each in Manifest.load(folder / "manifest.json").variants] == ["r8", "r16"]


def test_a_bundle_makes_the_missing_folders(tmp_path: Path, folder: Path) -> None:
    """A path into folders that are not there yet is no mistake."""
    made, files = exported(tmp_path / "files", {"a.pte": b"A"})

    bundle(folder / "of" / "mine", made, files)

    assert set(tree(folder)) == {f"of/mine/{name}" for name in ("a.pte", "labels.txt", "manifest.json")}


def test_a_bundle_leaves_the_exported_files_where_they_are(tmp_path: Path, folder: Path) -> None:
    """Files are copied, not moved."""
    made, files = exported(tmp_path / "files", {"a.pte": b"A"})

    bundle(folder, made, files)

    assert tree(tmp_path / "files") == {"a.pte": b"A"}


def test_a_bundle_replaces_an_older_one_as_a_whole(tmp_path: Path, folder: Path) -> None:
    """No file of the older bundle is left among the new ones."""
    bundle(folder, *exported(tmp_path / "old", {"a.pte": b"old", "gone.pte": b"old"}))
    made, files = exported(tmp_path / "new", {"a.pte": b"new"})

    bundle(folder, made, files)

    assert Manifest.load(folder / "manifest.json") == made
    assert set(tree(folder)) == {"a.pte", "labels.txt", "manifest.json"}
    assert (folder / "a.pte").read_bytes() == b"new"
    assert beside(folder) == ["bundle"]


def test_a_bundle_goes_into_an_empty_folder(tmp_path: Path, folder: Path) -> None:
    """An app's project has the folder before it has a bundle."""
    folder.mkdir()
    made, files = exported(tmp_path / "files", {"a.pte": b"A"})

    bundle(folder, made, files)

    assert set(tree(folder)) == {"a.pte", "labels.txt", "manifest.json"}


def test_a_folder_with_something_else_is_refused_and_left_alone(tmp_path: Path, folder: Path) -> None:
    """Only a bundle is ever replaced."""
    folder.mkdir()
    (folder / "thesis.tex").write_bytes(b"mine")
    made, files = exported(tmp_path / "files", {"a.pte": b"A"})

    with pytest.raises(TableError, match="something else than a bundle"):
        bundle(folder, made, files)

    assert tree(folder) == {"thesis.tex": b"mine"}
    assert beside(folder) == ["bundle"]


def test_a_web_app_with_its_own_manifest_is_refused_and_left_alone(tmp_path: Path, folder: Path) -> None:
    """Web apps and browser extensions have a manifest.json too."""
    folder.mkdir()
    (folder / "manifest.json").write_bytes(b'{"name": "My app", "start_url": "/"}')
    (folder / "index.html").write_bytes(b"mine")
    made, files = exported(tmp_path / "files", {"a.pte": b"A"})

    with pytest.raises(TableError, match="something else than a bundle"):
        bundle(folder, made, files)

    assert set(tree(folder)) == {"manifest.json", "index.html"}


def test_a_file_in_place_of_the_folder_is_refused_and_left_alone(tmp_path: Path, folder: Path) -> None:
    """A file is something else than a bundle, too."""
    folder.write_bytes(b"mine")
    made, files = exported(tmp_path / "files", {"a.pte": b"A"})

    with pytest.raises(TableError, match="cannot be written"):
        bundle(folder, made, files)

    assert folder.read_bytes() == b"mine"
    assert beside(folder) == ["bundle"]


def test_a_bundle_below_a_file_is_refused(tmp_path: Path, folder: Path) -> None:
    """A parent that is a file is named as a folder that cannot be written."""
    folder.write_bytes(b"mine")
    made, files = exported(tmp_path / "files", {"a.pte": b"A"})

    with pytest.raises(TableError, match="cannot be written"):
        bundle(folder / "inner", made, files)

    assert folder.read_bytes() == b"mine"
    assert beside(folder) == ["bundle"]


def test_the_current_folder_is_bundled_into_or_refused_by_name(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--out .` is a path that people type."""
    folder.mkdir()
    monkeypatch.chdir(folder)
    made, files = exported(tmp_path / "files", {"a.pte": b"A"})

    try:
        bundle(Path(), made, files)
    except TableError as error:
        assert "\n" not in str(error)
    else:
        assert set(tree(folder)) == {"a.pte", "labels.txt", "manifest.json"}


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("damage", ["changed", "removed", "not given"])
def test_one_bad_file_stops_the_bundle(damage: str, older: bool, tmp_path: Path, folder: Path) -> None:
    """The older bundle stands as it was, or there is none; the message names the file."""
    if older:
        bundle(folder, *exported(tmp_path / "old", {"a.pte": b"old"}))
    before = tree(folder)
    made, files = exported(tmp_path / "new", {"a.pte": b"A", "b.pte": b"B"})
    if damage == "changed":
        files["b.pte"].write_bytes(b"X")
    elif damage == "removed":
        files["b.pte"].unlink()
    else:
        del files["b.pte"]

    with pytest.raises(TableError, match=r"b\.pte .*export the variant again"):
        bundle(folder, made, files)

    assert tree(folder) == before
    assert beside(folder) == (["bundle"] if older else [])


@pytest.mark.parametrize("older", [False, True])
def test_a_full_disk_stops_the_bundle(older: bool, tmp_path: Path, folder: Path) -> None:
    """A copy that fails half-way is a TableError; the older bundle stands as it was, or there is none."""
    if older:
        bundle(folder, *exported(tmp_path / "old", {"a.pte": b"old"}))
    before = tree(folder)
    made, files = exported(tmp_path / "new", {"a.pte": b"A", "b.pte": b"B" * 100_000})

    with files_no_larger_than(10_000), pytest.raises(TableError, match="cannot be written") as caught:
        bundle(folder, made, files)

    assert str(folder) in str(caught.value)
    assert tree(folder) == before
    assert beside(folder) == (["bundle"] if older else [])


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a/b.pte",
        "../b.pte",
        "a/../../b.pte",
        "/b.pte",
        "/",
        "a\\b.pte",
        "..\\b.pte",
        "b.pte/",
        "./b.pte",
    ],
)
def test_a_name_that_is_no_plain_file_name_is_refused(name: str, tmp_path: Path, folder: Path) -> None:
    """A manifest from elsewhere writes nowhere but into its bundle."""
    source = tmp_path / "source"
    source.write_bytes(b"B")
    made = manifest(variant(name, digest(source)))

    with pytest.raises(TableError) as caught:
        bundle(folder, made, {name: source})

    assert "\n" not in str(caught.value)
    assert beside(folder) == []
    assert set(tree(tmp_path)) == {"source"}


def test_a_variant_named_like_the_manifest_is_refused(tmp_path: Path, folder: Path) -> None:
    """Two files cannot have one name."""
    made, files = exported(tmp_path / "files", {"manifest.json": b"A"})

    with pytest.raises(TableError, match=r"manifest\.json"):
        bundle(folder, made, files)


def package(folder: Path) -> Path:
    """A folder like the one that Core ML exports."""
    weights = folder / "Data" / "com.apple.CoreML" / "weights"
    weights.mkdir(parents=True)
    (folder / "Manifest.json").write_bytes(b"{}")
    (weights.parent / "model.mlmodel").write_bytes(b"mil")
    (weights / "weight.bin").write_bytes(b"w" * 64)
    return folder


def test_a_folder_variant_is_copied_whole_and_hashed_by_its_files(tmp_path: Path, folder: Path) -> None:
    """The sha256 of a .mlpackage is that of its lines "sha256  relative/path" sorted by path."""
    source = package(tmp_path / "dense.mlpackage")
    lines = [f"{hashlib.sha256(content).hexdigest()}  {name}" for name, content in sorted(tree(source).items())]
    sha256 = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    made = manifest(variant("dense.mlpackage", sha256))

    bundle(folder, made, {"dense.mlpackage": source})

    assert tree(folder / "dense.mlpackage") == tree(source)
    assert digest(folder / "dense.mlpackage") == sha256


@pytest.mark.parametrize("damage", ["changed", "renamed", "removed", "added"])
def test_a_folder_variant_that_was_changed_is_refused(damage: str, tmp_path: Path, folder: Path) -> None:
    """Content and names count, of every file inside."""
    source = package(tmp_path / "dense.mlpackage")
    made = manifest(variant("dense.mlpackage", digest(source)))
    inside = source / "Manifest.json"
    if damage == "changed":
        inside.write_bytes(b"[]")
    elif damage == "renamed":
        inside.rename(source / "manifest.json")
    elif damage == "removed":
        inside.unlink()
    else:
        (source / "more").write_bytes(b"")

    with pytest.raises(TableError, match=r"dense\.mlpackage was changed"):
        bundle(folder, made, {"dense.mlpackage": source})

    assert beside(folder) == []


def test_a_folder_is_hashed_in_the_order_of_its_paths_as_text(tmp_path: Path) -> None:
    """An app that sorts the relative paths, as the manifest's documentation says, gets the same sha256."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"1")
    (tmp_path / "a.b").write_bytes(b"2")
    lines = [f"{hashlib.sha256(content).hexdigest()}  {name}" for name, content in sorted(tree(tmp_path).items())]

    found = digest(tmp_path)

    assert found == hashlib.sha256("\n".join(lines).encode()).hexdigest()


def test_the_published_schema_is_that_of_the_values() -> None:
    """apps/manifest.schema.json, which apps are written against: write manifest_schema() there when it changes."""
    published = Path(__file__).parents[1] / "apps" / "manifest.schema.json"

    assert published.read_text() == manifest_schema()
