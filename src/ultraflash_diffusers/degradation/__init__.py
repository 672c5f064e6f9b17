# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What turns high-resolution clips into low-resolution ones for training: small seeded transforms that compose.

A transform is called with a clip, uint8 `[frames, height, width, 3]`, and a random generator, from which it draws all
its choices once a clip, so that nothing flickers; equal generators give equal results. Needs the `train` extra.
"""

from .compression import H264, Jpeg
from .transforms import Compose, Downscale, GaussianBlur, GaussianNoise, OneOf, Sometimes, Transform, low_resolution

__all__ = [
    "Compose",
    "Downscale",
    "GaussianBlur",
    "GaussianNoise",
    "H264",
    "Jpeg",
    "OneOf",
    "Sometimes",
    "Transform",
    "low_resolution",
]
