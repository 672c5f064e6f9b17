# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Three nodes: load a pipeline, upscale a VIDEO, make one from text. Both stream into a file, in constant memory."""

from __future__ import annotations

import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import comfy.model_management as management
import comfy.utils
import folder_paths
import numpy as np
import torch
from comfy_api.latest import ComfyExtension, Input, InputImpl, io

from ultraflash_diffusers import UltraFlashStreamingPipeline, default_checkpoint
from ultraflash_diffusers.pipelines.color_correction import ColorCorrection
from ultraflash_diffusers.pipelines.memory_plan import peak_bytes, plan_memory
from ultraflash_diffusers.pipelines.video_stream import VideoStream
from ultraflash_diffusers.video_io import VideoReader, VideoWriter

PACKAGED = "packaged"
PRECISIONS = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Pipeline = io.Custom("ULTRAFLASH_PIPELINE")


class LoadUltraFlash(io.ComfyNode):
    """Loads a pipeline from a folder or the Hub onto ComfyUI's device."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UltraFlashLoad",
            display_name="Load Ultra Flash",
            category="video/Ultra Flash",
            description="A pipeline folder or Hub repository; 'packaged' is the small one that comes along.",
            inputs=[
                io.String.Input("checkpoint", default=PACKAGED),
                io.Combo.Input("precision", options=list(PRECISIONS), default="auto"),
            ],
            outputs=[Pipeline.Output(display_name="pipeline")],
        )

    @classmethod
    def execute(cls, checkpoint: str, precision: str) -> io.NodeOutput:
        device = management.get_torch_device()
        dtype = PRECISIONS[precision] or (torch.float32 if device.type == "cpu" else torch.bfloat16)
        name = default_checkpoint() if checkpoint.strip() in ("", PACKAGED) else checkpoint.strip()
        pipe = UltraFlashStreamingPipeline.from_pretrained(name, dtype=dtype).to(device)
        pipe.set_progress_bar_config(disable=True)
        return io.NodeOutput(pipe)


class UpscaleVideo(io.ComfyNode):
    """Upscales a VIDEO by the pipeline's own factor; sound and timestamps are kept."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UltraFlashUpscale",
            display_name="Upscale Video (Ultra Flash)",
            category="video/Ultra Flash",
            inputs=[
                Pipeline.Input("pipeline"),
                io.Video.Input("video"),
                io.Combo.Input("color_correction", options=["wavelet", "none"], default="wavelet"),
                io.Int.Input("seed", default=0, min=0, max=2**63 - 1, control_after_generate=True),
            ],
            outputs=[io.Video.Output(display_name="video")],
        )

    @classmethod
    def execute(
        cls, pipeline: UltraFlashStreamingPipeline, video: Input.Video, color_correction: ColorCorrection, seed: int
    ) -> io.NodeOutput:
        source = _new_file("source")
        video.save_to(str(source))  # as it is: trimmed and cropped as the node before says
        reader = VideoReader(source)
        scale = pipeline.latent_upsampler.config.scale
        width, height = scale * reader.info.width, scale * reader.info.height
        make_room(pipeline, height, width)
        generator = torch.Generator().manual_seed(seed)
        stream = pipeline.stream(
            source=reader, generator=generator, color_correction=color_correction, output_type="uint8"
        )
        with VideoWriter(_new_file("upscaled"), width, height, source=reader) as writer:
            write_stream(stream, writer, reader.info.num_frames, reader.info.time_base)
        source.unlink()
        return io.NodeOutput(InputImpl.VideoFromFile(str(writer.path)))


