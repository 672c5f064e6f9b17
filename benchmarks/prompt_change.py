# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""From which frame on is a new prompt followed? With and without recomputing the generator's cache.

    python -m benchmarks.prompt_change --count 8 --json result.json --sheet sheet.png

Each stream begins with one scene's text and is asked for another one's, with a thing of another colour and another
kind, at a frame in its middle. What each frame shows is read off by comparison with the scenes of all colours and
kinds, as `benchmarks.text_to_video` does: so the generator must have a seed code.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from benchmarks.text_to_video import Request, SeedCodes, read_thing
from ultraflash_diffusers import UltraFlashStreamingPipeline, default_checkpoint
from ultraflash_diffusers.pipelines.sources.generator_schedule import GeneratorSchedule
from ultraflash_diffusers.tables import markdown_table
from ultraflash_diffusers.training.data.world import CODE_SIZE, WorldScene, WorldThing
from ultraflash_diffusers.training.data.world_picture import GROUNDS, SKIES
from ultraflash_diffusers.training.data.world_things import COLORS, KINDS

READ = ("color", "kind")
# of the frames from there on, so that one misread frame does not undo a whole second
LEAST_SHARE = 0.9


@dataclass(frozen=True)
class Change:
    """A scene, and the one that is asked for in its place; both of one resting thing, and with all that they say."""

    before: WorldScene
    after: WorldScene

    @property
    def texts(self) -> tuple[str, str]:
        """Their texts."""
        before, after = (scene.text(np.random.default_rng(0)) for scene in (self.before, self.after))
        return before, after


@dataclass(frozen=True)
class Following:
    """When the new prompt of a stream was followed.

    Args:
        color, kind (`int`, *optional*): frames between the one that the change was asked for and the first of those
            that show the new scene's, to the end; `None` where they never do.
    """

    color: int | None
    kind: int | None


def draw_changes(count: int, seed: int) -> list[Change]:
    """Draws pairs of scenes whose things share neither colour nor kind."""
    rng = np.random.default_rng(seed)

    def pair(options: Iterable[str]) -> list[str]:
        return [str(name) for name in rng.choice(list(options), 2, replace=False)]

    def draw() -> Change:
        kinds, colors, grounds, skies = (pair(options) for options in (KINDS, COLORS, GROUNDS, SKIES))
        before, after = (
            WorldScene(np.zeros(CODE_SIZE), (WorldThing(kind, color, "still"),), ground, sky)
            for kind, color, ground, sky in zip(kinds, colors, grounds, skies, strict=True)
        )
        return Change(before, after)

    return [draw() for _ in range(count)]


def changed_video(
    pipe: UltraFlashStreamingPipeline, change: Change, num_frames: int, at_frame: int, recompute: bool, seed: int
) -> np.ndarray:
    """The frames of a stream whose prompt changes, uint8 `[frames, height, width, 3]`."""
    stream = pipe.stream(
        change.texts[0],
        num_frames=num_frames,
        generator=torch.Generator().manual_seed(seed),
        source_kwargs={"recompute_on_prompt_change": recompute},
        output_type="uint8",
    )
    with stream:
        stream.set_prompt(change.texts[1], at_frame=at_frame)
        return np.concatenate([np.asarray(chunk.frames[0]) for chunk in stream])


def next_chunk(pipe: UltraFlashStreamingPipeline, at_frame: int) -> int:
    """The frame with which the generator's first chunk from `at_frame` on begins."""
    schedule, ratio = GeneratorSchedule.of(pipe.generator_transformer), pipe.autoencoder.temporal_compression_ratio
    latents = frame = 0
    while frame < at_frame:
        latents += schedule.frames_at(latents)
        frame = ratio * (latents - 1) + 1
    return frame


def following(frames: np.ndarray, request: Request, at_frame: int) -> Following:
    """Reads off the frames when the new scene's colour and kind are there for good.

    Args:
        frames (`np.ndarray`): uint8 `[frames, height, width, 3]`, of the whole stream.
        request (`Request`): what the new text asks for, at the moments of all frames.
        at_frame (`int`): where it was asked for.
    """
    moments = [dataclasses.replace(request, moments=request.moments[n : n + 1]) for n in range(len(frames))]
    delays = {}
    for name in READ:
        wanted = getattr(request.scene.things[0], name)
        shown = [read_thing(frames[n : n + 1], moments[n], 0, name) for n in range(at_frame, len(frames))]
        delays[name] = _settled([value == wanted for value in shown])
    return Following(**delays)


def _settled(right: Sequence[bool]) -> int | None:
    """The first right frame from which `LEAST_SHARE` of all are right."""
    for index, here in enumerate(right):
        if here and sum(right[index:]) >= LEAST_SHARE * len(right[index:]):
            return index
    return None


def table(found: dict[str, list[Following]]) -> str:
    """A row for each way with the cache."""
    rows = []
    for mode, results in found.items():
        cells: list[object] = [mode, len(results)]
        for name in READ:
            delays = [delay for each in results if (delay := getattr(each, name)) is not None]
            cells += [len(delays), f"{np.median(delays):.0f} ({max(delays)})" if delays else "-"]
        rows.append(cells)
    titles = ("cache", "videos", "colour followed", "after frames, median (most)", "kind followed", "after frames")
    return markdown_table(titles, rows)


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
    changes, codes = draw_changes(arguments.count, arguments.seed), SeedCodes.of(pipe)
    found: dict[str, list[Following]] = {}
    strips = []
    for mode, recompute in (("kept", False), ("recomputed", True)):
        found[mode] = []
        for number, change in enumerate(tqdm(changes, desc=mode, unit="video", disable=None)):
            seed = arguments.seed + number
            frames = changed_video(pipe, change, num_frames, at_frame, recompute, seed)
            request = codes.request(change.after, change.texts[1], seed, num_frames)
            found[mode].append(following(frames, request, at_frame))
            strips.append(_strip(frames, at_frame))
    print(f"{num_frames} frames, the change asked for at frame {at_frame}")
    print(f"the generator's next chunk begins at frame {next_chunk(pipe, at_frame)}")
    print(table(found))
    if arguments.sheet is not None:
        cv2.imwrite(str(arguments.sheet), np.concatenate(strips)[..., ::-1])
    if arguments.json is not None:
        results = {mode: [asdict(each) for each in results] for mode, results in found.items()}
        pairs = [change.texts for change in changes]
        content = {"num_frames": num_frames, "at_frame": at_frame, "changes": pairs, "results": results}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")
    return found


if __name__ == "__main__":
    main(parse_arguments())
