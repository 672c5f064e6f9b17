# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Trains the causal latent upsampler in the latent space of a finished autoencoder (paper, "Latent upsampler").

    python training/train_latent_upsampler.py --config upsampler.json --linear_init --autoencoder outputs/autoencoder \
        --train_data_dir clips --validation_data_dir held_out --output_dir outputs/upsampler --use_ema
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate.utils import set_seed
from torch.nn import functional as F

from ultraflash_diffusers import CausalLatentUpsampler, HRAutoencoder
from ultraflash_diffusers.training.arguments import (
    add_pixel_loss_arguments,
    non_negative,
    pixel_loss,
    positive,
    training_parser,
)
from ultraflash_diffusers.training.data import Batch, CropDataset
from ultraflash_diffusers.training.inputs import load_data
from ultraflash_diffusers.training.linear_init import fit_linear_upsampling
from ultraflash_diffusers.training.loop import make_accelerator, train
from ultraflash_diffusers.training.losses import PixelLoss, psnr
from ultraflash_diffusers.training.stage import Stage, load_network, new_network


class UpsamplerStage(Stage):
    """The upsampled latents of degraded clips against the clips, as latents and decoded.

    Args:
        upsampler (`CausalLatentUpsampler`): what is trained.
        autoencoder (`HRAutoencoder`): frozen, with an encoder.
        loss (`PixelLoss`): of the decoded latents.
        latent_weight (`float`): of the mean squared error of the latents.
    """

    def __init__(
        self, upsampler: CausalLatentUpsampler, autoencoder: HRAutoencoder, loss: PixelLoss, latent_weight: float
    ) -> None:
        super().__init__()
        self.upsampler, self.loss, self.latent_weight = upsampler.requires_grad_(True), loss, latent_weight
        self.autoencoder = autoencoder.requires_grad_(False)

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        with torch.no_grad():
            low = self.autoencoder.encode(batch.low).latents.float()
            target = self.autoencoder.encode(batch.high).latents.float()
        latents = self.upsampler(low).sample.float()
        decoded = self.autoencoder.decode(latents).sample
        terms = self.loss(decoded, batch.high, batch.flow)
        terms["latent"] = self.latent_weight * F.mse_loss(latents, target)
        return torch.stack(list(terms.values())).sum(), terms | {"psnr": psnr(decoded.detach(), batch.high)}

    def validate(self, batch: Batch) -> dict[str, float]:
        low = self.autoencoder.encode(batch.low).latents.float()
        frames = F.interpolate(
            low.transpose(1, 2).flatten(0, 1), scale_factor=self.upsampler.config.scale, mode="bicubic"
        )
        bicubic = frames.unflatten(0, (len(low), -1)).transpose(1, 2)
        ours, baseline = (
            psnr(self.autoencoder.decode(latents).sample, batch.high).item()
            for latents in (self.upsampler(low).sample.float(), bicubic)
        )
        return {"psnr": ours, "gain_over_bicubic_latents": ours - baseline}

    def save_pretrained(self, folder: Path) -> None:
        self.upsampler.save_pretrained(folder)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = training_parser("Trains the causal latent upsampler.")
    networks = parser.add_argument_group("networks")
    start = networks.add_mutually_exclusive_group(required=True)
    start.add_argument("--config", type=Path, help="JSON file of CausalLatentUpsampler's arguments, for a new network")
    start.add_argument("--pretrained_model_name_or_path", help="folder or repository of the network to go on from")
    networks.add_argument("--autoencoder", required=True, help="folder or repository of the autoencoder")
    networks.add_argument("--linear_init", action="store_true", help="start at the least-squares linear map")
    networks.add_argument("--linear_init_batches", type=positive(int), default=60, help="batches it is fitted to")
    networks.add_argument(
        "--degraded_versions", type=positive(int), default=4, help="low-resolution versions of each training clip"
    )
    networks.add_argument("--latent_weight", type=non_negative(float), default=0.01, help=" ")
    add_pixel_loss_arguments(parser)
    return parser.parse_args(arguments)


@torch.no_grad()
def latent_pairs(
    dataset: CropDataset, autoencoder: HRAutoencoder, count: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Low- and high-resolution latents of `count` batches."""
    for number in range(count):
        batch = dataset[number].to(torch.device("cpu"))
        yield autoencoder.encode(batch.low).latents, autoencoder.encode(batch.high).latents


def main(arguments: argparse.Namespace) -> dict[str, float]:
    set_seed(arguments.seed)
    autoencoder = load_network(HRAutoencoder, arguments.autoencoder, "autoencoder")
    if arguments.config is not None:
        upsampler = new_network(CausalLatentUpsampler, arguments.config)
    else:
        upsampler = load_network(CausalLatentUpsampler, arguments.pretrained_model_name_or_path, "latent_upsampler")
    if arguments.gradient_checkpointing:
        upsampler.enable_gradient_checkpointing()
        autoencoder.enable_gradient_checkpointing()
    accelerator = make_accelerator(arguments)
    loss, scale = pixel_loss(arguments), upsampler.config.scale
    spatial, temporal = scale * autoencoder.spatial_compression_ratio, autoencoder.temporal_compression_ratio
    dataset, validation = load_data(
        arguments, accelerator, spatial, temporal, loss.needs_flow, scale, arguments.degraded_versions
    )
    if arguments.linear_init:
        left = fit_linear_upsampling(upsampler, latent_pairs(dataset, autoencoder, arguments.linear_init_batches))
        accelerator.print(f"the linear map leaves a mean squared error of {left:.4f}")
    stage = UpsamplerStage(upsampler, autoencoder, loss, arguments.latent_weight)
    return train(stage, dataset, validation, arguments, accelerator)


if __name__ == "__main__":
    main(parse_arguments())
