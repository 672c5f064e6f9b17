# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What becomes of film grain, by a frame's place in its group: `python -m benchmarks.grain`.

A still gets new grain in each frame. Grain of the result is what differs from the result without grain; its deviation
is compared with that of the resampled source's grain. What a stage of the pipeline does to it is seen by leaving that
stage out.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

from ultraflash_diffusers import UltraFlashStreamingPipeline, default_checkpoint

LUMA = torch.tensor([0.2126, 0.7152, 0.0722]).view(3, 1, 1, 1)


def still(frames: int, height: int, width: int) -> torch.Tensor:
    """A soft ramp, `[3, frames, height, width]` in [0, 1]: everything in it is the grain's."""
    rows = torch.linspace(0.3, 0.7, height).view(1, 1, height, 1)
    return rows.expand(3, frames, height, width).contiguous()


def grain(frames: int, height: int, width: int, seed: int) -> torch.Tensor:
    """Monochrome grain of 5 levels, a little soft, other grain in each frame: `[1, frames, height, width]`."""
    noise = torch.randn(frames, 1, height, width, generator=torch.Generator().manual_seed(seed))
    soft = F.avg_pool2d(F.pad(noise, (0, 1, 0, 1), mode="circular"), 2, stride=1)
    return (5 / 255 * soft / soft.std()).transpose(0, 1)


def made(pipe: Any, source: torch.Tensor, **options: Any) -> torch.Tensor:
    """The result of a source `[3, frames, height, width]`, likewise, in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    video = pipe(source=source.transpose(0, 1), generator=generator, output_type="pt", **options).frames[0]
    return video.transpose(0, 1).float()


def split(video: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Deviations of luma and of what is coloured, a value for each frame."""
    luma = (LUMA * video).sum(0)
    return luma.std((1, 2)), (video - luma).std((0, 2, 3))


def by_place(values: torch.Tensor, places: int) -> Iterator[float]:
    """Means over all groups but the first one, which begins with the clip."""
    whole = values[1 : 1 + (len(values) - 1) // places * places].view(-1, places)[1:]
    yield from whole.mean(0).tolist()


def main() -> None:
    """Prints a table: rows are settings, columns places in a group."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default=str(default_checkpoint()))
    parser.add_argument("--frames", type=int, default=49)
    parser.add_argument("--height", type=int, default=96, help="of the source")
    parser.add_argument("--width", type=int, default=160, help="of the source")
    options = parser.parse_args()
    size = (options.frames, options.height, options.width)
    pipe = UltraFlashStreamingPipeline.from_pretrained(options.checkpoint)
    pipe.set_progress_bar_config(disable=True)
    memory = pipe.config.detail_memory
    places = pipe.autoencoder.temporal_compression_ratio * pipe.config.group_frames
    clean, noise = still(*size), grain(*size, seed=1)
    scale = pipe.latent_upsampler.config.scale
    resampled = F.interpolate((clean + noise).transpose(0, 1), scale_factor=scale, mode="bicubic").transpose(0, 1)
    smooth = F.interpolate(clean.transpose(0, 1), scale_factor=scale, mode="bicubic").transpose(0, 1)
    reference, _ = split(resampled - smooth)
    print(f"grain of the resampled source: {255 * reference.mean():.2f} levels; of the result, in shares of that")
    for name, changes, arguments in (
        ("as it is", {}, {}),
        ("detail_memory 0", {"detail_memory": 0.0}, {}),
        ("and no colour correction", {"detail_memory": 0.0}, {"color_correction": "none"}),
    ):
        pipe.register_to_config(**{"detail_memory": memory, **changes})
        luma, color = split(made(pipe, clean + noise, **arguments) - made(pipe, clean, **arguments))
        for kind, values in (("luma", luma), ("colour", color)):
            row = " ".join(f"{value:5.2f}" for value in by_place(values / reference.mean(), places))
            print(f"{name:30} {kind:7} {row}")


if __name__ == "__main__":
    main()
