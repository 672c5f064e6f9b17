# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Makes the pictures of what the packaged checkpoint makes from text.

python docs/text_pictures.py        # writes docs/from_text.webp, which moves, and docs/text_*.webp
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ultraflash_diffusers import UltraFlashStreamingPipeline, default_checkpoint

FOLDER = Path(__file__).parent
MOVING = "a red ball bounces and a blue cube glides to the right over sand at sunset", 3
PROMPTS = (
    "a red ball bounces and a blue cube glides to the right over sand at sunset",
    "a yellow cone floats over water at night",
    "a purple cube sways on snow under a blue sky",
    "a white sphere hovers and an orange cone rests on a meadow",
    "a green ball moves left on grass on a cloudy day",
    "a pink cube rests and a green sphere floats over water at dusk",
    "an orange cone rests on snow at night",
    "a blue ball swings and a white cube hops in the desert",
)
SEEDS = "a red ball and a blue cone", range(8)
LONG = "a yellow cube hops and a purple sphere floats on a meadow", 5, (1, 85, 169, 253, 337, 421, 505, 589)
FRAMES, FPS = 72, 24  # of the picture that moves, which shows every third


def generated(pipe: UltraFlashStreamingPipeline, prompt: str, seed: int, num_frames: int) -> Iterable[Image.Image]:
    """Frames of a video as they come."""
    generator = torch.Generator().manual_seed(seed)
    with pipe.stream(prompt, num_frames=num_frames, generator=generator, output_type="uint8") as stream:
        for chunk in stream:
            yield from map(Image.fromarray, np.asarray(chunk.frames[0]))


def sheet(pictures: list[Image.Image], columns: int = 4, gap: int = 16) -> Image.Image:
    """Pictures beside and below each other, at half of their size; WebP's blocks of 16x16 hold no part of two."""
    width, height = (side // 2 for side in pictures[0].size)
    rows = -(-len(pictures) // columns)
    whole = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for number, picture in enumerate(pictures):
        place = (number % columns * (width + gap), number // columns * (height + gap))
        whole.paste(picture.resize((width, height), Image.Resampling.LANCZOS), place)
    return whole


def main() -> None:
    pipe = UltraFlashStreamingPipeline.from_pretrained(default_checkpoint(), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    frames = list(generated(pipe, *MOVING, FRAMES))[::3]
    frames[0].save(
        FOLDER / "from_text.webp",
        save_all=True,
        append_images=frames[1:],
        duration=3000 // FPS,
        loop=0,
        quality=85,
        method=6,
    )
    numbered = enumerate(tqdm(PROMPTS, desc="Prompts", disable=None))
    last = [list(generated(pipe, prompt, number, 13))[-1] for number, prompt in numbered]
    sheet(last).save(FOLDER / "text_prompts.webp", quality=95, method=6)
    last = [list(generated(pipe, SEEDS[0], seed, 1))[-1] for seed in tqdm(SEEDS[1], desc="Seeds", disable=None)]
    sheet(last).save(FOLDER / "text_seeds.webp", quality=95, method=6)
    prompt, seed, shown = LONG
    stream = tqdm(generated(pipe, prompt, seed, shown[-1] + 1), desc="A long stream", unit="frame", disable=None)
    sheet([frame for number, frame in enumerate(stream) if number in shown]).save(
        FOLDER / "text_long.webp", quality=95, method=6
    )


if __name__ == "__main__":
    main()
