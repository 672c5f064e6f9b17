# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What people bring to an upscaler, as named sets of clips, `KINDS`: each gives the truth and the input, half as wide.

Sets of text and of drawn frames are made by code alone (`training/data/drawing.py` names the fonts and their
licences). The others are made of clips that the caller has: those that the results pages speak of are gallery outputs
of the Ultra Flash project (Apache-2.0 repository, site CC BY-SA 4.0).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import drawn_cels, drawn_text
from benchmarks.clips import CRF, SCALE, ClipPair, centre_crop, compress, frame_size, prepare_clip, read_clip, shrunk
from ultraflash_diffusers.training.data.drawing import with_grain

HEAVY_CRF = 38
DRAWN_FRAMES, RATE = 33, 24  # of what is made here; the first unless the material says how many
DARK_STOPS = 3
GRAIN_LEVELS, GRAIN_SIGMA = 8.0, 1.0  # at the truth's size; half as strong and finer at the input's
HD_LINES, HD_FRAMES = 720, 5


@dataclass(frozen=True)
class Sample(ClipPair):
    """A clip of a kind.

    Args:
        still (`bool`): whether nothing moves in the truth.
        clean (`np.ndarray`, *optional*): the input without its grain.
    """

    still: bool = False
    clean: np.ndarray | None = None


@dataclass(frozen=True)
class Material:
    """What sets are made of.

    Args:
        clips (`tuple` of `Path`): video files.
        height, width (`int`): of the truth, multiples of 4.
        frames (`int`, *optional*): of each clip; `None`: all of a file's, and `DRAWN_FRAMES` of what is drawn.
        seed (`int`, *optional*, defaults to 0): of words, drawings and grain.
        cache (`Path`, *optional*): folder for prepared clips.
    """

    clips: tuple[Path, ...]
    height: int
    width: int
    frames: int | None = None
    seed: int = 0
    cache: Path | None = None

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width

    def drawn_frames(self) -> int:
        return self.frames or DRAWN_FRAMES

    def rng(self, *numbers: int) -> np.random.Generator:
        """A generator of its own for each combination of numbers."""
        return np.random.default_rng((self.seed, *numbers))

    def pairs(self) -> Iterator[ClipPair]:
        """The files, cut to the frames that are asked for.

        Raises:
            ValueError: one has fewer.
        """
        for path in self.clips:
            pair = prepare_clip(path, *self.size, self.cache)
            if self.frames is not None and self.frames > len(pair.truth):
                raise ValueError(f"`frames` is {self.frames}, but {path} has only {len(pair.truth)}")
            yield ClipPair(pair.name, pair.truth[: self.frames], pair.low[: self.frames])


@dataclass(frozen=True)
class Kind:
    """A named set.

    Args:
        about (`str`): what it is, for the notes under a table.
        make (`Callable`): gives its clips.
        needs_clips (`bool`): whether it is made of video files.
    """

    about: str
    make: Callable[[Material], Iterator[Sample]]
    needs_clips: bool = True


def through_codec(name: str, truth: np.ndarray, crf: int = CRF) -> Sample:
    """The input as videos come: halved by area, and through H.264."""
    return Sample(name, truth, compress(shrunk(truth), RATE, crf))


def natural(material: Material) -> Iterator[Sample]:
    for pair in material.pairs():
        yield Sample(pair.name, pair.truth, pair.low)


