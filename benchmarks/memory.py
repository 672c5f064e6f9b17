# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Memory of a long stream: what the process takes after a few chunks and at the end.

    python benchmarks/memory.py                       # 10,000 frames through the packaged checkpoint, on the CPU
    python benchmarks/memory.py --checkpoint FOLDER --device cuda --height 480 --width 832

The source is an endless synthetic picture that pans; nothing but the stream itself keeps anything.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from ultraflash_diffusers import UltraFlashStreamingPipeline, default_checkpoint


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="a pipeline's folder; the packaged one by default")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--height", type=int, default=32, help="of the source")
    parser.add_argument("--width", type=int, default=48, help="of the source")
    parser.add_argument("--settled-after", type=int, default=20, help="chunks until memory should grow no more")
    parser.add_argument("--json", type=Path, help="also write the result there")
    return parser.parse_args(arguments)


def panning_frames(height: int, width: int) -> Iterator[torch.Tensor]:
    """Yields frames `[3, height, width]` in [0, 1] without end."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    frame = 0
    while True:
        waves = [torch.sin(0.3 * rows + 0.2 * columns + math.tau * (frame / 50 + shift / 3)) for shift in range(3)]
        yield torch.stack(waves) * 0.5 + 0.5
        frame += 1


def bytes_in_use(device: torch.device) -> dict[str, int]:
    """Resident memory of this process and, on a GPU, what its tensors take."""
    gc.collect()
    used = {"resident": psutil.Process().memory_info().rss}
    if device.type == "cuda":
        used["allocated on the GPU"] = torch.cuda.memory_allocated(device)
    return used


def measure(
    pipe: UltraFlashStreamingPipeline, frames: int, height: int, width: int, settled_after: int
) -> dict[str, dict[str, int]]:
    """Streams `frames` frames; returns the bytes in use after `settled_after` chunks and at the end."""
    usage = {}
    with pipe.stream(source=panning_frames(height, width), num_frames=frames, output_type="pt") as stream:
        for number, chunk in enumerate(stream, start=1):
            if number == settled_after or chunk.frame_range[1] == frames:
                usage["settled" if number == settled_after else "end"] = bytes_in_use(pipe.device)
    if len(usage) < 2:
        raise ValueError(f"`frames` {frames} end before chunk {settled_after}")
    return usage


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    pipe = UltraFlashStreamingPipeline.from_pretrained(options.checkpoint or default_checkpoint()).to(options.device)
    usage = measure(pipe, options.frames, options.height, options.width, options.settled_after)
    for kind, settled in usage["settled"].items():
        end = usage["end"][kind]
        print(
            f"{kind}: {settled / 2**20:.1f} MiB after chunk {options.settled_after}, {end / 2**20:.1f} MiB after "
            f"{options.frames} frames: {100 * (end / settled - 1):+.2f} %"
        )
    if options.json is not None:
        options.json.write_text(json.dumps(usage, indent=2))


if __name__ == "__main__":
    main()
