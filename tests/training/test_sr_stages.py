# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the SR transformer's trainings decode and stream: windows for losses, groups for validation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.tiny import make_tiny_autoencoder, make_tiny_pipeline, make_tiny_transformer, make_tiny_upsampler

from ultraflash_diffusers.pipelines.noise import SeededFrameNoise, draw_seeds
from ultraflash_diffusers.training.data.crops import Batch
from ultraflash_diffusers.training.data.prompts import Prompts
from ultraflash_diffusers.training.losses.perceptual import PerceptualLoss
from ultraflash_diffusers.training.losses.pixels import PixelLoss
from ultraflash_diffusers.training.stages.decoded import OneStep, OneStepTraining
from ultraflash_diffusers.training.starting_points.networks import StreamSettings, load_cascade


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_stage(number: int | None) -> OneStepTraining:
    objective = OneStep(pixel_loss=PixelLoss(temporal_loss="difference"), decoded_latents=number)
    networks = (make_tiny_transformer().requires_grad_(True), make_tiny_upsampler(), make_tiny_autoencoder())
    return OneStepTraining(*networks, Prompts({}, 6, 8), objective)


@pytest.mark.parametrize(("place", "frames"), [(0.0, slice(0, 5)), (0.5, slice(9, 17)), (0.999, slice(17, 25))])
def test_a_window_shows_what_the_whole_shows_there(place: float, frames: slice) -> None:
    latents = torch.randn(2, 4, 7, 8, 8, generator=seeded())
    high = torch.rand(2, 3, 25, 32, 32, generator=seeded(1)) * 2 - 1
    batch = Batch(high, high[..., ::2, ::2], torch.zeros(2, 24, 2, 32, 32), ["", ""])
    stage = make_stage(2)
    stage._place = place
    decoded, shown = stage._decode(latents, batch)
    whole = stage.autoencoder.decode(latents).sample
    torch.testing.assert_close(decoded, whole[:, :, frames], atol=1e-4, rtol=1e-3)
    assert torch.equal(shown.high, high[:, :, frames]) and shown.low is not None and shown.flow is not None
    assert shown.low.shape[2] == shown.flow.shape[1] + 1 == decoded.shape[2]
    assert torch.equal(make_stage(7)._decode(latents, batch)[0], whole)


def test_a_step_learns_from_the_window_that_it_draws() -> None:
    stage, high = make_stage(1), torch.rand(1, 3, 9, 32, 32, generator=seeded()) * 2 - 1
    batch, losses = Batch(high, high[..., ::2, ::2], None, [""]), set()
    for step in range(6):
        stage.begin_step(step, seeded(step))
        loss, _ = stage(batch, seeded())
        losses.add(loss.item())
    loss.backward()
    assert len(losses) == 3  # as many as there are latents
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in stage.transformer.parameters())
    with pytest.raises(ValueError, match="`decoded_latents` saves the memory of the decoder"):
        OneStep(decoded_latents=1, decode_linearly=True)


def test_judges_see_a_part_of_the_batch_and_never_train() -> None:
    objective = OneStep(perceptual_weight=0.1, judged_frames=2, judged_clips=1)
    networks = (make_tiny_transformer(), make_tiny_upsampler(), make_tiny_autoencoder())
    stage = OneStepTraining(*networks, Prompts({}, 6, 8), objective, PerceptualLoss("quality_scorer")).train()
    assert stage.transformer.training and not any(layer.training for layer in stage.perceptual.modules())
    high = torch.rand(3, 3, 9, 32, 32, generator=seeded())
    batch = Batch(high, high[..., ::2, ::2], None, [""] * 3)
    result, target = stage._judged(high, batch, seeded())
    assert torch.equal(result, target) and result.shape == (1, 3, 2, 32, 32)
    assert all(any(torch.equal(target[0, :, t], high[0, :, frame]) for frame in range(9)) for t in range(2))
    with pytest.raises(ValueError, match="`perceptual_weight` is 0.1, but `perceptual` is None"):
        OneStepTraining(*networks, Prompts({}, 6, 8), objective)


def test_validation_streams_as_the_pipeline_does() -> None:
    pipe = make_tiny_pipeline(generator=False, group_frames=2, kv_cache_blocks=1)
    stage = make_stage(None)
    assert (stage.streams.kv_cache_blocks, stage.streams.frames_of(stage.transformer)) == (3, 2)
    stage.streams = StreamSettings(kv_cache_blocks=1, group_frames=2)
    latents = torch.randn(1, 4, 8, 4, 6, generator=seeded())
    expected = pipe(source=latents, generator=seeded(3), output_type="latent").frames
    frame_noise = SeededFrameNoise(draw_seeds(seeded(3)), 1)
    condition = pipe.latent_upsampler(latents).sample
    noise = torch.cat([frame_noise("sr", start, 2, (4, 8, 12)) for start in range(0, 8, 2)], dim=2)
    with torch.no_grad():
        text = pipe.encode_prompt("")[0]
        torch.testing.assert_close(stage._restored(noise, condition, text), expected, atol=1e-4, rtol=1e-3)
        stage.streams = StreamSettings()
        assert not torch.allclose(stage._restored(noise, condition, text), expected, atol=1e-3)


def test_a_pipeline_s_folder_says_how_it_streams() -> None:
    checkpoint = Path(__file__).parents[2] / "src" / "ultraflash_diffusers" / "checkpoint"
    assert StreamSettings.of(str(checkpoint)) == StreamSettings(kv_cache_blocks=1, group_frames=2)
    assert StreamSettings.of(str(checkpoint / "transformer")) == StreamSettings.of(None) == StreamSettings(3, None)


@torch.no_grad()
def test_the_packaged_network_s_training_forward_is_its_stream_within_a_percent() -> None:
    checkpoint = str(Path(__file__).parents[2] / "src" / "ultraflash_diffusers" / "checkpoint")
    pipe = load_cascade(checkpoint)
    networks = (pipe.transformer, pipe.latent_upsampler, pipe.autoencoder)
    stage = OneStepTraining(*networks, Prompts.none(pipe.transformer), OneStep())
    stage.streams = StreamSettings.of(checkpoint)
    coarse = torch.rand(1, 3, 13, 12, 16, generator=seeded()) * 2 - 1
    low = torch.nn.functional.interpolate(coarse, size=(13, 96, 128), mode="trilinear")
    condition = stage.condition(Batch(low, low, None, [""]))
    noise = torch.randn(condition.shape, generator=seeded(1))
    whole, streamed = (make(noise, condition, stage.prompts([""])) for make in (stage._denoised, stage._restored))
    assert (streamed - whole).norm() < 0.01 * whole.norm()
    # each is given the same first group; what a group keeps of its past differs a little, in the detail that is added
    torch.testing.assert_close(streamed[:, :, :2], whole[:, :, :2])
    assert 0 < (streamed - whole).norm() < 0.03 * (whole - condition).norm()
