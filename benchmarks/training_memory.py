# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Planned memory and work of a training step at the paper's sizes, as a table, by the scripts' own dry runs.

    python -m benchmarks.training_memory                    # all recipes, a quarter of an hour
    python -m benchmarks.training_memory --recipes lora     # one of them

Networks are those of the classes' defaults: the 1.3 B transformers, the Tiny autoencoder, the upsampler. One clip a
process (where no more are said), bfloat16 autocast, gradient checkpointing; several processes share by FSDP2.
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
from diffusers import FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from tqdm import tqdm

from ultraflash_diffusers import (
    CausalLatentUpsampler,
    CausalWanTransformer,
    HRAutoencoder,
    UltraFlashSRTransformer,
    UltraFlashStreamingPipeline,
)
from ultraflash_diffusers.tables import markdown_table
from ultraflash_diffusers.training.starting_points.text_encoding import TextEncoding, make_text_encoder, make_tokenizer

SCRIPTS = Path(__file__).parents[1] / "training"
COMMON = "--train_data_dir none --output_dir none --dry_run --mixed_precision bf16 --gradient_checkpointing"


@dataclass(frozen=True)
class Recipe:
    """A script, its flags with {nets} for the networks' folder, the crop, processes and GiB of each, and samples."""

    script: str
    flags: str
    crop: str
    processes: int
    gib: float
    batch: int = 1


_SR = "--autoencoder {nets} --latent_upsampler {nets}"
_GENERATOR = "--autoencoder {nets} --pretrained_model_name_or_path {nets} --text_encoder {nets} --sample_chunks 7"
_SELF_FORCING = f"{_GENERATOR} --objective self_forcing"
RECIPES = {
    "scorer": Recipe("train_quality_scorer", "", "1x288x288", 1, 24, 16),
    "autoencoder": Recipe(
        "train_hr_autoencoder", "--pretrained_model_name_or_path {nets} --use_ema", "17x256x256", 1, 24, 4
    ),
    "upsampler": Recipe(
        "train_latent_upsampler",
        "--pretrained_model_name_or_path {nets} --autoencoder {nets} --use_ema",
        "17x512x512",
        1,
        24,
    ),
    "one_step": Recipe(
        "train_sr",
        f"{_SR} --pretrained_model_name_or_path {{nets}}/one_step --objective one_step --decoded_latents 3 --use_ema",
        "81x960x1664",
        8,
        80,
    ),
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
    "preference": Recipe(
        "train_cascade_dpo",
        "--pretrained_model_name_or_path {nets}/one_step --teacher {nets}",
        "81x960x1664",
        8,
        80,
    ),
    "preference_lora": Recipe(
        "train_cascade_dpo",
        "--pretrained_model_name_or_path {nets}/one_step --preferred best_of --rank 32",
        "81x960x1664",
        1,
        80,
    ),
    "forcing": Recipe(
        "train_generator",
        f"{_GENERATOR} --use_ema",
        "81x480x832",
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
        cascade = UltraFlashStreamingPipeline(
            UltraFlashSRTransformer(),
            networks["latent_upsampler"],
            networks["autoencoder"],
            FlowMatchEulerDiscreteScheduler(),
        )
    for name, network in networks.items():
        network.save_config(folder / name)
    cascade.save_config(folder / "one_step")
    for name in ("transformer", "latent_upsampler", "autoencoder", "scheduler"):
        getattr(cascade, name).save_config(folder / "one_step" / name)
    tokenizer = make_tokenizer([])
    text_dim = networks["generator_transformer"].config.text_dim
    TextEncoding(make_text_encoder(len(tokenizer), text_dim, 1), tokenizer, 512).save_pretrained(folder)


def plan(recipe: Recipe, nets: Path) -> tuple[dict[str, float], str]:
    """The numbers of a dry run, and what it said."""
    specification = importlib.util.spec_from_file_location(recipe.script, SCRIPTS / f"{recipe.script}.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    size = f"--crops {recipe.crop} --train_batch_size {recipe.batch}"
    limits = f"--plan_processes {recipe.processes} --plan_memory {recipe.gib}"
    flags = f"{COMMON} {size} {limits} {recipe.flags.format(nets=nets)}"
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        numbers = module.main(module.parse_arguments(flags.split()))
    return numbers, said.getvalue()


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    rows, details = [], []
    with tempfile.TemporaryDirectory() as folder:
        save_configurations(Path(folder))
        for name in tqdm(options.recipes, disable=None):
            recipe = RECIPES[name]
            numbers, said = plan(recipe, Path(folder))
            fits = f"{recipe.gib:g}" if " fits into" in said else f"not {recipe.gib:g}"
            cells = (name, recipe.crop, recipe.processes, f"{numbers['gib']:.1f}", fits)
            rows.append((*cells, f"{numbers['tflop']:.0f}", f"{numbers['seconds']:.2g}"))
            details.append(f"{name}: {said}")
    titles = ("recipe", "crop", "processes", "GiB of each", "fits into", "TFLOP a step", "s at 40 % of an H100")
    print(markdown_table(titles, rows, text_columns=2), "", *details, sep="\n")


if __name__ == "__main__":
    main()
