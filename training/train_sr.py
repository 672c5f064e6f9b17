# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Trains the super-resolution transformer on real clips: as a multi-step flow-matching model, or at once in one step.

    python training/train_sr.py --objective one_step --network_config sr.json --autoencoder outputs/autoencoder \
        --latent_upsampler outputs/upsampler --train_data_dir clips --validation_data_dir held_out \
        --output_dir outputs/sr
"""

from __future__ import annotations

import argparse
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import set_seed

from ultraflash_diffusers import CausalLatentUpsampler, HRAutoencoder, UltraFlashSRTransformer
from ultraflash_diffusers.models.video_encoder import VideoEncoder
from ultraflash_diffusers.training.data.crops import Batch, CropDataset
from ultraflash_diffusers.training.data.inputs import cache_folder, load_cascade_data, load_latent_file, load_latents
from ultraflash_diffusers.training.data.latent_file import SUFFIX, save_latents
from ultraflash_diffusers.training.data.latents import encoder_fingerprint
from ultraflash_diffusers.training.data.planned import planned_cascade_batch
from ultraflash_diffusers.training.data.prompts import Prompts, text_pipeline, texts_of
from ultraflash_diffusers.training.loop.accelerator import make_accelerator
from ultraflash_diffusers.training.loop.arguments import (
    add_cascade_arguments,
    add_perceptual_argument,
    add_start_arguments,
    training_parser,
    weigh_perceptual_loss,
)
from ultraflash_diffusers.training.loop.command_line import run_script
from ultraflash_diffusers.training.loop.memory_plan import dry_run
from ultraflash_diffusers.training.loop.train import train
from ultraflash_diffusers.training.losses.linear_decoding import check_linear_shortcut
from ultraflash_diffusers.training.losses.perceptual import PerceptualLoss
from ultraflash_diffusers.training.processes import local_main_process_first
from ultraflash_diffusers.training.settings import add_choice, complete_choice, read_settings
from ultraflash_diffusers.training.stages.decoded import OneStep, OneStepTraining
from ultraflash_diffusers.training.stages.sr import FlowMatching, FlowMatchingTraining, SRTraining, start_transformer
from ultraflash_diffusers.training.starting_points.networks import (
    StreamSettings,
    load_encoder,
    load_network,
    without_weights,
)

OBJECTIVES: dict[str, type[OneStep] | type[FlowMatching]] = {"one_step": OneStep, "flow_matching": FlowMatching}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = training_parser(
        "Trains the super-resolution transformer.", crops="9x192x256", learning_rate=1e-5, degrades=True
    )
    wan = "folder or repository of a Wan T2V model to widen (dense attention)"
    add_cascade_arguments(add_start_arguments(parser, "UltraFlashSRTransformer", wan=wan))
    add_choice(parser, OBJECTIVES)
    add_perceptual_argument(parser.add_argument_group("judge (one_step only)"))
    parser.add_argument(
        "--cache_latents",
        action="store_true",
        help="encode the clips once and train on their latents, without mirroring and playing backwards; crops begin "
        "with the first frame of a clip (flow_matching only)",
    )
    parser.add_argument(
        "--pack_latents",
        type=Path,
        metavar="FILE.safetensors",
        help="with --cache_latents: write the latents and their texts into one file, in float16, and end; "
        "--train_data_dir FILE.safetensors then trains on them, without clips or PyAV",
    )
    parsed = parser.parse_args(arguments)
    if parsed.objective == "one_step":
        weigh_perceptual_loss(parser, parsed)
    elif parsed.perceptual_loss is not None:
        parser.error("--perceptual_loss needs --objective one_step: flow matching decodes nothing")
    complete_choice(parser, parsed, OBJECTIVES)
    if parsed.pack_latents is not None and (not parsed.cache_latents or parsed.pack_latents.suffix != SUFFIX):
        parser.error(f"--pack_latents needs --cache_latents, and a name that ends in {SUFFIX}")
    if _is_packed(parsed):
        if parsed.pack_latents is not None:
            parser.error("--pack_latents: --train_data_dir holds packed latents already")
        parsed.cache_latents = True
    if parsed.cache_latents and parsed.objective == "one_step":
        parser.error("cached latents need --objective flow_matching: a single step is compared in pixels")
    if parsed.rank is not None and parsed.pretrained_wan is not None:
        parser.error(
            "--rank with --pretrained_wan: LoRA layers would leave the condition's input weights at zero, where they "
            "begin; train the whole network first"
        )
    return parsed


def _is_packed(arguments: argparse.Namespace) -> bool:
    """Whether `--train_data_dir` is a file of latents."""
    return arguments.train_data_dir is not None and arguments.train_data_dir.suffix == SUFFIX


def load_networks(
    arguments: argparse.Namespace,
) -> tuple[UltraFlashSRTransformer, CausalLatentUpsampler, HRAutoencoder]:
    autoencoder = load_network(HRAutoencoder, arguments.autoencoder, "autoencoder")
    check_linear_shortcut(arguments, arguments.autoencoder, autoencoder)
    upsampler = load_network(CausalLatentUpsampler, arguments.latent_upsampler, "latent_upsampler")
    networks = (start_transformer(arguments), upsampler, autoencoder)
    if arguments.gradient_checkpointing:
        for network in networks:
            network.enable_gradient_checkpointing()
    return networks


def load_clips(
    arguments: argparse.Namespace,
    accelerator: Accelerator,
    networks: tuple[UltraFlashSRTransformer, CausalLatentUpsampler, HRAutoencoder],
    encoder: VideoEncoder,
    with_flow: bool,
) -> tuple[CropDataset, list[Batch]]:
    """Clips, their latents, or the latents that a file has."""
    if _is_packed(arguments):
        return load_latent_file(arguments, accelerator, *networks[:2], encoder)
    dataset, validation = load_cascade_data(arguments, accelerator, *networks, with_flow)
    if arguments.cache_latents:
        dataset = load_latents(arguments, accelerator, encoder, dataset)
    return dataset, validation


def make_stage(
    arguments: argparse.Namespace,
    networks: tuple[UltraFlashSRTransformer, CausalLatentUpsampler, HRAutoencoder],
    prompts: Prompts,
    objective: OneStep | FlowMatching,
) -> SRTraining:
    """What the objective asks for, with the judge that the arguments name."""
    if isinstance(objective, FlowMatching):
        return FlowMatchingTraining(*networks, prompts, objective)
    perceptual = None if arguments.perceptual_loss is None else PerceptualLoss(arguments.perceptual_loss)
    return OneStepTraining(*networks, prompts, objective, perceptual)


def main(arguments: argparse.Namespace) -> dict[str, float]:
    set_seed(arguments.seed)
    objective: OneStep | FlowMatching = read_settings(arguments, OBJECTIVES[arguments.objective])
    with without_weights(arguments.dry_run):
        networks = load_networks(arguments)
        encoder = load_encoder(arguments.autoencoder, networks[-1])
    transformer, upsampler, autoencoder = networks
    one_step = objective if isinstance(objective, OneStep) else None
    with_flow = one_step is not None and one_step.pixel_loss.needs_flow
    if arguments.dry_run:
        stage = make_stage(arguments, networks, Prompts.none(transformer), objective).encode_by(encoder)
        return dry_run(stage, planned_cascade_batch(arguments, upsampler, autoencoder, with_flow), arguments)
    accelerator = make_accelerator(arguments, leaves_out_parameters=one_step is not None and one_step.alternates)
    dataset, validation = load_clips(arguments, accelerator, networks, encoder, with_flow)
    if arguments.pack_latents is not None:
        if accelerator.is_main_process:
            save_latents(dataset.clips, encoder_fingerprint(encoder), arguments.pack_latents)
        return {}
    pipe = text_pipeline(arguments.text_encoder, *networks, accelerator.device)
    with local_main_process_first(accelerator):
        prompts = Prompts.embed(texts_of(dataset, validation), pipe, cache_folder(arguments))
    del pipe  # the text encoder would take more memory than the training
    stage = make_stage(arguments, networks, prompts, objective).encode_by(encoder)
    stage.streams = StreamSettings.of(arguments.pretrained_model_name_or_path)
    return train(stage, dataset, validation, arguments, accelerator)


if __name__ == "__main__":
    run_script(main, parse_arguments)
