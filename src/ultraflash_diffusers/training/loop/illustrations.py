# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What a training run can be judged by with the eye: held-out clips side by side, and curves of the log."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch.nn import functional as F

from ...video_io import VideoWriter, tensor_to_frames, write_side_by_side_png

_FPS = 24
_PANEL_WIDTH, _PANEL_HEIGHT, _COLUMNS = 360, 220, 3
_MARGIN = 28
_NOT_MEASURED = {"step", "seconds"}


def write_comparison(path: Path, videos: Mapping[str, torch.Tensor]) -> np.ndarray:
    """Writes videos side by side: all frames as `path`.mp4, the middle frame with their names as `path`.png.

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
    with VideoWriter(path.with_suffix(".mp4"), frames.shape[2], frames.shape[1], fps=_FPS, overwrite=True) as writer:
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
    rows = -(-len(names) // _COLUMNS)
    sheet = Image.new("RGB", (_COLUMNS * _PANEL_WIDTH, max(rows, 1) * _PANEL_HEIGHT), "white")
    for index, name in enumerate(names):
        row, column = divmod(index, _COLUMNS)
        sheet.paste(_panel(name, curves[name]), (column * _PANEL_WIDTH, row * _PANEL_HEIGHT))
    sheet.save(path)


def _resized(video: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if tuple(video.shape[3:]) == size:
        return video
    return F.interpolate(video.float(), (video.shape[2], *size), mode="nearest-exact")


def _panel(name: str, points: Sequence[tuple[int, float]]) -> Image.Image:
    """One curve in a frame, with the ends of both axes and the last value."""
    panel = Image.new("RGB", (_PANEL_WIDTH, _PANEL_HEIGHT), "white")
    draw, font = ImageDraw.Draw(panel), ImageFont.load_default(size=12)
    left, top, right, bottom = _MARGIN // 2, _MARGIN, _PANEL_WIDTH - _MARGIN // 2, _PANEL_HEIGHT - _MARGIN
    steps, values = np.array(points, float).T
    low, high = values.min(), values.max()
    x = left + (right - left) * _share(steps, steps.min(), steps.max())
    y = bottom - (bottom - top) * _share(values, low, high)
    draw.rectangle((left, top, right, bottom), outline="lightgrey")
    corners = list(zip(x.tolist(), y.tolist(), strict=True))
    draw.line(corners, fill="steelblue", width=2)
    draw.ellipse((x[-1] - 3, y[-1] - 3, x[-1] + 3, y[-1] + 3), fill="steelblue")
    draw.text((left, 6), f"{name}   {values[-1]:.4g}", fill="black", font=font)
    draw.text((left + 4, top + 2), f"{high:.4g}", fill="grey", font=font)
    draw.text((left + 4, bottom - 16), f"{low:.4g}", fill="grey", font=font)
    draw.text((left, bottom + 6), f"step {steps.min():.0f} to {steps.max():.0f}", fill="grey", font=font)
    return panel


def _share(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Where values lie between two others, from 0 to 1; in the middle where these are equal."""
    return (values - low) / (high - low) if high > low else np.full_like(values, 0.5)
