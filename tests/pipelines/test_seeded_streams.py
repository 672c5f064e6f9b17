# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Streams of a generator with a seed code: seeds decide, and saved streams go on as if nothing had happened."""

from __future__ import annotations

import pytest
import torch
from helpers.tiny import make_tiny_generator, make_tiny_pipeline

from ultraflash_diffusers import PipelineStreamState

GENERATOR = {
    "frames_per_chunk": 1,
    "window_frames": 1,
    "sink_frames": 0,
    "prediction_type": "sample",
    "denoising_steps": (1000,),
    "seed_code_dim": 4,
    "reads_latents": False,
    "sample_size": (8, 12),
    "head_channels": 8,
    "head_moments": 4,
}


@pytest.fixture(scope="module")
def pipe():
    return make_tiny_pipeline(generator_transformer=make_tiny_generator(**GENERATOR))


def arguments(seed: int, num_frames: int = 41) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {"prompt": "a red ball", "num_frames": num_frames, "generator": generator, "output_type": "latent"}


def test_the_seed_decides_and_one_pass_makes_a_chunk(pipe):
    with pipe.stream(**arguments(1)) as stream:
        chunks = list(stream)
    again, other = (pipe(**arguments(seed)).frames for seed in (1, 2))
    assert torch.equal(torch.cat([chunk.frames for chunk in chunks], dim=2), again)
    assert (again - other).abs().mean() > 1e-3
    # one for each latent frame, none for writing keys and values of what is not read
    assert [count for chunk in chunks for count in chunk.statistics["generator_passes"]] == 11 * [1]


def test_a_saved_stream_keeps_its_code(pipe, tmp_path):
    with pipe.stream(**arguments(1)) as stream:
        first = next(stream)
        stream.state().save(tmp_path / "stream.safetensors")
    state = PipelineStreamState.load(tmp_path / "stream.safetensors")
    rest = pipe(**arguments(1) | {"generator": None}, state=state).frames
    assert torch.equal(torch.cat([first.frames, rest], dim=2), pipe(**arguments(1)).frames)


def test_first_frames_are_refused_where_latents_are_not_read(pipe):
    with pytest.raises(ValueError, match="`first_frames` or `first_latents` was given, but the generator does not"):
        pipe(**arguments(1), source_kwargs={"first_frames": torch.zeros(1, 3, 16, 24)})
