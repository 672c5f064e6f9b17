# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What strangers send as videos: files that name other files and addresses, and that claim to be huge."""

from __future__ import annotations

import socket
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from .clips import make_clip, picture


@contextmanager
def address_without_visitors() -> Iterator[str]:
    """The address of a server on this machine that must not be asked."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.accept()  # whoever came meanwhile waits


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
