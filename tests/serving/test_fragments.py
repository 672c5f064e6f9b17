# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Fragments as players read them."""

from __future__ import annotations

import io
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from helpers.realtime import decoded

from ultraflash_diffusers.serving.fragments import FragmentEncoder


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


@pytest.mark.parametrize("size", [(63, 48), (64, 47)])
def test_odd_sizes_are_refused(size):
    with pytest.raises(ValueError, match="must be even"):
        FragmentEncoder(*size, 25)
