# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Planned memory and work of a training step at the paper's sizes, as a table, by the scripts' own dry runs.

    python -m benchmarks.training_memory                    # all recipes, some minutes
    python -m benchmarks.training_memory --recipes lora     # one of them

Networks are those of the classes' defaults: the 1.3 B transformers, the Tiny autoencoder, the upsampler. One clip a
process, bfloat16 autocast, gradient checkpointing; several processes share by FSDP2.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel

from ultraflash_diffusers import CausalLatentUpsampler, CausalWanTransformer, HRAutoencoder, UltraFlashSRTransformer
from ultraflash_diffusers.training.starting_points.text_encoding import TextEncoding, make_text_encoder, make_tokenizer

SCRIPTS = Path(__file__).parents[1] / "training"
COMMON = "--train_data_dir none --output_dir none --dry_run --mixed_precision bf16 --train_batch_size 1"


@dataclass(frozen=True)
class Recipe:
    """A script, its flags with {nets} for the networks' folder, the crop, processes and GiB of each."""

    script: str
    flags: str
    crop: str
    processes: int
    gib: float


_SR = "--autoencoder {nets} --latent_upsampler {nets}"
_SELF_FORCING = (
    "--autoencoder {nets} --pretrained_model_name_or_path {nets} --text_encoder {nets} --objective self_forcing "
    "--sample_chunks 7"
)
RECIPES = {
    "lora": Recipe(
        "train_sr",
        f"{_SR} --pretrained_model_name_or_path {{nets}} --objective flow_matching --rank 32",
        "81x480x832",
        1,
        24,
    ),
    "teacher": Recipe(
        "train_sr",
        f"{_SR} --pretrained_model_name_or_path {{nets}} --objective flow_matching --use_ema",
        "81x960x1664",
        8,
        80,
    ),
    "teacher_2k": Recipe(
        "train_sr",
        f"{_SR} --pretrained_model_name_or_path {{nets}} --objective flow_matching --use_ema --ulysses_degree 4 "
        "--ring_degree 2",
        "81x1440x2496",
        8,
        80,
    ),
    "distillation": Recipe(
        "distill_sr",
        f"{_SR} --teacher {{nets}} --guidance_drops condition --decoded_latents 3 --use_ema",
        "81x960x1664",
        8,
        80,
    ),
    "self_forcing": Recipe("train_generator", _SELF_FORCING, "81x480x832", 8, 80),
    "self_forcing_lora": Recipe("train_generator", f"{_SELF_FORCING} --rank 128", "81x480x832", 8, 80),
    "self_forcing_lora_14b": Recipe(
        "train_generator", f"{_SELF_FORCING} --rank 128 --teacher {{nets}}/wan_14b", "81x480x832", 8, 80
    ),
}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    return parser.parse_args(arguments)


def save_configurations(folder: Path) -> None:
    """Writes the networks' configurations, and a small text encoder, which a plan does not depend on."""
    with torch.device("meta"):
        networks = {
            "transformer": UltraFlashSRTransformer(use_sparse_attention=False),
            "latent_upsampler": CausalLatentUpsampler(),
            "autoencoder": HRAutoencoder(),
            "generator_transformer": CausalWanTransformer(),
            "wan_14b": WanTransformer3DModel(),
        }
    for name, network in networks.items():
        network.save_config(folder / name)
    tokenizer = make_tokenizer([])
    text_dim = networks["generator_transformer"].config.text_dim
    TextEncoding(make_text_encoder(len(tokenizer), text_dim, 1), tokenizer, 512).save_pretrained(folder)


def plan(recipe: Recipe, nets: Path) -> tuple[dict[str, float], str]:
    """The numbers of a dry run, and what it said."""
    specification = importlib.util.spec_from_file_location(recipe.script, SCRIPTS / f"{recipe.script}.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    limits = f"--gradient_checkpointing --plan_processes {recipe.processes} --plan_memory {recipe.gib}"
    flags = f"{COMMON} {limits} --crops {recipe.crop} {recipe.flags.format(nets=nets)}"
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        numbers = module.main(module.parse_arguments(flags.split()))
    return numbers, said.getvalue()


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    print("| recipe | crop | processes | GiB of each | fits into | TFLOP a step | s at 40 % of an H100 |")
    print("|---|---|---:|---:|---:|---:|---:|")
    details = []
    with tempfile.TemporaryDirectory() as folder:
        save_configurations(Path(folder))
        for name in options.recipes:
            recipe = RECIPES[name]
            numbers, said = plan(recipe, Path(folder))
            fits = f"{recipe.gib:g}" if " fits into" in said else f"not {recipe.gib:g}"
            cells = (recipe.crop, recipe.processes, f"{numbers['gib']:.1f}", fits)
            work = (f"{numbers['tflop']:.0f}", f"{numbers['seconds']:.1f}")
            print(f"| {name} | {' | '.join(map(str, (*cells, *work)))} |", flush=True)
            details.append(f"{name}: {said}")
    print("", *details, sep="\n")


if __name__ == "__main__":
    main()
