# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""From the command line to batches: what every training script does first."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

from accelerate import Accelerator
from diffusers.utils import logging

from ...degradation import H264, PRESETS, Compose, Downscale, Transform, degradation_preset, from_config, to_config
from ...models.causal_latent_upsampler import CausalLatentUpsampler
from ...models.hr_autoencoder import HRAutoencoder
from ...models.ultraflash_sr_transformer import UltraFlashSRTransformer
from ...models.video_encoder import VideoEncoder
from ..files import LeftOut, delete_dead_files, write_left_out
from ..processes import local_main_process_first
from .crops import Batch, CropDataset, validation_crop
from .latent_file import load_latent_clips
from .latents import LatentDataset, cache_latents, encoder_fingerprint
from .preparation import CachedClip, Preparation, prepare_clips
from .sources import MediaFile, find_sources
from .streaming import StreamedClip, StreamedCrops, find_addressed, find_streamed

logger = logging.get_logger(__name__)

LEFT_OUT = "left_out.jsonl"
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

    The output folder gets `left_out.jsonl`, a list of the files and clips that are not used, with reasons, and
    `degradation.json`, what made the low-resolution clips of training.

    Args:
        arguments (`argparse.Namespace`): of [`~ultraflash_diffusers.training.loop.arguments.training_parser`].
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
        ValueError: crops, a number of validation frames or a degradation that cannot be, or unusable clips.
        OSError: the cache cannot be written, for instance because the disk is full.
    """
    _check(arguments, spatial, temporal)
    training, validation = _preparations(arguments, scale, versions)
    left_out: list[LeftOut] = []
    workers = max(1, arguments.dataloader_num_workers)
    with local_main_process_first(accelerator):
        cache = cache_folder(arguments)
        delete_dead_files(cache)
        if arguments.stream:
            streamed = _streamed(arguments, cache, training, left_out)
        else:
            clips = prepare_clips(_training_sources(arguments, cache, left_out), cache, training, left_out, workers)
        held_out_clips = _held_out_clips(arguments, validation, left_out)
    settings = (
        arguments.crops,
        arguments.train_batch_size,
        arguments.crop_weights,
        scale,
        with_flow,
        arguments.seed,
        batches_per_step(arguments, accelerator),
        _may(arguments, "random_flip"),
        _may(arguments, "random_reversal"),
    )
    dataset = StreamedCrops(streamed, training, *settings) if arguments.stream else CropDataset(clips, *settings)
    _report_missing_captions(dataset.clips, arguments.caption_column)
    batches = _validation_batches(arguments, held_out_clips, spatial, scale, left_out)
    _report_left_out(arguments, accelerator, dataset, left_out)
    if accelerator.is_main_process and training.degradation is not None:
        description = json.dumps(to_config(training.degradation), indent=2)
        (arguments.output_dir / "degradation.json").write_text(description + "\n")
    return dataset, batches


def load_cascade_data(
    arguments: argparse.Namespace,
    accelerator: Accelerator,
    transformer: UltraFlashSRTransformer,
    upsampler: CausalLatentUpsampler,
    autoencoder: HRAutoencoder,
    with_flow: bool,
) -> tuple[CropDataset, list[Batch]]:
    """[`load_data`] for the SR transformer: low-resolution crops are whole latents, the others whole patches.

    Args:
        arguments (`argparse.Namespace`): see [`load_data`].
        accelerator (`Accelerator`): see [`load_data`].
        transformer, upsampler, autoencoder: the networks of the cascade.
        with_flow (`bool`): whether batches hold optical flow.
    """
    scale, temporal = upsampler.config.scale, autoencoder.temporal_compression_ratio
    spatial = _side_of_crops(transformer, scale, autoencoder)
    return load_data(arguments, accelerator, spatial, temporal, with_flow, scale, arguments.degraded_versions)


def _side_of_crops(transformer: UltraFlashSRTransformer, scale: int, encoder: VideoEncoder) -> int:
    """Pixels of which the sides of the cascade's crops must be multiples."""
    return encoder.spatial_compression_ratio * math.lcm(scale, *transformer.config.patch_size[1:])


