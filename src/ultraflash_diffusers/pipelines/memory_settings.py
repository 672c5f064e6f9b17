# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Settings with which a pipeline fits a smaller card, chosen by its planned memory."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from diffusers import DiffusionPipeline, ModelMixin

from .execution.devices import execution_device
from .memory_plan import PLANNED_NETWORKS, MemoryPlan, meta_twin, plan_memory

# what no plan sees: the CUDA context, kernels' workspace, the allocator's slack
UNPLANNED_BYTES = 750_000_000
_TRANSFORMERS = ("generator_transformer", "transformer")
CARDS = ("8GB", "12GB", "16GB", "24GB")


@dataclass(frozen=True)
class MemorySetting:
    """How streams run in less memory; each part costs something.

    Args:
        kv_cache_blocks (`int`): temporal blocks of the SR transformer's window. Fewer attend to less of the past; the
            published long-video script goes down to one.
        in_turns (`bool`, *optional*, defaults to `False`): a group is decoded before the next one is made: slower, the
            same frames.
        offload (`bool`, *optional*, defaults to `False`): the transformers' blocks stay in the host's memory and come
            one by one: much slower, the same frames.
    """

    kv_cache_blocks: int
    in_turns: bool = False
    offload: bool = False

    def __str__(self) -> str:
        parts = [f"`kv_cache_blocks` {self.kv_cache_blocks}", "in turns" if self.in_turns else "overlapped"]
        return ", ".join(parts + ["transformers' blocks offloaded"] * self.offload)


@dataclass(frozen=True)
class PlannedSetting:
    """A setting and the memory that it is planned to take.

    Args:
        setting ([`MemorySetting`]): it.
        device_bytes (`int`): on the GPU at most, what no plan sees included.
        host_bytes (`int`): of weights in the host's memory: all of them while they are loaded, offloaded ones for
            good.
        accuracy (`str`): what the setting costs.
    """

    setting: MemorySetting
    device_bytes: int
    host_bytes: int
    accuracy: str

    def __str__(self) -> str:
        return f"{self.setting}: {self.device_bytes / 1e9:.1f} GB, and {self.host_bytes / 1e9:.1f} GB of the host's"


