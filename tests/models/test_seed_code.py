# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Generators with a seed code: what it decides, that streams keep it, and the head that draws by it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers.tiny import LATENT_CHANNELS, TEXT_DIM, make_tiny_generator

from ultraflash_diffusers import CausalWanTransformer
from ultraflash_diffusers.models.placed_head import CellWindow, PlacedHead
from ultraflash_diffusers.models.seed_code import SeedPlaces, clock, ridge_terms, text_summary
from ultraflash_diffusers.models.sprites import set_sprite

CODED: dict[str, Any] = {
    "patch_size": (1, 4, 4),
    "frames_per_chunk": 1,
    "window_frames": 1,
    "sink_frames": 0,
    "prediction_type": "sample",
    "absolute_positions": True,
    "seed_code_dim": 3,
    "seed_code_period": 5.0,
    "reads_latents": False,
    "sample_size": (8, 12),
    "head_channels": 8,
    "head_layers": 1,
    "head_moments": 2,
    "head_ridges": 1,
    "head_sprites": (16, 8),
    "head_far_sprites": 1,
    "head_patterns": 2,
}
STEADY = CODED | {"seed_code_blocks": 1, "seed_code_harmonics": 2, "seed_code_steady": True}
FRAMES = 4


def inputs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noise, timesteps, text and seed code of two clips."""
    rng = torch.Generator().manual_seed(seed)
    noise = torch.randn(2, LATENT_CHANNELS, FRAMES, 8, 12, generator=rng)
    text = torch.randn(2, 5, TEXT_DIM, generator=rng)
    return noise, torch.full((2,), 1000.0), text, torch.randn(2, 3, generator=rng)


def of_first_frame(network: CausalWanTransformer, text: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
    return network.seed_code_embedding(code, text_summary(text), torch.zeros((), dtype=torch.int64), 1)[0]


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


@pytest.mark.parametrize("config", [CODED, STEADY], ids=["flickering", "steady"])
@pytest.mark.parametrize("cached_text", [False, True])
def test_a_stream_is_the_clip_chunk_by_chunk(cached_text, config):
    network = make_tiny_generator(**config)
    noise, timestep, text, code = inputs()
    clip = clean(network, noise, timestep, text, seed_code=code)
    state, chunks = network.new_stream(seed_code=code), []
    prompt = network.encode_text(text) if cached_text else text
    for chunk in noise.split(1, dim=2):
        flow, state = network(chunk, timestep, prompt, state=state, commit=True, return_dict=False)
        chunks.append(chunk - flow)
    torch.testing.assert_close(torch.cat(chunks, dim=2), clip, rtol=1e-4, atol=1e-4)


def test_a_steady_clock_moves_things_and_nothing_else():
    network = make_tiny_generator(**STEADY)
    _, _, text, code = inputs()
    given = (code, text_summary(text), torch.zeros((), dtype=torch.int64), FRAMES)
    embedding, found = network.seed_code_embedding(*given)
    for lasting in (embedding, found.ridges):
        torch.testing.assert_close(lasting, lasting[:, :1].expand_as(lasting), rtol=0, atol=0)
    assert (found.anchors.diff(dim=1)).abs().amax(dim=(1, 2, 3, 4)).min() > 1e-4
    assert found.covers.shape == found.anchors.shape[:-1] and found.covers.diff(dim=1).abs().max() > 1e-4
    assert make_tiny_generator(**CODED).seed_code_embedding(*given)[0].diff(dim=1).abs().max() > 1e-4


def test_harmonics_tell_apart_neighbours_of_a_code():
    code = torch.tensor([[0.1, -0.2, 0.0], [0.1, -0.2, 0.02]])
    text, changes = torch.zeros(2, TEXT_DIM), []
    for harmonics in (0, 16):
        network = make_tiny_generator(**STEADY | {"seed_code_harmonics": harmonics})
        embedding, _ = network.seed_code_embedding(code, text, torch.zeros((), dtype=torch.int64), 1)
        changes.append((embedding[1] - embedding[0]).norm() / embedding[0].norm())
    assert changes[1] > 3 * changes[0]


def test_clocks_start_anywhere_and_go_on_at_their_pace():
    codes = torch.randn(2000, 3, generator=torch.Generator().manual_seed(1))
    start = clock(codes, torch.tensor(0), 1, 8.0)[:, 0]
    assert start.min() < 0.01 and start.max() > 0.99 and abs(start.mean() - 0.5) < 0.02
    steps = (clock(codes, torch.tensor(10_000), 2, 8.0).diff(dim=1) % 1) * 8
    assert 2**-0.25 <= steps.min() < 0.86 and 1.17 < steps.max() <= 2**0.25
    later = (start + steps[:, 0] / 8 * 10_000) % 1
    away = (clock(codes, torch.tensor(10_000), 1, 8.0)[:, 0] - later + 0.5) % 1 - 0.5
    assert away.abs().max() < 1e-6


def test_the_clock_tells_the_moments_of_a_frame():
    codes = torch.randn(3, 4, generator=torch.Generator().manual_seed(2))
    moments = clock(codes, torch.tensor(7), 2, 9.0, moments=4)
    assert moments.shape == (3, 2, 4)
    torch.testing.assert_close(moments[:, :, -1:], clock(codes, torch.tensor(7), 2, 9.0), rtol=0, atol=0)
    steps = moments.flatten(1).diff(dim=1) % 1
    torch.testing.assert_close(steps, steps[:, :1].expand_as(steps))


def places(batch: int, frames: int, column: float = 0.1) -> SeedPlaces:
    """Two moments, two anchors and a ridge, the first anchor at a column of one's choice."""
    anchors = torch.tensor([[column, 0.4, -2.0], [-0.3, 0.7, -2.5]]).expand(batch, frames, 2, 2, 3)
    ridges = torch.tensor([[0.5, 0.02, 0.0, 0.01, 0.0]]).expand(batch, frames, 1, 5)
    return SeedPlaces(anchors.clone(), ridges.clone())


