# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""One session of the realtime protocol: a WebSocket over which a client steers a stream and gets its video."""

from __future__ import annotations

import asyncio
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from .errors import ClientError, as_client_error
from .events import EventLog
from .inbox import Inbox
from .playback import Playback, PlayedChunk
from .resuming import Recording, new_record
from .server import Server
from .session_store import PromptNote

_CHUNKS_AHEAD = 1  # made and not yet encoded: a slow reader slows its own stream
_CLOSING_SECONDS = 2.0
_DONE, _GOING_AWAY = 1000, 1001  # codes of clients that leave on purpose
_NO_CODE = 1005

Metadata = dict[str, Any]


class RealtimeSession:
    """Runs one session to its end.

    Four tasks share it, and it ends with the first one that does: one listens to the client, one makes chunks, one
    encodes and sends them, and one watches that something happens.

    Args:
        socket (`WebSocket`): the accepted connection.
        server ([`Server`]): whose models and places it uses.
        folder (`Path`): for what the client uploads.
    """

    def __init__(self, socket: WebSocket, server: Server, folder: Path) -> None:
        self._socket = socket
        self._server = server
        self._settings = server.settings
        self._folder = folder
        self._id = f"rt-{uuid.uuid4().hex}"
        self._inbox = Inbox(server, folder)
        self._events = EventLog()
        self._recording = Recording(None, server.runner, self._settings.save_every)
        self._made = self._sent = 0  # chunks
        self._next_chunk = self._next_frame = 0  # in the whole stream, to be made
        self._outgoing: asyncio.Queue[tuple[Metadata, PlayedChunk | bytes]] = asyncio.Queue(_CHUNKS_AHEAD)
        self._sending = asyncio.Lock()
        self._now = asyncio.get_running_loop().time
        self._heard = self._now()
        self._waits_since: float | None = self._heard  # for the client

    async def run(self) -> None:
        """Serves the client.

        Raises:
            WebSocketDisconnect: the client has left.
            Exception: what has ended the session before its time.
        """
        work = (self._listen, self._stream, self._send_media, self._watch)
        tasks = [asyncio.create_task(each()) for each in work]
        try:
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._inbox.close()
        try:
            for task in tasks:  # in this order: the one that listens knows best why a client has left
                if task in ended:
                    task.result()
        finally:
            # an error knows this frame, which knows its task: encoder and frames would wait for a collector
            del tasks, ended, task

    @property
    def folders(self) -> set[Path]:
        """Where files of the client are; no message may tell it."""
        return {self._folder} | ({self._inbox.video.parent} if self._inbox.video is not None else set())

    async def tell(self, kind: str, **content: Any) -> None:
        """Sends a JSON message.

        Raises:
            ClientError: the client takes nothing.
        """
        async with self._sent_in_time():
            await self._socket.send_json({"type": kind, "request_id": self._id, **content})

    # What comes in

    async def _listen(self) -> None:
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code") or _NO_CODE)
            self._heard = self._now()
            if message.get("text") is not None:
                reply = await self._inbox.on_text(message["text"])
                if reply is not None:
                    await self.tell(reply.pop("type"), **reply)
            else:
                await self._inbox.on_bytes(message["bytes"])

    async def _watch(self) -> None:
        """Ends a session in which nothing happens because its client does nothing."""
        while True:
            await asyncio.sleep(min(1.0, self._settings.idle_seconds / 4))
            if self._waits_since is None:
                continue
            silence = self._now() - max(self._heard, self._waits_since)
            if silence > self._settings.idle_seconds:
                raise ClientError(
                    "idle_timeout", f"the session has waited {silence:.0f} s for a message of the client"
                )

    @contextmanager
    def _waiting_for_client(self) -> Iterator[None]:
        self._waits_since = self._now()
        try:
            yield
        finally:
            self._waits_since = None

    # What is made

    async def _stream(self) -> None:
        with self._waiting_for_client():
            await self._inbox.ready.wait()
        async with self._server.places.taken(self._tell_position):
            async with self._playback() as playback:
                await self._begin(playback)
                ended_by = await self._play(playback)
        await self._outgoing.join()
        stopped = ended_by != "end"
        missing = {"missing_frames": playback.missing_frames} if ended_by == "end" and playback.missing_frames else {}
        await self.tell("session.done", chunks=self._sent, stopped=stopped, ended_by=ended_by, **missing)
        await self.forget()

    async def _tell_position(self, position: int) -> None:
        await self.tell("session.queued", position=position)

    @asynccontextmanager
    async def _playback(self) -> AsyncIterator[Playback]:
        inbox, runner = self._inbox, self._server.runner
        playback = await runner.run(
            Playback, inbox.model, inbox.start, self._settings, inbox.video, inbox.frames, inbox.state
        )
        try:
            yield playback
        finally:
            inbox.close()
            runner.submit(playback.close)

    async def _begin(self, playback: Playback) -> None:
        """Brings the stream to where it starts or goes on, and tells the client of it."""
        inbox, resumed = self._inbox, self._inbox.resumed
        if resumed is not None:
            self._next_chunk, self._next_frame = resumed.point.chunk, resumed.point.frame
            for note in resumed.notes:
                self._events.begin(note.name, note.chunk, note.transition_chunks)
            for note in resumed.unseen:
                await self._server.runner.run(playback.set_prompt, note.prompt, note.at_frame)
        elif inbox.state is not None:
            self._next_frame = inbox.state.stream.frames_done
        self._early = None if playback.size is not None else await self._server.runner.run(playback.next_chunk)
        told = inbox.hints() | await self._keep(playback)
        if playback.warnings:
            told["warnings"] = playback.warnings
        self._encoder = playback.encoder(0 if resumed is None else resumed.next_frame - resumed.record.first_frame)
        await self.tell(
            "video.start", format="m4s", mime_type=self._encoder.mime_type, config=playback.config(), **told
        )

    async def _keep(self, playback: Playback) -> Metadata:
        """Sees to it that another server can go on with this session; returns what its client needs for that."""
        inbox, store = self._inbox, self._server.sessions
        if inbox.resumed is not None:
            token, record = inbox.resumed.token, inbox.resumed.record
        elif store is not None:
            begun = await asyncio.to_thread(new_record, store, inbox.model, inbox.start, playback.seed, inbox.state)
            if begun is None:
                return {}
            token, record = begun
        else:
            return {}
        self._recording = Recording(record, self._server.runner, self._settings.save_every)
        return {"resume_token": token}

    async def forget(self) -> None:
        """Keeps nothing of the session any longer: its client has all that it wants."""
        await self._recording.forget()

    async def _play(self, playback: Playback) -> str:
        """Makes chunks until there are no more; returns what has ended them."""
        until = self._now() + self._settings.max_seconds
        resumed = self._inbox.resumed
        frames, wanted = (0, 0) if resumed is None else (resumed.frames_made, resumed.next_frame)
        while await self._may_go_on(playback):
            if self._now() > until:
                return "time_limit"
            metadata = await self._change_prompt(playback)
            began = self._now()
            chunk, self._early = self._early or await self._server.runner.run(playback.next_chunk), None
            if chunk is None:
                return "end"
            frames += len(chunk.frames)
            self._next_frame = chunk.first_frame + len(chunk.frames)
            if chunk.first_frame < wanted < self._next_frame:
                raise ClientError("invalid_request", f"next_frame: {wanted} is in the middle of a chunk")
            if self._next_frame > wanted:
                await self._outgoing.put((metadata | self._metadata(chunk, self._now() - began), chunk))
                self._sent += 1
            self._made += 1
            self._next_chunk += 1
            await self._recording.after_chunk(playback, self._next_chunk)
            if frames >= self._settings.max_frames:
                return "frame_limit"
        return "stop"

    async def _may_go_on(self, playback: Playback) -> bool:
        """Waits until the next chunk is wanted and can be made; returns whether it is wanted at all."""
        inbox = self._inbox
        with self._waiting_for_client():
            while not inbox.stopping:
                inbox.changed.clear()
                if inbox.exporting and self._made:
                    await self._export(playback)
                if not inbox.paused and (inbox.frames is None or inbox.frames.has_chunk(self._made)):
                    return True
                await inbox.changed.wait()
        return False

    async def _export(self, playback: Playback) -> None:
        self._inbox.exporting = False
        state = await self._server.runner.run(playback.state)
        data = await asyncio.to_thread(state.to_bytes)
        await self._outgoing.put(({"frames_done": state.stream.frames_done, "chunks": self._sent}, data))

    async def _change_prompt(self, playback: Playback) -> Metadata:
        """Makes the prompt changes that wait; returns what the next chunk's metadata tells of prompts."""
        warnings: list[str] = []
        if self._is_new(self._next_chunk):
            pending, self._inbox.interactions = self._inbox.interactions, []
            # a group that is being made already keeps its prompt
            begun = playback.runs_ahead and self._made > 0
            group = playback.next_group(self._next_frame)
            chunk = self._next_chunk + begun + (group > self._next_frame)
            at_frame = group + (playback.group_frames if begun else 0)
            for name, interaction in pending:
                warnings += await self._server.runner.run(playback.set_prompt, interaction.event.prompt)
                self._events.begin(name, chunk, interaction.transition_chunks)
                prompt, transition = interaction.event.prompt, interaction.transition_chunks
                await self._recording.note(PromptNote(prompt, name, chunk, at_frame, transition))
        return self._events.of_chunk(self._next_chunk) | ({"warnings": warnings} if warnings else {})

    def _is_new(self, chunk: int) -> bool:
        """Whether the client may still change a chunk: not those that it has, nor before a change that is settled."""
        resumed = self._inbox.resumed
        return resumed is None or (self._next_frame >= resumed.next_frame and chunk >= resumed.last_chunk)

    def _metadata(self, chunk: PlayedChunk, seconds: float) -> Metadata:
        self._server.metrics.count_chunk(len(chunk.frames), seconds, chunk.stage_seconds)
        frames = self._inbox.frames
        queued = {} if frames is None else {"queued_frames": frames.queued}
        return queued | {
            "kind": "media",
            "transport_chunk_index": self._sent,
            "generation_chunk_index": self._next_chunk,
            "num_frames": len(chunk.frames),
            "first_frame": chunk.first_frame,
            "seconds": round(seconds, 4),
            "fps": round(len(chunk.frames) / seconds, 2),
            "stage_seconds": {name: round(spent, 4) for name, spent in chunk.stage_seconds.items()},
        }

    # What goes out

    async def _send_media(self) -> None:
        while True:
            metadata, content = await self._outgoing.get()
            if isinstance(content, bytes):
                await self._send_pair("session.state", metadata, content)
            else:
                await self._send_chunk(metadata, content)
            self._outgoing.task_done()

    async def _send_chunk(self, metadata: Metadata, chunk: PlayedChunk) -> None:
        began = self._now()
        data = await asyncio.to_thread(self._encoder.encode, chunk.frames, chunk.pts, chunk.durations)
        if metadata["transport_chunk_index"] == 0:
            data = self._encoder.header + data
        if self._encoder.sample_rate is not None:
            sound = {"num_audio_samples": self._encoder.audio_samples, "audio_sample_rate": self._encoder.sample_rate}
            metadata |= sound
        metadata["stage_seconds"]["video_encoder"] = round(self._now() - began, 4)
        await self._send_pair("video.chunk_metadata", metadata, data)
        self._server.metrics.count_bytes(len(data))

    async def _send_pair(self, kind: str, metadata: Metadata, data: bytes) -> None:
        """Sends a message and the bytes that it tells of, with nothing between."""
        async with self._sent_in_time():
            await self._socket.send_json({"type": kind, "request_id": self._id, "byte_length": len(data), **metadata})
            await self._socket.send_bytes(data)

    @asynccontextmanager
    async def _sent_in_time(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._settings.stall_seconds), self._sending:
                yield
        except TimeoutError as error:
            seconds = self._settings.stall_seconds
            raise ClientError("client_stalled", f"the client has taken nothing for {seconds:.0f} s") from error


