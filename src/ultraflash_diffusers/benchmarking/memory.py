# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Peak memory of a cascade without a GPU: its stages run on the meta device while the bytes that live are counted."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..models.stream_state import StreamState
from ..pipelines.streaming import UltraFlashStreamingPipeline


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make while they live, each storage once, and their peak.

    What kernels use inside, and what an allocator holds beyond what was asked for, is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._tensors: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = {_storage(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, torch.Tensor)}
        result = func(*args, **kwargs)
        for tensor in tree_leaves(result):
            # views of what was there before, and buffers written in place, are not made by anybody here
            if isinstance(tensor, torch.Tensor) and (_storage(tensor) not in given or self._tensors[_storage(tensor)]):
                self._follow(tensor)
        return result

    def _follow(self, tensor: torch.Tensor) -> None:
        key, size = _storage(tensor), tensor.untyped_storage().nbytes()
        if not self._tensors[key]:
            self.now += size
            self.peak = max(self.peak, self.now)
        self._tensors[key] += 1
        weakref.finalize(tensor, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._tensors[key] -= 1
        if not self._tensors[key]:
            self.now -= size


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def tensor_bytes(tensors: Iterator[torch.Tensor]) -> int:
    """Bytes of all of them."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def state_bytes(state: StreamState) -> int:
    """Bytes that a state carries from chunk to chunk."""
    tensors: list[torch.Tensor] = []
    state.map_tensors(lambda tensor: tensors.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return tensor_bytes(iter(tensors))


@torch.no_grad()
def plan_memory(pipe: UltraFlashStreamingPipeline, height: int, width: int) -> dict[str, dict[str, int]]:
    """Bytes of weights, of what a stream carries, and of what each stage takes on top while it runs.

    Sparse attention counts as the Triton kernel (what it keeps and its lists stay inside the operation).

    Args:
        pipe ([`UltraFlashStreamingPipeline`]): on the meta device.
        height, width (`int`): of the frames.

    Returns:
        `dict`: `"weights"`, `"state"` and `"working"`, each by network. The peak of a stream whose stages run one
        after the other is the sum of the first two and the largest of the third.
    """
    names = ("generator_transformer", "latent_upsampler", "transformer", "autoencoder")
    networks = {name: getattr(pipe, name) for name in names if getattr(pipe, name) is not None}
    ratio, scale = pipe.autoencoder.spatial_compression_ratio, pipe.latent_upsampler.config.scale
    frames, dtype = pipe.config.group_frames, pipe.transformer.dtype
    high = (-(-height // ratio), -(-width // ratio))
    low = (high[0] // scale, high[1] // scale)
    channels, text = pipe.autoencoder.config.latent_channels, pipe.transformer.config
    prompt = torch.empty(1, text.text_length, text.text_dim, device="meta", dtype=dtype)
    timestep = torch.empty(1, device="meta")

    def latents(count: int, size: tuple[int, int], times: int = 1) -> torch.Tensor:
        return torch.empty(1, times * channels, count, *size, device="meta", dtype=dtype)

    state: dict[str, int] = {}
    working: dict[str, int] = {}

    def run(name: str, call: Any, carried: StreamState | None) -> None:
        with LiveBytes() as live:
            call(carried)
        working[name] = live.peak

    if "generator_transformer" in networks:
        generator = networks["generator_transformer"]
        chunk = latents(generator.config.frames_per_chunk, low)
        stream = generator.new_stream(batch_size=1, height=low[0], width=low[1], device="meta", dtype=dtype)
        state["generator_transformer"] = state_bytes(stream)
        run("generator_transformer", lambda past: generator(chunk, timestep, prompt, state=past), stream)
    upsampler, group = networks["latent_upsampler"], latents(frames, low)
    memory = upsampler(group).state
    state["latent_upsampler"] = state_bytes(memory)
    run("latent_upsampler", lambda past: upsampler(group, state=past), memory)
    transformer, pair = networks["transformer"], latents(frames, high, times=2)
    transformer.set_sparse_backend("triton")
    sr_stream = transformer.new_stream(pipe.config.kv_cache_blocks, 1, frames, *high, device="meta", dtype=dtype)
    state["transformer"] = state_bytes(sr_stream)
    run("transformer", lambda past: transformer(pair, timestep, prompt, state=past), sr_stream)
    autoencoder, latent = networks["autoencoder"], latents(1, high)
    decoder = autoencoder.decode(latent).state
    state["autoencoder"] = sum(state_bytes(stack) for stack in decoder.stacks)
    run("autoencoder", lambda past: autoencoder.decode(latent, state=past), decoder)
    weights = {name: tensor_bytes(network.parameters()) for name, network in networks.items()}
    return {"weights": weights, "state": state, "working": working}


def peak_bytes(plan: dict[str, dict[str, int]]) -> int:
    """The peak that a plan of [`plan_memory`] foresees, stages one after the other."""
    return sum(plan["weights"].values()) + sum(plan["state"].values()) + max(plan["working"].values())
