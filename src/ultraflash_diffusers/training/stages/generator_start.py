# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""From the command line to a generator's training: networks, text encoder and sizes that fit together."""

from __future__ import annotations

import argparse
import math
from inspect import signature

import torch
from diffusers import WanTransformer3DModel

from ...models.causal_wan_transformer import CausalWanTransformer
from ...models.hr_autoencoder import HRAutoencoder
from ..data.chunks import ChunkBatch, Pool, channel_scale
from ..data.planned import planned_chunks
from ..losses.linear_decoding import check_linear_shortcut
from ..settings import read_settings
from ..starting_points.lora import choose_trained, lora_of, may_share
from ..starting_points.networks import load_network, start_network
from ..starting_points.text_encoding import TextEncoding, check_captions, make_text_encoder, make_tokenizer, words_of
from ..starting_points.token_subspace import TokenSubspace, arguments_of, scale_ends
from .generator import Decode, DiffusionForcing, DiffusionForcingTraining, GeneratorObjective, GeneratorTraining
from .self_forcing import SelfForcing, SelfForcingTraining

OBJECTIVES: dict[str, type[GeneratorObjective]] = {"diffusion_forcing": DiffusionForcing, "self_forcing": SelfForcing}
"""What a command line may choose, by name."""
# that a plan's own text encoder knows
_WORDS = 200


