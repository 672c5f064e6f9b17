# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Transformers that were trained without texts, for pipelines that have some."""

from __future__ import annotations

from typing import cast

import torch
from diffusers.models.transformers.transformer_wan import WanAttention
from torch import nn

from ...models.ultraflash_sr_transformer import UltraFlashSRTransformer


@torch.no_grad()
def absorb_empty_text(transformer: UltraFlashSRTransformer) -> None:
    """Turns what the empty text contributes into biases, so that no text changes the result any more.

    Zeros stand for the empty text where there is no text encoder. All their tokens are equal, so that the attention to
    them gives the same value everywhere: a constant, to which a network that has seen no other text owes its result.

    Args:
        transformer (`UltraFlashSRTransformer`): changed in place; with the empty text it gives what it gave before.
    """
    weight = transformer.proj_out.weight
    empty = torch.zeros(1, 1, transformer.config.text_dim, dtype=weight.dtype, device=weight.device)
    text = transformer.condition_embedder.text_embedder(empty)
    for block in transformer.blocks:
        attention = cast(WanAttention, block.attn2)
        projection = cast(nn.Linear, attention.to_out[0])
        projection.bias.copy_(projection(attention.to_v(text))[0, 0])
        nn.init.zeros_(projection.weight)
