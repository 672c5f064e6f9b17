# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the streaming pipeline returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import PIL.Image
import torch
from diffusers.utils import BaseOutput
from diffusers.video_processor import VideoProcessor

from ..pixels import in_memory
from .pipeline_state import PipelineStreamState

Frames = torch.Tensor | np.ndarray | list[list[PIL.Image.Image]]
OutputType = Literal["pil", "np", "pt", "uint8", "latent"]
OUTPUT_TYPES: tuple[OutputType, ...] = ("pil", "np", "pt", "uint8", "latent")


@dataclass
class UltraFlashPipelineOutput(BaseOutput):
    """Output of [`UltraFlashStreamingPipeline`].

    Args:
        frames (`torch.Tensor`, `np.ndarray` or `list[list[PIL.Image.Image]]`): by `output_type`: `"pt"` `[batch,
            frames, 3, height, width]` in [0, 1]; `"np"` `[batch, frames, height, width, 3]` in [0, 1], `"uint8"` the
            same in 256 levels; `"pil"` a list of pictures for each video; `"latent"` normalised high-resolution
            latents `[batch, channels, latent frames, latent height, latent width]`, not cropped. Nothing, where the
            call was interrupted before the first of them were done.
        audio (`torch.Tensor`, *optional*): what sounds with the frames, float32 `[batch, channels, samples]` in [-1,
            1], where the source is a pipeline that makes sound.
        audio_sample_rate (`int`, *optional*): its samples a second.
    """

    frames: Frames
    audio: torch.Tensor | None = None
    audio_sample_rate: int | None = None


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
        times (`list[tuple[Fraction, Fraction]]`, *optional*): for each frame, when and for how long it shows, in
            seconds from the video's start, as the source had it: of video files. `None` where the source does not
            know; frames then follow at whatever rate they are shown.
        audio (`torch.Tensor`, *optional*): what sounds with these frames, float32 `[batch, channels, samples]` in [-1,
            1], where the source is a pipeline that makes sound. Chunk after chunk it is the whole sound, without gaps.
        audio_sample_rate (`int`, *optional*): its samples a second.
    """

    frames: Frames
    frame_range: tuple[int, int]
    timings: Mapping[str, float] = field(default_factory=dict)
    statistics: dict[str, Any] = field(default_factory=dict)
    times: list[tuple[Fraction, Fraction]] | None = None
    audio: torch.Tensor | None = None
    audio_sample_rate: int | None = None
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

    @property
    def timestamps(self) -> list[Fraction] | None:
        """When each frame shows, in seconds from the video's start; see `times`."""
        return None if self.times is None else [start for start, _ in self.times]


def postprocess(video: torch.Tensor, output_type: OutputType, processor: VideoProcessor) -> Frames:
    """Brings what the last stage gave into the form of [`UltraFlashPipelineOutput`].

    Args:
        video (`torch.Tensor`): for `"latent"` the latents, for `"uint8"` levels `[batch, frames, height, width, 3]`,
            for all others pixels `[batch, 3, frames, height, width]` in [-1, 1].
        output_type (`str`): the form.
        processor (`VideoProcessor`): makes the others.
    """
    if output_type == "latent":
        return video
    if output_type == "uint8":
        return in_memory(video)
    return processor.postprocess_video(video, output_type=output_type)


def whole_output(chunks: list[StreamChunk], output_type: OutputType) -> UltraFlashPipelineOutput:
    """All chunks of a stream as one video."""
    heard = [(chunk.audio, chunk.audio_sample_rate) for chunk in chunks if chunk.audio is not None]
    audio = torch.cat([audio for audio, _ in heard], dim=-1) if heard else None
    return UltraFlashPipelineOutput(_joined(chunks, output_type), audio, heard[0][1] if heard else None)


def _joined(chunks: list[StreamChunk], output_type: OutputType) -> Frames:
    parts: list[Any] = [chunk.frames for chunk in chunks]
    if not parts:
        return [] if output_type == "pil" else torch.empty(0) if output_type in ("pt", "latent") else np.empty(0)
    if output_type == "pil":
        return [[picture for video in videos for picture in video] for videos in zip(*parts, strict=True)]
    if output_type in ("np", "uint8"):
        return np.concatenate(parts, axis=1)
    return torch.cat(parts, dim=2 if output_type == "latent" else 1)
