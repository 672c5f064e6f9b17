# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Latents of the training clips, encoded once, for stages that train in latent space alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils import logging
from tqdm import tqdm

from ...models.video_encoder import VideoEncoder, WanVideoEncoder
from ...pixels import from_levels
from ..files import LeftOut, holds_array, save_array, weights_fingerprint
from .crops import Batch, Crop, CropDataset
from .latent_file import read_latents
from .preparation import CachedClip

logger = logging.get_logger(__name__)

# latents that are encoded at a time: memory does not grow with the length of a clip
STEP = 4


@dataclass(frozen=True)
class LatentBatch(Batch):
    """A batch whose `high` and `low` are latents, float32 `[batch, channels, frames, height, width]`, normalised."""

    def to(self, device: torch.device) -> LatentBatch:
        """Moves the latents to a device."""
        low = None if self.low is None else self.low.to(device)
        return LatentBatch(self.high.to(device), low, None, self.texts)

    def encode_high(self, encoder: VideoEncoder) -> torch.Tensor:
        """Returns the latents as they are."""
        return self.high

    def encode_low(self, encoder: VideoEncoder) -> torch.Tensor:
        """Returns the low-resolution latents as they are."""
        if self.low is None:
            raise ValueError("the batch has no low-resolution latents: give the dataset a `scale`")
        return self.low


