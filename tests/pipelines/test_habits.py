# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What users of diffusers try on any pipeline works here, or says what would."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoModel, DDIMScheduler, DiffusionPipeline, EulerDiscreteScheduler, UniPCMultistepScheduler
from diffusers.pipelines import pipeline_utils
from diffusers.utils import export_to_video, hub_utils, load_video
from helpers.clips import make_clip
from helpers.source_pipelines import PROMPT_EMBEDS, wan_pipeline
from helpers.tiny import TEXT_DIM, make_tiny_pipeline, make_tiny_transformer
from huggingface_hub import ModelCard
from huggingface_hub.errors import EntryNotFoundError
from peft import LoraConfig

from ultraflash_diffusers import (
    HRAutoencoder,
    UltraFlashSRTransformer,
    UltraFlashStreamingPipeline,
    default_checkpoint,
)
from ultraflash_diffusers.video_io import VideoReader


def frames(pipe: UltraFlashStreamingPipeline, *arguments: Any, **keywords: Any) -> np.ndarray:
    seed = {"generator": torch.Generator().manual_seed(0), "output_type": "uint8"}
    return np.asarray(pipe(*arguments, **seed | keywords).frames)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "pipeline"
    make_tiny_pipeline(group_frames=2).save_pretrained(folder)
    return folder


def test_a_saved_pipeline_is_loaded_by_diffusers(saved: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path))
    pipe = DiffusionPipeline.from_pretrained(saved, trust_remote_code=True)
    assert type(pipe) is UltraFlashStreamingPipeline
    assert pipe.config.group_frames == 2
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        DiffusionPipeline.from_pretrained(saved)


def test_the_packaged_folder_is_loaded_by_diffusers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path))
    pipe = DiffusionPipeline.from_pretrained(default_checkpoint(), trust_remote_code=True)
    assert type(pipe) is UltraFlashStreamingPipeline
    for name in ("transformer", "generator_transformer", "latent_upsampler", "autoencoder"):
        network = AutoModel.from_pretrained(str(default_checkpoint() / name), trust_remote_code=True)
        assert type(network) is type(getattr(pipe, name))


