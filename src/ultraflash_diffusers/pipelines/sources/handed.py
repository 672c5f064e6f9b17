# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""A source of the user's own, ended and gone on with as every other one is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

import torch

from ...models.stream_state import StreamState
from .base import Source, SourceChunk, SourceEndedError


@dataclass
class HandedSourceState(StreamState):
    """State of a [`HandedSource`]. To go on, hand the same source over again, from its beginning.

    Args:
        frames (`int`): pixel frames that were passed on, which are dropped when the stream resumes.
    """

    frames: int = 0


class HandedSource(Source):
    """Passes the chunks of a [`Source`] on, up to the frames that were asked for and without those that are done.

    Args:
        source ([`Source`]): unread.
        ratio (`int`): temporal compression of its latents.
        num_frames (`int`, *optional*): ends after so many pixel frames. `None` reads to the end.
        state ([`HandedSourceState`], *optional*): goes on after the frames that the state has seen.

    Raises:
        ValueError: while reading: the source cuts its chunks otherwise than in the stream that goes on.
    """

    def __init__(
        self, source: Source, ratio: int, num_frames: int | None = None, state: HandedSourceState | None = None
    ) -> None:
        self._source = source
        self._ratio = ratio
        self._wanted = num_frames
        self._state = state or HandedSourceState()
        self.num_frames = source.num_frames if num_frames is None else num_frames

    @property
    def batch_size(self) -> int | None:  # type: ignore[override]
        return self._source.batch_size

    @property
    def height(self) -> int | None:  # type: ignore[override]
        return self._source.height

    @property
    def width(self) -> int | None:  # type: ignore[override]
        return self._source.width

    @property
    def frame_rate(self) -> Fraction | None:  # type: ignore[override]
        return self._source.frame_rate

    def state(self) -> HandedSourceState:
        return self._state

    def change_prompt(self, number: int, prompt_embeds: torch.Tensor, at_frame: int = 0) -> None:
        self._source.change_prompt(number, prompt_embeds, at_frame)

    def close(self) -> None:
        self._source.close()

    def _chunks(self) -> Iterator[SourceChunk]:
        done, position = self._state.frames, 0
        for chunk in self._source.chunks():
            starts_clip = position == 0 or chunk.restart
            position += chunk.num_frames
            if position > done:
                if position - chunk.num_frames < self._state.frames:
                    raise ValueError(
                        f"`source` gave a chunk that ends with frame {position - 1}, in the stream that goes on one "
                        f"ended with frame {done - 1}: hand the same source over, from its beginning"
                    )
                chunk = self._cut(chunk, starts_clip)
                self._state = HandedSourceState(self._state.frames + chunk.num_frames)
                yield chunk
            if self._wanted is not None and position >= self._wanted:
                return
        if self._wanted is not None:
            raise SourceEndedError(f"`source` ended after {position} frames, `num_frames` is {self._wanted}")

    def _cut(self, chunk: SourceChunk, starts_clip: bool) -> SourceChunk:
        """The chunk as far as it is wanted."""
        missing = chunk.num_frames if self._wanted is None else self._wanted - self._state.frames
        if missing >= chunk.num_frames:
            return chunk
        surplus = self._ratio - 1 if starts_clip else 0  # the first latent of a clip stands for one frame
        count = -(-(missing + surplus) // self._ratio)
        return replace(
            chunk,
            latents=chunk.latents[:, :, :count],
            num_frames=missing,
            pixels=None if chunk.pixels is None else chunk.pixels[:, :, : self._ratio * count - surplus],
            times=None if chunk.times is None else chunk.times[:missing],
        )