def load_latents(
    arguments: argparse.Namespace, accelerator: Accelerator, encoder: VideoEncoder, dataset: CropDataset
) -> LatentDataset:
    """Encodes the clips of a dataset once, for stages that train without pixels; the cache folder keeps the latents.

    Args:
        arguments (`argparse.Namespace`): the ones that [`load_data`] made the dataset of.
        accelerator (`Accelerator`): its first local process encodes, the others wait.
        encoder (`VideoEncoder`): which stays as it is during training.
        dataset (`CropDataset`): of [`load_data`].

    Returns:
        `LatentDataset`: of the same crop sizes.

    Raises:
        ValueError: crops that are not whole latents, or no clip that is large enough.
        OSError: the cache cannot be written, for instance because the disk is full.
    """
    spatial, temporal = encoder.spatial_compression_ratio, encoder.temporal_compression_ratio
    left_out = list(dataset.left_out)
    with local_main_process_first(accelerator):
        clips = cache_latents(
            dataset.clips,
            encoder.to(accelerator.device),
            cache_folder(arguments),
            dataset.crops,
            spatial * (dataset.scale or 1),
            left_out,
        )
    latents = LatentDataset(
        clips,
        dataset.crops,
        arguments.train_batch_size,
        spatial,
        temporal,
        arguments.crop_weights,
        dataset.scale,
        arguments.seed,
        dataset.batches_per_step,
    )
    _report_left_out(arguments, accelerator, latents, left_out)
    return latents


def load_latent_file(
    arguments: argparse.Namespace,
    accelerator: Accelerator,
    transformer: UltraFlashSRTransformer,
    upsampler: CausalLatentUpsampler,
    encoder: VideoEncoder,
) -> tuple[LatentDataset, list[Batch]]:
    """[`load_cascade_data`] of latents that `--pack_latents` has written: `--train_data_dir` is their file.

    Args:
        arguments (`argparse.Namespace`): see [`load_data`].
        accelerator (`Accelerator`): see [`load_data`].
        transformer, upsampler: the networks of the cascade.
        encoder (`VideoEncoder`): which must have made the latents.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another kind of file or of another encoder; see also [`load_data`].
    """
    scale, temporal = upsampler.config.scale, encoder.temporal_compression_ratio
    spatial = _side_of_crops(transformer, scale, encoder)
    _check(arguments, spatial, temporal)
    left_out: list[LeftOut] = []
    clips = load_latent_clips(arguments.train_data_dir, encoder_fingerprint(encoder))
    with local_main_process_first(accelerator):
        held_out = _held_out_clips(arguments, _preparations(arguments, scale, 1)[1], left_out)
    dataset = LatentDataset(
        clips,
        arguments.crops,
        arguments.train_batch_size,
        encoder.spatial_compression_ratio,
        temporal,
        arguments.crop_weights,
        scale,
        arguments.seed,
        batches_per_step(arguments, accelerator),
    )
    batches = _validation_batches(arguments, held_out, spatial, scale, left_out)
    _report_left_out(arguments, accelerator, dataset, left_out)
    return dataset, batches


def _held_out_clips(arguments: argparse.Namespace, how: Preparation, left_out: list[LeftOut]) -> list[CachedClip]:
    if arguments.validation_data_dir is None:
        return []
    sources = find_sources(arguments.validation_data_dir, _caption_key(arguments), left_out)
    return prepare_clips(sources, cache_folder(arguments), how, left_out, max(1, arguments.dataloader_num_workers))


def _validation_batches(
    arguments: argparse.Namespace, clips: list[CachedClip], spatial: int, scale: int | None, left_out: list[LeftOut]
) -> list[Batch]:
    long = _long_enough(clips, arguments.validation_frames, left_out)
    return [validation_crop(clip, arguments.validation_frames, spatial, scale is not None) for clip in long]


def batches_per_step(arguments: argparse.Namespace, accelerator: Accelerator) -> int:
    """How many batches all processes together take for one step of the optimiser."""
    together = arguments.ring_degree * arguments.ulysses_degree
    return arguments.gradient_accumulation_steps * accelerator.num_processes // together


def cache_folder(arguments: argparse.Namespace) -> Path:
    """Where a run keeps what it makes of its clips and texts."""
    return arguments.cache_dir or arguments.output_dir / "cache"


def _may(arguments: argparse.Namespace, change: str) -> bool:
    """Whether clips are mirrored or played backwards: by default not where their texts are learnt, too."""
    given = getattr(arguments, change)
    return vars(arguments).get("text_encoder") is None if given is None else given == "yes"


def _check(arguments: argparse.Namespace, spatial: int, temporal: int) -> None:
    if arguments.stream and vars(arguments).get("cache_latents"):
        raise ValueError("--stream reads videos as batches are made: it has no --cache_latents")
    for crop in arguments.crops:
        crop.check(spatial, temporal)
    if arguments.validation_frames % temporal != 1 % temporal:
        raise ValueError(f"`validation_frames` must be {temporal} n + 1, got {arguments.validation_frames}")


def _preparations(arguments: argparse.Namespace, scale: int | None, versions: int) -> tuple[Preparation, Preparation]:
    """How training clips and held-out ones are prepared."""
    common = {
        "resolution": arguments.resolution,
        "clip_frames": arguments.clip_frames,
        "scale": scale or 1,
        "fps": arguments.fps,
    }
    if scale is None:
        return Preparation(**common, seed=arguments.seed), Preparation(**common)
    degradation = load_degradation(arguments.degradation, scale)
    held_out = Compose(Downscale(scale), H264(VALIDATION_CRF))
    return (
        Preparation(**common, seed=arguments.seed, degradation=degradation, versions=versions),
        Preparation(**common, degradation=held_out, versions=1),
    )


