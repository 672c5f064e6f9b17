# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Clips as latents on disk, and batches of their chunks: what trains a generator, which never sees pixels."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from ...pixels import from_levels
from ..files import holds_array, replace_text, save_array
from .latents import LatentBatch

# a clip, uint8 [frames, height, width, 3], and texts that describe it
CaptionedClip = tuple[np.ndarray, list[str]]

_INDEX = "index.json"


@dataclass(frozen=True)
class ChunkBatch(LatentBatch):
    """Chunks of clips; `high` holds their clean latents.

    Args:
        starts (`torch.Tensor`): bool `[batch]`, whether the first latent is the first of a video.
    """

    starts: torch.Tensor

    def to(self, device: torch.device) -> ChunkBatch:
        """Moves the latents to a device."""
        return ChunkBatch(self.high.to(device), None, None, self.texts, self.starts.to(device))


@dataclass(frozen=True)
class CachedLatents:
    """A clip's latents, `[channels, frames, height, width]` in a `.npy` file of float16, and its texts."""

    path: Path
    texts: list[str]
    frames: int

    def read(self, start: int, end: int) -> np.ndarray:
        """Returns some frames' latents, float32 `[channels, end - start, height, width]`."""
        return np.load(self.path, mmap_mode="r")[:, start:end].astype(np.float32)


def claim_folder(folder: Path, settings: dict) -> None:
    """Makes a folder the cache of some settings, before anything is written to it.

    Args:
        folder (`Path`): a new one, or that of an earlier run.
        settings (`dict`): what the latents depend on, as JSON has it.

    Raises:
        ValueError: the folder is the cache of other settings.
    """
    file = folder / "settings.json"
    if not file.is_file():
        replace_text(file, json.dumps(settings, indent=2) + "\n")
    found = json.loads(file.read_text())
    if found != settings:
        differing = sorted(name for name in found.keys() | settings.keys() if found.get(name) != settings.get(name))
        then, now = ({name: each.get(name) for name in differing} for each in (found, settings))
        raise ValueError(f"{str(folder)!r} holds latents of other settings, {then} instead of {now}: delete it")


def encode_clips(
    clips: Iterable[CaptionedClip], encode: Callable[[torch.Tensor], torch.Tensor], folder: Path
) -> list[CachedLatents]:
    """Encodes clips once: those that an earlier run has encoded are taken as they are.

    Args:
        clips (iterable of [`CaptionedClip`]): read one after the other, unless all of them are in the folder.
        encode (`Callable`): from pixels `[1, 3, frames, height, width]` in [-1, 1] to latents.
        folder (`Path`): where they go, of [`claim_folder`].

    Raises:
        ValueError: no clips, or latents that float16 cannot hold.
    """
    index = folder / _INDEX
    if index.is_file():
        rows = json.loads(index.read_text())
    if index.is_file() and all([holds_array(folder / row["file"]) for row in rows]):
        return [CachedLatents(folder / row["file"], row["texts"], row["frames"]) for row in rows]
    cached = []
    for number, (frames, texts) in enumerate(tqdm(clips, desc="Encoding", unit="clip", disable=None)):
        path = folder / f"{number:06}.npy"
        if not holds_array(path):
            latents = encode(pixels_of(frames))[0].half()
            if not latents.isfinite().all():
                raise ValueError(f"the latents of clip {number} ({texts[:1]}) are not finite in float16")
            save_array(path, latents.numpy())
        cached.append(CachedLatents(path, texts, np.load(path, mmap_mode="r").shape[1]))
    if not cached:
        raise ValueError("there are no clips to encode")
    rows = [{"file": clip.path.name, "texts": clip.texts, "frames": clip.frames} for clip in cached]
    replace_text(index, json.dumps(rows))
    return cached


def pixels_of(frames: np.ndarray) -> torch.Tensor:
    """Returns uint8 `[frames, height, width, 3]` as `[1, 3, frames, height, width]` in [-1, 1]."""
    return from_levels(torch.from_numpy(frames).permute(3, 0, 1, 2)[None])


@dataclass(frozen=True)
class Pool:
    """Clips, each as often as the others of them, and how often one of them comes, relative to other pools."""

    clips: Sequence[CachedLatents]
    share: float = 1.0


class ChunkDataset(Dataset):
    """Random chunks of cached clips, a whole batch an item: item `n` is the same in every process and run.

    Args:
        pools (sequence of `Pool`): what samples are of.
        frames (`int`): latent frames of a sample.
        chunk_frames (`int`): samples start at whole chunks.
        batch_size (`int`): samples of a batch.
        start_share (`float`, *optional*, defaults to 0.5): share of samples that start where their clip does, beside
            those that do so by chance. Samples of one chunk all do: there is no past in them to follow.
        seed (`int`, *optional*, defaults to 0): of all choices.

    Raises:
        ValueError: a pool without clips, or clips that are shorter than `frames`.
    """

    def __init__(
        self,
        pools: Sequence[Pool],
        frames: int,
        chunk_frames: int,
        batch_size: int,
        start_share: float = 0.5,
        seed: int = 0,
    ) -> None:
        if not all(pool.clips for pool in pools):
            raise ValueError("`pools` has one without clips")
        clips = [clip for pool in pools for clip in pool.clips]
        short = [clip.texts[0] for clip in clips if clip.frames < frames]
        if short:
            raise ValueError(f"{len(short)} of {len(clips)} clips have fewer than {frames} latents: {short[:3]}")
        self.pools, self.frames, self.chunk_frames = pools, frames, chunk_frames
        self.batch_size, self.start_share, self.seed = batch_size, start_share, seed
        self._shares = np.array([pool.share for pool in pools]) / sum(pool.share for pool in pools)

    def __getitem__(self, number: int) -> ChunkBatch:
        rng = np.random.default_rng((self.seed, number))
        samples = [self._sample(rng) for _ in range(self.batch_size)]
        latents, starts, texts = zip(*samples, strict=True)
        return ChunkBatch(torch.stack(latents), None, None, list(texts), torch.tensor(starts))

    def _sample(self, rng: np.random.Generator) -> tuple[torch.Tensor, bool, str]:
        clips = self.pools[rng.choice(len(self.pools), p=self._shares)].clips
        clip = clips[int(rng.integers(len(clips)))]
        places = (clip.frames - self.frames) // self.chunk_frames + 1
        first = 0 if rng.random() < self.start_share else int(rng.integers(places))
        if self.frames == self.chunk_frames:
            first = 0  # a single chunk has no past to follow: it can only be its clip's first
        text = clip.texts[rng.integers(len(clip.texts))]
        start = first * self.chunk_frames
        return torch.from_numpy(clip.read(start, start + self.frames)), first == 0, text


def channel_scale(pools: Sequence[Pool]) -> torch.Tensor:
    """Returns the root mean square of each channel over the clips of pools, `[channels]`."""
    energies = [
        pool.share * np.mean([np.square(clip.read(0, clip.frames)).mean((1, 2, 3)) for clip in pool.clips], axis=0)
        for pool in pools
    ]
    return torch.from_numpy(np.sqrt(np.sum(energies, axis=0) / sum(pool.share for pool in pools))).float()
