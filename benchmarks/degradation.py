# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What degrading training clips costs: CPU seconds a frame of each preset, and of each of its operations.

    python -m benchmarks.degradation                        # 17 frames of 960x1664, ten seeds
    python -m benchmarks.degradation --operations           # of `aigc`, one by one

CPU time is that of all threads of the process; codecs run in it. Clips are a moving texture, made before.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from ultraflash_diffusers.degradation import (
    H264,
    PRESETS,
    Downscale,
    FrameDrop,
    GaussianBlur,
    GaussianNoise,
    GridWarp,
    Jpeg,
    MotionBlur,
    Rescale,
    TemporalMorph,
    Transform,
    UnsharpMask,
    degradation_preset,
)
from ultraflash_diffusers.tables import markdown_table

OPERATIONS: dict[str, Callable[[], Transform]] = {
    "TemporalMorph": lambda: TemporalMorph((0.2, 0.9)),
    "FrameDrop": FrameDrop,
    "MotionBlur": MotionBlur,
    "GridWarp": lambda: GridWarp((0.0, 14.0)),
    "H264": lambda: H264((25, 30)),
    "UnsharpMask": UnsharpMask,
    "GaussianBlur": lambda: GaussianBlur((0.2, 3.0), kernel_size=(15, 37)),
    "Rescale": lambda: Rescale((0.15, 1.5)),
    "GaussianNoise": GaussianNoise,
    "Jpeg": lambda: Jpeg((70, 95)),
    "Downscale": lambda: Downscale(2, "bicubic"),
}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--height", type=int, default=960)
    parser.add_argument("--width", type=int, default=1664)
    parser.add_argument("--seeds", type=int, default=10, help="draws of what is random (default: %(default)s)")
    parser.add_argument("--operations", action="store_true", help="those of `aigc` instead of the presets")
    return parser.parse_args(arguments)


def moving_texture(frames: int, height: int, width: int) -> np.ndarray:
    """uint8 `[frames, height, width, 3]`: waves and grain that move to the left."""
    rows, columns = np.mgrid[:height, : width + 2 * frames]
    grain = np.random.default_rng(0).normal(0, 12, (height, width + 2 * frames))
    waves = 128 + 50 * np.sin(rows / 23) + 50 * np.sin((rows + columns) / 11) + grain
    canvas = np.stack([waves, 0.8 * waves, 255 - waves], axis=-1).clip(0, 255).astype(np.uint8)
    return np.stack([canvas[:, 2 * t : 2 * t + width] for t in range(frames)])


def seconds_a_frame(transform: Transform, clip: np.ndarray, seeds: int) -> float:
    """CPU seconds, the mean over seeds."""
    started = time.process_time()
    for seed in range(seeds):
        transform(clip, np.random.default_rng(seed))
    return (time.process_time() - started) / (seeds * len(clip))


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    clip = moving_texture(options.frames, options.height, options.width)
    made = {name: make() for name, make in OPERATIONS.items()}
    presets = {name: degradation_preset(name) for name in PRESETS}
    rows = []
    for name, transform in (made if options.operations else presets).items():
        seconds = seconds_a_frame(transform, clip, options.seeds)
        rows.append((name, f"{seconds:.4f}", f"{1 / seconds:.1f}"))
    titles = (f"{options.height}x{options.width}", "CPU seconds a frame", "frames a second and core")
    print(markdown_table(titles, rows))


if __name__ == "__main__":
    main()
