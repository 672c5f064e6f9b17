# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""A running stream: what `pipe.stream(...)` returns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Self

import torch
from tqdm import tqdm

from .execution.devices import DeferredFlag, on_cuda_stream
from .execution.threads import for_another_thread
from .execution.timing import StageTimings, stage_timer
from .execution.workers import Worker, return_worker
from .finite import FiniteCheck, first_failure
from .frame_audio import FrameAudio
from .group_maker import GroupMaker, PromptTurn, RefinedGroup, StreamSettings
from .pipeline_output import Frames, StreamChunk
from .pipeline_state import CurrentState, PipelineStreamState, PromptChange
from .segments import LatentSegment
from .sources import Source, SourceInterrupted
from .stages import DecodeStage, FrameState

EncodePrompt = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]


@dataclass(frozen=True)
class StreamHost:
    """What a stream asks of the pipeline that it runs on.

    Args:
        encode_prompt (`Callable`): [`UltraFlashStreamingPipeline.encode_prompt`].
        postprocess (`Callable`): frames of the last stage to what the user gets.
        progress_bar (`tqdm`): counts frames.
        on_close (`Callable`): called at the end.
        devices (`Collection[torch.device]`): of all networks.
        interrupted (`Callable`): whether the stream is to end after the chunk at hand.
    """

    encode_prompt: EncodePrompt
    postprocess: Callable[[torch.Tensor], Frames]
    progress_bar: tqdm
    on_close: Callable[[], None]
    devices: Collection[torch.device]
    interrupted: Callable[[], bool]


