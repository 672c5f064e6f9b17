# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""One-step distillation: on Gaussians, whose answers are known, and with tiny networks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import make_tiny_autoencoder, make_tiny_transformer, make_tiny_upsampler
from helpers.training_runs import AUTOENCODER, TRANSFORMER, UPSAMPLER, log, run, script, texture, write_video
from safetensors.torch import load_file
from torch import nn

from ultraflash_diffusers import CausalLatentUpsampler, UltraFlashSRTransformer
from ultraflash_diffusers.rewards import QualityScorer
from ultraflash_diffusers.training.data.crops import Batch
from ultraflash_diffusers.training.data.prompts import Prompts
from ultraflash_diffusers.training.losses.details import (
    inverse_wavelet_transform,
    wavelet_details,
    wavelet_loss,
    wavelet_transform,
)
from ultraflash_diffusers.training.losses.distribution_matching import (
    DistributionMatching,
    Flow,
    clean_from_flow,
    flow_from_clean,
    guided,
    integrate,
    surrogate_loss,
)
from ultraflash_diffusers.training.losses.flow_matching import add_noise
from ultraflash_diffusers.training.losses.pixels import PixelLoss
from ultraflash_diffusers.training.settings import read_settings
from ultraflash_diffusers.training.stages.distillation import (
    DistillationObjective,
    DistillationTraining,
    check_networks,
    fake_score_of,
    sparse_student,
)
from ultraflash_diffusers.training.starting_points.lora import LoraLayers


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- wavelets


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_wavelets_give_the_pixels_back(levels: int) -> None:
    pixels = torch.randn(2, 3, 2, 16, 24, generator=seeded(), dtype=torch.float64)
    low, details = wavelet_transform(pixels, levels)
    assert low.shape == (2, 3, 2, 16 >> levels, 24 >> levels) and len(details) == levels
    torch.testing.assert_close(inverse_wavelet_transform(low, details), pixels, rtol=0, atol=1e-12)
    # orthonormal: the energy is that of the pixels; and the finest bands are those of the one-level function
    energy = low.square().sum() + sum(bands.square().sum() for bands in details)
    assert energy.item() == pytest.approx(pixels.square().sum().item())
    assert torch.equal(details[0], wavelet_details(pixels))


def test_wavelet_levels_see_what_is_coarser() -> None:
    fine = torch.tensor([1.0, -1.0]).repeat(8).expand(16, 16)
    broad = torch.tensor([1.0, 1.0, -1.0, -1.0]).repeat(4).expand(16, 16)
    nothing = torch.zeros(16, 16)
    assert wavelet_loss(broad, nothing).item() == 0
    # one of three bands is 2, or at the second level 4; the mean over both levels
    assert wavelet_loss(fine, nothing, levels=2).item() == pytest.approx(2 / 3 / 2)
    assert wavelet_loss(broad, nothing, levels=2).item() == pytest.approx(4 / 3 / 2)
    two_levels = PixelLoss(0, 0, 0, wavelet_weight=1, wavelet_levels=2)
    pixels = (picture.expand(1, 3, 1, 16, 16) for picture in (broad, nothing))
    assert two_levels(*pixels)["wavelet"].item() == pytest.approx(4 / 3 / 2)


def test_sizes_that_cannot_be_halved_are_refused() -> None:
    with pytest.raises(ValueError, match="12x16"):
        wavelet_transform(torch.zeros(12, 16), levels=3)
    with pytest.raises(ValueError, match="`levels` is 0"):
        wavelet_transform(torch.zeros(12, 16), levels=0)


def test_a_pixel_loss_without_weights_is_empty() -> None:
    assert PixelLoss(0, 0, 0).is_empty and not PixelLoss(0, 0, 0, wavelet_weight=0.1).is_empty


# ---- distribution matching, on Gaussians of which the best possible networks are known


