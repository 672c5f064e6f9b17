# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Streams on a Space with ZeroGPU, where a GPU is there only while a function runs that `spaces.GPU` has decorated.

Such a function runs in a forked process, and what goes in and comes out is pickled. So a stream is made in turns: each
is a call that goes on from the state after the last chunk, makes chunks for some seconds, and hands each of them over
with the state after it, on the CPU. Between turns there is nothing on a GPU.
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Self

import gradio as gr
import torch
from fastapi import WebSocket
from gradio.context import LocalContext

from ..pipelines.pipeline_output import StreamChunk
from ..pipelines.pipeline_state import PipelineStreamState
from ..pipelines.pipeline_ultraflash import UltraFlashStreamingPipeline
from ..video_io import VideoReader

TURN_SECONDS = 15.0  # of chunks; then the GPU is given back
GPU_SECONDS = 40  # that a turn asks for: with the move of the weights, and the chunk that is under way at its end
_ON_A_STATE = {"prompt": None, "negative_prompt": None, "generator": None}  # which has its own

# pickled: tensors would go from process to process by handles, which end with the process that made them
State = bytes
# a chunk and the state after it; `None` is the end of the video
Made = tuple[StreamChunk, State] | None
Prompt = tuple[str, int]  # and the first frame that may follow it
Turn = Callable[[dict[str, Any], State | None, list[Prompt]], Iterator[Made]]


def on_zero_gpu() -> bool:
    """Whether this is a Space with ZeroGPU, by the variable that its machines set."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


async def as_gradio_call(socket: WebSocket) -> None:
    """Lets what a WebSocket asks for count as its visitor's: `spaces` reads the token from Gradio's request."""
    LocalContext.request.set(gr.Request(socket))  # type: ignore[arg-type]  # headers are all that is read


class GpuTurns:
    """Opens streams of a pipeline that are made in turns. To be made before the page is launched.

    Args:
        pipe ([`UltraFlashStreamingPipeline`]): the checkpoint.
        gpu (`Callable`, *optional*): decorates a turn; `spaces.GPU` by default.
        seconds (`float`, *optional*, defaults to `TURN_SECONDS`): after which a turn ends with its chunk.

    Raises:
        ImportError: `spaces` is not installed, and no `gpu` was given.
    """

    def __init__(
        self,
        pipe: UltraFlashStreamingPipeline,
        gpu: Callable[[Turn], Turn] | None = None,
        seconds: float = TURN_SECONDS,
    ) -> None:
        if gpu is None:
            import spaces

            gpu = spaces.GPU(duration=GPU_SECONDS)

        def turn(arguments: dict[str, Any], state: State | None, prompts: list[Prompt]) -> Iterator[Made]:
            """The chunks after `state`, the first of which may follow new prompts."""
            return (yield from _made(pipe, arguments, state, prompts, seconds))

        self._turn = gpu(turn)

    def stream(self, **arguments: Any) -> StreamInTurns:
        """Starts a stream; arguments as of [`UltraFlashStreamingPipeline.stream`].

        Raises:
            ValueError: the source is neither text nor a file: it cannot be taken to another process.
        """
        return StreamInTurns(self._turn, arguments)


class StreamInTurns(Iterator[StreamChunk]):
    """As a [`VideoStream`] to whoever plays it.

    Args:
        turn (`Callable`): makes a turn.
        arguments (`dict`): of the stream.
    """

    def __init__(self, turn: Turn, arguments: dict[str, Any]) -> None:
        self._turn = turn
        self._arguments = _portable(arguments)
        state = self._arguments.pop("state", None)
        self._state: State | None = None if state is None else pickle.dumps(state)
        self._prompts: list[Prompt] = []
        self._running: Iterator[Made] | None = None
        self._ended = False

    def __next__(self) -> StreamChunk:
        while not self._ended:
            if self._running is None:
                self._running = self._turn(self._arguments, self._state, self._prompts)
            try:
                made = next(self._running)
            except StopIteration:  # the turn is over, the video is not
                self._running = None
                continue
            if made is None:
                self.close()
                break
            chunk, self._state = made
            self._prompts = []  # the state has them
            self._arguments |= _ON_A_STATE
            return replace(chunk, _capture=lambda end: self.state())
        raise StopIteration

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the frames."""
        size = self.state().size
        assert size is not None
        return size

    def set_prompt(self, prompt: str, at_frame: int = 0) -> None:
        """Changes the prompt from the next group on: chunks that were made ahead of the last one are made again."""
        self._prompts.append((prompt, at_frame))
        self._end_turn()

    def state(self) -> PipelineStreamState:
        """Returns the state after the last chunk, on the CPU.

        Raises:
            RuntimeError: there was none yet.
        """
        if self._state is None:
            raise RuntimeError("the stream has not yielded a chunk yet: neither its state nor its size is known")
        state: PipelineStreamState = pickle.loads(self._state)
        return state

    def close(self) -> None:
        """Ends the stream; a chunk that is being made is finished first."""
        self._ended = True
        self._end_turn()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _end_turn(self) -> None:
        if self._running is not None:
            self._running.close()  # type: ignore[attr-defined]  # of a generator
            self._running = None


def _made(
    pipe: UltraFlashStreamingPipeline,
    arguments: dict[str, Any],
    state: State | None,
    prompts: list[Prompt],
    seconds: float,
) -> Iterator[Made]:
    """What one turn makes, in the process that has the GPU."""
    until = time.monotonic() + seconds
    seed = arguments["generator"]
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    before = None if state is None else pickle.loads(state)
    with pipe.stream(**arguments | {"generator": generator, "state": before}) as stream:
        for prompt, at_frame in prompts:
            stream.set_prompt(prompt, at_frame=at_frame)
        for chunk in stream:
            plain = StreamChunk(chunk.frames, chunk.frame_range, dict(chunk.timings), times=chunk.times)
            yield plain, pickle.dumps(chunk.state().to("cpu"))
            if time.monotonic() > until:
                return
    yield None


def _portable(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments as another process can take them: a seed in place of its generator, a path in place of a file."""
    generator, source = arguments.get("generator"), arguments.get("source")
    if isinstance(source, VideoReader):
        source = source.path
    elif source is not None:
        raise ValueError(f"`source` is a {type(source).__name__}: with ZeroGPU it has to be text or a video file")
    seed = None if generator is None else generator.initial_seed()
    return arguments | {"generator": seed, "source": source}