async def serve_session(socket: WebSocket, server: Server) -> None:
    """Runs the session of an accepted connection, and tells its client how it ended.

    Args:
        socket (`WebSocket`): the connection.
        server ([`Server`]): whose models and places it uses.
    """
    with tempfile.TemporaryDirectory(prefix="ultraflash-session-") as folder:
        session = RealtimeSession(socket, server, Path(folder))
        code = 1000
        try:
            await session.run()
            server.metrics.sessions.labels("done").inc()
        except WebSocketDisconnect as left:
            if await _closing_code(socket, left) in (_DONE, _GOING_AWAY):
                await session.forget()
            server.metrics.sessions.labels("left").inc()
        except Exception as failure:
            error = as_client_error(failure, *session.folders)
            code = 1011 if error.status >= 500 else 1008
            server.metrics.sessions.labels(error.code).inc()
            with suppress(Exception):
                async with asyncio.timeout(_CLOSING_SECONDS):
                    await session.tell("error", code=error.code, message=error.message)
        with suppress(Exception):
            async with asyncio.timeout(_CLOSING_SECONDS):
                await socket.close(code)


async def _closing_code(socket: WebSocket, left: WebSocketDisconnect) -> int:
    """Returns the code with which a client has left. What was being sent to it then does not know it and says 1006."""
    with suppress(TimeoutError, RuntimeError):  # RuntimeError: the client's last message was taken already
        async with asyncio.timeout(_CLOSING_SECONDS):
            while (message := await socket.receive())["type"] != "websocket.disconnect":
                pass
            return message.get("code") or _NO_CODE
    return left.code
