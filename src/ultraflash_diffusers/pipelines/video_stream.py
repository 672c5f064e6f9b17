# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""A running stream: what `pipe.stream(...)` returns, and the state from which another one goes on."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch

from ..models.stream_state import StreamState
from ..models.ultraflash_sr_transformer import SRStreamState
from .execution.devices import execution_device
from .execution.threads import for_another_thread
from .pipeline_output import Frames, StreamChunk, in_memory
from .sources import Source
from .sources.base import StageTimings, stage_timer
from .stages import (
    DecodeStage,
    GroupMaker,
    LatentSegment,
    RefinedGroup,
    Regrouper,
    SRStage,
    StepCallback,
    StreamSettings,
    UpsampleStage,
    check_finite,
    on_cuda_stream,
)

if TYPE_CHECKING:
    from .pipeline_ultraflash import UltraFlashStreamingPipeline


@dataclass
class PipelineStreamState(StreamState):
    """State of a whole stream, between two of its chunks.

    Args:
        seeds (`list[int]`): the seeds of its noise.
        prompt_embeds (`list[torch.Tensor]`): embeddings of the prompt and, with guidance, of the negative prompt.
        size (`tuple[int, int]`): height and width of its frames.
        frames_done (`int`): frames that were yielded.
        latents_done (`int`): latent frames that went through the SR transformer.
        groups_done (`int`): groups of the current clip that did.
        source (`StreamState`, *optional*): of the source.
        waiting (`list[LatentSegment]`): low-resolution latents that were read and do not make a group yet.
        undecoded (`list[LatentSegment]`): high-resolution latents whose frames were not yielded yet.
        upsampler, decoder (`StreamState`, *optional*): of these networks.
        sr (`list[SRStreamState]`, *optional*): of the SR transformer: for the prompt and, with guidance, for the
            negative prompt.
    """

    seeds: list[int]
    prompt_embeds: list[torch.Tensor]
    size: tuple[int, int]
    frames_done: int
    latents_done: int
    groups_done: int
    source: StreamState | None
    waiting: list[LatentSegment]
    undecoded: list[LatentSegment]
    upsampler: StreamState | None
    decoder: StreamState | None
    sr: list[SRStreamState] | None


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
    belongs to one thread.
    """

    _closed = True  # until there is something to close

    def __init__(
        self,
        pipe: UltraFlashStreamingPipeline,
        source: Source,
        settings: StreamSettings,
        prompt_embeds: list[torch.Tensor],
        seeds: list[int],
        on_step: StepCallback | None,
        state: PipelineStreamState | None,
    ) -> None:
        self._pipe = pipe
        self._source = source
        self._settings = settings
        self._prompt_embeds = prompt_embeds
        self._seeds = seeds
        self._frames_done = 0 if state is None else state.frames_done
        device = execution_device(pipe.autoencoder)
        self._undecoded = [] if state is None else [segment.to(device) for segment in state.undecoded]
        self._make_stages(on_step, state)
        self._iterated = False
        self._error: Exception | None = None
        self._bar = pipe.progress_bar(total=settings.num_frames, iterable=None if settings.num_frames else iter(()))
        self._bar.update(self._frames_done)
        self._closed = False

    def _make_stages(self, on_step: StepCallback | None, state: PipelineStreamState | None) -> None:
        pipe, settings = self._pipe, self._settings
        device = execution_device(pipe.autoencoder)
        regrouper = Regrouper(
            self._source,
            settings.sr.group_frames,
            pipe.autoencoder.temporal_compression_ratio,
            None if state is None else state.waiting,
        )
        upsample = UpsampleStage(pipe.latent_upsampler, None if state is None else state.upsampler)
        refine = SRStage(pipe.transformer, pipe.scheduler, settings.sr, on_step, None if state is None else state.sr)
        self._maker = GroupMaker(regrouper, upsample, refine, device, settings, self._seeds, self._prompt_embeds)
        if state is not None:
            self._maker.size = state.size
            self._maker.latents_done, self._maker.groups_done = state.latents_done, state.groups_done
        decoder_state = None if state is None else state.decoder
        rounds = settings.output_type == "uint8"
        self._decode = DecodeStage(pipe.autoencoder, settings.correction_levels, rounds, decoder_state)
        overlaps = settings.output_type != "latent" and pipe.can_overlap_decoding
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="ultraflash-denoiser") if overlaps else None
        self._ahead: Future[RefinedGroup | None] | None = None
        self._decoding_stream = None
        if overlaps and refine.device.type == "cuda":
            self._maker.cuda_stream = torch.cuda.current_stream(refine.device)
            if device == refine.device:
                self._decoding_stream = torch.cuda.Stream(device)
                self._decoding_stream.wait_stream(self._maker.cuda_stream)

    def __iter__(self) -> Self:
        if self._iterated:
            raise RuntimeError("this stream was already iterated: call `stream(...)` again for another one")
        self._iterated = True
        return self

    def __next__(self) -> StreamChunk:
        if self._closed:
            raise StopIteration
        try:
            with torch.no_grad(), on_cuda_stream(self._decoding_stream):
                chunk = self._next_chunk()
        except BaseException:
            self.close()
            raise
        if chunk is None:
            self.close()
            raise StopIteration
        self._hand_over(chunk)
        self._bar.update(chunk.num_frames)
        return chunk

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the frames.

        Raises:
            RuntimeError: nothing was yielded yet, or the stream has ended.
        """
        if self._closed:
            raise RuntimeError("the stream has ended or was closed: its state is gone")
        if self._maker.size is None:
            raise RuntimeError("the stream has not yielded a chunk yet: neither its state nor its size is known")
        return self._maker.size

    def set_prompt(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        max_sequence_length: int | None = None,
    ) -> None:
        """Changes the prompt from the next group on whose making has not begun.

        That is the next one to be yielded or, where decoding overlaps denoising, the one after it. Cross-attention
        reads the new prompt alone from there on. What self-attention remembers of earlier frames, in the generator and
        in the SR transformer, was computed under the former prompt and is not computed again: the scene goes on and
        turns to the new prompt as those frames leave the windows, which the generator's sink and a global cache never
        let go. (LongLive, arXiv 2509.22622, computes the generator's anew.) A source that is a diffusers pipeline
        keeps its prompt.

        Args:
            prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, max_sequence_length: as in
                [`UltraFlashStreamingPipeline.__call__`]. As many prompts as the stream started with.
        """
        with torch.no_grad():
            embeds = self._pipe.encode_prompt(
                prompt,
                negative_prompt,
                self._settings.sr.guidance_scale > 1,
                prompt_embeds,
                negative_prompt_embeds,
                max_sequence_length,
            )
        prompts, started_with = embeds[0].shape[0], self._prompt_embeds[0].shape[0]
        if prompts != started_with:
            raise ValueError(f"`prompt` holds {prompts} prompts, this stream started with {started_with}")
        self._prompt_embeds = [each for each in embeds if each is not None]

    def state(self) -> PipelineStreamState:
        """Returns an independent copy of the stream's state: save it, and go on with `pipe.stream(state=...)`.

        Raises:
            RuntimeError: nothing was yielded yet, the stream has ended, or the next group failed inside the SR
                transformer of a one-step stream, which overwrites its state as it goes.
        """
        size = self.size
        undecoded = list(self._undecoded)
        if self._ahead is not None:
            wait([self._ahead])
            # what the worker has queued on a GPU must be done before it is copied from another CUDA stream
            networks = [part for part in self._pipe.components.values() if isinstance(part, torch.nn.Module)]
            for device in set(map(execution_device, networks)):
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
            # a failed group left the state as it was before it
            refined = None if self._ahead.exception() is not None else self._ahead.result()
            if refined is not None:
                undecoded.append(refined.segment)
        sr = self._maker.refine.states
        if any(state.single_use and state.used[0] for state in sr or []):
            raise RuntimeError("the next group failed half-way and has overwritten the state of the SR transformer")
        return PipelineStreamState(
            seeds=self._seeds,
            prompt_embeds=self._prompt_embeds,
            size=size,
            frames_done=self._frames_done,
            latents_done=self._maker.latents_done,
            groups_done=self._maker.groups_done,
            source=self._source.state(),
            waiting=self._maker.regrouper.waiting,
            undecoded=undecoded,
            upsampler=self._maker.upsample.state,
            decoder=self._decode.state,
            sr=sr,
        ).clone()

    def close(self) -> None:
        """Ends the stream and frees all that it holds; a group that is being made is finished first."""
        if self._closed:
            return
        self._closed = True
        if self._worker is not None:
            self._worker.shutdown(wait=True, cancel_futures=True)
        try:
            self._source.close()
        finally:
            self._bar.close()
            del self._source, self._maker, self._decode
            self._undecoded, self._ahead = [], None
            self._pipe.maybe_free_model_hooks()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _state_after(self, end: int) -> PipelineStreamState:
        if not self._closed and self._frames_done != end:
            raise RuntimeError(f"the stream has moved on to frame {self._frames_done}, past this chunk's end {end}")
        return self.state()

    def _next_chunk(self) -> StreamChunk | None:
        pieces: list[torch.Tensor] = []
        timings = StageTimings()
        statistics: dict[str, Any] = {}
        start, missing = self._frames_done, self._settings.frames_per_chunk
        while missing > 0 and self._fetch(timings, statistics, keep_errors=bool(pieces)):
            segment, rest = self._undecoded.pop(0).split(missing)
            if rest is not None:
                self._undecoded.insert(0, rest)
            pieces.append(self._output(segment, timings))
            missing -= len(segment)
            self._frames_done += segment.num_frames
        if not pieces:
            return None
        video = torch.cat(pieces, dim=1 if self._settings.output_type == "uint8" else 2)
        frame_range = (start, self._frames_done)
        with stage_timer(timings, "output", video.device):
            frames = self._postprocess(video)
        return StreamChunk(frames, frame_range, timings, statistics, self._state_after)

    def _fetch(self, timings: StageTimings, statistics: dict[str, Any], keep_errors: bool) -> bool:
        """Sees to it that there is something to decode; returns whether there is.

        While frames from before an error are still to be yielded, it is kept for the next call (`keep_errors`).
        """
        if self._undecoded:
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
        self._undecoded.append(refined.segment)
        timings.merge(refined.timings)
        for name, values in refined.statistics.items():
            statistics.setdefault(name, []).extend(values)
        return True

    def _next_refined(self) -> RefinedGroup | None:
        if self._worker is None:
            refined = self._maker(self._prompt_embeds)
        else:
            ahead = self._ahead or self._begin(self._worker)
            self._ahead = None
            refined = ahead.result()
            if refined is not None:
                self._ahead = self._begin(self._worker)
        if refined is not None:
            self._receive(refined)
        return refined

    def _begin(self, worker: ThreadPoolExecutor) -> Future[RefinedGroup | None]:
        return worker.submit(for_another_thread(self._maker), self._prompt_embeds)

    def _receive(self, refined: RefinedGroup) -> None:
        """Lets the CUDA stream that decodes a group wait for it, and keep its memory as long as needed."""
        if refined.ready is not None:
            segment = refined.segment
            reader = torch.cuda.current_stream(segment.latents.device)
            reader.wait_event(refined.ready)
            for tensor in (segment.latents, segment.pixels):
                if tensor is not None and tensor.device.type == "cuda":
                    tensor.record_stream(reader)
        check_finite(refined.checks)

    def _output(self, segment: LatentSegment, timings: StageTimings) -> torch.Tensor:
        if self._settings.output_type == "latent":
            return segment.latents
        return self._decode(segment, self.size, timings)

    def _hand_over(self, chunk: StreamChunk) -> None:
        """Lets the CUDA stream of whoever asked for the chunk wait for it, and keep its memory as long as needed."""
        if self._decoding_stream is not None and isinstance(chunk.frames, torch.Tensor):
            reader = torch.cuda.current_stream(chunk.frames.device)
            reader.wait_stream(self._decoding_stream)
            chunk.frames.record_stream(reader)

    def _postprocess(self, video: torch.Tensor) -> Frames:
        if self._settings.output_type == "latent":
            return video
        if self._settings.output_type == "uint8":
            return in_memory(video)
        return self._pipe.video_processor.postprocess_video(video, output_type=self._settings.output_type)
