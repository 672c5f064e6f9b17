# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Peak memory of a cascade without a GPU: its stages run on the meta device while the bytes that live are counted."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..models.attention.backends import triton_kernel
from ..models.stream_state import StreamState
from .detail import DetailSettings
from .execution.calls import SRCalls
from .execution.compilation import GuardedCalls
from .execution.timing import StageTimings
from .noise import SeededFrameNoise
from .samplers import PreparedPrompts
from .segments import LatentSegment
from .stages import DecodeStage, FrameState, SRGroup, SRSettings, SRStage, UpsampleStage

# "weights", "state" and "working": bytes by network
MemoryPlan = dict[str, dict[str, int]]
# in the order of a stream
PLANNED_NETWORKS = ("generator_transformer", "latent_upsampler", "transformer", "autoencoder")
# from what a stage carries to what it carries on
Stage = Callable[[Any], Any]


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

    def note(tensor: torch.Tensor) -> torch.Tensor:
        tensors.append(tensor)
        return tensor

    state.map_tensors(note)
    return tensor_bytes(iter(tensors))


def cast_weights(network: nn.Module, dtype: torch.dtype) -> None:
    """Casts a network as loading does: what must be precise stays in float32."""
    precise = getattr(type(network), "_keep_in_fp32_modules", None) or []
    for name, parameter in network.named_parameters():
        keeps = any(part in precise for part in name.split("."))
        parameter.data = parameter.data.to(torch.float32 if keeps else dtype)


def meta_twin(pipe: DiffusionPipeline, kv_cache_blocks: int, layers: int) -> DiffusionPipeline:
    """A pipeline of the same configs and precision on the meta device: it takes no memory.

    Args:
        pipe ([`UltraFlashStreamingPipeline`]): on any device.
        kv_cache_blocks (`int`): the window that the twin has.
        layers (`int`): of each of its transformers.
    """
    networks = {}
    for name in PLANNED_NETWORKS:
        if (network := getattr(pipe, name)) is not None:
            config = dict(network.config)
            with torch.device("meta"):
                twin = type(network).from_config(config | ({"num_layers": layers} if "num_layers" in config else {}))
            cast_weights(twin, network.dtype)
            networks[name] = twin
    settings = {name: value for name, value in pipe.config.items() if isinstance(value, (int, float))}
    return type(pipe)(**networks, scheduler=pipe.scheduler, **settings | {"kv_cache_blocks": kv_cache_blocks})


@torch.no_grad()
def plan_memory(
    pipe: DiffusionPipeline, height: int, width: int, names: Sequence[str] = PLANNED_NETWORKS
) -> MemoryPlan:
    """Bytes of weights, of what a stream of one SR step carries, and of what each stage takes on top while it runs.

    The stages run as they do in a stream, uncompiled, with attention as fused kernels do it; the sparse one counts as
    the Triton kernel where it takes the network's blocks, else as masked attention.

    Args:
        pipe ([`UltraFlashStreamingPipeline`]): on the meta device.
        height, width (`int`): of the frames, which leave as 8-bit levels.
        names (`Sequence[str]`, *optional*): the networks whose stages run; all by default.

    Returns:
        `dict`: `"weights"`, `"state"` and `"working"`, each by network; see [`peak_bytes`].
    """
    stages = _Stages(pipe, height, width)
    plan: MemoryPlan = {"weights": {}, "state": {}, "working": {}}
    for name in names:
        if (network := getattr(pipe, name)) is None:
            continue
        stage, carried = getattr(stages, name)()
        with FusedAttention(), LiveBytes() as live:
            carried = stage(carried)  # makes what a stream carries
            before = live.peak = live.now
            carried = stage(carried)
        plan["weights"][name] = tensor_bytes(network.parameters())
        plan["state"][name] = sum(state_bytes(each) for each in (carried if isinstance(carried, list) else [carried]))
        plan["working"][name] = live.peak - before
    return plan


