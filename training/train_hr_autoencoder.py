# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Trains the HR autoencoder: pixels to latents and back.

    python training/train_hr_autoencoder.py --config autoencoder.json --linear_init --train_data_dir clips \
        --validation_data_dir held_out --output_dir outputs/autoencoder --use_ema
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate.utils import set_seed

from ultraflash_diffusers import HRAutoencoder
from ultraflash_diffusers.training.data.crops import Batch, CropDataset
from ultraflash_diffusers.training.data.inputs import load_data
from ultraflash_diffusers.training.loop.arguments import (
    add_pixel_loss_arguments,
    non_negative,
    pixel_loss,
    positive,
    training_parser,
)
from ultraflash_diffusers.training.loop.train import make_accelerator, train
from ultraflash_diffusers.training.losses.pixels import PixelLoss, detail_ratio, psnr
from ultraflash_diffusers.training.stages.base import Stage, load_network, new_network
from ultraflash_diffusers.training.starting_points.initialization import fit_linear_shortcut, initialize_convolutions


class AutoencoderStage(Stage):
    """Reconstruction, and latents that stay centred.

    Args:
        autoencoder (`HRAutoencoder`): with an encoder.
        loss (`PixelLoss`): of the reconstruction.
        latent_mean_weight (`float`): of the squared mean of each latent channel.
        train_encoder (`bool`, *optional*, defaults to `True`): `False` keeps the latent space as it is.
    """

    def __init__(
        self, autoencoder: HRAutoencoder, loss: PixelLoss, latent_mean_weight: float, train_encoder: bool = True
    ) -> None:
        super().__init__()
        self.autoencoder, self.loss = autoencoder.requires_grad_(True), loss
        self.latent_mean_weight = latent_mean_weight
        if not train_encoder:
            for name, parameter in autoencoder.named_parameters():
                parameter.requires_grad_(not name.startswith("encoder"))

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        latents = self.autoencoder.encode(batch.high).latents.float()
        reconstruction = self.autoencoder.decode(latents).sample
        terms = self.loss(reconstruction, batch.high, batch.flow)
        terms["latent_mean"] = self.latent_mean_weight * latents.mean((0, 2, 3, 4)).square().mean()
        measured = {"psnr": psnr(reconstruction.detach(), batch.high), "latent_std": latents.std()}
        return torch.stack(list(terms.values())).sum(), terms | measured

    def validate(self, batch: Batch) -> dict[str, float | torch.Tensor]:
        reconstruction = self.autoencoder.decode(self.autoencoder.encode(batch.high).latents.float()).sample.float()
        return {
            "psnr": psnr(reconstruction, batch.high).item(),
            "detail": detail_ratio(reconstruction, batch.high).item(),
            "result": reconstruction,
            "truth": batch.high,
        }

    def save_pretrained(self, folder: Path) -> None:
        self.autoencoder.save_pretrained(folder)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = training_parser("Trains the HR autoencoder.")
    network = parser.add_argument_group("network")
    start = network.add_mutually_exclusive_group(required=True)
    start.add_argument("--config", type=Path, help="JSON file of HRAutoencoder's arguments, for a new network")
    start.add_argument("--pretrained_model_name_or_path", help="folder or repository of the network to go on from")
    network.add_argument(
        "--linear_init", action="store_true", help="start at the principal components of space-time patches"
    )
    network.add_argument("--linear_init_batches", type=positive(int), default=100, help="batches they are fitted to")
    network.add_argument("--freeze_encoder", action="store_true", help="train the decoder only")
    network.add_argument("--latent_mean_weight", type=non_negative(float), default=1e-3, help=" ")
    add_pixel_loss_arguments(parser)
    return parser.parse_args(arguments)


def whole_latents(dataset: CropDataset, count: int, temporal: int) -> Iterator[torch.Tensor]:
    """The frames of `count` batches after the first one, which has a latent of its own."""
    for number in range(count):
        high = dataset[number].to(torch.device("cpu")).high
        yield high[:, :, 1:] if temporal > 1 else high


def main(arguments: argparse.Namespace) -> dict[str, float]:
    set_seed(arguments.seed)
    if arguments.config is not None:
        autoencoder = new_network(HRAutoencoder, arguments.config)
        initialize_convolutions(autoencoder)
    else:
        autoencoder = load_network(HRAutoencoder, arguments.pretrained_model_name_or_path, "autoencoder")
    if not autoencoder.has_encoder:
        raise ValueError("the autoencoder has no encoder (`encoder_channels` is empty): it cannot be trained")
    if arguments.gradient_checkpointing:
        autoencoder.enable_gradient_checkpointing()
    accelerator = make_accelerator(arguments)
    loss = pixel_loss(arguments)
    spatial, temporal = autoencoder.spatial_compression_ratio, autoencoder.temporal_compression_ratio
    dataset, validation = load_data(arguments, accelerator, spatial, temporal, loss.needs_flow)
    if arguments.linear_init:
        held = fit_linear_shortcut(autoencoder, whole_latents(dataset, arguments.linear_init_batches, temporal))
        accelerator.print(f"the linear code holds {100 * held:.2f} % of the variance")
    stage = AutoencoderStage(autoencoder, loss, arguments.latent_mean_weight, not arguments.freeze_encoder)
    return train(stage, dataset, validation, arguments, accelerator)


if __name__ == "__main__":
    main(parse_arguments())
