# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The LoRA walk-through, with tiny networks: what training saves, the pipeline loads, weighs, fuses and gives back."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
from helpers.paths import ROOT
from helpers.tiny import make_tiny_pipeline
from helpers.training_runs import AUTOENCODER, TRANSFORMER, UPSAMPLER, texture, write_video
from PIL import Image
from safetensors.torch import load_file

from ultraflash_diffusers import (
    CausalLatentUpsampler,
    HRAutoencoder,
    UltraFlashSRTransformer,
    UltraFlashStreamingPipeline,
)

EXAMPLE = ROOT / "examples" / "style_lora.py"
WEIGHTS = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline in `pipeline`, clips, and in `result` what the example has made of them."""
    folder = tmp_path_factory.mktemp("lora")
    torch.manual_seed(0)
    networks = {
        "transformer": UltraFlashSRTransformer(**TRANSFORMER),
        "latent_upsampler": CausalLatentUpsampler(**UPSAMPLER),
        "autoencoder": HRAutoencoder(**AUTOENCODER),
    }
    make_tiny_pipeline(text=False, generator=False, **networks).save_pretrained(folder / "pipeline")
    (folder / "clips").mkdir()
    write_video(folder / "clips" / "clip.mp4", texture(1))
    write_video(folder / "source.mp4", texture(2, height=24, width=32))
    options = {"checkpoint": "pipeline", "clips": "clips", "source": "source.mp4", "output": "result"}
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(folder / value))]
    runpy.run_path(str(EXAMPLE))["main"]([*arguments, "--steps", "6", "--rank", "2", "--crops", "5x32x32"])
    return folder


@pytest.fixture
def pipe(folder: Path) -> UltraFlashStreamingPipeline:
    pipe = UltraFlashStreamingPipeline.from_pretrained(folder / "pipeline", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def result(pipe: UltraFlashStreamingPipeline, folder: Path) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return pipe(source=str(folder / "source.mp4"), num_frames=9, generator=generator, output_type="pt").frames


def test_the_example_writes_the_lora_and_a_picture(folder: Path) -> None:
    weights = load_file(folder / "result" / "lora" / WEIGHTS)
    assert {name.rpartition(".lora_")[0] for name in weights} == {"transformer.proj_out"}
    assert all(min(tensor.shape) == 2 for tensor in weights.values())
    picture = Image.open(folder / "result" / "style_lora.png")
    assert picture.width >= 4 * 64 and picture.height >= 48  # four weights


def test_a_trained_lora_changes_results_by_its_weight(pipe: UltraFlashStreamingPipeline, folder: Path) -> None:
    base = result(pipe, folder)
    pipe.load_lora_weights(folder / "result" / "lora", adapter_name="style")
    changes = {}
    for weight in (0.0, 0.5, 1.0):
        pipe.set_adapters("style", weight)
        changes[weight] = (result(pipe, folder) - base).abs().mean().item()
    assert changes[0.0] == 0
    assert 1e-4 < changes[0.5] < changes[1.0]
    pipe.disable_lora()
    assert torch.equal(result(pipe, folder), base)


def test_a_fused_lora_is_the_same_and_can_be_taken_out(pipe: UltraFlashStreamingPipeline, folder: Path) -> None:
    base = result(pipe, folder)
    pipe.load_lora_weights(folder / "result" / "lora", adapter_name="style")
    beside = result(pipe, folder)
    assert (beside - base).abs().mean() > 1e-4
    pipe.fuse_lora()
    torch.testing.assert_close(result(pipe, folder), beside, atol=1e-5, rtol=0)
    pipe.unfuse_lora()
    torch.testing.assert_close(result(pipe, folder), beside, atol=1e-5, rtol=0)
    pipe.unload_lora_weights()
    torch.testing.assert_close(result(pipe, folder), base, atol=1e-5, rtol=0)
    assert "lora" not in " ".join(pipe.transformer.state_dict())
