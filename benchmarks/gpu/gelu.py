# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The feed-forward's first product with GELU in its epilogue, before it is built into the package."""

from __future__ import annotations

import torch
from torch import nn

from ultraflash_diffusers import UltraFlashStreamingPipeline
from ultraflash_diffusers.models.wan_layers import CausalWanBlock


class FusedGelu(nn.Module):
    """A linear layer and the tanh form of GELU as one product.

    On a CPU the same operation takes the exact form instead, some 1e-3 away.

    Args:
        proj (`nn.Linear`): the layer.
    """

    def __init__(self, proj: nn.Linear) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """`[batch, tokens, dim]` to `[batch, tokens, ffn_dim]`."""
        rows = tokens.flatten(0, -2)
        product = torch._addmm_activation(self.proj.bias, rows, self.proj.weight.t(), use_gelu=True)
        return product.unflatten(0, tokens.shape[:-1])


def fuse_gelu(pipe: UltraFlashStreamingPipeline) -> None:
    """Puts it into all blocks of both transformers, before anything is compiled."""
    for network in (pipe.generator_transformer, pipe.transformer):
        for block in network.modules():
            if isinstance(block, CausalWanBlock):
                block.ffn.net[0] = FusedGelu(block.ffn.net[0].proj)
