# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Detail: what the networks add to the resampled source, how much of it is shown, and that it stands still with it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..models.stream_state import StreamState

_LEVEL = 2 / 255  # one of 256 levels, for pixels in [-1, 1]
# Source pixels that change by less stand still, by more they move; between them details are forgotten gradually.
# Codecs change still pixels by about the first; the second was the better of 4 and 8 on three compressed clips.
_STILL, _MOVING = 1 * _LEVEL, 8 * _LEVEL


@dataclass(frozen=True)
class DetailSettings:
    """How the networks' detail is shown on sources of pixels.

    Args:
        strength (`float`): share of the detail in the result: 0 is the resampled source, 1 all of it.
        memory (`float`): share of the former frame's detail that stays where the source stands still, below 1: 0 takes
            each frame's own, which shimmers on stills.
    """

    strength: float = 1.0
    memory: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise ValueError(f"`strength` must be in [0, 1], got {self.strength}")
        if not 0 <= self.memory < 1:
            raise ValueError(f"`detail_memory` must be in [0, 1), got {self.memory}")

    @property
    def changes_frames(self) -> bool:
        """Whether frames differ from what the decoder made."""
        return self.strength != 1 or self.memory > 0


@dataclass
class DetailState(StreamState):
    """What the last frame leaves to the next one.

    Args:
        detail (`torch.Tensor`): `[batch, 3, height, width]`, float32, the detail that was shown.
        source (`torch.Tensor`): `[batch, 3, source height, source width]`, float32, mean of the source where it stood
            still.
    """

    detail: torch.Tensor
    source: torch.Tensor


def settle_detail(
    frames: torch.Tensor, source: torch.Tensor, settings: DetailSettings, state: DetailState | None = None
) -> tuple[torch.Tensor, DetailState | None]:
    """Adds the detail of `frames` to the resampled source, held where the source stands still.

    With `d(t) = frame(t) - bicubic(source(t))`, the detail that is shown is `D(t) = w D(t - 1) + (1 - w) d(t)`: a
    running mean, which also averages the networks' error out, where the source does not change, and each frame's own
    where it does. `w` is `settings.memory` where no pixel of the source's 3x3 neighbourhood has left its own running
    mean by more than a level, and falls to 0 at eight levels. All that changes in the source itself is shown at once:
    colours and fades do not lag.

    Args:
        frames (`torch.Tensor`): `[batch, 3, frames, height, width]` in [-1, 1].
        source (`torch.Tensor`): `[batch, 3, frames, source height, source width]`, the same frames before upscaling.
        settings ([`DetailSettings`]): strength and memory.
        state ([`DetailState`], *optional*): what the frame before left; `None` at the start of a clip.

    Returns:
        `tuple`: frames of the shape and dtype of `frames`, in which strength 0 gives the bicubically resampled source
        to the last bit, and the state for the next ones.

    Raises:
        ValueError: another batch, channel or frame count in `source`.
    """
    if source.shape[:3] != frames.shape[:3]:
        raise ValueError(
            f"`source` of shape {tuple(source.shape)} must have the batch, channels and frames of `frames` "
            f"{tuple(frames.shape)}"
        )
    if not settings.changes_frames:
        return frames, state
    shown = []
    for frame, given in zip(frames.float().unbind(2), source.to(frames.device, torch.float32).unbind(2), strict=True):
        resampled = F.interpolate(given, size=frame.shape[-2:], mode="bicubic", align_corners=False)
        state = _held(DetailState(frame - resampled, given), state, settings.memory)
        shown.append(torch.add(resampled, state.detail, alpha=settings.strength))
    return torch.stack(shown, dim=2).to(frames.dtype), state


def _held(new: DetailState, former: DetailState | None, memory: float) -> DetailState:
    if former is None or memory == 0:
        return new
    weight = memory * _stillness(new.source, former.source)
    size = new.detail.shape[-2:]
    detail_weight = F.interpolate(weight, size=size, mode="bilinear", align_corners=False)
    return DetailState(
        torch.lerp(new.detail, former.detail, detail_weight), torch.lerp(new.source, former.source, weight)
    )


def _stillness(source: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """1 where the source stands still, 0 where it moves: `[batch, 1, height, width]`."""
    change = (source - mean).abs().amax(dim=1, keepdim=True)
    for axis in (-2, -1):
        change = _largest_of_neighbours(change, axis)
    return ((_MOVING - change) / (_MOVING - _STILL)).clamp(0, 1)


def _largest_of_neighbours(values: torch.Tensor, axis: int) -> torch.Tensor:
    """The largest of each value and the two beside it. Twice this is `max_pool2d`, which takes 30 times as long."""
    size = values.shape[axis]
    largest = values.clone()
    for first, second in ((0, 1), (1, 0)):
        part = largest.narrow(axis, first, size - 1)
        torch.maximum(part, values.narrow(axis, second, size - 1), out=part)
    return largest
