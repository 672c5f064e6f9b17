# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The streaming generator's training: what all have in common, and diffusion forcing on clips.

Diffusion forcing (arXiv 2407.01392) gives each chunk of a clip a noise level of its own, so that chunks learn from
noisy and from clean pasts. What follows on it is in `self_forcing`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from diffusers import WanTransformer3DModel

from ...models.causal_wan_transformer import CausalWanTransformer
from ...pipelines.execution.calls import GeneratorCalls
from ...pipelines.samplers import sample_chunk, shift_sigma
from ...pipelines.sources.generator_schedule import warped_sigmas
from ..data.chunks import ChunkBatch
from ..losses.fidelity import psnr
from ..losses.flow_matching import randn_like
from ..settings import NO_FLAG, Positive, Settings, Share
from ..starting_points.lora import save_lora
from ..starting_points.text_encoding import TextEncoding
from ..starting_points.token_subspace import TokenSubspace
from .base import Training

Decode = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class GeneratorObjective(Settings):
    """What both trainings of the generator share.

    Args:
        denoising_steps (sequence of `float`, *optional*, defaults to `(1000, 750, 500, 250)`): the sampler's
            timesteps, before the shift.
        flow_shift (`float`, *optional*, defaults to 5.0): warps noise levels to more noise.
        detail_emphasis (`float`, *optional*, defaults to 0.0): for networks that predict clean latents: 0 counts
            errors by what they change in the picture, which teaches layout first; 1 raises those of faint channels,
            such as textures.
    """

    denoising_steps: Sequence[float] = field(default=(1000, 750, 500, 250), metadata=NO_FLAG)
    flow_shift: Positive[float] = 5.0
    detail_emphasis: Share = 0.0

    @property
    def sigmas(self) -> list[float]:
        """The sampler's noise levels."""
        return warped_sigmas(self.denoising_steps, self.flow_shift)


