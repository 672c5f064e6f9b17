# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Training data: buckets, what is left out and said so, caches that cannot be stale."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet
import pytest
import torch
from accelerate import Accelerator
from helpers.small_disk import small_disk
from helpers.tiny import make_tiny_autoencoder, make_tiny_pipeline
from helpers.training_runs import script, texture, write_video
from PIL import Image

from ultraflash_diffusers.degradation import (
    Compose,
    Downscale,
    GaussianBlur,
    degradation_preset,
    from_config,
    to_config,
)
from ultraflash_diffusers.training.data.camera_motion import animate_picture
from ultraflash_diffusers.training.data.crops import Crop, CropDataset, batches
from ultraflash_diffusers.training.data.inputs import load_data, load_degradation, load_latents
from ultraflash_diffusers.training.data.latents import LatentDataset, cache_latents, encode_stream
from ultraflash_diffusers.training.data.preparation import (
    CachedClip,
    Preparation,
    prepare_clips,
)
from ultraflash_diffusers.training.data.prompts import Prompts
from ultraflash_diffusers.training.data.sources import MediaFile, find_sources
from ultraflash_diffusers.training.data.video_dataset import dataset_sources
from ultraflash_diffusers.training.files import LeftOut, save_array, weights_fingerprint
from ultraflash_diffusers.training.loop.arguments import training_parser

