# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What a training run can be judged by with the eye: held-out clips side by side, and curves of the log."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.nn import functional as F

from ...video_io.frames import tensor_to_frames, write_side_by_side_png

_FPS = 24
_PANEL_WIDTH, _PANEL_HEIGHT, _COLUMNS = 3.6, 2.2, 3  # inches, of 100 pixels
_NOT_MEASURED = {"step", "seconds"}


def write_comparison(path: Path, videos: Mapping[str, torch.Tensor]) -> np.ndarray:
    """Writes videos side by side: all frames as `path`.mp4, the middle frame with their names as `path`.png.

    Where PyAV is missing, as on rented machines, there is no MP4.

    Args:
        path (`Path`): without ending; its folder is created.
        videos (mapping of `str` to `torch.Tensor`): `[1, 3, frames, height, width]` each, in [-1, 1], equally many
            frames; smaller ones are shown in the size of the largest, pixel by pixel.

    Returns:
        `np.ndarray`: uint8 `[height, width, 3]`, the middle frames without names.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = max(tuple(video.shape[3:]) for video in videos.values())
    clips = [tensor_to_frames(_resized(video, (height, width))) for video in videos.values()]
    frames = np.concatenate(clips, axis=2)
    if importlib.util.find_spec("av") is not None:
        from ...video_io import VideoWriter

        target = path.with_suffix(".mp4")
        with VideoWriter(target, frames.shape[2], frames.shape[1], fps=_FPS, overwrite=True) as writer:
            writer.write(frames)
    middle = len(frames) // 2
    write_side_by_side_png(path.with_suffix(".png"), [clip[middle] for clip in clips], list(videos))
    return frames[middle]


def draw_curves(log_file: Path, path: Path) -> None:
    """Draws each number of a training log against the step, a panel each.

    Args:
        log_file (`Path`): the loop's `log.jsonl`.
        path (`Path`): the PNG file.
    """
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in log_file.read_text().splitlines():
        entry = json.loads(line)
        for name, value in entry.items():
            if name not in _NOT_MEASURED and np.isfinite(value):
                curves.setdefault(name, []).append((entry["step"], value))
    names = sorted(curves, key=lambda name: (not name.startswith("validation/"), name != "loss", name))
    rows = max(1, -(-len(names) // _COLUMNS))
    figure = Figure(figsize=(_COLUMNS * _PANEL_WIDTH, rows * _PANEL_HEIGHT), layout="constrained")
    panels = list(figure.subplots(rows, _COLUMNS, squeeze=False).flat)
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    for axes, name in zip(panels, names, strict=False):
        axes.plot(*zip(*curves[name], strict=True), marker=".", markevery=[-1])
        axes.set_title(f"{name}   {curves[name][-1][1]:.4g}", fontsize="medium")
    figure.savefig(path)


def _resized(video: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if tuple(video.shape[3:]) == size:
        return video
    return F.interpolate(video.float(), (video.shape[2], *size), mode="nearest-exact")
