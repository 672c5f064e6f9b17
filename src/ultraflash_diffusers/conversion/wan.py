# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Recognising Wan-shaped transformers: the SR transformer and the streaming generator.

Both are Wan 2.1 text-to-video transformers in everything that tensors show; the SR transformer's patch embedding reads
twice as many channels as the network gives, noise and condition. So a plain Wan 2.1 checkpoint, in the original or in
the diffusers spelling, converts to the generator's network. The number of heads, the text length and how attention
looks around are not in the tensors: settings, with the released values as defaults.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin

from ..models.causal_wan_transformer import CausalWanTransformer
from ..models.ultraflash_sr_transformer import UltraFlashSRTransformer
from ..models.wan_names import WAN_NAMES
from .recognition import Recognition, count_blocks, shape_of
from .settings import Settings

_RELEASED_HEAD_DIM = 128
_RELEASED_STEPS = (1000, 750, 500, 250)
# how the published configs say "RMS norm" and "everything since the start"
_PUBLISHED_VALUES = {("qk_norm", True): "rms_norm_across_heads", ("local_attn_size", -1): None}


def _published_value(name: str, value: Any) -> Any:
    """Says a published config's value as ours does."""
    for (published_name, published), ours in _PUBLISHED_VALUES.items():
        if name == published_name and value == published:
            return ours
    return value


def recognize_transformer(weights: Mapping[str, torch.Tensor], given: Mapping[str, Any]) -> Recognition:
    """Recognises an SR transformer or a generator by its channels, and reads its sizes.

    Raises:
        ValueError: the channels are those of neither, or a setting is unknown or contradicts the tensors.
    """
    num_layers = count_blocks(weights)
    original = not any(key.startswith("condition_embedder.") for key in weights)
    names = WAN_NAMES if original else ()
    spelling = 1 if original else 0
    output = ("proj_out.weight", "head.head.weight")[spelling]
    *_, in_channels, patch_t, patch_h, patch_w = shape_of(weights, "patch_embedding.weight", 5, "Wan transformer")
    patch_size = (patch_t, patch_h, patch_w)
    rows, _ = shape_of(weights, output, 2, "Wan transformer")
    out_channels = rows // math.prod(patch_size)
    network_class: type[ModelMixin]
    if in_channels == 2 * out_channels:
        network, component, network_class = "SR transformer", "transformer", UltraFlashSRTransformer
    elif in_channels == out_channels:
        network, component, network_class = "streaming generator", "generator_transformer", CausalWanTransformer
    else:
        raise ValueError(
            f"a Wan transformer with {in_channels} input and {out_channels} output channels is neither an SR "
            f"transformer (twice as many, 32 and 16) nor a text-to-video generator (as many, 16 and 16)"
        )
    published = {name: _published_value(name, value) for name, value in given.items()}
    settings = Settings(published, network)
    config = _shared_config(weights, settings, network, spelling, num_layers)
    config |= {"in_channels": settings.agree(in_channels, "in_channels", "in_dim")}
    config |= {"out_channels": settings.agree(out_channels, "out_channels", "out_dim")}
    config |= {"patch_size": settings.agree(patch_size, "patch_size")}
    config |= _sr_config(settings) if component == "transformer" else _generator_config(settings)
    width = config["num_attention_heads"] * config["attention_head_dim"]
    description = (
        f"{network} ({num_layers} layers, width {width}, {config['num_attention_heads']} heads, "
        f"{'original' if original else 'diffusers'} Wan names)"
    )
    return Recognition(component, network_class, config, description, settings, names, weights)


def _shared_config(
    weights: Mapping[str, torch.Tensor], settings: Settings, network: str, spelling: int, num_layers: int
) -> dict[str, Any]:
    text_weight = ("condition_embedder.text_embedder.linear_1.weight", "text_embedding.0.weight")[spelling]
    time_weight = ("condition_embedder.time_embedder.linear_1.weight", "time_embedding.0.weight")[spelling]
    ffn_weight = ("blocks.0.ffn.net.0.proj.weight", "blocks.0.ffn.0.weight")[spelling]
    cross_norm = ("norm2", "norm3")[spelling]
    width, text_dim = shape_of(weights, text_weight, 2, network)
    _, freq_dim = shape_of(weights, time_weight, 2, network)
    ffn_dim, _ = shape_of(weights, ffn_weight, 2, network)
    settings.agree(width, "dim")
    num_heads = _num_heads(width, settings)
    settings.only("t2v", "model_type")
    settings.only(10000.0, "rope_theta")
    settings.only((-1, -1), "window_size")
    settings.only("rms_norm_across_heads", "qk_norm")
    settings.without_effect("rope_max_seq_len", "rope_cache_multiple")
    return {
        "num_attention_heads": num_heads,
        "attention_head_dim": width // num_heads,
        "text_dim": settings.agree(text_dim, "text_dim"),
        "text_length": settings.take(512, "text_length", "text_len"),
        "freq_dim": settings.agree(freq_dim, "freq_dim"),
        "ffn_dim": settings.agree(ffn_dim, "ffn_dim"),
        "num_layers": settings.agree(num_layers, "num_layers"),
        "cross_attn_norm": settings.agree(any(f".{cross_norm}." in key for key in weights), "cross_attn_norm"),
        "eps": settings.take(1e-6, "eps"),
    }


