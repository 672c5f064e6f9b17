# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Finishing a file: the encoded pictures beside the source's sound and subtitles, in a plain file, index first."""

from __future__ import annotations

import errno
import heapq
import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fractions import Fraction
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

import av
from av.bitstream import BitStreamFilterContext
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import Stream

from .durable import synchronise
from .fragments import EncoderSettings, sample_fragment
from .made_audio import MadeAudio
from .matroska import erase_frame_duration
from .opening import open_clip, open_container, to_fraction
from .probe import VideoInfo, read_timecode
from .timing import JOINED_FORMATS, JoinedClock
from .tracks import OUTPUT_SUFFIXES, AudioPlan, Tracks, add_tracks, chosen_audio, plan_audio

if TYPE_CHECKING:
    from av.container.core import Chapter

_CONTAINER_TAGS = {"major_brand", "minor_version", "compatible_brands", "encoder", "duration", "timecode"}


@dataclass(frozen=True)
class OutputPlan:
    """What a finished file is to hold beside its pictures.

    Args:
        container (`str`): FFmpeg's name of the container.
        source ([`VideoInfo`], *optional*): the clip whose sound, subtitles, chapters and tags are taken.
        audio_tracks (sequence of `int`, *optional*): which sounds, counted from 0; all by default.
        audio ([`AudioPlan`]): what becomes of them.
        timecode (`str`, *optional*): of the first frame.
    """

    container: str
    source: VideoInfo | None = None
    audio_tracks: Sequence[int] | None = None
    audio: AudioPlan = AudioPlan()
    timecode: str | None = None


def plan_output(
    path: Path, settings: EncoderSettings, source: VideoInfo | None, audio_tracks: Sequence[int] | None
) -> OutputPlan:
    """Finds out, before any heavy work and by writing the header, what an output can hold, and warns of losses.

    Args:
        path (`Path`): the output, with one of the suffixes of `OUTPUT_SUFFIXES`.
        settings ([`EncoderSettings`]): of its pictures.
        source ([`VideoInfo`], *optional*): the clip that they are made from.
        audio_tracks (sequence of `int`, *optional*): which of its sounds are wanted; all by default.

    Raises:
        ValueError: the container refuses the pictures or the tracks, or the source has no such sound.
    """
    container = OUTPUT_SUFFIXES[path.suffix.lower()]
    if source is not None and source.container is None:
        source = None  # pictures have nothing else
    if audio_tracks and source is None:
        raise ValueError(f"`audio_tracks` is {list(audio_tracks)}, but the source has no sound")
    plan = OutputPlan(container, source, audio_tracks)
    if source is not None:
        plan = replace(plan, audio=plan_audio(source, container, audio_tracks), timecode=source.timecode)
    pictures = sample_fragment(settings)
    losses, timecode, failure = _try_header(plan, settings, pictures)
    if plan.timecode is not None and timecode is None:
        dropped = f"its timecode {plan.timecode!r} is dropped, {container} cannot hold it at {settings.fps} fps"
        plan = replace(plan, timecode=None)
        losses, _, failure = _try_header(plan, settings, pictures)
        losses.append(dropped)
    if failure is not None:
        raise ValueError(f"`path` {str(path)!r} cannot hold the result: {failure}")
    for loss in losses:
        warnings.warn(f"{str(plan.source.path) if plan.source else ''!r}: {loss}", stacklevel=3)
    return plan


def _try_header(
    plan: OutputPlan, settings: EncoderSettings, pictures: bytes
) -> tuple[list[str], str | None, str | None]:
    """Writes a file of one frame in memory; returns what is lost, its timecode, and why it failed, if it did."""
    losses: list[str] = []
    file = io.BytesIO()
    try:
        with ExitStack() as files:
            sample = files.enter_context(av.open(io.BytesIO(pictures), "r"))
            clip = files.enter_context(open_container(plan.source.path)) if plan.source else None
            result = files.enter_context(_new_output(file, sample, plan))
            target, _, losses = _add_all(sample, clip, result, plan, settings.fps, Fraction(0), None)
            for _, packet in _pictures(sample, target):
                result.mux(packet)
        with av.open(io.BytesIO(file.getvalue()), "r") as written:
            return losses, read_timecode(written), None
    except (av.FFmpegError, ValueError) as error:
        return losses, None, getattr(error, "strerror", None) or str(error)


