# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""How a process that works on a CPU gets its memory."""

from __future__ import annotations

import ctypes
import sys

# of glibc's malloc.h
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_GROWS_BY = 2**28


def keep_freed_memory() -> bool:
    """Lets the process keep the memory that it frees, for what it allocates next.

    By default glibc takes each feature map, of tens of megabytes, from the system page by page and gives it back at
    once, which costs a convolution a good part of its time. The process then never gets smaller again, and large
    zeroed blocks, which are the system's empty pages otherwise, are written at once: training scripts do this for
    themselves, whatever reads strangers' files does not. Nothing of a GPU's memory changes.

    Returns:
        `bool`: whether it took effect; not without glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, _GROWS_BY))
    return mallopt is not None and all([bool(mallopt(name, value)) for name, value in settings])
