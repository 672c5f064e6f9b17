# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What `pipe.optimize(...)` does: each optimisation by itself, a report of all, and a check of what they cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from diffusers import DiffusionPipeline
from diffusers.models.attention_dispatch import attention_backend as use_attention_backend

from ...models.causal_wan_transformer import GLOBAL_CACHE_FRAMES, CausalWanTransformer
from ...models.ultraflash_sr_transformer import UltraFlashSRTransformer
from ...models.wan_backbone import WanBackbone
from .compilation import allow_graphs, compile_parts
from .devices import execution_device, is_offloaded
from .fp8 import check_fp8, quantize_linears, race_fp8
from .plan import ExecutionPlan
from .race import Race, race_attention, race_sparse_attention

# tokens that the SR transformer's linear layers take at a time
_PART_TOKENS = 12288
_FP8_ACCURACY = "latents of the packaged checkpoint move by 0.06 (relative), frames are 47 dB from the plain ones"
_ROUNDING = "sums in another order"


@dataclass(frozen=True)
class OptimizationStep:
    """One optimisation of one network.

    Args:
        name (`str`): the argument of `optimize` that asked for it.
        network (`str`): the component.
        applied (`bool`): whether it was done.
        detail (`str`): what was done and why, or why not.
        accuracy (`str`, *optional*, defaults to `"exact"`): what it costs.
    """

    name: str
    network: str
    applied: bool
    detail: str
    accuracy: str = "exact"


@dataclass
class OptimizationReport:
    """All that [`optimize`] did and did not do; prints as a table.

    Args:
        steps (`list[OptimizationStep]`): in the order in which they were taken.
    """

    steps: list[OptimizationStep] = field(default_factory=list)

    def add(self, name: str, network: str, applied: bool, detail: str, accuracy: str = "exact") -> None:
        """Notes a step."""
        self.steps.append(OptimizationStep(name, network, applied, detail, accuracy))

    def applied(self, name: str) -> list[str]:
        """The networks to which the optimisation `name` was applied."""
        return [step.network for step in self.steps if step.name == name and step.applied]

    def __str__(self) -> str:
        return "\n".join(map(_row, self.steps))


def _row(step: OptimizationStep) -> str:
    done = f"applied; {step.accuracy}; " if step.applied else "not applied; "
    return f"{step.name:17} {step.network:22} {done}{step.detail}"


def optimize(
    pipe: DiffusionPipeline,
    *,
    cache_text: bool = True,
    channels_last: bool = True,
    fp8: bool | Literal["fastest"] = False,
    attention_backend: str | None = "auto",
    sparse_backend: str | None = "auto",
    size: tuple[int, int] | None = None,
    compile: bool = True,
    compile_backend: str = "inductor",
    cuda_graphs: bool = False,
) -> OptimizationReport:
    """Makes a pipeline's streams faster; see [`UltraFlashStreamingPipeline.optimize`] for the arguments."""
    for name, backend in (("attention_backend", attention_backend), ("sparse_backend", sparse_backend)):
        if backend == "fastest" and size is None:
            raise ValueError(f"`size` is None, but `{name}='fastest'` needs the height and width of the frames")
    if fp8 not in (True, False, "fastest"):
        raise ValueError(f"`fp8` must be True, False or 'fastest', got {fp8!r}")
    if cuda_graphs and execution_device(pipe.transformer).type != "cuda":
        raise ValueError(f"`cuda_graphs` is True, but the transformer is on {execution_device(pipe.transformer)}")
    size = size or (pipe.config.default_height, pipe.config.default_width)
    report, transformers = OptimizationReport(), _transformers(pipe)
    if fp8:
        for network in transformers.values():
            check_fp8(network)
    for name in transformers:
        if cache_text:
            report.add("cache_text", name, True, "keys and values of the prompt once a prompt, not once a pass")
        if fp8:
            _quantize(pipe, name, fp8 == "fastest", size, compile_backend if compile else None, report)
        if attention_backend is not None:
            _choose_attention_backend(pipe, name, attention_backend, size, report)
    if channels_last:
        for name in ("latent_upsampler", "autoencoder"):
            _use_channels_last(getattr(pipe, name), name, report)
    if sparse_backend is not None:
        _choose_sparse_backend(pipe, sparse_backend, size, report)
    if compile:
        _compile(pipe, transformers, compile_backend, report)
    captures = cuda_graphs and _can_capture(pipe.transformer, report)
    pipe.execution_plan = ExecutionPlan(cache_text=cache_text, cuda_graphs=captures)
    return report


def _use_channels_last(network: Any, name: str, report: OptimizationReport) -> None:
    if any(isinstance(layer, torch.nn.Conv3d) for layer in network.modules()):
        report.add("channels_last", name, False, "it convolves over time, too")
        return
    network.to(memory_format=torch.channels_last)
    report.add("channels_last", name, True, "convolutions on channels-last features", _ROUNDING)


def plain_kernels(device: torch.device) -> str | None:
    """Why only PyTorch's plain kernels are used on `device`; `None` where others are worth a race."""
    if device.type == "cuda" and torch.version.hip is not None:
        return "AMD GPUs run PyTorch's plain kernels: nothing else was tried there"
    if device.type not in ("cuda", "cpu"):
        return f"{device.type} runs PyTorch's plain kernels: nothing else was tried there"
    return None


def _transformers(pipe: DiffusionPipeline) -> dict[str, WanBackbone]:
    names = ("generator_transformer", "transformer")
    return {name: network for name in names if isinstance(network := getattr(pipe, name), WanBackbone)}


