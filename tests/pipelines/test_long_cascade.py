# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The long cascade: generator chunks of 1, 3, 3, ... latents, groups of 4, 6, 6, ..., prompts that change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from helpers.paths import TESTS
from helpers.tiny import LATENT_CHANNELS, make_tiny_autoencoder, make_tiny_generator, make_tiny_pipeline
from helpers.wan_cases import TOLERANCE, Case, relative_error
from reference.deterministic import fill_layout

from ultraflash_diffusers import PipelineStreamState, UltraFlashStreamingPipeline
from ultraflash_diffusers.conversion import from_original
from ultraflash_diffusers.pipelines import noise

SCHEDULE = ("independent_first_frame", "frames_per_chunk", "denoising_steps", "timestep_shift", "context_noise")


def recorded_cascade(case: Case) -> UltraFlashStreamingPipeline:
    """The networks of the case, converted, in a pipeline that cuts groups as the published cascade does."""

    def network(name: str, **settings: Any) -> Any:
        weights = fill_layout(TESTS / "reference" / "layouts" / f"{case.name}.{name}.json")
        return from_original(weights, **case.config[name], **settings)

    first, *others = case.config["groups"]
    return UltraFlashStreamingPipeline(
        transformer=network("transformer"),
        latent_upsampler=network("latent_upsampler"),
        autoencoder=make_tiny_autoencoder(latent_channels=16),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        generator_transformer=network("generator", **{name: case.config[name] for name in SCHEDULE}),
        first_group_frames=first,
        group_frames=others[0],
        kv_cache_blocks=case.config["kv_len"],
    )


class RecordedNoise(noise.SeededFrameNoise):
    """The noise of a recorded case, in the place where a stream draws its own."""

    case: Case

    def __call__(self, role: str, start: int, frames: int, shape: tuple[int, int, int]) -> torch.Tensor:
        chunks, groups = self.case.config["chunk_frames"], self.case.config["groups"]
        if role == "sr":
            return self.case.input(f"sr_noise_{[sum(groups[:n]) for n in range(len(groups))].index(start)}")
        chunk = [sum(chunks[:n]) for n in range(len(chunks))].index(start)
        step = role.removeprefix("generator_renoise_")
        return self.case.input(f"noise_{chunk}" if role == "generator" else f"renoise_{chunk}_{step}")


