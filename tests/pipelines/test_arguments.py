# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Every argument with every kind of odd value: taken, or refused by its own name before any work."""

from __future__ import annotations

import inspect
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from helpers.tiny import TEXT_DIM, make_tiny_pipeline

from ultraflash_diffusers import DynamicCacheManagement, PipelineStreamState
from ultraflash_diffusers.pipelines.argument_kinds import shown

PIPE: Any = make_tiny_pipeline()  # of no type, since arguments of wrong ones are tried


class Nameless:
    """Something that cannot even be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no name")


ODD: list[Any] = [
    *(True, 0, -1, 1.5, 2**70, -(2**70), 10**5000, 1j, float("nan"), float("inf"), -float("inf")),
    *(np.int64(-3), np.float32("nan"), np.bool_(True), np.array(["x"]), np.zeros((2, 2))),
    *(torch.tensor(-1), torch.tensor([1.0, 2.0]), torch.zeros(0), torch.full((1, 2, TEXT_DIM), torch.nan)),
    *("", "x", "\ud800", "x" * 9000, b"x", Path("x"), [], [1], [None], ["a", 1], (), {}, {"x": 1}, {1: 2}),
    *(object(), Nameless(), print, int, ValueError("x"), iter([1]), DynamicCacheManagement.off(), PIPE.transformer),
]
CALL = [name for name in inspect.signature(PIPE.__call__).parameters if name not in ("return_dict", "source")]
TEXTS = ["prompt", "negative_prompt", "prompt_embeds", "negative_prompt_embeds", "max_sequence_length"]
# what a value of another argument also speaks of: two names for one thing, or one that is needed for it
ALSO = {
    "height": ["width"],
    "width": ["height"],
    "negative_prompt": ["guidance_scale"],
    "negative_prompt_embeds": ["guidance_scale"],
    "video": ["source"],
    "callback_on_step_end_tensor_inputs": ["callback_on_step_end"],
    "num_videos_per_prompt": ["generator"],
}


def kind(value: Any) -> str:
    return f"{type(value).__name__}-{shown(value)[:12]}"


def refuses_by_name(name: str, run: Any) -> None:
    """Runs, and asserts that what is raised, if anything is, speaks of the argument."""
    try:
        run()
    except OSError:
        assert name == "video"  # which may be a path
    except (TypeError, ValueError) as error:
        assert any(f"`{each}`" in str(error) for each in (name, *ALSO.get(name, ()))), f"{error!r} names no {name}"
        assert len(str(error)) < 600


@pytest.mark.parametrize("name", CALL)
def test_arguments_of_a_stream(name: str) -> None:
    for value in ODD:
        arguments = {"prompt": "a red ball", "num_frames": 1, name: value}
        if name == "prompt_embeds":
            del arguments["prompt"]
        if name.startswith("negative"):
            arguments["guidance_scale"] = 2.0
        if name == "callback_on_step_end_tensor_inputs":
            arguments["callback_on_step_end"] = lambda *_: {}
        if name == "attention_kwargs":  # of a whole call alone
            refuses_by_name(name, partial(PIPE, **arguments))
        else:
            refuses_by_name(name, lambda arguments=arguments: PIPE.stream(**arguments).close())


@pytest.mark.parametrize("name", TEXTS)
def test_arguments_of_encode_prompt(name: str) -> None:
    for value in ODD:
        texts: dict[str, Any] = {} if name == "prompt_embeds" else {"prompt": "a red ball"}
        arguments = texts | {"do_classifier_free_guidance": True, name: value}
        refuses_by_name(name, partial(PIPE.encode_prompt, **arguments))


@pytest.mark.parametrize("name", TEXTS)
def test_arguments_of_set_prompt(name: str) -> None:
    with PIPE.stream("a red ball", num_frames=1, guidance_scale=2.0) as stream:
        for value in ODD:
            texts: dict[str, Any] = {} if name == "prompt_embeds" else {"prompt": "a red ball"}
            refuses_by_name(name, partial(stream.set_prompt, **texts | {name: value}))


@pytest.mark.parametrize("name", inspect.signature(DynamicCacheManagement).parameters)
def test_arguments_of_cache_management(name: str) -> None:
    for value in ODD:
        refuses_by_name(name, partial(DynamicCacheManagement, **{name: value}))


@pytest.mark.parametrize("name", ["window_frames", "first_frames", "x"])
def test_what_is_passed_on_to_the_generator(name: str) -> None:
    with pytest.raises((TypeError, ValueError), match=name):
        PIPE.stream("a", num_frames=1, source_kwargs={name: object()})


def test_wrong_kinds_are_refused_with_what_would_fit() -> None:
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"prompt": [1]}, TypeError, r"`prompt` must be a text or a list of texts, got \[1\]"),
        ({"state": {}}, TypeError, r"`state` must be a PipelineStreamState \(`PipelineStreamState.load`.*got {}"),
        ({"state": "file.safetensors"}, TypeError, "`state` must be a PipelineStreamState.*'file.safetensors'"),
        ({"guidance_scale": None}, ValueError, "`guidance_scale` must be a finite number, got None"),
        ({"guidance_scale": float("inf")}, ValueError, "`guidance_scale` must be a finite number, got inf"),
        ({"cache_management": 1}, TypeError, "`cache_management` must be a DynamicCacheManagement, got 1"),
        ({"generator": 42}, TypeError, r"`generator` must be a Generator.*manual_seed\(seed\).*, got 42"),
        ({"generator": []}, ValueError, "`generator` is an empty list"),
        ({"num_frames": True}, ValueError, "`num_frames` must be an integer of at least 1, got True"),
        ({"num_inference_steps": 10**9}, ValueError, "`num_inference_steps` must be an integer of at most 1000"),
        ({"height": 10**9, "width": 32}, ValueError, "`height` must be an integer of at most 65536"),
        ({"callback_on_step_end": 1}, TypeError, "`callback_on_step_end` must be callable, got 1"),
        ({"source_kwargs": {"windows": 1}}, ValueError, r"`source_kwargs` has \['windows'\], expected some of"),
    ]
    for arguments, error, message in cases:
        with pytest.raises(error, match=message):
            PIPE.stream(**{"prompt": "a", "num_frames": 1} | arguments)


def test_numbers_of_other_libraries_do_not_travel_on(tmp_path: Path) -> None:
    numbers: dict[str, Any] = {
        "num_frames": np.int64(9),
        "height": torch.tensor(32),
        "width": np.uint16(48),
        "strength": np.float32(1),
    }
    seed = {"generator": torch.Generator().manual_seed(3)}
    with PIPE.stream("a red ball", output_type="pt", frames_per_chunk=np.int8(2), **seed, **numbers) as stream:
        chunk = next(stream)
        chunk.state().save(tmp_path / "state.safetensors")
    state = PipelineStreamState.load(tmp_path / "state.safetensors")
    assert state.size == (32, 48)
    rest = PIPE(state=state, num_frames=9, output_type="pt").frames
    assert chunk.num_frames + rest.shape[1] == 9


def test_what_a_callback_returns_is_checked() -> None:
    def returns(value: Any) -> dict[str, Any]:
        return {"callback_on_step_end": lambda *_: value, "prompt": "a red ball", "num_frames": 1}

    for value, message in (
        ([1], r"`callback_on_step_end` must be a Mapping \(what it returns\), got \[1\]"),
        ({"latents": 1}, "`callback_on_step_end` returned 1 as `latents`, expected a torch.Tensor"),
        ({"latents": torch.zeros(1)}, r"`latents` of shape \(1,\), expected shape \(1, 4, 4, 8, 12\)"),
        ({"negative_prompt_embeds": torch.zeros(1)}, "`negative_prompt_embeds`.*expected none without guidance"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            PIPE(**returns(value))
    assert PIPE(**returns(None)).frames


@pytest.mark.parametrize("setting", ["use_dynamic_shifting", "stochastic_sampling"])
def test_a_scheduler_that_depends_on_more_than_sigmas_is_refused(setting: str) -> None:
    pipe = make_tiny_pipeline(scheduler=FlowMatchEulerDiscreteScheduler(**{setting: True}))
    with pytest.raises(ValueError, match=f"`scheduler` has {setting}=True"):
        pipe("a", num_frames=1)


def test_a_decoder_that_is_none_is_named():
    pipe = make_tiny_pipeline()
    pipe.autoencoder = torch.nn.Identity()
    with pytest.raises(ValueError, match="`autoencoder` is a Identity without spatial_compression_ratio, .*decode"):
        pipe(prompt_embeds=torch.zeros(1, 2, 8), num_frames=5)
    with pytest.raises(ValueError, match="`autoencoder` is a Identity, which cannot decode in tiles"):
        pipe.enable_vae_tiling()
