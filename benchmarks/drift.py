# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Drift over a long stream: how quality, sharpness and colour of its last second differ from those of its first.

    python -m benchmarks.drift --clips FOLDER --tuned dpo=outputs/dpo --json drift.json
    python -m benchmarks.drift --prompts prompts.txt --tuned dpo=outputs/dpo

Clips that are shorter than the stream are played forwards and backwards, without a cut, until the last second shows
the same frames as the first: what differs is drift. Longer clips, and video from text, change by themselves as well;
for clips, the row of the source says by how much.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from tqdm import tqdm

from benchmarks import metrics, tables
from benchmarks.clips import CRF, SCALE, prepare_clip
from ultraflash_diffusers import UltraFlashSRTransformer, UltraFlashStreamingPipeline, default_checkpoint
from ultraflash_diffusers.pipelines.color_correction import COLOR_CORRECTIONS
from ultraflash_diffusers.rewards import Reward, load_reward
from ultraflash_diffusers.training.starting_points.networks import load_network

LORA_FILE = "pytorch_lora_weights.safetensors"
VIDEOS = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v"}


def back_and_forth(frames: np.ndarray, count: int) -> Iterator[np.ndarray]:
    """Plays a clip forwards, backwards and so on, its ends once each time, until there are `count` frames.

    Args:
        frames (`np.ndarray`): [F, H, W, 3].
        count (`int`): how many frames to play; a clip that is as long is only played forwards.
    """
    period = max(1, 2 * (len(frames) - 1))
    for index in range(count):
        phase = index % period
        yield frames[min(phase, period - phase) if period > 1 else 0]


def stream_length(count: int, length: int, clip_frames: int) -> int:
    """How many frames to play, at least `count`, for the last `length` to show what the first ones show.

    Args:
        count (`int`): frames of a stream of the length that was asked for.
        length (`int`): frames that are compared.
        clip_frames (`int`): of the clip that is played back and forth; one that fills the stream is not repeated.
    """
    if clip_frames >= count:
        return count
    period = max(1, 2 * (clip_frames - 1))
    return -(-(count - length) // period) * period + length


@torch.inference_mode()
def describe(frames: np.ndarray, reward: Reward, device: str = "cpu", batch: int = 4) -> dict[str, float]:
    """What is looked at in one part of a stream, means over its frames.

    Args:
        frames (`np.ndarray`): uint8 RGB [F, H, W, 3].
        reward (`Reward`): gives `quality`.
        device (`str`, *optional*, defaults to `"cpu"`): where the reward is.
        batch (`int`, *optional*, defaults to 4): frames that the reward sees at a time.

    Returns:
        `dict[str, float]`: `quality`; `sharpness`, the variance of the luma's Laplacian; `saturation` in [0, 1]; and
        `red`, `green` and `blue` in [0, 255].
    """
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)
    scores = torch.cat([reward(part.to(device).float() / 255) for part in pixels.split(batch)])
    saturation = np.mean([cv2.cvtColor(frame, cv2.COLOR_RGB2HSV)[..., 1].mean() / 255 for frame in frames])
    colours = dict(zip(("red", "green", "blue"), frames.mean((0, 1, 2)).tolist(), strict=True))
    return {
        "quality": scores.mean().item(),
        "sharpness": metrics.laplacian_variance(frames),
        "saturation": float(saturation),
        **colours,
    }


