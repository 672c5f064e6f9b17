# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Preference optimisation: a loss with known answers, roll-outs that are inference, steps that raise the margin."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from argparse import Namespace
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from helpers.paths import ROOT
from helpers.tiny import LATENT_CHANNELS, make_tiny_pipeline, make_tiny_transformer
from PIL import Image
from safetensors.torch import load_file

from ultraflash_diffusers import UltraFlashSRTransformer, UltraFlashStreamingPipeline
from ultraflash_diffusers.pipelines.noise import SeededFrameNoise, draw_seeds
from ultraflash_diffusers.rewards import QualityScorer
from ultraflash_diffusers.training.data.crops import Batch, Crop
from ultraflash_diffusers.training.data.prompt_batches import PromptBatch, PromptDataset
from ultraflash_diffusers.training.data.prompts import Prompts
from ultraflash_diffusers.training.losses.preference import preference_loss, preference_margin, squared_error_change
from ultraflash_diffusers.training.stages.cascade_rollout import (
    RolloutGroup,
    SRStream,
    clip_source,
    rollout_groups,
    text_source,
)
from ultraflash_diffusers.training.stages.preference import PreferenceObjective, PreferenceTraining
from ultraflash_diffusers.training.stages.preference_pairs import BestOfPairs, PairMaker, TeacherPairs, load_pairs
from ultraflash_diffusers.training.starting_points.lora import LoraLayers, choose_trained

SCRIPT = ROOT / "training" / "train_cascade_dpo.py"
BETA = 0.1


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


def brightness(frames: torch.Tensor) -> torch.Tensor:
    return frames.mean((1, 2, 3))


# ---- the loss


def test_the_change_is_the_difference_of_squared_norms_without_its_rounding() -> None:
    flow, reference, target = (numbers(3, 4, 5, seed=seed) for seed in range(3))
    expected = (flow - target).square().sum((1, 2)) - (reference - target).square().sum((1, 2))
    torch.testing.assert_close(squared_error_change(flow, reference, target), expected)
    assert squared_error_change(flow, flow, target).eq(0).all()
    first = torch.tensor([2.0, 0.0, 0.0, 0.0])[:, None]
    of_first = squared_error_change(flow[:, :1], reference[:, :1], target[:, :1])
    torch.testing.assert_close(squared_error_change(flow, reference, target, first), 2 * of_first)
    # the mean is the same at every size, the sum is not
    larger = [tensor.repeat(1, 1, 2) for tensor in (flow, reference, target)]
    mean = squared_error_change(flow, reference, target, reduction="mean")
    torch.testing.assert_close(squared_error_change(*larger, reduction="mean"), mean)
    torch.testing.assert_close(squared_error_change(*larger), 2 * expected)
    # of a million numbers far from the target one moves a little: float32 sums would lose it
    reference, target = torch.zeros(1, 1_000_000), torch.full((1, 1_000_000), 30.0)
    flow = reference.clone()
    flow[0, 0] = 1e-3
    assert squared_error_change(flow, reference, target).item() == pytest.approx(-2 * 30e-3 + 1e-6)


def test_the_loss_is_log_2_at_the_reference() -> None:
    change = torch.zeros(4)
    assert preference_loss(preference_margin(change, change)).item() == pytest.approx(math.log(2))


def test_nearer_to_the_winner_than_the_reference_is_better() -> None:
    winner, loser, noise = (numbers(1, 6, seed=seed) for seed in range(3))
    reference = noise - (winner + loser) / 2

    def margin(flow: torch.Tensor) -> float:
        changes = [squared_error_change(flow, reference, noise - clean) for clean in (winner, loser)]
        return preference_margin(*changes, BETA).item()

    towards = [reference + 0.1 * (noise - clean - reference) for clean in (winner, loser)]
    assert margin(towards[0]) > 0 > margin(towards[1])
    # by hand: a squared distance of 4 less to the winner, of 1 more to the loser
    assert preference_margin(torch.tensor([-4.0]), torch.tensor([1.0]), 0.1).item() == pytest.approx(0.25)


