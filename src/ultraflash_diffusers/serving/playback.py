# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""A stream that is played while it is made: opened from a client's request, chunk by chunk."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..pipelines.pipeline_output import StreamChunk
from ..pipelines.sources.frames import pixel_pieces
from ..pipelines.sources.pixels import PixelSource, PixelSourceState
from ..pipelines.stream_start import size_multiple
from ..video_io import VideoReader
from .errors import ClientError
from .fragments import FragmentEncoder
from .intake import ClientFrames
from .messages import SessionStart
from .served_models import ServedModel, check_size, stream_arguments, warnings_of_pipeline
from .session_state import SessionState
from .settings import ServerSettings

_KEPT = {"source", "width", "height", "fps", "num_frames", "num_inference_steps", "guidance_scale", "extra_params"}
_GIVEN_WITH_STATE = {"type", "model", "prompt", "num_frames", "fps", "format", "source", "video", "frame_format"}

_UNSURE_FRAMES = 2  # by which a container's count may be an estimate


@dataclass
class PlayedChunk:
    """Frames of a stream on their way to the client.

    Args:
        frames (`np.ndarray`): `[frames, height, width, 3]` uint8.
        first_frame (`int`): number of the first one in the video.
        stage_seconds (`Mapping`): seconds by stage.
        pts, durations (`list[int]`, *optional*): times of the clip that they come from.
    """

    frames: np.ndarray
    first_frame: int
    stage_seconds: Mapping[str, float]
    pts: list[int] | None = None
    durations: list[int] | None = None