def load_generator(arguments: argparse.Namespace, autoencoder: HRAutoencoder) -> CausalWanTransformer:
    """The network to train, at its full size; learnt positions are those of the crops.

    Args:
        arguments (`argparse.Namespace`): of `training/train_generator.py`.
        autoencoder (`HRAutoencoder`): whose latents the network makes.
    """
    network = _start(arguments)
    if network.config.absolute_positions:
        sides = (arguments.crops[0].height, arguments.crops[0].width)
        network.register_to_config(sample_size=[side // autoencoder.spatial_compression_ratio for side in sides])
    return network


def _start(arguments: argparse.Namespace) -> CausalWanTransformer:
    if arguments.pretrained_wan is None:
        return start_network(CausalWanTransformer, arguments, "generator_transformer")
    wan = load_network(WanTransformer3DModel, arguments.pretrained_wan, "transformer")
    shared = signature(CausalWanTransformer.__init__).parameters.keys() & wan.config.keys()
    network = CausalWanTransformer(**{name: wan.config[name] for name in shared})
    network.load_state_dict(wan.state_dict())
    return network


def check_choices(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> None:
    """Refuses arguments of `training/train_generator.py` that contradict each other.

    Args:
        parser (`argparse.ArgumentParser`): tells the errors.
        parsed (`argparse.Namespace`): its result.
    """
    forces_itself = parsed.objective == "self_forcing"
    if not (parsed.synthetic_scenes or parsed.train_data_dir or parsed.dataset_name):
        parser.error("one of --train_data_dir, --dataset_name and --synthetic_scenes is needed")
    if len(parsed.crops) > 1 or len(parsed.train_batch_size) > 1:
        parser.error("--crops and --train_batch_size: the generator trains at one size")
    if forces_itself and (parsed.network_config or not parsed.text_encoder):
        parser.error("--objective self_forcing goes on from a network and its --text_encoder")
    if parsed.teacher is not None and not forces_itself:
        parser.error("--teacher needs --objective self_forcing")
    for name in ("teacher", "rank"):
        if vars(parsed)[name] is not None and parsed.token_rank is not None:
            parser.error(f"--{name} works on whole tokens: leave out --token_rank")
    if parsed.rank is not None and not parsed.text_encoder:
        parser.error("--rank trains LoRA layers of a network that knows a --text_encoder")


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


def load_text(arguments: argparse.Namespace, config: dict, pools: list[Pool]) -> TextEncoding:
    """The text encoder that the arguments name, or a new one that knows the words of the clips' texts."""
    texts = [text for pool in pools for clip in pool.clips for text in clip.texts]
    if arguments.text_encoder is not None:
        encoding = TextEncoding.load(arguments.text_encoder, config["text_length"])
        check_captions(texts, encoding.tokenizer)
        return encoding
    words = words_of(texts, config["text_length"])
    tokenizer = make_tokenizer(words)
    text_encoder = make_text_encoder(len(tokenizer), config["text_dim"])
    return TextEncoding(text_encoder, tokenizer, config["text_length"])


def planned_training(
    arguments: argparse.Namespace, network: CausalWanTransformer, autoencoder: HRAutoencoder
) -> tuple[GeneratorTraining, ChunkBatch]:
    """What the arguments ask to train, without clips, and a batch of it without contents: for a plan.

    Args:
        arguments (`argparse.Namespace`): of `training/train_generator.py`.
        network (`CausalWanTransformer`): of [`load_generator`], without weights.
        autoencoder (`HRAutoencoder`): whose latents the network makes.
    """
    config, ratio = arguments_of(network), autoencoder.spatial_compression_ratio
    patch, channels, compact = tuple(config["patch_size"]), config["in_channels"], None
    frames = arguments.sample_chunks * network.chunk_frames
    size = (channels, frames, arguments.crops[0].height // ratio, arguments.crops[0].width // ratio)
    if arguments.token_rank is not None:
        rank, numbers = arguments.token_rank, channels * math.prod(patch)
        ends = (torch.empty(rank, numbers), torch.empty(numbers, rank))
        compact = TokenSubspace(patch, channels, *ends, torch.ones(rank), torch.ones(rank))
        network = CausalWanTransformer(**compact.compact_config(config))
        frames, *sides = (side // each for side, each in zip(size[1:], patch, strict=True))
        size = (rank, frames, *sides)
    if arguments.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    if arguments.text_encoder is None:
        tokenizer = make_tokenizer([])
        text = TextEncoding(make_text_encoder(_WORDS, config["text_dim"]), tokenizer, config["text_length"])
    else:
        text = TextEncoding.load(arguments.text_encoder, config["text_length"])
    stage = _training(arguments, network, text, torch.ones(size[0]), compact, config)
    return stage, planned_chunks(arguments, *size)


def new_training(
    arguments: argparse.Namespace,
    network: CausalWanTransformer,
    pools: list[Pool],
    subspace: TokenSubspace | None,
    autoencoder: HRAutoencoder,
) -> GeneratorTraining:
    """What the arguments ask to train."""
    config = arguments_of(network)
    text = load_text(arguments, config, pools)
    scale = channel_scale(pools)
    if subspace is not None:
        new = arguments.network_config is not None
        network = CausalWanTransformer(**subspace.compact_config(config)) if new else subspace.compacted(network)
        scale_ends(network, scale, new)
    if arguments.gradient_checkpointing:
        network.enable_gradient_checkpointing()

    def decode(latents: torch.Tensor) -> torch.Tensor:
        latents = latents.cpu()
        return autoencoder.decode(latents if subspace is None else subspace.lift(latents)).sample

    return _training(arguments, network, text, scale, subspace, config, decode)


def _training(
    arguments: argparse.Namespace,
    network: CausalWanTransformer,
    text: TextEncoding,
    scale: torch.Tensor,
    subspace: TokenSubspace | None,
    config: dict,
    decode: Decode | None = None,
) -> GeneratorTraining:
    lora, parts = lora_of(arguments), (scale, subspace, config, decode)
    if arguments.objective == "diffusion_forcing":
        choose_trained(network, lora)
        return DiffusionForcingTraining(network, text, read_settings(arguments, DiffusionForcing), *parts)
    teacher = None
    if arguments.teacher is not None:
        teacher = load_network(WanTransformer3DModel, arguments.teacher, "transformer")
    objective = read_settings(arguments, SelfForcing)
    return SelfForcingTraining(network, text, objective, *parts, teacher, lora, may_share(arguments))
