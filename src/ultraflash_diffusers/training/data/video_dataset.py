# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Training videos from a dataset of the `datasets` library: on the Hub, or in a local folder that it can read."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
from datasets import Video, load_dataset
from diffusers.utils import logging

from ..files import LeftOut, written_whole
from .sources import MediaFile

logger = logging.get_logger(__name__)


def dataset_sources(
    name: str,
    folder: str | Path,
    config_name: str | None = None,
    video_column: str = "video",
    caption_column: str | None = None,
    left_out: list[LeftOut] | None = None,
) -> list[MediaFile]:
    """Lists the videos of a dataset's `train` split, as files.

    Videos that are files already stay where they are; those inside tables or archives are copied to `folder`.

    Args:
        name (`str`): of a repository on the Hub, or a local folder.
        folder (`str` or `Path`): for copies; created if there is none.
        config_name (`str`, *optional*): which of the dataset's configurations, if it has several.
        video_column (`str`, *optional*, defaults to `"video"`): a column of videos.
        caption_column (`str`, *optional*): a column of texts; no texts without it.
        left_out (list of `LeftOut`, *optional*): gets the rows that have no video, or name one that is not there.

    Raises:
        ValueError: the dataset has no such columns, `video_column` does not hold videos, or there are no rows.
    """
    sources, missing = [], []
    for number, (video, text) in enumerate(_rows(name, config_name, video_column, caption_column, streaming=False)):
        try:
            sources.append(MediaFile(_as_file(video, Path(folder)), text))
        except FileNotFoundError as error:
            missing.append(LeftOut(f"row {number} of {name}", str(error)))
    if missing:
        total = len(missing) + len(sources)
        logger.warning(f"left out {len(missing)} of {total} rows of {name!r}: their videos are not there")
    if not sources:
        raise ValueError(f"not one row of {name!r} has a video in `video_column` {video_column!r}")
    if left_out is not None:
        left_out += missing
    return sources


def dataset_addresses(
    name: str,
    config_name: str | None = None,
    video_column: str = "video",
    caption_column: str | None = None,
) -> list[tuple[str, str]]:
    """Lists where the videos of a dataset's `train` split are, and their texts, without fetching any.

    Args:
        name, config_name, video_column, caption_column: see [`dataset_sources`].

    Raises:
        ValueError: see [`dataset_sources`]; or videos inside of tables or archives, which have no address.
    """
    found = []
    for number, (video, text) in enumerate(_rows(name, config_name, video_column, caption_column, streaming=True)):
        if video is None or video["bytes"] is not None or "::" in video["path"]:
            raise ValueError(
                f"row {number} of {name!r} is no file of its own: leave out --stream, or unpack the dataset to a "
                "folder and stream that"
            )
        found.append((video["path"], text))
    return found


def _rows(
    name: str, config_name: str | None, video_column: str, caption_column: str | None, streaming: bool
) -> Iterator[tuple[dict[str, Any] | None, str]]:
    """The rows' videos as they are stored, and their texts.

    Raises:
        ValueError: the dataset has no such columns, `video_column` does not hold videos, or there are no rows.
    """
    dataset = load_dataset(name, config_name, split="train", streaming=streaming)
    # some streamed datasets say their columns by their rows alone, which then are as they are stored
    columns = dataset.features if dataset.features is not None else next(iter(dataset), {})
    for argument, column in (("video_column", video_column), ("caption_column", caption_column)):
        if columns and column is not None and column not in columns:
            raise ValueError(f"`{argument}` {column!r} is not a column of {name!r}, which has {list(columns)}")
    if dataset.features is not None:
        if not isinstance(found := dataset.features[video_column], Video):
            raise ValueError(f"`video_column` {video_column!r} of {name!r} must hold videos, it holds {found}")
        # the files as they are: frames are decoded as those of any other file
        dataset = dataset.cast_column(video_column, Video(decode=False))
    empty = True
    for row in dataset:
        empty, video = False, row[video_column]
        video = {"path": video, "bytes": None} if isinstance(video, str) else video
        yield video, (row[caption_column] if caption_column is not None else None) or ""
    if empty:
        raise ValueError(f"the dataset {name!r} has no rows")


def _as_file(video: dict | None, folder: Path) -> Path:
    """The video's own file, or a copy of it, named after its contents or its address."""
    if video is None:
        raise FileNotFoundError("there is no video in this row")
    path, contents = video["path"], video["bytes"]
    if contents is None and os.path.isfile(path):
        return Path(path)
    identity = contents if contents is not None else path.encode()
    copy = folder / f"{hashlib.sha256(identity).hexdigest()[:16]}{Path(path or '').suffix}"
    if not copy.is_file():
        with written_whole(copy) as temporary, temporary.open("wb") as file:
            if contents is not None:
                file.write(contents)
            else:
                with fsspec.open(path, "rb") as remote:
                    shutil.copyfileobj(remote, file)
    return copy
