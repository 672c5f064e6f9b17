# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The loop that all stages share, with its checkpoints, sharding, uploads and command-line arguments."""
