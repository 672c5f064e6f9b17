# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Files as people have them: sounds of many codecs beside pictures, and what they are found to hold afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.video.stream import VideoStream

from .clips import HEIGHT, WIDTH, picture

TONE = 440
FRAMES = 30
FPS = 24


def make_media(
    path: Path,
    audio: str | None = None,
    *,
    frames: int = FRAMES,
    codec: str = "mpeg4",
    rate: int = 48000,
    layout: str = "stereo",
    silence: float = 0.0,
    format: str | None = None,
    audio_options: dict[str, str] | None = None,
    video_options: dict[str, str] | None = None,
) -> Path:
    """Writes numbered pictures at 24 a second beside a tone that begins after `silence` seconds."""
    with av.open(str(path), "w", format=format) as output:
        options = video_options or {}
        video = cast(VideoStream, output.add_stream(codec, rate=FPS, width=WIDTH, height=HEIGHT, options=options))
        video.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if codec == "mjpeg":
            video.codec_context.color_range = 2
        sound = None
        if audio:
            options = audio_options or {}
            sound = cast(AudioStream, output.add_stream(audio, rate=rate, layout=layout, options=options))
        output.start_encoding()
        for index in range(frames):
            picture_frame = av.VideoFrame.from_ndarray(picture(index), format="rgb24").reformat(format=video.pix_fmt)
            picture_frame.pts, picture_frame.time_base = index, Fraction(1, FPS)
            output.mux(video.encode(picture_frame))
        output.mux(video.encode(None))
        if sound is not None:
            _add_tone(output, sound, frames / FPS, rate, layout, silence)
    return path


def _add_tone(
    output: OutputContainer, sound: AudioStream, seconds: float, rate: int, layout: str, silence: float
) -> None:
    # a multiple of what the encoder takes at once: some refuse a shorter rest
    piece = sound.codec_context.frame_size or 1
    times = np.arange(round(seconds * rate) // piece * piece) / rate
    wave = 0.3 * np.sin(2 * np.pi * TONE * times) * (times >= silence)
    for first in range(0, len(wave), 1024):
        block = np.repeat(wave[first : first + 1024, None], av.AudioLayout(layout).nb_channels, axis=1)
        frame = av.AudioFrame.from_ndarray(block.astype(np.float32).reshape(1, -1), "flt", layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, first, Fraction(1, rate)
        output.mux(sound.encode(frame))
    output.mux(sound.encode(None))


@dataclass
class Sound:
    """A sound track: its codec, sample rate, channels, and when the tone in it begins and ends, in seconds."""

    codec: str
    rate: int
    channels: int
    begins: float
    ends: float


def sounds_of(path: Path) -> list[Sound]:
    """Decodes all sound tracks of a file."""
    with av.open(str(path)) as container:
        indices = [stream.index for stream in container.streams.audio]
    return [_sound(path, index) for index in indices]


def _sound(path: Path, index: int) -> Sound:
    with av.open(str(path)) as container:
        stream = cast(AudioStream, container.streams[index])
        loud: list[float] = []
        for frame in container.decode(stream):
            start = float((frame.pts or 0) * (frame.time_base or 0))
            # interleaved: PyAV 18 fails at eight planes
            (flat,) = av.AudioResampler("flt").resample(frame)
            wave = np.abs(flat.to_ndarray().reshape(frame.samples, -1)[:, 0])
            loud += list(start + np.flatnonzero(wave > 0.1) / frame.sample_rate)
        context = stream.codec_context
        first, last = (loud[0], loud[-1]) if loud else (-1.0, -1.0)
        return Sound(context.codec.canonical_name, context.sample_rate, context.layout.nb_channels, first, last)
