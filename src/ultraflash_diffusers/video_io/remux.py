# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Finishing a file: the encoded pictures beside the source's sound and subtitles, in a plain file, index first."""

from __future__ import annotations

import errno
import heapq
import io
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from fractions import Fraction
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import av
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import Stream
from av.subtitles.stream import SubtitleStream

from .reader import VideoInfo, open_clip, open_container, to_fraction

if TYPE_CHECKING:
    from av.container.core import Chapter

# Makes the packets of an output track from one of the source's; tracks are found by the source's stream index
Converter = Callable[[Packet], list[Packet]]
Tracks = dict[int, Converter]

OUTPUT_SUFFIXES = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
# What is copied into these containers and players expect there; all other sound becomes AAC. Matroska holds anything.
_COPIED_AUDIO = {
    "mp4": {"aac", "mp3", "mp2", "ac3", "eac3", "opus", "flac", "alac"},
    "mov": {"aac", "mp3", "mp2", "ac3", "eac3", "alac", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be"},
}
_TEXT_SUBTITLES = {"mov_text", "subrip", "ass", "ssa", "webvtt", "text"}
_EMPTY_SUBTITLE = b"\0\0"
_CONTAINER_TAGS = {"major_brand", "minor_version", "compatible_brands", "encoder", "duration"}


def remux(video: Path, output: Path, source: VideoInfo | None, frames: int, end: Fraction) -> None:
    """Writes `output` from the encoded `video` and the sound and subtitles of `source`.

    The file appears under its name in one step, once it is whole; a former file of that name stays until then.

    Args:
        video (`Path`): the encoded pictures.
        output (`Path`): the file to write, with one of the suffixes of `OUTPUT_SUFFIXES`.
        source ([`VideoInfo`] or `None`): the clip whose sound, subtitles, chapters and metadata are copied.
        frames (`int`): how many frames `video` holds.
        end (`Fraction`): when the last frame ends, in seconds. Where the source's pictures go on after it, its sound
            and subtitles are cut there.

    Raises:
        OSError: `output` cannot be written whole.
    """
    unfinished = output.with_name(f"{output.name}.partial.finishing{output.suffix}")
    try:
        with ExitStack() as files:
            pictures = files.enter_context(open_container(video))
            clip = files.enter_context(open_container(source.path)) if source else None
            container_format = OUTPUT_SUFFIXES[output.suffix.lower()]
            options = {} if container_format == "matroska" else _index_first(pictures)
            result = av.open(f"file:{unfinished}", "w", format=container_format, container_options=options)
            files.enter_context(result)
            _copy(pictures, clip, result, source, end)
        _check_complete(unfinished, frames)
        unfinished.replace(output)
    except (OSError, av.FFmpegError) as error:
        unfinished.unlink(missing_ok=True)
        kept = f"all {frames} frames are in {str(video)!r}"
        raise OSError(error.errno, f"{str(output)!r} cannot be finished ({error.strerror}); {kept}") from error


def _index_first(pictures: InputContainer) -> dict[str, str]:
    # a track's late start is counted in the movie's ticks; the default of 1000 a second would round it
    ticks = (pictures.streams.video[0].time_base or Fraction(1, 1000)).denominator
    return {"movflags": "+faststart", "movie_timescale": str(ticks)}


def check_tracks(source: VideoInfo, output: Path) -> None:
    """Tries, before any heavy work, whether `output` can hold the source's sound and subtitles, and warns of losses.

    Raises:
        ValueError: it cannot.
    """
    with (
        open_container(source.path) as clip,
        av.open(io.BytesIO(), "w", format=OUTPUT_SUFFIXES[output.suffix.lower()]) as result,
    ):
        tracks, losses = _add_tracks(clip, result)
        for loss in losses:
            warnings.warn(f"{str(source.path)!r}: {loss}", stacklevel=3)
        if not tracks:
            return
        try:
            result.start_encoding()
        except av.FFmpegError as error:
            kinds = [stream.codec_context.codec.canonical_name for stream in result.streams if stream.codec_context]
            raise ValueError(f"`path` {str(output)!r} cannot hold the source's {kinds}: {error.strerror}") from error


def synchronise(path: Path) -> None:
    """Waits until a file's content is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _copy(
    pictures: InputContainer,
    clip: InputContainer | None,
    result: OutputContainer,
    source: VideoInfo | None,
    end: Fraction,
) -> None:
    matroska = result.format.name == "matroska"
    template = pictures.streams.video[0]
    tracks: Tracks = {template.index: _copier(result.add_stream_from_template(template, opaque=True))}
    sequences = [_packets(pictures, tracks, Fraction(0), None, keep_run_in=True)]
    if clip is not None and source is not None:
        start = source.start_pts * source.time_base
        cut = end if _goes_on(source, start + end) else None
        clip_tracks, _ = _add_tracks(clip, result)
        result.metadata.update({key: text for key, text in clip.metadata.items() if key not in _CONTAINER_TAGS})
        if chapters := _chapters(clip, start, cut):
            result.set_chapters(chapters)
        # sound before time 0 is a decoder's run-in, hidden by an edit list; Matroska would play it and shift the rest
        sequences.append(_packets(clip, clip_tracks, start, cut, keep_run_in=not matroska))
    # in the order of time, so that neither the muxer nor a player has to hold one track for the other
    for _, packet in heapq.merge(*sequences, key=itemgetter(0)):
        result.mux(packet)


def _chapters(clip: InputContainer, start: Fraction, cut: Fraction | None) -> list[Chapter]:
    """The clip's chapters in seconds from `start`, up to `cut`."""
    chapters = []
    for chapter in clip.chapters():
        seconds = to_fraction(chapter["time_base"]) or Fraction(1)
        shift = round(start / seconds)
        first, last = max(chapter["start"] - shift, 0), chapter["end"] - shift
        if cut is not None:
            last = min(last, round(cut / seconds))
        if first < last:
            chapter["start"], chapter["end"] = first, last
            chapters.append(chapter)
    return chapters


def _packets(
    container: InputContainer, tracks: Tracks, start: Fraction, cut: Fraction | None, keep_run_in: bool
) -> Iterator[tuple[Fraction, Packet]]:
    """Yields the packets for the output with their decoding times, counted from `start`; none from `cut` on."""
    if not tracks:
        return
    demuxed = container.demux([container.streams[index] for index in tracks])
    while True:
        try:
            packet = next(demuxed, None)
            if packet is None:
                return
            converted = [] if packet.is_corrupt else tracks[packet.stream.index](packet)
        except av.FFmpegError as error:
            warnings.warn(f"{container.name!r} is damaged; its sound may end early: {error}", stacklevel=2)
            return
        for outgoing in converted:
            pts = outgoing.pts or 0
            dts = pts if outgoing.dts is None else outgoing.dts
            shift = round(start / outgoing.time_base)
            outgoing.pts, outgoing.dts = pts - shift, dts - shift
            if (cut is None or outgoing.pts * outgoing.time_base < cut) and (outgoing.pts >= 0 or keep_run_in):
                yield outgoing.dts * outgoing.time_base, outgoing


def _goes_on(source: VideoInfo, time: Fraction) -> bool:
    """Whether the source has pictures from `time` on (in seconds, by its own clock)."""
    with open_clip(source.path) as (container, stream):
        ticks = round(time / source.time_base)
        try:
            container.seek(ticks, stream=stream)
        except av.FFmpegError:
            pass  # no index: from the start, then
        # half a frame of slack for time bases that cannot hold the frame rate
        late = ticks - source.ticks_per_frame // 2
        return any(packet.pts is not None and packet.pts >= late for packet in container.demux(stream))


def _add_tracks(clip: InputContainer, result: OutputContainer) -> tuple[Tracks, list[str]]:
    """Adds an output track for each of the clip's sounds and subtitles; returns what makes packets, and losses."""
    tracks: Tracks = {}
    losses: list[str] = []
    container = str(result.format.name)
    mp4_family = container != "matroska"
    for track in (*clip.streams.audio, *clip.streams.subtitles):
        codec = track.codec_context.codec.canonical_name if track.codec_context else "unknown"
        name = f"its {codec} {track.type} track"
        text = codec in _TEXT_SUBTITLES
        target: Stream
        if codec == "unknown" or (mp4_family and isinstance(track, SubtitleStream) and not text):
            losses.append(f"{name} is dropped, {container} cannot hold it")
            continue
        if mp4_family and isinstance(track, AudioStream) and codec not in _COPIED_AUDIO[container]:
            losses.append(f"{name} is encoded again as AAC, which players expect in {container}")
            target, tracks[track.index] = _aac_encoder(track, result)
        elif isinstance(track, SubtitleStream) and text and (codec == "mov_text") != mp4_family:
            target, tracks[track.index] = _subtitle_encoder(track, result, "mov_text" if mp4_family else "subrip")
        else:
            target = result.add_stream_from_template(track, opaque=True)
            tracks[track.index] = _copier(target)
        target.metadata.update({key: track.metadata[key] for key in ("language", "title") if key in track.metadata})
        target.disposition = track.disposition
    left_out = sorted({stream.type for stream in clip.streams} - {"video", "audio", "subtitle"})
    if left_out:
        # in files of the MP4 family the chapters are such a track, which nothing tells from others
        kept = " (its chapters are)" if clip.chapters() else ""
        losses.append(f"its tracks of other kinds are not copied: {left_out}{kept}")
    return tracks, losses


def _copier(target: Stream) -> Converter:
    def copy(packet: Packet) -> list[Packet]:
        # the mark of the end, which only coders need, and gaps between subtitles, which the muxer makes anew
        if packet.pts is None or (packet.stream.type == "subtitle" and bytes(packet) == _EMPTY_SUBTITLE):
            return []
        packet.stream = target
        return [packet]

    return copy


def _aac_encoder(track: AudioStream, result: OutputContainer) -> tuple[Stream, Converter]:
    target = result.add_stream("aac", rate=track.codec_context.sample_rate, layout=track.codec_context.layout)

    def encode(packet: Packet) -> list[Packet]:
        packets = [outgoing for frame in track.decode(packet) for outgoing in target.encode(frame)]
        return packets if packet.size else packets + target.encode(None)

    return target, encode


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


def _check_complete(path: Path, frames: int) -> None:
    """Reads the written file back: a full disk may show only here."""
    synchronise(path)
    with open_clip(path) as (container, stream):
        found = sum(1 for packet in container.demux(stream) if packet.size and not packet.is_corrupt)
    if found != frames:
        raise OSError(errno.EIO, f"{found} of {frames} frames were written")