@dataclass(frozen=True)
class DiffusionForcing(GeneratorObjective):
    """What the generator learns from a clip.

    Args:
        noise_levels (`str`, *optional*, defaults to `"continuous"`): continuous, uniform and then shifted; or steps,
            those of the sampler alone, with which a network that predicts clean latents of a narrow domain can do
            without distillation.
        first_step_share (`float`, *optional*, defaults to 0.5): share of pure noise among steps.
        context_noise (`float`, *optional*, defaults to 0.1): most noise in given chunks, whose level is told.
        hide_context_noise (`bool`, *optional*, defaults to `False`): given chunks pass for clean: at inference they
            hold the network's own errors.
        own_context (`float`, *optional*, defaults to 0.0): share of steps of training in which the newest given chunk
            is the network's own prediction from pure noise: what it is given at inference, where errors add up.
        text_dropout (`float`, *optional*, defaults to 0.1): share of samples with the empty text.
    """

    noise_levels: Literal["continuous", "steps"] = "continuous"
    first_step_share: Share = 0.5
    context_noise: Share = 0.1
    hide_context_noise: bool = False
    own_context: Share = 0.0
    text_dropout: Share = 0.1

    def sample_levels(self, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
        """Draws noise levels, all independent."""
        drawn = torch.rand(shape, generator=generator)
        if self.noise_levels == "continuous":
            return shift_sigma(drawn, self.flow_shift)
        levels = torch.tensor(self.sigmas)
        later = (drawn - self.first_step_share) / (1 - self.first_step_share + 1e-9) * (len(levels) - 1)
        return levels[(later.floor().long() + 1).clamp(0, len(levels) - 1)]


class GeneratorTraining(Training):
    """What both trainings of a generator share: its rollouts, their validation, and what is saved.

    Args:
        network (`CausalWanTransformer`): those of its parameters that require gradients are trained; in a `subspace`,
            the network of patches of one.
        text (`TextEncoding`): the text encoder.
        objective (`GeneratorObjective`): what is learnt.
        scale (`torch.Tensor` of shape `[channels]`): root mean square of each channel of clean latents.
        subspace (`TokenSubspace`, *optional*): where the latents are coordinates of.
        config (`dict`, *optional*): with a subspace: arguments of the network that is saved.
        decode (`Callable`, *optional*): latents to pixels in validation, whose videos are shown.
    """

    error_weights: torch.Tensor

    def __init__(
        self,
        network: CausalWanTransformer,
        text: TextEncoding,
        objective: GeneratorObjective,
        scale: torch.Tensor,
        subspace: TokenSubspace | None = None,
        config: dict | None = None,
        decode: Decode | None = None,
    ) -> None:
        super().__init__()
        self.network, self.text, self.objective = network, text, objective
        self.subspace, self.config, self.decode = subspace, config, decode
        # errors of a channel relative to its size, times how much of the picture the channel makes up
        amplitude = scale if subspace is None else subspace.gain * scale
        share = amplitude ** (2 - objective.detail_emphasis)
        weights = share / share.sum() / scale.square()
        self.register_buffer("error_weights", weights.view(-1, 1, 1, 1), persistent=False)

    def _for_frames(self, per_chunk: torch.Tensor) -> torch.Tensor:
        """`[batch, chunks]` as `[batch, 1, frames, 1, 1]`."""
        return per_chunk.repeat_interleave(self.network.chunk_frames, dim=1)[:, None, :, None, None]

    def flow(
        self,
        noisy: torch.Tensor,
        sigmas: torch.Tensor,
        prompt_embeds: torch.Tensor,
        network: CausalWanTransformer | WanTransformer3DModel | None = None,
    ) -> torch.Tensor:
        """Predicts the flow of whole clips, float32.

        Args:
            noisy (`torch.Tensor`): `[batch, channels, frames, height, width]`.
            sigmas (`torch.Tensor`): noise levels `[batch, chunks]`, or `[batch]`.
            prompt_embeds (`torch.Tensor`): from [`TextEncoding`].
            network (`CausalWanTransformer` or `WanTransformer3DModel`, *optional*): another one than the trained one.
        """
        network = network or self.network
        if sigmas.ndim == 2:
            sigmas = sigmas.repeat_interleave(network.config.frames_per_chunk, dim=1)
        return network(noisy, 1000 * sigmas, prompt_embeds.to(noisy), return_dict=False)[0].float()

    def rollout(
        self,
        shape: Sequence[int],
        prompt_embeds: torch.Tensor,
        generator: torch.Generator,
        last_step: int | None = None,
    ) -> torch.Tensor:
        """Generates clips as inference does: chunk by chunk, in a few steps, with the cache of clean chunks.

        Gradients, where they are on, go through the last step of each chunk, but not from chunk to chunk.

        Args:
            shape (sequence of `int`): `(batch, channels, frames, height, width)`, whole chunks.
            prompt_embeds (`torch.Tensor`): from [`TextEncoding`].
            generator (`torch.Generator`): on the CPU.
            last_step (`int`, *optional*): step whose prediction is taken, from 0; by default the sampler's last one.
        """
        sigmas = self.objective.sigmas[: None if last_step is None else last_step + 1]
        calls = GeneratorCalls(self.network)
        text = calls.prepare_text(prompt_embeds)
        cache_frames = shape[2] // self.network.config.patch_size[0]
        state = self.network.new_stream(None if self.network.config.window_frames else cache_frames)
        size, chunks = (*shape[:2], self.network.chunk_frames, *shape[3:]), []

        def noise(step: int) -> torch.Tensor:
            return torch.randn(size, generator=generator).to(prompt_embeds.device)

        for _ in range(cache_frames // self.network.config.frames_per_chunk):
            clean, _ = sample_chunk(calls, noise, sigmas, text, state)
            chunks.append(clean)
            with torch.no_grad():
                _, state = calls(clean, 0.0, text, state, commit=True)
        return torch.cat(chunks, dim=2)

    def validate(self, batch: ChunkBatch) -> Mapping[str, float | torch.Tensor]:  # type: ignore[override]
        """Generates from the texts alone: the error against the clips (0 is perfect, 1 all grey), and the videos."""
        generated = self.rollout(batch.high.shape, self.text(batch.texts), torch.Generator().manual_seed(0))
        error = (self.error_weights * (generated - batch.high).square()).sum(1).mean().item()
        if self.decode is None:
            return {"error": error}
        result, truth = self.decode(generated), self.decode(batch.high)
        return {"error": error, "psnr": psnr(result, truth).item(), "result": result, "truth": truth}

    def save_pretrained(self, folder: Path) -> None:
        """Writes `generator_transformer` or its LoRA layers, `text_encoder` and `tokenizer` as a pipeline has them."""
        network = self.network
        if getattr(network, "peft_config", None):
            save_lora(network, folder, "generator_transformer")
            return self.text.save_pretrained(folder)
        if self.subspace is not None and self.config is not None:
            network = self.subspace.expanded(network, self.config)
        network.save_pretrained(folder / "generator_transformer")
        self.text.save_pretrained(folder)


class DiffusionForcingTraining(GeneratorTraining):
    """Trains a generator, and the text encoder unless it is frozen, on the latents of clips: [`DiffusionForcing`]."""

    objective: DiffusionForcing
    _own_context = False

    def begin_step(self, step: int, generator: torch.Generator) -> None:
        self._own_context = self.objective.own_context > torch.rand((), generator=generator).item()

    def forward(  # type: ignore[override]
        self, batch: ChunkBatch, generator: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        clean, prompt_embeds = batch.high, self._prompt_embeds(batch.texts, generator)
        chunks = clean.shape[2] // self.network.chunk_frames
        given = self._given(batch.starts, chunks, generator)
        levels = self.objective.sample_levels(given.shape, generator)
        context = self.objective.context_noise * torch.rand(given.shape, generator=generator)
        actual = torch.where(given, context, levels).to(clean)
        told = torch.where(given.to(clean.device), 0.0, actual) if self.objective.hide_context_noise else actual
        noise = randn_like(clean, generator)
        sigmas = self._for_frames(actual)
        noisy = (1 - sigmas) * clean + sigmas * noise
        if self._own_context:
            noisy = self._with_own_context(noisy, given, batch.starts, prompt_embeds, generator)
            told = torch.where(self._newest_given(given, batch.starts).to(told.device), 0.0, told)
        flow = self.flow(noisy, told, prompt_embeds)
        errors = self._errors(noisy, flow, clean, noise, told)
        learnt = (~given).to(errors)
        per_chunk = errors.unflatten(1, (chunks, -1)).mean(2)
        loss = (learnt * per_chunk).sum() / learnt.sum()
        pure = learnt * (told >= 1)
        measured = {"loss_of_pure_noise": (pure * per_chunk).sum() / pure.sum()} if pure.any() else {}
        return loss, {name: value.detach() for name, value in measured.items()}

    def _prompt_embeds(self, texts: list[str], generator: torch.Generator) -> torch.Tensor:
        dropped = torch.rand(len(texts), generator=generator) < self.objective.text_dropout
        return self.text(["" if drop else text for drop, text in zip(dropped.tolist(), texts, strict=True)])

    def _given(self, starts: torch.Tensor, chunks: int, generator: torch.Generator) -> torch.Tensor:
        """Which chunks are context, `[batch, chunks]`: some first ones, at least one where the video began earlier."""
        least = torch.where(starts.cpu(), 0, 1)
        counts = least + (torch.rand(len(starts), generator=generator) * (chunks - least)).long()
        return torch.arange(chunks) < counts[:, None]

    def _newest_given(self, given: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
        """Which chunk of each sample is the newest given one, `[batch, chunks]`; none where one before is unknown."""
        newest = given.sum(1) - 1
        newest = torch.where(newest >= torch.where(starts.cpu(), 0, 1), newest, -1)
        return torch.arange(given.shape[1]) == newest[:, None]

    @torch.no_grad()
    def _with_own_context(
        self,
        noisy: torch.Tensor,
        given: torch.Tensor,
        starts: torch.Tensor,
        prompt_embeds: torch.Tensor,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """Puts the network's prediction in the place of each sample's newest given chunk.

        It is made of pure noise in one step, after the chunks before it; a chunk stays where one before it is unknown.
        """
        own = self._newest_given(given, starts)
        replaced = self._for_frames(own.to(noisy.device))
        noise = torch.where(replaced, randn_like(noisy, generator), noisy)
        predicted = noise - self.flow(noise, own.to(noisy), prompt_embeds)
        return torch.where(replaced, predicted, noisy)

    def _errors(
        self, noisy: torch.Tensor, flow: torch.Tensor, clean: torch.Tensor, noise: torch.Tensor, told: torch.Tensor
    ) -> torch.Tensor:
        """Squared errors of each frame, `[batch, frames]`: of the flow, or of the clean latents if they are predicted.

        Those are weighted so that to predict zero costs 1.
        """
        if self.network.config.prediction_type == "flow":
            return (flow - (noise - clean)).square().mean((1, 3, 4))
        predicted = noisy - self._for_frames(told) * flow
        return (self.error_weights * (predicted - clean).square()).sum(1).mean((2, 3))
