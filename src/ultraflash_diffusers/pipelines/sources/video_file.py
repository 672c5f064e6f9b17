# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""A video file as the source."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np

from ...models.video_encoder import VideoEncoder
from ...video_io import VideoReader
from .frames import frames_to_pixels
from .pixels import PixelSource, PixelSourceState, TimedPixels, VideoFileState


class VideoFileSource(PixelSource):
    """Encodes a video file frame by frame, with its times; only the frames of one chunk are ever in memory.

    Args:
        video (`str`, `Path` or [`VideoReader`]): the file. A reader with `high_bit_depth` gives all its bits.
        encoder ([`VideoEncoder`]): encodes the frames.
        height, width (`int`, *optional*): the expected size; `None` takes the file's.
        state ([`PixelSourceState`], *optional*): goes on in the same file after the frames that the state has seen.
        kwargs: as for [`PixelSource`].

    Raises:
        FileNotFoundError, ValueError: as [`VideoReader`] and [`PixelSource`] do; while reading: the file has fewer
            frames than the state has seen.
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
        last_pts = state.last_pts if isinstance(state, VideoFileState) else None
        reader.seek(first_frame, last_pts)
        # the frames that were read last, more than ever wait for a chunk to be full
        self._read_times: deque[tuple[int, int]] = deque([(first_frame - 1, last_pts)] if last_pts else [], maxlen=256)
        found = (reader.info.height, reader.info.width)
        if (height or found[0], width or found[1]) != found:
            raise ValueError(
                f"`source` {str(reader.path)!r} is {found[0]} pixels high and {found[1]} wide, `height` is {height}, "
                f"`width` {width}"
            )
        super().__init__(
            self._pixels(reader),
            encoder,
            height=found[0],
            width=found[1],
            frame_rate=reader.info.fps,
            state=state,
            first_frame=first_frame,
            **kwargs,
        )
        self.batch_size = 1

    def state(self) -> PixelSourceState | None:
        state = super().state()
        if state is None:
            return None
        return VideoFileState(state.frames, state.encoder, dict(self._read_times).get(state.frames - 1))

    def _pixels(self, reader: VideoReader) -> Generator[TimedPixels, None, None]:
        tick = reader.info.time_base
        for frame in reader:
            self._read_times.append((frame.index, frame.pts))
            pixels = frame.pixels if frame.pixels.dtype == np.uint8 else frame.pixels.astype(np.float32) / 65535
            yield TimedPixels(frames_to_pixels(pixels), [(frame.pts * tick, frame.duration * tick)])
