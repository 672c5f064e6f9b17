# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""From the command line to batches: what every training script does first."""

from __future__ import annotations

import argparse
from pathlib import Path

from accelerate import Accelerator

from ..degradation import H264, Compose, Downscale, low_resolution
from .data import Batch, CropDataset, validation_crop
from .preparation import Preparation, Source, find_sources, prepare_clips

VALIDATION_CRF = 28


def load_data(
    arguments: argparse.Namespace,
    accelerator: Accelerator,
    spatial: int,
    temporal: int,
    with_flow: bool,
    scale: int | None = None,
    versions: int = 0,
) -> tuple[CropDataset, list[Batch]]:
    """Prepares the clips that the arguments name.

    Args:
        arguments (`argparse.Namespace`): of [`~ultraflash_diffusers.training.arguments.training_parser`].
        accelerator (`Accelerator`): its first local process prepares, the others wait.
        spatial (`int`): what heights and widths must be multiples of at high resolution.
        temporal (`int`): the temporal compression.
        with_flow (`bool`): whether batches hold optical flow.
        scale (`int`, *optional*): gives low-resolution clips too, so many times smaller.
        versions (`int`, *optional*, defaults to 0): degraded versions of each training clip; validation clips have
            one, area-downscaled and through H.264 at CRF 28.

    Returns:
        `tuple`: the training batches, and one batch for each held-out clip.

    Raises:
        ValueError: crops or a number of validation frames that the networks cannot take, or unusable clips.
    """
    for crop in arguments.crops:
        crop.check(spatial, temporal)
    if arguments.validation_frames % temporal != 1 % temporal:
        raise ValueError(f"`validation_frames` must be {temporal} n + 1, got {arguments.validation_frames}")
    common = {"resolution": arguments.resolution, "clip_frames": arguments.clip_frames, "scale": scale or 1}
    training = Preparation(**common, seed=arguments.seed)
    validation = Preparation(**common)
    if scale is not None:
        training = Preparation(**common, seed=arguments.seed, degradation=low_resolution(scale), versions=versions)
        held_out = Compose(Downscale(scale), H264(VALIDATION_CRF))
        validation = Preparation(**common, degradation=held_out, versions=1)
    with accelerator.local_main_process_first():
        cache = arguments.cache_dir or arguments.output_dir / "cache"
        clips = prepare_clips(_training_sources(arguments, cache), cache, training)
        held_out_clips = []
        if arguments.validation_data_dir is not None:
            held_out_clips = prepare_clips(find_sources(arguments.validation_data_dir), cache, validation)
    dataset = CropDataset(
        clips, arguments.crops, arguments.train_batch_size, arguments.crop_weights, scale, with_flow, arguments.seed
    )
    batches = [
        validation_crop(clip, arguments.validation_frames, spatial, scale is not None) for clip in held_out_clips
    ]
    return dataset, batches


def _training_sources(arguments: argparse.Namespace, cache: Path) -> list[Source]:
    if arguments.dataset_name is None:
        return find_sources(arguments.train_data_dir)
    # `datasets` is slow to import, and needed by no one else
    from .video_dataset import dataset_sources

    return dataset_sources(
        arguments.dataset_name,
        cache / "videos",
        arguments.dataset_config_name,
        arguments.video_column,
        arguments.caption_column,
    )
