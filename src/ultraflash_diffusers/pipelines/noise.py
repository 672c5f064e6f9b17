# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Noise that belongs to a frame, not to a call: equal however a stream is cut, batched or resumed, on every device."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from .argument_kinds import check_type

_SEED_LIMIT = 2**63 - 1


def draw_seeds(generator: torch.Generator | Sequence[torch.Generator] | None) -> list[int]:
    """Draws the seeds of a stream: one from a generator, or one from each of a list of them.

    Args:
        generator (`torch.Generator` or a list of them, *optional*): as in any diffusers pipeline; `None` draws from
            torch's global generator. A generator moves on by one number.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(generator, Sequence):
        return [_draw_seed(each) for each in generator]
    return [_draw_seed(generator)]


def _draw_seed(generator: torch.Generator | None) -> int:
    hint = " or a list of them (of a seed: `torch.Generator().manual_seed(seed)`)"
    check_type("generator", generator, torch.Generator, hint)
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(_SEED_LIMIT, (1,), generator=generator, device=device).item())


class SeededFrameNoise:
    """Normal noise of each absolute latent frame, drawn on the CPU from a seed of the frame's own.

    Args:
        seeds (`list[int]`): one seed for each sample of the batch, or a single one, from which those of the other
            samples are derived. The noise of sample `n` of a list is that of a stream with this seed alone.
        batch_size (`int`): number of samples.

    Raises:
        ValueError: several seeds, but not one for each sample.
    """

    def __init__(self, seeds: Sequence[int], batch_size: int) -> None:
        if len(seeds) not in (1, batch_size):
            raise ValueError(f"`generator` is a list of {len(seeds)}, the source has a batch of {batch_size}")
        derives = len(seeds) < batch_size
        self._sample_seeds = [(seeds[0], n) if derives else (seeds[n], 0) for n in range(batch_size)]

    def __call__(self, role: str, start: int, frames: int, shape: tuple[int, int, int]) -> torch.Tensor:
        """Returns float32 noise `[batch, channels, frames, height, width]` on the CPU.

        Args:
            role (`str`): what the noise is for: equal frames of two roles are independent.
            start (`int`): absolute index of the first latent frame.
            frames (`int`): number of latent frames.
            shape (`tuple`): `(channels, height, width)` of a frame.
        """
        channels, height, width = shape
        noise = torch.empty(len(self._sample_seeds), channels, frames, height, width)
        for sample, (seed, number) in enumerate(self._sample_seeds):
            for frame in range(frames):
                generator = torch.Generator().manual_seed(_frame_seed(seed, number, role, start + frame))
                noise[sample, :, frame] = torch.randn(shape, generator=generator)
        return noise


def _frame_seed(seed: int, sample: int, role: str, frame: int) -> int:
    digest = hashlib.blake2b(f"{seed} {sample} {role} {frame}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") & _SEED_LIMIT
