"""Frames that arrive one by one: each chunk is there as soon as its last frame is.

    python examples/live_frames.py

A moving pattern stands in for the camera. Nothing has to know how long it will go on.
"""

import itertools
import time
from collections.abc import Iterator

import numpy as np

from ultraflash_diffusers import UltraFlashStreamingPipeline, default_checkpoint

HEIGHT, WIDTH = 96, 160
SECONDS = 10


def camera() -> Iterator[np.ndarray]:
    """Yields `[height, width, 3]` uint8 frames for ever."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    for number in itertools.count():
        waves = np.stack([np.sin((columns + number) / 9), np.sin((rows - number) / 7), np.sin((rows + columns) / 5)])
        yield (127.5 * (waves + 1)).astype(np.uint8).transpose(1, 2, 0)


def main() -> None:
    pipe = UltraFlashStreamingPipeline.from_pretrained(default_checkpoint())
    start = time.perf_counter()
    with pipe.stream(source=camera(), output_type="np") as stream:
        for chunk in stream:
            seconds = time.perf_counter() - start
            print(f"{chunk.frame_range[1]} frames of {chunk.frames.shape[2:4]} after {seconds:.1f} s")
            if seconds > SECONDS:
                break


if __name__ == "__main__":
    main()
