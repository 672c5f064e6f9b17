# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What clients send in binary messages: files that arrive in pieces, and frames of a live source."""

from __future__ import annotations

import io
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ..video_io.pictures import PICTURE_ERRORS
from .errors import ClientError

MAX_QUEUED_FRAMES = 120
_LARGEST_PICTURE = 32 * 2**20  # bytes
_PICTURE_FORMATS = ("JPEG", "WEBP", "PNG")


class Upload:
    """A file of an announced length.

    Args:
        path (`Path`): where it goes.
        byte_length (`int`): that was announced.
    """

    def __init__(self, path: Path, byte_length: int) -> None:
        self.path = path
        self._missing = byte_length
        self._file = path.open("wb")

    @property
    def complete(self) -> bool:
        """Whether all of it is there."""
        return self._missing == 0

    def feed(self, data: bytes) -> None:
        """Takes the next piece.

        Raises:
            ClientError: it is more than was announced.
        """
        if len(data) > self._missing:
            raise ClientError("invalid_upload", f"{len(data)} bytes came, {self._missing} of the upload were missing")
        self._file.write(data)
        self._missing -= len(data)
        if self.complete:
            self._file.close()

    def close(self) -> None:
        """Takes nothing more."""
        self._file.close()


class ClientFrames:
    """Frames that a client sends, in the order in which they come: an iterator for the stream that works on them.

    It is fed by one thread and read by another. Whoever gives the reader its turn waits for
    [`~ClientFrames.has_chunk`] before, so that no stream holds up others while it waits for its client.

    Args:
        width, height (`int`): of each frame.
        raw (`bool`): whether frames are RGB bytes, else pictures.
        first_chunk, later_chunks (`int`): frames that a chunk of the stream needs.
        num_frames (`int`, *optional*): after which there are no more.
    """

    def __init__(
        self,
        width: int,
        height: int,
        raw: bool,
        first_chunk: int,
        later_chunks: int,
        num_frames: int | None = None,
    ) -> None:
        self._size = (width, height)
        self._raw = raw
        self._chunks = (first_chunk, later_chunks)
        self._num_frames = num_frames
        self._frames: deque[np.ndarray] = deque()
        self._received = 0
        self._ended = False
        self._changed = threading.Condition()

    @property
    def queued(self) -> int:
        """Frames that wait to be read."""
        return len(self._frames)

    def has_chunk(self, index: int) -> bool:
        """Whether chunk number `index` of the stream can be made without waiting."""
        first, later = self._chunks
        return self._ended or self._received >= first + later * index or self._received == self._num_frames

    def feed(self, data: bytes) -> None:
        """Takes the next frame.

        Raises:
            ClientError: it is no frame of the announced size and format, or too many are waiting.
        """
        if self._ended or self._received == self._num_frames:
            raise ClientError("unexpected_frame", f"frame {self._received} came after the end of the frames")
        if len(self._frames) >= MAX_QUEUED_FRAMES:
            raise ClientError("too_many_frames", f"{len(self._frames)} frames are waiting: send them as chunks come")
        frame = self._decoded(data)
        with self._changed:
            self._frames.append(frame)
            self._received += 1
            self._changed.notify()

    def end(self) -> None:
        """Says that no more frames come."""
        with self._changed:
            self._ended = True
            self._changed.notify()

    def __iter__(self) -> Iterator[np.ndarray]:
        return self

    def __next__(self) -> np.ndarray:
        with self._changed:
            self._changed.wait_for(lambda: self._frames or self._ended)
            if not self._frames:
                raise StopIteration
            return self._frames.popleft()

    def _decoded(self, data: bytes) -> np.ndarray:
        width, height = self._size
        if self._raw:
            if len(data) != width * height * 3:
                raise ClientError(
                    "invalid_frame",
                    f"frame {self._received} has {len(data)} bytes, {width}x{height} RGB are {width * height * 3}",
                )
            return np.frombuffer(bytearray(data), np.uint8).reshape(height, width, 3)
        if len(data) > _LARGEST_PICTURE:
            raise ClientError(
                "message_too_large",
                f"frame {self._received} has {len(data)} bytes, at most {_LARGEST_PICTURE} are read",
            )
        try:
            with Image.open(io.BytesIO(data), formats=_PICTURE_FORMATS) as picture:
                if picture.size != self._size:  # known from the header, before any pixels are
                    found = f"{picture.width}x{picture.height}"
                    raise ClientError("invalid_frame", f"frame {self._received} is {found}, expected {width}x{height}")
                return np.array(picture.convert("RGB"))
        except PICTURE_ERRORS as error:
            raise ClientError("invalid_frame", f"frame {self._received} is no JPEG, WebP or PNG picture") from error