class Gaussian:
    """Samples that are normal, independent in each of `mean`'s dimensions, all with one deviation."""

    def __init__(self, mean: torch.Tensor, deviation: float = 0.5) -> None:
        self.mean, self.deviation = mean, deviation

    def flow(self, noisy: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
        """What a perfectly trained network says: it points to the conditional mean of the clean sample."""
        kept, sigma = 1 - sigmas[:, None], sigmas[:, None]
        share = kept * self.deviation**2 / (kept**2 * self.deviation**2 + sigma**2)
        return flow_from_clean(noisy, self.mean + share * (noisy - kept * self.mean), sigmas)

    def sample(self, number: int, generator: torch.Generator) -> torch.Tensor:
        return self.mean + self.deviation * torch.randn(number, len(self.mean), generator=generator)


def pull(sigmas: torch.Tensor, deviation: float = 0.5) -> torch.Tensor:
    """How far apart the clean predictions for two Gaussians are, for each unit between their means."""
    return sigmas**2 / ((1 - sigmas) ** 2 * deviation**2 + sigmas**2)


REAL = Gaussian(torch.linspace(-1, 1, 8))
UNCONDITIONAL = Gaussian(REAL.mean + torch.linspace(0.2, 0.6, 8))


def test_flows_and_clean_samples_are_two_ways_to_say_the_same() -> None:
    clean, noise = torch.randn(2, 4, 3, 5, generator=seeded())
    sigmas = torch.tensor([0.1, 0.4, 0.7, 1.0])
    noisy = add_noise(clean, noise, sigmas)
    torch.testing.assert_close(clean_from_flow(noisy, noise - clean, sigmas), clean)
    torch.testing.assert_close(flow_from_clean(noisy, clean, sigmas), noise - clean, rtol=1e-4, atol=1e-4)


def test_following_the_flow_turns_noise_into_the_distribution() -> None:
    target = Gaussian(torch.linspace(-2, 2, 8), deviation=0.3)
    noise = torch.randn(4000, 8, generator=seeded())
    sample = integrate(target.flow, noise, torch.linspace(1, 0, 101).tolist())
    torch.testing.assert_close(sample.mean(0), target.mean, rtol=0, atol=0.03)
    torch.testing.assert_close(sample.std(0), torch.full((8,), 0.3), rtol=0, atol=0.02)


def test_guidance_extrapolates_and_costs_nothing_where_there_is_none() -> None:
    noisy, sigmas = torch.randn(3, 8, generator=seeded()), torch.tensor([0.2, 0.5, 0.9])
    with_text, without = REAL.flow(noisy, sigmas), UNCONDITIONAL.flow(noisy, sigmas)
    flow = guided(REAL.flow, UNCONDITIONAL.flow, 3.5)(noisy, sigmas)
    torch.testing.assert_close(flow, with_text + 2.5 * (with_text - without))
    assert guided(REAL.flow, UNCONDITIONAL.flow, 1) == REAL.flow


@pytest.mark.parametrize(("guidance_scale", "student_sigma"), [(1.0, 1.0), (3.5, 1.0), (3.5, 0.4)])
def test_the_gradient_is_the_closed_form(guidance_scale: float, student_sigma: float) -> None:
    student = Gaussian(torch.zeros(8))
    sample = student.sample(6, seeded(1))
    matching = DistributionMatching(guidance_scale, sigma_range=(0.1, 0.9))
    flows = (REAL.flow, student.flow, UNCONDITIONAL.flow)
    gradient = matching.gradient(sample, *flows, seeded(2), student_sigma)

    generator = seeded(2)
    sigmas = 0.1 + 0.8 * torch.rand(6, generator=generator)
    noisy = add_noise(sample, torch.randn(sample.shape, generator=generator), sigmas)
    real = clean_from_flow(noisy, REAL.flow(noisy, sigmas), sigmas)
    matching_term = pull(sigmas)[:, None] * (REAL.mean - student.mean)
    sigmas = 0.1 + (min(0.9, student_sigma) - 0.1) * torch.rand(6, generator=generator)
    guidance_term = (guidance_scale - 1) * pull(sigmas)[:, None] * (REAL.mean - UNCONDITIONAL.mean)
    distance = (sample - real - guidance_term).abs().mean(1, keepdim=True)
    torch.testing.assert_close(gradient, -(matching_term + guidance_term) / distance, rtol=1e-4, atol=1e-5)


def test_the_surrogate_loss_has_the_gradient_that_it_is_given() -> None:
    sample, gradient = torch.randn(2, 3, 4, 5, generator=seeded())
    sample.requires_grad_(True)
    loss = surrogate_loss(sample, gradient)
    loss.backward()
    torch.testing.assert_close(sample.grad, gradient / gradient.numel(), rtol=1e-4, atol=1e-7)
    assert loss.item() == pytest.approx(0.5 * gradient.square().mean().item(), rel=1e-4)


@pytest.mark.parametrize(
    ("guidance_scale", "student_sigma", "normalised"),
    [(1.0, 1.0, True), (1.0, 1.0, False), (2.5, 1.0, False), (2.5, 0.5, False)],
)
def test_descent_ends_at_the_mean_that_theory_says(
    guidance_scale: float, student_sigma: float, normalised: bool
) -> None:
    """Without guidance the target's mean; with it as far beyond as guidance extrapolates, or less, as it pulls less
    at the low noise levels that are left to a student that starts at a low one."""
    matching = DistributionMatching(guidance_scale)
    mean = torch.zeros(8, requires_grad=True)
    optimizer, generator = torch.optim.SGD([mean], lr=1.0), seeded(3)
    late = []
    for step in range(400):
        student = Gaussian(mean.detach())  # the fake score tracks perfectly
        sample = mean + student.deviation * torch.randn(64, 8, generator=generator)
        flows = (REAL.flow, student.flow, UNCONDITIONAL.flow)
        gradient = -matching.direction(sample.detach(), *flows, generator, student_sigma)[0]
        if normalised:
            gradient = matching.gradient(sample.detach(), *flows, generator, student_sigma)
        surrogate_loss(sample, gradient).backward()
        optimizer.step()
        optimizer.zero_grad()
        late += [mean.detach().clone()] if step >= 200 else []
    levels = 0.02 + 0.96 * torch.rand(100000, generator=generator)
    lower = 0.02 + (min(student_sigma, 0.98) - 0.02) * torch.rand(100000, generator=generator)
    shift = (guidance_scale - 1) * (pull(lower).mean() / pull(levels).mean()) * (REAL.mean - UNCONDITIONAL.mean)
    torch.testing.assert_close(torch.stack(late).mean(0), REAL.mean + shift, rtol=0, atol=0.03)


def test_a_student_that_is_where_the_teacher_points_is_not_thrown_off() -> None:
    """As after a good beginning: however small the distance to the teacher's prediction, the step stays of size 1."""
    certain, elsewhere = Gaussian(REAL.mean, deviation=1e-3), Gaussian(UNCONDITIONAL.mean, deviation=1e-3)
    sample = certain.sample(16, seeded(1))
    flows = (certain.flow, certain.flow, elsewhere.flow)
    gradient = DistributionMatching(3.5).gradient(sample, *flows, seeded(2))
    assert gradient.abs().mean(1).max() < 1.1


def test_the_fake_score_learns_where_the_student_is() -> None:
    student, matching = Gaussian(torch.linspace(-1, 1, 8)), DistributionMatching()
    for predicts in ("flow", "clean"):
        mean = torch.zeros(8, requires_grad=True)
        optimizer, generator = torch.optim.Adam([mean], lr=0.05), seeded(4)
        for _ in range(200):
            fake: Flow = Gaussian(mean).flow
            matching.fake_score_loss(student.sample(64, generator), fake, generator, predicts).backward()
            optimizer.step()
            optimizer.zero_grad()
        torch.testing.assert_close(mean.detach(), student.mean, rtol=0, atol=0.12)


def test_settings_outside_their_range_are_refused() -> None:
    with pytest.raises(ValueError, match="`guidance_scale` must be at least 1, got 0.5"):
        DistributionMatching(0.5)
    with pytest.raises(ValueError, match="`sigma_range`"):
        DistributionMatching(sigma_range=(0.9, 0.1))
    flows = (REAL.flow, REAL.flow, UNCONDITIONAL.flow)
    with pytest.raises(ValueError, match="`student_sigma` .* got 0.01"):
        DistributionMatching().gradient(torch.zeros(2, 8), *flows, seeded(), student_sigma=0.01)


# ---- the stage, with tiny networks


def brightness(frames: torch.Tensor) -> torch.Tensor:
    """A reward whose gradient is the same everywhere."""
    return frames.mean((1, 2, 3))


def make_teacher(**config: Any) -> UltraFlashSRTransformer:
    return make_tiny_transformer(**{"use_sparse_attention": False, "prediction_type": "detail"} | config)


def make_stage(
    teacher: UltraFlashSRTransformer | None = None,
    student: UltraFlashSRTransformer | None = None,
    rank: int | None = None,
    reward: Any = None,
    **distillation: Any,
) -> DistillationTraining:
    teacher = make_teacher() if teacher is None else teacher
    lora = None if rank is None else LoraLayers(rank)
    settings = {"guidance_drops": "condition", "fake_updates": 2, "teacher_steps": 2}
    settings |= {"pixel_loss": PixelLoss(0, 0, 0), "condition_noise": (0.0, 0.0)} | distillation
    return DistillationTraining(
        sparse_student(teacher, lora) if student is None else student,
        teacher,
        fake_score_of(teacher, lora),
        make_tiny_upsampler(),
        make_tiny_autoencoder(),
        Prompts({}, 6, 8),
        DistillationObjective(**settings),
        reward,
    )


def make_batch(samples: int = 2) -> Batch:
    low = torch.rand(samples, 3, 5, 16, 16, generator=seeded(7)) * 2 - 1
    high = nn.functional.interpolate(low, scale_factor=(1, 2, 2), mode="trilinear")
    return Batch(high, low, None, [""] * samples)


def optimise(stage: DistillationTraining, steps: int, learning_rate: float = 3e-3) -> dict[str, list[float]]:
    """What the loop does, on one batch; returns what each phase measured."""
    optimizer = torch.optim.AdamW(stage.parameter_groups(learning_rate))
    measured: dict[str, list[float]] = {}
    batch = make_batch()
    for step in range(steps):
        stage.begin_step(step, seeded(step))
        loss, terms = stage.train()(batch, seeded(step))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        for name, value in terms.items():
            measured.setdefault(name, []).append(value.item())
    return measured


def test_steps_alternate_after_the_regression() -> None:
    objective = DistillationObjective(fake_updates=2, regression_steps=1)
    phases = [objective.phase(step) for step in range(8)]
    cycle = ["fake_score", "fake_score", "student"]
    assert phases == ["regression", *cycle, *cycle, "fake_score"]
    assert [DistillationObjective().phase(step) for step in range(7)].count("student") == 1


@pytest.mark.parametrize(("step", "trained"), [(0, "fake_score"), (2, "transformer"), (3, "fake_score")])
def test_each_step_trains_one_network_and_never_the_teacher(step: int, trained: str) -> None:
    stage = make_stage(reward_weight=1.0, reward=brightness)
    stage.begin_step(step, seeded(step))
    loss, _ = stage(make_batch(), seeded())
    loss.backward()
    reached = {name.split(".")[0] for name, parameter in stage.named_parameters() if parameter.grad is not None}
    assert reached == {trained}
    assert {name.split(".")[0] for name in stage.named_trained_parameters()} == {"transformer", "fake_score"}
    averaged, students = stage.averaged_parameters(), list(stage.transformer.parameters())
    assert all(one is other for one, other in zip(averaged, students, strict=True))


def test_the_student_starts_as_the_sparse_teacher() -> None:
    teacher = make_teacher()
    student, fake_score = sparse_student(teacher), fake_score_of(teacher)
    assert student.config.use_sparse_attention and not fake_score.config.use_sparse_attention
    assert not teacher.config.use_sparse_attention
    inputs = torch.randn(1, 8, 4, 8, 8, generator=seeded()), torch.tensor([1000.0]), torch.zeros(1, 6, 8)
    assert torch.equal(fake_score(*inputs).sample, teacher(*inputs).sample)
    assert torch.equal(student(*inputs).sample, make_teacher(use_sparse_attention=True)(*inputs).sample)
    # causal: later frames do not matter to the first chunk
    later = inputs[0].clone()
    later[:, :, 2:] += 1
    assert torch.equal(student(later, *inputs[1:]).sample[:, :, :2], student(*inputs).sample[:, :, :2])
    assert not any(one is other for one, other in zip(student.parameters(), teacher.parameters(), strict=True))


def test_lora_layers_are_trained_on_one_set_of_weights() -> None:
    stage = make_stage(rank=2)
    assert all("lora" in name for name in stage.named_trained_parameters())
    for network in (stage.transformer, stage.fake_score):
        frozen = {parameter for parameter in network.parameters() if not parameter.requires_grad}
        assert frozen == set(stage.teacher.parameters())
    before = [parameter.clone() for parameter in stage.teacher.parameters()]
    optimise(stage, steps=3)
    assert all(map(torch.equal, stage.teacher.parameters(), before))
    trained = [parameter for name, parameter in stage.named_trained_parameters().items() if "lora_B" in name]
    assert all(parameter.any() for parameter in trained)


@pytest.mark.parametrize("drops", ["text", "condition", "both"])
def test_guidance_is_by_what_the_teacher_does_without(drops: str) -> None:
    stage = make_stage(guidance_drops=drops)
    noisy, condition = torch.randn(2, 1, 4, 2, 8, 8, generator=seeded())
    text = torch.randn(1, 6, 8, generator=seeded())
    found = stage._unconditional(condition, text)(noisy, torch.tensor([0.5]))
    condition = condition if drops == "text" else torch.zeros_like(condition)
    text = text if drops == "condition" else torch.zeros_like(text)
    expected = stage.teacher(torch.cat([noisy, condition], dim=1), torch.tensor([500.0]), text).sample
    torch.testing.assert_close(found, expected)


def test_regression_comes_near_to_the_teachers_results() -> None:
    teacher = make_teacher()
    student = make_tiny_transformer(prediction_type="detail").requires_grad_(True)
    nn.init.zeros_(student.proj_out.weight)
    measured = optimise(make_stage(teacher, student, regression_steps=40), steps=40)
    assert set(measured) == {"regression"}
    assert measured["regression"][-1] < 0.5 * measured["regression"][0]


@pytest.mark.parametrize("prediction_type", ["flow", "detail"])
def test_the_fake_score_follows_the_student(prediction_type: str) -> None:
    late = []
    for learning_rate in (0.0, 1e-2):
        stage = make_stage(make_teacher(prediction_type=prediction_type), fake_updates=25)
        measured = optimise(stage, steps=26, learning_rate=learning_rate)
        assert len(measured["fake_score"]) == 25 and len(measured["matching"]) == 1
        late.append(sum(measured["fake_score"][-5:]))
    assert late[1] < 0.95 * late[0]  # of the same batches and noise


def test_what_judges_stays_in_evaluation_mode() -> None:
    class Judge(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout, self.weight = nn.Dropout(0.5), nn.Parameter(torch.ones(()))

        def forward(self, frames: torch.Tensor) -> torch.Tensor:
            return self.weight * self.dropout(frames).mean((1, 2, 3))

    stage = make_stage(reward=Judge(), reward_weight=1.0).train()
    assert stage.transformer.training and not stage.teacher.training and not stage.reward.dropout.training
    assert not stage.reward.weight.requires_grad


@pytest.mark.parametrize(
    ("student", "distillation", "message"),
    [
        ({"use_sparse_attention": False}, {}, "`use_sparse_attention=True`"),
        ({"out_channels": 6, "in_channels": 12}, {}, "`student` has out_channels 6, `teacher` 4"),
        ({"text_dim": 4}, {}, "text_dim 4, `teacher` 8"),
        ({"prediction_type": "flow"}, {}, "prediction_type 'flow', `teacher` 'detail'"),
        ({}, {"reward_weight": 0.5}, "`reward_weight` is 0.5, but `reward` is None"),
        ({}, {"perceptual_weight": 0.5}, "`perceptual` is None"),
        ({}, {"fake_updates": 0}, "`fake_updates` must be at least 1, got 0"),
        ({}, {"guidance_drops": "all"}, "`guidance_drops`"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    student: dict[str, Any], distillation: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_stage(student=make_tiny_transformer(**{"prediction_type": "detail"} | student), **distillation)


def test_a_saved_student_belongs_to_its_teacher(tmp_path: Path) -> None:
    teacher = make_teacher()
    sparse_student(teacher).save_pretrained(tmp_path)
    check_networks(UltraFlashSRTransformer.from_pretrained(tmp_path), teacher)


# ---- the script, on a cascade that has been trained a little


@pytest.fixture(scope="module")
def cascade(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips; a trained autoencoder, an upsampler of random weights, which leaves much to do, and a teacher that does
    it in several steps; a student that gives the condition back; a quality scorer of random weights."""
    folder = tmp_path_factory.mktemp("cascade")
    for name, seeds in {"train": (1, 2, 3), "held_out": (7,)}.items():
        (folder / name).mkdir()
        for seed in seeds:
            write_video(folder / name / f"clip_{seed}.mp4", texture(seed))
    torch.manual_seed(0)
    CausalLatentUpsampler(**UPSAMPLER).save_pretrained(folder / "upsampler")
    QualityScorer(channels=(8, 8), head_channels=8).save_pretrained(folder / "scorer")
    student = UltraFlashSRTransformer(**TRANSFORMER)
    nn.init.zeros_(student.proj_out.weight)
    nn.init.zeros_(student.proj_out.bias)
    student.save_pretrained(folder / "student" / "transformer")
    config = folder / "config.json"
    config.write_text(json.dumps(AUTOENCODER))
    linear = ("--network_config", str(config), "--linear_init", "--linear_init_batches", "20")
    run("train_hr_autoencoder", folder, folder / "autoencoder", *linear, max_train_steps=30)
    config.write_text(json.dumps(TRANSFORMER | {"use_sparse_attention": False}))
    settings = {
        "objective": "flow_matching",
        "condition_noise": "0 0",
        "condition_dropout": 0.2,
        "network_config": config,
    }
    settings |= {"autoencoder": folder / "autoencoder", "latent_upsampler": folder / "upsampler"}
    settings |= {"max_train_steps": 120, "learning_rate": 5e-3, "train_batch_size": 4, "num_inference_steps": 4}
    run("train_sr", folder, folder / "teacher", **settings)
    return folder


def distil(cascade: Path, output_dir: Path, *flags: str, **options: Any) -> dict[str, float]:
    networks = {"teacher": "teacher", "autoencoder": "autoencoder", "latent_upsampler": "upsampler"}
    settings = {name: cascade / folder for name, folder in networks.items()}
    settings |= {"guidance_drops": "condition", "teacher_steps": 4, "condition_noise": "0 0", "learning_rate": 3e-3}
    return run("distill_sr", cascade, output_dir, *flags, **settings | options)


@pytest.mark.slow
def test_distillation_brings_the_student_to_the_teacher(cascade: Path, tmp_path: Path) -> None:
    options = {"guidance_scale": 1, "fake_updates": 2, "wavelet_weight": 0, "max_train_steps": 120}
    student = ("--pretrained_model_name_or_path", str(cascade / "student"))
    last = distil(cascade, tmp_path, *student, **options)
    first = log(tmp_path)[0]
    # at first it gives the condition back
    assert first["validation/psnr"] == pytest.approx(first["validation/psnr_of_condition"], abs=1e-3)
    assert last["validation/psnr_to_teacher"] > first["validation/psnr_to_teacher"] + 1
    # and it comes to have as much detail as the teacher's results have
    missing = [each["validation/detail_of_teacher"] - each["validation/detail"] for each in (first, last)]
    assert abs(missing[1]) < 0.6 * missing[0]
    assert UltraFlashSRTransformer.from_pretrained(tmp_path / "transformer").config.use_sparse_attention
    assert not (tmp_path / "autoencoder").exists() and not (tmp_path / "latent_upsampler").exists()


@pytest.mark.slow
def test_a_reward_and_a_wavelet_loss_move_their_numbers(cascade: Path, tmp_path: Path) -> None:
    options = {"fake_updates": 1, "max_train_steps": 60, "reward": cascade / "scorer", "judged_frames": 5}
    weights = {"without": (0, 1e-3), "reward": (500, 0), "wavelet": (0, 50)}
    rewards = {}
    for name, (reward, wavelet) in weights.items():
        more = {"reward_weight": reward, "wavelet_weight": wavelet, "wavelet_levels": 2}
        rewards[name] = distil(cascade, tmp_path / name, **options, **more)["validation/reward"]
    assert rewards["reward"] > rewards["without"] + 0.01
    # the same batches at the same steps; the student's are every second one
    with_weight, without = (
        [line["wavelet"] / weights[name][1] for line in log(tmp_path / name) if "wavelet" in line]
        for name in ("wavelet", "without")
    )
    assert len(with_weight) == 30 and sum(with_weight[-5:]) < 0.9 * sum(without[-5:])
    for line in log(tmp_path / "reward")[1:-1]:
        assert ("reward" in line) == (line["step"] % 2 == 0) and ("fake_score" in line) != ("reward" in line)


@pytest.mark.slow
def test_the_decoder_is_tuned_in_the_students_steps(cascade: Path, tmp_path: Path) -> None:
    options = {"fake_updates": 1, "max_train_steps": 12, "reconstruction_every": 2, "checkpointing_steps": 1}
    distil(cascade, tmp_path, "--train_decoder", "--use_ema", **options)
    file = "diffusion_pytorch_model.safetensors"
    before, after = (load_file(folder / "autoencoder" / file) for folder in (cascade, tmp_path))
    assert {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])} == {"decoder"}
    lines = log(tmp_path)[1:-1]
    assert ["fake_score" in line for line in lines] == [True, False] * 6
    # some of the student's batches are decoded as they are, in which the student has no part
    own = [line for line in lines if "fake_score" not in line]
    assert {"reconstruction" in line for line in own} == {True, False}
    assert all(("matching" in line) != ("reconstruction" in line) for line in own)
    states = {step: load_file(tmp_path / f"checkpoint-{step}" / "trained.safetensors") for step in range(1, 13)}
    for line in own[1:]:
        one, other = states[line["step"] - 1], states[line["step"]]
        changed = {name.split(".")[0] for name in one if not torch.equal(one[name], other[name])}
        assert changed == ({"autoencoder"} if "reconstruction" in line else {"autoencoder", "transformer"})


def test_resumed_in_the_middle_of_a_cycle_equals_uninterrupted(cascade: Path, tmp_path: Path) -> None:
    options = {"fake_updates": 3, "regression_steps": 1, "max_train_steps": 10, "checkpointing_steps": 1}
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    distil(cascade, whole, "--use_ema", **options)
    shutil.copytree(whole / "checkpoint-7", resumed / "checkpoint-7")
    torch.manual_seed(99)
    distil(cascade, resumed, "--use_ema", "--resume_from_checkpoint", "latest", **options)
    for file in ("transformer/diffusion_pytorch_model.safetensors", "checkpoint-10/trained.safetensors"):
        one, other = load_file(whole / file), load_file(resumed / file)
        assert all(torch.equal(one[name], other[name]) for name in one)
    # one step of regression, then three of the fake score for each of the student
    states = [load_file(whole / f"checkpoint-{step}" / "trained.safetensors") for step in range(1, 11)]
    changed = [
        {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
        for before, after in zip(states, states[1:], strict=False)
    ]
    cycle = [{"fake_score"}] * 3 + [{"transformer"}]
    assert changed == [*cycle, *cycle, {"fake_score"}]


def test_lora_of_the_sparse_student_loads_into_the_teachers_weights(cascade: Path, tmp_path: Path) -> None:
    distil(cascade, tmp_path, rank=2, fake_updates=1, max_train_steps=4)
    weights = load_file(tmp_path / "pytorch_lora_weights.safetensors")
    assert all("lora" in name for name in weights) and any(t.any() for n, t in weights.items() if "lora_B" in n)
    student = UltraFlashSRTransformer.from_pretrained(cascade / "teacher" / "transformer", use_sparse_attention=True)
    student.load_lora_adapter(weights, prefix="transformer")
    assert student.config.use_sparse_attention and student.peft_config


def test_bad_command_lines_are_refused(capsys: pytest.CaptureFixture) -> None:
    base = ["--train_data_dir", "x", "--output_dir", "y", "--autoencoder", "a", "--latent_upsampler", "b"]
    base += ["--teacher", "c"]
    without_text = ["--guidance_drops", "condition"]
    for flags, message in (
        ([], "--guidance_drops text needs --text_encoder"),
        ([*without_text, "--guidance_scale", "0.5"], "at least 1"),
        ([*without_text, "--reward_weight", "0.1"], "--reward_weight needs --reward"),
        ([*without_text, "--perceptual_weight", "0.1"], "--perceptual_weight needs --perceptual_loss"),
        ([*without_text, "--condition_noise", "0.6", "0.4"], "LOW"),
        ([*without_text, "--matching_levels", "0", "0.5"], "--matching_levels: two rising numbers above 0"),
        ([*without_text, "--wavelet_levels", "5", "--crops", "9x48x64"], "9x48x64"),
        ([*without_text, "--reconstruction_every", "5"], "--reconstruction_every needs --train_decoder"),
        ([*without_text, "--train_decoder", "--decode_linearly"], "leaves out the decoder"),
        (
            [*without_text, "--train_decoder", "--reconstruction_every", "5", "--wavelet_weight", "0"],
            "--reconstruction_every needs a pixel loss",
        ),
    ):
        with pytest.raises(SystemExit):
            script("distill_sr").parse_arguments([*base, *flags])
        assert message in capsys.readouterr().err
    levels = ["--matching_levels", "0.1", "0.5"]
    parsed = script("distill_sr").parse_arguments([*base, "--guidance_scale", "1", "--reward", "packaged", *levels])
    assert parsed.ema_interval == 6 and parsed.reward_weight == 1e-3
    assert read_settings(parsed, DistillationObjective).matching.sigma_range == (0.1, 0.5)


def test_a_teacher_of_another_shape_is_refused_before_any_data_are_read(cascade: Path, tmp_path: Path) -> None:
    make_teacher().save_pretrained(tmp_path / "teacher")
    student = ("--pretrained_model_name_or_path", str(cascade / "student"))
    with pytest.raises(ValueError, match="`student` has out_channels 8, `teacher` 4"):
        distil(cascade, tmp_path, *student, teacher=tmp_path / "teacher", train_data_dir="nowhere")
