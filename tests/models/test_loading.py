# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Networks from folders that are broken or crafted, and from single published files."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.hub_cache import fill_hub_cache
from helpers.tiny import make_tiny_autoencoder, make_tiny_generator, make_tiny_transformer, make_tiny_upsampler
from helpers.wan_cases import REFERENCE
from reference.deterministic import fill_layout
from safetensors.torch import load_file, save_file

from ultraflash_diffusers import (
    CausalLatentUpsampler,
    CausalWanTransformer,
    HRAutoencoder,
    QualityScorer,
    UltraFlashSRTransformer,
)
from ultraflash_diffusers.conversion import from_original

NETWORKS: dict[str, Any] = {
    "transformer": make_tiny_transformer,
    "generator_transformer": make_tiny_generator,
    "latent_upsampler": make_tiny_upsampler,
    "autoencoder": make_tiny_autoencoder,
    "quality_scorer": QualityScorer,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_folder_whose_weights_lack_keys(name, tmp_path):
    network = NETWORKS[name]()
    network.save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    lost = sorted(weights)[-2:]
    save_file({key: tensor for key, tensor in weights.items() if key not in lost}, path)
    with pytest.raises(ValueError, match=f"weights of the {type(network).__name__} in .* lack {', '.join(lost)}"):
        type(network).from_pretrained(tmp_path)
    save_file(weights, path)
    loaded, info = type(network).from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == [] and not loaded.training


@pytest.mark.parametrize(
    "name, setting",
    [
        ("transformer", {"num_layers": 10**9}),
        ("generator_transformer", {"num_layers": 10**9}),
        ("generator_transformer", {"num_layers": 2.5}),
        ("latent_upsampler", {"num_blocks": [10**9]}),
        ("autoencoder", {"decoder_blocks": [1, 10**9]}),
        ("autoencoder", {"encoder_blocks": [10**9, 1]}),
    ],
)
def test_a_config_that_asks_for_layers_without_end(name, setting, tmp_path):
    network = NETWORKS[name]()
    network.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | setting))
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"must be a whole number of 0 to 1000, got (1000000000|2\.5)"):
        type(network).from_pretrained(tmp_path)
    assert time.monotonic() - start < 30


def layout(name: str) -> dict[str, torch.Tensor]:
    return fill_layout(REFERENCE / "layouts" / f"{name}.json")


@pytest.fixture
def generator_file(tmp_path: Path) -> Path:
    path = tmp_path / "longlive_base.pt"
    torch.save({"generator": {f"model.{k}": v for k, v in layout("generator_longlive").items()}, "step": 3}, path)
    return path


def test_a_local_file(generator_file):
    settings = {"num_heads": 2, "local_attn_size": 12, "sink_size": 3, "independent_first_frame": True}
    network = CausalWanTransformer.from_single_file(generator_file, **settings)
    expected = from_original(layout("generator_longlive"), **settings)
    assert network.config.first_chunk_frames == 1 and not network.training
    for name, parameter in expected.named_parameters():
        assert torch.equal(network.get_parameter(name), parameter)
    half = CausalWanTransformer.from_single_file(str(generator_file), dtype=torch.bfloat16, **settings)
    assert half.dtype == torch.bfloat16 and half.scale_shift_table.dtype == torch.float32
    state = CausalWanTransformer.from_single_file(layout("generator_longlive"), **settings)
    assert state.config.window_frames == 12


@pytest.mark.parametrize(
    "address, options",
    [
        ("owner/name/models/longlive_base.pt", {}),
        ("https://huggingface.co/owner/name/blob/main/models/longlive_base.pt", {}),
        ("https://huggingface.co/owner/name/resolve/main/models/longlive_base.pt?download=true", {}),
        ("hf://owner/name/models/longlive_base.pt", {"revision": "main"}),
        ("owner/name/longlive_base.pt", {"subfolder": "models"}),
    ],
)
def test_a_file_of_the_hub(address, options, generator_file, tmp_path):
    fill_hub_cache(tmp_path / "cache", "owner/name", {"models/longlive_base.pt": generator_file})
    network = CausalWanTransformer.from_single_file(address, num_heads=2, cache_dir=tmp_path / "cache", **options)
    assert torch.equal(network.proj_out.bias, layout("generator_longlive")["head.head.bias"])


def test_files_that_do_not_fit(generator_file, tmp_path):
    with pytest.raises(ValueError, match="are of a CausalWanTransformer, not of a UltraFlashSRTransformer: call"):
        UltraFlashSRTransformer.from_single_file(generator_file, num_heads=2)
    with pytest.raises(ValueError, match="the tensors are of a CausalLatentUpsampler, not of a HRAutoencoder"):
        HRAutoencoder.from_single_file(layout("upsampler_v1_x2"))
    with pytest.raises(FileNotFoundError, match="'nothing.pt' is not there"):
        CausalLatentUpsampler.from_single_file("nothing.pt")
    with pytest.raises(FileNotFoundError, match="'a.pt' of 'owner/name' is not in the cache"):
        CausalLatentUpsampler.from_single_file("owner/name/a.pt", cache_dir=tmp_path / "cache")
    with pytest.raises(ValueError, match="unknown setting `colour`"):
        CausalWanTransformer.from_single_file(generator_file, num_heads=2, colour=1)