def _can_capture(network: UltraFlashSRTransformer, report: OptimizationReport) -> bool:
    reason = None
    if is_offloaded(network):
        reason = "offloaded: its weights move"
    elif not network.config.use_sparse_attention:
        reason = "its attention is dense"
    elif network.sparse_backend == "gather":
        reason = "gathering asks the device how much is kept"
    report.add("cuda_graphs", "transformer", reason is None, reason or "a graph from a clip's third group on")
    return reason is None


def _compile(
    pipe: DiffusionPipeline, transformers: dict[str, WanBackbone], backend: str, report: OptimizationReport
) -> None:
    settings: dict[str, Any] = {"backend": backend, "fullgraph": True, "dynamic": False}
    device = execution_device(pipe.transformer)
    if device.type not in ("cuda", "cpu") and backend == "inductor":
        report.add("compile", "transformer", False, f"Inductor was not tried on {device.type}")
        return
    allow_graphs()
    parts: dict[str, tuple[Sequence[torch.nn.Module], str]] = {
        name: (list(network.blocks), f"one graph for all {len(network.blocks)} blocks")
        for name, network in transformers.items()
    }
    decoder = getattr(pipe.autoencoder, "decoder", pipe.autoencoder)
    for name, stack in (("latent_upsampler", pipe.latent_upsampler), ("autoencoder", decoder)):
        parts[name] = ([stack], "a graph for a stream's start, one for all later chunks")
    for name, (modules, detail) in parts.items():
        if is_offloaded(getattr(pipe, name)):
            report.add("compile", name, False, "offloaded: its hooks do not compile")
            continue
        failure = compile_parts(name, modules, **settings)
        report.add("compile", name, failure is None, failure or detail, _ROUNDING)


def _quantize(
    pipe: DiffusionPipeline,
    name: str,
    races: bool,
    size: tuple[int, int],
    compile_backend: str | None,
    report: OptimizationReport,
) -> None:
    """Brings a transformer's blocks to FP8; in a race, if that is faster."""
    network: WanBackbone = getattr(pipe, name)
    measured = "as asked for"
    if races:
        tokens = min(_attention_lengths(pipe, network, size)[0], _PART_TOKENS)
        result = race_fp8(network, tokens, compile_backend)
        measured = f"a block's layers take {result}"
        if result.winner != "fp8":
            report.add("fp8", name, False, measured)
            return
    count = quantize_linears(network.blocks)
    report.add("fp8", name, True, f"{count} linear layers inside the blocks, by torchao: {measured}", _FP8_ACCURACY)


def _choose_attention_backend(
    pipe: DiffusionPipeline, name: str, backend: str, size: tuple[int, int], report: OptimizationReport
) -> None:
    network: WanBackbone = getattr(pipe, name)
    if isinstance(network, UltraFlashSRTransformer) and network.config.use_sparse_attention:
        if backend != "auto":
            report.add("attention_backend", name, False, "its self-attention is sparse")
        return
    device, detail = execution_device(network), f"{backend!r}, as asked for"
    if backend == "auto" and device.type != "cuda":
        backend, detail = "native", plain_kernels(device) or "PyTorch's choice: on a CPU there is no other to gain by"
    elif backend == "auto" and (reason := plain_kernels(device)):
        backend, detail = "native", reason
    elif backend in ("auto", "fastest"):
        backend, detail = _winner(race_attention(network, *_attention_lengths(pipe, network, size)), "native")
    with use_attention_backend():  # what comes next also sets the process's, for all pipelines: put it back
        network.set_attention_backend(backend)
    report.add("attention_backend", name, True, detail, _ROUNDING)


def _attention_lengths(pipe: DiffusionPipeline, network: WanBackbone, size: tuple[int, int]) -> tuple[int, int]:
    """Tokens that attend, and that they attend to, in the middle of a stream of frames of `size`."""
    patch, scale = network.config.patch_size, 1
    if isinstance(network, CausalWanTransformer):
        frames, scale = network.chunk_frames // patch[0], pipe.latent_upsampler.config.scale
        seen = network.config.window_frames or GLOBAL_CACHE_FRAMES
    else:
        frames = pipe.config.group_frames // patch[0]
        seen = frames * (1 + pipe.config.kv_cache_blocks)
    pixels = scale * pipe.autoencoder.spatial_compression_ratio
    tokens = math.prod(-(-length // (pixels * side)) for length, side in zip(size, patch[1:], strict=True))
    return frames * tokens, seen * tokens


def _choose_sparse_backend(
    pipe: DiffusionPipeline, backend: str, size: tuple[int, int], report: OptimizationReport
) -> None:
    network: UltraFlashSRTransformer = pipe.transformer
    if not network.config.use_sparse_attention:
        if backend != "auto":
            report.add("sparse_backend", "transformer", False, "its attention is dense")
        return
    device, detail = execution_device(network), f"{backend!r}, as asked for"
    if backend == "auto" and (reason := plain_kernels(device)):
        backend, detail = "sdpa", reason
    elif backend == "auto" and device.type == "cpu":
        detail = "kept blocks are gathered, measured to be the fastest on a CPU"
    elif backend in ("auto", "fastest"):
        ratio = pipe.autoencoder.spatial_compression_ratio
        latents = (pipe.config.group_frames, -(-size[0] // ratio), -(-size[1] // ratio))
        backend, detail = _winner(race_sparse_attention(network, latents, pipe.config.kv_cache_blocks), "sdpa")
    network.set_sparse_backend(backend)
    report.add("sparse_backend", "transformer", True, detail, _ROUNDING)


def _winner(result: Race, plain: str) -> tuple[str, str]:
    """The fastest, or the plain path where nobody finished; and what was measured."""
    backend = result.winner or plain
    return backend, f"{backend!r}: one layer takes {result}"
