# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The cascade's networks. Every stage is a function of its input and its own state, which the stream owns.

Importing this package tells diffusers that it may load components from `ultraflash_diffusers`. A `model_index.json`
then names the package and the class, not a module path, which would freeze our layout into every checkpoint.
"""

from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES

LOADABLE_CLASSES["ultraflash_diffusers"] = {
    "ModelMixin": ["save_pretrained", "from_pretrained"],
    "SchedulerMixin": ["save_pretrained", "from_pretrained"],
}
