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

from ..allocation import freed_memory_kept
from .pipeline_options import add_pipeline_options, bring, chosen_device, chosen_dtype, load_pipeline, positive

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
# named here too, so that --help imports nothing heavy
_PRESETS = ("480p", "1k", "2k", "4k")
_H200_TFLOPS = 790
_GENERATORS = ("self-forcing", "longlive", "frame-wise", "two-step", "one-step")


def add_benchmark(commands: SubParsers) -> argparse.ArgumentParser:
    """Declares the sub-command and returns its parser."""
    command = commands.add_parser(
        "benchmark",
        help="how fast the cascade runs here",
        description="Runs a stream from memory to memory and prints medians over its chunks after a warm-up: a "
        "checkpoint (the packaged one by default), or the published full-size networks with random weights. With "
        "--device meta nothing runs: it prints the memory that a GPU would need, the operations and what they allow.",
    )
    command.add_argument(
        "--preset", choices=_PRESETS, help="full-size networks with random weights, text to frames, at this size"
    )
    command.add_argument(
        "--generator",
        choices=_GENERATORS,
        help="whose chunks and steps a preset's generator has: Self-Forcing's (default), LongLive's, or those of "
        "Causal-Forcing, frame by frame in four, two or one steps",
    )
    command.add_argument("--height", type=positive, help="pixels of the result; the model's own by default")
    command.add_argument("--width", type=positive, help="likewise")
    command.add_argument("--chunks", type=positive, default=8, help="chunks to measure (default: %(default)s)")
    command.add_argument("--warmup", type=positive, default=6, help="chunks before them (default: %(default)s)")
    command.add_argument("--generator-steps", type=positive, help="of the preset's generator; its own by default")
    command.add_argument("--kv-cache-blocks", type=positive, help="of the SR transformer; the model's by default")
    command.add_argument(
        "--in-turns", action="store_true", help="decode a group before the next one is made: slower, less memory"
    )
    command.add_argument("--layers", type=positive, default=30, help="of a preset's transformers (default: 30)")
    command.add_argument(
        "--matmul-tflops",
        type=positive,
        default=_H200_TFLOPS,
        help="with --device meta: what matrix products reach on the GPU that is meant (default: %(default)s, bfloat16 "
        "on an H200)",
    )
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
    command.set_defaults(run=_run, plans=True)
    return command


@freed_memory_kept()  # as the commands whose speed this is
def _run(options: argparse.Namespace) -> None:
    from ..profiling import plot
    from ..profiling.floor import reached
    from ..profiling.presets import PRESETS
    from ..profiling.stages import measure, split_sparse_transformer

    if (options.fp8 or options.cuda_graphs or options.accuracy_latents) and not options.optimize:
        raise ValueError("--fp8, --cuda-graphs and --accuracy-latents need --optimize")
    for name in ("generator", "generator_device", "generator_steps"):
        if (value := getattr(options, name)) and not options.preset:
            raise ValueError(f"--{name.replace('_', '-')} {value} needs --preset: no generator runs else")
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
        _print_plan(options, result | _planned(pipe, height, width) | _counted(options, pipe, height, width))
        return
    if options.optimize:
        automatic = {"attention_backend": "auto", "sparse_backend": "auto"}
        chosen = {name: getattr(options, name) or backend for name, backend in automatic.items()}
        result |= _optimized(options, pipe, (height, width), **chosen)
    elif options.attention_backend or options.sparse_backend:
        chosen = {name: getattr(options, name) for name in ("attention_backend", "sparse_backend")}
        plain = {"cache_text": False, "channels_last": False, "compile": False}
        result |= _optimized(options, pipe, (height, width), **chosen, **plain)
    measured = measure(
        lambda: _stream(options, pipe, height, width),
        pipe.device,
        options.chunks,
        options.warmup,
    )
    result |= measured.as_dict()
    result |= reached(pipe, height, width, measured.fps, **_steps(options))
    result["sparse_attention_ms_per_frame"] = split_sparse_transformer(pipe, height, width)
    if options.plot is not None:
        title = f"{height}x{width} on {result['device']}, {result['fps']:.2f} FPS: ms a frame"
        options.plot.write_text(plot.bar_chart(title, result["stage_ms_per_frame"], "ms"))
    if options.output is not None:
        options.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result) if options.json else _table(result))


