# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Training: losses with known values, data that can be trusted, and scripts that move what they exist to move."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from helpers.tiny import make_tiny_pipeline
from helpers.training_runs import (
    AUTOENCODER,
    HEAD,
    SCRIPTS,
    TRANSFORMER,
    UPSAMPLER,
    log,
    run,
    script,
    texture,
    write_video,
)
from huggingface_hub.utils import filter_repo_objects
from PIL import Image
from safetensors.torch import load_file
from torch.nn.modules.module import register_module_forward_hook

from ultraflash_diffusers import CausalLatentUpsampler, HRAutoencoder, UltraFlashSRTransformer
from ultraflash_diffusers.degradation import Downscale
from ultraflash_diffusers.training.data.camera_motion import animate_picture
from ultraflash_diffusers.training.data.crops import Crop, CropDataset, batches, optical_flow, validation_crop
from ultraflash_diffusers.training.data.preparation import CachedClip, Preparation, prepare_clips
from ultraflash_diffusers.training.data.prompts import Prompts
from ultraflash_diffusers.training.data.sources import find_sources
from ultraflash_diffusers.training.data.video_dataset import dataset_sources
from ultraflash_diffusers.training.loop import hub
from ultraflash_diffusers.training.losses import details, fidelity, flow_matching, pixels, temporal
from ultraflash_diffusers.training.losses.linear_decoding import decode_linearly
from ultraflash_diffusers.training.starting_points.networks import new_network


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training clips in `train`, one other in `held_out`, a cache for all tests, networks' configurations."""
    folder = tmp_path_factory.mktemp("material")
    for name, seeds in {"train": (1, 2, 3, 4, 5, 6), "held_out": (7,)}.items():
        (folder / name).mkdir()
        for seed in seeds:
            write_video(folder / name / f"clip_{seed}.mp4", texture(seed))
    Image.fromarray(texture(5, 1, 96, 128)[0]).save(folder / "train" / "picture.png")
    for name, config in {"autoencoder": AUTOENCODER, "upsampler": UPSAMPLER, "transformer": TRANSFORMER}.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def autoencoder(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("autoencoder")
    flags = ("--network_config", str(material / "autoencoder.json"), "--linear_init", "--linear_init_batches", "20")
    run("train_hr_autoencoder", material, folder, *flags, learning_rate=2e-3)
    return folder


@pytest.fixture(scope="module")
def upsampler(material: Path, autoencoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("upsampler")
    flags = ("--network_config", str(material / "upsampler.json"))
    run("train_latent_upsampler", material, folder, *flags, autoencoder=autoencoder)
    return folder


# ---- losses


def test_charbonnier_of_known_differences() -> None:
    target = torch.zeros(1, 3, 2, 4, 4)
    assert fidelity.charbonnier(target, target).item() == pytest.approx(0.01)
    assert fidelity.charbonnier(target + 0.3, target, epsilon=0.4).item() == pytest.approx(0.5)


def test_warping_by_whole_pixels_is_a_shift() -> None:
    frames = torch.rand(1, 3, 6, 8)
    flow = torch.zeros(1, 2, 6, 8)
    flow[:, 0], flow[:, 1] = 2, -1
    warped = temporal.warp(frames, flow)
    torch.testing.assert_close(warped[..., 1:, :-2], frames[..., :-1, 2:])
    assert warped[..., 0, :].abs().max() < 1e-5 and warped[..., -2:].abs().max() < 1e-5  # from outside


def test_warped_loss_is_zero_where_pixels_follow_the_flow() -> None:
    wide = torch.rand(1, 3, 8, 20)
    clip = torch.stack([wide[..., 2 * t : 2 * t + 12] for t in range(3)], dim=2)  # contents move 2 to the left
    flow = torch.zeros(1, 2, 2, 8, 12)
    flow[:, :, 0] = 2
    assert temporal.warped_temporal_loss(clip, flow).item() == pytest.approx(0, abs=1e-5)
    assert temporal.warped_temporal_loss(clip, torch.zeros_like(flow)).item() > 0.1
    # a brightness that flickers by 0.2 costs 0.2, whatever moves
    flicker = clip + torch.tensor([0.0, 0.2, 0.0]).view(1, 1, 3, 1, 1)
    assert temporal.warped_temporal_loss(flicker, flow).item() == pytest.approx(0.2, abs=1e-4)


def test_optical_flow_points_to_where_a_pixel_was() -> None:
    clip = texture(7, frames=3, height=64, width=96)  # contents move 1 up and 2 to the left
    flow = optical_flow(torch.from_numpy(clip).permute(3, 0, 1, 2)).float()
    assert flow.shape == (2, 2, 64, 96)
    assert flow[:, 0].median().item() == pytest.approx(2, abs=0.3)
    assert flow[:, 1].median().item() == pytest.approx(1, abs=0.3)


def test_temporal_difference_forgives_what_does_not_change() -> None:
    target = torch.rand(1, 3, 4, 4, 4)
    assert temporal.temporal_difference_loss(target + 0.3, target).item() == pytest.approx(0, abs=1e-6)
    flicker = target + torch.tensor([0.0, 0.1, 0.0, 0.1]).view(1, 1, 4, 1, 1)
    assert temporal.temporal_difference_loss(flicker, target).item() == pytest.approx(0.1, abs=1e-5)


def test_wavelet_details_are_the_orthonormal_bands() -> None:
    stripes = torch.tensor([1.0, -1.0]).repeat(4).expand(8, 8)
    horizontal, vertical, diagonal = details.wavelet_details(stripes)
    assert horizontal.eq(2).all() and not vertical.any() and not diagonal.any()
    assert not details.wavelet_details(torch.ones(4, 4)).any()
    assert details.wavelet_loss(stripes, torch.zeros(8, 8)).item() == pytest.approx(2 / 3)
    assert details.detail_ratio(0.5 * stripes, stripes).item() == pytest.approx(0.5)


def test_contrast_asks_for_the_strength_of_details_and_not_for_their_place() -> None:
    fine = torch.tensor([1.0, -1.0]).repeat(16).expand(1, 3, 2, 32, 32)
    broad = torch.tensor([1.0, 1.0, -1.0, -1.0]).repeat(8).expand(1, 3, 2, 32, 32)
    nothing = torch.zeros(1, 3, 2, 32, 32)
    # one of three bands is 2 everywhere, at the first scale for the fine stripes and at the second for the broad ones
    strength = (4 / 3 + 1e-5) ** 0.5 - 1e-5**0.5
    assert details.contrast_loss(fine, nothing).item() == pytest.approx(strength, rel=1e-4)
    assert details.contrast_loss(broad, nothing).item() == pytest.approx(strength, rel=1e-4)
    assert details.contrast_loss(broad, fine).item() == pytest.approx(2 * strength, rel=1e-4)
    assert details.contrast_loss(fine.roll(1, dims=-1), fine).item() == 0
    assert [tuple(scale.shape) for scale in details.local_contrast(fine)] == [(3, 2, 4, 4), (3, 2, 2, 2)]


def test_structural_similarity_of_one_window() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = 2 * torch.rand(2, 1, 3, 1, 11, 11, generator=generator) - 1
    pictures = [(np.einsum("chw,c->hw", each[0, :, 0].numpy(), [0.299, 0.587, 0.114]) + 1) / 2 for each in (x, y)]
    bell = np.exp(-((np.arange(11) - 5) ** 2) / 4.5)
    window = np.outer(bell, bell).ravel() / bell.sum() ** 2
    a, b = (picture.ravel() @ window for picture in pictures)
    (va, c), (_, vb) = np.cov([picture.ravel() for picture in pictures], bias=True, aweights=window)
    expected = (2 * a * b + 1e-4) * (2 * c + 9e-4) / ((a**2 + b**2 + 1e-4) * (va + vb + 9e-4))
    assert fidelity.ssim_loss(x, y).item() == pytest.approx(1 - expected, abs=1e-5)
    assert fidelity.ssim_loss(x, x).item() == pytest.approx(0, abs=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert fidelity.ssim_loss(x, y).item() == pytest.approx(1 - expected, abs=1e-5)
    with pytest.raises(ValueError, match="10x11"):
        fidelity.ssim_loss(x[..., 1:, :], y[..., 1:, :])


def test_psnr_of_a_known_error() -> None:
    target = torch.zeros(1, 3, 2, 4, 4)
    assert fidelity.psnr(target + 0.2, target).item() == pytest.approx(20)
    assert fidelity.psnr(target + 9, target + 1).item() == pytest.approx(100)  # clamped to white, which it is


def test_pixel_loss_sums_the_terms_that_have_a_weight() -> None:
    prediction, target = torch.full((1, 3, 2, 16, 16), 0.5), torch.zeros(1, 3, 2, 16, 16)
    assert pixels.PixelLoss(0, 2, 0, wavelet_weight=0)(prediction, target) == {"mse": torch.tensor(0.5)}
    assert set(pixels.PixelLoss(1, 1, 1, "difference", 1, 1, 1)(prediction, target)) == {
        "charbonnier",
        "mse",
        "temporal",
        "wavelet",
        "ssim",
        "contrast",
    }
    with pytest.raises(ValueError, match="`flow`"):
        pixels.PixelLoss()(prediction, target)


def test_pixel_losses_can_be_those_of_the_color_corrected_result() -> None:
    generator = torch.Generator().manual_seed(0)
    low, noise = torch.rand(1, 3, 2, 8, 8, generator=generator), torch.rand(1, 3, 2, 16, 16, generator=generator)
    target = torch.nn.functional.interpolate(low, scale_factor=(1, 2, 2), mode="nearest") + 0.1 * noise
    plain = pixels.PixelLoss(1, 0, 0)
    aware = pixels.PixelLoss(1, 0, 0, color_correction_levels=1)
    tinted = target + 0.3  # the correction takes a tint away, and only the uncorrected term sees it
    terms, of_target = aware(tinted, target, low=low), aware(target, target, low=low)
    assert terms["charbonnier"].item() == pytest.approx(of_target["charbonnier"].item(), rel=1e-4)
    assert terms["uncorrected"].item() == pytest.approx(0.3 * plain(tinted, target)["charbonnier"].item())
    assert aware(tinted, target) == plain(tinted, target) | {"uncorrected": torch.tensor(0.0)}
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(aware.corrected(tinted, low), aware.corrected(target, low))


def test_noise_levels_are_logit_normal_and_shifted() -> None:
    sigmas = flow_matching.sample_sigmas(20000, torch.Generator().manual_seed(0))
    assert sigmas.min() > 0 and sigmas.max() < 1
    assert sigmas.median().item() == pytest.approx(1.5 / 2.5, abs=0.01)
    logits = torch.logit(flow_matching.sample_sigmas(20000, torch.Generator().manual_seed(0), shift=1.0))
    assert logits.mean().item() == pytest.approx(0, abs=0.03) and logits.std().item() == pytest.approx(1, abs=0.03)


def test_conditions_are_noised_and_dropped_as_often_as_asked() -> None:
    condition = torch.full((2000, 1, 1, 4, 4), 5.0)
    corrupted = flow_matching.corrupt_condition(condition, torch.Generator().manual_seed(0))
    dropped = ~corrupted.flatten(1).any(1)
    assert dropped.float().mean().item() == pytest.approx(0.4, abs=0.04)
    # the noise has mean 0: what is left of the condition is 1 - share, between 0.4 and 0.6
    left = corrupted[~dropped].mean((1, 2, 3, 4)) / 5
    assert left.mean().item() == pytest.approx(0.5, abs=0.01)
    assert corrupted[~dropped].std(dim=(1, 2, 3, 4)).mean().item() == pytest.approx(0.5, abs=0.03)
    generator = torch.Generator().manual_seed(0)
    torch.testing.assert_close(flow_matching.corrupt_condition(condition, generator, (0, 0), 0.0), condition)


# ---- data


def prepared(material: Path, cache: Path, **how: Any) -> list[CachedClip]:
    settings = {"clip_frames": 9, "scale": 2, "degradation": Downscale(2), "versions": 1} | how
    return prepare_clips(find_sources(material / "train"), cache, Preparation(**settings))


def test_preparation_goes_on_where_it_stopped(material: Path, tmp_path: Path) -> None:
    clips = prepared(material, tmp_path)
    assert [(clip.frames, clip.height, clip.width) for clip in clips[:3]] == [(9, 48, 64)] * 3
    contents = {path: path.read_bytes() for path in tmp_path.rglob("*.npy")}
    # as if it had been stopped while it degraded the second clip
    (clips[1].high.parent / "index.json").unlink()
    clips[1].lows[0].unlink()
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    assert prepared(material, tmp_path) == clips
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.npy")} == contents
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_long_videos_are_cut_and_large_ones_made_smaller(material: Path, tmp_path: Path) -> None:
    clips = prepared(material, tmp_path, clip_frames=4, resolution=24)
    assert [(clip.frames, clip.height, clip.width) for clip in clips[:3]] == [(4, 24, 32), (4, 24, 32), (1, 24, 32)]
    assert np.load(clips[0].lows[0]).shape == (4, 12, 16, 3)


def test_metadata_names_files_and_texts(material: Path, tmp_path: Path) -> None:
    shutil.copy(material / "train" / "clip_1.mp4", tmp_path / "one.mp4")
    lines = [{"file_name": "one.mp4", "text": "a cat"}, {"file_name": "one.mp4"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert [source.text for source in find_sources(tmp_path)] == ["a cat", ""]
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "two.mp4"}')
    with pytest.raises(FileNotFoundError, match="two.mp4"):
        find_sources(tmp_path)
    (tmp_path / "metadata.jsonl").write_text('{"text": "a cat"}')
    with pytest.raises(ValueError, match="file_name"):
        find_sources(tmp_path)


def test_unreadable_files_are_left_out_and_said_so(
    material: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copy(material / "train" / "clip_1.mp4", tmp_path / "good.mp4")
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert len(prepare_clips(find_sources(tmp_path), tmp_path / "cache", Preparation())) == 1
    assert "broken.mp4" in caplog.text and "broken.png" in caplog.text
    (tmp_path / "good.mp4").unlink()
    with pytest.raises(ValueError, match="`sources`"):
        prepare_clips(find_sources(tmp_path), tmp_path / "cache", Preparation())


@pytest.mark.parametrize("kind", ["folder", "archive", "table"])
def test_datasets_give_their_videos_and_texts(
    material: Path, tmp_path: Path, offline_datasets: None, kind: str
) -> None:
    videos, data = sorted((material / "train").glob("clip_*.mp4"))[:2], tmp_path / "data"
    lines = [{"file_name": video.name, "text": text} for video, text in zip(videos, ["a cat", None], strict=True)]
    data.mkdir()
    if kind == "table":
        rows = {"video": [{"bytes": video.read_bytes(), "path": None} for video in videos], "text": ["a cat", None]}
        features = datasets.Features({"video": datasets.Video(), "text": datasets.Value("string")})
        datasets.Dataset.from_dict(rows, features).to_parquet(data / "train.parquet")
    else:
        (data / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
        for video in videos:
            shutil.copy(video, data)
    if kind == "archive":
        shutil.make_archive(str(tmp_path / "all"), "zip", data)
        shutil.rmtree(data)
        data.mkdir()
        shutil.move(tmp_path / "all.zip", data)
    for _ in range(2):  # the second time, copies are there already
        sources = dataset_sources(str(data), tmp_path / "copies", caption_column="text")
        assert [source.path.read_bytes() for source in sources] == [video.read_bytes() for video in videos]
        assert [source.text for source in sources] == ["a cat", ""]
    assert (tmp_path / "copies").exists() == (kind != "folder")
    assert [source.text for source in dataset_sources(str(data), tmp_path / "copies")] == ["", ""]
    for argument, column in (("video_column", "film"), ("video_column", "text"), ("caption_column", "title")):
        with pytest.raises(ValueError, match=f"`{argument}` '{column}'"):
            dataset_sources(str(data), tmp_path / "copies", **{argument: column})


def test_pictures_get_smooth_camera_motion() -> None:
    picture = texture(6, 1, 120, 160)[0]
    clip = animate_picture(picture, 24, 64, np.random.default_rng(3))
    assert clip.shape == (24, 64, 85, 3)
    flow = optical_flow(torch.from_numpy(clip).permute(3, 0, 1, 2)).float().mean((2, 3))
    assert flow.abs().sum() > 1  # it moves
    assert flow.diff(dim=0).abs().max() < 0.5  # and never jerks
    np.testing.assert_array_equal(clip, animate_picture(picture, 24, 64, np.random.default_rng(3)))


def test_a_batch_depends_on_its_number_alone(material: Path) -> None:
    clips = prepared(material, material / "cache")
    dataset = CropDataset(clips, [Crop(5, 32, 32), Crop(1, 16, 48)], 2, scale=2, with_flow=False, seed=3)
    alone, within = dataset[7], list(batches(dataset, range(6, 9), num_workers=0))[1]
    torch.testing.assert_close(alone.high, within.high)
    torch.testing.assert_close(alone.low, within.low)
    assert {tuple(dataset[number].high.shape[2:]) for number in range(12)} == {(5, 32, 32), (1, 16, 48)}
    assert not torch.equal(dataset[0].high.float().mean(), dataset[2].high.float().mean())
    by_size = CropDataset(clips, [Crop(5, 32, 32), Crop(1, 16, 48)], [3, 1], scale=2)
    assert {(len(batch.high), batch.high.shape[2]) for batch in (by_size[n] for n in range(12))} == {(3, 5), (1, 1)}


def test_low_resolution_crops_show_the_same_as_high_ones(material: Path) -> None:
    dataset = CropDataset(prepared(material, material / "cache"), [Crop(5, 32, 32)], 4, scale=2, with_flow=True)
    for number in range(4):
        batch = dataset[number].to(torch.device("cpu"))
        means = torch.nn.functional.avg_pool3d(batch.high, (1, 2, 2))
        assert (means - batch.low).abs().max() < 0.02
        # the flow is that of these frames: mirrored and played backwards with them
        still = temporal.warped_temporal_loss(batch.high, torch.zeros_like(batch.flow))
        assert temporal.warped_temporal_loss(batch.high, batch.flow) < 0.5 * still


def test_crops_that_do_not_fit_are_refused(material: Path) -> None:
    clips = prepared(material, material / "cache")
    with pytest.raises(ValueError, match="5x99x32"):
        CropDataset(clips, [Crop(5, 99, 32)], 1)
    with pytest.raises(ValueError, match="crop_weights"):
        CropDataset(clips, [Crop(5, 32, 32)], 1, crop_weights=[1, 2])
    with pytest.raises(ValueError, match="batch_size"):
        CropDataset(clips, [Crop(5, 32, 32)], [1, 2])
    with pytest.raises(ValueError, match="30x32"):
        Crop(5, 30, 32).check(4, 4)
    with pytest.raises(ValueError, match="4x32x32"):
        Crop(4, 32, 32).check(4, 4)
    with pytest.raises(ValueError, match="9x128"):
        Crop.parse("9x128")
    with pytest.raises(ValueError, match="validation needs 17"):
        validation_crop(clips[0], 17, 8, with_low=False)


# ---- the scripts, through their command lines


@pytest.mark.slow
def test_autoencoder_training_improves_the_reconstruction(autoencoder: Path) -> None:
    measures = [line["validation/psnr"] for line in log(autoencoder) if "validation/psnr" in line]
    assert measures[-1] > measures[0] + 0.1
    assert HRAutoencoder.from_pretrained(autoencoder).config.latent_channels == 8


@pytest.mark.slow
def test_upsampler_training_improves_on_the_linear_map(upsampler: Path) -> None:
    measures = [line["validation/psnr"] for line in log(upsampler) if "validation/psnr" in line]
    assert measures[-1] > measures[0] + 0.02
    assert CausalLatentUpsampler.from_pretrained(upsampler).config.residual


def test_a_trunk_is_added_and_trained_by_what_is_decoded_linearly(
    material: Path, autoencoder: Path, upsampler: Path, tmp_path: Path
) -> None:
    flags = ("--pretrained_model_name_or_path", str(upsampler), "--autoencoder", str(autoencoder), "--decode_linearly")
    options = {"temporal_loss": "difference", "trunk_channels": 8, "trunk_blocks": 1}
    run("train_latent_upsampler", material, tmp_path, *flags, **options, max_train_steps=4)
    trained, file = CausalLatentUpsampler.from_pretrained(tmp_path), "diffusion_pytorch_model.safetensors"
    assert trained.config.trunk_blocks == 1
    seen = load_file(upsampler / file)["pre_shuffle.0.weight"].shape[1]
    assert trained.pre_shuffle[0].weight[:, seen:].any()


def test_the_upsampler_and_the_decoder_are_tuned_together(
    material: Path, autoencoder: Path, upsampler: Path, tmp_path: Path
) -> None:
    flags = ("--pretrained_model_name_or_path", str(upsampler), "--autoencoder", str(autoencoder), "--train_decoder")
    options = {"temporal_loss": "difference", "color_correction_levels": 1, "reconstruction_every": 2}
    run("train_latent_upsampler", material, tmp_path, *flags, **options, max_train_steps=8, latent_weight=0)
    file = "diffusion_pytorch_model.safetensors"
    before, after = load_file(autoencoder / file), load_file(tmp_path / "autoencoder" / file)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[0] for name in changed} == {"decoder"}
    # the linear path, which has a closed form, stays
    before, after = load_file(upsampler / file), load_file(tmp_path / file)
    assert {name for name in before if torch.equal(before[name], after[name])} == HEAD
    # a reconstruction has no source whose colours it would take
    steps = [line for line in log(tmp_path) if "uncorrected" in line]
    assert {line["uncorrected"] > 0 for line in steps} == {True, False}
    for line in steps:
        terms = sum(line[name] for name in ("charbonnier", "mse", "temporal", "uncorrected"))
        assert line["loss"] == pytest.approx(terms, rel=1e-4)


def networks(material: Path, autoencoder: Path, upsampler: Path) -> tuple[str, ...]:
    config = str(material / "transformer.json")
    return ("--network_config", config, "--autoencoder", str(autoencoder), "--latent_upsampler", str(upsampler))


def test_one_step_training_improves_on_the_condition(material: Path, autoencoder: Path, tmp_path: Path) -> None:
    # an upsampler that leaves much to do: random weights
    torch.manual_seed(0)
    CausalLatentUpsampler(**UPSAMPLER).save_pretrained(tmp_path / "upsampler")
    flags = networks(material, autoencoder, tmp_path / "upsampler")
    run("train_sr", material, tmp_path, *flags, temporal_loss="difference", learning_rate=5e-3)
    first, last = (line for line in log(tmp_path) if "validation/psnr" in line)
    # the output layer starts at zero: the condition comes back
    assert first["validation/psnr"] == pytest.approx(first["validation/psnr_of_condition"], abs=1e-3)
    assert last["validation/psnr"] > last["validation/psnr_of_condition"] + 0.5
    assert last["validation/psnr_of_condition"] == pytest.approx(first["validation/psnr_of_condition"], abs=1e-4)
    assert UltraFlashSRTransformer.from_pretrained(tmp_path / "transformer").proj_out.weight.any()


def test_one_step_training_is_judged_on_request(
    material: Path, autoencoder: Path, upsampler: Path, tmp_path: Path
) -> None:
    flags = (*networks(material, autoencoder, upsampler), "--perceptual_loss", "quality_scorer")
    run("train_sr", material, tmp_path, *flags, max_train_steps=2, logging_steps=1, judged_clips=1)
    distances = [line["perceptual"] for line in log(tmp_path) if "perceptual" in line]
    assert len(distances) == 2 and min(distances) > 0


def test_the_decoder_is_tuned_on_request(material: Path, autoencoder: Path, upsampler: Path, tmp_path: Path) -> None:
    flags = (*networks(material, autoencoder, upsampler), "--train_decoder")
    run("train_sr", material, tmp_path, *flags, max_train_steps=3, decoder_learning_rate=1e-3)
    before, after = (
        load_file(folder / "diffusion_pytorch_model.safetensors") for folder in (autoencoder, tmp_path / "autoencoder")
    )
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder"}


def test_the_upsampler_is_tuned_on_request(material: Path, autoencoder: Path, upsampler: Path, tmp_path: Path) -> None:
    flags = (*networks(material, autoencoder, upsampler), "--train_latent_upsampler", "--decode_linearly", "--use_ema")
    options = {"temporal_loss": "difference", "ssim_weight": 0.3, "contrast_weight": 0.2, "max_train_steps": 4}
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run("train_sr", material, whole, *flags, **options, checkpointing_steps=2)
    shutil.copytree(whole / "checkpoint-2", resumed / "checkpoint-2")
    run("train_sr", material, resumed, *flags, "--resume_from_checkpoint", "latest", **options)
    for name in ("transformer", "latent_upsampler"):
        one, other = (load_file(path / name / "diffusion_pytorch_model.safetensors") for path in (whole, resumed))
        assert all(torch.equal(one[key], other[key]) for key in one)
    file = "diffusion_pytorch_model.safetensors"
    before, after = load_file(upsampler / file), load_file(whole / "latent_upsampler" / file)
    assert {name for name in before if torch.equal(before[name], after[name])} == HEAD
    assert not (whole / "autoencoder").exists()


def test_some_batches_are_compared_without_the_transformer(
    material: Path, autoencoder: Path, upsampler: Path, tmp_path: Path
) -> None:
    flags = (*networks(material, autoencoder, upsampler), "--train_latent_upsampler", "--train_decoder")
    options = {"temporal_loss": "difference", "contrast_weight": 0.2, "max_train_steps": 1, "seed": 3}
    kinds = {"transformer": (10**9, 10**9), "condition": (2, 10**9), "reconstruction": (10**9, 2)}
    lines = {}
    for kind, (condition, reconstruction) in kinds.items():
        every = {"condition_every": condition, "reconstruction_every": reconstruction}
        run("train_sr", material, tmp_path / kind, *flags, **options | every)
        lines[kind] = log(tmp_path / kind)[1]
    # at first the transformer gives the condition back, whose own loss has no contrast term
    shared = sum(lines["transformer"][name] for name in ("charbonnier", "mse", "temporal"))
    assert lines["condition"]["loss"] == lines["condition"]["condition"] == pytest.approx(shared, rel=1e-4)
    assert lines["transformer"]["loss"] == pytest.approx(shared + lines["transformer"]["contrast"], rel=1e-4)
    # the clips' own latents show more of them
    assert lines["reconstruction"]["reconstruction"] < shared
    assert lines["reconstruction"]["psnr_of_reconstruction"] > lines["condition"]["psnr_of_condition"]


def test_sr_losses_can_be_those_of_the_color_corrected_result(
    material: Path, autoencoder: Path, upsampler: Path, tmp_path: Path
) -> None:
    flags = networks(material, autoencoder, upsampler)
    plain, corrected = tmp_path / "plain", tmp_path / "corrected"
    run("train_sr", material, plain, *flags, max_train_steps=1)
    run("train_sr", material, corrected, *flags, max_train_steps=1, color_correction_levels=1)
    before, after = log(plain)[1], log(corrected)[1]
    assert after["uncorrected"] == pytest.approx(0.3 * before["loss"], rel=1e-4)
    assert abs(after["charbonnier"] - before["charbonnier"]) > 1e-4
    assert abs(log(plain)[0]["validation/psnr"] - log(corrected)[0]["validation/psnr"]) > 1e-3


def test_the_upsampler_is_frozen_by_default(
    material: Path, autoencoder: Path, upsampler: Path, tmp_path: Path
) -> None:
    run("train_sr", material, tmp_path, *networks(material, autoencoder, upsampler), max_train_steps=1)
    trained = load_file(tmp_path / "checkpoint-1" / "trained.safetensors")
    assert {name.split(".")[0] for name in trained} == {"transformer"}
    assert not (tmp_path / "latent_upsampler").exists()


def test_pixel_losses_can_leave_out_the_decoder(
    material: Path, autoencoder: Path, upsampler: Path, tmp_path: Path
) -> None:
    flags = networks(material, autoencoder, upsampler)
    whole, linear = tmp_path / "whole", tmp_path / "linear"
    run("train_sr", material, whole, *flags, max_train_steps=1)
    run("train_sr", material, linear, *flags, "--decode_linearly", max_train_steps=1)
    # the same batch before the first step; validation decodes as ever
    assert abs(log(whole)[1]["psnr"] - log(linear)[1]["psnr"]) > 1e-3
    assert log(whole)[0] == log(linear)[0]


def test_linear_decoding_is_what_the_silent_decoder_gives(autoencoder: Path) -> None:
    network = HRAutoencoder.from_pretrained(autoencoder)
    latents = torch.randn(2, 8, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(decode_linearly(network, latents), network.decode(latents).sample, atol=1e-3)
    torch.nn.init.zeros_(network.decoder[-1].weight)
    torch.nn.init.zeros_(network.decoder[-1].bias)
    torch.testing.assert_close(decode_linearly(network, latents), network.decode(latents).sample)


def test_linear_decoding_needs_the_shortcut(material: Path, upsampler: Path, tmp_path: Path) -> None:
    HRAutoencoder(**AUTOENCODER | {"linear_shortcut": False}).save_pretrained(tmp_path / "autoencoder")
    flags = networks(material, tmp_path / "autoencoder", upsampler)
    with pytest.raises(ValueError, match="linear_shortcut"):
        run("train_sr", material, tmp_path, *flags, "--decode_linearly")


def test_flow_matching_learns_the_flow(material: Path, autoencoder: Path, upsampler: Path, tmp_path: Path) -> None:
    config = tmp_path / "transformer.json"
    config.write_text(json.dumps(TRANSFORMER | {"prediction_type": "flow"}))
    flags = (
        *networks(material, autoencoder, upsampler),
        "--network_config",
        str(config),
        "--objective",
        "flow_matching",
    )
    run("train_sr", material, tmp_path, *flags, num_inference_steps=2, train_batch_size=4, learning_rate=5e-3)
    losses_by_step = [line["loss"] for line in log(tmp_path) if "loss" in line]
    assert np.mean(losses_by_step[-10:]) < 0.85 * np.mean(losses_by_step[:10])


LORA = ("--lora_dropout", "0.1", "--lora_format", "original", "--lora_target_modules", "attention", "ffn")


def test_lora_layers_alone_are_trained_and_load_into_a_pipeline(
    material: Path, autoencoder: Path, upsampler: Path, tmp_path: Path
) -> None:
    pipe = make_tiny_pipeline(
        transformer=UltraFlashSRTransformer(**TRANSFORMER),
        latent_upsampler=CausalLatentUpsampler.from_pretrained(upsampler),
        autoencoder=HRAutoencoder.from_pretrained(autoencoder),
        generator=False,
    )
    pipe.save_pretrained(tmp_path / "pipeline")
    folder = str(tmp_path / "pipeline")
    flags = ("--pretrained_model_name_or_path", folder, "--autoencoder", folder, "--latent_upsampler", folder)
    run("train_sr", material, tmp_path, *flags, "--text_encoder", folder, *LORA, max_train_steps=3, rank=2)
    weights = load_file(tmp_path / "pytorch_lora_weights.safetensors")
    assert any("ffn" in name for name in weights)
    assert len(load_file(tmp_path / "original_lora_weights.safetensors")) == len(weights)
    assert all("lora" in name for name in weights) and any(t.any() for n, t in weights.items() if "lora_B" in n)
    assert not (tmp_path / "transformer").exists()
    pipe.load_lora_weights(tmp_path)
    assert pipe.transformer.peft_config


@pytest.fixture
def quick(material: Path) -> Callable[..., Path]:
    """Runs the autoencoder's script for some steps from random weights."""

    def train(output_dir: Path, *flags: str, **options: Any) -> Path:
        flags = ("--network_config", str(material / "autoencoder.json"), *flags)
        run("train_hr_autoencoder", material, output_dir, *flags, **{"max_train_steps": 6} | options)
        return output_dir

    return train


def test_resumed_equals_uninterrupted(quick: Callable[..., Path], tmp_path: Path) -> None:
    options = {"checkpointing_steps": 3, "gradient_accumulation_steps": 2, "dataloader_num_workers": 1}
    whole = quick(tmp_path / "whole", "--use_ema", **options)
    (tmp_path / "resumed").mkdir()
    shutil.copytree(whole / "checkpoint-3", tmp_path / "resumed" / "checkpoint-3")
    shutil.copy(whole / "log.jsonl", tmp_path / "resumed")
    torch.manual_seed(99)
    resumed = quick(tmp_path / "resumed", "--use_ema", "--resume_from_checkpoint", "latest", **options)
    for file in ("diffusion_pytorch_model.safetensors", "checkpoint-6/trained.safetensors"):
        one, other = load_file(whole / file), load_file(resumed / file)
        assert all(torch.equal(one[name], other[name]) for name in one)
    timeless = [[{k: v for k, v in line.items() if k != "seconds"} for line in log(run)] for run in (whole, resumed)]
    assert timeless[0] == timeless[1]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_interrupted_run_loses_nothing(quick: Callable[..., Path], tmp_path: Path, workers: int) -> None:
    options = {"checkpointing_steps": 1000, "dataloader_num_workers": workers}
    whole, stopped, steps = quick(tmp_path / "whole", **options), tmp_path / "stopped", []

    def interrupt_third_step(module: torch.nn.Module, *_: object) -> None:
        if type(module).__name__ == "AutoencoderTraining":
            steps.append(module)
            if len(steps) == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    hook = register_module_forward_hook(interrupt_third_step)
    try:
        with pytest.raises(SystemExit) as stop:
            quick(stopped, **options)
    finally:
        hook.remove()
    assert stop.value.code == 128 + signal.SIGTERM and signal.getsignal(signal.SIGTERM) == before
    assert [path.name for path in stopped.glob("checkpoint*")] == ["checkpoint-3"]
    quick(stopped, "--resume_from_checkpoint", "latest", **options)
    one, other = (load_file(folder / "checkpoint-6" / "trained.safetensors") for folder in (whole, stopped))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert [line["step"] for line in log(stopped)] == [line["step"] for line in log(whole)]


def test_seeds_matter_and_averaged_weights_are_others(quick: Callable[..., Path], tmp_path: Path) -> None:
    runs = [quick(tmp_path / "a"), quick(tmp_path / "b", seed=1), quick(tmp_path / "c", "--use_ema")]
    weights = [load_file(folder / "diffusion_pytorch_model.safetensors")["decoder_shortcut.weight"] for folder in runs]
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    trained = [load_file(folder / "checkpoint-6" / "trained.safetensors") for folder in (runs[0], runs[2])]
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])


def test_tensorboard_gets_the_logged_numbers(quick: Callable[..., Path], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    quick(tmp_path, report_to="tensorboard", max_train_steps=2)
    events = EventAccumulator(str(tmp_path / "ultraflash")).Reload()
    written = [event.value for event in events.Scalars("loss")]
    assert written == pytest.approx([line["loss"] for line in log(tmp_path) if "loss" in line])


def test_processes_that_would_train_alone_are_refused(
    quick: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were launched"):
        quick(tmp_path)


def test_old_checkpoints_are_deleted(quick: Callable[..., Path], tmp_path: Path) -> None:
    quick(tmp_path, checkpointing_steps=1, checkpoints_total_limit=2)
    assert sorted(path.name for path in tmp_path.glob("checkpoint*")) == ["checkpoint-5", "checkpoint-6"]
    with pytest.raises(ValueError, match="earlier run"):  # which a new one would overwrite
        quick(tmp_path, seed=1)
    assert json.loads((tmp_path / "training_arguments.json").read_text())["seed"] == 0


def test_a_time_limit_ends_the_run_and_the_schedule(quick: Callable[..., Path], tmp_path: Path) -> None:
    quick(tmp_path, max_train_steps=100000, max_train_seconds=2)
    steps = [line for line in log(tmp_path) if "lr" in line]
    assert 2 < len(steps) < 10000
    assert steps[-1]["lr"] < 0.5 * max(line["lr"] for line in steps)


def test_texts_are_embedded_as_the_pipeline_does() -> None:
    pipe = make_tiny_pipeline(generator=False)
    prompts = Prompts.embed(["a red ball", "the cat"], pipe)
    expected = pipe.encode_prompt(["a red ball", ""])[0]
    torch.testing.assert_close(prompts(["a red ball", ""]), expected)
    assert not Prompts.embed(["a red ball"], make_tiny_pipeline(text=False, generator=False))(["a red ball"]).any()


def test_what_is_shared_is_the_result_and_not_the_cache() -> None:
    files = [
        "config.json",
        "transformer/config.json",
        "log.jsonl",
        "cache/clip/0000.npy",
        "checkpoint-3/optimizer.bin",
        "validation/step-3/clip-0.mp4",
        "left_out.jsonl",
    ]
    assert list(filter_repo_objects(files, ignore_patterns=hub.PRIVATE)) == files[:3]
    run = hub.FinishedRun(30, 7200.0, 2, 3, {"validation/psnr": 31.25}, {"learning_rate": 1e-4, "dataset_name": "a/b"})
    card = hub.model_card("someone/upsampler", run)
    assert "# upsampler" in card.text and "| psnr | 31.250 |" in card.text
    assert "for 30 steps in 2.0 h on 2" in card.text
    assert "| learning_rate | `0.0001` |" in card.text and "3 clip(s)" in card.text
    assert card.data.library_name == "diffusers" and card.data.datasets == "a/b" and "lora" not in card.data.tags
    private = {"learning_rate": 1e-4, "dataset_name": None, "rank": 4, "pretrained_model_name_or_path": "some/base"}
    card = hub.model_card("someone/style", hub.FinishedRun(30, 60.0, 1, 0, {}, private))
    assert "not published" in card.text and "Measures" not in card.text and "rank 4" in card.text
    assert card.data.base_model == "some/base" and "lora" in card.data.tags
    assert "from_pretrained('some/base')" in card.text and "load_lora_weights('someone/style'" in card.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crops": "5x30x32"}, "multiples of 4"),
        ({"validation_frames": 6}, "`validation_frames`"),
        ({"train_data_dir": "nowhere"}, "nowhere"),
        ({"resume_from_checkpoint": "nowhere"}, "`resume_from_checkpoint` 'nowhere'"),
    ],
)
def test_bad_values_are_named(
    quick: Callable[..., Path], tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        quick(tmp_path, **options)


def test_a_dataset_trains_as_a_folder_does(quick: Callable[..., Path], tmp_path: Path, offline_datasets: None) -> None:
    data = tmp_path / "data"
    data.mkdir()
    write_video(data / "only.mp4", texture(1))
    runs = [
        quick(tmp_path / name, **{name: data, "max_train_steps": 1}) for name in ("train_data_dir", "dataset_name")
    ]
    weights = [load_file(folder / "diffusion_pytorch_model.safetensors") for folder in runs]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_commands_that_are_described_are_understood() -> None:
    launcher = r"(?:python|accelerate launch(?: --config_file \S+)?)"
    described = set()
    for path in [SCRIPTS / "README.md", *SCRIPTS.glob("recipes/*.sh"), *SCRIPTS.glob("results/*.md")]:
        text = path.read_text().replace("\\\n", " ")
        variables = dict(re.findall(r'^(\w+)="(.*)"$', text, re.MULTILINE))
        for name, arguments in re.findall(rf"^{launcher} training/(\w+)\.py (.*)$", text, re.MULTILINE):
            while re.search(r"\$\w", arguments):  # a variable may name another one
                arguments = re.sub(r"\$(\w+)", lambda found, known=variables: known[found[1]], arguments)
            arguments = re.sub(r"\$\{.*?\}", "FOLDER", arguments)  # what a recipe is given
            script(name).parse_arguments(shlex.split(arguments, comments=True))
            described.add(name)
    assert described == {file.stem for file in SCRIPTS.glob("*.py")}


def test_bad_command_lines_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    networks = ["--train_data_dir", "x", "--output_dir", "y", "--autoencoder", "a", "--latent_upsampler", "b"]
    with pytest.raises(SystemExit):
        script("train_sr").parse_arguments([*networks, "--pretrained_wan", "w", "--rank", "4"])
    assert "train the whole network first" in capsys.readouterr().err
    base = [*networks, "--network_config", "c"]
    for flags, message in (
        (["--crops", "9x128"], "9x128"),
        (["--max_train_steps", "0"], "above 0"),
        (["--condition_noise", "0.6", "0.4"], "LOW"),
        (["--objective", "flow_matching", "--train_decoder"], "--train_decoder"),
        (
            ["--objective", "flow_matching", "--perceptual_loss", "quality_scorer"],
            "--perceptual_loss needs --objective one_step",
        ),
        (["--perceptual_weight", "0.1"], "--perceptual_weight needs --perceptual_loss"),
        (["--objective", "flow_matching", "--decode_linearly"], "--decode_linearly"),
        (["--train_decoder", "--decode_linearly"], "--train_decoder"),
        (["--condition_every", "5"], "--train_latent_upsampler"),
        (["--train_latent_upsampler", "--condition_every", "1"], "2 or more"),
        (["--reconstruction_every", "20"], "--train_decoder"),
        (["--objective", "flow_matching", "--color_correction_levels", "1"], "--color_correction_levels"),
    ):
        with pytest.raises(SystemExit):
            script("train_sr").parse_arguments([*base, *flags])
        assert message in capsys.readouterr().err
    base = ["--train_data_dir", "x", "--output_dir", "y", "--autoencoder", "a", "--network_config", "c"]
    for flags, message in (
        (["--reconstruction_every", "6"], "--train_decoder"),
        (["--train_decoder", "--reconstruction_every", "1"], "2 or more"),
        (["--color_correction_levels", "0"], "above 0"),
    ):
        with pytest.raises(SystemExit):
            script("train_latent_upsampler").parse_arguments([*base, *flags])
        assert message in capsys.readouterr().err
    config = tmp_path / "wrong.json"
    config.write_text(json.dumps(AUTOENCODER | {"widht": 3}))
    with pytest.raises(ValueError, match="widht"):
        new_network(HRAutoencoder, config)
