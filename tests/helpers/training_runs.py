# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Training scripts run in this process, on clips and tiny networks made here."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import numpy as np

from helpers.paths import ROOT

SCRIPTS = ROOT / "training"
AUTOENCODER = {
    "variant": "ultra",
    "latent_channels": 8,
    "patch_size": 4,
    "encoder_channels": [8],
    "encoder_blocks": [1],
    "encoder_spatial_strides": [1],
    "encoder_temporal_strides": [4],
    "decoder_channels": [8],
    "decoder_blocks": [1],
    "decoder_spatial_strides": [1],
    "decoder_temporal_strides": [4],
    "linear_shortcut": True,
}
UPSAMPLER = {"in_channels": 8, "out_channels": 8, "channels": [8], "num_blocks": [1], "residual": True}


HEAD = {"skip_up.0.weight", "skip_up.0.bias"}


TRANSFORMER = {
    "patch_size": [1, 2, 2],
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 16,
    "out_channels": 8,
    "text_dim": 8,
    "text_length": 6,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 1,
    "block_size": [2, 2, 2],
    "reference_tokens": None,
    "prediction_type": "detail",
}


GENERATOR: dict[str, Any] = {
    "patch_size": (1, 4, 4),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 8,
    "out_channels": 8,
    "text_dim": 8,
    "text_length": 12,
    "freq_dim": 16,
    "ffn_dim": 48,
    "num_layers": 1,
    "frames_per_chunk": 1,
    "window_frames": 2,
    "prediction_type": "sample",
    "absolute_positions": True,
}


BASE = {
    "crops": "5x32x32",
    "train_batch_size": 2,
    "max_train_steps": 100,
    "lr_warmup_steps": 2,
    "learning_rate": 2e-3,
    "validation_frames": 5,
    "clip_frames": 9,
    "logging_steps": 1,
}


def texture(seed: int, frames: int = 9, height: int = 48, width: int = 64) -> np.ndarray:
    """Sharp shapes on a soft texture, moving together, other ones for each seed."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: height + frames, : width + 2 * frames]
    canvas = np.stack(
        [128 + 40 * np.sin((rows + columns * tilt) / rng.uniform(3, 5) + seed) for tilt in (1, 0.5, -1)], axis=-1
    )
    for _ in range(8):
        top, left = rng.integers(height), rng.integers(width)
        canvas[top : top + rng.integers(6, 16), left : left + rng.integers(6, 16)] += rng.choice([-60, 60])
    clip = np.stack([canvas[t : t + height, 2 * t : 2 * t + width] for t in range(frames)])
    return clip.clip(0, 255).astype(np.uint8)


def write_video(path: Path, clip: np.ndarray) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": "5", "preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = *clip.shape[1:3], "yuv420p"
        for pixels in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


def script(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def run(name: str, material: Path, output_dir: Path, *flags: str, **options: Any) -> dict[str, float]:
    """Runs a training script with command-line arguments and returns the last validation's measures."""
    data = {} if "dataset_name" in options else {"train_data_dir": material / "train"}
    options = BASE | data | {"cache_dir": material / "cache"} | options
    arguments = [part for key, value in options.items() for part in (f"--{key}", *str(value).split(" "))]
    flags = (*flags, "--output_dir", str(output_dir), "--validation_data_dir", str(material / "held_out"))
    module = script(name)
    return module.main(module.parse_arguments([*arguments, *flags]))


def log(output_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output_dir / "log.jsonl").read_text().splitlines()]
