# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""`ultraflash generate`: a prompt in, a video out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .pipeline_options import (
    add_output_options,
    add_pipeline_options,
    add_stream_options,
    add_strict,
    checkpoint_name,
    chosen_dtype,
    load_pipeline,
    missing_components,
    natural,
    pipeline_index,
    positive,
)

if TYPE_CHECKING:
    from ..pipelines.video_stream import PipelineStreamState, VideoStream

    SubParsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_generate(commands: SubParsers) -> argparse.ArgumentParser:
    """Declares the sub-command and returns its parser."""
    command = commands.add_parser(
        "generate",
        help="a video from a prompt",
        description="Generates a video from text with a checkpoint that holds a text generator. Until it is finished, "
        "OUTPUT.partial.mp4 holds what is done, and plays; --resume goes on from it.",
    )
    command.add_argument("prompt", metavar="PROMPT", help="what the video shows")
    command.add_argument(
        "--output",
        type=Path,
        default=Path("ultraflash.mp4"),
        help="file to write: .mp4, .m4v, .mov or .mkv (default: %(default)s)",
    )
    command.add_argument("--height", type=positive, help="pixels of the result; the checkpoint's own by default")
    command.add_argument("--width", type=positive, help="likewise")
    command.add_argument("--num-frames", type=positive, metavar="N", help="frames; the checkpoint's own by default")
    command.add_argument("--fps", type=positive, help="frames a second; the checkpoint's own by default")
    command.add_argument(
        "--window-frames",
        type=positive,
        metavar="N",
        help="latent frames that the generator looks back at, for long videos; its own by default",
    )
    command.add_argument(
        "--sink-frames",
        type=natural,
        metavar="N",
        help="of these, how many always are the video's first ones; the generator's own by default",
    )
    add_strict(command)
    add_stream_options(command)
    add_pipeline_options(command)
    add_output_options(command)
    command.set_defaults(run=_run)
    return command


def _run(options: argparse.Namespace) -> None:
    from ..pipelines.file_stream import FileStream
    from .output_file import opened_writer

    if not options.prompt.strip():
        raise ValueError("PROMPT is empty: say what the video shows")
    _check_generator(checkpoint_name(options))
    _take_defaults(options)
    size = (options.width, options.height)
    with opened_writer(options, *size, fps=options.fps, made_with=_made_with(options)) as writer:
        stream = FileStream(writer, options.num_frames, options.save_every, progress=not options.json)
        report = stream.run(lambda state: _stream(options, state))
    report.show(options.json)


def _check_generator(checkpoint: str) -> None:
    missing = missing_components(checkpoint, "generator_transformer", "text_encoder", "tokenizer")
    if missing:
        raise ValueError(
            f"this checkpoint has no {', '.join(missing)}, so it cannot make video from text: name one that has "
            "with --checkpoint (`ultraflash convert` makes the networks from published weights), or use "
            "`ultraflash upscale` on a video"
        )


def _take_defaults(options: argparse.Namespace) -> None:
    """Puts the checkpoint's own in the place of what was not given."""
    if (options.height is None) != (options.width is None):
        raise ValueError(f"--height is {options.height} and --width is {options.width}: give both or none")
    index = pipeline_index(checkpoint_name(options))
    for name in ("height", "width", "num_frames", "fps"):
        if getattr(options, name) is None:
            setattr(options, name, index[f"default_{name}"])


def _made_with(options: argparse.Namespace) -> dict[str, Any]:
    """What the frames depend on, beside their size."""
    return {
        "checkpoint": options.checkpoint,
        "dtype": chosen_dtype(options),
        "memory": options.memory,
        "prompt": options.prompt,
        "num_frames": options.num_frames,
        "window_frames": options.window_frames,
        "sink_frames": options.sink_frames,
        "seed": options.seed,
        "steps": options.steps,
    }


def _stream(options: argparse.Namespace, state: PipelineStreamState | None) -> VideoStream:
    import torch

    pipe = load_pipeline(options, (options.height, options.width))
    pipe.strict_prompts = options.strict
    return pipe.stream(
        options.prompt,
        height=options.height,
        width=options.width,
        num_frames=options.num_frames,
        num_inference_steps=options.steps,
        # a resumed stream keeps its seeds
        generator=torch.Generator().manual_seed(options.seed) if state is None else None,
        source_kwargs={"window_frames": options.window_frames, "sink_frames": options.sink_frames},
        output_type="uint8",
        state=state,
    )
