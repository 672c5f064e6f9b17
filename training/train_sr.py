# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Trains the super-resolution transformer on real clips: as a multi-step flow-matching model, or at once in one step.

    python training/train_sr.py --objective one_step --config sr.json --autoencoder outputs/autoencoder \
        --latent_upsampler outputs/upsampler --train_data_dir clips --validation_data_dir held_out \
        --output_dir outputs/sr
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path

import torch
from accelerate.utils import set_seed

from ultraflash_diffusers import CausalLatentUpsampler, HRAutoencoder, UltraFlashSRTransformer
from ultraflash_diffusers.training.data.inputs import cache_folder, load_data, load_latents
from ultraflash_diffusers.training.data.prompts import Prompts, text_pipeline
from ultraflash_diffusers.training.loop.arguments import (
    add_channel_weights_argument,
    add_color_correction_argument,
    add_decoder_arguments,
    add_pixel_loss_arguments,
    complete_decoder_arguments,
    non_negative,
    pixel_loss,
    positive,
    share,
    training_parser,
)
from ultraflash_diffusers.training.loop.train import make_accelerator, train
from ultraflash_diffusers.training.losses.linear_decoding import check_linear_shortcut
from ultraflash_diffusers.training.stages.base import choose_trained, load_network, new_network
from ultraflash_diffusers.training.stages.sr import SRObjective, SRStage

# condition noise, condition dropout, text dropout: the paper's for flow matching; a one-step network starts clean
CORRUPTION = {"flow_matching": ((0.4, 0.6), 0.4, 0.1), "one_step": ((0.0, 0.0), 0.0, 0.0)}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = training_parser("Trains the super-resolution transformer.", crops="9x192x256", learning_rate=1e-5)
    _add_network_arguments(parser)
    _add_objective_arguments(parser)
    add_pixel_loss_arguments(parser)
    add_color_correction_argument(parser)
    parsed = parser.parse_args(arguments)
    _check(parser, parsed)
    _fill_in_defaults(parsed)
    return parsed


def _add_network_arguments(parser: argparse.ArgumentParser) -> None:
    networks = parser.add_argument_group("networks")
    start = networks.add_mutually_exclusive_group(required=True)
    start.add_argument(
        "--config", type=Path, help="JSON file of UltraFlashSRTransformer's arguments, for a new network"
    )
    start.add_argument("--pretrained_model_name_or_path", help="folder or repository of the network to go on from")
    start.add_argument("--pretrained_wan", help="folder or repository of a Wan T2V model to widen (dense attention)")
    networks.add_argument("--autoencoder", required=True, help="folder or repository of the autoencoder")
    networks.add_argument("--latent_upsampler", required=True, help="folder or repository of the latent upsampler")
    networks.add_argument(
        "--text_encoder", help="pipeline folder or repository with `text_encoder` and `tokenizer`; no text without it"
    )
    networks.add_argument("--rank", type=positive(int), help="trains LoRA layers of this rank instead of the network")
    add_decoder_arguments(networks, " (one_step only)")
    networks.add_argument(
        "--train_latent_upsampler", action="store_true", help="tunes the upsampler along with it (one_step only)"
    )
    networks.add_argument(
        "--latent_upsampler_learning_rate", type=positive(float), help="0.7 times the other one by default"
    )


def _add_objective_arguments(parser: argparse.ArgumentParser) -> None:
    objective = parser.add_argument_group("objective")
    objective.add_argument("--objective", choices=("one_step", "flow_matching"), default="one_step", help=" ")
    objective.add_argument("--flow_shift", type=positive(float), default=1.5, help="of noise levels (flow_matching)")
    objective.add_argument(
        "--condition_noise",
        type=share,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="bounds of the share of noise in the condition; 0.4 0.6 for flow_matching, 0 0 for one_step by default",
    )
    objective.add_argument("--condition_dropout", type=share, help="0.4 for flow_matching, 0 for one_step by default")
    objective.add_argument("--text_dropout", type=share, help="0.1 for flow_matching, 0 for one_step by default")
    objective.add_argument("--latent_weight", type=non_negative(float), default=0.0, help="of the latents (one_step)")
    objective.add_argument(
        "--condition_every",
        type=positive(int),
        help="one batch in so many compares a trained upsampler's own result; 5 by default",
    )
    objective.add_argument(
        "--decode_linearly",
        action="store_true",
        help="pixel losses through the autoencoder's linear shortcut alone, which is cheap (one_step only)",
    )
    add_channel_weights_argument(objective)
    objective.add_argument(
        "--num_inference_steps",
        type=positive(int),
        help="in validation; 8 for flow_matching, 1 for one_step by default",
    )
    objective.add_argument(
        "--cache_latents",
        action="store_true",
        help="encode the clips once and train on their latents, without mirroring and playing backwards; crops begin "
        "with the first frame of a clip (flow_matching only)",
    )
    objective.add_argument(
        "--degraded_versions", type=positive(int), default=4, help="low-resolution versions of each training clip"
    )


