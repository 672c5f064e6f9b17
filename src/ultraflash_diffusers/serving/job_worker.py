# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Makes the videos of queued jobs, one after the other, in turns with the live streams."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any, Self

from ..pipelines.file_stream import FileStream
from ..pipelines.pipeline_output import StreamChunk
from ..pipelines.video_stream import PipelineStreamState, VideoStream
from ..video_io import VideoReader, VideoWriter
from .errors import as_client_error
from .jobs import COMPLETED, FAILED, Job, JobStore
from .messages import SamplingParams
from .runner import StreamRunner
from .served_models import ServedModel, check_size, choose_model, stream_arguments
from .server import Server

_LOOK_SECONDS = 1.0


class Interrupted(Exception):
    """A job was cancelled, or its server ends."""


class StreamInTurns(Iterator[StreamChunk]):
    """A stream of which each chunk waits for its turn.

    Args:
        stream ([`VideoStream`]): that makes them.
        runner ([`StreamRunner`]): gives the turns.
        stop (`threading.Event`): ends it with [`Interrupted`].
        on_frames (`Callable`): is told how many frames of the video are made.
    """

    def __init__(
        self, stream: VideoStream, runner: StreamRunner, stop: threading.Event, on_frames: Callable[[int], None]
    ) -> None:
        self._stream = stream
        self._runner = runner
        self._stop = stop
        self._on_frames = on_frames

    def __next__(self) -> StreamChunk:
        if self._stop.is_set():
            raise Interrupted
        chunk = self._runner.submit(next, self._stream, None).result()
        if chunk is None:
            raise StopIteration
        self._on_frames(chunk.frame_range[1])
        return chunk

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._runner.submit(self._stream.close).result()


class JobWorker:
    """A thread that makes what is queued.

    Args:
        server ([`Server`]): models, limits and turns.
        store ([`JobStore`]): the jobs.
    """

    def __init__(self, server: Server, store: JobStore) -> None:
        self._server = server
        self._store = store
        self._ending = False
        self._current: tuple[str, threading.Event] | None = None
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._work, name="ultraflash-jobs", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Says that there is a new job."""
        self._wake.set()

    def cancel(self, name: str) -> bool:
        """Ends a job if it is being made, after the current chunk, and deletes its files; returns whether it was."""
        with self._lock:
            if self._current is None or self._current[0] != name:
                return False
            self._current[1].set()
            return True

    def close(self) -> None:
        """Ends after the chunk that is being made; the next server goes on from the last saved state."""
        with self._lock:
            self._ending = True
            if self._current is not None:
                self._current[1].set()
        self._wake.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._ending:
            self._forget_old()
            job = self._store.take()
            if job is None:
                self._wake.wait(_LOOK_SECONDS)
                self._wake.clear()
                continue
            self._make(job)

    def _make(self, job: Job) -> None:
        stop = threading.Event()
        with self._lock:
            if self._ending:
                return
            self._current = job.id, stop
        try:
            self._write(job, stop)
        except Interrupted:
            if not self._ending:
                self._store.delete(job)
        except Exception as failure:
            error = as_client_error(failure, job.folder)
            self._store.end(job.id, {"code": error.code, "message": error.message})
            self._server.metrics.jobs.labels(FAILED).inc()
        else:
            self._store.end(job.id)
            self._server.metrics.jobs.labels(COMPLETED).inc()
        finally:
            self._current = None

    def _write(self, job: Job, stop: threading.Event) -> None:
        """Makes the file, or goes on with it where an earlier server was interrupted."""
        model = choose_model(self._server.models, job.request["model"])
        request = SamplingParams.model_validate(job.request["sampling"])
        reader = None if job.upload is None else VideoReader(job.upload, num_frames=request.num_frames)
        if job.video.exists() and not job.video.with_suffix(".partial.mp4").exists():
            return  # only the note that it is finished was missing
        writer = self._writer(job, model, request, reader)
        expected = request.num_frames if reader is None else reader.info.num_frames

        def note(frames: int) -> None:
            if expected:
                self._store.set_progress(job.id, min(0.99, frames / expected))

        def open_stream(state: PipelineStreamState | None) -> Any:
            arguments = stream_arguments(model, request, reader, request.num_frames, job.request["seed"], state)
            stream = self._server.runner.submit(model.pipe.stream, **arguments).result()
            return StreamInTurns(stream, self._server.runner, stop, note)

        with writer:
            FileStream(writer, expected, self._server.settings.save_every, progress=False).run(open_stream)

    def _writer(
        self, job: Job, model: ServedModel, request: SamplingParams, reader: VideoReader | None
    ) -> VideoWriter:
        made_with = {"model": model.fingerprint, "request": job.id}
        if reader is not None:
            size = reader.info.width * model.scale, reader.info.height * model.scale
            check_size(*size, self._server.settings)
            return VideoWriter(job.video, *size, source=reader, resume=True, made_with=made_with)
        config = model.pipe.config
        width, height = request.width or config.default_width, request.height or config.default_height
        fps = Fraction(request.fps or config.default_fps).limit_denominator(10_000)
        return VideoWriter(job.video, width, height, fps=fps, resume=True, made_with=made_with)

    def _forget_old(self) -> None:
        oldest = time.time() - self._server.settings.keep_hours * 3600
        for job in self._store.all():
            if job.completed_at is not None and job.completed_at < oldest:
                self._store.delete(job)
