# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What training sees: clips, crops, prompts, latents and drawn scenes, prepared once and cached."""
