# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Losses on pixels and the sampling of flow matching (paper, "SR fine-tune", "Latent upsampler", "Phase I")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional as F

from ...pipelines.color_correction import wavelet_color_correction
from ...pipelines.samplers import shift_sigma
from ...pixels import to_unit

# of the pixel losses before color correction, where they are computed after it: the network still learns the colours
UNCORRECTED_WEIGHT = 0.3


def charbonnier(prediction: torch.Tensor, target: torch.Tensor, epsilon: float = 1e-2) -> torch.Tensor:
    """Mean of `sqrt((prediction - target)^2 + epsilon^2)`: an L1 loss that is smooth at zero.

    Args:
        prediction (`torch.Tensor`): any shape.
        target (`torch.Tensor`): the same shape.
        epsilon (`float`, *optional*, defaults to 1e-2): below it the loss is quadratic; also the least value.
    """
    return torch.sqrt((prediction - target).square() + epsilon**2).mean()


def warp(frames: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """Fetches each pixel from where the flow points, bilinearly; outside there are zeros.

    Args:
        frames (`torch.Tensor`): `[n, channels, height, width]`.
        flow (`torch.Tensor`): `[n, 2, height, width]`, pixels to the right and down.
    """
    height, width = frames.shape[-2:]
    rows = torch.arange(height, device=flow.device, dtype=flow.dtype)[:, None]
    columns = torch.arange(width, device=flow.device, dtype=flow.dtype)
    # pixel centres, in [-1, 1] from border to border
    x = (2 * (columns + flow[:, 0]) + 1) / width - 1
    y = (2 * (rows + flow[:, 1]) + 1) / height - 1
    return F.grid_sample(frames, torch.stack([x, y], dim=-1).to(frames.dtype), align_corners=False)


def warped_temporal_loss(prediction: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """Flow-warped temporal loss (paper): the mean over t of `|x_t - warp(x_{t-1}, F_t)|`, where the flow stays inside.

    The flow is that of the target's frames, so that the prediction has to move as the target does.

    Args:
        prediction (`torch.Tensor`): `[batch, channels, frames, height, width]`, at least two frames.
        flow (`torch.Tensor`): `[batch, frames - 1, 2, height, width]` from [`optical_flow`]: for each pixel of frame
            t, the way to where it was in frame t - 1.
    """
    current, past = (frames.transpose(1, 2).flatten(0, 1) for frames in (prediction[:, :, 1:], prediction[:, :, :-1]))
    flow = flow.flatten(0, 1).to(prediction.dtype)
    inside = warp(torch.ones_like(current[:, :1]), flow) > 0.999
    error = (current - warp(past, flow)).abs() * inside
    return error.sum() / (inside.sum() * prediction.shape[1]).clamp_min(1)


def temporal_difference_loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean of `|(x_t - x_{t-1}) - (y_t - y_{t-1})|`: zero at the target, and it needs no flow.

    Args:
        prediction (`torch.Tensor`): `[batch, channels, frames, height, width]`, at least two frames.
        target (`torch.Tensor`): the same shape.
    """
    return (prediction - target).diff(dim=2).abs().mean()


def wavelet_details(pixels: torch.Tensor) -> torch.Tensor:
    """The LH, HL and HH bands of one level of the orthonormal Haar wavelet.

    Args:
        pixels (`torch.Tensor`): `[..., height, width]`, both even.

    Returns:
        `torch.Tensor`: `[3, ..., height / 2, width / 2]`.
    """
    a, b = pixels[..., ::2, ::2], pixels[..., ::2, 1::2]
    c, d = pixels[..., 1::2, ::2], pixels[..., 1::2, 1::2]
    return torch.stack([a - b + c - d, a + b - c - d, a - b - c + d]) / 2


def wavelet_transform(pixels: torch.Tensor, levels: int = 1) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The orthonormal Haar wavelet over several levels; [`inverse_wavelet_transform`] gives the pixels back.

    Args:
        pixels (`torch.Tensor`): `[..., height, width]`, both multiples of `2 ** levels`.
        levels (`int`, *optional*, defaults to 1): how often the low band is split again.

    Returns:
        `tuple`: the low band `[..., height / 2**levels, width / 2**levels]`, and the [`wavelet_details`] of each
        level, the finest first.

    Raises:
        ValueError: less than one level, or a size that cannot be halved so often.
    """
    if levels < 1 or any(size % 2**levels for size in pixels.shape[-2:]):
        height, width = pixels.shape[-2:]
        raise ValueError(f"`levels` is {levels}: it must be positive, and {height}x{width} divisible by 2 ** levels")
    low, details = pixels, []
    for _ in range(levels):
        details.append(wavelet_details(low))
        rows = low[..., ::2, :] + low[..., 1::2, :]
        low = (rows[..., ::2] + rows[..., 1::2]) / 2
    return low, details


def inverse_wavelet_transform(low: torch.Tensor, details: list[torch.Tensor]) -> torch.Tensor:
    """Puts the bands of [`wavelet_transform`] together again.

    Args:
        low (`torch.Tensor`): `[..., height, width]`.
        details (list of `torch.Tensor`): the finest level first; the last one `[3, ..., height, width]`.

    Returns:
        `torch.Tensor`: `[..., height * 2**levels, width * 2**levels]`.
    """
    for x, y, xy in reversed(details):
        top = torch.stack([low + x + y + xy, low - x + y - xy], dim=-1).flatten(-2)
        bottom = torch.stack([low + x - y - xy, low - x - y + xy], dim=-1).flatten(-2)
        low = torch.stack([top, bottom], dim=-2).flatten(-3, -2) / 2
    return low


def wavelet_loss(prediction: torch.Tensor, target: torch.Tensor, levels: int = 1) -> torch.Tensor:
    """Mean L1 distance of the detail bands (paper, "Phase I"), averaged over the levels.

    Args:
        prediction (`torch.Tensor`): `[..., height, width]`, both multiples of `2 ** levels`.
        target (`torch.Tensor`): the same shape.
        levels (`int`, *optional*, defaults to 1): see [`wavelet_transform`].
    """
    _, details = wavelet_transform(prediction - target, levels)
    return torch.stack([bands.abs().mean() for bands in details]).mean()


def local_contrast(pixels: torch.Tensor, scales: int = 2) -> list[torch.Tensor]:
    """How strong the details are around each place: the root of their mean energy in windows of 8 pixels a side.

    The energy is that of [`wavelet_details`]; each further scale looks at the picture made half as large.

    Args:
        pixels (`torch.Tensor`): `[batch, channels, frames, height, width]`, height and width multiples of
            `2 ** scales` and at least `4 * 2 ** scales`.
        scales (`int`, *optional*, defaults to 2): how many.

    Returns:
        list of `torch.Tensor`: `[batch * channels, frames, height / 8, width / 8]`, then half as high and wide each.
    """
    pixels, contrasts = pixels.flatten(0, 1), []
    for _ in range(scales):
        energy = F.avg_pool2d(wavelet_details(pixels).square().mean(0), kernel_size=4)
        # the root has no gradient at zero
        contrasts.append((energy + 1e-5).sqrt())
        pixels = F.avg_pool2d(pixels, kernel_size=2)
    return contrasts


def contrast_loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 distance of [`local_contrast`], summed over two scales: as much detail as the target, wherever it lies.

    A pixel-wise loss is lowest for the mean of all plausible details, which is blurred; this one asks for their
    strength and not for their position.

    Args:
        prediction (`torch.Tensor`): `[batch, channels, frames, height, width]`, height and width multiples of 4 and at
            least 16.
        target (`torch.Tensor`): the same shape.
    """
    pairs = zip(local_contrast(prediction), local_contrast(target), strict=True)
    return torch.stack([(ours - theirs).abs().mean() for ours, theirs in pairs]).sum()


def luma(pixels: torch.Tensor) -> torch.Tensor:
    """The brightness (BT.601), in [0, 1].

    Args:
        pixels (`torch.Tensor`): `[batch, 3, frames, height, width]` in [-1, 1].

    Returns:
        `torch.Tensor`: `[batch, frames, height, width]`.
    """
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=pixels.dtype, device=pixels.device)
    return to_unit(torch.einsum("bcfhw,c->bfhw", pixels, weights))


def ssim_loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """One minus the structural similarity (Wang et al., 2004) of the luma, in 11x11 Gaussian windows of sigma 1.5.

    Args:
        prediction (`torch.Tensor`): `[batch, 3, frames, height, width]`, nominally in [-1, 1], at least 11 pixels high
            and wide.
        target (`torch.Tensor`): the same shape; both float32.

    Raises:
        ValueError: pictures smaller than the window.
    """
    if min(prediction.shape[-2:]) < 11:
        height, width = prediction.shape[-2:]
        raise ValueError(f"`prediction` is {height}x{width}: structural similarity needs at least 11x11 pixels")
    # a variance is a small difference of large numbers: half precision would leave nothing of it
    with torch.autocast(prediction.device.type, enabled=False):
        x, y = luma(prediction), luma(target)
        mean_x, mean_y = _gaussian_mean(x), _gaussian_mean(y)
        variance_x = _gaussian_mean(x * x) - mean_x**2
        variance_y = _gaussian_mean(y * y) - mean_y**2
        covariance = _gaussian_mean(x * y) - mean_x * mean_y
    # the constants are for a range of 1
    brightness = (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2)
    structure = (2 * covariance + 0.03**2) / (variance_x + variance_y + 0.03**2)
    return 1 - (brightness * structure).mean()


def _gaussian_mean(frames: torch.Tensor) -> torch.Tensor:
    """Means over the windows that lie inside: `[batch, frames, height, width]` loses 10 rows and columns."""
    window = torch.exp(-((torch.arange(11, dtype=frames.dtype, device=frames.device) - 5) ** 2) / (2 * 1.5**2))
    window = window / window.sum()
    blurred = F.conv2d(frames.flatten(0, 1)[:, None], window.view(1, 1, 1, 11))
    return F.conv2d(blurred, window.view(1, 1, 11, 1))[:, 0].unflatten(0, frames.shape[:2])


@dataclass(frozen=True)
class PixelLoss:
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

    charbonnier_weight: float = 1.0
    mse_weight: float = 10.0
    temporal_weight: float = 0.25
    temporal_loss: Literal["warped", "difference"] = "warped"
    wavelet_weight: float = 0.0
    ssim_weight: float = 0.0
    contrast_weight: float = 0.0
    wavelet_levels: int = 1
    color_correction_levels: int | None = None

    @property
    def needs_flow(self) -> bool:
        return self.temporal_weight > 0 and self.temporal_loss == "warped"

    @property
    def is_empty(self) -> bool:
        """Whether no term has a weight, so that nothing needs to be decoded."""
        weights = (self.charbonnier_weight, self.mse_weight, self.temporal_weight)
        return not any((*weights, self.wavelet_weight, self.ssim_weight, self.contrast_weight))

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


def psnr(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB of pixels in [-1, 1]: the mean over frames, predictions clamped first.

    Args:
        prediction (`torch.Tensor`): `[batch, channels, frames, height, width]`.
        target (`torch.Tensor`): the same shape.
    """
    error = ((prediction.float().clamp(-1, 1) - target.float()) / 2).square().mean((1, 3, 4))
    return (-10 * error.clamp_min(1e-10).log10()).mean()


def weighted_mse(prediction: torch.Tensor, target: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """The mean squared error, of which some elements may count more than others.

    Args:
        prediction (`torch.Tensor`): any shape.
        target (`torch.Tensor`): the same shape.
        weights (`torch.Tensor`, *optional*): broadcast over it, for instance
            [`~ultraflash_diffusers.training.losses.linear_decoding.pixel_weights`]; `None` for equal ones.
    """
    if weights is None:
        return F.mse_loss(prediction, target)
    return (weights * (prediction - target).square()).mean()


def sample_sigmas(batch_size: int, generator: torch.Generator, shift: float = 1.5) -> torch.Tensor:
    """Draws noise levels in (0, 1): the logistic function of a normal variable, shifted to more noise.

    The shift is that of flow-matching schedulers, [`shift_sigma`]; the median is `shift / (1 + shift)`.

    Args:
        batch_size (`int`): how many.
        generator (`torch.Generator`): on the CPU.
        shift (`float`, *optional*, defaults to 1.5): 1 for none (paper: 1.5).
    """
    sigmas = torch.sigmoid(torch.randn(batch_size, generator=generator))
    return shift_sigma(sigmas, shift)


def add_noise(clean: torch.Tensor, noise: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """`z_t = (1 - sigma) z_0 + sigma epsilon`; the flow that a network learns is `epsilon - z_0`.

    Args:
        clean (`torch.Tensor`): `[batch, ...]`.
        noise (`torch.Tensor`): the same shape.
        sigmas (`torch.Tensor`): `[batch]`, in [0, 1].
    """
    sigmas = sigmas.to(clean).view(-1, *[1] * (clean.ndim - 1))
    return (1 - sigmas) * clean + sigmas * noise


def corrupt_condition(
    condition: torch.Tensor,
    generator: torch.Generator,
    noise_range: tuple[float, float] = (0.4, 0.6),
    drop_probability: float = 0.4,
) -> torch.Tensor:
    """Mixes noise into the condition, and zeroes it altogether for some samples (paper, "SR fine-tune").

    Args:
        condition (`torch.Tensor`): `[batch, channels, frames, height, width]`, upsampled latents.
        generator (`torch.Generator`): on the CPU.
        noise_range (pair of `float`, *optional*, defaults to `(0.4, 0.6)`): bounds of the share of noise in a sample.
        drop_probability (`float`, *optional*, defaults to 0.4): of a sample's condition.
    """
    low, high = noise_range
    shares = low + (high - low) * torch.rand(len(condition), generator=generator)
    kept = torch.rand(len(condition), generator=generator) >= drop_probability
    noisy = add_noise(condition, randn_like(condition, generator), shares)
    return noisy * kept.to(condition).view(-1, 1, 1, 1, 1)


def randn_like(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Normal noise from a generator on the CPU, so that it is the same whatever device trains."""
    return torch.randn(tensor.shape, generator=generator).to(tensor)


def detail_ratio(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Sharpness against the target: the prediction's mean absolute detail band over the target's; 1 is equal.

    Args:
        prediction (`torch.Tensor`): `[..., height, width]`, both even.
        target (`torch.Tensor`): the same shape.
    """
    return wavelet_details(prediction).abs().mean() / wavelet_details(target).abs().mean().clamp_min(1e-10)
