"""A browser device whose page is opened by headless Chromium, and cold starts in that page: for exports.py.

Chromium and npm are Debian's and PyPI's, unpacked below .cache as the tests of devices do it (tests/devices);
`pip install playwright` is needed, its own browsers are not.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from playwright.sync_api import Error, Page

from maestro_edge.devices.browser import BrowserDevice
from maestro_edge.runtimes.jobs import of_entry
from tests.devices.programs import bring_npm, open_chromium

__all__ = ["Chromium", "Cold", "open_browser"]

_CACHE = Path(__file__).parents[1] / ".cache" / "lab"
_COLD = """async ([file, entry, samples]) => {
  const {loadRuntime, Program} = await import(new URL("program.js", location.href).href);
  const read = async (name) => (await fetch(`files/${name}`, {cache: "no-store"})).arrayBuffer();
  const content = new Uint8Array(await read(file));
  const images = new Float32Array(await read(samples));
  await loadRuntime(1);
  const start = performance.now();
  const program = new Program(content, 1);
  await program.open();
  const loaded = performance.now();
  const {shape} = program.signature(entry).getInputDetails()[0];
  const size = shape.reduce((a, b) => a * b, 1);
  const classes = [];
  let first_ms = 0;
  for (let at = 0; at < images.length; at += size) {
    const logits = await program.run([{shape, data: images.slice(at, at + size)}], entry);
    first_ms ||= performance.now() - loaded;
    classes.push(logits.indexOf(logits.reduce((a, b) => Math.max(a, b))));
  }
  await program.close();
  return {load_ms: loaded - start, first_ms, classes};
}"""
"""The runner of the page knows no such task: it times files that are warm."""


class Cold(NamedTuple):
    """In a page that was just opened, and has LiteRT.js: the file's load and first run, and each image's class."""

    load_ms: float
    first_ms: float
    classes: list[int]


class Chromium(NamedTuple):
    """The device, and the page that is its runner."""

    device: BrowserDevice
    page: Page

    def start_cold(self, path: Path, images: npt.NDArray[np.float32]) -> Cold:
        """Reload the page, load a file (or `file#entry`) and classify `images` (N, C, H, W), one at a time.

        Raises:
            ValueError: the page cannot run the file; one line.
        """
        file, entry = of_entry(path)
        with tempfile.TemporaryDirectory() as folder:
            samples = Path(folder) / "samples"
            samples.write_bytes(np.ascontiguousarray(images, np.float32).tobytes())
            names = [self.device.push(file, f"cold{file.suffix}"), self.device.push(samples, "samples")]
        self.page.reload()
        try:
            found: dict[str, Any] = self.page.evaluate(_COLD, [names[0], entry or None, names[1]])
        except Error as error:
            raise ValueError(" ".join(error.message.split())[:300]) from error
        return Cold(**found)


@contextmanager
def open_browser() -> Iterator[Chromium]:
    """A device that is measured in a page of its own."""
    with tempfile.TemporaryDirectory() as folder:
        bring_npm(_CACHE, Path(folder))  # it fetches LiteRT.js
        os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"
        with open_chromium(_CACHE, Path(folder)) as chromium:
            page = chromium.new_page()
            device = BrowserDevice(host="127.0.0.1", announce=lambda url, qr: page.goto(url))
            try:
                device.facts()  # opens the page
                yield Chromium(device, page)
            finally:
                device.close()
