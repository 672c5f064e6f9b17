# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Where training from nothing starts: closed-form linear paths, and convolutions that are small corrections to them.

Both networks may hold a linear path beside their convolutional stack (`linear_shortcut`, `residual`). The path gets
what a linear method would end with, the stack starts at contributing nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import nn
from torch.nn import functional as F

from ...models.causal_latent_upsampler import CausalLatentUpsampler
from ...models.causal_memory import CausalMemoryBlock
from ...models.hr_autoencoder import HRAutoencoder
from ...pixels import to_unit

LINEAR_PATHS = ("encoder_shortcut", "decoder_shortcut", "skip_up")
# of the last convolution of a memory block, so that the block passes on little more than what entered it
BRANCH_SCALE = 0.3
# of the features that a decoder's last convolution sees. Adam moves each of its weights by the learning rate, whatever
# the gradient: with features near 1, a step at 1e-3 would move a pixel by more than all that there is to learn
FEATURE_SCALE = 0.05


@torch.no_grad()
def initialize_convolutions(network: ModelMixin) -> None:
    """Starts all convolutions but the linear paths by He's rule (He et al., 2015), and residual branches small.

    Args:
        network (`ModelMixin`): a new [`CausalLatentUpsampler`] or [`HRAutoencoder`].
    """
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d) and not name.startswith(LINEAR_PATHS):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for layer in network.modules():
        if isinstance(layer, CausalMemoryBlock):
            _scale(layer.conv[-1], BRANCH_SCALE)


@torch.no_grad()
def fit_linear_shortcut(autoencoder: HRAutoencoder, clips: Iterable[torch.Tensor]) -> float:
    """Sets the autoencoder's shortcuts to the principal components of the clips' space-time patches.

    The latents come out with zero mean and unit variance for each channel; the convolutional stacks are set to
    contribute nothing at first.

    Args:
        autoencoder (`HRAutoencoder`): built with `linear_shortcut=True`, with an encoder.
        clips (iterable of `torch.Tensor`): `[batch, 3, frames, height, width]` in [-1, 1]; frames and sizes multiples
            of the compression.

    Returns:
        `float`: the share of the patches' variance that the components hold, in (0, 1].

    Raises:
        ValueError: `autoencoder` has no shortcuts, or `clips` is empty.
    """
    if not autoencoder.config.linear_shortcut or not autoencoder.has_encoder:
        raise ValueError("`autoencoder` must have an encoder and be built with `linear_shortcut=True`")
    channels = autoencoder.config.latent_channels
    mean, covariance = _moments(_fold(autoencoder, clip) for clip in clips)
    variances, components = torch.linalg.eigh(covariance)
    variances, components = variances.flip(0)[:channels], components.flip(1)[:, :channels]
    spread = variances.clamp_min(1e-8).sqrt()
    into, out = components / spread, components * spread
    _set_pointwise(autoencoder.encoder_shortcut, into.T, -(mean @ into))
    _set_pointwise(autoencoder.decoder_shortcut, out, mean)
    _silence(autoencoder.encoder[-1])
    _silence(autoencoder.decoder[-1])
    _scale(autoencoder.decoder[-3], FEATURE_SCALE)  # before the last activation
    return (variances.sum() / covariance.trace()).item()


