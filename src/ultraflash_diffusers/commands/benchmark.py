# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""`ultraflash benchmark`: how fast a cascade runs here, stage by stage, and how near that is to what is possible."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .pipeline_options import add_pipeline_options, chosen_device, chosen_dtype, load_pipeline, positive

if TYPE_CHECKING:
    import numpy as np
    import torch

    from .. import UltraFlashStreamingPipeline
    from ..profiling.presets import Preset

    SubParsers = argparse._SubParsersAction[argparse.ArgumentParser]

_INCLUDES = {
    "text": "embedded prompt to uint8 RGB frames in the CPU's memory: generator steps and context passes, upsampler, "
    "SR transformer, decoder, rounding, copy. Not the text encoder, which runs once a prompt; not loading, compiling, "
    "files",
    "frames": "uint8 frames to uint8 RGB frames, both in the CPU's memory: encoder, upsampler, SR transformer, "
    "decoder, color correction, rounding, copy. Not loading, compiling, files",
}
_PRESETS = ("480p", "1k", "2k", "4k")  # named here too, so that --help imports nothing heavy


def add_benchmark(commands: SubParsers) -> argparse.ArgumentParser:
    """Declares the sub-command and returns its parser."""
    command = commands.add_parser(
        "benchmark",
        help="how fast the cascade runs here",
        description="Runs a stream from memory to memory and prints medians over its chunks after a warm-up: a "
        "checkpoint (the packaged one by default), or the published full-size networks with random weights. With "
        "--device meta nothing runs: it prints the memory that a GPU would need.",
    )
    command.add_argument(
        "--preset", choices=_PRESETS, help="full-size networks with random weights, text to frames, at this size"
    )
    command.add_argument("--height", type=positive, help="pixels of the result; the model's own by default")
    command.add_argument("--width", type=positive, help="likewise")
    command.add_argument("--chunks", type=positive, default=8, help="chunks to measure (default: %(default)s)")
    command.add_argument("--warmup", type=positive, default=6, help="chunks before them (default: %(default)s)")
    command.add_argument("--generator-steps", type=positive, default=4, help="of the preset's generator (default: 4)")
    command.add_argument("--kv-cache-blocks", type=positive, help="of the SR transformer; the model's by default")
    command.add_argument(
        "--in-turns", action="store_true", help="decode a group before the next one is made: slower, less memory"
    )
    command.add_argument("--layers", type=positive, default=30, help="of a preset's transformers (default: 30)")
    command.add_argument("--optimize", action="store_true", help="call pipe.optimize() first")
    command.add_argument("--fp8", action="store_true", help="with --optimize: FP8 linear layers inside the blocks")
    command.add_argument(
        "--cuda-graphs", action="store_true", help="with --optimize: the SR transformer's step as a CUDA graph"
    )
    command.add_argument("--generator-device", metavar="DEVICE", help="another one for a preset's generator: cuda:1")
    command.add_argument("--attention-backend", metavar="NAME", help="of dense self-attention, or 'fastest'")
    command.add_argument("--sparse-backend", metavar="NAME", help="of the sparse attention, or 'fastest'")
    command.add_argument(
        "--accuracy-latents",
        metavar="FILE",
        type=Path,
        help="with --optimize: real latents (a safetensors file) on which to compare it with the plain path",
    )
    command.add_argument("--plot", type=Path, metavar="FILE", help="also draw the stages as an SVG")
    command.add_argument("--output", type=Path, metavar="FILE", help="also write the result as JSON there")
    add_pipeline_options(command)
    command.set_defaults(run=_run)
    return command


def _run(options: argparse.Namespace) -> None:
    from ..profiling import plot
    from ..profiling.presets import PRESETS
    from ..profiling.stages import measure, split_sparse_transformer

    if (options.fp8 or options.cuda_graphs or options.accuracy_latents) and not options.optimize:
        raise ValueError("--fp8, --cuda-graphs and --accuracy-latents need --optimize")
    if options.generator_device and not options.preset:
        raise ValueError(f"--generator-device {options.generator_device} needs --preset: no generator else")
    if options.preset and options.checkpoint:
        raise ValueError("--preset and --checkpoint were both given: a preset has networks of its own")
    preset = PRESETS[options.preset] if options.preset else None
    pipe = _pipeline(options, preset)
    height, width = options.height or pipe.config.default_height, options.width or pipe.config.default_width
    scale = pipe.latent_upsampler.config.scale
    if height % scale or width % scale:
        raise ValueError(f"--height {height} and --width {width} must be multiples of the scale, {scale}")
    result: dict[str, Any] = _conditions(options, pipe, height, width)
    if pipe.device.type == "meta":
        _print_plan(options, result | _planned(pipe, height, width))
        return
    if options.optimize:
        result |= _optimized(options, pipe, (height, width))
    elif options.attention_backend or options.sparse_backend:
        result |= _optimized(options, pipe, (height, width), cache_text=False, channels_last=False, compile=False)
    measured = measure(
        lambda: _stream(pipe, preset, height, width, options.generator_steps),
        pipe.device,
        options.chunks,
        options.warmup,
    )
    result |= measured.as_dict()
    passes = 0
    if preset is not None:
        passes = (options.generator_steps + 1) * pipe.config.group_frames // pipe.generator_transformer.chunk_frames
    result |= _floor(pipe, height, width, passes, measured.fps)
    result["sparse_attention_ms_per_frame"] = split_sparse_transformer(pipe, height, width)
    if options.plot is not None:
        title = f"{height}x{width} on {result['device']}, {result['fps']:.2f} FPS: ms a frame"
        options.plot.write_text(plot.bar_chart(title, result["stage_ms_per_frame"], "ms"))
    if options.output is not None:
        options.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result) if options.json else _table(result))


