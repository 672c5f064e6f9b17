# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Whole files: a video at a higher resolution, a video from text; what is done survives anything and is resumed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers import DiffusionPipeline

from ..video_io import VideoReader, VideoWriter
from .argument_kinds import check_choice, check_type, checked_number, checked_whole, optional_whole, shown
from .color_correction import COLOR_CORRECTIONS, ColorCorrection
from .file_stream import FileStream, Report
from .pipeline_state import PipelineStreamState
from .pipeline_ultraflash import UltraFlashStreamingPipeline
from .resampling import target_size
from .sources.pipeline_audio import call_frame_rate
from .video_stream import VideoStream


@dataclass(frozen=True)
class LazyPipeline:
    """A pipeline that is loaded once the output is open and all that can be wrong with the files has been found.

    Args:
        config (`Mapping`): settings of the pipeline, as in its `model_index.json`.
        scale (`int`): of its latent upsampler.
        load (`Callable`): returns the pipeline, for frames of this height and width.
    """

    config: Mapping[str, Any]
    scale: int
    load: Callable[[int, int], UltraFlashStreamingPipeline]


def upscale_file(
    pipe: UltraFlashStreamingPipeline | LazyPipeline,
    source: str | Path | VideoReader,
    output: str | Path,
    *,
    prompt: str | None = None,
    scale: float | None = None,
    width: int | None = None,
    height: int | None = None,
    audio_tracks: Sequence[int] | None = None,
    seed: int = 0,
    num_inference_steps: int = 1,
    color_correction: ColorCorrection = "wavelet",
    strength: float = 1.0,
    crf: float = 18,
    resume: bool = False,
    overwrite: bool = False,
    save_every: float = 5.0,
    progress: bool = True,
    made_with: Mapping[str, str | int | float | None] | None = None,
) -> Report:
    """Upscales a video file of any length in constant memory: sound, subtitles, timestamps and colour tags are kept.

    Until it is finished, `OUTPUT.partial.mp4` holds what is done, and plays. After a kill, an error or a full disk the
    same call with `resume=True` goes on from there and makes the very file of an uninterrupted run.

    Args:
        pipe ([`UltraFlashStreamingPipeline`] or [`LazyPipeline`]): makes the frames.
        source (`str`, `Path` or [`VideoReader`]): the clip, or a folder of pictures. A reader chooses its track, how
            many frames, deinterlacing and whether more than 8 bits are kept; of a path they are.
        output (`str` or `Path`): the file to write, `.mp4`, `.m4v`, `.mov` or `.mkv`.
        prompt (`str`, *optional*): what the video shows, for checkpoints with a text encoder.
        scale (`float`, *optional*): by how much; frames are made at the pipeline's own scale, which is the default,
            and resampled to others.
        width, height (`int`, *optional*): pixels of the result, instead of `scale`; one of them keeps the aspect.
        audio_tracks (sequence of `int`, *optional*): which sounds are taken, from 0; all by default, none of `()`.
        seed (`int`, *optional*, defaults to 0): of the noise.
        num_inference_steps, color_correction, strength: see [`UltraFlashStreamingPipeline.stream`].
        crf (`float`, *optional*, defaults to 18): the encoder's rate factor, 1 (best) to 51.
        resume (`bool`, *optional*, defaults to `False`): goes on with an interrupted run, if there is one.
        overwrite (`bool`, *optional*, defaults to `False`): replaces `output` once all is done and, without `resume`,
            what an interrupted run left.
        save_every (`float`, *optional*, defaults to 5.0): least seconds between two states to go on from, see
            [`FileStream`].
        progress (`bool`, *optional*, defaults to `True`): shows a progress bar.
        made_with (`dict`, *optional*): what else decides the frames, such as the names of LoRA layers. A resumed run
            must have the same of all that decides them.

    Returns:
        [`Report`]: what was done, and how fast.

    Raises:
        FileExistsError, FileNotFoundError, OSError, ValueError: as [`VideoReader`], [`VideoWriter`] and
            [`UltraFlashStreamingPipeline.stream`] do; what concerns the files alone, before any work. A note of the
            error (`__notes__`) says what is kept and how to go on.
        MemoryError: frames of that size need more than there is.

    Examples:
    ```python
    >>> pipe = UltraFlashStreamingPipeline.from_pretrained(default_checkpoint())
    >>> report = upscale_file(pipe, "clip.mp4", "clip_2x.mp4", resume=True)
    >>> report.frames, report.fps
    ```
    """
    check_type("prompt", prompt, str)
    check_choice("color_correction", color_correction, COLOR_CORRECTIONS)
    width, height = optional_whole("width", width), optional_whole("height", height)
    strength = checked_number("strength", strength, 0, 1)
    seed, num_inference_steps, save_every = _checked(seed, num_inference_steps, save_every)
    reader = source if isinstance(source, VideoReader) else VideoReader(source, high_bit_depth=None)
    info, own = reader.info, _scale(pipe)
    size = target_size(info.width, info.height, scale=scale, target_width=width, target_height=height)
    made = (own * info.height, own * info.width)
    identity = {
        **_identity(pipe, made_with),
        **reader.choices,
        "prompt": prompt,
        "color_correction": color_correction,
        "strength": strength,
        "seed": seed,
        "steps": num_inference_steps,
    }
    writer = VideoWriter(
        output,
        *(size or (made[1], made[0])),
        source=reader,
        bit_depth=10 if reader.high_bit_depth else 8,
        # whoever names both sides means square pixels
        sample_aspect_ratio=Fraction(1) if width and height else None,
        audio_tracks=audio_tracks,
        crf=crf,
        resume=resume,
        overwrite=overwrite,
        made_with=identity,
    )
    with _finished_or_kept(writer):
        return FileStream(writer, info.num_frames, save_every, progress).run(
            lambda state: _stream(
                pipe,
                made,
                prompt,
                reader,
                num_inference_steps=num_inference_steps,
                generator=_generator(seed, state),
                color_correction=color_correction,
                strength=strength,
                output_type="np" if reader.high_bit_depth else "uint8",
                state=state,
            )
        )


