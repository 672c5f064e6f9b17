# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Draws training clips by code: text that moves or rests, drawn films, the small world; or adds grain to clips.

    python training/draw_clips.py --output clips/drawn --count 200 --seed 1
    python training/draw_clips.py --output clips/grain --grain clips/films --seed 1

Files that are there already are kept, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from ultraflash_diffusers.training.data.drawn_clips import SCENES, draw_clips, grain_clips
from ultraflash_diffusers.training.data.sources import VIDEOS
from ultraflash_diffusers.training.loop.command_line import run_script


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for clips and their metadata.jsonl")
    parser.add_argument("--count", type=int, default=60, help="how many to draw")
    parser.add_argument("--seed", type=int, default=0, help="which ones")
    parser.add_argument("--kinds", nargs="+", choices=SCENES, default=list(SCENES), help="of them; all by default")
    parser.add_argument("--height", type=int, default=384, help="the smaller one of both also bounds clips with grain")
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--frames", type=int, help="of each clip; 17 of what is drawn, with --grain all by default")
    parser.add_argument("--grain", type=Path, help="instead, adds film grain to the videos of this folder")
    parsed = parser.parse_args(arguments)
    for name in ("height", "width"):
        if getattr(parsed, name) <= 0 or getattr(parsed, name) % 4:
            parser.error(f"--{name} must be a multiple of 4, got {getattr(parsed, name)}")
    for name in ("count", "frames"):
        if getattr(parsed, name) is not None and getattr(parsed, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(parsed, name)}")
    return parsed


def _videos(folder: Path) -> dict[str, Path]:
    """The videos in a folder and in those inside, each by a name of its own."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in VIDEOS)
    named: dict[str, Path] = {}
    for path in paths:
        name = "_".join(path.relative_to(folder).with_suffix("").parts)
        if name in named:
            raise ValueError(f"--grain {folder}: {named[name]} and {path} would get the same name")
        named[name] = path
    return named


def main(arguments: argparse.Namespace) -> None:
    made: Iterator[Path]
    if arguments.grain is None:
        size = (arguments.frames or 17, arguments.height, arguments.width)
        made = draw_clips(arguments.output, arguments.count, arguments.seed, *size, arguments.kinds)
        total = arguments.count
    else:
        clips, shorter = _videos(arguments.grain), min(arguments.height, arguments.width)
        if not clips:
            raise ValueError(f"--grain {arguments.grain} holds no video")
        made, total = grain_clips(arguments.output, clips, arguments.seed, shorter, arguments.frames), len(clips)
    for _ in tqdm(made, "Drawing", total, unit="clip"):
        pass


if __name__ == "__main__":
    run_script(main, parse_arguments)
