# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the parts of a server share."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from .errors import ClientError
from .metrics import Metrics
from .runner import Places, StreamRunner
from .served_models import ServedModel
from .session_store import SessionStore
from .settings import ServerSettings

_MOST_OFFERED = 1000


class Server:
    """Checkpoints, limits, the thread in which streams take turns, places, and counters.

    Args:
        models (sequence of [`ServedModel`]): at least one; the first is taken where a client names none.
        settings ([`ServerSettings`], *optional*): limits.
        sessions ([`SessionStore`], *optional*): keeps the states of running sessions; without it a session whose
            server dies is lost.
    """

    def __init__(
        self,
        models: Sequence[ServedModel],
        settings: ServerSettings | None = None,
        sessions: SessionStore | None = None,
    ) -> None:
        if not models:
            raise ValueError("`models` is empty, expected at least one")
        self.models = {model.name: model for model in models}
        self.settings = settings or ServerSettings()
        self.sessions = sessions
        self.runner = StreamRunner()
        self.places = Places(self.settings.max_streams, self.settings.max_queue)
        self.metrics = Metrics(self.places)
        self._offered: OrderedDict[str, Path] = OrderedDict()

    def offer(self, video: Path) -> str:
        """Returns a token by which one session may work on a file that the server has.

        Args:
            video (`Path`): the file; it must stay until the session has ended.
        """
        token = secrets.token_urlsafe(16)
        self._offered[token] = video
        if len(self._offered) > _MOST_OFFERED:
            self._offered.popitem(last=False)
        return token

    def take(self, token: str) -> Path:
        """Returns the file of a token, once.

        Raises:
            ClientError: there is none.
        """
        if token not in self._offered:
            raise ClientError("not_found", "video.token: no file was offered under it, or it was used before", 404)
        return self._offered.pop(token)

    def close(self) -> None:
        """Ends the thread that makes the streams."""
        self.runner.close()
