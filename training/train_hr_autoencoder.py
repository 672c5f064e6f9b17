# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Trains the HR autoencoder: pixels to latents and back.

    python training/train_hr_autoencoder.py --network_config autoencoder.json --linear_init --train_data_dir clips \
        --validation_data_dir held_out --output_dir outputs/autoencoder --use_ema
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from accelerate.utils import set_seed

from ultraflash_diffusers import HRAutoencoder
from ultraflash_diffusers.training.data.crops import CropDataset
from ultraflash_diffusers.training.data.inputs import load_data
from ultraflash_diffusers.training.data.planned import planned_batch
from ultraflash_diffusers.training.loop.accelerator import make_accelerator
from ultraflash_diffusers.training.loop.arguments import add_start_arguments, positive, training_parser
from ultraflash_diffusers.training.loop.command_line import run_script
from ultraflash_diffusers.training.loop.memory_plan import dry_run
from ultraflash_diffusers.training.loop.train import train
from ultraflash_diffusers.training.settings import add_settings, complete_settings, read_settings
from ultraflash_diffusers.training.stages.autoencoder import AutoencoderObjective, AutoencoderTraining
from ultraflash_diffusers.training.starting_points.initialization import fit_linear_shortcut, initialize_convolutions
from ultraflash_diffusers.training.starting_points.networks import start_network, without_weights


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = training_parser("Trains the HR autoencoder.")
    network = add_start_arguments(parser, "HRAutoencoder")
    network.add_argument(
        "--linear_init", action="store_true", help="start at the principal components of space-time patches"
    )
    network.add_argument("--linear_init_batches", type=positive(int), default=100, help="batches they are fitted to")
    add_settings(parser, AutoencoderObjective, title="objective")
    parsed = parser.parse_args(arguments)
    complete_settings(parser, parsed, AutoencoderObjective)
    return parsed


def whole_latents(dataset: CropDataset, count: int, temporal: int) -> Iterator[torch.Tensor]:
    """The frames of `count` batches after the first one, which has a latent of its own."""
    for number in range(count):
        high = dataset[number].to(torch.device("cpu")).high
        yield high[:, :, 1:] if temporal > 1 else high


def load_autoencoder(arguments: argparse.Namespace) -> HRAutoencoder:
    autoencoder = start_network(HRAutoencoder, arguments, "autoencoder")
    if arguments.network_config is not None:
        initialize_convolutions(autoencoder)
    if not autoencoder.has_encoder:
        raise ValueError("the autoencoder has no encoder (`encoder_channels` is empty): it cannot be trained")
    if arguments.gradient_checkpointing:
        autoencoder.enable_gradient_checkpointing()
    return autoencoder


def main(arguments: argparse.Namespace) -> dict[str, float]:
    set_seed(arguments.seed)
    objective = read_settings(arguments, AutoencoderObjective)
    with without_weights(arguments.dry_run):
        autoencoder = load_autoencoder(arguments)
    with_flow = objective.pixel_loss.needs_flow
    if arguments.dry_run:
        batch = planned_batch(arguments, with_flow=with_flow)
        return dry_run(AutoencoderTraining(autoencoder, objective), batch, arguments)
    accelerator = make_accelerator(arguments)
    spatial, temporal = autoencoder.spatial_compression_ratio, autoencoder.temporal_compression_ratio
    dataset, validation = load_data(arguments, accelerator, spatial, temporal, with_flow)
    if arguments.linear_init:
        held = fit_linear_shortcut(autoencoder, whole_latents(dataset, arguments.linear_init_batches, temporal))
        accelerator.print(f"the linear code holds {100 * held:.2f} % of the variance")
    return train(AutoencoderTraining(autoencoder, objective), dataset, validation, arguments, accelerator)


if __name__ == "__main__":
    run_script(main, parse_arguments)
