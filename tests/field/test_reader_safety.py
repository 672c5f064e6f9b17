# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Files of strangers: nothing but the given file is opened, and no size is believed before it is checked."""

from __future__ import annotations

import resource
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import av
import numpy as np
import pytest
from helpers.clips import make_clip, picture
from helpers.strangers import address_without_visitors, huge_files, lists
from PIL import Image

from ultraflash_diffusers.video_io import VideoReader

_OPENED: list[str] = []
_WATCHING = threading.Event()


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if _WATCHING.is_set() and event in ("open", "socket.connect"):
        _OPENED.append(str(arguments[0]))


sys.addaudithook(_note)


def test_what_a_file_names_is_not_opened(tmp_path: Path) -> None:
    target = make_clip(tmp_path / "target.mp4", 3)
    (tmp_path / "lists").mkdir()
    with address_without_visitors() as address:
        for name, text in lists(target, address).items():
            path = tmp_path / "lists" / name
            path.write_text(text)
            _OPENED.clear()
            _WATCHING.set()
            with pytest.raises(ValueError, match="is no video file|no picture"):
                VideoReader(path)
            _WATCHING.clear()
            others = {place for place in _OPENED if "target" in place or address in place}
            assert not others, f"{name} made the reader open {others}"


@pytest.mark.skipif(not Path("/usr/bin/strace").exists(), reason="needs strace")
def test_the_system_sees_no_other_file_opened(tmp_path: Path) -> None:
    target, path = make_clip(tmp_path / "target.mp4", 3), tmp_path / "list.mp4"
    path.write_text(f"ffconcat version 1.0\nfile '{target}'\n")
    script = f"from ultraflash_diffusers.video_io import VideoReader\nVideoReader({str(path)!r})"
    command = ["strace", "-f", "-e", "trace=openat,connect", sys.executable, "-c", script]
    assert "target.mp4" not in subprocess.run(command, capture_output=True, text=True).stderr


@pytest.mark.parametrize(
    "path",
    [
        *("http://127.0.0.1:9/a.mp4", "https://127.0.0.1:9/a.mp4", "rtsp://127.0.0.1:9/a", "udp://127.0.0.1:9"),
        *("tcp://127.0.0.1:9", "file:///etc/hostname", "file:/etc/hostname", "concat:/etc/hostname|/etc/hostname"),
        *("pipe:0", "fd:0", "data:text/plain,hello", "subfile,,start,0,end,9,,:/etc/hostname", "crypto:/etc/hostname"),
        *("cache:/etc/hostname", "async:/etc/hostname", "lavfi:testsrc", "testsrc", "/dev/video0", ":0.0"),
    ],
)
def test_addresses_are_names_of_files_that_do_not_exist(path: str) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        VideoReader(path)


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "/dev/tty", "/etc/hostname", "/proc/self/environ"])
def test_paths_of_the_system_are_no_videos(path: str) -> None:
    if not Path(path).exists():
        pytest.skip("not on this system")
    with pytest.raises((ValueError, OSError), match="a pipe, a socket or a device|no video file|is empty|denied"):
        VideoReader(path)


def test_numbered_pictures_are_not_opened_by_a_pattern(tmp_path: Path) -> None:
    for index in range(3):
        Image.fromarray(picture(index)).save(tmp_path / f"img{index:03d}.png")
    for name in ("img%03d.png", "img*.png"):
        with pytest.raises(FileNotFoundError):
            VideoReader(tmp_path / name)
        (tmp_path / name).write_bytes((tmp_path / "img001.png").read_bytes())
        (frame,) = VideoReader(tmp_path / name)  # a file of that very name is itself
        assert np.array_equal(frame.pixels, picture(1))
        (tmp_path / name).unlink()


def test_huge_claims_are_refused_by_their_headers(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    for path in huge_files(tmp_path).values():
        with pytest.raises(ValueError):
            VideoReader(path)
    assert time.perf_counter() - start < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "kilobytes"


def test_a_caller_sets_the_limit(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", 2)
    with pytest.raises(ValueError, match="says that its pictures are 64x48, which is more than the 1000 pixels"):
        VideoReader(path, max_pixels=1000)
    assert VideoReader(path, max_pixels=64 * 48).info.width == 64
    Image.fromarray(picture(0)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="says that it is 64x48, which is more than the 1000 pixels"):
        VideoReader(tmp_path / "a.png", max_pixels=1000)


def test_a_movie_that_refers_to_another_file(tmp_path: Path) -> None:
    """A data reference in place of the pictures: nothing of the other file may be in the result."""
    target = make_clip(tmp_path / "target.mov", 3, codec="png", pixel_format="rgb24")
    data = target.read_bytes()
    place = data.index(b"dref")
    name = str(target).encode()
    body = b"\0\0\0\0" + b"\0" * 8 + name + b"\0"
    alias = struct.pack(">I", 8 + len(body)) + b"alis" + body
    path = tmp_path / "a.mov"
    path.write_bytes(data[: place + 12] + alias + data[place + 12 + 12 :])
    with av.open(str(target)) as container:
        assert container.streams.video[0].frames == 3
    target.unlink()
    make_clip(target, 3, codec="png", pixel_format="rgb24")
    _OPENED.clear()
    _WATCHING.set()
    try:
        list(VideoReader(path))
    except (ValueError, OSError):
        pass
    _WATCHING.clear()
    assert not [place for place in _OPENED if "target" in place]
