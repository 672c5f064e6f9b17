# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The cascade as a block of modular diffusers, behind a workflow that makes videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ModularPipeline, ModularPipelineBlocks, SequentialPipelineBlocks
from diffusers.modular_pipelines.wan.decoders import WanVaeDecoderStep
from helpers.source_pipelines import wan_vae
from helpers.tiny import make_tiny_pipeline

from ultraflash_diffusers import UltraFlashUpscaleStep

LATENTS = torch.linspace(-1, 1, 16 * 2 * 4 * 6).view(1, 16, 2, 4, 6)


def seeded(**keywords: Any) -> dict[str, Any]:
    return {"generator": torch.Generator().manual_seed(0), **keywords}


@pytest.fixture(scope="module")
def workflow() -> ModularPipeline:
    """Wan's decoding, and the cascade behind it."""
    blocks = {"decode": WanVaeDecoderStep(), "upscale": UltraFlashUpscaleStep()}
    workflow = SequentialPipelineBlocks.from_blocks_dict(blocks).init_pipeline()
    upscaler = make_tiny_pipeline(text=False, generator=False)
    upscaler.set_progress_bar_config(disable=True)
    workflow.update_components(vae=wan_vae(), upscaler=upscaler)
    return workflow


@pytest.mark.parametrize("output_type", ["np", "pt", "pil"])
def test_videos_of_a_workflow_are_upscaled(workflow: ModularPipeline, output_type: str) -> None:
    videos = workflow(**seeded(latents=LATENTS, output_type=output_type), output="videos")
    decoded = SequentialPipelineBlocks.from_blocks_dict({"decode": WanVaeDecoderStep()}).init_pipeline()
    decoded.update_components(vae=workflow.vae)
    low = decoded(latents=LATENTS, output_type=output_type, output="videos")
    expected = workflow.upscaler(**seeded(source=low, output_type=output_type)).frames
    assert np.array_equal(np.asarray(videos), np.asarray(expected))
    scale = workflow.upscaler.latent_upsampler.config.scale
    height, width = (-3, -2) if output_type != "pt" else (-2, -1)
    assert np.asarray(videos).shape[1] == np.asarray(low).shape[1] == 5
    assert np.asarray(videos).shape[height] == scale * np.asarray(low).shape[height]
    assert np.asarray(videos).shape[width] == scale * np.asarray(low).shape[width]


def test_a_missing_upscaler_is_named() -> None:
    workflow = UltraFlashUpscaleStep().init_pipeline()
    with pytest.raises(ValueError, match="`upscaler` is not loaded: call `update_components"):
        workflow(videos=np.zeros((1, 5, 16, 16, 3), np.float32))


def test_a_folder_holds_the_block_and_its_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    block, folder = UltraFlashUpscaleStep(), tmp_path / "block"
    workflow = block.init_pipeline()
    workflow.update_components(upscaler=make_tiny_pipeline(text=False, generator=False, kv_cache_blocks=1))
    workflow.save_pretrained(str(folder), overwrite_modular_index=True)
    block.save_pretrained(folder)

    assert type(ModularPipelineBlocks.from_pretrained(folder, trust_remote_code=True)) is UltraFlashUpscaleStep
    loaded = ModularPipeline.from_pretrained(str(folder), trust_remote_code=True)
    loaded.load_components()
    assert loaded.upscaler.config.kv_cache_blocks == 1
    videos = np.random.default_rng(0).random((1, 5, 16, 16, 3), np.float32)
    expected = workflow(**seeded(videos=videos), output="videos")
    np.testing.assert_allclose(loaded(**seeded(videos=videos), output="videos"), expected, atol=1e-5)
