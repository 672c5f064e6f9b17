# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Shows that time a frame grows with its pixels and not with the length of the stream.

    python -m benchmarks.linearity --json linearity.json --plot linearity       # the packaged checkpoint, on the CPU
    python -m benchmarks.linearity --device cuda --preset 1k --plot linearity   # full size, random weights

`--plot NAME` writes `NAME_pixels.svg` and `NAME_length.svg`. What is timed is a cycle: the chunks until a generator's
chunks and the SR transformer's groups of frames end together (one chunk without a generator), since some chunks
between need nothing new of the generator. For each size the fastest of a few cycles counts: other work on a machine
can only slow one down.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.memory import panning_frames
from ultraflash_diffusers import UltraFlashStreamingPipeline, default_checkpoint
from ultraflash_diffusers.profiling import plot
from ultraflash_diffusers.profiling.presets import PRESETS, build_pipeline
from ultraflash_diffusers.profiling.stages import synchronize


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="a pipeline's folder; the packaged one by default")
    parser.add_argument("--preset", choices=PRESETS, help="full-size networks, text to frames, instead")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.25, 0.5, 0.75, 1.0], help="of height and width")
    parser.add_argument("--height", type=int, help="of the largest frames; the model's own by default")
    parser.add_argument("--width", type=int, help="likewise")
    parser.add_argument("--cycles", type=int, default=4, help="cycles of each size after the warm-up")
    parser.add_argument("--warmup", type=int, default=2, help="cycles before them")
    parser.add_argument("--stream-cycles", type=int, default=40, help="of the long stream, of the smallest size")
    parser.add_argument("--json", type=Path, help="also write the result there")
    parser.add_argument("--plot", metavar="NAME", help="also draw it")
    return parser.parse_args(arguments)


def make_pipeline(options: argparse.Namespace) -> UltraFlashStreamingPipeline:
    if options.preset:
        dtype = torch.float32 if options.device == "cpu" else torch.bfloat16
        return build_pipeline(PRESETS[options.preset], options.device, dtype)
    pipe = UltraFlashStreamingPipeline.from_pretrained(options.checkpoint or default_checkpoint()).to(options.device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def chunks_per_cycle(pipe: UltraFlashStreamingPipeline) -> int:
    """After how many groups of frames the generator has made as many latents as the groups took."""
    if pipe.generator_transformer is None:
        return 1
    group = pipe.config.group_frames
    return math.lcm(pipe.generator_transformer.chunk_frames, group) // group


def times(pipe: UltraFlashStreamingPipeline, height: int, width: int, cycles: int) -> list[float]:
    """Seconds a frame of each cycle of a stream."""
    scale, seconds, cycle = pipe.latent_upsampler.config.scale, [], chunks_per_cycle(pipe)
    if pipe.generator_transformer is None:
        arguments: dict[str, Any] = {"source": panning_frames(height // scale, width // scale)}
    else:
        config = pipe.transformer.config
        prompt = torch.zeros(1, config.text_length, config.text_dim, device=pipe.device, dtype=pipe.transformer.dtype)
        arguments = {"prompt_embeds": prompt, "height": height, "width": width}
    with pipe.stream(**arguments, output_type="uint8") as stream:
        for _ in range(cycles):
            start = time.perf_counter()
            frames = sum(next(stream).num_frames for _ in range(cycle))
            synchronize(pipe.device)
            seconds.append((time.perf_counter() - start) / frames)
    return seconds


def sizes(options: argparse.Namespace, pipe: UltraFlashStreamingPipeline) -> list[tuple[int, int]]:
    """The sizes to measure, each a multiple of a block of the SR transformer, so that none pays for padding."""
    height, width = options.height or pipe.config.default_height, options.width or pipe.config.default_width
    config, ratio = pipe.transformer.config, pipe.autoencoder.spatial_compression_ratio
    rows, columns = (ratio * config.patch_size[axis] * config.block_size[axis] for axis in (1, 2))
    scale = pipe.latent_upsampler.config.scale
    units = math.lcm(rows, scale), math.lcm(columns, scale)
    return [
        (max(1, round(height * share / units[0])) * units[0], max(1, round(width * share / units[1])) * units[1])
        for share in sorted(options.shares)
    ]


def run(options: argparse.Namespace) -> dict[str, Any]:
    pipe = make_pipeline(options)
    by_pixels: list[dict[str, Any]] = []
    for height, width in sizes(options, pipe):
        fastest = min(times(pipe, height, width, options.warmup + options.cycles)[options.warmup :])
        by_pixels.append({"height": height, "width": width, "seconds": fastest})
    height, width = by_pixels[0]["height"], by_pixels[0]["width"]
    by_length = times(pipe, height, width, options.stream_cycles)[options.warmup :]
    quarter = max(1, len(by_length) // 4)
    return {
        "torch": torch.__version__,
        "device": options.device,
        "threads": torch.get_num_threads(),
        "by_pixels": by_pixels,
        "by_length_seconds": by_length,
        "last_quarter_of_first": min(by_length[-quarter:]) / min(by_length[:quarter]),
    }


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    report = run(options)
    for row in report["by_pixels"]:
        megapixels = row["height"] * row["width"] / 1e6
        print(
            f"{row['height']}x{row['width']}: {1000 * row['seconds']:.1f} ms a frame, "
            f"{1000 * row['seconds'] / megapixels:.1f} ms a megapixel"
        )
    print(f"fastest cycle of the stream's last quarter: {report['last_quarter_of_first']:.3f} of the first quarter's")
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    if options.plot:
        pixels = [(row["height"] * row["width"] / 1e6, 1000 * row["seconds"]) for row in report["by_pixels"]]
        length = list(enumerate((1000 * seconds for seconds in report["by_length_seconds"]), start=options.warmup))
        drawings = {
            "pixels": plot.line_chart("Time a frame by its size", {"measured": pixels}, "megapixels", "ms"),
            "length": plot.line_chart("Time a frame along a stream", {"measured": length}, "cycle", "ms"),
        }
        for name, drawing in drawings.items():
            Path(f"{options.plot}_{name}.svg").write_text(drawing)


if __name__ == "__main__":
    main()
