# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Files of which it matters that they are on the disk, and the very ones that were written."""

from __future__ import annotations

import os
from pathlib import Path
from zlib import crc32

PIECE = 2**20
"""Bytes that are read at once."""


def synchronise(path: Path) -> None:
    """Waits until a file's content is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def checksum(path: Path, size: int) -> int:
    """Returns the CRC-32 of a file's first `size` bytes."""
    value = 0
    with path.open("rb") as file:
        while size > 0 and (piece := file.read(min(size, PIECE))):
            value, size = crc32(piece, value), size - len(piece)
    return value
