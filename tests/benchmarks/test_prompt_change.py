# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""When a new prompt is followed, read off rendered scenes of which it is known; the stream of a tiny pipeline."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.tiny import make_tiny_pipeline

from benchmarks.prompt_change import Following, changed_video, draw_changes, following, next_chunk
from benchmarks.text_to_video import SeedCodes
from ultraflash_diffusers.training.data.world import CODE_SIZE

(CHANGE,) = draw_changes(1, seed=0)


@pytest.mark.parametrize("late", [0, 4])
def test_the_frame_from_which_it_is_followed(late: int) -> None:
    codes = SeedCodes(CODE_SIZE, 36.0, 4)
    before, after = (
        codes.request(scene, text, 0, 14)
        for scene, text in zip((CHANGE.before, CHANGE.after), CHANGE.texts, strict=True)
    )
    old, new = before.render(96, 160), after.render(96, 160)
    start = 2 + late
    assert following(np.concatenate([old[:start], new[start:]]), after, 2) == Following(late, late)
    assert following(old, after, 2) == Following(None, None)


def test_a_stream_changes_where_its_next_chunk_begins() -> None:
    pipe = make_tiny_pipeline(text=True)
    assert [next_chunk(pipe, frame) for frame in (0, 1, 9, 10)] == [0, 9, 9, 21]
    seed = torch.Generator().manual_seed(0)
    (before,) = pipe(CHANGE.texts[0], num_frames=33, generator=seed, output_type="uint8").frames
    for recompute in (False, True):
        video = changed_video(pipe, CHANGE, 33, 10, recompute, seed=0)
        # groups of four latents: the SR transformer's next one begins at frame 13
        assert np.array_equal(video[:13], before[:13]) and not np.array_equal(video[13:], before[13:])
