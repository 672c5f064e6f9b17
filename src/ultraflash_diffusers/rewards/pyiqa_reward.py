# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Published quality networks, through `pyiqa` (extra `rewards`)."""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
from torch import nn

from .reward import check_frames


class _Metric(NamedTuple):
    """A metric's name in pyiqa and the bounds of its scores."""

    name: str
    lowest: float
    highest: float


PYIQA_METRICS = {
    "clip_iqa_plus": _Metric("clipiqa+", 0, 1),
    "musiq": _Metric("musiq", 0, 100),
    "laion_aesthetic": _Metric("laion_aes", 1, 10),
}


class PyIQAReward(nn.Module):
    """CLIP-IQA+, MUSIQ or LAION-Aesthetic, brought to [0, 1].

    The first use of a metric downloads its weights. MUSIQ's and LAION-Aesthetic's bounds are nominal: pictures that
    are better or worse than those they were trained on may score a little beyond.

    Args:
        name (`str`): `"clip_iqa_plus"`, `"musiq"` (its scale of 0 to 100 becomes 0 to 1) or `"laion_aesthetic"` (1 to
            10 becomes 0 to 1).

    Raises:
        ValueError: another name.
        ImportError: `pyiqa` cannot be imported.
        RuntimeError: its network cannot be made or its weights cannot be had.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        if name not in PYIQA_METRICS:
            raise ValueError(f"`name` must be one of {sorted(PYIQA_METRICS)}, got {name!r}")
        self.name, self.metric = name, PYIQA_METRICS[name]
        try:
            import pyiqa

            # as a loss: with gradients; one score for each frame
            network = pyiqa.create_metric(
                self.metric.name, as_loss=True, loss_reduction="none", device=torch.device("cpu")
            )
        except ImportError as error:  # some of its metrics import more, once they are made
            raise ImportError(
                f"the reward {name!r} needs `pyiqa`, which cannot be imported ({error}): "
                'pip install "ultraflash_diffusers[rewards]"'
            ) from error
        except Exception as error:  # whatever its many sources of weights raise
            raise RuntimeError(
                f"`pyiqa` could not load the weights of {self.metric.name!r}, the reward {name!r}: {error}. They are "
                "downloaded at the first use: check the connection, or copy its cache from another machine"
            ) from error
        self.network = network.eval().requires_grad_(False)
        for part in network.modules():
            # CLIP is in a plain list, where `requires_grad_` does not find it
            for clip in vars(part).get("clip_model", ()):
                clip.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Leaves the network as it is: in training mode, `pyiqa` neither resizes frames nor cuts them up."""
        return super().train(False)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Scores frames.

        Args:
            frames (`torch.Tensor`): `[n, 3, height, width]` in [0, 1], on this module's device.

        Returns:
            `torch.Tensor`: `[n]`, float32, nominally in [0, 1].

        Raises:
            ValueError: frames of another shape or range.
        """
        check_frames(frames)
        # a reward compares scores that are close, which bfloat16 blurs
        with torch.autocast(frames.device.type, enabled=False):
            scores = self.network(frames.float()).reshape(len(frames))
        return (scores.float() - self.metric.lowest) / (self.metric.highest - self.metric.lowest)
