# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What goes from stage to stage: consecutive latent frames of one clip, cut into groups of equal length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch

from ..models.stream_state import StreamState
from .execution.timing import StageTimings
from .finite import FiniteCheck
from .frame_audio import FrameAudio
from .sources.base import Source, SourceChunk


@dataclass
class LatentSegment(StreamState):
    """Consecutive latent frames of one clip, and the pixel frames that they stand for.

    Args:
        latents (`torch.Tensor`): `[batch, channels, frames, height, width]`, low or high resolution.
        kept (`list[int]`): for each latent frame, how many of its pixel frames belong to the video: fewer than it
            stands for only at the end of a clip.
        starts_clip (`bool`): whether the first latent starts a clip, and so stands for one pixel frame.
        ratio (`int`): pixel frames that every other latent stands for.
        pixels (`torch.Tensor`, *optional*): `[batch, 3, pixel frames, height, width]`, the source's own frames.
        times (`list[tuple[Fraction, Fraction]]`, *optional*): for each pixel frame that belongs to the video, when and
            for how long it shows, in seconds, where the source knows.
        audio ([`FrameAudio`], *optional*): what sounds with these frames, where the source makes sound.
    """

    latents: torch.Tensor
    kept: list[int]
    starts_clip: bool
    ratio: int
    pixels: torch.Tensor | None = None
    times: list[tuple[Fraction, Fraction]] | None = None
    audio: FrameAudio | None = None

    @classmethod
    def from_chunk(cls, chunk: SourceChunk, starts_clip: bool, ratio: int) -> LatentSegment:
        """Makes a segment of what a source gave, without latent frames that nothing is kept of."""
        first = 1 if starts_clip else ratio
        kept = [first] + [ratio] * (-(-(chunk.num_frames - first) // ratio))
        kept[-1] -= sum(kept) - chunk.num_frames
        whole = cls(chunk.latents, kept, starts_clip, ratio, chunk.pixels, chunk.times, chunk.audio)
        return whole.split(len(kept))[0]

    def __len__(self) -> int:
        return self.latents.shape[2]

    @property
    def num_frames(self) -> int:
        """Pixel frames that belong to the video."""
        return sum(self.kept)

    def join(self, other: LatentSegment) -> LatentSegment:
        """Appends the segment that follows in the same clip, on whose device the result is."""
        pixels = None
        if self.pixels is not None and other.pixels is not None:
            pixels = torch.cat([self.pixels.to(other.pixels), other.pixels], dim=2)
        times = None
        if self.times is not None and other.times is not None:
            times = self.times + other.times
        latents = torch.cat([self.latents.to(other.latents), other.latents], dim=2)
        audio = FrameAudio.joined([self.audio, other.audio])
        return replace(self, latents=latents, kept=self.kept + other.kept, pixels=pixels, times=times, audio=audio)

    def split(self, count: int) -> tuple[LatentSegment, LatentSegment | None]:
        """Cuts after `count` latent frames; the second part is `None` where nothing is left."""
        if count >= len(self):
            return self, None
        boundary = self.ratio * count - (self.ratio - 1 if self.starts_clip else 0)
        head_pixels = tail_pixels = head_times = tail_times = head_audio = tail_audio = None
        if self.pixels is not None:
            head_pixels, tail_pixels = self.pixels[:, :, :boundary], self.pixels[:, :, boundary:]
        if self.times is not None:
            head_times, tail_times = self.times[:boundary], self.times[boundary:]
        if self.audio is not None:
            head_audio, tail_audio = self.audio[:boundary], self.audio[boundary:]
        head = replace(
            self,
            latents=self.latents[:, :, :count],
            kept=self.kept[:count],
            pixels=head_pixels,
            times=head_times,
            audio=head_audio,
        )
        tail = replace(
            self,
            latents=self.latents[:, :, count:],
            kept=self.kept[count:],
            starts_clip=False,
            pixels=tail_pixels,
            times=tail_times,
            audio=tail_audio,
        )
        return head, tail


class Regrouper:
    """Cuts what a source gives, in whatever portions, into groups of equal length; a clip's last one may be shorter.

    What was read and not yet used, `waiting`, is the caller's: segments of different clips, of which only the last one
    can still grow.

    Args:
        source ([`Source`]): where the chunks come from.
        group_frames (`int`): latent frames a group.
        ratio (`int`): the temporal compression of the latents.
        first_group_frames (`int`, *optional*): those of a clip's first group, by default as many.
    """

    def __init__(self, source: Source, group_frames: int, ratio: int, first_group_frames: int | None = None) -> None:
        self.source = source
        self._chunks: Iterator[SourceChunk] = source.chunks()
        self._group_frames = group_frames
        self._first_group_frames = first_group_frames or group_frames
        self.ratio = ratio
        self._ended = False
        self._error: Exception | None = None
        self._chunks_read = 0
        self._unchecked: list[FiniteCheck] = []

    def fill(
        self, waiting: list[LatentSegment], starts: bool, timings: StageTimings, statistics: dict[str, Any]
    ) -> list[LatentSegment]:
        """Reads until a whole group waits.

        Args:
            waiting (`list[LatentSegment]`): what was read before.
            starts (`bool`): whether the next chunk is the first one of the video.
            timings, statistics: what the source reports is added to them.

        Returns:
            `list[LatentSegment]`: what waits then, for [`Regrouper.take`]; nothing after the last group.

        Raises:
            Exception: what the source raised, after all that came before it has been returned.
        """
        while not self._has_group(waiting):
            if self._ended:
                if self._error is not None:
                    raise self._error
                return []
            chunk = self._read()
            if chunk is None:
                continue
            waiting = _appended(waiting, LatentSegment.from_chunk(chunk, starts or chunk.restart, self.ratio))
            starts = False
            timings.merge(chunk.timings)
            for name, value in chunk.statistics.items():
                statistics.setdefault(name, []).append(value)
        return waiting

    def take(self, waiting: list[LatentSegment]) -> tuple[LatentSegment, list[LatentSegment]]:
        """Cuts the first group off what [`Regrouper.fill`] returned."""
        group, rest = waiting[0].split(self._wanted(waiting[0]))
        return group, waiting[1:] if rest is None else [rest, *waiting[1:]]

    def _has_group(self, waiting: list[LatentSegment]) -> bool:
        complete = len(waiting) > 1 or (self._ended and len(waiting) > 0)
        return complete or any(len(segment) >= self._wanted(segment) for segment in waiting)

    def _wanted(self, segment: LatentSegment) -> int:
        """Latent frames of the group that `segment` begins with."""
        return self._first_group_frames if segment.starts_clip else self._group_frames

    def _read(self) -> SourceChunk | None:
        """The next chunk. The end and an error, which is kept, are none."""
        try:
            chunk = next(self._chunks, None)
            if chunk is not None:
                self._check(chunk)
        except Exception as error:
            self._error, chunk = error, None
        self._ended = chunk is None
        self._chunks_read += 1
        return chunk

    def take_checks(self) -> list[FiniteCheck]:
        """Returns whether the latents of each chunk that was read since the last call are finite.

        Those that lie on a CPU have been checked already.
        """
        checks, self._unchecked = self._unchecked, []
        return checks

    def _check(self, chunk: SourceChunk) -> None:
        check = FiniteCheck.of("`source` gave latents", f"its chunk {self._chunks_read}", chunk.latents)
        if chunk.latents.device.type == "cpu":
            check.ensure()
        else:
            self._unchecked.append(check)


def _appended(waiting: list[LatentSegment], segment: LatentSegment) -> list[LatentSegment]:
    if waiting and not segment.starts_clip:
        return [*waiting[:-1], waiting[-1].join(segment)]
    return [*waiting, segment]
