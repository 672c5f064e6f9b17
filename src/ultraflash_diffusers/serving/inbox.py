# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What a client has said so far in its session."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from ..pipelines.sources.pixels import PixelSourceState
from .errors import ClientError
from .intake import MAX_QUEUED_FRAMES, ClientFrames, Upload
from .messages import Control, Interaction, SessionInteraction, SessionStart, VideoUpload, parse_message
from .playback import with_state
from .resuming import ResumedSession
from .served_models import ServedModel, check_prompt, check_request, choose_model
from .server import Server
from .session_state import SessionState

_LARGEST_BACKLOG = 64  # interactions that wait for a chunk
_REPLIES = {"session.ping": "session.pong", "session.pause": "session.paused", "session.resume": "session.resumed"}

Reply = dict[str, Any]


class Inbox:
    """Takes the messages of one client, checks them, and keeps what the stream is to do.

    Args:
        server ([`Server`]): whose models may be asked for, and what is allowed.
        folder (`Path`): where uploads go.

    Attributes:
        video (`Path`, *optional*): the client's file.
        resumed ([`ResumedSession`], *optional*): what the session goes on with.
        ready (`asyncio.Event`): all that the stream starts from is there: `model`, `start`, `state`, `frames`.
        changed (`asyncio.Event`): something was said since whoever waits for it has cleared it.
        stopping, paused, exporting (`bool`): what the client wants.
        interactions (`list`): prompt changes that were not yet made, with their names.
    """

    model: ServedModel
    start: SessionStart

    def __init__(self, server: Server, folder: Path) -> None:
        self._server = server
        self._settings = server.settings
        self._folder = folder
        self._started = False
        self._uploads: list[Upload] = []
        self._named = 0
        self.state: SessionState | None = None
        self.video: Path | None = None
        self.frames: ClientFrames | None = None
        self.resumed: ResumedSession | None = None
        self.ready = asyncio.Event()
        self.changed = asyncio.Event()
        self.stopping = self.paused = self.exporting = False
        self.interactions: list[tuple[str, Interaction]] = []

    async def on_text(self, text: str) -> Reply | None:
        """Takes a text message; returns the answer to it, if there is one.

        Raises:
            ClientError: the message is wrong, or wrong now.
        """
        message = parse_message(text)
        self.changed.set()
        if isinstance(message, SessionStart):
            await self._on_start(message)
            return None
        if isinstance(message, SessionInteraction):
            return self._on_interaction(message.interaction)
        return self._on_control(message)

    async def on_bytes(self, data: bytes) -> None:
        """Takes a binary message: a piece of what `session.start` has announced, or a frame.

        Raises:
            ClientError: nothing of the kind is expected, or it is wrong.
        """
        if not self._started:
            raise ClientError("unexpected_binary", "a binary message came before session.start")
        upload = next((each for each in self._uploads if not each.complete), None)
        if upload is not None:
            upload.feed(data)
            await self._prepare()
        elif self.frames is not None:
            await asyncio.to_thread(self.frames.feed, data)
        else:
            raise ClientError("unexpected_binary", "a binary message came, but nothing was announced that needs one")
        self.changed.set()

    def close(self) -> None:
        """Takes nothing more; whoever waits for frames finds their end."""
        for upload in self._uploads:
            upload.close()
        if self.frames is not None:
            self.frames.end()

    async def _on_start(self, start: SessionStart) -> None:
        if self._started:
            raise ClientError("already_started", "session.start: this session was started already")
        self._started = True
        if start.resume_token is not None:
            await self._resume(start)
        else:
            self.start, self.model = start, choose_model(self._server.models, start.model)
        if start.state_byte_length is None:
            self._check(self.start)
        if start.state_byte_length is not None:
            self._uploads.append(self._upload("state", start.state_byte_length))
        if start.video is not None:
            self._take_video(start.video)
        await self._prepare()

    async def _resume(self, start: SessionStart) -> None:
        server = self._server
        resumed = await asyncio.to_thread(ResumedSession.of_client, start, server.sessions, server.models)
        self.resumed, self.start, self.model, self.state = resumed, resumed.start, resumed.model, resumed.state
        self._named = len(resumed.notes)

    def _take_video(self, video: VideoUpload) -> None:
        if video.byte_length is not None:
            upload = self._upload(f"video{Path(video.name).suffix[:8]}", video.byte_length)
            self._uploads.append(upload)
            self.video = upload.path
        elif video.token is not None:
            self.video = self._server.take(video.token)

    def _upload(self, name: str, length: int) -> Upload:
        if length > self._settings.max_upload:
            limit = self._settings.max_upload
            raise ClientError("limit_exceeded", f"{name}: {length} bytes, this server takes at most {limit}")
        return Upload(self._folder / name, length)

    async def _prepare(self) -> None:
        """Makes what the stream starts from, once all that was announced has come."""
        if any(not upload.complete for upload in self._uploads):
            return
        if self.start.state_byte_length is not None:
            state_path = self._uploads[0].path
            self.state = await asyncio.to_thread(SessionState.of_client, state_path, self.model)
            self.start = with_state(self.start, self.state)
            self._check(self.start)
        if self.start.source == "frames":
            self.frames = self._client_frames(self.start)
        self.ready.set()

    def _check(self, start: SessionStart) -> None:
        check_request(self.model, start.source, start, self._settings)
        if start.source == "text" and start.state_byte_length is None and self.state is None:
            check_prompt(start.prompt, self._settings)
        if (start.source == "video") != (start.video is not None):
            raise ClientError("invalid_request", f"video: {start.video!r}, with source {start.source!r}")
        if start.source == "frames" and start.width is None:
            raise ClientError("invalid_request", "width, height: None, but with source 'frames' they are the frames'")

    def _client_frames(self, start: SessionStart) -> ClientFrames:
        pipe = self.model.pipe
        ratio, group = pipe.autoencoder.temporal_compression_ratio, pipe.config.group_frames
        first = ratio * group - (ratio - 1 if self.state is None else 0)
        size = start.width or 0, start.height or 0
        done = 0 if self.state is None else self.state.stream.frames_done
        missing = None if start.num_frames is None else start.num_frames - done
        return ClientFrames(*size, start.frame_format == "raw", first, ratio * group, missing)

    def _on_interaction(self, interaction: Interaction) -> Reply:
        if not self._started:
            raise ClientError("not_started", "session.interaction came before session.start")
        if len(self.interactions) >= _LARGEST_BACKLOG:
            raise ClientError("too_many_interactions", f"{len(self.interactions)} of them wait for a chunk already")
        check_prompt(interaction.event.prompt, self._settings)
        self._named += 1
        name = interaction.event_id or interaction.interaction_id or f"event-{self._named}"
        if self.resumed is None or not self.resumed.has(name, interaction.event.prompt):
            self.interactions.append((name, interaction))
        return {"type": "session.interaction.queued", "event_id": name}

    def _on_control(self, message: Control) -> Reply | None:
        if message.type != "session.ping" and not self._started:
            raise ClientError("not_started", f"{message.type} came before session.start")
        match message.type:
            case "session.stop":
                self.stopping = True
            case "session.pause" | "session.resume":
                self.paused = message.type == "session.pause"
            case "session.export":
                self.exporting = True
            case "session.frames_end":
                self._end_frames()
        return {"type": _REPLIES[message.type]} if message.type in _REPLIES else None

    def _end_frames(self) -> None:
        if self.frames is None:
            raise ClientError("invalid_request", "session.frames_end: this session takes no frames")
        self.frames.end()

    def hints(self) -> dict[str, Any]:
        """What a client of frames has to know: how many may wait, and which one is the first."""
        if self.frames is None:
            return {}
        before = None if self.state is None else self.state.stream.source
        first = before.frames if isinstance(before, PixelSourceState) else 0
        return {"max_queued_frames": MAX_QUEUED_FRAMES, "first_source_frame": first}
