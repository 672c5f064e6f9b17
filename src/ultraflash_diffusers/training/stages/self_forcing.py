# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Self-forcing (arXiv 2506.08009): the generator generates as inference does, with the inference cache and in few
steps, and what comes out is moved towards a teacher's distribution.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, Self

import torch
from diffusers import WanTransformer3DModel
from torch import nn

from ...models.causal_wan_transformer import CausalWanTransformer
from ..data.chunks import ChunkBatch
from ..losses.distribution_matching import DistributionMatching, surrogate_loss
from ..settings import Count, Positive
from ..starting_points.lora import LoraLayers, choose_trained, tuned_copy
from ..starting_points.text_encoding import TextEncoding
from ..starting_points.token_subspace import TokenSubspace
from .generator import Decode, GeneratorObjective, GeneratorTraining

# frames of a chunk that no clip fills: attention over it is bidirectional
_WHOLE_CLIP = 2**30


@dataclass(frozen=True)
class SelfForcing(GeneratorObjective):
    """How the generator is distilled on its own rollouts.

    Args:
        matching (`DistributionMatching`, *optional*): the gradient.
        fake_updates (`int`, *optional*, defaults to 5): of the copy that tracks the rollouts, for each of the
            generator's.
        fake_learning_rate (`float`, *optional*): of the copy; the generator's by default.
    """

    matching: DistributionMatching = DistributionMatching()
    fake_updates: Count = 5
    fake_learning_rate: Positive[float] | None = None


class SelfForcingTraining(GeneratorTraining):
    """Distils a generator on its own rollouts by distribution matching: [`SelfForcing`].

    The teacher is the generator as it was at the start, with guidance, or another network; a copy of the generator
    tracks the rollouts. The text encoder is frozen. Other arguments are those of [`GeneratorTraining`].

    Args:
        teacher (`WanTransformer3DModel`, *optional*): a bidirectional text-to-video network of any width in the
            generator's latent space, for its text encoder. What tracks the rollouts then sees whole clips, too.
        lora (`LoraLayers`, *optional*): layers to train in the generator and in the copy that tracks it; both are
            trained whole without it.
        shares (`bool`, *optional*, defaults to `True`): see [`tuned_copy`].

    Raises:
        ValueError: a teacher of other latents or texts.
    """

    objective: SelfForcing

    def __init__(
        self,
        network: CausalWanTransformer,
        text: TextEncoding,
        objective: SelfForcing,
        scale: torch.Tensor,
        subspace: TokenSubspace | None = None,
        config: dict | None = None,
        decode: Decode | None = None,
        teacher: WanTransformer3DModel | None = None,
        lora: LoraLayers | None = None,
        shares: bool = True,
    ) -> None:
        judge: CausalWanTransformer | WanTransformer3DModel = network if teacher is None else teacher
        network.requires_grad_(False)
        fake = tuned_copy(network, lora, shares)
        if teacher is None:
            network = tuned_copy(network, lora, shares)
        else:
            _check_teacher(teacher, network)
            choose_trained(network, lora)
            fake.register_to_config(
                frames_per_chunk=_WHOLE_CLIP, window_frames=None, sink_frames=0, first_chunk_frames=None
            )
        super().__init__(network, text.requires_grad_(False), objective, scale, subspace, config, decode)
        self.teacher, self.fake = judge.requires_grad_(False).eval(), fake
        self._moves_student, self._last_step = True, len(objective.denoising_steps) - 1

    @property
    def heaviest_step(self) -> int:
        """The generator's first."""
        return self.objective.fake_updates

    def begin_step(self, step: int, generator: torch.Generator) -> None:
        self._moves_student = step % (self.objective.fake_updates + 1) == self.objective.fake_updates
        self._last_step = int(torch.randint(len(self.objective.denoising_steps), (), generator=generator))

    def averaged_parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.network.parameters() if parameter.requires_grad]

    def parameter_groups(self, learning_rate: float) -> list[dict]:
        fake_rate = self.objective.fake_learning_rate or learning_rate
        return [
            {"params": self.averaged_parameters(), "lr": learning_rate},
            {
                "params": [parameter for parameter in self.fake.parameters() if parameter.requires_grad],
                "lr": fake_rate,
            },
        ]

    def forward(  # type: ignore[override]
        self, batch: ChunkBatch, generator: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        prompt_embeds, empty = self.text(batch.texts), self.text([""] * len(batch.texts))
        with torch.set_grad_enabled(self._moves_student):
            sample = self.rollout(batch.high.shape, prompt_embeds, generator, self._last_step)
        real, fake, unconditional = (
            partial(self._score, prompt_embeds=embeds, network=network)
            for network, embeds in ((self.teacher, prompt_embeds), (self.fake, prompt_embeds), (self.teacher, empty))
        )
        if not self._moves_student:
            predicts: Literal["flow", "clean"] = "flow" if self.network.config.prediction_type == "flow" else "clean"
            loss = self.objective.matching.fake_score_loss(sample, fake, generator, predicts)
            return loss, {"loss_of_fake_score": loss.detach()}
        gradient = self.objective.matching.gradient(sample, real, fake, unconditional, generator)
        return surrogate_loss(sample, gradient), {"gradient": gradient.abs().mean()}

    def train(self, mode: bool = True) -> Self:
        """Sets the mode of what is trained; the teacher judges as it always does."""
        super().train(mode)
        self.teacher.eval()
        return self

    def _score(
        self,
        noisy: torch.Tensor,
        sigmas: torch.Tensor,
        prompt_embeds: torch.Tensor,
        network: CausalWanTransformer | WanTransformer3DModel,
    ) -> torch.Tensor:
        return self.flow(noisy, sigmas, prompt_embeds, network)


def _check_teacher(teacher: WanTransformer3DModel, network: CausalWanTransformer) -> None:
    ours, theirs = network.config, teacher.config
    if theirs.image_dim is not None or theirs.added_kv_proj_dim is not None:
        raise ValueError(
            "`teacher` is an image-to-video transformer (`image_dim`, `added_kv_proj_dim`), not a T2V one"
        )
    for name in ("in_channels", "out_channels", "text_dim"):
        if ours[name] != theirs[name]:
            raise ValueError(
                f"`teacher` has `{name}` {theirs[name]}, the generator {ours[name]}: they must be the same"
            )
    if any(own % its for own, its in zip(ours.patch_size, theirs.patch_size, strict=True)):
        raise ValueError(
            f"`teacher` has `patch_size` {tuple(theirs.patch_size)}, of which the generator's "
            f"{tuple(ours.patch_size)} is no multiple"
        )
