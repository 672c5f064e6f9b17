# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The small world and what trains on it: exact at any size, periodic, decided by text and code."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers.training_runs import AUTOENCODER, GENERATOR, script

from ultraflash_diffusers import CausalWanTransformer, HRAutoencoder
from ultraflash_diffusers.models.seed_code import clock, ridge_terms
from ultraflash_diffusers.training.data.world import (
    ANCHORS,
    CODE_SIZE,
    COLORS,
    KINDS,
    MOTIONS,
    RIDGES,
    WorldScene,
    WorldThing,
    draw_scene,
    vocabulary,
)
from ultraflash_diffusers.training.data.world_batches import WorldDataset


def phases(codes: torch.Tensor, frames: int) -> torch.Tensor:
    return clock(codes, torch.tensor(0), frames, 36.0, moments=4)


def test_scenes_are_the_same_at_any_size_and_in_each_period():
    rng = np.random.default_rng(0)
    for _ in range(6):
        scene = draw_scene(rng)
        small, large = scene.render(np.array([0.3]), 48, 80), scene.render(np.array([5.3]), 192, 320)
        shrunk = large.reshape(1, 48, 4, 80, 4, 3).mean((2, 4))
        assert small.min() >= 0 and large.max() <= 1
        assert np.abs(shrunk - small).mean() < 0.004


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("count", [1, 2])
def test_a_thing_is_where_its_anchor_says(kind, motion, count):
    code = np.random.default_rng(3).standard_normal(CODE_SIZE)
    other = WorldThing("cube", "green", "still")
    scene = WorldScene(code, (WorldThing(kind, "red", motion), other)[:count], "snow", "day")
    for phase in (0.35, 0.6):
        column, row, reach = scene.anchors(np.array([phase]))[0, 0]
        frame = scene.render(np.array([phase]))[0]
        redness = frame[..., 0] - frame[..., 1:].max(-1)
        rows, columns = np.nonzero(redness > 0.15)
        reach, columns, rows = 192 * np.exp(reach), columns + 0.5 - 160 - 192 * column, rows + 0.5 - 192 * row
        assert abs(columns.mean()) < 0.2 * reach and abs(rows.mean()) < 0.4 * reach
        assert np.abs(columns).max() < reach and np.abs(rows).max() < reach


def test_what_a_text_leaves_open_the_code_decides():
    code = np.random.default_rng(1).standard_normal(CODE_SIZE)
    still = np.zeros(1)
    plain = WorldScene(code, (WorldThing("cone"),)).render(still)
    assert not np.array_equal(plain, WorldScene(-code, (WorldThing("cone"),)).render(still))
    pictures = [WorldScene(code, (WorldThing("cone", color),)).render(still) for color in COLORS]
    assert all(not np.array_equal(one, other) for one, other in zip(pictures, pictures[1:], strict=False))
    things = (WorldThing("ball", "orange", "left"), WorldThing("cube", "pink"))
    texts = {WorldScene(code, things, "sand", "night").text(np.random.default_rng(n)) for n in range(40)}
    assert "an orange ball moves left and a pink cube over sand at night" in texts and len(texts) > 3
    assert {word for text in texts for word in text.split()} <= set(vocabulary())


def test_a_part_is_drawn_as_in_the_whole():
    rng = np.random.default_rng(7)
    for _ in range(12):
        scene, moments = draw_scene(rng), rng.random(2)
        top, left = int(rng.integers(128)), int(rng.integers(224))
        part = scene.render(moments, window=(slice(top, top + 64), slice(left, left + 96)))
        np.testing.assert_array_equal(part, scene.render(moments)[:, top : top + 64, left : left + 96])


def test_hills_end_at_their_ridges():
    code = np.random.default_rng(4).standard_normal(CODE_SIZE)
    scene = WorldScene(code, (WorldThing("ball", "red", "still"),), "snow", "day")
    columns = (torch.arange(320) + 0.5 - 160) / 192
    rows = ridge_terms(columns.double()).numpy() @ scene.ridges().T * 192
    frame = scene.render(np.zeros(1))[0].sum(-1)
    for line in (0, 1):  # far and near hills
        crest = rows[:, line]
        steps = [abs(frame[int(row) + 2, x] - frame[int(row) - 2, x]) for x, row in enumerate(crest)]
        assert np.median(steps) > 0.05


def test_batches_depend_on_their_number_alone():
    first, again = (WorldDataset(phases, 2, (24, 40), 4, (10, 12), more_scenes=3) for _ in range(2))
    batch, same = first[3], again[3]
    assert batch.codes.shape == (5, CODE_SIZE) and len(batch.texts) == 5
    assert batch.pixels.shape == (2, 3, 40, 48) and batch.places.anchors.shape == (5, 1, 4, ANCHORS, 3)
    assert batch.texts == same.texts and torch.equal(batch.pixels, same.pixels)
    assert not torch.equal(batch.pixels, first[4].pixels)
    for top, left in zip(batch.window.tops.tolist(), batch.window.lefts.tolist(), strict=True):
        assert 0 <= top <= 14 and 0 <= left <= 28
    assert first.clips(0).pixels.shape == (2, 3, 5, 96, 160)


def test_the_script_trains_what_a_pipeline_loads(tmp_path):
    torch.manual_seed(0)
    HRAutoencoder(**AUTOENCODER).save_pretrained(tmp_path / "autoencoder")
    coded = {"window_frames": 1, "seed_code_dim": CODE_SIZE, "reads_latents": False, "denoising_steps": (1000,)}
    things = {"head_ridges": RIDGES, "head_sprites": (16, 16, 8, 8, 8), "head_far_sprites": 1, "head_patterns": 1}
    sizes = {"head_channels": 8, "sample_size": (8, 12)} | things
    (tmp_path / "config.json").write_text(json.dumps(GENERATOR | coded | sizes))
    program = script("train_seeded_generator")
    given = {
        "network_config": tmp_path / "config.json",
        "autoencoder": tmp_path / "autoencoder",
        "output_dir": tmp_path / "out",
        "max_train_steps": 30,
        "train_batch_size": 2,
        "more_scenes": 60,
        "validation_batches": 1,
        "learning_rate": 3e-3,
        "lr_warmup_steps": 2,
        "logging_steps": 5,
    }
    line = [part for name, value in given.items() for part in (f"--{name}", str(value))] + ["--window", "4", "6"]
    assert program.main(program.parse_arguments([*line, "--dry_run"]))["gib"] > 0
    measures = program.main(program.parse_arguments(line))
    log = [json.loads(text) for text in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    places = [entry["places"] for entry in log if "places" in entry]
    assert places[-1] < 0.8 * places[0] and np.isfinite(list(measures.values())).all()
    network = CausalWanTransformer.from_pretrained(tmp_path / "out", subfolder="generator_transformer")
    assert network.config.seed_code_dim == CODE_SIZE and not hasattr(network, "patch_embedding")
    assert network.head.patterns.abs().max() > 0.5  # it began as what the world's pictures have in common
