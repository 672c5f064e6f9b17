# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Recognising causal memory networks: latent upsamplers v1 and v3, and tiny, ultra and v3 autoencoders.

They are sequences of numbered layers. What a layer is shows in its keys; one without parameters (activation, nearest
upsampling, a step that does nothing) has no keys but keeps its number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ..models.causal_latent_upsampler import CausalLatentUpsampler
from ..models.causal_memory import stage_factors
from ..models.hr_autoencoder import HRAutoencoder
from .recognition import Recognition, count_blocks, shape_of
from .settings import Settings

_Kind = Literal["conv", "block", "shuffle", "temporal"]
# what follows a layer's number in its keys
_KINDS: tuple[tuple[str, _Kind], ...] = (
    (r"(weight|bias)", "conv"),
    (r"(conv\.\d+\.|skip\.).*", "block"),
    (r"(up|block)\.0\.(weight|bias)", "shuffle"),
    (r"conv\.weight", "temporal"),
)
_RELEASED_TEMPORAL_STRIDES = (1, 2, 2)


@dataclass(frozen=True)
class _Stages:
    """Sizes of the stages of an encoder or a decoder, as far as tensors show them."""

    in_channels: int
    out_channels: int
    channels: tuple[int, ...]
    num_blocks: tuple[int, ...]
    shuffles: tuple[bool, ...]  # where the upsampling is learned
    temporal: tuple[int, ...]


class _Stack:
    """The numbered layers under one prefix.

    Args:
        weights (`Mapping[str, torch.Tensor]`): the checkpoint.
        prefix (`str`): what stands before the numbers, with the dot.
        network (`str`): what the network is, for messages.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor], prefix: str, network: str) -> None:
        self._weights, self._prefix, self._network = weights, prefix, network
        self._kinds: dict[int, _Kind] = {}
        for key in weights:
            match = re.fullmatch(re.escape(prefix) + r"(\d+)\.(.*)", key)
            for pattern, kind in _KINDS if match else ():
                if match and re.fullmatch(pattern, match[2]):
                    self._kinds.setdefault(int(match[1]), kind)

    def count(self, kind: _Kind, after: int, before: int) -> int:
        """How many layers of one kind stand between two others."""
        return sum(after < layer < before for layer in self.of_kind(kind))

    def of_kind(self, kind: _Kind) -> list[int]:
        """Numbers of the layers of one kind."""
        return sorted(layer for layer, its_kind in self._kinds.items() if its_kind == kind)

    def ends(self) -> tuple[int, list[int], int]:
        """Numbers of the first, the inner and the last plain convolution.

        An inner one follows each temporal layer (but one in front of the last activation), so it is found, and its
        absence reported later, even where its own keys are missing.
        """
        convolutions = self.of_kind("conv")
        if len(convolutions) < 2:
            raise ValueError(
                f"the checkpoint does not fit a {self._network}: {len(convolutions)} plain convolutions are under "
                f"`{self._prefix}*`, expected more"
            )
        first, *inner, last = convolutions
        followers = {layer + 1 for layer in self.of_kind("temporal") if layer + 2 != last}
        return first, sorted({*inner, *followers}), last

    def width(self, layer: int) -> tuple[int, int]:
        """Output and input channels of a plain convolution."""
        rows, columns, *_ = shape_of(self._weights, f"{self._prefix}{layer}.weight", 4, self._network)
        return rows, columns

    def temporal_stride(self, layer: int, grows: bool) -> int:
        """Frames that a temporal layer makes of one, or merges into one."""
        key = f"{self._prefix}{layer}.conv.weight"
        rows, columns, *_ = shape_of(self._weights, key, 4, self._network)
        many, one = (rows, columns) if grows else (columns, rows)
        if many % one or not many:
            raise ValueError(
                f"the checkpoint does not fit a {self._network}: `{key}` has shape "
                f"{tuple(self._weights[key].shape)}, whose {many} channels are not a multiple of {one}"
            )
        return many // one


def _decoder_stages(stack: _Stack, convolve_last: bool) -> _Stages:
    """Stages end at the convolution to the next width; the last one at its own or at the output's convolution."""
    first, ends, last = stack.ends()
    temporal = [end - 1 for end in ends]
    if not convolve_last:
        ends, temporal = [*ends, last], [*temporal, last - 2]
    spans = list(zip([first, *ends[:-1]], ends, strict=True))
    return _Stages(
        in_channels=stack.width(first)[1],
        out_channels=stack.width(last)[0],
        channels=tuple(stack.width(start)[0] for start, _ in spans),
        num_blocks=tuple(stack.count("block", *span) for span in spans),
        shuffles=tuple(stack.count("shuffle", *span) > 0 for span in spans),
        temporal=tuple(stack.temporal_stride(layer, grows=True) for layer in temporal),
    )


