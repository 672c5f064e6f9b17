# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Fragmented MP4 in memory: what a browser's Media Source Extensions play while it is being made."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np
from av.codec.context import Flags
from av.packet import Packet
from av.stream import Stream

from ..video_io.color import ColorTags, RGBConverter
from ..video_io.probe import VideoInfo
from .clip_sound import ClipSound

_KEYFRAME_SECONDS = 2
_MUXER_OPTIONS = {
    "movflags": "frag_custom+empty_moov+default_base_moof+frag_discont+skip_trailer",
    # timestamps are written as they are, not from 0: the fragment belongs into a longer stream
    "avoid_negative_ts": "disabled",
}


class FragmentEncoder:
    """Encodes the frames of a live stream as H.264, each call's frames as one MP4 fragment that can be played at once.

    One encoder lives as long as the stream; no frame waits inside it for a later one. Joined, header and fragments
    are one MP4 file.

    Args:
        width, height (`int`): of the frames, in pixels, even.
        fps (`float` or `Fraction`): frames a second where no timestamps are given.
        time_base (`Fraction`, *optional*): seconds of a tick of the timestamps; a frame's time at `fps` by default.
        clip ([`VideoInfo`], *optional*): whose first sound track, if it has one, goes along as AAC.
        crf (`float`, *optional*, defaults to 20): x264's constant rate factor.
        preset (`str`, *optional*, defaults to `"superfast"`): x264's speed preset.
        first_frame (`int`, *optional*, defaults to 0): number of the frame that it begins with: the earlier ones of
            the video were encoded elsewhere.

    Attributes:
        header (`bytes`): the initialisation segment, to be sent before the first fragment.
        sample_rate (`int` or `None`): of the sound, if there is any.
        audio_samples (`int`): of the newest fragment.
        mime_type (`str`): with the codec's profile and level, as `MediaSource.isTypeSupported` takes it.

    Raises:
        ValueError: `width` or `height` is odd, which 4:2:0 cannot hold.
    """

    def __init__(
        self,
        width: int,
        height: int,
        fps: float | Fraction,
        time_base: Fraction | None = None,
        clip: VideoInfo | None = None,
        crf: float = 20,
        preset: str = "superfast",
        first_frame: int = 0,
    ) -> None:
        if width % 2 or height % 2:
            raise ValueError(f"`width` {width} and `height` {height} must be even: browsers play 4:2:0 alone")
        rate = Fraction(fps).limit_denominator(10_000)
        self._time_base = time_base or 1 / rate
        self._frame_ticks = max(1, round(1 / (rate * self._time_base)))
        self._converter = RGBConverter(ColorTags(primaries=1, transfer=1))
        keyframes = max(1, round(_KEYFRAME_SECONDS * rate))
        options = {"crf": str(crf), "preset": preset, "tune": "zerolatency", "g": str(keyframes)}
        # not a container's own: container and streams refer to each other, and megabytes of x264 in a few objects
        # would wait long for Python's collector, which counts objects
        self._encoder = av.VideoCodecContext.create("libx264", "w")
        self._encoder.options, self._encoder.framerate = options, rate
        self._configure(self._encoder, width, height)
        self._encoder.open()
        self._container = av.open(io.BytesIO(), "w", format="mp4")
        self._stream = self._container.add_stream("libx264", rate=rate)  # a template, never opened
        self._stream.time_base = self._time_base
        self._configure(self._stream.codec_context, width, height)
        self._stream.codec_context.extradata = self._encoder.extradata
        self._sound = None if clip is None else ClipSound.of(clip, self._container)
        self.sample_rate = None if self._sound is None else self._sound.sample_rate
        self.audio_samples = 0
        self._fragments = 0
        self._next_pts = first_frame * self._frame_ticks
        self.header = self._muxed([], [])
        profile = bytes(self._encoder.extradata or b"")
        codecs = [f"avc1.{_profile(profile).hex()}", *(["mp4a.40.2"] if self._sound is not None else [])]
        self.mime_type = f'video/mp4; codecs="{", ".join(codecs)}"'

    def _configure(self, context: av.VideoCodecContext, width: int, height: int) -> None:
        context.width, context.height, context.pix_fmt = width, height, "yuv420p"
        context.time_base = self._time_base
        context.colorspace, context.color_primaries, context.color_trc, context.color_range = 1, 1, 1, 1
        context.flags |= Flags.frame_duration | Flags.global_header

    def encode(
        self, frames: np.ndarray, pts: Sequence[int] | None = None, durations: Sequence[int] | None = None
    ) -> bytes:
        """Returns the fragment of these frames.

        Args:
            frames (`np.ndarray`): `[frames, height, width, 3]` uint8, at least one.
            pts (sequence of `int`, *optional*): a growing timestamp for each, in ticks of `time_base`; by default they
                follow the frame before at the frame rate.
            durations (sequence of `int`, *optional*): how long each shows, in ticks; needed with `pts`.
        """
        ticks = self._frame_ticks
        if pts is None or durations is None:
            pts = [self._next_pts + index * ticks for index in range(len(frames))]
            durations = [ticks] * len(frames)
        packets: list[Packet] = []
        for pixels, tick, duration in zip(frames, pts, durations, strict=True):
            frame = self._converter.from_rgb(np.ascontiguousarray(pixels), "yuv420p")
            frame.pts, frame.duration, frame.time_base = tick, duration, self._time_base
            packets += self._encoder.encode(frame)
        self._next_pts = pts[-1] + durations[-1]
        sound: list[Packet] = []
        if self._sound is not None:
            sound = self._sound.between(pts[0] * self._time_base, self._next_pts * self._time_base)
        self.audio_samples = sum(packet.duration or 0 for packet in sound)
        return self._muxed(packets, sound)[len(self.header) :]

    def _muxed(self, packets: list[Packet], sound: list[Packet]) -> bytes:
        """Returns the header, which is the same for all, and the fragment of the packets."""
        buffer = io.BytesIO()
        self._fragments += bool(packets)
        options = _MUXER_OPTIONS | {"fragment_index": str(max(1, self._fragments))}
        with av.open(buffer, "w", format="mp4", container_options=options) as container:
            stream = container.add_stream_from_template(self._stream)
            stream.time_base = self._time_base
            context, template = stream.codec_context, self._stream.codec_context
            context.extradata = template.extradata  # which the template leaves out, as it does the size
            context.width, context.height = template.width, template.height
            tracks: list[tuple[Stream, list[Packet]]] = [(stream, packets)]
            if self._sound is not None:
                heard = container.add_stream_from_template(self._sound.target)
                heard.codec_context.extradata = self._sound.target.codec_context.extradata
                tracks.append((heard, sound))
            container.start_encoding()
            for track, content in tracks:
                for packet in content:
                    packet.stream = track
                    container.mux(packet)
        return buffer.getvalue()


def _profile(extradata: bytes) -> bytes:
    """Profile, constraints and level: the three bytes after the type of the sequence parameter set."""
    start = extradata.index(b"\x00\x00\x01\x67") + 4
    return extradata[start : start + 3]
