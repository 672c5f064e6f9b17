# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Video files: every clip is made here, with PyAV, and read or written by the real code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from helpers.clips import HEIGHT, WIDTH, copy_through, make_clip, number_of, picture
from helpers.paths import TESTS
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ultraflash_diffusers.video_io import (
    ColorTags,
    VideoReader,
    VideoWriter,
    frames_to_tensor,
    tensor_to_frames,
    write_side_by_side_png,
)
from ultraflash_diffusers.video_io.color import RGBConverter
from ultraflash_diffusers.video_io.probe import Orientation
from ultraflash_diffusers.video_io.tone_mapping import ToneMapper

pytestmark = pytest.mark.filterwarnings("error:.*:UserWarning")


def packets(path: Path, kind: str) -> list[tuple[Fraction, bytes]]:
    with av.open(str(path)) as container:
        (stream,) = [stream for stream in container.streams if stream.type == kind]
        return [(packet.pts * packet.time_base, bytes(packet)) for packet in container.demux(stream) if packet.size]


def times(path: Path) -> list[Fraction]:
    reader = VideoReader(path)
    return [frame.pts * reader.info.time_base for frame in reader]


def rotate(path: Path, matrix: Sequence[int]) -> Path:
    """Writes a display matrix [a, b, c, d] into an MP4 file's track header."""
    data = bytearray(path.read_bytes())
    offset = data.index(b"tkhd") + 4 + 40
    table = [matrix[0], matrix[1], 0, matrix[2], matrix[3], 0, 0, 0, 0x4000]
    data[offset : offset + 36] = b"".join((value << 16).to_bytes(4, "big", signed=True) for value in table)
    path.write_bytes(data)
    return path


def erase_packets(path: Path, numbers: Sequence[int]) -> None:
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        contents = [bytes(packet) for packet in container.demux(video=0)]
    for number in numbers:
        position = data.index(contents[number])
        data[position : position + len(contents[number])] = b"?" * len(contents[number])
    path.write_bytes(data)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="module")
def clip(clips: Path) -> Path:
    """Twenty frames with B-frames, several groups of pictures, sound and subtitles."""
    return make_clip(clips / "clip.mp4", audio="aac", subtitles="mov_text", options={"g": "8", "bf": "2"})


# Reading


def test_probe(clip: Path) -> None:
    info = VideoReader(clip).info
    assert (info.width, info.height, info.fps, info.num_frames) == (WIDTH, HEIGHT, 25, 20)
    assert (info.duration, info.time_base, info.start_pts) == (Fraction(4, 5), Fraction(1, 12800), 0)
    assert (info.rotation, info.sample_aspect_ratio, info.bit_depth) == (0, 1, 8)
    assert (info.codec, info.pixel_format) == ("h264", "yuv420p")
    assert (info.has_audio, info.has_subtitles, info.has_alpha) == (True, True, False)
    # untagged and small: BT.601, limited
    assert info.color == ColorTags(2, 2, 6, False)


def test_frames_in_order_with_timestamps_and_again(clip: Path) -> None:
    reader = VideoReader(clip)
    for _ in range(2):
        frames = list(reader)
        assert [number_of(frame.pixels) for frame in frames] == list(range(20))
        assert [frame.pts for frame in frames] == [512 * index for index in range(20)]
        assert [frame.duration for frame in frames] == [512] * 20
        assert frames[3].pixels.shape == (HEIGHT, WIDTH, 3) and frames[3].pixels.dtype == np.uint8
        assert reader.frames_read == 20 and reader.frames_damaged == 0


@pytest.mark.parametrize("name", ["mp4", "mkv", "ts", "avi"])
def test_seek_is_exact(clips: Path, name: str) -> None:
    codec = "mpeg4" if name == "avi" else "libx264"
    time_base = Fraction(1, 25) if name == "avi" else Fraction(1, 12800)
    path = make_clip(clips / f"seek.{name}", codec=codec, time_base=time_base, options={"g": "6", "bf": "2"})
    reader = VideoReader(path)
    whole = list(reader)
    assert [number_of(frame.pixels) for frame in whole] == list(range(20))
    for start in (0, 1, 5, 6, 13, 19, 20):
        for after_pts in (None, whole[start - 1].pts if start else None):
            reader.seek(start, after_pts)
            tail = list(reader)
            assert [frame.index for frame in tail] == list(range(start, 20))
            for frame, expected in zip(tail, whole[start:], strict=True):
                assert (frame.pts, frame.duration) == (expected.pts, expected.duration)
                assert np.array_equal(frame.pixels, expected.pixels)


def test_seek_with_a_hint_does_not_decode_what_comes_before(clips: Path) -> None:
    path = make_clip(clips / "jump.mov", 60, codec="png", pixel_format="rgb24")
    erase_packets(path, range(1, 40))
    reader = VideoReader(path)
    reader.seek(45, after_pts=44 * 512)
    assert [number_of(frame.pixels) for frame in reader] == list(range(45, 60))
    assert reader.frames_damaged == 0
    reader.seek(5)  # counts the frames that decode
    with pytest.warns(UserWarning, match="21 of the 60 frames"):
        assert [number_of(frame.pixels) for frame in reader] == list(range(44, 60))


def test_seek_beyond_the_end_and_a_wrong_hint(clip: Path) -> None:
    reader = VideoReader(clip)
    with pytest.raises(ValueError, match="0 or more, got -1"):
        reader.seek(-1)
    reader.seek(21)
    with pytest.raises(ValueError, match="21 is beyond the end.*20 frames"):
        list(reader)
    reader.seek(10, after_pts=9 * 512 + 1)  # no frame has this time: counted instead
    assert [number_of(frame.pixels) for frame in reader] == list(range(10, 20))


def test_memory_is_constant(clips: Path) -> None:
    path = make_clip(clips / "long.mp4", frames=200, options={"preset": "ultrafast"})
    alive: list[weakref.ref[np.ndarray]] = []
    for frame in VideoReader(path):
        alive = [reference for reference in alive if reference() is not None] + [weakref.ref(frame.pixels)]
        assert len(alive) <= 2
    assert frame.index == 199


