# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Crops that are decoded as they are asked for: the ones of a cache, from files and from shards alike."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Video
from helpers.training_runs import log, run, texture, write_video

from ultraflash_diffusers.degradation import Downscale
from ultraflash_diffusers.training.data.crops import Crop, CropDataset, batches
from ultraflash_diffusers.training.data.preparation import Preparation, prepare_clips
from ultraflash_diffusers.training.data.sources import find_sources
from ultraflash_diffusers.training.data.streaming import StreamedCrops, find_addressed, find_streamed
from ultraflash_diffusers.training.data.video_dataset import dataset_addresses
from ultraflash_diffusers.training.files import LeftOut

HOW = Preparation(scale=2, degradation=Downscale(2), versions=1)
CROPS = [Crop(5, 32, 32)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    clips = tmp_path / "train"
    clips.mkdir()
    for name, seed in {"boat": 1, "cat": 2}.items():
        write_video(clips / f"{name}.mp4", texture(seed))
        (clips / f"{name}.txt").write_text(f"a {name}")
    return clips


def sharded(folder: Path) -> Path:
    shards = folder.parent / "shards"
    shards.mkdir()
    with tarfile.open(shards / "0000.tar", "w") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)
    return shards


def streamed(folder: Path, left_out: list[LeftOut] | None = None) -> StreamedCrops:
    clips = find_streamed(folder, folder.parent / "cache", HOW, "text", [] if left_out is None else left_out)
    return StreamedCrops(clips, HOW, CROPS, 2, scale=2)


def is_in(crop: torch.Tensor, clip: torch.Tensor) -> bool:
    """Whether a clip holds a crop somewhere, `[frames, height, width, 3]`."""
    corners = (clip[: len(clip) - 4, : 48 - 31, : 64 - 31] == crop[0, 0, 0]).all(-1).nonzero().tolist()
    return any(torch.equal(clip[t : t + 5, y : y + 32, x : x + 32], crop) for t, y, x in corners)


def test_files_and_shards_give_the_crops_of_a_cache(folder: Path) -> None:
    clips = prepare_clips(find_sources(folder), folder.parent / "cache", HOW)
    cached = CropDataset(clips, CROPS, 1, scale=2)
    pixels = {clip.text: torch.from_numpy(np.load(clip.high)) for clip in clips}
    from_files, from_shards = streamed(folder), streamed(sharded(folder))
    assert {clip.text for clip in from_shards.clips} == {"a boat", "a cat"} == {clip.text for clip in cached.clips}
    for number in range(3):
        one, other = from_files[number], from_shards[number]
        assert torch.equal(one.high, other.high) and one.texts == other.texts
        assert one.low is not None and one.low.shape == (2, 3, 5, 16, 16)
        for crop, low, text in zip(one.high, one.low, one.texts, strict=True):
            turned = [crop, crop.flip(3), crop.flip(1), crop.flip(1, 3)]
            assert any(is_in(each.permute(1, 2, 3, 0), pixels[text]) for each in turned)
            mean = crop.float().unflatten(2, (16, 2)).unflatten(4, (16, 2)).mean((3, 5))
            assert (mean - low.float()).abs().max() <= 1
    again = list(batches(from_shards, range(3), num_workers=1))
    assert all(torch.equal(batch.high, from_shards[number].high) for number, batch in enumerate(again))


def test_what_cannot_be_streamed_is_listed(folder: Path) -> None:
    (folder / "broken.mp4").write_bytes(b"no video")
    (folder / "picture.png").write_bytes(b"no matter")
    left_out: list[LeftOut] = []
    assert len(streamed(folder, left_out).clips) == 2
    assert {Path(entry.file).name for entry in left_out} == {"broken.mp4", "picture.png"}
    (folder.parent / "none").mkdir()
    (folder.parent / "none" / "0.tar").write_bytes(b"no shard")
    with pytest.raises(ValueError, match="the shard .*0.tar' cannot be read"):
        streamed(folder.parent / "none")


def test_files_of_a_dataset_are_read_where_they_are(folder: Path, offline_datasets: None) -> None:
    rows = "".join(f'{{"file_name": "{name}.mp4", "text": "a {name}"}}\n' for name in ("boat", "cat"))
    expected = streamed(folder)
    for path in folder.glob("*.txt"):
        path.unlink()
    (folder / "metadata.jsonl").write_text(rows)
    addresses = dataset_addresses(str(folder), caption_column="text")
    assert {text for _, text in addresses} == {"a boat", "a cat"}
    elsewhere = [(f"file://{Path(address).resolve()}", text) for address, text in addresses]
    for number, found in enumerate((addresses, elsewhere)):
        cache = folder.parent / f"cache_{number}"
        clips = find_addressed(found, "clips", cache, HOW, [])
        assert [clip.address is None for clip in clips] == [number == 0] * 2
        crops = StreamedCrops(sorted(clips, key=lambda clip: clip.text), HOW, CROPS, 2, scale=2)
        assert all(torch.equal(crops[index].high, expected[index].high) for index in range(2))
        assert not list(cache.rglob("*.mp4"))


def test_videos_inside_of_tables_have_no_address(folder: Path, offline_datasets: None) -> None:
    table = Dataset.from_dict({"video": [str(path) for path in sorted(folder.glob("*.mp4"))]})
    tables = folder.parent / "tables"
    tables.mkdir()
    table = table.cast_column("video", Video(decode=False))
    table = table.map(lambda row: {"video": {"path": "a.mp4", "bytes": Path(row["video"]["path"]).read_bytes()}})
    table.to_parquet(tables / "train.parquet")
    with pytest.raises(ValueError, match="row 0 of .* is no file of its own: leave out --stream"):
        dataset_addresses(str(tables))


def test_a_script_trains_from_shards(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "held_out").mkdir()
    write_video(tmp_path / "held_out" / "clip.mp4", texture(7))
    options = {"train_data_dir": sharded(folder), "crops": "1x48x48", "size": 32, "validation_frames": 1}
    run("train_quality_scorer", tmp_path, tmp_path / "out", "--stream", max_train_steps=2, **options)
    assert [line["step"] for line in log(tmp_path / "out") if "loss" in line] == [1, 2]
    assert not list((tmp_path / "cache").glob("boat*"))
