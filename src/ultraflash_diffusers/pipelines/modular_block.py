# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The cascade as a block of modular diffusers: behind any workflow that makes videos."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import torch
from diffusers import ModularPipeline, ModularPipelineBlocks
from diffusers.modular_pipelines import ComponentSpec, InputParam, OutputParam, PipelineState

from .pipeline_ultraflash import UltraFlashStreamingPipeline


class UltraFlashUpscaleStep(ModularPipelineBlocks):
    """Replaces a workflow's `videos` by larger ones.

    Its component `upscaler` is a whole [`UltraFlashStreamingPipeline`], so that its networks, settings and LoRA layers
    keep out of the way of the workflow's own. Insert the block after the one that decodes:

    ```python
    blocks = SequentialPipelineBlocks.from_blocks_dict({"base": workflow_blocks, "upscale": UltraFlashUpscaleStep()})
    workflow = blocks.init_pipeline(folder_of_the_base)
    workflow.load_components()
    workflow.update_components(upscaler=UltraFlashStreamingPipeline.from_pretrained(folder))
    videos = workflow(prompt="a red ball", output="videos")
    ```
    """

    @property
    def description(self) -> str:
        return "Step that upscales the videos of the blocks before it, group by group"

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [ComponentSpec("upscaler", UltraFlashStreamingPipeline)]

    @property
    def inputs(self) -> list[InputParam]:
        return [
            InputParam("videos", required=True, description="Low-resolution videos: pictures, arrays or tensors."),
            InputParam("generator", type_hint=torch.Generator, description="Seeds the super-resolution's noise."),
            InputParam("output_type", type_hint=str, default="np", description="'pil', 'np', 'pt' or 'uint8'."),
            InputParam(
                "color_correction",
                type_hint=str,
                default="wavelet",
                description="'wavelet' keeps the low frequencies of the given videos, 'none' does not.",
            ),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [OutputParam("videos", description="The videos, as many times larger as the upscaler makes them.")]

    @torch.no_grad()
    def __call__(self, components: ModularPipeline, state: PipelineState) -> tuple[ModularPipeline, PipelineState]:
        block_state = self.get_block_state(state)
        if components.upscaler is None:
            raise ValueError(
                "`upscaler` is not loaded: call `update_components(upscaler=UltraFlashStreamingPipeline."
                "from_pretrained(...))` or `load_components()` first"
            )
        _follow_device(components)
        block_state.videos = components.upscaler(
            source=block_state.videos,
            generator=block_state.generator,
            output_type=block_state.output_type,
            color_correction=block_state.color_correction,
        ).frames
        self.set_block_state(state, block_state)
        return components, state

    def save_config(self, save_directory: str | PathLike[str], push_to_hub: bool = False, **keywords: Any) -> None:
        """Writes what `save_pretrained` keeps of a block, and a file by which `ModularPipelineBlocks.from_pretrained(
        folder, trust_remote_code=True)` finds the class."""
        folder, module, name = Path(save_directory), type(self).__module__, type(self).__name__
        folder.mkdir(parents=True, exist_ok=True)
        code = f'# pip install ultraflash_diffusers\nfrom {module} import {name}\n\n__all__ = ["{name}"]\n'
        (folder / f"{module.rpartition('.')[2]}.py").write_text(code)  # before: `push_to_hub` uploads at the end
        super().save_config(str(save_directory), push_to_hub=push_to_hub, **keywords)


def _follow_device(components: ModularPipeline) -> None:
    """Brings the upscaler to where the workflow runs, whose `to` moves networks alone; not where it is offloaded."""
    upscaler, networks = components.upscaler, components.components.values()
    is_offloaded = upscaler._execution_device != upscaler.device
    if not is_offloaded and any(isinstance(network, torch.nn.Module) for network in networks):
        upscaler.to(components._execution_device)