def _planned(pipe: UltraFlashStreamingPipeline, height: int, width: int) -> dict[str, Any]:
    from ..profiling.memory import peak_bytes, plan_memory

    plan = plan_memory(pipe, height, width)
    planned = {kind: {name: size / 1e9 for name, size in sizes.items()} for kind, sizes in plan.items()}
    return {
        "planned_gb": planned,
        "planned_peak_gb": {"in turns": peak_bytes(plan) / 1e9, "overlapped": peak_bytes(plan, True) / 1e9},
    }


def _print_plan(options: argparse.Namespace, result: dict[str, Any]) -> None:
    if options.output is not None:
        options.output.write_text(json.dumps(result, indent=2) + "\n")
    if options.json:
        print(json.dumps(result))
        return
    print(
        f"{result['height']}x{result['width']} ({result['scale']}x), {result['dtype']}, `kv_cache_blocks` "
        f"{result['kv_cache_blocks']}, planned in GB (1e9 bytes), one step a group, nothing compiled, without "
        "the text encoder, kernels' workspace and the allocator's slack"
    )
    for kind, sizes in result["planned_gb"].items():
        parts = ", ".join(f"{name} {size:.3f}" for name, size in sizes.items())
        print(f"{kind:>10}  {parts}")
    in_turns, overlapped = result["planned_peak_gb"].values()
    print(f"{'peak':>10}  {in_turns:.3f} with one stage after the other, {overlapped:.3f} overlapped")


def _pipeline(options: argparse.Namespace, preset: Preset | None) -> UltraFlashStreamingPipeline:
    import torch

    if preset is None:
        pipe = load_pipeline(options)
    else:
        from ..profiling.presets import build_pipeline

        dtype = getattr(torch, chosen_dtype(options))
        pipe = build_pipeline(preset, chosen_device(options), dtype, options.layers)
        if options.generator_device:
            pipe.generator_transformer.to(options.generator_device)
    if options.kv_cache_blocks:
        pipe.register_to_config(kv_cache_blocks=options.kv_cache_blocks)
    pipe.overlap_decoding = not options.in_turns
    return pipe