def _planned(pipe: UltraFlashStreamingPipeline, height: int, width: int) -> dict[str, Any]:
    from ..pipelines.memory_plan import peak_bytes
    from ..pipelines.memory_settings import CARDS, parse_memory, plan_settings, plan_streams

    plan, settings = plan_streams(pipe, height, width), list(plan_settings(pipe, height, width))
    planned = {kind: {name: size / 1e9 for name, size in sizes.items()} for kind, sizes in plan.items()}
    return {
        "planned_gb": planned,
        "planned_peak_gb": {"in turns": peak_bytes(plan) / 1e9, "overlapped": peak_bytes(plan, True) / 1e9},
        "cards": {
            card: next((str(each) for each in settings if each.device_bytes <= parse_memory(card)), "too small")
            for card in CARDS
        },
    }


def _counted(
    options: argparse.Namespace, pipe: UltraFlashStreamingPipeline, height: int, width: int
) -> dict[str, Any]:
    from ..profiling.floor import count_frame
    from ..profiling.operations import generator_passes

    operations = count_frame(pipe, height, width, **_steps(options))
    return {
        "generator_passes_per_group": generator_passes(pipe, **_steps(options)) if options.preset else 0,
        "tflop_per_frame": {name: count / 1e12 for name, count in operations.items()},
        "matmul_tflops": options.matmul_tflops,
        "ceiling_fps": options.matmul_tflops * 1e12 / sum(operations.values()),
    }


def _steps(options: argparse.Namespace) -> dict[str, Any]:
    """What counts of the generator: a checkpoint's is not run, since its stream begins with frames."""
    return {"steps": options.generator_steps if options.preset else 0}


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
    for card, setting in result["cards"].items():
        print(f"{card:>10}  {setting}")
    parts = ", ".join(f"{name} {count:.3f}" for name, count in result["tflop_per_frame"].items())
    print(
        f"counted: {result['generator_passes_per_group']:g} passes of the generator a group of "
        f"{result['group_frames']} latent frames; TFLOP a frame: {parts}; at most {result['ceiling_fps']:.1f} FPS "
        f"where matrix products reach {result['matmul_tflops']} TFLOP/s"
    )


def _pipeline(options: argparse.Namespace, preset: Preset | None) -> UltraFlashStreamingPipeline:
    import torch

    if preset is None:
        pipe = load_pipeline(options)
    else:
        from ..profiling.presets import GENERATORS, build_pipeline

        dtype, generator = getattr(torch, chosen_dtype(options)), GENERATORS[options.generator or _GENERATORS[0]]
        device = chosen_device(options)
        pipe = build_pipeline(preset, "cpu" if options.memory else device, dtype, options.layers, generator)
        size = (options.height or preset.height, options.width or preset.width)
        bring(pipe, options, device, size)
        if options.generator_device:
            pipe.generator_transformer.to(options.generator_device)
    if options.kv_cache_blocks:
        pipe.register_to_config(kv_cache_blocks=options.kv_cache_blocks)
    if options.in_turns:
        pipe.overlap_decoding = False
    return pipe


def _stream(options: argparse.Namespace, pipe: UltraFlashStreamingPipeline, height: int, width: int) -> Any:
    import torch

    from ..pipelines.cache_management import DynamicCacheManagement

    if not options.preset:
        scale = pipe.latent_upsampler.config.scale
        return pipe.stream(source=_drifting_noise(height // scale, width // scale), output_type="uint8")
    config, generator = pipe.transformer.config, torch.Generator().manual_seed(0)
    prompt = torch.randn(1, config.text_length, config.text_dim, generator=generator).to(pipe.device, pipe.dtype)
    steps = options.generator_steps
    policy = None if steps is None else DynamicCacheManagement(steps, steps, sr_warmup_groups=None)
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
    from ..pipelines.execution.accuracy import compare, record

    latents = None if options.accuracy_latents is None else _latents(options.accuracy_latents)
    plain = None if latents is None else record(pipe, source=latents)
    report = pipe.optimize(
        fp8=options.fp8,
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
        "generator": (options.generator or _GENERATORS[0]) if options.preset else None,
        "generator_steps": options.generator_steps,
        "group_frames": pipe.config.group_frames,
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
