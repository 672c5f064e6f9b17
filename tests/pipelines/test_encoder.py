# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The optional component `encoder`: diffusers' Wan autoencoder, streamed, or another HRAutoencoder."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from helpers.source_pipelines import wan_vae
from helpers.tiny import (
    make_tiny_autoencoder,
    make_tiny_generator,
    make_tiny_pipeline,
    make_tiny_transformer,
    make_tiny_upsampler,
)
from helpers.wan_cases import TOLERANCE, relative_error

from ultraflash_diffusers import HRAutoencoder, PipelineStreamState, UltraFlashStreamingPipeline
from ultraflash_diffusers.models.video_encoder import WanEncoderState, WanVideoEncoder


def frames(count: int, height: int = 32, width: int = 48, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch, 3, count, height, width, generator=generator) * 2 - 1


def clip(count: int) -> torch.Tensor:
    """As users pass it: `[frames, 3, height, width]` in [0, 1]."""
    return frames(count)[0].permute(1, 0, 2, 3) / 2 + 0.5


def make_pipeline(encoder: Any, **decoder: Any) -> UltraFlashStreamingPipeline:
    """Wan's latent space, and a decoder that cannot encode, as published."""
    channels = {"in_channels": 16, "out_channels": 16}
    alone: dict[str, Any] = {"encoder_channels": (), "encoder_blocks": ()}
    alone |= {"encoder_spatial_strides": (), "encoder_temporal_strides": ()}
    alone |= {"latent_channels": 16, "latent_space": "wan2.1", "patch_size": 4} | decoder
    return make_tiny_pipeline(
        autoencoder=make_tiny_autoencoder(**alone),
        latent_upsampler=make_tiny_upsampler(**channels),
        transformer=make_tiny_transformer(in_channels=32, out_channels=16),
        generator_transformer=make_tiny_generator(**channels),
        encoder=encoder,
    )


def video(pipe: UltraFlashStreamingPipeline, source: Any, **options: Any) -> torch.Tensor:
    seed = torch.Generator().manual_seed(0)
    (made,) = pipe(source=source, generator=seed, output_type="pt", return_dict=False, **options)
    assert isinstance(made, torch.Tensor)
    return made


@torch.no_grad()
@pytest.mark.parametrize("pieces", [[13], [1, 4, 4, 4], [5, 8], [9, 4]])
def test_streamed_is_what_diffusers_gives_at_once(pieces):
    vae, pixels = wan_vae(), frames(13, batch=2)
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
    expected = (vae.encode(pixels).latent_dist.mode() - mean) / std
    encoder, state, latents = WanVideoEncoder(vae), None, []
    for piece in pixels.split(pieces, dim=2):
        output = encoder.encode(piece, state)
        state = output.state
        latents.append(output.latents)
    assert relative_error(torch.cat(latents, dim=2), expected) < TOLERANCE


@torch.no_grad()
def test_a_state_may_be_used_twice_and_saved(tmp_path):
    encoder, pixels = WanVideoEncoder(wan_vae()), frames(9)
    state = encoder.encode(pixels[:, :, :5]).state
    first = encoder.encode(pixels[:, :, 5:], state).latents
    encoder.encode(pixels[:, :, 1:5], state)
    assert torch.equal(encoder.encode(pixels[:, :, 5:], state).latents, first)
    assert state is not None
    state.save(tmp_path / "state.safetensors")
    loaded = WanEncoderState.load(tmp_path / "state.safetensors")
    assert torch.equal(encoder.encode(pixels[:, :, 5:], loaded).latents, first)
    with pytest.raises(ValueError, match="`pixels` has 4 frames, expected 4 n . 1 of them"):
        encoder.encode(pixels[:, :, :4])
    with pytest.raises(ValueError, match="`pixels` has 5 frames, expected 4 n of them"):
        encoder.encode(pixels[:, :, :5], state)


