# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Crops that are decoded and degraded as batches are made, in the loader's processes: no cache is filled.

Videos are files of a folder, members of its tar shards as WebDataset has them (`boat.mp4` beside `boat.txt`), or files
of a dataset of the `datasets` library, wherever they are. Shards are read where they lie, a member at a time; what is
elsewhere is fetched when it is needed. As from a cache, a batch depends on its number alone.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import fsspec
import numpy as np
import torch
from tqdm import tqdm

from ..files import LeftOut, replace_text
from .crops import Crop, CropDataset
from .preparation import Preparation, at_rate, degraded, fitted, reading
from .sources import VIDEOS, find_sources, report

if TYPE_CHECKING:
    from ...video_io import VideoReader


@dataclass(frozen=True)
class StreamedClip:
    """A video that stays where it is.

    Args:
        high (`Path`): the file, or the shard and its member.
        text (`str`): what belongs to it.
        frames (`int`), height (`int`), width (`int`): as training sees it.
        shard (`Path`, *optional*): the tar file.
        offset (`int`), size (`int`): of the member in it, in bytes.
        address (`str`, *optional*): of a file on another machine, as `fsspec` reads it.
    """

    high: Path
    text: str
    frames: int = 0
    height: int = 0
    width: int = 0
    shard: Path | None = None
    offset: int = 0
    size: int = 0
    address: str | None = None

    @property
    def lows(self) -> tuple[Path, ...]:
        """Low-resolution versions are made of each crop."""
        return (self.high,)

    @contextmanager
    def opened(self) -> Iterator[VideoReader]:
        """Gives a reader of the video."""
        from ...video_io import VideoReader

        if self.shard is None and self.address is None:
            yield VideoReader(self.high)
            return
        with tempfile.NamedTemporaryFile(suffix=self.high.suffix) as copy:
            if self.shard is not None:
                with self.shard.open("rb") as shard:
                    shard.seek(self.offset)
                    copy.write(shard.read(self.size))
            else:
                with fsspec.open(self.address, "rb") as remote:
                    shutil.copyfileobj(remote, copy)
            copy.flush()
            yield VideoReader(copy.name)

    @property
    def identity(self) -> str:
        """By which what is known of it is found again."""
        if self.address is not None:
            return self.address
        return f"{self.high} {(self.shard or self.high).stat().st_mtime_ns} {self.size}"


