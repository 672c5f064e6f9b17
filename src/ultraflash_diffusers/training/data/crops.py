# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Batches of random crops. A batch depends on the seed and its number alone, so that a resumed run sees the same."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from diffusers.utils import logging
from torch.utils.data import DataLoader, Dataset

from ...models.video_encoder import VideoEncoder
from ...pixels import from_levels
from ..files import LeftOut
from .preparation import CachedClip

logger = logging.get_logger(__name__)

# latents that are encoded at a time
_PIECE = 4


class Crop(NamedTuple):
    """Size of a training crop at high resolution."""

    frames: int
    height: int
    width: int

    @classmethod
    def parse(cls, text: str) -> Crop:
        """Reads `FRAMESxHEIGHTxWIDTH`, for instance `9x128x128`.

        Raises:
            ValueError: not three positive whole numbers.
        """
        parts = text.lower().split("x")
        if len(parts) != 3 or not all(part.isdigit() and int(part) > 0 for part in parts):
            raise ValueError(f"a crop must be FRAMESxHEIGHTxWIDTH, such as 9x128x128, got {text!r}")
        return cls(*map(int, parts))

    def check(self, spatial: int, temporal: int) -> None:
        """Checks the size against what the networks compress.

        Args:
            spatial (`int`): what height and width must be multiples of.
            temporal (`int`): the temporal compression; the frames must be one more than a multiple of it.

        Raises:
            ValueError: they are not.
        """
        if self.height % spatial or self.width % spatial or self.frames % temporal != 1 % temporal:
            raise ValueError(
                f"crop {self}: these networks need a height and a width that are multiples of {spatial} and "
                f"{temporal} n + 1 frames"
            )

    def __str__(self) -> str:
        return "x".join(map(str, self))


@dataclass(frozen=True)
class Batch:
    """A batch of crops; `low` and `flow` are there if they were asked for.

    Args:
        high (`torch.Tensor`): `[batch, 3, frames, height, width]`, uint8, or in [-1, 1] after [`~Batch.to`].
        low (`torch.Tensor`, *optional*): the same crops of degraded clips, `scale` times smaller.
        flow (`torch.Tensor`, *optional*): `[batch, frames - 1, 2, height, width]`, see [`optical_flow`].
        texts (`list[str]`): one a sample.
    """

    high: torch.Tensor
    low: torch.Tensor | None
    flow: torch.Tensor | None
    texts: list[str]

    def to(self, device: torch.device) -> Batch:
        """Moves the tensors to a device and the pixels to [-1, 1]."""
        low = None if self.low is None else _pixels(self.low, device)
        flow = None if self.flow is None else self.flow.to(device).float()
        return Batch(_pixels(self.high, device), low, flow, self.texts)

    def at(self, frames: slice) -> Batch:
        """Returns some consecutive frames of each clip.

        Args:
            frames (`slice`): with both ends.
        """
        low = None if self.low is None else self.low[:, :, frames]
        flow = None if self.flow is None else self.flow[:, frames.start : frames.stop - 1]
        return Batch(self.high[:, :, frames], low, flow, self.texts)

    @torch.no_grad()
    def encode_high(self, encoder: VideoEncoder) -> torch.Tensor:
        """Returns the latents of `high`, float32, after [`~Batch.to`]."""
        return encoded_in_pieces(encoder, self.high)

    @torch.no_grad()
    def encode_low(self, encoder: VideoEncoder) -> torch.Tensor:
        """Returns the latents of `low`, float32, after [`~Batch.to`]."""
        assert self.low is not None
        return encoded_in_pieces(encoder, self.low)


@torch.no_grad()
def encoded_in_pieces(encoder: VideoEncoder, pixels: torch.Tensor) -> torch.Tensor:
    """Encodes clips some frames at a time, as a stream, which gives the latents of the whole with less memory.

    Args:
        encoder (`VideoEncoder`): encodes them.
        pixels (`torch.Tensor`): `[batch, 3, t n + 1, height, width]` in [-1, 1], for a temporal compression of t.

    Returns:
        `torch.Tensor`: `[batch, channels, n + 1, latent height, latent width]`, float32.
    """
    temporal, latents = encoder.temporal_compression_ratio, []
    state: Any = None
    # the first latent of a stream is of one frame
    ends = range(1 + temporal * (_PIECE - 1), pixels.shape[2] + temporal * _PIECE, temporal * _PIECE)
    for start, end in zip((0, *ends), ends, strict=False):
        output = encoder.encode(pixels[:, :, start:end], state)
        latents.append(output.latents.float())
        state = output.state
    return torch.cat(latents, dim=2)


