# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Whole degradations, from a high-resolution clip to a low-resolution one, by name."""

from __future__ import annotations

from collections.abc import Callable

from .combining import Compose, CutMix, OneOf, Sometimes, Transform
from .compression import H264, Jpeg
from .temporal import FrameDrop, GridWarp, MotionBlur, TemporalMorph
from .transforms import Downscale, GaussianBlur, GaussianNoise, Rescale, UnsharpMask


def degradation_preset(name: str, scale: int = 2) -> Compose:
    """Makes a degradation of one of three kinds.

    - `"aigc"`: the paper's, made for generated video. What generators do wrong over time ([`aigc_artifacts`]), then
      blur, noise and compression ([`spatial_artifacts`]), everywhere or in a box in space and time, and a downscale
      to a half to a quarter, and back up to what `scale` asks for.
    - `"classic"`: the second part alone, with the same downscale: what the paper compares against.
    - `"mild"`: [`low_resolution`], for sources that are small but good.

    The paper's numbers are for clips of 960x1664. `python -m benchmarks.degradation` says what they cost.

    Args:
        name (`str`): `"aigc"`, `"classic"` or `"mild"`.
        scale (`int`, *optional*, defaults to 2): how many times smaller clips become, 2 to 4.

    Raises:
        ValueError: no such preset, or a scale that is out of range.
    """
    if name not in PRESETS:
        raise ValueError(f"`name` must be one of {sorted(PRESETS)}, got {name!r}")
    return PRESETS[name](scale)


def aigc_artifacts() -> Compose:
    """The paper's first stage: morphing, lost frames, motion blur and warping, and always H.264 at CRF 25 to 30.

    The paper's numbers; that each of the first four happens to half of the clips is our choice, as are the motion
    blur's lengths and how often frames are lost.
    """
    return Compose(
        Sometimes(TemporalMorph((0.2, 0.9)), 0.5),
        Sometimes(FrameDrop(), 0.5),
        Sometimes(MotionBlur(), 0.5),
        Sometimes(GridWarp((0.0, 14.0)), 0.5),
        H264((25, 30)),
    )


def spatial_artifacts() -> Compose:
    """The paper's second stage: twice sharpened, blurred, rescaled, made noisy and compressed as pictures.

    Noise and compression happen at the changed size; each round ends at the clip's own. The strengths of sharpening
    and noise are our choice, the other numbers the paper's.
    """
    once = Compose(
        UnsharpMask(),
        GaussianBlur((0.2, 3.0), kernel_size=(15, 37)),
        Rescale((0.15, 1.5), inside=Compose(GaussianNoise(), Jpeg((70, 95)))),
    )
    return Compose(once, once)


def low_resolution(scale: int = 2, crf: tuple[int, int] = (20, 32), clean: float = 0.2) -> Compose:
    """A smaller clip, most often through H.264.

    Args:
        scale (`int`, *optional*, defaults to 2): the factor, 2 to 4.
        crf (pair of `int`, *optional*, defaults to `(20, 32)`): rate factors of the compressed clips.
        clean (`float`, *optional*, defaults to 0.2): share of clips that are not compressed.
    """
    return Compose(
        OneOf(Downscale(scale, "area"), Downscale(scale, "bicubic")),
        Sometimes(H264(crf), probability=1 - clean),
    )


def _downscale(scale: int) -> tuple[Transform, ...]:
    """The paper's: down by 2 to 4 and back up, here to the size that the cascade upscales."""
    down = Downscale(scale, "bicubic")
    return (down, Rescale((scale / 4, 1.0))) if scale < 4 else (down,)


def _aigc(scale: int) -> Compose:
    spatial = spatial_artifacts()
    return Compose(aigc_artifacts(), OneOf(spatial, CutMix(Compose(), spatial)), *_downscale(scale))


def _classic(scale: int) -> Compose:
    return Compose(spatial_artifacts(), *_downscale(scale))


PRESETS: dict[str, Callable[[int], Compose]] = {"aigc": _aigc, "classic": _classic, "mild": low_resolution}
