# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The ComfyUI nodes, against the interface that ComfyUI documents."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import numpy as np
import pytest
import torch
from helpers import comfyui
from helpers.clips import make_clip
from helpers.tiny import make_tiny_pipeline

from ultraflash_diffusers.video_io import VideoReader


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> comfyui.Host:
    return comfyui.install(monkeypatch, tmp_path / "temporary")


@pytest.fixture
def pack(host: comfyui.Host) -> Iterator[ModuleType]:
    yield importlib.import_module("integrations.comfyui.nodes")
    for name in ("integrations.comfyui", "integrations.comfyui.nodes"):
        sys.modules.pop(name)


def read(path: str) -> np.ndarray:
    return np.stack([frame.pixels for frame in VideoReader(path)])


def test_schemas_and_signatures_agree(pack: ModuleType) -> None:
    extension = asyncio.run(importlib.import_module("integrations.comfyui").comfy_entrypoint())
    nodes: list[Any] = asyncio.run(extension.get_node_list())
    schemas = [node.define_schema() for node in nodes]
    assert len({schema.node_id for schema in schemas}) == len(nodes) == 3
    for node, schema in zip(nodes, schemas, strict=True):
        assert [each.id for each in schema.inputs] == list(inspect.signature(node.execute).parameters)
        assert schema.outputs and schema.display_name and schema.category
        for each in schema.inputs:
            if each.io_type == "COMBO":
                assert each.default in each.options


def test_the_packaged_pipeline_is_loaded(pack: ModuleType) -> None:
    (pipe,) = pack.LoadUltraFlash.execute("packaged", "auto").args
    assert pipe.transformer.dtype == torch.float32
    assert pipe.generator_transformer is not None


def test_a_video_is_upscaled_with_its_sound(pack: ModuleType, host: comfyui.Host, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", 9, audio="aac", pts=[0, 512, 1024, 2048, 2560, 3072, 3584, 4096, 4608])
    pipe = make_tiny_pipeline()
    (video,) = pack.UpscaleVideo.execute(pipe, comfyui.VideoFromFile(str(clip)), "wavelet", 3).args
    source, result = VideoReader(clip), VideoReader(video.file)
    assert (result.info.width, result.info.height) == (2 * source.info.width, 2 * source.info.height)
    assert [frame.pts / result.info.time_base.denominator for frame in result] == pytest.approx(
        [frame.pts / source.info.time_base.denominator for frame in source]
    )
    with av.open(video.file) as container:
        assert [stream.type for stream in container.streams] == ["video", "audio"]
    expected = pipe(source=str(clip), generator=torch.Generator().manual_seed(3), output_type="uint8").frames[0]
    # H.264 with half the chroma keeps little of a random network's noise, but the means of 8 x 8 pixels
    blocks = [frames.reshape(9, 12, 8, 16, 8, 3).mean((2, 4)) for frames in (read(video.file), np.asarray(expected))]
    assert np.abs(blocks[0] - blocks[1]).max() < 8
    assert host.progress[-1] == (9, 9)


def test_a_video_is_made_from_text(pack: ModuleType, host: comfyui.Host) -> None:
    pipe = make_tiny_pipeline()
    (video,) = pack.TextToVideo.execute(pipe, "a red ball", 0, 0, 0, 1).args
    assert read(video.file).shape == (9, 32, 48, 3)
    assert VideoReader(video.file).info.fps == 12
    (small,) = pack.TextToVideo.execute(pipe, "a red ball", 32, 16, 5, 1).args
    assert read(small.file).shape == (5, 16, 32, 3)
    assert host.progress[-1] == (5, 5)


def test_stopping_ends_between_chunks(pack: ModuleType, host: comfyui.Host) -> None:
    host.stop_after = 1
    with pytest.raises(comfyui.Interrupted):
        pack.TextToVideo.execute(make_tiny_pipeline(), "a red ball", 0, 0, 60, 1)
    assert len(host.progress) == 1


def test_memory_is_checked_before_anything_runs(pack: ModuleType, host: comfyui.Host) -> None:
    pipe = make_tiny_pipeline()
    host.device, host.free = torch.device("cuda"), 10
    with pytest.raises(MemoryError, match=r"48x32 needs .* GB on cuda beside the weights"):
        pack.TextToVideo.execute(pipe, "a red ball", 0, 0, 0, 1)
    assert not host.progress
    host.free = 10**9
    pack.make_room(pipe, 32, 48)
    assert 0 < host.freed[0] == host.freed[1] < 10**8
    pack.make_room(pipe, 320, 480)
    assert host.freed[2] > 10 * host.freed[0]
