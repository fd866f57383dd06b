"""Builds the native runner: one small program, the libraries of ExecuTorch's wheel, and a C library of its own."""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

from maestro_edge.errors import DeviceError, MissingExtra

__all__ = ["ARCHITECTURES", "LOADERS", "build"]

LOADERS = {"x86_64": "ld-linux-x86-64.so.2", "aarch64": "ld-linux-aarch64.so.1"}
"""By `uname -m`: the file that starts the runner on a device of that architecture."""

ARCHITECTURES = tuple(LOADERS)

_SOURCE = Path(__file__).with_name("runner.cpp")
_PARTS = ("", "_backend_xnnpack", "_kernels_optimized", "_kernels_quantized", "_threadpool", "_etdump")
_SYSTEM = ("libstdc++.so.6", "libgcc_s.so.1", "libm.so.6", "libc.so.6", "libpthread.so.0", "libdl.so.2")
_FLAGS = ("-std=c++20", "-O2", "-Wall", "-Wextra", "-Werror", "-s", "-DC10_USING_CUSTOM_GENERATED_MACROS")
_LINK = (
    "-Wl,--no-as-needed",  # backends and kernels register themselves: nothing refers to them by name
    *(f"-lexecutorch{part}" for part in _PARTS),
    *(f"-l:{name}" for name in _SYSTEM),
    # Not RUNPATH, which a device's LD_LIBRARY_PATH overrules: its C library would meet another loader.
    "-Wl,--disable-new-dtags,-rpath,$ORIGIN",
)


def build(arch: str) -> Path:
    """The folder that goes to a device: the runner for `arch`, its libraries, and the loader that starts it.

    It is made once for each source, ExecuTorch version and architecture and kept in ~/.cache/maestro-edge/runners;
    `digest` of the folder names what was measured with. The program is linked dynamically, as the wheel holds
    shared libraries only: the compiler's own C library goes along, so that the device needs none.

    Raises:
        DeviceError: there is no runner for `arch`, no compiler, or ExecuTorch for it cannot be downloaded.
        MissingExtra: executorch is not installed here.
    """
    if arch not in LOADERS:
        raise DeviceError(f"the native runner is made for {' and '.join(ARCHITECTURES)}, not for {arch}")
    try:
        wheel = distribution("executorch")
    except PackageNotFoundError as error:
        raise MissingExtra("executorch", "executorch") from error
    sources = (_SOURCE, *sorted(_SOURCE.parent.glob("*.h")))
    recipe = "\n".join((*(path.read_text(encoding="utf-8") for path in sources), *_FLAGS, *_LINK))
    key = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    folder = _cache() / f"executorch-{wheel.version}-{arch}-{key}"
    if not folder.is_dir():
        compiler = _compiler(arch)
        sdk = _sdk(wheel, arch)
        with _aside(folder) as aside:
            _fill(aside, arch, compiler, sdk)
    return folder


def _cache() -> Path:
    return Path.home() / ".cache" / "maestro-edge" / "runners"


def _here(arch: str) -> bool:
    return sys.platform == "linux" and platform.machine() == arch


class _Sdk(NamedTuple):
    folder: Path
    version: str


def _sdk(wheel: Distribution, arch: str) -> _Sdk:
    """Headers and libraries: of the installed package for this machine, of another wheel for another."""
    if _here(arch):
        return _Sdk(Path(str(wheel.locate_file("executorch"))), wheel.version)
    folder = _cache() / f"sdk-{wheel.version}-{arch}"
    if not folder.is_dir():
        with _aside(folder) as aside:
            _download(f"executorch=={wheel.version}", arch, aside)
            for path in aside.glob("*.whl"):
                with zipfile.ZipFile(path) as file:
                    wanted = ("executorch/include/", "executorch/lib/")
                    file.extractall(aside, [name for name in file.namelist() if name.startswith(wanted)])
                path.unlink()
    return _Sdk(folder / "executorch", wheel.version)


def _download(requirement: str, arch: str, folder: Path) -> None:
    choice = ("--no-deps", "--only-binary=:all:", "--platform", f"manylinux_2_28_{arch}", "--dest", str(folder))
    _call(
        [sys.executable, "-m", "pip", "download", "--quiet", *choice, requirement],
        f"{requirement} for {arch} cannot be downloaded",
        "connect to the package index and run the same command again",
    )


class _Compiler(NamedTuple):
    program: str
    failure: str
    remedy: str


def _compiler(arch: str) -> _Compiler:
    """This machine's own, or Debian's cross compiler."""
    program = "g++" if _here(arch) else f"{arch}-linux-gnu-g++"
    package = "g++" if _here(arch) else f"g++-{arch.replace('_', '-')}-linux-gnu"
    found = _Compiler(program, f"the native runner for {arch} cannot be built", f"apt install {package}")
    if shutil.which(program) is None:
        raise DeviceError(f"{found.failure}: {program} is not installed: {found.remedy}")
    return found


def _fill(folder: Path, arch: str, compiler: _Compiler, sdk: _Sdk) -> None:
    program, failure, remedy = compiler
    include, lib = sdk.folder / "include", sdk.folder / "lib"
    if not (lib / "libexecutorch.so").is_file():
        raise DeviceError(
            f"{failure}: executorch {sdk.version} has no C++ libraries: pip install executorch==1.5.1"
        )
    portable = include / "executorch/runtime/core/portable_type/c10"
    headers = ("-isystem", str(include), "-isystem", str(portable), f'-DEXECUTORCH_VERSION="{sdk.version}"')
    output = ("-o", str(folder / "runner"), f"-L{lib}")
    _call([program, *_FLAGS, *headers, str(_SOURCE), *output, *_LINK], failure, remedy)
    for part in _PARTS:
        shutil.copy(lib / f"libexecutorch{part}.so", folder)
    for name in (*_SYSTEM, LOADERS[arch]):
        found = Path(_call([program, f"-print-file-name={name}"], failure, remedy).strip())
        if not found.is_absolute():  # the compiler says the bare name of what it does not find
            raise DeviceError(f"{failure}: {program} has no {name}: {remedy}")
        shutil.copy(found, folder / name)
    (folder / LOADERS[arch]).chmod(0o755)


def _call(command: list[str], failure: str, remedy: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.splitlines() if "error" in line.lower()]
        raise DeviceError(f"{failure} ({lines[0] if lines else f'code {done.returncode}'}): {remedy}")
    return done.stdout


@contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` that takes its name when the block ends well; another process may be first."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".part-") as holder:
        aside = Path(holder) / folder.name
        aside.mkdir()
        yield aside
        try:
            aside.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
