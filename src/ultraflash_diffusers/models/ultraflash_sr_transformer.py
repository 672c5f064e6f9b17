# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The one-step super-resolution transformer: Wan 2.1 with a condition, block-sparse and causal over a stream."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, cast

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.utils import BaseOutput

from .attention.backends import check_backend
from .attention.block_kv_cache import BlockKVCache
from .attention.block_layout import BlockSparseSettings
from .attention.block_sparse_attention import SparseAttention
from .attention.dense_attention import BidirectionalAttention
from .attention.frame_kv_cache import FrameKVCache, check_state_tensor
from .state_chain import SingleUse, shapes_are_static
from .stream_state import StreamState
from .wan_backbone import TextKeyValues, WanBackbone
from .wan_layers import Attend

# what a config shares with WanTransformer3DModel's, apart from the input channels
_WAN_SETTINGS = (
    "patch_size",
    "num_attention_heads",
    "attention_head_dim",
    "out_channels",
    "text_dim",
    "freq_dim",
    "ffn_dim",
    "num_layers",
    "cross_attn_norm",
    "qk_norm",
    "eps",
)


@dataclass
class SRStreamState(SingleUse, StreamState):
    """State of a super-resolution stream.

    Calling again from the same state (several denoising steps) gives the same numbers; the stream goes on from the
    state of the last call. See [`BlockKVCache`] and [`FrameKVCache`] for what states of one stream share.

    A stream of one step a group needs none of that: with `single_use` each state is called from once, which a group
    overwrites, and the sparse cache takes half of the memory (at the published sizes). A second call is refused,
    whatever became of the first one; a clone from before it can be called from.

    Args:
        position (`torch.Tensor`, 0-d int64): frames done so far, in temporal patches.
        kv_cache_blocks (`torch.Tensor`, 0-d int64): the window in force, see
            [`~SRStreamState.with_kv_cache_blocks`]; a tensor, so that its change recompiles nothing.
        allocated_blocks (`int`): the widest window that there is room for.
        group_frames (`torch.Tensor`, 0-d int64): frames of the last group.
        kept_frames (`torch.Tensor`, 0-d int64): cached frames that the next group sees (dense attention only).
        cache (`list[BlockKVCache]` or `FrameKVCache`, *optional*): keys and values of sparse (one a layer) or dense
            attention; `None` until sizes are known.
        single_use (`bool`, *optional*, defaults to `False`): whether the state is called from once. Dense attention
            keeps the same cache either way.
        used (`list[bool]`, *optional*): whether it has been; one element, which copies by `dataclasses.replace` share
            like the buffers. Known to the host alone: the check costs no synchronisation.
    """

    position: torch.Tensor
    kv_cache_blocks: torch.Tensor
    allocated_blocks: int
    group_frames: torch.Tensor
    kept_frames: torch.Tensor
    cache: list[BlockKVCache] | FrameKVCache | None = None
    single_use: bool = False
    used: list[bool] = dataclasses.field(default_factory=lambda: [False])

    def with_kv_cache_blocks(self, kv_cache_blocks: int) -> SRStreamState:
        """Returns the state with another window, up to the allocated one, in force from the next group on.

        A narrower window forgets at once, as if the cache had never held more.

        Raises:
            ValueError: `kv_cache_blocks` is less than 1 or more than `allocated_blocks`.
        """
        if not 1 <= kv_cache_blocks <= self.allocated_blocks:
            raise ValueError(
                f"`kv_cache_blocks` must be 1 to {self.allocated_blocks}, with which the stream began, "
                f"got {kv_cache_blocks}"
            )
        return dataclasses.replace(
            self,
            kv_cache_blocks=torch.full_like(self.kv_cache_blocks, kv_cache_blocks),
            kept_frames=torch.minimum(self.kept_frames, kv_cache_blocks * self.group_frames),
        )


@dataclass
class UltraFlashSRTransformerOutput(BaseOutput):
    """Output of [`UltraFlashSRTransformer`].

    Args:
        sample (`torch.Tensor`): predicted flow, `[batch, out_channels, frames, height, width]`; one step is
            `clean = noisy - sigma * flow` with `sigma = timestep / 1000`.
        state (`SRStreamState`, *optional*): state for the next group; `None` after a full forward.
    """

    sample: torch.Tensor
    state: SRStreamState | None = None


