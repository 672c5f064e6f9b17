# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Trains the low-resolution text-to-video generator: diffusion forcing on clips, then self-forcing on its own.

    python training/train_generator.py --synthetic_scenes --config training/configs/small_generator.json \
        --token_rank 288 --autoencoder outputs/autoencoder --noise_levels steps --use_ema \
        --output_dir outputs/generator
    python training/train_generator.py --objective self_forcing --synthetic_scenes --token_rank 288 \
        --pretrained_model_name_or_path outputs/generator --text_encoder outputs/generator \
        --autoencoder outputs/autoencoder --cache_dir outputs/generator/cache --output_dir outputs/self_forcing
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from inspect import signature
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import WanTransformer3DModel

from ultraflash_diffusers import CausalWanTransformer, HRAutoencoder
from ultraflash_diffusers.training.data.chunks import (
    CachedLatents,
    CaptionedClip,
    ChunkBatch,
    ChunkDataset,
    Material,
    MixedLatents,
    Pool,
    channel_scale,
    claim_folder,
    encode_clips,
    pixels_of,
)
from ultraflash_diffusers.training.data.inputs import load_data
from ultraflash_diffusers.training.data.preparation import CachedClip
from ultraflash_diffusers.training.data.scenes import (
    all_scenes,
    captioned_clips,
    drawing_fingerprint,
    nameless_colors,
    recolorings,
)
from ultraflash_diffusers.training.files import weights_fingerprint
from ultraflash_diffusers.training.loop.arguments import non_negative, positive, share, training_parser
from ultraflash_diffusers.training.loop.train import make_accelerator, train
from ultraflash_diffusers.training.losses.distribution_matching import DistributionMatching
from ultraflash_diffusers.training.losses.linear_decoding import check_linear_shortcut, encode_linearly
from ultraflash_diffusers.training.stages.base import load_network, new_network
from ultraflash_diffusers.training.stages.generator import DiffusionForcingStage, ForcingObjective, SelfForcingStage
from ultraflash_diffusers.training.starting_points.text_encoding import (
    TextEncoding,
    make_text_encoder,
    make_tokenizer,
    words_of,
)
from ultraflash_diffusers.training.starting_points.token_subspace import (
    TokenSubspace,
    arguments_of,
    cut_patches,
    scale_ends,
)

Encode = Callable[[torch.Tensor], torch.Tensor]

# real clips have more to tell than scenes, and are fewer
TOKENS_OF_SCENE, TOKENS_OF_CLIP = 40, 400
# of the samples of scenes, where some are repainted
RECOLORED_SHARE = 0.6


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = training_parser(
        "Trains the text-to-video generator.", crops="45x192x320", learning_rate=1e-3, takes_scenes=True
    )
    _add_network_arguments(parser)
    _add_objective_arguments(parser)
    parsed = parser.parse_args(arguments)
    if not (parsed.synthetic_scenes or parsed.train_data_dir or parsed.dataset_name):
        parser.error("one of --train_data_dir, --dataset_name and --synthetic_scenes is needed")
    if len(parsed.crops) > 1 or len(parsed.train_batch_size) > 1:
        parser.error("--crops and --train_batch_size: the generator trains at one size")
    if parsed.nameless_colors and not (parsed.synthetic_scenes and parsed.encode_linearly and not parsed.text_encoder):
        parser.error("--nameless_colors needs --synthetic_scenes, --encode_linearly and a text encoder of its own")
    if parsed.objective == "self_forcing" and (parsed.config or not parsed.text_encoder):
        parser.error("--objective self_forcing goes on from a network and its --text_encoder")
    return parsed


def _add_network_arguments(parser: argparse.ArgumentParser) -> None:
    networks = parser.add_argument_group("networks")
    start = networks.add_mutually_exclusive_group(required=True)
    start.add_argument("--config", type=Path, help="JSON file of CausalWanTransformer's arguments, for a new network")
    start.add_argument("--pretrained_model_name_or_path", help="folder or repository of the network to go on from")
    start.add_argument("--pretrained_wan", help="folder or repository of a Wan T2V transformer to make causal")
    networks.add_argument("--autoencoder", required=True, help="folder or repository of the autoencoder")
    networks.add_argument(
        "--text_encoder",
        help="pipeline folder or repository with `text_encoder` and `tokenizer`, which stay as they are; without it "
        "a small one that knows the clips' words is trained along",
    )
    networks.add_argument("--token_rank", type=positive(int), help="trains in a subspace of tokens, which is cheap")
    networks.add_argument("--subspace_every", type=positive(int), default=3, help="it is fitted to every Nth clip")
    networks.add_argument("--encode_linearly", action="store_true", help="by the autoencoder's linear shortcut alone")


