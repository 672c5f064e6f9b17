# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What `pipe.optimize(...)` does: each optimisation by itself, a report of all, and a check of what they cost."""

from __future__ import annotations

import functools
import importlib.util
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from diffusers import DiffusionPipeline
from diffusers.models.attention_dispatch import attention_backend as use_attention_backend
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import nn

from ...models.attention.backends import triton_kernel
from ...models.attention.block_kv_cache import BlockKVCache
from ...models.attention.block_layout import BlockSparseSettings
from ...models.attention.block_sparse_attention import block_sparse_attention
from ...models.causal_wan_transformer import GLOBAL_CACHE_FRAMES, CausalWanTransformer
from ...models.ultraflash_sr_transformer import UltraFlashSRTransformer
from ...models.wan_backbone import WanBackbone
from .compilation import allow_graphs
from .devices import execution_device, is_offloaded
from .plan import ExecutionPlan

# diffusers' names of exact kernels: PyTorch's choice, two that it can be held to, and packages to be installed
_ATTENTION_BACKENDS = ("native", "_native_cudnn", "_native_flash", "flash", "_flash_3")

# what FP8 takes for the largest value of a token that is all zeros, and has no scale either
_LEAST_ACTIVATION = 1e-12

# a backend whose result is further than this from the masked reference is not used, however fast it is
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class OptimizationStep:
    """One optimisation of one network.

    Args:
        name (`str`): the argument of `optimize` that asked for it.
        network (`str`): the component.
        applied (`bool`): whether it was done.
        detail (`str`): what was done, or why not.
    """

    name: str
    network: str
    applied: bool
    detail: str


@dataclass
class OptimizationReport:
    """All that [`optimize`] did and did not do; prints as a table.

    Args:
        steps (`list[OptimizationStep]`): in the order in which they were taken.
    """

    steps: list[OptimizationStep] = field(default_factory=list)

    def add(self, name: str, network: str, applied: bool, detail: str) -> None:
        """Notes a step."""
        self.steps.append(OptimizationStep(name, network, applied, detail))

    def applied(self, name: str) -> list[str]:
        """The networks to which the optimisation `name` was applied."""
        return [step.network for step in self.steps if step.name == name and step.applied]

    def __str__(self) -> str:
        marks = {True: "applied", False: "not applied"}
        return "\n".join(
            f"{step.name:14} {step.network:22} {marks[step.applied]:12} {step.detail}" for step in self.steps
        )


def optimize(
    pipe: DiffusionPipeline,
    *,
    cache_text: bool = True,
    channels_last: bool = True,
    fp8: bool = False,
    attention_backend: str | None = None,
    sparse_backend: str | None = None,
    size: tuple[int, int] | None = None,
    compile: bool = True,
    compile_backend: str = "inductor",
    cuda_graphs: bool = False,
) -> OptimizationReport:
    """Makes a pipeline's streams faster; see [`UltraFlashStreamingPipeline.optimize`] for the arguments."""
    for name, backend in (("attention_backend", attention_backend), ("sparse_backend", sparse_backend)):
        if backend == "fastest" and size is None:
            raise ValueError(f"`size` is None, but `{name}='fastest'` needs the height and width of the frames")
    if cuda_graphs and execution_device(pipe.transformer).type != "cuda":
        raise ValueError(f"`cuda_graphs` is True, but the transformer is on {execution_device(pipe.transformer)}")
    report = OptimizationReport()
    transformers = {
        name: network
        for name in ("generator_transformer", "transformer")
        if isinstance(network := getattr(pipe, name), WanBackbone)
    }
    if fp8:
        for network in transformers.values():
            _check_fp8(network)
    for name, network in transformers.items():
        if cache_text:
            report.add("cache_text", name, True, "keys and values of the prompt once a prompt, not once a pass")
        if fp8:
            report.add("fp8", name, True, f"{_quantize_blocks(network)} linear layers inside the blocks, by torchao")
    if channels_last:
        for name in ("latent_upsampler", "autoencoder"):
            getattr(pipe, name).to(memory_format=torch.channels_last)
            report.add("channels_last", name, True, "convolutions on channels-last features")
    if attention_backend is not None:
        for name in transformers:
            _choose_attention_backend(pipe, name, attention_backend, size, report)
    if sparse_backend is not None:
        _choose_sparse_backend(pipe, sparse_backend, size, report)
    if compile:
        _compile(pipe, transformers, compile_backend, report)
    captures = cuda_graphs and _can_capture(pipe.transformer, report)
    pipe.execution_plan = ExecutionPlan(cache_text=cache_text, cuda_graphs=captures)
    return report


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
    allow_graphs()
    for name, network in transformers.items():
        if is_offloaded(network):
            report.add("compile", name, False, "offloaded: its hooks do not compile")
            continue
        network.compile_repeated_blocks(**settings)
        report.add("compile", name, True, f"one graph for all {len(network.blocks)} blocks")
    memory_networks = {"latent_upsampler": pipe.latent_upsampler, "autoencoder": pipe.autoencoder.decoder}
    for name, stack in memory_networks.items():
        if is_offloaded(getattr(pipe, name)):
            report.add("compile", name, False, "offloaded: its hooks do not compile")
            continue
        stack.compile(**settings)
        report.add("compile", name, True, "a graph for a stream's start, one for all later chunks")


