# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Batches of the small world: texts and seed codes, and what they determine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from .world import WorldScene, draw_scene

# code and first temporal patch to how much of its period the clock has passed at so many of them
Clock = Callable[[torch.Tensor, int], torch.Tensor]

LATENT_FRAMES = 2  # of a clip: the first stands for one frame, the next for all that a latent frame holds


@dataclass(frozen=True)
class WorldBatch:
    """Clips of the world, or their texts, codes and anchors alone.

    Args:
        texts (`list[str]`): of the clips.
        codes (`torch.Tensor`): float32 `[batch, CODE_SIZE]`, normal values.
        anchors (`torch.Tensor`): float32 `[batch, LATENT_FRAMES, ANCHORS, 3]`, see [`WorldScene.anchors`].
        pixels (`torch.Tensor`, *optional*): float32 `[batch, 3, frames, height, width]` in [-1, 1].
    """

    texts: list[str]
    codes: torch.Tensor
    anchors: torch.Tensor
    pixels: torch.Tensor | None

    def to(self, device: torch.device) -> WorldBatch:
        """Moves the tensors to a device."""
        pixels = None if self.pixels is None else self.pixels.to(device)
        return dataclasses.replace(self, codes=self.codes.to(device), anchors=self.anchors.to(device), pixels=pixels)


class WorldDataset(Dataset):
    """Batches that depend on the seed and their number alone.

    Args:
        clock (`Callable`): from codes `[batch, CODE_SIZE]` and a number of latent frames to phases
            `[batch, latent frames]`.
        batch_size (`int`): clips of a batch.
        size (`tuple[int, int]`): height and width of the clips in pixels.
        compression (`int`): frames that a latent frame stands for.
        anchor_batches (`int`, *optional*, defaults to 0): the first so many batches are without pixels.
        anchor_batch_size (`int`, *optional*, defaults to 128): clips of these.
        seed (`int`, *optional*, defaults to 0): of all of them.
    """

    def __init__(
        self,
        clock: Clock,
        batch_size: int,
        size: tuple[int, int],
        compression: int,
        anchor_batches: int = 0,
        anchor_batch_size: int = 128,
        seed: int = 0,
    ) -> None:
        self.clock, self.batch_size, self.size, self.compression = clock, batch_size, size, compression
        self.anchor_batches, self.anchor_batch_size, self.seed = anchor_batches, anchor_batch_size, seed

    def __getitem__(self, number: int) -> WorldBatch:
        rng = np.random.default_rng((self.seed, number))
        with_pixels = number >= self.anchor_batches
        scenes = [draw_scene(rng) for _ in range(self.batch_size if with_pixels else self.anchor_batch_size)]
        codes = torch.tensor(np.stack([scene.code for scene in scenes]), dtype=torch.float32)
        phases = self.clock(codes, LATENT_FRAMES).numpy()
        anchors = [[scene.anchors(phase) for phase in own] for scene, own in zip(scenes, phases, strict=True)]
        return WorldBatch(
            [scene.text(rng) for scene in scenes],
            codes,
            torch.tensor(np.array(anchors), dtype=torch.float32),
            self._pixels(scenes, phases) if with_pixels else None,
        )

    def _pixels(self, scenes: list[WorldScene], phases: np.ndarray) -> torch.Tensor:
        steps = np.arange(self.compression * (LATENT_FRAMES - 1) + 1) / self.compression
        clips = [
            scene.render(first + steps * ((second - first) % 1), *self.size)
            for scene, (first, second) in zip(scenes, phases, strict=True)
        ]
        return torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3).contiguous() * 2 - 1