def _num_heads(width: int, settings: Settings) -> int:
    """Heads are not in the tensors: 128 channels each, as released, unless a setting says otherwise."""
    head_dim = settings.take(_RELEASED_HEAD_DIM, "attention_head_dim")
    num_heads = settings.take(max(width // max(head_dim, 1), 1), "num_attention_heads", "num_heads")
    if head_dim != _RELEASED_HEAD_DIM and num_heads * head_dim != width:
        raise ValueError(
            f"settings `num_attention_heads` {num_heads} and `attention_head_dim` {head_dim} do not give the width "
            f"{width} that the checkpoint's tensors show"
        )
    if num_heads < 1 or width % num_heads:
        raise ValueError(
            f"setting `num_attention_heads` is {num_heads}, which does not divide the width {width} that the "
            "checkpoint's tensors show"
        )
    return num_heads


def _sr_config(settings: Settings) -> dict[str, Any]:
    sparse = settings.take(True, "use_sparse_attention", "use_sparse_attn")
    if sparse:
        settings.only(True, "sparse_causal")
    settings.only(None, "sparse_top_k")
    settings.only(None, "sparse_local_num")
    # the released 3.0 is more than all there is, like no limit
    settings.only(3.0, "sparse_kv_ratio")
    settings.without_effect("sparse_causal", "sparse_use_kernel")
    return {
        "use_sparse_attention": sparse,
        "block_size": settings.take((2, 8, 8), "block_size", "sparse_block_size"),
        "top_k_ratio": settings.take(1.0, "top_k_ratio", "sparse_top_k_ratio"),
        "local_range": settings.take(9, "local_range", "sparse_local_range"),
        "chunk_size": settings.take(2, "chunk_size", "stream_chunk_size"),
        "reference_tokens": settings.take(1560, "reference_tokens", "sparse_ref_spatial_tokens", or_none=1560),
        "prediction_type": settings.take("flow", "prediction_type"),
        "condition_noise": settings.take(None, "condition_noise", or_none=0.0),
    }


def _generator_config(settings: Settings) -> dict[str, Any]:
    first_chunk = settings.take(None, "first_chunk_frames", or_none=1)
    if (independent := settings.take(None, "independent_first_frame", or_none=True)) is not None:
        if first_chunk not in (None, 1) or (first_chunk == 1 and not independent):
            raise ValueError(
                f"settings `first_chunk_frames` ({first_chunk}) and `independent_first_frame` ({independent}) "
                "contradict each other"
            )
        first_chunk = 1 if independent else None
    return {
        "frames_per_chunk": settings.take(3, "frames_per_chunk", "num_frame_per_block"),
        "first_chunk_frames": first_chunk,
        "window_frames": settings.take(None, "window_frames", "local_attn_size", or_none=12),
        "sink_frames": settings.take(0, "sink_frames", "sink_size"),
        "denoising_steps": settings.take_numbers(_RELEASED_STEPS, "denoising_steps", "denoising_step_list") or (),
        "first_chunk_denoising_steps": settings.take_numbers(
            None, "first_chunk_denoising_steps", "denoising_step_list_first_chunk"
        ),
        "flow_shift": _flow_shift(settings),
        "context_noise": settings.take(0.0, "context_noise"),
        **_prompt_change(settings),
    }


def _flow_shift(settings: Settings) -> float:
    """Published lists are warped by the shift where `warp_denoising_step` says so, as in all released generators."""
    shift = settings.take(5.0, "flow_shift", "timestep_shift", "shift")
    if settings.take(True, "warp_denoising_step"):
        return shift
    settings.without_effect("timestep_shift", "shift")  # the list is of timesteps as they are
    return 1.0


def _prompt_change(settings: Settings) -> dict[str, bool]:
    """LongLive's `global_sink` keeps the sink's keys when a new prompt has the cache recomputed, and nothing else."""
    global_sink = settings.take(None, "global_sink", or_none=True)
    recompute_sink = settings.take(not global_sink, "recompute_sink")
    if recompute_sink is global_sink:
        raise ValueError(
            f"settings `recompute_sink` ({recompute_sink}) and `global_sink` ({global_sink}) contradict each other"
        )
    recompute = settings.take(global_sink is not None, "recompute_on_prompt_change")
    if global_sink is not None and not recompute:
        settings.without_effect("global_sink")
    return {"recompute_on_prompt_change": recompute, "recompute_sink": recompute_sink}
