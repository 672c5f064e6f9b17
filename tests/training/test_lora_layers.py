# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""LoRA layers of training, as stock diffusers, original-name readers and our own loader read them."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from helpers.tiny import make_tiny_pipeline, make_tiny_transformer
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from torch import nn

from ultraflash_diffusers.pipelines.lora import write_original_lora
from ultraflash_diffusers.training.starting_points.lora import LoraLayers, choose_trained, lora_of, save_lora

SIZES = {"num_attention_heads": 2, "attention_head_dim": 12, "text_dim": 8, "freq_dim": 16, "ffn_dim": 32}


def added(network: nn.Module) -> dict[str, torch.Tensor]:
    """What LoRA layers add to the weights."""
    (adapter,) = network.peft_config
    layers = {name: module for name, module in network.named_modules() if isinstance(module, LoraLayer)}
    return {name: module.get_delta_weight(adapter) for name, module in layers.items()}


def stock() -> WanTransformer3DModel:
    return WanTransformer3DModel(**SIZES, num_layers=2, in_channels=4, out_channels=4)


@pytest.fixture
def trained(tmp_path: Path) -> dict[str, torch.Tensor]:
    """Saved layers with an alpha beside their rank; what they add."""
    transformer = make_tiny_transformer()
    choose_trained(
        transformer, LoraLayers(3, lora_alpha=1.5, lora_dropout=0.1, lora_target_modules=["attention", "ffn"])
    )
    for name, parameter in transformer.named_parameters():
        assert parameter.requires_grad == ("lora" in name)
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    save_lora(transformer, tmp_path)
    return added(transformer)


def check(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys() and len(found) == 2 * 10
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight)


def test_stock_diffusers_reads_layers_alpha_and_all(trained: dict[str, torch.Tensor], tmp_path: Path) -> None:
    network = stock()
    network.load_lora_adapter(tmp_path, prefix="transformer", weight_name="pytorch_lora_weights.safetensors")
    check(added(network), trained)
    (config,) = network.peft_config.values()
    assert (config.r, config.lora_alpha, config.lora_dropout) == (3, 1.5, 0.1)


def test_original_names_are_read_by_diffusers_and_by_us(trained: dict[str, torch.Tensor], tmp_path: Path) -> None:
    file = tmp_path / "original.safetensors"
    write_original_lora(tmp_path, file)
    with safe_open(file, "pt") as content:
        names = set(content.keys())
    # what ComfyUI asks for: its model's names behind this prefix
    ends = {f"blocks.{n}.{layer}" for n in range(2) for layer in ("self_attn.q", "cross_attn.o", "ffn.0", "ffn.2")}
    assert {f"diffusion_model.{end}.lora_{half}.weight" for end in ends for half in "AB"} <= names
    network = stock()
    network.load_lora_adapter(WanPipeline.lora_state_dict(str(file)), prefix="transformer")
    check(added(network), trained)
    pipe = make_tiny_pipeline(generator=False)
    pipe.load_lora_weights(file)
    check(added(pipe.transformer), trained)


def test_bad_layers_are_named() -> None:
    with pytest.raises(ValueError, match="'attn3.to_q', which no linear layer of the UltraFlash"):
        choose_trained(make_tiny_transformer(), LoraLayers(2, lora_target_modules=["attention", "attn3.to_q"]))
    with pytest.raises(ValueError, match="`lora_dropout` must be below 1, got 1.0"):
        LoraLayers(2, lora_dropout=1.0)
    settings = {"rank": None, "lora_alpha": None, "lora_dropout": None, "lora_target_modules": None}
    with pytest.raises(ValueError, match="--lora_alpha needs --rank"):
        lora_of(Namespace(**settings | {"lora_alpha": 2.0}, lora_format="diffusers"))
    with pytest.raises(ValueError, match="--lora_format needs --rank"):
        lora_of(Namespace(**settings, lora_format="original"))
