# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The training loop: several processes, checkpoints in adverse conditions, what it leaves to look at."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState, PartialState
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from helpers.paths import TESTS
from helpers.training_runs import AUTOENCODER, SCRIPTS, log, run, texture, write_video
from PIL import Image
from safetensors.torch import load_file
from torch.nn.modules.module import register_module_forward_hook

from ultraflash_diffusers.models.wan_layers import CausalWanBlock
from ultraflash_diffusers.training.loop.checkpoints import find_checkpoints
from ultraflash_diffusers.training.loop.illustrations import draw_curves, write_comparison
from ultraflash_diffusers.training.loop.sharding import WeightAverage
from ultraflash_diffusers.training.loop.train import mean_measures
from ultraflash_diffusers.video_io import VideoReader

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
TRAINED = "checkpoint-4/trained.safetensors"


# all tests that ask for it share the two minutes that it takes on a busy core
@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of all runs that need processes of their own."""
    folder = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "-m", "helpers.distributed_runs", str(folder)]
    paths = {"PYTHONPATH": os.pathsep.join(map(str, (TESTS.parent / "src", TESTS)))}
    finished = subprocess.run(command, env=os.environ | paths, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-4000:]
    return folder


def difference(one: Path, other: Path) -> float:
    """The largest one between two files of equal tensors' names."""
    left, right = load_file(one), load_file(other)
    assert left.keys() == right.keys() and left
    return max((left[name] - right[name]).abs().max().item() for name in left)


def measured(folder: Path) -> list[dict[str, float]]:
    return [{name: value for name, value in line.items() if name != "seconds"} for line in log(folder)]


# ---- several processes


