# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The SR transformer's one step as a CUDA graph: hundreds of kernels, one launch."""

from __future__ import annotations

from typing import TypeVar, cast

import torch

from ...models.attention.block_kv_cache import BlockKVCache
from ...models.stream_state import StreamState
from ...models.ultraflash_sr_transformer import SRStreamState, UltraFlashSRTransformer
from ...models.wan_backbone import TextKeyValues

State = TypeVar("State", bound=StreamState)


def tensors_of(state: StreamState) -> list[torch.Tensor]:
    """All tensors of a state, in a fixed order."""
    tensors: list[torch.Tensor] = []

    def collect(tensor: torch.Tensor) -> torch.Tensor:
        tensors.append(tensor)
        return tensor

    state.map_tensors(collect)
    return tensors


def copy_into(target: State, source: State) -> None:
    """Writes the tensors of `source` over those of `target`, save the ones that both share, such as buffers."""
    for old, new in zip(tensors_of(target), tensors_of(source), strict=True):
        if old.data_ptr() != new.data_ptr():
            old.copy_(new)


class CapturedStep:
    """A group of a one-step stream, captured in its steady state and replayed for each later one.

    The state stays where it is: a replay writes the state after the group over the one before it. What the graph reads
    of the host, such as the scales of adapters, stays as it was.

    Args:
        transformer ([`UltraFlashSRTransformer`]): on a CUDA device, with sparse attention by a backend that asks the
            device nothing; it has run groups of this size already, so that everything is compiled and tuned.
        hidden_states, timestep, text: of the first group to replay; see [`UltraFlashSRTransformer.forward`].
        state ([`SRStreamState`]): before that group, for a single use; its buffers belong to the graph from here on.
    """

    def __init__(
        self,
        transformer: UltraFlashSRTransformer,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        text: torch.Tensor | TextKeyValues,
        state: SRStreamState,
    ) -> None:
        # counters of its own, which move on in place; the buffers are the stream's
        self.state = state.map_tensors(lambda tensor: tensor.clone() if tensor.ndim == 0 else tensor)
        self._hidden_states, self._timestep, self._text = hidden_states.clone(), timestep.clone(), text
        self._graph = torch.cuda.CUDAGraph()
        device = hidden_states.device
        # thread_local: another thread may be decoding and allocating meanwhile
        capture = torch.cuda.graph(self._graph, stream=torch.cuda.Stream(device), capture_error_mode="thread_local")
        with torch.cuda.device(device), capture:
            output = transformer(self._hidden_states, self._timestep, text, state=self.state)
            copy_into(self.state, output.state)
        self._sample = output.sample

    def serves(self, hidden_states: torch.Tensor, text: torch.Tensor | TextKeyValues, state: SRStreamState) -> bool:
        """Whether the next group is of the captured stream, size and prompt."""
        same_stream = _first_buffer(self.state) == _first_buffer(state)
        same_prompt = _first(self._text).data_ptr() == _first(text).data_ptr()
        return self._hidden_states.shape == hidden_states.shape and same_stream and same_prompt

    def __call__(self, hidden_states: torch.Tensor, timestep: torch.Tensor, state: SRStreamState) -> torch.Tensor:
        """Returns the flow of the group after `state`: [`CapturedStep.state`], or that with another window."""
        copy_into(self.state, state)
        self._hidden_states.copy_(hidden_states)
        self._timestep.copy_(timestep)
        self._graph.replay()
        return self._sample.clone()


def _first_buffer(state: SRStreamState) -> int:
    return cast(list[BlockKVCache], state.cache)[0].keys.data_ptr()


def _first(text: torch.Tensor | TextKeyValues) -> torch.Tensor:
    return text if isinstance(text, torch.Tensor) else text.keys[0]
