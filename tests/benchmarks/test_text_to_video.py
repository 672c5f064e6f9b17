# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Measures of videos from text, of videos of which they are known."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest
import torch
from helpers.tiny import make_tiny_generator, make_tiny_pipeline

from benchmarks.text_to_video import Request, SeedCodes, asked, generator_videos, measure, pipeline_videos, read
from ultraflash_diffusers.training.data.world import CODE_SIZE, WorldScene, WorldThing

CODES = SeedCodes(CODE_SIZE, 36.0, 4)
THING = WorldThing("ball", "red", "sways")
SCENE = WorldScene(np.zeros(CODE_SIZE), (THING,), "sand", "day")


def request(scene: WorldScene = SCENE, seed: int = 5, num_frames: int = 25) -> Request:
    return CODES.request(scene, "a red ball sways over sand by day", seed, num_frames)


def test_scenes_are_read_back_as_their_texts_say() -> None:
    for drawn in CODES.draw(8, 25, seed=1):
        assert read(drawn.render(192, 320), drawn) == asked(drawn)


@pytest.mark.parametrize(("name", "shown"), [("color", "blue"), ("kind", "cube"), ("motion", "bounces")])
def test_what_is_shown_in_the_place_of_what_was_asked_for_is_read(name: str, shown: str) -> None:
    other = dataclasses.replace(THING, **{name: shown})
    frames = request(dataclasses.replace(SCENE, things=(other,))).render(96, 160)
    expected = {"color": ("red",), "kind": ("ball",), "motion": ("sways",), "number": ("1",)}
    assert read(frames, request()) == expected | {name: (shown,)}


def test_things_too_many_and_too_few_are_counted() -> None:
    two = dataclasses.replace(SCENE, things=(THING, WorldThing("cone", "white", "still")))
    assert read(request(two).render(96, 160), request())["number"] == ("2",)
    assert read(request().render(96, 160), request(two))["number"] == ("1",)
    assert asked(request(two)) == {
        "color": ("red", "white"),
        "kind": ("ball", "cone"),
        "motion": ("sways", "still"),
        "number": ("2",),
    }


def test_the_scene_itself_has_no_fault_and_tiles_are_seen() -> None:
    wanted = request(num_frames=9)
    truth = wanted.render(96, 160)
    fine = measure(np.clip(truth, 0, 254) + np.uint8(1), wanted, 8, 4)
    assert fine.psnr == pytest.approx(20 * np.log10(255), abs=0.1) and all(fine.right.values())
    assert fine.sharpness == pytest.approx(1, abs=0.02)
    assert fine.seams == pytest.approx(1, abs=0.02) and fine.chunk_seams == pytest.approx(1, abs=0.02)
    steps = (np.indices((96, 160)) // 8).sum(0) % 2 * 6
    tiled = measure(np.clip(truth.astype(int) + steps[None, :, :, None], 0, 255).astype(np.uint8), wanted, 8, 4)
    assert tiled.seams > 3 and tiled.flat > fine.flat + 0.5
    jumping = truth.copy()
    jumping[1:5] = np.clip(jumping[1:5].astype(int) + 12, 0, 255)
    assert measure(jumping, wanted, 8, 4).chunk_seams > 2
    blurred = np.stack([cv2.GaussianBlur(frame, (0, 0), 2) for frame in truth])
    assert measure(blurred, wanted, 8, 4).sharpness < 0.5


def test_seeds_and_clocks_are_the_pipelines_own() -> None:
    coded = {"seed_code_dim": CODE_SIZE, "reads_latents": False, "frames_per_chunk": 1, "window_frames": 1}
    one_step = {"prediction_type": "sample", "denoising_steps": (1000,), "sink_frames": 0, "sample_size": (8, 12)}
    pipe = make_tiny_pipeline(
        text=True, generator_transformer=make_tiny_generator(**coded, **one_step), default_height=64, default_width=96
    )
    codes = SeedCodes.of(pipe)
    wanted = codes.request(SCENE, "a red ball", 5, 9)
    with pipe.stream("a red ball", num_frames=9, generator=torch.Generator().manual_seed(5)) as stream:
        next(stream)
        code = stream.state().source.network.seed_code
    np.testing.assert_allclose(code[0].double().numpy(), wanted.scene.code)
    assert wanted.moments.shape == (9,) and pipeline_videos(pipe)("a red ball", 5, 9).shape == (9, 64, 96, 3)
    assert generator_videos(pipe)("a red ball", 5, 9).shape[0] == 9
    with pytest.raises(ValueError, match="has no seed code"):
        SeedCodes.of(make_tiny_pipeline(text=True))
