# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Writing video files that survive an interruption and can be resumed.

While a run lasts, its frames go to `NAME.partial.mp4`, a fragmented MP4 file: it has no index at its end, and plays up
to its last whole fragment whatever happens. A fragment is encoded and muxed in memory by an encoder of its own, then
appended and synchronised: no encoder state outlives a fragment, so that a resumed run continues at a fragment's end
without touching what is there. `NAME.partial.json` says where the last checkpoint is. At the end the packets are
copied, not encoded again, into a plain file beside the source's sound.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self
from zlib import crc32

import av
import numpy as np
import torch

from .durable import checksum, synchronise
from .fragments import FRAGMENT_FRAMES, Fragment, choose_settings, header_size
from .frames import checked_frames, tensor_to_frames
from .interrupts import interrupts_deferred
from .made_audio import MadeAudio
from .partial import ADVICE, PartialFiles, checked_output, differences, file_mark, fingerprint
from .probe import VideoInfo
from .reader import VideoReader
from .remux import plan_output, remux
from .timing import check_times


class VideoWriter:
    """Writes frames to a video file, with sound, subtitles, timestamps and colour of the clip they were made from.

    The finished file is a plain one with its index first, 4:2:0 and therefore playable in browsers, and appears under
    its name only when it is whole. Frames of an odd width or height cannot be 4:2:0; they are written as 4:4:4 in
    exactly their size, with a warning, as not every browser decodes that. There are no B-frames, which keeps every
    fragment independent and makes files about a fifth larger at equal quality. Pictures are H.264; with `bit_depth=10`
    they are HEVC (Main 10), which keeps HDR.

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
        path (`str` or `Path`): output file, `.mp4`, `.m4v`, `.mov` or `.mkv` (there, times are whole milliseconds). Of
            a symbolic link, the file that it leads to is written and the link stays.
        width (`int`), height (`int`): size of the frames, in pixels.
        source ([`VideoReader`] or [`VideoInfo`], *optional*): the clip that the frames come from. Its frame rate, time
            base, colour tags, pixel aspect and metadata are kept, its sound and subtitles copied (encoded again only
            where the output cannot hold them), cut where the written frames end before the clip does.
        fps (`float` or `Fraction`, *optional*): frame rate, if there is no `source`.
        crf (`float`, *optional*, defaults to 18): the encoder's constant rate factor, from 1 (best) to 51.
        preset (`str`, *optional*, defaults to `"veryfast"`): the encoder's speed preset.
        bit_depth (`int`, *optional*, defaults to 8): bits a sample, 8 or 10. The colours are the source's as its
            reader yields them, so those of HDR need a reader with `high_bit_depth` and 10 bits here.
        sample_aspect_ratio (`Fraction`, *optional*): width of a pixel over its height; the source's by default.
        audio_tracks (sequence of `int`, *optional*): which of the source's sounds are taken, counted from 0; all by
            default, none of `()`.
        resume (`bool`, *optional*, defaults to `False`): goes on after the last checkpoint of an interrupted run, if
            there is one.
        overwrite (`bool`, *optional*, defaults to `False`): replaces a finished file once the new one is finished and,
            without `resume`, discards an interrupted run's.
        made_with (`dict`, *optional*): what else decides the frames, such as a seed: names with numbers, strings or
            `None`. A resumed run must have the same.

    Raises:
        FileExistsError: `path` or a partial file of it is there, and neither `resume` nor `overwrite` was given, or
            another run is writing it.
        FileNotFoundError: the output's folder does not exist.
        OSError: the output cannot be written, its name is too long, or the disk is full.
        ValueError: a wrong argument, the source's own `path`, no regular file, what the container cannot hold, a
            damaged partial file, or other settings or another source than those of the run to resume.

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
        bit_depth: int = 8,
        sample_aspect_ratio: Fraction | None = None,
        audio_tracks: Sequence[int] | None = None,
        resume: bool = False,
        overwrite: bool = False,
        made_with: Mapping[str, str | int | float | None] | None = None,
    ) -> None:
        self.source = source.info if isinstance(source, VideoReader) else source
        self.path = checked_output(Path(path), self.source)
        self.settings = choose_settings(width, height, self.source, fps, crf, preset, bit_depth, sample_aspect_ratio)
        self._overwrite = overwrite
        self._files = PartialFiles(self.path)
        self.partial_path = self._files.video
        self._reset()
        self._files.acquire()
        try:
            self._check_existing(resume)
            self._plan = plan_output(self.path, self.settings, self.source, audio_tracks)
            self._identity = self._make_identity(audio_tracks, dict(made_with or {}))
            self._file = self._open(resume)
        except BaseException:
            self._files.release()
            raise
        if self.settings.pixel_format.startswith("yuv444p"):
            warnings.warn(
                f"{str(path)!r}: {width}x{height} is odd, so it is written as 4:4:4, which not every browser plays",
                stacklevel=2,
            )

    def _reset(self) -> None:
        self.frames_written = self.frames_done = 0
        self.last_pts: int | None = None
        self.state_path: Path | None = None
        self.complete = False
        self._published = False
        self._last_duration = 0
        self._header = b""
        self._bytes = self._checksum = self._fragments = 0
        self._fragment: Fragment | None = None
        self._audio = MadeAudio(self._files.audio)

    def _make_identity(self, audio_tracks: Sequence[int] | None, made_with: dict[str, Any]) -> dict[str, Any]:
        """What an interrupted run and its continuation must share, as JSON data."""
        self._source_mark = file_mark(self.source.path) if self.source else None
        origin = {"name": self.source.path.name, "content": fingerprint(self.source.path)} if self.source else None
        sounds = None if audio_tracks is None else list(audio_tracks)
        return {
            "settings": self.settings.to_json(),
            "source": origin,
            "audio_tracks": sounds,
            "made_with": made_with,
        }

    def write(
        self,
        frames: np.ndarray | torch.Tensor | Sequence[np.ndarray],
        pts: Sequence[int] | None = None,
        durations: Sequence[int] | None = None,
    ) -> None:
        """Encodes frames.

        Args:
            frames (`np.ndarray`, `torch.Tensor` or list of `np.ndarray`): `[frames, height, width, 3]` uint8 (for 10
                bits also uint16), or a floating-point tensor `[1, 3, frames, height, width]` in [-1, 1].
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
            durations = [self.settings.ticks_per_frame] * len(array)
        check_times(pts, durations, len(array), self.last_pts)
        self.complete = False
        for pixels, tick, duration in zip(array, pts, durations, strict=True):
            with interrupts_deferred():
                self._add(pixels, int(tick), int(duration))

    def write_audio(self, samples: np.ndarray | torch.Tensor, sample_rate: int) -> None:
        """Adds what sounds next, without a gap from the first frame on: AAC in the finished file, cut to the frames.

        Args:
            samples (`np.ndarray` or `torch.Tensor`): floating point `[channels, samples]` in [-1, 1].
            sample_rate (`int`): samples a second.

        Raises:
            OSError, TypeError, ValueError: as [`~VideoWriter.write`]; or there is a `source`, whose sound is taken.
        """
        if self.source is not None:
            raise ValueError(f"the sound of {str(self.path)!r} is that of its source: `samples` cannot be added")
        self._audio.append(samples, sample_rate)

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
        with interrupts_deferred():
            self._flush()
        former, state_path = self.state_path, None
        if save_state is not None:
            state_path = self._files.state(self.frames_written)
            if state_path != former:
                state_path.unlink(missing_ok=True)  # a killed run's, which no record names
            save_state(state_path)
            synchronise(state_path)
        self._record(state_path)
        self.frames_done, self.state_path = self.frames_written, state_path
        if former is not None and former != state_path:
            former.unlink(missing_ok=True)

    def finish(self) -> None:
        """Writes the finished file and deletes the partial one.

        Raises:
            FileExistsError: a file of that name has appeared meanwhile. All frames stay in `partial_path`, as they do
                after the following; resuming finishes them.
            OSError: the finished file cannot be written.
            ValueError: no frames were written, or the source is no longer the file that it was.
        """
        if self._file.closed:
            return
        if self.last_pts is None:
            self.abort()
            raise ValueError(f"no frames were written to {str(self.path)!r}")
        if not self._published:
            self.complete = True
            self.checkpoint()
            self._file.close()
            try:
                self._finish_file((self.last_pts + self._last_duration) * self.settings.time_base)
            except BaseException:
                self._files.release()
                raise
        self._file.close()
        self._files.delete()
        self._files.release()

    def _finish_file(self, end: Fraction) -> None:
        kept = f"all {self.frames_written} frames are in {str(self.partial_path)!r}"
        finishing = self._files.finishing
        try:
            self._check_source(kept)
            remux(self.partial_path, finishing, self.settings, self._plan, self._audio, self.frames_written, end)
            self._record(self.state_path, published=file_mark(finishing))
            self._files.publish(self._overwrite)
        except FileExistsError as error:
            finishing.unlink(missing_ok=True)
            raise FileExistsError(
                f"`path` {str(self.path)!r} has appeared meanwhile; {kept}: with resume=True, overwrite=True replaces "
                "it by them"
            ) from error
        except (OSError, av.FFmpegError) as error:
            finishing.unlink(missing_ok=True)
            raise OSError(error.errno, f"{str(self.path)!r} cannot be finished ({error.strerror}); {kept}") from error

    def _check_source(self, kept: str) -> None:
        """The sound is read now, and must be that of the pictures."""
        if self.source is None or file_mark(self.source.path) == self._source_mark:
            return
        if fingerprint(self.source.path) != self._identity["source"]["content"]:
            raise ValueError(f"the source {str(self.source.path)!r} has changed since the run began; {kept}")

    def abort(self) -> None:
        """Keeps what was written in `partial_path`, which is playable and can be resumed from its last checkpoint."""
        if self._file.closed:
            return
        try:
            with interrupts_deferred():
                self._flush()
        finally:
            if not self._file.closed:
                self._file.truncate(self._bytes)  # an append may have failed
                self._file.close()
            if not self._bytes:
                self._files.delete()
            self._files.release()

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
        self._checksum = crc32(data, self._checksum)
        self._fragments += 1
        self.frames_written += fragment.frames

    def _give_up(self, error: OSError) -> None:
        self._file.truncate(self._bytes)
        self._file.close()
        self._files.release()
        kept = f"its first {self.frames_written} frames are in {str(self.partial_path)!r}"
        raise OSError(error.errno, f"{str(self.path)!r} cannot be written ({error.strerror}); {kept}") from error

    def _record(self, state_path: Path | None, published: list[int] | None = None) -> None:
        """Replaces the record of the last checkpoint in one step."""
        state = None
        if state_path is not None:
            size = state_path.stat().st_size
            state = {"name": state_path.name, "bytes": size, "checksum": checksum(state_path, size)}
        record = {
            "frames": self.frames_written,
            "last_pts": self.last_pts,
            "last_duration": self._last_duration,
            "bytes": self._bytes,
            "checksum": self._checksum,
            "fragments": self._fragments,
            "complete": self.complete,
            "published": published,
            "state": state,
        }
        self._files.save_record(self._identity | record | {"audio": self._audio.record()})

    def _open(self, resume: bool) -> BinaryIO:
        try:
            record = self._files.load_record() if resume else None
            if record is not None and self._is_published(record):
                return self._take_up(record)
            if resume and self.partial_path.exists():
                return self._reopen(record)
            self._files.delete()
            self._record(None)
            return self.partial_path.open("wb", buffering=0)
        except OSError as error:
            raise OSError(error.errno, f"`path` {str(self.path)!r} cannot be written: {error.strerror}") from error

    def _is_published(self, record: Mapping[str, Any]) -> bool:
        """Whether the output is the very file that a run has finished, which was then killed before it cleaned up."""
        mark = record["published"]
        self._published = mark is not None and self.path.exists() and file_mark(self.path) == mark
        return self._published

    def _reopen(self, record: Mapping[str, Any] | None) -> BinaryIO:
        """Opens an interrupted run's file, cut to its last checkpoint."""
        name = str(self.partial_path)
        if record is None:
            raise ValueError(f"the record of {name!r}, partial.json, which says where to resume, is lost: {ADVICE}")
        if self.partial_path.stat().st_size < record["bytes"]:
            raise ValueError(f"{name!r} is shorter than its checkpoint of {record['bytes']} bytes: {ADVICE}")
        if checksum(self.partial_path, record["bytes"]) != record["checksum"]:
            raise ValueError(f"{name!r} is damaged, it is not what its checkpoint was written for: {ADVICE}")
        return self._take_up(record)

    def _take_up(self, record: Mapping[str, Any]) -> BinaryIO:
        changed = list(differences(self._identity, record))
        if changed:
            raise ValueError(
                f"cannot resume {str(self.partial_path)!r} with other settings: {', '.join(changed)}; {ADVICE}"
            )
        self.frames_written = self.frames_done = record["frames"]
        self.last_pts, self._last_duration = record["last_pts"], record["last_duration"]
        self._bytes, self._checksum = record["bytes"], record["checksum"]
        self._fragments, self.complete = record["fragments"], record["complete"]
        self.state_path = self._checked_state(record["state"])
        if self._published:
            return Path(os.devnull).open("r+b", buffering=0)
        self._audio.take_up(record.get("audio"), ADVICE)
        file = self.partial_path.open("r+b", buffering=0)
        file.truncate(self._bytes)
        self._header = file.read(header_size(file)) if self._bytes else b""
        file.seek(self._bytes)
        return file

    def _checked_state(self, state: Mapping[str, Any] | None) -> Path | None:
        if state is None or self.complete:
            return None
        path = self.path.with_name(state["name"])
        if not path.exists() or checksum(path, state["bytes"]) != state["checksum"]:
            raise ValueError(f"{str(path)!r}, the state to resume from, is lost or damaged: {ADVICE}")
        return path

    def _check_existing(self, resume: bool) -> None:
        path, partial = self.path, self.partial_path
        if partial.exists() and not (resume or self._overwrite):
            raise FileExistsError(
                f"{str(partial)!r} is left from an interrupted run: resume=True goes on, overwrite=True discards it"
            )
        record = self._files.load_record() if resume and not self._overwrite and path.exists() else None
        if path.exists() and not self._overwrite and not (record and self._is_published(record)):
            raise FileExistsError(f"`path` {str(path)!r} exists already; give overwrite=True to replace it")

    def _checked(self, frames: np.ndarray | torch.Tensor | Sequence[np.ndarray]) -> np.ndarray:
        if self._file.closed:
            raise ValueError(f"the writer of {str(self.path)!r} is closed")
        deep = self.settings.bit_depth > 8
        if isinstance(frames, torch.Tensor) and frames.is_floating_point():
            array = tensor_to_frames(frames, np.uint16 if deep else np.uint8)
        else:
            array = checked_frames(frames, dtypes=(np.uint8, np.uint16) if deep else (np.uint8,))
        height, width = array.shape[1:3]
        if (width, height) != (self.settings.width, self.settings.height):
            expected = f"{self.settings.width}x{self.settings.height}"
            raise ValueError(f"`frames` are {width}x{height}, but {str(self.path)!r} was opened for {expected}")
        return array
