# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Dynamic cache management: each part really changes what the networks do, counted on real (tiny) networks."""

import pytest
import torch

from ultraflash_diffusers.models.causal_wan_transformer import CausalWanTransformer
from ultraflash_diffusers.models.hr_autoencoder import HRAutoencoder
from ultraflash_diffusers.pipelines.cache_management import DynamicCacheManagement
from ultraflash_diffusers.pipelines.noise import SeededFrameNoise
from ultraflash_diffusers.pipelines.sources import TextGeneratorSource

CHUNKS = 4
TEXT = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    return CausalWanTransformer(
        num_attention_heads=2, attention_head_dim=12, text_dim=16, text_length=4, freq_dim=32, ffn_dim=32, num_layers=1
    ).eval()


@pytest.fixture(scope="module")
def autoencoder():
    torch.manual_seed(0)
    return HRAutoencoder(
        encoder_channels=(), decoder_channels=(8, 8, 8), decoder_blocks=(1, 1, 1), encoder_blocks=()
    ).eval()


class Scorer:
    """Gives the scores of a list in turn, one list entry a chunk, and remembers what it saw."""

    def __init__(self, *scores):
        self.scores, self.seen = iter(scores), []

    def __call__(self, frames):
        self.seen.append(frames)
        return torch.as_tensor(next(self.scores)).expand(frames.shape[0]).float()


def generate(generator, autoencoder, policy, batch=1, window=None):
    """Streams the chunks; returns them with the timesteps of the generator's passes, one list a chunk."""
    source = TextGeneratorSource(
        generator, autoencoder, TEXT[:batch], SeededFrameNoise([1], batch), height=16, width=16, multiple_of=16,
        num_frames=12 * CHUNKS - 3, cache_management=policy, window_frames=window,
    )  # fmt: skip
    passes, chunks, timesteps = [], [], []

    def record(module, args, kwargs):
        passes.append(args[1][0].item())

    hook = generator.register_forward_pre_hook(record, with_kwargs=True)
    for chunk in source.chunks():
        chunks.append(chunk)
        timesteps.append([round(timestep, 1) for timestep in passes])
        passes.clear()
    hook.remove()
    assert [chunk.statistics["generator_passes"] for chunk in chunks] == [len(steps) for steps in timesteps]
    return chunks, timesteps


ALL = [1000.0, 937.5, 833.3, 625.0]
THREE = [1000.0, 833.3, 625.0]


@pytest.mark.parametrize("policy", [None, DynamicCacheManagement.off()])
def test_without_a_policy_every_chunk_runs_all_passes(generator, autoencoder, policy):
    _, timesteps = generate(generator, autoencoder, policy)
    assert timesteps == [[*ALL, 0.0]] * CHUNKS


def test_later_chunks_run_fewer_steps(generator, autoencoder):
    chunks, timesteps = generate(generator, autoencoder, DynamicCacheManagement())
    assert timesteps == [[*ALL, 0.0]] + [[*THREE, 0.0]] * (CHUNKS - 1)
    plain, _ = generate(generator, autoencoder, None)
    assert torch.equal(chunks[0].latents, plain[0].latents)
    assert not torch.allclose(chunks[1].latents, plain[1].latents)


def test_a_good_chunk_keeps_its_last_step_and_a_bad_one_gets_its_context_pass(generator, autoencoder):
    scorer = Scorer(0.9, 0.1, 0.61, 0.63)
    policy = DynamicCacheManagement(later_chunk_steps=None, quality_scorer=scorer)
    chunks, timesteps = generate(generator, autoencoder, policy)
    assert timesteps == [ALL, [*ALL, 0.0], [*ALL, 0.0], ALL]
    assert [chunk.statistics["skipped_context_passes"] for chunk in chunks] == [1, 0, 0, 1]
    assert [chunk.statistics["generator_quality"] for chunk in chunks] == pytest.approx([0.9, 0.1, 0.61, 0.63])
    for frames in scorer.seen:
        assert frames.shape == (1, 3, 224, 224) and 0 <= frames.min() <= frames.max() <= 1
    plain, _ = generate(generator, autoencoder, None)
    assert torch.equal(chunks[0].latents, plain[0].latents)
    assert not torch.allclose(chunks[1].latents, plain[1].latents)


@pytest.mark.parametrize("window", [None, 6])
def test_scoring_alone_changes_nothing(generator, autoencoder, window):
    """A bad score's context pass leaves no trace of the last step's keys and values, in a rolling cache either."""
    policy = DynamicCacheManagement(later_chunk_steps=None, quality_scorer=Scorer(*[0.0] * CHUNKS))
    chunks, _ = generate(generator, autoencoder, policy, window=window)
    plain, _ = generate(generator, autoencoder, None, window=window)
    for scored, expected in zip(chunks, plain, strict=True):
        # a rolling cache whose states commit once lies in another order, and sums over it run in that order
        torch.testing.assert_close(scored.latents, expected.latents, atol=0 if window is None else 1e-5, rtol=0)