def parse_memory(memory: str) -> int:
    """Reads `"8GB"` as bytes, a GB being 1e9.

    Raises:
        ValueError: it is no such text.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*GB", memory) if isinstance(memory, str) else None
    if match is None or float(match[1]) == 0:
        raise ValueError(f"`memory` must be a size such as {', '.join(map(repr, CARDS))}, got {memory!r}")
    return round(float(match[1]) * 1e9)


def plan_settings(pipe: DiffusionPipeline, height: int, width: int) -> Iterator[PlannedSetting]:
    """Plans one setting after the other, the one that costs least first.

    Args:
        pipe ([`UltraFlashStreamingPipeline`]): on any device; only its configs count.
        height, width (`int`): of the frames.
    """
    whole = plan_streams(pipe, height, width)
    plans = {pipe.config.kv_cache_blocks: whole}
    for setting in _ladder(pipe.config.kv_cache_blocks):
        blocks = setting.kv_cache_blocks
        if blocks not in plans:
            # the window is the SR transformer's alone
            narrower = plan_streams(pipe, height, width, blocks, ("transformer",))
            plans[blocks] = {kind: sizes | narrower[kind] for kind, sizes in whole.items()}
        yield _planned(setting, plans[blocks], pipe)


def plan_streams(
    pipe: DiffusionPipeline,
    height: int,
    width: int,
    kv_cache_blocks: int | None = None,
    names: Sequence[str] = PLANNED_NETWORKS,
) -> MemoryPlan:
    """[`plan_memory`] of a pipeline on any device, with another window if wanted, in the time of a few layers.

    All layers of a transformer are alike: they have as much state and weights, and work in the memory that the one
    before has left. So one and two of them tell what all take.
    """
    blocks = kv_cache_blocks or pipe.config.kv_cache_blocks
    plan = plan_memory(meta_twin(pipe, blocks, layers=1), height, width, names)
    layered = [name for name in names if name in _TRANSFORMERS]
    more = plan_memory(meta_twin(pipe, blocks, layers=2), height, width, layered)
    for kind in ("weights", "state"):
        for name, size in more[kind].items():
            further = getattr(pipe, name).config.num_layers - 1
            plan[kind][name] += further * (size - plan[kind][name])
    return plan


def choose_setting(pipe: DiffusionPipeline, height: int, width: int, memory: int) -> PlannedSetting:
    """The first of [`plan_settings`] that fits.

    Args:
        pipe ([`UltraFlashStreamingPipeline`]): on any device; only its configs count.
        height, width (`int`): of the frames.
        memory (`int`): bytes of the GPU that are free.

    Raises:
        ValueError: none does.
    """
    planned = None
    for planned in plan_settings(pipe, height, width):
        if planned.device_bytes <= memory:
            return planned
    assert planned is not None  # there is one setting at least
    raise ValueError(
        f"{memory / 1e9:.1f} GB are too little for frames of {height}x{width}: the smallest setting is planned to "
        f"take {planned}; take a smaller `size`"
    )


def fit_memory(
    pipe: DiffusionPipeline, memory: str, height: int, width: int, device: torch.device | None = None
) -> PlannedSetting:
    """Chooses the setting for a card, brings the pipeline there and lets later streams run by it.

    The text encoder, of which prompts need little and for which cards have no room, works in the host's memory.

    Args:
        pipe ([`UltraFlashStreamingPipeline`]): better still on the CPU, where there is room for it.
        memory (`str`): of the card, for instance `"8GB"`.
        height, width (`int`): of the frames.
        device (`torch.device`, *optional*): where the other networks are to be; by default where they are or, of the
            CPU, the accelerator, if there is one.

    Raises:
        ValueError: `memory` is no size, or no setting fits.
    """
    planned = choose_setting(pipe, height, width, parse_memory(memory))
    apply_setting(pipe, planned.setting, device or _target_device(pipe))
    return planned


def apply_setting(pipe: DiffusionPipeline, setting: MemorySetting, device: torch.device) -> None:
    """Makes later streams of a pipeline run by a setting, on `device`."""
    pipe.register_to_config(kv_cache_blocks=setting.kv_cache_blocks)
    pipe.overlap_decoding = not setting.in_turns
    for name, network in pipe.components.items():
        if not isinstance(network, torch.nn.Module):
            continue
        if name == "text_encoder":
            network.to("cpu")
        elif setting.offload and name in _TRANSFORMERS:
            # on a GPU the next block's weights come while this one computes
            settings = {"offload_type": "block_level", "num_blocks_per_group": 1, "use_stream": device.type == "cuda"}
            cast(ModelMixin, network).enable_group_offload(onload_device=device, **settings)
        else:
            network.to(device)


def _target_device(pipe: DiffusionPipeline) -> torch.device:
    device = execution_device(pipe.transformer)
    return (torch.accelerator.current_accelerator(check_available=True) or device) if device.type == "cpu" else device


def _ladder(kv_cache_blocks: int) -> Iterator[MemorySetting]:
    yield MemorySetting(kv_cache_blocks)
    for blocks in range(kv_cache_blocks, 0, -1):
        yield MemorySetting(blocks, in_turns=True)
    yield MemorySetting(kv_cache_blocks, in_turns=True, offload=True)
    if kv_cache_blocks > 1:
        yield MemorySetting(1, in_turns=True, offload=True)


def _planned(setting: MemorySetting, plan: MemoryPlan, pipe: DiffusionPipeline) -> PlannedSetting:
    weights, working = dict(plan["weights"]), dict(plan["working"])
    host = sum(weights.values())
    if setting.offload:
        for name in _TRANSFORMERS:
            if name in weights:
                # one block that computes and one that comes
                weights[name] = min(weights[name], 2 * weights[name] // getattr(pipe, name).config.num_layers)
    beside = 0 if setting.in_turns else working.pop("autoencoder")
    size = sum(weights.values()) + sum(plan["state"].values()) + max(working.values()) + beside
    blocks = pipe.config.kv_cache_blocks
    accuracy = f"the SR transformer sees {setting.kv_cache_blocks} temporal blocks of the past instead of {blocks}"
    if setting.kv_cache_blocks == blocks:
        accuracy = "exact"
    return PlannedSetting(setting, size + UNPLANNED_BYTES, host, accuracy)
