# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Frame rates and times: of containers that store others than they should, or none."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from helpers.clips import copy_through, make_clip, number_of
from helpers.media import FPS, FRAMES, make_media

from ultraflash_diffusers.video_io import VideoReader, VideoWriter

pytestmark = pytest.mark.filterwarnings("ignore:.*(interlaced|timestamps were missing).*:UserWarning")


def steps(path: Path) -> list[float]:
    reader = VideoReader(path)
    return list(np.diff([float(frame.pts * reader.info.time_base) for frame in reader]))


def default_duration(path: Path) -> int | None:
    """Nanoseconds that a Matroska file gives each frame of its first track, as it is stored."""
    data = path.read_bytes()
    place = data.find(b"\x23\xe3\x83")
    return None if place < 0 else int.from_bytes(data[place + 4 : place + 4 + (data[place + 3] & 0x7F)], "big")


@pytest.mark.parametrize("fps", [24, 25, Fraction(30000, 1001), 60, Fraction(25, 2)])
def test_matroska_has_the_true_rate(tmp_path: Path, fps: Fraction) -> None:
    ticks = [round(Fraction(12800) / fps * index) for index in range(20)]
    source = make_clip(tmp_path / "a.mp4", 20, pts=ticks)
    reader = VideoReader(source)
    with VideoWriter(tmp_path / "out.mkv", 64, 48, source=reader) as writer:
        for frame in reader:
            writer.write([frame.pixels], [frame.pts], [frame.duration])
    assert default_duration(tmp_path / "out.mkv") == pytest.approx(1e9 / float(fps), rel=0.02)
    with av.open(str(tmp_path / "out.mkv")) as container:
        assert float(container.streams.video[0].average_rate) == pytest.approx(float(fps), rel=0.02)


def test_matroska_without_an_even_rate_has_none(tmp_path: Path) -> None:
    pts = [0, 500, 1500, 1600, 4000, 4100, 9000]
    copy_through(make_clip(tmp_path / "a.mp4", 7, pts=pts), tmp_path / "out.mkv")
    assert default_duration(tmp_path / "out.mkv") is None
    reader = VideoReader(tmp_path / "out.mkv")
    times = [frame.pts * reader.info.time_base for frame in reader]
    assert [float(time) for time in times] == pytest.approx([tick / 12800 for tick in pts], abs=6e-4)


@pytest.mark.parametrize(
    ("codec", "options"),
    [("libx264", {"bf": "3"}), ("mpeg4", {"bf": "2"}), ("libx264", {"bf": "0"}), ("mjpeg", {})],
)
def test_avi_stores_times_of_decoding_alone(tmp_path: Path, codec: str, options: dict[str, str]) -> None:
    source = make_media(tmp_path / "a.avi", codec=codec, video_options=options)
    reader = VideoReader(source)
    frames = list(reader)
    assert [number_of(frame.pixels) for frame in frames] == list(range(FRAMES))
    assert steps(source) == pytest.approx([1 / FPS] * (FRAMES - 1))
    for start in (1, 7, 20):  # as a resumed run goes on
        reader.seek(start, after_pts=frames[start - 1].pts)
        rest = list(reader)
        assert [(frame.index, frame.pts, number_of(frame.pixels)) for frame in rest] == [
            (frame.index, frame.pts, number_of(frame.pixels)) for frame in frames[start:]
        ]


@pytest.mark.parametrize("name", ["a.h264", "a.hevc", "a.m2v", "a.m4v"])
def test_a_bare_stream_has_the_rate_of_its_codec(tmp_path: Path, name: str) -> None:
    codec = {"a.h264": "libx264", "a.hevc": "libx265", "a.m2v": "mpeg2video", "a.m4v": "mpeg4"}[name]
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    source = make_media(tmp_path / name, codec=codec, video_options=options)
    assert VideoReader(source).info.fps == FPS
    assert steps(source) == pytest.approx([1 / FPS] * (FRAMES - 1))


@pytest.mark.parametrize(("height", "fps"), [(576, 25), (480, Fraction(30000, 1001))])
def test_raw_dv(tmp_path: Path, height: int, fps: Fraction) -> None:
    path = tmp_path / "a.dv"
    with av.open(str(path), "w", format="dv") as output:
        video = output.add_stream("dvvideo", rate=fps, width=720, height=height)
        video.pix_fmt = "yuv420p" if height == 576 else "yuv411p"
        sound = output.add_stream("pcm_s16le", rate=48000, layout="stereo")
        for index in range(4):
            frame = av.VideoFrame.from_ndarray(np.full((height, 720, 3), 40 * index, np.uint8))
            frame.pts, frame.time_base = index, 1 / Fraction(fps)
            output.mux(video.encode(frame.reformat(format=video.pix_fmt)))
            block = av.AudioFrame.from_ndarray(np.zeros((1, 2 * 2002), np.int16), "s16", "stereo")
            block.sample_rate, block.pts, block.time_base = 48000, 2002 * index, Fraction(1, 48000)
            output.mux(sound.encode(block))
        output.mux(video.encode(None))
    assert VideoReader(path).info.fps == fps
    copy_through(path, tmp_path / "out.mp4", audio_tracks=())
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].average_rate == fps


@pytest.mark.parametrize("name", ["out.mp4", "out.mov", "out.mkv"])
@pytest.mark.parametrize("timecode", ["01:00:00:00", "01:00:00;00", "nonsense"])
def test_a_timecode_is_kept_or_dropped_with_a_word(tmp_path: Path, timecode: str, name: str) -> None:
    plain, source = make_media(tmp_path / "plain.mkv", codec="libx264"), tmp_path / "a.mkv"
    with av.open(str(plain)) as before, av.open(str(source), "w") as output:
        target = output.add_stream_from_template(before.streams.video[0], opaque=True)
        output.metadata["timecode"] = timecode
        for packet in before.demux(video=0):
            if packet.size:
                packet.stream = target
                output.mux(packet)
    kept = name == "out.mkv" or timecode == "01:00:00:00"
    if kept:
        copy_through(source, tmp_path / name)
    else:
        with pytest.warns(UserWarning, match=f"its timecode '{timecode}' is dropped"):
            copy_through(source, tmp_path / name)
    assert len(list(VideoReader(tmp_path / name))) == FRAMES
    with av.open(str(tmp_path / name)) as container:
        found = [text for holder in (container, *container.streams) for text in holder.metadata.values()]
    assert (timecode in found) == kept
