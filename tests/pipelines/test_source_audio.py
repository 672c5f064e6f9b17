# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What a source pipeline gives beside pictures: its sound goes with the frames, its interruption ends the stream."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from diffusers import WanPipeline
from diffusers.pipelines.cosmos.pipeline_cosmos3_omni import Cosmos3OmniPipelineOutput
from diffusers.pipelines.kandinsky6.pipeline_output import Kandinsky6TI2VAPipelineOutput
from diffusers.utils import BaseOutput
from helpers.source_pipelines import helios_pipeline, live_call, ltx2_pipeline, quiet, wan_pipeline
from helpers.tiny import make_tiny_pipeline

from ultraflash_diffusers import PipelineStreamState, UltraFlashStreamingPipeline
from ultraflash_diffusers.pipelines.sources.pipeline_audio import audio_of, frame_rate_of
from ultraflash_diffusers.pipelines.video_files import generate_file
from ultraflash_diffusers.video_io import VideoReader

# the pipeline makes one frame more, and what sounds with it
FRAMES, RATE = 4, 24
SAMPLE_RATE = 16000


@pytest.fixture(scope="module")
def pipe() -> UltraFlashStreamingPipeline:
    return make_tiny_pipeline(text=False, generator=False, group_frames=1)


@pytest.fixture(scope="module")
def base() -> tuple[Any, dict[str, Any]]:
    pipeline, call = ltx2_pipeline()
    return quiet(pipeline), call | {"frame_rate": float(RATE)}


def stream_of(pipe: UltraFlashStreamingPipeline, base: tuple[Any, dict[str, Any]], **arguments: Any) -> Any:
    pipeline, call = base
    arguments = {"height": 64, "width": 64, "num_frames": FRAMES, "output_type": "uint8", **arguments}
    if arguments.get("state") is None:
        arguments["generator"] = torch.Generator().manual_seed(3)
    return pipe.stream(source=pipeline, source_kwargs=call, **arguments)


def own_sound(base: tuple[Any, dict[str, Any]], seed: int) -> torch.Tensor:
    pipeline, call = base
    generator = torch.Generator().manual_seed(seed)
    result = pipeline(**call, height=32, width=32, num_frames=FRAMES + 1, output_type="pt", generator=generator)
    return result.audio[..., : round(FRAMES * SAMPLE_RATE / RATE)]


def test_sound_of_ltx2_goes_with_its_frames(pipe: Any, base: Any, tmp_path: Path) -> None:
    with stream_of(pipe, base) as stream:
        assert stream.frame_rate == RATE
        chunks = [next(stream)]
        chunks[0].state().save(tmp_path / "state")
        chunks += stream
    state = PipelineStreamState.load(tmp_path / "state")
    expected = own_sound(base, state.seeds[0])
    sound = torch.cat([chunk.audio for chunk in chunks], dim=-1)
    assert torch.equal(sound, expected) and {chunk.audio_sample_rate for chunk in chunks} == {SAMPLE_RATE}
    assert len(chunks) == 2 and chunks[0].audio.shape[-1] == round(SAMPLE_RATE / RATE)
    with stream_of(pipe, base, state=state) as stream:
        resumed = torch.cat([chunk.audio for chunk in stream], dim=-1)
    assert torch.equal(resumed, expected[..., chunks[0].audio.shape[-1] :])


def test_a_whole_call_returns_the_sound(pipe: Any, base: Any) -> None:
    pipeline, call = base
    output = pipe(source=pipeline, source_kwargs=call, num_frames=FRAMES, height=64, width=64, output_type="pt")
    assert output.audio.shape == (1, 2, round(FRAMES * SAMPLE_RATE / RATE)) and output.audio_sample_rate == SAMPLE_RATE
    assert "audio" not in pipe(source=torch.zeros(1, 4, 1, 8, 8), output_type="pt")


def test_the_file_has_the_sound(pipe: Any, base: Any, tmp_path: Path) -> None:
    pipeline, call = base
    arguments: dict[str, Any] = {"height": 64, "width": 64, "num_frames": FRAMES, "save_every": 0, "progress": False}
    generate_file(pipe, "a ball", tmp_path / "ball.mp4", source=pipeline, source_kwargs=call, **arguments)
    assert VideoReader(tmp_path / "ball.mp4").info.fps == RATE
    with av.open(tmp_path / "ball.mp4") as file:
        (track,) = file.streams.audio
        heard = np.concatenate([frame.to_ndarray() for frame in file.decode(track)], axis=1)
    assert (track.rate, track.channels, track.codec_context.name) == (SAMPLE_RATE, 2, "aac")
    assert 0 <= heard.shape[1] - FRAMES * SAMPLE_RATE / RATE < 1024 and np.abs(heard).max() > 0.01
    assert [path.name for path in tmp_path.iterdir()] == ["ball.mp4"]