def drift(stream: Iterable[np.ndarray], length: int, reward: Reward, device: str = "cpu") -> dict[str, float]:
    """Compares the last frames of a stream with its first.

    Args:
        stream (iterable of `np.ndarray`): its frames, uint8 RGB [H, W, 3].
        length (`int`): how many are compared.
        reward (`Reward`): of the quality.
        device (`str`, *optional*, defaults to `"cpu"`): where the reward is.

    Returns:
        `dict[str, float]`: `first_quality`, `last_quality`, `quality_change`, `sharpness_ratio` (last over first),
        `saturation_change`, and `colour_shift`, the distance of the mean colours (8-bit units).

    Raises:
        ValueError: a stream that is too short.
    """
    frames = iter(stream)
    first, last = list(islice(frames, length)), list(deque(frames, maxlen=length))
    if len(last) < length:
        raise ValueError(f"the stream ended after {len(first) + len(last)} frames, {2 * length} are compared")
    before, after = (describe(np.stack(part), reward, device) for part in (first, last))
    shift = [after[colour] - before[colour] for colour in ("red", "green", "blue")]
    return {
        "first_quality": before["quality"],
        "last_quality": after["quality"],
        "quality_change": after["quality"] - before["quality"],
        # a plain picture has none, and keeps it
        "sharpness_ratio": (after["sharpness"] + 1e-6) / (before["sharpness"] + 1e-6),
        "saturation_change": after["saturation"] - before["saturation"],
        "colour_shift": float(np.linalg.norm(shift)),
    }


# Title: what it means, how a row shows it.
COLUMNS = {
    "first second": ("quality of the first second, by the reward; higher is better", "{first_quality:.4f}"),
    "last second": ("quality of the last one", "{last_quality:.4f}"),
    "change": ("of the quality: the drift, negative where it gets worse", "{quality_change:+.4f}"),
    "sharpness ratio": ("variance of the luma's Laplacian, last second over first", "{sharpness_ratio:.3f}"),
    "saturation": ("its change, of a range of 1", "{saturation_change:+.4f}"),
    "colour shift": ("distance of the mean colours, 8-bit units", "{colour_shift:.2f}"),
}


