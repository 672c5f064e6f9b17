# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""A small text encoder of whole words, trained along with a generator, in transformers' own classes."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from diffusers.utils import logging
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from .networks import has_no_weights

logger = logging.get_logger(__name__)

SPECIAL_WORDS = ("<pad>", "</s>", "<unk>")

# scripts, as their letters' Unicode names begin, whose letters are words or syllables, or have no spaces between words
_DENSE = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "ETHIOPIC", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
# letters of a word, from which on it is not short by nature
_LONG = 4

_NORMALIZER = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
_SPLIT = pre_tokenizers.Sequence([pre_tokenizers.Punctuation(behavior="removed"), pre_tokenizers.WhitespaceSplit()])


def words_of(texts: Iterable[str], length: int) -> list[str]:
    """The words, in alphabetical order, that a tokenizer of [`make_tokenizer`] must know to read texts.

    Args:
        texts (iterable of `str`): captions.
        length (`int`): tokens at which texts are cut off, the one that ends them included.
    """
    split = (_SPLIT.pre_tokenize_str(_NORMALIZER.normalize_str(text))[: length - 1] for text in texts)
    return sorted({word for words in split for word, _ in words})


def make_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """Makes a tokenizer that knows whole words, whatever their case and the punctuation between them.

    Args:
        words (iterable of `str`): as [`words_of`] gives them; all others become `<unk>`.
    """
    vocabulary = {word: number for number, word in enumerate((*SPECIAL_WORDS, *sorted(set(words))))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = _NORMALIZER, _SPLIT
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def check_captions(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> None:
    """Names captions of words that a text encoder has never seen, in another language for instance.

    A tokenizer of parts of words or of bytes spells those out, by letters or pairs of them, which is named, too.

    Args:
        texts (iterable of `str`): captions; empty ones say nothing.
        tokenizer (`PreTrainedTokenizerBase`): the text encoder's.

    Raises:
        ValueError: there are captions, and not one word of any is known.
    """
    spoken = sorted({text for text in texts if text})
    if not spoken:
        logger.warning("no clip has a text: the text encoder's embedding of the empty one is all there is")
        return
    shares = [_unknown_share(text, tokenizer) for text in spoken]
    foreign = [text for text, share in zip(spoken, shares, strict=True) if share > 0.5]
    if min(shares) == 1:
        raise ValueError(
            f"the text encoder's tokenizer knows no word of the {len(spoken)} captions, such as {spoken[0]!r}: are "
            "they in another language?"
        )
    if foreign:
        logger.warning(
            f"most words of {len(foreign)} of {len(spoken)} captions are unknown to the text encoder's tokenizer, "
            f"such as those of {foreign[0]!r}"
        )
    spelled = [text for text in spoken if _spelled_share(text, tokenizer) > 0.5]
    if spelled:
        logger.warning(
            f"the text encoder's tokenizer spells most words of {len(spelled)} of {len(spoken)} captions by letters, "
            f"such as those of {spelled[0]!r}: are they in another language?"
        )


def _unknown_share(text: str, tokenizer: PreTrainedTokenizerBase) -> float:
    """Of a text's tokens."""
    told = _told(tokenizer(text, add_special_tokens=False).input_ids, tokenizer)
    return sum(token == tokenizer.unk_token for token in told) / max(1, len(told))


def _spelled_share(text: str, tokenizer: PreTrainedTokenizerBase) -> float:
    """Of a text's long words, those in pieces of less than two letters each; of dense scripts, of less than one."""
    words = [word for word in text.split() if sum(map(str.isalpha, word)) >= _LONG]
    if not words:
        return 0.0
    rows = tokenizer(words, add_special_tokens=False).input_ids
    return sum(_is_spelled(word, _told(ids, tokenizer)) for word, ids in zip(words, rows, strict=True)) / len(words)


def _is_spelled(word: str, pieces: list[str]) -> bool:
    first = next(letter for letter in word if letter.isalpha())
    dense = unicodedata.name(first, "").startswith(_DENSE)
    return len(pieces) * (1 if dense else 2) > len(word)


def _told(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Tokens but for bare marks of where words begin."""
    return [token for token in tokenizer.convert_ids_to_tokens(ids) if token.strip("\u2581")]


def make_text_encoder(vocabulary_size: int, text_dim: int, num_layers: int = 2) -> UMT5EncoderModel:
    """Makes a UMT5 encoder of random weights.

    Args:
        vocabulary_size (`int`): of the tokenizer.
        text_dim (`int`): channels of its output, a multiple of 4.
        num_layers (`int`, *optional*, defaults to 2): layers, each of 4 heads.
    """
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=vocabulary_size,
            d_model=text_dim,
            d_kv=text_dim // 4,
            d_ff=2 * text_dim,
            num_layers=num_layers,
            num_heads=4,
            dropout_rate=0.0,
        )
    )


class TextEncoding(nn.Module):
    """Embeds texts as the pipeline does, with gradients.

    Args:
        text_encoder (`UMT5EncoderModel`): trained along, unless its parameters are frozen.
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer.
        length (`int`): tokens to which texts are padded; what is longer is cut off.
    """

    def __init__(
        self,
        text_encoder: UMT5EncoderModel,
        tokenizer: PreTrainedTokenizerBase,
        length: int,
    ) -> None:
        super().__init__()
        self.text_encoder, self.tokenizer, self.length = text_encoder, tokenizer, length

    def forward(self, texts: Sequence[str]) -> torch.Tensor:
        """Returns `[texts, tokens of the longest, text_dim]`, zero after a text's last token; networks fill it up."""
        tokens = self.tokenizer(
            list(texts), padding=True, max_length=self.length, truncation=True, return_tensors="pt"
        ).to(self.text_encoder.device)
        embeds = self.text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        return embeds * tokens.attention_mask.unsqueeze(-1).to(embeds)

    @classmethod
    def load(cls, folder: str, length: int) -> TextEncoding:
        """Loads both from a pipeline's folder or repository, frozen."""
        if has_no_weights():
            text_encoder = UMT5EncoderModel(UMT5Config.from_pretrained(folder, subfolder="text_encoder"))
        else:
            text_encoder = UMT5EncoderModel.from_pretrained(folder, subfolder="text_encoder")
        text_encoder.requires_grad_(False)
        return cls(text_encoder, AutoTokenizer.from_pretrained(folder, subfolder="tokenizer"), length)

    def save_pretrained(self, folder: Path) -> None:
        """Writes `text_encoder` and `tokenizer` as a pipeline has them."""
        self.text_encoder.save_pretrained(folder / "text_encoder")
        self.tokenizer.save_pretrained(folder / "tokenizer")
