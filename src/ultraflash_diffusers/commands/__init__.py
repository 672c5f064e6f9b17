# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The sub-commands of `ultraflash`, a module each."""
