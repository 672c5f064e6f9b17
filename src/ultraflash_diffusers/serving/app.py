# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The server as an ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request, WebSocket
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import HTTPConnection

from .. import __version__
from .access import KEY_PROTOCOL, check_access
from .errors import ClientError
from .job_worker import JobWorker
from .jobs import JobStore
from .server import Server
from .session import serve_session
from .videos_api import videos_router


def create_app(server: Server, jobs: JobStore | None = None, hosts: Sequence[str] = ("*",)) -> FastAPI:
    """Returns the application: the realtime protocol, the plain API, health and metrics.

    Args:
        server ([`Server`]): whose models it serves; it is closed when the application ends.
        jobs ([`JobStore`], *optional*): for `/v1/videos`, which is missing without it; closed likewise.
        hosts (sequence of `str`, *optional*, defaults to `("*",)`): names under which it may be addressed. A server on
            the loopback interface that knows its own cannot be reached by pages that gave it another one.
    """

    worker = None if jobs is None else JobWorker(server, jobs)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        if worker is not None and jobs is not None:
            worker.close()
            jobs.close()
        server.close()

    app = FastAPI(title="Ultra Flash", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    app.include_router(realtime_router(server))
    app.include_router(information_router(server))
    if worker is not None and jobs is not None:
        app.include_router(videos_router(server, jobs, worker))
    app.add_exception_handler(ClientError, _client_error)
    return app


def realtime_router(server: Server) -> APIRouter:
    """Returns the realtime protocol's route, to be part of this or another application.

    Args:
        server ([`Server`]): whose models it serves.
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
        await socket.accept(subprotocol=next((name for name in offered if name.startswith(KEY_PROTOCOL)), None))
        await serve_session(socket, server)

    return router


def information_router(server: Server) -> APIRouter:
    """Returns what tells of the server: models, health, metrics.

    Args:
        server ([`Server`]): of which they tell.
    """
    router = APIRouter()

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


def _client_error(_: HTTPConnection, error: Exception) -> JSONResponse:
    assert isinstance(error, ClientError)
    content = {"error": {"code": error.code, "message": error.message, "type": error.code}}
    return JSONResponse(content, status_code=error.status)