def remux(
    video: Path,
    unfinished: Path,
    settings: EncoderSettings,
    plan: OutputPlan,
    audio: MadeAudio,
    frames: int,
    end: Fraction,
) -> None:
    """Writes a plain file from the encoded pictures and the source's sound and subtitles.

    Args:
        video (`Path`): the encoded pictures.
        unfinished (`Path`): the file to write.
        settings ([`EncoderSettings`]): of the pictures.
        plan ([`OutputPlan`]): what else it holds.
        audio ([`MadeAudio`]): sound that was made with the pictures; may be none.
        frames (`int`): how many frames `video` holds.
        end (`Fraction`): when the last frame ends, in seconds. Where the source's pictures go on after it, its sound
            and subtitles are cut there.

    Raises:
        OSError: it cannot be written whole.
    """
    rate = _constant_rate(video, settings)
    with ExitStack() as files:
        pictures = files.enter_context(open_container(video))
        clip = files.enter_context(open_container(plan.source.path)) if plan.source else None
        result = files.enter_context(_new_output(unfinished, pictures, plan))
        _copy(pictures, clip, result, plan, audio, rate or settings.fps, end)
    if plan.container == "matroska" and rate is None:
        erase_frame_duration(unfinished)
    _check_complete(unfinished, frames)


def _new_output(file: Path | io.BytesIO, pictures: InputContainer, plan: OutputPlan) -> OutputContainer:
    if plan.container == "matroska":
        return av.open(_name(file), "w", format=plan.container)
    # a track's late start is counted in the movie's ticks; the default of 1000 a second would round it
    options = {"movie_timescale": str((pictures.streams.video[0].time_base or Fraction(1, 1000)).denominator)}
    if isinstance(file, Path):  # the index is moved to the front by reading the file again
        options["movflags"] = "+faststart"
    return av.open(_name(file), "w", format=plan.container, container_options=options)


def _name(file: Path | io.BytesIO) -> str | io.BytesIO:
    return f"file:{file}" if isinstance(file, Path) else file  # a colon in a name is no protocol


def _constant_rate(video: Path, settings: EncoderSettings) -> Fraction | None:
    """Returns the rate at which every frame comes, to a tick or Matroska's millisecond, `None` where there is none."""
    slack = max(settings.time_base, Fraction(1, 1000))
    with open_clip(video) as (container, stream):
        time_base = to_fraction(stream.time_base) or settings.time_base
        times = [packet.pts * time_base for packet in container.demux(stream) if packet.pts is not None]
    if len(times) < 2:
        return settings.fps
    mean = (len(times) - 1) / (times[-1] - times[0])
    for rate in (settings.fps, mean.limit_denominator(1), mean.limit_denominator(1001), mean):
        if rate and all(abs(time - times[0] - index / rate) <= slack for index, time in enumerate(times)):
            return rate
    return None


def _add_all(
    pictures: InputContainer,
    clip: InputContainer | None,
    result: OutputContainer,
    plan: OutputPlan,
    rate: Fraction,
    start: Fraction,
    cut: Fraction | None,
) -> tuple[Stream, Tracks, list[str]]:
    """Adds all tracks, tags and chapters; returns the one for the pictures, what makes the others' packets, losses."""
    template = pictures.streams.video[0]
    # a track that is declared with its frame rate, unlike one from a template: without, muxers make one up
    target = result.add_mux_stream(template.codec_context.codec.canonical_name, rate=rate)
    BitStreamFilterContext("null", in_stream=template, out_stream=target)  # copies the codec's parameters
    target.time_base = template.time_base
    if clip is None:
        return target, {}, []
    tracks, losses = add_tracks(clip, result, chosen_audio(clip, plan.audio_tracks), plan.audio)
    result.metadata.update({key: text for key, text in clip.metadata.items() if key.lower() not in _CONTAINER_TAGS})
    if plan.timecode is not None:
        result.metadata["timecode"] = plan.timecode
    if chapters := _chapters(clip, start, cut):
        result.set_chapters(chapters)
    return target, tracks, losses


