# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Detail: stills stand still, what moves is each frame's own, strength goes from the source to the networks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.tiny import make_tiny_pipeline

from ultraflash_diffusers import PipelineStreamState
from ultraflash_diffusers.pipelines.detail import DetailSettings, settle_detail


def clip(frames: int, still: bool, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames whose details flicker in every frame, and their source, which stands still or is new in every frame."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.rand(1, 3, 1 if still else frames, 6, 8, generator=generator) - 0.5
    source = source.expand(-1, -1, frames, -1, -1)
    detail = 0.3 * torch.randn(1, 3, frames, 12, 16, generator=generator)
    return resampled(source) + detail, source


def resampled(source: torch.Tensor) -> torch.Tensor:
    size = [2 * side for side in source.shape[-2:]]
    pictures = [F.interpolate(frame, size=size, mode="bicubic", align_corners=False) for frame in source.unbind(2)]
    return torch.stack(pictures, dim=2)


def test_stills_settle_to_the_mean_of_their_details() -> None:
    frames, source = clip(200, still=True)
    shown, _ = settle_detail(frames, source, DetailSettings(memory=0.97))
    before, after = (video.diff(dim=2)[:, :, 50:].std() for video in (frames, shown))
    assert after < 0.03 * before
    mean = (frames - resampled(source)).mean(dim=2)
    error = (shown[:, :, -1] - resampled(source)[:, :, -1] - mean).std()
    assert error < 0.25 * (frames - resampled(source)).std()


def test_what_moves_keeps_each_frames_own_details() -> None:
    frames, source = clip(7, still=False)
    shown, _ = settle_detail(frames, source, DetailSettings(memory=0.97))
    moving = F.max_pool2d((source.diff(dim=2).abs().amax(1) > 0.2).float(), 3, 1, 1).bool()
    assert moving.all()
    torch.testing.assert_close(shown, frames)


@pytest.mark.parametrize("place", [(0, 0), (0, 4), (5, 7), (3, 0), (2, 3)])
def test_a_moving_pixel_frees_its_neighbourhood_and_nothing_else(place: tuple[int, int]) -> None:
    frames, source = clip(2, still=True)
    source = source.clone()
    source[:, :, 1, *place] += 0.5
    moving = F.max_pool2d((source.diff(dim=2)[:, :1, 0] > 0).float(), 3, 1, 1)
    held = 0.9 * F.interpolate(1 - moving, scale_factor=2, mode="bilinear")
    first, second = (frames - resampled(source)).unbind(2)
    shown, _ = settle_detail(frames, source, DetailSettings(memory=0.9))
    expected = resampled(source)[:, :, 1] + held * first + (1 - held) * second
    torch.testing.assert_close(shown[:, :, 1], expected)


def test_a_fade_does_not_lag() -> None:
    """Each step is below what counts as motion; the sum of all is not."""
    fade = torch.linspace(-0.5, 0.5, 400).view(1, 1, -1, 1, 1).expand(1, 3, -1, 6, 8)
    shown, _ = settle_detail(resampled(fade), fade, DetailSettings(memory=0.97))
    torch.testing.assert_close(shown, resampled(fade))


def test_a_cut_forgets() -> None:
    first, second = clip(9, still=True, seed=1), clip(1, still=True, seed=2)
    frames, source = (torch.cat(parts, dim=2) for parts in zip(first, second, strict=True))
    shown, _ = settle_detail(frames, source, DetailSettings(memory=0.97))
    moved = (source[:, :, -1] - source[:, :, -2]).abs().amax() > 16 / 255
    assert moved
    torch.testing.assert_close(shown[:, :, -1].mean(), frames[:, :, -1].mean(), atol=0.02, rtol=0)


@pytest.mark.parametrize("memory", [0.0, 0.97])
def test_strength_zero_is_the_resampled_source_to_the_last_bit(memory: float) -> None:
    frames, source = clip(5, still=True)
    shown, _ = settle_detail(frames, source, DetailSettings(strength=0.0, memory=memory))
    assert torch.equal(shown, resampled(source))


def test_strength_is_linear() -> None:
    frames, source = clip(5, still=True)
    half, _ = settle_detail(frames, source, DetailSettings(strength=0.5, memory=0.9))
    whole, _ = settle_detail(frames, source, DetailSettings(strength=1.0, memory=0.9))
    torch.testing.assert_close(half, (whole + resampled(source)) / 2)


def test_all_of_it_without_memory_is_what_the_decoder_made() -> None:
    frames, source = clip(3, still=True)
    shown, state = settle_detail(frames, source, DetailSettings())
    assert shown is frames and state is None


@pytest.mark.parametrize("cut", [1, 4])
def test_in_portions_as_at_once(cut: int) -> None:
    frames, source = clip(9, still=True)
    settings = DetailSettings(strength=0.8, memory=0.9)
    whole, _ = settle_detail(frames, source, settings)
    head, state = settle_detail(frames[:, :, :cut], source[:, :, :cut], settings)
    tail, _ = settle_detail(frames[:, :, cut:], source[:, :, cut:], settings, state)
    assert torch.equal(torch.cat([head, tail], dim=2), whole)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strength": 1.5}, r"`strength` must be in \[0, 1\], got 1.5"),
        ({"strength": float("nan")}, "`strength`"),
        ({"memory": 1.0}, r"`detail_memory` must be in \[0, 1\), got 1.0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DetailSettings(**settings)


def test_another_number_of_source_frames_is_refused() -> None:
    frames, source = clip(3, still=True)
    with pytest.raises(ValueError, match="`source` of shape"):
        settle_detail(frames, source[:, :, :2], DetailSettings(memory=0.5))


# ---- in the pipeline

PIPE = make_tiny_pipeline(text=False, generator=False, detail_memory=0.97)


def video(frames: int) -> torch.Tensor:
    """A still that begins to move in its middle."""
    generator = torch.Generator().manual_seed(3)
    still = torch.rand(1, 1, 3, 16, 24, generator=generator).expand(-1, frames // 2, -1, -1, -1)
    return torch.cat([still, torch.rand(1, frames - frames // 2, 3, 16, 24, generator=generator)], dim=1)


def upscaled(**arguments: object) -> torch.Tensor:
    return PIPE(source=video(33), output_type="pt", generator=torch.Generator().manual_seed(0), **arguments).frames


def test_a_pipeline_holds_still_what_stands_still() -> None:
    assert PIPE.config.detail_memory == 0.97
    calm, plain = (
        upscaled(),
        make_tiny_pipeline(text=False, generator=False)(
            source=video(33), output_type="pt", generator=torch.Generator().manual_seed(0)
        ).frames,
    )
    change, change_of_plain = (frames[:, 1:16].diff(dim=1).abs().max() for frames in (calm, plain))
    assert change < 0.06 * change_of_plain


def test_strength_zero_is_the_source_resampled() -> None:
    source = 2 * video(33).transpose(1, 2) - 1
    expected = resampled(source).clamp(-1, 1) / 2 + 0.5
    assert torch.equal(upscaled(strength=0.0), expected.transpose(1, 2))


@pytest.mark.parametrize("chunks", [1, 2])
def test_a_saved_stream_goes_on_in_the_middle_of_a_still(chunks: int, tmp_path: Path) -> None:
    expected = upscaled(strength=0.7)
    arguments = {"output_type": "pt", "strength": 0.7, "frames_per_chunk": 2}
    stream = PIPE.stream(source=video(33), generator=torch.Generator().manual_seed(0), **arguments)
    head = [next(stream).frames for _ in range(chunks)]
    stream.state().save(tmp_path / "state.safetensors")
    stream.close()
    state = PipelineStreamState.load(tmp_path / "state.safetensors")
    tail = [chunk.frames for chunk in PIPE.stream(source=video(33), state=state, **arguments)]
    assert torch.equal(torch.cat(head + tail, dim=1), expected)


def test_latents_cannot_be_gone_back_to() -> None:
    latents = PIPE.autoencoder.encode(2 * video(5).transpose(1, 2) - 1).latents
    with pytest.raises(ValueError, match="`strength` is 0.5, but `source` gives latents"):
        PIPE(source=latents, strength=0.5)
