# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Generators with a seed code: what it decides, that streams keep it, and the head without seams."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.tiny import LATENT_CHANNELS, TEXT_DIM, make_tiny_generator

from ultraflash_diffusers import CausalWanTransformer
from ultraflash_diffusers.models.overlapping_head import OverlappingHead
from ultraflash_diffusers.models.seed_code import clock

CODED: dict[str, Any] = {
    "patch_size": (1, 4, 4),
    "frames_per_chunk": 1,
    "window_frames": 1,
    "sink_frames": 0,
    "prediction_type": "sample",
    "absolute_positions": True,
    "seed_code_dim": 3,
    "seed_code_period": 5.0,
    "seed_code_anchors": 2,
    "reads_latents": False,
    "head_channels": (6, 5),
}
FRAMES = 4


def inputs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noise, timesteps, text and seed code of two clips."""
    rng = torch.Generator().manual_seed(seed)
    noise = torch.randn(2, LATENT_CHANNELS, FRAMES, 8, 12, generator=rng)
    text = torch.randn(2, 5, TEXT_DIM, generator=rng)
    return noise, torch.full((2,), 1000.0), text, torch.randn(2, 3, generator=rng)


def clean(network: CausalWanTransformer, noise: torch.Tensor, *rest: Any, **keywords: Any) -> torch.Tensor:
    return noise - network(noise, *rest, **keywords).sample


def test_text_code_and_clock_decide_the_clip_and_the_noise_does_not():
    network = make_tiny_generator(**CODED)
    noise, timestep, text, code = inputs()
    clip = clean(network, noise, timestep, text, seed_code=code)
    assert clip.shape == noise.shape
    torch.testing.assert_close(clean(network, -noise, timestep, text, seed_code=code), clip)
    for other in ((text, code.flip(0)), (text.flip(0), code)):
        assert (clean(network, noise, timestep, other[0], seed_code=other[1]) - clip).abs().mean() > 1e-3
    assert (clip[:, :, 1:] - clip[:, :, :1]).abs().amax(dim=(1, 3, 4)).min() > 1e-4  # the clock goes on


@pytest.mark.parametrize("cached_text", [False, True])
def test_a_stream_is_the_clip_chunk_by_chunk(cached_text):
    network = make_tiny_generator(**CODED)
    noise, timestep, text, code = inputs()
    clip = clean(network, noise, timestep, text, seed_code=code)
    state, chunks = network.new_stream(seed_code=code), []
    prompt = network.encode_text(text) if cached_text else text
    for chunk in noise.split(1, dim=2):
        flow, state = network(chunk, timestep, prompt, state=state, commit=True, return_dict=False)
        chunks.append(chunk - flow)
    torch.testing.assert_close(torch.cat(chunks, dim=2), clip, rtol=1e-4, atol=1e-4)


def test_clocks_start_anywhere_and_go_on_at_their_pace():
    codes = torch.randn(2000, 3, generator=torch.Generator().manual_seed(1))
    start = clock(codes, torch.tensor(0), 1, 8.0)[:, 0]
    assert start.min() < 0.01 and start.max() > 0.99 and abs(start.mean() - 0.5) < 0.02
    steps = (clock(codes, torch.tensor(10_000), 2, 8.0).diff(dim=1) % 1) * 8
    assert 2**-0.25 <= steps.min() < 0.86 and 1.17 < steps.max() <= 2**0.25
    later = (start + steps[:, 0] / 8 * 10_000) % 1
    away = (clock(codes, torch.tensor(10_000), 1, 8.0)[:, 0] - later + 0.5) % 1 - 0.5
    assert away.abs().max() < 1e-6


def test_the_head_reaches_beyond_a_token():
    head = OverlappingHead((6, 5, 4), LATENT_CHANNELS)
    tokens = torch.zeros(1, 2 * 3 * 3, OverlappingHead.token_channels((6, 5, 4)))
    moved = tokens.clone()
    moved[0, 4] = 1.0  # the middle of the first frame
    changed = (head(moved, (2, 3, 3)) - head(tokens, (2, 3, 3))).abs().amax(dim=(0, 1)) > 0
    assert changed.shape == (2, 24, 24) and not changed[1].any()
    rows = changed[0].any(dim=1).nonzero().flatten().tolist()
    assert rows[0] < 8 and rows[-1] >= 16  # others' latents, too, and not all of them
    assert rows[0] > 0 and rows[-1] < 23


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"seed_code_dim": 1}, "`seed_code_dim` must be 0 or at least 2, got 1"),
        ({"seed_code_period": 0.0}, "`seed_code_period` must be positive and finite, got 0.0"),
        ({"seed_code_dim": 0, "reads_latents": True}, "`seed_code_anchors` must be 0 without a seed code"),
        ({"seed_code_dim": 0, "seed_code_anchors": 0}, "without `seed_code_dim` nothing else tells videos apart"),
        ({"head_channels": (6,)}, r"needs `patch_size` \(1, 2, 2\), got \(1, 4, 4\)"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        make_tiny_generator(**CODED | config)


def test_a_missing_or_a_needless_seed_code_is_refused():
    noise, timestep, text, code = inputs()
    network = make_tiny_generator(**CODED)
    with pytest.raises(ValueError, match=r"`seed_code` must have shape \[2, 3\], got None"):
        network(noise, timestep, text)
    with pytest.raises(ValueError, match=r"`seed_code` must have shape \[2, 3\], got \[2, 2\]"):
        network(noise[:, :, :1], timestep, text, state=network.new_stream(seed_code=code[:, :2]))
    with pytest.raises(ValueError, match="`seed_code` was given beside a `state`"):
        network(noise[:, :, :1], timestep, text, state=network.new_stream(seed_code=code), seed_code=code)
    with pytest.raises(ValueError, match="`seed_code` was given, but the network has none"):
        make_tiny_generator()(noise[:, :, :3], timestep, text, seed_code=code)
