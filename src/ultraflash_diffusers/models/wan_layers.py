# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The layers of the two Wan-shaped transformers.

Weights are named as in diffusers' `WanTransformer3DModel`. How self-attention looks at the past is decided by a
function that each call passes to each block; modules keep nothing between calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.embeddings import PixArtAlphaTextProjection, TimestepEmbedding
from diffusers.models.normalization import FP32LayerNorm
from diffusers.models.transformers.transformer_wan import WanAttention
from torch import nn

from .token_parts import in_parts

# (query, key, value after RoPE, [batch, tokens, heads, head_dim], backend for what is dense) -> (output, next cache)
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, AttentionBackendName], tuple[torch.Tensor, Any]]

# embedded text `[batch, text_length, dim]`, or one layer's keys and values of it
Text = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


def rotary_embedding(
    offset: torch.Tensor, grid: tuple[int, int, int], head_dim: int, theta: float = 10000.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of the rotary angles of a group of frames, computed in float64 at any distance.

    Args:
        offset (`torch.Tensor`, 0-d int64): position of the first frame in the stream.
        grid (`tuple[int, int, int]`): tokens over time, height and width.
        head_dim (`int`): channels of a head; `2 (d // 6)` of them stand for the row, as many for the column, the rest
            for time.
        theta (`float`, *optional*, defaults to 10000.0): base of the frequencies.

    Returns:
        `tuple`: two float32 tensors of shape `[1, t * h * w, 1, head_dim / 2]`.
    """
    # MPS has no float64: the few numbers are computed on the CPU and sent over
    device = torch.device("cpu") if offset.device.type == "mps" else offset.device
    spatial = 2 * (head_dim // 6)
    angles = []
    for axis, channels in enumerate((head_dim - 2 * spatial, spatial, spatial)):
        positions = torch.arange(grid[axis], device=device, dtype=torch.float64)
        if axis == 0:
            positions = positions + offset.to(device)
        exponents = torch.arange(0, channels, 2, device=device, dtype=torch.float64) / channels
        shape = [1, 1, 1, -1]
        shape[axis] = grid[axis]
        angles.append(torch.outer(positions, theta**-exponents).view(shape).expand(*grid, -1))
    combined = torch.cat(angles, dim=-1).reshape(1, math.prod(grid), 1, -1)
    return combined.cos().float().to(offset.device), combined.sin().float().to(offset.device)


def apply_rotary(tensor: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates interleaved channel pairs of `[batch, tokens, heads, head_dim]`."""
    even, odd = tensor.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).type_as(tensor)


