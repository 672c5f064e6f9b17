# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""From a folder of videos and pictures to a cache of decoded clips, which training reads as memory maps.

Each source has its own folder in the cache, named after the source
and the settings, and an index that is written last: an interrupted preparation goes on where it stopped. What cannot
be used is counted, and listed as [`~ultraflash_diffusers.training.files.LeftOut`].
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from diffusers.utils import logging
from PIL import Image, ImageOps
from tqdm import tqdm

from ...degradation import Transform
from ..files import LeftOut, holds_array, replace_text, save_array
from .camera_motion import animate_picture
from .sources import PICTURES, MediaFile, report

if TYPE_CHECKING:
    from ...video_io import VideoReader

logger = logging.get_logger(__name__)

# sources whose headers are read to foretell what all take
_LOOKED_AT = 20
# frames of the trial that foretells the time
_TRIED = 9


@dataclass(frozen=True)
class CachedClip:
    """A decoded clip in the cache.

    Args:
        high (`Path`): `.npy`, uint8 `[frames, height, width, 3]`.
        lows (tuple of `Path`): degraded versions, each `scale` times smaller.
        text (`str`): of the source.
        frames (`int`), height (`int`), width (`int`): of `high`.
    """

    high: Path
    lows: tuple[Path, ...]
    text: str
    frames: int
    height: int
    width: int


@dataclass(frozen=True)
class Preparation:
    """How sources become clips.

    Args:
        resolution (`int`, *optional*): the shorter side of clips; larger sources are made smaller, none is enlarged.
            `None` keeps every size.
        clip_frames (`int`, *optional*, defaults to 97): longer videos are cut into clips of this length; a picture
            gives one clip of it.
        scale (`int`, *optional*, defaults to 1): heights and widths are cropped, around the centre, to multiples.
        degradation (`Transform`, *optional*): what makes a low-resolution version, `scale` times smaller.
        versions (`int`, *optional*, defaults to 0): number of low-resolution versions of each clip.
        seed (`int`, *optional*, defaults to 0): of degradations and camera motion.
        fps (`float`, *optional*): frames a second of clips: of faster videos the frames nearest to its ticks are
            taken, slower ones cannot be used. `None` takes all frames.
    """

    resolution: int | None = None
    clip_frames: int = 97
    scale: int = 1
    degradation: Transform | None = None
    versions: int = 0
    seed: int = 0
    # not in the text by which the cache tells settings apart, where it is not given
    fps: float | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if (self.versions > 0) != (self.degradation is not None):
            raise ValueError(f"`versions` is {self.versions}, `degradation` is {self.degradation}: give both or none")


class UnreadableSource(ValueError):
    """A file that is no video and no picture, or a broken one."""


def prepare_clips(
    sources: Iterable[MediaFile],
    cache_dir: str | Path,
    how: Preparation,
    left_out: list[LeftOut] | None = None,
    workers: int = 1,
) -> list[CachedClip]:
    """Prepares sources that are not in the cache yet, and lists the clips of all.

    A source that cannot be read is left out, with a warning.

    Args:
        sources (iterable of `MediaFile`): from [`find_sources`].
        cache_dir (`str` or `Path`): created if there is none. Each hour of 384x640 video takes about 64 GB.
        how (`Preparation`): sizes, degradation and seed.
        left_out (list of `LeftOut`, *optional*): gets the sources that cannot be read.
        workers (`int`, *optional*, defaults to 1): threads, each of which prepares a source at a time. The result does
            not depend on it.

    Raises:
        ValueError: none of the sources could be read, or the degradation does not make clips `scale` times smaller.
        OSError: the cache cannot be written, for instance because the disk is full.
    """
    sources = list(sources)
    folders = [Path(cache_dir) / _fingerprint(source, how) for source in sources]
    once = dict(zip(folders, sources, strict=True))  # a file may be named several times
    missing = [source for folder, source in once.items() if not _is_prepared(folder)]
    _check_room(Path(cache_dir), missing, how, workers)
    with ThreadPoolExecutor(workers) as pool:
        outcomes = pool.map(lambda folder: _error_in(once[folder], folder, how), once)
        errors = dict(zip(once, tqdm(outcomes, "Preparing", len(once), unit="source", disable=None), strict=True))
    unreadable = [LeftOut(str(once[folder].path), str(error)) for folder, error in errors.items() if error is not None]
    for entry in unreadable:
        logger.warning(f"left out {entry.file!r}: {entry.reason}")
    report(unreadable, f"{len(unreadable)} of {len(once)} sources: they cannot be read", left_out)
    clips, cut = [], 0
    for folder, source in zip(folders, sources, strict=True):
        if errors[folder] is None:
            entries = json.loads((folder / "index.json").read_text())
            clips += [_from_index(folder, entry, source.text) for entry in entries]
            cut += sum(entry.get("cut", False) for entry in entries)
    if not clips:
        raise ValueError("`sources`: not one of them could be read")
    if cut:
        logger.warning(f"{cut} of {len(clips)} clips lost edges: their sizes were no multiples of {how.scale}")
    return clips