def test_frames_are_refined_with_it_and_without_it_refused(tmp_path):
    source = clip(9)
    pipe = make_pipeline(wan_vae())
    assert pipe.can_encode
    whole = video(pipe, source)
    assert whole.shape == (1, 9, 3, 64, 96)
    pipe.save_pretrained(tmp_path / "pipe")
    loaded = UltraFlashStreamingPipeline.from_pretrained(tmp_path / "pipe")
    loaded.set_progress_bar_config(disable=True)
    assert relative_error(video(loaded, source), whole) < TOLERANCE
    pipe.register_modules(encoder=None)
    assert not pipe.can_encode
    with pytest.raises(ValueError, match="holds a decoder alone .* give the pipeline an `encoder`"):
        video(pipe, source)
    assert UltraFlashStreamingPipeline.from_pretrained(tmp_path / "pipe", encoder=None).encoder is None


def test_a_stream_resumes_with_the_encoders_cache(tmp_path):
    pipe, source = make_pipeline(wan_vae()), clip(41)
    whole = video(pipe, source)
    with pipe.stream(source=source, generator=torch.Generator().manual_seed(0), output_type="pt") as stream:
        first: Any = next(stream).frames
        stream.state().save(tmp_path / "state.safetensors")
    state = PipelineStreamState.load(tmp_path / "state.safetensors")
    rest: Any = pipe(source=source, state=state, output_type="pt", return_dict=False)[0]
    assert relative_error(torch.cat([first, rest], dim=1), whole) < TOLERANCE


def test_first_frames_of_generated_video():
    pipe = make_pipeline(wan_vae())
    picture = clip(1)
    options: dict[str, Any] = {"source_kwargs": {"first_frames": picture}, "output_type": "pt", "return_dict": False}
    made: Any = pipe("a red ball", height=64, width=96, num_frames=9, **options)[0]
    assert made.shape == (1, 9, 3, 64, 96)


def test_another_hr_autoencoder_encodes():
    encoder = make_tiny_autoencoder(latent_channels=16, latent_space="wan2.1", patch_size=4)
    alone, whole = make_pipeline(encoder), make_pipeline(None)
    decoder = {name: weight for name, weight in encoder.state_dict().items() if name.startswith("decoder.")}
    alone.autoencoder.load_state_dict(decoder)
    whole.register_modules(autoencoder=encoder)
    assert not alone.autoencoder.has_encoder
    assert relative_error(video(alone, clip(9)), video(whole, clip(9))) < TOLERANCE


@pytest.mark.parametrize(
    "encoder, error, message",
    [
        (lambda: wan_vae(z_dim=4, latents_mean=[0.0] * 4, latents_std=[1.0] * 4), ValueError, ": 4 channels"),
        (lambda: wan_vae(latents_mean=[0.0] * 16), ValueError, r"latent space mean and deviation \[0.0, 0.0\]"),
        (lambda: make_tiny_autoencoder(latent_channels=16, patch_size=4), ValueError, "latent space 'tiny'; expected"),
        (lambda: make_tiny_autoencoder(latent_channels=16, latent_space="wan2.1"), ValueError, "4x smaller"),
        (lambda: make_pipeline(None).autoencoder, ValueError, "a decoder alone and cannot encode"),
        (lambda: AutoencoderKL(block_out_channels=(32,)), TypeError, "`encoder` is a AutoencoderKL, expected"),
    ],
)
def test_encoders_that_do_not_fit(encoder, error, message):
    pipe = make_pipeline(encoder())
    with pytest.raises(error, match=message):
        video(pipe, clip(5))


def test_the_encoder_is_loaded_by_class_name(tmp_path):
    encoder = make_tiny_autoencoder(latent_channels=16, latent_space="wan2.1", patch_size=4)
    make_pipeline(encoder).save_pretrained(tmp_path)
    assert isinstance(UltraFlashStreamingPipeline.from_pretrained(tmp_path).encoder, HRAutoencoder)
