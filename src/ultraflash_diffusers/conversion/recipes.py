# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What is published, as a table: from which files, with which settings and under which terms each pipeline is made.

Facts of the published code and cards. To add a generator, write its part and a line in `RECIPES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

APACHE = "Apache-2.0"
NON_COMMERCIAL = "CC BY-NC-SA 4.0 (no commercial use)"
MIT = "MIT"
NOT_STATED = "not stated where we looked: see its page"
_WAN = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"


@dataclass(frozen=True)
class Source:
    """Where a file is published.

    Args:
        repository (`str`): on the Hub, or the address of a repository on GitHub.
        files (`tuple[str, ...]`): names or patterns (`*`) that it may have there, the likeliest first.
        license (`str`): the terms as its page states them; what derives from other weights may inherit theirs.
    """

    repository: str
    files: tuple[str, ...]
    license: str

    @property
    def is_commercial(self) -> bool:
        """Whether the terms, as stated, allow commercial use."""
        return self.license != NON_COMMERCIAL


@dataclass(frozen=True)
class Part:
    """One network of a pipeline.

    Args:
        component (`str`): the pipeline's name for it.
        sources (`tuple[Source, ...]`): where its file is; the next is asked if the one before is not there.
        settings (`Mapping[str, Any]`): what its tensors do not show, see [`from_original`].
        lora (`tuple[Source, ...]`): a LoRA without which the network is not the published one; it is merged.
    """

    component: str
    sources: tuple[Source, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    lora: tuple[Source, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """A pipeline that can be made of published files.

    Args:
        description (`str`): in words.
        parts (`tuple[Part, ...]`): its networks.
        pipeline (`Mapping[str, Any]`): the pipeline's own settings.
        text (`Source`): text encoder and tokenizer, as a diffusers repository.
        encoder (`Source`, *optional*): an autoencoder of the same latent space for files and pictures, likewise, where
            the pipeline's own cannot encode.
    """

    description: str
    parts: tuple[Part, ...]
    pipeline: Mapping[str, Any]
    text: Source = Source(_WAN, ("text_encoder/*", "tokenizer/*"), APACHE)
    encoder: Source | None = Source(_WAN, ("vae/*",), APACHE)


def _ultraflash(*files: str) -> tuple[Source, ...]:
    return (Source("xin1u/UltraFlash", files, APACHE),)


_SR_1K = Part("transformer", _ultraflash("1K-Causal-Sparse-SR-Dit*.pth", "sr_dit_sparse.pth"))
_SR_2K = Part("transformer", _ultraflash("2K-Causal-Sparse-SR-Dit*.pth", "sr_dit_sparse.pth"))
_UPSAMPLER_1K = Part(
    "latent_upsampler", _ultraflash("1K-ultraLatentUpsampler*.pth", "latent_upsampler.pth"), {"scale": 2}
)
_UPSAMPLER_2K = Part(
    "latent_upsampler", _ultraflash("2K-ultraLatentUpsampler*.pth", "latent_upsampler.pth"), {"scale": 3}
)
_DECODER = Part("autoencoder", _ultraflash("ultra_decoder_v3.pth", "*ultra-decoder-v3*.pth", "tiny_decoder.pth"))
_TAEHV = Part("autoencoder", (Source("https://github.com/madebyollin/taehv", ("taew2_1.pth",), MIT),))

_SELF_FORCING = Part(
    "generator_transformer",
    (Source("gdhe17/Self-Forcing", ("checkpoints/self_forcing_dmd.pt",), NON_COMMERCIAL),),
    {"use_ema": True},
)
_LONGLIVE_PLACE = "Efficient-Large-Model/LongLive-1.3B"
_LONGLIVE_SETTINGS = {"use_ema": False, "local_attn_size": 12, "sink_size": 3, "global_sink": True}
_LONGLIVE_BASE = Source(_LONGLIVE_PLACE, ("models/longlive_base.pt",), NOT_STATED)
_LONGLIVE_LORA = Source(_LONGLIVE_PLACE, ("models/lora.pt",), NOT_STATED)
_LONGLIVE = Part("generator_transformer", (_LONGLIVE_BASE,), _LONGLIVE_SETTINGS, (_LONGLIVE_LORA,))
_ULTRAFLASH_LONG = Part(
    "generator_transformer",
    (Source("xin1u/UltraFlash-Long", ("longlive_base.pt",), NOT_STATED), _LONGLIVE_BASE),
    {**_LONGLIVE_SETTINGS, "independent_first_frame": True},
    (Source("xin1u/UltraFlash-Long", ("lora.pt",), NOT_STATED), _LONGLIVE_LORA),
)


def _causal_forcing(file: str, **settings: Any) -> Part:
    return Part("generator_transformer", (Source("zhuhz22/Causal-Forcing", (file,), APACHE),), settings)


_FRAMEWISE = {"use_ema": True, "num_frame_per_block": 1}
_FIRST_CHUNK = {"denoising_step_list_first_chunk": (1000, 750, 500, 250)}

# a first group of its own, here of the same length, leaves a shorter last one as it is, as published
_AT_1K = {
    "group_frames": 6,
    "first_group_frames": 6,
    "kv_cache_blocks": 3,
    "default_height": 960,
    "default_width": 1664,
}
_AT_1K |= {"default_num_frames": 81, "default_fps": 16}
_AT_2K = _AT_1K | {"default_height": 1440, "default_width": 2496}


def _at_1k(description: str, generator: Part, **pipeline: Any) -> Recipe:
    return Recipe(description, (_SR_1K, _UPSAMPLER_1K, _DECODER, generator), _AT_1K | pipeline)


RECIPES: dict[str, Recipe] = {
    "ultraflash-1k": _at_1k("Ultra Flash at 960x1664, five seconds, Self-Forcing's generator", _SELF_FORCING),
    "ultraflash-2k": Recipe(
        "Ultra Flash at 1440x2496, five seconds, Self-Forcing's generator",
        (_SR_2K, _UPSAMPLER_2K, _DECODER, _SELF_FORCING),
        _AT_2K,
    ),
    "ultraflash-long": _at_1k(
        "Ultra Flash at 960x1664 for long videos: LongLive's generator, a first chunk of one frame",
        _ULTRAFLASH_LONG,
        first_group_frames=4,
        default_num_frames=469,
    ),
    "self-forcing": _at_1k("Self-Forcing's generator (as ultraflash-1k)", _SELF_FORCING),
    "longlive": _at_1k(
        "LongLive 1.0's generator: long videos, prompts that change", _LONGLIVE, default_num_frames=477
    ),
    "causal-forcing": _at_1k(
        "Causal-Forcing's generator, chunks of three frames",
        _causal_forcing("chunkwise/causal_forcing.pt", use_ema=False),
    ),
    "causal-forcing-framewise": _at_1k(
        "Causal-Forcing's generator, frame by frame", _causal_forcing("framewise/causal_forcing.pt", **_FRAMEWISE)
    ),
    "causal-forcing-2step": _at_1k(
        "Causal-Forcing++: frame by frame in two steps",
        _causal_forcing(
            "causal-forcing++/framewise-2step.pt", **_FRAMEWISE, **_FIRST_CHUNK, denoising_step_list=(1000, 500)
        ),
    ),
    "causal-forcing-1step": _at_1k(
        "Causal-Forcing++: frame by frame in one step",
        _causal_forcing(
            "causal-forcing++/framewise-1step.pt", **_FRAMEWISE, **_FIRST_CHUNK, denoising_step_list=(1000,)
        ),
    ),
    "taehv": Recipe(
        "ultraflash-1k with TAEHV, which decodes and encodes with little work",
        (_SR_1K, _UPSAMPLER_1K, _TAEHV, _SELF_FORCING),
        _AT_1K,
        encoder=None,
    ),
}
