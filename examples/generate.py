"""Streams a high-resolution video from a text with the packaged checkpoint, while showing what it does.

    python examples/generate.py [PROMPT] [--seed N] [--output FOLDER]

Writes the video, and a picture of its first, middle and last frame. The packaged generator knows a small world: one or
two balls, cubes or cones in eight colours that move, bounce, float, sway or rest, over grass, sand, snow or water, by
day, at sunset, at night or under clouds.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from ultraflash_diffusers import UltraFlashStreamingPipeline, default_checkpoint
from ultraflash_diffusers.allocation import keep_freed_memory
from ultraflash_diffusers.video_io import VideoWriter, write_side_by_side_png

PROMPT = "a red ball bounces and a blue cube glides to the right over sand at sunset"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt", nargs="?", default=PROMPT, help="what the video shows (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder to write to")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)

    keep_freed_memory()
    start = time.perf_counter()
    pipe = UltraFlashStreamingPipeline.from_pretrained(default_checkpoint(), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    print(f"loaded the packaged checkpoint in {time.perf_counter() - start:.1f} s")

    height, width = pipe.config.default_height, pipe.config.default_width
    num_frames, fps = pipe.config.default_num_frames, pipe.config.default_fps
    path = options.output / "generated.mp4"
    made = []
    start = time.perf_counter()
    with (
        VideoWriter(path, width, height, fps=fps, overwrite=True) as writer,
        pipe.stream(
            options.prompt,
            num_frames=num_frames,
            generator=torch.Generator().manual_seed(options.seed),
            output_type="uint8",
        ) as stream,
    ):
        for chunk in stream:
            made.append(np.asarray(chunk.frames[0]))
            writer.write(made[-1])
            first, end = chunk.frame_range
            seconds = time.perf_counter() - start
            print(f"frames {first:3d} to {end - 1:3d} after {seconds:5.2f} s, {end / seconds:5.2f} FPS")
    seconds = time.perf_counter() - start
    print(f"{path}: {num_frames} frames of {width}x{height} in {seconds:.1f} s, {num_frames / seconds:.2f} FPS")

    frames = np.concatenate(made)
    chosen = [0, num_frames // 2, num_frames - 1]
    picture = path.with_suffix(".png")
    write_side_by_side_png(picture, [frames[index] for index in chosen], [f"frame {index}" for index in chosen])
    print(f"{picture}: its first, middle and last frame")


if __name__ == "__main__":
    main()
