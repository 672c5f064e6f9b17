# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Ultra Flash for diffusers: high-resolution video while it is being generated.

The public names are imported when they are first used, so that importing the package (and `ultraflash --help`) takes
no time. `ModelMixin` and `SchedulerMixin` are among them because diffusers looks them up here when it loads a
component that a `model_index.json` lists under `ultraflash_diffusers` (see `ultraflash_diffusers.models`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .lazy_names import lazy_names
from .torchao_notices import hide_on_cpu_builds

if TYPE_CHECKING:  # for editors and type checkers, which cannot follow `_EXPORTS`
    from .models.causal_latent_upsampler import CausalLatentUpsampler as CausalLatentUpsampler
    from .models.causal_wan_transformer import CausalWanTransformer as CausalWanTransformer
    from .models.hr_autoencoder import HRAutoencoder as HRAutoencoder
    from .models.stream_state import StreamState as StreamState
    from .models.ultraflash_sr_transformer import UltraFlashSRTransformer as UltraFlashSRTransformer
    from .pipelines.cache_management import DynamicCacheManagement as DynamicCacheManagement
    from .pipelines.modular_block import UltraFlashUpscaleStep as UltraFlashUpscaleStep
    from .pipelines.pipeline_output import StreamChunk as StreamChunk
    from .pipelines.pipeline_output import UltraFlashPipelineOutput as UltraFlashPipelineOutput
    from .pipelines.pipeline_state import PipelineStreamState as PipelineStreamState
    from .pipelines.pipeline_ultraflash import UltraFlashStreamingPipeline as UltraFlashStreamingPipeline
    from .pipelines.video_files import generate_file as generate_file
    from .pipelines.video_files import upscale_file as upscale_file
    from .rewards.quality_scorer import QualityScorer as QualityScorer

__version__ = "0.1.0"

_EXPORTS = {
    "CausalLatentUpsampler": ".models.causal_latent_upsampler",
    "CausalWanTransformer": ".models.causal_wan_transformer",
    "DynamicCacheManagement": ".pipelines.cache_management",
    "HRAutoencoder": ".models.hr_autoencoder",
    "ModelMixin": "diffusers",
    "PipelineStreamState": ".pipelines.pipeline_state",
    "QualityScorer": ".rewards.quality_scorer",
    "SchedulerMixin": "diffusers",
    "StreamChunk": ".pipelines.pipeline_output",
    "StreamState": ".models.stream_state",
    "UltraFlashPipelineOutput": ".pipelines.pipeline_output",
    "UltraFlashSRTransformer": ".models.ultraflash_sr_transformer",
    "UltraFlashStreamingPipeline": ".pipelines.pipeline_ultraflash",
    "UltraFlashUpscaleStep": ".pipelines.modular_block",
    "generate_file": ".pipelines.video_files",
    "upscale_file": ".pipelines.video_files",
}

__all__ = [*_EXPORTS, "__version__", "default_checkpoint"]


hide_on_cpu_builds()


def default_checkpoint() -> Path:
    """Returns the folder of the small checkpoint that ships with the package.

    Raises:
        FileNotFoundError: this installation holds none.
    """
    folder = Path(__file__).parent / "checkpoint"
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(f"no packaged checkpoint in {folder}: name a checkpoint of your own instead")
    return folder


__getattr__, __dir__ = lazy_names(__name__, _EXPORTS)
