# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""`ultraflash benchmark`: how fast a checkpoint's cascade runs on this machine, stage by stage."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .pipeline_options import add_pipeline_options, load_pipeline, positive

if TYPE_CHECKING:
    import numpy as np
    import torch

    SubParsers = argparse._SubParsersAction[argparse.ArgumentParser]

_WARM_UP_CHUNKS = 2  # the first one starts the stream, the second one fills the caches


def add_benchmark(commands: SubParsers) -> argparse.ArgumentParser:
    """Declares the sub-command and returns its parser."""
    command = commands.add_parser(
        "benchmark",
        help="how fast the cascade runs here",
        description="Streams synthetic low-resolution frames from memory through the cascade, without files, and "
        "prints medians over the chunks after a warm-up.",
    )
    command.add_argument("--height", type=positive, help="pixels of the result; the checkpoint's own by default")
    command.add_argument("--width", type=positive, help="likewise")
    command.add_argument("--chunks", type=positive, default=8, help="chunks to measure (default: %(default)s)")
    add_pipeline_options(command)
    command.set_defaults(run=_run)
    return command


def _run(options: argparse.Namespace) -> None:
    import torch

    pipe = load_pipeline(options)
    scale = pipe.latent_upsampler.config.scale
    height, width = options.height or pipe.config.default_height, options.width or pipe.config.default_width
    if height % scale or width % scale:
        raise ValueError(f"--height {height} and --width {width} must be multiples of the scale, {scale}")
    seconds, stages = [], []
    with pipe.stream(source=_drifting_noise(height // scale, width // scale), output_type="pt") as stream:
        for _ in range(_WARM_UP_CHUNKS + options.chunks):
            start = time.perf_counter()
            chunk = next(stream)
            _synchronise(pipe.device)
            seconds.append((time.perf_counter() - start) / chunk.num_frames)
            stages.append({name: value / chunk.num_frames for name, value in chunk.timings.items()})
    result = _summary(seconds[_WARM_UP_CHUNKS:], stages[_WARM_UP_CHUNKS:])
    result |= {
        "height": height,
        "width": width,
        "scale": scale,
        "device": _device_name(pipe.device),
        "dtype": str(pipe.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "peak_memory_gib": _peak_memory(pipe.device),
    }
    print(json.dumps(result) if options.json else _table(result))


def _drifting_noise(height: int, width: int) -> Iterator[np.ndarray]:
    """An endless clip of detailed frames in motion, which no stage can find easy."""
    import numpy as np

    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    while True:
        yield picture
        picture = np.roll(picture, (1, 2), axis=(0, 1))


def _synchronise(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _summary(seconds: list[float], stages: list[dict[str, float]]) -> dict[str, Any]:
    names = {name for stage in stages for name in stage}
    return {
        "fps": 1 / statistics.median(seconds),
        "fps_slowest_chunk": 1 / max(seconds),
        "fps_fastest_chunk": 1 / min(seconds),
        "chunks": len(seconds),
        "stage_ms_per_frame": {
            name: 1000 * statistics.median(stage.get(name, 0.0) for stage in stages) for name in sorted(names)
        },
    }


def _device_name(device: torch.device) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()


def _peak_memory(device: torch.device) -> float:
    import resource

    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _table(result: dict[str, Any]) -> str:
    lines = [
        f"{result['height']}x{result['width']} ({result['scale']}x) on {result['device']}, {result['dtype']}, "
        f"{result['threads']} threads, torch {result['torch']}",
        f"{result['fps']:.2f} FPS: median of {result['chunks']} chunks after {_WARM_UP_CHUNKS} (slowest "
        f"{result['fps_slowest_chunk']:.2f}, fastest {result['fps_fastest_chunk']:.2f}); encoding the low-resolution "
        "frames, all stages and colour correction included; loading, reading and writing files not",
    ]
    lines += [f"{name:>24}  {value:8.1f} ms a frame" for name, value in result["stage_ms_per_frame"].items()]
    return "\n".join([*lines, f"peak memory {result['peak_memory_gib']:.2f} GiB (the process; on a GPU, its tensors)"])
