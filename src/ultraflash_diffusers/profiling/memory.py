# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Peak memory of a cascade without a GPU: its stages run on the meta device while the bytes that live are counted."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..models.attention.backends import triton_kernel
from ..models.stream_state import StreamState
from ..pipelines.detail import DetailSettings
from ..pipelines.execution.calls import SRCalls
from ..pipelines.execution.compilation import GuardedCalls
from ..pipelines.execution.timing import StageTimings
from ..pipelines.noise import SeededFrameNoise
from ..pipelines.pipeline_ultraflash import UltraFlashStreamingPipeline
from ..pipelines.samplers import PreparedPrompts
from ..pipelines.segments import LatentSegment
from ..pipelines.stages import DecodeStage, FrameState, SRGroup, SRSettings, SRStage, UpsampleStage


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make while they live, each storage once, and their peak.

    What kernels use inside, and what an allocator holds beyond what was asked for, is not seen.

    Args:
        device (`str`, *optional*, defaults to `"meta"`): whose tensors count.
    """

    def __init__(self, device: str = "meta") -> None:
        super().__init__()
        self.device = device
        self.now = 0
        self.peak = 0
        self._tensors: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = {_storage(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, torch.Tensor)}
        result = func(*args, **kwargs)
        for tensor in tree_leaves(result):
            if not isinstance(tensor, torch.Tensor) or tensor.device.type != self.device:
                continue
            # views of what was there before, and buffers written in place, are not made by anybody here
            if _storage(tensor) not in given or self._tensors[_storage(tensor)]:
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


class FusedAttention(TorchFunctionMode):
    """Dense attention on the meta device as a GPU's fused kernels do it: an output, and no matrix of scores."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        run = self._output if func is F.scaled_dot_product_attention else func
        return run(*args, **(kwargs or {}))

    @staticmethod
    def _output(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_: Any) -> torch.Tensor:
        return query.new_empty(*query.shape[:-1], value.shape[-1])


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
    """Bytes of weights, of what a stream of one SR step carries, and of what each stage takes on top while it runs.

    The stages run as they do in a stream, uncompiled, with attention as fused kernels do it; the sparse one counts as
    the Triton kernel where it takes the network's blocks, else as masked attention.

    Args:
        pipe ([`UltraFlashStreamingPipeline`]): on the meta device.
        height, width (`int`): of the frames, which leave as 8-bit levels.

    Returns:
        `dict`: `"weights"`, `"state"` and `"working"`, each by network; see [`peak_bytes`].
    """
    ratio, scale = pipe.autoencoder.spatial_compression_ratio, pipe.latent_upsampler.config.scale
    frames, dtype = pipe.config.group_frames, pipe.transformer.dtype
    high = (-(-height // ratio), -(-width // ratio))
    low = (high[0] // scale, high[1] // scale)
    text = pipe.transformer.config
    prompt = torch.empty(1, text.text_length, text.text_dim, device="meta", dtype=dtype)

    def segment(count: int, size: tuple[int, int]) -> LatentSegment:
        latents = torch.empty(1, pipe.autoencoder.config.latent_channels, count, *size, device="meta")
        temporal = pipe.autoencoder.temporal_compression_ratio
        return LatentSegment(latents, [temporal] * count, starts_clip=False, ratio=temporal)

    state: dict[str, int] = {}
    working: dict[str, int] = {}

    def run(name: str, stage: Callable[[Any], Any], carried: Any = None) -> None:
        """Runs a stage, from the state that it is given to the one that it returns."""
        with FusedAttention(), LiveBytes() as live:
            carried = stage(carried)  # makes what a stream carries
            before = live.peak = live.now
            carried = stage(carried)
        state[name] = sum(state_bytes(each) for each in (carried if isinstance(carried, list) else [carried]))
        working[name] = live.peak - before

    if pipe.generator_transformer is not None:
        generator = pipe.generator_transformer
        chunk = segment(generator.chunk_frames, low).latents.to(dtype)
        sizes = {"batch_size": 1, "height": low[0], "width": low[1], "device": "meta", "dtype": dtype}
        stream = generator.new_stream(**sizes, single_use=True)
        timestep = torch.empty(1, device="meta")

        def predict(carried: StreamState) -> StreamState:
            generator(chunk, timestep, prompt, state=carried)
            return carried

        run("generator_transformer", predict, stream)
    upsample, low_group = UpsampleStage(pipe.latent_upsampler, GuardedCalls()), segment(frames, low)
    run("latent_upsampler", lambda carried: upsample(low_group, carried)[1])
    fits = triton_kernel.supports(
        torch.device("meta"), pipe.transformer.sparse_settings.volume, text.attention_head_dim
    )
    pipe.transformer.set_sparse_backend("triton" if fits else "sdpa")
    blocks, condition = pipe.config.kv_cache_blocks, segment(frames, high).latents.to(dtype)
    settings = SRSettings(frames, 1, 1.0, pipe.config.condition_noise, blocks)
    calls = SRCalls(pipe.transformer)
    refine, prompts = SRStage(calls, pipe.scheduler, settings), PreparedPrompts.of(calls, [prompt])
    group = SRGroup(condition, 0, SeededFrameNoise([0], 1), prompts, blocks)
    run("transformer", lambda carried: refine(group, carried)[1])
    decode, refined = (
        DecodeStage(pipe.autoencoder, GuardedCalls(), None, DetailSettings(), True),
        segment(frames, high),
    )
    run("autoencoder", lambda carried: decode(refined, carried or FrameState(), (height, width), StageTimings())[1])
    weights = {name: tensor_bytes(getattr(pipe, name).parameters()) for name in state}
    return {"weights": weights, "state": state, "working": working}


def peak_bytes(plan: dict[str, dict[str, int]], overlapped: bool = False) -> int:
    """The peak that a plan of [`plan_memory`] foresees.

    Args:
        plan (`dict`): it.
        overlapped (`bool`, *optional*, defaults to `False`): whether a group is decoded while the next one is made, as
            on a GPU where nothing is offloaded; else one stage runs after the other.
    """
    working = dict(plan["working"])
    beside = working.pop("autoencoder") if overlapped else 0
    return sum(plan["weights"].values()) + sum(plan["state"].values()) + max(working.values()) + beside