def test_at_sigma_1_the_margin_is_linear_in_the_clean_prediction() -> None:
    winner, loser, noise, flow, reference = (numbers(2, 4, 3, seed=seed) for seed in range(5))
    changes = [squared_error_change(flow, reference, noise - clean) for clean in (winner, loser)]
    moved = (noise - flow) - (noise - reference)
    expected = BETA * (moved * (winner - loser)).sum((1, 2))
    torch.testing.assert_close(preference_margin(*changes, BETA), expected)


def test_equal_pairs_and_opposite_pairs_have_no_gradient() -> None:
    first, second, noise, reference = (numbers(1, 5, seed=seed) for seed in range(4))

    def gradient(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        flow = reference.clone().requires_grad_()
        margins = [
            preference_margin(*(squared_error_change(flow, reference, noise - clean) for clean in pair), BETA)
            for pair in pairs
        ]
        return torch.autograd.grad(preference_loss(torch.cat(margins)), flow)[0]

    assert not gradient([(first, first)]).any()
    torch.testing.assert_close(gradient([(first, second), (second, first)]), torch.zeros(1, 5), atol=1e-7, rtol=0)
    assert gradient([(first, second)]).norm() > 0.01


def test_the_optimum_is_where_bradley_terry_has_it() -> None:
    # one number, of two values; the larger one wins three times of four: the log odds must come to log 3
    high, low, reference, noise = (torch.tensor([[value]]) for value in (2.0, 0.5, 1.0, 0.3))
    clean = reference.clone().requires_grad_()
    optimizer = torch.optim.Adam([clean], lr=0.3)
    for _ in range(400):
        flow, reference_flow = noise - clean, noise - reference
        changes = [squared_error_change(flow, reference_flow, noise - value) for value in (high, low)]
        margin = preference_margin(*changes, BETA)
        loss = 0.75 * preference_loss(margin) + 0.25 * preference_loss(-margin)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert clean.item() == pytest.approx(1 + math.log(3) / (BETA * 1.5), abs=0.01)


# ---- roll-outs


def test_the_noise_that_networks_were_trained_with_is_that_of_pipeline_rollout_and_teacher(tmp_path: Path) -> None:
    trained, silent = (make_tiny_transformer(condition_noise=share) for share in (0.3, None))
    assert make_tiny_pipeline(transformer=silent).config.condition_noise == 0  # older checkpoints say nothing
    assert make_tiny_pipeline(transformer=trained).config.condition_noise == 0.3
    pipe = make_tiny_pipeline(transformer=trained, condition_noise=0.0)  # as one is saved that had another transformer
    group = RolloutGroup(numbers(1, 4, 4, 8, 8), 0)
    embeds = [torch.zeros(1, 6, 8)]

    def seen(network: UltraFlashSRTransformer, **settings: Any) -> torch.Tensor:
        return SRStream(pipe, network, SeededFrameNoise([1], 1), embeds, **settings).condition(group)

    torch.testing.assert_close(seen(trained), seen(silent, condition_noise=0.3), rtol=0, atol=0)
    torch.testing.assert_close(seen(silent), group.condition, rtol=0, atol=0)
    for network, expected in ((trained, 0.3), (silent, 0.5)):
        network.save_pretrained(tmp_path / str(expected))
        pairs = load_pairs(Namespace(teacher=str(tmp_path / str(expected))), pipe)
        assert isinstance(pairs, TeacherPairs) and pairs.condition_noise == expected


@pytest.mark.parametrize("config", [{}, {"condition_noise": 0.3}])
def test_a_rollout_of_a_clip_is_inference(config: dict[str, float]) -> None:
    pipe = make_tiny_pipeline(generator=False, group_frames=2, **config)
    low = numbers(2, 3, 21, 16, 24).clamp(-1, 1)
    latents = pipe.autoencoder.encode(low).latents
    expected = pipe(source=latents, generator=generator(3), output_type="latent", prompt="a red ball").frames
    noise = SeededFrameNoise(draw_seeds(generator(3)), 2)
    with torch.no_grad():
        embeds = pipe.encode_prompt("a red ball")[0].expand(2, -1, -1)
    own, other = (SRStream(pipe, pipe.transformer, noise, [embeds]) for _ in range(2))
    groups = list(rollout_groups(pipe, clip_source(pipe, low)))
    assert [group.start for group in groups] == [0, 2, 4]
    # looking ahead, even with other noise, changes nothing
    torch.testing.assert_close(torch.cat([own.advance(group) for group in groups], dim=2), expected, rtol=0, atol=0)
    for group in groups:
        other.preview(group, SeededFrameNoise([7, 8], 2))
        torch.testing.assert_close(other.preview(group), other.advance(group), rtol=0, atol=0)
    assert own.condition(groups[-1]).shape[2] == 2  # the short last group is filled up


def test_a_rollout_of_a_text_is_inference() -> None:
    pipe = make_tiny_pipeline(group_frames=2)
    expected = pipe("a red ball", num_frames=21, height=32, width=48, generator=generator(5), output_type="latent")
    noise = SeededFrameNoise(draw_seeds(generator(5)), 1)
    with torch.no_grad():
        embeds = pipe.encode_prompt("a red ball")[0]
    own = SRStream(pipe, pipe.transformer, noise, [embeds])
    groups = rollout_groups(pipe, text_source(pipe, embeds, noise, 21, 32, 48))
    latents = torch.cat([own.advance(group) for group in groups], dim=2)
    torch.testing.assert_close(latents, expected.frames, rtol=0, atol=0)


# ---- the stage


def batch(seed: int = 0, frames: int = 13, size: int = 2) -> Batch:
    high = numbers(size, 3, frames, 32, 48, seed=seed).clamp(-1, 1)
    return Batch(high, high[..., ::2, ::2], None, ["a red ball"] * size)


def teacher() -> UltraFlashSRTransformer:
    """Ours with other details, so that there is something to prefer."""
    network = make_tiny_transformer()
    network.proj_out.bias += 0.3 * numbers(len(network.proj_out.bias), seed=9)
    return network


def make_stage(
    pairs: PairMaker | None = None,
    rank: int | None = None,
    reference: UltraFlashSRTransformer | None = None,
    **settings: Any,
) -> PreferenceTraining:
    pipe = make_tiny_pipeline(group_frames=2)
    choose_trained(pipe.transformer, None if rank is None else LoraLayers(rank))
    prompts = Prompts.embed(["a red ball"], pipe)
    pairs = pairs or TeacherPairs(teacher(), num_inference_steps=2)
    settings = {"margin_reduction": "sum"} | settings
    return PreferenceTraining(pipe, pairs, prompts, PreferenceObjective(**settings), reference)


def take_steps(stage: PreferenceTraining, count: int, rate: float = 1e-3) -> None:
    optimizer = torch.optim.AdamW(stage.trained_parameters(), lr=rate)
    for step in range(count):
        stage.begin_step(step, generator(step))
        loss, _ = stage(batch(step), generator(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("settings", [{}, {"rank": 2}, {"num_inference_steps": 3}])
def test_the_first_loss_is_log_2_and_steps_raise_the_margin_of_others(settings: dict[str, int]) -> None:
    stage = make_stage(**settings)
    loss, measured = stage(batch(), generator())
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6) and measured["margin"].item() == 0
    before = stage.validate(batch(100))
    take_steps(stage, 8)
    after = stage.validate(batch(100))
    assert before["margin"] == 0 and after["margin"] > 0.05
    assert after["accuracy"] == 1
    # at sigma 1, a step towards the winner is one of our own result
    if "num_inference_steps" not in settings:
        assert after["pair_distance"] < before["pair_distance"]


@pytest.mark.parametrize("rank", [None, 2])
def test_only_the_transformer_changes_and_the_reference_stays(rank: int | None) -> None:
    stage = make_stage(rank=rank)
    original = make_tiny_transformer()
    before = {name: tensor.clone() for name, tensor in stage.state_dict().items()}
    trained = set(stage.named_trained_parameters())
    take_steps(stage, 2)
    changed = {name for name, tensor in stage.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and changed <= trained
    assert set(stage.named_trained_parameters()) == trained  # switching LoRA layers off and on froze nothing
    assert all(name.startswith("transformer.") for name in trained)
    inputs = (numbers(1, 2 * LATENT_CHANNELS, 2, 8, 12), torch.tensor([1000.0]), numbers(1, 6, 8, seed=1))
    with torch.no_grad(), stage._reference() as reference:
        torch.testing.assert_close(reference(*inputs).sample, original(*inputs).sample)
    with torch.no_grad():
        assert not torch.allclose(stage.transformer(*inputs).sample, original(*inputs).sample, atol=1e-4)


def test_each_network_sees_a_past_of_its_own_making() -> None:
    stage = make_stage()
    take_steps(stage, 1, rate=0.05)
    comparison = stage.compare(batch(), 1, generator())
    states = (comparison.state, comparison.reference_state)
    keys = [state.cache[1].keys for state in states]
    assert not torch.allclose(*keys, atol=1e-3)
    # the loser is what the trained network streams
    pair, pipe = comparison.pair, stage.pipe
    seeds = torch.randint(2**63 - 1, (2,), generator=generator()).tolist()
    own = SRStream(pipe, pipe.transformer, SeededFrameNoise(seeds, 2), [comparison.prompt_embeds])
    results = [own.advance(group) for group in rollout_groups(pipe, clip_source(pipe, batch().low))]
    torch.testing.assert_close(pair.loser, results[1])


def test_gradients_are_those_of_a_step_along_the_difference() -> None:
    stage = make_stage()
    comparison = stage.compare(batch(), 1, generator())
    loss = preference_loss(stage.margin(comparison, generator(1)))
    gradient = torch.autograd.grad(loss, stage.transformer.proj_out.bias)[0]
    # at the reference: -beta / 2 <d clean / d bias, winner - loser>, the mean over samples; a bias moves the flow
    difference = comparison.pair.winner - comparison.pair.loser
    patches = difference.unfold(3, 2, 2).unfold(4, 2, 2)  # [batch, channels, frames, rows, columns, 2, 2]
    expected = BETA / 2 * patches.sum((2, 3, 4)).mean(0).permute(1, 2, 0).flatten()
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for checkpoints in (False, True):
        stage = make_stage()
        if checkpoints:
            stage.transformer.enable_gradient_checkpointing()
        loss, _ = stage(batch(), generator(2))
        gradients.append(torch.autograd.grad(loss, stage.trained_parameters(), allow_unused=True))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_mixed_precision_reaches_the_caches() -> None:
    stage = make_stage()
    with torch.autocast("cpu", torch.bfloat16):
        loss, measured = stage(batch(), generator(2))
        comparison = stage.compare(batch(), 1, generator())
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6) and measured["pair_distance"] > 0
    assert comparison.state.cache[0].keys.dtype == torch.bfloat16
    assert all(parameter.grad.isfinite().all() for parameter in stage.trained_parameters())


@pytest.mark.gpu
def test_a_gpu_makes_the_pairs_and_the_margin_of_the_cpu() -> None:
    on_cpu, on_gpu = make_stage(), make_stage().to("cuda")
    for stage in (on_cpu, on_gpu):
        torch.nn.init.constant_(stage.transformer.proj_out.bias, 0.1)  # away from the reference
    here = batch()
    there = Batch(here.high.cuda(), here.low.cuda(), None, here.texts)
    expected, measured = (stage(each, generator(2)) for stage, each in ((on_cpu, here), (on_gpu, there)))
    torch.testing.assert_close(measured[0].cpu(), expected[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(measured[1]["pair_distance"].cpu(), expected[1]["pair_distance"], rtol=1e-3, atol=1e-4)


def test_the_teacher_may_have_dense_attention() -> None:
    dense = make_tiny_transformer(use_sparse_attention=False)
    stage = make_stage(TeacherPairs(dense, num_inference_steps=3, guidance_scale=2.0, condition_noise=0.5))
    first, second = (stage.compare(batch(), group, generator()).pair for group in (0, 1))
    # what it remembers counts
    fresh = stage.compare(Batch(batch().high, batch().low[:, :, 4:], None, batch().texts), 0, generator()).pair
    assert first.winner.shape == second.winner.shape == first.loser.shape
    assert not torch.allclose(second.winner, fresh.winner, atol=1e-3)


def test_the_best_of_our_own_is_the_brightest_where_that_is_the_reward() -> None:
    stage = make_stage(BestOfPairs(brightness, num_candidates=3))
    comparison = stage.compare(batch(frames=21), 2, generator())
    pair, pipe = comparison.pair, stage.pipe
    noise = SeededFrameNoise(torch.randint(2**63 - 1, (2,), generator=generator()).tolist(), 2)
    own = SRStream(pipe, pipe.transformer, noise, [comparison.prompt_embeds])
    groups = rollout_groups(pipe, clip_source(pipe, batch(frames=21).low))
    results = torch.cat([own.advance(group) for group in groups], dim=2)

    def reward(latents: torch.Tensor) -> torch.Tensor:
        """Of the third group, behind our own first two."""
        with torch.no_grad():
            frames = pipe.autoencoder.decode(torch.cat([results[:, :, :4], latents], dim=2)).sample[:, :, 13:]
        return (frames * 0.5 + 0.5).clamp(0, 1).mean((1, 2, 3, 4))

    best, ours, worst = (reward(latents) for latents in (pair.winner, results[:, :, 4:], pair.loser))
    assert (best >= ours).all() and (ours >= worst).all() and (best > worst).all()
    assert pair.measured["reward"].item() == pytest.approx(ours.mean().item(), abs=1e-5)
    assert pair.measured["reward_gap"].item() == pytest.approx((best - worst).mean().item(), abs=1e-5)


def test_preferring_the_brighter_of_our_own_makes_streams_brighter() -> None:
    stage = make_stage(BestOfPairs(brightness, num_candidates=4))
    before = stage.validate(batch(100))
    take_steps(stage, 10, rate=5e-3)
    # by more than there is between the best and the worst of four
    assert stage.validate(batch(100))["reward"] > before["reward"] + 2 * before["reward_gap"] > before["reward"]


def test_prompts_are_rolled_out_through_the_generator() -> None:
    stage = make_stage(BestOfPairs(brightness, num_candidates=2))
    prompts = PromptDataset(["a red ball"], [Crop(13, 32, 48)], batch_size=2)
    loss, measured = stage(prompts[0].to(torch.device("cpu")), generator())
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)
    assert measured["pair_distance"] > 0


def test_batches_of_prompts_depend_on_seed_and_number_alone() -> None:
    texts, sizes = [f"text {number}" for number in range(50)], [Crop(9, 32, 32), Crop(5, 32, 64)]
    one, other, third = (PromptDataset(texts, sizes, 3, seed) for seed in (1, 1, 2))
    assert [one[n] for n in range(9)] == [other[n] for n in reversed(range(9))][::-1]
    assert [one[n] for n in range(9)] != [third[n] for n in range(9)]
    assert {one[n].size for n in range(9)} == set(sizes)
    assert isinstance(one[0], PromptBatch) and len(one[0].texts) == 3


# ---- what is refused


def test_a_reference_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="`reference` is of another shape.*blocks.2"):
        make_stage(reference=make_tiny_transformer(num_layers=3))
    with pytest.raises(ValueError, match="'prediction_type' is detail, expected flow"):
        make_stage(reference=make_tiny_transformer(prediction_type="detail"))
    with pytest.raises(ValueError, match="LoRA"):
        make_stage(rank=2, reference=make_tiny_transformer())


def test_pairs_that_cannot_be_made_are_refused() -> None:
    with pytest.raises(ValueError, match="`num_candidates` must be at least 2, got 1"):
        BestOfPairs(brightness, num_candidates=1)
    with pytest.raises(ValueError, match="`num_inference_steps` must be at least 1, got 0"):
        TeacherPairs(make_tiny_transformer(), num_inference_steps=0)
    with pytest.raises(ValueError, match="`prompts` is empty"):
        PromptDataset([], [Crop(9, 32, 32)], 1)
    with pytest.raises(ValueError, match="`frames` is 1, but a group"):
        make_stage()(batch(frames=1), generator())


# ---- the script


@pytest.fixture(scope="module")
def script() -> ModuleType:
    specification = importlib.util.spec_from_file_location("train_cascade_dpo", SCRIPT)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures in `train` and `held_out`, which become clips; a pipeline, a teacher and a scorer; prompts."""
    folder = tmp_path_factory.mktemp("material")
    for name, count in {"train": 2, "held_out": 1}.items():
        (folder / name).mkdir()
        for number in range(count):
            rng = np.random.default_rng((number, count))
            picture = Image.fromarray(rng.integers(0, 256, (16, 20, 3), dtype=np.uint8))
            picture.resize((160, 128)).save(folder / name / f"{number}.png")
    make_tiny_pipeline(group_frames=2).save_pretrained(folder / "pipeline")
    make_tiny_pipeline(group_frames=2, text=False, generator=False).save_pretrained(folder / "upscaler")
    teacher().save_pretrained(folder / "teacher")
    make_tiny_transformer(text_dim=16).save_pretrained(folder / "foreign")
    QualityScorer(channels=(4, 4), head_channels=4).save_pretrained(folder / "scorer")
    (folder / "prompts.txt").write_text("a red ball\n\na blue ball rolls\n")
    return folder


@pytest.fixture
def train(script: ModuleType, material: Path) -> Iterator[Any]:
    def run(output_dir: Path, *flags: str, pipeline: str = "pipeline", **options: Any) -> dict[str, float]:
        defaults = {
            "pretrained_model_name_or_path": material / pipeline,
            "cache_dir": material / "cache",
            "crops": "9x32x32",
            "train_batch_size": 2,
            "clip_frames": 9,
            "validation_frames": 9,
            "max_train_steps": 4,
            "learning_rate": 3e-3,
            "lr_warmup_steps": 0,
            "logging_steps": 1,
            "degraded_versions": 1,
        }
        arguments = [part for name, value in (defaults | options).items() for part in (f"--{name}", str(value))]
        return script.main(script.parse_arguments([*arguments, *flags, "--output_dir", str(output_dir)]))

    yield run


def clips(material: Path) -> tuple[str, ...]:
    return ("--train_data_dir", str(material / "train"), "--validation_data_dir", str(material / "held_out"))


def test_clips_to_validate_on_must_fill_a_group_if_there_are_any(material: Path, train: Any, tmp_path: Path) -> None:
    flags = ("--train_data_dir", "none", "--teacher", str(material / "teacher"), "--teacher_steps", "1", "--dry_run")
    assert train(tmp_path / "run", *flags, validation_frames=1)["gib"] > 0
    with pytest.raises(ValueError, match="`frames` is 1, but a group of this pipeline is 2 latents"):
        train(tmp_path / "run", *flags, "--validation_data_dir", "none", validation_frames=1)


@pytest.mark.parametrize("rank", [None, 2])
def test_a_resumed_run_ends_with_the_same_weights(material: Path, train: Any, tmp_path: Path, rank: int) -> None:
    flags = (*clips(material), "--teacher", str(material / "teacher"), "--teacher_steps", "2")
    flags += () if rank is None else ("--rank", str(rank))
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    measures = train(whole, *flags, checkpointing_steps=2)
    shutil.copytree(whole / "checkpoint-2", resumed / "checkpoint-2")
    train(resumed, *flags, "--resume_from_checkpoint", "latest", checkpointing_steps=2)
    one, other = (load_file(folder / "checkpoint-4" / "trained.safetensors") for folder in (whole, resumed))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    # the reference is the network that the run began with, also where it went on
    first, *_, last = (json.loads(line) for line in (resumed / "log.jsonl").read_text().splitlines())
    assert last["validation/margin"] == measures["validation/margin"] > 0
    pipe = UltraFlashStreamingPipeline.from_pretrained(material / "upscaler", dtype=torch.float32)
    if rank is None:
        tuned = UltraFlashSRTransformer.from_pretrained(whole / "transformer")
        assert not torch.equal(tuned.proj_out.bias, pipe.transformer.proj_out.bias)
    else:
        pipe.load_lora_weights(whole)
        assert any("lora" in name for name, _ in pipe.transformer.named_parameters())


def test_a_second_round_is_measured_against_the_first_ones_reference(
    material: Path, train: Any, tmp_path: Path
) -> None:
    flags = (*clips(material), "--teacher", str(material / "teacher"), "--teacher_steps", "1")
    train(tmp_path / "first", *flags, max_train_steps=2)
    rounds = {"transformer": tmp_path / "first", "reference": material / "pipeline"}
    train(tmp_path / "second", *flags, max_train_steps=1, **rounds)
    starts = [json.loads((tmp_path / run / "log.jsonl").read_text().splitlines()[0]) for run in ("first", "second")]
    assert starts[0]["validation/margin"] == pytest.approx(0, abs=1e-4)
    assert starts[1]["validation/margin"] > 1


def test_the_script_prefers_by_reward_on_prompts(material: Path, train: Any, tmp_path: Path) -> None:
    flags = ("--prompts", str(material / "prompts.txt"), "--validation_prompts", str(material / "prompts.txt"))
    measures = train(tmp_path, *flags, preferred="best_of", num_candidates=2, reward=material / "scorer")
    assert {"validation/margin", "validation/reward", "validation/reward_gap"} <= set(measures)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "--preferred teacher needs --teacher"),
        (("--preferred", "best_of", "--teacher", "x"), "--preferred best_of has no --teacher"),
        (("--preferred", "best_of", "--num_candidates", "1"), "--num_candidates must be 2 or more, got 1"),
        (("--teacher", "x", "--rank", "2", "--reference", "x"), "--reference: with --rank"),
        (("--teacher", "x", "--validation_prompts", "x"), "--validation_prompts needs --prompts"),
    ],
)
def test_contradicting_arguments_are_refused_at_once(
    material: Path, train: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple, message: str
) -> None:
    with pytest.raises(SystemExit):
        train(tmp_path, *clips(material), *flags)
    assert message in capsys.readouterr().err


def test_networks_that_do_not_fit_are_refused_before_any_clip_is_read(
    material: Path, train: Any, tmp_path: Path
) -> None:
    untouched = {"cache_dir": tmp_path / "cache"}
    with pytest.raises(OSError):
        train(tmp_path, *clips(material), teacher=tmp_path / "missing", **untouched)
    with pytest.raises(ValueError, match="--teacher .* has `text_dim` 16, the transformer 8"):
        train(tmp_path, *clips(material), teacher=material / "foreign", **untouched)
    with pytest.raises(ValueError, match="`reference` is of another shape"):
        train(tmp_path, *clips(material), teacher=material / "teacher", reference=material / "foreign", **untouched)
    with pytest.raises((OSError, ValueError)):
        train(tmp_path, *clips(material), preferred="best_of", reward=tmp_path / "missing", **untouched)
    with pytest.raises(ValueError, match="has no `generator_transformer`"):
        flags = ("--prompts", str(material / "prompts.txt"))
        train(tmp_path, *flags, pipeline="upscaler", preferred="best_of", reward=material / "scorer")
    with pytest.raises(ValueError, match="`frames` is 1, but a group"):
        train(tmp_path, *clips(material), crops="1x32x32", teacher=material / "teacher", **untouched)
    assert not (tmp_path / "cache").exists()


def test_a_copy_of_the_network_is_the_reference_by_default() -> None:
    stage = make_stage()
    assert stage.reference is not stage.transformer
    given = make_stage(reference=deepcopy(make_tiny_transformer()))
    for one, other in zip(stage.reference.parameters(), given.reference.parameters(), strict=True):
        assert torch.equal(one, other) and not one.requires_grad
