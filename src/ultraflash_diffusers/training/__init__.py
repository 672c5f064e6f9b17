# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Training, in five rooms. Needs the `train` extra.

`loop` -> `stages` -> `data` -> `losses`, `starting_points`: imports run in this direction only. The scripts in the
repository's `training` folder hand a [`~ultraflash_diffusers.training.stages.base.Stage`] to
[`~ultraflash_diffusers.training.loop.train.train`].
"""