@pytest.mark.slow
def test_two_processes_equal_one_with_the_same_global_batch(runs: Path) -> None:
    for file in (TRAINED, WEIGHTS):
        assert difference(runs / "ddp" / file, runs / "single" / file) < 1e-7
    start = difference(runs / "single" / "checkpoint-2" / "trained.safetensors", runs / "single" / TRAINED)
    assert start > 1e-3  # it has learnt something in between
    for ours, alone in zip(measured(runs / "ddp"), measured(runs / "single"), strict=True):
        assert ours == pytest.approx(alone, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("run", ["shared", "fsdp_shared"])
def test_two_processes_that_share_the_tokens_of_clips_equal_one(runs: Path, run: str) -> None:
    for file in (TRAINED, WEIGHTS):
        assert difference(runs / run / file, runs / "undivided" / file) < 5e-5
    for ours, alone in zip(measured(runs / run), measured(runs / "undivided"), strict=True):
        assert ours == pytest.approx(alone, rel=1e-4)


@pytest.mark.slow
def test_two_processes_whose_batches_train_different_networks_equal_one(runs: Path) -> None:
    name = "diffusion_pytorch_model.safetensors"
    for file in (name, f"autoencoder/{name}"):
        assert difference(runs / "ddp_mixed" / file, runs / "single_mixed" / file) < 1e-4
    for ours, alone in zip(measured(runs / "ddp_mixed"), measured(runs / "single_mixed"), strict=True):
        assert ours == pytest.approx(alone, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "file"),
    [
        ("tune_by_preferences", "transformer/diffusion_pytorch_model.safetensors"),
        ("distil", "pytorch_lora_weights.safetensors"),
        ("force_itself", "generator_transformer/diffusion_pytorch_model.safetensors"),
        ("force_diffusion", "generator_transformer/diffusion_pytorch_model.safetensors"),
        ("train_autoencoder", "diffusion_pytorch_model.safetensors"),
        ("train_scorer", "diffusion_pytorch_model.safetensors"),
        ("mixed", "diffusion_pytorch_model.safetensors"),
    ],
)
def test_sharded_stages_whose_batches_differ_equal_one_process(runs: Path, run: str, file: str) -> None:
    """Crops of two sizes, steps that leave out networks, rollouts of drawn lengths: none may hang, none differ."""
    # scorers are saved in half precision: one that is rounded the other way differs by as much
    most = 2.5e-4 if run == "train_scorer" else 1e-4
    assert difference(runs / f"fsdp_{run}" / file, runs / f"single_{run}" / file) < most
    for ours, alone in zip(measured(runs / f"fsdp_{run}"), measured(runs / f"single_{run}"), strict=True):
        assert ours == pytest.approx(alone, rel=1e-3, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("number", ["SIGKILL", "SIGSTOP"])
def test_a_lost_process_ends_the_others_with_a_word(runs: Path, number: str) -> None:
    folder = runs / f"lost_{number}"
    assert "another process has ended or no longer answers" in (folder / "error.txt").read_text()
    assert float((folder / "seconds.txt").read_text()) < 60


def test_what_only_one_process_has_measured_is_a_mean_of_its_batches() -> None:
    parts: list[dict[str, tuple[float, int]]] = [{"loss": (2.0, 2)}, {"loss": (4.0, 1), "rare": (3.0, 2)}]
    assert mean_measures(parts) == {"loss": 2.0, "rare": 1.5}


@pytest.mark.slow
def test_sharded_training_equals_one_process(runs: Path) -> None:
    for file in (TRAINED, WEIGHTS):
        # sums in another order, which Adam makes more of where a gradient is tiny; a step is 5e-3
        assert difference(runs / "fsdp" / file, runs / "single" / file) < 1e-4
    for ours, alone in zip(measured(runs / "fsdp"), measured(runs / "single"), strict=True):
        assert ours == pytest.approx(alone, rel=1e-4)
    progress = {
        run: json.loads((runs / run / "checkpoint-4" / "progress.json").read_text()) for run in ("fsdp", "ddp")
    }
    assert progress["fsdp"]["sharded"] and not progress["ddp"]["sharded"]
    moments = "checkpoint-4/optimizer.safetensors"  # whole ones
    assert difference(runs / "fsdp" / moments, runs / "single" / moments) < 1e-4


@pytest.mark.slow
def test_sharded_training_resumes(runs: Path) -> None:
    for file in (TRAINED, WEIGHTS):
        assert difference(runs / "fsdp_resumed" / file, runs / "fsdp" / file) == 0
        # on another number of processes, with the same global batch
        assert difference(runs / "fsdp_on_fewer" / file, runs / "fsdp" / file) < 1e-4


@pytest.mark.slow
def test_sharded_lora_training_in_half_precision_equals_one_process(runs: Path) -> None:
    name = "pytorch_lora_weights.safetensors"
    # layers are gathered in bfloat16: their norms and tables, which autocast leaves alone, are rounded, too
    assert difference(runs / "fsdp_lora" / name, runs / "single_lora" / name) < 2e-3
    assert any(tensor.any() for key, tensor in load_file(runs / "fsdp_lora" / name).items() if "lora_B" in key)


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "deepspeed_zero2"])
def test_the_launcher_understands_the_shipped_configurations(name: str) -> None:
    file = SCRIPTS / "accelerate" / f"{name}.yaml"
    arguments = ["--config_file", str(file), "--num_processes", "2", "script.py"]
    settings, _, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    chosen = {"ddp": "multi_gpu", "fsdp2": "use_fsdp", "deepspeed_zero2": "use_deepspeed"}
    assert {key: getattr(settings, key) for key in chosen.values()} == {
        key: key == chosen[name] for key in chosen.values()
    }
    if name == "fsdp2":
        assert str(settings.fsdp_version) == "2"
        wrapped = yaml.safe_load(file.read_text())["fsdp_config"]["fsdp_transformer_layer_cls_to_wrap"]
        assert wrapped.split(",") == [CausalWanBlock.__name__, WanTransformerBlock.__name__]


