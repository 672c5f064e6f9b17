# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Command-line arguments that all training scripts share, named as in diffusers' own training scripts."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from diffusers.optimization import SchedulerType

from ..data.crops import Crop
from ..losses.pixels import PixelLoss

T = TypeVar("T", int, float)

PIXEL_LOSS_WEIGHTS = (
    "charbonnier_weight",
    "mse_weight",
    "temporal_weight",
    "wavelet_weight",
    "ssim_weight",
    "contrast_weight",
)


def training_parser(
    description: str,
    crops: str = "9x128x128",
    learning_rate: float = 2e-4,
    takes_prompts: bool = False,
    takes_scenes: bool = False,
) -> argparse.ArgumentParser:
    """Makes a parser of the arguments that the data and the loop read.

    Args:
        description (`str`): what the script does.
        crops (`str`, *optional*, defaults to `"9x128x128"`): the default crop.
        learning_rate (`float`, *optional*, defaults to 2e-4): the default learning rate.
        takes_prompts (`bool`, *optional*, defaults to `False`): whether prompts may take the place of clips.
        takes_scenes (`bool`, *optional*, defaults to `False`): whether synthetic scenes may, or come beside clips.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    _add_data_arguments(parser, crops, takes_prompts, takes_scenes)
    _add_optimisation_arguments(parser, learning_rate)
    _add_run_arguments(parser)
    return parser


def add_pixel_loss_arguments(parser: argparse.ArgumentParser, **weights: float) -> None:
    """Adds the weights of [`PixelLoss`], whose defaults `weights` override."""
    group = parser.add_argument_group("pixel loss")
    default = PixelLoss(**weights)  # type: ignore[arg-type]
    for name in PIXEL_LOSS_WEIGHTS:
        group.add_argument(f"--{name}", type=non_negative(float), default=getattr(default, name), help=" ")
    group.add_argument(
        "--temporal_loss",
        choices=("warped", "difference"),
        default=default.temporal_loss,
        help="optical-flow-warped (the paper's), or the difference of frame differences, which needs no flow",
    )


def add_color_correction_argument(parser: argparse.ArgumentParser) -> None:
    """Adds the color correction of [`PixelLoss`], for stages whose clips have a low-resolution source."""
    parser.add_argument(
        "--color_correction_levels",
        type=positive(int),
        help="pixel losses after wavelet color correction with this many levels, plus 0.3 times those before it; "
        "no correction without it",
    )


def add_decoder_arguments(parser: argparse.ArgumentParser, note: str = "") -> None:
    """Adds what trains the decoder along with the transformer; `note` ends the switch's help."""
    parser.add_argument("--train_decoder", action="store_true", help=f"tunes the decoder along with it{note}")
    parser.add_argument("--decoder_learning_rate", type=positive(float), help="0.3 times the other one by default")
    parser.add_argument(
        "--reconstruction_every",
        type=positive(int),
        help="with --train_decoder: one batch in so many is the autoencoder's plain reconstruction; none without it",
    )


def complete_decoder_arguments(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> None:
    """Refuses arguments of [`add_decoder_arguments`] that contradict each other, and sets the learning rate.

    It is `None` where the decoder is not trained.
    """
    if parsed.train_decoder and vars(parsed).get("decode_linearly"):
        parser.error("--decode_linearly leaves out the decoder that --train_decoder would train")
    for name in ("decoder_learning_rate", "reconstruction_every"):
        if vars(parsed)[name] is not None and not parsed.train_decoder:
            parser.error(f"--{name} needs --train_decoder")
    if parsed.reconstruction_every == 1:
        parser.error("--reconstruction_every 1 leaves no batch to what is trained beside: it must be 2 or more")
    if parsed.train_decoder and parsed.decoder_learning_rate is None:
        parsed.decoder_learning_rate = 0.3 * parsed.learning_rate


def add_channel_weights_argument(parser: argparse.ArgumentParser) -> None:
    """Adds what makes errors of latents count by [`pixel_weights`], for stages that compare latents."""
    parser.add_argument(
        "--weigh_channels",
        action="store_true",
        help="errors of latents count as much as they show in pixels, through the autoencoder's linear shortcut",
    )


def pixel_loss(arguments: argparse.Namespace) -> PixelLoss:
    """Makes the loss that [`add_pixel_loss_arguments`]'s arguments describe."""
    weights = {name: getattr(arguments, name) for name in PIXEL_LOSS_WEIGHTS}
    return PixelLoss(**weights, temporal_loss=arguments.temporal_loss)


def positive(kind: Callable[[str], T]) -> Callable[[str], T]:
    """A type for `add_argument`: a number of this kind above 0."""
    return _bounded(kind, lambda value: value > 0, "above 0")


def non_negative(kind: Callable[[str], T]) -> Callable[[str], T]:
    """A type for `add_argument`: a number of this kind, 0 or above."""
    return _bounded(kind, lambda value: value >= 0, "0 or above")


def share(text: str) -> float:
    """A type for `add_argument`: a number in [0, 1]."""
    return _bounded(float, lambda value: 0 <= value <= 1, "in [0, 1]")(text)


def _bounded(kind: Callable[[str], T], fits: Callable[[T], bool], what: str) -> Callable[[str], T]:
    def parse(text: str) -> T:
        value = kind(text)
        if not fits(value):
            raise argparse.ArgumentTypeError(f"must be {what}, got {text}")
        return value

    parse.__name__ = kind.__name__  # what argparse calls it where `kind` itself fails
    return parse


def _crop(text: str) -> Crop:
    try:
        return Crop.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _add_data_arguments(parser: argparse.ArgumentParser, crops: str, takes_prompts: bool, takes_scenes: bool) -> None:
    group = parser.add_argument_group("data")
    source = group.add_mutually_exclusive_group(required=not takes_scenes)
    source.add_argument(
        "--train_data_dir",
        type=Path,
        help="folder of videos and pictures, optionally with a metadata.jsonl of file_name and text",
    )
    source.add_argument("--dataset_name", help="dataset of videos, on the Hub or in a folder; its `train` split")
    if takes_prompts:
        source.add_argument("--prompts", type=Path, help="text file, one prompt a line, for the pipeline's generator")
    if takes_scenes:
        group.add_argument(
            "--synthetic_scenes",
            action="store_true",
            help="objects of a colour that move over a background, alone or beside the clips",
        )
    group.add_argument("--dataset_config_name", help="which of the dataset's configurations")
    group.add_argument("--video_column", default="video", help="the dataset's column of videos")
    group.add_argument(
        "--caption_column",
        help="the dataset's column of texts, no texts without it; or the one of metadata.jsonl, `text` without it",
    )
    group.add_argument(
        "--degradation",
        default="mild",
        metavar="{aigc,classic,mild,FILE}",
        help="what makes low-resolution clips of training clips, for stages that need them: a preset, or a JSON file "
        "such as the degradation.json of an earlier run",
    )
    group.add_argument("--validation_data_dir", type=Path, help="folder of held-out clips; no validation without it")
    group.add_argument("--cache_dir", type=Path, help="where decoded clips are kept; OUTPUT_DIR/cache by default")
    group.add_argument(
        "--resolution", type=positive(int), help="clips' shorter side; larger ones are made smaller, none is enlarged"
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
    group.add_argument("--ema_start_step", type=non_negative(int), default=0, help="step at which averaging starts")
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
    group.add_argument("--push_to_hub", action="store_true", help="upload the result to the Hub")
    group.add_argument("--hub_model_id", help="repository to upload to; the output folder's name by default")
