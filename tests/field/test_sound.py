# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Sound as it comes: without named layouts, without packet times, of codecs and rates that outputs cannot hold."""

from __future__ import annotations

from pathlib import Path

import av
import pytest
from helpers.clips import copy_through
from helpers.media import FPS, FRAMES, Sound, make_media, sounds_of

from ultraflash_diffusers.video_io import VideoReader

SECONDS = FRAMES / FPS
LATE = 0.5

pytestmark = pytest.mark.filterwarnings("ignore:.*(encoded again as AAC|interlaced).*:UserWarning")


def assert_in_time(sound: Sound, begins: float = LATE, ends: float = SECONDS) -> None:
    assert abs(sound.begins - begins) < 0.03 and abs(sound.ends - ends) < 0.08, sound


@pytest.mark.parametrize("output", ["out.mp4", "out.mov", "out.mkv"])
@pytest.mark.parametrize(
    ("name", "codec", "audio"),
    [
        ("pcm.avi", "mjpeg", "pcm_s16le"),
        ("adpcm.avi", "mjpeg", "adpcm_ms"),
        ("pcm.mkv", "libx264", "pcm_s16le"),
        ("ima.avi", "mpeg4", "adpcm_ima_wav"),
        ("law.mov", "libx264", "pcm_mulaw"),
        ("flac.mkv", "libx264", "flac"),
    ],
)
def test_sound_is_kept_in_time(tmp_path: Path, name: str, codec: str, audio: str, output: str) -> None:
    source = make_media(tmp_path / name, audio, codec=codec, silence=LATE)
    copy_through(source, tmp_path / output)
    (sound,) = sounds_of(tmp_path / output)
    assert (sound.rate, sound.channels) == (48000, 2)
    assert_in_time(sound)
    if audio.startswith(("adpcm", "pcm_mulaw")) or (output == "out.mp4" and audio != "flac"):
        assert sound.codec == "aac"


def test_windows_media_has_growing_times(tmp_path: Path) -> None:
    source = make_media(
        tmp_path / "a.wmv", "wmav2", codec="wmv2", rate=44100, silence=LATE, audio_options={"b": "128000"}
    )
    for name in ("out.mp4", "out.mkv"):
        copy_through(source, tmp_path / name)
        (sound,) = sounds_of(tmp_path / name)
        # a decoder of this codec begins late by two packets, in every player
        assert sound.codec == "aac" and abs(sound.begins - LATE) < 0.12
        with av.open(str(tmp_path / name)) as container:
            times = [packet.dts for packet in container.demux(audio=0) if packet.dts is not None]
        assert times == sorted(set(times))


def test_telephone_sound(tmp_path: Path) -> None:
    source = make_media(tmp_path / "a.3gp", "libopencore_amrnb", rate=8000, layout="mono", silence=LATE)
    copy_through(source, tmp_path / "out.mkv")
    (sound,) = sounds_of(tmp_path / "out.mkv")
    assert (sound.codec, sound.rate, sound.channels) == ("aac", 8000, 1)
    assert_in_time(sound)


def test_disc_sound(tmp_path: Path) -> None:
    source = make_media(tmp_path / "a.m2ts", "pcm_bluray", codec="mpeg2video", silence=LATE)
    copy_through(source, tmp_path / "out.mkv")
    (sound,) = sounds_of(tmp_path / "out.mkv")
    assert sound.codec == "aac"
    assert_in_time(sound)


@pytest.mark.parametrize(("rate", "result"), [(7350, 48000), (192000, 48000), (22050, 22050), (96000, 96000)])
def test_rates_that_aac_lacks_are_resampled(tmp_path: Path, rate: int, result: int) -> None:
    source = make_media(tmp_path / "a.mkv", "pcm_s16le", codec="libx264", rate=rate, silence=LATE)
    copy_through(source, tmp_path / "out.mp4")
    (sound,) = sounds_of(tmp_path / "out.mp4")
    assert (sound.codec, sound.rate) == ("aac", result)
    assert_in_time(sound)


