# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""How a process that works on a CPU gets its memory."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

# names and defaults of glibc's malloc.h
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_DEFAULTS = {_MMAP_MAX: 2**16, _TRIM_THRESHOLD: 2**17, _TOP_PAD: 2**17}
_KEEPING = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 2**28}


def keep_freed_memory() -> bool:
    """Lets the process keep the memory that it frees, for what it allocates next.

    By default glibc takes each feature map, of tens of megabytes, from the system page by page and gives it back at
    once, which costs a convolution a good part of its time: half of it where frames are large. The process then never
    gets smaller again, and large zeroed blocks, which are the system's empty pages otherwise, are written at once:
    training scripts do this for themselves. Nothing of a GPU's memory changes.

    Returns:
        `bool`: whether it took effect; not without glibc.
    """
    return _set(_KEEPING)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keeps freed memory as [`keep_freed_memory`] does, inside the `with` alone: then all of it goes back.

    For a stretch of work in a process that also reads strangers' files, whose claims of size are checked before it. A
    process that had already called [`keep_freed_memory`] does not keep it any longer afterwards.
    """
    kept = keep_freed_memory()
    try:
        yield
    finally:
        if kept:
            _set(_DEFAULTS)
            ctypes.CDLL(None).malloc_trim(0)


def _set(settings: Mapping[int, int]) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and all([bool(mallopt(name, value)) for name, value in settings.items()])
