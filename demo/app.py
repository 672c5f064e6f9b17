# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The demo as a Hugging Face Space. `ultraflash demo` is the same without one.

`ULTRAFLASH_CHECKPOINT` names another checkpoint than the packaged one: a folder, or a repository on the Hub. Clips in
`examples/` beside this file are offered on the upscale tab.
"""

import os
from pathlib import Path

if os.environ.get("SPACES_ZERO_GPU"):
    import spaces  # noqa: F401  # before all that may ask for a GPU

import torch

from ultraflash_diffusers import UltraFlashStreamingPipeline, default_checkpoint
from ultraflash_diffusers.demo import build_demo, example_clips, launch_demo

checkpoint = os.environ.get("ULTRAFLASH_CHECKPOINT") or default_checkpoint()
device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
pipe = UltraFlashStreamingPipeline.from_pretrained(checkpoint, dtype=dtype).to(device)
pipe.set_progress_bar_config(disable=True)

examples = sorted((Path(__file__).parent / "examples").glob("*.mp4")) or example_clips()
demo = build_demo(pipe, examples)

if __name__ == "__main__":
    launch_demo(demo, examples)
