# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The high-resolution autoencoder: streamed decoding of latents into frames, and encoding of frames into latents."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import AutoencoderMixin
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn
from torch.nn import functional as F

from ..pixels import from_unit, to_unit
from .causal_memory import (
    CausalMemoryBlock,
    CausalMemoryStack,
    CausalMemoryState,
    TemporalPool,
    conv3x3,
    make_activation,
    pixel_shuffle,
    reach,
    staged_layers,
)
from .checks import check_divisible, check_video_tensor
from .loading import Network, check_layers
from .stream_state import StreamState
from .tiling import Tiles


@dataclass(frozen=True)
class _Variant:
    """What the published decoder families differ in, apart from sizes."""

    memory_init: Literal["zero", "replicate"]
    nearest: bool  # spatial upsampling in the decoder: nearest neighbour or learned pixel shuffle
    clamp_latents: bool  # the decoder starts with `3 tanh(x / 3)`
    convolve_last: bool  # the last stage ends with a convolution too
    unit_range: bool  # the networks' own pixels are in [0, 1] instead of [-1, 1]


_VARIANTS = {
    "tiny": _Variant("zero", nearest=True, clamp_latents=True, convolve_last=True, unit_range=True),
    "ultra": _Variant("replicate", nearest=False, clamp_latents=True, convolve_last=True, unit_range=True),
    "v3": _Variant("replicate", nearest=False, clamp_latents=False, convolve_last=False, unit_range=False),
}


@dataclass
class AutoencoderStreamState(StreamState):
    """State of an encoding or decoding stream.

    Args:
        stacks (`list[CausalMemoryState]`): one state, or one for each spatial tile in raster order.
        pending (`torch.Tensor`, *optional*): encoder only: frames, `[batch, channels, frames, height, width]`, that
            wait for the ones that complete their latent.
    """

    stacks: list[CausalMemoryState]
    pending: torch.Tensor | None = None


@dataclass
class HRAutoencoderEncoderOutput(BaseOutput):
    """Output of [`HRAutoencoder.encode`].

    Args:
        latents (`torch.Tensor`): `[batch, latent_channels, latent_frames, latent_height, latent_width]`, normalised.
        state (`AutoencoderStreamState`): state for the next chunk of the stream.
    """

    latents: torch.Tensor
    state: AutoencoderStreamState | None = None


@dataclass
class HRAutoencoderDecoderOutput(BaseOutput):
    """Output of [`HRAutoencoder.decode`].

    Args:
        sample (`torch.Tensor`): `[batch, 3, frames, height, width]`, nominally in [-1, 1]; not clamped.
        state (`AutoencoderStreamState`): state for the next chunk of the stream.
    """

    sample: torch.Tensor
    state: AutoencoderStreamState | None = None


class ClampLatents(nn.Module):
    """Bounds latents smoothly to (-3, 3): `3 tanh(x / 3)`."""

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return torch.tanh(latents / 3) * 3


