# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Makes the README's moving picture: a line wanders over a clip, bicubic interpolation before it, the result behind.

python docs/moving_picture.py        # writes docs/moving_picture.webp
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ultraflash_diffusers import UltraFlashStreamingPipeline, default_checkpoint
from ultraflash_diffusers.video_io import VideoReader

CLIP = Path(__file__).parents[1] / "examples" / "big_buck_bunny_192x336.mp4"
PICTURE = Path(__file__).with_name("moving_picture.webp")
FRAMES, FPS = 48, 16


def result() -> list[Image.Image]:
    """The clip at twice its size."""
    pipe = UltraFlashStreamingPipeline.from_pretrained(default_checkpoint(), dtype=torch.float32)
    with pipe.stream(source=str(CLIP), num_frames=FRAMES, output_type="uint8") as stream:
        return [Image.fromarray(frame) for chunk in stream for frame in np.asarray(chunk.frames[0])]


def compared(before: Image.Image, after: Image.Image, divider: int) -> Image.Image:
    """`before` to the left of column `divider`, `after` to its right, each with its name."""
    picture = after.copy()
    picture.paste(before.crop((0, 0, divider, before.height)), (0, 0))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(18)
    draw.line([(divider, 0), (divider, picture.height)], fill="white", width=2)
    for x, anchor, name in ((divider - 10, "rs", "bicubic"), (divider + 10, "ls", "Ultra Flash")):
        draw.text((x, picture.height - 12), name, "white", font, anchor, stroke_width=2, stroke_fill="black")
    return picture


def main() -> None:
    frames = []
    for number, (source, after) in enumerate(zip(VideoReader(CLIP), result(), strict=False)):
        before = Image.fromarray(source.pixels).resize(after.size, Image.Resampling.BICUBIC)
        share = 0.5 - 0.3 * math.cos(2 * math.pi * number / FRAMES)  # ends where it began
        frames.append(compared(before, after, round(share * after.width)))
    frames[0].save(
        PICTURE, save_all=True, append_images=frames[1:], duration=1000 // FPS, loop=0, quality=40, method=6
    )
    print(f"{PICTURE}: {len(frames)} frames of {frames[0].width}x{frames[0].height}, {PICTURE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
