# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""When the text generator does what: frames of each chunk, its noise levels, and what a new prompt does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from ...models.causal_wan_transformer import CausalWanTransformer
from ...models.checks import check_denoising_steps
from ..argument_kinds import checked_number
from ..samplers import shift_sigma


def warped_sigmas(steps: Sequence[float], shift: float) -> list[float]:
    """Returns the noise levels that the timesteps `steps` (of 1000) become under the flow shift.

    With `t = step / 1000` that is `shift * t / (1 + (shift - 1) * t)`.

    Raises:
        ValueError: `steps` is empty, does not decrease or leaves (0, 1000], or `shift` is not positive.
    """
    check_denoising_steps("denoising_steps", steps)
    shift = checked_number("flow_shift", shift)
    if shift <= 0:
        raise ValueError(f"`flow_shift` must be positive, got {shift}")
    return [shift_sigma(step / 1000, shift) for step in steps]


def _first_given(given: Any, own: Any) -> Any:
    return own if given is None else given


@dataclass(frozen=True)
class GeneratorSchedule:
    """How a generator's weights were distilled, which its configuration says; see [`CausalWanTransformer`].

    Args:
        chunk_frames (`int`): latent frames of a chunk.
        first_chunk_frames (`int`): those of the chunk at the start of the video.
        sigmas (`list[float]`): noise levels of a chunk's steps, decreasing.
        first_chunk_sigmas (`list[float]`): those of the first chunk that is generated.
        context_sigma (`float`): noise level that the pass over a finished chunk is told.
        recomputes (`bool`): whether a new prompt has the keys and values of the chunks before computed again.
        recomputes_sink (`bool`): whether the sink's, too, once the window has rolled.
    """

    chunk_frames: int
    first_chunk_frames: int
    sigmas: list[float]
    first_chunk_sigmas: list[float]
    context_sigma: float
    recomputes: bool
    recomputes_sink: bool

    @classmethod
    def of(
        cls,
        network: CausalWanTransformer,
        *,
        frames_per_chunk: int | None = None,
        first_chunk_frames: int | None = None,
        denoising_steps: Sequence[float] | None = None,
        first_chunk_denoising_steps: Sequence[float] | None = None,
        flow_shift: float | None = None,
        context_noise: float | None = None,
        recompute_on_prompt_change: bool | None = None,
        recompute_sink: bool | None = None,
    ) -> Self:
        """Reads a network's configuration; what is not `None` counts instead.

        Frames and steps that are given without the first chunk's own are those of all chunks.

        Raises:
            ValueError: steps that do not decrease inside (0, 1000], a shift that is not positive, a context noise
                outside [0, 1000).
        """
        config, patch = network.config, network.config.patch_size[0]
        if first_chunk_frames is None and frames_per_chunk is None:
            first_chunk_frames = config.first_chunk_frames
        if first_chunk_denoising_steps is None and denoising_steps is None:
            first_chunk_denoising_steps = config.first_chunk_denoising_steps
        frames = frames_per_chunk or config.frames_per_chunk
        steps = _first_given(denoising_steps, config.denoising_steps)
        shift = _first_given(flow_shift, config.flow_shift)
        noise = checked_number("context_noise", _first_given(context_noise, config.context_noise), 0, 999.999)
        return cls(
            chunk_frames=patch * frames,
            first_chunk_frames=patch * (first_chunk_frames or frames),
            sigmas=warped_sigmas(steps, shift),
            first_chunk_sigmas=warped_sigmas(_first_given(first_chunk_denoising_steps, steps), shift),
            context_sigma=noise / 1000,
            recomputes=_first_given(recompute_on_prompt_change, config.recompute_on_prompt_change),
            recomputes_sink=_first_given(recompute_sink, config.recompute_sink),
        )

    def has_chunks_of(self, network: CausalWanTransformer) -> bool:
        """Whether chunks are as long as the network's configuration says."""
        first = network.config.first_chunk_frames or network.config.frames_per_chunk
        own = (network.chunk_frames, first * network.config.patch_size[0])
        return own == (self.chunk_frames, self.first_chunk_frames)

    def frames_at(self, position: int) -> int:
        """Latent frames of the chunk that begins after `position` of them."""
        return self.first_chunk_frames if position == 0 else self.chunk_frames

    def sigmas_of(self, chunk: int) -> list[float]:
        """Noise levels of the generated chunk number `chunk`, from 0."""
        return self.first_chunk_sigmas if chunk == 0 else self.sigmas

    def frames_until(self, frames: int) -> int:
        """Latent frames of as many whole chunks as hold `frames` of them."""
        behind = max(0, frames - self.first_chunk_frames)
        return self.first_chunk_frames + -(-behind // self.chunk_frames) * self.chunk_frames
