# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""LoRA for the SR transformer and for the generator, in every spelling that Wan LoRAs have."""

from .loading import UltraFlashLoraLoaderMixin
from .original import write_original_lora

__all__ = ["UltraFlashLoraLoaderMixin", "write_original_lora"]
