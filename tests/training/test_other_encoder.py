# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Training on decoders that cannot encode, as published ones: the pipeline's component `encoder` does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.source_pipelines import wan_vae
from helpers.tiny import make_tiny_autoencoder, make_tiny_pipeline, make_tiny_transformer, make_tiny_upsampler
from helpers.training_runs import run, texture, write_video

from ultraflash_diffusers import HRAutoencoder, UltraFlashStreamingPipeline
from ultraflash_diffusers.models.video_encoder import WanVideoEncoder
from ultraflash_diffusers.training.data.latents import encode_stream
from ultraflash_diffusers.training.stages.cascade_rollout import clip_source
from ultraflash_diffusers.training.starting_points.networks import load_encoder

DECODER: dict[str, Any] = {"encoder_channels": (), "encoder_blocks": (), "encoder_spatial_strides": ()}
DECODER |= {"encoder_temporal_strides": (), "latent_channels": 16, "latent_space": "wan2.1", "patch_size": 4}


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips, and a pipeline of a decoder alone with Wan's autoencoder beside it."""
    folder = tmp_path_factory.mktemp("material")
    for part in ("train", "held_out"):
        (folder / part).mkdir()
        write_video(folder / part / "clip.mp4", texture(len(part)))
    pipe = make_tiny_pipeline(
        text=False,
        generator=False,
        autoencoder=make_tiny_autoencoder(**DECODER),
        latent_upsampler=make_tiny_upsampler(in_channels=16, out_channels=16),
        transformer=make_tiny_transformer(in_channels=32, out_channels=16),
        encoder=wan_vae(),
    )
    pipe.save_pretrained(folder / "pipeline")
    return folder


@pytest.mark.parametrize("flags", [(), ("--objective", "flow_matching", "--cache_latents")])
def test_a_lora_is_trained(flags: tuple[str, ...], material: Path, tmp_path: Path) -> None:
    pipeline = material / "pipeline"
    names = ("pretrained_model_name_or_path", "autoencoder", "latent_upsampler")
    options = dict.fromkeys(names, pipeline) | {"rank": 2, "max_train_steps": 2, "train_batch_size": 1}
    objective = flags or ("--objective", "one_step")
    measures = run("train_sr", material, tmp_path, *objective, **options)
    assert measures["validation/psnr"] > 3
    pipe = UltraFlashStreamingPipeline.from_pretrained(pipeline)
    pipe.load_lora_weights(tmp_path)
    assert pipe.get_list_adapters() == {"transformer": ["default_0"]}


def test_latents_are_those_of_the_encoder(material: Path) -> None:
    pipe = UltraFlashStreamingPipeline.from_pretrained(material / "pipeline")
    encoder = load_encoder(str(material / "pipeline"), pipe.autoencoder)
    assert isinstance(encoder, WanVideoEncoder)
    frames = texture(3, frames=9, height=32, width=32)
    pixels = torch.from_numpy(frames).permute(3, 0, 1, 2)[None] / 127.5 - 1
    latents = encoder.encode(pixels).latents
    torch.testing.assert_close(torch.from_numpy(encode_stream(encoder, frames))[None], latents, atol=1e-4, rtol=1e-4)
    (chunk,) = clip_source(pipe, pixels).chunks()  # of a roll-out
    torch.testing.assert_close(chunk.latents, latents, atol=1e-4, rtol=1e-4)
    whole = make_tiny_autoencoder()
    assert load_encoder("nowhere", whole) is whole


def test_without_any_encoder(material: Path, tmp_path: Path) -> None:
    alone = HRAutoencoder.from_pretrained(material / "pipeline", subfolder="autoencoder")
    with pytest.raises(ValueError, match="holds a decoder alone and cannot encode clips.*name a pipeline's folder"):
        load_encoder(str(tmp_path), alone)
    wan_vae(latents_mean=[0.0] * 16).save_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match="`encoder` does not fit `autoencoder`"):
        load_encoder(str(tmp_path), alone)
    (tmp_path / "encoder" / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    with pytest.raises(ValueError, match="holds a AutoencoderKL, expected one of AutoencoderKLWan, HRAutoencoder"):
        load_encoder(str(tmp_path), alone)