def _check_fp8(network: WanBackbone) -> None:
    device = execution_device(network)
    if importlib.util.find_spec("torchao") is None:
        raise ValueError("`fp8` is True, but torchao is not installed: pip install ultraflash_diffusers[fp8]")
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        raise ValueError(f"`fp8` is True, but {device} has no FP8 matrix units (compute capability 8.9 or later)")
    if network.dtype != torch.bfloat16:
        raise ValueError(f"`fp8` is True, but {type(network).__name__} is in {network.dtype}, not in torch.bfloat16")


def fp8_linears(network: WanBackbone) -> list[nn.Linear]:
    """The linear layers that FP8 may take: inside the blocks, sizes multiples of 16, no row of weights all zeros.

    Embeddings, the modulation's projection and the output layer are few, and precision is worth most there. A row of
    zeros has no scale: its products would be NaN.
    """
    linears = (module for module in network.blocks.modules() if isinstance(module, nn.Linear))
    return [
        linear
        for linear in linears
        if all(size % 16 == 0 for size in linear.weight.shape) and bool(linear.weight.any(dim=1).all())
    ]


def _quantize_blocks(network: WanBackbone) -> int:
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_

    linears = {id(linear) for linear in fp8_linears(network)}
    config = Float8DynamicActivationFloat8WeightConfig(
        granularity=PerRow(),
        activation_value_lb=_LEAST_ACTIVATION,
        set_inductor_config=False,  # would also change the precision of the process's float32 products
    )
    quantize_(network.blocks, config, filter_fn=lambda module, _: id(module) in linears)
    return len(linears)


def _choose_attention_backend(
    pipe: DiffusionPipeline,
    name: str,
    backend: str,
    size: tuple[int, int] | None,
    report: OptimizationReport,
) -> None:
    network: WanBackbone = getattr(pipe, name)
    if isinstance(network, UltraFlashSRTransformer) and network.config.use_sparse_attention:
        report.add("attention_backend", name, False, "its self-attention is sparse")
        return
    detail = f"{backend!r}, as asked for"
    if backend == "fastest" and size is not None:
        times = time_attention_backends(network, *_attention_lengths(pipe, network, size))
        backend, detail = _winner(times)
    with use_attention_backend():  # what comes next also sets the process's, for all pipelines: put it back
        network.set_attention_backend(backend)
    report.add("attention_backend", name, True, detail)


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


@torch.no_grad()
def time_attention_backends(network: WanBackbone, tokens: int, seen_tokens: int, repeats: int = 5) -> dict[str, float]:
    """Times diffusers' backends of dense attention that agree with PyTorch's own choice, on one layer of a stream.

    Args:
        network ([`WanBackbone`]): whose heads, device and precision are used.
        tokens (`int`): of a chunk.
        seen_tokens (`int`): that they attend to.
        repeats (`int`, *optional*, defaults to 5): calls, the fastest of which counts.

    Returns:
        `dict[str, float]`: seconds a call. A backend that is not installed, fails here or is wrong is left out;
        `"native"`, PyTorch's choice, never is. Those that quantise are not tried.
    """
    config, device = network.config, execution_device(network)
    generator = torch.Generator(device).manual_seed(0)
    query, key, value = (
        torch.randn(
            (1, length, config.num_attention_heads, config.attention_head_dim), generator=generator, device=device
        ).to(network.dtype)
        for length in (tokens, seen_tokens, seen_tokens)
    )

    def attend(backend: str) -> torch.Tensor:
        with use_attention_backend(backend):  # asks whether it is installed, too
            return dispatch_attention_fn(query, key, value)

    return _time_agreeing(attend, _ATTENTION_BACKENDS, device, network.dtype, repeats)


