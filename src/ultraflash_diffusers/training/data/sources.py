# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The videos and pictures of a folder, and their texts: in `metadata.jsonl` or `.csv`, or in a `.txt` beside each."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers.utils import logging

from ..files import LeftOut

logger = logging.get_logger(__name__)

METADATA = ("metadata.jsonl", "metadata.csv")
LOW_RESOLUTION = "low_resolution_file_name"
PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
VIDEOS = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v"}


@dataclass(frozen=True)
class MediaFile:
    """A video or a picture.

    Args:
        path (`Path`): the file.
        text (`str`, *optional*, defaults to `""`): what belongs to it.
        low (`Path`, *optional*): a video of the same frames in low resolution, for instance what a generator made of
            the text: it takes the place of a degradation.
    """

    path: Path
    text: str = ""
    low: Path | None = None


def find_sources(
    folder: str | Path, caption_column: str = "text", left_out: list[LeftOut] | None = None
) -> list[MediaFile]:
    """Lists the videos and pictures of a folder, in the order of their names or of its metadata.

    A file that the metadata names several times counts as often. Without metadata, the contents of `clip.txt` are the
    text of `clip.mp4`.

    Args:
        folder (`str` or `Path`): the folder.
        caption_column (`str`, *optional*, defaults to `"text"`): where the metadata has the texts.
        left_out (list of `LeftOut`, *optional*): gets the videos and pictures that the metadata does not name.

    Raises:
        FileNotFoundError: there is no such folder, or the metadata names a file that is not there.
        ValueError: nothing in it is a video or a picture, there are both kinds of metadata, or a line of it has no
            `file_name`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"`folder` {str(folder)!r} is not a folder")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES | VIDEOS)
    metadata = [folder / name for name in METADATA if (folder / name).is_file()]
    if len(metadata) > 1:
        raise ValueError(f"`folder` {str(folder)!r} holds {' and '.join(METADATA)}: which one is meant?")
    if metadata:
        sources = [_named(folder, *row, caption_column) for row in _rows(metadata[0])]
        known = {file for source in sources for file in (source.path, source.low)}
        unnamed = [LeftOut(str(path), f"{metadata[0].name} does not name it") for path in files if path not in known]
        report(
            unnamed, f"{len(unnamed)} of {len(files)} files in {str(folder)!r}: not in {metadata[0].name}", left_out
        )
    else:
        sources = [MediaFile(path, _beside(path)) for path in files]
    if not sources:
        kinds = ", ".join(sorted(VIDEOS | PICTURES))
        raise ValueError(f"`folder` {str(folder)!r} holds no video and no picture ({kinds})")
    return sources


def report(entries: list[LeftOut], summary: str, left_out: list[LeftOut] | None) -> None:
    """Says and lists what is not used, if anything is."""
    if entries:
        logger.warning(f"left out {summary}")
    if left_out is not None:
        left_out += entries


def _beside(path: Path) -> str:
    """The text of a file's own `.txt`."""
    text = path.with_suffix(".txt")
    return text.read_text("utf-8-sig").strip() if text.is_file() else ""


def _rows(metadata: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The metadata's entries, each after where it is."""
    # with a byte order mark or without
    text = metadata.read_text("utf-8-sig")
    if metadata.suffix == ".csv":
        for number, row in enumerate(csv.DictReader(text.splitlines(keepends=True)), start=2):
            yield f"row {number} of {str(metadata)!r}", {name: value or None for name, value in row.items() if name}
        return
    # lines end with a line feed alone, as JSON may hold all other separators
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"line {number} of {str(metadata)!r}"
            try:
                yield where, json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{where} must be a JSON object with a `file_name`, got {line!r}") from error


def _named(folder: Path, where: str, entry: Any, caption_column: str) -> MediaFile:
    if not isinstance(entry, dict) or not isinstance(name := entry.get("file_name"), str):
        raise ValueError(f"{where} must have a `file_name`, got {entry!r}")
    low = entry.get(LOW_RESOLUTION)
    if not isinstance(low, str | None):
        raise ValueError(f"{where} must have a file's name as `{LOW_RESOLUTION}`, got {low!r}")
    for each in (name,) if low is None else (name, low):
        if not (folder / each).is_file():
            raise FileNotFoundError(f"{where} names {each!r}, which is not there")
    if low is not None and Path(name).suffix.lower() in PICTURES:
        raise ValueError(f"{where} has a `{LOW_RESOLUTION}` for {name!r}: only videos may have one")
    return MediaFile(folder / name, entry.get(caption_column) or "", None if low is None else folder / low)
