# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Pictures as clips: folders of them, animations, stills, and what they are stored as."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from helpers.clips import copy_through, number_of, picture
from PIL import Image

from ultraflash_diffusers.video_io import VideoReader


def folder_of(path: Path, count: int = 12, name: str = "shot{}.png") -> Path:
    path.mkdir()
    for index in range(count):
        Image.fromarray(picture(index)).save(path / name.format(index))
    return path


@pytest.mark.parametrize("name", ["shot{}.png", "{:04}.png", "a {} of 12.bmp", "{}.TIF"])
def test_a_folder_of_pictures_in_the_order_of_their_numbers(tmp_path: Path, name: str) -> None:
    folder = folder_of(tmp_path / "frames", name=name)
    (folder / ".hidden").write_text("")
    reader = VideoReader(folder, fps=25)
    assert (reader.info.num_frames, reader.info.fps, reader.info.has_audio) == (12, 25, False)
    assert [number_of(frame.pixels) for frame in reader] == list(range(12))
    assert [frame.pts * reader.info.time_base for frame in reader] == [Fraction(index, 25) for index in range(12)]
    reader.seek(7, after_pts=6)
    assert [number_of(frame.pixels) for frame in reader] == list(range(7, 12))
    copy_through(folder, tmp_path / "out.mp4", fps=25)
    written = VideoReader(tmp_path / "out.mp4")
    assert written.info.fps == 25 and [number_of(frame.pixels) for frame in written] == list(range(12))


def test_the_first_frames_of_a_folder(tmp_path: Path) -> None:
    reader = VideoReader(folder_of(tmp_path / "frames"), num_frames=5)
    assert reader.info.num_frames == 5 and reader.info.fps == 24 and len(list(reader)) == 5


def test_what_is_wrong_with_a_folder_is_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "frames", 3)
    (folder / "notes.txt").write_text("no picture")
    with pytest.warns(UserWarning, match="1 files in it are no pictures and are left out"):
        reader = VideoReader(folder)
    Image.fromarray(picture(1, 20, 20)).save(folder / "shot1.png")
    with pytest.raises(ValueError, match="changes its frame size at frame 1: 20x20 after 64x48"):
        list(reader)
    (folder / "shot1.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="shot1.png' is no picture that can be read"):
        list(reader)
    with pytest.raises(ValueError, match="`track` and `deinterlace` are for video files"):
        VideoReader(folder, track=0)
    with pytest.raises(FileNotFoundError, match="does not exist: numbered pictures are read from their folder"):
        VideoReader(folder / "shot%d.png")


def test_animated_webp_with_its_own_times(tmp_path: Path) -> None:
    path, times = tmp_path / "a.webp", [40, 80, 40, 200, 40]
    first, *others = (Image.fromarray(picture(index)) for index in range(5))
    first.save(path, save_all=True, append_images=others, duration=times, lossless=True)
    reader = VideoReader(path)
    assert reader.info.fps == Fraction(5000, 400) and reader.info.codec == "webp"
    frames = list(reader)
    assert [number_of(frame.pixels) for frame in frames] == [0, 1, 2, 3, 4]
    assert [frame.pts for frame in frames] == [0, 40, 120, 160, 360]
    assert [frame.duration for frame in frames] == times
    copy_through(path, tmp_path / "out.mp4")
    written = VideoReader(tmp_path / "out.mp4")
    assert [frame.pts * written.info.time_base for frame in written] == [
        Fraction(t, 1000) for t in (0, 40, 120, 160, 360)
    ]
    assert [frame.pts for frame in VideoReader(path, fps=10)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", ["a.gif", "a.apng"])
def test_other_animations(tmp_path: Path, name: str) -> None:
    first, *others = (Image.fromarray(picture(index)) for index in range(5))
    format = "PNG" if name.endswith("apng") else None
    first.save(tmp_path / name, format, save_all=True, append_images=others, duration=100)
    frames = list(VideoReader(tmp_path / name))
    assert [number_of(frame.pixels) for frame in frames] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp", "a.tiff"])
def test_a_still_is_a_clip_of_one_frame(tmp_path: Path, name: str) -> None:
    Image.fromarray(picture(9)).save(tmp_path / name)
    (frame,) = VideoReader(tmp_path / name)
    assert number_of(frame.pixels) == 9


def test_depths_and_kinds_of_pictures(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)
    path = tmp_path / "a.png"
    Image.fromarray(ramp).save(path)
    (frame,) = VideoReader(path)
    assert np.abs(frame.pixels[..., 1] - ramp / 257.0).max() <= 0.51
    (deep,) = VideoReader(path, high_bit_depth=None)
    assert np.array_equal(deep.pixels[..., 2], ramp)
    Image.fromarray((ramp / 65535).astype(np.float32)).save(tmp_path / "a.tiff")
    (frame,) = VideoReader(tmp_path / "a.tiff")
    assert np.abs(frame.pixels[..., 1] - ramp / 257.0).max() <= 0.51
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "b.tiff")
    with pytest.raises(ValueError, match=r"floating-point values must have them in \[0, 1\]"):
        VideoReader(tmp_path / "b.tiff")
    rgba = np.dstack([picture(3), np.full((48, 64), 255, np.uint8)])
    rgba[:, :32, 3] = 0
    Image.fromarray(rgba).save(path)
    with pytest.warns(UserWarning, match="black background"):
        (frame,) = VideoReader(path)
    assert frame.pixels[:, :32].max() == 0 and np.array_equal(frame.pixels[:, 32:], picture(3)[:, 32:])


def test_a_turned_photograph_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    Image.fromarray(picture(4)).save(tmp_path / "a.png", exif=exif)
    (frame,) = VideoReader(tmp_path / "a.png")
    assert np.array_equal(frame.pixels, np.rot90(picture(4), -1))


def test_a_picture_that_breaks_off_while_it_is_decoded_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(picture(0)).save(path)
    data = bytearray(path.read_bytes())
    place = data.index(b"IDAT")
    data[place - 4 : place] = (int.from_bytes(data[place - 4 : place], "big") - 20).to_bytes(4, "big")
    path.write_bytes(data)
    with pytest.raises(ValueError, match="a.png' is no picture that can be read: broken PNG file"):
        VideoReader(path)
