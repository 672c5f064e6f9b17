# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Published checkpoints (Ultra Flash, Self-Forcing, LongLive, Wan 2.1) to networks and diffusers folders."""

from ..weight_files import read_checkpoint
from .convert import ConvertedFile, convert_files, from_original

__all__ = ["ConvertedFile", "convert_files", "from_original", "read_checkpoint"]