def yuv_to_rgb(planes: Sequence[np.ndarray], matrix: int, full_range: bool, bits: int) -> np.ndarray:
    """The definition (ITU-T H.273), in floating point, for planes of full size."""
    red, blue = {1: (0.2126, 0.0722), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}[matrix]
    luma, cb, cr = (plane.astype(np.float64) / 2 ** (bits - 8) for plane in planes)
    luma, cb, cr = (luma if full_range else (luma - 16) * 255 / 219), cb - 128, cr - 128
    cb, cr = (cb, cr) if full_range else (cb * 255 / 224, cr * 255 / 224)
    r, b = luma + 2 * (1 - red) * cr, luma + 2 * (1 - blue) * cb
    return np.clip(np.stack([r, (luma - red * r - blue * b) / (1 - red - blue), b], -1), 0, 255)


@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("matrix", [1, 6, 9])
def test_color_by_the_clips_own_matrix_range_and_depth(
    tmp_path: Path, matrix: int, full_range: bool, bits: int
) -> None:
    scale, kind = 2 ** (bits - 8), np.uint8 if bits == 8 else np.uint16
    generator = np.random.default_rng(0)
    planes = [generator.integers(60 * scale, 180 * scale, (HEIGHT, WIDTH)).astype(kind) for _ in range(3)]
    frame = av.VideoFrame(WIDTH, HEIGHT, "yuv444p" if bits == 8 else "yuv444p10le")
    for plane, values in zip(frame.planes, planes, strict=True):
        rows = np.zeros((plane.height, plane.line_size // values.itemsize), kind)
        rows[:, :WIDTH] = values
        plane.update(rows.tobytes())
    path = tmp_path / "color.mkv"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("ffv1", rate=25, width=WIDTH, height=HEIGHT)  # lossless
        context = stream.codec_context
        context.pix_fmt, context.colorspace, context.color_range = frame.format.name, matrix, 1 + full_range
        context.color_primaries, context.color_trc = 1, 1
        frame.pts, frame.colorspace, frame.color_range = 0, matrix, 1 + full_range
        frame.color_primaries, frame.color_trc = 1, 1
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    reader = VideoReader(path)
    assert reader.info.color == ColorTags(1, 1, matrix, full_range) and reader.info.bit_depth == bits
    (decoded,) = reader
    error = decoded.pixels - yuv_to_rgb(planes, matrix, full_range, bits)
    assert np.abs(error).max() < 1.2 and abs(error.mean()) < 0.4


@pytest.mark.parametrize("matrix", [1, 6, 9])
@pytest.mark.parametrize("full_range", [False, True])
def test_color_there_and_back(matrix: int, full_range: bool) -> None:
    pixels = picture(5)
    converter = RGBConverter(ColorTags(1, 1, matrix, full_range))
    frame = converter.from_rgb(pixels, "yuv444p")
    assert (frame.colorspace, frame.color_range) == (matrix, 1 + full_range)
    error = RGBConverter(converter.color).to_rgb(frame).astype(int) - pixels
    assert np.abs(error).max() <= 4 and abs(error.mean()) < 0.7


@pytest.mark.parametrize(
    ("matrix", "upright", "degrees"),
    [
        ((1, 0, 0, 1), lambda x: x, 0),
        ((0, 1, -1, 0), lambda x: np.rot90(x, -1), 90),
        ((-1, 0, 0, -1), lambda x: np.rot90(x, 2), 180),
        ((0, -1, 1, 0), lambda x: np.rot90(x, 1), 270),
        ((-1, 0, 0, 1), lambda x: x[:, ::-1], 0),
    ],
)
def test_rotation_is_applied(tmp_path: Path, matrix: Sequence[int], upright, degrees: int) -> None:
    path = make_clip(tmp_path / "phone.mp4", frames=3)
    stored = [frame.pixels for frame in VideoReader(path)]
    reader = VideoReader(rotate(path, matrix))
    assert reader.info.rotation == degrees
    assert [reader.info.height, reader.info.width] == list(upright(stored[0]).shape[:2])
    for frame, pixels in zip(reader, stored, strict=True):
        assert np.array_equal(frame.pixels, upright(pixels))
    copy_through(path, tmp_path / "upright.mp4")
    written = VideoReader(tmp_path / "upright.mp4")
    assert written.info.orientation == Orientation()
    assert (written.info.width, written.info.height) == (reader.info.width, reader.info.height)


def test_odd_angle_is_ignored_with_a_warning(tmp_path: Path) -> None:
    path = rotate(make_clip(tmp_path / "tilted.mp4", frames=1), (1, 1, -1, 1))
    with pytest.warns(UserWarning, match="no quarter turn"):
        assert VideoReader(path).info.orientation == Orientation()


def test_pixel_aspect_turns_and_is_handed_on(tmp_path: Path) -> None:
    path = tmp_path / "anamorphic.mp4"
    make_clip(path, frames=2, options={"x264-params": "sar=4/3"})
    assert VideoReader(path).info.sample_aspect_ratio == Fraction(4, 3)
    copy_through(path, tmp_path / "out.mp4")
    assert VideoReader(tmp_path / "out.mp4").info.sample_aspect_ratio == Fraction(4, 3)
    assert VideoReader(rotate(path, (0, 1, -1, 0))).info.sample_aspect_ratio == Fraction(3, 4)


@pytest.mark.parametrize(
    ("codec", "pixel_format", "name"), [("qtrle", "argb", "alpha.mov"), ("prores_ks", "yuva444p10le", "alpha2.mov")]
)
def test_alpha_is_put_on_black(tmp_path: Path, codec: str, pixel_format: str, name: str) -> None:
    path = tmp_path / name
    rgba = np.dstack([np.full((HEIGHT, WIDTH, 3), 200, np.uint8), np.full((HEIGHT, WIDTH), 255, np.uint8)])
    rgba[:, : WIDTH // 2, 3] = 0
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=25, width=WIDTH, height=HEIGHT)
        stream.pix_fmt = pixel_format
        frame = av.VideoFrame.from_ndarray(rgba, format="rgba").reformat(format=pixel_format)
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    with pytest.warns(UserWarning, match="black background"):
        reader = VideoReader(path)
    assert reader.info.has_alpha
    (frame,) = reader
    assert frame.pixels[:, : WIDTH // 2 - 8].max() <= 3
    assert np.abs(frame.pixels[:, WIDTH // 2 + 8 :].astype(int) - 200).max() <= 6


def test_separate_alpha_layer_is_reported(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "alpha.webm", 2, codec="libvpx-vp9", pixel_format="yuva420p")
    with pytest.warns(UserWarning, match="alpha layer is dropped"):
        assert VideoReader(path).info.has_alpha


def make_hdr_clip(path: Path, transfer: str = "smpte2084", frames: int = 2) -> Path:
    tags = {"x264-params": f"colorprim=bt2020:transfer={transfer}:colormatrix=bt2020nc"}
    return make_clip(path, frames=frames, pixel_format="yuv420p10le", options=tags)


def test_hdr_in_ten_bits_keeps_its_tags_and_values(tmp_path: Path) -> None:
    path = make_hdr_clip(tmp_path / "hdr.mp4", frames=60)
    reader = VideoReader(path, high_bit_depth=True)
    assert reader.info.bit_depth == 10 and reader.info.color == ColorTags(9, 16, 9, False)
    with pytest.raises(ValueError, match="`bit_depth` is 8, but the frames of .*hdr.mp4' are PQ: give 10"):
        VideoWriter(tmp_path / "out.mp4", WIDTH, HEIGHT, source=reader)
    for name in ("out.mp4", "out.mkv", "out.mov"):
        with VideoWriter(tmp_path / name, WIDTH, HEIGHT, source=reader, bit_depth=10, crf=4) as writer:
            for frame in reader:
                writer.write([frame.pixels], [frame.pts], [frame.duration])
        written = VideoReader(tmp_path / name, high_bit_depth=True)
        assert (written.info.codec, written.info.pixel_format) == ("hevc", "yuv420p10le")
        assert written.info.color == reader.info.color
        for frame, original in zip(written, reader, strict=True):
            assert frame.pixels.dtype == np.uint16
            assert np.abs(frame.pixels.astype(int) - original.pixels).mean() < 3 * 257
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].codec_tag == "hvc1"


def test_the_mastering_display_of_hdr10_is_kept(tmp_path: Path) -> None:
    display, levels = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)", "1000,400"
    tags = "colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc"
    options = {"x265-params": f"log-level=none:{tags}:master-display={display}:max-cll={levels}"}
    path = make_clip(tmp_path / "a.mkv", 3, codec="libx265", pixel_format="yuv420p10le", options=options)
    for name in ("out.mp4", "out.mkv"):
        copy_through(path, tmp_path / name, high_bit_depth=True, bit_depth=10)
        color = VideoReader(tmp_path / name, high_bit_depth=True).info.color
        assert (color.hdr, color.mastering_display, color.light_levels) == ("PQ", display, levels)


@pytest.mark.parametrize(("transfer", "name"), [("smpte2084", "PQ"), ("arib-std-b67", "HLG")])
def test_hdr_in_eight_bits_is_brought_to_standard_range_and_says_so(tmp_path: Path, transfer: str, name: str) -> None:
    path = make_hdr_clip(tmp_path / "hdr.mp4", transfer)
    with pytest.warns(UserWarning, match=f"HDR .{name}. and is brought to standard range"):
        reader = copy_through(path, tmp_path / "out.mp4")
    assert reader.info.color == ColorTags(1, 1, 1, False) and reader.info.stored_color.hdr == name
    written = VideoReader(tmp_path / "out.mp4")
    assert written.info.color == ColorTags(1, 1, 1, False) and written.info.bit_depth == 8


def test_tone_mapping_keeps_paper_white_and_order() -> None:
    """203 cd/m2, PQ's and HLG's paper white, lands near the top of the range; what is darker keeps its light."""
    for transfer, paper, dark in ((16, 0.5807, 0.3815), (18, 0.75, 0.3)):
        mapper = ToneMapper(ColorTags(9, transfer, 9))
        ramp = mapper(np.repeat(np.linspace(0, 65535, 1024).astype(np.uint16)[None, :, None], 3, axis=-1))
        assert (np.diff(ramp[0].astype(int), axis=0) >= 0).all() and ramp[0, 0].max() == 0
        assert ramp.max() == 255 and np.ptp(ramp.astype(int), axis=-1).max() <= 1, "grey stays grey"
        white, shadow = (mapper(np.full((1, 1, 3), value * 65535, np.uint16))[0, 0, 0] for value in (paper, dark))
        assert 235 <= white <= 246, "a grey card's white does not clip and does not go grey"
        assert shadow < white / 2


def test_start_offset_is_taken_off_pictures_and_sound(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "late.ts", audio="aac", start=Fraction(10))
    with av.open(str(path)) as container:
        assert container.start_time > 9_000_000
        offset = Fraction(container.streams.video[0].start_time - container.streams.audio[0].start_time, 90000)
    copy_through(path, tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.start_time == 0
    video, audio = packets(tmp_path / "out.mp4", "video"), packets(tmp_path / "out.mp4", "audio")
    assert abs((video[0][0] - audio[0][0]) - offset) < Fraction(1, 1000)
    assert [data for _, data in audio] and max(video[0][0], audio[0][0]) < 0.1


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, FileNotFoundError, "does not exist"),
        (b"", ValueError, "is empty"),
        (b"no video at all\n" * 100, ValueError, "is no video"),
        (bytes(range(256)) * 64, ValueError, "is no video"),
    ],
)
@pytest.mark.parametrize("name", ["bad.mp4", "bad.txt", "bad:name.mkv"])
def test_unreadable_files(
    tmp_path: Path, content: bytes | None, error: type[Exception], message: str, name: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=f"bad.*{message}"):
        VideoReader(path)


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="is a folder"):
        VideoReader(tmp_path)


