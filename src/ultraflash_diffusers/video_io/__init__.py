# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Video files in and out, in constant memory.

[`VideoReader`] probes a clip and yields its frames as upright RGB with their timestamps; [`VideoWriter`] encodes
H.264 or HEVC so that an interrupted run leaves a playable file and can be resumed, and copies sound and subtitles at
the end.
"""

from .color import ColorTags
from .fragments import FRAGMENT_FRAMES
from .frames import frames_to_tensor, tensor_to_frames, write_side_by_side_png
from .probe import VideoInfo
from .reader import DecodedFrame, VideoReader
from .writer import VideoWriter

__all__ = [
    "FRAGMENT_FRAMES",
    "ColorTags",
    "DecodedFrame",
    "VideoInfo",
    "VideoReader",
    "VideoWriter",
    "frames_to_tensor",
    "tensor_to_frames",
    "write_side_by_side_png",
]
