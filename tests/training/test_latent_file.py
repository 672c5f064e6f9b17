# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Latents that travel as one file, to machines that have neither the clips nor what decodes them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.bare_machine import run_bare
from helpers.tiny import make_tiny_autoencoder, make_tiny_pipeline
from helpers.training_runs import script, texture, write_video

from ultraflash_diffusers.degradation import Downscale
from ultraflash_diffusers.training.data.crops import Crop
from ultraflash_diffusers.training.data.latent_file import load_latent_clips, read_latents, save_latents
from ultraflash_diffusers.training.data.latents import LatentDataset, cache_latents, encoder_fingerprint
from ultraflash_diffusers.training.data.preparation import CachedClip, Preparation, prepare_clips
from ultraflash_diffusers.training.data.sources import find_sources

CROPS = [Crop(9, 32, 32)]
AUTOENCODER = make_tiny_autoencoder()


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for seed, (name, size) in enumerate({"wide": (9, 32, 64), "tall": (9, 64, 32)}.items()):
        write_video(folder / f"{name}.mp4", texture(seed, *size))
        (folder / f"{name}.txt").write_text(f"a {name} clip")
    return folder


@pytest.fixture(scope="module")
def cached(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> list[CachedClip]:
    folder = tmp_path_factory.mktemp("cache")
    how = Preparation(clip_frames=9, scale=2, degradation=Downscale(2), versions=2)
    return cache_latents(prepare_clips(find_sources(videos), folder, how), AUTOENCODER, folder, CROPS, 8)


def test_batches_of_the_file_are_those_of_the_cache(cached: list[CachedClip], tmp_path: Path) -> None:
    """To float16; the file is read where it lies now."""
    save_latents(cached, encoder_fingerprint(AUTOENCODER), tmp_path / "latents.safetensors")
    moved = (tmp_path / "latents.safetensors").rename(tmp_path / "there.safetensors")
    clips = load_latent_clips(moved, encoder_fingerprint(AUTOENCODER))
    assert [(clip.text, len(clip.lows)) for clip in clips] == [("a tall clip", 2), ("a wide clip", 2)]
    kept, packed = (LatentDataset(each, CROPS, 3, spatial=4, temporal=4, scale=2, seed=1) for each in (cached, clips))
    for number in range(4):
        expected, batch = kept[number], packed[number]
        assert batch.texts == expected.texts and batch.high.dtype == torch.float32
        torch.testing.assert_close(batch.high, expected.high, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(batch.low, expected.low, atol=1e-3, rtol=1e-3)
    whole = np.load(cached[0].high)
    part = read_latents(clips[0].high, 2, slice(1, 3), slice(2, 7))
    assert np.array_equal(part, whole[:, :2, 1:3, 2:7].astype(np.float16))


def test_files_that_cannot_be_trained_on(cached: list[CachedClip], tmp_path: Path) -> None:
    file, ours = tmp_path / "latents.safetensors", encoder_fingerprint(AUTOENCODER)
    save_latents(cached, ours, file)
    with pytest.raises(ValueError, match="of another encoder"):
        load_latent_clips(file, "0123456789abcdef")
    cut, weights = tmp_path / "cut.safetensors", tmp_path / "vae"
    cut.write_bytes(file.read_bytes()[:-1])
    AUTOENCODER.save_pretrained(weights)
    for other in (cut, next(weights.glob("*.safetensors"))):
        with pytest.raises(ValueError, match="no whole file of latents"):
            load_latent_clips(other, ours)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_latent_clips(tmp_path / "nowhere.safetensors", ours)
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        save_latents(cached, ours, tmp_path / "latents.npz")
    np.save(tmp_path / "large.npy", np.full((4, 3, 8, 8), 1e6, np.float32))
    with pytest.raises(ValueError, match="not finite in float16"):
        save_latents([CachedClip(tmp_path / "large.npy", (), "", 9, 32, 32)], ours, tmp_path / "large.safetensors")
    assert not list(tmp_path.glob("large.safetensors*"))


def test_bad_flags_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    module, needed = script("train_sr"), ["--autoencoder", "a", "--latent_upsampler", "u", "--output_dir", "o"]
    needed += ["--pretrained_model_name_or_path", "t", "--objective", "flow_matching"]
    packs = ["--pack_latents", "new.safetensors"]
    for flags, message in (
        (["--train_data_dir", "clips", *packs], "needs --cache_latents"),
        (["--train_data_dir", "clips", "--cache_latents", "--pack_latents", "new.pt"], "ends in .safetensors"),
        (["--train_data_dir", "old.safetensors", "--cache_latents", *packs], "packed latents already"),
    ):
        with pytest.raises(SystemExit):
            module.parse_arguments([*needed, *flags])
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_flow_matching_trains_from_a_file_without_pyav(videos: Path, tmp_path: Path) -> None:
    make_tiny_pipeline(text=False, generator=False).save_pretrained(tmp_path / "pipe")
    module, folder = script("train_sr"), tmp_path / "pipe"
    file = tmp_path / "latents.safetensors"
    common = f"--objective flow_matching --pretrained_model_name_or_path {folder} --autoencoder {folder}"
    common += f" --latent_upsampler {folder} --crops 9x32x32 --max_train_steps 2"
    common += f" --logging_steps 1 --output_dir {tmp_path}/run --train_data_dir"
    packs = f"{common} {videos} --clip_frames 9 --cache_latents --pack_latents {file} --cache_dir {tmp_path}/cache"
    assert module.main(module.parse_arguments(packs.split())) == {}
    assert not (tmp_path / "run" / "log.jsonl").exists()
    os.rename(tmp_path / "cache", tmp_path / "elsewhere")
    code = f"import runpy; sys.argv = ['train_sr', *{f'{common} {file}'.split()}]\n"
    result = run_bare(code + "runpy.run_path('training/train_sr.py', run_name='__main__')")
    assert result.returncode == 0, result.stderr[-2000:]
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]
