# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""A server on a free port of this machine, and a client of the realtime protocol that is nothing but a WebSocket."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import av
import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from ultraflash_diffusers.serving.fragments import FragmentEncoder
from ultraflash_diffusers.serving.running import bind, make_server

PATH = "/v1/realtime/video"


@contextmanager
def running(app: Any) -> Iterator[str]:
    """Runs an ASGI application; gives its address without the scheme."""
    listener = bind("127.0.0.1", 0)
    ready = threading.Event()
    server = make_server(app, ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        assert ready.wait(30), "the server did not start in time"
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()


@dataclass
class Received:
    """What a server has sent.

    Args:
        messages (`list`): its JSON messages.
        chunks (`list`): metadata and bytes of each media frame.
        states (`list`): likewise of each exported state.
    """

    messages: list[dict[str, Any]] = field(default_factory=list)
    chunks: list[tuple[dict[str, Any], bytes]] = field(default_factory=list)
    states: list[tuple[dict[str, Any], bytes]] = field(default_factory=list)

    @property
    def video(self) -> bytes:
        """The bytes that a client saves."""
        return b"".join(data for _, data in self.chunks)

    def of_type(self, kind: str) -> list[dict[str, Any]]:
        """Messages of a type."""
        return [message for message in self.messages if message["type"] == kind]


class Client:
    """A session with a server.

    Args:
        address (`str`): host and port.
        options: of `websockets`' `connect`.
    """

    def __init__(self, address: str, **options: Any) -> None:
        self._leaving = ExitStack()
        connection = connect(f"ws://{address}{PATH}", max_size=None, **options)
        self.socket: ClientConnection = self._leaving.enter_context(connection)
        self.received = Received()

    def send(self, kind: str, **content: Any) -> None:
        """Sends a JSON message."""
        self.socket.send(json.dumps({"type": kind, **content}))

    def start(self, **fields: Any) -> None:
        """Sends `session.start`."""
        self.send("session.start", **fields)

    def read(self, timeout: float = 60) -> dict[str, Any]:
        """Takes the next JSON message, with the bytes that belong to it."""
        message = json.loads(self.socket.recv(timeout))
        self.received.messages.append(message)
        if message["type"] in ("video.chunk_metadata", "session.state"):
            data = self.socket.recv(timeout)
            assert isinstance(data, bytes) and len(data) == message["byte_length"]
            kept = self.received.states if message["type"] == "session.state" else self.received.chunks
            kept.append((message, data))
        return message

    def read_until(self, kind: str, timeout: float = 60) -> dict[str, Any]:
        """Takes messages up to one of a type; an `error` that was not asked for fails."""
        while (message := self.read(timeout))["type"] != kind:
            assert message["type"] != "error", message
        return message

    def finish(self, timeout: float = 60) -> Received:
        """Takes all until the stream is done."""
        self.read_until("session.done", timeout)
        return self.received

    def close(self) -> None:
        """Leaves."""
        self._leaving.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def play_to_the_end(address: str, on_chunk: Callable[[], object], seconds: float, **start: Any) -> list[Received]:
    """Plays a stream whose server may die, each time going on with the frames that are missing.

    Returns:
        what each of its connections has brought.
    """
    received: list[Received] = []
    end = time.monotonic() + seconds
    while not received or not received[-1].of_type("session.done"):
        assert time.monotonic() < end, "the stream did not come to its end in time"
        try:
            with Client(address) as client:
                received.append(client.received)
                client.start(**start)
                while client.read(seconds)["type"] != "session.done":
                    message = client.received.messages[-1]
                    assert message["type"] != "error", message
                    if message["type"] == "video.start":
                        start = {"resume_token": message["resume_token"], "next_frame": start.get("next_frame", 0)}
                    elif message["type"] == "video.chunk_metadata":
                        start["next_frame"] = message["first_frame"] + message["num_frames"]
                        on_chunk()
        except (ConnectionClosed, InvalidMessage, InvalidStatus, OSError):
            time.sleep(0.5)
    return received


def is_played(received: list[Received], frames: np.ndarray, fps: float) -> bool:
    """Whether the connections of [`play_to_the_end`] have brought these frames, each once, and no others."""
    first = 0
    for each in received:
        sizes = [metadata["num_frames"] for metadata, _ in each.chunks]
        part = frames[first : first + sum(sizes)]
        if sizes and not np.array_equal(decoded(each.video), decoded(b"".join(encoded(part, sizes, fps, first)))):
            return False
        first += sum(sizes)
    return first == len(frames)


def decoded(video: bytes) -> np.ndarray:
    """Frames `[frames, height, width, 3]` of a file."""
    with av.open(io.BytesIO(video), "r") as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def encoded(frames: np.ndarray, sizes: list[int], fps: float, first_frame: int = 0) -> list[bytes]:
    """Frames as a session sends them: a fragment for each of these numbers of frames."""
    encoder = FragmentEncoder(frames.shape[2], frames.shape[1], fps, first_frame=first_frame)
    parts = np.split(frames, np.cumsum(sizes)[:-1])
    fragments = [encoder.encode(part) for part in parts]
    return [encoder.header + fragments[0], *fragments[1:]]


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Waits for something to become true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)
