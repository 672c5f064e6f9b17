# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Going on with a session whose server has died, and keeping a session for that."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ClientError
from .messages import SessionStart
from .playback import Playback
from .runner import StreamRunner
from .served_models import ServedModel, choose_model
from .session_state import SessionState
from .session_store import PromptNote, SavedPoint, SessionRecord, SessionStore

logger = logging.getLogger(__name__)

_GIVEN_WITH_TOKEN = {"type", "model", "format", "video", "resume_token", "next_frame"}
_NOT_KEPT = {"video", "state_byte_length", "resume_token", "next_frame"}


@dataclass(frozen=True)
class ResumedSession:
    """A session as its former server has left it.

    Args:
        token (`str`): the client's secret.
        record ([`SessionRecord`]): what was kept.
        model ([`ServedModel`]): the checkpoint.
        start ([`SessionStart`]): the request.
        point ([`SavedPoint`]): from where the stream is made again.
        state ([`SessionState`], *optional*): there; the beginning has none.
        notes (`list[PromptNote]`): all changes of the prompt.
        next_frame (`int`): the first one that the client lacks.
    """

    token: str
    record: SessionRecord
    model: ServedModel
    start: SessionStart
    point: SavedPoint
    state: SessionState | None
    notes: list[PromptNote]
    next_frame: int

    @classmethod
    def of_client(
        cls, start: SessionStart, store: SessionStore | None, models: Mapping[str, ServedModel]
    ) -> ResumedSession:
        """Finds what a client wants to go on with.

        Args:
            start ([`SessionStart`]): with a `resume_token`.
            store ([`SessionStore`], *optional*): where this server keeps sessions.
            models (`Mapping`): what it serves.

        Raises:
            ClientError: nothing is kept under the token, it is of another checkpoint, or the message says what the
                session has settled.
        """
        decided = sorted(start.model_fields_set - _GIVEN_WITH_TOKEN)
        if decided:
            raise ClientError(
                "invalid_request", f"{', '.join(decided)}: given beside a resume_token, which settles it"
            )
        if store is None or start.resume_token is None:
            raise ClientError("not_found", "resume_token: this server keeps no sessions", 404)
        record = store.find(start.resume_token)
        beginning = record.beginning
        kept = SessionStart.model_validate(beginning["start"])
        model = choose_model(models, kept.model)
        if beginning["fingerprint"] != model.fingerprint:
            raise ClientError(
                "invalid_state", f"resume_token: its session is of another checkpoint than {model.name!r}"
            )
        point = record.point_before(start.next_frame)
        record.forget_after(point.frame)
        state = None if point.path is None else SessionState.of_client(point.path, model)
        changes = {"video": start.video} | ({"prompt": None} if point.chunk > 0 else {})  # the state has it in it
        return cls(
            start.resume_token,
            record,
            model,
            kept.model_copy(update=changes),
            point,
            state,
            record.prompts(),
            max(start.next_frame, record.first_frame),
        )

    @property
    def unseen(self) -> list[PromptNote]:
        """Changes that the point lacks, and that have to be made again."""
        return self.notes[self.point.prompts :]

    @property
    def frames_made(self) -> int:
        """Frames of the session before the point."""
        return self.point.frame - self.record.first_frame

    @property
    def last_chunk(self) -> int:
        """Number of the last chunk that was settled: new changes come after it."""
        return max((note.chunk for note in self.notes), default=0)

    def has(self, name: str, prompt: str) -> bool:
        """Whether a change that the client may not have seen yet is noted already."""
        return any(
            note.at_frame >= self.next_frame and (note.name, note.prompt) == (name, prompt) for note in self.notes
        )


def new_record(
    store: SessionStore, model: ServedModel, start: SessionStart, seed: int, state: SessionState | None
) -> tuple[str, SessionRecord] | None:
    """Returns the record of a session that begins, and its secret; `None` where nothing can be written."""
    request = start.model_dump(exclude_unset=True, exclude=_NOT_KEPT) | {"type": start.type, "seed": seed}
    try:
        token, record = store.create(model.fingerprint, request)
        if state is not None:
            record.save(state, 0)
    except OSError as error:
        logger.warning("a session is not kept: %s", error)
        return None
    return token, record


class Recording:
    """Keeps a running session in the store, every few chunks. A store that fails ends the keeping, not the stream.

    Args:
        record ([`SessionRecord`], *optional*): of the session; without one nothing is kept.
        runner ([`StreamRunner`]): in whose turns states are copied.
        save_every (`float`): least seconds between two states.
    """

    def __init__(self, record: SessionRecord | None, runner: StreamRunner, save_every: float) -> None:
        self._record = record
        self._runner = runner
        self._save_every = save_every
        self._saved = time.monotonic()

    async def note(self, change: PromptNote) -> None:
        """Keeps a change of the prompt."""
        if self._record is not None:
            await self._write(self._record.note, change)

    async def after_chunk(self, playback: Playback, next_chunk: int) -> None:
        """Keeps the state before chunk number `next_chunk`, where the last one is old enough."""
        if self._record is None or time.monotonic() - self._saved < self._save_every:
            return
        state = await self._runner.run(playback.state)
        await self._write(self._record.save, state, next_chunk)
        self._saved = time.monotonic()

    async def forget(self) -> None:
        """Drops all that was kept: the session has come to its end."""
        if self._record is not None:
            await asyncio.to_thread(self._record.remove)

    async def _write(self, function: Callable[..., None], *args: Any) -> None:
        try:
            await asyncio.to_thread(function, *args)
        except OSError as error:
            logger.warning("a session is not kept any longer: %s", error)
            self._record = None
