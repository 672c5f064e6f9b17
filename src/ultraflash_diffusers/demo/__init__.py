# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The demo in a browser."""

from .page import build_demo, example_clips, launch_demo

__all__ = ["build_demo", "example_clips", "launch_demo"]
