# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The memory of dense attention: a stream's last latent frames of keys and values."""

from __future__ import annotations

import dataclasses
import math

import torch
from diffusers.configuration_utils import FrozenDict

from ..state_chain import SingleUse, shapes_are_static, superseded
from ..stream_state import StreamState
from .dense_attention import CachedAttention, PastAttention


def check_state_tensor(buffer: torch.Tensor, hidden_states: torch.Tensor, dtype: torch.dtype) -> None:
    """Checks that a state's buffer can take keys and values of `dtype` that come from `hidden_states`."""
    if (buffer.dtype, buffer.device) != (dtype, hidden_states.device):
        raise ValueError(
            f"`state` holds {buffer.dtype} on {buffer.device}, `hidden_states` will give {dtype} on "
            f"{hidden_states.device}: see `state.to`"
        )


@dataclasses.dataclass
class FrameWindow:
    """What one call does with a [`FrameKVCache`], the same in every layer.

    Args:
        slots (`torch.Tensor` of shape `[frames]`, int64): where the frames of the call go.
        frames (`torch.Tensor` of shape `[slots]`, int64): the frame in each slot once they are there, -1 if none.
        length (`int`): leading slots that the call reads.
        mask (`torch.Tensor` of shape `[1, 1, 1, length * tokens]`, bool, *optional*): keys to attend to, if not all.
        number (`int`): frames of the call.
    """

    slots: torch.Tensor
    frames: torch.Tensor
    length: int
    mask: torch.Tensor | None
    number: int


