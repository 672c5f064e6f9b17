# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Fragments as players read them."""

from __future__ import annotations

import gc
import io
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from helpers.clips import make_clip
from helpers.realtime import decoded

from ultraflash_diffusers.serving.fragments import FragmentEncoder
from ultraflash_diffusers.video_io import VideoReader


def pictures(frames: int, width: int = 64, height: int = 48) -> np.ndarray:
    ramp = np.linspace(0, 255, width * height * 3).reshape(height, width, 3).astype(np.uint8)
    return np.stack([np.roll(ramp, 2 * index, axis=1) for index in range(frames)])


def test_each_fragment_is_whole_and_all_of_them_are_one_file():
    encoder = FragmentEncoder(64, 48, 25)
    frames = pictures(12)
    fragments = [encoder.encode(frames[:5]), encoder.encode(frames[5:6]), encoder.encode(frames[6:])]
    video = encoder.header + b"".join(fragments)
    shown = decoded(video)
    assert shown.shape == frames.shape
    assert np.abs(shown.astype(int) - frames).mean() < 8
    with av.open(io.BytesIO(video)) as container:
        times = [packet.pts * packet.time_base for packet in container.demux(video=0) if packet.pts is not None]
    assert times == [Fraction(index, 25) for index in range(12)]
    assert [fragment.count(b"moof") for fragment in fragments] == [1, 1, 1]


def test_the_header_tells_the_size_that_the_frames_have():
    header = FragmentEncoder(64, 48, 25).header
    start = header.index(b"avc1") + 4 + 24
    assert struct.unpack(">HH", header[start : start + 4]) == (64, 48)


def test_uneven_times_are_kept():
    encoder = FragmentEncoder(64, 48, 25, time_base=Fraction(1, 1000))
    video = encoder.header + encoder.encode(pictures(3), [0, 50, 400], [50, 350, 20])
    with av.open(io.BytesIO(video)) as container:
        times = [packet.pts * packet.time_base for packet in container.demux(video=0) if packet.pts is not None]
    assert times == [0, Fraction(1, 20), Fraction(2, 5)]


def test_the_mime_type_is_that_of_the_encoded_stream():
    assert FragmentEncoder(64, 48, 25).mime_type == 'video/mp4; codecs="avc1.64000a"'


def test_a_clip_s_sound_goes_along_in_step_and_as_long_as_the_pictures(tmp_path):
    """Half of 40 frames have sound; the first eight were streamed elsewhere."""
    path = make_clip(tmp_path / "clip.mp4", frames=40, audio="aac")
    info = VideoReader(path).info
    encoder = FragmentEncoder(64, 48, info.fps, info.time_base, info)
    tick, parts = round(1 / (info.fps * info.time_base)), [encoder.header]
    for first in (8, 16, 24, 32):
        parts.append(encoder.encode(pictures(8), [tick * number for number in range(first, first + 8)], [tick] * 8))
        assert abs(encoder.audio_samples - 0.32 * encoder.sample_rate) <= 1024
    assert encoder.mime_type.endswith(', mp4a.40.2"')
    begin, heard = samples_of(io.BytesIO(b"".join(parts)))
    _, source = samples_of(str(path))
    assert abs(begin - 0.32) < 0.03 and abs(begin + len(heard) / encoder.sample_rate - 1.6) < 0.05
    sounding = round((0.75 - begin) * encoder.sample_rate)
    expected = source[round(begin * encoder.sample_rate) :][2048:sounding]
    assert np.corrcoef(heard[2048:sounding], expected)[0, 1] > 0.9
    assert np.abs(heard[-9600:]).max() < 1e-3 < 0.01 < np.abs(expected).max()


def samples_of(file) -> tuple[float, np.ndarray]:
    """When the sound of a file begins, in seconds, and one channel of it."""
    with av.open(file) as container:
        frames = list(container.decode(audio=0))
    return float(frames[0].pts * frames[0].time_base), np.concatenate([frame.to_ndarray()[0] for frame in frames])


@pytest.mark.parametrize("size", [(63, 48), (64, 47)])
def test_odd_sizes_are_refused(size):
    with pytest.raises(ValueError, match="must be even"):
        FragmentEncoder(*size, 25)


def test_an_encoder_that_is_dropped_is_freed_at_once():
    """Its megabytes are in a few objects, for which Python's collector would not come soon."""

    def encoders() -> int:
        # by type: to ask objects of other libraries for their class wakes what they load lazily
        found = [each for each in gc.get_objects() if issubclass(type(each), av.VideoCodecContext)]
        return sum(each.is_open for each in found)

    gc.collect()
    gc.disable()
    try:
        before = encoders()
        encoder = FragmentEncoder(48, 32, 12)
        encoder.encode(np.zeros((2, 32, 48, 3), np.uint8))
        assert encoders() == before + 1
        del encoder
        assert encoders() == before
    finally:
        gc.enable()
