# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Writing H.264 files that survive an interruption and can be resumed.

While a run lasts, its frames go to `NAME.partial.mp4`, a fragmented MP4 file: it has no index at its end, and plays up
to its last whole fragment whatever happens. A fragment is encoded and muxed in memory by an encoder of its own, then
appended and synchronised: no encoder state outlives a fragment, so that a resumed run continues at a fragment's end
without touching what is there. `NAME.partial.json` says where the last checkpoint is. At the end the packets are
copied, not encoded again, into a plain file beside the source's sound.
"""

from __future__ import annotations

import glob
import io
import json
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import av
import numpy as np
import torch
from av.codec.context import Flags

from .color import ColorTags, RGBConverter
from .frames import checked_frames, tensor_to_frames
from .reader import VideoInfo, VideoReader
from .remux import OUTPUT_SUFFIXES, check_tracks, remux, synchronise

# A fragment's packets are held in memory, and a killed process loses at most one fragment
FRAGMENT_FRAMES = 48
_LARGEST_SIDE = 16384
_PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow", "placebo")
_FRAGMENT_OPTIONS = {
    "movflags": "frag_custom+empty_moov+default_base_moof+frag_discont+skip_trailer",
    # timestamps are written as they are, not from 0: the fragment belongs into a longer file
    "avoid_negative_ts": "disabled",
}


@dataclass(frozen=True)
class EncoderSettings:
    """All that decides what a fragment's stream looks like; a resumed run must have the same."""

    width: int
    height: int
    fps: Fraction
    time_base: Fraction
    color: ColorTags
    sample_aspect_ratio: Fraction
    crf: float
    preset: str

    @property
    def pixel_format(self) -> str:
        """4:2:0, which every browser plays, wherever its half-size chroma planes fit the frame."""
        return "yuv444p" if self.width % 2 or self.height % 2 else "yuv420p"

    def to_json(self) -> dict[str, Any]:
        return {name: str(value) if isinstance(value, Fraction) else value for name, value in asdict(self).items()}


