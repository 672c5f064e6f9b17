# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The stages by themselves: equal results from equal states, and states that an earlier version saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import LATENT_CHANNELS, TEXT_DIM, TEXT_LENGTH, make_tiny_pipeline
from safetensors.torch import load_file

from ultraflash_diffusers import PipelineStreamState
from ultraflash_diffusers.models.stream_state import StreamState
from ultraflash_diffusers.pipelines.cache_management import DynamicCacheManagement
from ultraflash_diffusers.pipelines.detail import DetailSettings
from ultraflash_diffusers.pipelines.execution.calls import GeneratorCalls, SRCalls
from ultraflash_diffusers.pipelines.execution.compilation import GuardedCalls
from ultraflash_diffusers.pipelines.execution.timing import StageTimings
from ultraflash_diffusers.pipelines.noise import SeededFrameNoise
from ultraflash_diffusers.pipelines.samplers import PreparedPrompts
from ultraflash_diffusers.pipelines.segments import LatentSegment
from ultraflash_diffusers.pipelines.sources.generator_schedule import GeneratorSchedule
from ultraflash_diffusers.pipelines.sources.generator_stage import TextGeneratorStage, TextGeneratorState
from ultraflash_diffusers.pipelines.stages import DecodeStage, FrameState, SRGroup, SRSettings, SRStage, UpsampleStage

PIPE = make_tiny_pipeline()
SAVED = Path(__file__).parent / "saved_states"


def seeded(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def segment(height: int, width: int, number: int) -> LatentSegment:
    latents = torch.randn(1, LATENT_CHANNELS, 4, height, width, generator=seeded(number))
    return LatentSegment(latents, [4, 4, 4, 4], starts_clip=False, ratio=4)


def upsample() -> Callable[[int, Any], tuple[torch.Tensor, StreamState]]:
    stage = UpsampleStage(PIPE.latent_upsampler, GuardedCalls())
    return lambda group, state: stage(segment(2, 4, group), state)


def refine(steps: int) -> Callable[[int, Any], tuple[torch.Tensor, list[StreamState]]]:
    calls = SRCalls(PIPE.transformer)
    stage = SRStage(calls, PIPE.scheduler, SRSettings(4, steps, 1.0, 0.2, 3))
    prompts = PreparedPrompts.of(calls, [torch.randn(1, TEXT_LENGTH, TEXT_DIM, generator=seeded())])
    noise = SeededFrameNoise([1], 1)
    return lambda group, state: stage(SRGroup(segment(4, 8, group).latents, 4 * group, noise, prompts, 3), state)


def decode() -> Callable[[int, Any], tuple[torch.Tensor, StreamState]]:
    stage = DecodeStage(PIPE.autoencoder, GuardedCalls(), None, DetailSettings(), rounds=False)
    return lambda group, state: stage(segment(4, 8, group), state or FrameState(), (16, 32), StageTimings())


def generate() -> Callable[[int, Any], tuple[torch.Tensor, StreamState]]:
    calls, policy = GeneratorCalls(PIPE.generator_transformer), DynamicCacheManagement.off()
    shape = (LATENT_CHANNELS, 2, 4)
    schedule = GeneratorSchedule.of(PIPE.generator_transformer, denoising_steps=[1000, 500])
    stage = TextGeneratorStage(
        calls, PIPE.autoencoder, GuardedCalls(), SeededFrameNoise([1], 1), schedule, policy, shape, None
    )
    text = calls.prepare_text(torch.randn(1, TEXT_LENGTH, TEXT_DIM, generator=seeded()))

    def step(group: int, state: Any) -> tuple[torch.Tensor, StreamState]:
        chunk, after = stage(text, state or TextGeneratorState(PIPE.generator_transformer.new_stream()))
        return chunk.latents, after

    return step


STAGES = {"upsample": upsample, "refine": lambda: refine(2), "one step": lambda: refine(1), "decode": decode}


@torch.no_grad()
@pytest.mark.parametrize("make", [*STAGES.values(), generate], ids=[*STAGES, "generate"])
def test_a_stage_gives_the_same_from_the_same_state(make: Callable[[], Callable[[int, Any], tuple[Any, Any]]]) -> None:
    """And one state after another: nothing stays in the stage, not even where another stream calls it in between."""
    stage, fresh = make(), make()
    _, state = stage(0, None)
    copies = [copied(state) for _ in range(3)]
    first, after = stage(1, copies[0])
    stage(2, None)
    second, after_second = stage(1, copies[1])
    elsewhere, _ = fresh(1, copies[2])
    assert torch.equal(first, second) and torch.equal(first, elsewhere)
    thirds = [stage(2, each)[0] for each in (after, after_second)]
    assert torch.equal(*thirds)
    assert not torch.equal(first, stage(1, None)[0])  # the state matters


def copied(state: Any) -> Any:
    """Caches are written in place, and those of one step are good for one call: a branch is a copy."""
    return [each.clone() for each in state] if isinstance(state, list) else state.clone()


@pytest.mark.parametrize("kind", ["text", "frames"])
def test_a_state_saved_by_version_0_1_0_goes_on_with_equal_frames(kind: str) -> None:
    """Before stages were functions of their state: saved after 9 of 29 frames, with frames that were to follow."""
    state = PipelineStreamState.load(SAVED / f"{kind}.safetensors")
    source = torch.rand(1, 29, 3, 8, 12, generator=seeded()) if kind == "frames" else None
    arguments = {"state": state, "num_frames": 29, "output_type": "pt", "frames_per_chunk": 3}
    frames = torch.cat([chunk.frames for chunk in PIPE.stream(source=source, **arguments)], dim=1)
    expected = load_file(SAVED / f"{kind}_frames.safetensors")["frames"]
    torch.testing.assert_close(frames, expected, rtol=1e-5, atol=1e-5)
