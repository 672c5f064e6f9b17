# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""One module for each stage of training: its objective, its networks, its loss of a batch."""
