# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Runs of the training scripts in processes of their own: one, two that share the work, and one that is killed.

    python -m helpers.distributed_runs FOLDER

The processes are forked, which spares each of them the imports, and write to folders of their own in FOLDER.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env
from torch.nn.modules.module import register_module_forward_hook

from helpers.tiny import make_tiny_pipeline
from helpers.training_runs import AUTOENCODER, GENERATOR, SCRIPTS, TRANSFORMER, UPSAMPLER, run, texture, write_video
from ultraflash_diffusers import CausalLatentUpsampler, CausalWanTransformer, HRAutoencoder, UltraFlashSRTransformer
from ultraflash_diffusers.training.starting_points.text_encoding import TextEncoding, make_text_encoder, make_tokenizer

STEPS = 4
KILLED = 9


def prepare_material(folder: Path) -> None:
    """Clips and networks with random weights."""
    for name, seeds in {"train": (1, 2, 3), "held_out": (7,)}.items():
        (folder / name).mkdir(parents=True)
        for seed in seeds:
            write_video(folder / name / f"clip_{seed}.mp4", texture(seed))
    torch.manual_seed(0)
    HRAutoencoder(**AUTOENCODER).save_pretrained(folder / "autoencoder")
    CausalLatentUpsampler(**UPSAMPLER).save_pretrained(folder / "upsampler")
    UltraFlashSRTransformer(**TRANSFORMER).save_pretrained(folder / "transformer")
    networks = {
        "transformer": UltraFlashSRTransformer(**TRANSFORMER),
        "latent_upsampler": CausalLatentUpsampler(**UPSAMPLER),
        "autoencoder": HRAutoencoder(**AUTOENCODER),
    }
    make_tiny_pipeline(text=False, generator=False, group_frames=2, **networks).save_pretrained(folder / "pipeline")
    CausalWanTransformer(**GENERATOR).save_pretrained(folder / "generator" / "generator_transformer")
    tokenizer = make_tokenizer(["ball"])
    text_encoder = make_text_encoder(len(tokenizer), GENERATOR["text_dim"])
    TextEncoding(text_encoder, tokenizer, GENERATOR["text_length"]).save_pretrained(folder / "generator")


def train_sr(material: Path, output_dir: Path, *flags: str, **options: Any) -> None:
    networks = ["--pretrained_model_name_or_path", f"{material}/transformer"]
    networks += ["--latent_upsampler", f"{material}/upsampler", "--autoencoder", f"{material}/autoencoder"]
    base = {"max_train_steps": STEPS, "checkpointing_steps": 2, "temporal_loss": "difference", "learning_rate": 5e-3}
    # without texts all keys of the attention to them are equal: the gradients of its queries and keys are zero but for
    # rounding (1e-10 here), which differs by the order of sums, and which Adam would enlarge to whole steps
    base["adam_epsilon"] = 1e-6
    run("train_sr", material, output_dir, *networks, *flags, **base | options)


def train_upsampler_and_decoder(material: Path, output_dir: Path, **options: Any) -> None:
    """Some batches leave out the upsampler."""
    networks = ("--pretrained_model_name_or_path", f"{material}/upsampler", "--autoencoder", f"{material}/autoencoder")
    options = {"reconstruction_every": 2, "color_correction_levels": 1, "temporal_loss": "difference"} | options
    run("train_latent_upsampler", material, output_dir, *networks, "--train_decoder", max_train_steps=8, **options)


def tune_by_preferences(material: Path, output_dir: Path, **options: Any) -> None:
    """Crops of two sizes, groups at random places, and two passes a margin."""
    cascade = ["--pretrained_model_name_or_path", f"{material}/pipeline", "--teacher", f"{material}/transformer"]
    base = {"max_train_steps": STEPS, "crops": "9x32x32 5x32x48", "train_batch_size": 1, "num_inference_steps": 2}
    base |= {"teacher_steps": 1, "learning_rate": 1e-3, "adam_epsilon": 1e-6}
    run("train_cascade_dpo", material, output_dir, *cascade, **base | options)


