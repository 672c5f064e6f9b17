# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What is not finite ends a stream by the name of the network that made it, and never becomes a black frame."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.tiny import TEXT_DIM, make_tiny_pipeline

from ultraflash_diffusers.pipelines.execution.devices import DeferredFlag
from ultraflash_diffusers.pipelines.finite import FiniteCheck, all_finite, first_failure


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64])
@pytest.mark.parametrize("value", [0.0, 1.0, torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("position", [0, 17, 4998])
def test_one_value_among_many(value: float, position: int, dtype: torch.dtype) -> None:
    values = torch.linspace(-60000, 60000, 4999).to(dtype)
    values[position] = value if dtype.is_floating_point else 1
    finite = all_finite(values.view(1, 4999)[:, :, None])
    assert finite.ndim == 0 and finite.item() == values.isfinite().all().item()


def test_nothing_is_finite() -> None:
    assert all_finite(torch.empty(0, 3))


def spoil(network: torch.nn.Module) -> None:
    for parameter in network.parameters():
        parameter.data.fill_(torch.nan)


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "uint8"])
@pytest.mark.parametrize("name", ["latent_upsampler", "transformer", "autoencoder"])
def test_a_network_is_named_after_all_frames_before(name: str, output_type: Any) -> None:
    pipe = make_tiny_pipeline()
    frames, where = [], "or after frame 13" if name == "autoencoder" else "the group that begins at latent frame 4"
    with pipe.stream("a red ball", num_frames=40, output_type=output_type) as stream:
        frames += [next(stream)]
        spoil(getattr(pipe, name))
        with pytest.raises(ValueError, match=f"`{name}` made .* that are not finite in {where}"):
            frames += list(stream)
    assert [chunk.frame_range for chunk in frames] == [(0, 13)]


def test_whole_frames_of_a_chunk_come_before_its_error() -> None:
    """A chunk of two groups, of which the second is spoiled, is as long as the first; then the error comes."""
    pipe: Any = make_tiny_pipeline()
    whole = pipe("a red ball", num_frames=29, output_type="pt", generator=torch.Generator().manual_seed(0)).frames
    groups = []

    def spoil_second(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        groups.append(step)
        if len(groups) == 2:
            spoil(pipe.transformer)
        return {}

    arguments: dict[str, Any] = {"num_frames": 45, "output_type": "pt", "frames_per_chunk": 12}
    seed = torch.Generator().manual_seed(0)
    with pipe.stream("a red ball", callback_on_step_end=spoil_second, generator=seed, **arguments) as stream:
        chunk = next(stream)
        assert chunk.frame_range == (0, 29)
        assert torch.equal(chunk.frames, whole)
        with pytest.raises(ValueError, match="`transformer` made latents that are not finite"):
            next(stream)


def test_half_precision_that_overflows() -> None:
    pipe = make_tiny_pipeline()
    pipe.transformer.to(torch.float16)
    for parameter in pipe.transformer.parameters():
        parameter.data.mul_(3e4)
    with pytest.raises(ValueError, match="`transformer` made latents that are not finite"):
        pipe("a red ball", num_frames=5)


def test_generator_embeddings_and_callbacks() -> None:
    pipe = make_tiny_pipeline()
    with pytest.raises(ValueError, match="`prompt_embeds` holds values that are not finite"):
        pipe(prompt_embeds=torch.full((1, 2, TEXT_DIM), torch.inf), num_frames=5)
    with pytest.raises(ValueError, match="`callback_on_step_end` returned `latents` with values that are not finite"):
        pipe("a", num_frames=5, callback_on_step_end=lambda *given: {"latents": given[3]["latents"] * torch.nan})
    spoil(pipe.generator_transformer)
    with pytest.raises(ValueError, match="`source` gave latents that are not finite"):
        pipe("a", num_frames=5)


def test_checks_come_in_the_order_of_the_work() -> None:
    good, bad = (DeferredFlag(torch.tensor(each)) for each in (True, False))
    checks = [
        (0, FiniteCheck("one", "a", good)),
        (1, FiniteCheck("two", "b", bad)),
        (2, FiniteCheck("three", "c", bad)),
    ]
    failure = first_failure(checks)
    assert failure is not None and failure[0] == 1 and str(failure[1]) == "two that are not finite in b"
    assert first_failure(checks[:1]) is None
