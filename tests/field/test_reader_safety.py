# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Files of strangers: nothing but the given file is opened, and no size is believed before it is checked."""

from __future__ import annotations

import resource
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import pytest
from helpers.clips import make_clip, picture
from PIL import Image

from ultraflash_diffusers.video_io import VideoReader

_OPENED: list[str] = []
_WATCHING = threading.Event()


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if _WATCHING.is_set() and event in ("open", "socket.connect"):
        _OPENED.append(str(arguments[0]))


sys.addaudithook(_note)


@contextmanager
def address_without_visitors() -> Iterator[str]:
    """The address of a server on this machine that must not be asked."""
    visits: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)

        def wait() -> None:
            try:
                while True:
                    visits.append(server.accept())
            except OSError:
                pass

        thread = threading.Thread(target=wait)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join()
    assert not visits, "the address was asked"


def lists(target: Path, address: str) -> dict[str, str]:
    """Files that name others, in every way that FFmpeg knows, some under a video's name."""
    hls = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n"
    dash = (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static">'
        '<Period><AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>{}</BaseURL>'
        "</Representation></AdaptationSet></Period></MPD>"
    )
    kinds = {
        "concat.ffconcat": "ffconcat version 1.0\nfile '{}'\n",
        "concat.mp4": "ffconcat version 1.0\nfile '{}'\n",
        "concat.txt": "file '{}'\n",
        "list.m3u8": hls,
        "list.mp4": hls,
        "list.m3u": "#EXTM3U\n{}\n",
        "list.mpd": dash,
        "list.mkv": dash,
        "list.pls": "[playlist]\nFile1={}\nNumberOfEntries=1\n",
        "list.asx": '<asx version="3.0"><entry><ref href="{}"/></entry></asx>',
        "list.smil": '<smil><body><video src="{}"/></body></smil>',
        "key.m3u8": hls.replace("#EXTINF", '#EXT-X-KEY:METHOD=AES-128,URI="{}"\n#EXTINF'),
        "map.m3u8": hls.replace("#EXTINF", '#EXT-X-MAP:URI="{}"\n#EXTINF'),
        "imf.xml": '<CompositionPlaylist xmlns="http://www.smpte-ra.org/schemas/2067-3/2016"><A>{}</A></CompositionPlaylist>',
        "vobsub.idx": "# VobSub index file, v7\nid: en, index: 0\ntimestamp: 00:00:00:000, filepos: 0\n{}",
    }
    sdp = (
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
    )
    named = {
        f"{kind}_{name}": text.replace("{}", place)
        for name, text in kinds.items()
        for kind, place in (
            ("file", str(target)),
            ("web", f"http://{address}/a.ts"),
            ("tcp", f"tcp://{address}"),
            ("sub", f"subfile,,start,0,end,0,,:{target}"),
            ("cat", f"concat:{target}|{target}"),
        )
    }
    return named | {"session.sdp": sdp, "session.mp4": sdp, "ffmetadata.txt": ";FFMETADATA1\ntitle=x\n"}


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


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(bytes(4096))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def huge_files(folder: Path) -> dict[str, Path]:
    """Small files that claim pictures of a quarter of a gigapixel."""
    still = folder / "a.png"
    still.write_bytes(png_header(16000, 16000))
    gif = folder / "a.gif"
    Image.fromarray(picture(1)).save(gif)
    data = bytearray(gif.read_bytes())
    data[6:10] = struct.pack("<HH", 16000, 16000)
    gif.write_bytes(data)
    movie = make_clip(folder / "a.mov", 3, codec="png", pixel_format="rgb24")
    content = movie.read_bytes()
    small = struct.pack(">HH", 64, 48)
    place = content.index(b"png ", content.index(b"stsd")) + 28  # of the sample entry: width and height
    assert content[place : place + 4] == small
    content = content[:place] + struct.pack(">HH", 16000, 16000) + content[place + 4 :]
    for old, new in ((struct.pack(">II", 64, 48), struct.pack(">II", 16000, 16000)),):
        content = content.replace(b"IHDR" + old, b"IHDR" + new)
    movie.write_bytes(content)
    webp = folder / "a.webp"
    first = Image.fromarray(picture(0))
    first.save(webp, save_all=True, append_images=[Image.fromarray(picture(1))])
    data = bytearray(webp.read_bytes())
    place = data.index(b"VP8X") + 12
    data[place : place + 6] = (15999).to_bytes(3, "little") * 2
    webp.write_bytes(data)
    return {"png": still, "gif": gif, "mov": movie, "webp": webp}


def test_huge_claims_are_refused_by_their_headers(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    for path in huge_files(tmp_path).values():
        with pytest.raises(ValueError):
            VideoReader(path)
    assert time.perf_counter() - start < 5
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