class HRAutoencoder(Network, AutoencoderMixin):
    r"""Causal video autoencoder whose decoder turns high-resolution latents into frames, chunk by chunk.

    A stream's first `f` latents stand for `t (f - 1) + 1` frames (`t`: temporal compression), later chunks of `f`
    latents for `t f` frames. Encoder and decoder are TAEHV-shaped stacks of causal memory blocks (paper, "HR
    decoder").

    Args:
        variant (`str`, *optional*, defaults to `"tiny"`): the published family, which fixes upsampling, first memory,
            input clamp and pixel range: `"tiny"`, `"ultra"` or `"v3"`.
        in_channels (`int`, *optional*, defaults to 3): channels of a frame.
        latent_channels (`int`, *optional*, defaults to 16): channels of the latents.
        patch_size (`int`, *optional*, defaults to 1): frames are folded into patches of this side before the encoder
            and unfolded after the decoder.
        encoder_channels (`tuple[int, ...]`, *optional*, defaults to `(64, 64, 64)`): width of each encoder stage; `()`
            for a decoder without an encoder.
        encoder_blocks (`tuple[int, ...]`, *optional*, defaults to `(3, 3, 3)`): memory blocks of each encoder stage.
        encoder_spatial_strides (`tuple[int, ...]`, *optional*, defaults to `(2, 2, 2)`): reduction of height and width
            at each encoder stage.
        encoder_temporal_strides (`tuple[int, ...]`, *optional*, defaults to `(2, 2, 1)`): frames merged at each
            encoder stage.
        decoder_channels (`tuple[int, ...]`, *optional*, defaults to `(256, 128, 64)`): width of each decoder stage.
        decoder_blocks (`tuple[int, ...]`, *optional*, defaults to `(3, 3, 3)`): memory blocks of each decoder stage.
        decoder_spatial_strides (`tuple[int, ...]`, *optional*, defaults to `(2, 2, 2)`): growth of height and width.
        decoder_temporal_strides (`tuple[int, ...]`, *optional*, defaults to `(1, 2, 2)`): growth of the frame count.
        linear_shortcut (`bool`, *optional*, defaults to `False`): adds a linear map between each space-time patch and
            its latent, in both directions, so that the stacks only learn what a linear code leaves over.
        latent_space (`str`, *optional*, defaults to `"wan2.1"`): name of the latent space; equal names mean that
            latents of another autoencoder may be passed on as they are.
        activation (`str`, *optional*, defaults to `"relu"`): `"relu"` (the published families'), `"silu"` or `"gelu"`,
            whose features do not die where the stack is a small correction to the linear shortcut.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["CausalMemoryBlock"]
    _repeated_blocks = ["CausalMemoryBlock"]
    _skip_keys = ["state"]

    @register_to_config
    def __init__(
        self,
        variant: Literal["tiny", "ultra", "v3"] = "tiny",
        in_channels: int = 3,
        latent_channels: int = 16,
        patch_size: int = 1,
        encoder_channels: tuple[int, ...] = (64, 64, 64),
        encoder_blocks: tuple[int, ...] = (3, 3, 3),
        encoder_spatial_strides: tuple[int, ...] = (2, 2, 2),
        encoder_temporal_strides: tuple[int, ...] = (2, 2, 1),
        decoder_channels: tuple[int, ...] = (256, 128, 64),
        decoder_blocks: tuple[int, ...] = (3, 3, 3),
        decoder_spatial_strides: tuple[int, ...] = (2, 2, 2),
        decoder_temporal_strides: tuple[int, ...] = (1, 2, 2),
        linear_shortcut: bool = False,
        latent_space: str = "wan2.1",
        activation: str = "relu",
    ) -> None:
        super().__init__()
        if variant not in _VARIANTS:
            raise ValueError(f"`variant` must be one of {sorted(_VARIANTS)}, got {variant!r}")
        self.has_encoder = len(encoder_channels) > 0
        self.spatial_compression_ratio = patch_size * math.prod(decoder_spatial_strides)
        self.temporal_compression_ratio = math.prod(decoder_temporal_strides)
        patch_channels = in_channels * patch_size**2
        if self.has_encoder:
            self._check_encoder_strides(encoder_spatial_strides, encoder_temporal_strides)
            self.encoder = _encoder(
                patch_channels,
                latent_channels,
                encoder_channels,
                encoder_blocks,
                encoder_spatial_strides,
                encoder_temporal_strides,
                _VARIANTS[variant],
                activation,
            )
        self.decoder = _decoder(
            patch_channels,
            latent_channels,
            decoder_channels,
            decoder_blocks,
            decoder_spatial_strides,
            decoder_temporal_strides,
            _VARIANTS[variant],
            activation,
        )
        if linear_shortcut:
            code = in_channels * self.spatial_compression_ratio**2 * self.temporal_compression_ratio
            if self.has_encoder:
                self.encoder_shortcut = nn.Conv2d(code, latent_channels, kernel_size=1)
            self.decoder_shortcut = nn.Conv2d(latent_channels, code, kernel_size=1)
        # whether the networks' own pixels are in [0, 1] instead of [-1, 1]
        self.unit_range = _VARIANTS[variant].unit_range
        self.use_slicing = False
        self.use_tiling = False
        # side of a tile's own part, in latents; `enable_tiling` changes it
        self.tile_latent_size = 64

    def _check_encoder_strides(self, spatial: tuple[int, ...], temporal: tuple[int, ...]) -> None:
        spatial_ratio = self.config.patch_size * math.prod(spatial)
        if spatial_ratio != self.spatial_compression_ratio:
            raise ValueError(
                f"`encoder_spatial_strides` {tuple(spatial)} compress {spatial_ratio} times, the decoder grows "
                f"{self.spatial_compression_ratio} times"
            )
        if math.prod(temporal) != self.temporal_compression_ratio:
            raise ValueError(
                f"`encoder_temporal_strides` {tuple(temporal)} compress {math.prod(temporal)} times, the decoder "
                f"grows {self.temporal_compression_ratio} times"
            )

    @apply_forward_hook
    def encode(
        self, x: torch.Tensor, state: AutoencoderStreamState | None = None, return_dict: bool = True
    ) -> HRAutoencoderEncoderOutput | tuple[torch.Tensor, AutoencoderStreamState]:
        """Encodes the next chunk of a stream of frames.

        Args:
            x (`torch.Tensor`): `[batch, in_channels, frames, height, width]` in [-1, 1]. A stream starts with
                `t n + 1` frames (latent 0 stands for frame 0 alone, which is repeated to fill it) or with `t n`
                frames, which are taken as filled already. Later chunks may have any number of frames; those that do
                not complete a latent wait in the state.
            state (`AutoencoderStreamState`, *optional*): what the chunk before returned; `None` starts a stream.
            return_dict (`bool`, *optional*, defaults to `True`): a plain tuple instead of the output class if `False`.

        Raises:
            ValueError: no encoder in this checkpoint, wrong rank, channels, dtype, size or frame count, or a state of
                another stream shape or network.
        """
        if not self.has_encoder:
            raise ValueError("this checkpoint holds a decoder alone (`encoder_channels` is empty): it cannot encode")
        check_video_tensor("x", x, self.config.in_channels, self.dtype)
        check_divisible("x", x, self.spatial_compression_ratio, "the autoencoder's spatial compression")
        frames, pending = self._whole_latents(x, state)
        if frames.shape[2] == 0:
            latents = x.new_empty(x.shape[0], self.config.latent_channels, 0, *self._latent_size(x))
            stacks = state.stacks if state is not None else []
        else:
            if self.unit_range:
                frames = to_unit(frames)
            latents, stacks = self._run(self._encode_tile, frames, state, self.spatial_compression_ratio, shrinks=True)
        next_state = AutoencoderStreamState(stacks, pending)
        if not return_dict:
            return latents, next_state
        return HRAutoencoderEncoderOutput(latents=latents, state=next_state)

    @apply_forward_hook
    def decode(
        self, z: torch.Tensor, state: AutoencoderStreamState | None = None, return_dict: bool = True
    ) -> HRAutoencoderDecoderOutput | tuple[torch.Tensor, AutoencoderStreamState]:
        """Decodes the next chunk of a stream of latents.

        Args:
            z (`torch.Tensor`): `[batch, latent_channels, latent_frames, latent_height, latent_width]`, normalised.
            state (`AutoencoderStreamState`, *optional*): what the chunk before returned; `None` starts a stream, whose
                first latent gives one frame.
            return_dict (`bool`, *optional*, defaults to `True`): a plain tuple instead of the output class if `False`.

        Raises:
            ValueError: wrong rank, channels or dtype, or a state of another stream shape or network.
        """
        check_video_tensor("z", z, self.config.latent_channels, self.dtype)
        sample, stacks = self._run(self._decode_tile, z, state, self.spatial_compression_ratio, shrinks=False)
        if state is None:
            sample = sample[:, :, self.temporal_compression_ratio - 1 :]
        if self.unit_range:
            sample = from_unit(sample)
        next_state = AutoencoderStreamState(stacks)
        if not return_dict:
            return sample, next_state
        return HRAutoencoderDecoderOutput(sample=sample, state=next_state)

    def forward(
        self, sample: torch.Tensor, return_dict: bool = True
    ) -> HRAutoencoderDecoderOutput | tuple[torch.Tensor, AutoencoderStreamState]:
        """Encodes and decodes one clip, `[batch, in_channels, frames, height, width]` in [-1, 1]."""
        return self.decode(self.encode(sample).latents, return_dict=return_dict)

    def enable_tiling(self, tile_sample_min_size: int | None = None) -> None:
        """Processes large frames in overlapping spatial tiles: less memory, the same result.

        The overlap is the networks' whole receptive field, of which only the part that no tile border reaches is kept:
        nothing is blended and there is no seam.

        Args:
            tile_sample_min_size (`int`, *optional*): side in pixels of a tile's own part, a multiple of the spatial
                compression; frames not larger than it are not tiled. Defaults to 64 latents.

        Raises:
            ValueError: `tile_sample_min_size` is not a positive multiple of the spatial compression.
        """
        if tile_sample_min_size is not None:
            size, rest = divmod(tile_sample_min_size, self.spatial_compression_ratio)
            if size < 1 or rest:
                raise ValueError(
                    f"`tile_sample_min_size` must be a positive multiple of {self.spatial_compression_ratio}, got "
                    f"{tile_sample_min_size}"
                )
            self.tile_latent_size = size
        self.use_tiling = True

    def _latent_size(self, x: torch.Tensor) -> tuple[int, int]:
        return x.shape[-2] // self.spatial_compression_ratio, x.shape[-1] // self.spatial_compression_ratio

    def _whole_latents(
        self, x: torch.Tensor, state: AutoencoderStreamState | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Splits what has arrived into the frames of complete latents and those that have to wait."""
        ratio = self.temporal_compression_ratio
        if state is None:
            if x.shape[2] % ratio > 1:
                raise ValueError(
                    f"`x` has {x.shape[2]} frames; a stream starts with {ratio} n + 1 of them (or {ratio} n, filled "
                    "already)"
                )
            filling = x[:, :, :1].expand(-1, -1, -x.shape[2] % ratio, -1, -1)
            return torch.cat([filling, x], dim=2), None
        if state.pending is not None:
            if state.pending.shape[:2] != x.shape[:2] or state.pending.shape[3:] != x.shape[3:]:
                raise ValueError(
                    f"`state` has waiting frames of shape {tuple(state.pending.shape)}, `x` has {tuple(x.shape)}"
                )
            x = torch.cat([state.pending, x], dim=2)
        whole = x.shape[2] - x.shape[2] % ratio
        return x[:, :, :whole], x[:, :, whole:].clone() if whole < x.shape[2] else None

    def _encode_tile(
        self, frames: torch.Tensor, state: CausalMemoryState | None
    ) -> tuple[torch.Tensor, CausalMemoryState]:
        frames = frames.transpose(1, 2)
        batch = frames.shape[0]
        patches = F.pixel_unshuffle(frames.flatten(0, 1), self.config.patch_size).unflatten(0, (batch, -1))
        latents, state = self.encoder(patches, state)
        if self.config.linear_shortcut:
            latents = latents + self.encoder_shortcut(self.fold_patches(frames)).unflatten(0, (batch, -1))
        return latents.transpose(1, 2), state

    def fold_patches(self, frames: torch.Tensor) -> torch.Tensor:
        """Folds each latent's space-time patch into channels, oldest frame first: what the linear shortcut codes.

        Args:
            frames (`torch.Tensor`): `[batch, frames, channels, height, width]`, whole latents.

        Returns:
            `torch.Tensor`: `[batch * latent_frames, channels * t * s * s, latent_height, latent_width]`.
        """
        folded = F.pixel_unshuffle(frames.flatten(0, 1), self.spatial_compression_ratio)
        return folded.reshape(-1, folded.shape[1] * self.temporal_compression_ratio, *folded.shape[2:])

    def _decode_tile(
        self, latents: torch.Tensor, state: CausalMemoryState | None
    ) -> tuple[torch.Tensor, CausalMemoryState]:
        latents = latents.transpose(1, 2)
        batch = latents.shape[0]
        patches, state = self.decoder(latents, state)
        frames = pixel_shuffle(patches.flatten(0, 1), self.config.patch_size)
        if self.config.linear_shortcut:
            folded = self.decoder_shortcut(latents.flatten(0, 1))
            folded = folded.reshape(-1, folded.shape[1] // self.temporal_compression_ratio, *folded.shape[2:])
            frames = frames + pixel_shuffle(folded, self.spatial_compression_ratio)
        return frames.unflatten(0, (batch, -1)).transpose(1, 2), state

    def _run(
        self,
        network: Callable[[torch.Tensor, CausalMemoryState | None], tuple[torch.Tensor, CausalMemoryState]],
        video: torch.Tensor,
        state: AutoencoderStreamState | None,
        ratio: int,
        shrinks: bool,
    ) -> tuple[torch.Tensor, list[CausalMemoryState]]:
        """Runs `network` over the whole picture, or over tiles of it, each with its own state."""
        unit, scale = (ratio, 1) if shrinks else (1, ratio)  # pixels of `video` and of the result for each latent
        size = (video.shape[-2] // unit, video.shape[-1] // unit)
        if not self.use_tiling or max(size) <= self.tile_latent_size:
            tiles = Tiles.whole(size)
        else:
            halo = self._receptive_radius(self.encoder if shrinks else self.decoder, shrinks)
            tiles = Tiles.cut(size, self.tile_latent_size, halo)
        if state is not None and len(state.stacks) != tiles.number:
            raise ValueError(f"`state` is of a stream in {len(state.stacks)} tiles; this call has {tiles.number}")
        states = [None] * tiles.number if state is None else state.stacks
        results = [network(tile, own) for tile, own in zip(tiles.of(video, unit), states, strict=True)]
        return tiles.join([result for result, _ in results], scale), [stack for _, stack in results]

    def _receptive_radius(self, stack: CausalMemoryStack, shrinks: bool) -> int:
        """How many latents away, at most, a value can reach through the 3x3 convolutions of `stack`."""
        # size of a feature's cell in latents: the encoder starts at the pixel patches, the decoder at the latents
        cell = self.config.patch_size / self.spatial_compression_ratio if shrinks else 1.0
        return math.ceil(reach(stack, cell)[0]) + 1


def _encoder(
    in_channels: int,
    latent_channels: int,
    channels: tuple[int, ...],
    num_blocks: tuple[int, ...],
    spatial_strides: tuple[int, ...],
    temporal_strides: tuple[int, ...],
    variant: _Variant,
    activation: str,
) -> CausalMemoryStack:
    if not len(channels) == len(num_blocks) == len(spatial_strides) == len(temporal_strides):
        raise ValueError(
            f"`encoder_blocks` {tuple(num_blocks)}, `encoder_spatial_strides` {tuple(spatial_strides)} and "
            f"`encoder_temporal_strides` {tuple(temporal_strides)} must have one entry for each of `encoder_channels` "
            f"{tuple(channels)}"
        )
    layers: list[nn.Module] = [conv3x3(in_channels, channels[0]), make_activation(activation)]
    previous = channels[0]
    for stage, width in enumerate(channels):
        check_layers("encoder_blocks", num_blocks[stage])
        layers.append(TemporalPool(previous, temporal_strides[stage]))
        layers.append(conv3x3(previous, width, bias=False, stride=spatial_strides[stage]))
        layers += [CausalMemoryBlock(width, activation, variant.memory_init) for _ in range(num_blocks[stage])]
        previous = width
    return CausalMemoryStack(*layers, conv3x3(previous, latent_channels))


def _decoder(
    out_channels: int,
    latent_channels: int,
    channels: tuple[int, ...],
    num_blocks: tuple[int, ...],
    spatial_strides: tuple[int, ...],
    temporal_strides: tuple[int, ...],
    variant: _Variant,
    activation: str,
) -> CausalMemoryStack:
    stages = staged_layers(
        latent_channels,
        channels,
        num_blocks,
        spatial_strides,
        temporal_strides,
        activation,
        memory_init=variant.memory_init,
        nearest=variant.nearest,
        convolve_last=variant.convolve_last,
    )
    clamp = [ClampLatents()] if variant.clamp_latents else []
    return CausalMemoryStack(*clamp, *stages, make_activation(activation), conv3x3(channels[-1], out_channels))
