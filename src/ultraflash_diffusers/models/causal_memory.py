# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The causal memory network that the latent upsampler and the HR autoencoder are made of.

All convolutions are two-dimensional; the one way from frame to frame is the memory: each [`CausalMemoryBlock`] sees
its own input of the frame before. So the whole state of a stream is one feature map a block, and a chunk of any length
is computed at once with the same weights: the features of frames `0 .. T-2` are the memory of frames `1 .. T-1`, and
the state holds the memory of frame 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from .loading import check_layers
from .stream_state import StreamState

MemoryInit = Literal["zero", "replicate"]
# frames of so many numbers run one by one, and through the last layers, a decoder's widest by far, in so many bands
_LARGE_FRAME = 2**22
_BANDS = 8
_ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}


@dataclass
class CausalMemoryState(StreamState):
    """State of a stream through one [`CausalMemoryStack`].

    Args:
        memories (`list[torch.Tensor]`): for each memory block the features, `[batch, channels, height, width]`, that
            entered it at the last frame.
        input_size (`tuple[int, int, int]`): batch size, height and width of what entered the stack.
    """

    memories: list[torch.Tensor]
    input_size: tuple[int, int, int]


def make_activation(name: str) -> nn.Module:
    """Returns the activation layer called `name`: `"relu"`, `"silu"` or `"gelu"`."""
    if name not in _ACTIVATIONS:
        raise ValueError(f"`activation` must be one of {sorted(_ACTIVATIONS)}, got {name!r}")
    return _ACTIVATIONS[name]()


