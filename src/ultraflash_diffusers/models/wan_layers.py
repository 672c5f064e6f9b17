# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the two Wan-shaped transformers share: blocks, embeddings and the way through them.

Weights are named as in diffusers' `WanTransformer3DModel`, so that Wan weights and Wan LoRAs load. How self-attention
looks at the past is decided by a function that each call passes to each block; modules keep nothing between calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin, FeedForward
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.embeddings import PixArtAlphaTextProjection, TimestepEmbedding
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.normalization import FP32LayerNorm
from diffusers.models.transformers.transformer_wan import WanAttention
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn

from .checks import check_video_tensor
from .frame_kv_cache import shapes_are_static
from .stream_state import StreamState

State = TypeVar("State", bound=StreamState)

# (query, key, value after RoPE, [batch, tokens, heads, head_dim], backend for what is dense) -> (output, next cache)
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, AttentionBackendName], tuple[torch.Tensor, Any]]


@dataclass
class TextKeyValues(StreamState):
    """A prompt as the blocks' cross-attention uses it, the same in all calls: see [`WanBackbone.encode_text`].

    Args:
        keys (`list[torch.Tensor]`): one a layer, `[batch, text_length, heads, head_dim]`, after their norm.
        values (`list[torch.Tensor]`): likewise.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]

    def expand(self, batch_size: int) -> TextKeyValues:
        """Returns the same prompt for `batch_size` samples."""
        return self.map_tensors(lambda tensor: tensor.expand(batch_size, -1, -1, -1))


# tokens that go together through what looks at each of them alone, where there is no backward pass: many enough for
# full speed, few enough for float32 copies and the wide feed-forward layers to be small beside a clip's tokens
_PART_TOKENS = 12288

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


def in_parts(
    function: Callable[..., tuple[torch.Tensor, ...]], *inputs: torch.Tensor, split: bool = True
) -> tuple[torch.Tensor, ...]:
    """Applies a function that treats each token alone to some tokens after the others, which takes less memory.

    Args:
        function (`Callable`): takes and returns tensors of shape `[batch, tokens, ...]`.
        inputs (`torch.Tensor`): its arguments.
        split (`bool`, *optional*, defaults to `True`): whether it may be; gradients need everything at once anyway.
    """
    count = -(-inputs[0].shape[1] // _PART_TOKENS)
    if count == 1 or not split or torch.is_grad_enabled():
        return function(*inputs)
    parts = [function(*part) for part in zip(*(tensor.chunk(count, dim=1) for tensor in inputs), strict=True)]
    outputs = [list(each) for each in zip(*parts, strict=True)]
    del parts  # so that each output's parts go as soon as it is whole
    return tuple(torch.cat(outputs.pop(0), dim=1) for _ in range(len(outputs)))


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
        norm: Callable[[torch.Tensor], torch.Tensor],
        attend: Attend,
        split: bool,
    ) -> tuple[torch.Tensor, Any]:
        """`attend` over what is made of `norm(hidden_states)`; see [`in_parts`] for `split`."""

        def project(tokens: torch.Tensor, *rotary: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return self._project(attn, norm(tokens), rotary)

        query, key, value = in_parts(project, hidden_states, *rotary_emb, split=split)
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
    def _project(
        attn: WanAttention, tokens: torch.Tensor, rotary_emb: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, ...]:
        """Queries and keys after RoPE, and values, all `[batch, tokens, heads, head_dim]`."""
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
        self, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor | None, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Returns the time embedding `[batch, n, dim]`, its projection `[batch, n, 6, dim]` and the text's, if any."""
        embedding = self.time_embedder(self._sinusoids(timestep)).to(dtype)
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
        split = modulation.shape[1] == 1  # parts need not be whole frames

        def norm(tokens: torch.Tensor) -> torch.Tensor:
            return modulate(self.norm1(tokens.float()), shift, scale).type_as(tokens)

        def finish(tokens: torch.Tensor, attended: torch.Tensor) -> tuple[torch.Tensor]:
            tokens = gated_sum(tokens, attended, gate)
            normed = self.norm2(tokens.float()).type_as(tokens)
            tokens = tokens + self.attn2(normed, text)[0]
            normed = modulate(self.norm3(tokens.float()), ffn_shift, ffn_scale).type_as(tokens)
            return (gated_sum(tokens, self.ffn(normed), ffn_gate),)

        attended, cache = self.attn1(hidden_states, rotary_emb=rotary_emb, norm=norm, attend=attend, split=split)
        return in_parts(finish, hidden_states, attended, split=split)[0], cache