def make_head(size: tuple[int, int] = (8, 12)) -> PlacedHead:
    torch.manual_seed(0)
    return PlacedHead(16, 5, 8, 2, 2, pixels=4, ridges=1, sprites=(16, 8), far_sprites=1, patterns=2, size=size)


def test_a_window_is_that_part_of_the_whole():
    head = make_head()
    tokens, embedding = torch.randn(2, 6, 8), torch.randn(2, 1, 16)
    given = (tokens, (1, 2, 3), embedding, places(2, 1), (8, 12))
    whole = head(*given)
    assert whole.shape == (2, 2, 3, 32, 48) and head.encode(whole, 2).shape == (2, 5, 1, 8, 12)
    part = head(*given, CellWindow(torch.tensor([1, 3]), torch.tensor([4, 0]), 5, 6))
    expected = [whole[:1, ..., 4:24, 16:40], whole[1:, ..., 12:32, :24]]
    torch.testing.assert_close(part, torch.cat(expected), rtol=1e-5, atol=1e-5)


def test_a_sprite_goes_with_its_anchor():
    sprites = make_head().sprites
    embedding = torch.randn(1, 16)
    rows, columns = (torch.arange(32)[None] + 0.5) / 32, (torch.arange(48)[None] - 23.5) / 32
    one, other = (places(1, 1, column).anchors[0] for column in (0.1, 0.1 + 5 / 32))
    (color, cover), _ = sprites(embedding, one, None, rows, columns, 32)
    (moved, moved_cover), _ = sprites(embedding, other, None, rows, columns, 32)
    assert color.shape == (1, 2, 3, 32, 48) and cover.shape == (1, 2, 1, 32, 48)
    torch.testing.assert_close(moved[..., 5:], color[..., :-5], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moved_cover[..., 5:], cover[..., :-5], rtol=1e-4, atol=1e-5)
    assert cover.max() > 0.05
    reach = round(32 * math.exp(-2.0)) + 1
    assert cover[..., : 24 + 3 - reach].max() < 0.01 and cover[..., 24 + 4 + reach :].max() < 0.01


def test_what_stands_at_an_anchor_can_fade():
    head = make_head()
    given = (torch.randn(1, 16), places(1, 1).anchors[0])
    pixels = ((torch.arange(32)[None] + 0.5) / 32, (torch.arange(48)[None] - 23.5) / 32, 32)
    covers = torch.tensor([[[0.0, 0.0], [-20.0, 0.0]]])  # the first thing, at the second moment
    (_, first), (_, second) = head.sprites(*given[:1], given[1], covers, *pixels)
    (_, whole), (_, other) = head.sprites(*given, None, *pixels)
    torch.testing.assert_close(second, other)
    torch.testing.assert_close(first[:, 0], whole[:, 0])
    assert whole[:, 1].max() > 0.05 and first[:, 1].max() < 1e-6


def test_a_pattern_begins_as_what_is_fine_and_in_the_same_place():
    head = make_head()
    rng = torch.Generator().manual_seed(3)
    smooth = torch.nn.functional.interpolate(torch.rand(40, 3, 4, 6, generator=rng), (32, 48), mode="bicubic")
    smooth[::3, :, 5, 7] += 1.0
    smooth[::3, :, 20, 40] += 0.5
    noise, other = head.patterns[0].clone()
    head.start_patterns(smooth)
    found = head.patterns[0, 0]
    assert found[5, 7] == 1 and 0.3 < found[20, 40] < 0.7 and (found.abs() > 0.25).sum() == 2
    assert not torch.equal(found, noise) and torch.equal(head.patterns[0, 1], other)


