# pip install ultraflash_diffusers
from ultraflash_diffusers.models.causal_wan_transformer import CausalWanTransformer

__all__ = ["CausalWanTransformer"]
