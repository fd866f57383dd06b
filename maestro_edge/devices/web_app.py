"""What apps/web runs its files with: LiteRT.js and the two modules that the profiler's own page has around it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from maestro_edge.devices.litert_js import load_litert_js
from maestro_edge.errors import MaestroError
from maestro_edge.values import write_atomically

__all__ = ["write_web_runtime"]

_PAGE = Path(__file__).with_name("page")
_SHARED = ("program.js", "measure.js")


def write_web_runtime(folder: Path, library: Callable[[], Mapping[str, bytes]] = load_litert_js) -> None:
    """Put into `folder` what the web app imports; LiteRT.js is fetched by npm the first time.

    Raises:
        DeviceError: LiteRT.js cannot be fetched.
        DataError: the folder cannot be written.
    """
    files = {name: (_PAGE / name).read_bytes() for name in _SHARED}
    files |= {f"litert/{name}": content for name, content in library().items()}
    for name, content in files.items():
        write_atomically(folder / name, content)


if __name__ == "__main__":
    try:
        write_web_runtime(Path(sys.argv[1]))
    except MaestroError as failure:
        sys.exit(str(failure))
