# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Who may use a server."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from .errors import ClientError
from .server import Server

KEY_PROTOCOL = "bearer."  # browsers cannot set headers of a WebSocket, only its sub-protocols
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


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
        if protocol.startswith(KEY_PROTOCOL):
            yield protocol.removeprefix(KEY_PROTOCOL)


def _is_allowed(origin: str, connection: HTTPConnection, allowed: tuple[str, ...]) -> bool:
    page = urlsplit(origin).hostname
    # behind a proxy the host is another; pages cannot set this header
    hosts = {connection.url.hostname, urlsplit(f"//{connection.headers.get('x-forwarded-host', '')}").hostname}
    return origin in allowed or (page is not None and (page in hosts or {page, connection.url.hostname} <= _LOOPBACK))
