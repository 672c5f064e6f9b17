# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Recipes end to end without a network: a cache of the Hub with tiny files in the published spelling."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.hub_cache import fill_hub_cache
from helpers.small_disk import small_disk
from helpers.source_pipelines import wan_vae
from helpers.tiny import make_tiny_text_encoder
from helpers.wan_cases import REFERENCE, relative_error
from reference.deterministic import fill_layout
from transformers import UMT5Config, UMT5EncoderModel

from ultraflash_diffusers import HRAutoencoder, UltraFlashStreamingPipeline
from ultraflash_diffusers.cli import main
from ultraflash_diffusers.conversion import RECIPES, convert_recipe
from ultraflash_diffusers.hub_files import Hub

# what the tiny files' tensors do not show
SETTINGS = {"num_heads": 2, "text_len": 16, "sparse_ref_spatial_tokens": 96}
GENERATORS = {
    "gdhe17/Self-Forcing": ("checkpoints/self_forcing_dmd.pt",),
    "zhuhz22/Causal-Forcing": (
        "chunkwise/causal_forcing.pt",
        "framewise/causal_forcing.pt",
        "causal-forcing++/framewise-2step.pt",
        "causal-forcing++/framewise-1step.pt",
    ),
    "Efficient-Large-Model/LongLive-1.3B": ("models/longlive_base.pt",),
}
SCHEDULES: dict[str, dict[str, Any]] = {
    "self-forcing": {"frames_per_chunk": 3, "window_frames": None, "denoising_steps": [1000, 750, 500, 250]},
    "ultraflash-long": {"first_chunk_frames": 1, "window_frames": 12, "sink_frames": 3, "recompute_sink": False},
    "longlive": {"first_chunk_frames": None, "window_frames": 12, "recompute_on_prompt_change": True},
    "causal-forcing": {"frames_per_chunk": 3, "window_frames": None},
    "causal-forcing-framewise": {"frames_per_chunk": 1, "first_chunk_denoising_steps": None},
    "causal-forcing-2step": {"denoising_steps": [1000, 500], "first_chunk_denoising_steps": [1000, 750, 500, 250]},
    "causal-forcing-1step": {"denoising_steps": [1000], "first_chunk_denoising_steps": [1000, 750, 500, 250]},
}


def layout(name: str) -> dict[str, torch.Tensor]:
    return fill_layout(REFERENCE / "layouts" / f"{name}.json")


def published_decoder() -> dict[str, torch.Tensor]:
    """A small v3 decoder as it is published: `net`, and `block.0` for learned upsampling."""
    torch.manual_seed(0)
    network = HRAutoencoder(
        variant="v3",
        encoder_channels=(),
        encoder_blocks=(),
        encoder_spatial_strides=(),
        encoder_temporal_strides=(),
        decoder_channels=(8, 8, 8),
        decoder_blocks=(1, 1, 1),
    )
    learned = {name for name, module in network.named_modules() if type(module).__name__ == "PixelShuffleUpsample"}
    renamed = {}
    for key, tensor in network.state_dict().items():
        layer = key.rpartition(".conv.")[0]
        key = key.replace(f"{layer}.conv.", f"{layer}.block.0.") if layer in learned else key
        renamed[key.replace("decoder.", "net.", 1)] = tensor
    return renamed