@contextmanager
def _interrupts_deferred() -> Iterator[None]:
    """Handles a Ctrl-C only at the end of the block: a frame is then in the file and counted, or neither."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is None or threading.current_thread() is not threading.main_thread():
        yield  # where no KeyboardInterrupt is raised
        return
    interrupted = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if interrupted.is_set():
            signal.raise_signal(signal.SIGINT)


class Fragment:
    """Encodes and muxes consecutive frames in memory."""

    def __init__(self, settings: EncoderSettings, sequence_number: int) -> None:
        self.settings = settings
        self.frames = 0
        self._converter = RGBConverter(settings.color)
        self._buffer = io.BytesIO()
        options = _FRAGMENT_OPTIONS | {"fragment_index": str(sequence_number)}
        self._container = av.open(self._buffer, "w", format="mp4", container_options=options)
        # Without B-frames packets leave in the order of display: no offsets between fragments, no edit lists
        x264 = {"crf": str(settings.crf), "preset": settings.preset, "bf": "0"}
        self._stream = self._container.add_stream("libx264", rate=settings.fps, options=x264)
        context = self._stream.codec_context
        context.width, context.height, context.pix_fmt = settings.width, settings.height, settings.pixel_format
        context.time_base, context.sample_aspect_ratio = settings.time_base, settings.sample_aspect_ratio
        self._stream.time_base = settings.time_base
        context.flags |= Flags.frame_duration
        context.colorspace, context.color_primaries = settings.color.matrix, settings.color.primaries
        context.color_trc, context.color_range = settings.color.transfer, 2 if settings.color.full_range else 1

    def add(self, pixels: np.ndarray, pts: int, duration: int) -> None:
        frame = self._converter.from_rgb(pixels, self.settings.pixel_format)
        frame.pts, frame.duration, frame.time_base = pts, duration, self.settings.time_base
        self._container.mux(self._stream.encode(frame))
        self.frames += 1

    def finish(self) -> tuple[bytes, bytes]:
        """Returns the file header, which all fragments share, and the fragment."""
        self._container.mux(self._stream.encode(None))
        self._container.close()
        data = self._buffer.getvalue()
        header = _header_size(io.BytesIO(data))
        return data[:header], data[header:]


class VideoWriter:
    """Writes frames to an H.264 file, with sound, subtitles, timestamps and colour of the clip they were made from.

    The finished file is a plain one with its index first, 4:2:0 and therefore playable in browsers, and appears under
    its name only when it is whole. Frames of an odd width or height cannot be 4:2:0; they are written as 4:4:4 in
    exactly their size, with a warning, as not every browser decodes that. There are no B-frames, which keeps every
    fragment independent and makes files about a fifth larger at equal quality.

    Until then all frames are in `partial_path`, which plays at any time: after a kill, a full disk or an exception it
    has everything up to the last fragment (48 frames at most) or [`~VideoWriter.checkpoint`]. `resume=True` keeps what
    was there at the last checkpoint, as it is, and goes on from there:

        with VideoWriter("out.mp4", 1280, 768, source=reader, resume=True) as writer:
            reader.seek(writer.frames_done, writer.last_pts)
            state = StreamState.load(writer.state_path) if writer.state_path else None
            for chunk in ...:
                writer.write(chunk.frames, chunk.pts)
                writer.checkpoint(chunk.state.save)

    Leaving the `with` block finishes the file; leaving it by an exception keeps the partial one.

    Args:
        path (`str` or `Path`): output file, `.mp4`, `.m4v`, `.mov` or `.mkv` (there, times are whole milliseconds).
        width (`int`), height (`int`): size of the frames, in pixels.
        source ([`VideoReader`] or [`VideoInfo`], *optional*): the clip that the frames come from. Its frame rate, time
            base, colour tags, pixel aspect and metadata are kept, its sound and subtitles copied (encoded again only
            where the output cannot hold them), cut where the written frames end before the clip does.
        fps (`float` or `Fraction`, *optional*): frame rate, if there is no `source`.
        crf (`float`, *optional*, defaults to 18): x264's constant rate factor, from 1 (best) to 51.
        preset (`str`, *optional*, defaults to `"veryfast"`): x264's speed preset.
        resume (`bool`, *optional*, defaults to `False`): goes on after the last checkpoint of an interrupted run, if
            there is one.
        overwrite (`bool`, *optional*, defaults to `False`): replaces a finished file once the new one is finished and,
            without `resume`, discards an interrupted run's.
        made_with (`dict`, *optional*): what else decides the frames, such as a seed: names with numbers, strings or
            `None`. A resumed run must have the same.

    Raises:
        FileExistsError: `path` or a partial file of it is there, and neither `resume` nor `overwrite` was given.
        FileNotFoundError: the output's folder does not exist.
        OSError: the output cannot be written, or the disk is full.
        ValueError: a wrong argument, the source's own `path`, or other settings than those of the run to resume.

    Attributes:
        frames_written (`int`): frames in the file, resumed ones included.
        frames_done (`int`): frames that are durable, at the last checkpoint.
        last_pts (`int` or `None`): timestamp of the last written frame.
        state_path (`Path` or `None`): what the caller saved at the last checkpoint.
        complete (`bool`): a resumed run had written all its frames; only finishing was interrupted.
    """

    def __init__(
        self,
        path: str | Path,
        width: int,
        height: int,
        *,
        source: VideoReader | VideoInfo | None = None,
        fps: float | Fraction | None = None,
        crf: float = 18,
        preset: str = "veryfast",
        resume: bool = False,
        overwrite: bool = False,
        made_with: Mapping[str, str | int | float | None] | None = None,
    ) -> None:
        self.path = Path(path)
        self.source = source.info if isinstance(source, VideoReader) else source
        self.settings = _settings(width, height, self.source, fps, crf, preset)
        self.partial_path = self._sidecar("partial.mp4")
        self._check_path(resume, overwrite)
        self._identity = _identity(self.settings, self.source) | {"made_with": dict(made_with or {})}
        if self.source is not None:
            check_tracks(self.source, self.path)
        self.frames_written = self.frames_done = 0
        self.last_pts: int | None = None
        self.state_path: Path | None = None
        self.complete = False
        self._last_duration = 0
        self._header = b""
        self._bytes = 0
        self._fragments = 0
        self._fragment: Fragment | None = None
        self._file = self._open(resume)
        if self.settings.pixel_format == "yuv444p":
            warnings.warn(
                f"{str(path)!r}: {width}x{height} is odd, so it is written as 4:4:4, which not every browser plays",
                stacklevel=2,
            )

    def write(
        self,
        frames: np.ndarray | torch.Tensor | Sequence[np.ndarray],
        pts: Sequence[int] | None = None,
        durations: Sequence[int] | None = None,
    ) -> None:
        """Encodes frames.

        Args:
            frames (`np.ndarray`, `torch.Tensor` or list of `np.ndarray`): `[frames, height, width, 3]` uint8, or a
                floating-point tensor `[1, 3, frames, height, width]` in [-1, 1].
            pts (sequence of `int`, *optional*): a growing timestamp for each frame in ticks of `source.time_base` (of
                1 / `fps` without a source): [`DecodedFrame`]`.pts`. Without them frames follow at the frame rate.
            durations (sequence of `int`, *optional*): how long each frame shows, in ticks; only the last frame of the
                file needs it, the others show until the next one.

        Raises:
            OSError: the disk is full, or cannot be written; what was written before stays playable.
            TypeError, ValueError: wrong dtype, shape or frame size, or timestamps that do not grow.
        """
        array = self._checked(frames)
        if pts is None:
            interval = 1 / (self.settings.fps * self.settings.time_base)
            pts = [round(interval * (self.frames_written + index)) for index in range(len(array))]
        if durations is None:
            durations = [max(1, round(1 / (self.settings.fps * self.settings.time_base)))] * len(array)
        self._check_times(pts, durations, len(array))
        self.complete = False
        for pixels, tick, duration in zip(array, pts, durations, strict=True):
            with _interrupts_deferred():
                self._add(pixels, int(tick), int(duration))

    def checkpoint(self, save_state: Callable[[Path], object] | None = None) -> None:
        """Makes everything written so far durable, and the place from which `resume=True` goes on.

        Every checkpoint starts a new fragment with a keyframe: one or two a second cost little.

        Args:
            save_state (`Callable`, *optional*): called with a path to which it saves whatever resuming needs beside
                the frames, such as a running stream's state (`StreamState.save`). The file becomes `state_path` in one
                step with the checkpoint; the former one is deleted, as is the last one when the file is finished.

        Raises:
            OSError: the disk is full or cannot be written. The former checkpoint stays.
        """
        with _interrupts_deferred():
            self._flush()
        former, state_path = self.state_path, None
        if save_state is not None:
            state_path = self._sidecar(f"partial.{self.frames_written}.state")
            save_state(state_path)
            synchronise(state_path)
        self._record(state_path)
        self.frames_done, self.state_path = self.frames_written, state_path
        if former is not None and former != state_path:
            former.unlink(missing_ok=True)

    def finish(self) -> None:
        """Writes the finished file and deletes the partial one.

        Raises:
            OSError: the finished file cannot be written. All frames stay in `partial_path`; resuming finishes them.
            ValueError: no frames were written.
        """
        if self._file.closed:
            return
        if self.last_pts is None:
            self.abort()
            raise ValueError(f"no frames were written to {str(self.path)!r}")
        self.complete = True
        self.checkpoint()
        self._file.close()
        end = (self.last_pts + self._last_duration) * self.settings.time_base
        remux(self.partial_path, self.path, self.source, self.frames_written, end)
        self._delete_partial()

    def abort(self) -> None:
        """Keeps what was written in `partial_path`, which is playable and can be resumed from its last checkpoint."""
        if self._file.closed:
            return
        try:
            with _interrupts_deferred():
                self._flush()
        finally:
            if not self._file.closed:
                self._file.truncate(self._bytes)  # an append may have failed
                self._file.close()
            if not self._bytes:
                self._delete_partial()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
        else:
            self.abort()

    def _add(self, pixels: np.ndarray, tick: int, duration: int) -> None:
        if self._fragment is None:
            self._fragment = Fragment(self.settings, self._fragments + 1)
        self._fragment.add(pixels, tick, duration)
        self.frames_written += 1
        self.last_pts, self._last_duration = tick, duration
        if self._fragment.frames >= FRAGMENT_FRAMES:
            self._flush()

    def _flush(self) -> None:
        """Appends the open fragment to the partial file."""
        fragment, self._fragment = self._fragment, None
        if fragment is None:
            return
        self.frames_written -= fragment.frames  # until they are in the file
        header, data = fragment.finish()
        if self._header and header != self._header:
            raise ValueError(f"{str(self.partial_path)!r} is another encoder version's; start with overwrite=True")
        if not self._header:
            self._header, data = header, header + data
        try:
            unwritten = memoryview(data)
            while unwritten:  # a disk that fills up takes a part first
                unwritten = unwritten[self._file.write(unwritten) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            self._give_up(error)
        self._bytes += len(data)
        self._fragments += 1
        self.frames_written += fragment.frames

    def _give_up(self, error: OSError) -> None:
        self._file.truncate(self._bytes)
        self._file.close()
        kept = f"its first {self.frames_written} frames are in {str(self.partial_path)!r}"
        raise OSError(error.errno, f"{str(self.path)!r} cannot be written ({error.strerror}); {kept}") from error

    def _record(self, state_path: Path | None) -> None:
        """Replaces the record of the last checkpoint in one step."""
        record = self._identity | {
            "frames": self.frames_written,
            "last_pts": self.last_pts,
            "last_duration": self._last_duration,
            "bytes": self._bytes,
            "fragments": self._fragments,
            "complete": self.complete,
            "state": None if state_path is None else state_path.name,
        }
        replacement = self._sidecar("partial.json.new")
        replacement.write_text(json.dumps(record, indent=2))
        synchronise(replacement)
        replacement.replace(self._sidecar("partial.json"))

    def _open(self, resume: bool) -> BinaryIO:
        try:
            if resume and self.partial_path.exists():
                return self._reopen()
            self._delete_partial()
            self._record(None)
            return self.partial_path.open("wb", buffering=0)
        except OSError as error:
            raise OSError(error.errno, f"`path` {str(self.path)!r} cannot be written: {error.strerror}") from error

    def _reopen(self) -> BinaryIO:
        """Opens an interrupted run's file, cut to its last checkpoint."""
        record_path = self._sidecar("partial.json")
        advice = "start anew with overwrite=True"
        try:
            record = json.loads(record_path.read_text())
        except (FileNotFoundError, ValueError) as error:
            raise ValueError(f"{str(record_path)!r}, which says where to resume, is lost: {advice}") from error
        differences = list(_differences(self._identity, record))
        if differences:
            raise ValueError(
                f"cannot resume {str(self.partial_path)!r} with other settings: {', '.join(differences)}; {advice}"
            )
        if self.partial_path.stat().st_size < record["bytes"]:
            raise ValueError(f"{str(self.partial_path)!r} is shorter than its checkpoint of {record['bytes']} bytes")
        self.frames_written = self.frames_done = record["frames"]
        self.last_pts, self._last_duration = record["last_pts"], record["last_duration"]
        self._bytes, self._fragments, self.complete = record["bytes"], record["fragments"], record["complete"]
        self.state_path = self.path.with_name(record["state"]) if record["state"] else None
        file = self.partial_path.open("r+b", buffering=0)
        file.truncate(self._bytes)
        self._header = file.read(_header_size(file)) if self._bytes else b""
        file.seek(self._bytes)
        return file

    def _check_path(self, resume: bool, overwrite: bool) -> None:
        path, partial = self.path, self.partial_path
        if path.suffix.lower() not in OUTPUT_SUFFIXES:
            raise ValueError(f"`path` {str(path)!r} must end in one of {', '.join(OUTPUT_SUFFIXES)}")
        if path.is_dir():
            raise IsADirectoryError(f"`path` {str(path)!r} is a folder, expected a video file to write")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"`path` {str(path)!r}: there is no folder {str(path.parent)!r}")
        if self.source and path.exists() and path.samefile(self.source.path):
            raise ValueError(f"`path` {str(path)!r} is the source itself")
        if partial.exists() and not (resume or overwrite):
            raise FileExistsError(
                f"{str(partial)!r} is left from an interrupted run: resume=True goes on, overwrite=True discards it"
            )
        if path.exists() and not overwrite and not (resume and partial.exists()):
            raise FileExistsError(f"`path` {str(path)!r} exists already; give overwrite=True to replace it")

    def _checked(self, frames: np.ndarray | torch.Tensor | Sequence[np.ndarray]) -> np.ndarray:
        if self._file.closed:
            raise ValueError(f"the writer of {str(self.path)!r} is closed")
        if isinstance(frames, torch.Tensor) and frames.is_floating_point():
            array = tensor_to_frames(frames)
        else:
            array = checked_frames(frames)
        height, width = array.shape[1:3]
        if (width, height) != (self.settings.width, self.settings.height):
            expected = f"{self.settings.width}x{self.settings.height}"
            raise ValueError(f"`frames` are {width}x{height}, but {str(self.path)!r} was opened for {expected}")
        return array

    def _check_times(self, pts: Sequence[int], durations: Sequence[int], count: int) -> None:
        if len(pts) != count or len(durations) != count:
            raise ValueError(f"{count} `frames` with {len(pts)} `pts` and {len(durations)} `durations`")
        before = -1 if self.last_pts is None else self.last_pts
        for tick, duration in zip(pts, durations, strict=True):
            if tick <= before or duration < 1:
                raise ValueError(f"`pts` must grow, from 0, with `durations` of 1 or more: {tick} follows {before}")
            before = tick

    def _sidecar(self, ending: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{ending}")

    def _delete_partial(self) -> None:
        for left_over in self.path.parent.glob(f"{glob.escape(self.path.name)}.partial.*"):
            left_over.unlink()


def _settings(
    width: int,
    height: int,
    source: VideoInfo | None,
    fps: float | Fraction | None,
    crf: float,
    preset: str,
) -> EncoderSettings:
    for name, size in (("width", width), ("height", height)):
        if not 1 <= size <= _LARGEST_SIDE:
            raise ValueError(f"`{name}` must be from 1 to {_LARGEST_SIDE}, got {size}")
    if not 1 <= crf <= 51:
        raise ValueError(f"`crf` must be from 1 to 51, got {crf}")
    if preset not in _PRESETS:
        raise ValueError(f"`preset` must be one of {', '.join(_PRESETS)}, got {preset!r}")
    if source is not None and fps is None:
        aspect = source.sample_aspect_ratio
        return EncoderSettings(width, height, source.fps, source.time_base, source.color, aspect, crf, preset)
    if source is not None or fps is None:
        raise ValueError(f"give either `source` or `fps`, got {'both' if source else 'neither'}")
    if not 0 < fps <= 1000:
        raise ValueError(f"`fps` must be more than 0 and at most 1000, got {fps}")
    rate = Fraction(fps).limit_denominator(1001)  # 29.97 means 2997/100, 24000/1001 stays what it is
    return EncoderSettings(width, height, rate, 1 / rate, ColorTags(1, 1, 1), Fraction(1), crf, preset)


def _identity(settings: EncoderSettings, source: VideoInfo | None) -> dict[str, Any]:
    """What an interrupted run and its continuation must share, as JSON data."""
    origin = None if source is None else {"name": source.path.name, "bytes": source.path.stat().st_size}
    return {"version": 1, "settings": settings.to_json(), "source": origin}


def _differences(now: Mapping[str, Any], then: Mapping[str, Any]) -> Iterator[str]:
    for name, value in now.items():
        former = then.get(name)
        if isinstance(value, dict) and isinstance(former, dict):
            yield from _differences(value, former)
        elif value != former:
            yield f"{name} is {value!r}, was {former!r}"


def _header_size(file: BinaryIO) -> int:
    """Returns how many bytes of an MP4 file come before its first fragment."""
    file.seek(0)
    while True:
        start = file.tell()
        box = file.read(8)
        if box[4:] == b"moof":
            file.seek(0)
            return start
        file.seek(start + int.from_bytes(box[:4], "big"))
