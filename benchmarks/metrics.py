# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Image and video quality measures. Frames are uint8 RGB arrays [F, H, W, 3] everywhere; results are plain floats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
import torch

from ultraflash_diffusers.pixels import LUMA
from ultraflash_diffusers.training.losses.perceptual import PerceptualLoss

WINDOW_SIGMA, WINDOW_RADIUS, SCALES = 1.5, 5, 5
_EXACT_PIXELS = 2**19  # of a frame whose similarity is computed in double precision


def luma(frames: np.ndarray) -> np.ndarray:
    """BT.601 luma, full range, not rounded: float32 [F, H, W] in [0, 255]."""
    return frames.astype(np.float32) @ np.array(LUMA, np.float32)


def psnr(frames: np.ndarray, truth: np.ndarray) -> float:
    """Mean over frames of the peak signal-to-noise ratio over R, G and B together, in dB; infinite if equal."""
    _check_pair(frames, truth)
    with np.errstate(divide="ignore"):
        errors = [np.mean((a.astype(np.float64) - b) ** 2) for a, b in zip(frames, truth, strict=True)]
        return float(np.mean(10 * np.log10(255**2 / np.array(errors))))


def ssim(frames: np.ndarray, truth: np.ndarray) -> float:
    """Structural similarity of the luma (Wang et al. 2004: 11x11 Gaussian window, sigma 1.5, windows wholly inside
    the frame), mean over frames; torchmetrics'."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    def inside(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        _, image = structural_similarity_index_measure(
            a, b, sigma=WINDOW_SIGMA, data_range=255.0, reduction="none", return_full_image=True
        )
        return image[..., WINDOW_RADIUS:-WINDOW_RADIUS, WINDOW_RADIUS:-WINDOW_RADIUS].mean((1, 2, 3))

    return _mean_over_frames(inside, frames, truth)


def ms_ssim(frames: np.ndarray, truth: np.ndarray) -> float:
    """Multi-scale structural similarity of the luma over five scales (Wang, Simoncelli and Bovik 2003), mean over
    frames; torchmetrics', whose coarsest scale counts windows over the reflected border, too.

    Raises:
        ValueError: If a side is too small for five scales, 176 pixels being the least.
    """
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    smallest = (2 * WINDOW_RADIUS + 1) * 2 ** (SCALES - 1)
    if min(frames.shape[1:3]) < smallest:
        raise ValueError(f"MS-SSIM needs at least {smallest} rows and columns, got {frames.shape[1:3]}.")
    # A negative mean has no real power: "relu" counts it as no similarity at all.
    measure = partial(
        multiscale_structural_similarity_index_measure,
        sigma=WINDOW_SIGMA,
        data_range=255.0,
        reduction="none",
        normalize="relu",
    )
    return _mean_over_frames(measure, frames, truth)


def _mean_over_frames(
    measure: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    frames: np.ndarray,
    truth: np.ndarray,
    batch: int = 8,
) -> float:
    """Mean of a per-frame measure of two luma batches.

    Large ones in single precision: a convolution in double precision holds its whole window for each pixel, 87 GB for
    five frames of 2560x1440. SSIM subtracts nearly equal numbers, so that single precision costs it about 1e-6.
    """
    _check_pair(frames, truth)
    values = []
    for start in range(0, len(frames), batch):
        a, b = (torch.from_numpy(luma(x[start : start + batch]))[:, None] for x in (frames, truth))
        exact = a[0].numel() <= _EXACT_PIXELS
        values.append(measure(a.double(), b.double()) if exact else measure(a, b))
    return float(torch.cat(values).mean())


def _check_pair(frames: np.ndarray, truth: np.ndarray) -> None:
    if frames.shape != truth.shape or frames.ndim != 4 or frames.shape[3] != 3 or not len(frames):
        raise ValueError(f"frames and truth must be equal [F, H, W, 3] shapes, got {frames.shape} and {truth.shape}.")
    if frames.dtype != np.uint8 or truth.dtype != np.uint8:
        raise ValueError(f"frames and truth must be uint8, got {frames.dtype} and {truth.dtype}.")


def perceptual_distance(
    frames: np.ndarray,
    truth: np.ndarray,
    distance: PerceptualLoss,
    every: int = 5,
    largest: tuple[int, int] = (256, 384),
) -> float:
    """Mean of a perceptual distance over every so manieth frame; of larger frames than these, of their middle."""
    _check_pair(frames, truth)
    rows, columns = (
        slice((side - part) // 2, (side + part) // 2) if side > part else slice(None)
        for side, part in zip(frames.shape[1:3], largest, strict=True)
    )

    def video(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array[::every, rows, columns]).permute(3, 0, 1, 2)[None].float() / 127.5 - 1

    return float(distance(video(frames), video(truth)))


def flicker(frames: np.ndarray, share: float = 0.999) -> tuple[int, int]:
    """Change from frame to frame of what should stand still, in levels of R, G and B: the largest one, and the one
    that this share of all values does not exceed."""
    counts = np.zeros(256, np.int64)
    for former, frame in zip(frames[:-1], frames[1:], strict=True):
        counts += np.bincount(np.abs(frame.astype(np.int16) - former).ravel(), minlength=256)
    if not counts.sum():
        raise ValueError(f"flicker needs two frames at least, got {len(frames)}.")
    reached = np.cumsum(counts) >= share * counts.sum()
    return int(np.flatnonzero(counts)[-1]), int(np.argmax(reached))


def grain_deviation(frames: np.ndarray, clean: np.ndarray) -> float:
    """Deviation of the luma's grain, in levels, mean over frames; grain is what differs from the frames without."""
    if frames.shape != clean.shape:
        raise ValueError(f"frames and clean ones must have one shape, got {frames.shape} and {clean.shape}.")
    return float(np.mean([(luma(a) - luma(b)).std() for a, b in zip(frames, clean, strict=True)]))