def load_degradation(name_or_file: str, scale: int) -> Transform:
    """Makes a preset's degradation, or the one that a JSON file describes.

    Args:
        name_or_file (`str`): of [`~ultraflash_diffusers.degradation.degradation_preset`], or a file of
            [`~ultraflash_diffusers.degradation.to_config`]'s result.
        scale (`int`): how many times smaller a preset makes clips.

    Raises:
        ValueError: neither a preset nor a file of this kind.
    """
    if name_or_file in PRESETS:
        return degradation_preset(name_or_file, scale)
    file = Path(name_or_file)
    if not file.is_file():
        raise ValueError(f"`degradation` must be one of {sorted(PRESETS)} or a JSON file, got {name_or_file!r}")
    try:
        return from_config(json.loads(file.read_text()))
    except ValueError as error:
        raise ValueError(f"`degradation` {name_or_file!r}: {error}") from error


def _long_enough(clips: list[CachedClip], frames: int, left_out: list[LeftOut]) -> list[CachedClip]:
    """Leaves out what is too short to be validated, such as the ends of longer videos; not if all clips are."""
    long, short = ([clip for clip in clips if (clip.frames >= frames) == wanted] for wanted in (True, False))
    if not long:
        return clips
    left_out += [
        LeftOut(str(clip.high), f"its {clip.frames} frames are less than validation's {frames}") for clip in short
    ]
    return long


def _report_left_out(
    arguments: argparse.Namespace,
    accelerator: Accelerator,
    dataset: CropDataset | StreamedCrops,
    left_out: list[LeftOut],
) -> None:
    """Lists what is not used, before a dataset and by it, in the dataset and in a file."""
    dataset.left_out = left_out + dataset.left_out
    if not accelerator.is_main_process:
        return
    file = arguments.output_dir / LEFT_OUT
    if dataset.left_out:
        logger.warning(f"{len(dataset.left_out)} files or clips are not used: {str(file)!r} says why")
    write_left_out(file, dataset.left_out)


def _report_missing_captions(clips: list[CachedClip], caption_column: str | None) -> None:
    """Clips may do without captions, but not where a column of captions was asked for in vain.

    Raises:
        ValueError: `caption_column` was given, and no clip has a text.
    """
    silent = [clip for clip in clips if not clip.text]
    if caption_column is not None and len(silent) == len(clips):
        raise ValueError(f"`caption_column` {caption_column!r}: not one of the {len(clips)} clips has a text there")
    if 0 < len(silent) < len(clips):
        names = ", ".join(sorted({clip.high.parent.name for clip in silent})[:3])
        logger.warning(f"{len(silent)} of {len(clips)} clips have no text, and get the empty one: {names}...")


def _caption_key(arguments: argparse.Namespace) -> str:
    return arguments.caption_column or "text"


def _without_own_output(
    sources: list[MediaFile], arguments: argparse.Namespace, left_out: list[LeftOut]
) -> list[MediaFile]:
    """Leaves out what runs have made, where their folder is inside the data's."""
    made = [arguments.output_dir / "validation", cache_folder(arguments)]
    if arguments.train_data_dir.resolve() in arguments.output_dir.resolve().parents:
        made.append(arguments.output_dir)
    folders = {folder.resolve() for folder in made}
    own = [source for source in sources if folders & {*source.path.resolve().parents}]
    left_out += [LeftOut(str(source.path), "it is this run's own output") for source in own]
    return [source for source in sources if source not in own]


def _streamed(
    arguments: argparse.Namespace, cache: Path, how: Preparation, left_out: list[LeftOut]
) -> list[StreamedClip]:
    if arguments.dataset_name is None:
        return find_streamed(arguments.train_data_dir, cache, how, _caption_key(arguments), left_out)
    from .video_dataset import dataset_addresses  # slow to import, and needed by no one else

    columns = (arguments.dataset_config_name, arguments.video_column, arguments.caption_column)
    addresses = dataset_addresses(arguments.dataset_name, *columns)
    return find_addressed(addresses, arguments.dataset_name, cache, how, left_out)


def _training_sources(arguments: argparse.Namespace, cache: Path, left_out: list[LeftOut]) -> list[MediaFile]:
    if arguments.dataset_name is None:
        sources = find_sources(arguments.train_data_dir, _caption_key(arguments), left_out)
        return _without_own_output(sources, arguments, left_out)
    # `datasets` is slow to import, and needed by no one else
    from .video_dataset import dataset_sources

    return dataset_sources(
        arguments.dataset_name,
        cache / "videos",
        arguments.dataset_config_name,
        arguments.video_column,
        arguments.caption_column,
        left_out,
    )