def test_a_stream_whose_states_commit_once_is_not_resumed_with_a_scorer(generator, autoencoder):
    def source(**arguments):
        sizes = {"height": 16, "width": 16, "multiple_of": 16, "window_frames": 6}
        return TextGeneratorSource(
            generator, autoencoder, TEXT[:1], SeededFrameNoise([1], 1), num_frames=45, **sizes, **arguments
        )

    first = source()
    next(first.chunks())
    scored = DynamicCacheManagement(quality_scorer=Scorer(0.9))
    with pytest.raises(ValueError, match="`quality_scorer` commits chunks twice"):
        source(cache_management=scored, state=first.state())


def test_skipping_keeps_the_keys_and_values_of_the_last_step(generator, autoencoder):
    """The same video comes of committing the last denoising step by hand."""
    policy = DynamicCacheManagement(later_chunk_steps=None, quality_scorer=Scorer(*[1.0] * CHUNKS))
    chunks, timesteps = generate(generator, autoencoder, policy)
    assert timesteps == [ALL] * CHUNKS
    noise, state = SeededFrameNoise([1], 1), generator.new_stream(cache_frames=3 * CHUNKS)
    for number, chunk in enumerate(chunks):
        latents = noise("generator", 3 * number, 3, (16, 2, 2))
        for step, timestep in enumerate([1000.0, 937.5, 2500 / 3, 625.0]):
            if step:
                fresh = noise(f"generator_renoise_{step - 1}", 3 * number, 3, (16, 2, 2))
                latents = latents + timestep / 1000 * (fresh - latents)
            with torch.no_grad():
                out = generator(latents, torch.tensor([timestep]), TEXT[:1], state=state, commit=step == 3)
            latents = latents - timestep / 1000 * out.sample
        state = out.state
        torch.testing.assert_close(chunk.latents, latents, atol=1e-5, rtol=1e-5)


def test_the_worst_video_of_a_batch_decides(generator, autoencoder):
    scorer = Scorer([0.9, 0.1], [0.9, 0.8], [0.1, 0.9], [0.7, 0.7])
    chunks, _ = generate(generator, autoencoder, DynamicCacheManagement(quality_scorer=scorer), batch=2)
    assert [chunk.statistics["skipped_context_passes"] for chunk in chunks] == [0, 1, 0, 1]


def test_sr_cache_shrinks_by_one_block_a_group():
    policy = DynamicCacheManagement()
    assert [policy.sr_kv_cache_blocks(group, 3) for group in range(7)] == [3, 3, 3, 2, 1, 1, 1]
    assert [DynamicCacheManagement.off().sr_kv_cache_blocks(group, 3) for group in range(7)] == [3] * 7
    assert DynamicCacheManagement(sr_warmup_groups=0, sr_min_blocks=2).sr_kv_cache_blocks(9, 3) == 2
    assert DynamicCacheManagement(sr_min_blocks=4).sr_kv_cache_blocks(9, 3) == 3


def test_steps_are_spread_over_the_schedule():
    assert [DynamicCacheManagement(later_chunk_steps=n).generator_steps(1, 4) for n in (1, 2, 3, 4)] == [
        [0], [0, 3], [0, 2, 3], [0, 1, 2, 3]
    ]  # fmt: skip
    assert DynamicCacheManagement(first_chunk_steps=2).generator_steps(0, 4) == [0, 3]


def test_settings_that_make_no_sense_are_refused(generator, autoencoder):
    for name in ("first_chunk_steps", "later_chunk_steps", "sr_min_blocks"):
        with pytest.raises(ValueError, match=f"`{name}` must be an integer of at least 1, got 0"):
            DynamicCacheManagement(**{name: 0})
    with pytest.raises(ValueError, match="`sr_warmup_groups` must be an integer of at least 0, got -1"):
        DynamicCacheManagement(sr_warmup_groups=-1)
    with pytest.raises(ValueError, match="`later_chunk_steps` is 5, but the generator has 4 steps"):
        DynamicCacheManagement(later_chunk_steps=5).generator_steps(1, 4)
    with pytest.raises(ValueError, match="one finite score for each of the 1 frames"):
        generate(generator, autoencoder, DynamicCacheManagement(quality_scorer=lambda frames: torch.zeros(3)))
    with pytest.raises(ValueError, match="one finite score"):
        generate(generator, autoencoder, DynamicCacheManagement(quality_scorer=Scorer(float("nan"))))
