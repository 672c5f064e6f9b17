# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Distils a multi-step super-resolution transformer to a causal, block-sparse, one-step one (the paper's Phase I).

    python training/distill_sr.py --teacher outputs/sr_teacher --autoencoder outputs/autoencoder \
        --latent_upsampler outputs/upsampler --train_data_dir clips --validation_data_dir held_out \
        --guidance_drops condition --reward packaged --output_dir outputs/sr_one_step
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace

from accelerate.utils import set_seed

from ultraflash_diffusers import CausalLatentUpsampler, HRAutoencoder, UltraFlashSRTransformer
from ultraflash_diffusers.rewards import load_reward
from ultraflash_diffusers.training.data.inputs import cache_folder, load_data
from ultraflash_diffusers.training.data.prompts import Prompts, text_pipeline
from ultraflash_diffusers.training.loop.arguments import (
    add_channel_weights_argument,
    add_color_correction_argument,
    add_decoder_arguments,
    add_pixel_loss_arguments,
    complete_decoder_arguments,
    non_negative,
    pixel_loss,
    positive,
    share,
    training_parser,
)
from ultraflash_diffusers.training.loop.train import make_accelerator, train
from ultraflash_diffusers.training.losses.distribution_matching import DistributionMatching
from ultraflash_diffusers.training.losses.linear_decoding import check_linear_shortcut
from ultraflash_diffusers.training.losses.perceptual import PERCEPTUAL_LOSSES, PerceptualLoss
from ultraflash_diffusers.training.stages.base import choose_trained, load_network
from ultraflash_diffusers.training.stages.distillation import (
    DistillationObjective,
    DistillationStage,
    check_networks,
    fake_score_of,
    sparse_student,
)
from ultraflash_diffusers.training.stages.sr import SRObjective

# the packaged scorer answers to the slightest change: in latents its gradients are some thousand times those of the
# wavelet loss, and at larger weights the student learns nothing else
PERCEPTUAL_WEIGHTS = dict.fromkeys(PERCEPTUAL_LOSSES, 0.5) | {"quality_scorer": 2e-4}
REWARD_WEIGHT = 1e-3


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = training_parser("Distils the super-resolution transformer.", crops="9x192x256", learning_rate=2e-6)
    parser.set_defaults(ema_interval=None)
    _add_network_arguments(parser)
    _add_distillation_arguments(parser)
    _add_judging_arguments(parser)
    parsed = parser.parse_args(arguments)
    _check(parser, parsed)
    _fill_in_defaults(parsed)
    return parsed


def _add_network_arguments(parser: argparse.ArgumentParser) -> None:
    networks = parser.add_argument_group("networks")
    networks.add_argument("--teacher", required=True, help="folder or repository of the multi-step transformer")
    networks.add_argument(
        "--pretrained_model_name_or_path",
        help="folder or repository of the student to go on from; the teacher's copy with sparse attention without it",
    )
    networks.add_argument("--autoencoder", required=True, help="folder or repository of the autoencoder")
    networks.add_argument("--latent_upsampler", required=True, help="folder or repository of the latent upsampler")
    networks.add_argument(
        "--text_encoder", help="pipeline folder or repository with `text_encoder` and `tokenizer`; no text without it"
    )
    networks.add_argument(
        "--rank", type=positive(int), help="trains LoRA layers of this rank, of the student and of the fake score"
    )
    add_decoder_arguments(networks)


