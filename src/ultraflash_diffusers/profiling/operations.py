# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""How many floating-point operations a group of frames takes; a multiplication and an addition are two.

Transformers by formula, since what sparse attention does depends on what it keeps; convolutions are counted by torch
as they run on the meta device. For a block over N tokens of width d, feed-forward width f, text length L and P pairs
of tokens that attend to each other: 8 N d^2 (projections of self-attention) + 4 P d (its two products) + 4 N d^2 + 4 N
L d (cross-attention) + 4 N d f. Norms, activations, rotary embeddings and the selection are not counted: they are
bound by memory, and no matrix unit could make them faster.
"""

from __future__ import annotations

import math

import torch
from diffusers.configuration_utils import FrozenDict
from torch.utils.flop_counter import FlopCounterMode

from ..models.attention.block_layout import BlockSparseSettings
from ..models.causal_wan_transformer import CausalWanTransformer
from ..models.ultraflash_sr_transformer import UltraFlashSRTransformer
from ..models.wan_backbone import WanBackbone
from ..pipelines.pipeline_ultraflash import UltraFlashStreamingPipeline


def transformer_pass(config: FrozenDict, tokens: int, pairs: int, cached_text: bool) -> int:
    """Operations of one call of a Wan-shaped transformer for one sample.

    Args:
        config (`FrozenDict`): the network's.
        tokens (`int`): of the call.
        pairs (`int`): pairs of tokens that attend to each other in self-attention.
        cached_text (`bool`): whether the keys and values of the prompt are there already.
    """
    width = config.num_attention_heads * config.attention_head_dim
    text, patch = config.text_length, math.prod(config.patch_size)
    block = 12 * tokens * width**2 + 4 * pairs * width + 4 * tokens * width * (text + config.ffn_dim)
    if not cached_text:
        block += 4 * text * width**2
    embedding = 0 if cached_text else 2 * text * width * (config.text_dim + width)
    ends = 2 * tokens * width * patch * (config.in_channels + config.out_channels)
    return config.num_layers * block + embedding + ends


def sparse_pairs(settings: BlockSparseSettings, grid: tuple[int, int, int], kv_cache_blocks: int) -> int:
    """Pairs of tokens that sparse attention of a group keeps, in the middle of a stream, where no scores are equal.

    Each temporal query block keeps the `top_k + 1` best of the block pairs that it may see.
    """
    temporal, rows, columns = settings.count_blocks(grid)
    window = _reached(rows, settings.local_range) * _reached(columns, settings.local_range)
    pairs = 0
    for index in range(temporal):
        chunk_end = ((kv_cache_blocks + index) // settings.chunk_blocks + 1) * settings.chunk_blocks
        visible = min(chunk_end, kv_cache_blocks + temporal)
        pairs += min(settings.top_k(grid) + 1, visible * window)
    return pairs * settings.volume**2


def _reached(length: int, reach: int) -> int:
    """Pairs of positions on a line of `length`, the second in the window of `reach` around the first."""
    return sum(max(0, min(first - reach // 2 + reach, length) - max(first - reach // 2, 0)) for first in range(length))


def generator_passes(pipe: UltraFlashStreamingPipeline, steps: int | None = None) -> float:
    """Passes of the generator for one group in the middle of a stream, context passes included; 0 without one.

    Args:
        pipe ([`UltraFlashStreamingPipeline`]): whose generator's schedule counts.
        steps (`int`, *optional*): of a chunk; the generator's own by default, 0 where it does not run.
    """
    generator: CausalWanTransformer | None = pipe.generator_transformer
    if generator is None or steps == 0:
        return 0
    steps = steps or len(generator.config.denoising_steps)
    return (steps + 1) * pipe.config.group_frames / generator.chunk_frames


def group_operations(
    pipe: UltraFlashStreamingPipeline, height: int, width: int, generator_passes: float
) -> dict[str, int]:
    """Operations of one group of frames in the middle of a stream, by stage.

    Args:
        pipe ([`UltraFlashStreamingPipeline`]): whose networks are used; nothing is computed with them.
        height, width (`int`): of the frames.
        generator_passes (`float`): of the generator for one group, see [`generator_passes`].
    """
    ratio, scale = pipe.autoencoder.spatial_compression_ratio, pipe.latent_upsampler.config.scale
    frames = pipe.config.group_frames
    high = (frames, -(-height // ratio), -(-width // ratio))
    low = (frames, high[1] // scale, high[2] // scale)
    counts = {}
    if generator_passes:
        generator: CausalWanTransformer = pipe.generator_transformer
        grid = _tokens(generator, (generator.chunk_frames, *low[1:]))
        pairs = math.prod(grid) * (generator.config.window_frames or grid[0]) * grid[1] * grid[2]
        one = transformer_pass(generator.config, math.prod(grid), pairs, pipe.execution_plan.cache_text)
        counts["generator"] = round(generator_passes * one)
    counts["upsampler"] = _convolutions(pipe, "latent_upsampler", (1, pipe.latent_upsampler.config.in_channels, *low))
    counts["transformer"] = sr_operations(
        pipe.transformer, high, pipe.config.kv_cache_blocks, pipe.execution_plan.cache_text
    )
    latents = pipe.autoencoder.config.latent_channels
    counts["decoder"] = frames * _convolutions(pipe, "autoencoder", (1, latents, 1, *high[1:]))
    return counts


def sr_operations(
    network: UltraFlashSRTransformer, latents: tuple[int, int, int], kv_cache_blocks: int, cached_text: bool = False
) -> int:
    """Operations of the SR transformer for a group of `latents` = (frames, height, width)."""
    grid = _tokens(network, latents)
    tokens = math.prod(grid)
    if network.config.use_sparse_attention:
        pairs = sparse_pairs(network.sparse_settings, grid, kv_cache_blocks)
    else:
        pairs = tokens**2 * (1 + kv_cache_blocks)
    return transformer_pass(network.config, tokens, pairs, cached_text)


def _tokens(network: WanBackbone, latents: tuple[int, int, int]) -> tuple[int, int, int]:
    t, h, w = (-(-length // patch) for length, patch in zip(latents, network.config.patch_size, strict=True))
    return t, h, w


def _convolutions(pipe: UltraFlashStreamingPipeline, name: str, shape: tuple[int, ...]) -> int:
    network = getattr(pipe, name)
    with torch.device("meta"):
        twin = type(network).from_config(network.config)
        latents = torch.empty(shape)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        if name == "autoencoder":
            twin.decode(latents)
        else:
            twin(latents)
    return counter.get_total_flops()
