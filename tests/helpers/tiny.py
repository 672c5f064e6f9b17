# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Real networks at the smallest sizes, with random weights that are the same in every process."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from ultraflash_diffusers import (
    CausalLatentUpsampler,
    CausalWanTransformer,
    HRAutoencoder,
    UltraFlashSRTransformer,
    UltraFlashStreamingPipeline,
)

LATENT_CHANNELS = 4
SPATIAL_RATIO = 4
TEMPORAL_RATIO = 4
TEXT_DIM = 8
TEXT_LENGTH = 6
WORDS = ("a", "red", "blue", "ball", "rolls", "cat", "over", "the", "table")
_WAN_SIZES: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "out_channels": LATENT_CHANNELS,
    "text_dim": TEXT_DIM,
    "text_length": TEXT_LENGTH,
    "freq_dim": 16,
    "ffn_dim": 32,
}


def make_tiny_autoencoder(**config: Any) -> HRAutoencoder:
    """Compresses 4 x 4 pixels and 4 frames; `config` overrides."""
    settings: dict[str, Any] = {
        "variant": "ultra",
        "latent_space": "tiny",
        "latent_channels": LATENT_CHANNELS,
        "patch_size": 2,
        "encoder_channels": (8, 8),
        "encoder_blocks": (1, 1),
        "encoder_spatial_strides": (2, 1),
        "encoder_temporal_strides": (2, 2),
        "decoder_channels": (8, 8),
        "decoder_blocks": (1, 1),
        "decoder_spatial_strides": (2, 1),
        "decoder_temporal_strides": (2, 2),
    }
    return _seeded(HRAutoencoder, 1, settings | config)


def make_tiny_upsampler(**config: Any) -> CausalLatentUpsampler:
    """Two times larger; `config` overrides."""
    channels = {"in_channels": LATENT_CHANNELS, "out_channels": LATENT_CHANNELS}
    return _seeded(CausalLatentUpsampler, 2, {"channels": (8,), "num_blocks": (2,), **channels} | config)


def make_tiny_transformer(**config: Any) -> UltraFlashSRTransformer:
    """Two sparse layers whose blocks are small enough for the selection to matter; `config` overrides."""
    settings = _WAN_SIZES | {
        "in_channels": 2 * LATENT_CHANNELS,
        "num_layers": 2,
        "block_size": (2, 2, 2),
        "local_range": 3,
        "top_k_ratio": 0.5,
        "reference_tokens": None,
    }
    return _seeded(UltraFlashSRTransformer, 3, settings | config)


def make_tiny_generator(**config: Any) -> CausalWanTransformer:
    """One layer, chunks of three frames, a rolling window of six; `config` overrides."""
    settings = _WAN_SIZES | {"in_channels": LATENT_CHANNELS, "num_layers": 1, "window_frames": 6, "sink_frames": 1}
    return _seeded(CausalWanTransformer, 4, settings | config)


def make_tiny_text_encoder() -> tuple[UMT5EncoderModel, PreTrainedTokenizerFast]:
    """A text encoder and its tokenizer, which knows `WORDS`."""
    vocabulary = {word: number for number, word in enumerate(("<pad>", "</s>", "<unk>", *WORDS))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    config = UMT5Config(vocab_size=len(vocabulary), d_model=TEXT_DIM, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        text_encoder = UMT5EncoderModel(config).eval()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    return text_encoder, fast


def make_tiny_pipeline(
    *, text: bool = True, generator: bool = True, scale: int = 2, group_frames: int = 4, **config: Any
) -> UltraFlashStreamingPipeline:
    """A whole pipeline, silent, on the CPU, in float32.

    Args:
        text (`bool`): with a text encoder and tokenizer.
        generator (`bool`): with the text-to-video generator.
        scale (`int`): of the upsampler.
        group_frames (`int`): latent frames of an SR group.
        config: of the pipeline, for instance `condition_noise`; a component's name gives another component.
    """
    text_encoder, tokenizer = make_tiny_text_encoder() if text else (None, None)
    components: dict[str, Any] = {
        "transformer": make_tiny_transformer(),
        "latent_upsampler": make_tiny_upsampler(scale=scale),
        "autoencoder": make_tiny_autoencoder(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=1.5),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "generator_transformer": make_tiny_generator() if generator else None,
        "default_height": 32,
        "default_width": 48,
        "default_num_frames": 9,
        "default_fps": 12,
    }
    pipe = UltraFlashStreamingPipeline(**components | {"group_frames": group_frames} | config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _seeded(network_class: type, seed: int, config: dict[str, Any]) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = network_class(**config).eval()
        for parameter in network.parameters():
            # layers that start at zero would hide what reaches them
            if not parameter.any():
                parameter.data.normal_(std=0.1)
    return network.requires_grad_(False)