def _add_distillation_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("distillation")
    group.add_argument("--guidance_scale", type=positive(float), default=3.5, help="of the teacher; 1 for none")
    group.add_argument(
        "--guidance_drops",
        choices=("text", "condition", "both"),
        default="text",
        help="what the teacher's unconditional prediction does without",
    )
    group.add_argument("--fake_updates", type=positive(int), default=5, help="of the fake score, for each student's")
    group.add_argument("--fake_learning_rate", type=positive(float), help="of the fake score; the same by default")
    group.add_argument(
        "--matching_levels",
        type=share,
        nargs=2,
        metavar=("LOW", "HIGH"),
        default=(0.02, 0.98),
        help="bounds of the noise levels where teacher and fake score are compared; above the size of what the "
        "condition leaves open, their predictions hardly depend on the sample",
    )
    group.add_argument("--matching_weight", type=non_negative(float), default=1.0, help="of distribution matching")
    group.add_argument(
        "--regression_steps",
        type=non_negative(int),
        default=0,
        help="first steps, which regress to the teacher's multi-step results",
    )
    group.add_argument(
        "--teacher_steps", type=positive(int), default=20, help="of the teacher, in regression and validation"
    )
    group.add_argument("--flow_shift", type=positive(float), default=1.5, help="of the teacher's steps")
    group.add_argument(
        "--condition_noise",
        type=share,
        nargs=2,
        metavar=("LOW", "HIGH"),
        default=(0.4, 0.6),
        help="bounds of the share of noise in the condition: those that the teacher was trained with",
    )
    group.add_argument(
        "--degraded_versions", type=positive(int), default=4, help="low-resolution versions of each training clip"
    )
    add_channel_weights_argument(group)


def _add_judging_arguments(parser: argparse.ArgumentParser) -> None:
    add_pixel_loss_arguments(parser, charbonnier_weight=0.0, mse_weight=0.0, temporal_weight=0.0, wavelet_weight=1.0)
    add_color_correction_argument(parser)
    group = parser.add_argument_group("judging")
    group.add_argument("--wavelet_levels", type=positive(int), default=1, help="of the wavelet loss")
    group.add_argument(
        "--decode_linearly",
        action="store_true",
        help="losses through the autoencoder's linear shortcut alone, which is cheap",
    )
    group.add_argument("--perceptual_loss", choices=PERCEPTUAL_LOSSES, help="none without it")
    group.add_argument(
        "--perceptual_weight", type=non_negative(float), help="by default 0.0002 of quality_scorer, 0.5 of others"
    )
    group.add_argument(
        "--reward",
        nargs="+",
        metavar="NAME",
        help="packaged, clip_iqa_plus, musiq, laion_aesthetic, or a folder or repository of a QualityScorer",
    )
    group.add_argument("--reward_shares", type=non_negative(float), nargs="+", help="of several; equal by default")
    group.add_argument(
        "--reward_weight", type=non_negative(float), help="0.001 with a reward by default; 0 measures it only"
    )
    group.add_argument(
        "--judged_frames", type=positive(int), default=1, help="frames of a clip that perceptual loss and reward see"
    )