class TextToVideo(io.ComfyNode):
    """Makes a VIDEO from text, where the pipeline has a text generator."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UltraFlashTextToVideo",
            display_name="Text to Video (Ultra Flash)",
            category="video/Ultra Flash",
            inputs=[
                Pipeline.Input("pipeline"),
                io.String.Input("prompt", multiline=True, default="a red ball glides to the left over sand"),
                io.Int.Input("width", default=0, min=0, max=8192, tooltip="0: the pipeline's own"),
                io.Int.Input("height", default=0, min=0, max=8192, tooltip="0: the pipeline's own"),
                io.Int.Input("num_frames", default=0, min=0, max=100_000, tooltip="0: the pipeline's own"),
                io.Int.Input("seed", default=0, min=0, max=2**63 - 1, control_after_generate=True),
            ],
            outputs=[io.Video.Output(display_name="video")],
        )

    @classmethod
    def execute(
        cls, pipeline: UltraFlashStreamingPipeline, prompt: str, width: int, height: int, num_frames: int, seed: int
    ) -> io.NodeOutput:
        config = pipeline.config
        width, height = width or config.default_width, height or config.default_height
        num_frames = num_frames or config.default_num_frames
        make_room(pipeline, height, width)
        generator = torch.Generator().manual_seed(seed)
        stream = pipeline.stream(
            prompt, height=height, width=width, num_frames=num_frames, generator=generator, output_type="uint8"
        )
        with VideoWriter(_new_file("generated"), width, height, fps=config.default_fps) as writer:
            write_stream(stream, writer, num_frames)
        return io.NodeOutput(InputImpl.VideoFromFile(str(writer.path)))


def write_stream(
    stream: VideoStream, writer: VideoWriter, num_frames: int | None, time_base: Fraction | None = None
) -> None:
    """Writes chunk by chunk, shows the progress, and ends where ComfyUI is told to stop.

    Args:
        stream ([`VideoStream`]): with `output_type="uint8"`.
        writer ([`VideoWriter`]): takes the frames.
        num_frames (`int`, *optional*): to come, as far as known.
        time_base (`Fraction`, *optional*): of the writer's timestamps, where the source has some.
    """
    progress = comfy.utils.ProgressBar(num_frames or 0)
    with stream:
        for chunk in stream:
            management.throw_exception_if_processing_interrupted()
            frames = np.asarray(chunk.frames[0])
            if time_base is None or chunk.times is None:
                writer.write(frames)
            else:
                ticks = [(round(start / time_base), round(length / time_base)) for start, length in chunk.times]
                writer.write(frames, *zip(*ticks, strict=True))
            progress.update_absolute(chunk.frame_range[1], max(num_frames or 0, chunk.frame_range[1]))


def make_room(pipeline: UltraFlashStreamingPipeline, height: int, width: int) -> None:
    """Has ComfyUI unload other models as far as the planned memory needs it.

    Args:
        pipeline ([`UltraFlashStreamingPipeline`]): already on its device.
        height, width (`int`): of the result.

    Raises:
        MemoryError: that is not enough: before anything runs, with the bytes that are missing and what would help.
    """
    device = management.get_torch_device()
    if device.type == "cpu":
        return
    plan = plan_memory(_on_meta(pipeline), height, width)
    needed = peak_bytes(plan, overlapped=pipeline.overlap_decoding) - sum(plan["weights"].values())
    management.free_memory(needed, device)
    free = management.get_free_memory(device)
    if free < needed:
        raise MemoryError(
            f"{width}x{height} needs {needed / 1e9:.1f} GB on {device} beside the weights, {free / 1e9:.1f} GB are "
            "free: choose a smaller size, or a pipeline with fewer `kv_cache_blocks`"
        )


def _on_meta(pipeline: UltraFlashStreamingPipeline) -> UltraFlashStreamingPipeline:
    """The same networks without weights, to plan with."""
    names = ("transformer", "latent_upsampler", "autoencoder", "generator_transformer")
    networks: dict[str, Any] = {}
    with torch.device("meta"):
        for name in names:
            network = getattr(pipeline, name)
            networks[name] = network and type(network).from_config(network.config).to(network.dtype)
    config = {name: pipeline.config[name] for name in ("group_frames", "kv_cache_blocks", "color_correction_levels")}
    return UltraFlashStreamingPipeline(**networks, scheduler=pipeline.scheduler, **config)


def _new_file(name: str) -> Path:
    """A file of ComfyUI's temporary folder, which it empties by itself."""
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f"ultraflash_{name}_", dir=folder)) / f"{name}.mp4"


class UltraFlashExtension(ComfyExtension):
    """What ComfyUI finds here."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [LoadUltraFlash, UpscaleVideo, TextToVideo]


async def comfy_entrypoint() -> UltraFlashExtension:
    return UltraFlashExtension()
