# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What a stream can start from: the contract that every source of low-resolution latents fulfils.

A source yields chunks of *normalised* low-resolution latents; the pipeline upsamples, refines and decodes them and
does not care whether they came from a text generator, another diffusers pipeline, a file or a camera.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Protocol, TypeVar

import torch

from ...models.stream_state import StreamState
from ..frame_audio import FrameAudio


def check_replayed(given: int, seen: int, unit: str) -> None:
    """Checks, where a source has ended, that all was there that the stream to go on with has seen.

    Raises:
        ValueError: it was not, so that it is another source.
    """
    if given < seen:
        raise ValueError(f"`source` has {given} {unit}, but `state` has seen {seen}: give the same one again")


class SourceEndedError(RuntimeError):
    """The source ended before the number of frames that was asked for; all frames up to there were delivered."""


class SourceInterrupted(Exception):  # noqa: N818 - no error: it ends a stream cleanly
    """The user stopped what the source runs; all frames that it had finished were delivered."""


@dataclass
class SourceChunk:
    """A few latent frames of a source, all that is known about them, and what they cost.

    Args:
        latents (`torch.Tensor`): `[batch, channels, frames, height, width]`, normalised, in the latent space of the
            autoencoder that decodes the stream.
        num_frames (`int`): how many pixel frames of this chunk belong to the video. The latents stand for
            `t * (f - 1) + 1` pixel frames where they start a clip (first chunk, or `restart`) and for `t * f`
            elsewhere, `t` being the temporal compression; where a video's end does not fill its last latent frame,
            the last pixel frame was repeated, and `num_frames` is smaller than that.
        pixels (`torch.Tensor`, *optional*): `[batch, 3, pixel frames, height, width]` in [-1, 1], the source's own
            frames that the latents stand for, edge padding and repeated frames included, for colour correction.
            `None` where the source never had pixels.
        restart (`bool`, *optional*, defaults to `False`): an independent clip starts with this chunk: what the later
            stages carried must be dropped. Never set on the first chunk.
        timings (`Mapping`, *optional*): seconds by stage, for instance `{"generator": 0.2, "encoder": 0.1}`.
        statistics (`dict`, *optional*): counts, for instance `{"generator_passes": 4}`.
        times (`list[tuple[Fraction, Fraction]]`, *optional*): for each of the `num_frames`, when and for how long it
            shows, in seconds from the video's start. `None` where the source does not know.
        audio ([`FrameAudio`], *optional*): what sounds with the `num_frames`, where the source makes sound.
    """

    latents: torch.Tensor
    num_frames: int
    pixels: torch.Tensor | None = None
    restart: bool = False
    timings: Mapping[str, float] = field(default_factory=dict)
    statistics: dict[str, Any] = field(default_factory=dict)
    times: list[tuple[Fraction, Fraction]] | None = None
    audio: FrameAudio | None = None


class FrameNoise(Protocol):
    """Noise that depends on what it is for and on the absolute latent frame, never on how the work was cut."""

    def __call__(self, role: str, start: int, frames: int, shape: tuple[int, int, int]) -> torch.Tensor:
        """Returns float32 normal noise `[batch, channels, frames, height, width]`.

        Args:
            role (`str`): what the noise is for: equal frames of two roles are independent.
            start (`int`): absolute index of the first latent frame.
            frames (`int`): number of latent frames.
            shape (`tuple`): `(channels, height, width)` of a frame.
        """


class Source(ABC):
    """Low-resolution latents, chunk by chunk.

    `batch_size`, `height` and `width` (pixels as the user sees them; latents may be padded to the right and at the
    bottom) are known at the latest when the first chunk has been yielded, and `None` before.

    A source that fails yields the frames that it still has and then raises; so whoever reads it delivers what it was
    given before it lets the error through.
    """

    batch_size: int | None = None
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    """Pixel frames that will be delivered, `None` where that is not known or there is no end."""
    frame_rate: Fraction | None = None
    """Frames per second where the source has a rate of its own."""

    _started = False

    def chunks(self) -> Iterator[SourceChunk]:
        """Yields the chunks. A source is read once.

        Raises:
            RuntimeError: the source was read before.
            SourceInterrupted: the user stopped it (raised after the last chunk).
            SourceEndedError: fewer frames came than were asked for (raised after the last of them).
        """
        if self._started:
            raise RuntimeError(f"this {type(self).__name__} was already read: make a new source for a new stream")
        self._started = True
        return self._chunks()

    @abstractmethod
    def _chunks(self) -> Iterator[SourceChunk]: ...

    def state(self) -> StreamState | None:
        """Returns what is needed to go on after the last chunk that was yielded.

        A source of your own needs none: it is handed over again, from its beginning, and what was done is skipped. One
        that returns a state is made with it to go on, and ends after `num_frames` by itself.
        """
        return None

    def change_prompt(self, number: int, prompt_embeds: torch.Tensor, at_frame: int = 0) -> None:  # noqa: B027
        """Changes the prompt before the first chunk that begins at pixel frame `at_frame` or later.

        Sources that do not read the prompt ignore it. Changes are numbered from 1; one that a source's state has seen
        is not made again.
        """

    def close(self) -> None:  # noqa: B027
        """Frees what the source holds (files, threads). May be called at any time and more than once."""


StateT = TypeVar("StateT", bound=StreamState)


def checked_state(state: StreamState | None, expected: type[StateT]) -> StateT | None:
    """Returns `state`, which must be of the class `expected`.

    Raises:
        ValueError: it is the state of another kind of source.
    """
    if state is not None and not isinstance(state, expected):
        raise ValueError(f"`state` is a {type(state).__name__}, this source goes on from a {expected.__name__}")
    return state


def padded_size(height: int, width: int, multiple_of: int) -> tuple[int, int]:
    """Returns the smallest size that holds `height` x `width` and that `multiple_of` divides."""
    return -(-height // multiple_of) * multiple_of, -(-width // multiple_of) * multiple_of
