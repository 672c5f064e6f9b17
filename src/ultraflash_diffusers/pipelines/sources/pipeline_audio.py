# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The sound of diffusers pipelines that make some (LTX-2, Kandinsky 6, Cosmos 3): where it is, and its rates."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput, logging

from ..finite import all_finite
from ..frame_audio import FrameAudio

logger = logging.get_logger(__name__)

# arguments of a call that say how many frames are shown a second: sound is made to that length
_FRAME_RATE_ARGUMENTS = ("frame_rate", "fps")
# where pipelines say how many samples a second they make: component and setting
_SAMPLE_RATE_SETTINGS = (("vocoder", "output_sampling_rate"), ("sound_tokenizer", "sampling_rate"))


def call_frame_rate(pipeline: DiffusionPipeline, arguments: Mapping[str, Any]) -> Fraction | None:
    """Reads the frame rate that a pipeline is called with, by its own defaults else; `None` where it is told none."""
    parameters = inspect.signature(pipeline.__call__).parameters
    return frame_rate_of({name: parameter.default for name, parameter in parameters.items()} | dict(arguments))


def frame_rate_of(arguments: Mapping[str, Any]) -> Fraction | None:
    """Reads a frame rate among the arguments of a call; `None` where there is none."""
    rates = (arguments.get(name) for name in _FRAME_RATE_ARGUMENTS)
    rate = next((rate for rate in rates if isinstance(rate, int | float) and rate > 0), None)
    return None if rate is None else Fraction(rate).limit_denominator(1001)


def audio_of(
    pipeline: DiffusionPipeline, result: BaseOutput, frames: int, frame_rate: Fraction | None
) -> FrameAudio | None:
    """Cuts the sound that a pipeline has returned beside its video to the frames.

    Args:
        pipeline (`DiffusionPipeline`): it.
        result (`BaseOutput`): what its call returned: `audio`, `[batch, (channels,) samples]`, or `sound`, `[channels,
            samples]`.
        frames (`int`): of its video.
        frame_rate (`Fraction`, *optional*): how many of them a second; without one the sound is as long as the video.

    Returns:
        [`FrameAudio`]: `None` where there is no sound, or nobody knows its sample rate, which is said.

    Raises:
        ValueError: it has another shape, or values that are not finite.
    """
    name = type(pipeline).__name__
    waveform = result.get("audio")
    if waveform is not None:
        waveform = torch.as_tensor(waveform)
        waveform = waveform.unsqueeze(1) if waveform.ndim == 2 else waveform
    elif (waveform := result.get("sound")) is not None:
        waveform = torch.as_tensor(waveform)[None]
    else:
        return None
    if waveform.ndim != 3 or not waveform.is_floating_point():
        raise ValueError(
            f"`source` {name} returned sound of shape {tuple(waveform.shape)} and dtype {waveform.dtype}, expected "
            "[batch, channels, samples] of floating-point values"
        )
    if not all_finite(waveform):
        raise ValueError(f"`source` {name} returned sound that is not finite")
    sample_rate = _sample_rate(pipeline)
    if sample_rate is None:
        logger.warning(f"`source` {name} returned sound, but says no sample rate of it: the video is silent")
        return None
    if not waveform.shape[-1]:
        return None
    frame_rate = frame_rate or Fraction(frames * sample_rate, waveform.shape[-1])
    return FrameAudio.cut(waveform.detach().float().cpu(), sample_rate, frames, frame_rate)


def _sample_rate(pipeline: DiffusionPipeline) -> int | None:
    components = pipeline.components
    for component, setting in _SAMPLE_RATE_SETTINGS:
        if components.get(component) is not None and setting in components[component].config:
            return int(components[component].config[setting])
    rate = getattr(pipeline, "audio_sample_rate", None)
    return int(rate) if rate else None
