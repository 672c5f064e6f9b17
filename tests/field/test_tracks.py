# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Which track is the film, and what of its pictures is to be seen."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from helpers.clips import HEIGHT, WIDTH, make_clip
from helpers.media import make_media

from ultraflash_diffusers.video_io import VideoReader


def with_tracks(path: Path, *tracks: tuple[Path, Disposition]) -> Path:
    """Puts the video tracks of several files into one, each with a disposition."""
    with av.open(str(path), "w") as output:
        sources = [av.open(str(track)) for track, _ in tracks]
        targets = [output.add_stream_from_template(source.streams.video[0], opaque=True) for source in sources]
        for target, (_, disposition) in zip(targets, tracks, strict=True):
            target.disposition = disposition
        for source, target in zip(sources, targets, strict=True):
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = target
                    output.mux(packet)
            source.close()
    return path


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A still, a short clip, a long one and a large one."""
    folder = tmp_path_factory.mktemp("parts")
    return {
        "still": make_clip(folder / "still.mkv", 1, codec="mjpeg", pixel_format="yuvj420p"),
        "short": make_clip(folder / "short.mkv", 10, size=(48, 32)),
        "long": make_clip(folder / "long.mkv", 30, size=(40, 32)),
        "large": make_clip(folder / "large.mkv", 10, size=(80, 64)),
    }


NONE, DEFAULT = Disposition(0), Disposition.default


@pytest.mark.parametrize(
    ("tracks", "film"),
    [
        ((("still", NONE), ("short", DEFAULT)), "short"),
        ((("still", DEFAULT), ("short", NONE)), "short"),
        ((("still", DEFAULT), ("short", DEFAULT)), "short"),
        ((("short", NONE), ("long", DEFAULT)), "long"),
        ((("short", DEFAULT), ("long", NONE)), "short"),
        ((("short", DEFAULT), ("long", DEFAULT)), "long"),
        ((("short", DEFAULT), ("large", DEFAULT)), "large"),
    ],
)
def test_the_film_is_found(
    tmp_path: Path, parts: dict[str, Path], tracks: tuple[tuple[str, Disposition], ...], film: str
) -> None:
    path = with_tracks(tmp_path / "film.mkv", *((parts[name], disposition) for name, disposition in tracks))
    expected, reader = VideoReader(parts[film]), VideoReader(path)
    assert (reader.info.width, reader.info.height) == (expected.info.width, expected.info.height)
    assert len(list(reader)) == len(list(expected))
    names = [name for name, _ in tracks]
    for number, name in enumerate(names):
        chosen = VideoReader(path, track=number)
        assert len(list(chosen)) == len(list(VideoReader(parts[name])))
    with pytest.raises(ValueError, match="`track` is 2, but .*film.mkv' has 2 video tracks, from 0 on"):
        VideoReader(path, track=2)


def element(identifier: str, content: bytes) -> bytes:
    return bytes.fromhex(identifier) + (0x10000000 | len(content)).to_bytes(4, "big") + content


def children(data: bytes) -> list[tuple[str, bytes]]:
    """The elements of a piece of EBML (RFC 8794), by their identifiers."""
    found, place = [], 0
    while place < len(data):
        width = 9 - data[place].bit_length()
        identifier, place = data[place : place + width].hex(), place + width
        width = 9 - data[place].bit_length()
        size = int.from_bytes(data[place : place + width], "big") & ~(1 << 7 * width)
        place += width
        found.append((identifier, data[place : place + size]))
        place += size
    return found


def cropped(path: Path, crop: dict[str, int]) -> Path:
    """Writes crops into a Matroska file's video tracks, whose sizes grow."""

    def changed(identifier: str, content: bytes) -> bytes:
        if identifier in ("18538067", "1654ae6b", "ae"):
            parts = [(name, part) for name, part in children(content) if name not in ("114d9b74", "bf", "1c53bb6b")]
            return element(identifier, b"".join(changed(name, part) for name, part in parts))
        if identifier == "e0":
            content += b"".join(element(name, bytes([pixels])) for name, pixels in crop.items())
        return element(identifier, content)

    path.write_bytes(b"".join(changed(*part) for part in children(path.read_bytes())))
    return path


@pytest.mark.parametrize(
    ("crop", "left", "top", "right", "bottom"),
    [
        ({"54aa": 8}, 0, 0, 0, 8),
        ({"54bb": 6, "54aa": 2}, 0, 6, 0, 2),
        ({"54cc": 4, "54bb": 1, "54dd": 3, "54aa": 7}, 4, 1, 3, 7),
    ],
)
def test_matroska_crops_are_applied(
    tmp_path: Path, crop: dict[str, int], left: int, top: int, right: int, bottom: int
) -> None:
    whole = [frame.pixels for frame in VideoReader(make_clip(tmp_path / "whole.mkv", 4))]
    reader = VideoReader(cropped(make_clip(tmp_path / "cropped.mkv", 4), crop))
    assert (reader.info.width, reader.info.height) == (WIDTH - left - right, HEIGHT - top - bottom)
    for frame, pixels in zip(reader, whole, strict=True):
        assert np.array_equal(frame.pixels, pixels[top : HEIGHT - bottom, left : WIDTH - right])


def test_a_crop_that_leaves_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leaves nothing of 64x48 pixels|Invalid data"):
        VideoReader(cropped(make_clip(tmp_path / "a.mkv", 2), {"54aa": 30, "54bb": 18}))


def test_fields_are_made_whole_pictures_if_asked(tmp_path: Path) -> None:
    """A bar that moves between the two fields of a frame: separate, its edges are combs."""
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as output:
        video = output.add_stream("ffv1", rate=25, width=WIDTH, height=HEIGHT)
        video.pix_fmt = "yuv420p"
        for index in range(8):
            fields = [np.zeros((HEIGHT, WIDTH, 3), np.uint8) for _ in range(2)]
            for number, field in enumerate(fields):
                field[:, 4 + 12 * index % 40 + 6 * number :][:, :12] = 255
            woven = fields[0].copy()
            woven[1::2] = fields[1][1::2]
            frame = av.VideoFrame.from_ndarray(woven).reformat(format="yuv420p")
            frame.pts = index
            output.mux(video.encode(frame))
        output.mux(video.encode(None))
    whole = list(VideoReader(path, deinterlace=True))
    combed = list(VideoReader(path))
    assert [(frame.pts, frame.index) for frame in whole] == [(frame.pts, frame.index) for frame in combed]

    def combs(frame: np.ndarray) -> float:
        rows = frame[..., 1].astype(float)
        return np.abs(rows[1:-1:2] - (rows[:-2:2] + rows[2::2]) / 2).mean()

    assert max(combs(frame.pixels) for frame in whole[1:-1]) < 0.2 * min(combs(frame.pixels) for frame in combed[1:-1])
    reader = VideoReader(path, deinterlace=True)
    reader.seek(5, after_pts=whole[4].pts)
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(reader, whole[5:], strict=True))


def test_that_a_source_is_interlaced_is_said(tmp_path: Path) -> None:
    options = {"flags": "+ilme+ildct", "top": "1"}
    path = make_media(tmp_path / "a.mpg", codec="mpeg2video", frames=6, video_options=options)
    with av.open(str(path)) as container:
        if not next(container.decode(video=0)).interlaced_frame:
            pytest.skip("this FFmpeg marks no frames as interlaced here")
    with pytest.warns(UserWarning, match="it is interlaced, and its fields are not separated .deinterlace=True"):
        VideoReader(path)
