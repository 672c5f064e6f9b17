# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""VMAF (Netflix) by an ffmpeg that has libvmaf, such as the one that `imageio-ffmpeg` brings."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np

_LOG = "vmaf.json"
_GRAPH = f"[0:v]format=yuv420p[a];[1:v]format=yuv420p[b];[a][b]libvmaf=log_fmt=json:log_path={_LOG}"


@lru_cache
def ffmpeg_with_vmaf() -> str | None:
    """The program to run: `imageio-ffmpeg`'s, or the one on the PATH; `None` where neither has libvmaf."""
    import imageio_ffmpeg

    for program in (imageio_ffmpeg.get_ffmpeg_exe(), shutil.which("ffmpeg")):
        if program is None:
            continue
        listed = subprocess.run([program, "-hide_banner", "-filters"], capture_output=True, text=True, check=False)
        if " libvmaf " in listed.stdout:
            return program
    return None


def vmaf(frames: np.ndarray, truth: np.ndarray, program: str) -> float:
    """VMAF of frames, in [0, 100], mean over them: libvmaf's own model (v0.6.1), of the luma.

    The model was made for pictures of 1080 lines seen from three times their height: of smaller ones it says how they
    would look if they were shown as large.

    Args:
        frames, truth (`np.ndarray`): uint8 RGB, [F, H, W, 3], sides even.
        program (`str`): what [`ffmpeg_with_vmaf`] found.

    Raises:
        RuntimeError: ffmpeg failed; with its message.
    """
    height, width = truth.shape[1:3]
    with tempfile.TemporaryDirectory() as folder:
        inputs: list[str] = []
        for name, video in (("frames", frames), ("truth", truth)):
            np.ascontiguousarray(video).tofile(Path(folder) / f"{name}.rgb")
            inputs += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-i", f"{name}.rgb"]
        command = [program, "-nostdin", "-v", "error", *inputs, "-lavfi", _GRAPH, "-f", "null", "-"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{program} could not measure VMAF: {done.stderr.strip()}")
        return float(json.loads((Path(folder) / _LOG).read_text())["pooled_metrics"]["vmaf"]["mean"])
