"""Debian systems in folders of their own: packages and wheels unpacked, nothing installed on this machine."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

SUITE = "trixie"
SOURCES = Path("/etc/apt")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
PYTHON = "3.13"
"""The Python of the suite: wheels are chosen for it."""

MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
"""Debian's names of architectures, and those of everyone else."""


def native_architecture() -> str:
    """Debian's name of this machine's architecture."""
    return output("dpkg", "--print-architecture").strip()


def system(cache: Path, architecture: str, packages: Sequence[str], wheels: Sequence[str] = ()) -> Path:
    """A root folder with packages, what they depend on, and wheels from PyPI; made once, then kept in `cache`."""

    def fill(root: Path) -> None:
        for name in ("bin", "sbin", "lib", "lib64"):
            (root / "usr" / name).mkdir(parents=True, exist_ok=True)
            (root / name).symlink_to(f"usr/{name}")
        for package in download(cache, architecture, packages, root / "packages"):
            unpack(package, root)
        shutil.rmtree(root / "packages")
        for name in ("data", "dev", "proc", "run/sshd", "sys", "tmp"):
            (root / name).mkdir(parents=True, exist_ok=True)
        (root / "etc/passwd").write_text("user:x:2000:2000::/data:/bin/sh\n")
        (root / "etc/group").write_text("user:x:2000:\n")
        if wheels:
            install_wheels(MACHINES[architecture], wheels, root / "usr/lib/python3/dist-packages")

    return kept(cache, [architecture, *packages, *wheels], fill)


def alone(cache: Path, architecture: str, packages: Sequence[str], *, suite: str = SUITE) -> Path:
    """A root folder with packages but nothing that they depend on: for jars, and programs that need no more."""

    def fill(root: Path) -> None:
        for package in download(cache, architecture, packages, root / "packages", suite=suite, depends=False):
            unpack(package, root)
        shutil.rmtree(root / "packages")
        for link in (path for path in root.rglob("*") if path.is_symlink()):
            target = link.readlink()
            if target.is_absolute():  # it would leave the folder, for what this machine has there
                link.unlink()
                link.symlink_to(os.path.relpath(root / target.relative_to("/"), link.parent))

    return kept(cache, [architecture, suite, "alone", *packages], fill)


def emulator(cache: Path, architecture: str) -> Path:
    """The static qemu that runs programs of `architecture` here."""
    native, member = native_architecture(), f"./usr/bin/qemu-{MACHINES[architecture]}"

    def fill(root: Path) -> None:
        (package,) = download(cache, native, ["qemu-user"], root / "packages")
        unpack(package, root, member)
        shutil.rmtree(root / "packages")

    return kept(cache, [native, "qemu-user", member], fill) / member


def kept(cache: Path, parts: Sequence[str], fill: Callable[[Path], None]) -> Path:
    """The folder that `fill` made of `parts`; it appears when it is complete."""
    recipe = hashlib.sha256("\n".join([SUITE, Path(__file__).read_text(), *parts]).encode()).hexdigest()
    root = cache / f"{parts[0]}-{recipe[:12]}"
    if not root.exists():
        cache.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix="part-", dir=cache))
        aside.chmod(0o755)
        try:
            fill(aside)
            aside.rename(root)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return root


def mirror() -> str:
    """Where this machine's own apt takes Debian's packages from."""
    lists = [SOURCES / "sources.list", *sorted((SOURCES / "sources.list.d").glob("*"))]
    text = "\n".join(path.read_text() for path in lists if path.suffix in (".list", ".sources") and path.exists())
    found = re.search(r"^(?:URIs:|deb (?:\[.*\] )?)\s*(\S+/debian/?)(?:\s|$)", text, re.MULTILINE)
    assert found is not None, f"no source of Debian's packages in {SOURCES}"
    return found[1]


def download(
    cache: Path,
    architecture: str,
    packages: Sequence[str],
    into: Path,
    *,
    suite: str = SUITE,
    depends: bool = True,
) -> list[Path]:
    """Files of packages and of what they depend on, by an apt that has its own settings and lists."""
    state = cache / (f"apt-{architecture}" if suite == SUITE else f"apt-{architecture}-{suite}")
    for folder in (state / "lists/partial", into / "partial"):
        folder.mkdir(parents=True, exist_ok=True)
    (state / "sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror()} {suite} main\n")
    settings = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "",
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
        "Debug::NoLocking": "true",  # the lock is the machine's, and root's
        "Dir::Cache": str(state),
        "Dir::Cache::archives": f"{into}/",
        "Dir::Etc": str(state),
        "Dir::Etc::sourcelist": str(state / "sources.list"),
        "Dir::Etc::sourceparts": "-",
        "Dir::State": str(state),
        "Dir::State::status": "/dev/null",
    }
    apt = ["apt-get", "-qq", "--yes", *(f"-o{name}={value}" for name, value in settings.items())]
    output(*apt, "update")
    if depends:
        output(*apt, "install", "--download-only", *packages)
    else:
        output(*apt, "download", *packages, folder=into)
    return sorted(into.glob("*.deb"))


def unpack(package: Path, root: Path, *members: str) -> None:
    """Files of a package, or only `members` of them; folders that are links stay links."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as source:
        tar = [
            "tar",
            "--extract",
            "--keep-directory-symlink",
            "--no-same-owner",
            "--directory",
            str(root),
            *members,
        ]
        subprocess.run(tar, stdin=source.stdout, check=True, capture_output=True)
    assert source.returncode == 0, f"{package.name} cannot be unpacked"


def install_wheels(machine: str, wheels: Sequence[str], into: Path) -> None:
    """Wheels of another Python and machine, which pip unpacks without running them."""
    platforms = [f"--platform=manylinux_2_{glibc}_{machine}" for glibc in (17, 27, 28)]
    chosen = ["--implementation=cp", f"--python-version={PYTHON}", "--only-binary=:all:", *platforms]
    output(sys.executable, "-m", "pip", "install", "--quiet", f"--target={into}", "--upgrade", *chosen, *wheels)


def output(*argv: str, folder: Path | None = None) -> str:
    """What a program printed, run in `folder`; an AssertionError that tells why it failed."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, f"{' '.join(argv)} ended with code {done.returncode}: {done.stderr.strip()}"
    return done.stdout