def _check(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> None:
    """Refuses arguments that contradict each other."""
    complete_decoder_arguments(parser, parsed)
    if parsed.condition_noise[0] > parsed.condition_noise[1]:
        parser.error(f"--condition_noise: LOW must not be above HIGH, got {parsed.condition_noise}")
    low, high = parsed.matching_levels
    if not 0 < low < high:
        parser.error(f"--matching_levels: two rising numbers above 0, got {low} {high}")
    if parsed.guidance_scale < 1:
        parser.error(f"--guidance_scale must be at least 1, got {parsed.guidance_scale}")
    if parsed.guidance_scale > 1 and parsed.guidance_drops == "text" and parsed.text_encoder is None:
        parser.error(
            "--guidance_drops text needs --text_encoder: without texts there is no guidance by them; drop the "
            "condition, or --guidance_scale 1"
        )
    for crop in parsed.crops:
        if crop.height % 2**parsed.wavelet_levels or crop.width % 2**parsed.wavelet_levels:
            parser.error(f"--wavelet_levels {parsed.wavelet_levels}: crop {crop} cannot be halved so often")
    if parsed.reconstruction_every is not None and pixel_loss(parsed).is_empty:
        parser.error("--reconstruction_every needs a pixel loss, and all their weights are 0")
    for name, judge in (
        ("reward_weight", "reward"),
        ("reward_shares", "reward"),
        ("perceptual_weight", "perceptual_loss"),
    ):
        if vars(parsed)[name] is not None and vars(parsed)[judge] is None:
            parser.error(f"--{name} needs --{judge}")


def _fill_in_defaults(parsed: argparse.Namespace) -> None:
    """Sets what depends on other arguments, where it was not given."""
    defaults = {
        # the student changes once a cycle
        "ema_interval": parsed.fake_updates + 1,
        "perceptual_weight": PERCEPTUAL_WEIGHTS.get(parsed.perceptual_loss, 0.0),
        "reward_weight": REWARD_WEIGHT if parsed.reward is not None else 0.0,
    }
    for name, default in defaults.items():
        if vars(parsed)[name] is None:
            setattr(parsed, name, default)


def load_transformers(
    arguments: argparse.Namespace,
) -> tuple[UltraFlashSRTransformer, UltraFlashSRTransformer, UltraFlashSRTransformer]:
    """The student, the teacher and the fake score."""
    teacher = load_network(UltraFlashSRTransformer, arguments.teacher, "transformer")
    if arguments.pretrained_model_name_or_path is None:
        student = sparse_student(teacher, arguments.rank)
    else:
        student = load_network(UltraFlashSRTransformer, arguments.pretrained_model_name_or_path, "transformer")
        choose_trained(student, arguments.rank)
    check_networks(student, teacher)
    return student, teacher, fake_score_of(teacher, arguments.rank)


def sr_objective(arguments: argparse.Namespace) -> SRObjective:
    """What the arguments ask of the decoded result, and of the inputs."""
    levels = {name: vars(arguments)[name] for name in ("wavelet_levels", "color_correction_levels")}
    return SRObjective(
        pixel_loss=replace(pixel_loss(arguments), **levels),
        decode_linearly=arguments.decode_linearly,
        reconstruction_every=arguments.reconstruction_every,
        weigh_channels=arguments.weigh_channels,
        flow_shift=arguments.flow_shift,
        condition_noise=tuple(arguments.condition_noise),
    )


def distillation_objective(arguments: argparse.Namespace) -> DistillationObjective:
    """What the arguments ask the student to learn from the teacher."""
    return DistillationObjective(
        matching=DistributionMatching(arguments.guidance_scale, tuple(arguments.matching_levels)),
        guidance_drops=arguments.guidance_drops,
        fake_updates=arguments.fake_updates,
        regression_steps=arguments.regression_steps,
        teacher_steps=arguments.teacher_steps,
        matching_weight=arguments.matching_weight,
        perceptual_weight=arguments.perceptual_weight,
        reward_weight=arguments.reward_weight,
        judged_frames=arguments.judged_frames,
    )


def main(arguments: argparse.Namespace) -> dict[str, float]:
    set_seed(arguments.seed)
    autoencoder = load_network(HRAutoencoder, arguments.autoencoder, "autoencoder")
    check_linear_shortcut(arguments, arguments.autoencoder, autoencoder)
    upsampler = load_network(CausalLatentUpsampler, arguments.latent_upsampler, "latent_upsampler")
    student, teacher, fake_score = load_transformers(arguments)
    reward = None if arguments.reward is None else load_reward(arguments.reward, arguments.reward_shares)
    perceptual = None if arguments.perceptual_loss is None else PerceptualLoss(arguments.perceptual_loss)
    if arguments.gradient_checkpointing:
        for network in (student, fake_score, autoencoder):
            network.enable_gradient_checkpointing()
    accelerator = make_accelerator(arguments, leaves_out_parameters=True)
    objective, scale = sr_objective(arguments), upsampler.config.scale
    # low-resolution crops are whole latents, and high-resolution ones whole patches
    spatial = autoencoder.spatial_compression_ratio * math.lcm(scale, student.config.patch_size[1])
    dataset, validation = load_data(
        arguments,
        accelerator,
        spatial,
        autoencoder.temporal_compression_ratio,
        objective.pixel_loss.needs_flow,
        scale,
        arguments.degraded_versions,
    )
    texts = {clip.text for clip in dataset.clips} | {text for batch in validation for text in batch.texts}
    pipe = text_pipeline(arguments.text_encoder, student, upsampler, autoencoder, accelerator.device)
    stage = DistillationStage(
        student,
        teacher,
        fake_score,
        upsampler,
        autoencoder,
        Prompts.embed(texts, pipe, cache_folder(arguments)),
        objective,
        distillation_objective(arguments),
        reward,
        perceptual,
        arguments.fake_learning_rate,
        arguments.decoder_learning_rate,
    )
    del pipe  # the text encoder would take more memory than the training
    return train(stage, dataset, validation, arguments, accelerator)


if __name__ == "__main__":
    main(parse_arguments())
