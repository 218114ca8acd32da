"""A server watched over HTTP: metrics, health, events and the dashboard, on a thread and an event loop of their own."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import importlib.resources
import json
import re
import socket
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serverlight.apps.event_hub import Hub, Reader, TooManyReaders
from serverlight.errors import AddressInUse

__all__ = ["HttpThread", "Watched", "make_app"]

_MAX_CONNECTIONS = 64
"""Beyond it uvicorn answers 503."""

_UNREAD_S = 20
"""How long the kernel keeps a connection whose other side takes no bytes."""

_GRACE_S = 2

_LOOPBACK = {"127.0.0.1", "::1", "localhost"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Watched:
    """What the routes ask; each is called on the HTTP thread and must be quick."""

    metrics: Callable[[str], tuple[bytes, str]]
    """For an ``Accept`` header the metrics and their content type."""

    health: Callable[[], str]
    """``ok``, or what is wrong with the compute thread."""

    is_ready: Callable[[], bool]
    """Whether new requests are taken."""

    start: Callable[[], bytes]
    """The first event for a new reader: what is served, and the minutes before."""


def make_app(watched: Watched, hub: Hub, *, hosts: set[str] | None = None) -> ASGIApp:
    """The routes as an ASGI application.

    With ``hosts`` given, requests must be addressed to one of them: a page from elsewhere whose name was made to point
    here cannot read anything then.
    """
    page = importlib.resources.files("serverlight.apps").joinpath("dashboard.html").read_text("utf-8")

    async def dashboard(_: Request) -> Response:
        return Response(page, media_type="text/html")

    async def metrics(request: Request) -> Response:
        body, content_type = watched.metrics(request.headers.get("Accept", ""))
        return Response(body, headers={"Content-Type": content_type})

    async def healthz(_: Request) -> Response:
        health = watched.health()
        return JSONResponse({"status": health}, status_code=200 if health == "ok" else 503)

    async def readyz(_: Request) -> Response:
        ready = watched.is_ready()
        return JSONResponse({"ready": ready}, status_code=200 if ready else 503)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        hub.run_on(asyncio.get_running_loop())
        yield

    routes = [Route("/", dashboard), Route("/metrics", metrics), Route("/healthz", healthz), Route("/readyz", readyz)]
    app = Starlette(routes=[*routes, Route("/events", _Events(hub, watched.start))], lifespan=lifespan)
    return _Guard(app, page, hosts)


class _Guard:
    """Refuses foreign hosts, and says with every answer what a browser may do with it: nothing but what the page itself has."""

    def __init__(self, app: ASGIApp, page: str, hosts: set[str] | None) -> None:
        self._app, self._hosts = app, hosts
        self._headers = {
            "Content-Security-Policy": _policy(page),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cache-Control": "no-store",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        app = self._app
        if self._hosts is not None and _host_of(Headers(scope=scope).get("Host", "")) not in self._hosts:
            app = PlainTextResponse("another host was asked for; use the address that the server printed\n", 421)
        await app(scope, receive, send_guarded)


def _policy(page: str) -> str:
    """A content security policy that allows the page's own script and style, by digest, and requests to this server."""

    def digests(tag: str) -> str:
        blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        hashes = (base64.b64encode(hashlib.sha256(block.encode()).digest()).decode() for block in blocks)
        return " ".join(f"'sha256-{digest}'" for digest in hashes)

    return (
        f"default-src 'none'; script-src {digests('script')}; style-src {digests('style')}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _host_of(header: str) -> str:
    """The name or address in a ``Host`` header.

    >>> _host_of("localhost:9090"), _host_of("[::1]:9090"), _host_of("evil.example")
    ('localhost', '::1', 'evil.example')
    """
    host = re.sub(r":\d*$", "", header)
    return host[1:-1] if host.startswith("[") else host


class _Events:
    """Server-sent events: what is there, then a tick a second."""

    def __init__(self, hub: Hub, start: Callable[[], bytes]) -> None:
        self._hub, self._start = hub, start

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            await PlainTextResponse("use GET\n", 405, {"Allow": "GET"})(scope, receive, send)
            return
        try:
            with self._hub.joined() as reader:
                await self._stream(reader, receive, send)
        except TooManyReaders:
            refusal = PlainTextResponse("too many readers of events; come back later\n", 503, {"Retry-After": "10"})
            await refusal(scope, receive, send)
        except asyncio.CancelledError:  # too slow, or the server stops: the connection ends with this
            pass

    async def _stream(self, reader: Reader, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        gone = asyncio.ensure_future(_gone(receive))
        event: bytes | None = self._start()
        try:
            while event is not None:
                await send({"type": "http.response.body", "body": event, "more_body": True})
                event = await _unless(gone, reader)
            await send({"type": "http.response.body", "body": b""})
        finally:
            gone.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _unless(gone: asyncio.Future[None], reader: Reader) -> bytes | None:
    """The next event, or ``None`` once there is none, or nobody to read it."""
    waiting = asyncio.ensure_future(reader.get())
    try:
        await asyncio.wait((gone, waiting), return_when=asyncio.FIRST_COMPLETED)
        return waiting.result() if waiting.done() and not gone.done() else None
    finally:
        waiting.cancel()


def event(name: str, data: Any) -> bytes:
    """One server-sent event.

    >>> event("tick", {"queue": 2})
    b'event: tick\\ndata: {"queue":2}\\n\\n'
    """
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


class HttpThread:
    """Listens at once, and serves from the start to the end of the context; raises :class:`AddressInUse`."""

    def __init__(self, host: str, port: int, watched: Watched, hub: Hub) -> None:
        self._hub = hub
        self._socket = _listen(host, port)
        self._is_ipv6 = ":" in host
        app = make_app(watched, hub, hosts=_LOOPBACK if host in _LOOPBACK else None)
        # Its own log would be lines about requests that anybody may send.
        config = uvicorn.Config(
            app, log_config=None, log_level="critical", access_log=False, server_header=False,
            limit_concurrency=_MAX_CONNECTIONS, timeout_graceful_shutdown=_GRACE_S, ws="none",
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="serverlight-http", daemon=True)

    @property
    def url(self) -> str:
        """Where the dashboard is."""
        host, port = self._socket.getsockname()[:2]
        return f"http://{f'[{host}]' if self._is_ipv6 else host}:{port}/"

    def __enter__(self) -> HttpThread:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        ending = asyncio.ensure_future(self._end_readers())
        await self._server.serve(sockets=[self._socket])
        ending.cancel()

    async def _end_readers(self) -> None:
        while not self._server.should_exit:
            await asyncio.sleep(0.1)
        self._hub.close()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise AddressInUse(
            f"cannot listen on {host} port {port}: {error}; choose another, or 0 for any free one"
        ) from None
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # connections inherit it
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREAD_S * 1000)
    return listening
