"""For `DiffusionPipeline.from_pretrained`. Needs `pip install ultraflash_diffusers`."""

from ultraflash_diffusers import UltraFlashStreamingPipeline

__all__ = ["UltraFlashStreamingPipeline"]
