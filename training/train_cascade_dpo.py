# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Tunes the one-step super-resolution transformer by preferences, on roll-outs of the whole streaming cascade.

    python training/train_cascade_dpo.py --pretrained_model_name_or_path PIPELINE --teacher outputs/sr_teacher \
        --train_data_dir clips --validation_data_dir held_out --output_dir outputs/dpo
    python training/train_cascade_dpo.py --pretrained_model_name_or_path PIPELINE --preferred best_of \
        --prompts prompts.txt --output_dir outputs/dpo
"""

from __future__ import annotations

import argparse
from pathlib import Path

from accelerate.utils import set_seed

from ultraflash_diffusers.training.data.inputs import cache_folder
from ultraflash_diffusers.training.data.planned import planned_rollouts
from ultraflash_diffusers.training.data.prompts import Prompts
from ultraflash_diffusers.training.loop.accelerator import make_accelerator
from ultraflash_diffusers.training.loop.arguments import add_lora_arguments, add_reward_arguments, training_parser
from ultraflash_diffusers.training.loop.command_line import run_script
from ultraflash_diffusers.training.loop.memory_plan import dry_run
from ultraflash_diffusers.training.loop.train import train
from ultraflash_diffusers.training.processes import local_main_process_first
from ultraflash_diffusers.training.settings import add_settings, complete_settings, read_settings
from ultraflash_diffusers.training.stages.preference import (
    PreferenceObjective,
    PreferenceTraining,
    load_pipeline,
    load_reference,
    load_rollouts,
)
from ultraflash_diffusers.training.stages.preference_pairs import PairSettings, load_pairs
from ultraflash_diffusers.training.starting_points.networks import without_weights


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = training_parser(
        "Tunes the super-resolution transformer by preferences.",
        crops="33x192x256",
        learning_rate=1e-6,
        takes_prompts=True,
        degrades=True,
    )
    networks = parser.add_argument_group("networks")
    networks.add_argument(
        "--pretrained_model_name_or_path", required=True, help="folder or repository of the pipeline to roll out"
    )
    networks.add_argument(
        "--transformer", help="folder or repository of the transformer to tune (Phase I); the pipeline's by default"
    )
    networks.add_argument(
        "--reference",
        help="folder or repository of the Phase I transformer, where the one to tune is beyond it; itself by default",
    )
    networks.add_argument("--teacher", help="folder or repository of the stronger, multi-step transformer")
    add_lora_arguments(networks)
    add_settings(parser, PreferenceObjective, title="objective")
    add_settings(parser, PairSettings, title="pairs")
    add_reward_arguments(networks, default=["packaged"])
    parser.add_argument(
        "--validation_prompts", type=Path, help="with --prompts: text file of held-out ones; no validation without it"
    )
    parsed = parser.parse_args(arguments)
    complete_settings(parser, parsed, PreferenceObjective)
    complete_settings(parser, parsed, PairSettings)
    _check(parser, parsed)
    return parsed


def _check(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> None:
    """Refuses arguments that contradict each other."""
    if (parsed.preferred == "teacher") != (parsed.teacher is not None):
        parser.error(f"--preferred {parsed.preferred} {'needs' if parsed.teacher is None else 'has no'} --teacher")
    if parsed.rank is not None and parsed.reference is not None:
        parser.error("--reference: with --rank the reference is the network without its LoRA layers")
    if parsed.prompts is None and parsed.validation_prompts is not None:
        parser.error("--validation_prompts needs --prompts")
    if parsed.prompts is not None and parsed.validation_data_dir is not None:
        parser.error("--prompts: roll-outs are validated on --validation_prompts, not on --validation_data_dir")


def main(arguments: argparse.Namespace) -> dict[str, float]:
    set_seed(arguments.seed)
    objective = read_settings(arguments, PreferenceObjective)
    with without_weights(arguments.dry_run):
        pipe = load_pipeline(arguments)
        pairs = load_pairs(arguments, pipe)
        reference = load_reference(arguments, pipe)
    if arguments.dry_run:
        stage = PreferenceTraining(pipe, pairs, Prompts.none(pipe.transformer), objective, reference)
        return dry_run(stage, planned_rollouts(arguments, pipe), arguments)
    accelerator = make_accelerator(arguments)
    dataset, validation, texts = load_rollouts(arguments, accelerator, pipe)
    if pipe.text_encoder is not None:
        pipe.text_encoder.to(accelerator.device)
    with local_main_process_first(accelerator):
        prompts = Prompts.embed(texts, pipe, cache_folder(arguments))
    # its work is done, and it may be the largest network of all
    pipe.register_modules(text_encoder=None, tokenizer=None)
    stage = PreferenceTraining(pipe, pairs, prompts, objective, reference)
    return train(stage, dataset, validation, arguments, accelerator)


if __name__ == "__main__":
    run_script(main, parse_arguments)
