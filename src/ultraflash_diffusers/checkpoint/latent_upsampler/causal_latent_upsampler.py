# pip install ultraflash_diffusers
from ultraflash_diffusers.models.causal_latent_upsampler import CausalLatentUpsampler

__all__ = ["CausalLatentUpsampler"]