def _choose_sparse_backend(
    pipe: DiffusionPipeline, backend: str, size: tuple[int, int] | None, report: OptimizationReport
) -> None:
    network: UltraFlashSRTransformer = pipe.transformer
    if not network.config.use_sparse_attention:
        report.add("sparse_backend", "transformer", False, "its attention is dense")
        return
    detail = f"{backend!r}, as asked for"
    if backend == "fastest" and size is not None:
        ratio = pipe.autoencoder.spatial_compression_ratio
        latents = (pipe.config.group_frames, -(-size[0] // ratio), -(-size[1] // ratio))
        backend, detail = _winner(time_sparse_backends(network, latents, pipe.config.kv_cache_blocks))
    network.set_sparse_backend(backend)
    report.add("sparse_backend", "transformer", True, detail)


def _winner(times: dict[str, float]) -> tuple[str, str]:
    """The fastest, and what was measured."""
    backend = min(times, key=lambda name: times[name])
    measured = ", ".join(f"{name} {1000 * seconds:.2f} ms" for name, seconds in times.items())
    return backend, f"{backend!r}: one layer takes {measured}"


@torch.no_grad()
def time_sparse_backends(
    network: UltraFlashSRTransformer, latents: tuple[int, int, int], kv_cache_blocks: int, repeats: int = 5
) -> dict[str, float]:
    """Times the backends of sparse attention that agree with the masked reference, on one layer of a running stream.

    Args:
        network ([`UltraFlashSRTransformer`]): whose blocks, heads, device and precision are used.
        latents (`tuple[int, int, int]`): frames, height and width of a group.
        kv_cache_blocks (`int`): the window.
        repeats (`int`, *optional*, defaults to 5): calls, the fastest of which counts.

    Returns:
        `dict[str, float]`: seconds a call. A backend that fails here or is wrong is left out; `"sdpa"` never is.
    """
    config, device, dtype = network.config, execution_device(network), network.dtype
    grid = (latents[0], *(-(-side // patch) for side, patch in zip(latents[1:], config.patch_size[1:], strict=True)))
    heads, channels, settings = config.num_attention_heads, config.attention_head_dim, network.sparse_settings
    generator = torch.Generator(device).manual_seed(0)
    shape = (1, math.prod(grid), heads, channels)
    query, key, value = (torch.randn(shape, generator=generator, device=device).to(dtype) for _ in range(3))
    cache = BlockKVCache.allocate(1, heads, channels, grid, settings, kv_cache_blocks, device, dtype)
    while int(cache.count) < kv_cache_blocks:
        _, filled = block_sparse_attention(query, key, value, grid, settings, cache)
        assert filled is not None  # there was a cache
        cache = filled

    def attend(backend: str) -> torch.Tensor:
        return block_sparse_attention(query, key, value, grid, settings, cache, backend=backend)[0]

    return _time_agreeing(attend, _sparse_candidates(device, settings, channels), device, dtype, repeats)


def _sparse_candidates(device: torch.device, settings: BlockSparseSettings, channels: int) -> list[str]:
    """The backends that can run at all, the reference first."""
    candidates = ["sdpa", "gather"]
    if device.type == "cuda":
        candidates.append("flex")
        if triton_kernel.supports(device, settings.volume, channels):
            candidates.append("triton")
    return candidates


def _time_agreeing(
    attend: Callable[[str], torch.Tensor],
    backends: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
    repeats: int,
) -> dict[str, float]:
    """Seconds of the fastest of some calls of each backend that runs here and agrees with the first one."""
    reference, times = None, {}
    for backend in backends:
        try:
            output = attend(backend).float()
        except (ImportError, RuntimeError, ValueError, NotImplementedError):
            continue  # this device or build cannot run it
        if reference is None:
            reference = output
        if float((output - reference).norm() / reference.norm()) < _TOLERANCE[dtype]:
            times[backend] = _best_seconds(functools.partial(attend, backend), device, repeats)
    return times


def _best_seconds(function: Callable[[], Any], device: torch.device, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)


@dataclass(frozen=True)
class Recording:
    """What a pipeline makes of a source.

    Args:
        latents (`torch.Tensor`): `[batch, channels, frames, height, width]`, on the CPU.
        frames (`torch.Tensor`): `[batch, frames, 3, height, width]` in [0, 1], on the CPU.
    """

    latents: torch.Tensor
    frames: torch.Tensor


@dataclass(frozen=True)
class Accuracy:
    """How far a faster path is from the plain one.

    Args:
        latent_error (`float`): relative L2 error of the high-resolution latents.
        frame_psnr (`float`): PSNR of the frames against the plain path's in dB; infinite where they are equal.
    """

    latent_error: float
    frame_psnr: float


def record(pipe: DiffusionPipeline, source: Any = None, seed: int = 0, **arguments: Any) -> Recording:
    """Runs a pipeline twice, to its latents and to its frames, always from the same noise.

    Args:
        pipe ([`UltraFlashStreamingPipeline`]): plain or optimized.
        source (*optional*): what `stream` takes, such that it can be read twice: latents (real ones, for a figure that
            means something), a list of frames, a file.
        seed (`int`, *optional*, defaults to 0): of the noise.
        arguments: further arguments of the call.
    """
    tensors = []
    for kind in ("latent", "pt"):
        generator = torch.Generator().manual_seed(seed)
        (frames,) = pipe(source=source, generator=generator, output_type=kind, return_dict=False, **arguments)
        tensors.append(cast(torch.Tensor, frames).float().cpu())
    return Recording(*tensors)


def compare(plain: Recording, optimized: Recording) -> Accuracy:
    """Compares what the same pipeline made before and after [`optimize`].

    Raises:
        ValueError: recordings of different sizes.
    """
    if plain.latents.shape != optimized.latents.shape or plain.frames.shape != optimized.frames.shape:
        raise ValueError(
            f"`optimized` has frames of shape {tuple(optimized.frames.shape)}, `plain` {tuple(plain.frames.shape)}"
        )
    error = (optimized.latents - plain.latents).norm() / plain.latents.norm()
    mean_square = float((optimized.frames - plain.frames).square().mean())
    psnr = -10 * math.log10(mean_square) if mean_square else math.inf
    return Accuracy(float(error), psnr)
