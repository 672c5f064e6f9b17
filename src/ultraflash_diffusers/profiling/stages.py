# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Speed of a running stream, stage by stage, and of the machine that it runs on."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..models.attention.block_kv_cache import BlockKVCache
from ..models.attention.block_selection import select_blocks
from ..models.attention.block_sparse_attention import block_sparse_attention
from ..models.ultraflash_sr_transformer import UltraFlashSRTransformer
from ..pipelines.pipeline_ultraflash import UltraFlashStreamingPipeline
from ..pipelines.video_stream import VideoStream

WARM_UP_CHUNKS = 6  # the generator's window of 12 frames is full after four chunks, the SR cache after two groups


@dataclass(frozen=True)
class Measurement:
    """A stream after its warm-up.

    Args:
        chunks (`int`): that count.
        frames_per_chunk (`int`): of each.
        fps (`float`): frames a second, from the median time of a chunk.
        fps_slowest_chunk, fps_fastest_chunk (`float`): likewise.
        first_frames_seconds (`float`): from the call to the first chunk in memory, in a second stream, when all that
            is compiled or allocated once was there. What is made ahead of the second chunk is not waited for.
        stage_ms_per_frame (`dict[str, float]`): medians by stage. On a GPU stages overlap: their sum may exceed the
            whole.
        peak_memory_gib (`float`): what tensors took on a GPU at most after the warm-up, whose tuning makes copies; on
            a CPU, what the process ever did.
    """

    chunks: int
    frames_per_chunk: int
    fps: float
    fps_slowest_chunk: float
    fps_fastest_chunk: float
    first_frames_seconds: float
    stage_ms_per_frame: dict[str, float]
    peak_memory_gib: float

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def measure(
    start: Callable[[], VideoStream],
    device: torch.device,
    chunks: int,
    warm_up: int = WARM_UP_CHUNKS,
    on_chunk: Callable[[int, float], None] | None = None,
) -> Measurement:
    """Times the chunks of a stream in the steady state, as whoever reads it sees them.

    Nothing is waited for but a chunk's frames: a synchronisation would also wait for the next group, which is being
    made meanwhile.

    Args:
        start (`Callable`): starts the stream, which must go on for long enough; called twice. Its chunks must be in
            memory when they arrive: `output_type="uint8"`, `"np"` or `"pil"`.
        device (`torch.device`): of the pipeline.
        chunks (`int`): to measure.
        warm_up (`int`, *optional*): chunks before them.
        on_chunk (`Callable`, *optional*): called with each chunk's number and its seconds a frame as soon as they are
            known, those of the warm-up included: where a run may be cut short, they can be written down.
    """
    seconds, timings = [], []
    with start() as stream:
        for index in range(warm_up + chunks):
            if index == warm_up and device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            begin = time.perf_counter()
            chunk = next(stream)
            taken = (time.perf_counter() - begin) / chunk.num_frames
            if on_chunk is not None:
                on_chunk(index, taken)
            if index >= warm_up:
                seconds.append(taken)
                timings.append(chunk.timings)  # to be read later: that waits for the GPU
        peak, frames = peak_memory_gib(device), chunk.num_frames
        stages = [{name: 1000 * value / frames for name, value in each.items()} for each in timings]
    begin = time.perf_counter()
    with start() as stream:
        next(stream)
        first = time.perf_counter() - begin
    return Measurement(
        chunks=chunks,
        frames_per_chunk=frames,
        fps=1 / statistics.median(seconds),
        fps_slowest_chunk=1 / max(seconds),
        fps_fastest_chunk=1 / min(seconds),
        first_frames_seconds=first,
        stage_ms_per_frame=medians(stages),
        peak_memory_gib=peak,
    )


def medians(stages: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of each stage over some chunks; a chunk in which it did not run counts as 0."""
    names = {name: None for stage in stages for name in stage}
    return {name: statistics.median(stage.get(name, 0.0) for stage in stages) for name in names}


def synchronize(device: torch.device) -> None:
    """Waits for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory_gib(device: torch.device) -> float:
    """What tensors took on a GPU at most, or what the process took on a CPU."""
    import resource

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def matmul_rate(device: torch.device, dtype: torch.dtype, repeats: int = 10) -> float:
    """Operations a second of a large matrix product here, the best of a few: what the floor is reckoned with."""
    side = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / best_seconds(lambda: left @ right, device, repeats)


def best_seconds(function: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """The fastest of a few calls, after one that does not count."""
    times = []
    for _ in range(1 + repeats):
        begin = time.perf_counter()
        function()
        synchronize(device)
        times.append(time.perf_counter() - begin)
    return min(times[1:])


@torch.no_grad()
def split_sparse_transformer(
    pipe: UltraFlashStreamingPipeline, height: int, width: int, repeats: int = 5
) -> dict[str, float]:
    """Where the time of the SR transformer's sparse attention goes, in ms a frame.

    Selection and attention of one layer are timed by themselves, in the middle of a stream of this size, and taken
    times the number of layers: a hook in the running stream would change what it measures.

    Returns:
        `dict[str, float]`: `"selection"` (pooling included), and `"attention"` (the rest: cutting into blocks, cache,
        the attention proper); empty for dense attention.
    """
    network: UltraFlashSRTransformer = pipe.transformer
    config, device, dtype = network.config, pipe.device, network.dtype
    if not config.use_sparse_attention:
        return {}
    ratio, settings = pipe.autoencoder.spatial_compression_ratio, network.sparse_settings
    latents = (pipe.config.group_frames, -(-height // ratio), -(-width // ratio))
    grid = tuple(-(-side // patch) for side, patch in zip(latents, config.patch_size, strict=True))
    heads, channels, window = config.num_attention_heads, config.attention_head_dim, pipe.config.kv_cache_blocks
    query, key, value = (torch.randn(1, math.prod(grid), heads, channels, device=device).to(dtype) for _ in range(3))
    cache = BlockKVCache.allocate(1, heads, channels, grid, settings, window, device, dtype)
    while int(cache.count) < window:
        _, filled = block_sparse_attention(query, key, value, grid, settings, cache)
        assert filled is not None  # there was a cache
        cache = filled
    temporal, rows, columns = settings.count_blocks(grid)
    blocks = torch.randn(1, heads, temporal, rows * columns, settings.volume, channels, device=device).to(dtype)
    keys = torch.randn(1, heads, window + temporal, rows, columns, channels, device=device)
    slots = torch.arange(window + temporal, device=device)

    def select() -> torch.Tensor:
        pooled = [blocks.mean(dim=-2, dtype=torch.float32) for _ in range(2)][0].unflatten(3, (rows, columns))
        return select_blocks(pooled, keys, cache.count, settings.top_k(grid), settings, slots, len(slots)).pairs()

    def attend() -> torch.Tensor:
        backend = network.sparse_backend
        return block_sparse_attention(query, key, value, grid, settings, cache, backend=backend)[0]

    frames = pipe.autoencoder.temporal_compression_ratio * latents[0]
    scale = 1000 * config.num_layers / frames
    selection, whole = (scale * best_seconds(each, device, repeats) for each in (select, attend))
    return {"selection": selection, "attention": whole - selection}
