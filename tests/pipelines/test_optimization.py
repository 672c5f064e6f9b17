# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The hot path: what a running stream asks of the host, what it allocates and compiles; and `pipe.optimize`."""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from helpers import tiny
from torch.utils._python_dispatch import TorchDispatchMode

from ultraflash_diffusers.models.attention import backends
from ultraflash_diffusers.models.attention.backends.triton_kernel import AVAILABLE
from ultraflash_diffusers.pipelines.cache_management import DynamicCacheManagement
from ultraflash_diffusers.pipelines.execution import optimization
from ultraflash_diffusers.pipelines.execution import race as race_module
from ultraflash_diffusers.pipelines.execution.accuracy import Recording, compare, record
from ultraflash_diffusers.pipelines.execution.cuda_graphs import copy_into, tensors_of
from ultraflash_diffusers.pipelines.execution.fp8 import fp8_linears, quantize_linears, race_fp8
from ultraflash_diffusers.pipelines.execution.optimization import plain_kernels
from ultraflash_diffusers.pipelines.execution.race import (
    Race,
    has_room,
    race,
    race_attention,
    race_sparse_attention,
)
from ultraflash_diffusers.pipelines.memory_plan import LiveBytes
from ultraflash_diffusers.pipelines.stages import FrameState

# what makes the host wait for a GPU: to read a number, to find out a data-dependent shape
SYNCHRONISING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal"}
PROMPT = torch.randn(1, tiny.TEXT_LENGTH, tiny.TEXT_DIM, generator=torch.Generator().manual_seed(9))


class HostSynchronisations(TorchDispatchMode):
    """Counts what would make the host wait for a device, by default for `meta`, which stands for a GPU."""

    def __init__(self, device: str = "meta") -> None:
        super().__init__()
        self.device = device
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.name().split(".")[0], kwargs or {}
        if args and isinstance(args[0], torch.Tensor) and args[0].device.type == self.device:
            to_host = name == "aten::_to_copy" and str(kwargs.get("device")) == "cpu"
            if name in SYNCHRONISING or to_host:
                self.counts[name] += 1
        return func(*args, **kwargs)


