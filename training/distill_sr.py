# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Distils a multi-step super-resolution transformer to a causal, block-sparse, one-step one (the paper's Phase I).

    python training/distill_sr.py --teacher outputs/sr_teacher --autoencoder outputs/autoencoder \
        --latent_upsampler outputs/upsampler --train_data_dir clips --validation_data_dir held_out \
        --guidance_drops condition --reward packaged --output_dir outputs/sr_one_step
"""

from __future__ import annotations

import argparse

from accelerate.utils import set_seed

from ultraflash_diffusers.rewards import load_reward
from ultraflash_diffusers.training.data.inputs import cache_folder, load_cascade_data
from ultraflash_diffusers.training.data.planned import planned_cascade_batch
from ultraflash_diffusers.training.data.prompts import Prompts, text_pipeline, texts_of
from ultraflash_diffusers.training.loop.accelerator import make_accelerator
from ultraflash_diffusers.training.loop.arguments import (
    add_cascade_arguments,
    add_perceptual_argument,
    add_reward_arguments,
    training_parser,
    weigh_perceptual_loss,
)
from ultraflash_diffusers.training.loop.command_line import run_script
from ultraflash_diffusers.training.loop.memory_plan import dry_run
from ultraflash_diffusers.training.loop.train import train
from ultraflash_diffusers.training.losses.perceptual import PerceptualLoss
from ultraflash_diffusers.training.processes import local_main_process_first
from ultraflash_diffusers.training.settings import add_settings, complete_settings, read_settings
from ultraflash_diffusers.training.stages.distillation import (
    DistillationObjective,
    DistillationTraining,
    load_networks,
)
from ultraflash_diffusers.training.starting_points.networks import StreamSettings, load_encoder, without_weights

REWARD_WEIGHT = 1e-3


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = training_parser(
        "Distils the super-resolution transformer.", crops="9x192x256", learning_rate=2e-6, degrades=True
    )
    parser.set_defaults(ema_interval=None)
    networks = parser.add_argument_group("networks")
    networks.add_argument("--teacher", required=True, help="folder or repository of the multi-step transformer")
    networks.add_argument(
        "--pretrained_model_name_or_path",
        help="folder or repository of the student to go on from; the teacher's copy with sparse attention without it",
    )
    add_cascade_arguments(networks)
    add_settings(parser, DistillationObjective, title="objective")
    judges = parser.add_argument_group("judges: weighed by 0.0002 (quality_scorer), 0.5 (others), 0.001 (rewards)")
    add_perceptual_argument(judges)
    add_reward_arguments(judges)
    parsed = parser.parse_args(arguments)
    _weigh_judges(parser, parsed)
    complete_settings(parser, parsed, DistillationObjective)
    _check(parser, parsed)
    if parsed.ema_interval is None:
        parsed.ema_interval = parsed.fake_updates + 1  # the student changes once a cycle
    return parsed


def _weigh_judges(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> None:
    weigh_perceptual_loss(parser, parsed)
    for name in ("reward_weight", "reward_weights"):
        if vars(parsed)[name] is not None and parsed.reward is None:
            parser.error(f"--{name} needs --reward")
    if parsed.reward_weight is None and parsed.reward is not None:
        parsed.reward_weight = REWARD_WEIGHT


def _check(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> None:
    if parsed.guidance_scale > 1 and parsed.guidance_drops == "text" and parsed.text_encoder is None:
        parser.error(
            "--guidance_drops text needs --text_encoder: without texts there is no guidance by them; drop the "
            "condition, or --guidance_scale 1"
        )
    for crop in parsed.crops:
        if crop.height % 2**parsed.wavelet_levels or crop.width % 2**parsed.wavelet_levels:
            parser.error(f"--wavelet_levels {parsed.wavelet_levels}: crop {crop} cannot be halved so often")


def main(arguments: argparse.Namespace) -> dict[str, float]:
    set_seed(arguments.seed)
    objective = read_settings(arguments, DistillationObjective)
    with without_weights(arguments.dry_run):
        networks = load_networks(arguments)
        encoder = load_encoder(arguments.autoencoder, networks.autoencoder)
    student, around, with_flow = networks.student, networks.around, objective.pixel_loss.needs_flow
    reward = None if arguments.reward is None else load_reward(arguments.reward, arguments.reward_weights)
    perceptual = None if arguments.perceptual_loss is None else PerceptualLoss(arguments.perceptual_loss)
    if arguments.dry_run:
        prompts = Prompts.none(student)
        stage = DistillationTraining(*networks.transformers, *around, prompts, objective, reward, perceptual)
        return dry_run(stage.encode_by(encoder), planned_cascade_batch(arguments, *around, with_flow), arguments)
    accelerator = make_accelerator(arguments, leaves_out_parameters=True)
    dataset, validation = load_cascade_data(arguments, accelerator, student, *around, with_flow)
    pipe = text_pipeline(arguments.text_encoder, student, *around, accelerator.device)
    with local_main_process_first(accelerator):
        prompts = Prompts.embed(texts_of(dataset, validation), pipe, cache_folder(arguments))
    del pipe  # the text encoder would take more memory than the training
    stage = DistillationTraining(*networks.transformers, *around, prompts, objective, reward, perceptual)
    stage.streams = StreamSettings.of(arguments.pretrained_model_name_or_path)
    return train(stage.encode_by(encoder), dataset, validation, arguments, accelerator)


if __name__ == "__main__":
    run_script(main, parse_arguments)