def test_playlists_do_not_open_other_files(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "list.ffconcat").write_text(f"ffconcat version 1.0\nfile '{clip}'\n")
    (tmp_path / "list.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{clip}\n#EXT-X-ENDLIST\n")
    for path in tmp_path.iterdir():
        with pytest.raises(ValueError, match="is no video|names others"):
            VideoReader(path)


def test_a_colon_in_the_name(clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "http:clip.mp4"
    path.write_bytes(clip.read_bytes())
    assert VideoReader(path).info.num_frames == 20
    copy_through(path, tmp_path / "data:out.mp4")
    assert len(list(VideoReader(tmp_path / "data:out.mp4"))) == 20


# FFmpeg's MP4 has no titles of tracks, and its chapters would be a track of their own, which a warning tells of
@pytest.mark.parametrize(("name", "chapters", "tagged"), [("tagged.mp4", 0, 1), ("tagged.mkv", 1, 3)])
def test_a_tag_in_another_encoding_stops_nothing(tmp_path: Path, name: str, chapters: int, tagged: int) -> None:
    path, copy = tmp_path / name, tmp_path / f"copy_{name}"
    with av.open(str(make_clip(tmp_path / f"plain_{name}", audio="aac"))) as plain, av.open(str(path), "w") as output:
        tracks = [output.add_stream_from_template(stream) for stream in plain.streams]
        title = {"title": "a title: cafX"}
        output.metadata.update(title)
        tracks[1].metadata.update(title)
        chapter = {"id": 1, "start": 0, "end": 400, "time_base": Fraction(1, 1000), "metadata": title}
        output.set_chapters([chapter] * chapters)
        for packet in plain.demux():
            if packet.size:
                packet.stream = tracks[packet.stream.index]
                output.mux(packet)
    path.write_bytes(path.read_bytes().replace(b"cafX", "café".encode("latin-1")))
    copy_through(path, copy)
    assert len(list(VideoReader(copy))) == 20
    with av.open(str(copy)) as container:
        tags = [holder.metadata for holder in (container, *container.streams)]
        titles = [entry["title"] for entry in tags if "title" in entry]
        titles += [chapter["metadata"]["title"] for chapter in container.chapters()]
    assert len(titles) == tagged
    # the byte as it was, which Python holds as half a surrogate pair, or U+FFFD in its place
    assert all(title in ("a title: caf\udce9", "a title: caf\ufffd") for title in titles)


def test_sound_only_and_cover_art(tmp_path: Path, clip: Path) -> None:
    with av.open(str(clip)) as source, av.open(str(tmp_path / "sound.m4a"), "w", format="mp4") as output:
        sound = output.add_stream_from_template(source.streams.audio[0])
        cover = output.add_stream("mjpeg", rate=1, width=WIDTH, height=HEIGHT)
        cover.pix_fmt, cover.codec_context.color_range = "yuvj420p", 2
        cover.disposition = av.stream.Disposition.attached_pic
        output.start_encoding()
        output.mux(cover.encode(av.VideoFrame.from_ndarray(picture(1)).reformat(format="yuvj420p")))
        for packet in source.demux(audio=0):
            if packet.size:
                packet.stream = sound
                output.mux(packet)
    with pytest.raises(ValueError, match="sound.m4a.*no video track.*audio"):
        VideoReader(tmp_path / "sound.m4a")


@pytest.mark.parametrize("name", ["none.mkv", "none.mp4"])
def test_no_frames(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25, width=WIDTH, height=HEIGHT)
        stream.pix_fmt = "yuv420p"
        output.start_encoding()
    with pytest.raises(ValueError, match=f"{name}.*(not one frame|first frame|video track with frames)"):
        VideoReader(path)


def test_cut_off_before_the_index(tmp_path: Path, clip: Path) -> None:
    path = tmp_path / "cut.mp4"
    path.write_bytes(clip.read_bytes()[:-200])
    with pytest.raises(ValueError, match="cut.mp4.*cut off before its index"):
        VideoReader(path)


@pytest.mark.parametrize("name", ["faststart.mp4", "cut.mkv"])
def test_truncated_tail_gives_the_frames_that_decode(tmp_path: Path, name: str) -> None:
    options = {"movflags": "faststart"} if name.endswith("mp4") else {}
    path = make_clip(tmp_path / name, frames=40, options={"g": "5", "bf": "0"}, container_options=options)
    whole = [frame.pixels for frame in VideoReader(path)]
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
    reader = VideoReader(path)
    with pytest.warns(UserWarning, match=rf"{name}.*cut short.*\d+.*frames"):
        frames = [frame.pixels for frame in reader]
    assert 5 < len(frames) < 35
    assert all(np.array_equal(frame, expected) for frame, expected in zip(frames, whole, strict=False))


def test_damage_in_the_middle_is_counted(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "hurt.mov", 20, codec="png", pixel_format="rgb24")
    erase_packets(path, [10])
    reader = VideoReader(path)
    with pytest.warns(UserWarning, match="hurt.mov.*19 of the 20 frames"):
        frames = list(reader)
    assert reader.frames_damaged == 1 and [frame.index for frame in frames] == list(range(19))
    assert [frame.pts for frame in frames] == [512 * index for index in range(20) if index != 10]


def test_one_frame_clip(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "one.mp4", frames=1)
    reader = copy_through(path, tmp_path / "out.mp4")
    assert reader.info.num_frames == 1
    (frame,) = VideoReader(tmp_path / "out.mp4")
    assert frame.pts == 0 and frame.duration * VideoReader(tmp_path / "out.mp4").info.time_base == Fraction(1, 25)


@pytest.mark.parametrize("width", [64, 88])  # 88 and 96 fill the same macroblocks
@pytest.mark.parametrize("ending", ["h264", "ts", "mpg"])
def test_frame_size_changing_in_mid_stream(ending: str, width: int, tmp_path: Path) -> None:
    parts = [make_clip(tmp_path / f"{w}.{ending}", 5, size=(w, 48), options={"bf": "0"}) for w in (width, 96)]
    path = tmp_path / f"both.{ending}"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    seen = []
    with (
        warnings.catch_warnings(action="ignore"),  # of timestamps that start anew
        pytest.raises(ValueError, match=f"at frame 5: 96x48 after {width}x48"),
    ):
        seen.extend(VideoReader(path))
    assert [frame.index for frame in seen] == list(range(5))


def test_missing_timestamps_are_filled_in(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "raw.h264", 6, options={"bf": "0"})
    with av.open(str(path)) as container:
        assert all(frame.pts is None for frame in container.decode(video=0))
    reader = VideoReader(path)
    with pytest.warns(UserWarning, match="6 timestamps were missing"):
        frames = list(reader)
    assert [number_of(frame.pixels) for frame in frames] == list(range(6))
    steps = np.diff([frame.pts for frame in frames])
    assert (steps == reader.info.ticks_per_frame).all()


# Writing


def test_round_trip_keeps_everything(clip: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    reader = copy_through(clip, output)
    written = VideoReader(output)
    assert written.info.fps == 25 and written.info.color == reader.info.color
    for frame, original in zip(written, reader, strict=True):
        assert frame.pts * written.info.time_base == original.pts * reader.info.time_base
        assert np.abs(frame.pixels.astype(int) - original.pixels).mean() < 3
    assert packets(output, "audio") == packets(clip, "audio")
    texts = [(time, data) for time, data in packets(output, "subtitle") if len(data) > 2]
    assert texts == [(time, data) for time, data in packets(clip, "subtitle") if len(data) > 2] and len(texts) == 2
    with av.open(str(output)) as container:
        assert container.streams.subtitles[0].language == "deu"
    assert list(tmp_path.iterdir()) == [output]


def test_playable_in_browsers(clip: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    copy_through(clip, output)
    data = output.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat") and b"moof" not in data
    with av.open(str(output)) as container:
        context = container.streams.video[0].codec_context
        assert (context.codec.name, context.pix_fmt, context.profile) == ("h264", "yuv420p", "High")
        assert container.streams.audio[0].codec_context.codec.name == "aac"


@given(steps=st.lists(st.integers(1, 20_000), min_size=1, max_size=24), start=st.integers(0, 5000))
@settings(max_examples=12, deadline=None)
def test_any_timestamps_are_kept(tmp_path_factory: pytest.TempPathFactory, steps: list[int], start: int) -> None:
    folder = tmp_path_factory.mktemp("vfr")
    pts = [start + int(time) for time in np.cumsum([0, *steps[:-1]])]
    source = VideoReader(make_clip(folder / "source.mp4", frames=1))
    with VideoWriter(folder / "out.mp4", WIDTH, HEIGHT, source=source, preset="ultrafast") as writer:
        for index, time in enumerate(pts):
            writer.write(picture(index)[None], [time], [steps[-1]])
            if index % 5 == 2:
                writer.checkpoint()
    with av.open(str(folder / "out.mp4")) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        assert [frame.pts * stream.time_base for frame in frames] == [Fraction(time, 12800) for time in pts]
        assert frames[-1].duration * stream.time_base == Fraction(steps[-1], 12800)
    assert [number_of(frame.to_ndarray(format="rgb24")) for frame in frames] == list(range(len(pts)))


def test_variable_rate_clip_to_matroska_and_back(tmp_path: Path) -> None:
    pts = [0, 40, 41, 100, 500, 533, 1200]
    path = make_clip(tmp_path / "vfr.mkv", 7, time_base=Fraction(1, 1000), pts=pts)
    for name in ("out.mkv", "out.mp4", "out.mov"):
        copy_through(path, tmp_path / name)
        assert times(tmp_path / name) == [Fraction(time, 1000) for time in pts]


@pytest.mark.parametrize("size", [(63, 48), (64, 47), (17, 1)])
def test_odd_sizes_are_exact(tmp_path: Path, size: tuple[int, int]) -> None:
    output = tmp_path / "odd.mp4"
    frames = np.stack([picture(index, size[1], size[0]) for index in range(3)])
    with pytest.warns(UserWarning, match="4:4:4"), VideoWriter(output, *size, fps=24) as writer:
        writer.write(frames)
    info = VideoReader(output).info
    assert (info.width, info.height, info.pixel_format) == (*size, "yuv444p")
    decoded = np.stack([frame.pixels for frame in VideoReader(output)])
    assert np.abs(decoded.astype(int) - frames).mean() < 6


def test_tensors_arrays_and_lists_give_the_same_file(tmp_path: Path) -> None:
    frames = np.stack([picture(index) for index in range(4)])
    kinds = (frames, torch.from_numpy(frames), list(frames), frames_to_tensor(frames))
    files = []
    for index, kind in enumerate(kinds):
        with VideoWriter(tmp_path / f"{index}.mp4", WIDTH, HEIGHT, fps=Fraction(24000, 1001)) as writer:
            writer.write(kind)
        files.append((tmp_path / f"{index}.mp4").read_bytes())
    assert all(file == files[0] for file in files)
    assert VideoReader(tmp_path / "0.mp4").info.fps == Fraction(24000, 1001)


@pytest.mark.parametrize(("audio", "name"), [("pcm_s16le", "sound.mov"), ("flac", "sound.mkv")])
def test_sound_that_the_container_does_not_take(tmp_path: Path, audio: str, name: str) -> None:
    path = make_clip(tmp_path / name, audio=audio)
    output = tmp_path / ("out.mp4" if audio.startswith("pcm") else "out.mov")
    with pytest.warns(UserWarning, match=f"{name}.*{audio}.*AAC") as caught:
        copy_through(path, output)
    assert len(caught) == 1
    with av.open(str(output)) as container:
        (stream,) = container.streams.audio
        wave = np.concatenate([frame.to_ndarray() for frame in container.decode(stream)], axis=1)[0]
        assert stream.codec_context.codec.name == "aac"
    assert abs(wave.shape[0] - 37 * 1024) <= 2048 and abs(wave[8192:16384].std() - 0.3 / 2**0.5) < 0.02


def test_matroska_and_mov_keep_pcm(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "sound.mov", audio="pcm_s16le")
    for name in ("out.mov", "out.mkv"):
        copy_through(path, tmp_path / name)
        assert b"".join(data for _, data in packets(tmp_path / name, "audio")) == b"".join(
            data for _, data in packets(path, "audio")
        )


@pytest.mark.parametrize("codec", ["subrip", "ass", "webvtt"])
def test_text_subtitles_become_those_of_mp4(tmp_path: Path, codec: str) -> None:
    path = make_clip(tmp_path / "text.mkv", subtitles=codec)
    copy_through(path, tmp_path / "out.mp4")
    texts = [(time, data) for time, data in packets(tmp_path / "out.mp4", "subtitle") if len(data) > 2]
    assert texts == [(0, b"\0\5Hello"), (Fraction(2, 5), b"\0\5World")]
    copy_through(path, tmp_path / "out.mkv")
    assert packets(tmp_path / "out.mkv", "subtitle") == packets(path, "subtitle")


def test_mp4_subtitles_in_matroska(clip: Path, tmp_path: Path) -> None:
    copy_through(clip, tmp_path / "out.mkv")
    assert packets(tmp_path / "out.mkv", "subtitle") == [(0, b"Hello"), (Fraction(2, 5), b"World")]
    assert times(tmp_path / "out.mkv") == [Fraction(index, 25) for index in range(20)]


def test_fewer_frames_cut_the_sound_and_all_frames_do_not(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "music.mp4", audio="aac", seconds_of_audio=2.0)  # of 0.8 s with pictures
    copy_through(path, tmp_path / "all.mp4")
    assert packets(tmp_path / "all.mp4", "audio") == packets(path, "audio")
    reader = VideoReader(path)
    with VideoWriter(tmp_path / "some.mp4", WIDTH, HEIGHT, source=reader) as writer:
        for frame in reader:
            if frame.index < 10:
                writer.write([frame.pixels], [frame.pts])
    last_time = packets(tmp_path / "some.mp4", "audio")[-1][0]
    assert Fraction(35, 100) < last_time < Fraction(40, 100)


@pytest.mark.parametrize("late", [0, 2])
def test_metadata_and_chapters(clip: Path, tmp_path: Path, late: int) -> None:
    source = tmp_path / "tagged.mkv"
    with av.open(str(clip)) as container, av.open(str(source), "w") as output:
        stream = output.add_stream_from_template(container.streams.video[0], opaque=True)
        output.metadata["title"] = "Ein Titel"
        chapter = {"id": 1, "start": 1000 * late + 80, "end": 1000 * late + 400, "time_base": Fraction(1, 1000)}
        output.set_chapters([chapter | {"metadata": {"title": "One"}}])
        for packet in container.demux(video=0):
            if packet.size:
                packet.pts += late / packet.time_base
                packet.dts += late / packet.time_base
                packet.stream = stream
                output.mux(packet)
    for name, frames in (("out.mkv", None), ("some.mkv", 5)):
        copy_through(source, tmp_path / name, frames)
        with av.open(str(tmp_path / name)) as container:
            assert container.metadata["title"] == "Ein Titel"
            (chapter,) = container.chapters()
        times = [chapter[key] * chapter["time_base"] for key in ("start", "end")]
        assert chapter["metadata"]["title"] == "One"
        assert times == [Fraction(80, 1000), Fraction(400 if frames is None else 200, 1000)]
    copy_through(source, tmp_path / "out.mp4")
    with pytest.warns(UserWarning, match=r"not copied: \['data'\] \(its chapters are\)"):
        copy_through(tmp_path / "out.mp4", tmp_path / "again.mp4")
    with av.open(str(tmp_path / "again.mp4")) as container:
        assert container.metadata["title"] == "Ein Titel"
        assert [chapter["metadata"]["title"] for chapter in container.chapters()] == ["One"]


def test_another_text_in_place_of_the_duration(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "clip.mkv")
    content = path.read_bytes()
    assert content.count(b"00:00:00.800000000") == 1
    path.write_bytes(content.replace(b"00:00:00.800000000", b"a little less: 0.8"))
    assert len(list(VideoReader(path))) == 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, "`width` must be from 1"),
        ({"height": 20000}, "`height` must be from 1 to 16384, got 20000"),
        ({"crf": 0}, "`crf`.*got 0"),
        ({"preset": "quick"}, "`preset`.*'quick'"),
        ({"fps": 0}, "`fps`.*got 0"),
        ({"fps": None}, "`source` or `fps`, got neither"),
        ({"path": "out.gif"}, r"out.gif.*\.mp4"),
        ({"path": "out"}, r"'.*out'.*\.mp4"),
    ],
)
def test_wrong_arguments(tmp_path: Path, arguments: dict[str, object], message: str) -> None:
    given_arguments: dict = {"path": "out.mp4", "width": WIDTH, "height": HEIGHT, "fps": 24} | arguments
    given_arguments["path"] = tmp_path / given_arguments["path"]
    with pytest.raises(ValueError, match=message):
        VideoWriter(**given_arguments)
    assert not list(tmp_path.iterdir())