# ---- where pipelines have it


class Mute:
    """A pipeline of no parts."""

    components: dict[str, Any] = {}


class Said(Mute):
    audio_sample_rate = 44100


@pytest.mark.parametrize(
    ("result", "shape"),
    [
        (Kandinsky6TI2VAPipelineOutput(frames=[], audio=np.zeros((2, 44100), np.float32)), (2, 1, 22050)),
        (Cosmos3OmniPipelineOutput(video=[], sound=torch.zeros(2, 44100)), (1, 2, 22050)),
    ],
)
def test_layouts_of_sound(result: BaseOutput, shape: tuple[int, ...]) -> None:
    audio = audio_of(Said(), result, 12, Fraction(24))  # type: ignore[arg-type]
    assert audio is not None and audio.waveform.shape == shape
    whole = audio_of(Said(), result, 12, None)  # type: ignore[arg-type]
    assert whole is not None and whole.waveform.shape[-1] == 44100


def test_sound_that_cannot_be_used(caplog: pytest.LogCaptureFixture) -> None:
    good = Kandinsky6TI2VAPipelineOutput(frames=[], audio=torch.zeros(1, 100))
    assert audio_of(Mute(), good, 1, None) is None  # type: ignore[arg-type]
    for sound, message in ((torch.full((1, 9), torch.nan), "not finite"), (torch.zeros(9), r"shape \(9,\)")):
        with pytest.raises(ValueError, match=message):
            audio_of(Said(), Kandinsky6TI2VAPipelineOutput(frames=[], audio=sound), 1, None)  # type: ignore[arg-type]


def test_frame_rates_of_calls() -> None:
    assert frame_rate_of({"fps": 30000 / 1001, "prompt": "cat"}) == Fraction(30000, 1001)
    assert frame_rate_of({"frame_rate": 25.0}) == 25
    assert frame_rate_of({"fps": None}) is None and frame_rate_of({}) is None


# ---- interruptions


def test_an_interrupted_source_ends_the_stream(pipe: Any) -> None:
    def stop(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipeline._interrupt = True
        return {}

    pipeline = quiet(wan_pipeline())
    call = {"prompt_embeds": torch.zeros(1, 4, 16), "num_inference_steps": 3, "guidance_scale": 1.0}
    arguments: dict[str, Any] = {"height": 32, "width": 32, "num_frames": 9}
    arguments["source_kwargs"] = call | {"callback_on_step_end": stop}
    assert list(pipe.stream(source=pipeline, **arguments)) == []
    for output_type, empty in (("pil", 0), ("np", 0), ("pt", 0)):
        assert len(pipe(source=pipeline, **arguments, output_type=output_type).frames) == empty


class StoppedBetweenSteps(WanPipeline):
    """As if another thread had set the flag: the steps that are left are skipped, and what is there is decoded."""

    def check_inputs(self, *arguments: Any, **keywords: Any) -> None:
        super().check_inputs(*arguments, **keywords)
        self.scheduler.begin_step = self.scheduler.step

        def step(*arguments: Any, **keywords: Any) -> Any:
            self._interrupt = True
            return self.scheduler.begin_step(*arguments, **keywords)

        self.scheduler.step = step


def test_interrupted_from_elsewhere(pipe: Any) -> None:
    base = wan_pipeline()
    pipeline = quiet(StoppedBetweenSteps(None, None, base.vae, base.scheduler, base.transformer))
    call = {"prompt_embeds": torch.zeros(1, 4, 16), "num_inference_steps": 3, "guidance_scale": 1.0}
    assert list(pipe.stream(source=pipeline, height=32, width=32, num_frames=9, source_kwargs=call)) == []


def test_finished_chunks_of_an_interrupted_source_are_shown(pipe: Any) -> None:
    calls = []

    def stop_in_third_chunk(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        calls.append(step)
        pipeline._interrupt = len(calls) == 5
        return {}

    pipeline = quiet(helios_pipeline())
    call = live_call(pipeline) | {"callback_on_step_end": stop_in_third_chunk}
    for name in ("height", "width"):
        call.pop(name)
    chunks = list(pipe.stream(source=pipeline, height=32, width=32, num_frames=99, source_kwargs=call))
    assert sum(chunk.num_frames for chunk in chunks) == 66 and len(calls) == 5
