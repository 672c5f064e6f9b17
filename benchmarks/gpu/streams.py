# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Whole streams: eager, compiled, lever by lever; random weights, whose values do not matter for speed."""

from __future__ import annotations

import dataclasses
import gc
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.gelu import fuse_gelu
from benchmarks.gpu.results import Report
from ultraflash_diffusers import DynamicCacheManagement, UltraFlashStreamingPipeline, default_checkpoint
from ultraflash_diffusers.pipelines.execution.accuracy import compare, record
from ultraflash_diffusers.pipelines.execution.compilation import is_compiled
from ultraflash_diffusers.pipelines.memory_plan import peak_bytes
from ultraflash_diffusers.pipelines.memory_settings import plan_streams
from ultraflash_diffusers.profiling.floor import reached
from ultraflash_diffusers.profiling.presets import GENERATORS, PRESETS, Preset, build_pipeline
from ultraflash_diffusers.profiling.stages import measure

_KERNELS = 40  # that are listed, by the time that they take
_PROMPT = "a red ball rolls over the table"


def compare_with_the_cpu(report: Report) -> None:
    """The stage `tiny`: the CPU's frames in float32, and the same bits overlapped and in turns."""
    torch.backends.cudnn.allow_tf32 = False
    expected, pipe = _tiny_frames(_tiny_pipeline()), _tiny_pipeline().to(report.device)
    for backend in ("sdpa",) if report.dry else ("triton", "sdpa", "auto"):
        pipe.transformer.set_sparse_backend(backend)
        frames = report.attempt(backend, _tiny_frames, pipe)
        if frames is None:
            continue
        report.value(f"{backend}_from_the_cpu", int((frames - expected).abs().max()), "levels")
        for overlapped in (True, False, True, False):
            pipe.overlap_decoding = overlapped
            same = torch.equal(_tiny_frames(pipe), frames)
            report.detail(backend=backend, overlapped=overlapped, same_bits=same)


def _tiny_pipeline() -> UltraFlashStreamingPipeline:
    from helpers import tiny  # the tests' networks; with blocks and heads that the Triton kernel takes

    return tiny.make_tiny_pipeline(
        text=False,
        transformer=tiny.make_tiny_transformer(block_size=(2, 2, 4), attention_head_dim=16),
        generator_transformer=tiny.make_tiny_generator(attention_head_dim=16),
    )


def _tiny_frames(pipe: UltraFlashStreamingPipeline) -> torch.Tensor:
    config, generator = pipe.transformer.config, torch.Generator().manual_seed(0)
    prompt = torch.randn(1, config.text_length, config.text_dim, generator=generator)
    settings: dict[str, Any] = {"num_frames": 61, "generator": generator, "output_type": "uint8", "return_dict": False}
    (frames,) = pipe(prompt_embeds=prompt, **settings)
    return torch.from_numpy(frames).int()


