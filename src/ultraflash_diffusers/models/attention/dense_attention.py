# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Dense self-attention over latent frames: at once, causal by chunks, or to a stream's cache."""

from __future__ import annotations

import dataclasses

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn


@dataclasses.dataclass  # not frozen: compiled code that makes one cannot call it then (PyTorch 2.11)
class CachedAttention:
    """Attention of one layer to the cached frames and its own.

    Args:
        keys, values (`torch.Tensor`): the layer's buffers.
        slots (`torch.Tensor`, int64), length, mask: as in [`FrameWindow`].
        commit (`bool`): whether the call's frames stay.
    """

    keys: torch.Tensor
    values: torch.Tensor
    slots: torch.Tensor
    length: int
    mask: torch.Tensor | None
    commit: bool

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, backend: AttentionBackendName
    ) -> tuple[torch.Tensor, None]:
        keys, values = self._with_own(self.keys, key), self._with_own(self.values, value)
        if self.mask is not None:  # only where the host does not know what is filled; most kernels take no mask
            backend = AttentionBackendName.NATIVE
        return dispatch_attention_fn(query, keys, values, attn_mask=self.mask, backend=backend), None

    def _with_own(self, buffer: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """The filled slots with the call's own frames among them, as `[batch, tokens, heads, head_dim]`."""
        own = own.unflatten(1, (self.slots.shape[0], -1))
        if self.commit:
            buffer.index_copy_(1, self.slots, own.detach())
        filled = buffer[:, : self.length]
        # without commit the buffers stay as they are; autograd must not see buffers that the next call writes into
        if not self.commit or torch.is_grad_enabled():
            filled = filled.index_copy(1, self.slots, own)
        return filled.flatten(1, 2)


class PastAttention(CachedAttention):
    """Attention of one layer to a [`PastKVCache`] and its own frames.

    `slots` say for each slot of the buffers which of their frames and then the call's own it holds after a commit.
    """

    def _with_own(self, buffer: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """The filled slots and the call's own frames, as `[batch, tokens, heads, head_dim]`."""
        own = own.unflatten(1, (-1, buffer.shape[2]))
        held, end = buffer[:, : len(self.slots)], self.length + own.shape[1]
        if not self.commit and end <= buffer.shape[1] and not torch.is_grad_enabled():
            buffer[:, self.length : end].copy_(own)  # behind what is held: nothing that a state knows of
            return buffer[:, :end].flatten(1, 2)
        joined = torch.cat([held[:, : self.length], own], dim=1)
        if self.commit:
            both = joined if self.length == held.shape[1] else torch.cat([held, own], dim=1)
            held.copy_(both.detach().index_select(1, self.slots))
        return joined.flatten(1, 2)


@dataclasses.dataclass
class BidirectionalAttention:
    """All tokens attend to all."""

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, backend: AttentionBackendName
    ) -> tuple[torch.Tensor, None]:
        return dispatch_attention_fn(query, key, value, backend=backend), None


@dataclasses.dataclass
class ChunkCausalAttention:
    """Each chunk of frames attends to itself and to what came before, chunk after chunk: no mask is ever made.

    Args:
        frame_tokens (`int`): tokens of a frame.
        chunk_frames (`int`): frames of a chunk; the last chunk may be shorter.
        window_frames (`int`, *optional*): frames that a chunk sees, sink and itself included; `None` for all.
        sink_frames (`int`, *optional*, defaults to 0): first frames that all chunks see.
        first_chunk_frames (`int`, *optional*): frames of the first chunk, where it is not `chunk_frames` long.
    """

    frame_tokens: int
    chunk_frames: int
    window_frames: int | None = None
    sink_frames: int = 0
    first_chunk_frames: int | None = None

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, backend: AttentionBackendName
    ) -> tuple[torch.Tensor, None]:
        outputs = []
        frames = key.shape[1] // self.frame_tokens
        own = query.shape[1] // frames  # of each frame: fewer where processes share them
        ends = [*range(self.first_chunk_frames or self.chunk_frames, frames, self.chunk_frames), frames]
        for first, last in zip([0, *ends], ends, strict=False):
            keys, values = (self._seen(tensor, last * self.frame_tokens) for tensor in (key, value))
            queries = query[:, first * own : last * own]
            outputs.append(dispatch_attention_fn(queries, keys, values, backend=backend))
        return torch.cat(outputs, dim=1), None

    def _seen(self, tensor: torch.Tensor, end: int) -> torch.Tensor:
        if self.window_frames is None or end <= self.window_frames * self.frame_tokens:
            return tensor[:, :end]
        sink = self.sink_frames * self.frame_tokens
        oldest = end - self.window_frames * self.frame_tokens + sink
        return torch.cat([tensor[:, :sink], tensor[:, oldest:end]], dim=1)
