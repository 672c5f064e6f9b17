# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Seconds from a click on "Generate" to the first frame that Chromium shows, once the page is warm; stalls after it.

    PYTHONPATH=src:tests python -m benchmarks.first_frame --visits 5

The demo and a browser without a window run on this machine, as in the end-to-end tests. Each visit clicks, watches for
some seconds, and stops; the first one warms up and is left out. The prompt is the first of the page's own examples.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from helpers.browser import CHROMIUM, Page, button, opened

from ultraflash_diffusers import UltraFlashStreamingPipeline, default_checkpoint
from ultraflash_diffusers.demo.page import build_demo, launch_demo

_PLAYER = "document.querySelector('#uf-text')"
_STATUS = f"{_PLAYER}.querySelector('[data-part=status]').textContent"
_EXAMPLE = "document.querySelector('button.gallery-item')"
_PROMPT = "document.querySelector('textarea').value"
# seconds from the click to the first frame of the new video on the screen, and how often playback ran dry after it
_CLICK = """new Promise((resolve, reject) => {
  const player = PLAYER, video = player.querySelector('video'), status = player.querySelector('[data-part=status]');
  const former = video.src, begin = performance.now();
  let first = null, stalls = 0;
  // the first frame comes alone: playback begins with the second
  const waits = () => { if (first !== null && video.buffered.end(0) > 0.1) stalls += 1; };
  const shown = () => {
    // a frame of the video before may still be on its way to the screen
    if (video.src === former || video.readyState < 2) return video.requestVideoFrameCallback(shown);
    first = (performance.now() - begin) / 1000;
    setTimeout(() => { video.removeEventListener('waiting', waits); resolve([first, stalls]); }, 1000 * SECONDS);
  };
  video.addEventListener('waiting', waits);
  video.requestVideoFrameCallback(shown);
  BUTTON.click();
  setTimeout(() => { if (first === null) reject(new Error(`no frame in 40 s: ${status.textContent}`)); }, 40000);
})"""


@dataclass(frozen=True)
class Visit:
    """What a visitor saw.

    Args:
        first_frame (`float`): seconds from the click to it.
        stalls (`int`): how often playback then waited for frames.
    """

    first_frame: float
    stalls: int


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="folder or Hub name; the packaged one by default")
    parser.add_argument("--visits", type=int, default=5, help="after one that warms up (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=8.0, help="to watch in each visit (default: %(default)s)")
    return parser.parse_args(arguments)


@contextmanager
def demo_page(checkpoint: str | None) -> Iterator[Page]:
    """Starts the demo, and opens it in a browser."""
    pipe = UltraFlashStreamingPipeline.from_pretrained(checkpoint or default_checkpoint(), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    demo = build_demo(pipe)
    launch_demo(demo, prevent_thread_lock=True, quiet=True)
    try:
        # Chromium's helpers may write a moment longer than it lives
        with (
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
            opened(f"{demo.local_url}?endless=true", Path(profile)) as page,
        ):
            page.wait_for(f"Boolean(window.ultraflash && {_PLAYER} && {_EXAMPLE})")
            page.wait_for("document.querySelector('input[type=checkbox]').checked")
            page.evaluate(f"{_EXAMPLE}.click()")
            page.wait_for(_PROMPT)
            yield page
    finally:
        demo.end()


def visit(page: Page, seconds: float) -> Visit:
    """Clicks on "Generate", watches, and stops."""
    click = _CLICK.replace("PLAYER", _PLAYER).replace("BUTTON", button("Generate")).replace("SECONDS", str(seconds))
    first_frame, stalls = page.evaluate(click)
    page.evaluate(f"{_PLAYER}.querySelector('[data-part=stop]').click()")
    page.wait_for(f"{_STATUS}.startsWith('Stopped')")
    return Visit(float(first_frame), int(stalls))


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    if CHROMIUM is None:
        raise SystemExit("this needs Chromium")
    with demo_page(options.checkpoint) as page:
        prompt = page.evaluate(_PROMPT)
        visit(page, options.seconds)
        visits = [visit(page, options.seconds) for _ in range(options.visits)]
    print(f"{prompt!r}, {torch.get_num_threads()} threads")
    for number, each in enumerate(visits, 1):
        print(f"visit {number}: first frame after {each.first_frame:.2f} s, {each.stalls} stalls")
    print(f"median {statistics.median(each.first_frame for each in visits):.2f} s to the first frame")


if __name__ == "__main__":
    main()