def test_outputs_that_cannot_be_written(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(IsADirectoryError, match="folder.mp4"):
        VideoWriter(tmp_path / "folder.mp4", WIDTH, HEIGHT, fps=24)
    with pytest.raises(FileNotFoundError, match="no folder.*missing"):
        VideoWriter(tmp_path / "missing" / "out.mp4", WIDTH, HEIGHT, fps=24)
    with pytest.raises(OSError, match="xxx.*mp4"):
        VideoWriter(tmp_path / ("x" * 245 + ".mp4"), WIDTH, HEIGHT, fps=24)
    copy = tmp_path / "clip.mp4"
    copy.write_bytes(clip.read_bytes())
    with pytest.raises(ValueError, match="is the source itself"):
        VideoWriter(copy, WIDTH, HEIGHT, source=VideoReader(copy), overwrite=True)
    assert copy.read_bytes() == clip.read_bytes()


def test_wrong_frames(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="no frames were written"),
        VideoWriter(tmp_path / "out.mp4", WIDTH, HEIGHT, fps=24) as writer,
    ):
        frame = picture(0)[None]
        for bad, error, message in (
            (frame[0], ValueError, "shape"),
            (frame.astype(np.float32), TypeError, "uint8, got float32"),
            (frame[:, 1:], ValueError, f"{WIDTH}x{HEIGHT - 1}.*{WIDTH}x{HEIGHT}"),
            (torch.full((1, 3, 1, HEIGHT, WIDTH), torch.nan), ValueError, "not finite"),
        ):
            with pytest.raises(error, match=message):
                writer.write(bad)
        for times_of_frames in ([5, 5], [-1, 0], [7, 3], [0]):
            with pytest.raises(ValueError, match="pts"):
                writer.write(np.concatenate([frame, frame]), times_of_frames)
    assert not list(tmp_path.iterdir())


