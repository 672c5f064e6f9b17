# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Video files in and out, in constant memory.

[`VideoReader`] probes a clip and yields its frames as upright RGB with their timestamps; [`VideoWriter`] encodes
H.264 or HEVC so that an interrupted run leaves a playable file and can be resumed, and copies sound and subtitles at
the end. Names are imported when they are first used: what needs no PyAV works where there is none.
"""

from typing import TYPE_CHECKING

from ..lazy_names import lazy_names

if TYPE_CHECKING:  # for editors and type checkers, which cannot follow `_EXPORTS`
    from .color import ColorTags as ColorTags
    from .fragments import FRAGMENT_FRAMES as FRAGMENT_FRAMES
    from .frames import frames_to_tensor as frames_to_tensor
    from .frames import tensor_to_frames as tensor_to_frames
    from .frames import write_side_by_side_png as write_side_by_side_png
    from .probe import VideoInfo as VideoInfo
    from .reader import DecodedFrame as DecodedFrame
    from .reader import VideoReader as VideoReader
    from .writer import VideoWriter as VideoWriter

_EXPORTS = {
    "FRAGMENT_FRAMES": ".fragments",
    "ColorTags": ".color",
    "DecodedFrame": ".reader",
    "VideoInfo": ".probe",
    "VideoReader": ".reader",
    "VideoWriter": ".writer",
    "frames_to_tensor": ".frames",
    "tensor_to_frames": ".frames",
    "write_side_by_side_png": ".frames",
}

__all__ = list(_EXPORTS)


__getattr__, __dir__ = lazy_names(__name__, _EXPORTS)