def summarise(results: dict[str, dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Means over the clips or prompts of `[method][clip][measure]`."""
    return {
        name: {key: float(np.mean([clip[key] for clip in clips.values()])) for key in next(iter(clips.values()))}
        for name, clips in results.items()
    }


def load_pipeline(checkpoint: str, tuned: Path | None = None) -> UltraFlashStreamingPipeline:
    """Loads the cascade, with the transformer or the LoRA layers that a training script wrote to `tuned`."""
    pipe = UltraFlashStreamingPipeline.from_pretrained(checkpoint, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    if tuned is not None and (tuned / LORA_FILE).is_file():
        pipe.load_lora_weights(tuned)
    elif tuned is not None:
        pipe.register_modules(transformer=load_network(UltraFlashSRTransformer, str(tuned), "transformer").float())
    return pipe


def stream_frames(pipe: UltraFlashStreamingPipeline, **arguments: Any) -> Iterator[np.ndarray]:
    """A stream's frames, uint8 RGB."""
    generator = torch.Generator().manual_seed(0)
    with pipe.stream(generator=generator, output_type="np", **arguments) as stream:
        for chunk in stream:
            yield from np.rint(np.asarray(chunk.frames[0]) * 255).astype(np.uint8)


def enlarged(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The source itself, bicubically enlarged, so that its own change can be told from the cascade's."""
    for frame in frames:
        yield cv2.resize(frame, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_CUBIC)


def streams(
    pipes: dict[str, UltraFlashStreamingPipeline], options: argparse.Namespace
) -> Iterator[tuple[str, str, Iterator[np.ndarray], int]]:
    """Everything that is to be measured: names of method and clip, the stream, and how many frames it has."""
    count = round(options.seconds * options.rate)
    if options.prompts is not None:
        settings = {"num_frames": count, "height": options.height, "width": options.width}
        for prompt in options.prompts:
            for name, pipe in pipes.items():
                yield name, prompt, stream_frames(pipe, prompt=prompt, **settings), count
        return
    for path in options.files:
        clip = prepare_clip(path, options.height, options.width, options.cache)
        length = stream_length(count, options.rate, len(clip.low))
        yield "source", clip.name, enlarged(back_and_forth(clip.low, length)), length
        for name, pipe in pipes.items():
            source = back_and_forth(clip.low, length)
            frames = stream_frames(pipe, source=source, color_correction=options.color_correction)
            yield name, clip.name, frames, length


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--clips", type=Path, help="folder with videos")
    source.add_argument("--prompts", type=Path, help="text file, one prompt a line, for the checkpoint's generator")
    parser.add_argument("--names", nargs="+", help="clips to use, without their endings (default: all of the folder)")
    parser.add_argument("--checkpoint", default=str(default_checkpoint()), help="folder or repository (default: ours)")
    parser.add_argument(
        "--tuned",
        nargs="+",
        default=[],
        metavar="NAME=FOLDER",
        help="transformers or LoRA layers, as training wrote them, to compare the checkpoint's own with",
    )
    parser.add_argument("--seconds", type=float, default=20, help="least length of streams (default: %(default)s)")
    parser.add_argument("--rate", type=int, default=24, help="frames a second (default: %(default)s)")
    parser.add_argument("--height", type=int, default=384, help="of the frames (default: %(default)s)")
    parser.add_argument("--width", type=int, default=640, help="of the frames (default: %(default)s)")
    parser.add_argument("--reward", nargs="+", default=["packaged"], help="gives the quality (default: %(default)s)")
    parser.add_argument("--color_correction", choices=COLOR_CORRECTIONS, default="wavelet", help="of clips")
    parser.add_argument("--device", default="cpu", help="where networks run (default: %(default)s)")
    parser.add_argument("--cache", type=Path, help="folder for prepared clips (default: prepare them anew)")
    parser.add_argument("--json", type=Path, help="write all figures, clip by clip, to this file")
    options = parser.parse_args(arguments)
    _check(parser, options)
    return options


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuses what cannot be, and finds the files."""
    if options.rate < 1 or options.seconds < 2:
        parser.error("--seconds must be 2 or more and --rate 1 or more: a first second is compared with a last one")
    for pair in options.tuned:
        name, _, folder = pair.partition("=")
        if not name or not folder or not Path(folder).is_dir():
            parser.error(f"--tuned {pair}: must be NAME=FOLDER, and the folder must be there")
    if options.json is not None and not options.json.parent.is_dir():
        parser.error(f"cannot write {options.json}: no folder {options.json.parent}")
    if options.prompts is not None:
        if not options.prompts.is_file():
            parser.error(f"--prompts {options.prompts}: no such file")
        options.prompts = [line.strip() for line in options.prompts.read_text().splitlines() if line.strip()]
        return
    files = {path.stem: path for path in sorted(options.clips.glob("*")) if path.suffix.lower() in VIDEOS}
    missing = [name for name in options.names or [] if name not in files]
    if missing or not files:
        parser.error(f"--clips {options.clips}: no {', '.join(missing) or 'videos'} there")
    options.files = [files[name] for name in options.names or files]


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    options = parse(arguments)
    reward = load_reward(options.reward)
    if isinstance(reward, torch.nn.Module):
        reward.to(options.device)
    pipes = {"checkpoint": load_pipeline(options.checkpoint).to(options.device)}
    for pair in options.tuned:
        name, _, folder = pair.partition("=")
        pipes[name] = load_pipeline(options.checkpoint, Path(folder)).to(options.device)
    results: dict[str, dict[str, dict[str, float]]] = {}
    lengths = set()
    for name, clip, stream, length in streams(pipes, options):
        bar = tqdm(stream, desc=f"{clip}, {name}", total=length, disable=None)
        results.setdefault(name, {})[clip] = drift(bar, options.rate, reward, options.device)
        lengths.add(length)
    given = sys.argv[1:] if arguments is None else arguments
    facts: dict[str, object] = {
        "command": "python -m benchmarks.drift " + shlex.join(given),
        "streams": f"{len(next(iter(results.values())))}, frames {sorted(lengths)}, {options.rate} a second",
        "quality": " + ".join(options.reward),
    }
    if options.prompts is None:
        size = f"{options.height // SCALE}x{options.width // SCALE}"
        facts["input"] = f"{size}, H.264 at CRF {CRF}, to {options.height}x{options.width}"
    summary = summarise(results)
    print(tables.markdown("stream", summary, COLUMNS, (), facts))
    if options.json is not None:
        options.json.write_text(json.dumps({"facts": facts, "summary": summary, "clips": results}, indent=2) + "\n")
    return summary


if __name__ == "__main__":
    main()