def test_the_cascade_makes_what_the_published_one_made(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("cascade_longlive")
    pipe = recorded_cascade(case)
    monkeypatch.setattr(RecordedNoise, "case", case, raising=False)
    monkeypatch.setattr("ultraflash_diffusers.pipelines.group_maker.SeededFrameNoise", RecordedNoise)
    monkeypatch.setattr("ultraflash_diffusers.pipelines.stream_start.SeededFrameNoise", RecordedNoise)
    height, width = (8 * side for side in case.config["inputs"]["sr_noise_0"][3:])
    ratio = pipe.autoencoder.spatial_compression_ratio
    frames = pipe.autoencoder.temporal_compression_ratio * (sum(case.config["groups"]) - 1) + 1
    stream = pipe.stream(
        prompt_embeds=case.input("context"),
        height=height * ratio // 8,
        width=width * ratio // 8,
        num_frames=frames,
        output_type="latent",
    )
    for group, chunk in enumerate(stream):
        assert relative_error(chunk.frames, case.outputs[f"refined_{group}"]) < TOLERANCE
    assert group + 1 == len(case.config["groups"])


# ---- with tiny networks


def long_pipeline(**generator: Any) -> UltraFlashStreamingPipeline:
    settings = {"first_chunk_frames": 1, "frames_per_chunk": 3, "window_frames": 9, "sink_frames": 3} | generator
    network = make_tiny_generator(**settings)
    return make_tiny_pipeline(generator_transformer=network, first_group_frames=4, group_frames=6)


LONG = long_pipeline(recompute_on_prompt_change=True)
ARGUMENTS = {"height": 16, "width": 32, "num_frames": 93, "output_type": "pt"}


def seed() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_chunks_are_those_of_the_groups() -> None:
    chunks = list(LONG.stream("cat", generator=seed(), **ARGUMENTS))
    ratio = LONG.autoencoder.temporal_compression_ratio
    first, second = chunks[0].frame_range, chunks[1].frame_range
    assert first == (0, 4 * ratio - ratio + 1) and second[1] - second[0] == 6 * ratio
    assert chunks[-1].frame_range[1] == 93
    assert torch.equal(torch.cat([c.frames for c in chunks], dim=1), LONG("cat", generator=seed(), **ARGUMENTS).frames)


def test_the_setting_is_saved(tmp_path: Any) -> None:
    LONG.save_pretrained(tmp_path)
    loaded = UltraFlashStreamingPipeline.from_pretrained(tmp_path)
    assert loaded.config.first_group_frames == 4 and loaded.generator_transformer.config.first_chunk_frames == 1


@pytest.mark.parametrize("resumed_after", [1, 2, 3, 4])
def test_a_stream_goes_on_before_and_after_a_change_of_its_prompt(resumed_after: int, tmp_path: Any) -> None:
    """The change is asked for after the first chunk, and comes in the middle of the third group."""

    def change(stream: Any) -> None:
        stream.set_prompt("a dog", at_frame=50)

    stream, expected = LONG.stream("cat", generator=seed(), **ARGUMENTS), []
    for number, chunk in enumerate(stream):
        expected.append(chunk.frames)
        if number == 0:
            change(stream)
    stream, head = LONG.stream("cat", generator=seed(), **ARGUMENTS), []
    for number in range(resumed_after):
        head.append(next(stream).frames)
        if number == 0:
            change(stream)
    stream.state().save(tmp_path / "state.safetensors")
    stream.close()
    state = PipelineStreamState.load(tmp_path / "state.safetensors")
    tail = [chunk.frames for chunk in LONG.stream(state=state, **ARGUMENTS)]
    assert torch.equal(torch.cat(head + tail, dim=1), torch.cat(expected, dim=1))
    unchanged = LONG("cat", generator=seed(), **ARGUMENTS).frames
    different = (torch.cat(expected, dim=1) != unchanged).flatten(2).any(dim=2)[0]
    assert not different[:50].any() and different[60:].any()


def test_recomputing_is_off_by_choice_and_its_time_is_told() -> None:
    results = {}
    for recomputes in (True, False):
        kwargs = {"source_kwargs": {"recompute_on_prompt_change": recomputes}}
        stream = LONG.stream("cat", generator=seed(), **ARGUMENTS, **kwargs)
        chunks = [next(stream)]
        stream.set_prompt("a dog")
        chunks += list(stream)
        assert ("prompt_change" in chunks[1].timings) == recomputes
        results[recomputes] = torch.cat([chunk.frames for chunk in chunks], dim=1)
    assert not torch.equal(results[True], results[False])


def test_another_prompt_for_a_saved_stream_is_a_change() -> None:
    stream = LONG.stream("cat", generator=seed(), **ARGUMENTS)
    head = next(stream).frames
    state = stream.state()
    stream.set_prompt("a dog")
    expected = torch.cat([head, *(chunk.frames for chunk in stream)], dim=1)
    tail = [chunk.frames for chunk in LONG.stream("a dog", state=state, **ARGUMENTS)]
    assert torch.equal(torch.cat([head, *tail], dim=1), expected)


def test_given_latents_are_taken_in_the_chunks_of_the_schedule() -> None:
    latents = torch.randn(1, LATENT_CHANNELS, 4, 2, 4, generator=seed())
    kwargs = {"source_kwargs": {"first_latents": latents}}
    stream = LONG.stream("cat", generator=seed(), **ARGUMENTS, **kwargs)
    assert next(stream).statistics["generator_passes"] == [1, 1]
