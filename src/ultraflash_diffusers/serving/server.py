# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the parts of a server share."""

from __future__ import annotations

from collections.abc import Sequence

from .metrics import Metrics
from .runner import Places, StreamRunner
from .served_models import ServedModel
from .settings import ServerSettings


class Server:
    """Checkpoints, limits, the thread in which streams take turns, places, and counters.

    Args:
        models (sequence of [`ServedModel`]): at least one; the first is taken where a client names none.
        settings ([`ServerSettings`], *optional*): limits.
    """

    def __init__(self, models: Sequence[ServedModel], settings: ServerSettings | None = None) -> None:
        if not models:
            raise ValueError("`models` is empty, expected at least one")
        self.models = {model.name: model for model in models}
        self.settings = settings or ServerSettings()
        self.runner = StreamRunner()
        self.places = Places(self.settings.max_streams, self.settings.max_queue)
        self.metrics = Metrics(self.places)

    def close(self) -> None:
        """Ends the thread that makes the streams."""
        self.runner.close()
