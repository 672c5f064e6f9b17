# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The server: video over WebSockets while it is being made, and jobs over HTTP.

Needs the extra `serve`: `pip install 'ultraflash_diffusers[serve]'`.
"""

from .app import create_app
from .jobs import JobStore
from .served_models import ServedModel
from .server import Server
from .session_store import SessionStore
from .settings import ServerSettings

__all__ = ["JobStore", "ServedModel", "Server", "ServerSettings", "SessionStore", "create_app"]
