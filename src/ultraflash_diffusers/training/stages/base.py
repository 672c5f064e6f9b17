# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What every stage of training defines, and the loop asks for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import torch
from torch import nn

from ...models.hr_autoencoder import HRAutoencoder
from ...models.video_encoder import VideoEncoder
from ..data.crops import Batch


class Training(nn.Module, ABC):
    """A stage of training: networks as submodules, of which those with `requires_grad` are trained.

    Only calling it, as the loop does, passes through distributed training's and mixed precision's wrappers;
    under the latter the networks' outputs may be half precision and have to be brought to the next network's dtype.
    """

    @abstractmethod
    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Returns the loss of a batch and the numbers to log.

        Args:
            batch (`Batch`): pixels in [-1, 1].
            generator (`torch.Generator`): on the CPU, seeded for this batch: all randomness has to come from it.
        """

    @abstractmethod
    def validate(self, batch: Batch) -> Mapping[str, float | torch.Tensor]:
        """Returns what one held-out clip shows; called without gradients, in every process.

        Numbers are quality measures, of which the log gets the means over the clips. Tensors are videos
        `[1, 3, frames, height, width]` in [-1, 1], written side by side in their order (input, result, truth).
        """

    @abstractmethod
    def save_pretrained(self, folder: Path) -> None:
        """Writes what was trained so that it can be loaded from `folder` (with diffusers' usual methods)."""

    def begin_step(self, step: int, generator: torch.Generator) -> None:
        """Tells which optimiser step comes next, for trainings whose steps differ in what they train.

        Which networks run, and how often, must follow from these two alone: sharded networks only run in all processes
        together, and a batch's own generator says something else in each. Trained parameters that a step gives no
        gradient stay exactly as they are, their optimiser's moments too.

        Args:
            step (`int`): steps done so far, those before a resumed checkpoint included.
            generator (`torch.Generator`): on the CPU, seeded for this step, the same in all processes.
        """

    @property
    def heaviest_step(self) -> int:
        """The number of a step that takes most memory, for trainings whose steps differ."""
        return 0

    def averaged_parameters(self) -> list[nn.Parameter]:
        """Returns the trained parameters that an average of the weights covers; by default all of them."""
        return self.trained_parameters()

    def parameter_groups(self, learning_rate: float) -> list[dict]:
        """Returns the optimiser's parameter groups; by default one of all trained parameters."""
        return [{"params": self.trained_parameters(), "lr": learning_rate}]

    def trained_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters that are trained, in the order of the modules."""
        return list(self.named_trained_parameters().values())

    def named_trained_parameters(self) -> dict[str, nn.Parameter]:
        """Returns the parameters that are trained, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}


class EncodingTraining(Training):
    """A stage that encodes its clips: the autoencoder does it, unless another network is named."""

    autoencoder: HRAutoencoder

    def __init__(self) -> None:
        super().__init__()
        self.other_encoder: VideoEncoder | None = None

    @property
    def encoder(self) -> VideoEncoder:
        """What encodes the clips."""
        return self.autoencoder if self.other_encoder is None else self.other_encoder

    def encode_by(self, encoder: VideoEncoder) -> Self:
        """Has the clips encoded by a network of the same latent space, where the autoencoder cannot."""
        if encoder is not self.autoencoder:
            self.other_encoder = encoder.requires_grad_(False)
        return self


def one_in(every: int | None, generator: torch.Generator) -> bool:
    """Draws whether a step is one in `every`; none is where that is `None`.

    Args:
        every (`int`, *optional*): 1 for all steps.
        generator (`torch.Generator`): the step's, on the CPU, see [`~Training.begin_step`].
    """
    return every is not None and int(torch.randint(every, (), generator=generator)) == 0
