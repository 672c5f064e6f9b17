# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What FFmpeg does not pass on of Matroska files (RFC 9559): the crop of a track, and a track without a frame rate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

_SEGMENT, _TRACKS, _TRACK_ENTRY, _VIDEO, _CLUSTER = 0x18538067, 0x1654AE6B, 0xAE, 0xE0, 0x1F43B675
_TRACK_TYPE, _DEFAULT_DURATION, _CRC, _VOID = 0x83, 0x23E383, 0xBF, 0xEC
_CROPS = {0x54CC: "left", 0x54BB: "top", 0x54DD: "right", 0x54AA: "bottom"}


class Crop(NamedTuple):
    """Pixels to take off a stored picture's edges."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0


class _Element(NamedTuple):
    identifier: int
    start: int
    content: int
    end: int


def read_crop(path: Path, track: int) -> Crop:
    """Returns the crop of a file's track; none where it is no Matroska file, or not one to be understood.

    Args:
        path (`Path`): the file.
        track (`int`): the track's place in the file, as FFmpeg counts.
    """
    with path.open("rb") as file:
        entries = list(_track_entries(file, path.stat().st_size))
        if track >= len(entries):
            return Crop()
        sides = {}
        for video in _children(file, entries[track], _VIDEO):
            for element in _children(file, video, *_CROPS):
                sides[_CROPS[element.identifier]] = _number(file, element)
        return Crop(**sides)


def erase_frame_duration(path: Path) -> None:
    """Takes the frame duration that FFmpeg's muxer always writes out of a file's video tracks.

    Args:
        path (`Path`): a Matroska file, which is changed in place.
    """
    with path.open("r+b") as file:
        size = path.stat().st_size
        for tracks in _tracks(file, size):
            for entry in _children(file, tracks, _TRACK_ENTRY):
                kinds = [_number(file, element) for element in _children(file, entry, _TRACK_TYPE)]
                for element in _children(file, entry, _DEFAULT_DURATION) if kinds == [1] else ():
                    _make_void(file, element)
            for checksum in _children(file, tracks, _CRC):
                _make_void(file, checksum)


def _make_void(file: BinaryIO, element: _Element) -> None:
    length = element.end - element.start
    file.seek(element.start)
    file.write(bytes([_VOID, 0x80 | (length - 2)]) + bytes(length - 2))


def _track_entries(file: BinaryIO, size: int) -> Iterator[_Element]:
    for tracks in _tracks(file, size):
        yield from _children(file, tracks, _TRACK_ENTRY)


def _tracks(file: BinaryIO, size: int) -> Iterator[_Element]:
    for segment in _children(file, _Element(0, 0, 0, size), _SEGMENT):
        yield from _children(file, segment, _TRACKS)


def _children(file: BinaryIO, parent: _Element, *identifiers: int) -> Iterator[_Element]:
    """Yields the elements of these identifiers within another, up to the first cluster of frames."""
    position = parent.content
    while position < parent.end:
        file.seek(position)
        identifier, length = _variable_integer(file, keep_mark=True), _variable_integer(file, keep_mark=False)
        if identifier is None or length is None or identifier == _CLUSTER:
            return
        content = file.tell()
        element = _Element(identifier, position, content, min(content + length, parent.end))
        position = element.end
        if identifier in identifiers:
            yield element


def _variable_integer(file: BinaryIO, keep_mark: bool) -> int | None:
    """Reads an EBML number, whose first bits tell its length; `None` where there is none."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    length = 9 - first[0].bit_length()
    data = first + file.read(length - 1)
    value = int.from_bytes(data, "big")
    return value if keep_mark else value & ~(1 << 7 * length)


def _number(file: BinaryIO, element: _Element) -> int:
    file.seek(element.content)
    return int.from_bytes(file.read(min(8, element.end - element.content)), "big")
