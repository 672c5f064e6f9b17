# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Frames a second of the packaged cascade on a CPU, from text and from frames, of several checkpoints in turns.

    python -m benchmarks.frame_rate --rounds 3
    python -m benchmarks.frame_rate --checkpoint former --checkpoint outputs/pipeline

A figure is that of a whole call of `pipe.stream(..., output_type="uint8")`, from RGB in memory or a text to RGB in
memory, in a process that keeps the memory that it frees (`keep_freed_memory`), after one call that warms up.
"""

from __future__ import annotations

import argparse
import statistics
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.machine import machine_facts
from ultraflash_diffusers import UltraFlashStreamingPipeline, default_checkpoint
from ultraflash_diffusers.allocation import keep_freed_memory
from ultraflash_diffusers.tables import markdown_table
from ultraflash_diffusers.video_io import VideoReader

_FILE = Path(__file__).parents[1] / "examples" / "big_buck_bunny_192x336.mp4"
_PROMPT = "a red ball bounces and a blue cube glides to the right over sand at sunset"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", action="append", help="folder or Hub name; the packaged one by default")
    parser.add_argument(
        "--file", type=Path, default=_FILE, help="of which the middle is upscaled (default: %(default)s)"
    )
    parser.add_argument("--frames", type=int, default=48, help="of each video (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="(default: %(default)s)")
    return parser.parse_args(arguments)


def middle_frames(path: Path, count: int, height: int, width: int) -> np.ndarray:
    """The middle of a file's first frames, `[count, height, width, 3]`.

    Raises:
        ValueError: the file has fewer frames, or smaller ones.
    """
    frames = np.stack([frame.pixels for frame in islice(VideoReader(path), count)])
    if len(frames) < count or frames.shape[1] < height or frames.shape[2] < width:
        given = f"{len(frames)} frames of {frames.shape[2]}x{frames.shape[1]}"
        raise ValueError(f"`file` {str(path)!r} has {given}, {count} of {width}x{height} are needed")
    top, left = (frames.shape[1] - height) // 2, (frames.shape[2] - width) // 2
    return frames[:, top : top + height, left : left + width]


def frame_rate(pipe: UltraFlashStreamingPipeline, **source: Any) -> float:
    """Frames a second of one stream, whose arguments these are."""
    generator, made, begin = torch.Generator().manual_seed(0), 0, time.perf_counter()
    with pipe.stream(generator=generator, output_type="uint8", **source) as stream:
        for chunk in stream:
            made += chunk.num_frames
    return made / (time.perf_counter() - begin)


def load(name: str) -> UltraFlashStreamingPipeline:
    pipe = UltraFlashStreamingPipeline.from_pretrained(name, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    facts = machine_facts("benchmarks.frame_rate", options.threads)
    torch.set_num_threads(options.threads)
    names = options.checkpoint or [str(default_checkpoint())]
    pipes = {name: load(name) for name in names}
    rates: dict[tuple[str, str], list[float]] = {}
    for number in tqdm(range(options.rounds + 1), desc="Rounds, the first of which warms up", disable=None):
        for name, pipe in pipes.items():
            scale, config = pipe.latent_upsampler.config.scale, pipe.config
            height, width = config.default_height // scale, config.default_width // scale
            sources: dict[str, dict[str, Any]] = {
                "from text": {"prompt": _PROMPT, "num_frames": options.frames},
                "from frames": {"source": middle_frames(options.file, options.frames, height, width)},
            }
            for kind, source in sources.items():
                rate = frame_rate(pipe, **source)
                if number > 0:
                    rates.setdefault((name, kind), []).append(rate)
    print("\n".join(f"- {name}: {value}" for name, value in facts.items()) + "\n")
    header = ["checkpoint", "", "FPS, median", "lowest", "highest"]
    rows = [
        [Path(name).name, kind, *(f"{value:.2f}" for value in (statistics.median(all_of), min(all_of), max(all_of)))]
        for (name, kind), all_of in rates.items()
    ]
    print(markdown_table(header, rows, text_columns=2))


if __name__ == "__main__":
    keep_freed_memory()
    main()
