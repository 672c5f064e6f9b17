"""Tiny networks of the two Wan-shaped kinds, and inputs for them."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from ultraflash_diffusers.models.causal_wan_transformer import CausalWanTransformer
from ultraflash_diffusers.models.ultraflash_sr_transformer import UltraFlashSRTransformer

CHANNELS, TEXT_DIM, TEXT_LENGTH = 4, 16, 6
TINY: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "out_channels": CHANNELS,
    "text_dim": TEXT_DIM,
    "freq_dim": 32,
    "ffn_dim": 64,
    "num_layers": 2,
}
SR_KINDS: dict[str, dict[str, Any]] = {
    "sparse": {"block_size": (2, 2, 2), "top_k_ratio": 0.4, "local_range": 3, "reference_tokens": None},
    "dense": {"use_sparse_attention": False},
}


def make_sr(kind: str = "sparse", **overrides: Any) -> UltraFlashSRTransformer:
    torch.manual_seed(0)
    settings = {"in_channels": 2 * CHANNELS, "text_length": TEXT_LENGTH, **TINY, **SR_KINDS[kind], **overrides}
    return with_visible_text(UltraFlashSRTransformer(**settings))


def make_generator(**overrides: Any) -> CausalWanTransformer:
    torch.manual_seed(0)
    settings = {"in_channels": CHANNELS, "text_length": TEXT_LENGTH, "frames_per_chunk": 2, **TINY, **overrides}
    return with_visible_text(CausalWanTransformer(**settings))


def with_visible_text(network: Any) -> Any:
    """Larger weights than at initialisation, so that a wrong key, position or timestep shows in the output."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2)
    return network.eval()


def latents(
    frames: int, channels: int, height: int = 8, width: int = 12, batch: int = 1, seed: int = 0
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, frames, height, width, generator=generator)


def prompt(batch: int = 1, seed: int = 0, tokens: int = 5) -> torch.Tensor:
    return torch.randn(batch, tokens, TEXT_DIM, generator=torch.Generator().manual_seed(100 + seed))


@contextlib.contextmanager
def no_recompile() -> Iterator[None]:
    """Inside it a compiled function that would have to be compiled again is an error."""
    with torch.compiler.set_stance("fail_on_recompile"):
        yield
