# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the benchmark counts, plans and prints, where the right numbers are known."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from helpers import tiny
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import linearity
from ultraflash_diffusers import CausalWanTransformer, UltraFlashStreamingPipeline, default_checkpoint
from ultraflash_diffusers.cli import main
from ultraflash_diffusers.models.attention.block_layout import BlockSparseSettings
from ultraflash_diffusers.models.attention.block_selection import select_blocks
from ultraflash_diffusers.pipelines.execution.plan import ExecutionPlan
from ultraflash_diffusers.pipelines.memory_plan import FusedAttention, LiveBytes, peak_bytes, plan_memory
from ultraflash_diffusers.pipelines.pipeline_output import StreamChunk
from ultraflash_diffusers.profiling import plot
from ultraflash_diffusers.profiling.floor import count_frame
from ultraflash_diffusers.profiling.operations import (
    generator_passes,
    group_operations,
    sparse_pairs,
    sr_operations,
    transformer_pass,
)
from ultraflash_diffusers.profiling.presets import GENERATORS, PRESETS, Preset, build_pipeline
from ultraflash_diffusers.profiling.stages import measure, split_sparse_transformer

PROMPT = torch.randn(1, tiny.TEXT_LENGTH, tiny.TEXT_DIM)


# ---- operations


@pytest.mark.parametrize("cached_text", [False, True])
@torch.no_grad()
def test_the_formula_for_transformers_is_what_torch_counts(cached_text: bool) -> None:
    network = tiny.make_tiny_transformer(use_sparse_attention=False).to("meta")  # where attention is plain products
    prompt = PROMPT.to("meta")
    text = network.encode_text(prompt) if cached_text else prompt
    latents = torch.randn(1, 2 * tiny.LATENT_CHANNELS, 2, 8, 12, device="meta")
    with FlopCounterMode(display=False) as counter:
        network(latents, torch.empty(1, device="meta"), text)
    tokens = 2 * 4 * 6
    counted = transformer_pass(network.config, tokens, tokens**2, cached_text)
    # torch also counts the embedding of the timestep
    width = 24
    timestep = 2 * (network.config.freq_dim * width + width**2 + 6 * width**2)
    assert counter.get_total_flops() == counted + timestep


@pytest.mark.parametrize("local_range", [2, 3, 9])
def test_kept_pairs_are_what_the_selection_keeps(local_range: int) -> None:
    settings = BlockSparseSettings((2, 2, 2), local_range=local_range, top_k_ratio=0.4, reference_tokens=None)
    grid, window = (6, 10, 8), 3
    temporal, rows, columns = settings.count_blocks(grid)
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(1, 1, temporal, rows, columns, 16, generator=generator)
    keys = torch.randn(1, 1, window + temporal, rows, columns, 16, generator=generator)
    slots = torch.arange(window + temporal)
    kept = select_blocks(
        queries, keys, torch.tensor(window), settings.top_k(grid), settings, slots, len(slots)
    ).pairs()
    expected = sparse_pairs(settings, grid, window) / settings.volume**2
    # a query block that would keep nothing keeps one key block
    assert expected <= kept.sum() <= expected + temporal * rows * columns / 2
    assert kept.any(-1).all()


def test_full_size_presets_have_the_published_work() -> None:
    """1.42 billion weights a transformer; the generator takes more than twice what the SR transformer does at 1K."""
    preset = PRESETS["1k"]
    pipe = build_pipeline(preset, "meta", torch.bfloat16)
    for network in (pipe.transformer, pipe.generator_transformer):
        assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(1.42e9, rel=0.01)
    assert pipe.transformer.blocks[0].norm2.weight.dtype == torch.float32
    assert pipe.transformer.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    counts = group_operations(pipe, preset.height, preset.width, generator_passes=10)
    assert {name: round(count / 1e12) for name, count in counts.items()} == {
        "generator": 284,
        "upsampler": 1,
        "transformer": 122,
        "decoder": 13,
    }


