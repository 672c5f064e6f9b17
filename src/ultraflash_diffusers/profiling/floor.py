# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the counted operations would take if nothing but matrix products took time, and how near a stream comes."""

from __future__ import annotations

from typing import Any

from ..pipelines.pipeline_ultraflash import UltraFlashStreamingPipeline
from .operations import generator_passes, group_operations
from .stages import matmul_rate


def count_frame(
    pipe: UltraFlashStreamingPipeline, height: int, width: int, steps: int | None = None
) -> dict[str, float]:
    """Operations of a frame in the middle of a stream, by stage.

    Args:
        pipe ([`UltraFlashStreamingPipeline`]): on any device, the meta device included.
        height, width (`int`): of the frames.
        steps (`int`, *optional*): of the generator; its own by default, 0 where it does not run.
    """
    counts = group_operations(pipe, height, width, generator_passes(pipe, steps))
    frames = pipe.config.group_frames * pipe.autoencoder.temporal_compression_ratio
    return {name: count / frames for name, count in counts.items()}


def share_of_floor(operations: dict[str, float], rate: float, fps: float) -> dict[str, Any]:
    """Sets a measured speed beside the one that operations at a rate would allow.

    Args:
        operations (`dict[str, float]`): of a frame, by stage: [`count_frame`]'s.
        rate (`float`): operations a second of a large matrix product: [`matmul_rate`]'s.
        fps (`float`): measured.

    Returns:
        `dict`: `"tflop_per_frame"` by stage, `"tflops"` reached, `"matmul_tflops"`, `"floor_fps"` and
        `"share_of_floor"`.
    """
    per_frame = sum(operations.values())
    return {
        "tflop_per_frame": {name: count / 1e12 for name, count in operations.items()},
        "tflops": per_frame * fps / 1e12,
        "matmul_tflops": rate / 1e12,
        "floor_fps": rate / per_frame,
        "share_of_floor": per_frame * fps / rate,
    }


def reached(
    pipe: UltraFlashStreamingPipeline, height: int, width: int, fps: float, steps: int | None = None
) -> dict[str, Any]:
    """[`share_of_floor`] of a pipeline, with the rate measured on its device in its precision."""
    rate = matmul_rate(pipe.device, pipe.transformer.dtype)
    return share_of_floor(count_frame(pipe, height, width, steps), rate, fps)
