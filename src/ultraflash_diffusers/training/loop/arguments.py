# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Command-line arguments that all training scripts share, named as in diffusers' own training scripts."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from diffusers.optimization import SchedulerType

from ..data.crops import Crop
from ..losses.perceptual import PERCEPTUAL_LOSSES, PERCEPTUAL_WEIGHTS
from ..settings import NON_NEGATIVE, POSITIVE, SHARE, Number, bounded
from .command_line import TrainingParser


def training_parser(
    description: str,
    crops: str = "9x128x128",
    learning_rate: float = 2e-4,
    takes_prompts: bool = False,
    takes_scenes: bool = False,
    degrades: bool = False,
    takes_clips: bool = True,
) -> TrainingParser:
    """Makes a parser of the arguments that the data and the loop read.

    Args:
        description (`str`): what the script does.
        crops (`str`, *optional*, defaults to `"9x128x128"`): the default crop.
        learning_rate (`float`, *optional*, defaults to 2e-4): the default learning rate.
        takes_prompts (`bool`, *optional*, defaults to `False`): whether prompts may take the place of clips.
        takes_scenes (`bool`, *optional*, defaults to `False`): whether synthetic scenes may, or come beside clips.
        degrades (`bool`, *optional*, defaults to `False`): whether clips get low-resolution versions.
        takes_clips (`bool`, *optional*, defaults to `True`): `False` for trainings that draw all that they learn from.
    """
    parser = TrainingParser(description)
    if takes_clips:
        _add_data_arguments(parser, crops, takes_prompts, takes_scenes, degrades)
    _add_optimisation_arguments(parser, learning_rate)
    _add_run_arguments(parser)
    return parser


def add_start_arguments(
    parser: argparse.ArgumentParser, network: str, required: bool = True, wan: str | None = None
) -> argparse._ArgumentGroup:
    """Adds where the network to train comes from: see [`~starting_points.networks.start_network`].

    Args:
        parser (`argparse.ArgumentParser`): gets a group of arguments.
        network (`str`): name of its class.
        required (`bool`, *optional*, defaults to `True`): `False` if the class' own defaults make one, too.
        wan (`str`, *optional*): help of `--pretrained_wan`, for networks that can begin with Wan's weights.

    Returns:
        the group.
    """
    group = parser.add_argument_group("networks")
    start = group.add_mutually_exclusive_group(required=required)
    note = "" if required else "; its defaults without it"
    start.add_argument(
        "--network_config", type=Path, help=f"JSON file of {network}'s arguments, for a new network{note}"
    )
    start.add_argument("--pretrained_model_name_or_path", help="folder or repository of the network to go on from")
    if wan is not None:
        start.add_argument("--pretrained_wan", help=wan)
    return group


def add_cascade_arguments(group: argparse._ArgumentGroup) -> None:
    """Adds the networks around the super-resolution transformer, and what of it is trained."""
    group.add_argument("--autoencoder", required=True, help="folder or repository of the autoencoder")
    group.add_argument("--latent_upsampler", required=True, help="folder or repository of the latent upsampler")
    group.add_argument(
        "--text_encoder", help="pipeline folder or repository with `text_encoder` and `tokenizer`; no text without it"
    )
    add_lora_arguments(group)


def add_lora_arguments(group: argparse._ArgumentGroup) -> None:
    """Adds LoRA layers."""
    group.add_argument("--rank", type=positive(int), help="trains LoRA layers of this rank instead of the network")
    group.add_argument("--lora_alpha", type=positive(float), help="their scale is alpha / rank; the rank by default")
    group.add_argument("--lora_dropout", type=share, help="share of their inputs that a step leaves out")
    group.add_argument(
        "--lora_target_modules",
        nargs="+",
        metavar="NAME",
        help="layers: attention, ffn, or ends of names such as attn1.to_q; attention by default",
    )
    group.add_argument(
        "--lora_format",
        choices=("diffusers", "original"),
        default="diffusers",
        help="original writes a second file by the original Wan names, which ComfyUI reads",
    )


def add_sample_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what a generator's samples are."""
    samples = parser.add_argument_group("samples")
    samples.add_argument("--sample_chunks", type=positive(int), default=2, help="chunks of a training sample")
    samples.add_argument(
        "--start_share", type=share, default=0.5, help="samples that begin where a clip does, beside those by chance"
    )
    samples.add_argument(
        "--clip_share", type=share, default=0.35, help="samples of clips, where there are synthetic scenes too"
    )
    samples.add_argument(
        "--validation_scenes", type=non_negative(int), default=4, help="held-out scenes (synthetic_scenes)"
    )