def seam_ratio(frames: np.ndarray, pixels: int) -> float:
    """Mean step of the luma across every `pixels`-th row and column border, relative to that across all others: 1
    where no tiles show, if the picture has no grid of its own."""
    ratios = []
    for axis in (1, 2):
        total = np.sum([np.abs(np.diff(luma(frame), axis=axis - 1)).mean(axis=2 - axis) for frame in frames], axis=0)
        borders = np.arange(1, len(total) + 1) % pixels == 0
        ratios.append(total[borders].mean() / total[~borders].mean())
    return float(np.mean(ratios))


def laplacian_variance(frames: np.ndarray) -> float:
    """No-reference sharpness: variance of the luma's Laplacian, mean over frames. Noise raises it as detail does."""
    return float(np.mean([cv2.Laplacian(y, cv2.CV_32F).var() for y in luma(frames)]))


@dataclass(frozen=True)
class Motion:
    """Where each pixel of a clip's frames came from, as found in the truth.

    Args:
        maps (`np.ndarray`): float32 [F - 1, H, W, 2]: for each pixel of frame t, its (x, y) in frame t - 1.
        visible (`np.ndarray`): bool [F - 1, H, W]: the pixel is in the frame and not occluded in frame t - 1.
    """

    maps: np.ndarray
    visible: np.ndarray


def estimate_motion(truth: np.ndarray) -> Motion:
    """DIS optical flow (Kroeger et al. 2016) between neighbouring frames, both ways.

    A pixel counts as visible where the flow there and the flow back agree, by the rule of Sundaram et al. (2010).
    """
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grey = np.round(luma(truth)).astype(np.uint8)
    grid = np.stack(np.meshgrid(*(np.arange(n, dtype=np.float32) for n in (truth.shape[2], truth.shape[1]))), axis=-1)
    maps, visible = [], []
    for previous, current in zip(grey[:-1], grey[1:], strict=True):
        # No initial flow is None, which OpenCV's type stubs do not know.
        back = flow.calc(current, previous, None)  # type: ignore[call-overload]
        forth = flow.calc(previous, current, None)  # type: ignore[call-overload]
        source = grid + back
        returned = _sample(forth, source)
        disagreement = np.sum((back + returned) ** 2, axis=-1)
        allowed = 0.01 * (np.sum(back**2, axis=-1) + np.sum(returned**2, axis=-1)) + 0.5
        inside = np.all((source >= 0) & (source <= grid[-1, -1]), axis=-1)
        maps.append(source)
        visible.append(inside & (disagreement < allowed))
    return Motion(np.stack(maps), np.stack(visible))


def warping_error(frames: np.ndarray, motion: Motion) -> float:
    """Temporal warping error: mean of `|frame_t - warp(frame_{t-1})|` over visible pixels and R, G, B, in 8-bit
    units. The truth has an error of its own (light changes, flow is not perfect): compare with that."""
    if len(frames) != len(motion.maps) + 1:
        raise ValueError(f"motion of {len(motion.maps) + 1} frames does not fit {len(frames)} frames.")
    errors = []
    for previous, current, source, seen in zip(frames[:-1], frames[1:], motion.maps, motion.visible, strict=True):
        errors.append(np.abs(current.astype(np.float32) - _sample(previous.astype(np.float32), source))[seen].mean())
    return float(np.mean(errors))


def _sample(image: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Bilinear samples of a float32 image at the (x, y) given for each pixel."""
    x, y = source[..., 0], source[..., 1]
    return cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
