# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The source's sound and subtitles beside new pictures: copied where the output can hold them, else converted."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from typing import Literal

import av
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import Stream
from av.subtitles.stream import SubtitleStream

from .opening import open_container
from .probe import VideoInfo
from .sound import AACEncoder

# Makes the packets of an output track from one of the source's; tracks are found by the source's stream index
Converter = Callable[[Packet], list[Packet]]
Tracks = dict[int, Converter]

OUTPUT_SUFFIXES = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
# What is copied into these containers, and players expect there; all other sound becomes AAC
_COPIED_AUDIO = {
    "mp4": {"aac", "mp3", "mp2", "ac3", "eac3", "opus", "flac", "alac"},
    "mov": {"aac", "mp3", "mp2", "ac3", "eac3", "alac", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be"},
    "matroska": {
        *("aac", "mp3", "mp2", "ac3", "eac3", "opus", "flac", "alac", "vorbis", "dts", "truehd", "mlp", "tta"),
        *("wavpack", "pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_s16be", "pcm_s24be", "pcm_f32le"),
    },
}
_TRIED_PACKETS = 16
_TEXT_SUBTITLES = {"mov_text", "subrip", "ass", "ssa", "webvtt", "text"}
_EMPTY_SUBTITLE = b"\0\0"


def chosen_audio(clip: InputContainer, numbers: Sequence[int] | None) -> list[AudioStream]:
    """Returns the sound tracks of these numbers, counted from 0; all by default.

    Raises:
        ValueError: there is no such track.
    """
    tracks = list(clip.streams.audio)
    if numbers is None:
        return tracks
    for number in numbers:
        if not 0 <= number < len(tracks):
            raise ValueError(f"`audio_tracks` has {number}, but the source has {len(tracks)} sound tracks, from 0 on")
    return [tracks[number] for number in numbers]


@dataclass(frozen=True)
class AudioPlan:
    """What becomes of a clip's sound tracks, by their place among all tracks. One that is in neither is dropped.

    Args:
        copied (`frozenset[int]`): these are copied.
        encoded (`dict[int, tuple[int, int]]`): these become AAC, of a sample rate and a number of channels.
    """

    copied: frozenset[int] = frozenset()
    encoded: Mapping[int, tuple[int, int]] = field(default_factory=dict)


def plan_audio(source: VideoInfo, container: str, numbers: Sequence[int] | None) -> AudioPlan:
    """Finds out, by trying, which of the source's sound tracks an output can hold as they are.

    Args:
        source ([`VideoInfo`]): the clip.
        container (`str`): FFmpeg's name of the output's container.
        numbers (sequence of `int`, *optional*): the tracks that are wanted.
    """
    with open_container(source.path) as clip:
        codecs = {track.index: _codec(track) for track in chosen_audio(clip, numbers)}
    usual = _COPIED_AUDIO[container]
    copied = {index for index, codec in codecs.items() if codec in usual and _can_hold(source, container, index)}
    kinds = {index: decoded_kind(source, index) for index in codecs if index not in copied}
    return AudioPlan(frozenset(copied), {index: kind for index, kind in kinds.items() if kind is not None})


def decoded_kind(source: VideoInfo, index: int) -> tuple[int, int] | None:
    """Returns sample rate and channels of a track's first sound, `None` where it has none that can be decoded."""
    with open_container(source.path) as clip:
        track = clip.streams[index]
        for packet in clip.demux(track) if track.codec_context else ():
            try:
                frames = packet.decode()
            except av.FFmpegError:
                continue
            if frames and isinstance(frames[0], AudioFrame):
                return frames[0].sample_rate, frames[0].layout.nb_channels
    return None


def _can_hold(source: VideoInfo, container: str, index: int) -> bool:
    """Whether a container takes a track's header, first packets and end."""
    with open_container(source.path) as clip:
        track = clip.streams[index]
        try:
            with av.open(io.BytesIO(), "w", format=container) as result:
                copy = _Copier(result.add_stream_from_template(track, opaque=True))
                for packet in islice(clip.demux(track), _TRIED_PACKETS):
                    result.mux(copy(packet))
        except (av.FFmpegError, ValueError):
            return False
    return True


def add_tracks(
    clip: InputContainer, result: OutputContainer, audio: Sequence[AudioStream], plan: AudioPlan
) -> tuple[Tracks, list[str]]:
    """Adds an output track for each of the clip's sounds and subtitles.

    Args:
        clip (`InputContainer`): the source.
        result (`OutputContainer`): the output.
        audio (sequence of `AudioStream`): which sounds.
        plan ([`AudioPlan`]): what becomes of these.

    Returns:
        `tuple`: what makes packets, and what is lost, in words.
    """
    tracks: Tracks = {}
    losses: list[str] = []
    for sound in audio:
        _add_sound(sound, result, plan, tracks, losses)
    for text in clip.streams.subtitles:
        _add_subtitles(text, result, tracks, losses)
    left_out = sorted({stream.type for stream in clip.streams} - {"video", "audio", "subtitle"})
    if left_out:
        # in files of the MP4 family the chapters are such a track, which nothing tells from others
        kept = " (its chapters are)" if clip.chapters() else ""
        losses.append(f"its tracks of other kinds are not copied: {left_out}{kept}")
    return tracks, losses


def _add_sound(
    track: AudioStream, result: OutputContainer, plan: AudioPlan, tracks: Tracks, losses: list[str]
) -> None:
    name, container = f"its {_codec(track)} audio track", result.format.name
    target: Stream
    if track.index in plan.copied:
        target = result.add_stream_from_template(track, opaque=True)
        tracks[track.index] = _Copier(target)
    elif track.index in plan.encoded:
        losses.append(f"{name} is encoded again as AAC, which players expect in {container}")
        encoder = AACEncoder(result, *plan.encoded[track.index])
        target, tracks[track.index] = encoder.target, _transcoder(track, encoder)
    else:
        losses.append(f"{name} is dropped, it cannot be decoded")
        return
    _describe(track, target)


def _add_subtitles(track: SubtitleStream, result: OutputContainer, tracks: Tracks, losses: list[str]) -> None:
    codec, container = _codec(track), result.format.name
    mp4_family, text = container != "matroska", codec in _TEXT_SUBTITLES
    target: Stream
    try:
        if mp4_family and not text:
            raise ValueError
        if text and (codec == "mov_text") != mp4_family:
            target, tracks[track.index] = _subtitle_encoder(track, result, "mov_text" if mp4_family else "subrip")
        else:
            target = result.add_stream_from_template(track, opaque=True)
            tracks[track.index] = _Copier(target)
    except (av.FFmpegError, ValueError):
        losses.append(f"its {codec} subtitle track is dropped, {container} cannot hold it")
        return
    _describe(track, target)


def _codec(track: Stream) -> str:
    return track.codec_context.codec.canonical_name if track.codec_context else "unknown"


def _describe(track: Stream, target: Stream) -> None:
    target.metadata.update({key: track.metadata[key] for key in ("language", "title") if key in track.metadata})
    target.disposition = track.disposition


class _Copier:
    """Passes packets on to another track, with a time for those that have none and in growing order."""

    def __init__(self, target: Stream) -> None:
        self._target = target
        self._end: int | None = None
        self._last_dts: int | None = None

    def __call__(self, packet: Packet) -> list[Packet]:
        # the mark of the end, which only coders need, and gaps between subtitles, which the muxer makes anew
        if not packet.size or (packet.stream.type == "subtitle" and bytes(packet) == _EMPTY_SUBTITLE):
            return []
        if packet.pts is None:
            packet.pts = packet.dts if packet.dts is not None else self._end or 0
        if packet.dts is None:
            packet.dts = packet.pts
        if self._last_dts is not None and packet.stream.type == "audio" and packet.dts <= self._last_dts:
            packet.dts = self._last_dts + 1
            packet.pts = max(packet.pts, packet.dts)
        self._last_dts, self._end = packet.dts, packet.pts + (packet.duration or 1)
        packet.stream = self._target
        return [packet]


def _transcoder(track: AudioStream, encoder: AACEncoder) -> Converter:
    def transcode(packet: Packet) -> list[Packet]:
        encoded = [made for frame in track.decode(packet) for made in encoder.add(frame)]
        return encoded if packet.size else encoded + encoder.end()  # the mark of the end has no content

    return transcode


def _subtitle_encoder(
    track: SubtitleStream, result: OutputContainer, codec: Literal["mov_text", "subrip"]
) -> tuple[Stream, Converter]:
    target = result.add_stream(codec)
    decoder, encoder = track.codec_context, target.codec_context
    decoder.open(strict=False)
    encoder.subtitle_header = decoder.subtitle_header
    encoder.time_base = Fraction(1, 1000)

    def encode(packet: Packet) -> list[Packet]:
        subtitle = decoder.decode2(packet) if packet.size else None
        if not subtitle:
            return []
        encoded = encoder.encode_subtitle(subtitle)
        encoded.pts, encoded.dts, encoded.duration = packet.pts, packet.pts, packet.duration
        encoded.time_base, encoded.stream = packet.time_base, target
        return [encoded]

    return target, encode