def _copy(
    pictures: InputContainer,
    clip: InputContainer | None,
    result: OutputContainer,
    plan: OutputPlan,
    audio: MadeAudio,
    rate: Fraction,
    end: Fraction,
) -> None:
    source = plan.source
    start = source.start_pts * source.time_base if source else Fraction(0)
    cut = end if source and _goes_on(source, start + end) else None
    target, clip_tracks, _ = _add_all(pictures, clip, result, plan, rate, start, cut)
    sequences = [_pictures(pictures, target), audio.packets(result, end)]
    if clip is not None and source is not None:
        # copied sound before time 0 is a decoder's run-in, hidden by an edit list; Matroska would play it
        dropped = plan.audio.copied if plan.container == "matroska" else frozenset()
        sequences.append(_packets(clip, clip_tracks, source, start, cut, dropped))
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


def _pictures(container: InputContainer, target: Stream) -> Iterator[tuple[Fraction, Packet]]:
    packets: Iterator[Packet] = container.demux(video=0)
    for packet in packets:
        if packet.size and packet.dts is not None:
            packet.stream = target
            yield packet.dts * packet.time_base, packet


def _packets(
    clip: InputContainer,
    tracks: Tracks,
    source: VideoInfo,
    start: Fraction,
    cut: Fraction | None,
    without_run_in: frozenset[int],
) -> Iterator[tuple[Fraction, Packet]]:
    """Yields the packets for the output with their decoding times, counted from `start`; none from `cut` on."""
    if not tracks:
        return
    for index, packet in _demuxed(clip, tracks, source):
        try:
            converted = [] if packet.is_corrupt else tracks[index](packet)
        except av.FFmpegError:
            continue  # a damaged packet is left out, as a player does
        for outgoing in converted:
            pts = outgoing.pts or 0
            dts = pts if outgoing.dts is None else outgoing.dts
            shift = round(start / outgoing.time_base)
            outgoing.pts, outgoing.dts = pts - shift, dts - shift
            wanted = outgoing.pts >= 0 or index not in without_run_in
            if wanted and (cut is None or outgoing.pts * outgoing.time_base < cut):
                yield outgoing.dts * outgoing.time_base, outgoing


def _demuxed(clip: InputContainer, tracks: Tracks, source: VideoInfo) -> Iterator[tuple[int, Packet]]:
    """Yields the tracks' packets, by one clock where files were joined."""
    joined = clip.format.name in JOINED_FORMATS
    clock = JoinedClock(1 / source.fps)
    ends: dict[int, Fraction] = {}
    wanted = {*tracks, source.stream_index} if joined else set(tracks)
    packets = clip.demux([clip.streams[index] for index in sorted(wanted)])
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.FFmpegError as error:
            warnings.warn(f"{str(source.path)!r} is damaged; its sound may end early: {error}", stacklevel=2)
            return
        index = packet.stream.index
        if joined and index == source.stream_index:
            clock.see(packet)
        elif joined and packet.pts is not None:
            offset = clock.place(packet.pts * packet.time_base, ends.get(index))
            shift = round(offset / packet.time_base)
            packet.pts += shift
            packet.dts = packet.dts + shift if packet.dts is not None else None
            ends[index] = (packet.pts + (packet.duration or 0)) * packet.time_base
        if index in tracks:
            yield index, packet


def _goes_on(source: VideoInfo, time: Fraction) -> bool:
    """Whether the source has pictures from `time` on (in seconds, by its own clock)."""
    with open_clip(source.path, source.stream_index) as (container, stream):
        ticks = round(time / source.time_base)
        joined = container.format.name in JOINED_FORMATS
        try:
            if not joined:
                container.seek(ticks, stream=stream)
        except av.FFmpegError:
            pass  # no index: from the start, then
        # half a frame of slack for time bases that cannot hold the frame rate
        late = (ticks - source.ticks_per_frame // 2) * source.time_base
        clock = JoinedClock(1 / source.fps)
        for packet in container.demux(stream):
            if joined:
                clock.see(packet)
            if packet.pts is not None and packet.pts * source.time_base + clock.offset >= late:
                return True
        return False


def _check_complete(path: Path, frames: int) -> None:
    """Reads the written file back: a full disk may show only here."""
    synchronise(path)
    with open_clip(path) as (container, stream):
        found = sum(1 for packet in container.demux(stream) if packet.size and not packet.is_corrupt)
    if found != frames:
        raise OSError(errno.EIO, f"{found} of {frames} frames were written")
