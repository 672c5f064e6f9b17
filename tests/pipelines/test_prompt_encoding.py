# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Prompts to embeddings: from several threads, of any length, with words that nobody knows."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

import pytest
import torch
from diffusers.utils import logging
from helpers.tiny import TEXT_LENGTH, WORDS, make_tiny_pipeline

from ultraflash_diffusers.pipelines.tokens import tokenize

PIPE = make_tiny_pipeline()


@pytest.fixture
def said(caplog):
    """What was logged."""
    logging.enable_propagation()
    yield caplog
    logging.disable_propagation()


def test_four_threads_get_what_one_gets():
    """A tokenizer holds padding and truncation of the call at hand, which other threads must not change."""
    prompts = [" ".join(WORDS[number : number + length]) for length in (1, 2, 5, 9) for number in range(3)]
    expected = {prompt: PIPE.encode_prompt(prompt)[0] for prompt in prompts}
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(PIPE.encode_prompt, prompts * 40))
    for prompt, (embeds, _) in zip(prompts * 40, results, strict=True):
        assert torch.equal(embeds, expected[prompt])


def test_a_prompt_of_any_length_costs_what_fits(said):
    long = "a red ball rolls over the table " * 3000
    began = perf_counter()
    embeds, _ = PIPE.encode_prompt(long)
    assert perf_counter() - began < 5
    assert torch.equal(embeds, PIPE.encode_prompt(long[:64])[0])
    assert f"was cut off after {TEXT_LENGTH} of them" in said.text and "more than" in said.text
    tokens, (loss,) = tokenize(PIPE.tokenizer, [long], TEXT_LENGTH)
    assert tokens.input_ids.shape == (1, TEXT_LENGTH)
    assert len(loss.text) <= 64 * TEXT_LENGTH and not loss.whole


def test_unknown_words_come_with_the_nearest_known_ones(said):
    PIPE.encode_prompt("a rde bal rolls xylophone xylophone")
    assert (
        "does not know 'rde', 'bal', 'xylophone' (nearest known words to 'rde': 'red'; to 'bal': 'ball'" in said.text
    )
    said.clear()
    PIPE.encode_prompt("a red ball rolls")
    assert not said.text


def test_strict_prompts_are_refused():
    pipe = make_tiny_pipeline()
    pipe.strict_prompts = True
    pipe.encode_prompt("a red ball")
    with pytest.raises(ValueError, match="`strict_prompts` is set, and .* does not know 'zebra'"):
        pipe("a zebra", num_frames=1)
    with pytest.raises(ValueError, match="`strict_prompts` is set, and a prompt of 9 tokens was cut off after 6"):
        pipe.encode_prompt(" ".join(WORDS))
    with pipe.stream("a red ball", num_frames=1) as stream, pytest.raises(ValueError, match="'zebra'"):
        stream.set_prompt("a zebra")


def test_a_text_encoder_that_is_not_finite_is_named():
    pipe = make_tiny_pipeline()
    next(pipe.text_encoder.parameters()).data.fill_(torch.nan)
    with pytest.raises(ValueError, match="`text_encoder` made embeddings that are not finite"):
        pipe("a red ball", num_frames=1)
