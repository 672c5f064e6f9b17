# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Training: data, losses, closed-form starting points and one loop for all stages. Needs the `train` extra.

The scripts in the repository's `training` folder define a [`~ultraflash_diffusers.training.stage.Stage`] each and hand
it to [`~ultraflash_diffusers.training.loop.train`].
"""