def test_the_transformer_s_work_grows_with_the_pixels() -> None:
    """The share of pairs shrinks as their number grows: four times the pixels are about four times the work."""
    network = build_pipeline(PRESETS["1k"], "meta", torch.bfloat16, layers=1).transformer
    works = [sr_operations(network, (6, scale * 128, scale * 192), 3) for scale in (1, 2, 4)]
    assert works[1] / works[0] == pytest.approx(4, rel=0.02) and works[2] / works[1] == pytest.approx(4, rel=0.02)


def test_the_generator_s_work_grows_with_the_temporal_patches_of_a_chunk() -> None:
    pipe, works = build_pipeline(PRESETS["1k"], "meta", torch.bfloat16, layers=1), []
    for patches in (1, 2):
        with torch.device("meta"):
            pipe.generator_transformer = CausalWanTransformer(
                patch_size=(2, 2, 2), num_layers=1, frames_per_chunk=patches, window_frames=12
            )
        assert pipe.generator_transformer.chunk_frames == 2 * patches
        pipe.execution_plan = ExecutionPlan(cache_text=True)
        works.append(group_operations(pipe, 960, 1664, generator_passes=1)["generator"])
    assert works[1] == 2 * works[0]


# ---- memory


def test_live_bytes_follow_storages() -> None:
    with LiveBytes() as live:
        first = torch.empty(1000, device="meta")
        view = first[10:]
        second = first + 1
        assert live.now == 8000
        del first
        assert live.now == 8000  # the view keeps it
        del view, second
        third = torch.empty(500, device="meta")
        third.add_(1)
    assert live.peak == 8000 and live.now == 2000


def test_a_memory_plan_adds_up() -> None:
    pipe = tiny.make_tiny_pipeline(text=False)
    pipe.transformer = tiny.make_tiny_transformer(block_size=(2, 2, 4), attention_head_dim=16)
    plan = plan_memory(pipe.to("meta"), 32, 48)
    parameters = sum(4 * parameter.numel() for parameter in pipe.transformer.parameters())
    assert plan["weights"]["transformer"] == parameters
    # two layers: keys and values of the window's 3 temporal blocks of 2 x 2 blocks of 16 tokens, and the means of keys
    cache = 2 * (3 * 2 * 2) * (2 * 16 + 1) * 2 * 16 * 4
    assert cache <= plan["state"]["transformer"] < cache + 500
    # buffers written in place are not counted again, and what a layer takes serves the next one
    pipe.transformer = tiny.make_tiny_transformer(block_size=(2, 2, 4), attention_head_dim=16, num_layers=9)
    deeper = plan_memory(pipe.to("meta"), 32, 48)["working"]["transformer"]
    assert deeper == pytest.approx(plan["working"]["transformer"], abs=500)  # a few counters more
    working = plan["working"].values()
    base = sum(sum(plan[kind].values()) for kind in ("weights", "state"))
    assert peak_bytes(plan) == base + max(working)
    beside = plan["working"]["autoencoder"] + max(
        value for name, value in plan["working"].items() if name != "autoencoder"
    )
    assert peak_bytes(plan, overlapped=True) == base + beside


def test_dense_attention_counts_as_a_fused_kernel() -> None:
    """A matrix of scores would be larger than all that there is."""
    query = torch.empty(1, 2, 1000, 8, device="meta")
    with FusedAttention(), LiveBytes() as live:
        output = torch.nn.functional.scaled_dot_product_attention(query, query, query)
    assert output.shape == query.shape and live.peak == query.nbytes


# ---- speed


def test_a_stream_is_measured_after_its_warm_up() -> None:
    pipe, starts = tiny.make_tiny_pipeline(text=False), []

    def start():
        starts.append(None)
        return pipe.stream(prompt_embeds=PROMPT, num_frames=None, output_type="uint8")

    result = measure(start, torch.device("cpu"), chunks=3, warm_up=2)
    assert len(starts) == 2 and result.chunks == 3 and result.frames_per_chunk == 16
    assert result.fps_slowest_chunk <= result.fps <= result.fps_fastest_chunk and result.first_frames_seconds > 0
    assert set(result.stage_ms_per_frame) == {
        "generator_steps",
        "context_pass",
        "upsampler",
        "transformer",
        "decoder",
        "output",
    }
    assert sum(result.stage_ms_per_frame.values()) < 1.2 * 1000 / result.fps_slowest_chunk
    split = split_sparse_transformer(pipe, 32, 48)
    assert set(split) == {"selection", "attention"} and split["selection"] > 0