def hd(material: Material) -> Iterator[Sample]:
    """The first file that has twice the lines of 720p; none, if no file has."""
    for path in material.clips:
        rows, columns = frame_size(path)
        if rows >= SCALE * HD_LINES:
            width = min(columns, SCALE * HD_LINES * 16 // 9) // 8 * 8
            frames = min(material.drawn_frames(), HD_FRAMES)
            truth, rate = read_clip(path, SCALE * HD_LINES, width, frames)
            yield Sample(path.stem, truth, compress(shrunk(truth), rate))
            return


def text_still(material: Material) -> Iterator[Sample]:
    """Uncompressed, as screens are."""
    for number, draw in enumerate((drawn_text.slide, drawn_text.listing)):
        page = draw(*material.size, material.rng(1, number))
        yield _still(draw.__name__, page, material.drawn_frames())


def text_moving(material: Material) -> Iterator[Sample]:
    for number, draw in enumerate((drawn_text.credits, drawn_text.ticker, drawn_text.street_map)):
        yield through_codec(draw.__name__, draw(material.drawn_frames(), *material.size, material.rng(2, number)))


def anime(material: Material) -> Iterator[Sample]:
    for scene in drawn_cels.SCENES:
        truth = drawn_cels.animate(scene, material.drawn_frames(), *material.size, material.seed + 3)
        yield through_codec(scene, truth)


def dark(material: Material) -> Iterator[Sample]:
    light = (np.arange(256) / 255) ** 2.2 / 2**DARK_STOPS
    table = np.rint(255 * light ** (1 / 2.2)).astype(np.uint8)
    for pair in material.pairs():
        yield through_codec(pair.name, table[pair.truth])


def grain(material: Material) -> Iterator[Sample]:
    """Uncompressed: H.264 at any usual rate takes most grain away."""
    for number, pair in enumerate(material.pairs()):
        truth = with_grain(pair.truth, material.rng(3, number), GRAIN_LEVELS, GRAIN_SIGMA)
        yield Sample(pair.name, truth, shrunk(truth), clean=shrunk(pair.truth))


def still(material: Material) -> Iterator[Sample]:
    for name, picture in _middle_frames(material):
        yield _still(name, picture, material.drawn_frames())


def still_compressed(material: Material) -> Iterator[Sample]:
    for name, picture in _middle_frames(material):
        held = _held(picture, material.drawn_frames())
        yield Sample(name, held, through_codec(name, held).low, still=True)


def sharp(material: Material) -> Iterator[Sample]:
    """Both sizes by Lanczos from the largest that there is, which keeps all that their pixels can show."""
    for path in material.clips:
        rows, columns = frame_size(path)
        picture, _ = read_clip(path, rows, columns, 1)
        crop = Image.fromarray(centre_crop(picture[0], material.height / material.width))
        truth, low = (
            np.asarray(crop.resize((material.width // part, material.height // part), Image.Resampling.LANCZOS))
            for part in (1, SCALE)
        )
        frames = material.drawn_frames()
        yield Sample(path.stem, _held(truth, frames), _held(low, frames), still=True)


def heavy(material: Material) -> Iterator[Sample]:
    for pair in material.pairs():
        yield through_codec(pair.name, pair.truth, HEAVY_CRF)


def _still(name: str, picture: np.ndarray, frames: int) -> Sample:
    low = shrunk(picture[None])[0]
    return Sample(name, _held(picture, frames), _held(low, frames), still=True)


def _held(picture: np.ndarray, frames: int) -> np.ndarray:
    return np.repeat(picture[None], frames, axis=0)


def _middle_frames(material: Material) -> Iterator[tuple[str, np.ndarray]]:
    for pair in material.pairs():
        yield pair.name, pair.truth[len(pair.truth) // 2]


KINDS = {
    "natural": Kind(f"the clips themselves, H.264 at CRF {CRF}", natural),
    "anime": Kind(f"three drawn scenes, flat colours with dark outlines, CRF {CRF}", anime, False),
    "text_moving": Kind(f"credits that roll, tickers, a turning map, CRF {CRF}", text_moving, False),
    "text_still": Kind("a slide and a program's listing, uncompressed", text_still, False),
    "dark": Kind(f"the clips {DARK_STOPS} stops darker, CRF {CRF}", dark),
    "grain": Kind(f"the clips with film grain of at most {GRAIN_LEVELS:.0f} levels, uncompressed", grain),
    "still": Kind("one picture of each clip, held, uncompressed", still),
    "still_compressed": Kind(f"the same at CRF {CRF}", still_compressed),
    "sharp": Kind("one picture of each clip, held, both sizes by Lanczos, uncompressed", sharp),
    "heavy": Kind(f"the clips at CRF {HEAVY_CRF}", heavy),
    "720p": Kind(
        f"the first clip with {SCALE * HD_LINES} lines from {HD_LINES}, its first {HD_FRAMES} frames, CRF {CRF}", hd
    ),
}
