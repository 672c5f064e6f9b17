# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Texts and frame rates of training clips as people have them, and the room that they take."""

from __future__ import annotations

import errno
import re
import shutil
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from helpers.tiny import make_tiny_pipeline
from helpers.training_runs import script, texture, write_video
from tokenizers import Regex, Tokenizer, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from ultraflash_diffusers.training.data.crops import Crop, CropDataset
from ultraflash_diffusers.training.data.inputs import _may
from ultraflash_diffusers.training.data.preparation import Preparation, prepare_clips
from ultraflash_diffusers.training.data.prompts import Prompts
from ultraflash_diffusers.training.data.sources import MediaFile, find_sources
from ultraflash_diffusers.training.starting_points.text_encoding import check_captions


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    for name in ("boat", "cat"):
        write_video(folder / f"{name}.mp4", texture(len(name)))
    return folder


def texts(folder: Path, **settings: Any) -> dict[str, str]:
    return {source.path.stem: source.text for source in find_sources(folder, **settings)}


def test_texts_are_beside_the_clips_or_in_a_table(clips: Path) -> None:
    (clips / "cat.txt").write_text("a cat,\nasleep\n", encoding="utf-8-sig")
    assert texts(clips) == {"boat": "", "cat": "a cat,\nasleep"}
    table = clips / "metadata.csv"
    table.write_text('file_name,text,title\nboat.mp4,"a boat, on a lake",b\ncat.mp4,,c\n', encoding="utf-8-sig")
    assert texts(clips) == {"boat": "a boat, on a lake", "cat": ""}
    assert texts(clips, caption_column="title") == {"boat": "b", "cat": "c"}
    table.write_text("file_name,text\ndog.mp4,a dog\n")
    with pytest.raises(FileNotFoundError, match="row 2 of .*metadata.csv' names 'dog.mp4'"):
        find_sources(clips)
    table.write_text("name,text\ncat.mp4,a cat\n")
    with pytest.raises(ValueError, match="row 2 of .* must have a `file_name`"):
        find_sources(clips)
    (clips / "metadata.jsonl").write_text('{"file_name": "cat.mp4"}')
    with pytest.raises(ValueError, match="metadata.jsonl and metadata.csv"):
        find_sources(clips)


def test_a_frame_rate_takes_the_frames_of_its_ticks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    video = tmp_path / "numbers.mp4"
    with av.open(str(video), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        for number in range(30):
            frame = np.full((32, 32, 3), 8 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))

    def taken(fps: float | None) -> list[int]:
        (clip,) = prepare_clips([MediaFile(video)], tmp_path / "cache", Preparation(fps=fps))
        return [round(level / 8) for level in np.load(clip.high).mean((1, 2, 3))]

    assert taken(None) == taken(30.0) == list(range(30))
    assert taken(15.0) == list(range(0, 30, 2))
    assert taken(24.0)[:9] == [0, 1, 2, 4, 5, 6, 7, 9, 10]
    with pytest.raises(ValueError, match="not one of them"):
        taken(60.0)
    assert "its 30 frames a second are fewer than 60" in caplog.text


def test_the_room_that_a_cache_takes_is_said_before_it_is_filled(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Namespace(free=2 * 9 * 48 * 64 * 3 - 1))
    with pytest.raises(
        OSError, match="2 sources take about 0.000166 GB .* 0.000166 are free: smaller --res"
    ) as raised:
        prepare_clips(find_sources(clips), tmp_path / "cache", Preparation())
    assert raised.value.errno == errno.ENOSPC and not list((tmp_path / "cache").iterdir())
    # what is there already needs no room
    monkeypatch.undo()
    capsys.readouterr()
    prepare_clips(find_sources(clips), tmp_path / "cache", Preparation())
    said = capsys.readouterr()
    assert ", and 1 seconds, by the pace of 9 frames" in said.out + said.err
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Namespace(free=0))
    assert len(prepare_clips(find_sources(clips), tmp_path / "cache", Preparation())) == 2