def distil(material: Path, output_dir: Path, **options: Any) -> None:
    """LoRA layers of student and fake score by turns, on crops of two sizes."""
    networks = ["--teacher", f"{material}/transformer", "--autoencoder", f"{material}/autoencoder"]
    networks += ["--latent_upsampler", f"{material}/upsampler", "--guidance_drops", "condition"]
    base = {"max_train_steps": STEPS, "crops": "5x32x32 9x32x48", "train_batch_size": 1, "fake_updates": 1}
    base |= {"teacher_steps": 1, "rank": 2, "learning_rate": 5e-3, "adam_epsilon": 1e-6}
    run("distill_sr", material, output_dir, *networks, **base | options)


def force_itself(material: Path, output_dir: Path, **options: Any) -> None:
    """Rollouts of as many steps as each optimiser's step draws."""
    generator = material / "generator"
    networks = ["--pretrained_model_name_or_path", str(generator), "--text_encoder", str(generator)]
    networks += ["--autoencoder", f"{material}/autoencoder"]
    base = {"objective": "self_forcing", "fake_updates": 1, "max_train_steps": STEPS, "adam_epsilon": 1e-6}
    base |= {"crops": "9x32x48", "train_batch_size": 1, "validation_frames": 9}
    run("train_generator", material, output_dir, *networks, **base | options)


def force_diffusion(material: Path, output_dir: Path, **options: Any) -> None:
    """Own contexts at the steps that draw them, and a text encoder that stays as it is."""
    generator = material / "generator"
    networks = ["--pretrained_model_name_or_path", str(generator), "--text_encoder", str(generator)]
    networks += ["--autoencoder", f"{material}/autoencoder"]
    base: dict[str, Any] = {"max_train_steps": STEPS, "own_context": 0.5, "adam_epsilon": 1e-6, "learning_rate": 1e-3}
    base |= {"crops": "9x32x48", "train_batch_size": 1, "validation_frames": 9}
    run("train_generator", material, output_dir, *networks, **base | options)


def train_autoencoder(material: Path, output_dir: Path, **options: Any) -> None:
    """Crops of two sizes."""
    base = {"max_train_steps": STEPS, "crops": "5x32x32 9x32x48", "train_batch_size": 1, "adam_epsilon": 1e-6}
    network = ("--pretrained_model_name_or_path", f"{material}/autoencoder", "--temporal_loss", "difference")
    run("train_hr_autoencoder", material, output_dir, *network, **base | options)


def train_scorer(material: Path, output_dir: Path, **options: Any) -> None:
    """Pictures that are degraded as they are drawn."""
    base = {"max_train_steps": STEPS, "crops": "1x48x48", "size": 32, "train_batch_size": 2, "adam_epsilon": 1e-6}
    run("train_quality_scorer", material, output_dir, **base | {"validation_frames": 1} | options)


def lost(material: Path, output_dir: Path, number: int) -> None:
    """The second process gets a signal at its third step; the first one writes what it raises."""
    steps: list[None] = []

    def lose(module: torch.nn.Module, *_: object) -> None:
        if type(module).__name__ == "OneStepTraining":
            steps.append(None)
            if len(steps) == 3 and os.environ["RANK"] == "1":
                os.kill(os.getpid(), number)

    register_module_forward_hook(lose)
    try:
        train_sr(material, output_dir, process_timeout=5)
    except RuntimeError as error:
        (output_dir / "error.txt").write_text(str(error))
        raise


def launch_and_lose(material: Path, output_dir: Path, number: int) -> float:
    """Runs two processes, of which a signal takes one; returns the seconds until the other one has ended."""
    survivor, casualty = _start(2, lost, (material, output_dir, number), {})
    started = time.monotonic()
    survivor.join(120)
    seconds = time.monotonic() - started
    for process in (survivor, casualty):
        process.kill()
        process.join()
    return seconds


def killed_in_mid_save(material: Path, output_dir: Path, **options: Any) -> None:
    def kill_before_the_last_checkpoint_counts(event: str, arguments: tuple) -> None:
        if event == "os.rename" and str(arguments[0]).endswith(f"checkpoint-{STEPS}.tmp"):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(kill_before_the_last_checkpoint_counts)
    train_sr(material, output_dir, "--use_ema", **options)