def make_stream(pipe: Any, **arguments: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    return pipe.stream(prompt_embeds=PROMPT, num_frames=None, generator=generator, **arguments)


def make_group(stream: Any) -> tuple[Any, torch.Tensor]:
    """The next group of a stream and its frames, from the source to the decoder."""
    refined = stream._maker(stream._current, stream._turns)
    before = FrameState(stream._current.now.decoder, stream._current.now.detail)
    frames, after = stream._decode(refined.segment, before, stream.size, refined.timings)
    stream._current.replace(decoder=after.decoder, detail=after.detail)
    return refined, frames


def text_pipeline(**components: Any) -> Any:
    return tiny.make_tiny_pipeline(text=False, **components)


def gpu_sized_pipeline() -> Any:
    """With blocks and heads that the Triton kernel takes, and layers that FP8 products take."""
    return text_pipeline(
        transformer=tiny.make_tiny_transformer(block_size=(2, 2, 4), attention_head_dim=16),
        generator_transformer=tiny.make_tiny_generator(attention_head_dim=16),
    )


# host synchronisations


def test_a_running_stream_never_waits_for_the_device() -> None:
    """On the meta device, which has no values, so that to ask for one fails: text to decoded frames."""
    pipe = text_pipeline().to("meta")
    pipe.transformer.set_sparse_backend("sdpa")  # gathering is for CPUs: it asks how much is kept
    stream = make_stream(pipe, output_type="pt")
    with torch.no_grad(), HostSynchronisations() as host:
        for _ in range(4):
            make_group(stream)
    assert not host.counts


def test_the_counter_sees_what_it_is_to_count() -> None:
    with HostSynchronisations("cpu") as host:
        bool(torch.ones(()) > 0)
        torch.ones(3).nonzero()
    assert host.counts == {"aten::_local_scalar_dense": 1, "aten::nonzero": 1}
    with pytest.raises(RuntimeError):
        bool(torch.ones((), device="meta"))


# allocations


def buffers(stream: Any) -> list[int]:
    """Where the large tensors of a stream's transformers lie."""
    generator = stream._source.state().network.cache
    tensors = [*generator.keys, *generator.values]
    for cache in stream._current.now.sr[0].cache:
        tensors += [cache.keys, cache.values, cache.pooled_keys]
    return [tensor.data_ptr() for tensor in tensors]


def test_key_value_buffers_stay_where_they_are() -> None:
    with make_stream(text_pipeline(), output_type="pt") as stream:
        next(stream)
        before = buffers(stream)
        for _ in range(4):
            next(stream)
            assert buffers(stream) == before


def test_the_state_of_a_stream_does_not_grow() -> None:
    def size(state: Any) -> int:
        total = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += tensor.numel() * tensor.element_size()
            return tensor

        state.map_tensors(count)
        return total

    with make_stream(text_pipeline(), output_type="pt", frames_per_chunk=6) as stream:
        # twelve latent frames: what waits between generator chunks and groups is the same again
        sizes = [size(next(stream).state()) for _ in range(8)]
    assert sizes[4:6] == sizes[6:8]


@pytest.mark.slow
def test_a_running_stream_takes_the_same_memory_group_after_group() -> None:
    """Twelve latent frames are four generator chunks and three groups: then all is as it was, to the byte."""
    pipe = text_pipeline().to("meta")
    pipe.transformer.set_sparse_backend("sdpa")
    stream = make_stream(pipe, output_type="uint8")
    usage = []
    with torch.no_grad(), LiveBytes() as live:
        for _ in range(12):
            live.peak = live.now
            refined, frames = make_group(stream)
            del refined, frames
            usage.append((live.now, live.peak))
    assert usage[3:6] == usage[6:9] == usage[9:12]
    assert len({now for now, _ in usage[3:6]}) > 1  # what waits for the next group is seen


# compilation


@contextlib.contextmanager
def no_recompile() -> Iterator[None]:
    with torch.compiler.set_stance("fail_on_recompile"):
        yield


@pytest.mark.slow
def test_an_optimized_stream_compiles_nothing_once_it_runs() -> None:
    """Every network as whole graphs (a graph break is an error), the generator's window full after three chunks."""
    torch.compiler.reset()
    pipe = text_pipeline()
    plain = record(pipe, prompt_embeds=PROMPT, num_frames=61)
    report = pipe.optimize(compile_backend="eager", channels_last=False)
    assert report.applied("compile") == ["generator_transformer", "transformer", "latent_upsampler", "autoencoder"]
    torch._dynamo.utils.counters.clear()
    with make_stream(pipe, output_type="pt") as stream:
        frames = [next(stream).frames for _ in range(3)]
        with no_recompile():
            frames += [next(stream).frames for _ in range(2)]
    assert torch._dynamo.utils.counters["graph_break"] == {}
    produced = torch.cat(frames, dim=1)
    optimized = Recording(plain.latents, produced[:, :61])
    assert produced.shape[1] >= 61 and compare(plain, optimized).frame_psnr > 100


# devices


def test_decoding_overlaps_on_another_device_unless_told_not_to() -> None:
    pipe = text_pipeline()
    assert not pipe.can_overlap_decoding
    pipe.autoencoder.to("meta")
    assert pipe.can_overlap_decoding
    pipe.overlap_decoding = False
    assert not pipe.can_overlap_decoding


def test_the_generator_may_have_a_device_of_its_own() -> None:
    """Here a CPU before the meta device: what it makes goes over by itself, what is carried stays where it is."""
    pipe = text_pipeline().to("meta")
    pipe.generator_transformer = text_pipeline().generator_transformer
    pipe.transformer.set_sparse_backend("sdpa")
    stream = make_stream(pipe, output_type="uint8")
    with torch.no_grad():
        for _ in range(2):
            refined, frames = make_group(stream)
    assert frames.device.type == refined.segment.latents.device.type == "meta"
    assert stream._source.state().network.cache.keys[0].device.type == "cpu"
    assert stream._current.now.sr[0].cache[0].keys.device.type == "meta"


# optimize


def test_each_optimisation_is_its_own_and_leaves_the_result() -> None:
    pipe = text_pipeline()
    plain = record(pipe, prompt_embeds=PROMPT, num_frames=21)
    report = pipe.optimize(compile=False, channels_last=False)
    assert report.applied("cache_text") == ["generator_transformer", "transformer"]
    assert not report.applied("channels_last") and not report.applied("compile")
    cached = compare(plain, record(pipe, prompt_embeds=PROMPT, num_frames=21))
    assert cached.latent_error < 1e-5 and cached.frame_psnr > 100
    report = pipe.optimize(compile=False, cache_text=False)
    assert report.applied("channels_last") == ["latent_upsampler", "autoencoder"]
    assert not pipe.execution_plan.cache_text
    changed = compare(plain, record(pipe, prompt_embeds=PROMPT, num_frames=21))
    assert changed.latent_error < 1e-5 and changed.frame_psnr > 100
    assert "channels_last" in str(report)


def test_a_cached_prompt_changes_with_the_prompt() -> None:
    pipe, other = text_pipeline(), -PROMPT
    videos = []
    for cache_text in (False, True):
        pipe.optimize(compile=False, channels_last=False, cache_text=cache_text)
        with make_stream(pipe, output_type="pt") as stream:
            frames = [next(stream).frames]
            stream.set_prompt(prompt_embeds=other)
            videos.append(torch.cat([*frames, *(next(stream).frames for _ in range(2))], dim=1))
    assert torch.allclose(videos[0], videos[1], atol=1e-5)
    with make_stream(pipe, output_type="pt") as stream:
        unchanged = torch.cat([next(stream).frames for _ in range(3)], dim=1)
    assert not torch.allclose(videos[1], unchanged, atol=1e-3)


def test_encoded_text_is_checked() -> None:
    network = tiny.make_tiny_transformer()
    text = network.encode_text(PROMPT)
    latents = torch.randn(2, 2 * tiny.LATENT_CHANNELS, 2, 4, 4)
    with pytest.raises(ValueError, match=r"encoded for \(layers, batch.*\(2, 1, 6, 2, 12\).*need \(2, 2, 6, 2, 12\)"):
        network(latents, torch.full((2,), 1000.0), text)
    pair = network(latents, torch.full((2,), 1000.0), text.expand(2)).sample
    plain = network(latents, torch.full((2,), 1000.0), PROMPT.expand(2, -1, -1)).sample
    assert torch.allclose(pair, plain, atol=1e-6)
    with pytest.raises(ValueError, match=r"`encoder_hidden_states` must have shape \[1, up to 6, 8\]"):
        network.encode_text(PROMPT[..., :4])


@pytest.mark.slow
@torch.no_grad()
def test_an_optimized_pipeline_takes_any_number_of_sizes() -> None:
    torch.compiler.reset()
    pipe, plain = text_pipeline(), text_pipeline()
    pipe.optimize(compile_backend="eager")
    for height in (32, 40, 48):
        arguments = {"prompt_embeds": PROMPT, "height": height, "width": 48, "num_frames": 45, "output_type": "pt"}
        results = [each(generator=torch.Generator().manual_seed(0), **arguments).frames for each in (plain, pipe)]
        assert torch.allclose(*results, atol=1e-5)


def test_the_fastest_sparse_backend_is_measured() -> None:
    pipe = text_pipeline()
    times = race_sparse_attention(pipe.transformer, (4, 16, 24), 3, repeats=2).seconds
    assert set(times) == {"sdpa", "gather"} and min(times.values()) > 0
    report = pipe.optimize(compile=False, sparse_backend="fastest", size=(32, 48))
    assert report.applied("sparse_backend") == ["transformer"] and "gather" in str(report)


def test_the_fastest_attention_backend_is_measured() -> None:
    pipe = text_pipeline()
    times = race_attention(pipe.generator_transformer, 12, 48, repeats=2).seconds
    assert set(times) >= {"native", "_native_flash"} and min(times.values()) > 0
    assert torch.cuda.is_available() or "_native_cudnn" not in times
    report = pipe.optimize(compile=False, attention_backend="fastest", size=(32, 48))
    assert report.applied("attention_backend") == ["generator_transformer"]
    assert "native" in str(report) and "its self-attention is sparse" in str(report)
    dense = text_pipeline(transformer=tiny.make_tiny_transformer(use_sparse_attention=False))
    report = dense.optimize(compile=False, attention_backend="_native_math", size=(32, 48))
    assert report.applied("attention_backend") == ["generator_transformer", "transformer"]


def test_a_race_leaves_out_what_is_wrong_or_fails_and_ends_in_time() -> None:
    """Also what no `RuntimeError` is, as Triton's errors: nothing of it reaches the caller."""
    right, device = torch.ones(3), torch.device("cpu")

    class CompilationError(Exception):
        pass

    def fail() -> torch.Tensor:
        raise CompilationError("at 3:4: no such instruction\nand much more")

    def rest() -> torch.Tensor:
        time.sleep(0.02)
        return right

    def error_of(output: torch.Tensor) -> float:
        return float((output - right).norm())

    entrants = {"failing": fail, "wrong": lambda: 2 * right, "slow": rest, "fast": lambda: right.clone()}
    result = race(entrants, error_of, 1e-3, device, repeats=2)
    assert result.winner == "fast" and set(result.seconds) == {"slow", "fast"} and result.seconds["slow"] > 0.02
    assert result.left_out["failing"] == "CompilationError: at 3:4: no such instruction"
    assert result.left_out["wrong"] == "its relative error is 1.7e+00" and "not failing (Comp" in str(result)
    late = race(entrants | {"late": rest}, error_of, 1e-3, device, repeats=2, seconds=0.01)
    assert late.left_out["late"] == late.left_out["fast"] == "no time left of 0.01 s"
    assert Race().winner is None


def test_a_race_needs_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    assert has_room(torch.device("cpu"), 10**15)
    assert has_room(torch.device("cuda"), 333) and not has_room(torch.device("cuda"), 334)


def test_a_race_at_full_size_computes_the_reference_once_for_one_head() -> None:
    """It would take seconds a call; on a GPU neither it nor gathering, which waits for the device, are raced."""
    network, calls = gpu_sized_pipeline().transformer, []
    attend = backends.attend_masked

    def counted(query: torch.Tensor, *arguments: Any) -> torch.Tensor:
        calls.append(query.shape[1])
        return attend(query, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backends, "attend_masked", counted)
        patch.setattr(race_module, "sparse_candidates", lambda *_: ["gather"])
        result = race_sparse_attention(network, (4, 16, 24), 3, repeats=2)
    assert calls == [1] and set(result.seconds) == {"gather"}
    assert race_module.sparse_candidates(torch.device("cuda"), network)[0] == "flex"
    assert not {"sdpa", "gather"} & set(race_module.sparse_candidates(torch.device("cuda"), network))


def test_other_devices_take_plain_kernels_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plain_kernels(torch.device("cpu")) is None and plain_kernels(torch.device("cuda")) is None
    assert plain_kernels(torch.device("mps")) == "mps runs PyTorch's plain kernels: nothing else was tried there"
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert "AMD GPUs run PyTorch's plain kernels" in str(plain_kernels(torch.device("cuda")))


def test_optimize_alone_says_what_it_chose_and_what_that_costs() -> None:
    report = text_pipeline().optimize(compile_backend="eager")
    lines = str(report).splitlines()
    assert len(lines) == len(report.steps) == 10
    chosen = {(step.name, step.network): step for step in report.steps}
    assert "gathered, measured" in chosen["sparse_backend", "transformer"].detail
    assert "PyTorch's choice" in chosen["attention_backend", "generator_transformer"].detail
    assert chosen["cache_text", "transformer"].accuracy == "exact"
    assert all(step.applied and (step.accuracy in line) for step, line in zip(report.steps, lines, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
def test_an_attention_backend_makes_the_same_and_reaches_this_pipeline_alone(compiled: bool) -> None:
    """One that takes no masks, which compiled streams need until the window is full."""
    pipe = text_pipeline()
    arguments = {"prompt_embeds": PROMPT, "num_frames": 45, "output_type": "pt"}
    plain = pipe(generator=torch.Generator().manual_seed(0), **arguments).frames
    active = _AttentionBackendRegistry.get_active_backend()[0]
    pipe.optimize(attention_backend="_native_flash", compile=compiled, compile_backend="aot_eager")
    assert _AttentionBackendRegistry.get_active_backend()[0] == active
    chosen = {block.attn1.processor._attention_backend for block in pipe.generator_transformer.blocks}
    assert chosen == {AttentionBackendName._NATIVE_FLASH}
    result = pipe(generator=torch.Generator().manual_seed(0), **arguments).frames
    assert torch.allclose(result, plain, atol=1e-5)


def test_what_cannot_be_done_is_refused_or_told() -> None:
    pipe = text_pipeline()
    with pytest.raises(ValueError, match="`size` is None, but `attention_backend='fastest'`"):
        pipe.optimize(attention_backend="fastest")
    with pytest.raises(ValueError, match="backend='cuda'"):
        pipe.optimize(attention_backend="cuda", compile=False)
    with pytest.raises(ValueError, match="`size` is None"):
        pipe.optimize(sparse_backend="fastest")
    with pytest.raises(ValueError, match="`backend` must be one of"):
        pipe.optimize(sparse_backend="cuda", compile=False)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="`fp8` is True, but (torchao is not installed|cpu has no FP8)"):
            pipe.optimize(fp8=True)
    with pytest.raises(ValueError, match="`cuda_graphs` is True, but the transformer is on cpu"):
        pipe.optimize(cuda_graphs=True)
    pipe.transformer.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
    report = pipe.optimize(compile_backend="eager")
    assert report.applied("compile") == ["generator_transformer", "latent_upsampler", "autoencoder"]
    assert "offloaded" in str(report)


@pytest.fixture
def fp8_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets torchao quantise on a CPU, with the product that PyTorch has for GPUs alone written out."""
    quant_api = pytest.importorskip("torchao.quantization.quant_api")

    def scaled_mm(
        a: torch.Tensor,
        b: torch.Tensor,
        *,
        scale_a: torch.Tensor,
        scale_b: torch.Tensor,
        bias: torch.Tensor | None = None,
        out_dtype: torch.dtype,
        **_: Any,
    ) -> torch.Tensor:
        assert a.dtype == b.dtype == torch.float8_e4m3fn
        product = (a.float() * scale_a) @ (b.float() * scale_b)
        return (product if bias is None else product + bias).to(out_dtype)

    monkeypatch.setattr(quant_api, "_check_hardware_support", lambda granularity: None)
    monkeypatch.setattr(torch, "_scaled_mm", scaled_mm)


def test_fp8_takes_the_blocks_linears_alone() -> None:
    network = gpu_sized_pipeline().to(torch.bfloat16).transformer
    taken = {id(module) for module in fp8_linears(network.blocks)}
    linears = {name: module for name, module in network.named_modules() if isinstance(module, torch.nn.Linear)}
    left = {name for name, module in linears.items() if id(module) not in taken}
    assert len(taken) == 2 * 10  # a layer: four of self-attention, four of cross-attention, two of the feed-forward
    assert left == {
        "condition_embedder.time_embedder.linear_1",
        "condition_embedder.time_embedder.linear_2",
        "condition_embedder.time_proj",
        "condition_embedder.text_embedder.linear_1",
        "condition_embedder.text_embedder.linear_2",
        "proj_out",
    }
    assert not fp8_linears(tiny.make_tiny_transformer().blocks), "its sizes are no multiples of 16"


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
def test_a_pipeline_in_fp8_is_near_the_plain_one(compiled: bool, fp8_on_a_cpu: None) -> None:
    torch.compiler.reset()
    pipe = gpu_sized_pipeline().to(torch.bfloat16)
    arguments: dict[str, Any] = {"prompt_embeds": PROMPT.bfloat16(), "num_frames": 25}
    plain = record(pipe, **arguments)
    assert (
        quantize_linears(pipe.generator_transformer.blocks) == 10 and quantize_linears(pipe.transformer.blocks) == 20
    )
    pipe.optimize(compile=compiled, compile_backend="eager")
    accuracy = compare(plain, record(pipe, **arguments))
    assert 0 < accuracy.latent_error < 0.1 and accuracy.frame_psnr > 25


def test_fp8_is_taken_where_it_wins_a_race(fp8_on_a_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, where the product is written out, it loses; were bfloat16 slower, FP8 would be taken."""
    torch.compiler.reset()
    pipe = gpu_sized_pipeline().to(torch.bfloat16)
    result = race_fp8(pipe.transformer, 64, compile_backend=None, repeats=2)
    assert set(result.seconds) == {"bfloat16", "fp8"} and result.winner == "bfloat16"
    monkeypatch.setattr(optimization, "check_fp8", lambda network: None)
    settings = {"compile": False, "fp8": "fastest"}
    report = pipe.optimize(**settings)
    assert not report.applied("fp8") and "a block's layers take bfloat16" in str(report)
    assert all(type(linear.weight) is torch.nn.Parameter for linear in fp8_linears(pipe.transformer.blocks))
    monkeypatch.setattr(optimization, "race_fp8", lambda *_: Race({"bfloat16": 2.0, "fp8": 1.0}))
    report = pipe.optimize(**settings)
    assert report.applied("fp8") == ["generator_transformer", "transformer"] and "47 dB" in str(report)
    with pytest.raises(ValueError, match="`fp8` must be True, False or 'fastest', got 'maybe'"):
        pipe.optimize(fp8="maybe")


@torch.no_grad()
def test_zeros_stay_finite_in_fp8(fp8_on_a_cpu: None) -> None:
    """Neither a row of weights nor a token that is all zeros has a scale to divide by."""
    network = gpu_sized_pipeline().to(torch.bfloat16).transformer
    layer, other = network.blocks[0].attn2.to_out[0], network.blocks[0].ffn.net[2]
    layer.weight[3] = 0
    tokens = torch.randn(1, 4, other.in_features, generator=torch.Generator().manual_seed(0)).bfloat16()
    tokens[:, 2] = 0
    plain = other(tokens)
    assert quantize_linears(network.blocks) == 19
    assert type(layer.weight) is torch.nn.Parameter and type(other.weight) is not torch.nn.Parameter
    assert torch.allclose(other(tokens), plain, atol=0.1)


def test_accuracy_in_known_cases() -> None:
    plain = Recording(torch.ones(1, 4, 2, 2, 2), torch.full((1, 3, 3, 4, 4), 0.5))
    other = Recording(plain.latents * 1.01, plain.frames + 0.1)
    accuracy = compare(plain, other)
    assert accuracy.latent_error == pytest.approx(0.01, rel=1e-4)
    assert accuracy.frame_psnr == pytest.approx(20, rel=1e-4)
    assert compare(plain, plain).frame_psnr == math.inf
    with pytest.raises(ValueError, match="`optimized` has frames"):
        compare(plain, Recording(plain.latents, plain.frames[:, :2]))


@pytest.mark.gpu
@pytest.mark.parametrize("fp8", [False, True])
def test_an_optimized_pipeline_on_a_gpu(fp8: bool) -> None:
    torch.compiler.reset()
    if fp8:
        pytest.importorskip("torchao")
    pipe = gpu_sized_pipeline().to("cuda", torch.bfloat16)
    embeds = PROMPT.bfloat16()
    plain = record(pipe, prompt_embeds=embeds, num_frames=41)
    pipe.optimize(fp8=fp8)
    accuracy = compare(plain, record(pipe, prompt_embeds=embeds, num_frames=41))
    assert accuracy.latent_error < (0.2 if fp8 else 0.05) and accuracy.frame_psnr > (20 if fp8 else 30)


@torch.no_grad()
def test_a_state_that_moves_on_in_place_is_the_stream() -> None:
    """What a CUDA graph does at each replay: the same tensors before and after every group."""
    network = tiny.make_tiny_transformer()
    groups = [torch.randn(1, 2 * tiny.LATENT_CHANNELS, 4, 8, 12) for _ in range(6)]
    timestep = torch.full((1,), 1000.0)
    sizes = {"batch_size": 1, "frames": 4, "height": 8, "width": 12, "single_use": True}
    chain, fixed = network.new_stream(2, **sizes), network.new_stream(2, **sizes)
    places = [tensor.data_ptr() for tensor in tensors_of(fixed)]
    for index, group in enumerate(groups):
        if index == 4:
            chain = chain.with_kv_cache_blocks(1)
            copy_into(fixed, fixed.with_kv_cache_blocks(1))
        output = network(group, timestep, PROMPT, state=chain)
        chain = output.state
        fixed.used[0] = False  # under capture nothing is marked
        replayed = network(group, timestep, PROMPT, state=fixed)
        copy_into(fixed, replayed.state)
        assert torch.equal(replayed.sample, output.sample)
    assert [tensor.data_ptr() for tensor in tensors_of(fixed)] == places
    assert int(fixed.position) == int(fixed.cache[0].position) * 2 == 24


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_replayed_groups_are_the_plain_ones(compiled: bool) -> None:
    torch.compiler.reset()
    pipe = gpu_sized_pipeline().to("cuda")
    backend = "triton" if AVAILABLE else "sdpa"
    narrowing = DynamicCacheManagement(later_chunk_steps=None, sr_warmup_groups=3)
    arguments = {"prompt_embeds": PROMPT, "num_frames": 150, "cache_management": narrowing}
    pipe.optimize(compile=compiled, sparse_backend=backend)
    plain = record(pipe, **arguments)
    report = pipe.optimize(compile=False, sparse_backend=backend, cuda_graphs=True)
    assert report.applied("cuda_graphs") == ["transformer"]
    accuracy = compare(plain, record(pipe, **arguments))
    assert accuracy.latent_error < 1e-4 and accuracy.frame_psnr > 80
    with make_stream(pipe, output_type="pt") as stream:
        for _ in range(4):
            next(stream)
        assert len(stream._maker._calls._graphs) == 1
        state = stream.state()
        stream.set_prompt(prompt_embeds=-PROMPT)  # captured anew
        frames = [next(stream).frames for _ in range(3)]
    assert int(state.sr[0].position) > 0 and all(torch.isfinite(each).all() for each in frames)


@pytest.mark.gpu
def test_the_generator_and_the_rest_on_two_gpus() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    pipe = text_pipeline().to("cuda:0")
    one = record(pipe, prompt_embeds=PROMPT, num_frames=61)
    pipe.generator_transformer.to("cuda:1")
    two = record(pipe, prompt_embeds=PROMPT, num_frames=61)
    accuracy = compare(one, two)
    assert accuracy.latent_error < 1e-3 and accuracy.frame_psnr > 60
    with make_stream(pipe, output_type="pt") as stream:
        next(stream)
        assert stream.state().source.network.position.device == torch.device("cuda:1")


@pytest.mark.gpu
def test_a_stream_on_a_gpu_waits_only_when_frames_are_handed_over() -> None:
    """CUDA itself reports every synchronisation in the worker's chain; there are none after the warm-up."""
    pipe = gpu_sized_pipeline().to("cuda")
    pipe.transformer.set_sparse_backend("triton" if AVAILABLE else "sdpa")
    stream = make_stream(pipe, output_type="pt")
    with torch.no_grad():
        for number in range(4):
            torch.cuda.set_sync_debug_mode("error" if number > 1 else "default")
            try:
                make_group(stream)
            finally:
                torch.cuda.set_sync_debug_mode("default")
    stream.close()
