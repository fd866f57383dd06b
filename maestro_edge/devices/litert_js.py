"""LiteRT.js: two pinned npm packages, fetched once by npm into the user's cache and served from there."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from maestro_edge.errors import DeviceError
from maestro_edge.values import write_atomically

__all__ = ["PACKAGES", "Package", "load_litert_js", "pack"]


class Package(NamedTuple):
    """An npm tarball, its pinned integrity, and which of its files a page asks for under which name."""

    name: str
    version: str
    sha512: str
    files: dict[str, str]

    @property
    def tarball(self) -> str:
        """What npm calls its file."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


_WASM = ("litert_wasm_internal", "litert_wasm_compat_internal", "litert_wasm_threaded_internal")
PACKAGES = (
    Package(
        "@litertjs/core",
        "2.5.3",
        "PlGmbMOq9WitX7FO0jhbdJw9GthatsyuCQXjTt/wJZo0FLaw48q4tz8IwqgqCIkviYGr9OFDL1kCnN4nzWoyJQ==",
        {"package/dist/index.js": "index.js", "package/package.json": "package.json"}
        | {f"package/wasm/{name}.{end}": f"wasm/{name}.{end}" for name in _WASM for end in ("js", "wasm")},
    ),
    Package(
        "@litertjs/wasm-utils",
        "2.5.3",
        "4fJiw6tBQnIs+0jH/OQ16nYOiSl8/+zZnn5h2ul8aTKHi05sVqZW580Tmk78pC2kT39A9OYBVdFawteZ/sI1kQ==",
        {"package/dist/index.js": "wasm-utils.js"},
    ),
)


def pack(package: Package, folder: Path) -> None:
    """Have npm put the package's tarball into the folder.

    Raises:
        OSError: there is no npm, or it could not.
    """
    command = ["npm", "pack", "--silent", "--pack-destination", str(folder), f"{package.name}@{package.version}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        raise OSError(f"npm ended with code {done.returncode}: {' '.join(done.stderr.split())[-200:]}")


def load_litert_js(
    packages: Sequence[Package] = PACKAGES, fetch: Callable[[Package, Path], None] = pack
) -> dict[str, bytes]:
    """The files a page needs, by the name it asks for; tarballs that are not in the cache are fetched.

    Raises:
        DeviceError: a tarball is not in the cache and cannot be fetched, or is not the pinned one.
    """
    files: dict[str, bytes] = {}
    for package in packages:
        with tarfile.open(fileobj=io.BytesIO(_tarball(package, fetch)), mode="r:gz") as archive:
            for member in archive:
                if member.name in package.files and (reader := archive.extractfile(member)) is not None:
                    files[package.files[member.name]] = reader.read()
    # Browsers resolve no bare package names, and import maps are younger than many phones.
    files["index.js"] = files["index.js"].replace(b'"@litertjs/wasm-utils"', b'"./wasm-utils.js"')
    return files


def _tarball(package: Package, fetch: Callable[[Package, Path], None]) -> bytes:
    path = _cache() / package.tarball
    if path.exists():
        content = path.read_bytes()
        if _sha512(content) == package.sha512:
            return content
    what = f"npm pack {package.name}@{package.version}"
    try:
        with tempfile.TemporaryDirectory() as folder:
            fetch(package, Path(folder))
            content = Path(folder, package.tarball).read_bytes()
    except (OSError, subprocess.SubprocessError) as error:
        raise DeviceError(
            f"LiteRT.js is not in the cache and npm cannot fetch it ({error}): install npm and go online once, or "
            f"run '{what}' elsewhere and put its file at {path}"
        ) from error
    if _sha512(content) != package.sha512:
        raise DeviceError(
            f"npm gave {len(content)} bytes for {package.name} {package.version} that are not the pinned package: "
            f"is there a proxy in between? Run '{what}' elsewhere and put its file at {path}"
        )
    write_atomically(path, content)
    return content


def _sha512(content: bytes) -> str:
    return base64.b64encode(hashlib.sha512(content).digest()).decode()


def _cache() -> Path:
    # The XDG rules: a relative path is to be ignored.
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (root if root.is_absolute() else Path.home() / ".cache") / "maestro-edge"