class UltraFlashSRTransformer(WanBackbone):
    r"""Super-resolution transformer: refines noise and a condition (upsampled latents) in one step, group by group.

    It is the Wan 2.1 text-to-video transformer with twice the input channels. With sparse attention it is causal by
    chunks of `chunk_size` frames, at once (training) as in a stream; see [`block_sparse_attention`]. With dense
    attention the full forward is bidirectional; in a stream a group attends to itself and to the whole cache, which
    keeps the last `kv_cache_blocks` times as many frames as the group had.

    Args:
        patch_size (`tuple[int, int, int]`, *optional*, defaults to `(1, 2, 2)`): latents of a token over time, height,
            width.
        num_attention_heads (`int`, *optional*, defaults to 12): heads.
        attention_head_dim (`int`, *optional*, defaults to 128): channels of a head.
        in_channels (`int`, *optional*, defaults to 32): noisy latents, then the condition: twice `out_channels`.
        out_channels (`int`, *optional*, defaults to 16): channels of the latents.
        text_dim (`int`, *optional*, defaults to 4096): channels of the text encoder's output.
        text_length (`int`, *optional*, defaults to 512): shorter prompts are zero-padded to it; all positions are
            attended to.
        freq_dim (`int`, *optional*, defaults to 256): sinusoids of the timestep.
        ffn_dim (`int`, *optional*, defaults to 8960): width of the feed-forward layers.
        num_layers (`int`, *optional*, defaults to 30): blocks.
        cross_attn_norm (`bool`, *optional*, defaults to `True`): affine layer norm in front of cross-attention.
        qk_norm (`str`, *optional*, defaults to `"rms_norm_across_heads"`): the only one that there is.
        eps (`float`, *optional*, defaults to 1e-6): of all norms.
        use_sparse_attention (`bool`, *optional*, defaults to `True`): block-sparse or dense self-attention.
        block_size (`tuple[int, int, int]`, *optional*, defaults to `(2, 8, 8)`): see [`BlockSparseSettings`], like
            the next four.
        top_k_ratio (`float`, *optional*, defaults to 1.0): share of block pairs that are kept.
        local_range (`int`, *optional*, defaults to 9): side of the spatial window in blocks.
        chunk_size (`int`, *optional*, defaults to 2): frames that see each other whatever their order.
        reference_tokens (`int`, *optional*, defaults to 1560): tokens of the frame that `top_k_ratio` is meant for.
        prediction_type (`str`, *optional*, defaults to `"flow"`): what the last layer predicts: `"flow"` (as
            released), or `"detail"`, a correction to the condition: the clean latents are `condition + raw` and the
            returned flow is `(noisy - clean) / sigma`, so that an output layer of zeros gives the condition back.
        condition_noise (`float`, *optional*): mean share of noise in the condition in training: a pipeline's default.
    """

    @register_to_config
    def __init__(
        self,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        num_attention_heads: int = 12,
        attention_head_dim: int = 128,
        in_channels: int = 32,
        out_channels: int = 16,
        text_dim: int = 4096,
        text_length: int = 512,
        freq_dim: int = 256,
        ffn_dim: int = 8960,
        num_layers: int = 30,
        cross_attn_norm: bool = True,
        qk_norm: str = "rms_norm_across_heads",
        eps: float = 1e-6,
        use_sparse_attention: bool = True,
        block_size: tuple[int, int, int] = (2, 8, 8),
        top_k_ratio: float = 1.0,
        local_range: int = 9,
        chunk_size: int = 2,
        reference_tokens: int | None = 1560,
        prediction_type: Literal["flow", "detail"] = "flow",
        condition_noise: float | None = None,
    ) -> None:
        super().__init__()
        if prediction_type not in ("flow", "detail"):
            raise ValueError(f"`prediction_type` must be 'flow' or 'detail', got {prediction_type!r}")
        if in_channels != 2 * out_channels:
            raise ValueError(
                f"`in_channels` must be twice `out_channels` {out_channels} (noise and condition), got {in_channels}"
            )
        self._settings = BlockSparseSettings(
            cast(tuple[int, int, int], tuple(block_size)), local_range, chunk_size, top_k_ratio, reference_tokens
        )
        self._sparse_backend = "auto"
        self._build()

    @classmethod
    def from_wan(
        cls, model: WanTransformer3DModel | str | Path, subfolder: str | None = None, **overrides: Any
    ) -> Self:
        """Widens a Wan text-to-video transformer by a zero-initialised condition half (paper, "SR fine-tune").

        At the start the result's full forward is the text-to-video model's, whatever the condition is. For that it has
        dense attention, unless `use_sparse_attention=True` is among the `overrides`.

        Args:
            model (`WanTransformer3DModel`, `str` or `Path`): the transformer; or its folder, a Wan pipeline's folder
                or a repository on the Hub.
            subfolder (`str`, *optional*): where the transformer lies in the folder or repository; `"transformer"` is
                found by itself in a local pipeline folder.
            overrides: entries of this class' config, such as `text_length` or `use_sparse_attention`.

        Raises:
            ValueError: an image-to-video transformer, or one whose input is more than the noisy latents.
        """
        if not isinstance(model, WanTransformer3DModel):
            if subfolder is None and (Path(model) / "transformer").is_dir():
                subfolder = "transformer"
            model = WanTransformer3DModel.from_pretrained(model, subfolder=subfolder)
        source = model.config
        if source.image_dim is not None or source.added_kv_proj_dim is not None:
            raise ValueError(
                "`model` is an image-to-video transformer (`image_dim`, `added_kv_proj_dim`), not a T2V one"
            )
        if source.in_channels != source.out_channels:
            raise ValueError(
                f"`model` has {source.in_channels} input and {source.out_channels} output channels; a text-to-video "
                "transformer has as many of both"
            )
        settings = {name: source[name] for name in _WAN_SETTINGS} | {"in_channels": 2 * source.in_channels}
        weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        weight = weights["patch_embedding.weight"]
        weights["patch_embedding.weight"] = torch.cat([weight, torch.zeros_like(weight)], dim=1)
        with torch.device("meta"):
            network = cls(**{**settings, "use_sparse_attention": False, **overrides})
        network.load_state_dict(weights, assign=True)
        return network.train(model.training)

    @property
    def sparse_settings(self) -> BlockSparseSettings:
        """The blocks of sparse attention and which of them attend to which."""
        return self._settings

    @property
    def sparse_backend(self) -> str:
        """How the sparse attention is computed, see [`~UltraFlashSRTransformer.set_sparse_backend`]."""
        return self._sparse_backend

    def set_sparse_backend(self, backend: str) -> None:
        """Chooses how the sparse attention is computed, by a `backend` of [`block_sparse_attention`].

        It is no part of the config. The dense attention (to the text, and of the dense
        variant) has diffusers' `set_attention_backend`.

        Raises:
            ValueError: an unknown backend.
        """
        check_backend(backend)
        self._sparse_backend = backend

    def new_stream(
        self,
        kv_cache_blocks: int = 3,
        batch_size: int | None = None,
        frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        single_use: bool = False,
    ) -> SRStreamState:
        """Returns the state with which a stream starts.

        The buffers are allocated at the first group, or at once where the sizes are given (what `torch.compile` needs
        to see one shape from the first group on). A longer group later makes them grow, once.

        Args:
            kv_cache_blocks (`int`, *optional*, defaults to 3): temporal blocks that are remembered between groups;
                with dense attention, groups.
            batch_size (`int`, *optional*): samples. Give all four sizes or none.
            frames (`int`, *optional*): latent frames of a group.
            height (`int`, *optional*): height of the latents.
            width (`int`, *optional*): width of the latents.
            device (`torch.device` or `str`, *optional*): where the buffers lie; the network's device by default.
            dtype (`torch.dtype`, *optional*): of the keys and values; by default the network's dtype, or autocast's.
            single_use (`bool`, *optional*, defaults to `False`): whether each state will be called from once, as in
                one-step streams, which takes less memory; not with gradient checkpointing. See [`SRStreamState`].

        Raises:
            ValueError: `kv_cache_blocks` is not positive, or only some of the sizes are given.
        """
        if kv_cache_blocks < 1:
            raise ValueError(f"`kv_cache_blocks` must be at least 1, got {kv_cache_blocks}")
        device = self.device if device is None else device
        zero = torch.zeros((), dtype=torch.int64, device=device)
        window = zero + kv_cache_blocks
        state = SRStreamState(zero, window, kv_cache_blocks, zero.clone(), zero.clone(), single_use=single_use)
        sizes = (batch_size, frames, height, width)
        if sizes == (None, None, None, None):
            return state
        if batch_size is None or frames is None or height is None or width is None:
            raise ValueError(
                f"`batch_size`, `frames`, `height`, `width` must be given together or not at all, got {sizes}"
            )
        grid = self._token_grid((frames, height, width), "frames, height, width")
        return self._allocated(state, batch_size, grid, device, dtype or self._stream_dtype(device, self.dtype))

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor | TextKeyValues,
        state: SRStreamState | None = None,
        return_dict: bool = True,
    ) -> UltraFlashSRTransformerOutput | tuple[torch.Tensor, SRStreamState | None]:
        """Predicts the flow of the group that follows `state`, or of a whole clip with `state=None`.

        Args:
            hidden_states (`torch.Tensor` of shape `[batch, in_channels, frames, height, width]`): noisy normalised
                latents and the condition, concatenated over the channels in this order.
            timestep (`torch.Tensor` of shape `[batch]`): in [0, 1000]; 1000 for the one-step network.
            encoder_hidden_states (`torch.Tensor` of shape `[batch, up to text_length, text_dim]`): the prompt; or what
                [`~WanBackbone.encode_text`] made of it.
            state (`SRStreamState`, *optional*): from [`~UltraFlashSRTransformer.new_stream`] or the group before;
                `None` is the full forward.
            return_dict (`bool`, *optional*, defaults to `True`): a plain tuple instead of the output class if `False`.

        Raises:
            ValueError: inputs of a wrong shape or dtype; a state of another batch size, resolution or network, one
                that a later group has overwritten, or one for a single use that has been used; timestep 0 with
                `prediction_type="detail"`.
        """
        grid = self._check_latents(hidden_states)
        self._check_inputs(hidden_states, timestep, encoder_hidden_states, ((hidden_states.shape[0],),))
        readable = timestep.device.type == "cpu" and not shapes_are_static()  # elsewhere it would hold up the host
        if self.config.prediction_type == "detail" and readable and not bool((timestep > 0).all()):
            raise ValueError(f"`timestep` must be above 0 with `prediction_type='detail'`, got {timestep.tolist()}")
        inputs = (hidden_states, timestep[:, None], encoder_hidden_states, grid)
        if state is None:
            start = torch.zeros((), dtype=torch.int64, device=hidden_states.device)
            tokens, _ = self._transform(*inputs, start, [self._full_attention(grid)] * self.config.num_layers)
        else:
            state = self._checked(state, hidden_states, grid)
            tokens, state = self._stream(*inputs, state)
        sample = self._flow(self._unpatchify(tokens, grid), hidden_states, timestep)
        return UltraFlashSRTransformerOutput(sample, state) if return_dict else (sample, state)

    def _flow(self, raw: torch.Tensor, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        if self.config.prediction_type == "flow":
            return raw
        noisy, condition = hidden_states.chunk(2, dim=1)
        sigma = (timestep / 1000).view(-1, 1, 1, 1, 1)
        return ((noisy - condition - raw) / sigma).to(raw.dtype)

    def _full_attention(self, grid: tuple[int, int, int]) -> Attend:
        if self.config.use_sparse_attention:
            return SparseAttention(grid, self._settings, self._sparse_backend)
        return BidirectionalAttention()

    def _stream(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor | TextKeyValues,
        grid: tuple[int, int, int],
        state: SRStreamState,
    ) -> tuple[torch.Tensor, SRStreamState]:
        state = self._own_buffers(state)
        state.mark_used()
        attends: Sequence[Attend]
        if isinstance(state.cache, FrameKVCache):
            window = state.cache.window(
                state.position,
                grid[0],
                oldest=state.position - state.kept_frames,
                commit=True,
                static_shapes=self._shapes_are_static(),
            )
            attends = [state.cache.attention(layer, window, commit=True) for layer in range(self.config.num_layers)]
        else:
            attends = [
                SparseAttention(grid, self._settings, self._sparse_backend, cache, state.kv_cache_blocks)
                for cache in cast(list[BlockKVCache], state.cache)
            ]
        tokens, caches = self._transform(hidden_states, timestep, encoder_hidden_states, grid, state.position, attends)
        kept = torch.minimum(state.kept_frames + grid[0], state.kv_cache_blocks * grid[0])
        return tokens, dataclasses.replace(
            state,
            position=state.position + grid[0],
            group_frames=torch.full_like(state.group_frames, grid[0]),
            kept_frames=kept,
            cache=state.cache.advance(window) if isinstance(state.cache, FrameKVCache) else caches,
            used=[False],
        )

    def _checked(self, state: SRStreamState, hidden_states: torch.Tensor, grid: tuple[int, int, int]) -> SRStreamState:
        """Checks that the state belongs to this network and these latents, and makes room where there is none yet."""
        if not isinstance(state, SRStreamState):
            raise ValueError(f"`state` must be an SRStreamState from `new_stream`, got {type(state).__name__}")
        if state.single_use:
            state.check_unused()
        dtype = self._stream_dtype(hidden_states.device, hidden_states.dtype)
        if state.cache is None:
            return self._allocated(state, hidden_states.shape[0], grid, hidden_states.device, dtype)
        if isinstance(state.cache, FrameKVCache) == self.config.use_sparse_attention:
            kinds = ("sparse", "dense") if self.config.use_sparse_attention else ("dense", "sparse")
            raise ValueError("`state` was made by a network with {1} attention, this one has {0}".format(*kinds))
        if isinstance(state.cache, FrameKVCache):
            state.cache.check_fits(self._cached_config, hidden_states, grid, dtype)
            slots = (state.allocated_blocks + 1) * grid[0]
            if state.cache.slots < slots:
                return dataclasses.replace(state, cache=state.cache.grow(slots))
            return state
        if len(state.cache) != self.config.num_layers:
            raise ValueError(f"`state` has {len(state.cache)} layers, this network {self.config.num_layers}")
        self._check_sparse_cache(state.cache[0], hidden_states, grid, dtype)
        return state

    def _check_sparse_cache(
        self, cache: BlockKVCache, hidden_states: torch.Tensor, grid: tuple[int, int, int], dtype: torch.dtype
    ) -> None:
        config, buffer = self._cached_config, cache.keys
        found = (buffer.shape[0], cache.height, cache.width, buffer.shape[1], buffer.shape[5], buffer.shape[4])
        heads = (config.num_attention_heads, config.attention_head_dim)
        expected = (hidden_states.shape[0], *grid[1:], *heads, self._settings.volume)
        if found != expected:
            raise ValueError(
                "`state` was made for (batch, token rows, token columns, heads, head channels, block tokens) "
                f"{found}, this network and `hidden_states` need {expected}"
            )
        check_state_tensor(buffer, hidden_states, dtype)
        if hidden_states.device.type == "cpu" and not shapes_are_static():
            cache.check_current()

    def _allocated(
        self,
        state: SRStreamState,
        batch_size: int,
        grid: tuple[int, int, int],
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> SRStreamState:
        config, blocks = self._cached_config, state.allocated_blocks
        cache: list[BlockKVCache] | FrameKVCache
        if config.use_sparse_attention:
            heads, channels = config.num_attention_heads, config.attention_head_dim
            cache = [
                BlockKVCache.allocate(
                    batch_size, heads, channels, grid, self._settings, blocks, device, dtype, state.single_use
                )
                for _ in range(config.num_layers)
            ]
        else:
            cache = FrameKVCache.allocate(
                config, batch_size, (blocks + 1) * grid[0], grid[1:], device=device, dtype=dtype
            )
        return dataclasses.replace(state.to(device), cache=cache)
