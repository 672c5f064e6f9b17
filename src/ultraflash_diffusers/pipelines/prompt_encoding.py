# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""From prompts to their embeddings."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging

from .argument_kinds import check_embeds, optional_whole, shown
from .execution.compilation import GuardedCalls
from .execution.devices import execution_device
from .finite import all_finite
from .pipeline_state import PipelineStreamState
from .tokens import tokenize

logger = logging.get_logger(__name__)


class PromptEncodingMixin:
    """The text side of a pipeline that has `text_encoder`, `tokenizer` (both may be `None`) and `transformer`.

    May be called from several threads.
    """

    # whether a prompt of which words are unknown or cut off is an error instead of a warning
    strict_prompts: bool = False

    transformer: Any
    text_encoder: Any
    tokenizer: Any
    _text_calls: GuardedCalls

    def encode_prompt(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        do_classifier_free_guidance: bool = False,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        max_sequence_length: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Embeds prompts, each padded with zeros to the full length.

        The text encoder works in its own precision, also under `torch.autocast`.

        Args:
            prompt, negative_prompt (`str` or `list[str]`, *optional*): texts; `None` is the empty one or, without a
                text encoder, zeros.
            do_classifier_free_guidance (`bool`, *optional*, defaults to `False`): whether negative ones are needed.
            prompt_embeds, negative_prompt_embeds (`torch.Tensor`, *optional*): `[prompts, length, text_dim]`, returned
                as they are.
            max_sequence_length (`int`, *optional*): tokens; the transformer's text length by default. What is longer
                is cut off, with a warning.

        Returns:
            `tuple`: embeddings `[prompts, max_sequence_length, text_dim]` of the prompts and, with guidance, of the
            negative prompts.

        Raises:
            TypeError: a prompt that is no text, embeddings that are no floating-point tensor.
            ValueError: a text and its embeddings together, a text without a text encoder, embeddings of a wrong shape
                or that are not finite, another number of negative prompts than of prompts, a `max_sequence_length`
                above the text length; with `pipe.strict_prompts = True` unknown words and what is cut off.
        """
        positive = self._embedded("prompt", prompt, prompt_embeds, max_sequence_length)
        if not do_classifier_free_guidance:
            return positive, None
        negative = self._embedded("negative_prompt", negative_prompt, negative_prompt_embeds, max_sequence_length)
        if negative.shape[0] not in (1, positive.shape[0]):
            raise ValueError(f"`negative_prompt` holds {negative.shape[0]} texts, `prompt` {positive.shape[0]}")
        return positive, negative.expand(positive.shape[0], -1, -1)

    def _stream_prompt_embeds(
        self,
        prompt: str | list[str] | None,
        source: Any,
        guidance_scale: float,
        state: PipelineStreamState | None,
        videos_per_prompt: int,
        **arguments: Any,
    ) -> list[torch.Tensor]:
        """Embeddings of the prompt and, with guidance, of the negative prompt."""
        guided = guidance_scale > 1
        given = prompt is not None or arguments["prompt_embeds"] is not None
        if state is not None and not given:
            if len(state.newest_prompt.prompt_embeds) != 1 + guided:
                raise ValueError(
                    f"`guidance_scale` is {guidance_scale}, but `state` is of a stream "
                    f"{'without' if guided else 'with'} guidance"
                )
            return state.newest_prompt.prompt_embeds
        if source is None and not given:
            raise ValueError("`prompt` and `prompt_embeds` are None: video from text needs one of them")
        if self.text_encoder is None and isinstance(source, DiffusionPipeline):
            prompt = None
        embeds = self.encode_prompt(prompt, do_classifier_free_guidance=guided, **arguments)
        return [each.repeat_interleave(videos_per_prompt, 0) for each in embeds if each is not None]

    def _embedded(
        self,
        name: str,
        prompt: str | list[str] | None,
        prompt_embeds: torch.Tensor | None,
        max_sequence_length: int | None,
    ) -> torch.Tensor:
        length, channels = self.transformer.config.text_length, self.transformer.config.text_dim
        max_sequence_length = optional_whole("max_sequence_length", max_sequence_length)
        if max_sequence_length is not None and max_sequence_length > length:
            raise ValueError(f"`max_sequence_length` must be 1 to {length}, got {shown(max_sequence_length)}")
        if prompt_embeds is not None:
            if prompt is not None:
                raise ValueError(f"`{name}` and `{name}_embeds` were both given: pass one of them")
            check_embeds(f"{name}_embeds", prompt_embeds, length, channels)
            return prompt_embeds
        texts = prompt if isinstance(prompt, list) else [""] if prompt is None else [prompt]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise TypeError(f"`{name}` must be a text or a list of texts, got {shown(prompt)}")
        if self.text_encoder is not None and self.tokenizer is not None:
            return self._encoded_text(texts, max_sequence_length or length)
        if prompt is not None:
            raise ValueError(
                f"`{name}` is {shown(prompt)}, but the pipeline has no text encoder: pass `{name}_embeds`"
            )
        return torch.zeros(1, length, channels)

    def _encoded_text(self, texts: list[str], length: int) -> torch.Tensor:
        tokens, losses = tokenize(self.tokenizer, texts, length)
        for message in (message for loss in losses for message in loss.messages()):
            if self.strict_prompts:
                raise ValueError(f"`strict_prompts` is set, and {message}")
            logger.warning(message)
        device = execution_device(self.text_encoder)
        mask = tokens.attention_mask.to(device)
        # transformers up to 5.14 mask with float32's least number, in autocast's bfloat16 -inf: NaN for a prompt
        # without tokens, where the tokenizer adds none
        with self._text_calls(mask.shape), torch.autocast(device.type, enabled=False):
            embeds = self.text_encoder(tokens.input_ids.to(device), attention_mask=mask).last_hidden_state
        if not all_finite(embeds):
            raise ValueError("`text_encoder` made embeddings that are not finite: its weights, or its precision")
        return embeds * mask.unsqueeze(-1).to(embeds.dtype)