@dataclasses.dataclass
class FrameKVCache(StreamState):
    """The keys and values of a stream's last latent frames, one slot of a ring buffer a frame, for all layers.

    The first `sink_frames` frames of a stream keep their slots; frame `n` after them lies in slot
    `sink_frames + (n - sink_frames) % (slots - sink_frames)`. A committing call writes into the buffers in place and
    returns a state that shares them, so a stream is a chain: where a later state has overwritten what an earlier one
    needs, the earlier one is refused. To branch a stream, go on from `state.clone()`.

    Args:
        keys (`list[torch.Tensor]`): one a layer, `[batch, slots, tokens of a frame, heads, head_dim]`, after RoPE.
        values (`list[torch.Tensor]`): likewise.
        frames (`torch.Tensor` of shape `[slots]`, int64): the frame that this state expects in each slot, -1 if none.
        written (`torch.Tensor` of shape `[slots]`, int64): the frame that is there; shared like the buffers.
        sink_frames (`int`): the first frames of the stream, which stay.
        rolling (`bool`): whether a full buffer lets the oldest frames after the sink go; it is an error otherwise.
        height (`int`): tokens over the height of a frame.
        width (`int`): tokens over the width of a frame.
        committed (`int`, *optional*, defaults to 0): frames of the stream before this state, as far as the host knows
            without asking the device; `None` once compiled code, which must not depend on it, has committed frames.
        sink_start (`int`, *optional*, defaults to 0): the frame with which the sink begins.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    frames: torch.Tensor
    written: torch.Tensor
    sink_frames: int
    rolling: bool
    height: int
    width: int
    committed: int | None = 0
    sink_start: int = 0

    @classmethod
    def allocate(
        cls,
        config: FrozenDict,
        batch_size: int,
        slots: int,
        grid: tuple[int, int],
        sink_frames: int = 0,
        rolling: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        room_frames: int = 0,
    ) -> FrameKVCache:
        """Returns the empty cache with which a stream of frames of `grid` = (height, width) tokens starts.

        `config` is the transformer's: it says how many layers, heads and channels there are. `room_frames` are for a
        [`PastKVCache`].
        """
        shape = (
            batch_size,
            slots + room_frames,
            math.prod(grid),
            config.num_attention_heads,
            config.attention_head_dim,
        )
        empty = torch.full((slots,), -1, dtype=torch.int64, device=device)
        return cls(
            # zeros, since a masked-out NaN of uninitialised memory would still spoil a weighted sum
            keys=[torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.num_layers)],
            values=[torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.num_layers)],
            frames=empty,
            written=empty.clone(),
            sink_frames=sink_frames,
            rolling=rolling,
            height=grid[0],
            width=grid[1],
        )

    @property
    def slots(self) -> int:
        """Frames that the buffers can hold."""
        return self.frames.shape[0]

    def check_fits(
        self, config: FrozenDict, hidden_states: torch.Tensor, grid: tuple[int, int, int], dtype: torch.dtype
    ) -> None:
        """Checks that this cache belongs to a network of `config` and to latents of `grid` tokens (t, h, w).

        `dtype` is that of the keys and values to come.

        Raises:
            ValueError: another batch size, resolution, number of layers or heads, dtype or device.
        """
        buffer = self.keys[0]
        found = (len(self.keys), buffer.shape[0], self.height, self.width, *buffer.shape[3:])
        heads = (config.num_attention_heads, config.attention_head_dim)
        expected = (config.num_layers, hidden_states.shape[0], *grid[1:], *heads)
        if found != expected:
            raise ValueError(
                "`state` was made for (layers, batch, token rows, token columns, heads, head channels) "
                f"{found}, this network and `hidden_states` need {expected}"
            )
        check_state_tensor(buffer, hidden_states, dtype)

    def window(
        self, position: torch.Tensor, number: int, oldest: torch.Tensor | int, commit: bool, static_shapes: bool
    ) -> FrameWindow:
        """Plans a call.

        Attention runs over the filled slots alone, and without a mask where all of them count. The host knows which
        those are, also for blocks that are compiled by themselves: they get one graph for each number of filled slots,
        since most kernels take no mask. Only where compiled code has hidden it, or `oldest` is a tensor, is it read
        from the device. While compiling, all slots are read under a mask, and no shape depends on how far the stream
        has come.

        Args:
            position (`torch.Tensor`, 0-d int64): the first frame of the call.
            number (`int`): how many frames the call has.
            oldest (`int` or `torch.Tensor`): the oldest frame that they see; as a number, 0 for all.
            commit (`bool`): whether they stay in the cache.
            static_shapes (`bool`): whether to read all slots, under a mask, where the host does not know better.

        Raises:
            ValueError: a later state has overwritten frames that this one needs, or has gone on where this call would
                commit (checked where it takes no synchronisation: on a CPU, outside compiled code).
        """
        numbers = position + torch.arange(number, device=position.device)
        behind_start = numbers - self.sink_start
        ring = self.sink_frames + (behind_start - self.sink_frames) % (self.slots - self.sink_frames)
        slots = torch.where(behind_start < self.sink_frames, behind_start, ring) if self.rolling else numbers
        frames = self.frames.index_copy(0, slots, numbers)
        visible = frames >= oldest
        length = self.slots
        if not shapes_are_static():
            if position.device.type == "cpu":
                self._check_current(position, number, visible & (frames < position), commit)
            filled = self.filled_slots(number)
            if filled is not None and isinstance(oldest, int):
                return FrameWindow(slots, frames, filled, None, number)
            if not static_shapes:
                seen = visible.tolist()
                length = max(slot + 1 for slot in range(self.slots) if seen[slot])
                if all(seen[:length]):
                    return FrameWindow(slots, frames, length, None, number)
        mask = visible[:length].repeat_interleave(self.height * self.width)[None, None, None]
        return FrameWindow(slots, frames, length, mask, number)

    def filled_slots(self, number: int) -> int | None:
        """Slots that hold something a call of `number` frames sees, where the host knows; filled in their order."""
        return None if self.committed is None else min(self.committed + number, self.slots)

    def _check_current(self, position: torch.Tensor, number: int, needed: torch.Tensor, commit: bool) -> None:
        lost = needed & (self.written != self.frames)
        overtaken = (self.written >= position + number) & commit
        if bool((lost | overtaken).any()):
            raise superseded(
                f"`state` is the one after {int(position)} frames", f"gone on to frame {int(self.written.max())}"
            )

    def attention(self, layer: int, window: FrameWindow, commit: bool) -> CachedAttention:
        """Returns the attention of one layer over the cache and the frames of the call."""
        return CachedAttention(self.keys[layer], self.values[layer], window.slots, window.length, window.mask, commit)

    def advance(self, window: FrameWindow) -> FrameKVCache:
        """Returns the cache after a call that has committed the frames of `window`."""
        self.written.index_copy_(0, window.slots, window.frames[window.slots])
        return dataclasses.replace(self, frames=window.frames, committed=self._committed_after(window))

    def _committed_after(self, window: FrameWindow) -> int | None:
        return None if shapes_are_static() or self.committed is None else self.committed + window.number

    def rewound(self, position: int, keep_sink: bool) -> FrameKVCache:
        """Returns the cache in front of frame `position`, of what may stay of it when what follows is computed anew.

        That is nothing, and the sink begins anew, or the sink alone. The buffers are shared with this state, which the
        next commit overtakes.
        """
        if keep_sink:
            in_sink = torch.arange(self.slots, device=self.frames.device) < self.sink_frames
            frames, held, start = torch.where(in_sink, self.frames, -1), self.sink_frames, self.sink_start
        else:
            frames, held, start = torch.full_like(self.frames, -1), 0, position
        return dataclasses.replace(self, frames=frames, committed=held, sink_start=start)

    def grow(self, slots: int) -> FrameKVCache:
        """Returns the same frames in new ring buffers of more slots; without a sink only."""
        held = (self.frames >= 0).nonzero().flatten()
        places = self.frames[held] % slots

        def moved(buffer: torch.Tensor, dim: int, fill: int) -> torch.Tensor:
            shape = (*buffer.shape[:dim], slots, *buffer.shape[dim + 1 :])
            return buffer.new_full(shape, fill).index_copy_(dim, places, buffer.index_select(dim, held))

        return dataclasses.replace(
            self,
            keys=[moved(buffer, 1, 0) for buffer in self.keys],
            values=[moved(buffer, 1, 0) for buffer in self.values],
            frames=moved(self.frames, 0, -1),
            written=moved(self.written, 0, -1),
        )


@dataclasses.dataclass
class PastKVCache(SingleUse, FrameKVCache):
    """A rolling cache that holds what a chunk sees of the past, and not the chunk: each state commits once.

    Its slots, a chunk fewer than the window, lie in the order of the frames: the sink, then the newest ones. A call
    attends to a copy of them with its own frames behind, which lives as long as a layer runs; where the buffers have
    room for a chunk behind the slots, the frames of a call that does not commit go there, and nothing is copied. Calls
    that do not commit leave everything as it is; one that does overwrites what its state holds, after which that state
    is refused.

    Args:
        used (`list[bool]`, *optional*): whether the state has committed; one element, known to the host alone.
        keys, values and all others: see [`FrameKVCache`].
    """

    used: list[bool] = dataclasses.field(default_factory=lambda: [False])
    use = "committed"

    def window(
        self, position: torch.Tensor, number: int, oldest: torch.Tensor | int, commit: bool, static_shapes: bool
    ) -> FrameWindow:
        """Plans a call, as [`FrameKVCache.window`] does; `slots` then say what each slot will hold of both together.

        Raises:
            ValueError: the state has committed.
        """
        self.check_unused()
        if commit:
            self.mark_used()
        filled = None if shapes_are_static() else self.filled_slots(number)
        numbers = position + torch.arange(number, device=position.device)
        both = torch.cat([self.frames, numbers])
        held = (self.frames >= 0).sum()
        slot = torch.arange(self.slots, device=position.device)
        surplus = (held + number - self.slots).clamp(min=0)
        kept = slot + surplus * (slot >= self.sink_frames)  # which one of the held and the call's frames, in order
        source = torch.where(kept < held, kept, (self.slots + kept - held).clamp(max=len(both) - 1))
        frames = torch.where(kept < held + number, both[source], -1)
        if filled is not None:
            return FrameWindow(source, frames, filled, None, number)
        mask = (both >= 0).repeat_interleave(self.height * self.width)[None, None, None]
        return FrameWindow(source, frames, self.slots, mask, number)

    def filled_slots(self, number: int) -> int | None:
        """As [`FrameKVCache.filled_slots`] says; the call's own frames have no slots yet."""
        return None if self.committed is None else min(self.committed, self.slots)

    def attention(self, layer: int, window: FrameWindow, commit: bool) -> CachedAttention:
        """Returns the attention of one layer over the cache and the frames of the call."""
        return PastAttention(self.keys[layer], self.values[layer], window.slots, window.length, window.mask, commit)

    def advance(self, window: FrameWindow) -> PastKVCache:
        """Returns the cache after a call that has committed."""
        committed = self._committed_after(window)
        return dataclasses.replace(self, frames=window.frames, committed=committed, used=[False])