def test_edges_are_as_sharp_in_larger_pictures():
    sheet = torch.zeros(1, 5, 16, 16)
    sheet[:, 3] = torch.linspace(20, -20, 16)  # the edge runs through the middle
    sheet[:, 4] = 9
    widths = []
    for height in (64, 256):
        rows, columns = (torch.arange(height)[None] + 0.5) / height, (torch.arange(height)[None] + 0.5) / height - 0.5
        _, cover = set_sprite(sheet, torch.tensor([[[0.0, 0.5, -1.0]]]), torch.zeros(1, 1), rows, columns, height)
        line = cover[0, 0, 0, height // 2, height // 4 : -height // 4]  # beside the edge
        widths.append(((line > 0.05) & (line < 0.95)).sum().item())
    assert abs(widths[0] - widths[1]) <= 1 and widths[0] < 16


def test_what_is_nearer_hides_what_is_farther():
    head = make_head()
    given = (torch.randn(1, 6, 8), (1, 2, 3), torch.randn(1, 1, 16))
    low, high = places(1, 1), places(1, 1)
    low.ridges[..., 0], high.ridges[..., 0] = 2.0, -1.0  # under the frame, and over it
    far, near = (head(*given, where, (8, 12)) for where in (low, high))
    for sheet in head.sprites.sheets["8"].parameters():
        torch.nn.init.zeros_(sheet)  # the far sprite
    assert not torch.equal(head(*given, low, (8, 12)), far)
    torch.testing.assert_close(head(*given, high, (8, 12)), near)


def test_latents_are_those_of_an_autoencoder_that_folds_pixels():
    head, folding = make_head(), torch.nn.Conv2d(2 * 48, 5, kernel_size=1)
    head.encode_as(folding.weight, folding.bias)
    given = (torch.randn(1, 6, 8), (1, 2, 3), torch.randn(1, 1, 16), places(1, 1), (8, 12))
    drawn = head(*given)
    folded = torch.nn.functional.pixel_unshuffle(drawn[0], 4).flatten(0, 1)[None]
    torch.testing.assert_close(head.encode(drawn, 1)[:, :, 0], folding(folded), rtol=1e-4, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in head.proj_out.parameters())


def test_other_sizes_are_drawn_from_the_same_numbers():
    head = make_head()
    tokens, embedding = torch.randn(1, 6, 8), torch.randn(1, 1, 16)
    drawn = head(tokens, (1, 2, 3), embedding, places(1, 1), (12, 20))
    assert drawn.shape == (1, 2, 3, 48, 80) and head.encode(drawn, 1).shape == (1, 5, 1, 12, 20)
    assert ridge_terms(torch.zeros(2)).tolist() == [[1.0, 1.0, 0.0, 1.0, 0.0]] * 2


def test_parts_can_be_learnt_from_by_the_true_places():
    network = make_tiny_generator(**CODED).requires_grad_(True)
    _, _, text, code = inputs()
    window = CellWindow(torch.tensor([0, 4]), torch.tensor([8, 0]), 4, 4)
    embedding = of_first_frame(network, text, code)
    drawn = network.draw_windows(text, embedding, window, places(2, 1))
    assert drawn.shape == (2, 2, 3, 16, 16)
    elsewhere = network.draw_windows(text, embedding, window, places(2, 1, column=0.6))
    assert (drawn - elsewhere).abs().mean() > 1e-3
    drawn.sum().backward()
    assert network.head.to_fields.linear.weight.grad.abs().sum() > 0
    assert network.head.patterns.grad.abs().sum() > 0
    assert network.seed_code_embedding.linear_out.weight.grad.abs().sum() > 0
    assert network.seed_code_embedding.to_anchors.weight.grad is None


def test_parts_are_drawn_in_mixed_precision():
    network = make_tiny_generator(**CODED)
    _, _, text, code = inputs()
    given = (CellWindow(torch.tensor([0, 4]), torch.tensor([8, 0]), 4, 4), places(2, 1))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = network.draw_windows(text, of_first_frame(network, text, code), *given)
    full = network.draw_windows(text, of_first_frame(network, text, code), *given)
    torch.testing.assert_close(mixed.float(), full, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"seed_code_dim": 1}, "`seed_code_dim` must be 0 or at least 2, got 1"),
        ({"seed_code_period": 0.0}, "`seed_code_period` must be positive and finite, got 0.0"),
        ({"seed_code_blocks": -1}, "`seed_code_blocks` must not be negative, got -1"),
        ({"seed_code_harmonics": -2}, "`seed_code_harmonics` must not be negative, got -2"),
        ({"seed_code_dim": 0}, "without `seed_code_dim` nothing else tells videos apart"),
        ({"seed_code_dim": 0, "reads_latents": True}, r"needs `seed_code_dim`, .* got 0, \(8, 12\)"),
        ({"sample_size": None}, "needs `seed_code_dim`, `sample_size` and"),
        ({"head_sprites": (16, 12)}, r"`head_sprites` must be powers of 2 from 8 on, got \(16, 12\)"),
        ({"head_sprites": ()}, r"`head_sprites` must be powers of 2 from 8 on, got \(\)"),
        ({"head_far_sprites": 3}, "`head_far_sprites` must be from 0 to the number of `head_sprites`, got 3"),
        ({"head_patterns": 0}, "`head_patterns` must be positive, got 0"),
        ({"head_channels": -4}, "`head_channels` must be 0 or positive, got -4"),
        ({"head_moments": 0}, "`head_moments` must be positive, got 0"),
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
