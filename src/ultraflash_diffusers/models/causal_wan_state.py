# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What a stream of the generator's network carries from chunk to chunk, and what a call gives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.utils import BaseOutput

from .attention.frame_kv_cache import FrameKVCache
from .stream_state import StreamState


@dataclass
class CausalWanStreamState(StreamState):
    """State of a generated stream.

    Args:
        position (`torch.Tensor`, 0-d int64): frames committed so far, in temporal patches.
        cache_frames (`int`): frames that the cache can hold.
        sink_frames (`int`): first frames that a rolling cache never lets go.
        rolling (`bool`): whether a full cache drops its oldest frames.
        cache (`FrameKVCache`, *optional*): keys and values; `None` until sizes are known.
        single_use (`bool`, *optional*, defaults to `False`): whether each state commits once, see [`PastKVCache`].
        room_frames (`int`, *optional*, defaults to 0): frames of a call that such a cache has room for.
        seed_code (`torch.Tensor`, *optional*): `[batch, seed_code_dim]`, of a network that has one.
    """

    position: torch.Tensor
    cache_frames: int
    sink_frames: int
    rolling: bool
    cache: FrameKVCache | None = None
    single_use: bool = False
    room_frames: int = 0
    seed_code: torch.Tensor | None = None


@dataclass
class CausalWanTransformerOutput(BaseOutput):
    """Output of [`CausalWanTransformer`].

    Args:
        sample (`torch.Tensor`): predicted flow, `[batch, out_channels, frames, height, width]`.
        state (`CausalWanStreamState`, *optional*): the state after a committing call, else the one passed in.
    """

    sample: torch.Tensor
    state: CausalWanStreamState | None = None