class VideoStream(Iterator[StreamChunk]):
    """Frames in the order of the video, each chunk as soon as it is ready.

    A stream is iterated once. To leave it early there is [`VideoStream.close`], or its use as a context manager:

    ```python
    with pipe.stream("a red ball", num_frames=None) as stream:
        for chunk in stream:
            show(chunk.frames)
            if chunk.frame_range[1] > 500:
                stream.set_prompt("a blue ball")
    ```

    While a group is decoded, the next one is being denoised in a worker thread, where a GPU or several devices make
    that worthwhile: always exactly one group ahead, so that the result does not depend on who is faster.

    Everything that a stream carries is in this object: a pipeline can run any number of them in turns. One stream
    belongs to one thread. [`UltraFlashStreamingPipeline.stream`] makes it of what follows.

    Args:
        source ([`Source`]): what `maker` reads, closed with the stream.
        maker ([`GroupMaker`]): the stages in front of the decoder.
        decode ([`DecodeStage`]): the decoder.
        turns (`list[PromptTurn]`): the prompts to start with.
        settings ([`StreamSettings`]): see there.
        state ([`PipelineStreamState`]): to start from, on the stages' devices.
        host ([`StreamHost`]): see there.
        worker ([`Worker`], *optional*): in whose thread groups are made, and which is given back at the end.
        decoding_stream (`torch.cuda.Stream`, *optional*): to decode on; by default the current one.
    """

    _closed = True  # until there is something to close

    def __init__(
        self,
        source: Source,
        maker: GroupMaker,
        decode: DecodeStage,
        turns: list[PromptTurn],
        settings: StreamSettings,
        state: PipelineStreamState,
        host: StreamHost,
        worker: Worker | None = None,
        decoding_stream: torch.cuda.Stream | None = None,
    ) -> None:
        self._source = source
        self._frame_rate = source.frame_rate
        self._maker = maker
        self._decode = decode
        self._turns = turns
        self._settings = settings
        self._current = CurrentState(state)
        self._host = host
        self._worker = worker
        self._ahead: Future[RefinedGroup | None] | None = None
        self._decoding_stream = decoding_stream
        self._iterated = False
        self._error: Exception | None = None
        self._unchecked: list[FiniteCheck] = []
        host.progress_bar.update(state.frames_done)
        self._closed = False

    def __iter__(self) -> Self:
        if self._iterated:
            raise RuntimeError("this stream was already iterated: call `stream(...)` again for another one")
        self._iterated = True
        return self

    def __next__(self) -> StreamChunk:
        if self._closed:
            raise StopIteration
        if self._host.interrupted():
            self.close()
            raise StopIteration
        try:
            with torch.no_grad(), on_cuda_stream(self._decoding_stream):
                chunk = self._next_chunk()
        except SourceInterrupted:
            chunk = None
        except BaseException:
            self.close()
            raise
        if chunk is None:
            self.close()
            raise StopIteration
        self._hand_over(chunk)
        self._host.progress_bar.update(chunk.num_frames)
        return chunk

    @property
    def frame_rate(self) -> Fraction | None:
        """Frames a second where the source has a rate of its own: of files, and of pipelines that are told one."""
        return self._frame_rate

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the frames.

        Raises:
            RuntimeError: nothing was yielded yet, or the stream has ended.
        """
        if self._closed:
            raise RuntimeError("the stream has ended or was closed: its state is gone")
        if self._current.now.size is None:
            raise RuntimeError("the stream has not yielded a chunk yet: neither its state nor its size is known")
        return self._current.now.size

    def set_prompt(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        max_sequence_length: int | None = None,
        at_frame: int = 0,
    ) -> None:
        """Changes the prompt from a frame on, or from the next group on whose making has not begun.

        That is the next one to be yielded or, where decoding overlaps denoising, the one after it. Cross-attention
        reads the new prompt alone from there on. What the generator's self-attention remembers of earlier frames was
        computed under the former prompt. Generators that were trained for it (LongLive, arXiv 2509.22622; their config
        has `recompute_on_prompt_change`) compute it anew, which the timings of the next chunk call `"prompt_change"`;
        with others the scene goes on and turns to the new prompt as those frames leave the window, which those of the
        sink and of a global cache never do. A source that is a diffusers pipeline keeps its prompt.

        Args:
            at_frame (`int`, *optional*, defaults to 0): the generator changes before its first chunk that begins at
                this pixel frame or later, the SR transformer before its first group that does.
            prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, max_sequence_length: as in
                [`UltraFlashStreamingPipeline.__call__`]. As many prompts as the stream started with.
        """
        with torch.no_grad():
            embeds = self._host.encode_prompt(
                prompt,
                negative_prompt,
                self._settings.sr.guidance_scale > 1,
                prompt_embeds,
                negative_prompt_embeds,
                max_sequence_length,
            )
        prompts, started_with = embeds[0].shape[0], self._turns[0].prompts.embeds[0].shape[0]
        if prompts != started_with:
            raise ValueError(f"`prompt` holds {prompts} prompts, this stream started with {started_with}")
        prepared = self._maker.prepare([each for each in embeds if each is not None])
        self._turns = [*self._turns, PromptTurn(self._turns[-1].number + 1, at_frame, prepared)]

    def state(self) -> PipelineStreamState:
        """Returns an independent copy of the stream's state: save it, and go on with `pipe.stream(state=...)`.

        Raises:
            RuntimeError: nothing was yielded yet, the stream has ended, or the next group failed inside the SR
                transformer of a one-step stream, which overwrites its state as it goes.
        """
        size, refined = self.size, None
        if self._ahead is not None:
            self._finish(self._ahead)
            # a group that failed left the state as it was before it
            refined = None if self._ahead.exception() is not None else self._ahead.result()
        state = self._current.now
        if any(each.single_use and each.used[0] for each in state.sr or []):
            raise RuntimeError("the next group failed half-way and has overwritten the state of the SR transformer")
        undecoded = state.undecoded + ([] if refined is None else [refined.segment])
        changes = [
            PromptChange(turn.number, turn.at_frame, turn.prompts.embeds)
            for turn in self._turns
            if turn.number > state.prompt_number
        ]
        changed = replace(state, size=size, source=self._source.state(), undecoded=undecoded, prompt_changes=changes)
        return changed.clone()

    def _finish(self, ahead: Future[RefinedGroup | None]) -> None:
        """Waits for a group until it may be copied from another CUDA stream."""
        wait([ahead])
        for device in self._host.devices:
            if device.type == "cuda":
                torch.cuda.synchronize(device)

    def close(self) -> None:
        """Ends the stream and frees all that it holds; a group that is being made is finished first."""
        if self._closed:
            return
        self._closed = True
        if self._worker is not None:
            return_worker(self._worker)
        try:
            self._source.close()
        finally:
            self._host.progress_bar.close()
            del self._source, self._maker, self._decode, self._current, self._turns
            self._ahead = None
            self._host.on_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _state_after(self, end: int) -> PipelineStreamState:
        if not self._closed and (done := self._current.now.frames_done) != end:
            raise RuntimeError(f"the stream has moved on to frame {done}, past this chunk's end {end}")
        return self.state()

    def _next_chunk(self) -> StreamChunk | None:
        segments: list[LatentSegment] = []
        pieces: list[torch.Tensor] = []
        checks: list[tuple[int, FiniteCheck]] = []
        timings, statistics = StageTimings(), dict[str, Any]()
        start = self._current.now.frames_done
        missing = self._settings.chunk_latents(start == 0, self._current.now.undecoded)
        while missing != 0 and self._fetch(timings, statistics, keep_errors=bool(pieces)):
            missing = missing or len(self._current.now.undecoded[0])
            segment, piece = self._output(missing, timings)
            checks += [(len(pieces), check) for check in self._unchecked]
            self._unchecked = []
            segments.append(segment)
            pieces.append(piece)
            missing -= len(segment)
        if not pieces:
            return None
        # all is under way: here, and not between stages, may be waited for what a GPU finds out
        if failure := first_failure(checks):
            number, self._error = failure
            segments, pieces = segments[:number], pieces[:number]
            if not pieces:
                raise self._error
        video = torch.cat(pieces, dim=1 if self._settings.output_type == "uint8" else 2)
        frame_range = (start, start + sum(segment.num_frames for segment in segments))
        with stage_timer(timings, "output", video.device):
            frames = self._host.postprocess(video)
        audio = FrameAudio.joined([segment.audio for segment in segments])
        return StreamChunk(
            frames,
            frame_range,
            timings,
            statistics,
            times=_times(segments),
            audio=None if audio is None else audio.waveform,
            audio_sample_rate=None if audio is None else audio.sample_rate,
            _capture=self._state_after,
        )

    def _output(self, count: int, timings: StageTimings) -> tuple[LatentSegment, torch.Tensor]:
        """Takes up to `count` of the latent frames that wait to be decoded, and makes of them what is asked for."""
        # not the whole state, whose caches may have to go while this is decoded
        undecoded, frames = (
            self._current.now.undecoded,
            FrameState(self._current.now.decoder, self._current.now.detail),
        )
        segment, rest = undecoded[0].split(count)
        undecoded = undecoded[1:] if rest is None else [rest, *undecoded[1:]]
        piece = segment.latents
        if self._settings.output_type != "latent":
            finite: list[torch.Tensor] = []
            piece, frames = self._decode(segment, frames, self.size, timings, finite)
            where = f"or after frame {self._current.now.frames_done}"
            flag = DeferredFlag(torch.stack(finite).all())
            self._unchecked.append(FiniteCheck("`autoencoder` made frames", where, flag))
        done = self._current.now.frames_done + segment.num_frames
        self._current.replace(undecoded=undecoded, decoder=frames.decoder, detail=frames.detail, frames_done=done)
        return segment, piece

    def _fetch(self, timings: StageTimings, statistics: dict[str, Any], keep_errors: bool) -> bool:
        """Sees to it that there is something to decode; returns whether there is.

        While frames from before an error are still to be yielded, it is kept for the next call (`keep_errors`).
        """
        if self._error is None and self._current.now.undecoded:
            return True
        try:
            if self._error is not None:
                raise self._error
            refined = self._next_refined()
        except Exception as error:
            if not keep_errors:
                raise
            self._error = error
            return False
        if refined is None:
            return False
        self._current.replace(undecoded=[refined.segment])
        timings.merge(refined.timings)
        for name, values in refined.statistics.items():
            statistics.setdefault(name, []).extend(values)
        return True

    def _next_refined(self) -> RefinedGroup | None:
        if self._worker is None:
            refined = self._maker(self._current, self._turns)
        else:
            ahead = self._ahead or self._begin(self._worker)
            self._ahead = None
            refined = ahead.result()
            if refined is not None:
                self._ahead = self._begin(self._worker)
        if refined is not None:
            self._receive(refined)
        return refined

    def _begin(self, worker: Worker) -> Future[RefinedGroup | None]:
        return worker.submit(for_another_thread(self._maker), self._current, self._turns)

    def _receive(self, refined: RefinedGroup) -> None:
        """Lets the CUDA stream that decodes a group wait for it, and keep its memory as long as needed."""
        if refined.ready is not None:
            segment = refined.segment
            reader = torch.cuda.current_stream(segment.latents.device)
            reader.wait_event(refined.ready)
            for tensor in (segment.latents, segment.pixels):
                if tensor is not None and tensor.device.type == "cuda":
                    tensor.record_stream(reader)
        self._unchecked += refined.checks

    def _hand_over(self, chunk: StreamChunk) -> None:
        """Lets the CUDA stream of whoever asked for the chunk wait for it, and keep its memory as long as needed."""
        if self._decoding_stream is not None and isinstance(chunk.frames, torch.Tensor):
            reader = torch.cuda.current_stream(chunk.frames.device)
            reader.wait_stream(self._decoding_stream)
            chunk.frames.record_stream(reader)


def _times(segments: list[LatentSegment]) -> list[tuple[Fraction, Fraction]] | None:
    """The times of all frames, if they are known of all."""
    times = [segment.times for segment in segments if segment.times is not None]
    return [time for each in times for time in each] if len(times) == len(segments) else None
