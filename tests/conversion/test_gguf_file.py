# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Networks from GGUF files, written here by the `gguf` package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import GGUFQuantizationConfig
from helpers.wan_networks import latents, make_generator, make_sr, prompt

from ultraflash_diffusers import CausalWanTransformer, UltraFlashSRTransformer

WIDTH = {"num_attention_heads": 2, "attention_head_dim": 32}
SETTINGS = {"num_attention_heads": 2, "text_length": 6}
SPARSE: dict[str, Any] = {"block_size": (2, 2, 2), "top_k_ratio": 0.4, "local_range": 3, "reference_tokens": None}


def write_gguf(path: Path, network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Writes a network as others publish theirs: large matrices with eight bits, all else as it is.

    Returns:
        `dict`: the weights that the file stands for.
    """
    gguf = pytest.importorskip("gguf")
    writer, weights = gguf.GGUFWriter(str(path), "wan"), {}
    for name, tensor in network.state_dict().items():
        array, kind = tensor.float().numpy(), gguf.GGMLQuantizationType.Q8_0
        if tensor.ndim == 2 and tensor.shape[-1] % 32 == 0:
            packed = gguf.quants.quantize(array, kind)
            writer.add_tensor(name, packed, raw_dtype=kind)
            weights[name] = torch.from_numpy(gguf.quants.dequantize(packed, kind)).half().float()  # as diffusers does
        else:
            writer.add_tensor(name, np.ascontiguousarray(array))
            weights[name] = tensor
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def flow(network: Any) -> torch.Tensor:
    channels, shape = network.config.in_channels, (1, 2) if isinstance(network, CausalWanTransformer) else (1,)
    with torch.no_grad():
        return network(latents(2, channels), torch.full(shape, 500.0), prompt()).sample


def settings_of(network: Any) -> dict[str, Any]:
    return {name: value for name, value in network.config.items() if not name.startswith("_")}


@pytest.mark.parametrize("kind", [UltraFlashSRTransformer, CausalWanTransformer])
def test_quantised_layers_give_what_their_weights_stand_for(kind: Any, tmp_path: Path) -> None:
    original = (make_sr if kind is UltraFlashSRTransformer else make_generator)(**WIDTH)
    weights = write_gguf(tmp_path / "network.gguf", original)
    config = GGUFQuantizationConfig(compute_dtype=torch.float32)
    more = SPARSE if kind is UltraFlashSRTransformer else {"frames_per_chunk": 2}
    network = kind.from_single_file(tmp_path / "network.gguf", quantization_config=config, **SETTINGS, **more)
    assert settings_of(network) == settings_of(original)
    assert network.blocks[0].attn1.to_q.weight.dtype == torch.uint8
    before = flow(original)
    original.load_state_dict(weights)
    expected, found = flow(original), flow(network)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (expected - before).abs().max() > 1e-4
    with pytest.raises(ValueError, match="not serializable"):
        network.save_pretrained(tmp_path / "again")


def test_what_does_not_fit_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "network.gguf"
    write_gguf(path, make_sr(**WIDTH))
    config = GGUFQuantizationConfig(compute_dtype=torch.float32)
    with pytest.raises(ValueError, match=r"`quantization_config` is None, expected GGUFQuantizationConfig\("):
        UltraFlashSRTransformer.from_single_file(path, **SETTINGS)
    with pytest.raises(ValueError, match="`quantization_config` is .*, expected None for this source"):
        UltraFlashSRTransformer.from_single_file(make_sr().state_dict(), quantization_config=config)
    with pytest.raises(ValueError, match="are of a UltraFlashSRTransformer, not of a CausalWanTransformer"):
        CausalWanTransformer.from_single_file(path, quantization_config=config, **SETTINGS)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="is not a readable GGUF file"):
        UltraFlashSRTransformer.from_single_file(path, quantization_config=config, **SETTINGS)
    monkeypatch.setattr("ultraflash_diffusers.conversion.gguf_file.is_gguf_available", lambda: False)
    with pytest.raises(ImportError, match=r"pip install 'ultraflash_diffusers\[gguf\]'"):
        UltraFlashSRTransformer.from_single_file(path, quantization_config=config, **SETTINGS)