class StreamedCrops(CropDataset):
    """[`CropDataset`] of videos that are read anew for each crop.

    Args:
        clips (list of `StreamedClip`): of [`find_streamed`].
        how (`Preparation`): resolution, frame rate and degradation; a low-resolution version is made of each crop.
        settings: see [`CropDataset`].
    """

    def __init__(self, clips: Sequence[StreamedClip], how: Preparation, *args: Any, **settings: Any) -> None:
        super().__init__(clips, *args, **settings)  # type: ignore[arg-type]
        self.how = how

    def _sample(  # type: ignore[override]
        self, clip: StreamedClip, crop: Crop, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, str]:
        scale = self.scale or 1
        start = int(rng.integers(clip.frames - crop.frames + 1))
        top, left = (
            scale * int(rng.integers((have - want) // scale + 1))
            for have, want in ((clip.height, crop.height), (clip.width, crop.width))
        )
        mirrored, backwards = rng.random() < 0.5 and self.mirrors, rng.random() < 0.2 and self.reverses
        frames = self._frames(clip, start, crop.frames)
        high = frames[:, top : top + crop.height, left : left + crop.width]
        high = np.ascontiguousarray(high[:: -1 if backwards else 1, :, :: -1 if mirrored else 1])
        low = high if self.how.degradation is None else degraded(high, self.how.degradation, scale, rng)
        return _channels_first(high), _channels_first(low), clip.text

    def _frames(self, clip: StreamedClip, start: int, count: int) -> np.ndarray:
        """Frames from one on; from an earlier one where the container had promised more than there are.

        Raises:
            ValueError: there are too few.
        """
        for first in (start, 0):
            with clip.opened() as reader:
                frames = (fitted(pixels, self.how.resolution) for pixels in at_rate(reader, self.how.fps))
                taken = list(islice(frames, first, first + count))
            if len(taken) == count:
                return np.stack(taken)
        raise ValueError(f"{str(clip.high)!r} has fewer than {count} frames, of {clip.frames} that it promises")


def find_streamed(
    folder: Path, cache_dir: Path, how: Preparation, caption_column: str, left_out: list[LeftOut]
) -> list[StreamedClip]:
    """Lists the videos of a folder, or of its tar shards if it has any; their sizes are probed once.

    Args:
        folder (`Path`): the folder.
        cache_dir (`Path`): keeps the sizes.
        how (`Preparation`): resolution, frame rate and scale.
        caption_column (`str`): where metadata has the texts, of a folder without shards.
        left_out (list of `LeftOut`): gets what is not used.

    Raises:
        ValueError: no video that can be read.
    """
    shards = sorted(folder.rglob("*.tar"))
    if shards:
        clips = [clip for shard in shards for clip in _members(shard)]
    else:
        sources = find_sources(folder, caption_column, left_out)
        clips = [StreamedClip(source.path, source.text) for source in sources if source.low is None]
    return _usable(clips, str(folder), cache_dir, how, left_out)


def find_addressed(
    addresses: Sequence[tuple[str, str]], name: str, cache_dir: Path, how: Preparation, left_out: list[LeftOut]
) -> list[StreamedClip]:
    """[`find_streamed`] of a dataset's files, which are fetched once to be probed.

    Args:
        addresses (sequence of pairs of `str`): address and text of each.
        name (`str`): of the dataset.
        cache_dir, how, left_out: see [`find_streamed`].

    Raises:
        ValueError: no video that can be read.
    """
    clips = []
    for address, text in addresses:
        local = Path(address).is_file()
        path = Path(address if local else urlsplit(address).path)
        clips.append(StreamedClip(path, text, address=None if local else address))
    return _usable(clips, name, cache_dir, how, left_out)


def _usable(
    clips: list[StreamedClip], where: str, cache_dir: Path, how: Preparation, left_out: list[LeftOut]
) -> list[StreamedClip]:
    videos = [clip for clip in clips if clip.high.suffix.lower() in VIDEOS]
    pictures = [LeftOut(str(clip.high), "only videos are streamed") for clip in clips if clip not in videos]
    report(pictures, f"{len(pictures)} of {len(clips)} files in {where!r}: no videos", left_out)
    found = _with_sizes(videos, cache_dir, how, left_out)
    if not found:
        raise ValueError(f"not one of the {len(clips)} files in {where!r} is a video that can be streamed")
    return found


def _members(shard: Path) -> Iterator[StreamedClip]:
    try:
        with tarfile.open(shard) as tar:
            members = {PurePosixPath(each.name): each for each in tar if each.isfile()}
            texts = {name.with_suffix(""): tar.extractfile(members[name]) for name in members if name.suffix == ".txt"}
            words = {name: file.read().decode("utf-8-sig").strip() for name, file in texts.items() if file is not None}
    except tarfile.TarError as error:
        raise ValueError(f"the shard {str(shard)!r} cannot be read: {error}") from error
    for name, each in members.items():
        if name.suffix.lower() in VIDEOS:
            text = words.get(name.with_suffix(""), "")
            yield StreamedClip(shard / name, text, shard=shard, offset=each.offset_data, size=each.size)


def _with_sizes(
    clips: Sequence[StreamedClip], cache_dir: Path, how: Preparation, left_out: list[LeftOut]
) -> list[StreamedClip]:
    identity = "".join(f"{clip.identity}\n" for clip in clips)
    name = hashlib.sha256(f"{identity}{how.resolution} {how.fps}".encode()).hexdigest()[:16]
    index = cache_dir / "streams" / f"{name}.json"
    if not index.is_file():
        sizes = [_probed(clip, how) for clip in tqdm(clips, "Probing", unit="video", disable=None)]
        replace_text(index, json.dumps(sizes))
    found, unreadable = [], []
    for clip, size in zip(clips, json.loads(index.read_text()), strict=True):
        if isinstance(size, str):
            unreadable.append(LeftOut(str(clip.high), size))
        else:
            frames, height, width = size
            found.append(replace(clip, frames=frames, height=height, width=width))
    report(unreadable, f"{len(unreadable)} of {len(clips)} videos: they cannot be read", left_out)
    return found


def _probed(clip: StreamedClip, how: Preparation) -> tuple[int, int, int] | str:
    """Frames, height and width as training sees them; or why there are none."""
    try:
        with reading(), clip.opened() as reader:
            info = reader.info
            first = fitted(next(iter(at_rate(reader, how.fps))), how.resolution)
            frames = info.num_frames or sum(1 for _ in reader)
    except ValueError as error:
        return str(error)
    return int(frames * min(1.0, float((how.fps or info.fps) / info.fps))), *first.shape[:2]


def _channels_first(frames: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(3, 0, 1, 2)
