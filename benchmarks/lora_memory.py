# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Memory of one LoRA step of the 1.3 B SR transformer: counted tensor by tensor without a GPU, or measured on one.

    python -m benchmarks.lora_memory                              # counted, for several lengths of clip
    python -m benchmarks.lora_memory --frames 81 --measure        # run on CUDA: torch.cuda.max_memory_allocated

A step is forward, loss, backward and AdamW with gradient checkpointing in bfloat16 autocast, one clip, dense attention
(that of `train_sr.py --pretrained_wan`), in the default 480x832 of the result. Counting runs the same step on tensors
without contents, with the kernels that PyTorch would choose on a CPU; a GPU adds its context and the allocator's
fragments. The networks before the transformer (autoencoder, upsampler) work without gradients, and are done when it
begins. Beside it stands the space on disk that clips and checkpoints take.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from ultraflash_diffusers import UltraFlashSRTransformer
from ultraflash_diffusers.profiling.fake_run import count_step
from ultraflash_diffusers.tables import markdown_table
from ultraflash_diffusers.training.starting_points.lora import LoraLayers, choose_trained

GIB = 2**30
TEMPORAL, SPATIAL = 4, 8  # compression of Wan's latents
SCALE = 2  # of the upsampler


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[9, 21, 49, 81], help="of a clip, 4 n + 1")
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=832)
    parser.add_argument("--fps", type=int, default=24, help="of the clips, for the space on disk")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--no_checkpointing", action="store_true", help="without gradient checkpointing")
    parser.add_argument("--bf16_weights", action="store_true", help="the frozen weights in bfloat16 too")
    parser.add_argument("--measure", action="store_true", help="run it on CUDA instead of counting")
    parsed = parser.parse_args(arguments)
    if any(frames % TEMPORAL != 1 for frames in parsed.frames):
        parser.error(f"--frames must be 4 n + 1, got {parsed.frames}")
    if parsed.height % 16 or parsed.width % 16:
        parser.error(f"--height and --width must be multiples of 16, got {parsed.height}x{parsed.width}")
    if parsed.measure and not torch.cuda.is_available():
        parser.error("--measure needs a CUDA device")
    return parsed


def make_transformer(options: argparse.Namespace, **config: int) -> UltraFlashSRTransformer:
    """The published network's size, frozen, with LoRA layers in float32."""
    transformer = UltraFlashSRTransformer(use_sparse_attention=False, **config)
    if options.bf16_weights:
        transformer.to(torch.bfloat16)
    choose_trained(transformer, LoraLayers(options.rank))
    for parameter in transformer.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if not options.no_checkpointing:
        transformer.enable_gradient_checkpointing()
    return transformer.train()


def step_inputs(
    transformer: UltraFlashSRTransformer, latents: Sequence[int], device: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noisy latents with their condition, noise level and text; `latents` are frames, height and width."""
    config = transformer.config
    return (
        torch.randn(1, config.in_channels, *latents, device=device, dtype=transformer.dtype),
        torch.full((1,), 500.0, device=device),
        torch.randn(1, config.text_length, config.text_dim, device=device, dtype=transformer.dtype),
    )


def step_loss(
    network: nn.Module,
    hidden_states: torch.Tensor,
    timestep: torch.Tensor,
    text: torch.Tensor,
    device: str,
) -> torch.Tensor:
    """A loss of flow matching, in mixed precision."""
    with torch.autocast(device, torch.bfloat16):
        flow = network(hidden_states, timestep, text).sample
        return F.mse_loss(flow.float(), hidden_states[:, : flow.shape[1]].float())


def count(options: argparse.Namespace, latents: Sequence[int], **config: int) -> dict[str, float]:
    """GiB at the peak of a step whose optimiser has its moments already, by what they are for."""
    with torch.device("meta"):
        transformer = make_transformer(options, **config)

    def step(network: nn.Module, faked: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        hidden_states, timestep, text = map(faked, step_inputs(transformer, latents, "meta"))
        return step_loss(network, hidden_states, timestep, text, "cpu")

    counted = count_step(transformer, step)
    trained = sum(_size(parameter) for parameter in transformer.parameters() if parameter.requires_grad)
    parts = {
        "frozen weights": sum(_size(parameter) for parameter in transformer.parameters()) - trained,
        "LoRA weights": trained,
        "LoRA gradients": trained,
        "Adam's moments": 2 * trained,
        "activations": counted.peak - trained,
    }
    return {name: size / GIB for name, size in parts.items()} | {"all": sum(parts.values()) / GIB}


def measure(options: argparse.Namespace, latents: Sequence[int], **config: int) -> float:
    """GiB that PyTorch had allocated at most during two steps on CUDA."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    with torch.device("cuda"):
        transformer = make_transformer(options, **config)
    optimizer = _optimizer(transformer)
    for _ in range(2):
        step_loss(transformer, *step_inputs(transformer, latents, "cuda"), "cuda").backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.cuda.max_memory_allocated() / GIB


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _optimizer(transformer: UltraFlashSRTransformer) -> torch.optim.Optimizer:
    return torch.optim.AdamW([parameter for parameter in transformer.parameters() if parameter.requires_grad])


def disk(options: argparse.Namespace) -> dict[str, float]:
    """MB that training keeps: of each second of a clip as it plays, and of each checkpoint.

    Decoded clips are uint8, latents float32; a checkpoint has the LoRA layers and their two moments in float32, but
    not the frozen weights.
    """
    with torch.device("meta"):
        transformer = make_transformer(options)
    trained = sum(_size(parameter) for parameter in transformer.parameters() if parameter.requires_grad)
    pixels = options.fps * options.height * options.width
    latents = pixels / (TEMPORAL * SPATIAL**2) * transformer.config.out_channels * 4
    return {
        "a second, decoded": 3 * pixels / 1e6,
        "a second, each degraded version": 3 * pixels / SCALE**2 / 1e6,
        "a second, its latents": latents / 1e6,
        "a second, latents of each degraded version": latents / SCALE**2 / 1e6,
        "a checkpoint": 3 * trained / 1e6,
    }


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    rows = []
    for frames in options.frames:
        latents = ((frames - 1) // TEMPORAL + 1, options.height // SPATIAL, options.width // SPATIAL)
        parts = {"measured": measure(options, latents)} if options.measure else count(options, latents)
        rows.append([f"{frames}", *(f"{size:.2f}" for size in parts.values())])
    where = torch.cuda.get_device_name() if options.measure else "counted"
    print(f"GiB for one clip of {options.height}x{options.width}, LoRA of rank {options.rank} ({where})\n")
    print(markdown_table(["frames", *parts], rows, text_columns=0))
    print("\nMB on disk\n")
    print(markdown_table(("what", "MB"), [(name, f"{size:.1f}") for name, size in disk(options).items()]))


if __name__ == "__main__":
    main()