class CropDataset(Dataset):
    """Random crops of cached clips, a whole batch an item: item `n` is the same in every process and run.

    Clips may differ in size, aspect ratio and length. Each crop size is a bucket: a batch is of one size, and of clips
    that are as large. Crops are mirrored half of the time and played backwards a fifth of the time, if they may be.

    Args:
        clips (list of `CachedClip`): where crops come from, each clip of a bucket as often as the others. Those that
            are too small for every crop are left out, with a warning, and listed in `left_out`.
        crops (list of `Crop`): sizes; one is drawn for each batch.
        batch_size (`int` or list of `int`): samples of a batch, or one number for each crop size.
        crop_weights (list of `float`, *optional*): how often each size is drawn, relative to the others; equally by
            default.
        scale (`int`, *optional*): gives the low-resolution crops too, `scale` times smaller.
        with_flow (`bool`, *optional*, defaults to `False`): gives the optical flow too.
        seed (`int`, *optional*, defaults to 0): of all choices.
        batches_per_step (`int`, *optional*, defaults to 1): so many batches are of one size: those of a step of the
            optimiser, over all processes, since sharded networks run in all of them alike.
        mirrors (`bool`, *optional*, defaults to `True`): whether crops may be mirrored: not where texts say left.
        reverses (`bool`, *optional*, defaults to `True`): whether they may be played backwards: not where texts tell
            what happens.

    Raises:
        ValueError: no clip is large enough for one of the crops, not one weight or batch size a crop, or clips
            without low-resolution versions.
    """

    def __init__(
        self,
        clips: Sequence[CachedClip],
        crops: Sequence[Crop],
        batch_size: int | Sequence[int],
        crop_weights: Sequence[float] | None = None,
        scale: int | None = None,
        with_flow: bool = False,
        seed: int = 0,
        batches_per_step: int = 1,
        mirrors: bool = True,
        reverses: bool = True,
    ) -> None:
        weights = np.ones(len(crops)) if crop_weights is None else np.asarray(crop_weights, float)
        if len(weights) != len(crops) or not (weights > 0).all():
            raise ValueError(f"`crop_weights` must be {len(crops)} positive numbers, one a crop, got {crop_weights}")
        if np.size(batch_size) not in (1, len(crops)):
            raise ValueError(f"`batch_size` must be one number, or {len(crops)}, one a crop, got {batch_size}")
        self._batch_sizes = np.broadcast_to(batch_size, len(crops))
        self._buckets = [_bucket(clips, crop, size) for crop, size in zip(crops, self._batch_sizes, strict=True)]
        self.clips, self.left_out = _used(clips, crops)
        if scale is not None and not all(clip.lows for clip in self.clips):
            raise ValueError("`clips` were prepared without low-resolution versions, which `scale` asks for")
        self.crops, self.scale, self.with_flow, self.seed = crops, scale, with_flow, seed
        self.batches_per_step, self.mirrors, self.reverses = batches_per_step, mirrors, reverses
        self._shares = weights / weights.sum()

    def __getitem__(self, number: int) -> Batch:
        rng = np.random.default_rng((self.seed, number))
        rng.random()
        step = np.random.default_rng((self.seed, number // self.batches_per_step))
        index = step.choice(len(self.crops), p=self._shares)
        clips = self._buckets[index]
        samples = [
            self._sample(clips[rng.integers(len(clips))], self.crops[index], rng)
            for _ in range(self._batch_sizes[index])
        ]
        low = None if self.scale is None else torch.stack([sample[1] for sample in samples])
        flow = torch.stack([optical_flow(sample[0]) for sample in samples]) if self.with_flow else None
        return Batch(torch.stack([sample[0] for sample in samples]), low, flow, [sample[2] for sample in samples])

    def _sample(
        self, clip: CachedClip, crop: Crop, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, str]:
        scale = self.scale or 1
        start = rng.integers(clip.frames - crop.frames + 1)
        top, left = (
            scale * rng.integers((have - want) // scale + 1)
            for have, want in ((clip.height, crop.height), (clip.width, crop.width))
        )
        # drawn in any case: the crops are the same ones
        mirrored, backwards = rng.random() < 0.5, rng.random() < 0.2
        mirrored, backwards = mirrored and self.mirrors, backwards and self.reverses
        low_file = clip.lows[rng.integers(len(clip.lows))] if self.scale else clip.high

        def cut(file: str, divisor: int) -> torch.Tensor:
            rows = slice(top // divisor, (top + crop.height) // divisor)
            columns = slice(left // divisor, (left + crop.width) // divisor)
            frames = np.load(file, mmap_mode="r")[start : start + crop.frames, rows, columns]
            frames = frames[:: -1 if backwards else 1, :, :: -1 if mirrored else 1]
            return torch.from_numpy(np.array(frames, order="C")).permute(3, 0, 1, 2)

        return cut(str(clip.high), 1), cut(str(low_file), scale), clip.text


def batches(dataset: Dataset, numbers: Sequence[int], num_workers: int) -> Iterator[Any]:
    """Loads batches by their numbers, in this order, ahead of time if there are workers.

    Args:
        dataset (`Dataset`): what they are of.
        numbers (sequence of `int`): for instance a range.
        num_workers (`int`): processes; 0 loads in this one.
    """
    # a generator of its own: the loader takes nothing from the global one, whatever `num_workers` is
    generator = torch.Generator()
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=numbers,
        num_workers=num_workers,
        generator=generator,
        worker_init_fn=_leave_interruptions_to_the_main_process,
    )
    return iter(loader)


def _leave_interruptions_to_the_main_process(worker: int) -> None:
    # Ctrl-C reaches the whole process group, but the step in progress still needs its batches
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def validation_crop(clip: CachedClip, frames: int, spatial: int, with_low: bool) -> Batch:
    """The first frames of a clip, whole but for the edges that the networks cannot take: a batch of one.

    Args:
        clip (`CachedClip`): the clip.
        frames (`int`): how many.
        spatial (`int`): what height and width must be multiples of; the right and lower edges are cut to it.
        with_low (`bool`): gives the first low-resolution version too.

    Raises:
        ValueError: the clip is too short or too small.
    """
    height, width = clip.height - clip.height % spatial, clip.width - clip.width % spatial
    if clip.frames < frames or not height or not width:
        raise ValueError(
            f"{str(clip.high)!r} has {clip.frames} frames of {clip.height}x{clip.width}: validation needs {frames} "
            f"frames, and heights and widths of at least {spatial}"
        )

    def cut(file: str, rows: int, columns: int) -> torch.Tensor:
        pixels = np.load(file, mmap_mode="r")[:frames, :rows, :columns]
        return torch.from_numpy(np.array(pixels)).permute(3, 0, 1, 2)[None]

    high, low = cut(str(clip.high), height, width), None
    if with_low:
        divisor = clip.height // np.load(clip.lows[0], mmap_mode="r").shape[1]
        low = cut(str(clip.lows[0]), height // divisor, width // divisor)
    return Batch(high, low, None, [clip.text])


def optical_flow(clip: torch.Tensor) -> torch.Tensor:
    """Dense inverse-search flow of a clip: from each pixel of frame t to where it was in frame t - 1.

    Args:
        clip (`torch.Tensor`): uint8 `[3, frames, height, width]`, at least 16 pixels high and wide.

    Returns:
        `torch.Tensor`: float16 `[frames - 1, 2, height, width]`, pixels to the right and down.
    """
    method = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    frames = clip.permute(1, 2, 3, 0).contiguous().numpy()
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    start = np.zeros((*grey[0].shape, 2), np.float32)
    flows = [method.calc(now, before, start.copy()) for before, now in zip(grey[:-1], grey[1:], strict=True)]
    return torch.from_numpy(np.stack(flows)).permute(0, 3, 1, 2).half()


def _pixels(frames: torch.Tensor, device: torch.device) -> torch.Tensor:
    return from_levels(frames.to(device))


def _fits(clip: CachedClip, crop: Crop) -> bool:
    return clip.frames >= crop.frames and clip.height >= crop.height and clip.width >= crop.width


def _bucket(clips: Sequence[CachedClip], crop: Crop, batch_size: int) -> list[CachedClip]:
    """The clips that are large enough for a crop."""
    fitting = [clip for clip in clips if _fits(clip, crop)]
    if not fitting:
        sizes = ", ".join(str(size) for size in _largest(clips))
        raise ValueError(f"none of the {len(clips)} `clips` is as large as crops of {crop}; the largest are {sizes}")
    if len(fitting) < batch_size:
        logger.warning(
            f"crops of {crop}: only {len(fitting)} clips are large enough, and a batch has {batch_size}: some of its "
            "crops will be of the same clip"
        )
    return fitting


def _largest(clips: Sequence[CachedClip], count: int = 3) -> list[Crop]:
    sizes = {Crop(clip.frames, clip.height, clip.width) for clip in clips}
    return sorted(sizes, key=lambda size: size.frames * size.height * size.width, reverse=True)[:count]


def _used(clips: Sequence[CachedClip], crops: Sequence[Crop]) -> tuple[list[CachedClip], list[LeftOut]]:
    """The clips that are in a bucket, and why the others are not."""
    used, left_out = [], []
    wanted = " or ".join(str(crop) for crop in crops)
    for clip in clips:
        if any(_fits(clip, crop) for crop in crops):
            used.append(clip)
        else:
            size = Crop(clip.frames, clip.height, clip.width)
            left_out.append(LeftOut(str(clip.high), f"its {size} are smaller than crops of {wanted}"))
    if left_out:
        logger.warning(f"left out {len(left_out)} of {len(clips)} clips: they are smaller than crops of {wanted}")
    return used, left_out