class _Stages:
    """The stages of a stream, by network: from what each carries to what it carries on, and where that starts."""

    def __init__(self, pipe: DiffusionPipeline, height: int, width: int) -> None:
        self.pipe, self.size, self.dtype = pipe, (height, width), pipe.transformer.dtype
        ratio, scale = pipe.autoencoder.spatial_compression_ratio, pipe.latent_upsampler.config.scale
        self.high = (-(-height // ratio), -(-width // ratio))
        self.low = (self.high[0] // scale, self.high[1] // scale)
        text = pipe.transformer.config
        self.prompt = torch.empty(1, text.text_length, text.text_dim, device="meta", dtype=self.dtype)

    def segment(self, count: int, size: tuple[int, int]) -> LatentSegment:
        """So many latent frames in the middle of a clip."""
        latents = torch.empty(1, self.pipe.autoencoder.config.latent_channels, count, *size, device="meta")
        temporal = self.pipe.autoencoder.temporal_compression_ratio
        return LatentSegment(latents, [temporal] * count, starts_clip=False, ratio=temporal)

    def generator_transformer(self) -> tuple[Stage, Any]:
        generator = self.pipe.generator_transformer
        chunk = self.segment(generator.chunk_frames, self.low).latents.to(self.dtype)
        sizes = {"batch_size": 1, "height": self.low[0], "width": self.low[1], "device": "meta", "dtype": self.dtype}
        timestep = torch.empty(1, device="meta")

        def predict(carried: StreamState) -> StreamState:
            generator(chunk, timestep, self.prompt, state=carried)
            return carried

        room = generator.config.frames_per_chunk if self.pipe.execution_plan.chunk_room else 0
        values = generator.config.seed_code_dim
        code = torch.empty(1, values, device="meta") if values else None
        return predict, generator.new_stream(**sizes, single_use=True, room_frames=room, seed_code=code)

    def latent_upsampler(self) -> tuple[Stage, Any]:
        upsample = UpsampleStage(self.pipe.latent_upsampler, GuardedCalls())
        group = self.segment(self.pipe.config.group_frames, self.low)
        return lambda carried: upsample(group, carried)[1], None

    def transformer(self) -> tuple[Stage, Any]:
        pipe, network, frames = self.pipe, self.pipe.transformer, self.pipe.config.group_frames
        volume, channels = network.sparse_settings.volume, network.config.attention_head_dim
        network.set_sparse_backend(
            "triton" if triton_kernel.supports(torch.device("meta"), volume, channels) else "sdpa"
        )
        blocks, condition = pipe.config.kv_cache_blocks, self.segment(frames, self.high).latents.to(self.dtype)
        settings = SRSettings(frames, 1, 1.0, pipe.config.condition_noise, blocks)
        calls = SRCalls(network)
        refine, prompts = SRStage(calls, pipe.scheduler, settings), PreparedPrompts.of(calls, [self.prompt])
        group = SRGroup(condition, 0, SeededFrameNoise([0], 1), prompts, blocks)
        return lambda carried: refine(group, carried)[1], None

    def autoencoder(self) -> tuple[Stage, Any]:
        decode = DecodeStage(self.pipe.autoencoder, GuardedCalls(), None, DetailSettings(), True)
        refined = self.segment(self.pipe.config.group_frames, self.high)
        return lambda carried: decode(refined, carried, self.size, StageTimings())[1], FrameState()


def peak_bytes(plan: MemoryPlan, overlapped: bool = False) -> int:
    """The peak that a plan of [`plan_memory`] foresees.

    Args:
        plan (`dict`): it.
        overlapped (`bool`, *optional*, defaults to `False`): whether a group is decoded while the next one is made, as
            on a GPU where nothing is offloaded; else one stage runs after the other.
    """
    working = dict(plan["working"])
    beside = working.pop("autoencoder") if overlapped else 0
    return sum(plan["weights"].values()) + sum(plan["state"].values()) + max(working.values()) + beside
