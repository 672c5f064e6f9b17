# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Base of the two Wan-shaped transformers: the parts, the checks of their inputs, the way from latents to latents.

Weights are named as in diffusers' `WanTransformer3DModel`, so that Wan weights and Wan LoRAs load.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, cast

import torch
import torch.nn.functional as F
from diffusers import ContextParallelConfig
from diffusers.configuration_utils import FrozenDict
from diffusers.loaders import PeftAdapterMixin
from diffusers.models._modeling_parallel import ParallelConfig
from diffusers.models.attention import AttentionMixin
from diffusers.models.normalization import FP32LayerNorm
from diffusers.models.transformers.transformer_wan import WanAttention
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn

from .checks import check_video_tensor
from .context_parallel import ContextParallel, SharedAttention, make_context_parallel
from .loading import Network, check_layers
from .state_chain import shapes_are_static
from .stream_state import StreamState
from .wan_layers import (
    Attend,
    CausalWanBlock,
    Text,
    WanAttnProcessor,
    WanConditionEmbedder,
    modulate,
    rotary_embedding,
)

State = TypeVar("State", bound=StreamState)


@dataclass
class TextKeyValues(StreamState):
    """A prompt as the blocks' cross-attention uses it, the same in all calls: see [`WanBackbone.encode_text`].

    Args:
        keys (`list[torch.Tensor]`): one a layer, `[batch, text_length, heads, head_dim]`, after their norm.
        values (`list[torch.Tensor]`): likewise.
        summary (`torch.Tensor`, *optional*): `[batch, text_dim]`, for networks with a seed code.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    summary: torch.Tensor | None = None

    def expand(self, batch_size: int) -> TextKeyValues:
        """Returns the same prompt for `batch_size` samples."""
        return self.map_tensors(lambda tensor: tensor.expand(batch_size, *tensor.shape[1:]))


class WanBackbone(Network, PeftAdapterMixin, AttentionMixin):
    """Base of the two transformers: the parts, the checks of their inputs and the way from latents to latents.

    diffusers' `CacheMixin` is left out on purpose: its caches skip blocks and keep hidden states in hooks, while a
    stream's memory here is explicit and each chunk needs few steps.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["CausalWanBlock"]
    _repeated_blocks = ["CausalWanBlock"]
    _keep_in_fp32_modules = ["time_embedder", "scale_shift_table", "norm1", "norm2", "norm3", "seed_code_embedding"]
    _skip_layerwise_casting_patterns = ["patch_embedding", "position_embedding", "condition_embedder", "norm"]
    _skip_keys = ["state"]
    # a plan's dimensions cannot say "a part of each frame": `_transform` splits and gathers
    _cp_plan: ClassVar[dict[str, Any]] = {}
    _context_parallel: ContextParallel | None = None

    def enable_parallelism(
        self, *, config: ParallelConfig | ContextParallelConfig, cp_plan: Mapping[str, Any] | None = None
    ) -> None:
        """Shares the tokens of each call among processes, which all make the same calls; see diffusers' `ModelMixin`.

        Whole clips and streams give what they give in one process, and so do gradients that are averaged over the
        processes. The state of a stream is a process' own: with `ulysses_degree` it holds a part of the heads.

        Args:
            config (`ContextParallelConfig` or `ParallelConfig`): `ulysses_degree`, which has to divide the number of
                heads, `ring_degree`, for dense attention, or both; a `mesh` where there are more processes.
            cp_plan (*optional*): none but the network's own.

        Raises:
            RuntimeError: it was enabled before, or `torch.distributed` is not initialised.
            ValueError: degrees that do not fit the network or the processes, a plan, or tensor parallelism.
        """
        if self._context_parallel is not None:
            raise RuntimeError(f"`enable_parallelism` was called before on this {type(self).__name__}")
        if cp_plan:
            raise ValueError(f"`cp_plan` must be left out: a {type(self).__name__} shares frames by itself")
        sparse = bool(self.config.get("use_sparse_attention"))
        heads = self.config.num_attention_heads
        self._parallel_config, self._context_parallel = make_context_parallel(config, heads, self.device, sparse)

    @property
    def _cached_config(self) -> FrozenDict:
        """The config of what caches hold: this process' heads."""
        if self._context_parallel is None:
            return self.config
        heads = self.config.num_attention_heads // self._context_parallel.head_parts
        return FrozenDict({**self.config, "num_attention_heads": heads})

    def _build(self) -> None:
        """Makes the modules from the config."""
        config = self.config
        if config.qk_norm != "rms_norm_across_heads":
            raise ValueError(f"`qk_norm` must be 'rms_norm_across_heads', got {config.qk_norm!r}")
        if len(config.patch_size) != 3 or min(config.patch_size) < 1:
            raise ValueError(f"`patch_size` must be three positive integers (t, h, w), got {config.patch_size}")
        if config.attention_head_dim % 2:
            raise ValueError(f"`attention_head_dim` must be even, got {config.attention_head_dim}")
        check_layers("num_layers", config.num_layers)
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
        condition: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, list[Any]]:
        """The way to the last layer's tokens; `timestep` is `[batch, n]`, `attends` one function a layer.

        `condition`, `[batch, frames, dim]`, is added to the timesteps' embedding.
        """
        config = self.config
        rotary_emb = rotary_embedding(offset, grid, config.attention_head_dim)
        tokens = self._embed_patches(hidden_states, grid)
        shared = self._context_parallel
        if shared is not None:
            shared.check(grid)
            tokens, *rotary = (shared.split(tensor, grid[0]) for tensor in (tokens, *rotary_emb))
            rotary_emb = (rotary[0], rotary[1])
            attends = [SharedAttention(attend, shared, grid[0]) for attend in attends]
        texts: Sequence[Text]
        if isinstance(encoder_hidden_states, TextKeyValues):
            embedding, modulation, _ = self.condition_embedder(timestep, None, hidden_states.dtype, condition)
            texts = list(zip(encoder_hidden_states.keys, encoder_hidden_states.values, strict=True))
        else:
            padded = self._padded_text(encoder_hidden_states)
            embedding, modulation, text = self.condition_embedder(timestep, padded, hidden_states.dtype, condition)
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
        tokens = self.proj_out(tokens)
        return tokens if shared is None else shared.gather(tokens, grid[0]), caches

    def _unpatchify(self, tokens: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
        t, h, w = self.config.patch_size
        patches = tokens.unflatten(2, (t, h, w, -1)).unflatten(1, grid)
        return patches.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)