def conv3x3(in_channels: int, out_channels: int, bias: bool = True, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size (divided by `stride`)."""
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=bias)


class CausalMemoryBlock(nn.Module):
    """Residual block over the current frame's features and those of the frame before.

    Args:
        channels (`int`): width of input and output.
        activation (`str`, *optional*, defaults to `"relu"`): `"relu"`, `"silu"` or `"gelu"`.
        memory_init (`str`, *optional*, defaults to `"replicate"`): what the first frame of a stream finds as its past:
            a copy of itself, or zeros (`"zero"`).
    """

    def __init__(self, channels: int, activation: str = "relu", memory_init: MemoryInit = "replicate") -> None:
        super().__init__()
        if memory_init not in ("zero", "replicate"):
            raise ValueError(f"`memory_init` must be 'zero' or 'replicate', got {memory_init!r}")
        self.channels = channels
        self.memory_init = memory_init
        self.conv = nn.Sequential(
            conv3x3(2 * channels, channels),
            make_activation(activation),
            conv3x3(channels, channels),
            make_activation(activation),
            conv3x3(channels, channels),
        )
        self.act = make_activation(activation)

    def forward(self, features: torch.Tensor, memory: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Runs all frames of a chunk at once.

        Args:
            features (`torch.Tensor`): `[batch, frames, channels, height, width]`.
            memory (`torch.Tensor`, *optional*): `[batch, channels, height, width]`, the features that entered this
                block at the frame before the chunk; `None` at the start of a stream.

        Returns:
            The output, of the shape of `features`, and the memory for the next chunk.
        """
        first = features[:, 0]
        if memory is None:
            memory = first if self.memory_init == "replicate" else torch.zeros_like(first)
        frames = features.split(1, dim=1)
        pasts = [memory.unsqueeze(1), *frames[:-1]]
        if first[0].numel() < _LARGE_FRAME or torch.is_grad_enabled():
            output = self._refine(features, torch.cat(pasts, dim=1))
        else:
            output = torch.cat([self._refine(*pair) for pair in zip(frames, pasts, strict=True)], dim=1)
        # a copy, since a view would keep all frames of the chunk in memory
        return output, features[:, -1].clone()

    def _refine(self, features: torch.Tensor, past: torch.Tensor) -> torch.Tensor:
        joined = torch.cat([features, past], dim=2).flatten(0, 1)
        return self.act(self.conv(joined) + features.flatten(0, 1)).unflatten(0, features.shape[:2])


class TemporalPool(nn.Module):
    """Merges `stride` consecutive frames into one by a 1x1 convolution over their channels, oldest frame first."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(channels * stride, channels, kernel_size=1, bias=False)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """`[batch * frames, channels, height, width]` to `[batch * frames / stride, channels, height, width]`."""
        return self.conv(frames.reshape(-1, frames.shape[1] * self.stride, *frames.shape[2:]))


class TemporalGrow(nn.Module):
    """Splits each frame into `stride` frames by a 1x1 convolution to `stride * channels` channels, oldest first."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(channels, channels * stride, kernel_size=1, bias=False)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """`[batch * frames, channels, height, width]` to `[batch * frames * stride, channels, height, width]`."""
        return self.conv(frames).reshape(-1, *frames.shape[1:])


class NearestUpsample(nn.Module):
    """Spatial upsampling that repeats each value `factor` times along height and width."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """`[frames, channels, height, width]` to `[frames, channels, factor * height, factor * width]`."""
        return F.interpolate(frames, scale_factor=self.factor, mode="nearest")


def pixel_shuffle(frames: torch.Tensor, factor: int) -> torch.Tensor:
    """`torch.nn.functional.pixel_shuffle`, as one copy: on a CPU in a quarter of the time.

    `[frames, channels * factor^2, height, width]` to `[frames, channels, factor * height, factor * width]`.
    """
    number, channels, height, width = frames.shape
    parts = frames.reshape(number, channels // factor**2, factor, factor, height, width)
    return parts.permute(0, 1, 4, 2, 5, 3).reshape(number, -1, factor * height, factor * width)


class PixelShuffle(nn.PixelShuffle):
    """The layer of [`pixel_shuffle`]."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return pixel_shuffle(input, self.upscale_factor)


class PixelShuffleUpsample(nn.Module):
    """Learned spatial upsampling: a 3x3 convolution to `factor^2` times the channels and a pixel shuffle."""

    def __init__(self, in_channels: int, out_channels: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.conv = conv3x3(in_channels, out_channels * factor**2)
        self.shuffle = PixelShuffle(factor)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """`[frames, in_channels, height, width]` to `[frames, out_channels, factor * height, factor * width]`."""
        return self.shuffle(self.conv(frames))


class CausalMemoryStack(nn.Sequential):
    """A sequence of frame-wise layers and memory blocks, run over a chunk of a stream with explicit state."""

    # both are set by diffusers' `enable_gradient_checkpointing`
    gradient_checkpointing: bool = False
    _gradient_checkpointing_func: Callable[..., tuple[torch.Tensor, torch.Tensor]]

    def forward(
        self, frames: torch.Tensor, state: CausalMemoryState | None = None
    ) -> tuple[torch.Tensor, CausalMemoryState]:
        """Runs one chunk.

        Args:
            frames (`torch.Tensor`): `[batch, frames, channels, height, width]`. The frames of a chunk must be a
                multiple of what the stack's temporal pools merge.
            state (`CausalMemoryState`, *optional*): what the chunk before returned; `None` starts a stream.

        Returns:
            The output, `[batch, out_frames, out_channels, out_height, out_width]`, and the state for the next chunk.

        Raises:
            ValueError: `state` comes from another network, batch size or resolution.
        """
        batch, _, _, height, width = frames.shape
        input_size = (batch, height, width)
        memories = self._memories_of(state, input_size)
        next_memories: list[torch.Tensor] = []
        joining, framewise = self._ordered()
        for layer in joining:
            if isinstance(layer, CausalMemoryBlock):
                memory = memories[len(next_memories)]
                if torch.is_grad_enabled() and self.gradient_checkpointing:
                    frames, memory = self._gradient_checkpointing_func(layer, frames, memory)
                else:
                    frames, memory = layer(frames, memory)
                next_memories.append(memory)
            else:
                frames = layer(frames.flatten(0, 1)).unflatten(0, (batch, -1))
        frames = _run_framewise(framewise, frames.flatten(0, 1)).unflatten(0, (batch, -1))
        return frames, CausalMemoryState(next_memories, input_size)

    def _ordered(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """The layers in the order in which they run: up to the last one that joins frames, and behind it.

        A 1x1 convolution and the repetition of values commute: the convolution goes first, on fewer of them.
        """
        layers = list(self)
        for index in range(1, len(layers)):
            if isinstance(layers[index - 1], NearestUpsample) and isinstance(layers[index], TemporalGrow):
                layers[index - 1], layers[index] = layers[index], layers[index - 1]
        joins = [isinstance(layer, CausalMemoryBlock | TemporalPool) for layer in layers]
        end = len(layers) - joins[::-1].index(True) if any(joins) else 0
        return layers[:end], layers[end:]

    def _memories_of(
        self, state: CausalMemoryState | None, input_size: tuple[int, int, int]
    ) -> list[torch.Tensor] | list[None]:
        blocks = [layer for layer in self if isinstance(layer, CausalMemoryBlock)]
        if state is None:
            return [None] * len(blocks)
        widths = [memory.shape[1] for memory in state.memories]
        expected = [block.channels for block in blocks]
        if widths != expected:
            raise ValueError(
                f"`state` belongs to another network: its memories have {widths} channels, expected {expected}"
            )
        if tuple(state.input_size) != input_size:
            raise ValueError(
                f"`state` belongs to a stream of (batch, height, width) {tuple(state.input_size)}, got {input_size}"
            )
        return state.memories


def reach(layers: Iterable[nn.Module], cell: float = 1.0) -> tuple[float, float]:
    """How far, in cells of the input, a value gets through the convolutions, and the side of an output's cell.

    Args:
        layers (`Iterable[nn.Module]`): in the order in which they run.
        cell (`float`, *optional*, defaults to 1.0): the side of an input's cell.
    """
    radius = 0.0
    for layer in layers:
        for module in layer.modules():
            if isinstance(module, nn.Conv2d):
                radius += cell * (module.kernel_size[0] // 2)
                cell *= module.stride[0]
            elif isinstance(module, NearestUpsample):
                cell /= module.factor
            elif isinstance(module, nn.PixelShuffle):
                cell /= module.upscale_factor
    return radius, cell


def _run_framewise(layers: list[nn.Module], frames: torch.Tensor) -> torch.Tensor:
    """Runs layers that see single frames, `[frames, channels, height, width]`: large ones in bands of rows.

    The bands overlap by as much as the convolutions reach, so that the result is the same; they take the memory of a
    band once instead of that of all frames.
    """
    radius, cell = reach(layers)
    if frames[0].numel() < _LARGE_FRAME or cell > 1 or torch.is_grad_enabled():
        for layer in layers:
            frames = layer(frames)
        return frames
    height, halo, scale = frames.shape[2], math.ceil(radius), round(1 / cell)
    rows = -(-height // _BANDS)
    outputs = []
    for frame in frames.split(1):
        bands = []
        for start in range(0, height, rows):
            first, end = max(start - halo, 0), min(start + rows, height)
            band = frame[:, :, first : end + halo]
            for layer in layers:
                band = layer(band)
            bands.append(band[:, :, scale * (start - first) : scale * (end - first)])
        outputs.append(torch.cat(bands, dim=2))
    return torch.cat(outputs)


def stage_factors(name: str, scale: int, num_stages: int, first: Literal["left", "right"]) -> tuple[int, ...]:
    """Spreads a total factor of 1, 2, 4 or 8 over the stages as factors of 2, from the left or from the right."""
    if scale not in (1, 2, 4, 8) or scale > 2**num_stages:
        raise ValueError(f"`{name}` must be one of 1, 2, 4, 8 and at most {2**num_stages}, got {scale}")
    doublings = scale.bit_length() - 1
    factors = [2] * doublings + [1] * (num_stages - doublings)
    return tuple(factors if first == "left" else reversed(factors))


def staged_layers(
    in_channels: int,
    channels: tuple[int, ...],
    num_blocks: tuple[int, ...],
    spatial_factors: tuple[int, ...],
    temporal_factors: tuple[int, ...],
    activation: str = "relu",
    memory_init: MemoryInit = "replicate",
    nearest: bool = False,
    convolve_last: bool = False,
) -> list[nn.Module]:
    """The stages of v3 upsamplers and of all decoders, from the first convolution to the last stage.

    A stage is its memory blocks, the spatial upsampling (learned, or `nearest`), the temporal grow and a bias-free
    convolution to the next width; the last stage has that convolution only with `convolve_last`. Steps that do nothing
    keep their place, so that indices match the published keys.
    """
    if not len(channels) == len(num_blocks) == len(spatial_factors) == len(temporal_factors):
        raise ValueError(
            f"`num_blocks` {tuple(num_blocks)}, spatial factors {tuple(spatial_factors)} and temporal factors "
            f"{tuple(temporal_factors)} must have one entry for each of `channels` {tuple(channels)}"
        )
    layers: list[nn.Module] = [conv3x3(in_channels, channels[0]), make_activation(activation)]
    for stage, width in enumerate(channels):
        check_layers("num_blocks", num_blocks[stage])
        layers += [CausalMemoryBlock(width, activation, memory_init) for _ in range(num_blocks[stage])]
        layers.append(_spatial_upsample(width, spatial_factors[stage], nearest))
        layers.append(TemporalGrow(width, temporal_factors[stage]))
        if stage + 1 < len(channels):
            layers.append(conv3x3(width, channels[stage + 1], bias=False))
        elif convolve_last:
            layers.append(conv3x3(width, width, bias=False))
    return layers


def _spatial_upsample(channels: int, factor: int, nearest: bool) -> nn.Module:
    if factor == 1:
        return nn.Identity()
    if nearest:
        return NearestUpsample(factor)
    return PixelShuffleUpsample(channels, channels, factor)
