# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The accelerator that a command line asks for, and what it cannot be."""

from __future__ import annotations

import argparse
import os
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    parse_flag_from_env,
)
from diffusers import ContextParallelConfig
from diffusers.utils import is_bitsandbytes_available
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from ...models.wan_backbone import WanBackbone
from .hub import create_repository


def make_accelerator(arguments: argparse.Namespace, leaves_out_parameters: bool = False) -> Accelerator:
    """Makes the accelerator that the arguments ask for, the output folder and, to push to, the repository.

    Args:
        arguments (`argparse.Namespace`): of [`~ultraflash_diffusers.training.loop.arguments.training_parser`].
        leaves_out_parameters (`bool`, *optional*, defaults to `False`): some batches give some of the trained
            parameters no gradient, for which distributed training has to look.

    Raises:
        ImportError: 8-bit Adam without bitsandbytes, or a tracker that is not installed.
        RuntimeError: 8-bit Adam that the installed bitsandbytes does not have for this device.
        ValueError: the launcher started several processes that do not know of each other, or in a way that the loop
            does not support.
    """
    if arguments.use_8bit_adam and not is_bitsandbytes_available():
        raise ImportError("--use_8bit_adam needs bitsandbytes, which is not installed: `pip install bitsandbytes`")
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    folders = ProjectConfiguration(project_dir=str(arguments.output_dir), logging_dir=str(arguments.output_dir))
    # DeepSpeed's own half precision would convert the weights; the loop's is autocast everywhere
    weights_stay = parse_flag_from_env("ACCELERATE_USE_DEEPSPEED")
    accelerator = Accelerator(
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
        mixed_precision="no" if weights_stay else arguments.mixed_precision,
        log_with=None if arguments.report_to == "none" else arguments.report_to,
        project_config=folders,
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=leaves_out_parameters),
            InitProcessGroupKwargs(timeout=timedelta(seconds=arguments.process_timeout)),
        ],
    )
    if arguments.report_to != "none" and not accelerator.log_with:  # of which accelerate only warns
        name = arguments.report_to
        raise ImportError(f"--report_to {name} needs {name}, which is not installed: `pip install {name}`")
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != accelerator.num_processes:
        # without a GPU, torchrun's processes would all train alone, and write to the same folder
        raise ValueError(
            f"{launched} processes were launched, but each would train alone: use `accelerate launch`, or "
            "set ACCELERATE_USE_CPU=true where there is no GPU"
        )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        _configure_deepspeed(accelerator, arguments)
    if parse_flag_from_env("ACCELERATE_USE_FSDP") and accelerator.distributed_type != DistributedType.FSDP:
        raise ValueError("FSDP was configured, but accelerate shards on several GPUs only: use data parallelism here")
    if accelerator.distributed_type == DistributedType.FSDP:
        if not accelerator.is_fsdp2:
            raise ValueError("of FSDP, only version 2 is supported: set `fsdp_version: 2` in the accelerate config")
        if arguments.use_8bit_adam:
            raise ValueError("--use_8bit_adam does not work on FSDP's sharded parameters: leave it out")
        accelerator.state.fsdp_plugin.mixed_precision_policy = None  # likewise, but for layers: `shard_layers`
    if arguments.use_8bit_adam:
        _check_8bit_adam(accelerator.device)
    if arguments.push_to_hub and accelerator.is_main_process:
        # before training, so that a missing login shows at once
        arguments.hub_model_id = create_repository(arguments.hub_model_id, arguments.output_dir)
    return accelerator


def share_tokens(stage: nn.Module, arguments: argparse.Namespace, processes: int, device: torch.device) -> int:
    """Has neighbouring processes share the tokens of all transformers, as the arguments ask.

    Args:
        stage (`nn.Module`): whose transformers they are.
        arguments (`argparse.Namespace`): with `ring_degree` and `ulysses_degree`.
        processes (`int`): how many there are.
        device (`torch.device`): where the stage will be.

    Returns:
        `int`: how many processes work on a batch together.

    Raises:
        ValueError: degrees that do not divide the processes, or do not fit a transformer, or no transformer.
    """
    ring, ulysses = arguments.ring_degree, arguments.ulysses_degree
    degrees = f"--ring_degree {ring} --ulysses_degree {ulysses}"
    if ring * ulysses == 1:
        return 1
    if processes % (ring * ulysses):
        raise ValueError(f"{degrees}: {ring * ulysses} processes share a clip, but there are {processes} in all")
    networks = [network for network in stage.modules() if isinstance(network, WanBackbone)]
    if not networks:
        raise ValueError(f"{degrees}: this script has no transformer whose tokens could be shared")
    sizes = (processes // (ring * ulysses), ring, ulysses)
    mesh = init_device_mesh(device.type, sizes, mesh_dim_names=("clips", "ring", "ulysses"))
    for network in networks:
        network.enable_parallelism(config=ContextParallelConfig(ring_degree=ring, ulysses_degree=ulysses, mesh=mesh))
    return ring * ulysses


def _check_8bit_adam(device: torch.device) -> None:
    """Takes one step of 8-bit Adam, since no property of bitsandbytes tells which devices it works on."""
    parameter = nn.Parameter(torch.zeros(4096, device=device))  # smaller ones would get moments in 32 bits
    parameter.grad = torch.zeros_like(parameter)
    try:
        from bitsandbytes.optim import AdamW8bit

        AdamW8bit([parameter]).step()
    except Exception as error:  # of many kinds, by version
        raise RuntimeError(
            f"--use_8bit_adam: the installed bitsandbytes cannot train on the device {str(device)!r} ({error}); "
            "versions before 0.50 need a GPU"
        ) from error


def _configure_deepspeed(accelerator: Accelerator, arguments: argparse.Namespace) -> None:
    """Gives DeepSpeed's engine, which does these things by itself, the values of the command line."""
    plugin = accelerator.state.deepspeed_plugin
    if plugin.zero_stage > 2:
        raise ValueError(f"ZeRO stage {plugin.zero_stage} is not supported: use stage 2 at most, or FSDP2")
    if arguments.mixed_precision == "fp16":
        raise ValueError("--mixed_precision fp16 is not supported with DeepSpeed: use bf16")
    plugin.deepspeed_config |= {
        "gradient_accumulation_steps": arguments.gradient_accumulation_steps,
        "gradient_clipping": arguments.max_grad_norm,
        "train_micro_batch_size_per_gpu": max(arguments.train_batch_size),
    }
