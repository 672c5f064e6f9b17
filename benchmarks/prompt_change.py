# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""From which frame on is a new prompt followed? With and without recomputing the generator's cache.

    python -m benchmarks.prompt_change --count 8 --json result.json --sheet sheet.png

Each stream begins with one scene's text and is asked for another one's, of another colour and another object, at a
frame in its middle. Colour and object are read off each frame, as `benchmarks.prompt_following` does.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from benchmarks.prompt_following import read_frames
from ultraflash_diffusers import UltraFlashStreamingPipeline, default_checkpoint
from ultraflash_diffusers.pipelines.sources.generator_schedule import GeneratorSchedule
from ultraflash_diffusers.training.data.scenes import Scene, all_scenes

READ = ("color", "object")
# of the frames from there on that show an object, so that one misread frame does not undo a whole second
LEAST_SHARE = 0.9


@dataclass(frozen=True)
class Change:
    """A scene, and the one that is asked for in its place."""

    before: Scene
    after: Scene


@dataclass(frozen=True)
class Following:
    """When the new prompt of a stream was followed.

    Args:
        color, object (`int`, *optional*): frames between the one that the change was asked for and the first of those
            that show the new scene's, to the end; `None` where they never do.
    """

    color: int | None
    object: int | None


def draw_changes(count: int, seed: int) -> list[Change]:
    """Draws pairs of resting scenes, of the training and the held-out split, that share neither colour nor object."""
    rng = np.random.default_rng(seed)
    scenes = [scene for split in (False, True) for scene in all_scenes(split) if scene.motion == "still"]
    changes: list[Change] = []
    while len(changes) < count:
        before, after = (scenes[index] for index in rng.choice(len(scenes), 2, replace=False))
        if all(getattr(before, name) != getattr(after, name) for name in READ):
            changes.append(Change(before, after))
    return changes


def changed_video(
    pipe: UltraFlashStreamingPipeline, change: Change, num_frames: int, at_frame: int, recompute: bool, seed: int
) -> np.ndarray:
    """The frames of a stream whose prompt changes, uint8 `[frames, height, width, 3]`."""
    stream = pipe.stream(
        change.before.prompts()[0],
        num_frames=num_frames,
        generator=torch.Generator().manual_seed(seed),
        source_kwargs={"recompute_on_prompt_change": recompute},
        output_type="uint8",
    )
    with stream:
        stream.set_prompt(change.after.prompts()[0], at_frame=at_frame)
        return np.concatenate([np.asarray(chunk.frames[0]) for chunk in stream])


def next_chunk(pipe: UltraFlashStreamingPipeline, at_frame: int) -> int:
    """The frame with which the generator's first chunk from `at_frame` on begins."""
    schedule, ratio = GeneratorSchedule.of(pipe.generator_transformer), pipe.autoencoder.temporal_compression_ratio
    latents = frame = 0
    while frame < at_frame:
        latents += schedule.frames_at(latents)
        frame = ratio * (latents - 1) + 1
    return frame


def following(frames: np.ndarray, change: Change, at_frame: int) -> Following:
    """Reads off the frames when the new scene's colour and object are there for good."""
    readings = [read_frames(frame[None]) for frame in frames[at_frame:]]
    delays = {}
    for name in READ:
        seen = [getattr(reading, name) for reading in readings]
        delays[name] = _settled([None if each is None else each == getattr(change.after, name) for each in seen])
    return Following(**delays)


def _settled(right: Sequence[bool | None]) -> int | None:
    """The first right frame from which `LEAST_SHARE` of those that can be read are right."""
    for index, here in enumerate(right):
        readable = [each for each in right[index:] if each is not None]
        if here and sum(readable) >= LEAST_SHARE * len(readable):
            return index
    return None


def print_table(found: dict[str, list[Following]]) -> None:
    print("| cache | videos | colour followed | after frames, median (most) | object followed | after frames |")
    print("|---|---:|---:|---:|---:|---:|")
    for mode, results in found.items():
        cells = []
        for name in READ:
            delays = [delay for each in results if (delay := getattr(each, name)) is not None]
            when = f"{np.median(delays):.0f} ({max(delays)})" if delays else "-"
            cells += [f"{len(delays)}", when]
        print(f"| {mode} | {len(results)} | {' | '.join(cells)} |")


def _strip(frames: np.ndarray, at_frame: int, pictures: int = 8) -> np.ndarray:
    """Frames from the last one of the old prompt to the end, side by side."""
    chosen = np.linspace(max(0, at_frame - 1), len(frames) - 1, pictures).round().astype(int)
    return np.concatenate([cv2.resize(frames[index], (160, 96), interpolation=cv2.INTER_AREA) for index in chosen], 1)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default=str(default_checkpoint()), help="pipeline (default: the packaged one)")
    parser.add_argument("--num_frames", type=int, help="of each video (default: the checkpoint's own)")
    parser.add_argument("--at_frame", type=int, help="where the change is asked for (default: a third of the video)")
    parser.add_argument("--count", type=int, default=8, help="changes (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of scenes and of the videos")
    parser.add_argument("--sheet", type=Path, help="PNG of the videos, from the last frame before the change on")
    parser.add_argument("--json", type=Path, help="also writes the results to this file")
    return parser.parse_args(arguments)


def main(arguments: argparse.Namespace) -> dict[str, list[Following]]:
    pipe = UltraFlashStreamingPipeline.from_pretrained(arguments.checkpoint)
    pipe.set_progress_bar_config(disable=True)
    num_frames = arguments.num_frames or pipe.config.default_num_frames
    at_frame = num_frames // 3 if arguments.at_frame is None else arguments.at_frame
    changes = draw_changes(arguments.count, arguments.seed)
    found: dict[str, list[Following]] = {}
    strips = []
    for mode, recompute in (("kept", False), ("recomputed", True)):
        found[mode] = []
        for number, change in enumerate(tqdm(changes, desc=mode, unit="video", disable=None)):
            frames = changed_video(pipe, change, num_frames, at_frame, recompute, arguments.seed + number)
            found[mode].append(following(frames, change, at_frame))
            strips.append(_strip(frames, at_frame))
    print(f"{num_frames} frames, the change asked for at frame {at_frame}")
    print(f"the generator's next chunk begins at frame {next_chunk(pipe, at_frame)}")
    print_table(found)
    if arguments.sheet is not None:
        cv2.imwrite(str(arguments.sheet), np.concatenate(strips)[..., ::-1])
    if arguments.json is not None:
        results = {mode: [asdict(each) for each in results] for mode, results in found.items()}
        pairs = [asdict(change) for change in changes]
        content = {"num_frames": num_frames, "at_frame": at_frame, "changes": pairs, "results": results}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")
    return found


if __name__ == "__main__":
    main(parse_arguments())