def add_reward_arguments(group: argparse._ArgumentGroup, default: list[str] | None = None) -> None:
    """Adds the rewards that judge results."""
    group.add_argument(
        "--reward",
        nargs="+",
        metavar="NAME",
        default=default,
        help="packaged, clip_iqa_plus, musiq, laion_aesthetic, or a folder or repository of a QualityScorer",
    )
    group.add_argument("--reward_weights", type=non_negative(float), nargs="+", help="one a reward; equal by default")


def add_perceptual_argument(group: argparse._ArgumentGroup) -> None:
    """Adds the perceptual loss of decoded results; its weight is one of the objective's settings."""
    group.add_argument("--perceptual_loss", choices=PERCEPTUAL_LOSSES, help="none without it")


def weigh_perceptual_loss(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> None:
    """Gives the perceptual loss the weight that goes with it, if none was named: 0.0002 the scorer, 0.5 the others."""
    if parsed.perceptual_loss is None and parsed.perceptual_weight is not None:
        parser.error("--perceptual_weight needs --perceptual_loss")
    if parsed.perceptual_weight is None:
        parsed.perceptual_weight = PERCEPTUAL_WEIGHTS.get(parsed.perceptual_loss)


def positive(kind: Callable[[str], Number]) -> Callable[[str], Number]:
    """A type for `add_argument`: a number of this kind above 0."""
    return bounded(kind, POSITIVE)


def non_negative(kind: Callable[[str], Number]) -> Callable[[str], Number]:
    """A type for `add_argument`: a number of this kind, 0 or above."""
    return bounded(kind, NON_NEGATIVE)


def share(text: str) -> float:
    """A type for `add_argument`: a number in [0, 1]."""
    return bounded(float, SHARE)(text)


def _crop(text: str) -> Crop:
    try:
        return Crop.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _add_data_arguments(
    parser: argparse.ArgumentParser, crops: str, takes_prompts: bool, takes_scenes: bool, degrades: bool
) -> None:
    group = parser.add_argument_group("data")
    source = group.add_mutually_exclusive_group(required=not takes_scenes)
    source.add_argument(
        "--train_data_dir",
        type=Path,
        help="folder of videos and pictures, optionally with texts: metadata.jsonl or .csv, or a .txt beside each",
    )
    source.add_argument("--dataset_name", help="dataset of videos, on the Hub or in a folder; its `train` split")
    if takes_prompts:
        source.add_argument("--prompts", type=Path, help="text file, one prompt a line, for the pipeline's generator")
    if takes_scenes:
        group.add_argument(
            "--synthetic_scenes",
            type=non_negative(int),
            default=0,
            help="so many clips of a small drawn world, alone or beside the others (default: none)",
        )
    group.add_argument("--dataset_config_name", help="which of the dataset's configurations")
    group.add_argument("--video_column", default="video", help="the dataset's column of videos")
    group.add_argument(
        "--caption_column",
        help="the dataset's column of texts, no texts without it; or the one of metadata.jsonl, `text` without it",
    )
    if degrades:
        group.add_argument(
            "--degradation",
            default="mild",
            metavar="{aigc,classic,mild,FILE}",
            help="what makes low-resolution clips of training clips: a preset, or a JSON file "
            "such as the degradation.json of an earlier run",
        )
        group.add_argument(
            "--degraded_versions", type=positive(int), default=4, help="low-resolution versions of each training clip"
        )
    group.add_argument("--validation_data_dir", type=Path, help="folder of held-out clips; no validation without it")
    group.add_argument("--cache_dir", type=Path, help="where decoded clips are kept; OUTPUT_DIR/cache by default")
    group.add_argument(
        "--stream",
        action="store_true",
        help="decodes and degrades as batches are made, by --dataloader_num_workers, instead of filling a cache: the "
        "videos of --train_data_dir, of its WebDataset shards (boat.mp4 beside boat.txt in .tar files), or of "
        "--dataset_name, where they are files",
    )
    group.add_argument(
        "--resolution", type=positive(int), help="clips' shorter side; larger ones are made smaller, none is enlarged"
    )
    group.add_argument(
        "--fps",
        type=positive(float),
        help="frames a second of clips, of videos that have as many or more; all without it",
    )
    group.add_argument(
        "--clip_frames", type=positive(int), default=97, help="longer videos are cut into clips of this length"
    )
    group.add_argument(
        "--crops",
        type=_crop,
        nargs="+",
        default=[Crop.parse(crops)],
        metavar="FxHxW",
        help="frames, height and width of training crops; one size is drawn for each batch",
    )
    for name, what in (("random_flip", "mirrors half of the crops"), ("random_reversal", "plays a fifth backwards")):
        note = "; by default where no --text_encoder tells left from right, or what comes first"
        group.add_argument(f"--{name}", choices=("yes", "no"), help=what + note)
    group.add_argument("--crop_weights", type=float, nargs="+", help="how often each is drawn; equally by default")
    group.add_argument(
        "--train_batch_size",
        type=positive(int),
        nargs="+",
        default=[4],
        help="crops of a batch, on each device: one number, or one for each size",
    )
    group.add_argument(
        "--dataloader_num_workers",
        type=non_negative(int),
        default=0,
        help="processes that load batches, 0 is the main one; and threads that prepare clips",
    )


def _add_optimisation_arguments(parser: argparse.ArgumentParser, learning_rate: float) -> None:
    group = parser.add_argument_group("optimisation")
    group.add_argument("--max_train_steps", type=positive(int), default=10000, help="optimiser steps")
    group.add_argument(
        "--max_train_seconds",
        type=positive(float),
        help="stops then, if that is earlier; the learning rate's schedule ends then too",
    )
    group.add_argument("--gradient_accumulation_steps", type=positive(int), default=1, help="batches of a step")
    group.add_argument("--gradient_checkpointing", action="store_true", help="less memory, more time")
    group.add_argument("--learning_rate", type=positive(float), default=learning_rate, help=" ")
    group.add_argument(
        "--lr_scheduler",
        choices=[kind.value for kind in SchedulerType if kind is not SchedulerType.PIECEWISE_CONSTANT],
        default="cosine",
        help=" ",
    )
    group.add_argument("--lr_warmup_steps", type=non_negative(int), default=100, help=" ")
    group.add_argument("--adam_beta1", type=share, default=0.9, help=" ")
    group.add_argument("--adam_beta2", type=share, default=0.95, help=" ")
    group.add_argument("--adam_weight_decay", type=non_negative(float), default=0.0, help=" ")
    group.add_argument("--adam_epsilon", type=positive(float), default=1e-8, help=" ")
    group.add_argument(
        "--use_8bit_adam", action="store_true", help="moments in 8 bits; needs bitsandbytes, 0.50 or newer on a CPU"
    )
    group.add_argument("--max_grad_norm", type=positive(float), default=1.0, help=" ")
    group.add_argument("--use_ema", action="store_true", help="average the weights; validate and save the average")
    group.add_argument("--ema_decay", type=share, default=0.995, help="of the average, once it is warm")
    group.add_argument(
        "--ema_start_step",
        type=non_negative(int),
        default=0,
        help="step at which averaging starts; if it is not 0, with the whole decay from there on",
    )
    group.add_argument("--ema_interval", type=positive(int), default=1, help="steps from one averaging to the next")
    group.add_argument("--mixed_precision", choices=("no", "fp16", "bf16"), default="no", help=" ")


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("run")
    group.add_argument("--output_dir", type=Path, required=True, help="for weights, checkpoints and logs")
    group.add_argument("--seed", type=non_negative(int), default=0, help=" ")
    group.add_argument("--checkpointing_steps", type=positive(int), default=500, help="steps between checkpoints")
    group.add_argument("--checkpoints_total_limit", type=positive(int), help="older checkpoints are deleted")
    group.add_argument("--resume_from_checkpoint", help='a checkpoint\'s folder, or "latest"')
    group.add_argument("--validation_steps", type=positive(int), default=500, help="steps between validations")
    group.add_argument("--validation_frames", type=positive(int), default=17, help="frames of each held-out clip")
    group.add_argument("--logging_steps", type=positive(int), default=10, help="steps that a log line averages")
    group.add_argument(
        "--report_to", choices=("none", "tensorboard", "wandb"), default="none", help="a tracker beside log.jsonl"
    )
    group.add_argument(
        "--process_timeout",
        type=positive(float),
        default=50.0,
        help="seconds after which a step is given up that another process does not take part in",
    )
    group.add_argument(
        "--ulysses_degree",
        type=positive(int),
        default=1,
        help="processes that share a clip's tokens, each with some of the attention's heads: for clips that are too "
        "large for one",
    )
    group.add_argument(
        "--ring_degree", type=positive(int), default=1, help="likewise, each with all keys; for dense attention"
    )
    group.add_argument(
        "--dry_run",
        action="store_true",
        help="says tokens, memory, operations and time of the heaviest step, of networks without weights; reads no "
        "clips and writes nothing",
    )
    group.add_argument(
        "--plan_memory", type=positive(float), default=80.0, help="with --dry_run: GiB of a device, to fit into"
    )
    group.add_argument(
        "--plan_processes", type=positive(int), default=1, help="with --dry_run: processes that share it by FSDP2"
    )
    group.add_argument("--push_to_hub", action="store_true", help="upload the result to the Hub")
    group.add_argument("--hub_model_id", help="repository to upload to; the output folder's name by default")