# ---- checkpoints in adverse conditions


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("material")
    for name, seed in {"train": 1, "held_out": 7}.items():
        (folder / name).mkdir()
        write_video(folder / name / "clip.mp4", texture(seed))
    return folder


@pytest.fixture
def train(material: Path, tmp_path: Path) -> Callable[..., Path]:
    """Trains an autoencoder for some steps."""

    def run_it(name: str, *flags: str, config: dict[str, Any] | None = None, **options: Any) -> Path:
        file = tmp_path / "autoencoder.json"
        file.write_text(json.dumps(AUTOENCODER | (config or {})))
        options = {"max_train_steps": 4, "checkpointing_steps": 2, "lr_warmup_steps": 0} | options
        run("train_hr_autoencoder", material, tmp_path / name, "--network_config", str(file), *flags, **options)
        return tmp_path / name

    return run_it


def test_checkpoints_that_do_not_fit_are_refused(train: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = train("whole") / "checkpoint-2"
    wider, deeper = {"decoder_channels": [16]}, {"decoder_blocks": [2]}
    cases: list[tuple[tuple[str, ...], dict[str, Any], str]] = [
        ((), wider, r"'autoencoder\.decoder.*has shape \[8.* there, \[16.* here"),
        ((), deeper, "another stage.* are missing there"),
        (("--use_ema",), {}, "without --use_ema"),
    ]
    for flags, config, message in cases:
        with pytest.raises(ValueError, match=message):
            train("other", "--resume_from_checkpoint", str(checkpoint), *flags, config=config)
    assert not (tmp_path / "other" / "training_arguments.json").exists()
    (checkpoint / "trained.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="no complete checkpoint"):
        train("other", "--resume_from_checkpoint", str(checkpoint))


class Payload:
    """What runs as it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple:
        return Path.touch, (self.witness,)


def test_a_checkpoint_runs_nothing(train: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint, witness = train("whole") / "checkpoint-2", tmp_path / "ran"
    assert {file.suffix for file in checkpoint.iterdir()} == {".json", ".safetensors"}
    pickled = pickle.dumps(Payload(witness))
    for name in ("custom_checkpoint_0.pkl", "random_states_0.pkl", "optimizer.bin", "scheduler.bin"):
        (checkpoint / name).write_bytes(pickled)
    train("resumed", "--resume_from_checkpoint", str(checkpoint))  # they are not looked at
    assert difference(tmp_path / "resumed" / TRAINED, tmp_path / "whole" / TRAINED) == 0
    for name in ("optimizer.safetensors", "trained.safetensors", "progress.json"):
        kept = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(pickled)
        with pytest.raises(ValueError, match="no complete checkpoint"):
            train("other", "--resume_from_checkpoint", str(checkpoint))
        (checkpoint / name).write_bytes(kept)
    (checkpoint / "progress.json").unlink()
    with pytest.raises(ValueError, match="holds pickles.*not read"):
        train("other", "--resume_from_checkpoint", str(checkpoint))
    assert not witness.exists()
    pickle.loads(pickled)  # the payload does work
    assert witness.exists()


def test_an_average_that_begins_late_has_its_whole_decay() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    averages = [WeightAverage([parameter], 0.9, warm_up) for warm_up in (True, False)]
    for value in (4.0, 14.0):
        parameter.data.fill_(value)
        for average in averages:
            average.step([parameter])
    # the first update takes the weights as they are
    assert averages[1].shadow_params[0].item() == pytest.approx(0.9 * 4 + 0.1 * 14)
    assert averages[0].shadow_params[0].item() > 10


@contextmanager
def nearly_full_disk(bytes_of_a_file: int, from_step: int) -> Iterator[None]:
    """Files cannot grow beyond a size, from the given training step on."""
    before, calls = resource.getrlimit(resource.RLIMIT_FSIZE), []

    def fill(module: torch.nn.Module, *_: object) -> None:
        calls.extend([module] if type(module).__name__ == "AutoencoderTraining" else [])
        if len(calls) == from_step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_of_a_file, before[1]))

    hook = register_module_forward_hook(fill)
    try:
        yield
    finally:
        hook.remove()
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.slow
def test_a_full_disk_loses_no_checkpoint(train: Callable[..., Path], tmp_path: Path) -> None:
    whole = train("whole")
    # the weights may still fit, but not the optimiser's moments
    for name, size in (("early", 2000), ("late", (whole / TRAINED).stat().st_size + 1000)):
        expected = "'checkpoint-4' could not be written.*'checkpoint-2' is whole"
        with nearly_full_disk(size, 4), pytest.raises(OSError, match=expected):
            train(name)
        assert [path.name for path in (tmp_path / name).glob("checkpoint*")] == ["checkpoint-2"]
        train(name, "--resume_from_checkpoint", "latest")
        assert difference(tmp_path / name / TRAINED, whole / TRAINED) == 0


@pytest.mark.slow
def test_a_kill_in_mid_save_loses_nothing(runs: Path) -> None:
    assert [path.name for path in find_checkpoints(runs / "killed")] == ["checkpoint-2"]
    assert (runs / "killed" / "checkpoint-4.tmp").is_dir()
    assert not list((runs / "after_kill").glob("*.tmp"))
    for file in (TRAINED, WEIGHTS):
        assert difference(runs / "after_kill" / file, runs / "single" / file) == 0
    assert measured(runs / "after_kill") == measured(runs / "single")


def test_a_checkpoint_that_was_being_deleted_is_none(train: Callable[..., Path]) -> None:
    folder = train("run", max_train_steps=2)
    half = folder / "checkpoint-1.deleted.tmp"
    shutil.copytree(folder / "checkpoint-2", half)
    (half / "trained.safetensors").unlink()
    train("run", "--resume_from_checkpoint", "latest")
    assert sorted(path.name for path in folder.glob("checkpoint*")) == ["checkpoint-2", "checkpoint-4"]


# ---- what a run leaves to look at


def test_held_out_clips_are_shown_beside_the_truth(train: Callable[..., Path], material: Path) -> None:
    folder = train("run", max_train_steps=2, report_to="tensorboard")
    assert sorted(path.name for path in (folder / "validation").iterdir()) == ["step-0", "step-2"]
    shown = np.stack([frame.pixels for frame in VideoReader(folder / "validation" / "step-2" / "clip-0.mp4")])
    assert shown.shape == (5, 48, 128, 3)
    truth = texture(7, 5).astype(float)
    assert np.abs(shown[:, :, 64:] - truth).mean() < 12 < np.abs(shown[:, :, :64] - truth).mean()
    assert Image.open(folder / "validation" / "step-2" / "clip-0.png").height > 48
    assert Image.open(folder / "curves.png").width > 700
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "ultraflash")).Reload()
    assert [event.step for event in events.Images("validation/clip-0")] == [0, 2]


def test_smaller_videos_are_shown_pixel_by_pixel(tmp_path: Path) -> None:
    high = torch.rand(1, 3, 3, 8, 12) * 2 - 1
    picture = write_comparison(tmp_path / "a" / "clip", {"input": high[..., ::2, ::2], "truth": high})
    levels = ((high[0, :, 1].permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()
    np.testing.assert_array_equal(picture[:, 12:], levels)
    np.testing.assert_array_equal(picture[:, :12], levels[::2, ::2].repeat(2, 0).repeat(2, 1))


def test_curves_go_where_the_numbers_go(tmp_path: Path) -> None:
    lines = [{"step": step, "loss": loss, "seconds": 1.0} for step, loss in ((0, 4.0), (5, 4.0), (10, 1.0))]
    lines += [{"step": 10, "validation/psnr": 30.0}, {"step": 11, "loss": float("inf")}]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    draw_curves(tmp_path / "log.jsonl", tmp_path / "curves.png")
    pixels = np.asarray(Image.open(tmp_path / "curves.png")).astype(int)
    blue = pixels[..., 2] - pixels[..., 0] > 80
    panels = [blue[:, column * 360 : (column + 1) * 360] for column in range(3)]
    assert [panel.any() for panel in panels] == [True, True, False]  # the measure, then the loss; not the seconds
    drawn = np.nonzero(panels[1].any(axis=0))[0]
    columns = np.quantile(drawn, (0.05, 0.4, 0.98)).astype(int)
    heights = [np.nonzero(panels[1][:, column])[0].mean() for column in columns]
    assert heights[0] == pytest.approx(heights[1], abs=1) and heights[2] > heights[1] + 100


def test_wandb_gets_numbers_and_pictures(
    train: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    for variable, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.chdir(tmp_path)
    folder = train("run", max_train_steps=2, report_to="wandb")
    (offline,) = (folder / "wandb").glob("offline-run-*")  # where it is not uploaded with the weights
    assert not (tmp_path / "wandb").exists()
    assert len(list((offline / "files" / "media" / "images" / "validation").glob("clip-0_*.png"))) == 2
    (recorded,) = offline.glob("*.wandb")
    assert b"validation/psnr" in recorded.read_bytes()


# ---- 8-bit Adam


def test_8_bit_adam_resumes(train: Callable[..., Path]) -> None:
    pytest.importorskip("bitsandbytes", minversion="0.50")  # older ones need a GPU
    wide = {"decoder_channels": [32]}  # smaller tensors have moments in 32 bits
    whole = train("whole", "--use_8bit_adam", config=wide)
    first = str(whole / "checkpoint-2")
    resumed = train("resumed", "--use_8bit_adam", "--resume_from_checkpoint", first, config=wide)
    assert difference(resumed / TRAINED, whole / TRAINED) == 0
    with pytest.raises(ValueError, match="'.*checkpoint-2' was written with --use_8bit_adam: resume it likewise"):
        train("other", "--resume_from_checkpoint", first, config=wide)
    plain = train("plain", config=wide)
    assert difference(plain / TRAINED, whole / TRAINED) > 1e-4  # it was in 8 bits indeed
    with pytest.raises(ValueError, match="was written without --use_8bit_adam"):
        first = str(plain / "checkpoint-2")
        train("other", "--use_8bit_adam", "--resume_from_checkpoint", first, config=wide)


def test_8_bit_adam_that_does_not_work_on_the_device(
    train: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optim = ModuleType("bitsandbytes.optim")  # without the optimizer, as a broken installation
    monkeypatch.setitem(sys.modules, "bitsandbytes", ModuleType("bitsandbytes"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", optim)
    monkeypatch.setattr("ultraflash_diffusers.training.loop.accelerator.is_bitsandbytes_available", lambda: True)
    with pytest.raises(RuntimeError, match="--use_8bit_adam: the installed bitsandbytes cannot train on the device"):
        train("run", "--use_8bit_adam")
    assert not list((tmp_path / "run").iterdir())


# ---- bad input


def test_a_tracker_that_is_not_installed(train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
    with pytest.raises(ImportError, match="--report_to wandb needs wandb, which is not installed"):
        train("run", report_to="wandb")


def test_8_bit_adam_needs_bitsandbytes(train: Callable[..., Path]) -> None:
    if importlib.util.find_spec("bitsandbytes") is not None:
        pytest.skip("bitsandbytes is installed")
    with pytest.raises(ImportError, match="--use_8bit_adam needs bitsandbytes"):
        train("run", "--use_8bit_adam")


def test_sharding_that_accelerate_would_ignore_is_refused(
    train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    try:
        with pytest.raises(ValueError, match="shards on several GPUs only"):
            train("run")
    finally:
        AcceleratorState._reset_state()
        PartialState._reset_state()