def generate_file(
    pipe: UltraFlashStreamingPipeline | LazyPipeline,
    prompt: str,
    output: str | Path,
    *,
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
    fps: float | None = None,
    window_frames: int | None = None,
    sink_frames: int | None = None,
    source: DiffusionPipeline | None = None,
    source_kwargs: Mapping[str, Any] | None = None,
    seed: int = 0,
    num_inference_steps: int = 1,
    crf: float = 18,
    resume: bool = False,
    overwrite: bool = False,
    save_every: float = 5.0,
    progress: bool = True,
    made_with: Mapping[str, str | int | float | None] | None = None,
) -> Report:
    """Makes a video file of any length from text, in constant memory; interrupted and resumed as [`upscale_file`].

    Args:
        pipe ([`UltraFlashStreamingPipeline`] or [`LazyPipeline`]): with a generator of its own.
        prompt (`str`): what the video shows.
        height, width (`int`, *optional*): pixels of the result, both or none; the pipeline's own by default.
        num_frames (`int`, *optional*), fps (`float`, *optional*): likewise.
        window_frames, sink_frames (`int`, *optional*): see [`TextGeneratorSource`]; the generator's own by default.
        source (`DiffusionPipeline`, *optional*): makes the low-resolution video in the generator's place. Its sound,
            if it makes some, goes into the file, and `fps` is the rate that it is called with, if it is told one.
        source_kwargs (`dict`, *optional*): more for the generator, such as its steps or first frames, or for the call
            of `source`; see [`UltraFlashStreamingPipeline.stream`].
        output and all others: see [`upscale_file`].

    Returns:
        [`Report`]: what was done, and how fast.

    Raises:
        FileExistsError, FileNotFoundError, MemoryError, OSError, ValueError: as [`upscale_file`] does.
    """
    check_type("prompt", prompt, str)
    if not (prompt or "").strip():
        raise ValueError("`prompt` is empty: say what the video shows")
    if (height is None) != (width is None):
        raise ValueError(f"`height` is {height} and `width` is {width}: give both or none")
    config = pipe.config
    height = optional_whole("height", height) or config["default_height"]
    width = optional_whole("width", width) or config["default_width"]
    num_frames = optional_whole("num_frames", num_frames) or config["default_num_frames"]
    check_type("source", source, DiffusionPipeline)
    check_type("source_kwargs", source_kwargs, Mapping)
    keywords = dict(source_kwargs or {})
    rate: float | Fraction | None = fps
    if rate is None and source is not None:
        rate = call_frame_rate(source, keywords)
    window_frames = optional_whole("window_frames", window_frames)
    sink_frames = optional_whole("sink_frames", sink_frames, least=0)
    seed, num_inference_steps, save_every = _checked(seed, num_inference_steps, save_every)
    identity = {
        **_identity(pipe, made_with),
        "prompt": prompt,
        "num_frames": num_frames,
        "window_frames": window_frames,
        "sink_frames": sink_frames,
        "source": None if source is None else type(source).__name__,
        **{name: _recorded(value) for name, value in keywords.items()},
        "seed": seed,
        "steps": num_inference_steps,
    }
    window = {"window_frames": window_frames, "sink_frames": sink_frames}
    keywords |= {name: value for name, value in window.items() if value is not None}
    writer = VideoWriter(
        output,
        width,
        height,
        fps=config["default_fps"] if rate is None else rate,
        crf=crf,
        resume=resume,
        overwrite=overwrite,
        made_with=identity,
    )
    with _finished_or_kept(writer):
        return FileStream(writer, num_frames, save_every, progress).run(
            lambda state: _stream(
                pipe,
                (height, width),
                prompt,
                source,
                height=height,
                width=width,
                num_frames=num_frames,
                num_inference_steps=num_inference_steps,
                generator=_generator(seed, state),
                source_kwargs=keywords,
                output_type="uint8",
                state=state,
            )
        )


