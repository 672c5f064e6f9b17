# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Sound that a source makes with its frames, cut to them, so that it goes wherever they go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Self

import torch

from ..models.stream_state import StreamState


@dataclass
class FrameAudio(StreamState):
    """What sounds while each of some frames shows.

    Args:
        pieces (`list[torch.Tensor]`): for each frame, float32 `[batch, channels, samples]` in [-1, 1]; of no samples
            where the sound has ended.
        sample_rate (`int`): samples a second.
    """

    pieces: list[torch.Tensor]
    sample_rate: int

    @classmethod
    def cut(cls, waveform: torch.Tensor, sample_rate: int, frames: int, frame_rate: Fraction) -> Self:
        """Cuts a sound that begins with the first of some frames; what sounds after the last one is left out.

        Args:
            waveform (`torch.Tensor`): `[batch, channels, samples]`.
            sample_rate (`int`): samples a second.
            frames (`int`): how many frames there are.
            frame_rate (`Fraction`): how many of them a second.
        """
        ends = [round(frame * sample_rate / frame_rate) for frame in range(frames + 1)]
        return cls([waveform[..., ends[frame] : ends[frame + 1]] for frame in range(frames)], sample_rate)

    @classmethod
    def joined(cls, parts: Sequence[Self | None]) -> Self | None:
        """One after the other, `None` where one has no sound."""
        known = [part for part in parts if part is not None]
        if not known or len(known) < len(parts):
            return None
        return cls([piece for part in known for piece in part.pieces], known[0].sample_rate)

    def __getitem__(self, frames: slice) -> Self:
        return type(self)(self.pieces[frames], self.sample_rate)

    @property
    def waveform(self) -> torch.Tensor:
        """The sound of all the frames, float32 `[batch, channels, samples]`, on the CPU."""
        return torch.cat(self.pieces, dim=-1).float().cpu()
