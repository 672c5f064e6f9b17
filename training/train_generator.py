# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Trains the low-resolution text-to-video generator: diffusion forcing on clips, then self-forcing on its own.

    python training/train_generator.py --synthetic_scenes 500 --network_config training/configs/small_generator.json \
        --token_rank 288 --autoencoder outputs/autoencoder --noise_levels steps --use_ema \
        --output_dir outputs/generator
    python training/train_generator.py --objective self_forcing --synthetic_scenes 500 --token_rank 288 \
        --pretrained_model_name_or_path outputs/generator --text_encoder outputs/generator \
        --autoencoder outputs/autoencoder --cache_dir outputs/generator/cache --output_dir outputs/self_forcing
"""

from __future__ import annotations

import argparse
from itertools import chain

import torch
from accelerate.utils import set_seed

from ultraflash_diffusers import HRAutoencoder
from ultraflash_diffusers.training.data.chunks import ChunkDataset
from ultraflash_diffusers.training.data.materials import (
    cached_materials,
    load_materials,
    make_pools,
    validation_batches,
)
from ultraflash_diffusers.training.loop.accelerator import make_accelerator
from ultraflash_diffusers.training.loop.arguments import (
    add_lora_arguments,
    add_sample_arguments,
    add_start_arguments,
    positive,
    training_parser,
)
from ultraflash_diffusers.training.loop.command_line import run_script
from ultraflash_diffusers.training.loop.memory_plan import dry_run
from ultraflash_diffusers.training.loop.train import train
from ultraflash_diffusers.training.losses.linear_decoding import encode_linearly
from ultraflash_diffusers.training.processes import local_main_process_first
from ultraflash_diffusers.training.settings import add_choice, complete_choice
from ultraflash_diffusers.training.stages.generator_start import (
    OBJECTIVES,
    check_choices,
    check_sizes,
    load_generator,
    new_training,
    planned_training,
)
from ultraflash_diffusers.training.starting_points.networks import load_network, without_weights
from ultraflash_diffusers.training.starting_points.token_subspace import arguments_of


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = training_parser(
        "Trains the text-to-video generator.", crops="45x192x320", learning_rate=1e-3, takes_scenes=True
    )
    wan = "folder or repository of a Wan T2V transformer to make causal"
    networks = add_start_arguments(parser, "CausalWanTransformer", wan=wan)
    networks.add_argument("--autoencoder", required=True, help="folder or repository of the autoencoder")
    networks.add_argument(
        "--text_encoder",
        help="pipeline folder or repository with `text_encoder` and `tokenizer`, which stay as they are; without it "
        "a small one that knows the clips' words is trained along",
    )
    networks.add_argument(
        "--teacher",
        help="folder or repository of a Wan T2V transformer of any width that judges roll-outs (self_forcing); the "
        "generator as it is at the start without it",
    )
    add_lora_arguments(networks)
    networks.add_argument("--token_rank", type=positive(int), help="trains in a subspace of tokens, which is cheap")
    networks.add_argument("--subspace_every", type=positive(int), default=3, help="it is fitted to every Nth clip")
    networks.add_argument("--encode_linearly", action="store_true", help="by the autoencoder's linear shortcut alone")
    add_choice(parser, OBJECTIVES)
    add_sample_arguments(parser)
    parsed = parser.parse_args(arguments)
    complete_choice(parser, parsed, OBJECTIVES)
    check_choices(parser, parsed)
    return parsed


def main(arguments: argparse.Namespace) -> dict[str, float]:
    set_seed(arguments.seed)
    with without_weights(arguments.dry_run):
        autoencoder = load_network(HRAutoencoder, arguments.autoencoder, "autoencoder").requires_grad_(False)
        network = load_generator(arguments, autoencoder)
        check_sizes(arguments, autoencoder, arguments_of(network))
        planned = planned_training(arguments, network, autoencoder) if arguments.dry_run else None
    if planned is not None:
        return dry_run(*planned, arguments)
    accelerator = make_accelerator(arguments, leaves_out_parameters=arguments.objective == "self_forcing")
    materials = load_materials(arguments, accelerator)

    @torch.no_grad()
    def encode(pixels: torch.Tensor) -> torch.Tensor:
        return (
            encode_linearly(autoencoder, pixels) if arguments.encode_linearly else autoencoder.encode(pixels).latents
        )

    with local_main_process_first(accelerator):
        cached, subspace = cached_materials(arguments, materials, encode, autoencoder, arguments_of(network))
    pools = make_pools(arguments, materials, cached)
    stage = new_training(arguments, network, pools, subspace, autoencoder)
    chunk, batch_size = stage.network.chunk_frames, arguments.train_batch_size[0]
    frames = arguments.sample_chunks * chunk
    dataset = ChunkDataset(pools, frames, chunk, batch_size, arguments.start_share, arguments.seed)
    held_out = chain.from_iterable(material.held_out for material in materials)
    return train(stage, dataset, validation_batches(held_out, encode, subspace), arguments, accelerator)


if __name__ == "__main__":
    run_script(main, parse_arguments)
