# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Trains a text-to-video generator with a seed code on a small world that is drawn here.

    python training/train_seeded_generator.py --network_config training/configs/seeded_generator.json \
        --autoencoder outputs/autoencoder --use_ema --output_dir outputs/generator
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from accelerate.utils import set_seed

from ultraflash_diffusers import CausalWanTransformer, HRAutoencoder
from ultraflash_diffusers.models.seed_code import clock
from ultraflash_diffusers.training.data.world import CODE_SIZE, draw_scene, vocabulary
from ultraflash_diffusers.training.data.world_batches import WorldDataset
from ultraflash_diffusers.training.loop.accelerator import make_accelerator
from ultraflash_diffusers.training.loop.arguments import add_start_arguments, non_negative, positive, training_parser
from ultraflash_diffusers.training.loop.command_line import run_script
from ultraflash_diffusers.training.loop.memory_plan import dry_run
from ultraflash_diffusers.training.loop.train import train
from ultraflash_diffusers.training.settings import add_settings, complete_settings, read_settings
from ultraflash_diffusers.training.stages.seeded_generator import SeededGeneratorTraining, SeededRegression
from ultraflash_diffusers.training.starting_points.networks import load_network, start_network, without_weights
from ultraflash_diffusers.training.starting_points.text_encoding import TextEncoding, make_text_encoder, make_tokenizer

_PICTURES = 200  # of which the head's pattern is the mean's detail


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = training_parser("Trains a generator with a seed code.", learning_rate=8e-4, takes_clips=False)
    networks = add_start_arguments(parser, "CausalWanTransformer")
    networks.add_argument("--autoencoder", required=True, help="folder or repository of the autoencoder")
    samples = parser.add_argument_group("samples")
    samples.add_argument("--train_batch_size", type=positive(int), default=24, help="scenes of a batch")
    samples.add_argument("--more_scenes", type=non_negative(int), default=168, help="and those that are not drawn")
    samples.add_argument(
        "--window", type=positive(int), nargs=2, default=(24, 32), metavar=("HEIGHT", "WIDTH"), help="seen, in latents"
    )
    samples.add_argument("--validation_batches", type=non_negative(int), default=2, help="held-out batches")
    samples.add_argument("--dataloader_num_workers", type=non_negative(int), default=0, help="processes that draw")
    add_settings(parser, SeededRegression, title="objective")
    parsed = parser.parse_args(arguments)
    complete_settings(parser, parsed, SeededRegression)
    return parsed


def load_text(arguments: argparse.Namespace, network: CausalWanTransformer) -> TextEncoding:
    """The text encoder that lies beside the network to go on from, or a new one that knows the world's words."""
    length = network.config.text_length
    if arguments.pretrained_model_name_or_path is not None:
        return TextEncoding.load(arguments.pretrained_model_name_or_path, length).requires_grad_(True)
    tokenizer = make_tokenizer(vocabulary())
    return TextEncoding(make_text_encoder(len(tokenizer), network.config.text_dim, num_layers=2), tokenizer, length)


def load_stage(arguments: argparse.Namespace) -> SeededGeneratorTraining:
    """The networks, and what they learn.

    Raises:
        ValueError: networks that cannot learn this world, or do not fit together.
    """
    network = start_network(CausalWanTransformer, arguments, "generator_transformer")
    if network.config.seed_code_dim != CODE_SIZE:
        raise ValueError(f"the network's `seed_code_dim` must be {CODE_SIZE}, got {network.config.seed_code_dim}")
    if arguments.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    autoencoder = load_network(HRAutoencoder, arguments.autoencoder, "autoencoder")
    objective = read_settings(arguments, SeededRegression)
    return SeededGeneratorTraining(network, load_text(arguments, network), autoencoder, objective)


def start_patterns(network: CausalWanTransformer, pixels: int) -> None:
    """Lets a new network's head begin with what the world's pictures have in common, see [`PlacedHead`]."""
    height, width = (pixels * side for side in network.config.sample_size)
    rng = np.random.default_rng(0)
    pictures = np.concatenate([draw_scene(rng).render(np.zeros(1), height, width) for _ in range(_PICTURES)])
    network.head.start_patterns(torch.from_numpy(pictures).permute(0, 3, 1, 2) * 2 - 1)


def make_dataset(arguments: argparse.Namespace, stage: SeededGeneratorTraining, held_out: bool) -> WorldDataset:
    """Batches of scenes of the size that the network is for.

    Raises:
        ValueError: a window that is larger than that.
    """
    config, size = stage.network.config, tuple(stage.network.config.sample_size)
    if any(part > whole for part, whole in zip(arguments.window, size, strict=True)):
        raise ValueError(f"--window {arguments.window}: larger than the network's `sample_size` {size}")
    start = torch.zeros((), dtype=torch.int64)

    def phases(codes: torch.Tensor, frames: int) -> torch.Tensor:
        return clock(codes, start, frames, config.seed_code_period, config.head_moments)

    ratio = stage.autoencoder.spatial_compression_ratio
    sizes = (arguments.train_batch_size, size, ratio, tuple(arguments.window), arguments.more_scenes)
    return WorldDataset(phases, *sizes, seed=arguments.seed + held_out)


def main(arguments: argparse.Namespace) -> dict[str, float]:
    set_seed(arguments.seed)
    with without_weights(arguments.dry_run):
        stage = load_stage(arguments)
    held_out = make_dataset(arguments, stage, held_out=True)
    if arguments.dry_run:
        return dry_run(stage, held_out[0], arguments)
    if arguments.pretrained_model_name_or_path is None:
        start_patterns(stage.network, stage.autoencoder.spatial_compression_ratio)
    accelerator = make_accelerator(arguments)
    validation = [held_out.clips(number) for number in range(arguments.validation_batches)]
    return train(stage, make_dataset(arguments, stage, held_out=False), validation, arguments, accelerator)


if __name__ == "__main__":
    run_script(main, parse_arguments)
