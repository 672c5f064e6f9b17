# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Ultra Flash in ComfyUI: put this folder into `ComfyUI/custom_nodes`."""

from .nodes import comfy_entrypoint

__all__ = ["comfy_entrypoint"]
