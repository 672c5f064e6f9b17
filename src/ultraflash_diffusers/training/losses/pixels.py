# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The weighted sum of pixel losses that all stages share (paper, "SR fine-tune", "Latent upsampler", "Phase I")."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch.nn import functional as F

from ...pipelines.color_correction import wavelet_color_correction
from ..settings import NonNegative, Positive, Settings
from .details import contrast_loss, wavelet_loss
from .fidelity import charbonnier, ssim_loss
from .temporal import temporal_difference_loss, warped_temporal_loss

# of the pixel losses before color correction, where they are computed after it: the network still learns the colours
UNCORRECTED_WEIGHT = 0.3


@dataclass(frozen=True)
class PixelLoss(Settings):
    """The weighted sum of pixel losses that all stages share; a weight of 0 leaves a term out.

    Args:
        charbonnier_weight (`float`, *optional*, defaults to 1.0): of [`charbonnier`].
        mse_weight (`float`, *optional*, defaults to 10.0): of the mean squared error.
        temporal_weight (`float`, *optional*, defaults to 0.25): of the temporal loss.
        temporal_loss (`str`, *optional*, defaults to `"warped"`): [`warped_temporal_loss`] (the paper's) or
            `"difference"`, [`temporal_difference_loss`].
        wavelet_weight (`float`, *optional*, defaults to 0.0): of [`wavelet_loss`].
        wavelet_levels (`int`, *optional*, defaults to 1): of [`wavelet_loss`].
        ssim_weight (`float`, *optional*, defaults to 0.0): of [`ssim_loss`].
        contrast_weight (`float`, *optional*, defaults to 0.0): of [`contrast_loss`].
        color_correction_levels (`int`, *optional*): compares what is left after [`wavelet_color_correction`] with this
            many levels, as a pipeline that ends with it gives it back; 0.3 times the loss before it is added. `None`
            for no correction.
    """

    charbonnier_weight: NonNegative[float] = 1.0
    mse_weight: NonNegative[float] = 10.0
    temporal_weight: NonNegative[float] = 0.25
    temporal_loss: Literal["warped", "difference"] = "warped"
    wavelet_weight: NonNegative[float] = 0.0
    ssim_weight: NonNegative[float] = 0.0
    contrast_weight: NonNegative[float] = 0.0
    wavelet_levels: Positive[int] = 1
    color_correction_levels: Positive[int] | None = None

    @property
    def needs_flow(self) -> bool:
        return self.temporal_weight > 0 and self.temporal_loss == "warped"

    @property
    def is_empty(self) -> bool:
        """Whether no term has a weight, so that nothing needs to be decoded."""
        return not any(getattr(self, part.name) for part in fields(self) if part.name.endswith("_weight"))

    def __call__(
        self,
        prediction: torch.Tensor,
        target: torch.Tensor,
        flow: torch.Tensor | None = None,
        low: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Returns the weighted terms by name, computed in float32.

        Args:
            prediction (`torch.Tensor`): `[batch, 3, frames, height, width]`, nominally in [-1, 1].
            target (`torch.Tensor`): the same shape.
            flow (`torch.Tensor`, *optional*): of the target's frames; needed where `needs_flow` says so.
            low (`torch.Tensor`, *optional*): `[batch, 3, frames, height / scale, width / scale]`, the source that
                gives its colours; nothing is corrected without it.
        """
        prediction = prediction.float()
        terms = self._terms(self.corrected(prediction, low), target, flow)
        if self.color_correction_levels is not None:
            # there for every batch, because processes average what they log; without a source it is counted already
            weight = 0.0 if low is None else UNCORRECTED_WEIGHT
            before = torch.stack(list(self._terms(prediction, target, flow).values()))
            terms["uncorrected"] = weight * before.sum()
        return terms

    def corrected(self, prediction: torch.Tensor, low: torch.Tensor | None) -> torch.Tensor:
        """Returns `prediction` in the colours of `low`, or as it is without levels or `low`; float32."""
        prediction = prediction.float()
        if self.color_correction_levels is None or low is None:
            return prediction
        # matrix products: half precision would round the colours
        with torch.autocast(prediction.device.type, enabled=False):
            return wavelet_color_correction(prediction, low, self.color_correction_levels)

    def _terms(
        self, prediction: torch.Tensor, target: torch.Tensor, flow: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        terms = {}
        if self.charbonnier_weight > 0:
            terms["charbonnier"] = self.charbonnier_weight * charbonnier(prediction, target)
        if self.mse_weight > 0:
            terms["mse"] = self.mse_weight * F.mse_loss(prediction, target)
        if self.temporal_weight > 0 and prediction.shape[2] > 1:
            terms["temporal"] = self.temporal_weight * self._temporal(prediction, target, flow)
        if self.wavelet_weight > 0:
            terms["wavelet"] = self.wavelet_weight * wavelet_loss(prediction, target, self.wavelet_levels)
        if self.ssim_weight > 0:
            terms["ssim"] = self.ssim_weight * ssim_loss(prediction, target)
        if self.contrast_weight > 0:
            terms["contrast"] = self.contrast_weight * contrast_loss(prediction, target)
        return terms

    def _temporal(self, prediction: torch.Tensor, target: torch.Tensor, flow: torch.Tensor | None) -> torch.Tensor:
        if self.temporal_loss == "difference":
            return temporal_difference_loss(prediction, target)
        if flow is None:
            raise ValueError("`flow` is needed by the warped temporal loss")
        return warped_temporal_loss(prediction, flow)
