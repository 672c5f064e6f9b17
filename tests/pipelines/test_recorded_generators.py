# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What published generators made, by what a user calls: a converted network, LoRA, first latents, changed prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import make_tiny_autoencoder, make_tiny_pipeline, make_tiny_transformer, make_tiny_upsampler
from helpers.wan_cases import REFERENCE, TOLERANCE, Case, relative_error
from reference.deterministic import fill_layout

from ultraflash_diffusers import PipelineStreamState, UltraFlashStreamingPipeline
from ultraflash_diffusers.pipelines.noise import SeededFrameNoise

FREE = ("global", "rolling_sink", "rolling_long", "longlive", "longlive_small")
FREE += ("framewise", "framewise_2step", "framewise_1step")
CHANGED = ("longlive_switch", "longlive_switch_early", "longlive_switch_resink")


def chunk_lengths(case: Case) -> list[int]:
    config = case.config
    return config.get("chunk_frames", [config["frames_per_chunk"]] * config["chunks"])


def starts(case: Case) -> list[int]:
    """The latent frame that each generated chunk begins at."""
    lengths = chunk_lengths(case)
    return [case.config.get("first_latent_frames", 0) + sum(lengths[:number]) for number in range(len(lengths))]


class RecordedNoise(SeededFrameNoise):
    """The noise of a recorded case, in the place where a stream draws its own."""

    case: Case

    def __call__(self, role: str, start: int, frames: int, shape: tuple[int, int, int]) -> torch.Tensor:
        chunk, step = starts(self.case).index(start), role.removeprefix("generator_renoise_")
        noise = self.case.input(f"noise_{chunk}" if role == "generator" else f"renoise_{chunk}_{step}")
        assert noise.shape[2] == frames
        return noise


@pytest.fixture
def begin(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Loads a case's generator into a pipeline; returns it, its streams, and what they hand to the upsampler."""

    def prepare(case: Case) -> tuple[UltraFlashStreamingPipeline, Any, list[torch.Tensor]]:
        monkeypatch.setattr(RecordedNoise, "case", case, raising=False)
        monkeypatch.setattr("ultraflash_diffusers.pipelines.stream_start.SeededFrameNoise", RecordedNoise)
        pipe = make_tiny_pipeline(
            text=False,
            autoencoder=make_tiny_autoencoder(latent_channels=16),
            latent_upsampler=make_tiny_upsampler(in_channels=16, out_channels=16),
            transformer=make_tiny_transformer(in_channels=32, out_channels=16, text_dim=48, text_length=16),
            generator_transformer=case.network(),
        )
        made: list[torch.Tensor] = []
        pipe.latent_upsampler.register_forward_pre_hook(lambda _, inputs: made.append(inputs[0]))
        scale = pipe.autoencoder.spatial_compression_ratio * pipe.latent_upsampler.config.scale
        height, width = (scale * side for side in case.config["inputs"]["noise_0"][3:])
        frames = pipe.autoencoder.temporal_compression_ratio * (starts(case)[-1] + chunk_lengths(case)[-1] - 1) + 1

        def stream(**options: Any) -> Any:
            return pipe.stream(height=height, width=width, num_frames=frames, output_type="latent", **options)

        return pipe, stream, made

    return prepare


def check(case: Case, made: list[torch.Tensor]) -> None:
    """Compares the generated chunks, however they were cut into groups."""
    latents = torch.cat(made, dim=2)
    for number, (start, length) in enumerate(zip(starts(case), chunk_lengths(case), strict=True)):
        chunk = latents[:, :, start : start + length]
        assert relative_error(chunk, case.outputs[f"denoised_{number}"]) < TOLERANCE, f"chunk {number}"
    assert latents.shape[2] == starts(case)[-1] + chunk_lengths(case)[-1]


@pytest.mark.parametrize("name", FREE)
def test_generated(name: str, begin: Any) -> None:
    """By what its configuration says, and nothing else."""
    case = Case(f"generator_{name}")
    _, stream, made = begin(case)
    statistics = [chunk.statistics for chunk in stream(prompt_embeds=case.input("context"))]
    check(case, made)
    first = len(case.config.get("first_chunk_denoising_steps", case.config["denoising_steps"]))
    passes = [first + 1] + [len(case.config["denoising_steps"]) + 1] * (case.config["chunks"] - 1)
    assert [each for group in statistics for each in group.get("generator_passes", [])] == passes


@pytest.mark.parametrize("fused", [False, True])
def test_with_its_lora(fused: bool, begin: Any, tmp_path: Path) -> None:
    """The file as it is published."""
    case = Case("generator_longlive_lora")
    pipe, stream, made = begin(case)
    lora = fill_layout(REFERENCE / "layouts" / f"{case.config['lora_layout']}.json")
    torch.save({"generator_lora": lora, "critic_lora": {}, "step": 1}, tmp_path / "lora.pt")
    pipe.load_lora_weights(tmp_path / "lora.pt")
    if fused:
        pipe.fuse_lora()
    list(stream(prompt_embeds=case.input("context")))
    check(case, made)


@pytest.mark.parametrize("name", ["framewise_i2v", "framewise_i2v_2step"])
def test_after_a_given_picture(name: str, begin: Any) -> None:
    case = Case(f"generator_{name}")
    _, stream, made = begin(case)
    given = case.input("first_latents")
    list(stream(prompt_embeds=case.input("context"), source_kwargs={"first_latents": given}))
    assert torch.equal(torch.cat(made, dim=2)[:, :, : given.shape[2]], given)
    check(case, made)


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("name", CHANGED)
def test_prompts_that_change(name: str, saved: bool, begin: Any, tmp_path: Path) -> None:
    case = Case(f"generator_{name}")
    pipe, begin_stream, made = begin(case)
    pipe.generator_transformer.register_to_config(recompute_on_prompt_change=True)  # as recipes say of LongLive
    ratio = pipe.autoencoder.temporal_compression_ratio
    stream = begin_stream(prompt_embeds=case.input("context_0"))
    for number, chunk in enumerate(case.config["switch_chunks"], start=1):
        # anywhere in the chunk before
        at_frame = ratio * (starts(case)[chunk] - 1) + 1 - 3
        stream.set_prompt(prompt_embeds=case.input(f"context_{number}"), at_frame=at_frame)
    recomputed = 0
    while (chunk := next(stream, None)) is not None:
        recomputed += "prompt_change" in chunk.timings
        if saved:
            chunk.state().save(tmp_path / "state.safetensors")
            stream.close()
            stream = begin_stream(state=PipelineStreamState.load(tmp_path / "state.safetensors"))
    check(case, made)
    assert recomputed == len(case.config["switch_chunks"])
