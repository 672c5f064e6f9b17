# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Videos for programs that use the demo over its API: pictures of the newest frames, and a file at the end."""

from __future__ import annotations

import html
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import gradio as gr
import numpy as np
import torch
from PIL import Image

from ..pipelines.pipeline_ultraflash import UltraFlashStreamingPipeline
from ..serving.runner import StreamRunner
from ..video_io import DecodedFrame, VideoReader, VideoWriter

LARGEST_RESULT = 4096 * 2304  # pixels of a frame; one visitor must not take all of the memory
LARGEST_SEED = 2**32 - 1
_SLOWEST_PREVIEW = 0.5  # seconds a frame
_UNSURE_FRAMES = 2  # by which a container's count may be an estimate


@dataclass
class StreamJob:
    """One video to make.

    Args:
        arguments (`dict`): for [`UltraFlashStreamingPipeline.stream`].
        writer ([`VideoWriter`]): takes the frames.
        num_frames (`int`, *optional*): frames to come, as far as known.
        clip_frames (`deque`): frames of a clip that were read and whose results are still to come.
    """

    arguments: dict[str, Any]
    writer: VideoWriter
    num_frames: int | None
    clip_frames: deque[DecodedFrame] = field(default_factory=deque)


@dataclass(frozen=True)
class Update:
    """What a step of a stream changes on the page.

    Args:
        status (`str`): HTML.
        preview (`Path`, *optional*): animated picture of the newest frames.
        video (`Path`, *optional*): the video, at the end.
        comparison (`tuple`, *optional*): a frame of the clip, interpolated to the result's size, and the result.
    """

    status: str
    preview: Path | None = None
    video: Path | None = None
    comparison: tuple[Image.Image, Image.Image] | None = None


class Stops:
    """The stop signals of visitors' streams."""

    def __init__(self) -> None:
        self._stops: dict[tuple[str, str], threading.Event] = {}

    def stop(self, session: str, tab: str) -> None:
        """Ends a stream after the chunk that is being made; what is done stays."""
        if (session, tab) in self._stops:
            self._stops[session, tab].set()

    def forget(self, session: str) -> None:
        """Ends all streams of a visitor who has left."""
        for key in [key for key in self._stops if key[0] == session]:
            self._stops.pop(key).set()

    def end(self, seconds: float = 20.0) -> None:
        """Ends all streams, and waits so long for them to clean up."""
        for event in list(self._stops.values()):
            event.set()
        until = time.monotonic() + seconds
        while self._stops and time.monotonic() < until:
            time.sleep(0.05)

    @contextmanager
    def stoppable(self, session: str, tab: str) -> Iterator[threading.Event]:
        """Gives the event that [`~Stops.stop`] sets while the block runs."""
        stop = self._stops.setdefault((session, tab), threading.Event())
        try:
            yield stop
        finally:
            self._stops.pop((session, tab), None)