class WanAttnProcessor:
    """Projections, norms and RoPE of a Wan attention layer around the attention that the call brings along.

    `_attention_backend` is set from the start: diffusers' process-wide backend, which another pipeline may change,
    does not reach this network, while its own `set_attention_backend` does.
    """

    _attention_backend = AttentionBackendName.NATIVE
    _parallel_config = None

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_mask: None = None,
        rotary_emb: tuple[torch.Tensor, ...] = (),
        **self_attention: Any,
    ) -> tuple[torch.Tensor, Any]:
        """Cross-attention to the given keys and values, or self-attention by the arguments of `_attend`."""
        if encoder_hidden_states is None:
            output, cache = self._attend(attn, hidden_states, rotary_emb, **self_attention)
        else:
            key, value = encoder_hidden_states
            query = attn.norm_q(attn.to_q(hidden_states)).type_as(value).unflatten(2, (attn.heads, -1))
            output, cache = dispatch_attention_fn(query, key, value, backend=self._attention_backend), None
        output = output.flatten(2, 3).type_as(hidden_states)
        return attn.to_out[1](attn.to_out[0](output)), cache

    def _attend(
        self,
        attn: WanAttention,
        hidden_states: torch.Tensor,
        rotary_emb: tuple[torch.Tensor, ...],
        norm: nn.Module,
        modulation: tuple[torch.Tensor, torch.Tensor],
        attend: Attend,
    ) -> tuple[torch.Tensor, Any]:
        """`attend` over what is made of the normed and modulated `hidden_states`."""
        query, key, value = self._project(hidden_states, *rotary_emb, attn=attn, norm=norm, modulation=modulation)
        return attend(query, key, value, self._attention_backend)

    @staticmethod
    def text_key_value(attn: WanAttention, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys and values of the embedded text, as `__call__` takes them."""
        if attn.fused_projections:
            key, value = attn.to_kv(text).chunk(2, dim=-1)
        else:
            key, value = attn.to_k(text), attn.to_v(text)
        key = attn.norm_k(key).type_as(value)
        return key.unflatten(2, (attn.heads, -1)), value.unflatten(2, (attn.heads, -1))

    @staticmethod
    @in_parts
    def _project(
        tokens: torch.Tensor,
        *rotary_emb: torch.Tensor,
        attn: WanAttention,
        norm: nn.Module,
        modulation: tuple[torch.Tensor, torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        """Queries and keys after RoPE, and values, all `[batch, tokens, heads, head_dim]`."""
        tokens = modulate(norm(tokens.float()), *modulation).type_as(tokens)
        if attn.fused_projections:
            query, key, value = attn.to_qkv(tokens).chunk(3, dim=-1)
        else:
            query, key, value = attn.to_q(tokens), attn.to_k(tokens), attn.to_v(tokens)
        # one dtype for all three: under autocast the norms stay in float32
        query, key = attn.norm_q(query).type_as(value), attn.norm_k(key).type_as(value)
        query, key, value = (tensor.unflatten(2, (attn.heads, -1)) for tensor in (query, key, value))
        return apply_rotary(query, *rotary_emb), apply_rotary(key, *rotary_emb), value


class FramePositionEmbedding(nn.Module):
    """Embeds where in the frame a token lies, which rotary embeddings, being relative, do not say.

    Sinusoids of a few octaves of the row and column, as shares of the height and width, through a linear layer.
    """

    octaves = 5

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(4 * self.octaves, dim)

    def forward(self, grid: tuple[int, int, int]) -> torch.Tensor:
        """Returns `[1, t * h * w, dim]` for `grid` = (t, h, w): the same for each of the t frames."""
        weight = self.proj.weight
        rows, columns = (
            (torch.arange(size, device=weight.device, dtype=torch.float32) + 0.5) / size for size in grid[1:]
        )
        places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)
        octaves = torch.pi * 2.0 ** torch.arange(self.octaves, device=weight.device)
        angles = (places[..., None] * octaves).flatten(1)
        frame = self.proj(torch.cat([angles.cos(), angles.sin()], dim=-1).to(weight.dtype))
        return frame.repeat(grid[0], 1)[None]


class WanConditionEmbedder(nn.Module):
    """Embeds the timesteps (in float64, cosines first) and the text."""

    def __init__(self, dim: int, freq_dim: int, text_dim: int) -> None:
        super().__init__()
        self.freq_dim = freq_dim
        self.time_embedder = TimestepEmbedding(in_channels=freq_dim, time_embed_dim=dim)
        self.act_fn = nn.SiLU()
        self.time_proj = nn.Linear(dim, 6 * dim)
        self.text_embedder = PixArtAlphaTextProjection(text_dim, dim, act_fn="gelu_tanh")

    def forward(
        self,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None,
        dtype: torch.dtype,
        condition: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Returns the time embedding `[batch, n, dim]`, its projection `[batch, n, 6, dim]` and the text's, if any.

        A `condition`, `[batch, frames, dim]`, is added to the time embedding, which then is one a frame.
        """
        embedding = self.time_embedder(self._sinusoids(timestep)).to(dtype)
        embedding = embedding if condition is None else embedding + condition
        modulation = self.time_proj(self.act_fn(embedding)).unflatten(-1, (6, -1))
        text = None if encoder_hidden_states is None else self.text_embedder(encoder_hidden_states)
        return embedding, modulation, text

    def _sinusoids(self, timestep: torch.Tensor) -> torch.Tensor:
        half = self.freq_dim // 2
        precise = torch.float32 if timestep.device.type == "mps" else torch.float64
        frequencies = 10000.0 ** (-torch.arange(half, device=timestep.device, dtype=precise) / half)
        angles = timestep.to(precise).unsqueeze(-1) * frequencies
        sinusoids = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return sinusoids.to(self.time_embedder.linear_1.weight.dtype)


class CausalWanBlock(nn.Module):
    """A Wan transformer block whose self-attention takes its view of the past from the call."""

    def __init__(self, dim: int, ffn_dim: int, num_heads: int, cross_attn_norm: bool, eps: float) -> None:
        super().__init__()
        head_dim = dim // num_heads
        self.norm1 = FP32LayerNorm(dim, eps, elementwise_affine=False)
        self.attn1 = WanAttention(dim, num_heads, head_dim, eps, processor=WanAttnProcessor())
        self.attn2 = WanAttention(
            dim, num_heads, head_dim, eps, cross_attention_dim_head=head_dim, processor=WanAttnProcessor()
        )
        self.norm2 = FP32LayerNorm(dim, eps, elementwise_affine=True) if cross_attn_norm else nn.Identity()
        self.ffn = FeedForward(dim, inner_dim=ffn_dim, activation_fn="gelu-approximate")
        self.norm3 = FP32LayerNorm(dim, eps, elementwise_affine=False)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: Text,
        modulation: torch.Tensor,
        rotary_emb: tuple[torch.Tensor, torch.Tensor],
        attend: Attend,
    ) -> tuple[torch.Tensor, Any]:
        """Runs the block.

        Args:
            hidden_states (`torch.Tensor` of shape `[batch, tokens, dim]`): tokens in raster order.
            encoder_hidden_states (`torch.Tensor` of shape `[batch, text_length, dim]`): the embedded text; or the keys
                and values of it, both `[batch, text_length, heads, head_dim]`.
            modulation (`torch.Tensor` of shape `[batch, n, 6, dim]`): one a sample (`n` = 1) or one a frame.
            rotary_emb (`tuple[torch.Tensor, torch.Tensor]`): see [`rotary_embedding`].
            attend (`Attend`): self-attention over these tokens and what the stream remembers.

        Returns:
            `tuple`: the new hidden states, and what `attend` returned as its next cache.
        """
        table = self.scale_shift_table.unsqueeze(0) + modulation.float()
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = table.unsqueeze(3).unbind(2)
        text = encoder_hidden_states
        if isinstance(text, torch.Tensor):
            text = WanAttnProcessor.text_key_value(self.attn2, text)

        # 1. Self-attention
        attended, cache = self.attn1(
            hidden_states, rotary_emb=rotary_emb, norm=self.norm1, modulation=(shift, scale), attend=attend
        )
        hidden_states = gated_sum(hidden_states, attended, modulation=(gate,))
        del attended

        # 2. Cross-attention
        hidden_states = self._attend_text(hidden_states, text=text)

        # 3. Feed-forward
        return self._feed_forward(hidden_states, modulation=(ffn_shift, ffn_scale, ffn_gate)), cache

    @in_parts
    def _attend_text(self, tokens: torch.Tensor, *, text: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        normed = self.norm2(tokens.float()).type_as(tokens)
        return tokens + self.attn2(normed, text)[0]

    @in_parts
    def _feed_forward(self, tokens: torch.Tensor, *, modulation: tuple[torch.Tensor, ...]) -> torch.Tensor:
        shift, scale, gate = modulation
        normed = modulate(self.norm3(tokens.float()), shift, scale).type_as(tokens)
        return gated_sum(tokens, self.ffn(normed), modulation=(gate,))


def modulate(hidden_states: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Scales and shifts `[batch, tokens, dim]` by `[batch, n, 1, dim]`: equal parts of the tokens, one row each."""
    return torch.addcmul(shift, hidden_states.unflatten(1, (shift.shape[1], -1)), 1 + scale).flatten(1, 2)


@in_parts
def gated_sum(hidden_states: torch.Tensor, update: torch.Tensor, *, modulation: tuple[torch.Tensor]) -> torch.Tensor:
    """Adds `update` times a gate (`[batch, n, 1, dim]`, as in [`modulate`]) in float32."""
    (gate,) = modulation
    update = (update.float().unflatten(1, (gate.shape[1], -1)) * gate).flatten(1, 2)
    return (hidden_states.float() + update).type_as(hidden_states)
