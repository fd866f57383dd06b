"""The web server behind a browser device: one token, one page, nothing else."""

from __future__ import annotations

import asyncio
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from maestro_edge.devices.page_session import PageSession, Refused
from maestro_edge.errors import DeviceError, MissingExtra

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["PageServer"]

_PAGE = Path(__file__).with_name("page")
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".wasm": "application/wasm"}
_HEADERS = {
    # Both are needed for threads; a browser heeds them on https and on 127.0.0.1 only.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; style-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # the address holds the token
    "Cache-Control": "no-store",
}
_ANSWER_LIMIT_BYTES = 4 * 2**20
_POLL_S = 10.0
_COOKIE = "maestro_edge"


class PageServer:
    """Serves the page, LiteRT.js and `files` (name → path) under a one-time token, from a thread of its own.

    Raises:
        DeviceError: the address cannot be used.
        MissingExtra: starlette or uvicorn is not installed.
    """

    def __init__(
        self, session: PageSession, files: Mapping[str, Path], library: Mapping[str, bytes], host: str, port: int
    ) -> None:
        try:
            import uvicorn
        except ImportError as error:
            raise MissingExtra("uvicorn", "browser") from error
        token = secrets.token_urlsafe(16)
        app = _Guard(_application(session, files, library), token)
        self._socket = _bind(host, port)
        self.url = f"http://{host}:{self._socket.getsockname()[1]}/{token}/"
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                lifespan="off",
                log_config=None,
                access_log=False,  # it would hold the token
                server_header=False,
                limit_concurrency=64,
                timeout_graceful_shutdown=2,
                ws="none",
            )
        )
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.01)

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        self._socket.close()


def _bind(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port))
    except OSError as error:
        raise DeviceError(
            f"browser: port {port} of {host} cannot be used ({error.strerror}): choose another, or 0 for any"
        ) from error


class _Guard:
    """Lets pass what stands under the token, which becomes the root; all else is not found. Adds the headers."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app, self.token = app, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from starlette.responses import PlainTextResponse

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [(key.lower().encode(), value.encode()) for key, value in _HEADERS.items()]
            await send(message)

        token, slash, _ = scope["path"].removeprefix("/").partition("/")
        if secrets.compare_digest(token.encode(), self.token) and slash:
            await self.app({**scope, "root_path": f"/{token}"}, receive, send_with_headers)
        else:
            await PlainTextResponse("not found", 404)(scope, receive, send_with_headers)


def _application(session: PageSession, files: Mapping[str, Path], library: Mapping[str, bytes]) -> ASGIApp:
    try:
        from starlette.applications import Starlette
        from starlette.responses import FileResponse, PlainTextResponse, Response
        from starlette.routing import Route
    except ImportError as error:
        raise MissingExtra("starlette", "browser") from error
    # Looked up by name, never joined to a path: nothing else can be asked for.
    assets = {path.name: path.read_bytes() for path in _PAGE.iterdir() if path.suffix in _TYPES}
    assets |= {f"litert/{name}": content for name, content in library.items()}

    async def asset(request: Request) -> Response:
        name = request.path_params["name"] or "index.html"
        if name not in assets:
            return PlainTextResponse("not found", 404)
        return Response(assets[name], media_type=_TYPES.get(Path(name).suffix, "application/json"))

    async def claim(request: Request) -> Response:
        key, visit = session.claim(request.cookies.get(_COOKIE))
        answer = PlainTextResponse(str(visit))
        answer.set_cookie(_COOKIE, key, path=f"{request.scope['root_path']}/", httponly=True, samesite="strict")
        return answer

    async def job(request: Request) -> Response:
        found = await asyncio.to_thread(session.next_job, *_caller(request), _POLL_S)
        if found is None:
            return Response(status_code=204)
        return Response(found.content, media_type="application/json", headers={"X-Job": found.name})

    async def beat(request: Request) -> Response:
        session.beat(*_caller(request))
        return Response(status_code=204)

    async def answer(request: Request) -> Response:
        session.check(request.cookies.get(_COOKIE))
        content = await _body(request)
        session.answer(*_caller(request), request.path_params["name"], content)
        return Response(status_code=204)

    async def file(request: Request) -> Response:
        session.check(request.cookies.get(_COOKIE))
        path = files.get(request.path_params["name"])
        return PlainTextResponse("not found", 404) if path is None else FileResponse(path)

    async def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        return PlainTextResponse(error.reason, error.status)

    routes = [
        Route("/claim", claim, methods=["POST"]),
        Route("/job", job),
        Route("/beat", beat, methods=["POST"]),
        Route("/answer/{name}", answer, methods=["POST"]),
        Route("/files/{name:path}", file),
        Route("/{name:path}", asset),
    ]
    return Starlette(routes=routes, exception_handlers={Refused: refuse})


def _caller(request: Request) -> tuple[str | None, int]:
    visit = request.query_params.get("visit", "")
    return request.cookies.get(_COOKIE), int(visit) if visit.isascii() and visit.isdigit() and len(
        visit
    ) < 10 else 0


async def _body(request: Request) -> bytes:
    """The posted bytes; the limit holds whatever length was announced."""
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > _ANSWER_LIMIT_BYTES:
            raise Refused(413, f"an answer may have {_ANSWER_LIMIT_BYTES} bytes")
    return bytes(content)
