"""Serve this folder: `python serve.py`, or `python serve.py --host 0.0.0.0` for the phones on this network.

Any web server will do. This one also sends the two headers that let a page have threads and a fine timer, which
browsers heed on https and on 127.0.0.1 only.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
}


class Handler(SimpleHTTPRequestHandler):
    """Files of the folder with HEADERS; no listings."""

    extensions_map = {  # noqa: RUF012 - as in the base class
        **SimpleHTTPRequestHandler.extensions_map,
        ".js": "text/javascript",  # a system's own table may have it wrong, and then no module loads
        ".wasm": "application/wasm",
        ".webmanifest": "application/manifest+json",
    }

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def list_directory(self, path: object) -> None:
        self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as in the base class
        """Nothing: what a page loads is seen in the browser."""


def make_server(folder: Path, host: str = "127.0.0.1", port: int = 0) -> ThreadingHTTPServer:
    """A server that is bound but does not run yet; port 0 is any.

    Raises:
        OSError: the address cannot be used.
    """
    return ThreadingHTTPServer((host, port), functools.partial(Handler, directory=str(folder)))


def main() -> None:
    parser = argparse.ArgumentParser(prog="serve.py", description=(__doc__ or "").split(":")[0])
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s, this machine alone")
    parser.add_argument("--port", type=int, default=8000, help="default: %(default)s")
    args = parser.parse_args()
    try:
        server = make_server(Path(__file__).parent, args.host, args.port)
    except (OSError, OverflowError) as error:
        sys.exit(f"serve: {args.host}:{args.port} cannot be used ({error}): choose another --port or --host")
    print(f"http://{args.host}:{server.server_port}/ (Ctrl-C ends it)", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


if __name__ == "__main__":
    main()
