# pip install ultraflash_diffusers
from ultraflash_diffusers.models.ultraflash_sr_transformer import UltraFlashSRTransformer

__all__ = ["UltraFlashSRTransformer"]
