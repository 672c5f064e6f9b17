# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Streams whose networks are compiled while other threads compute."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from helpers import tiny
from helpers.source_pipelines import helios_pipeline, live_call, quiet

from ultraflash_diffusers import UltraFlashStreamingPipeline
from ultraflash_diffusers.pipelines.execution import compilation
from ultraflash_diffusers.pipelines.execution.compilation import GuardedCalls, is_compiled

# tracing replaces the missing device's guard by one that dies with the thread it was made in
pytestmark = pytest.mark.skipif(
    torch.version.cuda is not None and not torch.cuda.is_available(),
    reason="PyTorch 2.11 for CUDA, without a device, crashes when a second thread compiles",
)
PROMPT = torch.randn(1, tiny.TEXT_LENGTH, tiny.TEXT_DIM, generator=torch.Generator().manual_seed(9))


class SlowModule(torch.nn.Module):
    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        time.sleep(0.15)
        return tensor + 1


def slow_backend(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    """Traces for long, as Inductor does: any compiled network that another thread calls meanwhile fails."""
    assert compilation._GATE._taken  # also where nobody happens to call
    torch.fx.symbolic_trace(SlowModule())
    return graph.forward


def frames_of(pipe: UltraFlashStreamingPipeline, **arguments: Any) -> torch.Tensor:
    arguments = {"prompt_embeds": PROMPT, "num_frames": 41, **arguments}
    return pipe(output_type="pt", generator=torch.Generator().manual_seed(0), **arguments).frames


def assert_compiled(pipe: UltraFlashStreamingPipeline) -> None:
    """That no network gave up, whether by a backend's assertion or by a limit."""
    networks = (pipe.generator_transformer, pipe.transformer, pipe.latent_upsampler, pipe.autoencoder)
    assert all(map(is_compiled, networks))


@pytest.fixture(autouse=True)
def overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker thread that GPUs get, on a CPU."""
    torch.compiler.reset()
    monkeypatch.setattr(UltraFlashStreamingPipeline, "can_overlap_decoding", True)


@pytest.mark.slow
@pytest.mark.parametrize(("window", "sink"), [(15, 3), (None, 0)])
def test_nobody_computes_while_a_network_is_compiled(window: int | None, sink: int) -> None:
    generator = tiny.make_tiny_generator(window_frames=window, sink_frames=sink)
    pipe = tiny.make_tiny_pipeline(text=False, generator_transformer=generator)
    plain = frames_of(pipe, num_frames=101)
    pipe.optimize(compile_backend=slow_backend)
    assert torch.allclose(frames_of(pipe, num_frames=101), plain, atol=1e-5)
    assert_compiled(pipe)


@pytest.mark.slow
def test_given_first_frames_need_not_fill_chunks() -> None:
    """Chunks of 3, 3 and 1 frames, and generated ones."""
    generator = tiny.make_tiny_generator(window_frames=15, sink_frames=3)
    pipe = tiny.make_tiny_pipeline(text=False, generator_transformer=generator)
    latents = torch.randn(1, tiny.LATENT_CHANNELS, 7, 4, 6, generator=torch.Generator().manual_seed(0))
    arguments = {"source_kwargs": {"first_latents": latents}, "num_frames": 61}
    plain = frames_of(pipe, **arguments)
    pipe.optimize(compile_backend=slow_backend)
    assert torch.allclose(frames_of(pipe, **arguments), plain, atol=1e-5)
    assert_compiled(pipe)


@pytest.mark.slow
def test_a_compiled_source_stands_still_meanwhile() -> None:
    """Its worker goes on with the next chunk while the networks for the one before are compiled."""
    base = quiet(helios_pipeline())
    pipe = tiny.make_tiny_pipeline(text=False)

    def upscaled() -> torch.Tensor:
        call = live_call(base) | {"generator": torch.Generator().manual_seed(0)}
        return frames_of(pipe, source=base, source_kwargs=call, num_frames=66)

    plain = upscaled()
    base.transformer.compile(backend="eager")
    pipe.optimize(compile_backend=slow_backend)
    assert torch.allclose(upscaled(), plain, atol=1e-5)
    assert_compiled(pipe)


@pytest.mark.slow
def test_any_number_of_sizes() -> None:
    """In threads that did not call `optimize`: in newer PyTorch each has limits of its own."""
    pipe, plain = tiny.make_tiny_pipeline(text=False), tiny.make_tiny_pipeline(text=False)
    pipe.optimize(compile_backend="eager")
    with torch._dynamo.config.patch(recompile_limit=8, accumulated_recompile_limit=256):
        for height in (32, 40, 48):
            results = [frames_of(each, height=height, width=48) for each in (plain, pipe)]
            assert torch.allclose(*results, atol=1e-5)
    assert_compiled(pipe)


def test_calls_are_alone_until_they_compile_nothing() -> None:
    compiled = torch.compile(torch.sin, backend="eager", dynamic=False)
    calls, others = GuardedCalls(), GuardedCalls()
    log: list[str] = []

    def other() -> None:
        with others():
            log.append("other")

    def call(number: int) -> bool:
        """Whether another thread's call could begin during one with a tensor of `number` elements."""
        with calls("kind"):
            compiled(torch.ones(number))
            thread = threading.Thread(target=other)
            thread.start()
            thread.join(0.2)
            beside = not thread.is_alive()
        thread.join()
        return beside

    other()  # settles that one
    assert [call(number) for number in (2, 2, 2, 3, 2, 2)] == [False, False, True, True, False, True]
    assert len(log) == 7