class Runs:
    """Streams of one pipeline, by setting.

    Args:
        report ([`Report`]): to which their figures go.
        pipe ([`UltraFlashStreamingPipeline`]): with a generator.
        height, width (`int`): of the frames.
        chunks (`int`): groups that count.
    """

    def __init__(
        self, report: Report, pipe: UltraFlashStreamingPipeline, height: int, width: int, chunks: int
    ) -> None:
        self.report, self.pipe, self.size, self.chunks = report, pipe, (height, width), chunks

    def start(self, policy: DynamicCacheManagement | None = None, **arguments: Any) -> Any:
        """A stream from an embedded prompt, without end."""
        config, generator = self.pipe.transformer.config, torch.Generator().manual_seed(0)
        prompt = torch.randn(1, config.text_length, config.text_dim, generator=generator)
        settings: dict[str, Any] = {
            "height": self.size[0],
            "width": self.size[1],
            "num_frames": None,
            "output_type": "uint8",
        }
        settings |= {"prompt_embeds": prompt.to(self.pipe.dtype), "generator": generator}
        return self.pipe.stream(**settings | {"cache_management": policy} | arguments)

    def measure(self, label: str, policy: DynamicCacheManagement | None = None, warm_up: int = 5) -> float:
        """Speed, first frames, peak and stages of a setting; returns its FPS."""
        if not self.report.dry:
            gc.collect()
            torch.cuda.empty_cache()
        device = torch.device(self.report.device)
        result = measure(
            lambda: self.start(policy),
            device,
            self.chunks,
            1 if self.report.dry else warm_up,
            lambda index, seconds: self.report.detail(label=label, chunk=index, ms_per_frame=1000 * seconds),
        )
        self.report.value(f"{label}.fps", result.fps, "FPS")
        self.report.value(f"{label}.fps_slowest", result.fps_slowest_chunk, "FPS")
        self.report.value(f"{label}.first_group", result.first_frames_seconds, "s")
        self.report.value(f"{label}.peak", 1.073741824 * result.peak_memory_gib, "GB")
        for stage, milliseconds in result.stage_ms_per_frame.items():
            self.report.value(f"{label}.{stage}", milliseconds * result.frames_per_chunk, "ms a group")
        return result.fps

    def first_frame(self, label: str) -> None:
        """Seconds to the first latent frame's pixels."""
        begin = time.perf_counter()
        with self.start(frames_per_chunk=1) as stream:
            next(stream)
            self.report.value(f"{label}.first_frame", time.perf_counter() - begin, "s")

    def first_latents(self) -> torch.Tensor:
        """The high-resolution latents of the first group."""
        with self.start(output_type="latent") as stream:
            return next(stream).frames.float().cpu()

    def list_kernels(self, label: str) -> None:
        """What one group in the steady state spends its time on."""
        with self.start() as stream:
            for _ in range(1 if self.report.dry else 4):
                next(stream)
            kind = ProfilerActivity.CPU if self.report.dry else ProfilerActivity.CUDA
            with profile(activities=[kind]) as run:
                next(stream)
                if not self.report.dry:
                    torch.cuda.synchronize()
        time_of = "self_cpu_time_total" if self.report.dry else "self_device_time_total"
        rows = sorted(run.key_averages(), key=lambda row: -getattr(row, time_of))[:_KERNELS]
        self.report.detail(
            label=label, kernels=[[row.key[:90], row.count, round(getattr(row, time_of) / 1000, 3)] for row in rows]
        )


def run_preset(
    report: Report,
    preset_name: str,
    eager: bool = False,
    variant: Literal["compiled", "fp8", "fused_gelu"] = "compiled",
    generator: str = "self-forcing",
) -> None:
    """The stages of full-size cascades: compiled and by lever, or in a variant; with `eager` also as it is."""
    preset, schedule = PRESETS[preset_name], GENERATORS[generator]
    if not report.dry and not _fits(report, preset):
        return
    pipe = _tiny_pipeline() if report.dry else build_pipeline(preset, "cuda", torch.bfloat16, generator=schedule)
    size = (pipe.config.default_height, pipe.config.default_width)
    runs = Runs(report, pipe, *size, chunks=1 if report.dry else 5)
    kept = Path(tempfile.gettempdir()) / f"ultraflash_{preset.name}_{report.device}.pt"
    if eager:
        report.attempt("eager latents", lambda: torch.save(runs.first_latents(), kept))
        report.attempt("eager", runs.measure, "eager", warm_up=2)
    if variant == "fused_gelu":
        fuse_gelu(pipe)
    _optimize(report, pipe, variant, fp8=variant == "fp8" and not report.dry)
    report.attempt("error", _compare_latents, runs, variant, kept)
    fps = report.attempt(variant, runs.measure, variant)
    report.attempt("floor", _share_of_floor, runs, variant, fps or 0.0)
    report.attempt("first frame", runs.first_frame, variant)
    plain = variant == "compiled" and generator == "self-forcing"
    for name, lever in _LEVERS.items() if plain else ():
        report.attempt(name, lever, runs, name)
    report.attempt("kernels", runs.list_kernels, variant)


def _fits(report: Report, preset: Preset) -> bool:
    """Whether the planned peak is free, overlapped; writes both down."""
    plan = plan_streams(build_pipeline(preset, "meta", torch.bfloat16), preset.height, preset.width)
    free, needed = torch.cuda.mem_get_info()[0] / 1e9, peak_bytes(plan, overlapped=True) / 1e9
    report.value("compiled.planned_peak", needed, "GB")
    if needed > free:
        report.detail(skipped=f"it needs {needed:.1f} GB, {free:.1f} are free")
    return needed <= free


def _optimize(report: Report, pipe: UltraFlashStreamingPipeline, label: str, **arguments: Any) -> None:
    backend = "eager" if report.dry else "inductor"
    begin = time.perf_counter()
    done = pipe.optimize(compile_backend=backend, **arguments)
    report.detail(
        label=label,
        optimized_in=time.perf_counter() - begin,
        steps=[f"{step.name} {step.network} {step.applied}: {step.detail}" for step in done.steps],
    )