def save_text_parts(folder: Path) -> dict[str, Path]:
    """A tiny text encoder of the networks' text width, as the Wan repository has it: text, and files not needed."""
    _, tokenizer = make_tiny_text_encoder()
    config = UMT5Config(vocab_size=len(tokenizer), d_model=48, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    torch.manual_seed(0)
    UMT5EncoderModel(config).save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    wan_vae().save_pretrained(folder / "vae")
    (folder / "transformer").mkdir()
    (folder / "transformer" / "config.json").write_text("{}")
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the Hub with all that recipes name."""
    folder = tmp_path_factory.mktemp("hub")

    def saved(name: str, content: dict[str, Any]) -> Path:
        path = folder / name.replace("/", "_")
        torch.save(content, path)
        return path

    weights = layout("cascade_longlive.generator")
    both: dict[str, Any] = {
        "generator": {f"model.{key}": tensor for key, tensor in weights.items()},
        "generator_ema": {f"model._fsdp_wrapped_module.{key}": tensor + 0.01 for key, tensor in weights.items()},
        "critic": {"model.x": torch.zeros(1)},
        "step": 600,
    }
    ultraflash: dict[str, dict[str, Any]] = {
        "1K-Causal-Sparse-SR-Dit-fidelity-step_12800.pth": {"generator": layout("cascade_longlive.transformer")},
        "2K-Causal-Sparse-SR-Dit-fidelity-step_9.pth": {"generator": layout("cascade_longlive.transformer")},
        "1K-ultraLatentUpsampler-step_19900.pth": {"model": layout("cascade_longlive.latent_upsampler")},
        "2K-ultraLatentUpsampler-step_28100.pth": {"model": layout("upsampler_v1_x3")},
        "v1.1-ultra-decoder-v3-ema_decoder.pth": published_decoder(),
    }
    cache = folder / "cache"
    fill_hub_cache(cache, "xin1u/UltraFlash", {name: saved(name, content) for name, content in ultraflash.items()})
    for repository, names in GENERATORS.items():
        files = {name: saved(name, both) for name in names}
        if "LongLive" in repository:
            lora = {"generator_lora": layout("generator_longlive_lora.lora"), "critic_lora": {}, "step": 3000}
            files["models/lora.pt"] = saved("lora.pt", lora)
        fill_hub_cache(cache, repository, files)
    fill_hub_cache(cache, "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", save_text_parts(folder / "wan"))
    return cache


@pytest.fixture
def make(cache: Path, tmp_path: Path) -> Callable[..., Path]:
    def convert(name: str, output: str = "out", **options: Any) -> Path:
        given: dict[str, Any] = {"settings": SETTINGS, "hub": Hub(cache_dir=cache), "say": lambda line: None}
        return convert_recipe(name, tmp_path / output, **given | options)

    return convert


@pytest.mark.parametrize("name", SCHEDULES)
def test_each_recipe_becomes_a_pipeline_with_its_schedule(name, make):
    pipe = UltraFlashStreamingPipeline.from_pretrained(make(name))
    config = json.loads(pipe.generator_transformer.to_json_string())
    assert {key: config[key] for key in SCHEDULES[name]} == SCHEDULES[name]
    averaged = name not in ("longlive", "ultraflash-long", "causal-forcing")
    bias = layout("cascade_longlive.generator")["head.head.bias"]
    assert torch.equal(pipe.generator_transformer.proj_out.bias, bias + 0.01 * averaged)
    assert (pipe.latent_upsampler.config.scale, pipe.config.default_height) == (2, 960)
    assert pipe.config.first_group_frames == (4 if name == "ultraflash-long" else 6)
    assert pipe.autoencoder.config.variant == "v3" and pipe.encoder is not None
    assert pipe.transformer.config.reference_tokens == 96


@pytest.mark.parametrize("text_files", ["copy", "link"])
def test_a_converted_folder_makes_video(text_files, make, tmp_path):
    folder = make("ultraflash-2k", text_files=text_files)
    assert (folder / "text_encoder" / "model.safetensors").is_symlink() is (text_files == "link")
    pipe = UltraFlashStreamingPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    assert (pipe.latent_upsampler.config.scale, pipe.config.default_height) == (3, 1440)
    seed = torch.Generator().manual_seed(0)
    (video,) = pipe(
        "a red ball", height=96, width=144, num_frames=9, generator=seed, output_type="pt", return_dict=False
    )
    assert video.shape == (1, 9, 3, 96, 144) and video.isfinite().all()
    video = pipe(source=torch.rand(5, 3, 32, 48), output_type="pt", return_dict=False)[0]
    assert video.shape == (1, 5, 3, 96, 144) and video.isfinite().all()
    assert not (folder / "vae").exists() and not (folder / "order.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_without_text_encoder_and_in_half_precision(make):
    folder = make("ultraflash-1k", text_files="none", dtype=torch.bfloat16)
    pipe = UltraFlashStreamingPipeline.from_pretrained(folder, dtype=torch.bfloat16)
    assert pipe.text_encoder is None and pipe.tokenizer is None
    weight = layout("cascade_longlive.transformer")["head.head.weight"]
    assert torch.equal(pipe.transformer.proj_out.weight, weight.bfloat16())


def test_the_lora_is_merged(make):
    """The base alone is not the long-video model."""
    pipe = UltraFlashStreamingPipeline.from_pretrained(make("ultraflash-long"))
    base = UltraFlashStreamingPipeline.from_pretrained(make("causal-forcing", "base"))
    lora = layout("generator_longlive_lora.lora")
    prefix = "base_model.model.blocks.1.ffn.2.lora_"
    change = lora[f"{prefix}B.weight"] @ lora[f"{prefix}A.weight"]
    weights = [each.generator_transformer.blocks[1].ffn.net[2].weight for each in (pipe, base)]
    assert relative_error(weights[0] - weights[1], change) < 1e-4


def test_terms_are_said_before_the_download_and_in_the_card(make, cache, tmp_path):
    said: list[str] = []
    folder = make("ultraflash-1k", say=said.append)
    assert "gdhe17/Self-Forcing is under CC BY-NC-SA 4.0" in said[0]
    assert any("1K-ultraLatentUpsampler-step_19900.pth of xin1u/UltraFlash" in line for line in said[1:])
    card = (folder / "README.md").read_text()
    assert "**gdhe17/Self-Forcing: no commercial use.**" in card and "license: other" in card
    assert "| `checkpoints/self_forcing_dmd.pt` | gdhe17/Self-Forcing | CC BY-NC-SA 4.0" in card
    assert "| `text_encoder/config.json` | Wan-AI/Wan2.1-T2V-1.3B-Diffusers | Apache-2.0 |" in card
    said.clear()
    make("causal-forcing", "other", say=said.append)
    assert not any("CC BY" in line for line in said)
    assert "no commercial use" not in (tmp_path / "other" / "README.md").read_text()


def test_taehv_comes_from_its_own_place(make, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    place = tmp_path / "torch" / "hub" / "checkpoints"
    place.mkdir(parents=True)
    torch.save(layout("tiny_decoder"), place / "taew2_1.pth")
    pipe = UltraFlashStreamingPipeline.from_pretrained(make("taehv", text_files="none"))
    assert pipe.encoder is None and pipe.autoencoder.has_encoder and pipe.autoencoder.config.variant == "tiny"
    assert "| https://github.com/madebyollin/taehv | MIT |" in (tmp_path / "out" / "README.md").read_text()


# --- the command ----------------------------------------------------------------------------------------------------


def arguments(cache: Path, output: Path, name: str = "ultraflash-1k") -> list[str]:
    settings = [word for key, value in SETTINGS.items() for word in ("--setting", f"{key}={value}")]
    place = ["--output", str(output), "--cache-dir", str(cache), "--offline"]
    return ["convert", "--recipe", name, *place, *settings]


def test_the_command(cache, tmp_path, capsys):
    assert main([*arguments(cache, tmp_path / "out"), "--text-encoder", "none", "--json"]) == 0
    output, errors = capsys.readouterr()
    assert json.loads(output) == {"folder": str(tmp_path / "out")}
    assert errors.startswith("ultraflash: gdhe17/Self-Forcing is under CC BY-NC-SA 4.0 (no commercial use)")
    UltraFlashStreamingPipeline.from_pretrained(tmp_path / "out")
    assert main(arguments(cache, tmp_path / "out")) == 2
    assert "is there already: name a new folder" in capsys.readouterr().err


def test_the_list_of_recipes(capsys):
    assert main(["convert", "--recipe", "list"]) == 0
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == list(RECIPES)
    assert main(["convert", "--recipe", "list", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["recipes"]) == list(RECIPES)


@pytest.mark.slow
def test_killed_in_the_middle_and_gone_on_with(cache, tmp_path):
    output, partial = tmp_path / "out", tmp_path / ".out.partial"
    words = [sys.executable, "-m", "ultraflash_diffusers.cli", *arguments(cache, output)]
    process = subprocess.Popen(words, env=os.environ, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not (partial / "transformer").is_dir() and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not output.exists() and not (partial / "model_index.json").exists()
    finished = (partial / "transformer" / "config.json").stat().st_mtime_ns
    said: list[str] = []
    convert_recipe(
        "ultraflash-1k", output, settings=SETTINGS, hub=Hub(cache_dir=cache, local_files_only=True), say=said.append
    )
    assert not any(line.startswith("transformer:") for line in said)
    assert (output / "transformer" / "config.json").stat().st_mtime_ns == finished
    assert not partial.exists()
    UltraFlashStreamingPipeline.from_pretrained(output)


def test_finished_parts_of_another_order_are_not_used(make, tmp_path):
    partial = tmp_path / ".out.partial"
    (partial / "transformer").mkdir(parents=True)
    (partial / "order.json").write_text("{}")
    UltraFlashStreamingPipeline.from_pretrained(make("ultraflash-1k"))


# --- refusals -------------------------------------------------------------------------------------------------------


def test_a_full_disk(make, tmp_path):
    with small_disk(100_000), pytest.raises(OSError, match="could not be written|too large"):
        make("ultraflash-1k")
    assert not (tmp_path / "out").exists()
    UltraFlashStreamingPipeline.from_pretrained(make("ultraflash-1k"))


def copied_cache(cache: Path, tmp_path: Path, leave_out: str) -> Path:
    """The cache without the files whose names hold `leave_out`."""
    copy = tmp_path / "copy"
    for repository in cache.glob("models--*"):
        (snapshot,) = (repository / "snapshots").iterdir()
        files = {path.relative_to(snapshot).as_posix(): path for path in snapshot.rglob("*") if path.is_file()}
        kept = {name: path for name, path in files.items() if leave_out not in name}
        fill_hub_cache(copy, repository.name.removeprefix("models--").replace("--", "/", 1), kept)
    return copy


@pytest.mark.parametrize(
    "name, left_out, message",
    [
        (
            "ultraflash-1k",
            "self_forcing",
            "'checkpoints/self_forcing_dmd.pt' of 'gdhe17/Self-Forcing' is not in the cache",
        ),
        ("ultraflash-1k", "1K-Causal", "'xin1u/UltraFlash' has none of 1K-Causal-Sparse.* it has 1K-ultraLatentUps"),
        ("longlive", "lora.pt", "'models/lora.pt' of .*LongLive-1.3B' is not in the cache.*models/longlive_base.pt"),
        ("ultraflash-1k", "tokenizer/", "'Wan-AI/Wan2.1-T2V-1.3B-Diffusers' has no files of tokenizer"),
    ],
)
def test_missing_files_are_named(name, left_out, message, cache, make, tmp_path):
    hub = Hub(cache_dir=copied_cache(cache, tmp_path, left_out))
    with pytest.raises(FileNotFoundError, match=message):
        make(name, hub=hub)
    assert not (tmp_path / "out").exists()


def test_wrong_files_are_named(cache, make, tmp_path):
    copy = copied_cache(cache, tmp_path, "decoder")
    torch.save(layout("cascade_longlive.latent_upsampler"), tmp_path / "wrong.pth")
    (snapshot,) = (copy / "models--xin1u--UltraFlash" / "snapshots").iterdir()
    (snapshot / "ultra_decoder_v3.pth").write_bytes((tmp_path / "wrong.pth").read_bytes())
    with pytest.raises(ValueError, match="ultra_decoder_v3.pth of xin1u/UltraFlash holds a v1 latent upsampler"):
        make("ultraflash-1k", hub=Hub(cache_dir=copy))
    (snapshot / "ultra_decoder_v3.pth").write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match="is not a readable PyTorch checkpoint"):
        make("ultraflash-1k", hub=Hub(cache_dir=copy))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("ultraflash-8k", {}, "unknown recipe 'ultraflash-8k'; there are ultraflash-1k, ultraflash-2k"),
        ("ultraflash-1k", {"text_files": "all"}, "`text_files` must be 'copy', 'link' or 'none', got 'all'"),
        ("ultraflash-1k", {"settings": SETTINGS | {"colour": 1}}, "unknown setting 'colour'"),
        ("ultraflash-1k", {"settings": SETTINGS | {"denoising_steps": [1, 2]}}, r"`denoising_steps` must decrease"),
        ("ultraflash-1k", {"settings": SETTINGS | {"num_heads": 3}}, "1K-Causal.*of xin1u/UltraFlash: .*does not div"),
    ],
)
def test_orders_that_cannot_be(name, options, message, make, tmp_path):
    with pytest.raises(ValueError, match=message):
        make(name, **options)
    assert not (tmp_path / "out").exists()


def test_an_unknown_revision_is_named(make, cache):
    with pytest.raises(FileNotFoundError, match="xin1u/UltraFlash"):
        make("ultraflash-1k", revisions={"xin1u/UltraFlash": "v9"})
