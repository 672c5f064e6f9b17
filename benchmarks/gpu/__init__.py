# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The stages of `benchmarks/gpu_run.py`, and what is predicted of them."""
