# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Folders of training clips that are made by code: text, drawn films, the small world; and clips with film grain.

The benchmark's drawn sets are other scenes, made with the same tools ([`Page`] and [`Cel`]), so they stay held out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np

from ..files import replace_text, written_whole
from . import world
from .drawing import area_resize, with_grain
from .drawn_films import drawn_film
from .drawn_pages import captioned, moving_text, still_text
from .preparation import fitted
from .sources import LOW_RESOLUTION

SCALE, RATE = 2, 24
# one of twenty after the other, so that any count has the shares: 7 of moving text, 3 still, 7 drawn, 3 of the world
ORDER = (
    *("text", "drawn", "still", "text", "drawn", "world", "text") * 2,
    *("drawn", "text", "still", "drawn", "world", "drawn"),
)
_CLEAN = 1 / 3  # of the clips that move have a low-resolution video without compression
_CAPTIONS = 0.25  # of moving text is laid over a drawn film


def text(frames: int, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Moving text: a page, or a caption over a drawn film; arguments and result are [`moving_text`]'s."""
    if rng.random() < _CAPTIONS:
        return captioned(drawn_film(frames, height, width, rng), rng)
    return moving_text(frames, height, width, rng)


def world_scene(frames: int, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A scene of the small world at any size; arguments and result are [`moving_text`]'s."""
    phases = rng.random() + np.arange(frames) / world.PERIOD
    return np.rint(255 * world.draw_scene(rng).render(phases, height, width)).astype(np.uint8)


SCENES: dict[str, Callable[[int, int, int, np.random.Generator], np.ndarray]] = {
    "text": text,
    "still": still_text,
    "drawn": drawn_film,
    "world": world_scene,
}


def draw_clips(
    folder: Path, count: int, seed: int, frames: int, height: int, width: int, kinds: Sequence[str] = tuple(SCENES)
) -> Iterator[Path]:
    """Draws clips into a folder and lists them in its `metadata.jsonl`; files that are there already are kept.

    All clips of still text and a third of the others have a low-resolution video too, without compression.

    Args:
        folder (`Path`): created if there is none.
        count, seed (`int`): how many, and which ones.
        frames, height, width (`int`): of each clip.
        kinds (`Sequence[str]`, *optional*): those of `SCENES` that are drawn, in their usual shares; all by default.

    Yields:
        `Path`: of each clip, once it is there.
    """
    entries, order = [], [kind for kind in ORDER if kind in kinds]
    for number in range(count):
        kind, rng = order[number % len(order)], np.random.default_rng((seed, number))
        clean = kind == "still" or rng.random() < _CLEAN
        name = f"{kind}_{seed}_{number:05d}.mkv"
        entries.append(_entry(name, clean))
        if not _is_there(folder, entries[-1]):
            _write(folder, entries[-1], SCENES[kind](frames, height, width, rng))
        yield folder / name
    _list(folder, entries)


def grain_clips(
    folder: Path, clips: Mapping[str, Path], seed: int, resolution: int, frames: int | None = None
) -> Iterator[Path]:
    """Writes copies of clips with film grain, random in strength and softness; otherwise like [`draw_clips`].

    All have a low-resolution video without compression, which keeps what is left of the grain.

    Args:
        folder (`Path`): created if there is none.
        clips (mapping of `str` to `Path`): video files, by the names that the copies get.
        seed (`int`): of the grain.
        resolution (`int`): the shorter side; larger clips are made smaller first, as grain would not outlive it.
        frames (`int`, *optional*): taken of each, from its start; all by default.
    """
    from ...video_io import VideoReader  # needs PyAV, without which scripts must start

    entries = []
    for number, (name, clip) in enumerate(clips.items()):
        rng = np.random.default_rng((seed, number))
        entries.append(_entry(f"{name}_grain.mkv", True))
        if not _is_there(folder, entries[-1]):
            pixels = np.stack([fitted(frame.pixels, resolution) for frame in islice(VideoReader(clip), frames)])
            pixels = pixels[:, : pixels.shape[1] // 4 * 4, : pixels.shape[2] // 4 * 4]
            levels, softness = rng.uniform(3, 12), rng.uniform(0.6, 1.2)
            _write(folder, entries[-1], with_grain(pixels, rng, levels, softness))
        yield folder / entries[-1]["file_name"]
    _list(folder, entries)


def save_lossless(path: Path, frames: np.ndarray) -> None:
    """Writes frames as they are: H.264 of RGB without loss."""
    import av  # without which scripts must start

    with written_whole(path) as temporary, av.open(str(temporary), "w", format="matroska") as container:
        options = {"qp": "0", "preset": "veryfast", "threads": "1"}
        stream = container.add_stream("libx264rgb", rate=Fraction(RATE), options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "rgb24"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def _entry(name: str, clean: bool) -> dict[str, str]:
    return {"file_name": name} | ({LOW_RESOLUTION: f"low/{name}"} if clean else {})


def _is_there(folder: Path, entry: dict[str, str]) -> bool:
    return all((folder / name).is_file() for name in entry.values())


def _write(folder: Path, entry: dict[str, str], frames: np.ndarray) -> None:
    if LOW_RESOLUTION in entry:
        height, width = frames.shape[1] // SCALE, frames.shape[2] // SCALE
        low = np.stack([area_resize(frame, height, width) for frame in frames])
        save_lossless(folder / entry[LOW_RESOLUTION], low)
    save_lossless(folder / entry["file_name"], frames)


def _list(folder: Path, entries: list[dict[str, str]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / "metadata.jsonl", "".join(json.dumps(entry) + "\n" for entry in entries))
