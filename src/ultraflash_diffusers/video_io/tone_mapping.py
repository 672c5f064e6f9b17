# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""From high dynamic range to the standard one, for outputs that cannot hold more."""

from __future__ import annotations

import numpy as np

from .color import ColorTags

_LEVELS = 65536
_WHITE_NITS = 203  # diffuse white of HDR programmes, ITU-R BT.2408
_PEAK_NITS = 1000
_KNEE = 0.8  # share of the standard range that is kept as it is
# linear light, BT.2020 to BT.709 primaries (ITU-R BT.2087)
_TO_BT709 = np.array(
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008350], [-0.018151, -0.100579, 1.118730]], np.float32
)
_BT2020_PRIMARIES = 9
_BT2020_LUMA = np.array([0.2627, 0.6780, 0.0593], dtype=np.float32)


class ToneMapper:
    """Brings PQ or HLG pictures to BT.709 with its transfer: what is as bright as paper or darker stays as it is.

    Brighter light is compressed into the top fifth of the range, up to 1000 cd/m2, by the largest of red, green and
    blue, so that hues stay.

    Args:
        color ([`ColorTags`]): of the HDR side; `color.hdr` must not be `None`.
    """

    def __init__(self, color: ColorTags) -> None:
        signal = np.linspace(0, 1, _LEVELS, dtype=np.float32)
        self._hlg = color.hdr == "HLG"
        self._to_light = _hlg_scene_light(signal) if self._hlg else _pq_nits(signal) / _WHITE_NITS
        self._to_signal = np.round(_bt1886(signal) * 255).astype(np.uint8)
        self._wide = color.primaries == _BT2020_PRIMARIES

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Converts `[height, width, 3]` uint16 to uint8."""
        light = self._to_light[pixels]
        if self._hlg:  # the system's gamma of 1.2 turns the scene's light into a 1000 cd/m2 display's (ITU-R BT.2100)
            luma = (light @ _BT2020_LUMA)[..., None]
            light = light * np.maximum(luma, 1e-6) ** 0.2 * (_PEAK_NITS / _WHITE_NITS)
        if self._wide:
            light = np.maximum(light @ _TO_BT709.T, 0)
        brightest = light.max(axis=-1, keepdims=True)
        light *= _compressed(brightest) / np.maximum(brightest, 1e-6)
        return self._to_signal[np.clip(light * (_LEVELS - 1) + 0.5, 0, _LEVELS - 1).astype(np.int32)]


def _compressed(light: np.ndarray) -> np.ndarray:
    """Maps [0, 1000 cd/m2], 1 being paper white, to [0, 1], smoothly, and the part below the knee to itself."""
    room, excess = 1 - _KNEE, np.maximum(light - _KNEE, 0)
    most = _PEAK_NITS / _WHITE_NITS - _KNEE
    # a rational curve with slope 1 at the knee that reaches 1 at the peak
    bend = 1 / room - 1 / most
    return np.minimum(light, _KNEE) + np.minimum(excess / (1 + bend * excess), room)


def _pq_nits(signal: np.ndarray) -> np.ndarray:
    """SMPTE ST 2084: the signal in [0, 1] to cd/m2."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    power = signal ** (1 / m2)
    return (10000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)).astype(np.float32)


def _hlg_scene_light(signal: np.ndarray) -> np.ndarray:
    """ITU-R BT.2100: the HLG signal in [0, 1] to the scene's light in [0, 1]."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12).astype(np.float32)


def _bt1886(light: np.ndarray) -> np.ndarray:
    """The signal that a standard display, of gamma 2.4, shows as this light."""
    return light ** (1 / 2.4)
