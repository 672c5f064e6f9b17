# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What turns high-resolution clips into low-resolution ones for training: small seeded transforms that compose.

A transform is called with a clip, uint8 `[frames, height, width, 3]`, and a random generator, from which it draws all
its choices: once a clip, or as smooth trajectories over its frames, so that nothing flickers. Equal generators give
equal results. [`degradation_preset`] makes the paper's degradation and two others; [`to_config`] and [`from_config`]
turn any of them into plain data and back. Needs the `train` extra.
"""

from .combining import Compose, CutMix, OneOf, Sometimes, Transform
from .compression import H264, Jpeg
from .config import from_config, to_config
from .presets import PRESETS, aigc_artifacts, degradation_preset, low_resolution, spatial_artifacts
from .temporal import FrameDrop, GridWarp, MotionBlur, TemporalMorph
from .trajectory import smooth_trajectory
from .transforms import Downscale, GaussianBlur, GaussianNoise, Rescale, UnsharpMask

__all__ = [
    "PRESETS",
    "Compose",
    "CutMix",
    "Downscale",
    "FrameDrop",
    "GaussianBlur",
    "GaussianNoise",
    "GridWarp",
    "H264",
    "Jpeg",
    "MotionBlur",
    "OneOf",
    "Rescale",
    "Sometimes",
    "TemporalMorph",
    "Transform",
    "UnsharpMask",
    "aigc_artifacts",
    "degradation_preset",
    "from_config",
    "low_resolution",
    "smooth_trajectory",
    "spatial_artifacts",
    "to_config",
]
