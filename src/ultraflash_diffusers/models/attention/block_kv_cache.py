# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The memory of block-sparse attention: a stream's last temporal blocks of keys and values.

Dimensions are named as in `block_layout`.
"""

from __future__ import annotations

import dataclasses

import torch

from ..state_chain import superseded
from ..stream_state import StreamState
from .block_layout import BlockSparseSettings, pooled_dtype


@dataclasses.dataclass
class BlockKVCache(StreamState):
    """The last temporal blocks of keys and values of one attention layer, in buffers of fixed size.

    The state that comes back from a group shares the buffers and has other counters, so a stream is a chain: once a
    later state has been advanced, earlier ones are refused (see [`~BlockKVCache.check_current`]). To branch a stream,
    go on from `state.clone()`. There are two kinds:

    - One that can be used again: a ring with as many slots as the window and one group need together, where block
      number n of the stream lies in slot `n % slots`. A group writes only into slots that its input state does not
      count as valid: calling again from the same state (several denoising steps) gives the same numbers, and what
      counts is the keys and values of the last call.
    - One for a single use (`single_use`): as many slots as the window, the oldest block first. A group attends to a
      copy of them with its own keys and values behind, which lives as long as the layer runs, and then takes their
      place. The memory of the group's blocks is saved in every layer; calling again is refused.

    Args:
        keys (`torch.Tensor` of shape `[B, H, slots, S, V, D]`): keys after RoPE.
        values (`torch.Tensor` of shape `[B, H, slots, S, V, D]`): values.
        pooled_keys (`torch.Tensor` of shape `[B, H, slots, S, D]`): the means of `keys` over the tokens of a block.
        position (`torch.Tensor`, 0-d int64): temporal blocks of the stream before this state.
        count (`torch.Tensor`, 0-d int64): how many of the last ones the buffers still hold, up to `kv_cache_blocks`.
        writer (`torch.Tensor`, 0-d int64): the oldest `position` from which the buffers are still good; shared like
            them.
        kv_cache_blocks (`int`): the window, in temporal blocks.
        height (`int`): tokens over the height of a frame.
        width (`int`): tokens over the width of a frame.
        single_use (`bool`, *optional*, defaults to `False`): the kind, see above.
    """

    keys: torch.Tensor
    values: torch.Tensor
    pooled_keys: torch.Tensor
    position: torch.Tensor
    count: torch.Tensor
    writer: torch.Tensor
    kv_cache_blocks: int
    height: int
    width: int
    single_use: bool = False

    @classmethod
    def allocate(
        cls,
        batch_size: int,
        num_heads: int,
        head_dim: int,
        grid: tuple[int, int, int],
        settings: BlockSparseSettings,
        kv_cache_blocks: int = 3,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        single_use: bool = False,
    ) -> BlockKVCache:
        """Returns the empty cache with which a stream starts.

        Args:
            batch_size (`int`): samples.
            num_heads (`int`): attention heads.
            head_dim (`int`): channels of a head.
            grid (`tuple[int, int, int]`): tokens (t, h, w) of a group. A longer group later makes the buffers of a
                cache that can be used again grow, once; shorter ones never do.
            settings (`BlockSparseSettings`): the blocks.
            kv_cache_blocks (`int`, *optional*, defaults to 3): temporal blocks to remember between groups.
            device (`torch.device` or `str`, *optional*): where the buffers lie.
            dtype (`torch.dtype`, *optional*, defaults to `torch.float32`): of keys and values. Pooled keys, on which
                the selection stands, are never below float32.
            single_use (`bool`, *optional*, defaults to `False`): whether each state is used once: less memory.

        Raises:
            ValueError: `kv_cache_blocks` or a dimension is not positive.
        """
        if kv_cache_blocks < 1:
            raise ValueError(f"`kv_cache_blocks` must be at least 1, got {kv_cache_blocks}")
        if min(batch_size, num_heads, head_dim, *grid) < 1:
            raise ValueError(
                "`batch_size`, `num_heads`, `head_dim` and `grid` must be positive, "
                f"got {batch_size}, {num_heads}, {head_dim}, {tuple(grid)}"
            )
        temporal, rows, columns = settings.count_blocks(grid)
        slots = kv_cache_blocks if single_use else kv_cache_blocks + temporal
        shape = (batch_size, num_heads, slots, rows * columns)
        return cls(
            # zeros, since a masked-out NaN of uninitialised memory would still spoil a weighted sum
            keys=torch.zeros(*shape, settings.volume, head_dim, device=device, dtype=dtype),
            values=torch.zeros(*shape, settings.volume, head_dim, device=device, dtype=dtype),
            pooled_keys=torch.zeros(*shape, head_dim, device=device, dtype=pooled_dtype(dtype)),
            position=torch.zeros((), device=device, dtype=torch.int64),
            count=torch.zeros((), device=device, dtype=torch.int64),
            writer=torch.zeros((), device=device, dtype=torch.int64),
            kv_cache_blocks=kv_cache_blocks,
            height=grid[1],
            width=grid[2],
            single_use=single_use,
        )

    @property
    def slots(self) -> int:
        """Temporal blocks that the buffers can hold."""
        return self.keys.shape[2]

    def joint_slots(self, temporal: int) -> int:
        """Temporal blocks in what [`~BlockKVCache.take`] returns for a group of `temporal` of them."""
        return self.slots + temporal if self.single_use else self.slots

    def check_current(self) -> None:
        """Checks that no later state of the same stream has been advanced since.

        It reads one number from the device: nothing on a CPU or beside a backward pass, where
        [`block_sparse_attention`] does it by itself; on a GPU a synchronisation, which is left to whoever wants it.

        Raises:
            ValueError: the buffers have gone on without this state.
        """
        if self.writer > self.position:
            raise superseded(
                f"`cache` is the state after {int(self.position)} temporal blocks",
                f"been advanced from the state after {int(self.writer)}",
            )

    def slots_of(self, first: int, number: int) -> torch.Tensor:
        """Slots of `number` consecutive blocks, the first of which is `first` after `position` (before: negative)."""
        return (self.position + torch.arange(first, first + number, device=self.position.device)) % self.slots

    def grow(self, slots: int) -> BlockKVCache:
        """Returns the same state in new buffers of `slots` slots."""
        numbers = self.position + torch.arange(-self.kv_cache_blocks, 0, device=self.position.device)

        def moved(buffer: torch.Tensor) -> torch.Tensor:
            grown = buffer.new_zeros(*buffer.shape[:2], slots, *buffer.shape[3:])
            return grown.index_copy_(2, numbers % slots, buffer.index_select(2, numbers % self.slots))

        return dataclasses.replace(
            self,
            keys=moved(self.keys),
            values=moved(self.values),
            pooled_keys=moved(self.pooled_keys),
            writer=self.position.clone(),
        )

    def heads(self, part: slice) -> BlockKVCache:
        """Returns the cache of some of the heads, which shares the buffers."""
        return dataclasses.replace(
            self, keys=self.keys[:, part], values=self.values[:, part], pooled_keys=self.pooled_keys[:, part]
        )

    def take_pooled(self, pooled_keys: torch.Tensor, window: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Takes in the means of a group's key blocks, of all heads, before [`~BlockKVCache.take`] takes the blocks.

        Args:
            pooled_keys (`torch.Tensor` of shape `[B, H, T, S, D]`): the group's.
            window (`int`): temporal blocks in front of the group that it may see.

        Returns:
            `tuple`: pooled keys `[B, H, window + T, S, D]` of the past and the group, oldest first, and where their
            blocks lie in what `take` returns, `[window + T]`.
        """
        temporal = pooled_keys.shape[2]
        pooled_keys = pooled_keys.to(self.pooled_keys.dtype)
        self.writer.copy_(self.position + temporal if self.single_use else self.position)
        if self.single_use:
            joined = torch.cat([self.pooled_keys, pooled_keys], dim=2)
            self.pooled_keys.copy_(joined[:, :, -self.slots :])
            return joined[:, :, self.slots - window :], self._joint_slots(temporal)[self.slots - window :]
        slots = self.slots_of(-window, window + temporal)
        self.pooled_keys.index_copy_(2, slots[window:], pooled_keys)
        return self.pooled_keys.index_select(2, slots), slots

    def take(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Takes in a group's blocks, both `[B, H, T, S, V, D]`: of all heads, or of those of [`~BlockKVCache.heads`].

        Returns:
            `tuple`: keys and values `[B, H, slots, S, V, D]` of the past and the group.
        """
        if self.single_use:
            slots = self._joint_slots(keys.shape[2])
            joint = _laid_out(self.keys, keys, slots), _laid_out(self.values, values, slots)
            self.write(keys, values)
            return joint
        self.write(keys, values)
        if not torch.is_grad_enabled():
            return self.keys, self.values
        # autograd must not see buffers that the next group writes into; what was cached has no gradient
        slots = self.slots_of(0, keys.shape[2])
        return self.keys.index_copy(2, slots, keys), self.values.index_copy(2, slots, values)

    def write(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Writes a group's blocks, both `[B, H, T, ...]`, over those that are no longer needed.

        What follows T may have any shape of S * V * D elements, such as that of [`BlockLayout.view`].
        """
        for buffer, new in ((self.keys, keys), (self.values, values)):
            buffer, new = buffer.view(*buffer.shape[:3], *new.shape[3:]), new.detach().to(buffer.dtype)
            if not self.single_use:
                buffer.index_copy_(2, self.slots_of(0, new.shape[2]), new)
                continue
            staying = max(self.slots - new.shape[2], 0)
            if staying:
                buffer[:, :, :staying] = buffer[:, :, new.shape[2] :].clone()
            buffer[:, :, staying:] = new[:, :, -self.slots :]

    def sources(self, temporal: int) -> torch.Tensor:
        """Where the blocks in each slot of what `take` returns are before a group of `temporal` of them is written.

        Returns:
            `torch.Tensor` of shape `[slots]`: the slot of the buffers, or -1 - i for the group's temporal block i.
        """
        own = -1 - torch.arange(temporal, device=self.position.device)
        past = torch.arange(self.slots, device=self.position.device)
        if self.single_use:
            return torch.empty_like(torch.cat([past, own])).index_copy_(
                0, self._joint_slots(temporal), torch.cat([past, own])
            )
        return past.index_copy_(0, self.slots_of(0, temporal), own)

    def _joint_slots(self, temporal: int) -> torch.Tensor:
        """Where a single-use cache's blocks and then a group's lie, to be attended to.

        As a ring with room for both would have them: the results are the same to the last bit.
        """
        numbers = self.position + torch.arange(-self.slots, temporal, device=self.position.device)
        return numbers % len(numbers)

    def advance(self, held: torch.Tensor, written: int, window: int | torch.Tensor) -> BlockKVCache:
        """Returns the state after a group of `written` temporal blocks, of which `held` were there before."""
        return dataclasses.replace(self, position=self.position + written, count=(held + written).clamp(max=window))


def _laid_out(past: torch.Tensor, group: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """Blocks `past` and then `group`, both `[B, H, blocks, ...]`, in their slots."""
    joined = group.new_empty(*group.shape[:2], len(slots), *group.shape[3:])
    joined.index_copy_(2, slots[: past.shape[2]], past)
    return joined.index_copy_(2, slots[past.shape[2] :], group)
