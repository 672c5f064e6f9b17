# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What a generator is trained on: synthetic scenes, captioned clips or both, as cached latents."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
import torch
from accelerate import Accelerator

from ...models.hr_autoencoder import HRAutoencoder
from ..files import weights_fingerprint
from ..starting_points.token_subspace import TokenSubspace, cut_patches
from .chunks import CachedLatents, CaptionedClip, ChunkBatch, Pool, claim_folder, encode_clips, pixels_of
from .crops import Crop
from .inputs import cache_folder, load_data
from .preparation import CachedClip
from .world import captioned_scenes, drawing_fingerprint

Encode = Callable[[torch.Tensor], torch.Tensor]

# real clips have more to tell than scenes, and are fewer
TOKENS_OF_SCENE, TOKENS_OF_CLIP = 40, 400


@dataclass(frozen=True)
class Material:
    """Captioned clips of one kind.

    Args:
        name (`str`): by which the cache knows them.
        read (`Callable`): reads the training clips, again and again, at the size of the crops.
        number (`int`): of training clips.
        held_out (list of `CaptionedClip`): for validation.
        tokens (`int`): of a clip, to which the subspace of tokens is fitted.
        every (`int`): it is fitted to every so manieth clip.
    """

    name: str
    read: Callable[[], Iterator[CaptionedClip]]
    number: int
    held_out: list[CaptionedClip]
    tokens: int
    every: int


def load_materials(arguments: argparse.Namespace, accelerator: Accelerator) -> list[Material]:
    """All that the arguments name; scenes are the first."""
    materials = [load_scenes(arguments)] if arguments.synthetic_scenes else []
    if arguments.train_data_dir or arguments.dataset_name:
        materials.append(load_clips(arguments, accelerator))
    return materials


def load_scenes(arguments: argparse.Namespace) -> Material:
    """The synthetic scenes; those held out are drawn from another seed."""
    crop, number = arguments.crops[0], arguments.synthetic_scenes
    return Material(
        f"{number} scenes {drawing_fingerprint()}",
        lambda: captioned_scenes(number, 0, *crop),
        number,
        list(captioned_scenes(arguments.validation_scenes, 1, *crop)),
        TOKENS_OF_SCENE,
        arguments.subspace_every,
    )


def load_clips(arguments: argparse.Namespace, accelerator: Accelerator) -> Material:
    """The clips of a folder or dataset."""
    crop = arguments.crops[0]
    # what is generated for comparison is of the training clips' size: whole chunks of whole patches
    same_length = argparse.Namespace(**vars(arguments) | {"validation_frames": crop.frames})
    if arguments.stream:
        raise ValueError("--stream: generators train on encoded clips, which are prepared once")
    dataset, batches = load_data(same_length, accelerator, spatial=1, temporal=1, with_flow=False)

    def read() -> Iterator[CaptionedClip]:
        for clip in dataset.clips:
            yield _centre(np.load(clip.high, mmap_mode="r"), crop), [clip.text]

    shown = ((batch.high[0].permute(1, 2, 3, 0).numpy(), batch.texts) for batch in batches)
    held_out = [(_centre(frames, crop), texts) for frames, texts in shown]
    return Material(clips_fingerprint(dataset.clips), read, len(dataset.clips), held_out, TOKENS_OF_CLIP, every=1)


def _centre(frames: np.ndarray, crop: Crop) -> np.ndarray:
    """The first frames, and of these the middle.

    Raises:
        ValueError: the clip is smaller than the crop.
    """
    height, width = frames.shape[1:3]
    if height < crop.height or width < crop.width:
        raise ValueError(f"a clip is {height}x{width}, smaller than --crops {crop}: generators train at one size")
    top, left = (height - crop.height) // 2, (width - crop.width) // 2
    return np.array(frames[: crop.frames, top : top + crop.height, left : left + crop.width])


def clips_fingerprint(clips: Sequence[CachedClip]) -> str:
    """Tells apart latents of other clips or other captions: a hash of their names in the cache and their texts."""
    named = [("/".join(clip.high.parts[-2:]), clip.text) for clip in clips]
    return f"clips {hashlib.sha256(repr(named).encode()).hexdigest()[:16]}"


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


def cached_materials(
    arguments: argparse.Namespace, materials: list[Material], encode: Encode, autoencoder: HRAutoencoder, config: dict
) -> tuple[list[CachedLatents], TokenSubspace | None]:
    """The clips' latents, or their coordinates in the subspace that the arguments ask for; both from the cache."""
    folder = cache_folder(arguments) / "generator_latents"
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


def make_pools(arguments: argparse.Namespace, materials: list[Material], cached: list[CachedLatents]) -> list[Pool]:
    """What samples are drawn from: the scenes, the clips, or both."""
    if len(materials) == 1:
        return [Pool(cached)]
    number = materials[0].number
    return [Pool(cached[:number], 1 - arguments.clip_share), Pool(cached[number:], arguments.clip_share)]


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
