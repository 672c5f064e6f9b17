# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Trains the causal latent upsampler in the latent space of a finished autoencoder (paper, "Latent upsampler").

    python training/train_latent_upsampler.py --config upsampler.json --autoencoder outputs/autoencoder \
        --train_data_dir clips --validation_data_dir held_out --output_dir outputs/upsampler --use_ema

`--train_decoder` tunes the autoencoder's decoder along with it, which learns to make the best of upsampled latents.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from accelerate.utils import set_seed
from torch.nn import functional as F

from ultraflash_diffusers import CausalLatentUpsampler, HRAutoencoder
from ultraflash_diffusers.training.data.crops import Batch
from ultraflash_diffusers.training.data.inputs import load_data
from ultraflash_diffusers.training.loop.arguments import (
    add_color_correction_argument,
    add_decoder_arguments,
    add_pixel_loss_arguments,
    complete_decoder_arguments,
    non_negative,
    pixel_loss,
    positive,
    training_parser,
)
from ultraflash_diffusers.training.loop.train import make_accelerator, train
from ultraflash_diffusers.training.losses.pixels import PixelLoss, psnr
from ultraflash_diffusers.training.stages.base import (
    Stage,
    decoder_parameters,
    load_network,
    new_network,
    one_in,
    train_only,
    upsampler_parameters,
)
from ultraflash_diffusers.training.starting_points.initialization import (
    initialize_convolutions,
    set_bicubic_upsampling,
)


class UpsamplerStage(Stage):
    """The upsampled latents of degraded clips against the clips, as latents and decoded.

    Args:
        upsampler (`CausalLatentUpsampler`): what is trained, but for its residual head.
        autoencoder (`HRAutoencoder`): frozen, but perhaps for the decoder; with an encoder.
        loss (`PixelLoss`): of the decoded latents.
        latent_weight (`float`): of the mean squared error of the latents.
        decoder_learning_rate (`float`, *optional*): trains the decoder too, with this learning rate.
        reconstruction_every (`int`, *optional*): one batch in so many, drawn at random, is decoded from the clips' own
            latents, which the decoder must not forget; what is logged of training is then of both kinds of batches.
    """

    def __init__(
        self,
        upsampler: CausalLatentUpsampler,
        autoencoder: HRAutoencoder,
        loss: PixelLoss,
        latent_weight: float,
        decoder_learning_rate: float | None = None,
        reconstruction_every: int | None = None,
    ) -> None:
        super().__init__()
        self.upsampler, self.autoencoder = upsampler, autoencoder
        self.loss, self.latent_weight = loss, latent_weight
        self.decoder_learning_rate, self.reconstruction_every = decoder_learning_rate, reconstruction_every
        train_only(upsampler_parameters(upsampler), upsampler)
        train_only(decoder_parameters(autoencoder) if decoder_learning_rate is not None else [], autoencoder)

    def parameter_groups(self, learning_rate: float) -> list[dict]:
        groups = [{"params": upsampler_parameters(self.upsampler), "lr": learning_rate}]
        if self.decoder_learning_rate is not None:
            groups.append({"params": decoder_parameters(self.autoencoder), "lr": self.decoder_learning_rate})
        return groups

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        with torch.no_grad():
            low = self.autoencoder.encode(batch.low).latents.float()
            target = self.autoencoder.encode(batch.high).latents.float()
        reconstructs = one_in(self.reconstruction_every, generator)
        latents = target if reconstructs else self.upsampler(low).sample.float()
        decoded = self.autoencoder.decode(latents).sample
        source = None if reconstructs else batch.low
        terms = self.loss(decoded, batch.high, batch.flow, source)
        terms["latent"] = self.latent_weight * F.mse_loss(latents, target)
        measured = {"psnr": psnr(self.loss.corrected(decoded.detach(), source), batch.high)}
        return torch.stack(list(terms.values())).sum(), terms | measured

    def validate(self, batch: Batch) -> dict[str, float | torch.Tensor]:
        latents = self.upsampler(batch.encode_low(self.autoencoder)).sample.float()
        result = self.loss.corrected(self.autoencoder.decode(latents).sample, batch.low)
        reached = psnr(result, batch.high).item()
        return {
            "psnr": reached,
            "gain_over_bicubic": reached - psnr(bicubic(batch.low, self.upsampler.config.scale), batch.high).item(),
            "input": batch.low,
            "result": result,
            "truth": batch.high,
        }

    def save_pretrained(self, folder: Path) -> None:
        """Writes the upsampler to `folder`, and the autoencoder, whose decoder was trained, to its `autoencoder`."""
        self.upsampler.save_pretrained(folder)
        if self.decoder_learning_rate is not None:
            self.autoencoder.save_pretrained(folder / "autoencoder")


def bicubic(pixels: torch.Tensor, scale: int) -> torch.Tensor:
    """Enlarges each frame of `[batch, 3, frames, height, width]`: what a learnt upsampler has to beat."""
    frames = F.interpolate(pixels.transpose(1, 2).flatten(0, 1), scale_factor=scale, mode="bicubic")
    return frames.unflatten(0, (len(pixels), -1)).transpose(1, 2)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = training_parser("Trains the causal latent upsampler.")
    networks = parser.add_argument_group("networks")
    start = networks.add_mutually_exclusive_group(required=True)
    start.add_argument(
        "--config",
        type=Path,
        help="JSON file of CausalLatentUpsampler's arguments, for a new network; with `residual`, it starts at what "
        "bicubic interpolation of the pixels does to latents",
    )
    start.add_argument("--pretrained_model_name_or_path", help="folder or repository of the network to go on from")
    networks.add_argument("--autoencoder", required=True, help="folder or repository of the autoencoder")
    networks.add_argument(
        "--degraded_versions", type=positive(int), default=4, help="low-resolution versions of each training clip"
    )
    networks.add_argument("--latent_weight", type=non_negative(float), default=0.01, help=" ")
    add_decoder_arguments(networks)
    add_pixel_loss_arguments(parser)
    add_color_correction_argument(parser)
    parsed = parser.parse_args(arguments)
    complete_decoder_arguments(parser, parsed)
    return parsed


def main(arguments: argparse.Namespace) -> dict[str, float]:
    set_seed(arguments.seed)
    autoencoder = load_network(HRAutoencoder, arguments.autoencoder, "autoencoder")
    if arguments.config is not None:
        upsampler = new_network(CausalLatentUpsampler, arguments.config)
        initialize_convolutions(upsampler)
        if upsampler.config.residual:
            set_bicubic_upsampling(upsampler, autoencoder)
    else:
        upsampler = load_network(CausalLatentUpsampler, arguments.pretrained_model_name_or_path, "latent_upsampler")
    if arguments.gradient_checkpointing:
        upsampler.enable_gradient_checkpointing()
        autoencoder.enable_gradient_checkpointing()
    accelerator = make_accelerator(arguments, leaves_out_parameters=arguments.reconstruction_every is not None)
    loss = replace(pixel_loss(arguments), color_correction_levels=arguments.color_correction_levels)
    scale = upsampler.config.scale
    spatial, temporal = scale * autoencoder.spatial_compression_ratio, autoencoder.temporal_compression_ratio
    dataset, validation = load_data(
        arguments, accelerator, spatial, temporal, loss.needs_flow, scale, arguments.degraded_versions
    )
    stage = UpsamplerStage(
        upsampler,
        autoencoder,
        loss,
        arguments.latent_weight,
        arguments.decoder_learning_rate,
        arguments.reconstruction_every,
    )
    return train(stage, dataset, validation, arguments, accelerator)


if __name__ == "__main__":
    main(parse_arguments())
