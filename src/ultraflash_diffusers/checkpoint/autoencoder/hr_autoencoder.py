# pip install ultraflash_diffusers
from ultraflash_diffusers.models.hr_autoencoder import HRAutoencoder

__all__ = ["HRAutoencoder"]