def fsdp_environment() -> dict[str, str]:
    """What `accelerate launch` makes of the shipped configuration."""
    arguments = ["--config_file", str(SCRIPTS / "accelerate" / "fsdp2.yaml"), "script.py"]
    settings, _, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    return {name: value for name, value in prepare_multi_gpu_env(settings).items() if "FSDP" in name}


def launch(processes: int, train: Callable[..., None], *arguments: Any, sharded: bool = False, **options: Any) -> None:
    """Runs a function in forked processes that know of each other, and checks how they ended."""
    started = _start(processes, train, arguments, options, sharded)
    for process in started:
        process.join()
    expected = -KILLED if train is killed_in_mid_save else 0
    if any(process.exitcode != expected for process in started):
        raise RuntimeError(f"{train.__name__} ended with {[process.exitcode for process in started]}: {arguments}")


def _start(
    processes: int, train: Callable[..., None], arguments: tuple, options: dict, sharded: bool = False
) -> Sequence[multiprocessing.process.BaseProcess]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    started = [
        context.Process(target=_work, args=(rank, processes, port, sharded, train, arguments, options))
        for rank in range(processes)
    ]
    for process in started:
        process.start()
    return started


def _work(
    rank: int, processes: int, port: int, sharded: bool, train: Callable[..., None], arguments: tuple, options: dict
) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    if sharded:
        os.environ |= fsdp_environment()
        # torch shards on CPUs as it does on GPUs; accelerate only looks for the latter
        PartialState(cpu=True)
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    code = 0
    try:
        train(*arguments, **options)
    except BaseException:
        traceback.print_exc()
        code = 1
    os._exit(code)  # without what the parent wants to do at its end


ONCE_EACH = (tune_by_preferences, distil, force_itself, force_diffusion, train_autoencoder, train_scorer)


def resumed(folder: Path, name: str, of: str) -> Path:
    """A new output folder with the first checkpoint of another one."""
    shutil.copytree(folder / of / "checkpoint-2", folder / name / "checkpoint-2")
    return folder / name


def main(folder: Path) -> None:
    material, onward = folder / "material", ("--use_ema", "--resume_from_checkpoint", "latest")
    prepare_material(material)
    alone: dict[str, Any] = {"gradient_accumulation_steps": 2}
    launch(1, train_sr, material, folder / "single", "--use_ema", **alone)
    launch(2, train_sr, material, folder / "ddp", "--use_ema")
    launch(2, train_sr, material, folder / "fsdp", "--use_ema", sharded=True)
    launch(2, train_sr, material, resumed(folder, "fsdp_resumed", "fsdp"), *onward, sharded=True)
    launch(1, train_sr, material, resumed(folder, "fsdp_on_fewer", "fsdp"), *onward, sharded=True, **alone)
    launch(1, train_sr, material, folder / "undivided", "--use_ema")
    launch(2, train_sr, material, folder / "shared", "--use_ema", ulysses_degree=2)
    launch(2, train_sr, material, folder / "fsdp_shared", "--use_ema", sharded=True, ulysses_degree=2)
    lora: dict[str, Any] = {"rank": 2, "mixed_precision": "bf16"}
    for name, processes, options in (("single_lora", 1, alone), ("fsdp_lora", 2, {})):
        launch(processes, train_sr, material, folder / name, sharded=processes > 1, **lora, **options)
    for name, processes, options in (("single_mixed", 1, alone), ("ddp_mixed", 2, {})):
        launch(processes, train_upsampler_and_decoder, material, folder / name, **options)
    for train in ONCE_EACH:
        launch(1, train, material, folder / f"single_{train.__name__}", **alone)
        launch(2, train, material, folder / f"fsdp_{train.__name__}", sharded=True)
    launch(2, train_upsampler_and_decoder, material, folder / "fsdp_mixed", sharded=True)
    for number in (signal.SIGKILL, signal.SIGSTOP):
        seconds = launch_and_lose(material, folder / f"lost_{number.name}", number)
        (folder / f"lost_{number.name}" / "seconds.txt").write_text(str(seconds))
    launch(1, killed_in_mid_save, material, folder / "killed", **alone)
    shutil.copytree(folder / "killed", folder / "after_kill")
    launch(1, train_sr, material, folder / "after_kill", *onward, **alone)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
