# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The checkpoints of a server, and the check of what is asked of them."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from diffusers import DiffusionPipeline

from ..pipelines.pipeline_ultraflash import UltraFlashStreamingPipeline
from ..pipelines.video_stream import PipelineStreamState
from .errors import ClientError
from .messages import SamplingParams
from .settings import ServerSettings

_FINGERPRINT_VALUES = 256  # of each tensor


@dataclass
class ServedModel:
    """A checkpoint that clients may ask for.

    Args:
        name (`str`): under which they do.
        pipe ([`UltraFlashStreamingPipeline`]): the checkpoint.
        source_pipeline (`DiffusionPipeline`, *optional*): generates what `pipe` refines, for `source: "pipeline"`.
        open_stream (`Callable`, *optional*): what is called in the place of `pipe.stream`, where streams are made
            elsewhere: of text and files alone.
    """

    name: str
    pipe: UltraFlashStreamingPipeline
    source_pipeline: DiffusionPipeline | None = None
    open_stream: Callable[..., Any] | None = None

    @property
    def sources(self) -> list[str]:
        """What its streams can start from."""
        pipe = self.pipe
        able = {
            "text": pipe.generator_transformer is not None and pipe.text_encoder is not None,
            "pipeline": self.source_pipeline is not None and self.open_stream is None,
            "video": pipe.can_encode,
            "frames": pipe.can_encode and self.open_stream is None,
        }
        return [name for name, possible in able.items() if possible]

    @property
    def scale(self) -> int:
        """How much larger results are than what they come from."""
        return self.pipe.latent_upsampler.config.scale

    @cached_property
    def fingerprint(self) -> str:
        """Tells checkpoints apart: settings, and names, shapes and some values of all weights."""
        digest = hashlib.sha256()
        for name, part in sorted(self.pipe.components.items()):
            if isinstance(part, torch.nn.Module):
                digest.update(f"{name} {type(part).__name__}".encode())
                for key, tensor in part.state_dict().items():
                    digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
                    values = tensor.detach().flatten()[:_FINGERPRINT_VALUES].float().cpu()
                    digest.update(values.numpy().tobytes())
        settings = {key: value for key, value in self.pipe.config.items() if not key.startswith("_")}
        digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """What `GET /v1/models` tells of it."""
        config = self.pipe.config
        return {
            "id": self.name,
            "object": "model",
            "owned_by": "ultraflash_diffusers",
            "sources": self.sources,
            "scale": self.scale,
            "width": config.default_width,
            "height": config.default_height,
            "num_frames": config.default_num_frames,
            "fps": config.default_fps,
        }


def choose_model(models: Mapping[str, ServedModel], name: str | None) -> ServedModel:
    """Returns the model of that name; where there is but one, that one, whatever a client calls it.

    Raises:
        ClientError: there are several, and none of that name.
    """
    first = next(iter(models.values()))
    if not name or len(models) == 1:
        return first
    if name not in models:
        raise ClientError("unknown_model", f"model: {name!r} is not served here, expected one of {list(models)}", 404)
    return models[name]


def check_request(model: ServedModel, source: str, request: SamplingParams, settings: ServerSettings) -> None:
    """Refuses what this model cannot do or this server does not allow.

    Raises:
        ClientError: the argument, its value, and what would fit.
    """
    if source not in model.sources:
        raise ClientError(
            "unsupported_source", f"source: {model.name!r} cannot start from {source!r}, only from {model.sources}"
        )
    if request.prompt is not None and len(request.prompt) > settings.max_prompt:
        raise ClientError(
            "invalid_request", f"prompt: {len(request.prompt)} characters, at most {settings.max_prompt} are read"
        )
    if request.num_frames is not None and request.num_frames > settings.max_frames:
        raise ClientError(
            "limit_exceeded", f"num_frames: {request.num_frames}, this server makes at most {settings.max_frames}"
        )
    if request.width is not None and request.height is not None:
        factor = model.scale if source == "frames" else 1
        check_size(request.width * factor, request.height * factor, settings)


def check_size(width: int, height: int, settings: ServerSettings) -> None:
    """Refuses frames that are too large or that browsers do not play.

    Raises:
        ClientError: so it is.
    """
    if width * height > settings.max_pixels:
        raise ClientError(
            "limit_exceeded",
            f"width, height: frames of {width}x{height}, this server makes at most {settings.max_pixels} pixels",
        )
    if width % 2 or height % 2:
        raise ClientError("invalid_request", f"width, height: frames of {width}x{height}, both must be even")


def check_prompt(prompt: str | None, settings: ServerSettings) -> str:
    """Returns a prompt that says something.

    Raises:
        ClientError: it is missing, empty or too long.
    """
    if prompt is None or not prompt.strip():
        raise ClientError("invalid_request", f"prompt: {prompt!r}, expected a text that says what the video shows")
    if len(prompt) > settings.max_prompt:
        raise ClientError(
            "invalid_request", f"prompt: {len(prompt)} characters, at most {settings.max_prompt} are read"
        )
    return prompt


def stream_arguments(
    model: ServedModel,
    request: SamplingParams,
    source: Any,
    num_frames: int | None,
    seed: int,
    state: PipelineStreamState | None,
) -> dict[str, Any]:
    """Returns the arguments of [`UltraFlashStreamingPipeline.stream`] for a request.

    Args:
        source: `None` for text, a pipeline, or what has pixels and thereby a size of its own.
    """
    extra = request.extra_params
    sized = source is None or isinstance(source, DiffusionPipeline)
    return {
        "prompt": request.prompt,
        "source": source,
        "negative_prompt": extra.negative_prompt,
        "height": request.height if sized else None,
        "width": request.width if sized else None,
        "num_frames": num_frames,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "condition_noise": extra.condition_noise,
        "color_correction": extra.color_correction or "wavelet",
        "strength": extra.strength,
        "generator": torch.Generator().manual_seed(seed) if state is None else None,
        "state": state,
        "output_type": "uint8",
    }


@contextmanager
def warnings_of_pipeline() -> Iterator[list[str]]:
    """Collects what the pipeline warns of in this thread meanwhile, such as words that the text encoder lacks."""
    collected: list[str] = []
    handler = _Collector(collected)
    package = logging.getLogger(__name__.partition(".")[0])
    package.addHandler(handler)
    try:
        yield collected
    finally:
        package.removeHandler(handler)


class _Collector(logging.Handler):
    def __init__(self, collected: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._collected = collected
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            self._collected.append(record.getMessage())