def _check_room(cache_dir: Path, sources: list[MediaFile], how: Preparation, workers: int) -> None:
    """Says how much disk the sources will take, by the headers of some of them, and how long, by a trial with one.

    Raises:
        OSError: there is less.
    """
    some = sources[:: max(1, len(sources) // _LOOKED_AT)][:_LOOKED_AT]
    sizes = [size for source in some if (size := _planned_bytes(source, how)) is not None]
    if not sizes:
        return
    cache_dir.mkdir(parents=True, exist_ok=True)
    needed, free = len(sources) * sum(sizes) / len(sizes), shutil.disk_usage(cache_dir).free
    room = f"{str(cache_dir)!r}, where {free / 1e9:.3g} are free"
    say = f"{len(sources)} sources take about {needed / 1e9:.3g} GB in {room}"
    if needed > free:
        smaller = "smaller --resolution, fewer --degraded_versions, a lower --fps or another --cache_dir"
        raise OSError(errno.ENOSPC, f"{say}: {smaller} would help")
    seconds = next((pace * needed for source in some if (pace := _seconds_a_byte(source, how)) is not None), None)
    if seconds is not None:
        spread = min(workers, len(sources), os.cpu_count() or 1)
        say += f", and {_in_words(seconds / spread)}, by the pace of {_TRIED} frames"
    tqdm.write(say)


def _seconds_a_byte(source: MediaFile, how: Preparation) -> float | None:
    """What a byte of the cache takes to make, by some frames of a source; `None` of one that cannot be read."""
    started = time.perf_counter()
    try:
        clip = _cropped(next(_clips(source, replace(how, clip_frames=min(_TRIED, how.clip_frames)))), how.scale)
    except (UnreadableSource, StopIteration):
        return None
    seconds, size = time.perf_counter() - started, clip.nbytes * (1 + how.versions / how.scale**2)
    if how.degradation is not None and source.low is None:
        started = time.perf_counter()
        degraded(clip, how.degradation, how.scale, np.random.default_rng(how.seed))
        seconds += how.versions * (time.perf_counter() - started)
    return seconds / size


def _in_words(seconds: float) -> str:
    for unit, name in ((3600, "hours"), (60, "minutes")):
        if seconds >= unit:
            return f"{seconds / unit:.2g} {name}"
    return f"{max(1, round(seconds))} seconds"


def _planned_bytes(source: MediaFile, how: Preparation) -> int | None:
    """What a source takes in the cache; `None` of one that cannot be read."""
    from av import FFmpegError

    from ...video_io import VideoReader

    try:
        if source.path.suffix.lower() in PICTURES:
            with Image.open(source.path) as picture:
                (width, height), frames = picture.size, how.clip_frames
        else:
            info = VideoReader(source.path).info
            width, height, frames = info.width, info.height, info.num_frames or how.clip_frames
            frames = round(frames * min(1.0, (how.fps or info.fps) / info.fps))
    except (OSError, ValueError, FFmpegError, SyntaxError, Image.DecompressionBombError):
        return None
    shrink = 1.0 if how.resolution is None else min(1.0, how.resolution / min(width, height))
    return round(3 * frames * width * height * shrink**2 * (1 + how.versions / how.scale**2))


def _error_in(source: MediaFile, folder: Path, how: Preparation) -> UnreadableSource | None:
    """Prepares a source, if that is not done yet; returns what is wrong with it, if anything is."""
    if not _is_prepared(folder):
        try:
            _prepare(source, folder, how)
        except UnreadableSource as error:
            return error
    return None


def _is_prepared(folder: Path) -> bool:
    """Whether a source's index is there, and all files that it lists are whole."""
    try:
        entries = json.loads((folder / "index.json").read_text())
        names = [name for entry in entries for name in (entry["high"], *entry["lows"])]
    except FileNotFoundError:
        return False
    except (ValueError, KeyError, TypeError):
        logger.warning(f"{str(folder / 'index.json')!r} of the cache is damaged, and is made anew")
        return False
    return all([holds_array(folder / name) for name in names])  # each of them: all damaged ones are named


def _fingerprint(source: MediaFile, how: Preparation) -> str:
    files = [source.path] if source.low is None else [source.path, source.low]
    stats = [(file.resolve(), file.stat()) for file in files]
    identity = " ".join(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats) + f" {how}"
    identity += "" if how.fps is None else f" {how.fps} fps"
    return f"{source.path.stem[:60]}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


def _from_index(folder: Path, entry: dict, text: str) -> CachedClip:
    lows = tuple(folder / name for name in entry["lows"])
    return CachedClip(folder / entry["high"], lows, text, entry["frames"], entry["height"], entry["width"])


def _prepare(source: MediaFile, folder: Path, how: Preparation) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    given = None if source.low is None or how.versions == 0 else _frames(source.low, how.fps)
    entries = []
    for number, whole in enumerate(_clips(source, how)):
        clip = _cropped(whole, how.scale)
        high = f"{number:04d}.npy"
        if not holds_array(folder / high):
            save_array(folder / high, clip)
        lows = [f"{number:04d}_low{version}.npy" for version in range(how.versions if given is None else 1)]
        if given is not None:
            save_array(folder / lows[0], _next_given(given, whole.shape, how.scale))
        elif how.degradation is not None:
            for version, low in enumerate(lows):
                if not holds_array(folder / low):
                    rng = _clip_rng(how.seed, source, number, version)
                    save_array(folder / low, degraded(clip, how.degradation, how.scale, rng))
        frames, height, width = clip.shape[:3]
        size = {"frames": frames, "height": height, "width": width}
        entries.append({"high": high, "lows": lows, **size, "cut": clip.shape != whole.shape})
    if given is not None and next(given, None) is not None:
        raise UnreadableSource(f"its low-resolution video {source.low} has more frames than itself")
    replace_text(folder / "index.json", json.dumps(entries))


def _clip_rng(seed: int, source: MediaFile, number: int, version: int) -> np.random.Generator:
    """Seeded by the name too: clips are degraded in different ways, the same ones on every machine."""
    name = int.from_bytes(hashlib.sha256(source.path.name.encode()).digest()[:8], "little")
    return np.random.default_rng((seed, name, number, version))


def _next_given(frames: Iterator[np.ndarray], shape: tuple[int, ...], scale: int) -> np.ndarray:
    """The next frames of a video in low resolution, as many as a clip of high resolution has.

    Raises:
        UnreadableSource: there are fewer, or they are not `scale` times smaller.
    """
    count, height, width = shape[:3]
    low = list(islice(frames, count))
    found = {frame.shape[:2] for frame in low}
    if len(low) < count or height % scale or width % scale or found != {(height // scale, width // scale)}:
        sizes = ", ".join(f"{rows}x{columns}" for rows, columns in sorted(found))
        raise UnreadableSource(
            f"its low-resolution video has {len(low)} frames of {sizes} for {count} of {height}x{width}: it must have "
            f"as many, {scale} times smaller"
        )
    return np.stack(low)


def degraded(clip: np.ndarray, degradation: Transform, scale: int, rng: np.random.Generator) -> np.ndarray:
    """Returns a clip's low-resolution version.

    Raises:
        ValueError: it is not `scale` times smaller.
    """
    low = degradation(clip, rng)
    expected = (len(clip), clip.shape[1] // scale, clip.shape[2] // scale, 3)
    if low.shape != expected:
        raise ValueError(f"`degradation` must make a clip {expected}, {scale} times smaller, and made {low.shape}")
    return low


def _clips(source: MediaFile, how: Preparation) -> Iterator[np.ndarray]:
    """The clips of a source.

    Raises:
        UnreadableSource: it cannot be read, or not to its end.
    """
    with reading():
        for clip in _read(source, how):
            if min(clip.shape[1:3]) < how.scale:
                raise UnreadableSource(f"its frames have fewer than {how.scale} pixels a side")
            yield clip


def _frames(video: Path, fps: float | None) -> Iterator[np.ndarray]:
    """The frames of a video, at a rate.

    Raises:
        UnreadableSource: it cannot be read, or not to its end.
    """
    from ...video_io import VideoReader

    with reading():
        yield from at_rate(VideoReader(video), fps)


def at_rate(reader: VideoReader, fps: float | None) -> Iterator[np.ndarray]:
    """All frames, or of the frames those that are shown nearest to the ticks of a slower rate.

    Raises:
        ValueError: the video is slower.
    """
    if fps is None:
        for frame in reader:
            yield frame.pixels
        return
    if reader.info.fps < 0.99 * fps:  # 23.976 is near enough to 24
        raise ValueError(f"its {float(reader.info.fps):g} frames a second are fewer than {fps:g}")
    half, tick = 0.5 / float(reader.info.fps), 0
    for frame in reader:
        if float(frame.pts * reader.info.time_base) + half >= tick / fps:
            yield frame.pixels
            tick += 1


@contextmanager
def reading() -> Iterator[None]:
    """Has what reading a damaged or foreign file raises be [`UnreadableSource`]."""
    from av import FFmpegError

    from ...video_io.pictures import PICTURE_ERRORS

    try:
        yield
    except (FFmpegError, *PICTURE_ERRORS) as error:
        raise UnreadableSource(str(error)) from error


def _read(source: MediaFile, how: Preparation) -> Iterator[np.ndarray]:
    if source.path.suffix.lower() in PICTURES:
        with Image.open(source.path) as picture:
            pixels = np.asarray(_in_8_bits(ImageOps.exif_transpose(picture)))
        rng = np.random.default_rng((how.seed, pixels.shape[0], pixels.shape[1], int(pixels.sum())))
        yield animate_picture(pixels, how.clip_frames, how.resolution, rng)
        return
    from ...video_io import VideoReader

    frames = (fitted(pixels, how.resolution) for pixels in at_rate(VideoReader(source.path), how.fps))
    while clip_frames := list(islice(frames, how.clip_frames)):
        yield np.stack(clip_frames)


def _in_8_bits(picture: Image.Image) -> Image.Image:
    """A picture in RGB: 16 bits and floats in [0, 1] are scaled, what is transparent shows white.

    Raises:
        ValueError: floats outside [0, 1], whose range is anyone's guess.
    """
    if picture.mode.startswith("I"):
        levels = np.asarray(picture).astype(np.int64)
        picture = Image.fromarray(((levels * 255 + 32767) // 65535).clip(0, 255).astype(np.uint8))
    elif picture.mode == "F":
        values = np.asarray(picture)
        if not (values.min() >= 0 and values.max() <= 1):
            raise ValueError(f"its values are {values.min()} to {values.max()}, expected floats in [0, 1]")
        picture = Image.fromarray((values * 255).round().astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def fitted(pixels: np.ndarray, resolution: int | None) -> np.ndarray:
    """Makes a picture smaller, without aliasing, until its shorter side is `resolution`."""
    shorter = min(pixels.shape[:2])
    if resolution is None or shorter <= resolution:
        return pixels
    height, width = (round(size * resolution / shorter) for size in pixels.shape[:2])
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))


def _cropped(clip: np.ndarray, multiple: int) -> np.ndarray:
    height, width = (size - size % multiple for size in clip.shape[1:3])
    top, left = (clip.shape[1] - height) // 2, (clip.shape[2] - width) // 2
    return np.ascontiguousarray(clip[:, top : top + height, left : left + width])
