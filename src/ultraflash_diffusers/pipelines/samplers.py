# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""From noise to latents: the SR transformer's steps for a group and the generator's for a chunk.

Inference, and training where it rolls out what inference does, both sample by these. Gradients flow where they are on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TypeVar

import torch
from diffusers import SchedulerMixin

from ..models.causal_wan_state import CausalWanStreamState
from ..models.ultraflash_sr_transformer import SRStreamState
from .execution.calls import GeneratorCalls, SRCalls, Text

Sigma = TypeVar("Sigma", float, torch.Tensor)


def shift_sigma(sigma: Sigma, shift: float) -> Sigma:
    """Warps noise levels in [0, 1] to more noise: `shift * sigma / (1 + (shift - 1) * sigma)` (Wan, SD3's eq. 23)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def sr_timesteps(scheduler: SchedulerMixin, num_inference_steps: int) -> SchedulerMixin:
    """Returns a copy of a flow-matching scheduler that is set to so many steps, evenly spaced before its shift."""
    scheduler = deepcopy(scheduler)
    steps = torch.linspace(1, 1 / num_inference_steps, num_inference_steps)
    # on the CPU, where to read a sigma or a timestep takes no synchronisation
    scheduler.set_timesteps(sigmas=steps.tolist(), device="cpu")
    return scheduler


@dataclass(frozen=True)
class PreparedPrompts:
    """Prompts, and what the SR transformer takes for them.

    Args:
        embeds (`list[torch.Tensor]`): `[prompts, length, text_dim]` of the prompt and, with guidance, of the negative
            prompt.
        texts (`list`): from [`SRCalls.prepare_text`], one for each of them.
    """

    embeds: list[torch.Tensor]
    texts: list[Text]

    @classmethod
    def of(cls, calls: SRCalls, embeds: Sequence[torch.Tensor]) -> PreparedPrompts:
        """Prepares prompts."""
        return cls(list(embeds), [calls.prepare_text(each) for each in embeds])

    def texts_for(self, batch_size: int) -> list[Text]:
        """The texts, one for each sample of a batch."""
        return [
            text.expand(batch_size, -1, -1) if isinstance(text, torch.Tensor) else text.expand(batch_size)
            for text in self.texts
        ]


# step, timestep, latents, condition, prompts -> what of the latter three the next step gets
GroupStepCallback = Callable[
    [int, torch.Tensor, torch.Tensor, torch.Tensor, PreparedPrompts],
    tuple[torch.Tensor, torch.Tensor, PreparedPrompts],
]


def sample_group(
    calls: SRCalls,
    scheduler: SchedulerMixin,
    latents: torch.Tensor,
    condition: torch.Tensor,
    prompts: PreparedPrompts,
    states: Sequence[SRStreamState | None],
    guidance_scale: float = 1.0,
    on_step: GroupStepCallback | None = None,
) -> tuple[torch.Tensor, list[SRStreamState | None]]:
    """Denoises a group of latent frames under its condition, in one or several Euler steps.

    Args:
        calls ([`SRCalls`]): the network.
        scheduler (`SchedulerMixin`): from [`sr_timesteps`].
        latents (`torch.Tensor`): `[batch, channels, frames, height, width]`, normal noise, float32.
        condition (`torch.Tensor`): the same shape, upsampled latents.
        prompts ([`PreparedPrompts`]): the prompt and, with guidance, the negative one.
        states (sequence of [`SRStreamState`]): before the group, one a prompt; `None` is for a whole clip.
        guidance_scale (`float`, *optional*, defaults to 1.0): classifier-free guidance, with two prompts.
        on_step (`Callable`, *optional*): called after each step, see `GroupStepCallback`.

    Returns:
        `tuple`: clean latents, and the states after what the last step saw.
    """
    after = list(states)
    for step, timestep in enumerate(scheduler.timesteps):
        inputs = torch.cat([latents, condition], dim=1)
        outputs = calls(inputs, timestep, prompts.texts_for(latents.shape[0]), states)
        (flow, _), after = outputs[0], [state for _, state in outputs]
        if len(outputs) > 1:
            unguided = outputs[1][0]
            flow = unguided + guidance_scale * (flow - unguided)
        latents = scheduler.step(flow, timestep, latents, return_dict=False)[0]
        if on_step is not None:
            latents, condition, prompts = on_step(step, timestep, latents, condition, prompts)
    return latents, after


def sample_chunk(
    calls: GeneratorCalls,
    noise: Callable[[int], torch.Tensor],
    sigmas: Sequence[float],
    text: Text,
    state: CausalWanStreamState,
    commit: bool = False,
) -> tuple[torch.Tensor, CausalWanStreamState]:
    """Generates a chunk in few steps (Self-Forcing, arXiv 2506.08009): each predicts the clean latents,
    `x0 = x - sigma * flow`, and mixes them with fresh noise for the next sigma.

    Gradients, where they are on, go through the last step alone.

    Args:
        calls ([`GeneratorCalls`]): the network.
        noise (`Callable`): normal noise `[batch, channels, frames, height, width]` to start step 0 from, and to mix in
            before each later step, by its number.
        sigmas (sequence of `float`): noise levels, decreasing.
        text: from [`GeneratorCalls.prepare_text`].
        state (`CausalWanStreamState`): before the chunk.
        commit (`bool`, *optional*, defaults to `False`): whether the last step's keys and values are kept.

    Returns:
        `tuple`: clean latents, float32, and the state after the last step.
    """
    latents, before = noise(0), state
    for step, sigma in enumerate(sigmas):
        last = step == len(sigmas) - 1
        with torch.set_grad_enabled(last and torch.is_grad_enabled()):
            flow, state = calls(latents, sigma, text, before, commit=last and commit)
            latents = latents - sigma * flow
            if not last:
                following = sigmas[step + 1]
                latents = (1 - following) * latents + following * noise(step + 1)
    return latents, state