def test_finished_files_are_not_overwritten_unasked(tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    output.write_bytes(b"precious")
    for resume in (False, True):
        with pytest.raises(FileExistsError, match="out.mp4.*overwrite=True"):
            VideoWriter(output, WIDTH, HEIGHT, fps=24, resume=resume)
    with pytest.raises(RuntimeError), VideoWriter(output, WIDTH, HEIGHT, fps=24, overwrite=True) as writer:
        writer.write(picture(0)[None])
        raise RuntimeError
    assert output.read_bytes() == b"precious"  # until the new one is finished
    with VideoWriter(output, WIDTH, HEIGHT, fps=24, overwrite=True) as writer:
        writer.write(picture(0)[None])
    assert len(list(VideoReader(output))) == 1
    with pytest.raises(ValueError, match="closed"):
        writer.write(picture(0)[None])


# Interruptions


def test_an_exception_keeps_all_frames_and_resuming_goes_on(clip: Path, tmp_path: Path) -> None:
    def run(output: Path, stop: int | None = None, **options: bool) -> VideoWriter:
        reader = VideoReader(clip)
        # slower presets' macroblock tree does not give the same bytes each time
        with VideoWriter(output, WIDTH, HEIGHT, source=reader, preset="ultrafast", **options) as writer:
            reader.seek(writer.frames_done, writer.last_pts)
            for frame in reader:
                if frame.index == stop:
                    raise KeyboardInterrupt
                writer.write([frame.pixels], [frame.pts], [frame.duration])
                if frame.index % 6 == 5:
                    writer.checkpoint()
        return writer

    run(tmp_path / "whole.mp4")
    output = tmp_path / "out.mp4"
    for stop, kept in ((10, 6), (14, 12)):
        with pytest.raises(KeyboardInterrupt):
            run(output, stop, resume=True)
        partial = VideoReader(tmp_path / "out.mp4.partial.mp4")
        assert [number_of(frame.pixels) for frame in partial] == list(range(stop))
        assert json.loads((tmp_path / "out.mp4.partial.json").read_text())["frames"] == kept
        assert not output.exists()
        with pytest.raises(FileExistsError, match="interrupted run.*resume=True"):
            run(output)
    run(output, resume=True)
    assert output.read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.mp4", "whole.mp4"]


WRITE_AND_DIE = """
import os, resource, signal, sys
from pathlib import Path
import numpy as np
sys.path.insert(0, {tests!r})
from helpers.clips import HEIGHT, WIDTH, picture
from ultraflash_diffusers.video_io import VideoReader, VideoWriter

reader = VideoReader({source!r})
writer = VideoWriter({output!r}, WIDTH, HEIGHT, source=reader, preset="ultrafast", resume=True)
reader.seek(writer.frames_done, writer.last_pts)
for frame in reader:
    writer.write([frame.pixels], [frame.pts])
    if frame.index % {checkpoints} == {checkpoints} - 1:
        writer.checkpoint(lambda path: path.write_text(str(frame.index + 1)))
    {action}
{end}
"""


def run_script(
    action: str, end: str, source: Path, output: Path, checkpoints: int = 10
) -> subprocess.CompletedProcess[str]:
    """Copies `source` to `output` in another process, doing `action` after each frame and `end` at the end."""
    tests = str(TESTS)
    script = WRITE_AND_DIE.format(
        tests=tests, source=str(source), output=str(output), action=action, end=end, checkpoints=checkpoints
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_kill_and_resume_equals_an_uninterrupted_run(tmp_path: Path) -> None:
    pts = [index * 512 + (index * 37) % 300 for index in range(90)]
    source = make_clip(tmp_path / "source.mp4", 90, pts=pts, audio="aac", seconds_of_audio=3.6)
    output, whole = tmp_path / "out.mp4", tmp_path / "whole.mp4"
    die = "if frame.index == {}: os.kill(os.getpid(), signal.SIGKILL)"
    for last in (34, 77):
        assert run_script(die.format(last), "", source, output).returncode == -signal.SIGKILL
        partial = [number_of(frame.pixels) for frame in VideoReader(tmp_path / "out.mp4.partial.mp4")]
        assert partial == list(range(last // 10 * 10))
        assert (tmp_path / f"out.mp4.partial.{len(partial)}.state").read_text() == str(len(partial))
    reader = VideoReader(source)
    with VideoWriter(output, WIDTH, HEIGHT, source=reader, preset="ultrafast", resume=True) as writer:
        assert writer.frames_done == writer.frames_written == 70 and writer.last_pts == pts[69]
        assert writer.state_path is not None and writer.state_path.read_text() == "70"
        reader.seek(writer.frames_done, writer.last_pts)
        for frame in reader:
            writer.write([frame.pixels], [frame.pts])
            if frame.index % 10 == 9:
                writer.checkpoint()
    assert run_script("pass", "writer.finish()", source, whole).returncode == 0
    assert times(output) == times(whole) == [Fraction(time, 12800) for time in pts]
    assert output.read_bytes() == whole.read_bytes()
    assert packets(output, "audio") == packets(source, "audio")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.mp4", "source.mp4", "whole.mp4"]


def test_a_kill_without_checkpoints_leaves_whole_fragments(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "source.mp4", 110)
    die = "if frame.index == 105: os.kill(os.getpid(), signal.SIGKILL)"
    assert run_script(die, "", source, tmp_path / "out.mp4", checkpoints=1000).returncode == -signal.SIGKILL
    partial = [number_of(frame.pixels) for frame in VideoReader(tmp_path / "out.mp4.partial.mp4")]
    assert partial == list(range(96))


def test_an_interrupt_leaves_the_frames_that_are_counted(tmp_path: Path) -> None:
    frames = np.stack([picture(index) for index in range(60)])
    counts = set()
    for attempt in range(12):
        output = tmp_path / f"{attempt}.mp4"
        timer = threading.Timer(0.004 * attempt, os.kill, (os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt), VideoWriter(output, WIDTH, HEIGHT, fps=24) as writer:
            timer.start()
            for _ in range(1000):
                writer.write(frames)
        timer.join()
        kept = [number_of(frame.pixels) for frame in VideoReader(writer.partial_path)] if writer.frames_written else []
        assert kept == [index % 60 for index in range(writer.frames_written)]
        counts.add(len(kept))
    assert len(counts) > 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX resource limits")
def test_full_disk_while_writing(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "source.mp4", 100)
    output = tmp_path / "out.mp4"
    limit = "if frame.index == 9: resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))"
    result = run_script(limit, "writer.finish()", source, output)
    assert result.returncode == 1 and "OSError" in result.stderr
    assert "out.mp4' cannot be written" in result.stderr and "partial.mp4" in result.stderr
    partial = [number_of(frame.pixels) for frame in VideoReader(tmp_path / "out.mp4.partial.mp4")]
    assert len(partial) >= 10 and len(partial) % 10 == 0 and partial == list(range(len(partial)))
    assert f"first {len(partial)} frames" in result.stderr
    assert run_script("pass", "writer.finish()", source, output).returncode == 0
    assert [number_of(frame.pixels) for frame in VideoReader(output)] == list(range(100))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX resource limits")
def test_full_disk_while_finishing(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "source.mov", 30, audio="pcm_s16le", seconds_of_audio=1.2)
    output = tmp_path / "out.mov"
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (120_000, resource.RLIM_INFINITY)); writer.finish()"
    result = run_script("pass", limit, source, output)
    assert result.returncode == 1 and "out.mov' cannot be finished" in result.stderr
    assert "all 30 frames are in" in result.stderr
    assert len(list(VideoReader(tmp_path / "out.mov.partial.mp4"))) == 30
    assert not output.exists() and not list(tmp_path.glob("*finishing*"))
    reader = VideoReader(source)
    with VideoWriter(output, WIDTH, HEIGHT, source=reader, preset="ultrafast", resume=True) as writer:
        assert writer.complete and writer.frames_done == 30
    assert [number_of(frame.pixels) for frame in VideoReader(output)] == list(range(30))
    assert len(packets(output, "audio")) > 0


def test_resuming_needs_the_same_settings_and_the_record(tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"

    def interrupted_run() -> Iterator[None]:
        with VideoWriter(output, WIDTH, HEIGHT, fps=24, overwrite=True) as writer:
            writer.write(np.stack([picture(index) for index in range(5)]))
            writer.checkpoint()
            yield

    interrupted_run().__next__()  # closed by the generator's end, as by an exception
    for changed, difference in (
        ({"crf": 20}, "crf is 20, was 18"),
        ({"fps": 25}, "fps is '25', was '24'"),
        ({"width": WIDTH + 2}, "width is 66, was 64"),
        ({"made_with": {"seed": 1}}, "seed is 1, was None"),
    ):
        arguments: dict = {"width": WIDTH, "height": HEIGHT, "fps": 24} | changed
        with pytest.raises(ValueError, match=f"other settings: .*{difference}.*overwrite=True"):
            VideoWriter(output, resume=True, **arguments)
    partial = tmp_path / "out.mp4.partial.mp4"
    whole = partial.read_bytes()
    partial.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="shorter than its checkpoint"):
        VideoWriter(output, WIDTH, HEIGHT, fps=24, resume=True)
    partial.write_bytes(whole + b"half a fragment")  # what a kill in mid-append leaves
    with VideoWriter(output, WIDTH, HEIGHT, fps=24, resume=True) as writer:
        assert writer.frames_done == 5
        writer.write(picture(5)[None])
    assert [number_of(frame.pixels) for frame in VideoReader(output)] == list(range(6))
    output.unlink()
    interrupted_run().__next__()
    (tmp_path / "out.mp4.partial.json").unlink()
    with pytest.raises(ValueError, match="partial.json.*is lost.*overwrite=True"):
        VideoWriter(output, WIDTH, HEIGHT, fps=24, resume=True)


def test_resuming_nothing_starts_afresh(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "out.mp4", WIDTH, HEIGHT, fps=24, resume=True) as writer:
        assert (writer.frames_done, writer.last_pts, writer.state_path) == (0, None, None)
        writer.write(picture(0)[None])
        assert (writer.frames_written, writer.frames_done) == (1, 0)
        writer.checkpoint()
        assert writer.frames_done == 1
    assert len(list(VideoReader(tmp_path / "out.mp4"))) == 1


def test_state_of_the_caller_changes_with_the_checkpoint(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "out.mp4", WIDTH, HEIGHT, fps=24)
    writer.write(picture(0)[None])
    writer.checkpoint(lambda path: path.write_text("one"))
    first = writer.state_path
    writer.write(picture(1)[None])

    def fail(path: Path) -> None:
        path.write_text("half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError):
        writer.checkpoint(fail)
    writer.abort()
    resumed = VideoWriter(tmp_path / "out.mp4", WIDTH, HEIGHT, fps=24, resume=True)
    assert resumed.frames_done == 1 and resumed.state_path == first and resumed.state_path.read_text() == "one"
    resumed.write(picture(1)[None])
    resumed.checkpoint(lambda path: path.write_text("two"))
    assert not first.exists() and resumed.state_path.read_text() == "two"
    resumed.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


# Tensors and pictures


@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_frames_survive_the_way_through_tensors(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.integers(1, 5)) for _ in range(3))
    frames = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, 256, (*shape, 3), dtype=np.uint8)
    pixels = frames_to_tensor(frames)
    assert pixels.shape == (1, 3, *shape) and pixels.dtype == torch.float32
    assert pixels.min() >= -1 and pixels.max() <= 1
    assert np.array_equal(tensor_to_frames(pixels), frames)
    assert np.array_equal(tensor_to_frames(pixels.double()), frames)


def test_tensor_conversion_ends_and_errors() -> None:
    assert frames_to_tensor(np.array([0, 255, 0], np.uint8).reshape(1, 1, 1, 3)).flatten().tolist() == [-1, 1, -1]
    assert tensor_to_frames(torch.tensor([-3.0, 3.0, 0.0]).reshape(1, 3, 1, 1, 1)).flatten().tolist() == [0, 255, 128]
    with pytest.raises(ValueError, match=r"\[1, 3, frames, height, width\], got \(2, 3, 1, 4, 4\)"):
        tensor_to_frames(torch.zeros(2, 3, 1, 4, 4))
    with pytest.raises(ValueError, match="not finite"):
        tensor_to_frames(torch.full((1, 3, 1, 4, 4), torch.inf))
    with pytest.raises(TypeError, match="uint8"):
        tensor_to_frames(torch.zeros(1, 3, 1, 4, 4, dtype=torch.uint8))
    with pytest.raises(TypeError, match="uint8, got float64"):
        frames_to_tensor(np.zeros((1, 4, 4, 3)))
    with pytest.raises(ValueError, match=r"got \(1, 4, 4, 4\)"):
        frames_to_tensor(np.zeros((1, 4, 4, 4), np.uint8))


def test_side_by_side(tmp_path: Path) -> None:
    small, large = picture(3, 24, 32), picture(7)
    write_side_by_side_png(tmp_path / "pair.png", [small, large], ["low", "high"], gap=8)
    sheet = np.asarray(Image.open(tmp_path / "pair.png"))
    assert sheet.shape == (HEIGHT + 24, WIDTH + 8 + WIDTH, 3)
    assert np.array_equal(sheet[24:, WIDTH + 8 :], large)
    bicubic = np.asarray(Image.fromarray(small).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    assert np.array_equal(sheet[24:, :WIDTH], bicubic)
    assert (sheet[:24] < 128).any()  # the captions
    with pytest.raises(ValueError, match="1 entries for 2"):
        write_side_by_side_png(tmp_path / "pair.png", [small, large], ["low"])
    with pytest.raises(ValueError, match="`images` is empty"):
        write_side_by_side_png(tmp_path / "pair.png", [])
