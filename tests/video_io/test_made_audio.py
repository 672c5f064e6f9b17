# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Sound that is made with the frames: in the file, cut to them, the same after an interruption."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from helpers.clips import HEIGHT, WIDTH, make_clip, picture

from ultraflash_diffusers.video_io import VideoReader, VideoWriter

RATE, FPS, FRAMES = 24000, 24, 48
TONE = np.sin(2 * np.pi * 440 * np.arange(2 * RATE + 4000) / RATE).astype(np.float32)
STEREO = np.stack([TONE, -TONE])


def heard(path: Path) -> np.ndarray:
    with av.open(path) as file:
        (track,) = file.streams.audio
        assert track.rate == RATE
        return np.concatenate([frame.to_ndarray() for frame in file.decode(track)], axis=1)


def write(writer: VideoWriter, start: int, end: int) -> None:
    """Frames with their sound, a third of a second at a time."""
    for frame in range(start, end, 8):
        writer.write_audio(STEREO[:, frame * 1000 : (frame + 8) * 1000], RATE)
        writer.write([picture(index) for index in range(frame, min(frame + 8, end))])


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_the_tone_is_in_the_file_and_ends_with_the_frames(suffix: str, tmp_path: Path) -> None:
    output = tmp_path / f"out{suffix}"
    with VideoWriter(output, WIDTH, HEIGHT, fps=FPS, preset="ultrafast") as writer:
        write(writer, 0, FRAMES - 4)  # the sound goes on for as long
    sound = heard(output)
    assert 0 <= sound.shape[1] - (FRAMES - 4) * 1000 < 1024
    strengths = np.abs(np.fft.rfft(sound[0, 2048:26048]))
    assert strengths.argmax() == 440 and np.abs(sound[0] + sound[1])[4096:-4096].max() < 0.1
    assert [path.name for path in tmp_path.iterdir()] == [output.name]


def test_interrupted_and_resumed_it_is_the_same_file(tmp_path: Path) -> None:
    whole, output = tmp_path / "whole.mp4", tmp_path / "out.mp4"
    with VideoWriter(whole, WIDTH, HEIGHT, fps=FPS, preset="ultrafast") as writer:
        write(writer, 0, 16)
        writer.checkpoint()
        write(writer, 16, FRAMES)
    killed = VideoWriter(output, WIDTH, HEIGHT, fps=FPS, preset="ultrafast")
    write(killed, 0, 16)
    killed.checkpoint()
    write(killed, 16, 32)  # lost, and with them their sound
    killed.abort()
    with VideoWriter(output, WIDTH, HEIGHT, fps=FPS, preset="ultrafast", resume=True) as writer:
        assert writer.frames_done == 16
        write(writer, 16, FRAMES)
    assert np.array_equal(heard(output), heard(whole))
    assert [frame.pts for frame in VideoReader(output)] == [frame.pts for frame in VideoReader(whole)]


def test_lost_sound_is_said(tmp_path: Path) -> None:
    arguments = {"fps": FPS, "preset": "ultrafast"}
    writer = VideoWriter(tmp_path / "out.mp4", WIDTH, HEIGHT, **arguments)
    write(writer, 0, 8)
    writer.checkpoint()
    writer.abort()
    kept = tmp_path / "out.mp4.partial.audio"
    kept.write_bytes(kept.read_bytes()[:-1])
    with pytest.raises(ValueError, match="the sound that was made, is lost or damaged: start anew"):
        VideoWriter(tmp_path / "out.mp4", WIDTH, HEIGHT, **arguments, resume=True)


def test_sounds_that_do_not_fit(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "out.mp4", WIDTH, HEIGHT, fps=FPS, preset="ultrafast") as writer:
        writer.write([picture(0)])
        for samples, error, message in (
            (np.zeros((2, 9), np.int16), TypeError, "must be floating point"),
            (np.zeros(9), ValueError, r"got shape \(9,\)"),
            (torch.full((1, 9), torch.nan), ValueError, "must be finite"),
        ):
            with pytest.raises(error, match=message):
                writer.write_audio(samples, RATE)
        writer.write_audio(torch.zeros(1, 9), RATE)
        with pytest.raises(ValueError, match="2 channels of 24000 a second, those before were"):
            writer.write_audio(STEREO[:, :9], RATE)
    clip = make_clip(tmp_path / "clip.mp4", 4)
    writer = VideoWriter(tmp_path / "larger.mp4", WIDTH, HEIGHT, source=VideoReader(clip))
    with pytest.raises(ValueError, match="that of its source"):
        writer.write_audio(STEREO, RATE)
    writer.abort()
