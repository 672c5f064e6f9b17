# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Numbered clips: every frame tells which one it is."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.subtitles.subtitle import SubtitleSet

from ultraflash_diffusers.video_io import VideoReader, VideoWriter

HEIGHT, WIDTH = 48, 64


ASS_HEADER = (
    b"[Script Info]\nScriptType: v4.00+\n\n[V4+ Styles]\nFormat: Name, Fontname, Fontsize, PrimaryColour\n"
    b"Style: Default,Arial,16,&Hffffff\n\n[Events]\n"
    b"Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\n"
)


def picture(index: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A frame that differs from all others: its number in bits along the top, above a moving ramp."""
    y, x = np.mgrid[:height, :width]
    frame = np.stack([(x * 3 + index * 5) % 256, (y * 4) % 256, np.full_like(x, 40 + index)], -1).astype(np.uint8)
    for bit in range(8):
        frame[: height // 4, bit * width // 8 : (bit + 1) * width // 8] = 255 * (index >> bit & 1)
    return frame


def number_of(pixels: np.ndarray) -> int:
    height, width = pixels.shape[:2]
    samples = [pixels[height // 8, (2 * bit + 1) * width // 16].mean() > 127 for bit in range(8)]
    return sum(1 << bit for bit, on in enumerate(samples) if on)


def make_clip(
    path: Path,
    frames: int = 20,
    *,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    time_base: Fraction = Fraction(1, 12800),
    pts: Sequence[int] | None = None,
    audio: str | None = None,
    subtitles: str | None = None,
    seconds_of_audio: float = 0.8,
    start: Fraction = Fraction(0),
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    format: str | None = None,
) -> Path:
    """Writes frames 0, 1, 2... of [`picture`] at 25 a second, or at `pts`, all `start` seconds late."""
    tick = Fraction(1, 25) / time_base
    pts = [round(tick * index) for index in range(frames)] if pts is None else pts
    with av.open(str(path), "w", format=format, container_options=container_options or {}) as output:
        stream = output.add_stream(codec, rate=25, width=size[0], height=size[1], options=options or {})
        video = cast(av.VideoStream, stream)
        video.pix_fmt = pixel_format
        video.codec_context.time_base = time_base
        sound = output.add_stream(audio, rate=48000, layout="stereo") if audio else None
        text: Any = output.add_stream(subtitles) if subtitles else None
        if text is not None:
            text.codec_context.subtitle_header = ASS_HEADER
            text.codec_context.time_base = Fraction(1, 1000)
            text.metadata["language"] = "deu"
        output.start_encoding()
        if text is not None:
            for time, line in ((0, b"0,0,Default,,0,0,0,,Hello"), (400, b"1,0,Default,,0,0,0,,World")):
                packet = text.codec_context.encode_subtitle(SubtitleSet.create(line, 0, 300))
                packet.stream, packet.pts, packet.dts, packet.duration = text, time, time, 300
                packet.time_base = Fraction(1, 1000)
                output.mux(packet)
        for index, time in enumerate(pts):
            frame = av.VideoFrame.from_ndarray(picture(index, size[1], size[0]), format="rgb24")
            frame = frame.reformat(format=pixel_format)
            frame.pts, frame.time_base = time + round(start / time_base), time_base
            output.mux(video.encode(frame))
        output.mux(video.encode(None))
        if isinstance(sound, av.AudioStream):
            for index in range(int(seconds_of_audio * 48000) // 1024):
                wave = 0.3 * np.sin(np.arange(index * 1024, (index + 1) * 1024) * 2 * np.pi * 440 / 48000)
                block = av.AudioFrame.from_ndarray(np.stack([wave, wave]).astype(np.float32), "fltp", "stereo")
                block.sample_rate, block.pts = 48000, index * 1024 + round(start * 48000)
                block.time_base = Fraction(1, 48000)
                output.mux(sound.encode(block))
            output.mux(sound.encode(None))
    return path


def copy_through(source: Path, output: Path, frames: int | None = None, **options: Any) -> VideoReader:
    """Writes a clip again as it is, as the pipeline does with larger frames; `options` of reader and writer."""
    names = {"track", "fps", "deinterlace", "high_bit_depth"} & set(options)
    of_reader: dict[str, Any] = {name: options.pop(name) for name in names}
    reader = VideoReader(source, **of_reader)
    with VideoWriter(output, reader.info.width, reader.info.height, source=reader, **options) as writer:
        for frame in islice(reader, frames):
            writer.write([frame.pixels], [frame.pts], [frame.duration])
    return reader