def _add_objective_arguments(parser: argparse.ArgumentParser) -> None:
    objective = parser.add_argument_group("objective")
    objective.add_argument(
        "--objective", choices=("diffusion_forcing", "self_forcing"), default="diffusion_forcing", help=" "
    )
    objective.add_argument("--sample_chunks", type=positive(int), default=2, help="chunks of a training sample")
    objective.add_argument(
        "--start_share", type=share, default=0.5, help="samples that begin where a clip does, beside those by chance"
    )
    objective.add_argument(
        "--noise_levels",
        choices=("continuous", "steps"),
        default="continuous",
        help="all, or those of the sampler's steps alone, for a narrow domain without distillation",
    )
    objective.add_argument("--first_step_share", type=share, default=0.5, help="of pure noise (steps)")
    objective.add_argument("--flow_shift", type=positive(float), default=5.0, help="of noise levels")
    objective.add_argument("--context_noise", type=share, default=0.1, help="most noise in chunks that pass for clean")
    objective.add_argument(
        "--own_context",
        type=share,
        default=0.0,
        help="batches whose newest clean chunk is the network's own prediction, against errors that add up",
    )
    objective.add_argument(
        "--nameless_colors",
        type=non_negative(int),
        default=0,
        help="repaints synthetic scenes in so many colours, so that combinations that were never shown can be made",
    )
    objective.add_argument(
        "--clip_share", type=share, default=0.35, help="samples of clips, where there are synthetic scenes too"
    )
    objective.add_argument("--text_dropout", type=share, default=0.1, help=" ")
    objective.add_argument("--detail_emphasis", type=share, default=0.0, help="0: layout first; 1: textures as well")
    objective.add_argument("--guidance_scale", type=positive(float), default=3.5, help="of the teacher (self_forcing)")
    objective.add_argument(
        "--fake_updates", type=positive(int), default=5, help="for each of the generator's (self_forcing)"
    )
    objective.add_argument(
        "--validation_scenes", type=non_negative(int), default=4, help="held-out scenes (synthetic_scenes)"
    )


def check_sizes(arguments: argparse.Namespace, autoencoder: HRAutoencoder, config: dict) -> None:
    """Refuses clips that are not whole chunks of whole patches, and networks that do not fit together."""
    if config["in_channels"] != autoencoder.config.latent_channels:
        raise ValueError(
            f"the generator's `in_channels` are {config['in_channels']}, the autoencoder has "
            f"{autoencoder.config.latent_channels} latent channels"
        )
    check_linear_shortcut(arguments, arguments.autoencoder, autoencoder)
    crop, (time, *patch) = arguments.crops[0], config["patch_size"]
    for side, pixels in zip(patch, crop[1:], strict=True):
        if pixels % (side * autoencoder.spatial_compression_ratio):
            raise ValueError(f"--crops {crop}: sides must be multiples of the generator's patches, in pixels")
    ratio, chunk = autoencoder.temporal_compression_ratio, time * config["frames_per_chunk"]
    latents, rest = divmod(crop.frames - 1, ratio)
    if rest or (latents + 1) % chunk or latents + 1 < arguments.sample_chunks * chunk:
        raise ValueError(
            f"--crops {crop}: {ratio} n + 1 frames must be whole chunks of {chunk} latents, and at least "
            f"--sample_chunks {arguments.sample_chunks} of them"
        )


