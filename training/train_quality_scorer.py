# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Trains the no-reference quality scorer: degraded pictures rank below clean ones.

    python training/train_quality_scorer.py --train_data_dir clips --validation_data_dir held_out --resolution 384 \
        --output_dir outputs/quality_scorer --use_ema
"""

from __future__ import annotations

import argparse
from pathlib import Path

from accelerate.utils import set_seed

from ultraflash_diffusers.rewards import QualityScorer
from ultraflash_diffusers.training.data.inputs import load_data
from ultraflash_diffusers.training.loop.arguments import non_negative, positive, share, training_parser
from ultraflash_diffusers.training.loop.train import make_accelerator, train
from ultraflash_diffusers.training.stages.base import load_network, new_network
from ultraflash_diffusers.training.stages.quality import QualityObjective, QualityStage


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    default = QualityObjective()
    parser = training_parser("Trains the quality scorer.", crops="1x288x288", learning_rate=1e-3)
    parser.set_defaults(train_batch_size=[16])
    network = parser.add_argument_group("network")
    start = network.add_mutually_exclusive_group()
    start.add_argument("--config", type=Path, help="JSON file of QualityScorer's arguments; its defaults without it")
    start.add_argument("--pretrained_model_name_or_path", help="folder or repository of the network to go on from")
    objective = parser.add_argument_group("objective")
    objective.add_argument(
        "--size", type=positive(int), default=default.size, help="side of the pictures that the scorer sees"
    )
    objective.add_argument("--ranking_weight", type=non_negative(float), default=default.ranking_weight, help=" ")
    objective.add_argument(
        "--calibration_weight", type=non_negative(float), default=default.calibration_weight, help=" "
    )
    objective.add_argument(
        "--mixed_share", type=share, default=default.mixed_share, help="of pictures with two degradations"
    )
    return parser.parse_args(arguments)


def load_scorer(arguments: argparse.Namespace) -> QualityScorer:
    """The network to train."""
    if arguments.config is not None:
        return new_network(QualityScorer, arguments.config)
    if arguments.pretrained_model_name_or_path is not None:
        return load_network(QualityScorer, arguments.pretrained_model_name_or_path, "quality_scorer")
    return QualityScorer()


def main(arguments: argparse.Namespace) -> dict[str, float]:
    set_seed(arguments.seed)
    scorer = load_scorer(arguments)
    if arguments.size < scorer.smallest_size:
        raise ValueError(f"--size must be at least {scorer.smallest_size} for this network, got {arguments.size}")
    accelerator = make_accelerator(arguments)
    dataset, validation = load_data(arguments, accelerator, spatial=1, temporal=1, with_flow=False)
    objective = QualityObjective(
        size=arguments.size,
        ranking_weight=arguments.ranking_weight,
        calibration_weight=arguments.calibration_weight,
        mixed_share=arguments.mixed_share,
    )
    return train(QualityStage(scorer, objective), dataset, validation, arguments, accelerator)


if __name__ == "__main__":
    main(parse_arguments())
