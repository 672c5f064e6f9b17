# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Where training from nothing starts: bicubic interpolation, exactly, with corrections that can learn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers.training_runs import UPSAMPLER, log, run, texture, write_video
from torch.nn import functional as F

from ultraflash_diffusers import CausalLatentUpsampler, HRAutoencoder
from ultraflash_diffusers.training.starting_points.initialization import (
    fit_linear_shortcut,
    initialize_convolutions,
    set_bicubic_upsampling,
    with_trunk,
)

# 4 x 2 x 2 x 3 numbers make a latent: with 48 channels the code loses nothing
AUTOENCODER = {
    "variant": "ultra",
    "latent_channels": 48,
    "patch_size": 2,
    "encoder_channels": [8],
    "encoder_blocks": [0],
    "encoder_spatial_strides": [1],
    "encoder_temporal_strides": [4],
    "decoder_channels": [16],
    "decoder_blocks": [1],
    "decoder_spatial_strides": [1],
    "decoder_temporal_strides": [4],
    "linear_shortcut": True,
}


def clip(seed: int, frames: int = 9) -> torch.Tensor:
    return torch.from_numpy(texture(seed, frames)).permute(3, 0, 1, 2)[None].float() / 127.5 - 1


def linear_networks(latent_channels: int, scale: int = 2) -> tuple[HRAutoencoder, CausalLatentUpsampler]:
    torch.manual_seed(0)
    autoencoder = HRAutoencoder(**AUTOENCODER | {"latent_channels": latent_channels})
    initialize_convolutions(autoencoder)
    fit_linear_shortcut(autoencoder, [clip(seed)[:, :, 1:] for seed in range(4)])
    channels = {"in_channels": latent_channels, "out_channels": latent_channels}
    upsampler = CausalLatentUpsampler(**UPSAMPLER | channels | {"scale": scale})
    initialize_convolutions(upsampler)
    set_bicubic_upsampling(upsampler, autoencoder)
    return autoencoder.eval(), upsampler.eval()


def bicubic(pixels: torch.Tensor, scale: int) -> torch.Tensor:
    frames = F.interpolate(pixels[0].transpose(0, 1), scale_factor=scale, mode="bicubic")
    return frames.transpose(0, 1)[None]


@torch.no_grad()
@pytest.mark.parametrize(("latent_channels", "scale"), [(48, 2), (48, 3), (12, 2)])
def test_the_start_is_bicubic_interpolation_of_the_pixels(latent_channels: int, scale: int) -> None:
    autoencoder, upsampler = linear_networks(latent_channels, scale)

    def coded(pixels: torch.Tensor) -> torch.Tensor:
        return autoencoder.decode(autoencoder.encode(pixels).latents).sample

    low = clip(7)
    result = autoencoder.decode(upsampler(autoencoder.encode(low).latents).sample).sample
    # what a code cannot hold is lost before and after
    expected = bicubic(low, scale) if latent_channels == 48 else coded(bicubic(coded(low), scale))
    border = 2 * scale  # one latent, to which the convolution adds zeros
    # the first latent stands for one frame, and what a lossy code makes of the repeated ones is not kept
    error = (result - expected)[:, :, 1:, border:-border, border:-border]
    assert error.abs().max() < 1e-3  # an eighth of a grey level
    assert (result - expected).abs().max() > 1e-2 and (expected - bicubic(low, scale).roll(1, -1)).abs().max() > 0.1


@torch.no_grad()
def test_features_keep_their_size_from_layer_to_layer() -> None:
    torch.manual_seed(0)
    network = CausalLatentUpsampler(in_channels=16, out_channels=16, channels=(32,), num_blocks=(6,))
    sizes: list[float] = []
    network.final.register_forward_hook(lambda _, inputs, __: sizes.append(inputs[0].std().item()))
    network(torch.randn(1, 16, 2, 8, 8))
    initialize_convolutions(network)
    network(torch.randn(1, 16, 2, 8, 8))
    default, he = sizes
    assert default < 0.4 < 0.6 < he < 1.5


def test_networks_of_other_kinds_are_refused() -> None:
    autoencoder, upsampler = linear_networks(12)
    plain = HRAutoencoder(**AUTOENCODER | {"latent_channels": 12, "linear_shortcut": False})
    for wrong, message in (
        ((CausalLatentUpsampler(**UPSAMPLER | {"residual": False}), autoencoder), "`residual=True`"),
        ((CausalLatentUpsampler(**UPSAMPLER | {"scale": 4}), autoencoder), "prime `scale`"),
        ((CausalLatentUpsampler(**UPSAMPLER), autoencoder), "the 12 channels"),
        ((upsampler, plain), "`linear_shortcut=True`"),
    ):
        with pytest.raises(ValueError, match=message):
            set_bicubic_upsampling(*wrong)


def test_a_trunk_that_is_added_changes_nothing_at_first() -> None:
    upsampler = CausalLatentUpsampler(**UPSAMPLER)
    grown = with_trunk(upsampler, channels=8, blocks=2)
    latents = torch.randn(1, UPSAMPLER["in_channels"], 3, 8, 8)
    torch.testing.assert_close(grown(latents).sample, upsampler(latents).sample, atol=1e-5, rtol=1e-5)
    assert (grown.config.trunk_channels, grown.config.trunk_blocks) == (8, 2)
    grown(latents).sample.square().mean().backward()
    assert grown.pre_shuffle[0].weight.grad[:, UPSAMPLER["in_channels"] :].any()  # and learns
    with pytest.raises(ValueError, match="has a trunk of 8 channels already"):
        with_trunk(grown, channels=8, blocks=2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoencoder, then an upsampler with its decoder, trained from nothing by the scripts for some steps."""
    folder = tmp_path_factory.mktemp("trained")
    for name, seeds in {"train": (1, 2, 3, 4), "held_out": (7,)}.items():
        (folder / name).mkdir()
        for seed in seeds:
            write_video(folder / name / f"clip_{seed}.mp4", texture(seed))
    channels = {"in_channels": 32, "out_channels": 32, "channels": [16]}
    configs = {"autoencoder": AUTOENCODER | {"latent_channels": 32}, "upsampler": UPSAMPLER | channels}
    for name, config in configs.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    options = {"temporal_loss": "difference", "max_train_steps": 40}
    flags = ("--network_config", str(folder / "autoencoder.json"), "--linear_init", "--linear_init_batches", "20")
    run("train_hr_autoencoder", folder, folder / "autoencoder", *flags, **options)
    flags = ("--network_config", str(folder / "upsampler.json"), "--train_decoder")
    options |= {"autoencoder": folder / "autoencoder", "latent_weight": 0, "decoder_learning_rate": 2e-3}
    options |= {"max_train_steps": 80}
    run("train_latent_upsampler", folder, folder / "upsampler", *flags, **options)
    return folder


def test_a_few_steps_from_the_start_beat_bicubic_interpolation(trained: Path) -> None:
    gains = [line["validation/gain_over_bicubic"] for line in log(trained / "upsampler") if "validation/psnr" in line]
    assert gains[0] < 0 and gains[-1] > 0.1
