# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Published checkpoints (Ultra Flash, Self-Forcing, LongLive, Wan 2.1) to networks and diffusers folders."""

from ..weight_files import read_checkpoint
from .convert import ConvertedFile, convert_files, from_original
from .from_recipe import convert_recipe
from .recipes import RECIPES

__all__ = ["RECIPES", "ConvertedFile", "convert_files", "convert_recipe", "from_original", "read_checkpoint"]
