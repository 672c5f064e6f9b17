# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""From prompts to their embeddings."""

from __future__ import annotations

import html
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging

from .execution.compilation import GuardedCalls
from .execution.devices import execution_device
from .pipeline_state import PipelineStreamState

logger = logging.get_logger(__name__)


class PromptEncodingMixin:
    """The text side of a pipeline that has `text_encoder`, `tokenizer` (both may be `None`) and `transformer`."""

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
            ValueError: a text and its embeddings together, a text without a text encoder, embeddings of a wrong shape,
                another number of negative prompts than of prompts, a `max_sequence_length` above the text length.
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
        if max_sequence_length is not None and not 1 <= max_sequence_length <= length:
            raise ValueError(f"`max_sequence_length` must be 1 to {length}, got {max_sequence_length}")
        if prompt_embeds is not None:
            if prompt is not None:
                raise ValueError(f"`{name}` and `{name}_embeds` were both given: pass one of them")
            if prompt_embeds.ndim != 3 or prompt_embeds.shape[2] != channels or prompt_embeds.shape[1] > length:
                raise ValueError(
                    f"`{name}_embeds` must have shape [prompts, up to {length}, {channels}], got "
                    f"{tuple(prompt_embeds.shape)}"
                )
            return prompt_embeds
        if not isinstance(prompt, (str, list, type(None))) or prompt == []:
            raise TypeError(f"`{name}` must be a text or a list of texts, got {prompt!r}")
        if self.text_encoder is not None and self.tokenizer is not None:
            texts = [prompt or ""] if isinstance(prompt, (str, type(None))) else prompt
            return self._encoded_text(texts, max_sequence_length or length)
        if prompt is not None:
            raise ValueError(f"`{name}` is {prompt!r}, but the pipeline has no text encoder: pass `{name}_embeds`")
        return torch.zeros(1, length, channels)

    def _encoded_text(self, texts: list[str], length: int) -> torch.Tensor:
        texts = [_cleaned(text) for text in texts]
        for text, ids in zip(texts, self.tokenizer(texts).input_ids, strict=True):
            if len(ids) > length:
                logger.warning(f"a prompt of {len(ids)} tokens was cut off after {length} of them: {text[:60]!r}...")
            if unknown := self._unknown_words(text, length):
                logger.warning(f"the checkpoint's text encoder does not know {', '.join(map(repr, unknown))}")
        tokens = self.tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        device = execution_device(self.text_encoder)
        mask = tokens.attention_mask.to(device)
        # transformers up to 5.14 mask with float32's least number, in autocast's bfloat16 -inf: NaN for a prompt
        # without tokens, where the tokenizer adds none
        with self._text_calls(mask.shape), torch.autocast(device.type, enabled=False):
            embeds = self.text_encoder(tokens.input_ids.to(device), attention_mask=mask).last_hidden_state
        return embeds * mask.unsqueeze(-1).to(embeds.dtype)

    def _unknown_words(self, text: str, length: int) -> list[str]:
        """The words that the tokenizer does not know, of those that are not cut off."""
        found, room = [], length - self.tokenizer.num_special_tokens_to_add()
        for word in text.split():
            ids = self.tokenizer(word, add_special_tokens=False).input_ids[: max(room, 0)]
            room -= len(ids)
            if self.tokenizer.unk_token_id in ids:
                found.append(word)
        return found


def _cleaned(text: str) -> str:
    """As Wan's networks were trained: broken Unicode repaired, HTML entities resolved, white space collapsed."""
    import ftfy  # here: embedded prompts do without it

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())