def test_a_pushed_pipeline_has_a_filled_card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Offline, up to where diffusers hands the folder to `huggingface_hub`."""
    uploads = []

    def uploaded(*, repo_id: str, folder_path: str, **_: Any) -> None:
        uploads.append((repo_id, (Path(folder_path) / "README.md").read_text()))

    def absent(*_: Any, **__: Any) -> None:
        raise EntryNotFoundError("no card yet")

    monkeypatch.setattr(hub_utils, "create_repo", lambda name, **_: SimpleNamespace(repo_id=name))
    monkeypatch.setattr(pipeline_utils, "create_repo", lambda name, **_: SimpleNamespace(repo_id=name))
    monkeypatch.setattr(hub_utils, "upload_folder", uploaded)
    monkeypatch.setattr(ModelCard, "load", absent)
    pipe = make_tiny_pipeline(group_frames=2)
    pipe.push_to_hub("somebody/bigger-video")
    pipe.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id="somebody/saved")
    assert [name for name, _ in uploads] == ["somebody/bigger-video", "somebody/saved"]
    for name, card in uploads:
        assert ModelCard(card).data.pipeline_tag == "text-to-video"
        assert f"from_pretrained({name!r})" in card
        assert "| `group_frames` | 2 |" in card and "| `transformer` | `UltraFlashSRTransformer` |" in card


def test_a_card_that_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    make_tiny_pipeline().save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_its_own_class_needs_no_code_from_the_folder(saved: Path, tmp_path: Path) -> None:
    (saved / "pipeline.py").rename(tmp_path / "pipeline.py")
    try:
        pipe = UltraFlashStreamingPipeline.from_pretrained(saved)
    finally:
        (tmp_path / "pipeline.py").rename(saved / "pipeline.py")
    assert pipe.config.group_frames == 2
    (saved / "pipeline.py").write_text("raise RuntimeError('this was run')")
    assert UltraFlashStreamingPipeline.from_pretrained(saved).config.group_frames == 2
    pipe.save_pretrained(saved)
    assert "RuntimeError" not in (saved / "pipeline.py").read_text()


def test_a_folder_of_the_version_before_is_loaded(saved: Path) -> None:
    index = saved / "model_index.json"
    text = index.read_text()
    config = json.loads(text)
    assert config["_class_name"] == ["pipeline", "UltraFlashStreamingPipeline"]
    index.write_text(json.dumps(config | {"_class_name": "UltraFlashStreamingPipeline"}))
    assert UltraFlashStreamingPipeline.from_pretrained(saved).config.group_frames == 2
    index.write_text(text)


def test_auto_model_loads_networks(
    saved: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path))
    network = AutoModel.from_pretrained(str(saved / "transformer"), trust_remote_code=True)
    assert type(network) is UltraFlashSRTransformer
    assert type(AutoModel.from_pretrained(str(saved), subfolder="autoencoder")) is HRAutoencoder
    again = UltraFlashSRTransformer.from_pretrained(saved / "transformer")
    assert "auto_map" not in caplog.text
    assert all(torch.equal(*pair) for pair in zip(network.parameters(), again.parameters(), strict=True))


def test_components_make_an_equal_pipeline() -> None:
    pipe = make_tiny_pipeline(group_frames=2, kv_cache_blocks=1, color_correction_levels=3)
    again = UltraFlashStreamingPipeline(**pipe.components)
    assert dict(again.config) == dict(pipe.config)
    assert again.transformer is pipe.transformer
    assert dict(UltraFlashStreamingPipeline.from_pipe(pipe).config)["group_frames"] == 2


def test_other_names(tmp_path: Path) -> None:
    pipe = make_tiny_pipeline()
    assert pipe.vae is pipe.autoencoder
    pipe.enable_vae_tiling()
    assert pipe.autoencoder.use_tiling
    pipe.disable_vae_tiling()
    assert not pipe.autoencoder.use_tiling
    clip = str(make_clip(tmp_path / "clip.mp4", 5))
    assert np.array_equal(frames(pipe, video=clip), frames(pipe, source=clip))
    with pytest.raises(ValueError, match="`source` and `video` were both given"):
        pipe(source=clip, video=clip)


def test_files_of_diffusers_own_functions(tmp_path: Path) -> None:
    pipe = make_tiny_pipeline()
    path = export_to_video(pipe("a red ball", num_frames=9).frames[0], str(tmp_path / "out.mp4"), fps=12)
    assert VideoReader(path).info.num_frames == 9
    pictures = load_video(str(make_clip(tmp_path / "clip.mp4", 5)))
    assert frames(pipe, source=pictures).shape[1] == 5


def test_several_videos_of_a_prompt() -> None:
    pipe = make_tiny_pipeline()
    several = frames(pipe, ["a red ball", "a blue cat"], num_videos_per_prompt=2, num_frames=5)
    assert several.shape[0] == 4
    assert not np.array_equal(several[0], several[1])
    base = wan_pipeline()
    base.set_progress_bar_config(disable=True)
    embeds = {"source_kwargs": {**PROMPT_EMBEDS, "num_inference_steps": 1}, "height": 32, "width": 32}
    assert frames(pipe, source=base, num_frames=5, num_videos_per_prompt=2, **embeds).shape[0] == 2
    with pytest.raises(ValueError, match="`num_videos_per_prompt` is 2, but this source is one video"):
        pipe(source=[np.zeros((16, 16, 3), np.uint8)], num_videos_per_prompt=2)


def test_numbers_of_numpy() -> None:
    pipe = make_tiny_pipeline()
    size = {"num_frames": np.int64(5), "height": np.int32(32), "width": np.int64(48)}
    assert np.array_equal(frames(pipe, "a red ball", **size), frames(pipe, "a red ball", num_frames=5))
    with pytest.raises(ValueError, match="`num_frames` must be an integer of at least 1, got .*5.0"):
        pipe("a red ball", num_frames=np.float64(5))


def test_lora_scale_of_one_call() -> None:
    pipe = make_tiny_pipeline()
    plain = frames(pipe, "a red ball", num_frames=5)
    transformer = make_tiny_transformer()
    transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    pipe.register_modules(transformer=transformer)
    full = frames(pipe, "a red ball", num_frames=5)
    assert not np.array_equal(full, plain)
    assert np.array_equal(frames(pipe, "a red ball", num_frames=5, attention_kwargs={"scale": 0.0}), plain)
    half = frames(pipe, "a red ball", num_frames=5, attention_kwargs={"scale": 0.5})
    assert not np.array_equal(half, plain) and not np.array_equal(half, full)
    assert np.array_equal(frames(pipe, "a red ball", num_frames=5), full)
    with pytest.raises(ValueError, match="`attention_kwargs` has 'gligen'"):
        pipe("a red ball", num_frames=5, attention_kwargs={"gligen": 1})


def test_an_interrupted_stream_ends_after_the_chunk_at_hand() -> None:
    pipe = make_tiny_pipeline(group_frames=2)

    def stop(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = True
        return tensors

    with pipe.stream("a red ball", num_frames=None, callback_on_step_end=stop, output_type="uint8") as stream:
        assert len(list(stream)) == 1
    whole = frames(pipe, "a red ball", num_frames=17)
    begun = frames(pipe, "a red ball", num_frames=17, callback_on_step_end=stop)
    assert begun.shape[1] < 17 and np.array_equal(begun, whole[:, : begun.shape[1]])


@pytest.mark.parametrize("scheduler", [DDIMScheduler(), EulerDiscreteScheduler(), UniPCMultistepScheduler()])
def test_schedulers_that_cannot_serve_are_named(scheduler: Any) -> None:
    pipe = make_tiny_pipeline(scheduler=scheduler)
    with pytest.raises(
        ValueError, match=f"`scheduler` is a {type(scheduler).__name__}, expected one of flow matching"
    ):
        pipe("a red ball", num_frames=5)


def test_quantized_networks_are_saved_and_loaded(saved: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    from diffusers import TorchAoConfig
    from torchao.quantization import Int8WeightOnlyConfig

    config = TorchAoConfig(Int8WeightOnlyConfig())
    transformer = UltraFlashSRTransformer.from_pretrained(saved / "transformer", quantization_config=config)
    pipe = make_tiny_pipeline(transformer=transformer)
    expected = frames(pipe, prompt_embeds=torch.ones(1, 6, TEXT_DIM), num_frames=5)
    transformer.save_pretrained(tmp_path / "quantized", safe_serialization=False)
    pipe.register_modules(
        transformer=UltraFlashSRTransformer.from_pretrained(tmp_path / "quantized", use_safetensors=False)
    )
    assert np.array_equal(frames(pipe, prompt_embeds=torch.ones(1, 6, TEXT_DIM), num_frames=5), expected)
