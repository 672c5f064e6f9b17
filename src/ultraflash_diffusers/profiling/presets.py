# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The published cascade at its sizes, with random weights: speed and memory do not depend on their values."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn

from ..models.causal_latent_upsampler import CausalLatentUpsampler
from ..models.causal_wan_transformer import CausalWanTransformer
from ..models.hr_autoencoder import HRAutoencoder
from ..models.ultraflash_sr_transformer import UltraFlashSRTransformer
from ..pipelines.memory_plan import cast_weights
from ..pipelines.pipeline_ultraflash import UltraFlashStreamingPipeline


@dataclass(frozen=True)
class Generator:
    """The schedule of a published generator. All are the same network with other weights.

    Args:
        frames_per_chunk (`int`): latent frames of a chunk.
        first_chunk_frames (`int`, *optional*): of the first one, where it differs.
        denoising_steps (`tuple[int, ...]`): timesteps of a chunk before the shift.
        first_chunk_denoising_steps (`tuple[int, ...]`, *optional*): of the first chunk, where they differ.
    """

    frames_per_chunk: int = 3
    first_chunk_frames: int | None = None
    denoising_steps: tuple[int, ...] = (1000, 750, 500, 250)
    first_chunk_denoising_steps: tuple[int, ...] | None = None


_FOUR_STEPS = (1000, 750, 500, 250)
# the last three keep 21 frames and end there; here they have the rolling window of the others, so that they need not
GENERATORS = {
    "self-forcing": Generator(),
    "longlive": Generator(first_chunk_frames=1),
    "frame-wise": Generator(frames_per_chunk=1),
    "two-step": Generator(1, None, (1000, 500), _FOUR_STEPS),
    "one-step": Generator(1, None, (1000,), _FOUR_STEPS),
}


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
    preset: Preset,
    device: torch.device | str,
    dtype: torch.dtype,
    layers: int = 30,
    generator: Generator = GENERATORS["self-forcing"],
) -> UltraFlashStreamingPipeline:
    """Makes a preset's pipeline without a text encoder, in place on `device`.

    Args:
        preset ([`Preset`]): the size.
        device (`torch.device` or `str`): where its weights go; `"meta"` for none at all.
        dtype (`torch.dtype`): of the weights; what must be precise stays in float32, as in loaded checkpoints.
        layers (`int`, *optional*, defaults to 30): of each transformer; fewer for a machine that is too small.
        generator ([`Generator`], *optional*): whose chunks and steps are run.
    """
    with torch.device("meta"):
        networks = {
            "generator_transformer": CausalWanTransformer(
                num_layers=layers,
                window_frames=preset.window_frames,
                sink_frames=preset.sink_frames,
                **asdict(generator),
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
        cast_weights(network, dtype)
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


def _fill(network: nn.Module) -> None:
    """Random weights with which features keep their size, layer after layer.

    Norms have weights of one, as at the start of training. With small ones all scores of attention would be equal,
    and processors multiply equal numbers faster than trained networks' ones.
    """
    generator: torch.Generator | None = None
    norms = {id(module.weight) for module in network.modules() if _is_norm(module)}
    for parameter in network.parameters():
        generator = generator or torch.Generator(parameter.device).manual_seed(0)
        fan_in = parameter[0].numel() if parameter.ndim > 1 else parameter.numel()
        parameter.normal_(std=fan_in**-0.5, generator=generator)
        if id(parameter) in norms:
            parameter.fill_(1)


def _is_norm(module: nn.Module) -> bool:
    return "Norm" in type(module).__name__ and getattr(module, "weight", None) is not None