def _stream(
    pipe: UltraFlashStreamingPipeline, preset: Preset | None, height: int, width: int, generator_steps: int
) -> Any:
    import torch

    from ..pipelines.cache_management import DynamicCacheManagement

    if preset is None:
        scale = pipe.latent_upsampler.config.scale
        return pipe.stream(source=_drifting_noise(height // scale, width // scale), output_type="uint8")
    config, generator = pipe.transformer.config, torch.Generator().manual_seed(0)
    prompt = torch.randn(1, config.text_length, config.text_dim, generator=generator).to(pipe.device, pipe.dtype)
    policy = DynamicCacheManagement(generator_steps, generator_steps, sr_warmup_groups=None)
    return pipe.stream(
        prompt_embeds=prompt,
        height=height,
        width=width,
        num_frames=None,
        generator=generator,
        cache_management=policy,
        output_type="uint8",
    )


def _drifting_noise(height: int, width: int) -> Iterator[np.ndarray]:
    """An endless clip of detailed frames in motion, which no stage can find easy."""
    import numpy as np

    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    while True:
        yield picture
        picture = np.roll(picture, (1, 2), axis=(0, 1))


def _optimized(
    options: argparse.Namespace, pipe: UltraFlashStreamingPipeline, size: tuple[int, int], **switches: Any
) -> dict[str, Any]:
    """Optimizes the pipeline; returns what was done and, with real latents, what it costs in accuracy."""
    from ..pipelines.execution.optimization import compare, record

    latents = None if options.accuracy_latents is None else _latents(options.accuracy_latents)
    plain = None if latents is None else record(pipe, source=latents)
    report = pipe.optimize(
        fp8=options.fp8,
        attention_backend=options.attention_backend,
        sparse_backend=options.sparse_backend,
        size=size,
        cuda_graphs=options.cuda_graphs,
        **switches,
    )
    result: dict[str, Any] = {"optimizations": [vars(step) for step in report.steps]}
    if plain is not None:
        accuracy = compare(plain, record(pipe, source=latents))
        result |= {"latent_error": accuracy.latent_error, "frame_psnr": accuracy.frame_psnr}
    return result


def _latents(path: Path) -> torch.Tensor:
    """Reads the first tensor of a safetensors file that is latents, `[channels, frames, height, width]` or a batch."""
    from safetensors.torch import load_file

    for tensor in load_file(path).values():
        if tensor.ndim in (4, 5) and tensor.is_floating_point():
            return (tensor if tensor.ndim == 5 else tensor[None]).float()
    raise ValueError(f"--accuracy-latents {path}: no latents (a tensor of 4 or 5 dimensions) in it")


def _conditions(
    options: argparse.Namespace, pipe: UltraFlashStreamingPipeline, height: int, width: int
) -> dict[str, Any]:
    import torch

    return {
        "preset": options.preset,
        "layers": pipe.transformer.config.num_layers,
        "weights": "random weights" if options.preset else options.checkpoint or "packaged checkpoint",
        "includes": _INCLUDES["text" if options.preset else "frames"],
        "height": height,
        "width": width,
        "scale": pipe.latent_upsampler.config.scale,
        "generator_steps": options.generator_steps if options.preset else 0,
        "kv_cache_blocks": pipe.config.kv_cache_blocks,
        "overlapped": pipe.can_overlap_decoding,
        "device": _device_name(pipe.device),
        "generator_device": options.generator_device,
        "dtype": str(pipe.transformer.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": date.today().isoformat(),
        "warm_up_chunks": options.warmup,
    }


def _device_name(device: torch.device) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()


def _floor(
    pipe: UltraFlashStreamingPipeline, height: int, width: int, generator_passes: int, fps: float
) -> dict[str, Any]:
    """What the counted operations would take at this machine's best rate, and how much of that is reached."""
    from ..profiling.operations import group_operations
    from ..profiling.stages import matmul_rate

    counts = group_operations(pipe, height, width, generator_passes)
    frames = pipe.config.group_frames * pipe.autoencoder.temporal_compression_ratio
    per_frame, rate = sum(counts.values()) / frames, matmul_rate(pipe.device, pipe.transformer.dtype)
    return {
        "tflop_per_frame": {name: count / frames / 1e12 for name, count in counts.items()},
        "tflops": per_frame * fps / 1e12,
        "matmul_tflops": rate / 1e12,
        "floor_fps": rate / per_frame,
        "share_of_floor": per_frame * fps / rate,
    }


def _table(result: dict[str, Any]) -> str:
    lines = [
        f"{result['height']}x{result['width']} ({result['scale']}x), {result['weights']}, {result['dtype']}, on "
        f"{result['device']}, {result['threads']} threads, torch {result['torch']}, {result['date']}",
        f"{result['fps']:.2f} FPS: median of {result['chunks']} chunks of {result['frames_per_chunk']} frames after "
        f"{result['warm_up_chunks']} (slowest {result['fps_slowest_chunk']:.2f}, fastest "
        f"{result['fps_fastest_chunk']:.2f})",
        f"from {result['includes']}",
        f"first frames after {result['first_frames_seconds']:.2f} s; peak memory {result['peak_memory_gib']:.2f} GiB "
        "(on a GPU its tensors, on a CPU the process)",
        f"{result['tflops']:.3f} TFLOP/s of {result['matmul_tflops']:.3f} that a large matrix product reaches here: "
        f"{result['share_of_floor']:.1%} of the floor of {result['floor_fps']:.1f} FPS (encoder, norms and the like "
        "not counted)",
    ]
    lines += [f"{name:>24}  {value:9.2f} ms a frame" for name, value in result["stage_ms_per_frame"].items()]
    lines += [
        f"{name:>24}  {value:9.2f} ms a frame of the transformer's (one layer timed alone, times the layers)"
        for name, value in result["sparse_attention_ms_per_frame"].items()
    ]
    for step in result.get("optimizations", ()):
        done = "" if step["applied"] else "not applied: "
        lines.append(f"{step['name']:>24}  {step['network']}: {done}{step['detail']}")
    if "latent_error" in result:
        error, psnr = result["latent_error"], result["frame_psnr"]
        lines.append(f"against the plain path: relative error of latents {error:.2e}, PSNR of frames {psnr:.1f} dB")
    return "\n".join(lines)