def test_clips_whose_texts_are_learnt_are_not_turned_round(clips: Path, tmp_path: Path) -> None:
    prepared = prepare_clips(find_sources(clips), tmp_path / "cache", Preparation())

    def crops(**settings: bool) -> list[torch.Tensor]:
        dataset = CropDataset(prepared, [Crop(9, 48, 64)], 1, **settings)
        return [dataset[number].high for number in range(8)]

    whole = {torch.from_numpy(np.load(clip.high)).permute(3, 0, 1, 2).numpy().tobytes() for clip in prepared}
    turned = [crop.numpy().tobytes() not in whole for crop in crops()]
    assert any(turned) and not all(turned)
    assert not any(crop.numpy().tobytes() not in whole for crop in crops(mirrors=False, reverses=False))
    flags = ("--train_data_dir", "x", "--output_dir", "y", "--autoencoder", "a", "--latent_upsampler", "u")
    flags = (*flags, "--network_config", "c")
    parse = script("train_sr").parse_arguments
    answers = ((), True), (("--text_encoder", "t"), False), (("--text_encoder", "t", "--random_flip", "yes"), True)
    for more, expected in answers:
        assert _may(parse([*flags, *more]), "random_flip") is expected


def test_embeddings_are_made_in_batches_and_kept_in_half_precision(tmp_path: Path) -> None:
    pipe = make_tiny_pipeline(generator=False)
    many = [f"a red ball {'cat ' * number}" for number in range(20)]
    calls = []
    encode = pipe.encode_prompt
    pipe.encode_prompt = lambda texts: calls.append(len(texts)) or encode(texts)  # type: ignore[method-assign]
    prompts = Prompts.embed(many, pipe, tmp_path)
    assert calls == [16, 5]
    assert {np.load(file).dtype for file in tmp_path.rglob("*.npy")} == {np.dtype(np.float16)}
    torch.testing.assert_close(prompts(many), encode(many)[0], atol=2e-3, rtol=2e-3)
    assert Prompts.embed(many, pipe, tmp_path)(many[:1]).dtype == torch.float32 and calls == [16, 5]


def test_the_time_that_a_cache_takes_is_that_of_its_degraded_versions(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def slow(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        time.sleep(0.03 * len(frames))
        return frames[:, ::2, ::2]

    how = Preparation(scale=2, degradation=slow, versions=4)
    started = time.monotonic()
    prepare_clips(find_sources(clips), tmp_path / "cache", how)
    took = time.monotonic() - started
    foretold = re.search(r"and ([\d.]+) seconds, by the pace", "".join(capsys.readouterr()))
    # 2 clips of 9 frames in 4 versions; the trial itself comes on top
    assert foretold is not None and 2 <= float(foretold[1]) <= took + 1


def test_captions_of_another_language_are_named(caplog: pytest.LogCaptureFixture) -> None:
    pipe = make_tiny_pipeline(generator=False)
    with pytest.raises(ValueError, match="knows no word of the 2 captions, such as 'ein roter Ball'"):
        Prompts.embed(["ein roter Ball", "eine Katze", ""], pipe)
    Prompts.embed(["ein roter Ball", "a red ball"], pipe)
    assert "most words of 1 of 2 captions are unknown" in caplog.text and "'ein roter Ball'" in caplog.text


ENGLISH = (
    "a red ball rolls over the table in front of the window",
    "the camera moves slowly along the river towards the mountains",
    "two children are playing with their dog on the beach in the evening",
    "people walking through the city in the rain under umbrellas",
)


def english_tokenizer() -> PreTrainedTokenizerFast:
    """Of parts of words down to bytes, that English was merged to: nothing is unknown to it."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(ENGLISH, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_captions_that_are_spelled_out_are_named(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = english_tokenizer()
    check_captions(["two people rolling along the beach, walking slowly", "a ball", "1234 5678 90"], tokenizer)
    assert not caplog.messages
    foreign = ["красный мяч катится по столу", "红色的球在桌子上滚动", "빨간공이굴러가는"]
    check_captions([*ENGLISH, *foreign], tokenizer)
    assert "spells most words of 3 of 7 captions by letters" in caplog.text


def test_dense_scripts_may_have_a_piece_a_letter(caplog: pytest.LogCaptureFixture) -> None:
    """As a multilingual tokenizer has them; words of alphabets in such pieces are spelled."""
    letters = {letter: number for number, letter in enumerate(("<unk>", *"红色的球在桌子上滚动", *"краснымяч"))}
    tokenizer = Tokenizer(WordLevel(letters, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    check_captions(["红色的球在桌子上滚动"], fast)
    assert not caplog.messages
    check_captions(["красный мяч"], fast)
    assert "spells most words of 1 of 1 captions" in caplog.text
