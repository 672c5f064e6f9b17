# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Batches of the drawn world: small parts of frames to learn from, and whole clips to measure by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from ...models.placed_head import CellWindow
from ...models.seed_code import SeedPlaces
from .world import WorldScene, draw_scene

Clock = Callable[[torch.Tensor, int], torch.Tensor]

CLIP_FRAMES = 2  # latent frames of a clip: the first stands for one frame, the next for all that a latent frame holds
_NEAR_THINGS = 0.6  # share of windows that lie about a thing


@dataclass(frozen=True)
class WorldBatch:
    """Parts of frames of the world, each at the last moment of a stream's first latent frame.

    Args:
        texts (`list[str]`): of the scenes; the first so many have pixels.
        codes (`torch.Tensor`): float32 `[batch, CODE_SIZE]`, normal values.
        places (`SeedPlaces`): float32, at all moments of the latent frame.
        looks (`torch.Tensor`): float32 `[batch, LOOKS]`, see [`WorldScene`].
        window (`CellWindow`): the parts, of the first scenes.
        pixels (`torch.Tensor`): float32 `[scenes with pixels, 3, height, width]` in [-1, 1].
    """

    texts: list[str]
    codes: torch.Tensor
    places: SeedPlaces
    looks: torch.Tensor
    window: CellWindow
    pixels: torch.Tensor

    def to(self, device: torch.device) -> WorldBatch:
        """Moves the tensors to a device."""
        window, pixels = self.window.to(device), self.pixels.to(device)
        codes, looks = self.codes.to(device), self.looks.to(device)
        return WorldBatch(self.texts, codes, self.places.to(device), looks, window, pixels)


@dataclass(frozen=True)
class WorldClips:
    """Whole clips of `CLIP_FRAMES` latent frames.

    Args:
        texts (`list[str]`): of the clips.
        codes (`torch.Tensor`): float32 `[batch, CODE_SIZE]`, normal values.
        pixels (`torch.Tensor`): float32 `[batch, 3, frames, height, width]` in [-1, 1].
    """

    texts: list[str]
    codes: torch.Tensor
    pixels: torch.Tensor

    def to(self, device: torch.device) -> WorldClips:
        """Moves the tensors to a device."""
        return WorldClips(self.texts, self.codes.to(device), self.pixels.to(device))


@dataclass(frozen=True)
class WorldDataset(Dataset):
    """Batches that depend on the seed and their number alone.

    Args:
        clock (`Callable`): from codes `[batch, CODE_SIZE]` and a number of latent frames to phases
            `[batch, latent frames, moments]`.
        batch_size (`int`): scenes of a batch.
        size (`tuple[int, int]`): height and width of the latents of a frame.
        compression (`int`): pixels of a latent, along each side.
        window (`tuple[int, int]`): height and width of the parts, in latents.
        more_scenes (`int`, *optional*, defaults to 0): scenes of a batch without pixels, beside those with.
        seed (`int`, *optional*, defaults to 0): of all of them.
    """

    clock: Clock
    batch_size: int
    size: tuple[int, int]
    compression: int
    window: tuple[int, int]
    more_scenes: int = 0
    seed: int = 0

    def __getitem__(self, number: int) -> WorldBatch:
        rng = np.random.default_rng((self.seed, number))
        scenes = [draw_scene(rng) for _ in range(self.batch_size + self.more_scenes)]
        codes = _codes(scenes)
        phases = self.clock(codes, 1)[:, 0].numpy()
        anchors = np.stack([scene.anchors(own) for scene, own in zip(scenes, phases, strict=True)])
        ridges = np.array([scene.ridges() for scene in scenes])
        shown = scenes[: self.batch_size]
        starts = [self._start(rng, own[-1, : len(scene.things)]) for scene, own in zip(shown, anchors, strict=False)]
        parts = [self._part(*drawn) for drawn in zip(shown, phases[:, -1:], starts, strict=False)]
        tops, lefts = torch.tensor(starts).unbind(1)
        places = SeedPlaces(_float(anchors)[:, None], _float(ridges)[:, None])
        looks = _float(np.array([scene.looks() for scene in scenes]))
        window, pixels = CellWindow(tops, lefts, *self.window), _pixels(parts)[:, :, 0]
        return WorldBatch([scene.text(rng) for scene in scenes], codes, places, looks, window, pixels)

    def _start(self, rng: np.random.Generator, anchors: np.ndarray) -> tuple[int, int]:
        """Draws top and left of a window, often about one of the things."""
        room = [whole - part for whole, part in zip(self.size, self.window, strict=True)]
        if rng.random() >= _NEAR_THINGS:
            top, left = (int(rng.integers(side + 1)) for side in room)
            return top, left
        anchor = anchors[rng.integers(len(anchors))]
        middle = np.array([anchor[1], anchor[0]]) * self.size[0] + (0, self.size[1] / 2)
        start = middle - np.array(self.window) * rng.uniform(0.2, 0.8, 2)
        top, left = (int(np.clip(round(place), 0, side)) for place, side in zip(start, room, strict=True))
        return top, left

    def _part(self, scene: WorldScene, phases: np.ndarray, start: tuple[int, int]) -> np.ndarray:
        ratio = self.compression
        rows, columns = (
            slice(ratio * first, ratio * (first + side)) for first, side in zip(start, self.window, strict=True)
        )
        height, width = (ratio * side for side in self.size)
        return scene.render(phases, height, width, (rows, columns))

    def clips(self, number: int) -> WorldClips:
        """Returns a batch of whole clips, others than those to learn from."""
        rng = np.random.default_rng((self.seed, number, 1))
        scenes = [draw_scene(rng) for _ in range(self.batch_size)]
        codes = _codes(scenes)
        moments = self.clock(codes, CLIP_FRAMES)
        phases = moments.flatten(1)[:, moments.shape[2] - 1 :].numpy()  # the first stands for its last moment alone
        height, width = (self.compression * side for side in self.size)
        drawn = [scene.render(own, height, width) for scene, own in zip(scenes, phases, strict=True)]
        return WorldClips([scene.text(rng) for scene in scenes], codes, _pixels(drawn))


def _codes(scenes: list[WorldScene]) -> torch.Tensor:
    return _float(np.stack([scene.code for scene in scenes]))


def _float(values: np.ndarray) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


def _pixels(clips: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3).contiguous() * 2 - 1
