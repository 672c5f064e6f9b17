# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""All that a stream carries from group to group and from chunk to chunk."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import torch

from ..models.stream_state import StreamState
from ..models.ultraflash_sr_transformer import SRStreamState
from .detail import DetailState
from .segments import LatentSegment


@dataclass
class PromptChange(StreamState):
    """Another prompt from some frame on.

    Args:
        number (`int`): changes of a stream are numbered from 1.
        at_frame (`int`): the first pixel frame that may follow it.
        prompt_embeds (`list[torch.Tensor]`): of the prompt and, with guidance, of the negative prompt.
    """

    number: int
    at_frame: int
    prompt_embeds: list[torch.Tensor]


@dataclass
class PipelineStreamState(StreamState):
    """State of a whole stream, between two of its chunks.

    It is never changed: what comes after a group or a chunk is another one. Their caches may share memory, so that
    only the newest one is good to go on from, or a `clone` that was made while it was the newest.

    Args:
        seeds (`list[int]`): the seeds of its noise.
        prompt_embeds (`list[torch.Tensor]`): embeddings of the prompt and, with guidance, of the negative prompt, that
            the last group was made with.
        size (`tuple[int, int]`, *optional*): height and width of its frames; `None` before the first group.
        frames_done (`int`): frames that were yielded.
        latents_done (`int`): latent frames that went through the SR transformer.
        groups_done (`int`): groups of the current clip that did.
        source (`StreamState`, *optional*): of the source; a running stream's source keeps it itself.
        waiting (`list[LatentSegment]`): low-resolution latents that were read and do not make a group yet.
        undecoded (`list[LatentSegment]`): high-resolution latents whose frames were not yielded yet.
        upsampler, decoder (`StreamState`, *optional*): of these networks.
        sr (`list[SRStreamState]`, *optional*): of the SR transformer: for the prompt and, with guidance, for the
            negative prompt.
        detail ([`DetailState`], *optional*): of the frames, on sources of pixels.
        prompt_number (`int`): the change of the prompt that `prompt_embeds` came with; 0 for the first prompt.
        prompt_changes (`list[PromptChange]`): those that were asked for since.
        group_frames (`int`, *optional*): latent frames of its groups; unknown of states that earlier versions saved.
    """

    seeds: list[int]
    prompt_embeds: list[torch.Tensor]
    size: tuple[int, int] | None = None
    frames_done: int = 0
    latents_done: int = 0
    groups_done: int = 0
    source: StreamState | None = None
    waiting: list[LatentSegment] = field(default_factory=list)
    undecoded: list[LatentSegment] = field(default_factory=list)
    upsampler: StreamState | None = None
    decoder: StreamState | None = None
    sr: list[SRStreamState] | None = None
    detail: DetailState | None = None
    prompt_number: int = 0
    prompt_changes: list[PromptChange] = field(default_factory=list)
    group_frames: int | None = None

    @property
    def newest_prompt(self) -> PromptChange:
        """The prompt that was asked for last."""
        if self.prompt_changes:
            return self.prompt_changes[-1]
        return PromptChange(self.prompt_number, 0, self.prompt_embeds)


class CurrentState:
    """The one place of a running stream's state.

    Groups are made in one thread and decoded in another: each replaces fields of its own when a step is done. A step
    that fails replaces nothing, so that the state is still the one before it.

    Args:
        state ([`PipelineStreamState`]): to start from.
    """

    def __init__(self, state: PipelineStreamState) -> None:
        self.now = state
        self._lock = Lock()

    def replace(self, **changes: Any) -> None:
        """Goes on to a state in which some fields have other values."""
        with self._lock:
            self.now = dataclasses.replace(self.now, **changes)
