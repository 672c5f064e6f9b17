# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The server as an ASGI application."""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter, FastAPI, Request, WebSocket
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import HTTPConnection

from .. import __version__
from .errors import ClientError
from .server import Server
from .session import serve_session

_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_KEY_PROTOCOL = "bearer."  # browsers cannot set headers of a WebSocket, only its sub-protocols


def create_app(server: Server, hosts: Sequence[str] = ("*",)) -> FastAPI:
    """Returns the application: the realtime protocol, the plain API, health and metrics.

    Args:
        server ([`Server`]): whose models it serves; it is closed when the application ends.
        hosts (sequence of `str`, *optional*, defaults to `("*",)`): names under which it may be addressed. A server on
            the loopback interface that knows its own cannot be reached by pages that gave it another one.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        server.close()

    app = FastAPI(title="Ultra Flash", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    app.include_router(api_router(server))
    app.add_exception_handler(ClientError, _client_error)
    return app


def api_router(server: Server) -> APIRouter:
    """Returns the routes, to be part of this or another application.

    Args:
        server ([`Server`]): whose models they serve.
    """
    router = APIRouter()

    @router.websocket("/v1/realtime/video")
    async def realtime(socket: WebSocket) -> None:
        try:
            check_access(socket, server)
        except ClientError as error:
            await socket.send_denial_response(_client_error(socket, error))
            return
        offered = socket.scope.get("subprotocols", [])
        await socket.accept(subprotocol=next((name for name in offered if name.startswith(_KEY_PROTOCOL)), None))
        await serve_session(socket, server)

    @router.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        check_access(request, server)
        return {"object": "list", "data": [model.describe() for model in server.models.values()]}

    @router.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "streams_running": server.places.running, "streams_waiting": server.places.waiting}

    @router.get("/metrics")
    async def metrics(request: Request) -> Response:
        check_access(request, server)
        return Response(server.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)

    return router


def check_access(connection: HTTPConnection, server: Server) -> None:
    """Lets in who shows the key, where there is one, and no page of another host.

    Raises:
        ClientError: neither, with the status 401 or 403.
    """
    key = server.settings.api_key
    if key is not None and not any(hmac.compare_digest(key.encode(), shown.encode()) for shown in _keys(connection)):
        raise ClientError("unauthorized", "a key is needed: Authorization: Bearer KEY", 401)
    origin = connection.headers.get("origin")
    if origin is not None and not _is_allowed(origin, connection, server.settings.allowed_origins):
        raise ClientError("forbidden_origin", f"pages of {origin[:200]!r} may not use this server", 403)


def _keys(connection: HTTPConnection) -> Iterable[str]:
    scheme, _, shown = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        yield shown.strip()
    for protocol in connection.scope.get("subprotocols", []):
        if protocol.startswith(_KEY_PROTOCOL):
            yield protocol.removeprefix(_KEY_PROTOCOL)


def _is_allowed(origin: str, connection: HTTPConnection, allowed: tuple[str, ...]) -> bool:
    page, here = urlsplit(origin).hostname, connection.url.hostname
    return origin in allowed or (page is not None and (page == here or {page, here} <= _LOOPBACK))


def _client_error(_: HTTPConnection, error: Exception) -> JSONResponse:
    assert isinstance(error, ClientError)
    content = {"error": {"code": error.code, "message": error.message, "type": error.code}}
    return JSONResponse(content, status_code=error.status)
