# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The published cascade at its sizes, with random weights: speed and memory do not depend on their values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn

from ..models.causal_latent_upsampler import CausalLatentUpsampler
from ..models.causal_wan_transformer import CausalWanTransformer
from ..models.hr_autoencoder import HRAutoencoder
from ..models.ultraflash_sr_transformer import UltraFlashSRTransformer
from ..pipelines.pipeline_ultraflash import UltraFlashStreamingPipeline


@dataclass(frozen=True)
class Preset:
    """A size of the published cascade: Wan 2.1 1.3B as generator and as SR transformer.

    Args:
        name (`str`): of the preset.
        height, width (`int`): of the frames.
        scale (`int`): of the latent upsampler.
        window_frames (`int`): latent frames that the generator sees, sink and own chunk included.
        sink_frames (`int`): the sink.
        kv_cache_blocks (`int`): temporal blocks of the SR transformer's window; the published inference starts with 3
            and, with dynamic cache management, goes down to 1.
        decoder (`str`): the autoencoder's variant.
    """

    name: str
    height: int
    width: int
    scale: int
    window_frames: int = 12
    sink_frames: int = 3
    kv_cache_blocks: int = 3
    decoder: Literal["tiny", "ultra", "v3"] = "tiny"

    @property
    def low_resolution(self) -> tuple[int, int]:
        """Height and width of what the generator makes."""
        return self.height // self.scale, self.width // self.scale


PRESETS = {
    preset.name: preset
    for preset in (
        Preset("480p", 480, 832, 2),
        Preset("1k", 960, 1664, 2),
        Preset("2k", 1440, 2496, 3),
        Preset("4k", 2160, 3840, 3),
    )
}


def build_pipeline(
    preset: Preset, device: torch.device | str, dtype: torch.dtype, layers: int = 30
) -> UltraFlashStreamingPipeline:
    """Makes a preset's pipeline without a text encoder, in place on `device`.

    Args:
        preset ([`Preset`]): the size.
        device (`torch.device` or `str`): where its weights go; `"meta"` for none at all.
        dtype (`torch.dtype`): of the weights; what must be precise stays in float32, as in loaded checkpoints.
        layers (`int`, *optional*, defaults to 30): of each transformer; fewer for a machine that is too small.
    """
    with torch.device("meta"):
        networks = {
            "generator_transformer": CausalWanTransformer(
                num_layers=layers, window_frames=preset.window_frames, sink_frames=preset.sink_frames
            ),
            "transformer": UltraFlashSRTransformer(num_layers=layers),
            "latent_upsampler": CausalLatentUpsampler(scale=preset.scale),
            "autoencoder": HRAutoencoder(
                variant=preset.decoder,
                encoder_channels=(),
                encoder_blocks=(),
                encoder_spatial_strides=(),
                encoder_temporal_strides=(),
            ),
        }
    for network in networks.values():
        network.requires_grad_(False).eval()
        _cast(network, dtype, getattr(type(network), "_keep_in_fp32_modules", None) or [])
        if torch.device(device).type != "meta":
            network.to_empty(device=device)
            _fill(network)
    pipe = UltraFlashStreamingPipeline(
        **networks,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.5),
        kv_cache_blocks=preset.kv_cache_blocks,
        default_height=preset.height,
        default_width=preset.width,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _cast(network: nn.Module, dtype: torch.dtype, precise: Sequence[str]) -> None:
    for name, parameter in network.named_parameters():
        keeps = any(part in precise for part in name.split("."))
        parameter.data = parameter.data.to(torch.float32 if keeps else dtype)


def _fill(network: nn.Module) -> None:
    """Random weights with which features keep their size, layer after layer."""
    generator: torch.Generator | None = None
    for parameter in network.parameters():
        generator = generator or torch.Generator(parameter.device).manual_seed(0)
        fan_in = parameter[0].numel() if parameter.ndim > 1 else parameter.numel()
        parameter.normal_(std=fan_in**-0.5, generator=generator)
