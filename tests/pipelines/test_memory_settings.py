# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Settings for smaller cards: planned without weights, chosen by what fits, and the same frames."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers import tiny

from ultraflash_diffusers.pipelines.execution.accuracy import compare, record
from ultraflash_diffusers.pipelines.execution.devices import is_offloaded
from ultraflash_diffusers.pipelines.memory_plan import meta_twin, peak_bytes, plan_memory
from ultraflash_diffusers.pipelines.memory_settings import (
    CARDS,
    UNPLANNED_BYTES,
    MemorySetting,
    apply_setting,
    choose_setting,
    fit_memory,
    parse_memory,
    plan_settings,
    plan_streams,
)
from ultraflash_diffusers.profiling.presets import PRESETS, build_pipeline

NETWORKS = ("generator_transformer", "latent_upsampler", "transformer", "autoencoder")
PROMPT = torch.randn(1, tiny.TEXT_LENGTH, tiny.TEXT_DIM, generator=torch.Generator().manual_seed(9))


def deep_pipeline() -> Any:
    return tiny.make_tiny_pipeline(
        text=False,
        transformer=tiny.make_tiny_transformer(num_layers=6, block_size=(2, 2, 4), attention_head_dim=16),
        generator_transformer=tiny.make_tiny_generator(num_layers=5),
    )


def test_a_few_layers_tell_what_all_take() -> None:
    """To the byte, but for some counters of layers."""
    pipe = deep_pipeline()
    whole = plan_memory(copy.deepcopy(pipe).to("meta"), 32, 48)
    quick = plan_streams(pipe, 32, 48, pipe.config.kv_cache_blocks)
    assert quick["weights"] == whole["weights"] and quick["working"] == pytest.approx(whole["working"], abs=500)
    assert quick["state"] == whole["state"]


def test_a_twin_has_the_pipeline_s_weights_in_its_precision() -> None:
    pipe = deep_pipeline().to(torch.bfloat16)
    twin = meta_twin(pipe, 2, 6)
    assert twin.config.kv_cache_blocks == 2 and twin.config.group_frames == pipe.config.group_frames
    for name in ("transformer", "latent_upsampler", "autoencoder"):
        shapes = [
            [(key, each.shape) for key, each in getattr(which, name).named_parameters()] for which in (pipe, twin)
        ]
        assert shapes[0] == shapes[1] and getattr(twin, name).device.type == "meta"
    assert twin.transformer.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    assert twin.transformer.scale_shift_table.dtype == torch.float32


@pytest.mark.slow
def test_settings_take_less_and_less() -> None:
    pipe = deep_pipeline()
    planned = list(plan_settings(pipe, 32, 48))
    assert [each.setting for each in planned] == [
        MemorySetting(3),
        MemorySetting(3, in_turns=True),
        MemorySetting(2, in_turns=True),
        MemorySetting(1, in_turns=True),
        MemorySetting(3, in_turns=True, offload=True),
        MemorySetting(1, in_turns=True, offload=True),
    ]
    plan = plan_streams(pipe, 32, 48, 3)
    assert planned[0].device_bytes == peak_bytes(plan, overlapped=True) + UNPLANNED_BYTES
    assert planned[1].device_bytes == peak_bytes(plan) + UNPLANNED_BYTES
    sizes = [each.device_bytes for each in planned]
    assert sizes[0] > sizes[1] > sizes[2] > sizes[3] > sizes[5] and sizes[1] > sizes[4] > sizes[5]
    assert planned[0].accuracy == planned[4].accuracy == "exact"
    assert "sees 1 temporal blocks of the past instead of 3" in planned[3].accuracy
    for each in planned:
        assert choose_setting(pipe, 32, 48, each.device_bytes).device_bytes <= each.device_bytes


def test_the_published_cascade_fits_cards() -> None:
    """By the plan, 1K runs on all of them: as it is on 24 GB, in turns on 16, a block at a time on 8."""
    preset = PRESETS["1k"]
    pipe = build_pipeline(preset, "meta", torch.bfloat16)
    planned = list(plan_settings(pipe, preset.height, preset.width))
    chosen = {
        card: next(each for each in planned if each.device_bytes <= parse_memory(card)).setting for card in CARDS
    }
    assert chosen["24GB"] == MemorySetting(3) and chosen["16GB"] == MemorySetting(2, in_turns=True)
    assert chosen["12GB"].offload and chosen["8GB"] == MemorySetting(1, in_turns=True, offload=True)
    weights = sum(parameter.nbytes for name in NETWORKS for parameter in getattr(pipe, name).parameters())
    assert all(each.host_bytes == weights for each in planned)


@torch.no_grad()
def test_an_offloaded_pipeline_makes_the_same_frames() -> None:
    pipe = deep_pipeline()
    arguments = {"prompt_embeds": PROMPT, "num_frames": 21}
    plain = record(pipe, **arguments)
    apply_setting(pipe, MemorySetting(3, in_turns=True, offload=True), torch.device("cpu"))
    assert is_offloaded(pipe.transformer) and is_offloaded(pipe.generator_transformer)
    assert not is_offloaded(pipe.autoencoder) and not pipe.can_overlap_decoding
    accuracy = compare(plain, record(pipe, **arguments))
    assert accuracy.latent_error < 1e-6


def test_optimize_fits_a_card_and_says_how() -> None:
    pipe = tiny.make_tiny_pipeline()
    report = pipe.optimize(memory="8GB", compile=False)
    assert report.steps[0].name == "memory" and "GB, and 0.0 GB of the host's" in report.steps[0].detail
    assert report.steps[0].detail.startswith("`kv_cache_blocks` 3, overlapped: 0.8 GB")
    assert not is_offloaded(pipe.transformer)


def test_what_fits_nowhere_is_refused_before_anything_moves() -> None:
    pipe = deep_pipeline()
    with pytest.raises(ValueError, match=r"0\.1 GB are too little for frames of 32x48: .*offloaded: 0\.8 GB"):
        fit_memory(pipe, "0.1GB", 32, 48)
    assert pipe.config.kv_cache_blocks == 3 and not is_offloaded(pipe.transformer)
    for wrong in ("8", "8 MB", "", "0GB", "-8GB", "small", 8):
        with pytest.raises(ValueError, match="`memory` must be a size such as '8GB'"):
            pipe.optimize(memory=wrong)
