# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Trains the causal latent upsampler in the latent space of a finished autoencoder (paper, "Latent upsampler").

    python training/train_latent_upsampler.py --network_config upsampler.json --autoencoder outputs/autoencoder \
        --train_data_dir clips --validation_data_dir held_out --output_dir outputs/upsampler --use_ema

`--trunk_channels 96 --trunk_blocks 3` adds a trunk at low resolution to a trained upsampler that
`--pretrained_model_name_or_path` names. `--train_decoder` tunes the autoencoder's decoder along, which learns to make
the best of upsampled latents.
"""

from __future__ import annotations

import argparse

from accelerate.utils import set_seed

from ultraflash_diffusers import CausalLatentUpsampler, HRAutoencoder
from ultraflash_diffusers.training.data.inputs import load_data
from ultraflash_diffusers.training.data.planned import planned_batch
from ultraflash_diffusers.training.loop.accelerator import make_accelerator
from ultraflash_diffusers.training.loop.arguments import add_start_arguments, training_parser
from ultraflash_diffusers.training.loop.command_line import run_script
from ultraflash_diffusers.training.loop.memory_plan import dry_run
from ultraflash_diffusers.training.loop.train import train
from ultraflash_diffusers.training.settings import add_settings, complete_settings, read_settings
from ultraflash_diffusers.training.stages.upsampler import UpsamplerObjective, UpsamplerTraining
from ultraflash_diffusers.training.starting_points.initialization import (
    initialize_convolutions,
    set_bicubic_upsampling,
    with_trunk,
)
from ultraflash_diffusers.training.starting_points.networks import load_network, start_network, without_weights


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = training_parser("Trains the causal latent upsampler.", degrades=True)
    networks = add_start_arguments(parser, "CausalLatentUpsampler")
    networks.add_argument("--autoencoder", required=True, help="folder or repository of the autoencoder")
    trunk = "of a trunk that is added to --pretrained_model_name_or_path, which gives the same results at first: its "
    networks.add_argument("--trunk_channels", type=int, help=trunk + "width")
    networks.add_argument("--trunk_blocks", type=int, help=trunk + "memory blocks")
    add_settings(parser, UpsamplerObjective, title="objective")
    parsed = parser.parse_args(arguments)
    given = (parsed.trunk_channels is not None, parsed.trunk_blocks is not None)
    if any(given) and not (all(given) and parsed.pretrained_model_name_or_path is not None):
        parser.error("--trunk_channels and --trunk_blocks go together, with --pretrained_model_name_or_path")
    complete_settings(parser, parsed, UpsamplerObjective)
    return parsed


def start_upsampler(arguments: argparse.Namespace, autoencoder: HRAutoencoder) -> CausalLatentUpsampler:
    """The network to train; a new one with `residual` starts at what bicubic interpolation of the pixels does."""
    upsampler = start_network(CausalLatentUpsampler, arguments, "latent_upsampler")
    if arguments.network_config is not None:
        initialize_convolutions(upsampler)
        if upsampler.config.residual and not arguments.dry_run:
            set_bicubic_upsampling(upsampler, autoencoder)
    if arguments.trunk_channels is not None:
        upsampler = with_trunk(upsampler, arguments.trunk_channels, arguments.trunk_blocks)
    return upsampler


def load_networks(arguments: argparse.Namespace) -> tuple[CausalLatentUpsampler, HRAutoencoder]:
    autoencoder = load_network(HRAutoencoder, arguments.autoencoder, "autoencoder")
    upsampler = start_upsampler(arguments, autoencoder)
    if arguments.gradient_checkpointing:
        upsampler.enable_gradient_checkpointing()
        autoencoder.enable_gradient_checkpointing()
    return upsampler, autoencoder


def main(arguments: argparse.Namespace) -> dict[str, float]:
    set_seed(arguments.seed)
    objective = read_settings(arguments, UpsamplerObjective)
    with without_weights(arguments.dry_run):
        upsampler, autoencoder = load_networks(arguments)
    scale, with_flow = upsampler.config.scale, objective.pixel_loss.needs_flow
    if arguments.dry_run:
        stage = UpsamplerTraining(upsampler, autoencoder, objective)
        return dry_run(stage, planned_batch(arguments, scale, with_flow), arguments)
    leaves_out = objective.decoder.reconstruction_every is not None
    accelerator = make_accelerator(arguments, leaves_out_parameters=leaves_out)
    spatial, temporal = scale * autoencoder.spatial_compression_ratio, autoencoder.temporal_compression_ratio
    dataset, validation = load_data(
        arguments, accelerator, spatial, temporal, with_flow, scale, arguments.degraded_versions
    )
    stage = UpsamplerTraining(upsampler, autoencoder, objective)
    return train(stage, dataset, validation, arguments, accelerator)


if __name__ == "__main__":
    run_script(main, parse_arguments)
