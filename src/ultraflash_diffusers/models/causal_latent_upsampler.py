# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The causal latent upsampler: low-resolution latents to the high-resolution condition (paper, "Latent upsampler")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import nn

from .causal_memory import (
    CausalMemoryBlock,
    CausalMemoryStack,
    CausalMemoryState,
    MemoryInit,
    PixelShuffle,
    conv3x3,
    make_activation,
    stage_factors,
    staged_layers,
)
from .checks import check_video_tensor
from .loading import Network, check_layers


@dataclass
class CausalLatentUpsamplerOutput(BaseOutput):
    """Output of [`CausalLatentUpsampler`].

    Args:
        sample (`torch.Tensor`): `[batch, out_channels, frames * temporal_scale, height * scale, width * scale]`.
        state (`CausalMemoryState`): state for the next chunk of the stream.
    """

    sample: torch.Tensor
    # the default lets accelerate's offload hooks rebuild the output from its items
    state: CausalMemoryState | None = None


class CausalLatentUpsampler(Network):
    r"""Upsamples normalised video latents in space, frame after frame, with one remembered feature map a block.

    Two published layouts share the causal memory block. `"v1"` (the released one): pixel-shuffle head, activation,
    blocks at the output resolution, convolution. `"v3"`: three stages that each may double the height and width (the
    leftmost first) and the frames (the rightmost first).

    Args:
        layout (`str`, *optional*, defaults to `"v1"`): `"v1"` or `"v3"`.
        in_channels (`int`, *optional*, defaults to 16): channels of the latents.
        out_channels (`int`, *optional*, defaults to 16): channels of the result.
        scale (`int`, *optional*, defaults to 2): spatial factor; v1 any integer from 1, v3 one of 1, 2, 4, 8.
        temporal_scale (`int`, *optional*, defaults to 1): temporal factor, v3 only: one of 1, 2, 4, 8.
        channels (`tuple[int, ...]`, *optional*, defaults to `(128,)`): v1: the width; v3: three stage widths.
        num_blocks (`tuple[int, ...]`, *optional*, defaults to `(8,)`): v1: the number of memory blocks; v3: one number
            a stage.
        activation (`str`, *optional*, defaults to `"relu"`): `"relu"`, `"silu"` or `"gelu"`.
        memory_init (`str`, *optional*, defaults to `"replicate"`): a stream's first memory: `"replicate"` or `"zero"`.
        residual (`bool`, *optional*, defaults to `False`): adds a linear pixel-shuffle head from the input straight
            to the output; the network then is a correction to it.
        residual_scale (`float`, *optional*, defaults to 1.0): factor of that correction.
        trunk_channels (`int`, *optional*): v1: the width of a trunk at the input's resolution, where a memory block
            costs a `scale^2`-th: a convolution and blocks, whose features the head sees beside the latents. No trunk
            without it.
        trunk_blocks (`int`, *optional*, defaults to 0): the trunk's memory blocks.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["CausalMemoryBlock"]
    _repeated_blocks = ["CausalMemoryBlock"]
    _skip_keys = ["state"]

    @register_to_config
    def __init__(
        self,
        layout: Literal["v1", "v3"] = "v1",
        in_channels: int = 16,
        out_channels: int = 16,
        scale: int = 2,
        temporal_scale: int = 1,
        channels: tuple[int, ...] = (128,),
        num_blocks: tuple[int, ...] = (8,),
        activation: str = "relu",
        memory_init: MemoryInit = "replicate",
        residual: bool = False,
        residual_scale: float = 1.0,
        trunk_channels: int | None = None,
        trunk_blocks: int = 0,
    ) -> None:
        super().__init__()
        self._check_trunk(layout, trunk_channels, trunk_blocks)
        if layout == "v1":
            self._check_v1(scale, temporal_scale, channels, num_blocks)
            check_layers("num_blocks", num_blocks[0])
            width = channels[0]
            self.trunk = None
            if trunk_channels is not None:
                blocks = [CausalMemoryBlock(trunk_channels, activation, memory_init) for _ in range(trunk_blocks)]
                self.trunk = CausalMemoryStack(
                    conv3x3(in_channels, trunk_channels), make_activation(activation), *blocks
                )
            self.pre_shuffle = _pixel_shuffle_head(in_channels + (trunk_channels or 0), width, scale)
            self.pre_shuffle.append(make_activation(activation))
            self.blocks = CausalMemoryStack(
                *[CausalMemoryBlock(width, activation, memory_init) for _ in range(num_blocks[0])]
            )
            self.final = conv3x3(width, out_channels)
        elif layout == "v3":
            stages = staged_layers(
                in_channels,
                channels,
                num_blocks,
                spatial_factors=stage_factors("scale", scale, len(channels), "left"),
                temporal_factors=stage_factors("temporal_scale", temporal_scale, len(channels), "right"),
                activation=activation,
                memory_init=memory_init,
            )
            self.net = CausalMemoryStack(*stages, make_activation(activation), conv3x3(channels[-1], out_channels))
        else:
            raise ValueError(f"`layout` must be 'v1' or 'v3', got {layout!r}")
        self.skip_up = _pixel_shuffle_head(in_channels, out_channels, scale) if residual else None

    @staticmethod
    def _check_trunk(layout: str, channels: int | None, blocks: int) -> None:
        if (channels is None) != (blocks == 0) or blocks < 0 or (channels is not None and channels < 1):
            raise ValueError(
                f"`trunk_channels` and `trunk_blocks` are both positive, or None and 0: got {channels} and {blocks}"
            )
        if channels is not None and layout != "v1":
            raise ValueError(f"`trunk_channels` is of the v1 layout, `layout` is {layout!r}")
        check_layers("trunk_blocks", blocks)

    @staticmethod
    def _check_v1(scale: int, temporal_scale: int, channels: tuple[int, ...], num_blocks: tuple[int, ...]) -> None:
        if scale < 1:
            raise ValueError(f"`scale` must be a positive integer, got {scale}")
        if temporal_scale != 1:
            raise ValueError(f"`temporal_scale` must be 1 in the v1 layout, got {temporal_scale}")
        for name, value in (("channels", channels), ("num_blocks", num_blocks)):
            if len(value) != 1:
                raise ValueError(f"`{name}` must have one entry in the v1 layout, got {tuple(value)}")

    def forward(
        self, latents: torch.Tensor, state: CausalMemoryState | None = None, return_dict: bool = True
    ) -> CausalLatentUpsamplerOutput | tuple[torch.Tensor, CausalMemoryState]:
        """Upsamples the next chunk of a stream; chunks of any length give the same result.

        Args:
            latents (`torch.Tensor`): `[batch, in_channels, frames, height, width]`, normalised.
            state (`CausalMemoryState`, *optional*): what the chunk before returned; `None` starts a stream.
            return_dict (`bool`, *optional*, defaults to `True`): a plain tuple instead of the output class if `False`.

        Raises:
            ValueError: wrong rank, channels or dtype, or a state of another stream shape or network.
        """
        check_video_tensor("latents", latents, self.config.in_channels, self.dtype)
        frames = latents.transpose(1, 2)
        if self.config.layout == "v1":
            sample, next_state = self._upsample(frames, self._inner_state(state, latents))
        else:
            sample, next_state = self.net(frames, self._inner_state(state, latents))
        if self.skip_up is not None:
            skip = _framewise(self.skip_up, frames).repeat_interleave(self.config.temporal_scale, dim=1)
            sample = skip + self.config.residual_scale * sample
        sample = sample.transpose(1, 2)
        if not return_dict:
            return sample, next_state
        return CausalLatentUpsamplerOutput(sample=sample, state=next_state)

    def _upsample(
        self, frames: torch.Tensor, state: CausalMemoryState | None
    ) -> tuple[torch.Tensor, CausalMemoryState]:
        """The v1 layout: perhaps a trunk, the head, blocks at the output's resolution, a convolution."""
        trunk_memories: list[torch.Tensor] = []
        if self.trunk is not None:
            trunk_state, state = self._split_state(state, frames)
            features, trunk_state = self.trunk(frames, trunk_state)
            trunk_memories = trunk_state.memories
            frames = torch.cat([frames, features], dim=2)
        features, next_state = self.blocks(_framewise(self.pre_shuffle, frames), state)
        # one state, the trunk's memories first
        next_state = CausalMemoryState(trunk_memories + next_state.memories, next_state.input_size)
        return _framewise(self.final, features), next_state

    def _split_state(
        self, state: CausalMemoryState | None, frames: torch.Tensor
    ) -> tuple[CausalMemoryState | None, CausalMemoryState | None]:
        """The trunk's part of a state and the blocks'."""
        if state is None:
            return None, None
        number, (batch, _, _, height, width) = self.config.trunk_blocks, frames.shape
        trunk = CausalMemoryState(state.memories[:number], (batch, height, width))
        return trunk, CausalMemoryState(state.memories[number:], state.input_size)

    def _inner_state(self, state: CausalMemoryState | None, latents: torch.Tensor) -> CausalMemoryState | None:
        """Checks the state against the latents before the head runs (v1's blocks stand behind the upsampling)."""
        if state is None:
            return None
        factor = self.config.scale if self.config.layout == "v1" else 1
        batch, _, _, height, width = latents.shape
        expected = (batch, height * factor, width * factor)
        if tuple(state.input_size) != expected:
            raise ValueError(
                f"`state` belongs to a stream of (batch, height, width) {tuple(state.input_size)} at its memory "
                f"blocks; `latents` of shape {tuple(latents.shape)} need {expected}"
            )
        return state


def _framewise(layer: nn.Module, frames: torch.Tensor) -> torch.Tensor:
    return layer(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])


def _pixel_shuffle_head(in_channels: int, out_channels: int, scale: int) -> nn.Sequential:
    """Convolution and pixel shuffle for each factor of `scale`: the twos first, then what is left."""
    factors = []
    while scale % 2 == 0:
        factors.append(2)
        scale //= 2
    if scale > 1:
        factors.append(scale)
    if not factors:
        return nn.Sequential(conv3x3(in_channels, out_channels))
    head = nn.Sequential()
    for factor in factors:
        head.append(conv3x3(in_channels, out_channels * factor**2))
        head.append(PixelShuffle(factor))
        in_channels = out_channels
    return head
