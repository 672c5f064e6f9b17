# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""A transformer that has absorbed the empty text: the same without texts, and deaf to them."""

from __future__ import annotations

import torch
from helpers.training_runs import TRANSFORMER

from ultraflash_diffusers import UltraFlashSRTransformer
from ultraflash_diffusers.training.starting_points.text_free import absorb_empty_text


@torch.no_grad()
def test_absorbing_the_empty_text_changes_results_with_texts_alone() -> None:
    torch.manual_seed(0)
    transformer = UltraFlashSRTransformer(**TRANSFORMER | {"num_layers": 2}).eval()
    video, timestep = torch.randn(1, 16, 2, 8, 8), torch.tensor([1000.0])
    empty = torch.zeros(1, 6, 8)

    def result(text: torch.Tensor) -> torch.Tensor:
        return transformer(video, timestep, text).sample

    text = torch.randn_like(empty)
    before, with_text = result(empty), result(text)
    assert (with_text - before).abs().max() > 1e-3
    absorb_empty_text(transformer)
    torch.testing.assert_close(result(empty), before)
    assert torch.equal(result(text), result(empty))
    # again, as after more training: nothing is lost
    absorb_empty_text(transformer)
    torch.testing.assert_close(result(text), before)
