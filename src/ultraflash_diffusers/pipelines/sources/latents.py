# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Latents that somebody else made: a tensor, an iterator of tensors, or what another pipeline denoises."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ...models.hr_autoencoder import HRAutoencoder
from ...models.stream_state import StreamState
from ..execution.devices import execution_device
from ..execution.timing import StageTimings, stage_timer
from ..finite import all_finite
from .base import Source, SourceChunk, SourceEndedError, check_replayed, padded_size


@dataclass
class LatentsSourceState(StreamState):
    """State of a [`LatentsSource`]. To go on, hand the same latents over again, from their beginning.

    Args:
        latent_frames (`int`): latent frames that were passed on, which are dropped when the stream resumes.
        frames (`int`): pixel frames that they stand for.
    """

    latent_frames: int = 0
    frames: int = 0


class LatentsSource(Source):
    """Passes normalised latents on, checked and padded.

    Args:
        pieces (`Generator`): yields `[batch, channels, frames, height, width]`, all of one size but for the number of
            frames.
        autoencoder ([`HRAutoencoder`]): the one whose latent space these are in.
        multiple_of (`int`): pixels; height and width are padded to this multiple by repeating the right and bottom
            latents.
        num_frames (`int`, *optional*): ends after so many pixel frames. `None` reads to the end.
        height, width (`int`, *optional*): the expected size in pixels; `None` takes what comes.
        independent (`bool`, *optional*, defaults to `False`): each piece is a clip of its own, decoded by itself.
        state ([`LatentsSourceState`], *optional*): goes on after the latents that the state has seen.

    Raises:
        ValueError: while reading: no latents at all, wrong rank or channels, a changing size, values that are not
            finite, or no floating-point dtype.
    """

    def __init__(
        self,
        pieces: Generator[torch.Tensor, None, None],
        autoencoder: HRAutoencoder,
        *,
        multiple_of: int,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        independent: bool = False,
        state: LatentsSourceState | None = None,
    ) -> None:
        self._pieces = pieces
        self._autoencoder = autoencoder
        self._multiple_of = multiple_of
        self._independent = independent
        self._state = state or LatentsSourceState()
        self.num_frames = num_frames
        self.height, self.width = height, width

    def state(self) -> LatentsSourceState:
        return self._state

    def close(self) -> None:
        self._pieces.close()

    def _chunks(self) -> Iterator[SourceChunk]:
        skip = self._state.latent_frames
        position = 0
        try:
            while self.num_frames is None or self._state.frames < self.num_frames:
                timings = StageTimings()
                with stage_timer(timings, "source", execution_device(self._autoencoder)):
                    piece = next(self._pieces, None)
                if piece is None:
                    check_replayed(position, skip, "latent frames")
                    break
                self._check(piece, position)
                start = max(0, skip - position)
                if start < piece.shape[2]:
                    yield self._chunk(piece, start, position, timings)
                position += piece.shape[2]
            self._check_end()
        finally:
            self.close()

    def _chunk(self, piece: torch.Tensor, start: int, position: int, timings: StageTimings) -> SourceChunk:
        """Makes a chunk of the latents of `piece` from `start` on, as far as they are wanted."""
        ratio = self._autoencoder.temporal_compression_ratio
        clip_starts = start == 0 and (position == 0 or self._independent)
        latents = piece[:, :, start:]
        surplus = ratio - 1 if clip_starts else 0  # the first latent of a clip stands for one frame
        num_frames = ratio * latents.shape[2] - surplus
        if self.num_frames is not None:
            num_frames = min(num_frames, self.num_frames - self._state.frames)
            latents = latents[:, :, : -(-(num_frames + surplus) // ratio)]
        self._state = LatentsSourceState(self._state.latent_frames + latents.shape[2], self._state.frames + num_frames)
        return SourceChunk(self._padded(latents), num_frames, restart=clip_starts and position > 0, timings=timings)

    def _padded(self, latents: torch.Tensor) -> torch.Tensor:
        latents = latents.to(execution_device(self._autoencoder), self._autoencoder.dtype)
        height, width = latents.shape[-2:]
        padded_height, padded_width = padded_size(
            height, width, self._multiple_of // self._autoencoder.spatial_compression_ratio
        )
        return F.pad(latents, (0, padded_width - width, 0, padded_height - height, 0, 0), mode="replicate")

    def _check(self, piece: torch.Tensor, position: int) -> None:
        channels = self._autoencoder.config.latent_channels
        if not isinstance(piece, torch.Tensor) or not piece.is_floating_point():
            kind = piece.dtype if isinstance(piece, torch.Tensor) else type(piece).__name__
            raise TypeError(f"`source` gave {kind} at latent frame {position}, expected floating-point latents")
        if piece.ndim != 5 or piece.shape[1] != channels or 0 in piece.shape:
            raise ValueError(
                f"`source` gave latents of shape {tuple(piece.shape)} at latent frame {position}, expected "
                f"[batch, {channels}, frames, height, width]"
            )
        if not all_finite(piece):
            raise ValueError(f"`source` gave latents that are not finite in or after latent frame {position}")
        ratio = self._autoencoder.spatial_compression_ratio
        batch, height, width = piece.shape[0], piece.shape[3] * ratio, piece.shape[4] * ratio
        expected = (self.batch_size or batch, self.height or height, self.width or width)
        if (batch, height, width) != expected:
            raise ValueError(
                f"`source` gave latents at latent frame {position} with batch {batch}, for height {height} and width "
                f"{width}, expected batch {expected[0]}, height {expected[1]} and width {expected[2]}"
            )
        self.batch_size, self.height, self.width = batch, height, width

    def _check_end(self) -> None:
        if self._state.frames == 0:
            raise ValueError("`source` is empty: it gave no latents")
        if self.num_frames is not None and self._state.frames < self.num_frames:
            raise SourceEndedError(
                f"`source` ended after {self._state.frames} frames, `num_frames` is {self.num_frames}"
            )