SIZES = {"wide": (9, 32, 64), "tall": (9, 64, 32), "short": (5, 64, 64), "small": (9, 24, 24)}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of several sizes and lengths, with texts for two of them."""
    folder = tmp_path_factory.mktemp("videos")
    for seed, (name, size) in enumerate(SIZES.items()):
        write_video(folder / f"{name}.mp4", texture(seed, *size))
    lines = [{"file_name": f"{name}.mp4", "text": f"a {name} clip" if name < "t" else None} for name in SIZES]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.fixture(scope="module")
def clips(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> list[CachedClip]:
    how = Preparation(clip_frames=9, scale=2, degradation=Downscale(2), versions=2)
    return prepare_clips(find_sources(videos), tmp_path_factory.mktemp("cache"), how)


def names(clips: list[CachedClip]) -> list[str]:
    return [clip.high.parent.name.split("-")[0] for clip in clips]


def parsed(train: Path, output: Path, **options: Any) -> argparse.Namespace:
    options = {"train_data_dir": train, "output_dir": output, "crops": "5x32x32", "validation_frames": 5} | options
    arguments = [part for key, value in options.items() for part in (f"--{key}", *str(value).split(" "))]
    return training_parser("", degrades=True).parse_args(arguments)


# ---- buckets


def test_batches_are_of_one_bucket_and_of_clips_that_fit_it(clips: list[CachedClip]) -> None:
    crops = [Crop(9, 32, 64), Crop(9, 64, 32), Crop(5, 32, 32)]
    dataset = CropDataset(clips, crops, 2, scale=2)
    # each clip is told by its mean colour
    origins: dict[tuple[int, ...], set[str]] = {}
    for number in range(40):
        batch = dataset[number]
        assert batch.low is not None and batch.low.shape[3:] == tuple(size // 2 for size in batch.high.shape[3:])
        origins.setdefault(tuple(batch.high.shape[2:]), set()).update(batch.texts)
    assert origins == {(9, 32, 64): {""}, (9, 64, 32): {""}, (5, 32, 32): {"a short clip", ""}}
    assert sorted(names(dataset.clips)) == ["short", "tall", "wide"]


def test_clips_that_fit_no_bucket_are_counted_and_listed(
    clips: list[CachedClip], caplog: pytest.LogCaptureFixture
) -> None:
    dataset = CropDataset(clips, [Crop(9, 32, 32)], 3)
    assert names(dataset.clips) == ["wide", "tall"]
    assert [Path(entry.file).parent.name.split("-")[0] for entry in dataset.left_out] == ["short", "small"]
    assert "5x64x64" in dataset.left_out[0].reason and "9x32x32" in dataset.left_out[0].reason
    assert "left out 2 of 4 clips" in caplog.text
    assert "only 2 clips" in caplog.text and "batch has 3" in caplog.text


def test_an_empty_bucket_is_an_error_that_says_what_there_is(clips: list[CachedClip]) -> None:
    with pytest.raises(ValueError, match=r"none of the 4 `clips`.*17x32x32.*the largest are .*9x"):
        CropDataset(clips, [Crop(5, 32, 32), Crop(17, 32, 32)], 1)


def test_a_run_goes_on_within_an_epoch(clips: list[CachedClip]) -> None:
    dataset = CropDataset(clips, [Crop(5, 32, 32), Crop(9, 24, 24)], [2, 1], seed=5)
    whole = list(batches(dataset, range(6), num_workers=0))
    rest = list(batches(dataset, range(4, 6), num_workers=1))
    for one, other in zip(whole[4:], rest, strict=True):
        assert torch.equal(one.high, other.high) and one.texts == other.texts


# ---- what is left out, and what is refused


def test_cameras_need_pictures_to_move_over() -> None:
    with pytest.raises(ValueError, match="`picture` has 1x40 pixels"):
        animate_picture(np.zeros((1, 40, 3), np.uint8), 5, None, np.random.default_rng(0))


@pytest.fixture
def broken(videos: Path, tmp_path: Path) -> Path:
    """One good clip among files that cannot be read, each for a reason of its own."""
    folder = tmp_path / "broken"
    folder.mkdir()
    good = (videos / "wide.mp4").read_bytes()
    (folder / "good.mp4").write_bytes(good)
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("no video")
    (folder / "truncated.mp4").write_bytes(good[: len(good) // 2])
    Image.fromarray(texture(0, 1, 32, 32)[0]).save(folder / "cut.png")
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:200])
    Image.new("RGB", (1, 1)).save(folder / "pixel.png")
    return folder


def test_unreadable_files_are_skipped_counted_and_listed(
    broken: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "run"
    output.mkdir()
    dataset, _ = load_data(parsed(broken, output), Accelerator(cpu=True), 4, 4, False, scale=2, versions=1)
    assert names(dataset.clips) == ["good"]
    listed = [json.loads(line) for line in (output / "left_out.jsonl").read_text().splitlines()]
    found = {Path(entry["file"]).name for entry in listed}
    assert found == {"empty.mp4", "text.mp4", "truncated.mp4", "cut.png", "pixel.png"}
    assert all(entry["reason"] for entry in listed)
    assert "5 of 6 sources" in caplog.text and "left_out.jsonl" in caplog.text
    # and again, now that the good one is cached; the list is not doubled
    load_data(parsed(broken, output), Accelerator(cpu=True), 4, 4, False, scale=2, versions=1)
    assert len((output / "left_out.jsonl").read_text().splitlines()) == 5


# ---- pairs


def name_pair(folder: Path, low: str, **entry: str) -> None:
    line = {"file_name": "high.mp4", "low_resolution_file_name": low} | entry
    (folder / "metadata.jsonl").write_text(json.dumps(line))


def test_a_given_low_resolution_video_takes_the_place_of_a_degradation(tmp_path: Path) -> None:
    high, low = texture(1, 9, 32, 48), texture(2, 9, 16, 24)
    for name, clip in {"high": high, "low": low}.items():
        write_video(tmp_path / f"{name}.mp4", clip)
    name_pair(tmp_path, "low.mp4")
    left_out: list[LeftOut] = []
    sources = find_sources(tmp_path, left_out=left_out)
    assert [source.low for source in sources] == [tmp_path / "low.mp4"] and not left_out
    how = Preparation(clip_frames=5, scale=2, degradation=Downscale(2), versions=3)
    clips = prepare_clips(sources, tmp_path / "cache", how)
    read = np.concatenate([np.load(clip.lows[0]) for clip in clips])
    assert [(clip.frames, len(clip.lows)) for clip in clips] == [(5, 1), (4, 1)]
    assert np.abs(read.astype(int) - low).mean() < 5 < np.abs(low.astype(int) - high[:, ::2, ::2]).mean()
    # stages that want no low-resolution versions do without it
    assert not prepare_clips(sources, tmp_path / "cache", Preparation())[0].lows
    # another one is not taken from the cache
    write_video(tmp_path / "low.mp4", texture(3, 9, 16, 24))
    assert prepare_clips(sources, tmp_path / "cache", how)[0].high != clips[0].high


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ((8, 16, 24), "low-resolution video has 3 frames of 16x24 for 4 of 32x48"),
        ((10, 16, 24), "more frames than itself"),
        ((9, 16, 20), "has 5 frames of 16x20 for 5 of 32x48: it must have as many, 2 times smaller"),
    ],
)
def test_pairs_that_do_not_fit_are_left_out(size: tuple[int, int, int], reason: str, tmp_path: Path) -> None:
    write_video(tmp_path / "high.mp4", texture(1, 9, 32, 48))
    write_video(tmp_path / "low.mp4", texture(2, *size))
    write_video(tmp_path / "other.mp4", texture(3, 9, 32, 48))
    name_pair(tmp_path, "low.mp4")
    left_out: list[LeftOut] = []
    sources = [*find_sources(tmp_path), MediaFile(tmp_path / "other.mp4")]
    how = Preparation(clip_frames=5, scale=2, degradation=Downscale(2), versions=1)
    clips = prepare_clips(sources, tmp_path / "cache", how, left_out)
    assert names(clips) == ["other", "other"]
    assert [Path(entry.file).name for entry in left_out] == ["high.mp4"] and reason in left_out[0].reason


def test_pairs_are_checked_as_the_metadata_is_read(tmp_path: Path) -> None:
    write_video(tmp_path / "high.mp4", texture(1, 5, 32, 48))
    name_pair(tmp_path, "gone.mp4")
    with pytest.raises(FileNotFoundError, match="line 1 of .*'gone.mp4', which is not there"):
        find_sources(tmp_path)
    Image.fromarray(texture(1, 1, 32, 48)[0]).save(tmp_path / "picture.png")
    name_pair(tmp_path, "high.mp4", file_name="picture.png")
    with pytest.raises(ValueError, match="`low_resolution_file_name` for 'picture.png': only videos"):
        find_sources(tmp_path)


def test_files_that_the_metadata_does_not_name_are_listed(videos: Path, tmp_path: Path) -> None:
    shutil.copy(videos / "wide.mp4", tmp_path / "named.mp4")
    shutil.copy(videos / "tall.mp4", tmp_path / "forgotten.mp4")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "named.mp4", "title": "a boat"}\n\n')
    left_out: list[LeftOut] = []
    sources = find_sources(tmp_path, "title", left_out)
    assert [(source.path.name, source.text) for source in sources] == [("named.mp4", "a boat")]
    assert [Path(entry.file).name for entry in left_out] == ["forgotten.mp4"]
    for line in ('{"file_name": "named.mp4"', '"named.mp4"', '["named.mp4"]'):
        (tmp_path / "metadata.jsonl").write_text('{"file_name": "named.mp4"}\n' + line)
        with pytest.raises(ValueError, match="line 2 of .*file_name"):
            find_sources(tmp_path)


def test_dataset_rows_without_a_video_are_listed(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    good = {"bytes": (videos / "wide.mp4").read_bytes(), "path": None}
    rows = {"video": [good, None, {"bytes": None, "path": str(tmp_path / "gone.mp4")}]}
    (tmp_path / "data").mkdir()
    table = datasets.Dataset.from_dict(rows, datasets.Features({"video": datasets.Video()}))
    pyarrow.parquet.write_table(table.data.table, tmp_path / "data" / "train.parquet")  # which copies no file into it
    left_out: list[LeftOut] = []
    assert len(dataset_sources(str(tmp_path / "data"), tmp_path / "copies", left_out=left_out)) == 1
    assert [entry.file.split(" of ")[0] for entry in left_out] == ["row 1", "row 2"]
    assert "gone.mp4" in left_out[1].reason


def test_missing_captions_are_said(videos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tmp_path.joinpath("run").mkdir()
    arguments = parsed(videos, tmp_path / "run", crops="5x24x24")
    dataset, _ = load_data(arguments, Accelerator(cpu=True), 4, 4, False)
    assert sorted(clip.text for clip in dataset.clips) == ["", "", "a short clip", "a small clip"]
    assert "2 of 4 clips have no text" in caplog.text
    arguments = parsed(videos, tmp_path / "run", crops="5x24x24", caption_column="title")
    with pytest.raises(ValueError, match="`caption_column` 'title'.*4 clips"):
        load_data(arguments, Accelerator(cpu=True), 4, 4, False)


def test_lost_edges_are_counted(videos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):  # and when they come from the cache
        caplog.clear()
        clips = prepare_clips(find_sources(videos), tmp_path, Preparation(scale=3))
        assert [(clip.height, clip.width) for clip in clips] == [(30, 63), (63, 30), (63, 63), (24, 24)]
        assert "3 of 4 clips lost edges: their sizes were no multiples of 3" in caplog.text


def test_clips_are_prepared_alike_by_several_threads(videos: Path, tmp_path: Path) -> None:
    sources = find_sources(videos) * 2
    how = Preparation(scale=2, degradation=degradation_preset("aigc"), versions=1)
    one, three = (prepare_clips(sources, tmp_path / str(workers), how, None, workers) for workers in (1, 3))
    assert names(one) == names(three) == [*SIZES, *SIZES]
    for alone, together in zip(one, three, strict=True):
        for file, other in zip((alone.high, *alone.lows), (together.high, *together.lows), strict=True):
            np.testing.assert_array_equal(np.load(file), np.load(other))


def test_a_full_disk_is_no_unreadable_clip(videos: Path, tmp_path: Path) -> None:
    source = MediaFile(videos / "wide.mp4")  # 55 kB of pixels
    with small_disk(20_000), pytest.raises(OSError, match="cache could not be written.*0000.npy"):
        prepare_clips([source], tmp_path / "cache", Preparation(clip_frames=9))
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    # what fits is written, and kept
    with small_disk(20_000):
        prepare_clips([source], tmp_path / "cache", Preparation(clip_frames=3))


# ---- degradations


def test_the_cache_is_keyed_by_the_degradation_and_the_run_says_which(videos: Path, tmp_path: Path) -> None:
    lows = {}
    for name in ("mild", "aigc", "classic"):
        (tmp_path / name).mkdir()
        arguments = parsed(videos, tmp_path / name, degradation=name, cache_dir=tmp_path / "cache")
        dataset, _ = load_data(arguments, Accelerator(cpu=True), 4, 4, False, scale=2, versions=1)
        lows[name] = np.load(dataset.clips[0].lows[0])
        written = json.loads((tmp_path / name / "degradation.json").read_text())
        assert from_config(written) == degradation_preset(name, 2)
    assert not np.array_equal(lows["mild"], lows["aigc"]) and not np.array_equal(lows["aigc"], lows["classic"])
    # a run's file makes the same degradation again, and so finds its clips in the cache
    before = set((tmp_path / "cache").iterdir())
    arguments = parsed(
        videos, tmp_path / "aigc", degradation=tmp_path / "aigc" / "degradation.json", cache_dir=tmp_path / "cache"
    )
    load_data(arguments, Accelerator(cpu=True), 4, 4, False, scale=2, versions=1)
    assert set((tmp_path / "cache").iterdir()) == before


def test_bad_degradations_are_refused(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`degradation`.*aigc.*'harsh'"):
        load_degradation("harsh", 2)
    file = tmp_path / "mine.json"
    for text, message in (("{", "mine.json"), ('{"type": "Blurr"}', "mine.json.*Blurr")):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_degradation(str(file), 2)
    file.write_text(json.dumps(to_config(Compose(GaussianBlur()))))
    how = Preparation(scale=2, degradation=load_degradation(str(file), 2), versions=1)
    with pytest.raises(ValueError, match="`degradation` must make a clip .*2 times smaller"):
        prepare_clips(find_sources(videos), tmp_path / "cache", how)


# ---- latents and texts, encoded once


def test_cached_latents_are_those_of_the_encoder(clips: list[CachedClip], tmp_path: Path) -> None:
    autoencoder = make_tiny_autoencoder()  # 4 x 4 pixels, 4 frames
    crops, left_out = [Crop(5, 16, 16)], list[LeftOut]()
    cached = cache_latents(clips, autoencoder, tmp_path, crops, 8, left_out)
    # nine frames are a piece of five, and four that are too few; every clip has sides of whole latents
    assert [(clip.frames, clip.height, clip.width) for clip in cached] == [(5, *size[1:]) for size in SIZES.values()]
    assert len(left_out) == 3 and "frames 5 to 8" in left_out[0].reason
    for clip, latents in zip(clips, cached, strict=True):
        for pixels, file in zip((clip.high, *clip.lows), (latents.high, *latents.lows), strict=True):
            frames = torch.from_numpy(np.load(pixels)[:5]).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
            expected = autoencoder.encode(frames).latents[0]
            torch.testing.assert_close(torch.from_numpy(np.load(file)), expected, atol=1e-5, rtol=1e-4)


def test_long_clips_are_encoded_as_streams() -> None:
    autoencoder, frames = make_tiny_autoencoder(), texture(3, 37, 16, 16)
    pixels = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    expected = autoencoder.encode(pixels).latents[0]
    torch.testing.assert_close(torch.from_numpy(encode_stream(autoencoder, frames)), expected, atol=1e-5, rtol=1e-4)


def test_latents_of_other_weights_are_not_found(clips: list[CachedClip], tmp_path: Path) -> None:
    autoencoder, crops = make_tiny_autoencoder(), [Crop(5, 16, 16)]
    first = cache_latents(clips, autoencoder, tmp_path, crops, 8)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    # the decoder has no part in them
    torch.nn.init.normal_(autoencoder.decoder[-1].weight)
    assert cache_latents(clips, autoencoder, tmp_path, crops, 8) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")} == times
    with torch.no_grad():
        next(autoencoder.encoder.parameters()).view(-1)[0] += 1e-3
    second = cache_latents(clips, autoencoder, tmp_path, crops, 8)
    assert not {clip.high for clip in first} & {clip.high for clip in second}
    assert not np.array_equal(np.load(first[0].high), np.load(second[0].high))
    assert weights_fingerprint(autoencoder) != weights_fingerprint(make_tiny_autoencoder())


def test_latent_batches_are_windows_of_the_cached_latents(clips: list[CachedClip], tmp_path: Path) -> None:
    crops = [Crop(9, 32, 32), Crop(5, 16, 32)]
    cached = cache_latents(clips, make_tiny_autoencoder(), tmp_path, crops, 8)
    dataset = LatentDataset(cached, crops, 2, spatial=4, temporal=4, scale=2, seed=1)
    wholes = [(np.load(clip.high), [np.load(low) for low in clip.lows]) for clip in dataset.clips]
    shapes = set()
    for number in range(12):
        batch = dataset[number].to(torch.device("cpu"))
        assert torch.equal(batch.high, dataset[number].high)
        shapes.add((tuple(batch.high.shape[2:]), tuple(batch.low.shape[2:])))
        frames, rows, columns = batch.low.shape[2:]
        for high, low in zip(batch.high.numpy(), batch.low.numpy(), strict=True):
            # the low window lies where the high one does, at even places
            assert any(
                np.array_equal(high, whole[:, :frames, 2 * y : 2 * (y + rows), 2 * x : 2 * (x + columns)])
                and any(np.array_equal(low, small[:, :frames, y : y + rows, x : x + columns]) for small in smalls)
                for whole, smalls in wholes
                for y in range(whole.shape[2] // 2 - rows + 1)
                for x in range(whole.shape[3] // 2 - columns + 1)
            )
    assert shapes == {((3, 8, 8), (3, 4, 4)), ((2, 4, 8), (2, 2, 4))}
    with pytest.raises(ValueError, match="multiples of 8"):
        LatentDataset(cached, [Crop(5, 12, 16)], 1, spatial=4, temporal=4, scale=2)


def test_latents_are_loaded_as_the_arguments_ask(videos: Path, tmp_path: Path) -> None:
    autoencoder = make_tiny_autoencoder()
    (tmp_path / "run").mkdir()
    arguments = parsed(videos, tmp_path / "run", train_batch_size=3, clip_frames=9, crops="9x32x32")
    accelerator = Accelerator(cpu=True)
    dataset, _ = load_data(arguments, accelerator, 8, 4, False, scale=2, versions=1)
    latents = load_latents(arguments, accelerator, autoencoder, dataset)
    assert latents[0].high.shape == (3, 4, 3, 8, 8) and latents[0].low.shape == (3, 4, 3, 4, 4)
    assert sorted(names(dataset.clips)) == ["tall", "wide"]
    assert (tmp_path / "run" / "left_out.jsonl").read_text().count("\n") == 2  # small and short


def test_flow_matching_trains_on_cached_latents(videos: Path, tmp_path: Path) -> None:
    pipe = make_tiny_pipeline(text=True, generator=False)
    pipe.save_pretrained(tmp_path / "pipe")
    module, folder = script("train_sr"), str(tmp_path / "pipe")
    options = {"train_data_dir": videos, "crops": "9x32x32", "clip_frames": 9, "max_train_steps": 2}
    options |= {"objective": "flow_matching", "logging_steps": 1, "text_encoder": folder, "learning_rate": 1e-3}
    options |= {"pretrained_model_name_or_path": folder, "autoencoder": folder, "latent_upsampler": folder}
    options |= {"cache_dir": tmp_path / "cache", "output_dir": tmp_path / "run"}
    flags = [part for key, value in options.items() for part in (f"--{key}", str(value))]
    module.main(module.parse_arguments([*flags, "--cache_latents"]))
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]
    assert list((tmp_path / "cache" / "latents").rglob("*.npy")) and list(
        (tmp_path / "cache" / "texts").rglob("*.npy")
    )


def test_metadata_of_other_editors_is_read(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (32, 32)).save(tmp_path / name)
    rows = [{"file_name": "a.png", "text": "one\u2028two\u0085three"}, {"file_name": "b.png", "text": None}]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows)
    (tmp_path / "metadata.jsonl").write_bytes(text.encode("utf-8-sig"))
    assert [source.text for source in find_sources(tmp_path)] == ["one\u2028two\u0085three", ""]
    (tmp_path / "metadata.jsonl").write_text('{"file_name": null}\n')
    with pytest.raises(ValueError, match="line 1 of .*file_name"):
        find_sources(tmp_path)


def test_clips_of_one_name_size_and_time_in_two_folders_are_two(tmp_path: Path) -> None:
    sources = []
    for folder, level in (("s1", 40), ("s2", 200)):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / f"{'0001' * 55}.bmp"  # a long name, too
        Image.new("RGB", (32, 32), (level,) * 3).save(path)
        os.utime(path, (1, 1))
        sources.append(MediaFile(path))
    clips = prepare_clips(sources, tmp_path / "cache", Preparation(clip_frames=2))
    assert sorted(round(np.load(clip.high).mean()) for clip in clips) == [40, 200]


def test_pictures_of_16_bits_floats_and_transparency_are_what_they_show(tmp_path: Path) -> None:
    rows = np.linspace(0, 1, 48)[:, None].repeat(64, 1)
    Image.fromarray((rows * 65535).astype(np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(rows.astype(np.float32)).save(tmp_path / "float.tif")
    grey = np.full((48, 64, 4), 100, np.uint8)
    grey[..., 3] = (rows < 0.5) * 255
    Image.fromarray(grey).save(tmp_path / "alpha.png")
    clips = prepare_clips(find_sources(tmp_path), tmp_path / "cache", Preparation(clip_frames=1))
    first = {clip.high.parent.name.split("-")[0]: np.load(clip.high)[0].astype(float) for clip in clips}
    for name in ("deep", "float"):
        assert 100 < first[name].mean() < 155 and first[name].std() > 20
    assert (first["alpha"][0] == 100).all() and (first["alpha"][-1] == 255).all()


def test_a_run_inside_its_data_does_not_learn_its_own_output(videos: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(videos, data, ignore=shutil.ignore_patterns("metadata.jsonl"))
    (data / "run" / "validation" / "step-0").mkdir(parents=True)
    shutil.copy(next(videos.glob("*.mp4")), data / "run" / "validation" / "step-0" / "clip-0.mp4")
    arguments = parsed(data, data / "run", train_batch_size=1, clip_frames=9, crops="9x32x32")
    dataset, _ = load_data(arguments, Accelerator(cpu=True), 8, 4, False)
    assert not any("clip-0" in name for name in names(dataset.clips))
    assert "own output" in (data / "run" / "left_out.jsonl").read_text()


def test_text_embeddings_are_made_once_by_each_encoder(tmp_path: Path) -> None:
    pipe = make_tiny_pipeline(generator=False)
    fresh = Prompts.embed(["a red ball", "the cat"], pipe, tmp_path)
    files = sorted(tmp_path.rglob("*.npy"))
    assert len(files) == 3  # and the empty one
    exact = Prompts.embed(["a red ball"], pipe)(["a red ball", ""])
    torch.testing.assert_close(fresh(["a red ball", ""]), exact, atol=1e-3, rtol=1e-3)  # in half precision
    # what is there is taken, as can be seen by changing it
    changed = [np.load(file) + 1 for file in files]
    for file, array in zip(files, changed, strict=True):
        save_array(file, array)
    again = Prompts.embed(["a red ball", "the cat"], pipe, tmp_path)
    assert not torch.equal(again(["the cat"]), fresh(["the cat"]))
    # another encoder's are not
    with torch.no_grad():
        pipe.text_encoder.shared.weight[3] += 1e-3
    Prompts.embed(["a red ball", "the cat"], pipe, tmp_path)
    assert len(list(tmp_path.rglob("*.npy"))) == 6
    pipe.tokenizer.add_tokens(["boat"])
    Prompts.embed([""], pipe, tmp_path)
    assert len({path.parent for path in tmp_path.rglob("*.npy")}) == 3


def test_captions_are_optional_with_and_without_a_text_encoder(caplog: pytest.LogCaptureFixture) -> None:
    with_encoder = make_tiny_pipeline(generator=False)
    torch.testing.assert_close(Prompts.embed(["", ""], with_encoder)([""]), with_encoder.encode_prompt("")[0])
    assert "no clip has a text" in caplog.text
    assert not Prompts.embed([""], make_tiny_pipeline(text=False, generator=False))([""]).any()
