# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Sources of low-resolution latents: text, another diffusers pipeline, a video file, frames, latents.

All of them fulfil [`Source`]; [`make_source`] finds the right one for what a user passes.
"""

from __future__ import annotations

import inspect
from collections.abc import Generator, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from ...models.causal_wan_transformer import CausalWanTransformer
from ...models.hr_autoencoder import HRAutoencoder
from ...models.stream_state import StreamState
from ...models.video_encoder import VideoEncoder
from ..argument_kinds import optional_whole, shown
from ..cache_management import DynamicCacheManagement
from ..execution.plan import ExecutionPlan
from .base import FrameNoise, Source, SourceChunk, SourceEndedError, SourceInterrupted, checked_state, padded_size
from .diffusers_pipeline import (
    LIVE_CHUNKS,
    WAN_LATENT_SPACE,
    LiveChunks,
    has_wan_latents,
    is_wan_autoencoder,
    pipeline_source,
)
from .frames import frames_to_pixels, pixel_pieces
from .generator_stage import TextGeneratorState
from .handed import HandedSource, HandedSourceState
from .latents import LatentsSource, LatentsSourceState
from .pixels import PixelSource, PixelSourceState
from .text_generator import TextGeneratorSource

__all__ = [
    "LIVE_CHUNKS",
    "WAN_LATENT_SPACE",
    "FrameNoise",
    "LatentsSource",
    "LatentsSourceState",
    "LiveChunks",
    "PixelSource",
    "PixelSourceState",
    "Source",
    "SourceChunk",
    "SourceEndedError",
    "SourceInterrupted",
    "TextGeneratorSource",
    "TextGeneratorState",
    "frames_to_pixels",
    "has_wan_latents",
    "is_wan_autoencoder",
    "make_source",
    "padded_size",
]


def make_source(
    source: Any,
    *,
    autoencoder: HRAutoencoder,
    encoder: VideoEncoder | None = None,
    multiple_of: int,
    latent_frames: int,
    generator: CausalWanTransformer | None = None,
    plan: ExecutionPlan | None = None,
    prompt: str | list[str] | None = None,
    prompt_embeds: torch.Tensor | None = None,
    noise: FrameNoise | None = None,
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
    cache_management: DynamicCacheManagement | None = None,
    state: StreamState | None = None,
    source_kwargs: Mapping[str, Any] | None = None,
) -> Source:
    """Makes the source that fits what the user passed.

    | `source` | what comes of it |
    |---|---|
    | `None` | the text generator |
    | a diffusers pipeline | [`pipeline_source`]: its latents where they fit, else its frames |
    | `str`, `Path`, [`VideoReader`] | a video file |
    | a tensor `[batch, latent_channels, f, h, w]`, or an iterable of such | normalised latents |
    | other tensors, arrays, PIL images, iterables of them | frames, see [`frames_to_pixels`] |
    | a [`Source`] | what it gives, up to `num_frames`; with a state of its own, itself |

    A tensor `[batch, latent_channels, 3, h, w]` with all its values in [0, 1] is taken as frames: normalised latents
    are never like that. The first item of an iterable is read here, to see what it is; frames that arrive live block
    until then.

    Args:
        source: see above.
        autoencoder ([`HRAutoencoder`]): the stream's.
        encoder ([`VideoEncoder`], *optional*): encodes frames, in the same latent space; the autoencoder by default.
        multiple_of (`int`): low-resolution pixels; height and width of the latents are padded to this multiple, which
            the autoencoder's spatial compression divides.
        latent_frames (`int`): latent frames a chunk, where pixels are encoded.
        generator ([`CausalWanTransformer`], *optional*): for text.
        plan ([`ExecutionPlan`], *optional*): of the pipeline, for its text generator.
        prompt (`str` or `list[str]`, *optional*): for a diffusers pipeline.
        prompt_embeds (`torch.Tensor`, *optional*): `[batch, length, text_dim]`, for the text generator.
        noise ([`FrameNoise`], *optional*): for the text generator.
        height, width (`int`, *optional*): low-resolution pixels; sources that bring their own size must agree.
        num_frames (`int`, *optional*): pixel frames wanted; `None` takes all there are, of text without end.
        cache_management ([`DynamicCacheManagement`], *optional*): for the text generator.
        state (`StreamState`, *optional*): [`Source.state`] of a stream to go on with; pass the same `source` again,
            from its beginning.
        source_kwargs (`dict`, *optional*): further arguments of a diffusers pipeline's call or of
            [`TextGeneratorSource`].

    Raises:
        TypeError, ValueError: `source` is none of these or is empty; an argument that it needs is missing, or one does
            not fit.
    """
    if num_frames is not None and num_frames < 1:
        raise ValueError(f"`num_frames` must be at least 1, got {num_frames}")
    if multiple_of % autoencoder.spatial_compression_ratio:
        raise ValueError(
            f"`multiple_of` is {multiple_of}, expected a multiple of the autoencoder's spatial compression "
            f"{autoencoder.spatial_compression_ratio}"
        )
    extra = dict(source_kwargs or {})
    encoder = encoder or autoencoder
    sizes: dict[str, Any] = {"height": height, "width": width, "num_frames": num_frames, "multiple_of": multiple_of}
    if source is None:
        if generator is None:
            raise ValueError("`source` is None, but the pipeline has no `generator` that makes video from text")
        if prompt_embeds is None or noise is None or height is None or width is None:
            raise ValueError("`prompt_embeds`, `noise`, `height` and `width` are needed to generate from text")
        extra = _generator_keywords(extra)
        extra |= {"cache_management": cache_management, "plan": plan, "encoder": encoder}
        extra["state"] = checked_state(state, TextGeneratorState)
        return TextGeneratorSource(generator, autoencoder, prompt_embeds, noise, **sizes, **extra)
    if isinstance(source, DiffusionPipeline):
        return pipeline_source(
            source,
            autoencoder,
            encoder,
            latent_frames=latent_frames,
            prompt=prompt,
            state=state,
            call_kwargs=extra,
            **sizes,
        )
    if extra:
        raise ValueError(f"`source_kwargs` {sorted(extra)} mean nothing to a source of type {type(source).__name__}")
    if isinstance(source, Source):
        if type(source).state is not Source.state:  # it ends and goes on by itself
            return source
        ratio, done = autoencoder.temporal_compression_ratio, checked_state(state, HandedSourceState)
        return HandedSource(source, ratio, num_frames, done)
    if _is_video_file(source):
        from .video_file import VideoFileSource

        sizes |= {"state": checked_state(state, PixelSourceState), "latent_frames": latent_frames}
        return VideoFileSource(source, encoder, **sizes)
    items = _items(source)
    first = next(items, None)
    if first is None:
        raise ValueError("`source` is empty: it gave nothing (an iterator can be read only once)")
    items = chain([first], items)
    if _are_latents(first, autoencoder):
        return LatentsSource(_passed_on(items), autoencoder, state=checked_state(state, LatentsSourceState), **sizes)
    sizes |= {"state": checked_state(state, PixelSourceState), "latent_frames": latent_frames}
    return PixelSource(pixel_pieces(items), encoder, **sizes)


def _generator_keywords(source_kwargs: dict[str, Any]) -> dict[str, Any]:
    """What the user passes on to the text generator, checked as far as it is known here."""
    ours = inspect.signature(make_source).parameters
    known = [name for name in inspect.signature(TextGeneratorSource).parameters if name not in ours]
    if unknown := [name for name in source_kwargs if name not in known]:
        raise ValueError(f"`source_kwargs` has {shown(unknown)}, expected some of {', '.join(known)}")
    least = {"window_frames": 1, "sink_frames": 0, "frames_per_chunk": 1, "first_chunk_frames": 1}
    numbers = {n: optional_whole(n, source_kwargs[n], least[n]) for n in least if n in source_kwargs}
    return source_kwargs | numbers


def _is_video_file(source: Any) -> bool:
    """Whether it is a path or a reader. PyAV, which these need, is imported here: other sources do without it."""
    if isinstance(source, (str, Path)):
        return True
    try:
        from ...video_io import VideoReader
    except ModuleNotFoundError:  # then nobody can have a reader
        return False
    return isinstance(source, VideoReader)


def _items(source: Any) -> Iterator[Any]:
    if isinstance(source, (torch.Tensor, np.ndarray)) and source.ndim == 4:
        return iter(source)  # frame by frame, so that they are not all converted at once
    if isinstance(source, (torch.Tensor, np.ndarray, Image.Image)):
        return iter([source])
    if isinstance(source, (list, tuple)) and source and isinstance(source[0], (list, tuple)):
        return iter([source])  # one list of frames for each video of a batch
    if isinstance(source, Iterable) and not isinstance(source, (bytes, Mapping)):
        return iter(source)
    raise TypeError(
        f"`source` is a {type(source).__name__}, expected None (text), a diffusers pipeline, the path of a video, "
        "frames or latents, or an iterable of these"
    )


def _are_latents(item: Any, autoencoder: HRAutoencoder) -> bool:
    """Tells latents from a batch of frames `[batch, frames, 3, height, width]`: by shape, then by range."""
    if not isinstance(item, torch.Tensor) or item.ndim != 5 or item.shape[1] != autoencoder.config.latent_channels:
        return False
    could_be_frames = item.shape[2] == 3 and item.numel() > 0
    return not (could_be_frames and 0 <= item.min() <= item.max() <= (255 if item.dtype == torch.uint8 else 1))


def _passed_on(items: Iterator[torch.Tensor]) -> Generator[torch.Tensor, None, None]:
    yield from items
