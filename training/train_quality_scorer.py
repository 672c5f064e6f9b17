# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Trains the no-reference quality scorer: degraded pictures rank below clean ones.

    python training/train_quality_scorer.py --train_data_dir clips --validation_data_dir held_out --resolution 384 \
        --output_dir outputs/quality_scorer --use_ema
"""

from __future__ import annotations

import argparse

from accelerate.utils import set_seed

from ultraflash_diffusers.rewards import QualityScorer
from ultraflash_diffusers.training.data.inputs import load_data
from ultraflash_diffusers.training.data.planned import planned_batch
from ultraflash_diffusers.training.loop.accelerator import make_accelerator
from ultraflash_diffusers.training.loop.arguments import add_start_arguments, training_parser
from ultraflash_diffusers.training.loop.command_line import run_script
from ultraflash_diffusers.training.loop.memory_plan import dry_run
from ultraflash_diffusers.training.loop.train import train
from ultraflash_diffusers.training.settings import add_settings, complete_settings, read_settings
from ultraflash_diffusers.training.stages.quality import PlannedQualityTraining, QualityObjective, QualityTraining
from ultraflash_diffusers.training.starting_points.networks import start_network, without_weights


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = training_parser("Trains the quality scorer.", crops="1x288x288", learning_rate=1e-3)
    parser.set_defaults(train_batch_size=[16])
    add_start_arguments(parser, "QualityScorer", required=False)
    add_settings(parser, QualityObjective, title="objective")
    parsed = parser.parse_args(arguments)
    complete_settings(parser, parsed, QualityObjective)
    return parsed


def main(arguments: argparse.Namespace) -> dict[str, float]:
    set_seed(arguments.seed)
    with without_weights(arguments.dry_run):
        scorer = start_network(QualityScorer, arguments, "quality_scorer")
    if arguments.size < scorer.smallest_size:
        raise ValueError(f"--size must be at least {scorer.smallest_size} for this network, got {arguments.size}")
    objective = read_settings(arguments, QualityObjective)
    if arguments.dry_run:
        return dry_run(PlannedQualityTraining(scorer, objective), planned_batch(arguments), arguments)
    accelerator = make_accelerator(arguments)
    dataset, validation = load_data(arguments, accelerator, spatial=1, temporal=1, with_flow=False)
    return train(QualityTraining(scorer, objective), dataset, validation, arguments, accelerator)


if __name__ == "__main__":
    run_script(main, parse_arguments)