class Ahead:
    """A stream that makes its next chunk in a thread, as on a GPU: to wait for all work waits for that one, too."""

    def __init__(self) -> None:
        self.making = ThreadPoolExecutor(1)
        self.next = self.making.submit(time.sleep, 0.01)

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *exception: object) -> None:
        self.making.shutdown()

    def __next__(self) -> StreamChunk:
        self.next.result()
        self.next = self.making.submit(time.sleep, 0.1)
        return StreamChunk(np.zeros((1, 4, 2, 2, 3), np.uint8), (0, 4), {"decoder": 0.1}, {})


def test_measuring_waits_for_nothing_but_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a stand-in for a GPU: no synchronisation, the true time to the first frames, the peak after the warm-up."""
    calls: list[str] = []

    def peak(device: torch.device) -> int:
        calls.append("peak")
        return 2**30

    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: calls.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda *_: calls.append(f"reset after {len(started)}"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", peak)
    started: list[Ahead] = []

    def start() -> Ahead:
        started.append(Ahead())
        return started[-1]

    result = measure(start, torch.device("cuda"), chunks=2, warm_up=1)
    assert calls == ["reset after 1", "peak"]
    assert result.first_frames_seconds < 0.09 < 4 / result.fps
    assert result.peak_memory_gib == 1 and result.stage_ms_per_frame == {"decoder": 25.0}


def test_random_weights_leave_norms_as_they_are() -> None:
    pipe = build_pipeline(Preset("tiny", 64, 64, 2), "cpu", torch.float32, layers=1)
    for network in (pipe.generator_transformer, pipe.transformer):
        block = network.blocks[0]
        for norm in (block.attn1.norm_q, block.attn1.norm_k, block.attn2.norm_k, block.norm2):
            assert torch.equal(norm.weight, torch.ones_like(norm.weight))
        assert block.attn1.to_q.weight.std() == pytest.approx(1536**-0.5, rel=0.01)


def test_uint8_frames_are_the_pictures() -> None:
    pipe = tiny.make_tiny_pipeline(text=False)
    outputs = []
    for kind in ("uint8", "np"):
        generator = torch.Generator().manual_seed(0)
        outputs.append(pipe(prompt_embeds=PROMPT, num_frames=9, generator=generator, output_type=kind).frames)
    levels, shares = outputs
    assert levels.dtype == "uint8" and levels.shape == shares.shape == (1, 9, 32, 48, 3)
    assert abs(levels / 255 - shares).max() <= 0.5 / 255 + 1e-6


@pytest.mark.slow
def test_the_command_runs_a_small_preset(tmp_path, capsys) -> None:
    words = ["benchmark", "--preset", "480p", "--height", "64", "--width", "64", "--layers", "1"]
    files = [tmp_path / "result.json", tmp_path / "plot.svg"]
    words += ["--device", "cpu", "--chunks", "1", "--warmup", "1", "--generator-steps", "1", "--kv-cache-blocks", "1"]
    words += ["--generator-device", "cpu", "--in-turns"]
    assert main([*words, "--output", str(files[0]), "--plot", str(files[1])]) == 0
    printed, result = capsys.readouterr().out, json.loads(files[0].read_text())
    assert "Not the text encoder" in printed and "of the floor" in printed
    assert result["frames_per_chunk"] == 24 and result["weights"] == "random weights"
    assert 0 < result["share_of_floor"] < 2 and result["tflops"] > 0
    assert result["fps"] / result["floor_fps"] == pytest.approx(result["share_of_floor"])
    ElementTree.parse(files[1])
    for wrong, message in (
        (["--fp8"], "need --optimize"),
        (["--cuda-graphs"], "need --optimize"),
        (["--optimize", "--cuda-graphs"], "`cuda_graphs` is True, but the transformer is on cpu"),
        (["--checkpoint", "x"], "--preset and --checkpoint"),
        (["--height", "33"], "multiples of the scale"),
    ):
        assert main([*words, *wrong]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("network", [["--preset", "480p", "--layers", "2"], []], ids=["preset", "packaged"])
def test_on_the_meta_device_the_command_plans(network, tmp_path, capsys) -> None:
    words = ["benchmark", *network, "--device", "meta", "--height", "128", "--width", "256"]
    assert main([*words, "--output", str(tmp_path / "plan.json")]) == 0
    printed, result = capsys.readouterr().out, json.loads((tmp_path / "plan.json").read_text())
    peak = result["planned_peak_gb"]
    assert f"{peak['in turns']:.3f} with one stage after the other, {peak['overlapped']:.3f} overlapped" in printed
    assert sum(result["planned_gb"]["weights"].values()) < peak["in turns"] < peak["overlapped"]
    ceiling, operations = result["ceiling_fps"], sum(result["tflop_per_frame"].values())
    assert ceiling == pytest.approx(790 / operations) and f"at most {ceiling:.1f} FPS" in printed
    assert main([*words, "--kv-cache-blocks", "9", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["planned_peak_gb"]["in turns"] > peak["in turns"]


PASSES = {"self-forcing": 10, "longlive": 10, "frame-wise": 30, "two-step": 18, "one-step": 12}


@pytest.mark.parametrize(("name", "passes"), PASSES.items())
def test_generators_need_so_many_passes_a_group(name: str, passes: int) -> None:
    """Steps and context, for each chunk of a group of six latent frames."""
    pipe = build_pipeline(PRESETS["1k"], "meta", torch.bfloat16, layers=1, generator=GENERATORS[name])
    assert generator_passes(pipe) == passes
    assert generator_passes(pipe, steps=1) == 2 * passes / (len(GENERATORS[name].denoising_steps) + 1)
    frame = count_frame(pipe, 960, 1664)
    group = group_operations(pipe, 960, 1664, passes)
    assert frame["generator"] == group["generator"] / 24 and "generator" not in count_frame(pipe, 960, 1664, steps=0)


def test_the_linearity_benchmark_runs(tmp_path) -> None:
    words = ["--height", "64", "--width", "64", "--shares", "1", "2", "--cycles", "1", "--warmup", "1"]
    linearity.main([*words, "--stream-cycles", "5", "--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a")])
    report = json.loads((tmp_path / "a.json").read_text())
    assert [(row["height"], row["width"]) for row in report["by_pixels"]] == [(64, 64), (128, 128)]
    assert len(report["by_length_seconds"]) == 4 and report["last_quarter_of_first"] > 0
    assert {path.name for path in tmp_path.glob("*.svg")} == {"a_pixels.svg", "a_length.svg"}


def test_linearity_times_as_many_chunks_as_the_generator_needs_to_come_round() -> None:
    pipe = UltraFlashStreamingPipeline.from_pretrained(default_checkpoint())
    assert pipe.config.group_frames == 2 and pipe.generator_transformer.chunk_frames == 1
    assert linearity.chunks_per_cycle(pipe) == 1
    pipe.generator_transformer.register_to_config(frames_per_chunk=3)
    assert linearity.chunks_per_cycle(pipe) == 3
    pipe.register_to_config(group_frames=6)
    assert linearity.chunks_per_cycle(pipe) == 1
    pipe.generator_transformer = None
    assert linearity.chunks_per_cycle(pipe) == 1


# ---- plots


def words(drawing: str) -> set[str]:
    return {
        "".join(each.itertext()) for each in ElementTree.fromstring(drawing).iter("{http://www.w3.org/2000/svg}text")
    }


def test_plots_are_drawings_of_the_numbers() -> None:
    bars = words(plot.bar_chart("a & b", {"one": 1.0, "two": 2.0}, "ms"))
    assert {"a & b", "one", "two", "1.00 ms", "2.00 ms"} <= bars
    lines = plot.line_chart("t", {"measured": [(0, 0), (1, 2), (2, 4)]}, "megapixels", "ms")
    assert {"t", "measured", "megapixels", "ms"} <= words(lines)
    assert lines == plot.line_chart("t", {"measured": [(0, 0), (1, 2), (2, 4)]}, "megapixels", "ms")
    with pytest.raises(ValueError, match="`values` is empty"):
        plot.bar_chart("t", {}, "ms")
    with pytest.raises(ValueError, match="`lines` is empty"):
        plot.line_chart("t", {}, "x", "y")
