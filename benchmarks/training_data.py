# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What feeding a training costs: frames a second and core of each way to its batches, and cores that feed an H100.

    python -m benchmarks.training_data                      # 480x832 and 960x1664, batches of one clip of 17 frames

Videos are H.264 of a moving texture with grain, at twice the crop's length. CPU time is that of all threads of the
process, with sources in the disk's cache. What an H100 takes is what `benchmarks.training_memory` plans at 40 %.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.degradation import moving_texture
from ultraflash_diffusers.degradation import PRESETS, degradation_preset
from ultraflash_diffusers.tables import markdown_table
from ultraflash_diffusers.training.data.crops import Crop, CropDataset
from ultraflash_diffusers.training.data.latents import LatentDataset
from ultraflash_diffusers.training.data.preparation import CachedClip, Preparation
from ultraflash_diffusers.training.data.streaming import StreamedClip, StreamedCrops
from ultraflash_diffusers.video_io import VideoWriter

# frames that a GPU trains on in a second, of 81x480x832 by LoRA and of 81x960x1664 whole, by their planned steps
TAKEN = {(480, 832): 81 / 2.9, (960, 1664): 81 / 39.5}
SCALE, SPATIAL, TEMPORAL, CHANNELS = 2, 8, 4, 16


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=17, help="of a crop, 4 n + 1 (default: %(default)s)")
    parser.add_argument("--batches", type=int, default=6, help="whose mean is taken (default: %(default)s)")
    return parser.parse_args(arguments)


def datasets(crop: Crop, folder: Path) -> Iterator[tuple[str, CropDataset]]:
    """Each way to the same crops, by its name."""
    clip = moving_texture(2 * crop.frames, crop.height, crop.width)
    video, decoded = folder / "clip.mp4", folder / "clip.npy"
    with VideoWriter(video, crop.width, crop.height, fps=24) as writer:
        writer.write(clip)
    streamed = [StreamedClip(video, "", *clip.shape[:3])]
    for name in PRESETS:
        how = Preparation(scale=SCALE, degradation=degradation_preset(name, SCALE), versions=1)
        yield f"`--stream --degradation {name}`", StreamedCrops(streamed, how, [crop], 1, scale=SCALE)
    yield "`--stream`, nothing degraded", StreamedCrops(streamed, Preparation(), [crop], 1)
    np.save(decoded, clip)
    np.save(folder / "low.npy", clip[:, ::SCALE, ::SCALE])
    cached = CachedClip(decoded, (folder / "low.npy",), "", *clip.shape[:3])
    yield "from the cache of clips", CropDataset([cached], [crop], 1, scale=SCALE)
    latents, whole = [], (CHANNELS, (2 * crop.frames - 2) // TEMPORAL + 1, crop.height, crop.width)
    for factor in (1, SCALE):
        latents.append(folder / f"latents{factor}.npy")
        sides = (side // (SPATIAL * factor) for side in whole[2:])
        np.save(latents[-1], np.random.default_rng(0).normal(size=(*whole[:2], *sides)).astype(np.float32))
    encoded = CachedClip(latents[0], (latents[1],), "", *clip.shape[:3])
    yield "`--cache_latents`", LatentDataset([encoded], [crop], 1, SPATIAL, TEMPORAL, scale=SCALE)


def seconds_a_frame(dataset: CropDataset, frames: int, batches: int) -> float:
    """CPU seconds, after a first batch that is not counted."""
    _ = dataset[batches]
    started = time.process_time()
    for number in range(batches):
        _ = dataset[number]
    return (time.process_time() - started) / (batches * frames)


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    titles, rows = ("crop", "batches", "CPU ms a frame", "frames a second and core", "cores that feed an H100"), []
    for (height, width), taken in TAKEN.items():
        crop = Crop(options.frames, height, width)
        with tempfile.TemporaryDirectory() as folder:
            for name, dataset in tqdm(datasets(crop, Path(folder)), desc=f"{height}x{width}", disable=None):
                seconds = seconds_a_frame(dataset, options.frames, options.batches)
                figures = (f"{1000 * seconds:.3g}", f"{1 / seconds:.3g}", f"{seconds * taken:.2g}")
                rows.append((f"{height}x{width}", name, *figures))
    print(markdown_table(titles, rows, text_columns=2))


if __name__ == "__main__":
    main()
