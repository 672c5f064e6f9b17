# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The low-resolution streaming text-to-video generator's network (Self-Forcing, LongLive: Wan 2.1 made causal)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal, cast

import torch
from diffusers.configuration_utils import register_to_config
from torch import nn

from .attention.dense_attention import ChunkCausalAttention
from .attention.frame_kv_cache import FrameKVCache, PastKVCache
from .causal_wan_checks import check_causal_wan_config, check_room, check_seed_code, check_single_use
from .causal_wan_state import CausalWanStreamState, CausalWanTransformerOutput
from .placed_head import CellWindow, PlacedHead
from .seed_code import SeedCodeEmbedding, SeedPlaces, text_summary
from .wan_backbone import TextKeyValues, WanBackbone
from .wan_layers import Attend, FramePositionEmbedding

# noise levels below this one are taken for it where a predicted sample is turned into a flow
_LEAST_SIGMA = 1e-3
GLOBAL_CACHE_FRAMES = 21  # five seconds, what the published global checkpoints were trained on


class CausalWanTransformer(WanBackbone):
    r"""Wan 2.1 text-to-video transformer that generates chunk by chunk: one timestep a frame, cached keys and values.

    Attention is bidirectional inside a chunk and causal between chunks. The cache is global (everything since the
    start, up to a capacity) or, with `window_frames`, rolling: the newest frames and a sink of the first ones.

    Args:
        patch_size (`tuple[int, int, int]`, *optional*, defaults to `(1, 2, 2)`): latents of a token over time, height,
            width.
        num_attention_heads (`int`, *optional*, defaults to 12): heads.
        attention_head_dim (`int`, *optional*, defaults to 128): channels of a head.
        in_channels (`int`, *optional*, defaults to 16): channels of the latents.
        out_channels (`int`, *optional*, defaults to 16): channels of the flow.
        text_dim (`int`, *optional*, defaults to 4096): channels of the text encoder's output.
        text_length (`int`, *optional*, defaults to 512): shorter prompts are zero-padded to it; all positions are
            attended to.
        freq_dim (`int`, *optional*, defaults to 256): sinusoids of the timestep.
        ffn_dim (`int`, *optional*, defaults to 8960): width of the feed-forward layers.
        num_layers (`int`, *optional*, defaults to 30): blocks.
        cross_attn_norm (`bool`, *optional*, defaults to `True`): affine layer norm in front of cross-attention.
        qk_norm (`str`, *optional*, defaults to `"rms_norm_across_heads"`): the only one that there is.
        eps (`float`, *optional*, defaults to 1e-6): of all norms.
        frames_per_chunk (`int`, *optional*, defaults to 3): frames (temporal patches) of a chunk in the full forward;
            a stream takes chunks of any length.
        window_frames (`int`, *optional*): frames that a chunk sees, sink and itself included (LongLive: 12); `None`
            for a global cache (Self-Forcing).
        sink_frames (`int`, *optional*, defaults to 0): first frames of the stream that stay in a rolling window.
        prediction_type (`str`, *optional*, defaults to `"flow"`): what the last layer predicts: `"flow"` (as
            released), or `"sample"`, the clean latents, of which the returned flow is `(noisy - clean) / sigma`. Large
            patches need it: noise of thousands of dimensions does not pass through a narrower network, while clean
            latents, which are far from filling their space, do (arXiv 2511.13720).
        absolute_positions (`bool`, *optional*, defaults to `False`): tells tokens where in the frame they are. Rotary
            positions are relative, and a small network can hardly tell the middle from a border by them.
        sample_size (`tuple[int, int]`, *optional*): height and width of the latents that it was trained on, where it
            can make no others well; `None` where it can.
        first_chunk_frames (`int`, *optional*): frames (temporal patches) of the first chunk, where it is not
            `frames_per_chunk` long (LongLive: 1).
        denoising_steps (`Sequence[float]`, *optional*, defaults to `(1000, 750, 500, 250)`): timesteps of a chunk
            before the shift, decreasing inside (0, 1000]. This and what follows is how the weights were distilled: the
            network computes alike with any, but gives good video with these.
        first_chunk_denoising_steps (`Sequence[float]`, *optional*): those of the first generated chunk, where it has
            its own (Causal-Forcing++).
        flow_shift (`float`, *optional*, defaults to 5.0): warps the steps: with `t = step / 1000` to
            `shift * t / (1 + (shift - 1) * t)`.
        context_noise (`float`, *optional*, defaults to 0.0): timestep, in [0, 1000), of the pass that writes a
            finished chunk's keys and values; not shifted, and the latents get no noise for it.
        recompute_on_prompt_change (`bool`, *optional*, defaults to `False`): whether it was trained to have its cache
            recomputed under a new prompt in mid-stream (LongLive).
        recompute_sink (`bool`, *optional*, defaults to `True`): whether recomputing replaces the sink, too, once the
            window has rolled (LongLive as released: `False`).
        seed_code_dim (`int`, *optional*, defaults to 0): values of the seed code that each call is given, see
            [`SeedCodeEmbedding`]; 0 for none.
        seed_code_period (`float`, *optional*, defaults to 36.0): temporal patches of a turn of the seed code's clock.
        seed_code_blocks (`int`, *optional*, defaults to 3): residual blocks of the seed code's embedding.
        seed_code_harmonics (`int`, *optional*, defaults to 0): waves by which each value of the code enters as well.
        seed_code_steady (`bool`, *optional*, defaults to `False`): whether the clock moves things and nothing else.
        reads_latents (`bool`, *optional*, defaults to `True`): whether the latents that it is given matter, or only
            say the size: a network that is told all by text and seed code needs no noise to start from.
        head_channels (`int`, *optional*, defaults to 0): channels of a [`PlacedHead`] in the place of the linear last
            layer, whose large patches show as tiles; 0 for none. It needs a seed code and what follows.
        head_layers (`int`, *optional*, defaults to 4): its layers.
        head_moments (`int`, *optional*, defaults to 4): frames of a latent frame.
        head_pixels (`int`, *optional*, defaults to 4): pixels of a latent, along each side.
        head_ridges (`int`, *optional*, defaults to 1): lines over the width, each before what is behind it.
        head_sprites (`Sequence[int]`, *optional*, defaults to `(32,)`): sides of the sprites that stand at anchors,
            from near to far; powers of 2 from 8 on.
        head_far_sprites (`int`, *optional*, defaults to 0): how many of them stand behind the ridges.
        head_patterns (`int`, *optional*, defaults to 1): pictures that are the same in each frame, but for strength.
    """

    @register_to_config
    def __init__(
        self,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        num_attention_heads: int = 12,
        attention_head_dim: int = 128,
        in_channels: int = 16,
        out_channels: int = 16,
        text_dim: int = 4096,
        text_length: int = 512,
        freq_dim: int = 256,
        ffn_dim: int = 8960,
        num_layers: int = 30,
        cross_attn_norm: bool = True,
        qk_norm: str = "rms_norm_across_heads",
        eps: float = 1e-6,
        frames_per_chunk: int = 3,
        window_frames: int | None = None,
        sink_frames: int = 0,
        prediction_type: Literal["flow", "sample"] = "flow",
        absolute_positions: bool = False,
        sample_size: tuple[int, int] | None = None,
        first_chunk_frames: int | None = None,
        denoising_steps: Sequence[float] = (1000, 750, 500, 250),
        first_chunk_denoising_steps: Sequence[float] | None = None,
        flow_shift: float = 5.0,
        context_noise: float = 0.0,
        recompute_on_prompt_change: bool = False,
        recompute_sink: bool = True,
        seed_code_dim: int = 0,
        seed_code_period: float = 36.0,
        seed_code_blocks: int = 3,
        seed_code_harmonics: int = 0,
        seed_code_steady: bool = False,
        reads_latents: bool = True,
        head_channels: int = 0,
        head_layers: int = 4,
        head_moments: int = 4,
        head_pixels: int = 4,
        head_ridges: int = 1,
        head_sprites: Sequence[int] = (32,),
        head_far_sprites: int = 0,
        head_patterns: int = 1,
    ) -> None:
        super().__init__()
        check_causal_wan_config(self.config)
        self._build()
        dim = num_attention_heads * attention_head_dim
        if seed_code_dim:
            things = (head_moments, len(head_sprites), head_ridges) if head_channels else (1, 0, 0)
            inputs, shape = (seed_code_dim, text_dim, seed_code_period), (seed_code_blocks, seed_code_harmonics)
            self.seed_code_embedding = SeedCodeEmbedding(*inputs, dim, *things, *shape, seed_code_steady)
        if not reads_latents:
            del self.patch_embedding
        if head_channels:
            self.proj_out = nn.Linear(dim, head_channels)
            sizes = (head_layers, head_moments, head_pixels, head_ridges)
            layers = (head_sprites, head_far_sprites, head_patterns)
            self.head = PlacedHead(dim, out_channels, head_channels, *sizes, *layers, tuple(self.config.sample_size))
        if absolute_positions:
            self.position_embedding = FramePositionEmbedding(dim)

    @property
    def chunk_frames(self) -> int:
        """Latent frames of a chunk: `frames_per_chunk` temporal patches."""
        return self.config.frames_per_chunk * self.config.patch_size[0]

    def new_stream(
        self,
        cache_frames: int | None = None,
        batch_size: int | None = None,
        height: int | None = None,
        width: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        single_use: bool = False,
        room_frames: int = 0,
        seed_code: torch.Tensor | None = None,
    ) -> CausalWanStreamState:
        """Returns the state with which a stream starts.

        The buffers are allocated at the first call, or at once where the sizes are given (what `torch.compile` needs
        to see one shape from the first chunk on).

        Args:
            cache_frames (`int`, *optional*): frames (temporal patches) that a global cache can hold, 21 by default. A
                rolling cache always holds `config.window_frames`.
            batch_size (`int`, *optional*): samples. Give all three sizes or none.
            height (`int`, *optional*): height of the latents.
            width (`int`, *optional*): width of the latents.
            device (`torch.device` or `str`, *optional*): where the buffers lie; the network's device by default.
            dtype (`torch.dtype`, *optional*): of the keys and values; by default the network's dtype, or autocast's.
            single_use (`bool`, *optional*, defaults to `False`): whether each state will commit once, in whole chunks,
                so that a rolling cache needs no room for the chunk; not with gradient checkpointing.
            room_frames (`int`, *optional*, defaults to 0): room for a chunk all the same: it is not copied for each
                call, for so many frames more of memory.
            seed_code (`torch.Tensor` of shape `[batch, seed_code_dim]`, *optional*): normal values, for networks that
                have a seed code.

        Raises:
            ValueError: a capacity that does not fit the config, `single_use` of a global cache, or only some of the
                sizes.
        """
        window = self.config.window_frames
        if cache_frames is None:
            cache_frames = GLOBAL_CACHE_FRAMES if window is None else window
        if window is not None and cache_frames != window:
            raise ValueError(f"`cache_frames` is {cache_frames}, but the rolling cache holds `window_frames` {window}")
        if cache_frames < 1:
            raise ValueError(f"`cache_frames` must be positive, got {cache_frames}")
        if single_use and window is None:
            raise ValueError("`single_use` is True, but the cache is global (`window_frames` is None) and keeps all")
        state = CausalWanStreamState(
            position=torch.zeros((), dtype=torch.int64, device=device or self.device),
            cache_frames=cache_frames,
            sink_frames=0 if window is None else self.config.sink_frames,
            rolling=window is not None,
            single_use=single_use,
            room_frames=room_frames,
            seed_code=seed_code,
        )
        sizes = (batch_size, height, width)
        if sizes == (None, None, None):
            return state
        if batch_size is None or height is None or width is None:
            raise ValueError(f"`batch_size`, `height`, `width` must be given together or not at all, got {sizes}")
        grid = self._token_grid((self.config.patch_size[0], height, width), "height and width")
        device = device or self.device
        dtype = dtype or self._stream_dtype(device, self.dtype)
        return self._allocated(state, batch_size, grid[1:], device, dtype)

    def rewind(self, state: CausalWanStreamState, frames: int, keep_sink: bool) -> CausalWanStreamState:
        """Returns the state in front of a stream's last `frames` frames, to compute their keys and values anew.

        One committing call with their clean latents, all at once, then gives the state that goes on behind them.

        Args:
            state (`CausalWanStreamState`): after at least so many frames; not for a single use.
            frames (`int`): temporal patches, all that the cache holds, or with `keep_sink` all but its sink.
            keep_sink (`bool`): whether the sink keeps what it holds; else the first of `frames` are the new one.

        Raises:
            ValueError: a state for a single use, which holds no room for more than a chunk.
        """
        if state.single_use:
            raise ValueError("`state` is for a single use: it cannot be rewound")
        if state.cache is None:
            return state
        position = int(state.position) - frames
        cache = state.cache.rewound(position, keep_sink)
        return dataclasses.replace(state, position=torch.full_like(state.position, position), cache=cache)

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor | TextKeyValues,
        state: CausalWanStreamState | None = None,
        commit: bool = False,
        return_dict: bool = True,
        seed_code: torch.Tensor | None = None,
    ) -> CausalWanTransformerOutput | tuple[torch.Tensor, CausalWanStreamState | None]:
        """Predicts the flow of a chunk that follows `state`, or of a whole clip with `state=None`.

        Args:
            hidden_states (`torch.Tensor` of shape `[batch, in_channels, frames, height, width]`): noisy normalised
                latents.
            timestep (`torch.Tensor` of shape `[batch]` or `[batch, frames / patch_size[0]]`): in [0, 1000].
            encoder_hidden_states (`torch.Tensor` of shape `[batch, up to text_length, text_dim]`): the prompt; or what
                [`~WanBackbone.encode_text`] made of it.
            state (`CausalWanStreamState`, *optional*): from [`~CausalWanTransformer.new_stream`] or the chunk before;
                `None` is the full forward, causal over chunks of `config.frames_per_chunk`.
            commit (`bool`, *optional*, defaults to `False`): whether the keys and values of this pass stay in the
                cache (the clean pass at timestep 0, or the last denoising step). Otherwise the state is left as it is.
            return_dict (`bool`, *optional*, defaults to `True`): a plain tuple instead of the output class if `False`.
            seed_code (`torch.Tensor` of shape `[batch, seed_code_dim]`, *optional*): for whole clips of networks that
                have one; that of a stream is part of its state.

        Raises:
            ValueError: inputs of a wrong shape or dtype; a state of another batch size, resolution or network, or one
                that a later commit has overwritten; a global cache that is full; `commit` without a state.
        """
        grid = self._check_latents(hidden_states)
        batch = hidden_states.shape[0]
        self._check_inputs(hidden_states, timestep, encoder_hidden_states, ((batch,), (batch, grid[0])))
        timestep = timestep.reshape(batch, -1)
        inputs = (hidden_states, timestep, encoder_hidden_states, grid)
        if state is None:
            if commit:
                raise ValueError("`commit` is True without a `state` to commit to")
            position, attends = self._full_attention(hidden_states.device, grid)
            raw, next_state = self._predict(*inputs, seed_code, position, attends), None
        elif seed_code is not None:
            raise ValueError("`seed_code` was given beside a `state`, which holds the stream's own")
        else:
            raw, next_state = self._stream(*inputs, state, commit)
        sample = self._flow(raw, hidden_states, timestep)
        return CausalWanTransformerOutput(sample, next_state) if return_dict else (sample, next_state)

    def encode_text(self, encoder_hidden_states: torch.Tensor) -> TextKeyValues:
        text = super().encode_text(encoder_hidden_states)
        summary = text_summary(encoder_hidden_states) if self.config.seed_code_dim else None
        return dataclasses.replace(text, summary=summary)

    def _predict(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        text: torch.Tensor | TextKeyValues,
        grid: tuple[int, int, int],
        seed_code: torch.Tensor | None,
        position: torch.Tensor,
        attends: Sequence[Attend],
    ) -> torch.Tensor:
        """What the last layer says of frames from `position` on."""
        condition, places = self._seed_condition(seed_code, text, position, len(hidden_states), grid[0])
        tokens, _ = self._transform(hidden_states, timestep, text, grid, position, attends, condition)
        if places is None:
            return self._unpatchify(tokens, grid)
        drawn = self.head(tokens, grid, condition, places, tuple(hidden_states.shape[3:]))
        return self.head.encode(drawn, len(hidden_states))

    def _seed_condition(
        self,
        seed_code: torch.Tensor | None,
        text: torch.Tensor | TextKeyValues,
        position: torch.Tensor,
        batch: int,
        frames: int,
    ) -> tuple[torch.Tensor | None, SeedPlaces | None]:
        check_seed_code(self.config.seed_code_dim, seed_code, batch)
        if seed_code is None:
            return None, None
        summary = text.summary if isinstance(text, TextKeyValues) else text_summary(text)
        condition, places = self.seed_code_embedding(seed_code, summary, position, frames)
        return condition.to(self.dtype), places

    def draw_windows(
        self, encoder_hidden_states: torch.Tensor, embedding: torch.Tensor, window: CellWindow, places: SeedPlaces
    ) -> torch.Tensor:
        """Draws a part of a stream's first frame, in one step, to learn from.

        What a [`PlacedHead`] costs is paid for the part, not for the frame.

        Args:
            encoder_hidden_states (`torch.Tensor` of shape `[batch, up to text_length, text_dim]`): the prompts.
            embedding (`torch.Tensor` of shape `[batch, 1, dim]`): of code, text and the first frame, see
                [`SeedCodeEmbedding`].
            window (`CellWindow`): the part.
            places (`SeedPlaces`): where things are said to be, in the place of what the embedding comes with, at the
                moments that are wanted.

        Returns:
            `torch.Tensor`: `[batch, moments, 3, height, width]`, pixels of the window.
        """
        size, batch, condition = self.config.sample_size, len(embedding), embedding.to(self.dtype)
        grid = self._token_grid((self.config.patch_size[0], *size), "sample_size")
        start, attends = self._full_attention(embedding.device, grid)
        latents = encoder_hidden_states.new_zeros(batch, self.config.in_channels, 1, *size)
        timestep = torch.full((batch, 1), 1000.0, device=embedding.device)
        tokens, _ = self._transform(latents, timestep, encoder_hidden_states, grid, start, attends, condition)
        return self.head(tokens, grid, condition, places, tuple(size), window)

    def _embed_patches(self, hidden_states: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
        if self.config.reads_latents:
            tokens = super()._embed_patches(hidden_states, grid)
        else:
            dim = self.config.num_attention_heads * self.config.attention_head_dim
            tokens = hidden_states.new_zeros(len(hidden_states), math.prod(grid), dim)
        return tokens + self.position_embedding(grid) if self.config.absolute_positions else tokens

    def _flow(self, raw: torch.Tensor, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        if self.config.prediction_type == "flow":
            return raw
        sigma = (timestep.float() / 1000).clamp_min(_LEAST_SIGMA)
        # one level a sample, or one a temporal patch
        sigma = sigma.repeat_interleave(hidden_states.shape[2] // sigma.shape[1], dim=1)[:, None, :, None, None]
        return ((hidden_states.float() - raw.float()) / sigma).to(raw.dtype)

    def _full_attention(
        self, device: torch.device, grid: tuple[int, int, int]
    ) -> tuple[torch.Tensor, list[ChunkCausalAttention]]:
        config = self.config
        attention = ChunkCausalAttention(
            grid[1] * grid[2],
            config.frames_per_chunk,
            config.window_frames,
            config.sink_frames,
            config.first_chunk_frames,
        )
        return torch.zeros((), dtype=torch.int64, device=device), [attention] * config.num_layers

    def _stream(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor | TextKeyValues,
        grid: tuple[int, int, int],
        state: CausalWanStreamState,
        commit: bool,
    ) -> tuple[torch.Tensor, CausalWanStreamState]:
        if not isinstance(state, CausalWanStreamState):
            raise ValueError(f"`state` must be a CausalWanStreamState from `new_stream`, got {type(state).__name__}")
        check_room(state, grid[0])
        if state.single_use:
            check_single_use(self.config, grid[0], self.gradient_checkpointing)
        dtype = self._stream_dtype(hidden_states.device, hidden_states.dtype)
        if state.cache is None:
            state = self._allocated(state, hidden_states.shape[0], grid[1:], hidden_states.device, dtype)
        state = self._own_buffers(state)
        cache = cast(FrameKVCache, state.cache)
        cache.check_fits(self._cached_config, hidden_states, grid, dtype)
        window = cache.window(
            state.position, grid[0], oldest=0, commit=commit, static_shapes=self._shapes_are_static()
        )
        attends = [cache.attention(layer, window, commit) for layer in range(self.config.num_layers)]
        inputs = (hidden_states, timestep, encoder_hidden_states, grid)
        sample = self._predict(*inputs, state.seed_code, state.position, attends)
        if commit:
            state = dataclasses.replace(state, position=state.position + grid[0], cache=cache.advance(window))
        return sample, state

    def _allocated(
        self,
        state: CausalWanStreamState,
        batch_size: int,
        grid: tuple[int, int],
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> CausalWanStreamState:
        own = self.config.frames_per_chunk if state.single_use else 0
        cache = (PastKVCache if state.single_use else FrameKVCache).allocate(
            self._cached_config,
            batch_size,
            state.cache_frames - own,
            grid,
            sink_frames=state.sink_frames,
            rolling=state.rolling,
            device=device,
            dtype=dtype,
            room_frames=state.room_frames if state.single_use else 0,
        )
        return dataclasses.replace(state, cache=cache, position=state.position.to(device))
