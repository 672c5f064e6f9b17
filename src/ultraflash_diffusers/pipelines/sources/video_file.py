# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""A video file as the source."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

from ...models.video_encoder import VideoEncoder
from ...video_io import VideoReader
from .frames import frames_to_pixels
from .pixels import PixelSource, PixelSourceState, TimedPixels


class VideoFileSource(PixelSource):
    """Encodes a video file frame by frame, with its times; only the frames of one chunk are ever in memory.

    Args:
        video (`str`, `Path` or [`VideoReader`]): the file.
        encoder ([`VideoEncoder`]): encodes the frames.
        height, width (`int`, *optional*): the expected size; `None` takes the file's.
        state ([`PixelSourceState`], *optional*): goes on in the same file after the frames that the state has seen.
        kwargs: as for [`PixelSource`].

    Raises:
        FileNotFoundError, ValueError: as [`VideoReader`] and [`PixelSource`] do.
    """

    def __init__(
        self,
        video: str | Path | VideoReader,
        encoder: VideoEncoder,
        *,
        height: int | None = None,
        width: int | None = None,
        state: PixelSourceState | None = None,
        **kwargs: Any,
    ) -> None:
        reader = video if isinstance(video, VideoReader) else VideoReader(video)
        first_frame = 0 if state is None else state.frames
        reader.seek(first_frame)
        found = (reader.info.height, reader.info.width)
        if (height or found[0], width or found[1]) != found:
            raise ValueError(
                f"`source` {str(reader.path)!r} is {found[0]} pixels high and {found[1]} wide, `height` is {height}, "
                f"`width` {width}"
            )
        super().__init__(
            _pixels(reader),
            encoder,
            height=found[0],
            width=found[1],
            frame_rate=reader.info.fps,
            state=state,
            first_frame=first_frame,
            **kwargs,
        )
        self.batch_size = 1


def _pixels(reader: VideoReader) -> Generator[TimedPixels, None, None]:
    tick = reader.info.time_base
    for frame in reader:
        yield TimedPixels(frames_to_pixels(frame.pixels), [(frame.pts * tick, frame.duration * tick)])