def _compare_latents(runs: Runs, label: str, kept: Path) -> None:
    begin = time.perf_counter()
    latents = runs.first_latents()
    runs.report.detail(label=label, compiled_for_the_first_group_in=time.perf_counter() - begin)
    names = ("generator_transformer", "transformer", "latent_upsampler", "autoencoder")
    runs.report.detail(label=label, compiled=[name for name in names if is_compiled(getattr(runs.pipe, name))])
    runs.report.detail(label=label, finite=bool(latents.isfinite().all()))
    if kept.is_file():
        plain = torch.load(kept)
        runs.report.value(f"{label}.latent_error", float((latents - plain).norm() / plain.norm()), "relative")


def _share_of_floor(runs: Runs, label: str, fps: float) -> None:
    result = reached(runs.pipe, *runs.size, fps)
    runs.report.value(f"{label}.floor", result["floor_fps"], "FPS")
    runs.report.value(f"{label}.tflops", result["tflops"], "TFLOP/s")
    runs.report.detail(label=label, **result)


def _three_steps(runs: Runs, name: str) -> None:
    steps = len(runs.pipe.generator_transformer.config.denoising_steps)
    runs.measure(name, DynamicCacheManagement(None, max(1, steps - 1), sr_warmup_groups=None))


def _without_context_passes(runs: Runs, name: str) -> None:
    def contented(frames: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(frames))  # a perfect score for every chunk

    policy = DynamicCacheManagement(None, None, contented, sr_warmup_groups=None)
    runs.measure(name, policy)


def _tuned_convolutions(runs: Runs, name: str) -> None:
    with torch.backends.cudnn.flags(benchmark=True):
        runs.measure(name)


def _in_turns(runs: Runs, name: str) -> None:
    runs.pipe.overlap_decoding = False
    runs.measure(name)
    runs.pipe.overlap_decoding = True


def _one_block(runs: Runs, name: str) -> None:
    blocks = runs.pipe.config.kv_cache_blocks
    runs.pipe.register_to_config(kv_cache_blocks=1)
    runs.measure(name)
    runs.pipe.register_to_config(kv_cache_blocks=blocks)


def _chunk_room(runs: Runs, name: str) -> None:
    plan = runs.pipe.execution_plan
    runs.pipe.execution_plan = dataclasses.replace(plan, chunk_room=True)
    runs.measure(name)
    runs.pipe.execution_plan = plan


_LEVERS: dict[str, Callable[[Runs, str], None]] = {
    "three_steps": _three_steps,
    "tuned_convolutions": _tuned_convolutions,
    "in_turns": _in_turns,
    "one_block": _one_block,
    "no_context_passes": _without_context_passes,
    "chunk_room": _chunk_room,
}


def run_packaged(report: Report) -> None:
    """The stage `packaged`: what speed costs in accuracy where weights mean something, and whether graphs pay."""
    dtype = torch.float32 if report.dry else torch.bfloat16

    def load() -> UltraFlashStreamingPipeline:
        pipe = UltraFlashStreamingPipeline.from_pretrained(default_checkpoint(), dtype=dtype).to(report.device)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    pipe, frames = load(), 9 if report.dry else 69
    height, width = pipe.config.default_height, pipe.config.default_width
    sizes = {"height": height, "width": width} if not report.dry else {"height": 64, "width": 64}
    plain = record(pipe, prompt=_PROMPT, num_frames=frames, **sizes)
    runs = Runs(report, pipe, sizes["height"], sizes["width"], 2 if report.dry else 24)
    runs.measure("plain")
    settings: dict[str, dict[str, Any]] = {"optimized": {"compile": not report.dry}}
    if not report.dry:
        settings |= {"cuda_graphs": {"cuda_graphs": True}, "fp8": {"fp8": True}}
    for label, arguments in settings.items():
        runs.pipe = load()
        report.attempt(label, _packaged, runs, label, arguments, plain, sizes)


def _packaged(runs: Runs, label: str, arguments: dict[str, Any], plain: Any, sizes: dict[str, int]) -> None:
    _optimize(runs.report, runs.pipe, label, **arguments)
    accuracy = compare(plain, record(runs.pipe, prompt=_PROMPT, num_frames=plain.frames.shape[1], **sizes))
    runs.report.value(f"{label}.latent_error", accuracy.latent_error, "relative")
    runs.report.value(f"{label}.psnr", accuracy.frame_psnr, "dB")
    runs.measure(label)