def _encoder_stages(stack: _Stack) -> _Stages:
    """Stages begin with the temporal pool and the strided convolution to their width."""
    first, starts, last = stack.ends()
    spans = list(zip(starts, [*starts[1:], last], strict=True))
    return _Stages(
        in_channels=stack.width(first)[1],
        out_channels=stack.width(last)[0],
        channels=tuple(stack.width(start)[0] for start in starts),
        num_blocks=tuple(stack.count("block", *span) for span in spans),
        shuffles=(False,) * len(starts),
        temporal=tuple(stack.temporal_stride(start - 1, grows=False) for start in starts),
    )


def recognize_upsampler_v1(weights: Mapping[str, torch.Tensor], given: Mapping[str, Any]) -> Recognition:
    """Recognises a v1 latent upsampler; its scale shows in the channels in front of the pixel shuffles.

    Raises:
        ValueError: a tensor that shows a size is missing, or a setting is unknown or contradicts the tensors.
    """
    network = "v1 latent upsampler"
    out_channels, width, *_ = shape_of(weights, "final.weight", 4, network)
    head = _Stack(weights, "pre_shuffle.", network)
    scale = math.prod(math.isqrt(max(head.width(layer)[0] // width, 1)) for layer in head.of_kind("conv"))
    num_blocks = count_blocks(weights)
    settings = Settings(given, network)
    trunk_channels, trunk_blocks = _trunk(weights, network)
    in_channels = head.width(0)[1] - (trunk_channels or 0)
    config = _upsampler_config(weights, settings, in_channels, out_channels, scale)
    config |= {
        "trunk_channels": settings.agree(trunk_channels, "trunk_channels"),
        "trunk_blocks": settings.agree(trunk_blocks, "trunk_blocks"),
        "layout": settings.agree("v1", "layout", "variant"),
        "temporal_scale": settings.agree(1, "temporal_scale"),
        "channels": settings.agree((width,), "channels", "mid_channels"),
        "num_blocks": settings.agree((num_blocks,), "num_blocks"),
    }
    description = f"{network} (x{scale}, {num_blocks} blocks of {width} channels)"
    return Recognition("latent_upsampler", CausalLatentUpsampler, config, description, settings, (), weights)


def _trunk(weights: Mapping[str, torch.Tensor], network: str) -> tuple[int | None, int]:
    """The channels and the memory blocks of a trunk, which no published upsampler has."""
    trunk = _Stack(weights, "trunk.", network)
    if not trunk.of_kind("conv"):
        return None, 0
    return trunk.width(0)[0], len(trunk.of_kind("block"))


def recognize_v3(weights: Mapping[str, torch.Tensor], given: Mapping[str, Any]) -> Recognition:
    """Recognises a v3 network: a latent upsampler where it gives as many channels as it takes, else a decoder.

    Raises:
        ValueError: a tensor that shows a size is missing, the channels are those of neither, or a setting is unknown
            or contradicts the tensors.
    """
    stages = _decoder_stages(_Stack(weights, "net.", "v3 network"), convolve_last=False)
    if stages.in_channels == stages.out_channels:
        return _recognize_upsampler_v3(weights, given, stages)
    return _recognize_decoder_v3(weights, given, stages)


def _recognize_upsampler_v3(
    weights: Mapping[str, torch.Tensor], given: Mapping[str, Any], stages: _Stages
) -> Recognition:
    network = "v3 latent upsampler"
    spatial = tuple(2 if shuffle else 1 for shuffle in stages.shuffles)
    scale, temporal_scale = math.prod(spatial), math.prod(stages.temporal)
    _check_factors(network, "spatial", spatial, "left")
    _check_factors(network, "temporal", stages.temporal, "right")
    settings = Settings(given, network)
    config = _upsampler_config(weights, settings, stages.in_channels, stages.out_channels, scale)
    config |= {
        "trunk_channels": settings.agree(None, "trunk_channels"),
        "trunk_blocks": settings.agree(0, "trunk_blocks"),
        "layout": settings.agree("v3", "layout", "variant"),
        "temporal_scale": settings.agree(temporal_scale, "temporal_scale"),
        "channels": settings.agree(stages.channels, "channels", "stage_channels"),
        "num_blocks": settings.agree(stages.num_blocks, "num_blocks", "blocks_per_stage"),
    }
    settings.agree(spatial, "spatial_stage_factors")
    settings.agree(stages.temporal, "temporal_stage_factors")
    names = _shuffle_names(weights, "net.", "net.")
    if scale == 1:  # the published skip is a bare convolution then
        names.append(("skip_up.0.", "skip_up."))
    description = f"{network} (x{scale} in space, x{temporal_scale} in time, channels {stages.channels})"
    return Recognition("latent_upsampler", CausalLatentUpsampler, config, description, settings, names, weights)


def _check_factors(network: str, axis: str, shown: tuple[int, ...], first: Literal["left", "right"]) -> None:
    expected = stage_factors(f"{axis} scale", math.prod(shown), len(shown), first)
    if shown != expected:
        raise ValueError(f"the stages of this {network} have the {axis} factors {shown}; only {expected} is supported")


def _upsampler_config(
    weights: Mapping[str, torch.Tensor], settings: Settings, in_channels: int, out_channels: int, scale: int
) -> dict[str, Any]:
    """What both layouts have."""
    residual = any(key.startswith("skip_up.") for key in weights)
    settings.without_effect("zero_init_final", "default_parallel")
    return {
        "in_channels": settings.agree(in_channels, "in_channels"),
        "out_channels": settings.agree(out_channels, "out_channels"),
        "scale": settings.agree(scale, "scale", "upsample_scale", "spatial_scale"),
        "activation": settings.take("relu", "activation"),
        "memory_init": settings.take("replicate", "memory_init"),
        "residual": settings.agree(residual, "residual"),
        "residual_scale": settings.take(1.0, "residual_scale"),
    }


def _recognize_decoder_v3(
    weights: Mapping[str, torch.Tensor], given: Mapping[str, Any], stages: _Stages
) -> Recognition:
    network = "v3 decoder"
    settings = Settings(given, network)
    spatial = tuple(2 if shuffle else 1 for shuffle in stages.shuffles)
    config = _autoencoder_config(settings, "v3", None, stages, spatial, stages.temporal)
    # the published class is an upsampler's, so its input channels are the latents'
    settings.agree(stages.in_channels, "in_channels")
    settings.agree(stages.out_channels, "out_channels")
    settings.agree(math.prod(spatial), "spatial_scale")
    settings.agree(math.prod(stages.temporal), "temporal_scale")
    settings.agree(spatial, "spatial_stage_factors")
    settings.agree(stages.temporal, "temporal_stage_factors")
    settings.only(False, "residual")
    settings.without_effect("zero_init_final", "default_parallel")
    names = [*_shuffle_names(weights, "decoder.", "net."), ("decoder.", "net.")]
    description = f"{network} (x{math.prod(spatial)} in space, x{math.prod(stages.temporal)} in time)"
    return Recognition("autoencoder", HRAutoencoder, config, description, settings, names, weights)


def recognize_autoencoder(weights: Mapping[str, torch.Tensor], given: Mapping[str, Any]) -> Recognition:
    """Recognises a tiny or ultra decoder, with its encoder or alone.

    Ultra differs from tiny by the learned upsampling. Older files hold wider temporal-grow weights than the model has;
    it takes the last rows of them.

    Raises:
        ValueError: a tensor that shows a size is missing, or a setting is unknown or contradicts the tensors.
    """
    decoder = _decoder_stages(_Stack(weights, "decoder.", "decoder"), convolve_last=True)
    has_encoder = any(key.startswith("encoder.") for key in weights)
    learned = any(decoder.shuffles)
    settings = Settings(given, "tiny or ultra autoencoder" if has_encoder else "tiny or ultra decoder")
    variant = settings.agree("ultra", "variant") if learned else settings.take("tiny", "variant")
    network = f"{variant} autoencoder" if has_encoder else f"{variant} decoder"
    spatial = _spatial_strides(settings, decoder.shuffles, learned)
    temporal = _temporal_strides(settings, decoder.temporal)
    encoder = _encoder_stages(_Stack(weights, "encoder.", network)) if has_encoder else None
    config = _autoencoder_config(settings, variant, encoder, decoder, spatial, temporal)
    settings.agree(3, "in_channels")
    ratio = math.prod(spatial) * config["patch_size"]
    description = f"{network} (x{ratio} in space, x{math.prod(temporal)} in time)"
    names = _shuffle_names(weights, "decoder.", "decoder.")
    weights = _with_last_rows(weights, temporal)
    return Recognition("autoencoder", HRAutoencoder, config, description, settings, names, weights)


def _spatial_strides(settings: Settings, shuffles: tuple[bool, ...], learned: bool) -> tuple[int, ...]:
    """Shown by learned upsampling; nearest upsampling has no parameters: x2 in each stage, as released."""
    if learned:
        settings.agree(shuffles, "decoder_space_upscale")
        return settings.agree(tuple(2 if shuffle else 1 for shuffle in shuffles), "decoder_spatial_strides")
    upscale = settings.take((True,) * len(shuffles), "decoder_space_upscale")
    return settings.take(tuple(2 if doubles else 1 for doubles in upscale), "decoder_spatial_strides")


def _temporal_strides(settings: Settings, shown: tuple[int, ...]) -> tuple[int, ...]:
    """The released strides, or smaller ones that tensors show; the caller may cut the tensors' rows further."""
    released = _RELEASED_TEMPORAL_STRIDES if len(shown) == len(_RELEASED_TEMPORAL_STRIDES) else shown
    strides = tuple(map(min, shown, released))
    upscale = settings.take(tuple(stride > 1 for stride in strides[1:]), "decoder_time_upscale")
    strides = strides[:1] + tuple(2 if doubles else 1 for doubles in upscale)
    strides = settings.take(strides, "decoder_temporal_strides")
    if any(stride < 1 or stride > limit for stride, limit in zip(strides, shown, strict=True)):
        raise ValueError(
            f"temporal strides {strides} were asked for, but the checkpoint's tensors have the rows for {shown}"
        )
    return strides


def _with_last_rows(weights: Mapping[str, torch.Tensor], strides: tuple[int, ...]) -> Mapping[str, torch.Tensor]:
    """Cuts the decoder's temporal-grow weights to the rows that the model takes."""
    layers = _Stack(weights, "decoder.", "decoder").of_kind("temporal")
    cut = {}
    for layer, stride in zip(layers, strides, strict=False):
        key = f"decoder.{layer}.conv.weight"
        cut[key] = weights[key][-stride * weights[key].shape[1] :]
    return {**weights, **cut}


def _autoencoder_config(
    settings: Settings,
    variant: str,
    encoder: _Stages | None,
    decoder: _Stages,
    spatial: tuple[int, ...],
    temporal: tuple[int, ...],
) -> dict[str, Any]:
    """What all variants have."""
    patch_size = math.isqrt(decoder.out_channels // 3)
    if decoder.out_channels != 3 * patch_size**2:
        raise ValueError(
            f"the checkpoint does not fit a {settings.network}: it gives {decoder.out_channels} channels for "
            f"{decoder.in_channels} latent ones; expected 3 (RGB), or 3 times the square of a patch"
        )
    channels, num_blocks = (encoder.channels, encoder.num_blocks) if encoder else ((), ())
    settings.only("relu", "activation")
    settings.only(False, "linear_shortcut")
    settings.only("zero" if variant == "tiny" else "replicate", "memory_init")
    settings.agree(math.prod(temporal) - 1, "frames_to_trim")
    settings.agree((-1, 1) if variant == "v3" else (0, 1), "output_range")
    return {
        "variant": settings.agree(variant, "variant"),
        "in_channels": 3,
        "latent_channels": settings.agree(decoder.in_channels, "latent_channels"),
        "patch_size": settings.agree(patch_size, "patch_size"),
        "encoder_channels": settings.agree(channels, "encoder_channels"),
        "encoder_blocks": settings.agree(num_blocks, "encoder_blocks"),
        "encoder_spatial_strides": settings.take((2,) * len(channels), "encoder_spatial_strides"),
        "encoder_temporal_strides": settings.agree(encoder.temporal if encoder else (), "encoder_temporal_strides"),
        "decoder_channels": settings.agree(decoder.channels, "decoder_channels", "stage_channels"),
        "decoder_blocks": settings.agree(decoder.num_blocks, "decoder_blocks", "blocks_per_stage"),
        "decoder_spatial_strides": settings.agree(spatial, "decoder_spatial_strides"),
        "decoder_temporal_strides": settings.agree(temporal, "decoder_temporal_strides"),
        "latent_space": settings.take("wan2.1", "latent_space"),
    }


def _shuffle_names(weights: Mapping[str, torch.Tensor], own: str, published: str) -> list[tuple[str, str]]:
    """Our and the published names of the learned upsampling layers: v3 calls them `block`, ultra `up`."""
    pattern = re.compile(re.escape(published) + r"(\d+)\.(up|block)\.0\.")
    found = {(match[1], match[2]) for key in weights if (match := pattern.match(key))}
    return [(f"{own}{layer}.conv.", f"{published}{layer}.{name}.0.") for layer, name in sorted(found)]