class Playback:
    """Makes the chunks of one session. [`StreamRunner`] calls all methods, in its thread.

    Args:
        model ([`ServedModel`]): the checkpoint.
        start ([`SessionStart`]): what was asked for.
        settings ([`ServerSettings`]): what is allowed.
        video (`Path`, *optional*): the client's file.
        frames ([`ClientFrames`], *optional*): the client's frames.
        state ([`SessionState`], *optional*): to go on from.

    Attributes:
        warnings (`list[str]`): what the client should know, such as words that the text encoder lacks.

    Raises:
        ClientError, ValueError: what was asked for cannot be done.
    """

    def __init__(
        self,
        model: ServedModel,
        start: SessionStart,
        settings: ServerSettings,
        video: Path | None = None,
        frames: ClientFrames | None = None,
        state: SessionState | None = None,
    ) -> None:
        self._model = model
        self._start = start
        self._frames = frames
        self._reader = None if video is None else VideoReader(video)
        self._fps = Fraction(start.fps or model.pipe.config.default_fps)
        self._seed = secrets.randbits(32) if start.seed is None else start.seed
        self._latest: StreamChunk | None = None
        if self._reader is not None:
            check_size(self._reader.info.width * model.scale, self._reader.info.height * model.scale, settings)
        with warnings_of_pipeline() as self.warnings:
            self._stream = self._opened_stream(state)

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height of the frames, where that is known before the first chunk."""
        pipe, scale = self._model.pipe, self._model.scale
        if self._latest is not None:
            return self._stream.size[::-1]
        if self._reader is not None:
            return self._reader.info.width * scale, self._reader.info.height * scale
        if self._start.width is None or self._start.height is None:
            return (pipe.config.default_width, pipe.config.default_height) if self._start.source == "text" else None
        factor = scale if self._frames is not None else 1
        return self._start.width * factor, self._start.height * factor

    @property
    def expected_frames(self) -> int | None:
        """Frames of the whole video, as far as known."""
        return self._num_frames if self._reader is None else self._reader.info.num_frames

    @property
    def missing_frames(self) -> int:
        """Frames that a clip should have had by its container's count and did not, once it was read to its end."""
        if self._reader is None or self._num_frames is not None or self._latest is None:
            return 0
        missing = (self._reader.info.num_frames or 0) - self._latest.frame_range[1]
        return missing if missing > _UNSURE_FRAMES else 0

    @property
    def seed(self) -> int:
        """Of the noise: as asked for, or drawn."""
        return self._seed

    @property
    def group_frames(self) -> int:
        """Frames of a group; the first one of a stream is shorter."""
        pipe = self._model.pipe
        return pipe.autoencoder.temporal_compression_ratio * pipe.config.group_frames

    def encoder(self, first_frame: int = 0) -> FragmentEncoder:
        """Returns the encoder of the frames from this one on, at whose time it begins; their size must be known."""
        width, height = self.size or (0, 0)
        if self._reader is None:
            return FragmentEncoder(width, height, self._fps, first_frame=first_frame)
        clip = self._reader.info
        return FragmentEncoder(width, height, clip.fps, clip.time_base, clip if clip.has_audio else None)

    def config(self) -> dict[str, Any]:
        """What was accepted, all defaults filled in."""
        width, height = self.size or (None, None)
        return self._arguments() | {
            "model": self._model.name,
            "prompt": self._start.prompt,
            "width": width,
            "height": height,
            "fps": float(self._reader.info.fps if self._reader is not None else self._fps),
            "num_frames": self.expected_frames,
            "seed": self._seed,
        }

    def next_chunk(self) -> PlayedChunk | None:
        """Makes the next chunk; `None` is the end."""
        chunk = next(self._stream, None)
        if chunk is None:
            return None
        self._latest = chunk
        played = PlayedChunk(np.asarray(chunk.frames[0]), chunk.frame_range[0], dict(chunk.timings))
        if self._reader is not None and chunk.times is not None:
            tick = self._reader.info.time_base
            played.pts = [round(start / tick) for start, _ in chunk.times]
            played.durations = [round(duration / tick) for _, duration in chunk.times]
        return played

    @property
    def runs_ahead(self) -> bool:
        """Whether the next chunk is being made already when one is handed over."""
        return self._model.pipe.can_overlap_decoding

    def next_group(self, frame: int) -> int:
        """Returns where the first group begins at this chunk's first frame or later.

        That is elsewhere after the first chunk from text alone, which holds but the first frame of its group.
        """
        pipe = self._model.pipe
        if frame != 1 or not self._shows_first_frame_alone:
            return frame
        first = pipe.config.first_group_frames or pipe.config.group_frames
        return 1 + pipe.autoencoder.temporal_compression_ratio * (first - 1)

    def set_prompt(self, prompt: str, at_frame: int = 0) -> list[str]:
        """Changes the prompt from the next group on that begins at this frame or later; returns warnings."""
        with warnings_of_pipeline() as warnings:
            self._stream.set_prompt(prompt, at_frame=at_frame)
        return warnings

    def state(self) -> SessionState:
        """Returns the state after the latest chunk."""
        if self._latest is None:
            raise ClientError("invalid_request", "session.export came before the first chunk: there is no state yet")
        return SessionState(self._model.fingerprint, self._arguments(), self._latest.state())

    def close(self) -> None:
        """Ends the stream."""
        if self._frames is not None:
            self._frames.end()  # a thread of the stream may be waiting for frames
        self._stream.close()

    @property
    def _num_frames(self) -> int | None:
        start = self._start
        if start.num_frames is None and start.seconds is not None:
            return max(1, round(start.seconds * self._fps))
        if start.num_frames is not None or start.without_end or start.source in ("video", "frames"):
            return start.num_frames
        return self._model.pipe.config.default_num_frames

    def _arguments(self) -> dict[str, Any]:
        return self._start.model_dump(include=_KEPT) | {"num_frames": self._num_frames}

    def _opened_stream(self, state: SessionState | None) -> Any:
        before = None if state is None else state.stream
        source = self._source(state)
        arguments = stream_arguments(self._model, self._start, source, self._num_frames, self._seed, before)
        opened = self._model.open_stream or self._model.pipe.stream
        return opened(**arguments, first_chunk_frames=1 if self._shows_first_frame_alone else None)

    @property
    def _shows_first_frame_alone(self) -> bool:
        """From text, the first frame need not wait for its group's others."""
        return self._start.source == "text"

    def _source(self, state: SessionState | None) -> Any:
        if self._start.source == "text":
            return None
        if self._start.source == "pipeline":
            return self._model.source_pipeline
        return self._reader if self._frames is None else self._frame_source(self._frames, state)

    def _frame_source(self, frames: ClientFrames, state: SessionState | None) -> PixelSource:
        """Reads what the client sends, in a stream that goes on without the frames that it had before."""
        pipe = self._model.pipe
        before = None if state is None else state.stream.source
        if before is not None and not isinstance(before, PixelSourceState):
            raise ClientError("invalid_state", "state: it is of a stream that did not come from frames")
        return PixelSource(
            pixel_pieces(frames),
            pipe.autoencoder,
            latent_frames=pipe.config.group_frames,
            multiple_of=size_multiple(pipe.transformer, pipe.autoencoder, self._model.scale),
            num_frames=self._num_frames,
            height=self._start.height,
            width=self._start.width,
            state=before,
            first_frame=0 if before is None else before.frames,
        )


def with_state(start: SessionStart, state: SessionState) -> SessionStart:
    """Returns the request of a session that goes on: the state's arguments, and what `start` may change of them.

    Raises:
        ClientError: `start` gives arguments that the state decides, or the state's make no request.
    """
    decided = sorted(start.model_fields_set - _GIVEN_WITH_STATE - {"state_byte_length"})
    if decided:
        raise ClientError("invalid_request", f"{', '.join(decided)}: given beside a state, which decides it")
    try:
        kept = SessionStart.model_validate(state.arguments | {"type": "session.start"})
    except ValueError as error:
        raise ClientError("invalid_state", "state: its arguments are none that this server knows") from error
    if "source" in start.model_fields_set and start.source != kept.source:
        raise ClientError("invalid_state", f"source: {start.source!r}, but the state is of a {kept.source!r} stream")
    changes = {name: getattr(start, name) for name in start.model_fields_set if name != "state_byte_length"}
    return kept.model_copy(update=changes)