def load_scenes(arguments: argparse.Namespace) -> Material:
    """The synthetic scenes."""
    crop, scenes = arguments.crops[0], all_scenes(held_out=False)
    every, held_out = arguments.validation_scenes, all_scenes(held_out=True)
    chosen = held_out[:: len(held_out) // every][:every] if every else []
    return Material(
        f"scenes {drawing_fingerprint()}",
        lambda: captioned_clips(scenes, *crop),
        len(scenes),
        list(captioned_clips(chosen, *crop)),
        TOKENS_OF_SCENE,
        arguments.subspace_every,
    )


def load_clips(arguments: argparse.Namespace, accelerator: Accelerator) -> Material:
    """The clips of a folder or dataset."""
    crop = arguments.crops[0]
    dataset, batches = load_data(arguments, accelerator, spatial=1, temporal=1, with_flow=False)

    def read() -> Iterator[CaptionedClip]:
        for clip in dataset.clips:
            top, left = (clip.height - crop.height) // 2, (clip.width - crop.width) // 2
            frames = np.load(clip.high, mmap_mode="r")[: crop.frames]
            yield np.array(frames[:, top : top + crop.height, left : left + crop.width]), [clip.text]

    held_out = [(batch.high[0].permute(1, 2, 3, 0).numpy(), batch.texts) for batch in batches]
    return Material(clips_fingerprint(dataset.clips), read, len(dataset.clips), held_out, TOKENS_OF_CLIP, every=1)


def clips_fingerprint(clips: Sequence[CachedClip]) -> str:
    """Tells apart latents of other clips or other captions: a hash of their names in the cache and their texts."""
    named = [("/".join(clip.high.parts[-2:]), clip.text) for clip in clips]
    return f"clips {hashlib.sha256(repr(named).encode()).hexdigest()[:16]}"


def load_materials(arguments: argparse.Namespace, accelerator: Accelerator) -> list[Material]:
    """All that the arguments name; scenes are the first."""
    materials = [load_scenes(arguments)] if arguments.synthetic_scenes else []
    if arguments.train_data_dir or arguments.dataset_name:
        materials.append(load_clips(arguments, accelerator))
    return materials


def fit_subspace(
    materials: list[Material], encode: Encode, autoencoder: HRAutoencoder, config: dict, rank: int
) -> TokenSubspace:
    """Fits the subspace to tokens of clips, drawn the more often the more they change over the clip."""
    generator, samples = torch.Generator().manual_seed(0), []
    for material in materials:
        for frames, _ in islice(material.read(), 0, None, material.every):
            latents = encode(pixels_of(frames))
            patches = cut_patches(latents, config["patch_size"])
            over_time = patches.unflatten(0, (latents.shape[2] // config["patch_size"][0], -1))
            change = (over_time - over_time.median(dim=0).values).square().sum(2).flatten()
            number = min(material.tokens, len(change))
            samples.append(patches[torch.multinomial(change + change.mean() + 1e-6, number, generator=generator)])
    weights = None
    if autoencoder.config.linear_shortcut:
        # how far each channel moves the pixels
        weights = autoencoder.decoder_shortcut.weight.flatten(1).norm(dim=0)
    return TokenSubspace.fit(torch.cat(samples), tuple(config["patch_size"]), rank, weights)


def load_latents(
    arguments: argparse.Namespace, materials: list[Material], encode: Encode, autoencoder: HRAutoencoder, config: dict
) -> tuple[list[CachedLatents], TokenSubspace | None]:
    """The clips' latents, or their coordinates in the subspace that the arguments ask for; both from the cache."""
    folder = (arguments.cache_dir or arguments.output_dir / "cache") / "generator_latents"
    settings = {
        "clips": [material.name for material in materials],
        "crop": str(arguments.crops[0]),
        "autoencoder": weights_fingerprint(autoencoder),
        "encode_linearly": arguments.encode_linearly,
        "token_rank": arguments.token_rank,
    }
    if arguments.token_rank is not None:
        settings |= {"patch_size": list(config["patch_size"]), "subspace_every": arguments.subspace_every}
    claim_folder(folder, settings)
    clips = chain.from_iterable(material.read() for material in materials)
    if arguments.token_rank is None:
        return encode_clips(clips, encode, folder), None
    file = folder / "subspace.safetensors"
    if not file.is_file():
        fit_subspace(materials, encode, autoencoder, config, arguments.token_rank).save(file)
    subspace = TokenSubspace.load(file)
    return encode_clips(clips, lambda pixels: subspace.project(encode(pixels)), folder), subspace


def load_generator(arguments: argparse.Namespace) -> CausalWanTransformer:
    """The network to train, at its full size."""
    if arguments.config is not None:
        return new_network(CausalWanTransformer, arguments.config)
    if arguments.pretrained_wan is None:
        return load_network(CausalWanTransformer, arguments.pretrained_model_name_or_path, "generator_transformer")
    wan = load_network(WanTransformer3DModel, arguments.pretrained_wan, "transformer")
    shared = signature(CausalWanTransformer.__init__).parameters.keys() & wan.config.keys()
    network = CausalWanTransformer(**{name: wan.config[name] for name in shared})
    network.load_state_dict(wan.state_dict())
    return network


def make_pools(arguments: argparse.Namespace, materials: list[Material], cached: list[CachedLatents]) -> list[Pool]:
    """What samples are drawn from: the scenes, the clips, or both."""
    if len(materials) == 1:
        return [Pool(cached)]
    number = materials[0].number
    return [Pool(cached[:number], 1 - arguments.clip_share), Pool(cached[number:], arguments.clip_share)]


def with_nameless_colors(pools: list[Pool], number: int) -> list[Pool]:
    """The pools, the first of which are the training scenes, with the same in nameless colours as another one."""
    scenes = all_scenes(held_out=False)
    clip_of = dict(zip(scenes, pools[0].clips, strict=True))
    recolored = [
        MixedLatents([clip_of[scene] for scene in each.scenes], each.weights, each.prompts())
        for each in recolorings(scenes, number)
    ]
    share = pools[0].share
    return [
        Pool(pools[0].clips, (1 - RECOLORED_SHARE) * share),
        Pool(recolored, RECOLORED_SHARE * share),
        *pools[1:],
    ]


def load_text(arguments: argparse.Namespace, config: dict, pools: list[Pool]) -> TextEncoding:
    """The text encoder that the arguments name, or a new one that knows the words of the clips' texts."""
    if arguments.text_encoder is not None:
        return TextEncoding.load(arguments.text_encoder, config["text_length"])
    texts = (text for pool in pools for clip in pool.clips for text in clip.texts)
    words = words_of(texts, config["text_length"])
    nameless = list(nameless_colors(arguments.nameless_colors))
    tokenizer = make_tokenizer([*words, *nameless])
    text_encoder = make_text_encoder(len(tokenizer), config["text_dim"])
    return TextEncoding(text_encoder, tokenizer, config["text_length"], nameless)


def make_stage(
    arguments: argparse.Namespace,
    network: CausalWanTransformer,
    pools: list[Pool],
    subspace: TokenSubspace | None,
    autoencoder: HRAutoencoder,
) -> DiffusionForcingStage:
    """What the arguments ask to train."""
    config = arguments_of(network)
    text = load_text(arguments, config, pools)
    scale = channel_scale(pools)
    if subspace is not None:
        new = arguments.config is not None
        network = CausalWanTransformer(**subspace.compact_config(config)) if new else subspace.compacted(network)
        scale_ends(network, scale, new)
    if arguments.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    objective = ForcingObjective(
        flow_shift=arguments.flow_shift,
        noise_levels=arguments.noise_levels,
        first_step_share=arguments.first_step_share,
        context_noise=arguments.context_noise,
        own_context=arguments.own_context,
        text_dropout=arguments.text_dropout,
        detail_emphasis=arguments.detail_emphasis,
    )

    def decode(latents: torch.Tensor) -> torch.Tensor:
        latents = latents.cpu()
        return autoencoder.decode(latents if subspace is None else subspace.lift(latents)).sample

    parts = (network, text, objective, scale, subspace, config, decode)
    if arguments.objective == "diffusion_forcing":
        return DiffusionForcingStage(*parts)
    matching = DistributionMatching(guidance_scale=arguments.guidance_scale)
    return SelfForcingStage(*parts, matching=matching, fake_updates=arguments.fake_updates)


@torch.no_grad()
def validation_batches(
    held_out: Iterable[CaptionedClip], encode: Encode, subspace: TokenSubspace | None
) -> list[ChunkBatch]:
    batches = []
    for frames, texts in held_out:
        latents = encode(pixels_of(frames))
        latents = latents if subspace is None else subspace.project(latents)
        batches.append(ChunkBatch(latents, None, None, texts[:1], torch.ones(1, dtype=torch.bool)))
    return batches


def main(arguments: argparse.Namespace) -> dict[str, float]:
    set_seed(arguments.seed)
    autoencoder = load_network(HRAutoencoder, arguments.autoencoder, "autoencoder").requires_grad_(False)
    network = load_generator(arguments)
    if network.config.absolute_positions:
        crop = arguments.crops[0]
        sides = (crop.height, crop.width)
        network.register_to_config(sample_size=[side // autoencoder.spatial_compression_ratio for side in sides])
    config = arguments_of(network)
    check_sizes(arguments, autoencoder, config)
    accelerator = make_accelerator(arguments, leaves_out_parameters=arguments.objective == "self_forcing")
    materials = load_materials(arguments, accelerator)

    @torch.no_grad()
    def encode(pixels: torch.Tensor) -> torch.Tensor:
        if arguments.encode_linearly:
            return encode_linearly(autoencoder, pixels)
        return autoencoder.encode(pixels).latents

    with accelerator.local_main_process_first():
        cached, subspace = load_latents(arguments, materials, encode, autoencoder, config)
    pools = make_pools(arguments, materials, cached)
    stage = make_stage(arguments, network, pools, subspace, autoencoder)
    if arguments.nameless_colors:
        pools = with_nameless_colors(pools, arguments.nameless_colors)
    chunk, batch_size = stage.network.chunk_frames, arguments.train_batch_size[0]
    dataset = ChunkDataset(
        pools, arguments.sample_chunks * chunk, chunk, batch_size, arguments.start_share, arguments.seed
    )
    held_out = chain.from_iterable(material.held_out for material in materials)
    return train(stage, dataset, validation_batches(held_out, encode, subspace), arguments, accelerator)


if __name__ == "__main__":
    main(parse_arguments())