class LatentDataset(CropDataset):
    """Crops of cached latents, a whole batch an item: item `n` is the same in every process and run.

    A crop begins with its clip's first frame, for the first latent of a stream is not like the others. It is neither
    mirrored nor played backwards, and its latents have seen the pixels around it.

    Args:
        clips (list of `CachedClip`): from [`cache_latents`] or
            [`~ultraflash_diffusers.training.data.latent_file.load_latent_clips`]; sizes in pixels, files of latents.
        crops (list of `Crop`): sizes in pixels, each a bucket; one is drawn for each batch.
        batch_size (`int` or list of `int`): samples of a batch, or one number for each crop size.
        spatial (`int`): pixels a side of a latent.
        temporal (`int`): frames of a latent.
        crop_weights (list of `float`, *optional*): how often each size is drawn; equally by default.
        scale (`int`, *optional*): gives the low-resolution latents too, `scale` times smaller.
        seed (`int`, *optional*, defaults to 0): of all choices.
        batches_per_step (`int`, *optional*, defaults to 1): see [`CropDataset`].

    Raises:
        ValueError: as [`CropDataset`], and for crops that are not whole latents.
    """

    def __init__(
        self,
        clips: Sequence[CachedClip],
        crops: Sequence[Crop],
        batch_size: int | Sequence[int],
        spatial: int,
        temporal: int,
        crop_weights: Sequence[float] | None = None,
        scale: int | None = None,
        seed: int = 0,
        batches_per_step: int = 1,
    ) -> None:
        for crop in crops:
            crop.check(spatial * (scale or 1), temporal)
        super().__init__(clips, crops, batch_size, crop_weights, scale, False, seed, batches_per_step)
        self.spatial, self.temporal = spatial, temporal

    def __getitem__(self, number: int) -> LatentBatch:
        batch = super().__getitem__(number)
        return LatentBatch(batch.high, batch.low, None, batch.texts)

    def _sample(
        self, clip: CachedClip, crop: Crop, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, str]:
        scale = self.scale or 1
        unit = self.spatial * scale  # pixels of a low-resolution latent
        top, left = (
            int(rng.integers((have - want) // unit + 1))
            for have, want in ((clip.height, crop.height), (clip.width, crop.width))
        )
        frames = (crop.frames - 1) // self.temporal + 1
        low_file = clip.lows[rng.integers(len(clip.lows))] if self.scale else clip.high

        def cut(file: Path, factor: int) -> torch.Tensor:
            rows = slice(top * factor, top * factor + crop.height // unit * factor)
            columns = slice(left * factor, left * factor + crop.width // unit * factor)
            return torch.from_numpy(read_latents(file, frames, rows, columns))

        return cut(clip.high, scale), cut(low_file, 1), clip.text


def cache_latents(
    clips: Sequence[CachedClip],
    encoder: VideoEncoder,
    cache_dir: str | Path,
    crops: Sequence[Crop],
    multiple: int,
    left_out: list[LeftOut] | None = None,
) -> list[CachedClip]:
    """Encodes clips, or finds the latents that the same encoder has made of them.

    Clips are cut into pieces as long as the longest crop, each of which is encoded as a stream of its own, from its
    first frame on. Files are kept under a name made of the encoder's configuration and weights: those that another
    encoder made are not found. Training the decoder does not change it.

    Args:
        clips (list of `CachedClip`): from [`~ultraflash_diffusers.training.data.preparation.prepare_clips`].
        encoder (`VideoEncoder`): on the device that is to encode.
        cache_dir (`str` or `Path`): created if there is none.
        crops (list of `Crop`): what training will cut out, in pixels.
        multiple (`int`): what heights and widths are made multiples of, by cutting off right and lower edges: pixels a
            side of a latent, times the scale where there are low-resolution clips.
        left_out (list of `LeftOut`, *optional*): gets the clips, and the ends of clips, that are too small.

    Returns:
        list of `CachedClip`: sizes in pixels; the files hold float32 `[channels, frames, height, width]`.

    Raises:
        ValueError: `encoder` is a decoder alone, or no clip is large enough.
        OSError: the cache cannot be written, for instance because the disk is full.
    """
    if not encoder.has_encoder:
        raise ValueError("`encoder` has no encoder (`encoder_channels` is empty): it cannot make latents")
    folder = Path(cache_dir) / "latents" / encoder_fingerprint(encoder)
    pieces, small, cut = [], [], 0
    for clip in tqdm(clips, desc="Encoding", unit="clip", disable=None):
        height, width = clip.height - clip.height % multiple, clip.width - clip.width % multiple
        cut += (height, width) != (clip.height, clip.width)
        for start, frames in _spans(clip.frames, crops, encoder.temporal_compression_ratio):
            if frames and height and width:
                pieces.append(_encoded(clip, start, Crop(frames, height, width), encoder, folder))
            else:
                small.append(LeftOut(str(clip.high), f"frames {start} to {clip.frames - 1} fill no latents of a crop"))
    if cut:
        logger.warning(f"{cut} of {len(clips)} clips lose edges of less than {multiple} pixels: no whole latents")
    if small:
        logger.warning(f"left out {len(small)} clips or ends of clips: too small for crops of {crops}")
    if left_out is not None:
        left_out += small
    if not pieces:
        raise ValueError(f"none of the {len(clips)} `clips` is large enough for latents of crops of {crops}")
    return pieces


def encoder_fingerprint(encoder: VideoEncoder) -> str:
    """Names what makes latents: the encoder's configuration and weights, wherever they are and whatever decodes."""
    network = encoder.autoencoder if isinstance(encoder, WanVideoEncoder) else encoder
    return weights_fingerprint(network, without="decoder")


def _spans(count: int, crops: Sequence[Crop], temporal: int) -> Iterator[tuple[int, int]]:
    """Starts and lengths of a clip's pieces; 0 for an end that is shorter than every crop."""
    longest, shortest = (pick(crop.frames for crop in crops) for pick in (max, min))
    for start in range(0, count, longest):
        left = min(longest, count - start)
        whole = left - (left - 1) % temporal
        yield start, whole if whole >= shortest else 0


def _encoded(clip: CachedClip, start: int, size: Crop, encoder: VideoEncoder, folder: Path) -> CachedClip:
    """The latents of one piece of a clip, and of its low-resolution versions."""

    def latents(file: Path) -> Path:
        path = folder / f"{file.parent.name}-{file.stem}-{start}-{size}.npy"
        if not holds_array(path):
            pixels = np.load(file, mmap_mode="r")
            divisor = clip.height // pixels.shape[1]
            rows, columns = size.height // divisor, size.width // divisor
            save_array(path, encode_stream(encoder, pixels[start : start + size.frames, :rows, :columns]))
        return path

    lows = tuple(latents(low) for low in clip.lows)
    return CachedClip(latents(clip.high), lows, clip.text, size.frames, size.height, size.width)


@torch.no_grad()
def encode_stream(encoder: VideoEncoder, frames: np.ndarray) -> np.ndarray:
    """Encodes a clip some frames at a time, as a stream.

    Args:
        encoder (`VideoEncoder`): encodes it.
        frames (`np.ndarray`): uint8 `[frames, height, width, 3]`, `t n + 1` frames for a temporal compression of t.

    Returns:
        `np.ndarray`: float32 `[channels, latent frames, latent height, latent width]`.
    """
    temporal, latents, start = encoder.temporal_compression_ratio, [], 0
    state: Any = None
    while start < len(frames):
        # the first latent of a stream is of one frame
        end = start + temporal * STEP - (temporal - 1 if start == 0 else 0)
        pixels = torch.from_numpy(np.array(frames[start:end])).permute(3, 0, 1, 2)[None].to(encoder.device)
        output = encoder.encode(from_levels(pixels).to(encoder.dtype), state)
        latents.append(output.latents[0].float().cpu().numpy())
        start, state = end, output.state
    return np.concatenate(latents, axis=1)
