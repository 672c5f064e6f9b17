# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Seconds from a click on "Generate" to the first frame that Chromium shows, once the page is warm.

    PYTHONPATH=src:tests python -m benchmarks.first_frame --visits 5

It opens the demo with the packaged checkpoint in a browser without a window, as its end-to-end tests do.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from helpers.browser import CHROMIUM, Page, opened

from ultraflash_diffusers import UltraFlashStreamingPipeline, default_checkpoint
from ultraflash_diffusers.demo.page import build_demo, launch_demo

_PLAYER = "document.querySelector('#uf-text')"
_STATUS = f"{_PLAYER}.querySelector('[data-part=status]').textContent"
_BUTTONS = "[...document.querySelectorAll('button')].filter((each) => each.offsetParent)"
# resolves with the seconds from the click to the first frame of the new video that was put on the screen
_CLICK = f"""new Promise((resolve) => {{
  const video = {_PLAYER}.querySelector('video'), begin = performance.now();
  const shown = (now) => video.currentTime > 0 || video.readyState >= 2
    ? resolve((now - begin) / 1000) : video.requestVideoFrameCallback(shown);
  video.requestVideoFrameCallback(shown);
  {_BUTTONS}.find((each) => each.textContent.trim() === 'Generate').click();
}})"""


def visit(page: Page) -> float:
    """Generates, waits for the first frame, stops; returns the seconds between the first two."""
    seconds = page.evaluate(_CLICK)
    page.evaluate(f"{_PLAYER}.querySelector('[data-part=stop]').click()")
    page.wait_for(f"{_STATUS}.startsWith('Stopped')")
    return float(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--visits", type=int, default=5, help="after one that warms up (default: %(default)s)")
    options = parser.parse_args()
    if CHROMIUM is None:
        raise SystemExit("this needs Chromium")
    pipe = UltraFlashStreamingPipeline.from_pretrained(default_checkpoint(), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    demo = build_demo(pipe)
    launch_demo(demo, prevent_thread_lock=True, quiet=True)
    try:
        with tempfile.TemporaryDirectory() as profile, opened(f"{demo.local_url}?endless=true", Path(profile)) as page:
            page.wait_for(f"Boolean(window.ultraflash && {_PLAYER})")
            page.wait_for("document.querySelector('input[type=checkbox]').checked")
            visit(page)
            seconds = [visit(page) for _ in range(options.visits)]
    finally:
        demo.end()
    print(f"median {statistics.median(seconds):.2f} s, of {', '.join(f'{each:.2f}' for each in seconds)}")


if __name__ == "__main__":
    main()
