# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Makes the demo's picture: the page while a video plays that is still being made.

PYTHONPATH=src:tests python docs/demo_picture.py        # writes demo/screenshot.webp; needs Chromium
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from urllib.parse import quote

import torch
from helpers.browser import opened
from PIL import Image

from ultraflash_diffusers import UltraFlashStreamingPipeline, default_checkpoint
from ultraflash_diffusers.demo.page import build_demo, launch_demo

PICTURE = Path(__file__).parents[1] / "demo" / "screenshot.webp"
PROMPT, SEED = "a red ball bounces and a blue cube glides to the right over sand at sunset", 3
SECONDS = 4  # of the video that have played
WIDTH, HEIGHT = 1280, 950  # of the window, whose frame takes some of it
PLAYER = "document.querySelector('#uf-text')"


def main() -> None:
    pipe = UltraFlashStreamingPipeline.from_pretrained(default_checkpoint(), dtype=torch.float32)
    page = build_demo(pipe)
    launch_demo(page, prevent_thread_lock=True, quiet=True)
    address = f"{page.local_url}?prompt={quote(PROMPT)}&seed={SEED}&endless=true"
    try:
        with (
            tempfile.TemporaryDirectory(prefix="ultraflash_chromium_") as folder,
            opened(address, Path(folder) / "profile", WIDTH, HEIGHT) as tab,
        ):
            tab.wait_for(f"window.ultraflash && {PLAYER} && document.querySelector('textarea')?.value === {PROMPT!r}")
            tab.press("Generate")
            tab.wait_for(f"{PLAYER}.querySelector('video').currentTime > {SECONDS}", 300)
            shot = tab.screenshot(Path(folder) / "page.png")
    finally:
        page.end()
    Image.open(io.BytesIO(shot)).convert("RGB").save(PICTURE, quality=88, method=6)


if __name__ == "__main__":
    main()
