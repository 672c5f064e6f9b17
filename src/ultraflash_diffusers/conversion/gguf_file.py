# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Networks from GGUF files, whose linear layers stay quantised: by diffusers' own quantiser and the `gguf` package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import GGUFQuantizationConfig
from diffusers.models.model_loading_utils import load_gguf_checkpoint
from diffusers.models.modeling_utils import ModelMixin
from diffusers.quantizers.auto import DiffusersAutoQuantizer
from diffusers.utils import is_gguf_available

from ..models.wan_names import renamed
from .convert import check_recognized, recognize


def load_gguf_file(path: Path, config: GGUFQuantizationConfig, settings: Mapping[str, Any]) -> ModelMixin:
    """Makes the network that a GGUF file holds; its names and settings are those of [`from_original`].

    Args:
        path (`Path`): the file, in the original Wan code's or diffusers' spelling.
        config (`GGUFQuantizationConfig`): its `compute_dtype` is that of each layer while it works, and of the weights
            that are not quantised.
        settings (`Mapping[str, Any]`): what tensors do not show.

    Returns:
        `ModelMixin`: in evaluation mode. Weights of linear layers lie as the file has them; others are converted.

    Raises:
        ImportError: the package `gguf` is not there.
        ValueError: the file is no GGUF file, or see [`from_original`].
    """
    if not is_gguf_available():
        raise ImportError(f"{str(path)!r} is a GGUF file: pip install 'ultraflash_diffusers[gguf]'")
    tensors = _read(path)
    # as large as they are, without values: what is quantised has another shape in the file
    outlines = {name: _outline(tensor, config.compute_dtype) for name, tensor in tensors.items()}
    recognition = recognize(outlines, settings)
    check_recognized([recognition], settings)
    originals = {id(outline): tensors[name] for name, outline in outlines.items()}
    published_to_own = [(published, own) for own, published in recognition.names]
    own = {renamed(key, published_to_own): originals[id(each)] for key, each in recognition.weights.items()}
    return _filled(recognition.build(), own, config)


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        tensors: dict[str, torch.Tensor] = load_gguf_checkpoint(str(path))
    except (ValueError, IndexError, KeyError) as error:  # a damaged header makes the reader raise any of these
        raise ValueError(f"{str(path)!r} is not a readable GGUF file: {error}") from error
    return tensors


def _outline(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    shape = tensor.quant_shape if hasattr(tensor, "quant_shape") else tensor.shape
    return torch.empty(tuple(shape), dtype=dtype, device="meta")


def _filled(network: ModelMixin, tensors: Mapping[str, torch.Tensor], config: GGUFQuantizationConfig) -> ModelMixin:
    """Puts the tensors into a network without values: quantised where it is linear and not kept in float32."""
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter, dequantize_gguf_tensor

    kept = network._keep_in_fp32_modules or []
    quantizer = DiffusersAutoQuantizer.from_config(config)
    quantizer.preprocess_model(network, device_map=None, keep_in_fp32_modules=kept, state_dict=tensors)
    for name, tensor in tensors.items():
        path, _, parameter = name.rpartition(".")
        module = network.get_submodule(path)
        if not (isinstance(module, GGUFLinear) and isinstance(tensor, GGUFParameter)):
            plain = dequantize_gguf_tensor(tensor) if isinstance(tensor, GGUFParameter) else tensor
            dtype = torch.float32 if set(kept) & set(name.split(".")) else config.compute_dtype
            tensor = torch.nn.Parameter(plain.to(dtype), requires_grad=False)
        module._parameters[parameter] = tensor
    network.hf_quantizer = quantizer
    quantizer.postprocess_model(network)
    return network.eval()
