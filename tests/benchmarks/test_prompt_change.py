# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""When a new prompt is followed, read off rendered scenes of which it is known; the stream of a tiny pipeline."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.tiny import make_tiny_pipeline

from benchmarks.prompt_change import Following, changed_video, draw_changes, following, next_chunk

(CHANGE,) = draw_changes(1, seed=0)


@pytest.mark.parametrize("late", [0, 7])
def test_the_frame_from_which_it_is_followed(late: int) -> None:
    before, after = CHANGE.before.render(5 + late), CHANGE.after.render(20)
    assert following(np.concatenate([before, after]), CHANGE, 5) == Following(late, late)
    misread = np.concatenate([before, after[:4], before[:1], after])
    assert following(misread, CHANGE, 5) == Following(late, late)
    assert following(before.repeat(3, axis=0), CHANGE, 5) == Following(None, None)


def test_a_stream_changes_where_its_next_chunk_begins() -> None:
    pipe = make_tiny_pipeline(text=True)
    assert [next_chunk(pipe, frame) for frame in (0, 1, 9, 10)] == [0, 9, 9, 21]
    seed = torch.Generator().manual_seed(0)
    (before,) = pipe(CHANGE.before.prompts()[0], num_frames=33, generator=seed, output_type="uint8").frames
    for recompute in (False, True):
        video = changed_video(pipe, CHANGE, 33, 10, recompute, seed=0)
        # groups of four latents: the SR transformer's next one begins at frame 13
        assert np.array_equal(video[:13], before[:13]) and not np.array_equal(video[13:], before[13:])
