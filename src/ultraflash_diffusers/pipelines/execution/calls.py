# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""How a stream calls its transformers: guarded, prompts encoded once, steady groups as a CUDA graph.

Nothing here changes what is computed: an object of this module belongs to one stream and may be thrown away between
any two calls.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...models.causal_wan_state import CausalWanStreamState
from ...models.causal_wan_transformer import CausalWanTransformer
from ...models.ultraflash_sr_transformer import SRStreamState, UltraFlashSRTransformer
from ...models.wan_backbone import TextKeyValues, WanBackbone
from .compilation import GuardedCalls
from .cuda_graphs import CapturedStep
from .devices import execution_device
from .plan import ExecutionPlan

Text = torch.Tensor | TextKeyValues

# groups of a clip in which networks are compiled and tuned, which cannot be captured
_FIRST_GROUPS = 2


class _TransformerCalls:
    def __init__(self, network: WanBackbone, plan: ExecutionPlan | None = None) -> None:
        self.plan = plan or ExecutionPlan()
        self._calls = GuardedCalls()
        self._backbone = network
        self.device = execution_device(network)

    def prepare_text(self, prompt_embeds: torch.Tensor) -> Text:
        """Returns what all calls are to be given for a prompt, `[prompts, length, text_dim]`, on the network's device.

        By the plan that is the prompt itself, or the keys and values that all layers make of it.
        """
        prompt_embeds = prompt_embeds.to(self.device, self._backbone.dtype)
        if not self.plan.cache_text:
            return prompt_embeds
        with self._calls("text"):
            return self._backbone.encode_text(prompt_embeds)


class GeneratorCalls(_TransformerCalls):
    """The calls of the text generator.

    Args:
        network ([`CausalWanTransformer`]): it.
        plan ([`ExecutionPlan`], *optional*): of the pipeline; by default nothing special is done.
    """

    def __init__(self, network: CausalWanTransformer, plan: ExecutionPlan | None = None) -> None:
        super().__init__(network, plan)
        self.network = network

    def __call__(
        self, latents: torch.Tensor, sigma: float, text: Text, state: CausalWanStreamState, commit: bool
    ) -> tuple[torch.Tensor, CausalWanStreamState]:
        """Predicts the flow of a chunk at one noise level; arithmetic around the network stays in float32.

        Args:
            latents (`torch.Tensor`): `[batch, channels, frames, height, width]`, float32.
            sigma (`float`): noise level in [0, 1].
            text: from `prepare_text`.
            state (`CausalWanStreamState`): before the chunk.
            commit (`bool`): whether the state after it remembers the chunk.
        """
        timestep = torch.full((latents.shape[0],), 1000 * sigma, device=latents.device)
        latents = latents.to(self.network.dtype)
        # compiled code needs another graph for fewer frames, and for each number of filled slots of the cache
        frames, cache = latents.shape[2], state.cache
        filled = None if cache is None else cache.filled_slots(frames // self.network.config.patch_size[0])
        with self._calls((frames, commit, filled)):
            flow, state = self.network(latents, timestep, text, state=state, commit=commit, return_dict=False)
        return flow.float(), state


class SRCalls(_TransformerCalls):
    """The calls of the SR transformer.

    Args:
        network ([`UltraFlashSRTransformer`]): it.
        plan ([`ExecutionPlan`], *optional*): of the pipeline; by default nothing special is done.
    """

    def __init__(self, network: UltraFlashSRTransformer, plan: ExecutionPlan | None = None) -> None:
        super().__init__(network, plan)
        self.network = network
        self._group = 0
        # one for each state of the stream
        self._graphs: dict[int, CapturedStep] = {}

    def begin_group(self, starts_clip: bool) -> None:
        """Tells that the calls that follow are of the next group; a new clip frees what was captured for the last."""
        self._group = 0 if starts_clip else self._group + 1
        if starts_clip:
            self._graphs.clear()

    def __call__(
        self,
        inputs: torch.Tensor,
        timestep: torch.Tensor,
        texts: Sequence[Text],
        states: Sequence[SRStreamState | None],
    ) -> list[tuple[torch.Tensor, SRStreamState | None]]:
        """Predicts the flow of a group with each of its prompts, float32, and the states behind it.

        Args:
            inputs (`torch.Tensor`): `[batch, 2 * channels, frames, height, width]`, noisy latents and condition.
            timestep (`torch.Tensor`): 0-d, in [0, 1000].
            texts: from `prepare_text`, for as many samples as there are.
            states (sequence of `SRStreamState`): one a prompt; `None` is the full forward of whole clips.
        """
        inputs = inputs.to(self.network.dtype)
        timesteps = torch.full((inputs.shape[0],), float(timestep), device=inputs.device)
        with self._calls(min(self._group, _FIRST_GROUPS)):
            outputs = [
                self._call(number, inputs, timesteps, text, state)
                for number, (text, state) in enumerate(zip(texts, states, strict=True))
            ]
        return [(flow.float(), state) for flow, state in outputs]

    def _call(
        self, number: int, inputs: torch.Tensor, timesteps: torch.Tensor, text: Text, state: SRStreamState | None
    ) -> tuple[torch.Tensor, SRStreamState | None]:
        """Calls the network from the stream's state `number`; by a CUDA graph where the plan says so."""
        replays = self.plan.cuda_graphs and self._group >= _FIRST_GROUPS
        if state is None or not (replays and state.single_use):
            output = self.network(inputs, timesteps, text, state=state)
            return output.sample, output.state
        graph = self._graphs.get(number)
        if graph is None or not graph.serves(inputs, text, state):
            graph = self._graphs[number] = CapturedStep(self.network, inputs, timesteps, text, state)
        return graph(inputs, timesteps, state), graph.state
