# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Colour: which numbers a clip's samples stand for, and the conversions between YUV and RGB."""

from __future__ import annotations

from dataclasses import dataclass, replace

import av
import numpy as np
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from .mastering import light_levels, mastering_display

# Code points of ITU-T H.273, which FFmpeg uses too
MATRIX_RGB, MATRIX_BT709, MATRIX_UNSPECIFIED, MATRIX_BT470BG, MATRIX_BT601 = 0, 1, 2, 5, 6
_KNOWN_MATRICES = {MATRIX_BT709, 4, MATRIX_BT470BG, MATRIX_BT601, 7, 9}
_HDR_TRANSFERS = {16: "PQ", 18: "HLG"}
# Without these flags swscale repeats chroma samples and rounds down: two to three levels too dark
_EXACT = (
    Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP | Interpolation.ACCURATE_RND
)


@dataclass(frozen=True)
class ColorTags:
    """How a clip's samples are to be shown, in code points of ITU-T H.273.

    Args:
        primaries (`int`, *optional*, defaults to 2): colour primaries; 2 is "unspecified".
        transfer (`int`, *optional*, defaults to 2): transfer characteristics; 2 is "unspecified".
        matrix (`int`, *optional*, defaults to 1): YUV matrix coefficients, never unspecified: 1 is BT.709, 5 and 6 are
            BT.601, 9 is BT.2020.
        full_range (`bool`, *optional*, defaults to `False`): luma covers 0..255 instead of 16..235.
        mastering_display, light_levels (`str`, *optional*): of HDR10, see `mastering`.
    """

    primaries: int = 2
    transfer: int = 2
    matrix: int = MATRIX_BT709
    full_range: bool = False
    mastering_display: str | None = None
    light_levels: str | None = None

    @classmethod
    def of(cls, frame: av.VideoFrame) -> ColorTags:
        """Returns the tags of a decoded frame, the unspecified matrix and range filled in as players do.

        Without a matrix, clips up to 576 lines and less than 1280 columns are BT.601 and larger ones BT.709. RGB clips
        get what their H.264 copy will have, BT.709 of limited range.

        Raises:
            ValueError: the matrix is one that has no conversion here (YCgCo, ICtCp, constant luminance).
        """
        tags = cls(
            int(frame.color_primaries),
            int(frame.color_trc),
            int(frame.colorspace),
            mastering_display=mastering_display(frame),
            light_levels=light_levels(frame),
        )
        if frame.format.is_rgb:
            return replace(tags, matrix=MATRIX_BT709)
        if tags.matrix in (MATRIX_UNSPECIFIED, MATRIX_RGB):
            small = frame.height <= 576 and frame.width < 1280
            tags = replace(tags, matrix=MATRIX_BT601 if small else MATRIX_BT709)
        if tags.matrix not in _KNOWN_MATRICES:
            raise ValueError(f"YUV matrix {tags.matrix} (ITU-T H.273) is not supported, expected {_KNOWN_MATRICES}")
        full_by_format = frame.format.name.startswith(("yuvj", "gray", "ya"))
        unspecified = frame.color_range == ColorRange.UNSPECIFIED
        return replace(tags, full_range=full_by_format if unspecified else frame.color_range == ColorRange.JPEG)

    @property
    def hdr(self) -> str | None:
        """The name of the high-dynamic-range transfer, `"PQ"` or `"HLG"`, else `None`."""
        return _HDR_TRANSFERS.get(self.transfer)


SDR = ColorTags(1, 1, MATRIX_BT709)
"""BT.709, limited range."""


class RGBConverter:
    """Converts between decoded frames and RGB; one converter belongs to one stream of equal frames.

    Args:
        color ([`ColorTags`]): of the YUV side.
        dtype (`type`, *optional*, defaults to `np.uint8`): of the RGB side, `np.uint8` or `np.uint16`.
    """

    def __init__(self, color: ColorTags, dtype: type[np.uint8] | type[np.uint16] = np.uint8) -> None:
        self.color = color
        self._dtype = dtype
        self._reformatter = VideoReformatter()

    def to_rgb(self, frame: av.VideoFrame) -> np.ndarray:
        """Returns `[height, width, 3]`; transparent pixels are put on black, deeper samples are rounded."""
        if not frame.format.is_rgb:
            frame.colorspace = self.color.matrix
            frame.color_range = ColorRange.JPEG if self.color.full_range else ColorRange.MPEG
        opaque = not has_alpha(frame.format)
        target = ("rgb24" if opaque else "rgba") if self._dtype is np.uint8 else ("rgb48le" if opaque else "rgba64le")
        converted = self._reformatter.reformat(
            frame, format=target, interpolation=_EXACT, dst_color_range=ColorRange.JPEG
        ).to_ndarray()
        return converted if opaque else on_black(converted)

    def from_rgb(self, pixels: np.ndarray, pixel_format: str) -> av.VideoFrame:
        """Returns the frame that shows `[height, width, 3]` in a YUV `pixel_format`, tagged."""
        frame = self._reformatter.reformat(
            av.VideoFrame.from_ndarray(pixels, format="rgb24" if pixels.dtype == np.uint8 else "rgb48le"),
            format=pixel_format,
            interpolation=_EXACT,
            # swscale counts matrices as H.273 does, but knows BT.601 only by its other number
            dst_colorspace=MATRIX_BT470BG if self.color.matrix == MATRIX_BT601 else self.color.matrix,
            dst_color_range=ColorRange.JPEG if self.color.full_range else ColorRange.MPEG,
        )
        frame.colorspace, frame.color_trc = self.color.matrix, self.color.transfer
        frame.color_primaries = self.color.primaries
        return frame


def on_black(pixels: np.ndarray) -> np.ndarray:
    """Puts `[height, width, 4]`, uint8 or uint16, on a black background and returns `[height, width, 3]`."""
    rgb, alpha, full = pixels[..., :3].astype(np.uint32), pixels[..., 3:].astype(np.uint32), np.iinfo(pixels.dtype).max
    return ((rgb * alpha + full // 2) // full).astype(pixels.dtype)


def has_alpha(pixel_format: av.VideoFormat) -> bool:
    """Whether a pixel format carries transparency (a palette may)."""
    return pixel_format.has_palette or len(pixel_format.components) in (2, 4)
