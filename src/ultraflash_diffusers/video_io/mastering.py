# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What HDR10 clips tell of the display that they were made on (SMPTE ST 2086, CTA-861.3)."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from fractions import Fraction
from typing import cast

import av
from av.sidedata.sidedata import SideData
from av.sidedata.sidedata import Type as SideDataType

# libavutil's `AVMasteringDisplayMetadata`: ten fractions of two ints, and whether colours and luminances are there
_DISPLAY = struct.Struct("=22i")
_LIGHT = struct.Struct("=2I")
_CHROMATICITY, _LUMINANCE = 50_000, 10_000  # x265's steps of a coordinate, and of a candela a square metre


def mastering_display(frame: av.VideoFrame) -> str | None:
    """Returns a decoded frame's mastering display as x265 is told of it: `G(x,y)B(x,y)R(x,y)WP(x,y)L(max,min)`."""
    data = _side_data(frame, SideDataType.MASTERING_DISPLAY_METADATA, _DISPLAY)
    if data is None or not (data[20] and data[21]):
        return None
    fractions = [_steps(data[2 * index], data[2 * index + 1]) for index in range(10)]
    *coordinates, darkest, brightest = fractions
    red, green, blue, white = (
        f"({round(x * _CHROMATICITY)},{round(y * _CHROMATICITY)})"
        for x, y in zip(coordinates[::2], coordinates[1::2], strict=True)
    )
    return f"G{green}B{blue}R{red}WP{white}L({round(brightest * _LUMINANCE)},{round(darkest * _LUMINANCE)})"


def light_levels(frame: av.VideoFrame) -> str | None:
    """Returns a decoded frame's content light levels: the brightest pixel's and the brightest frame's mean, cd/m2."""
    data = _side_data(frame, SideDataType.CONTENT_LIGHT_LEVEL, _LIGHT)
    return None if data is None else f"{data[0]},{data[1]}"


def _side_data(frame: av.VideoFrame, kind: SideDataType, layout: struct.Struct) -> tuple[int, ...] | None:
    side_data = cast(Mapping[SideDataType, SideData], frame.side_data)
    if kind not in side_data or len(content := bytes(side_data[kind])) < layout.size:
        return None
    return layout.unpack_from(content)


def _steps(numerator: int, denominator: int) -> Fraction:
    return Fraction(numerator, denominator or 1)
