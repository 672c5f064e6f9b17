# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Prompts to tokens of a fixed number, and what is lost of a prompt on the way."""

from __future__ import annotations

import difflib
import html
from dataclasses import dataclass
from threading import Lock

from tokenizers.models import WordLevel
from transformers import BatchEncoding, PreTrainedTokenizerBase

_CHARACTERS_PER_TOKEN = 64
"""More than a token has: what is further off than this cannot be among the first tokens."""

# a tokenizer sets padding and truncation of a call on itself, and pipelines may share it
_TOKENIZING = Lock()


@dataclass(frozen=True)
class Loss:
    """What the networks do not get to see of a prompt.

    Args:
        text (`str`): the prompt.
        length (`int`): tokens that there is room for.
        tokens (`int`): tokens that it has, or at least has.
        whole (`bool`): whether these are all.
        unknown (`dict[str, list[str]]`): words that the tokenizer does not know, of those that are not cut off, and
            the nearest ones that it knows.
    """

    text: str
    length: int
    tokens: int
    whole: bool
    unknown: dict[str, list[str]]

    def messages(self) -> list[str]:
        """One line for each kind of loss; none where all arrives."""
        found = []
        if self.tokens > self.length or not self.whole:
            number = f"{self.tokens} tokens" if self.whole else f"more than {self.tokens} tokens"
            found.append(f"a prompt of {number} was cut off after {self.length} of them: {self.text[:60]!r}...")
        if self.unknown:
            words = ", ".join(map(repr, self.unknown))
            near = [f"{word!r}: {', '.join(map(repr, known))}" for word, known in self.unknown.items() if known]
            nearest = f" (nearest known words to {'; to '.join(near)})" if near else ""
            found.append(f"the checkpoint's text encoder does not know {words}{nearest}")
        return found


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str], length: int) -> tuple[BatchEncoding, list[Loss]]:
    """Makes `length` tokens of each text, in turns with other threads that do so.

    What is certain to be cut off is left out first, so that a text of any length costs no more than one that fits.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): it.
        texts (`list[str]`): prompts as users write them.
        length (`int`): tokens, special ones and padding included.

    Returns:
        `tuple`: `input_ids` and `attention_mask` `[texts, length]`, and what was lost of each text.
    """
    collapsed = [" ".join(text.split()) for text in texts]
    cleaned = [_cleaned(text[: _CHARACTERS_PER_TOKEN * length]) for text in collapsed]
    with _TOKENIZING:
        losses = [
            Loss(
                text=text,
                length=length,
                tokens=len(tokenizer(text, verbose=False).input_ids),
                whole=len(before) <= _CHARACTERS_PER_TOKEN * length,
                unknown=_unknown_words(tokenizer, text, length),
            )
            for text, before in zip(cleaned, collapsed, strict=True)
        ]
        tokens = tokenizer(cleaned, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return tokens, losses


def _cleaned(text: str) -> str:
    """As Wan's networks were trained: broken Unicode repaired, HTML entities resolved, white space collapsed."""
    import ftfy  # here: embedded prompts do without it

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def _unknown_words(tokenizer: PreTrainedTokenizerBase, text: str, length: int) -> dict[str, list[str]]:
    found, room = [], length - tokenizer.num_special_tokens_to_add()
    for word in text.split():
        if room <= 0:
            break
        ids = tokenizer(word, add_special_tokens=False).input_ids[:room]
        room -= len(ids)
        if tokenizer.unk_token_id in ids:
            found.append(word)
    known = _known_words(tokenizer) if found else []
    return {word: difflib.get_close_matches(word.lower(), known, n=3) for word in found}


def _known_words(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The words of a tokenizer whose tokens are words; of others none."""
    if not isinstance(getattr(tokenizer, "backend_tokenizer", None) and tokenizer.backend_tokenizer.model, WordLevel):
        return []
    return sorted(tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens))