def _checked(seed: int, num_inference_steps: int, save_every: float) -> tuple[int, int, float]:
    return (
        checked_whole("seed", seed, least=0, most=2**64 - 1),
        checked_whole("num_inference_steps", num_inference_steps),
        checked_number("save_every", save_every, 0),
    )


def _scale(pipe: UltraFlashStreamingPipeline | LazyPipeline) -> int:
    return pipe.scale if isinstance(pipe, LazyPipeline) else pipe.latent_upsampler.config.scale


def _stream(
    pipe: UltraFlashStreamingPipeline | LazyPipeline, size: tuple[int, int], *arguments: Any, **keywords: Any
) -> VideoStream:
    """Starts a stream without the pipeline's own progress bar, in whose lines that of the file would be lost."""
    loaded = pipe.load(*size) if isinstance(pipe, LazyPipeline) else pipe
    shown = getattr(loaded, "_progress_bar_config", {})
    loaded.set_progress_bar_config(**shown | {"disable": True})
    try:
        return loaded.stream(*arguments, **keywords)
    finally:
        loaded.set_progress_bar_config(**shown)


def _identity(
    pipe: UltraFlashStreamingPipeline | LazyPipeline, made_with: Mapping[str, Any] | None
) -> dict[str, str | int | float | None]:
    """What decides the frames beside the arguments; whoever loads later says it in `made_with`."""
    own = {} if isinstance(pipe, LazyPipeline) else {"checkpoint": str(pipe.name_or_path), "dtype": str(pipe.dtype)}
    return {**own, **(made_with or {})}


def _recorded(value: Any) -> str | int | float | None:
    """An argument as data by which a resumed run is compared with the one before: pictures and arrays by content."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, PIL.Image.Image | np.ndarray | torch.Tensor):
        array = value.detach().float().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        return hashlib.sha256(f"{array.shape} {array.dtype}".encode() + array.tobytes()).hexdigest()[:32]
    return shown(value) if isinstance(value, list | tuple) else type(value).__name__


def _generator(seed: int, state: PipelineStreamState | None) -> torch.Generator | None:
    # a resumed stream keeps its seeds
    return torch.Generator().manual_seed(seed) if state is None else None


@contextmanager
def _finished_or_kept(writer: VideoWriter) -> Iterator[None]:
    """Finishes the file at the end; an error gets a note of what is kept, and of how to go on."""
    try:
        with writer:
            yield
    except BaseException as error:
        if not _is_out_of_memory(error):
            error.add_note(_what_is_kept(writer))
            raise
        size = f"{writer.settings.width}x{writer.settings.height}"
        shortage = MemoryError(f"{size} frames need more memory than there is: {error}")
        shortage.add_note(_what_is_kept(writer))
        raise shortage from error


def _what_is_kept(writer: VideoWriter) -> str:
    if not writer.partial_path.exists() or not writer.frames_written:
        return "nothing was finished that could be kept"
    kept = f"{writer.frames_written} frames are kept in {writer.partial_path}, which plays"
    if not writer.frames_done:
        return f"{kept}; the same again with resume=True begins anew"
    return f"{kept}; the same again with resume=True goes on from frame {writer.frames_done}"


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # PyTorch has no class of its own for what the CPU's allocator says
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
