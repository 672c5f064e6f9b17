# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The drift benchmark: windows that show the same, measures with known values, and the whole command."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from helpers.tiny import make_tiny_pipeline, make_tiny_transformer
from peft import get_peft_model_state_dict

from benchmarks import drift
from ultraflash_diffusers import UltraFlashStreamingPipeline
from ultraflash_diffusers.rewards import QualityScorer
from ultraflash_diffusers.training.starting_points.lora import LoraLayers, choose_trained


def brightness(frames: torch.Tensor) -> torch.Tensor:
    return frames.mean((1, 2, 3))


def numbered(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3)


@pytest.mark.parametrize(
    ("frames", "count", "expected"),
    [(4, 9, [0, 1, 2, 3, 2, 1, 0, 1, 2]), (4, 3, [0, 1, 2]), (2, 5, [0, 1, 0, 1, 0]), (1, 3, [0, 0, 0])],
)
def test_a_clip_is_played_back_and_forth_without_a_cut(frames: int, count: int, expected: list[int]) -> None:
    assert [int(frame.flat[0]) for frame in drift.back_and_forth(numbered(frames), count)] == expected


@pytest.mark.parametrize(("frames", "count"), [(9, 40), (9, 48), (3, 40), (30, 100), (39, 40)])
def test_the_last_second_shows_what_the_first_one_showed(frames: int, count: int) -> None:
    length = drift.stream_length(count, 8, frames)
    played = [int(frame.flat[0]) for frame in drift.back_and_forth(numbered(frames), length)]
    assert count <= length < count + 2 * frames and played[-8:] == played[:8]


def test_a_clip_that_fills_the_stream_is_not_repeated() -> None:
    assert drift.stream_length(40, 8, 40) == drift.stream_length(40, 8, 90) == 40


def test_a_stream_that_fades_is_measured_as_one() -> None:
    frames = np.full((40, 16, 16, 3), 100, np.uint8)
    frames[:, ::2, :, 0] = 140
    frames[20:] //= 2
    measured = drift.drift(iter(frames), 8, brightness)
    mean = (120 + 100 + 100) / 3 / 255
    assert measured["first_quality"] == pytest.approx(mean, abs=1e-4)
    assert measured["quality_change"] == pytest.approx(-mean / 2, abs=1e-4)
    assert measured["sharpness_ratio"] == pytest.approx(0.25, abs=1e-3)
    assert measured["saturation_change"] == pytest.approx(0, abs=0.01)  # a darker colour is as saturated
    assert measured["colour_shift"] == pytest.approx(np.linalg.norm([60, 50, 50]), abs=0.1)
    with pytest.raises(ValueError, match="ended after 15 frames, 16 are compared"):
        drift.drift(iter(frames[:15]), 8, brightness)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips, prompts, a scorer, a pipeline, and what training might have made of its transformer."""
    folder = tmp_path_factory.mktemp("material")
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        with av.open(str(folder / f"{name}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=8)
            stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
            for pixels in rng.integers(0, 256, (4, 64, 96, 3), dtype=np.uint8):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode(None))
    (folder / "prompts.txt").write_text("a red ball\n")
    QualityScorer(channels=(4, 4), head_channels=4).save_pretrained(folder / "scorer")
    make_tiny_pipeline(group_frames=2).save_pretrained(folder / "pipeline")
    make_tiny_transformer(prediction_type="detail").save_pretrained(folder / "whole" / "transformer")
    lora = make_tiny_transformer()
    choose_trained(lora, LoraLayers(2))
    layers = {name: torch.randn_like(tensor) for name, tensor in get_peft_model_state_dict(lora).items()}
    UltraFlashStreamingPipeline.save_lora_weights(folder / "lora", layers)
    return folder


def command(material: Path, *flags: str) -> list[str]:
    sizes = ("--seconds", "2", "--rate", "8", "--height", "32", "--width", "48")
    checkpoint = ("--checkpoint", str(material / "pipeline"), "--reward", str(material / "scorer"))
    return [*flags, *sizes, *checkpoint]


def test_the_command_compares_tuned_transformers_on_clips(material: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tuned = ("--tuned", f"whole={material / 'whole'}", f"lora={material / 'lora'}", "--json", str(material / "d.json"))
    summary = drift.main(command(material, "--clips", str(material), *tuned))
    assert list(summary) == ["source", "checkpoint", "whole", "lora"]
    # the clip comes round: the source shows the same
    assert summary["source"]["quality_change"] == 0 and summary["source"]["sharpness_ratio"] == 1
    levels = {name: row["last_quality"] for name, row in summary.items()}
    assert len(set(levels.values())) == 4
    printed = capsys.readouterr().out
    assert "| checkpoint |" in printed and "| lora |" in printed
    written = json.loads((material / "d.json").read_text())
    assert set(written["clips"]["whole"]) == {"one", "two"} and written["summary"] == summary


def test_the_command_measures_streams_from_text(material: Path) -> None:
    summary = drift.main(command(material, "--prompts", str(material / "prompts.txt")))
    assert list(summary) == ["checkpoint"] and np.isfinite(list(summary["checkpoint"].values())).all()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--names", "three"), "no three there"),
        (("--tuned", "dpo"), "--tuned dpo: must be NAME=FOLDER"),
        (("--seconds", "1"), "--seconds must be 2 or more"),
        (("--json", "missing/d.json"), "no folder missing"),
    ],
)
def test_what_cannot_be_is_refused(
    material: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit):
        drift.parse(["--clips", str(material), *flags])
    assert message in capsys.readouterr().err
