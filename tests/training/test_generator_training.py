# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The generator's training: scenes with their texts, subspaces that change nothing, steps that help."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.utils import logging
from helpers.tiny import make_tiny_autoencoder, make_tiny_generator
from helpers.training_runs import AUTOENCODER, GENERATOR, script, texture, write_video
from safetensors.torch import load_file

from ultraflash_diffusers import CausalWanTransformer, HRAutoencoder
from ultraflash_diffusers.pipelines.noise import SeededFrameNoise
from ultraflash_diffusers.pipelines.sources.text_generator import TextGeneratorSource
from ultraflash_diffusers.training.data.chunks import (
    ChunkBatch,
    ChunkDataset,
    Pool,
    channel_scale,
    claim_folder,
    encode_clips,
)
from ultraflash_diffusers.training.data.world import captioned_scenes, drawing_fingerprint, vocabulary
from ultraflash_diffusers.training.data.world_things import COLORS
from ultraflash_diffusers.training.losses.linear_decoding import encode_linearly
from ultraflash_diffusers.training.stages.generator import DiffusionForcing, DiffusionForcingTraining
from ultraflash_diffusers.training.stages.self_forcing import SelfForcing, SelfForcingTraining
from ultraflash_diffusers.training.starting_points.lora import LoraLayers
from ultraflash_diffusers.training.starting_points.text_encoding import (
    TextEncoding,
    make_text_encoder,
    make_tokenizer,
    words_of,
)
from ultraflash_diffusers.training.starting_points.token_subspace import (
    TokenSubspace,
    cut_patches,
    plain_state_dict,
    scale_ends,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_network(**config: Any) -> CausalWanTransformer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CausalWanTransformer(**GENERATOR | config)


def make_text() -> TextEncoding:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        tokenizer = make_tokenizer(vocabulary())
        return TextEncoding(make_text_encoder(len(tokenizer), GENERATOR["text_dim"], 1), tokenizer, 12)


def make_subspace(rank: int = 12) -> TokenSubspace:
    """Of patches of 2 x 2 x 2 latents with 4 channels that lie near a subspace."""
    basis = torch.randn(rank, 32, generator=seeded(3))
    strengths = torch.linspace(4, 0.5, rank)
    patches = (torch.randn(400, rank, generator=seeded(4)) * strengths) @ basis
    return TokenSubspace.fit(patches, (2, 2, 2), rank, torch.tensor([3.0, 1.0, 0.5, 0.2]))


# ---- scenes


def test_captioned_scenes_are_the_same_every_time_and_say_what_they_show() -> None:
    one, other = (list(captioned_scenes(5, 0, 3, 48, 80)) for _ in range(2))
    for (frames, texts), (again, same) in zip(one, other, strict=True):
        assert frames.shape == (3, 48, 80, 3) and frames.dtype == np.uint8 and (frames == again).all()
        assert texts == same and {word for text in texts for word in text.split()} <= {*vocabulary()}
    assert not {text for _, texts in one for text in texts} & {
        text for _, texts in captioned_scenes(5, 1, 1, 48, 80) for text in texts
    }


def test_scenes_drawn_otherwise_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    before = drawing_fingerprint()
    assert before == drawing_fingerprint()
    monkeypatch.setitem(COLORS, "red", (0.8, 0.1, 0.1))
    assert before != drawing_fingerprint()


# ---- the network


@pytest.mark.parametrize("streamed", [False, True])
def test_predicted_samples_become_flows(streamed: bool) -> None:
    raw, converting = make_tiny_generator(), make_tiny_generator(prediction_type="sample")
    noisy, text = torch.randn(2, 4, 3, 8, 8, generator=seeded()), torch.randn(2, 3, 8, generator=seeded(1))
    timestep = torch.tensor([[1000.0, 500.0, 20.0], [250.0, 0.0, 700.0]])
    states = [network.new_stream() if streamed else None for network in (raw, converting)]
    samples = [
        network(noisy, timestep, text, state=state).sample
        for network, state in zip((raw, converting), states, strict=True)
    ]
    sigmas = (timestep / 1000).clamp_min(1e-3)[:, None, :, None, None]
    torch.testing.assert_close(samples[1], (noisy - samples[0]) / sigmas)
    assert samples[1].isfinite().all()


def test_a_source_takes_the_predicted_samples() -> None:
    """A network of a constant clean prediction gives it, whatever the noise."""
    network = make_tiny_generator(prediction_type="sample")
    for parameter in network.proj_out.parameters():
        parameter.data.zero_()
    network.proj_out.bias.data.fill_(0.7)
    source = TextGeneratorSource(
        network,
        make_tiny_autoencoder(),
        torch.zeros(1, 6, 8),
        SeededFrameNoise([0], 1),
        height=32,
        width=32,
        multiple_of=8,
        num_frames=17,
    )
    latents = torch.cat([chunk.latents for chunk in source.chunks()], dim=2)
    torch.testing.assert_close(latents, torch.full_like(latents, 0.7))


def test_a_size_that_was_never_trained_is_said(caplog: pytest.LogCaptureFixture) -> None:
    logging.enable_propagation()
    autoencoder, network = make_tiny_autoencoder(), make_tiny_generator(sample_size=(8, 8))
    side = 8 * autoencoder.spatial_compression_ratio
    arguments = {"multiple_of": 8, "num_frames": 5, "width": side}
    make = partial(TextGeneratorSource, network, autoencoder, torch.zeros(1, 6, 8), SeededFrameNoise([0], 1))
    make(height=side, **arguments)
    assert not caplog.text
    make(height=2 * side, **arguments)
    assert f"trained on {side}x{side} frames alone, not on {2 * side}x{side}" in caplog.text
    logging.disable_propagation()


def test_absolute_positions_break_the_symmetry_of_constant_frames() -> None:
    constant, text = torch.ones(1, 4, 3, 8, 8), torch.zeros(1, 3, 8)
    for positions in (False, True):
        sample = make_tiny_generator(absolute_positions=positions)(constant, torch.tensor([500.0]), text).sample
        corners = sample[..., :2, :2] - sample[..., -2:, -2:]
        assert (corners.abs().max() > 1e-3) == positions


def test_unknown_prediction_types_are_refused() -> None:
    with pytest.raises(ValueError, match="`prediction_type` must be 'flow' or 'sample', got 'noise'"):
        make_tiny_generator(prediction_type="noise")


# ---- the subspace of tokens


def test_noise_stays_white_in_the_subspace_and_clean_coordinates_are_uncorrelated() -> None:
    subspace = make_subspace()
    torch.testing.assert_close(subspace.analysis @ subspace.analysis.T, torch.eye(12), atol=1e-4, rtol=0)
    torch.testing.assert_close(subspace.analysis @ subspace.synthesis, torch.eye(12), atol=1e-3, rtol=0)
    coordinates = torch.randn(2, 12, 2, 3, 3, generator=seeded())
    torch.testing.assert_close(subspace.project(subspace.lift(coordinates)), coordinates, atol=1e-3, rtol=1e-3)


def test_a_network_in_the_subspace_is_one_of_large_patches() -> None:
    subspace = make_subspace()
    config = GENERATOR | {"patch_size": (2, 2, 2), "in_channels": 4, "out_channels": 4}
    compact = CausalWanTransformer(**subspace.compact_config(config))
    plain = plain_state_dict(compact)
    scale_ends(compact, subspace.scale, new=False)
    for name, value in plain_state_dict(compact).items():
        torch.testing.assert_close(value, plain[name], msg=name)
    network = subspace.expanded(compact, config)
    noisy, text = torch.randn(1, 4, 4, 6, 6, generator=seeded()), torch.randn(1, 5, 8, generator=seeded(1))
    timestep = torch.tensor([[600.0, 900.0]])
    with torch.no_grad():
        coordinates = subspace.project(noisy)
        inner = coordinates - (timestep / 1000)[:, None, :, None, None] * compact(coordinates, timestep, text).sample
        sigmas = (timestep / 1000).repeat_interleave(2, dim=1)[:, None, :, None, None]
        outer = noisy - sigmas * network(noisy, timestep, text).sample
        torch.testing.assert_close(outer, subspace.lift(inner), atol=1e-3, rtol=1e-3)
        again = subspace.compacted(network)(coordinates, timestep, text).sample
        torch.testing.assert_close(again, compact(coordinates, timestep, text).sample, atol=1e-2, rtol=1e-2)


def test_a_subspace_survives_its_file(tmp_path: Path) -> None:
    subspace = make_subspace()
    subspace.save(tmp_path / "subspace.safetensors")
    loaded = TokenSubspace.load(tmp_path / "subspace.safetensors")
    latents = torch.randn(1, 4, 2, 4, 4, generator=seeded())
    assert (loaded.patch_size, loaded.channels) == ((2, 2, 2), 4)
    assert loaded.project(latents).equal(subspace.project(latents))


def test_subspaces_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`rank` is 50"):
        TokenSubspace.fit(torch.randn(40, 32), (2, 2, 2), 50)
    with pytest.raises(ValueError, match="not whole patches"):
        cut_patches(torch.zeros(1, 4, 3, 4, 4), (2, 2, 2))
    with pytest.raises(ValueError, match="`prediction_type` must be 'sample' in a subspace, got 'flow'"):
        make_subspace().compact_config(GENERATOR | {"prediction_type": "flow"})
    with pytest.raises(ValueError, match="the subspace is for `patch_size`"):
        make_subspace().compact_config(GENERATOR)


# ---- clips and stages


def make_clips(folder: Path, count: int = 12) -> list:
    """Small scenes of three latents each, encoded by the tiny autoencoder."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        autoencoder = HRAutoencoder(**AUTOENCODER)
    clips = ((frames, texts[:2]) for frames, texts in captioned_scenes(count, 0, 9, 32, 32))

    @torch.no_grad()
    def encode(pixels: torch.Tensor) -> torch.Tensor:
        return 20 * encode_linearly(autoencoder, pixels)

    claim_folder(folder, {"count": count})
    return encode_clips(clips, encode, folder)


def test_chunks_depend_on_their_number_alone(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "latents")
    again = make_clips(tmp_path / "latents")  # from the cache
    datasets = [ChunkDataset([Pool(each)], 2, 1, 4, seed=1) for each in (clips, again)]
    batches = [dataset[5] for dataset in datasets]
    assert batches[0].high.equal(batches[1].high) and batches[0].texts == batches[1].texts
    assert batches[0].high.shape == (4, 8, 2, 8, 8)
    starts = torch.cat([datasets[0][number].starts for number in range(40)])
    assert 0 < int((~starts).sum()) < int(starts.sum())
    with pytest.raises(ValueError, match=r"latents of other settings, \{'count': 12\} instead of \{'count': 99\}"):
        claim_folder(tmp_path / "latents", {"count": 99})
    with pytest.raises(ValueError, match="fewer than 5 latents"):
        ChunkDataset([Pool(clips)], 5, 1, 4)
    with pytest.raises(ValueError, match="there are no clips"):
        encode_clips([], lambda pixels: pixels, tmp_path / "none")


def test_an_interrupted_encoding_goes_on_where_it_was(tmp_path: Path) -> None:
    clips = [(np.full((5, 8, 8, 3), 10 * number, np.uint8), [f"clip {number}"]) for number in range(4)]
    encoded: list[float] = []

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        if len(encoded) == 2:
            encoded.append(0)
            raise KeyboardInterrupt
        encoded.append(float(pixels.mean()))
        return pixels

    with pytest.raises(KeyboardInterrupt):
        encode_clips(clips, encode, tmp_path)
    cached = encode_clips(clips, encode, tmp_path)
    assert len(encoded) == 5 and [clip.frames for clip in cached] == [5] * 4
    values = [clip.read(0, 5).mean() for clip in cached]
    np.testing.assert_allclose(values, [10 * number / 127.5 - 1 for number in range(4)], atol=1e-3)


def test_pools_count_by_their_shares(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "latents")
    energies = [channel_scale([Pool(each)]).square() for each in (clips[:4], clips[4:])]
    together = channel_scale([Pool(clips[:4], 1.0), Pool(clips[4:], 3.0)])
    torch.testing.assert_close(together.square(), 0.25 * energies[0] + 0.75 * energies[1])
    with pytest.raises(ValueError, match="one without clips"):
        ChunkDataset([Pool(clips), Pool([])], 2, 1, 4)


def test_levels_of_given_chunks_and_of_the_sampler() -> None:
    objective = DiffusionForcing(noise_levels="steps", first_step_share=0.4)
    levels = objective.sample_levels((4000,), seeded())
    shares = [(levels == sigma).float().mean().item() for sigma in torch.tensor(objective.sigmas)]
    assert shares == pytest.approx([0.4, 0.2, 0.2, 0.2], abs=0.03)
    continuous = DiffusionForcing().sample_levels((4000,), seeded())
    assert 0 <= continuous.min() and continuous.max() <= 1 and continuous.median() > 0.75


@pytest.mark.parametrize("prediction_type", ["sample", "flow"])
def test_a_few_steps_lower_the_loss(tmp_path: Path, prediction_type: str) -> None:
    clips = make_clips(tmp_path)
    network = make_network(prediction_type=prediction_type)
    pools, objective = [Pool(clips)], DiffusionForcing(text_dropout=0.0)
    stage = DiffusionForcingTraining(network, make_text(), objective, channel_scale(pools))
    dataset, optimizer = ChunkDataset(pools, 2, 1, 8), torch.optim.Adam(stage.trained_parameters(), 3e-3)
    losses = []
    for number in range(60):
        loss, _ = stage(dataset[number], seeded(number))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-10:]) < 0.75 * np.mean(losses[:10])


def test_only_what_is_not_given_is_learnt(tmp_path: Path) -> None:
    stage = DiffusionForcingTraining(make_network(), make_text(), DiffusionForcing(), torch.ones(8))
    given = stage._given(torch.tensor([True, False] * 50), 3, seeded())
    assert given[1::2, 0].all() and not given[::2, 0].all() and given[::2, 0].any()
    assert not given[:, -1].any()


def test_own_context_is_what_the_network_makes_of_noise() -> None:
    stage = DiffusionForcingTraining(make_network(), make_text(), DiffusionForcing(), torch.ones(8))
    noisy, embeds = torch.randn(3, 8, 4, 8, 8, generator=seeded()), stage.text(["a red ball"] * 3)
    # the second chunk after the first; none, as what came before it is unknown; the first, with which a video starts
    given = torch.tensor([[True, True, False, False], [True, False, False, False], [True, False, False, False]])
    starts = torch.tensor([False, False, True])
    found = stage._with_own_context(noisy, given, starts, embeds, seeded(1))
    changed = (found != noisy).flatten(3).any(3).any(1)
    assert changed.tolist() == [[False, True, False, False], [False] * 4, [True, False, False, False]]
    noise = torch.randn(3, 8, 4, 8, 8, generator=seeded(1))
    pure = noisy[:1, :, :2].clone()
    pure[:, :, 1] = noise[:1, :, 1]
    sigmas = torch.tensor([[0.0, 1.0]])
    predicted = pure - stage.flow(pure, sigmas, embeds[:1])
    torch.testing.assert_close(found[:1, :, 1], predicted[:, :, 1], atol=1e-5, rtol=1e-4)
    assert not found.requires_grad


@pytest.mark.parametrize("hidden", [False, True])
def test_given_chunks_are_told_their_level_unless_it_is_hidden(hidden: bool) -> None:
    objective = DiffusionForcing(text_dropout=0.0, context_noise=0.1, hide_context_noise=hidden)
    stage = DiffusionForcingTraining(make_network(), make_text(), objective, torch.ones(8))
    told: list[torch.Tensor] = []
    stage.network.register_forward_pre_hook(lambda _, inputs: told.append(inputs[1]))
    clean, starts = torch.randn(8, 8, 4, 8, 8, generator=seeded()), torch.zeros(8, dtype=torch.bool)
    stage(ChunkBatch(clean, None, None, ["a red ball"] * 8, starts), seeded(1))
    given = told[0] <= 100  # of 1000; the first chunk of each is one
    assert given[:, 0].all()
    assert bool((told[0][given] > 0).all()) is not hidden


def test_own_context_is_used_as_often_as_asked(tmp_path: Path) -> None:
    clips = make_clips(tmp_path)
    losses = []
    for share in (0.0, 1.0):
        objective = DiffusionForcing(text_dropout=0.0, context_noise=0.0, own_context=share)
        stage = DiffusionForcingTraining(make_network(), make_text(), objective, torch.ones(8))
        stage.begin_step(0, seeded())
        dataset = ChunkDataset([Pool(clips)], 3, 1, 8)
        losses.append(np.mean([stage(dataset[number], seeded(number))[0].item() for number in range(5)]))
    assert losses[0] != losses[1]


def test_self_forcing_moves_the_student_and_the_fake_score_in_turns() -> None:
    network = make_network()
    stage = SelfForcingTraining(network, make_text(), SelfForcing(fake_updates=2), torch.ones(8))
    clean = torch.randn(2, 8, 3, 8, 8, generator=seeded())
    batch = ChunkBatch(clean, None, None, ["a red ball moves left", "a blue star"], torch.ones(2, dtype=torch.bool))
    moved = []
    for step in range(3):
        stage.begin_step(step, seeded(step))
        loss, _ = stage(batch, seeded(step))
        stage.zero_grad()
        loss.backward()
        assert loss.isfinite()
        moved.append([any(p.grad is not None for p in each.parameters()) for each in (stage.network, stage.fake)])
    assert moved == [[False, True], [False, True], [True, False]]
    assert not any(p.requires_grad for each in (stage.teacher, stage.text) for p in each.parameters())
    assert stage.averaged_parameters() == list(stage.network.parameters())


def test_self_forcing_by_lora_keeps_one_set_of_weights() -> None:
    network = make_network()
    whole = sum(parameter.numel() for parameter in network.parameters())
    start = {name: parameter.clone() for name, parameter in network.named_parameters()}
    stage = SelfForcingTraining(
        network,
        make_text(),
        SelfForcing(fake_updates=1),
        torch.ones(8),
        lora=LoraLayers(2, lora_target_modules=["ffn"]),
    )
    trained = sum(parameter.numel() for parameter in stage.trained_parameters())
    assert 0 < trained < whole / 2
    networks = (stage.network, stage.teacher, stage.fake)
    distinct = {id(parameter): parameter.numel() for each in networks for parameter in each.parameters()}
    assert sum(distinct.values()) == whole + trained
    clean = torch.randn(1, 8, 2, 8, 8, generator=seeded())
    batch = ChunkBatch(clean, None, None, ["a red ball moves left"], torch.ones(1, dtype=torch.bool))
    groups = stage.parameter_groups(0.1)
    assert sum(parameter.numel() for group in groups for parameter in group["params"]) == trained
    optimizer = torch.optim.SGD(groups)
    before = stage.flow(clean, torch.ones(1), stage.text(["a red ball moves left"])).detach()
    for step in range(4):
        stage.begin_step(step, seeded(step))
        optimizer.zero_grad()
        stage(batch, seeded(step))[0].backward()
        optimizer.step()
    after = stage.flow(clean, torch.ones(1), stage.text(["a red ball moves left"])).detach()
    taught = stage.flow(clean, torch.ones(1), stage.text(["a red ball moves left"]), stage.teacher)
    assert not after.equal(before) and taught.equal(before)
    assert all(parameter.equal(start[name]) for name, parameter in stage.teacher.named_parameters())


def make_wan(**config: Any) -> WanTransformer3DModel:
    shared = {name: GENERATOR[name] for name in ("in_channels", "out_channels", "text_dim", "freq_dim", "ffn_dim")}
    with torch.random.fork_rng():
        torch.manual_seed(2)
        sizes = {"num_attention_heads": 3, "attention_head_dim": 12, "num_layers": 2, "patch_size": (1, 2, 2)}
        return WanTransformer3DModel(**shared | sizes | config)


def test_a_bidirectional_teacher_of_another_width_judges_whole_clips() -> None:
    stage = SelfForcingTraining(
        make_network(), make_text(), SelfForcing(fake_updates=1), torch.ones(8), teacher=make_wan()
    )
    clean = torch.randn(1, 8, 3, 8, 8, generator=seeded())
    later = torch.cat([clean[:, :, :2], -clean[:, :, 2:]], dim=2)
    embeds = stage.text(["a red ball moves left"])
    for network, causal in ((stage.network, True), (stage.fake, False), (stage.teacher, False)):
        first, other = (stage.flow(each, torch.ones(1), embeds, network)[:, :, :2] for each in (clean, later))
        assert torch.allclose(first, other) is causal
    batch = ChunkBatch(clean, None, None, ["a red ball moves left"], torch.ones(1, dtype=torch.bool))
    for step in range(2):
        stage.begin_step(step, seeded(step))
        loss, _ = stage(batch, seeded(step))
        loss.backward()
        assert loss.isfinite()
    assert all(parameter.grad is None for parameter in stage.teacher.parameters())
    assert stage.network.config.frames_per_chunk == GENERATOR["frames_per_chunk"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"in_channels": 16}, "`teacher` has `in_channels` 16, the generator 8"),
        ({"text_dim": 12}, "`teacher` has `text_dim` 12, the generator 8"),
        ({"patch_size": (1, 3, 3)}, r"`teacher` has `patch_size` \(1, 3, 3\)"),
        ({"image_dim": 8}, "`teacher` is an image-to-video transformer"),
    ],
)
def test_teachers_that_do_not_fit_are_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SelfForcingTraining(make_network(), make_text(), SelfForcing(), torch.ones(8), teacher=make_wan(**config))


def test_a_rollout_is_what_inference_streams() -> None:
    """With one step and no noise to draw but the chunks' own, both give the same latents."""
    stage = DiffusionForcingTraining(
        make_network(in_channels=4, out_channels=4, patch_size=(1, 2, 2)),
        make_text(),
        DiffusionForcing(denoising_steps=(1000,)),
        torch.ones(4),
    )
    embeds = stage.text(["a red ball moves left"]).detach()
    rolled = stage.rollout((1, 4, 3, 8, 8), embeds, seeded())
    assert rolled.requires_grad
    noise = iter(torch.randn(1, 4, 1, 8, 8, generator=generator) for generator in [seeded()] * 3)

    class Noise:
        def __call__(self, role: str, start: int, frames: int, shape: tuple[int, ...]) -> torch.Tensor:
            return next(noise)

    source = TextGeneratorSource(
        stage.network,
        make_tiny_autoencoder(),
        embeds,
        Noise(),
        height=32,
        width=32,
        multiple_of=8,
        num_frames=9,
        denoising_steps=(1000,),
    )
    streamed = torch.cat([chunk.latents for chunk in source.chunks()], dim=2)
    torch.testing.assert_close(streamed, rolled.detach(), atol=1e-5, rtol=1e-4)


# ---- text


def test_the_tokenizer_knows_words_whatever_their_case_and_punctuation(tmp_path: Path) -> None:
    text = make_text()
    plain, shouted = text(["a red ball moves left"]), text(["A RED ball, moves left."])
    assert plain.equal(shouted)
    assert not plain[0, 6:].any() and plain[0, :6].any(dim=1).all()
    assert text.tokenizer("a turquoise ball").input_ids[1] == text.tokenizer.unk_token_id
    text.save_pretrained(tmp_path)
    torch.testing.assert_close(TextEncoding.load(str(tmp_path), 12)(["a red ball moves left"]), plain)


def test_a_tokenizer_made_for_texts_knows_their_words() -> None:
    texts = ["A close-up of Ann's cat, sleeping.", "a red ball"]
    words = words_of(texts, 20)
    assert words == ["a", "ann", "ball", "cat", "close", "of", "red", "s", "sleeping", "up"]
    tokenizer = make_tokenizer(words)
    assert all(tokenizer.unk_token_id not in tokenizer(text).input_ids for text in texts)
    # the end of a text counts
    assert words_of(texts[:1], 4) == ["a", "close", "up"]


# ---- the script


def run_script(folder: Path, name: str, **arguments: Any) -> Path:
    module = script("train_generator")
    output = folder / name
    words = ["--output_dir", str(output)]
    defaults = {
        "crops": "9x32x48",
        "train_batch_size": 4,
        "max_train_steps": 6,
        "checkpointing_steps": 3,
        "validation_scenes": 1,
        "lr_warmup_steps": 1,
        "sample_chunks": 2,
        "autoencoder": folder / "autoencoder",
        "cache_dir": folder / "cache",
        "synthetic_scenes": 40,
    }
    for key, value in (defaults | arguments).items():
        words += ([f"--{key}"] if value else []) if isinstance(value, bool) else [f"--{key}", str(value)]
    module.main(module.parse_arguments(words))
    return output


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generator")
    with torch.random.fork_rng():
        torch.manual_seed(2)
        HRAutoencoder(**AUTOENCODER).save_pretrained(folder / "autoencoder")
    (folder / "generator.json").write_text(json.dumps(GENERATOR))
    return folder


@pytest.mark.slow
def test_the_script_trains_resumes_and_distils(material: Path) -> None:
    common = {
        "network_config": material / "generator.json",
        "token_rank": 10,
        "encode_linearly": True,
        "use_ema": True,
    }
    common |= {"lr_scheduler": "constant"}
    whole = run_script(material, "whole", **common)
    run_script(material, "parts", **common, max_train_steps=3)
    parts = run_script(material, "parts", **common, resume_from_checkpoint="latest")
    names = ("generator_transformer/diffusion_pytorch_model", "text_encoder/model")
    for name in names:
        one, other = (load_file(folder / f"{name}.safetensors") for folder in (whole, parts))
        assert all(one[key].equal(other[key]) for key in one)
    network = CausalWanTransformer.from_pretrained(whole, subfolder="generator_transformer")
    assert tuple(network.config.patch_size) == (1, 4, 4) and tuple(network.config.sample_size) == (8, 12)
    assert json.loads((whole / "log.jsonl").read_text().splitlines()[-1])["validation/error"] > 0
    distilled = run_script(
        material,
        "distilled",
        objective="self_forcing",
        pretrained_model_name_or_path=whole,
        text_encoder=whole,
        token_rank=10,
        encode_linearly=True,
    )
    one, other = (load_file(folder / f"{names[0]}.safetensors")["proj_out.weight"] for folder in (whole, distilled))
    assert one.shape == other.shape and not one.equal(other)
    make_wan(text_dim=network.config.text_dim).save_pretrained(material / "wan")
    output = run_script(
        material,
        "layers",
        objective="self_forcing",
        pretrained_model_name_or_path=whole,
        text_encoder=whole,
        teacher=material / "wan",
        rank=2,
        encode_linearly=True,
        cache_dir=material / "cache_of_layers",  # another one: of latents, not of a subspace of theirs
    )
    layers = load_file(output / "pytorch_lora_weights.safetensors")
    assert layers and all(name.startswith("generator_transformer.blocks.") for name in layers)
    assert not (output / "generator_transformer").exists()


def test_samples_of_one_chunk_are_learnt_and_held_out_clips_may_have_any_length(material: Path) -> None:
    for name, frames in (("one_chunk", 11), ("held_out", 14)):
        (material / name).mkdir()
        write_video(material / name / "a.mp4", texture(9, frames, 48, 64))
    clips = {"train_data_dir": material / "one_chunk", "validation_data_dir": material / "held_out"}
    options = clips | {
        "network_config": material / "generator.json",
        "cache_dir": material / "cache_of_one",
        "logging_steps": 1,
    }
    # the held-out video is 14 frames: a clip of 11, of which 9 are generated, and a rest of 3
    output = run_script(material, "one", **options, sample_chunks=1, synthetic_scenes=0, clip_frames=11)
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss"]) for line in lines if "loss" in line) and len(lines) > 4
    assert "its 3 frames are less than validation's 9" in (output / "left_out.jsonl").read_text()
    assert (output / "validation" / "step-6" / "clip-0.mp4").is_file()


@pytest.mark.slow
def test_the_script_trains_on_captioned_clips_beside_scenes(material: Path) -> None:
    clips = material / "clips"
    clips.mkdir()
    write_video(clips / "a.mp4", texture(9, 32, 48))
    (clips / "metadata.jsonl").write_text(json.dumps({"file_name": "a.mp4", "text": "a close-up of cloth"}) + "\n")
    both = {
        "network_config": material / "generator.json",
        "token_rank": 10,
        "encode_linearly": True,
        "train_data_dir": clips,
        "clip_share": 0.5,
        "cache_dir": material / "cache_of_both",
        "max_train_steps": 2,
    }
    output = run_script(material, "both", **both)
    tokenizer = TextEncoding.load(str(output), 12).tokenizer
    assert tokenizer.unk_token_id not in tokenizer("a close-up of cloth and a red ball moves left").input_ids[:4]
    folder = material / "cache_of_both" / "generator_latents"
    assert len(json.loads((folder / "settings.json").read_text())["clips"]) == 2
    assert json.loads((folder / "index.json").read_text())[-1]["texts"] == ["a close-up of cloth"]
    (clips / "metadata.jsonl").write_text(json.dumps({"file_name": "a.mp4", "text": "a green cloth"}) + "\n")
    with pytest.raises(ValueError, match="latents of other settings"):
        run_script(material, "others", **both)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crops": "9x30x48"}, "must be multiples of the generator's patches"),
        ({"crops": "8x32x48"}, "frames must be whole chunks"),
        ({"crops": "5x32x48", "sample_chunks": 3}, "at least --sample_chunks 3"),
    ],
)
def test_the_script_refuses_clips_that_do_not_fit(material: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_script(material, "refused", network_config=material / "generator.json", **arguments)


def test_the_script_refuses_self_forcing_from_nothing(material: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_script(material, "nothing", objective="self_forcing", network_config=material / "generator.json")
    assert "goes on from a network and its --text_encoder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_script(material, "nothing", teacher="wan", network_config=material / "generator.json")
    assert "--teacher needs --objective self_forcing" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_script(material, "nothing", rank=2, token_rank=4, network_config=material / "generator.json")
    assert "--rank works on whole tokens: leave out --token_rank" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_script(material, "nothing", synthetic_scenes=0, network_config=material / "generator.json")
    assert "--dataset_name and --synthetic_scenes is needed" in capsys.readouterr().err
