"""Streams the clip beside this file to twice its size with the packaged checkpoint, while showing what it does.

    python examples/upscale.py [CLIP] [--output FOLDER]

Writes the result, and a picture of its middle frame: bicubic beside ours, whole and enlarged.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ultraflash_diffusers import UltraFlashStreamingPipeline, default_checkpoint
from ultraflash_diffusers.allocation import freed_memory_kept
from ultraflash_diffusers.video_io import VideoReader, VideoWriter, write_side_by_side_png

CLIP = Path(__file__).parent / "big_buck_bunny_192x336.mp4"
CROP = 96  # side of the enlarged part, in pixels of the result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", nargs="?", type=Path, default=CLIP, help="low-resolution video (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder to write to")
    options = parser.parse_args()
    reader = VideoReader(options.clip)
    options.output.mkdir(parents=True, exist_ok=True)

    start = time.perf_counter()
    pipe = UltraFlashStreamingPipeline.from_pretrained(default_checkpoint(), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    print(f"loaded the packaged checkpoint in {time.perf_counter() - start:.1f} s")

    scale = pipe.latent_upsampler.config.scale
    size = (reader.info.width * scale, reader.info.height * scale)
    middle, pictures = (reader.info.num_frames or 1) // 2, []
    start = time.perf_counter()
    with (
        freed_memory_kept(),
        VideoWriter(
            options.output / f"{options.clip.stem}_{scale}x.mp4", *size, source=reader, overwrite=True
        ) as writer,
        pipe.stream(source=options.clip, generator=torch.Generator().manual_seed(0), output_type="np") as stream,
    ):
        for chunk in stream:
            frames = np.rint(chunk.frames[0] * 255).astype(np.uint8)
            writer.write(frames)
            first, end = chunk.frame_range
            rate = end / (time.perf_counter() - start)
            print(f"frames {first:3d} to {end - 1:3d} after {time.perf_counter() - start:5.2f} s, {rate:5.2f} FPS")
            if first <= middle < end:
                pictures.append(frames[middle - first])
    seconds = time.perf_counter() - start
    print(f"{writer.path}: {end} frames of {size[0]}x{size[1]} in {seconds:.1f} s, {end / seconds:.2f} FPS")

    reader.seek(middle)
    low = Image.fromarray(next(iter(reader)).pixels)
    bicubic = np.asarray(low.resize(size, Image.Resampling.BICUBIC))
    picture = options.output / f"{options.clip.stem}_side_by_side.png"
    write_side_by_side_png(
        picture,
        [bicubic, pictures[0], enlarged(bicubic), enlarged(pictures[0])],
        ["bicubic", "ours", "bicubic, enlarged", "ours, enlarged"],
    )
    print(f"{picture}: one frame, bicubic beside ours")


def enlarged(frame: np.ndarray) -> np.ndarray:
    """The frame's middle, enlarged to its height."""
    height, width = frame.shape[:2]
    side = min(CROP, height, width)
    top, left = (height - side) // 2, (width - side) // 2
    crop = Image.fromarray(frame[top : top + side, left : left + side])
    return np.asarray(crop.resize((height, height), Image.Resampling.NEAREST))


if __name__ == "__main__":
    main()
