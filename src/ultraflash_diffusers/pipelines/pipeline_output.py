# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the streaming pipeline returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import torch
from diffusers.utils import BaseOutput

if TYPE_CHECKING:
    from .video_stream import PipelineStreamState

Frames = torch.Tensor | np.ndarray | list[list[PIL.Image.Image]]


@dataclass
class UltraFlashPipelineOutput(BaseOutput):
    """Output of [`UltraFlashStreamingPipeline`].

    Args:
        frames (`torch.Tensor`, `np.ndarray` or `list[list[PIL.Image.Image]]`): by `output_type`: `"pt"` `[batch,
            frames, 3, height, width]` in [0, 1]; `"np"` `[batch, frames, height, width, 3]` in [0, 1], `"uint8"` the
            same in 256 levels; `"pil"` a list of pictures for each video; `"latent"` normalised high-resolution
            latents `[batch, channels, latent frames, latent height, latent width]`, not cropped.
    """

    frames: Frames


@dataclass
class StreamChunk:
    """Frames that a stream has finished.

    Args:
        frames (`torch.Tensor`, `np.ndarray` or `list[list[PIL.Image.Image]]`): as [`UltraFlashPipelineOutput`] says.
        frame_range (`tuple[int, int]`): position in the video: first frame, and the one after the last.
        timings (`Mapping[str, float]`): seconds by stage since the chunk before. Where decoding overlaps the next
            group's denoising, the stages' sum exceeds the time that passed.
        statistics (`dict[str, Any]`): what is known about the work: `"sr_kv_cache_blocks"`, and what the source
            counts. Lists have one entry for each group or source chunk that was begun for this chunk of frames.
    """

    frames: Frames
    frame_range: tuple[int, int]
    timings: Mapping[str, float] = field(default_factory=dict)
    statistics: dict[str, Any] = field(default_factory=dict)
    _capture: Callable[[int], PipelineStreamState] | None = field(default=None, repr=False)

    def state(self) -> PipelineStreamState:
        """Returns the state of the stream after this chunk, to save it and go on from here later.

        Raises:
            RuntimeError: the stream has moved on, or was closed.
        """
        if self._capture is None:
            raise RuntimeError("this chunk was not made by a stream")
        return self._capture(self.frame_range[1])

    @property
    def num_frames(self) -> int:
        """Number of frames in this chunk."""
        return self.frame_range[1] - self.frame_range[0]


def to_levels(pixels: torch.Tensor) -> torch.Tensor:
    """Rounds pixels to 8-bit levels where they lie.

    Args:
        pixels (`torch.Tensor`): `[batch, 3, frames, height, width]` in [-1, 1]; what is beyond is clipped.

    Returns:
        `torch.Tensor`: `[batch, frames, height, width, 3]` uint8.
    """
    levels = pixels.float().add(1).mul_(127.5).clamp_(0, 255).round_().to(torch.uint8)
    return levels.permute(0, 2, 3, 4, 1).contiguous()


def in_memory(levels: torch.Tensor) -> np.ndarray:
    """Brings frames of [`to_levels`] to the CPU, from a GPU through pinned memory."""
    if levels.device.type == "cuda":
        pinned = torch.empty(levels.shape, dtype=torch.uint8, pin_memory=True).copy_(levels, non_blocking=True)
        torch.cuda.current_stream(levels.device).record_event().synchronize()
        levels = pinned
    return levels.numpy()
