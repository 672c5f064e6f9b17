# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""This package's rows of the quality table: the whole cascade, and what each of its networks adds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.clips import SCALE
from benchmarks.peers import Method
from ultraflash_diffusers import UltraFlashStreamingPipeline
from ultraflash_diffusers.pipelines.color_correction import ColorCorrection
from ultraflash_diffusers.pixels import to_unit
from ultraflash_diffusers.video_io import frames_to_tensor, tensor_to_frames

CASCADE = "ours: cascade"


def load(checkpoint: str) -> UltraFlashStreamingPipeline:
    """Loads a cascade in float32, without progress bars.

    Args:
        checkpoint (`str`): folder or Hub id that `UltraFlashStreamingPipeline.from_pretrained` takes.
    """
    pipe = UltraFlashStreamingPipeline.from_pretrained(checkpoint, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def ours(pipe: UltraFlashStreamingPipeline, stages: bool = False) -> list[Method]:
    """The cascade's row, and with `stages` also what each of its networks adds."""
    whole = Method(CASCADE, "all stages, streamed group by group", partial(_cascade, pipe, "wavelet"))
    if not stages:
        return [whole]
    encoder = "encoding and decoding, whole clip at once"
    return [
        whole,
        Method("ours: cascade, no colour correction", "likewise", partial(_cascade, pipe, "none")),
        Method("ours: upsampled latents", encoder, partial(_through_latents, pipe, partial(_upsampled, pipe))),
        Method("ours: bicubic latents", encoder, partial(_through_latents, pipe, _bicubic)),
        Method("ours: autoencoder alone", encoder, partial(_through_latents, pipe, lambda latents: latents), "truth"),
    ]


def resamples_exactly(pipe: UltraFlashStreamingPipeline, frames: np.ndarray) -> bool:
    """Whether `strength=0` gives the bicubically resampled source to the last bit, uint8 [F, h, w, 3] given."""
    generator = torch.Generator().manual_seed(0)
    made: Any = pipe(source=frames, strength=0.0, output_type="pt", generator=generator)
    source = frames_to_tensor(frames)[0].transpose(0, 1).float()
    resampled = F.interpolate(source, scale_factor=SCALE, mode="bicubic", align_corners=False)
    return torch.equal(made.frames[0], to_unit(resampled.clamp(-1, 1)))


def _cascade(pipe: UltraFlashStreamingPipeline, color_correction: ColorCorrection, frames: np.ndarray) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    stream = pipe.stream(source=iter(frames), generator=generator, color_correction=color_correction, output_type="np")
    chunks = [np.rint(np.asarray(chunk.frames[0]) * 255).astype(np.uint8) for chunk in stream]
    return np.concatenate(chunks)


def _through_latents(
    pipe: UltraFlashStreamingPipeline, change: Callable[[torch.Tensor], torch.Tensor], frames: np.ndarray
) -> np.ndarray:
    """Encodes a clip, changes its latents, decodes them. The last frame is repeated to fill the last latent."""
    ratio = pipe.autoencoder.temporal_compression_ratio
    filled = np.concatenate([frames, np.repeat(frames[-1:], -(len(frames) - 1) % ratio, axis=0)])
    latents = pipe.autoencoder.encode(frames_to_tensor(filled)).latents
    return tensor_to_frames(pipe.autoencoder.decode(change(latents)).sample)[: len(frames)]


def _upsampled(pipe: UltraFlashStreamingPipeline, latents: torch.Tensor) -> torch.Tensor:
    return pipe.latent_upsampler(latents).sample


def _bicubic(latents: torch.Tensor) -> torch.Tensor:
    frames = F.interpolate(latents.transpose(1, 2).flatten(0, 1), scale_factor=SCALE, mode="bicubic")
    return frames.unflatten(0, (latents.shape[0], -1)).transpose(1, 2)