def _check(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> None:
    """Refuses arguments that contradict each other."""
    if parsed.objective == "flow_matching":
        for name in ("train_decoder", "train_latent_upsampler", "decode_linearly", "color_correction_levels"):
            if vars(parsed)[name]:
                parser.error(f"--{name} needs --objective one_step: flow matching does not decode")
    elif parsed.cache_latents:
        parser.error("--cache_latents needs --objective flow_matching: a single step is compared in pixels")
    if parsed.rank is not None and parsed.pretrained_wan is not None:
        parser.error(
            "--rank with --pretrained_wan: LoRA layers would leave the condition's input weights at zero, where they "
            "begin; train the whole network first"
        )
    complete_decoder_arguments(parser, parsed)
    for name in ("latent_upsampler_learning_rate", "condition_every"):
        if vars(parsed)[name] is not None and not parsed.train_latent_upsampler:
            parser.error(f"--{name} needs --train_latent_upsampler")
    if parsed.condition_every == 1:
        parser.error("--condition_every 1 leaves no batch to the transformer: it must be 2 or more")
    if parsed.condition_noise is not None and parsed.condition_noise[0] > parsed.condition_noise[1]:
        parser.error(f"--condition_noise: LOW must not be above HIGH, got {parsed.condition_noise}")


def _fill_in_defaults(parsed: argparse.Namespace) -> None:
    """Sets what depends on other arguments, where it was not given."""
    noise, condition_dropout, text_dropout = CORRUPTION[parsed.objective]
    defaults = {
        "condition_noise": noise,
        "condition_dropout": condition_dropout,
        "text_dropout": text_dropout,
        "condition_every": 5 if parsed.train_latent_upsampler else None,
        "latent_upsampler_learning_rate": 0.7 * parsed.learning_rate,
        "num_inference_steps": 1 if parsed.objective == "one_step" else 8,
    }
    for name, default in defaults.items():
        if vars(parsed)[name] is None:
            setattr(parsed, name, default)


def load_transformer(arguments: argparse.Namespace) -> UltraFlashSRTransformer:
    """The network to train, with LoRA layers if they are asked for."""
    if arguments.config is not None:
        transformer = new_network(UltraFlashSRTransformer, arguments.config)
        # at first a "detail" network gives the condition back, a "flow" network no flow
        torch.nn.init.zeros_(transformer.proj_out.weight)
        torch.nn.init.zeros_(transformer.proj_out.bias)
    elif arguments.pretrained_wan is not None:
        transformer = UltraFlashSRTransformer.from_wan(arguments.pretrained_wan)
    else:
        transformer = load_network(UltraFlashSRTransformer, arguments.pretrained_model_name_or_path, "transformer")
    choose_trained(transformer, arguments.rank)
    return transformer


def sr_objective(arguments: argparse.Namespace) -> SRObjective:
    """What the arguments ask the network to learn."""
    return SRObjective(
        name=arguments.objective,
        pixel_loss=replace(pixel_loss(arguments), color_correction_levels=arguments.color_correction_levels),
        latent_weight=arguments.latent_weight,
        condition_every=arguments.condition_every,
        reconstruction_every=arguments.reconstruction_every,
        decode_linearly=arguments.decode_linearly,
        weigh_channels=arguments.weigh_channels,
        flow_shift=arguments.flow_shift,
        condition_noise=tuple(arguments.condition_noise),
        condition_dropout=arguments.condition_dropout,
        text_dropout=arguments.text_dropout,
    )


def main(arguments: argparse.Namespace) -> dict[str, float]:
    set_seed(arguments.seed)
    autoencoder = load_network(HRAutoencoder, arguments.autoencoder, "autoencoder")
    check_linear_shortcut(arguments, arguments.autoencoder, autoencoder)
    upsampler = load_network(CausalLatentUpsampler, arguments.latent_upsampler, "latent_upsampler")
    transformer = load_transformer(arguments)
    if arguments.gradient_checkpointing:
        for network in (transformer, autoencoder, upsampler):
            network.enable_gradient_checkpointing()
    leaves_out = arguments.condition_every is not None or arguments.reconstruction_every is not None
    accelerator = make_accelerator(arguments, leaves_out_parameters=leaves_out)
    objective, scale = sr_objective(arguments), upsampler.config.scale
    # low-resolution crops are whole latents, and high-resolution ones whole patches
    spatial = autoencoder.spatial_compression_ratio * math.lcm(scale, transformer.config.patch_size[1])
    dataset, validation = load_data(
        arguments,
        accelerator,
        spatial,
        autoencoder.temporal_compression_ratio,
        objective.name == "one_step" and objective.pixel_loss.needs_flow,
        scale,
        arguments.degraded_versions,
    )
    if arguments.cache_latents:
        dataset = load_latents(arguments, accelerator, autoencoder, dataset)
    texts = {clip.text for clip in dataset.clips} | {text for batch in validation for text in batch.texts}
    pipe = text_pipeline(arguments.text_encoder, transformer, upsampler, autoencoder, accelerator.device)
    stage = SRStage(
        transformer,
        upsampler,
        autoencoder,
        Prompts.embed(texts, pipe, cache_folder(arguments)),
        objective,
        arguments.num_inference_steps,
        decoder_learning_rate=arguments.decoder_learning_rate,
        upsampler_learning_rate=(
            arguments.latent_upsampler_learning_rate if arguments.train_latent_upsampler else None
        ),
    )
    del pipe  # the text encoder would take more memory than the training
    return train(stage, dataset, validation, arguments, accelerator)


if __name__ == "__main__":
    main(parse_arguments())