def modulate(hidden_states: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Scales and shifts `[batch, tokens, dim]` by `[batch, n, 1, dim]`: equal parts of the tokens, one row each."""
    return torch.addcmul(shift, hidden_states.unflatten(1, (shift.shape[1], -1)), 1 + scale).flatten(1, 2)


def gated_sum(hidden_states: torch.Tensor, update: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """Adds `update` times `gate` (`[batch, n, 1, dim]`, as in [`modulate`]) in float32."""
    update = (update.float().unflatten(1, (gate.shape[1], -1)) * gate).flatten(1, 2)
    return (hidden_states.float() + update).type_as(hidden_states)


class WanBackbone(ModelMixin, ConfigMixin, PeftAdapterMixin, AttentionMixin):
    """Base of the two transformers: the parts, the checks of their inputs and the way from latents to latents.

    diffusers' `CacheMixin` is left out on purpose: its caches skip blocks and keep hidden states in hooks, while a
    stream's memory here is explicit and each chunk needs few steps.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["CausalWanBlock"]
    _repeated_blocks = ["CausalWanBlock"]
    _keep_in_fp32_modules = ["time_embedder", "scale_shift_table", "norm1", "norm2", "norm3"]
    _skip_layerwise_casting_patterns = ["patch_embedding", "position_embedding", "condition_embedder", "norm"]
    _skip_keys = ["state"]

    def _build(self) -> None:
        """Makes the modules from the config."""
        config = self.config
        if config.qk_norm != "rms_norm_across_heads":
            raise ValueError(f"`qk_norm` must be 'rms_norm_across_heads', got {config.qk_norm!r}")
        if len(config.patch_size) != 3 or min(config.patch_size) < 1:
            raise ValueError(f"`patch_size` must be three positive integers (t, h, w), got {config.patch_size}")
        if config.attention_head_dim % 2:
            raise ValueError(f"`attention_head_dim` must be even, got {config.attention_head_dim}")
        dim = config.num_attention_heads * config.attention_head_dim
        self.patch_embedding = nn.Conv3d(
            config.in_channels, dim, kernel_size=tuple(config.patch_size), stride=tuple(config.patch_size)
        )
        self.condition_embedder = WanConditionEmbedder(dim, config.freq_dim, config.text_dim)
        self.blocks = nn.ModuleList(
            CausalWanBlock(dim, config.ffn_dim, config.num_attention_heads, config.cross_attn_norm, config.eps)
            for _ in range(config.num_layers)
        )
        self.norm_out = FP32LayerNorm(dim, config.eps, elementwise_affine=False)
        self.proj_out = nn.Linear(dim, config.out_channels * math.prod(config.patch_size))
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)
        self.gradient_checkpointing = False

    @apply_forward_hook
    def encode_text(self, encoder_hidden_states: torch.Tensor) -> TextKeyValues:
        """Computes what all calls with one prompt share; they take it in the place of `encoder_hidden_states`.

        It holds for the weights, adapters included, with which it was made.

        Args:
            encoder_hidden_states (`torch.Tensor` of shape `[batch, up to text_length, text_dim]`): the prompt.

        Raises:
            ValueError: a text of another size or dtype than the network's.
        """
        self._check_text(encoder_hidden_states, encoder_hidden_states.shape[0], self.dtype)
        text = self.condition_embedder.text_embedder(self._padded_text(encoder_hidden_states))
        pairs = [WanAttnProcessor.text_key_value(cast(WanAttention, block.attn2), text) for block in self.blocks]
        return TextKeyValues([key for key, _ in pairs], [value for _, value in pairs])

    def _padded_text(self, text: torch.Tensor) -> torch.Tensor:
        return F.pad(text, (0, 0, 0, self.config.text_length - text.shape[1]))

    def _shapes_are_static(self) -> bool:
        """Whether shapes may not depend on how far a stream is: all of a call, or its blocks alone, are compiled."""
        return shapes_are_static() or any(block._compiled_call_impl is not None for block in self.blocks)

    @staticmethod
    def _stream_dtype(device: torch.device | str, dtype: torch.dtype) -> torch.dtype:
        """The dtype that keys and values will have for latents of `dtype`."""
        kind = torch.device(device).type
        autocast = kind != "meta" and torch.is_autocast_enabled(kind)  # there is none on the meta device
        return torch.get_autocast_dtype(kind) if autocast else dtype

    def _own_buffers(self, state: State) -> State:
        """The state for a call; its own copy where the backward pass will compute it again from the same buffers."""
        return state.clone() if self.gradient_checkpointing and torch.is_grad_enabled() else state

    def _token_grid(self, size: Sequence[int], name: str) -> tuple[int, int, int]:
        """Tokens over time, height and width of latents of `size` = (frames, height, width)."""
        patch = self.config.patch_size
        if any(length % side for length, side in zip(size, patch, strict=True)):
            raise ValueError(
                f"`{name}` has frames, height, width {tuple(size)}, which `patch_size` {tuple(patch)} does not divide"
            )
        frames, height, width = (length // side for length, side in zip(size, patch, strict=True))
        return frames, height, width

    def _check_inputs(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor | TextKeyValues,
        timestep_shapes: tuple[tuple[int, ...], ...],
    ) -> None:
        batch = hidden_states.shape[0]
        if not isinstance(timestep, torch.Tensor):
            raise TypeError(f"`timestep` must be a torch.Tensor, got {type(timestep).__name__}")
        if tuple(timestep.shape) not in timestep_shapes:
            expected = " or ".join(str(list(shape)) for shape in timestep_shapes)
            raise ValueError(f"`timestep` must have shape {expected}, got {list(timestep.shape)}")
        if isinstance(encoder_hidden_states, TextKeyValues):
            self._check_text_key_values(encoder_hidden_states, batch)
        else:
            self._check_text(encoder_hidden_states, batch, hidden_states.dtype)

    def _check_text(self, text: torch.Tensor, batch: int, dtype: torch.dtype) -> None:
        length = self.config.text_length
        if not isinstance(text, torch.Tensor):
            raise TypeError(f"`encoder_hidden_states` must be a torch.Tensor, got {type(text).__name__}")
        if text.ndim != 3 or text.shape[0] != batch or text.shape[2] != self.config.text_dim:
            raise ValueError(
                f"`encoder_hidden_states` must have shape [{batch}, up to {length}, {self.config.text_dim}] for "
                f"`hidden_states` of {batch} samples, got {list(text.shape)}"
            )
        if text.shape[1] > length:
            raise ValueError(
                f"`encoder_hidden_states` has {text.shape[1]} tokens, the network's `text_length` is {length}: "
                "truncate the prompt"
            )
        if text.dtype != dtype:
            raise ValueError(f"`encoder_hidden_states` has dtype {text.dtype}, `hidden_states` {dtype}")

    def _check_text_key_values(self, text: TextKeyValues, batch: int) -> None:
        config = self.config
        heads = (config.num_attention_heads, config.attention_head_dim)
        found = (len(text.keys), *text.keys[0].shape)
        expected = (config.num_layers, batch, config.text_length, *heads)
        if found != expected:
            raise ValueError(
                "`encoder_hidden_states` was encoded for (layers, batch, text length, heads, head channels) "
                f"{found}, this network and `hidden_states` need {expected}"
            )

    def _check_latents(self, hidden_states: torch.Tensor) -> tuple[int, int, int]:
        """Checks the latents and returns their size in tokens."""
        check_video_tensor("hidden_states", hidden_states, self.config.in_channels, self.dtype)
        return self._token_grid(hidden_states.shape[2:], "hidden_states")

    def _embed_patches(self, hidden_states: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
        """The tokens `[batch, t * h * w, dim]` of latents whose `grid` is (t, h, w), in raster order."""
        return self.patch_embedding(hidden_states).flatten(2).transpose(1, 2).contiguous()

    def _transform(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor | TextKeyValues,
        grid: tuple[int, int, int],
        offset: torch.Tensor,
        attends: Sequence[Attend],
    ) -> tuple[torch.Tensor, list[Any]]:
        """The way through the network; `timestep` is `[batch, n]`, `attends` one function a layer."""
        config = self.config
        rotary_emb = rotary_embedding(offset, grid, config.attention_head_dim)
        tokens = self._embed_patches(hidden_states, grid)
        texts: Sequence[Text]
        if isinstance(encoder_hidden_states, TextKeyValues):
            embedding, modulation, _ = self.condition_embedder(timestep, None, hidden_states.dtype)
            texts = list(zip(encoder_hidden_states.keys, encoder_hidden_states.values, strict=True))
        else:
            padded = self._padded_text(encoder_hidden_states)
            embedding, modulation, text = self.condition_embedder(timestep, padded, hidden_states.dtype)
            texts = [text] * config.num_layers
        caches = []
        for block, block_text, attend in zip(self.blocks, texts, attends, strict=True):
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                inputs = (tokens, block_text, modulation, rotary_emb, attend)
                tokens, cache = self._gradient_checkpointing_func(block, *inputs)
            else:
                tokens, cache = block(tokens, block_text, modulation, rotary_emb, attend)
            caches.append(cache)
        shift, scale = (self.scale_shift_table.unsqueeze(0) + embedding.float().unsqueeze(2)).unsqueeze(3).unbind(2)
        tokens = modulate(self.norm_out(tokens.float()), shift, scale).type_as(tokens)
        return self._unpatchify(self.proj_out(tokens), grid), caches

    def _unpatchify(self, tokens: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
        t, h, w = self.config.patch_size
        patches = tokens.unflatten(2, (t, h, w, -1)).unflatten(1, grid)
        return patches.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)
