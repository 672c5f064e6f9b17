# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What a pipeline has decided about how its streams run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ExecutionPlan:
    """Decisions of [`~UltraFlashStreamingPipeline.optimize`] that are the pipeline's own.

    They are not kept on the networks, which other pipelines may share.

    Args:
        cache_text (`bool`, *optional*, defaults to `False`): whether streams compute the keys and values of a prompt
            once a prompt. Adapters that change in mid-stream then reach the next prompt only.
        cuda_graphs (`bool`, *optional*, defaults to `False`): whether one-step streams replay the groups of the SR
            transformer as a CUDA graph.
        chunk_room (`bool`, *optional*, defaults to `False`): whether the text generator's rolling cache has room for a
            chunk, so that the window is not copied in each pass.
    """

    cache_text: bool = False
    cuda_graphs: bool = False
    chunk_room: bool = False