def test_high_rate_flac_fits_where_it_can(tmp_path: Path) -> None:
    source = make_media(tmp_path / "a.mkv", "flac", codec="libx264", rate=192000, silence=LATE)
    for name, codec in (("out.mkv", "flac"), ("out.mp4", "flac"), ("out.mov", "aac")):
        copy_through(source, tmp_path / name)
        (sound,) = sounds_of(tmp_path / name)
        assert sound.codec == codec
        assert_in_time(sound)


@pytest.mark.parametrize(("layout", "channels"), [("mono", 1), ("3.0", 3), ("5.1", 6), ("6.1", 2), ("7.1", 8)])
def test_numbers_of_channels(tmp_path: Path, layout: str, channels: int) -> None:
    """AVI stores how many there are and not which."""
    source = make_media(tmp_path / "a.avi", "pcm_s16le", layout=layout, silence=LATE)
    copy_through(source, tmp_path / "out.mp4")
    (sound,) = sounds_of(tmp_path / "out.mp4")
    assert (sound.codec, sound.channels) == ("aac", channels)
    assert_in_time(sound)


def two_sounds(path: Path) -> Path:
    """A film with a stereo and a mono track."""
    first = make_media(path.with_name("first.mkv"), "flac", codec="libx264", silence=LATE)
    second = make_media(path.with_name("second.mkv"), "flac", codec="libx264", layout="mono")
    with av.open(str(first)) as a, av.open(str(second)) as b, av.open(str(path), "w") as output:
        parts = [(a, a.streams.video[0]), (a, a.streams.audio[0]), (b, b.streams.audio[0])]
        targets = [output.add_stream_from_template(stream, opaque=True) for _, stream in parts]
        for (container, stream), target in zip(parts, targets, strict=True):
            container.seek(0)
            for packet in container.demux(stream):
                if packet.size:
                    packet.stream = target
                    output.mux(packet)
    return path


@pytest.mark.parametrize(
    ("chosen", "channels"), [(None, [2, 1]), ((), []), ((0,), [2]), ((1,), [1]), ((1, 0), [1, 2])]
)
def test_choice_of_sound(tmp_path: Path, chosen: tuple[int, ...] | None, channels: list[int]) -> None:
    copy_through(two_sounds(tmp_path / "film.mkv"), tmp_path / "out.mp4", audio_tracks=chosen)
    assert [sound.channels for sound in sounds_of(tmp_path / "out.mp4")] == channels


def test_a_sound_that_is_not_there_is_named_at_once(tmp_path: Path) -> None:
    source = two_sounds(tmp_path / "film.mkv")
    with pytest.raises(ValueError, match="`audio_tracks` has 2, but the source has 2 sound tracks, from 0 on"):
        copy_through(source, tmp_path / "out.mp4", audio_tracks=(2,))
    assert not (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize("audio", ["mp2", "libmp3lame", "aac"])
def test_joined_transport_streams_whose_sound_appears_later(tmp_path: Path, audio: str) -> None:
    silent = make_media(tmp_path / "v.ts", codec="libx264")
    sounding = make_media(tmp_path / "va.ts", audio, codec="libx264", rate=44100, silence=LATE)
    joined = tmp_path / "joined.ts"
    joined.write_bytes(silent.read_bytes() + sounding.read_bytes() + silent.read_bytes())
    for name in ("out.mp4", "out.mkv"):
        copy_through(joined, tmp_path / name)
        reader = VideoReader(tmp_path / name)
        times = [float(frame.pts * reader.info.time_base) for frame in reader]
        assert len(times) == 3 * FRAMES and max(abs(t - i / FPS) for i, t in enumerate(times)) < 0.03
        (sound,) = sounds_of(tmp_path / name)
        assert_in_time(sound, SECONDS + LATE, 2 * SECONDS)