@torch.no_grad()
def set_bicubic_upsampling(upsampler: CausalLatentUpsampler, autoencoder: HRAutoencoder) -> None:
    """Sets the upsampler's residual head to what bicubic interpolation of the pixels does to latents.

    Where the autoencoder's code is linear, decoding, interpolating and encoding again is an affine map, and a latent
    of the result depends on 3x3 latents: exactly one convolution. At the picture's border the convolution sees zeros,
    where interpolation repeats the outermost pixels. The convolutional stack is set to contribute nothing at first.

    Args:
        upsampler (`CausalLatentUpsampler`): built with `residual=True` and a prime `scale`, so that its head is one
            convolution; of the autoencoder's latents.
        autoencoder (`HRAutoencoder`): built with `linear_shortcut=True`, with an encoder and a spatial compression of
            2 or more. Its shortcuts count, its stacks do not.

    Raises:
        ValueError: networks of other kinds.
    """
    head, scale = upsampler.skip_up, upsampler.config.scale
    channels, temporal = autoencoder.config.latent_channels, autoencoder.temporal_compression_ratio
    spatial = autoencoder.spatial_compression_ratio
    if not isinstance(head, nn.Sequential) or len(head) > 2:
        raise ValueError("`upsampler` must be built with `residual=True` and a prime `scale`")
    if not autoencoder.config.linear_shortcut or not autoencoder.has_encoder or spatial < 2:
        raise ValueError("`autoencoder` must compress in space, and have an encoder and `linear_shortcut=True`")
    if (upsampler.config.in_channels, upsampler.config.out_channels) != (channels, channels):
        raise ValueError(f"`upsampler` must take and give the {channels} channels of `autoencoder`'s latents")

    def enlarge(latents: torch.Tensor) -> torch.Tensor:
        patches = autoencoder.decoder_shortcut(latents).unflatten(1, (temporal, -1)).flatten(0, 1)
        frames = F.interpolate(F.pixel_shuffle(patches, spatial), scale_factor=scale, mode="bicubic")
        folded = autoencoder.fold_patches(frames.unflatten(0, (-1, temporal)))
        return F.pixel_unshuffle(autoencoder.encoder_shortcut(folded), scale)

    impulses = torch.zeros(channels, channels, 5, 5)
    impulses[range(channels), range(channels), 2, 2] = 1
    bias = enlarge(torch.zeros(1, channels, 5, 5))[0, :, 2, 2]
    responses = (enlarge(impulses) - bias[:, None, None])[..., 1:4, 1:4]
    # a convolution's weight says where its input is seen from the output: the other way round
    head[0].load_state_dict({"weight": responses.flip(-1, -2).transpose(0, 1), "bias": bias})
    _silence(upsampler.final if upsampler.config.layout == "v1" else upsampler.net[-1])


@torch.no_grad()
def with_trunk(upsampler: CausalLatentUpsampler, channels: int, blocks: int) -> CausalLatentUpsampler:
    """A trained upsampler with a new trunk, whose features the head does not look at yet: the same results at first.

    Args:
        upsampler (`CausalLatentUpsampler`): of the v1 layout, without a trunk.
        channels, blocks (`int`): the new network's `trunk_channels` and `trunk_blocks`.

    Raises:
        ValueError: it has a trunk, or cannot have one.
    """
    if upsampler.config.trunk_channels is not None:
        raise ValueError(f"`upsampler` has a trunk of {upsampler.config.trunk_channels} channels already")
    grown = CausalLatentUpsampler.from_config(upsampler.config, trunk_channels=channels, trunk_blocks=blocks)
    initialize_convolutions(grown)
    weights = grown.state_dict() | upsampler.state_dict()
    head = weights["pre_shuffle.0.weight"]
    unseen = head.new_zeros(len(head), channels, *head.shape[2:])
    grown.load_state_dict(weights | {"pre_shuffle.0.weight": torch.cat([head, unseen], dim=1)})
    return grown


def _fold(autoencoder: HRAutoencoder, clip: torch.Tensor) -> torch.Tensor:
    """The rows that the encoder's shortcut sees: one flattened space-time patch a latent position."""
    if autoencoder.unit_range:
        clip = to_unit(clip)
    return autoencoder.fold_patches(clip.transpose(1, 2)).permute(0, 2, 3, 1).flatten(0, 2)


def _moments(rows: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    gram: torch.Tensor | None = None
    for block in rows:
        # the column of ones makes count, sums and products one matrix
        block = torch.cat([torch.ones_like(block[:, :1]), block], dim=1).double()
        gram = block.T @ block if gram is None else gram + block.T @ block
    if gram is None:
        raise ValueError("`clips` is empty")
    count, mean = gram[0, 0], gram[0, 1:] / gram[0, 0]
    return mean, gram[1:, 1:] / count - torch.outer(mean, mean)


def _set_pointwise(layer: nn.Module, weight: torch.Tensor, bias: torch.Tensor) -> None:
    layer.load_state_dict({"weight": weight[:, :, None, None], "bias": bias})


def _scale(layer: nn.Module, factor: float) -> None:
    for parameter in layer.parameters():
        parameter.mul_(factor)


def _silence(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
