# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What may be trained along with a stage's own network: the autoencoder's decoder, and the latent upsampler."""

from __future__ import annotations

from dataclasses import dataclass

from ...models.causal_latent_upsampler import CausalLatentUpsampler
from ...models.hr_autoencoder import HRAutoencoder
from ..settings import Positive, Settings
from ..starting_points.networks import decoder_parameters, upsampler_parameters


@dataclass(frozen=True)
class DecoderTuning(Settings):
    """Whether the autoencoder's decoder is trained along.

    Args:
        train_decoder (`bool`, *optional*, defaults to `False`): tunes the decoder along with the network.
        decoder_learning_rate (`float`, *optional*): with `train_decoder`; 0.3 times the other one by default.
        reconstruction_every (`int`, *optional*): with `train_decoder`: one step in so many, drawn at random, decodes
            the clips' own latents, which the decoder must not forget; none by default. What is logged of training is
            then of both kinds of steps.

    Raises:
        ValueError: settings of a decoder that is not trained, or no step for anything else.
    """

    train_decoder: bool = False
    decoder_learning_rate: Positive[float] | None = None
    reconstruction_every: Positive[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("decoder_learning_rate", "reconstruction_every"):
            if getattr(self, name) is not None and not self.train_decoder:
                raise ValueError(f"`{name}` needs `train_decoder`")
        if self.reconstruction_every == 1:
            raise ValueError("`reconstruction_every` 1 leaves no step to what is trained beside: it must be 2 or more")

    def parameter_groups(self, autoencoder: HRAutoencoder, learning_rate: float) -> list[dict]:
        """The optimiser's group of the decoder, if it is trained."""
        if not self.train_decoder:
            return []
        rate = 0.3 * learning_rate if self.decoder_learning_rate is None else self.decoder_learning_rate
        return [{"params": decoder_parameters(autoencoder), "lr": rate}]


@dataclass(frozen=True)
class UpsamplerTuning(Settings):
    """Whether the latent upsampler is trained along.

    Args:
        train_latent_upsampler (`bool`, *optional*, defaults to `False`): tunes the upsampler along with the network.
        latent_upsampler_learning_rate (`float`, *optional*): 0.7 times the other one by default.
        condition_every (`int`, *optional*): with `train_latent_upsampler`: one step in so many, drawn at random,
            compares the upsampler's own result, without the contrast term: it stays a picture that can be decoded, and
            the details are left to the transformer; 5 by default.

    Raises:
        ValueError: settings of an upsampler that is not trained, or no step for the transformer.
    """

    train_latent_upsampler: bool = False
    latent_upsampler_learning_rate: Positive[float] | None = None
    condition_every: Positive[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("latent_upsampler_learning_rate", "condition_every"):
            if getattr(self, name) is not None and not self.train_latent_upsampler:
                raise ValueError(f"`{name}` needs `train_latent_upsampler`")
        if self.condition_every == 1:
            raise ValueError("`condition_every` 1 leaves no step to the transformer: it must be 2 or more")

    @property
    def every(self) -> int | None:
        """One step in so many compares the upsampler's own result."""
        return 5 if self.train_latent_upsampler and self.condition_every is None else self.condition_every

    def parameter_groups(self, upsampler: CausalLatentUpsampler, learning_rate: float) -> list[dict]:
        """The optimiser's group of the upsampler, if it is trained."""
        if not self.train_latent_upsampler:
            return []
        given = self.latent_upsampler_learning_rate
        rate = 0.7 * learning_rate if given is None else given
        return [{"params": upsampler_parameters(upsampler), "lr": rate}]


def check_decoding(decode_linearly: bool, decoder: DecoderTuning) -> None:
    """Checks that a decoder that is to be trained is used.

    Raises:
        ValueError: it is not.
    """
    if decoder.train_decoder and decode_linearly:
        raise ValueError("`decode_linearly` leaves out the decoder that `train_decoder` would train")
