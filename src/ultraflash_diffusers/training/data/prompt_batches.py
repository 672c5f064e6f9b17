# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Batches of prompts, for trainings that make their own videos."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import Dataset

from .crops import Crop
from .inputs import batches_per_step


@dataclass(frozen=True)
class PromptBatch:
    """Prompts to roll out, and the size of the videos; takes the place of a [`Batch`] of clips."""

    texts: list[str]
    size: Crop

    def to(self, device: torch.device) -> PromptBatch:
        """There is nothing to move."""
        return self


class PromptDataset(Dataset):
    """Batches of prompts: item `n` is the same in every process and run.

    Args:
        prompts (sequence of `str`): drawn from, all equally often.
        sizes (sequence of `Crop`): of the high-resolution videos; one is drawn for each batch.
        batch_size (`int`): prompts of a batch.
        seed (`int`, *optional*, defaults to 0): of all choices.
        batches_per_step (`int`, *optional*, defaults to 1): so many batches are of one size.

    Raises:
        ValueError: no prompts.
    """

    def __init__(
        self,
        prompts: Sequence[str],
        sizes: Sequence[Crop],
        batch_size: int,
        seed: int = 0,
        batches_per_step: int = 1,
    ) -> None:
        if not prompts:
            raise ValueError("`prompts` is empty: there is nothing to roll out")
        self.prompts, self.sizes, self.batch_size, self.seed = prompts, sizes, batch_size, seed
        self.batches_per_step = batches_per_step

    def __getitem__(self, number: int) -> PromptBatch:
        rng = np.random.default_rng((self.seed, number))
        texts = [self.prompts[index] for index in rng.integers(len(self.prompts), size=self.batch_size)]
        step = np.random.default_rng((self.seed, number // self.batches_per_step, 1))
        return PromptBatch(texts, self.sizes[int(step.integers(len(self.sizes)))])


def load_prompts(
    arguments: argparse.Namespace, accelerator: Accelerator, spatial: int, temporal: int
) -> tuple[PromptDataset, list[PromptBatch]]:
    """The prompts to train and to validate on.

    Args:
        arguments (`argparse.Namespace`): of `training/train_cascade_dpo.py`, with `prompts`.
        accelerator (`Accelerator`): of the run.
        spatial (`int`): what heights and widths must be multiples of.
        temporal (`int`): the temporal compression.

    Raises:
        ValueError: sizes that cannot be, or several batch sizes.
    """
    for crop in arguments.crops:
        crop.check(spatial, temporal)
    if len({*arguments.train_batch_size}) > 1 or arguments.crop_weights is not None:
        raise ValueError("--prompts: all sizes have one --train_batch_size and are drawn equally often")
    dataset = PromptDataset(
        _lines(arguments.prompts),
        arguments.crops,
        arguments.train_batch_size[0],
        arguments.seed,
        batches_per_step(arguments, accelerator),
    )
    held_out = [] if arguments.validation_prompts is None else _lines(arguments.validation_prompts)
    size = arguments.crops[0]._replace(frames=arguments.validation_frames)
    return dataset, [PromptBatch([prompt], size) for prompt in held_out]


def _lines(file: Path) -> list[str]:
    return [line.strip() for line in file.read_text().splitlines() if line.strip()]
