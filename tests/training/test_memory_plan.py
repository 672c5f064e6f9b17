# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Plans of a step: what is counted without contents is what a step takes with them; every script has a dry run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training_runs import GENERATOR, TRANSFORMER, script
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ultraflash_diffusers import UltraFlashStreamingPipeline
from ultraflash_diffusers.profiling.fake_run import count_step

CHECKPOINT = str(Path(__file__).parents[2] / "src" / "ultraflash_diffusers" / "checkpoint")


def test_a_step_s_bytes_and_operations_are_those_of_the_step() -> None:
    layers = nn.Sequential(nn.Linear(64, 512, bias=False), nn.ReLU(), nn.Linear(512, 64, bias=False))
    inputs = torch.randn(32, 64)
    counts = count_step(layers, lambda module, faked: module(faked(inputs)).square().mean())
    assert all(parameter.grad is None for parameter in layers.parameters())
    with FlopCounterMode(display=False) as counter:
        layers(inputs).square().mean().backward()
    assert counts.flops == counter.get_total_flops() == 5 * 2 * 32 * 64 * 512
    weights, hidden = 4 * 64 * 512, 4 * 32 * 512
    # both gradients, the hidden numbers before and after the ReLU, their gradients, and little else
    assert 2 * weights + 3 * hidden < counts.peak < 2 * weights + 6 * hidden


def test_caches_made_inside_and_checks_of_inputs_are_no_obstacle() -> None:
    def step(module: nn.Module, faked: Any) -> torch.Tensor:
        state = torch.zeros(2**22)  # would be a cache
        state[:4] = module(faked(torch.empty(4, 4)))[0]
        if not bool(state.isfinite().all()):
            raise ValueError
        return state.sum()

    assert count_step(nn.Linear(4, 4), step).peak >= 4 * 2**22


SR = ("--autoencoder", CHECKPOINT, "--latent_upsampler", CHECKPOINT)
SAME = ("--pretrained_model_name_or_path", CHECKPOINT)
RUNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "scorer": ("train_quality_scorer", ()),
    "autoencoder": ("train_hr_autoencoder", SAME),
    "upsampler": ("train_latent_upsampler", (*SAME, "--autoencoder", CHECKPOINT)),
    "lora": ("train_sr", (*SAME, *SR, "--rank", "4")),
    "distillation": ("distill_sr", ("--teacher", CHECKPOINT, *SR, "--guidance_drops", "condition")),
    "preference": ("train_cascade_dpo", (*SAME, "--teacher", CHECKPOINT, "--teacher_steps", "1")),
    "generator": ("train_generator", ("--token_rank", "6", "--autoencoder", CHECKPOINT)),
}
SIZES = {"scorer": "1x288x288", "preference": "5x64x64", "generator": "21x64x64"}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_every_script_has_a_dry_run(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script_name, flags = RUNS[name]
    if name == "generator":
        config = tmp_path / "generator.json"
        config.write_text(json.dumps(GENERATOR | {"in_channels": 96, "out_channels": 96, "patch_size": [3, 4, 4]}))
        flags = (*flags, "--network_config", str(config), "--sample_chunks", "1")
    module = script(script_name)
    size = ("--crops", SIZES.get(name, "9x64x64"), "--output_dir", str(tmp_path / "out"), "--train_data_dir", "none")
    planned = module.main(module.parse_arguments([*flags, *size, "--dry_run"]))
    assert planned["gib"] > 0 and planned["tflop"] > 0
    assert "fits into 80 GiB" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_gentlest_flags_that_are_enough_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "transformer.json"
    deep = {"in_channels": 192, "out_channels": 96, "num_layers": 4, "ffn_dim": 512, "patch_size": [1, 2, 2]}
    config.write_text(json.dumps(TRANSFORMER | deep))
    module = script("train_sr")

    def plan(*flags: str) -> tuple[float, str]:
        arguments = (*SR, "--network_config", str(config), "--objective", "flow_matching", "--crops", "9x128x128")
        run = ("--output_dir", str(tmp_path / "out"), "--train_data_dir", "none", "--dry_run", *flags)
        return module.main(module.parse_arguments([*arguments, *run]))["gib"], capsys.readouterr().out

    whole, text = plan()
    assert "transformer: latents 4x192x3x32x32, 768 tokens" in text and "fits into 80 GiB" in text
    checkpointed, _ = plan("--gradient_checkpointing")
    assert checkpointed < 0.8 * whole
    _, text = plan("--plan_memory", str(1.15 * checkpointed))
    assert text.splitlines()[-1] == "  would fit: --gradient_checkpointing"


@pytest.mark.slow
def test_processes_that_share_tokens_share_activations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "transformer.json"
    wide = {"num_attention_heads": 8, "attention_head_dim": 24, "num_layers": 4, "use_sparse_attention": False}
    config.write_text(json.dumps(TRANSFORMER | wide | {"in_channels": 192, "out_channels": 96}))
    module = script("train_sr")

    def plan(*flags: str) -> float:
        arguments = (*SR, "--network_config", str(config), "--objective", "flow_matching", "--crops", "9x192x192")
        run = ("--output_dir", str(tmp_path / "out"), "--train_data_dir", "none", "--dry_run", *flags)
        return module.main(module.parse_arguments([*arguments, *run]))["gib"]

    alone = plan("--plan_processes", "4")
    shared = plan("--plan_processes", "4", "--ulysses_degree", "2", "--ring_degree", "2")
    assert shared < 0.6 * alone
    assert "shared by 4" in capsys.readouterr().out
    with pytest.raises(
        ValueError, match="--ring_degree 1 --ulysses_degree 2: 2 processes share a clip, but there are 1"
    ):
        plan("--ulysses_degree", "2")


def test_a_cascade_without_weights_is_that_of_its_configurations() -> None:
    from ultraflash_diffusers.training.starting_points.networks import load_cascade, without_weights

    with without_weights(True):
        bare = load_cascade(CHECKPOINT)
    whole = UltraFlashStreamingPipeline.from_pretrained(CHECKPOINT)
    for name in ("transformer", "latent_upsampler", "autoencoder", "generator_transformer"):
        shapes = ({k: v.shape for k, v in getattr(pipe, name).state_dict().items()} for pipe in (bare, whole))
        assert next(shapes) == next(shapes), name
    assert bare.transformer.device.type == "meta"
    assert bare.config.group_frames == whole.config.group_frames