class Programs:
    """What the API's endpoints do.

    Args:
        pipe ([`UltraFlashStreamingPipeline`]): the pipeline.
        runner ([`StreamRunner`]): gives the turns, also to the page's live streams.
    """

    def __init__(self, pipe: UltraFlashStreamingPipeline, runner: StreamRunner) -> None:
        self.pipe = pipe
        self.runner = runner
        self.stops = Stops()
        self.scale: int = pipe.latent_upsampler.config.scale
        generator = pipe.generator_transformer
        any_size = generator is None or generator.config.sample_size is None
        self.sizes = _sizes(pipe.config.default_width, pipe.config.default_height, any_size)
        self.can_generate = pipe.generator_transformer is not None and pipe.text_encoder is not None
        self.can_upscale = pipe.can_encode

    def upscale(
        self, clip: str | None, scale: int, color_correction: str, seed: float | None, request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        """Upscales a clip.

        Yields:
            `tuple`: newest frames, finished video, status, and a frame before and after.
        """
        with _reported(clip), self._workplace(request, "upscale") as (stop, folder):
            if not clip:
                raise ValueError("Choose a video first: upload one, or take an example")
            generator = _generator(seed)
            reader = VideoReader(clip)
            width, height = reader.info.width * scale, reader.info.height * scale
            if width * height > LARGEST_RESULT:
                raise ValueError(
                    f"The result would be {width} × {height} pixels, more than this demo makes: "
                    "use `ultraflash upscale`, or a smaller clip"
                )
            name = f"{Path(clip).stem[:80]}-{scale}x.mp4"
            frames: deque[DecodedFrame] = deque()
            arguments = {
                "source": _clip_pixels(reader, frames),
                "scale": scale,
                "color_correction": color_correction,
                "generator": generator,
            }
            writer = VideoWriter(folder / name, width, height, source=reader)
            job = StreamJob(arguments, writer, reader.info.num_frames, frames)
            for update in self._run(job, stop):
                yield update.preview, update.video, update.status, update.comparison
            if reader.frames_damaged:
                gr.Warning(f"The clip is damaged: {reader.frames_damaged} parts of it were skipped")

    def generate(
        self, prompt: str, size: str, num_frames: int, seed: float | None, request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        """Makes a video from text.

        Yields:
            `tuple`: newest frames, finished video and status.
        """
        with _reported(), self._workplace(request, "generate") as (stop, folder):
            if not self.can_generate:
                raise ValueError("This checkpoint has no text generator: upscale a video instead")
            if not prompt or not prompt.strip():
                raise ValueError("Describe what the video shall show first")
            width, height = self.sizes[size]
            arguments = {
                "prompt": prompt,
                "height": height,
                "width": width,
                "num_frames": num_frames,
                "generator": _generator(seed),
            }
            writer = VideoWriter(folder / "ultraflash.mp4", width, height, fps=self.pipe.config.default_fps)
            for update in self._run(StreamJob(arguments, writer, num_frames), stop):
                yield update.preview, update.video, update.status

    @contextmanager
    def _workplace(self, request: gr.Request, tab: str) -> Iterator[tuple[threading.Event, Path]]:
        """A stop signal, and a folder for the time until Gradio has copied what is shown from it."""
        with (
            self.stops.stoppable(str(request.session_hash), tab) as stop,
            tempfile.TemporaryDirectory(prefix="ultraflash-demo-") as folder,
        ):
            yield stop, Path(folder)

    def _run(self, job: StreamJob, stop: threading.Event) -> Iterator[Update]:
        """Streams `job` to its end, or until `stop` is set.

        The last update has the video, also of a stream that was stopped or failed; a failure is raised after it.
        """
        folder, start = job.writer.path.parent, time.monotonic()
        done, preview, comparison, failure = 0, None, None, None
        with ExitStack() as cleanup:
            cleanup.callback(job.writer.abort)
            try:
                stream = self.runner.submit(self.pipe.stream, **job.arguments, output_type="pil").result()
                cleanup.callback(lambda: self.runner.submit(stream.close).result())
                while not stop.is_set():
                    asked = time.monotonic()
                    chunk = self.runner.submit(next, stream, None).result()
                    if chunk is None:
                        break
                    pictures = cast(list[Image.Image], chunk.frames[0])
                    comparison = _write(job, pictures)
                    done = chunk.frame_range[1]
                    preview = folder / f"frames-{done}.webp"
                    seconds = time.monotonic() - asked
                    _save_preview(preview, pictures, seconds / chunk.num_frames, job.writer.settings.fps)
                    yield Update(_progress(done, job.num_frames, time.monotonic() - start), preview)
            except (OSError, RuntimeError, TypeError, ValueError) as error:
                failure = error
            if done:
                status = _summary(job, time.monotonic() - start, stopped=stop.is_set() or failure is not None)
                yield Update(status, preview, _finished(job.writer), comparison)
            elif failure is None:
                yield Update(_line("Stopped before the first frames were ready"))
        if failure is not None:
            raise failure

    def stop(self, tab: str, request: gr.Request) -> None:
        """Ends a visitor's stream after the chunk that is being made."""
        self.stops.stop(str(request.session_hash), tab)

    def leave(self, request: gr.Request) -> None:
        """Ends the streams of a visitor who closed the page."""
        self.stops.forget(str(request.session_hash))


def _sizes(width: int, height: int, any_size: bool) -> dict[str, tuple[int, int]]:
    """Returns the sizes to choose from by their names: the checkpoint's own, upright, square, and half as large.

    All but the first are left out where the generator can only make that. All are even, as most browsers play nothing
    else.
    """
    side = min(width, height)
    sizes = [(width, height)]
    if any_size:
        sizes += [(height, width), (side, side), (width // 4 * 2, height // 4 * 2)]
    return {f"{width} × {height}": (width, height) for width, height in sizes}


def _generator(seed: float | None) -> torch.Generator:
    if seed is None or not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"Seed must be a whole number from 0 to {LARGEST_SEED}, got {seed}")
    return torch.Generator().manual_seed(int(seed))


def _clip_pixels(reader: VideoReader, kept: deque[DecodedFrame]) -> Iterator[np.ndarray]:
    """Yields a clip's frames; `kept` gets them too, for the timestamps of their results."""
    for frame in reader:
        kept.append(frame)
        yield frame.pixels


def _write(job: StreamJob, pictures: list[Image.Image]) -> tuple[Image.Image, Image.Image] | None:
    """Writes finished frames with their clip's timestamps; returns the last one before and after, if of a clip."""
    frames = [np.asarray(picture) for picture in pictures]
    if not job.clip_frames:
        job.writer.write(frames)
        return None
    originals = [job.clip_frames.popleft() for _ in pictures]
    job.writer.write(frames, [frame.pts for frame in originals], [frame.duration for frame in originals])
    before = Image.fromarray(originals[-1].pixels).resize(pictures[-1].size, Image.Resampling.BICUBIC)
    return before, pictures[-1]


def _finished(writer: VideoWriter) -> Path:
    """The finished file or, where finishing fails, what was written so far, which plays too."""
    try:
        writer.finish()
    except OSError:
        gr.Warning("The file could not be finished: it has all frames that were made, but no sound")
        return writer.partial_path
    return writer.path


def _save_preview(path: Path, pictures: list[Image.Image], pace: float, fps: Fraction) -> None:
    """Saves an animation that plays once, at the pace at which frames are being made if that is slower than `fps`."""
    seconds = max(min(pace, _SLOWEST_PREVIEW), float(1 / fps))
    first, *others = pictures
    first.save(path, save_all=True, append_images=others, duration=round(1000 * seconds), loop=1, quality=80, method=0)


def _progress(done: int, total: int | None, seconds: float) -> str:
    fps = done / seconds
    if total is None or done > total:  # a container's frame count may be an estimate
        return _line(f"{done} frames · {fps:.1f} FPS")
    return _line(f"{done} of {total} frames · {fps:.1f} FPS · {(total - done) / fps:.0f} s left", done / total)


def _summary(job: StreamJob, seconds: float, stopped: bool) -> str:
    writer = job.writer
    size = f"{writer.settings.width} × {writer.settings.height}"
    text = f"{writer.frames_written} frames of {size} in {seconds:.1f} s · {writer.frames_written / seconds:.1f} FPS"
    missing = (job.num_frames or 0) - writer.frames_written
    if not stopped and missing > _UNSURE_FRAMES:
        text += f" · {missing} frames are missing: the file is cut off or damaged"
    return _line(f"{'Stopped' if stopped else 'Done'} · {text}", None if stopped else 1.0)


def _line(text: str, share: float | None = None) -> str:
    bar = "" if share is None else f'<div class="track"><div class="bar" style="width: {share:.0%}"></div></div>'
    return f'<div class="uf-status">{bar}<div class="text">{html.escape(text)}</div></div>'


@contextmanager
def _reported(clip: str | None = None) -> Iterator[None]:
    """Tells errors with the clip's name in place of where the server keeps it, and no more of the server's own."""
    try:
        yield
    except (TypeError, ValueError) as error:
        message = str(error).replace(f"{Path(clip).parent}/", "") if clip else str(error)
        raise gr.Error(message, duration=30, print_exception=False) from error
    except (OSError, RuntimeError) as error:
        raise gr.Error("The server failed to make this video; its log says why", duration=30) from error
