# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Tunes the one-step super-resolution transformer by preferences, on roll-outs of the whole streaming cascade.

    python training/train_cascade_dpo.py --pretrained_model_name_or_path PIPELINE --teacher outputs/sr_teacher \
        --train_data_dir clips --validation_data_dir held_out --output_dir outputs/dpo
    python training/train_cascade_dpo.py --pretrained_model_name_or_path PIPELINE --preferred best_of \
        --prompts prompts.txt --output_dir outputs/dpo
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from accelerate.utils import set_seed
from torch.utils.data import Dataset

from ultraflash_diffusers import UltraFlashSRTransformer, UltraFlashStreamingPipeline
from ultraflash_diffusers.rewards import load_reward
from ultraflash_diffusers.training.data.crops import Batch
from ultraflash_diffusers.training.data.inputs import cache_folder, load_data
from ultraflash_diffusers.training.data.prompts import Prompts
from ultraflash_diffusers.training.loop.arguments import (
    add_channel_weights_argument,
    non_negative,
    positive,
    share,
    training_parser,
)
from ultraflash_diffusers.training.loop.train import make_accelerator, train
from ultraflash_diffusers.training.losses.linear_decoding import check_linear_shortcut
from ultraflash_diffusers.training.stages.base import choose_trained, load_network
from ultraflash_diffusers.training.stages.preference import (
    PreferenceStage,
    PromptBatch,
    PromptDataset,
    check_reference,
    whole_groups,
)
from ultraflash_diffusers.training.stages.preference_pairs import BestOfPairs, PairMaker, TeacherPairs


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = training_parser(
        "Tunes the super-resolution transformer by preferences.",
        crops="33x192x256",
        learning_rate=1e-6,
        takes_prompts=True,
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
    networks.add_argument("--rank", type=positive(int), help="trains LoRA layers of this rank instead of the network")
    networks.add_argument(
        "--num_inference_steps", type=positive(int), default=1, help="steps of the transformer that is tuned"
    )
    _add_preference_arguments(parser)
    parsed = parser.parse_args(arguments)
    _check(parser, parsed)
    return parsed


def _add_preference_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("preference")
    add_channel_weights_argument(group)
    group.add_argument("--beta", type=positive(float), default=0.1, help="how near to the reference it stays")
    group.add_argument(
        "--preferred",
        choices=("teacher", "best_of"),
        default="teacher",
        help="a stronger model's result over ours, or the best of ours over the worst, as a reward sees them",
    )
    group.add_argument("--teacher", help="folder or repository of the stronger, multi-step transformer")
    group.add_argument("--teacher_steps", type=positive(int), default=20, help=" ")
    group.add_argument("--teacher_guidance_scale", type=non_negative(float), default=1.0, help="above 1 with guidance")
    group.add_argument("--teacher_condition_noise", type=share, default=0.5, help="share of noise in its condition")
    group.add_argument("--num_candidates", type=positive(int), default=4, help="results that best_of chooses from")
    group.add_argument(
        "--reward",
        nargs="+",
        default=["packaged"],
        help="what best_of chooses by: packaged, clip_iqa_plus, musiq, laion_aesthetic, or a quality scorer's folder",
    )
    group.add_argument("--reward_weights", type=non_negative(float), nargs="+", help="one a reward; equal by default")
    group.add_argument(
        "--validation_prompts", type=Path, help="with --prompts: text file of held-out ones; no validation without it"
    )
    group.add_argument(
        "--degraded_versions", type=positive(int), default=4, help="low-resolution versions of each training clip"
    )


def _check(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> None:
    """Refuses arguments that contradict each other."""
    if (parsed.preferred == "teacher") != (parsed.teacher is not None):
        parser.error(f"--preferred {parsed.preferred} {'needs' if parsed.teacher is None else 'has no'} --teacher")
    if parsed.preferred == "best_of" and parsed.num_candidates < 2:
        parser.error(f"--num_candidates must be 2 or more, got {parsed.num_candidates}: one cannot be better")
    if parsed.rank is not None and parsed.reference is not None:
        parser.error("--reference: with --rank the reference is the network without its LoRA layers")
    if parsed.prompts is None and parsed.validation_prompts is not None:
        parser.error("--validation_prompts needs --prompts")
    if parsed.prompts is not None and parsed.validation_data_dir is not None:
        parser.error("--prompts: roll-outs are validated on --validation_prompts, not on --validation_data_dir")


def load_pipeline(arguments: argparse.Namespace) -> UltraFlashStreamingPipeline:
    """The cascade, with the transformer that is to be tuned."""
    networks = {}
    if arguments.transformer is not None:
        transformer = load_network(UltraFlashSRTransformer, arguments.transformer, "transformer")
        networks["transformer"] = transformer.float()
    pipe = UltraFlashStreamingPipeline.from_pretrained(
        arguments.pretrained_model_name_or_path, dtype=torch.float32, **networks
    )
    if arguments.prompts is not None and (pipe.generator_transformer is None or pipe.text_encoder is None):
        raise ValueError(
            f"--prompts: the pipeline {arguments.pretrained_model_name_or_path!r} has no `generator_transformer` or "
            "no `text_encoder`: roll out from clips (--train_data_dir)"
        )
    check_linear_shortcut(arguments, arguments.pretrained_model_name_or_path, pipe.autoencoder)
    for crop in arguments.crops:
        whole_groups(pipe, crop.frames)
    whole_groups(pipe, arguments.validation_frames)
    choose_trained(pipe.transformer, arguments.rank)
    if arguments.gradient_checkpointing:
        pipe.transformer.enable_gradient_checkpointing()
    return pipe


def load_pairs(arguments: argparse.Namespace, pipe: UltraFlashStreamingPipeline) -> PairMaker:
    """What says which result is better."""
    if arguments.preferred == "best_of":
        return BestOfPairs(load_reward(arguments.reward, arguments.reward_weights), arguments.num_candidates)
    teacher = load_network(UltraFlashSRTransformer, arguments.teacher, "transformer").float()
    for name in ("out_channels", "text_dim", "text_length"):
        theirs, ours = teacher.config[name], pipe.transformer.config[name]
        if theirs != ours:
            raise ValueError(f"--teacher {arguments.teacher!r} has `{name}` {theirs}, the transformer {ours}")
    return TeacherPairs(
        teacher, arguments.teacher_steps, arguments.teacher_guidance_scale, arguments.teacher_condition_noise
    )


def load_prompts(arguments: argparse.Namespace, spatial: int, temporal: int) -> tuple[Dataset, list[PromptBatch]]:
    """The prompts to train and to validate on."""
    for crop in arguments.crops:
        crop.check(spatial, temporal)
    if len({*arguments.train_batch_size}) > 1 or arguments.crop_weights is not None:
        raise ValueError("--prompts: all sizes have one --train_batch_size and are drawn equally often")
    dataset = PromptDataset(_lines(arguments.prompts), arguments.crops, arguments.train_batch_size[0], arguments.seed)
    held_out = [] if arguments.validation_prompts is None else _lines(arguments.validation_prompts)
    size = arguments.crops[0]._replace(frames=arguments.validation_frames)
    return dataset, [PromptBatch([prompt], size) for prompt in held_out]


def _lines(file: Path) -> list[str]:
    return [line.strip() for line in file.read_text().splitlines() if line.strip()]


def main(arguments: argparse.Namespace) -> dict[str, float]:
    set_seed(arguments.seed)
    pipe = load_pipeline(arguments)
    pairs = load_pairs(arguments, pipe)
    reference = None
    if arguments.reference is not None:
        reference = load_network(UltraFlashSRTransformer, arguments.reference, "transformer").float()
        check_reference(reference, pipe.transformer)
    accelerator = make_accelerator(arguments)
    scale, temporal = pipe.latent_upsampler.config.scale, pipe.autoencoder.temporal_compression_ratio
    spatial = pipe.autoencoder.spatial_compression_ratio * math.lcm(scale, *pipe.transformer.config.patch_size[1:])
    dataset: Dataset
    validation: list[Batch] | list[PromptBatch]
    if arguments.prompts is not None:
        dataset, validation = load_prompts(arguments, spatial, temporal)
        texts = {*dataset.prompts}
    else:
        dataset, validation = load_data(
            arguments, accelerator, spatial, temporal, False, scale, arguments.degraded_versions
        )
        texts = {clip.text for clip in dataset.clips}
    texts |= {text for batch in validation for text in batch.texts}
    if pipe.text_encoder is not None:
        pipe.text_encoder.to(accelerator.device)
    prompts = Prompts.embed(texts, pipe, cache_folder(arguments))
    # its work is done, and it may be the largest network of all
    pipe.register_modules(text_encoder=None, tokenizer=None)
    stage = PreferenceStage(
        pipe, pairs, prompts, arguments.beta, arguments.num_inference_steps, arguments.weigh_channels, reference
    )
    return train(stage, dataset, validation, arguments, accelerator)


if __name__ == "__main__":
    main(parse_arguments())
