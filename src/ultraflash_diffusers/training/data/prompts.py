# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Embeddings of the training clips' texts, made once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.utils import logging
from tqdm import tqdm
from transformers import AutoTokenizer, UMT5EncoderModel

from ...models.causal_latent_upsampler import CausalLatentUpsampler
from ...models.hr_autoencoder import HRAutoencoder
from ...models.ultraflash_sr_transformer import UltraFlashSRTransformer
from ...pipelines.pipeline_ultraflash import UltraFlashStreamingPipeline
from ..files import holds_array, save_array, tokenizer_fingerprint, weights_fingerprint
from ..starting_points.text_encoding import check_captions
from .crops import Batch, CropDataset

logger = logging.get_logger(__name__)

# texts that are embedded at a time
_BATCH = 16


class Prompts:
    """Looks texts up; without a text encoder all are zeros, as in the pipeline.

    Args:
        embeddings (`dict[str, torch.Tensor]`): `[tokens, text_dim]` of each text, on the CPU; padding left out. Of a
            cache they are in half precision, and stay on the disk until they are looked up.
        length (`int`): tokens that embeddings are zero-padded to.
        channels (`int`): `text_dim`.
    """

    def __init__(self, embeddings: dict[str, torch.Tensor], length: int, channels: int) -> None:
        self._embeddings, self._length, self._channels = embeddings, length, channels

    @classmethod
    def embed(
        cls, texts: Iterable[str], pipe: UltraFlashStreamingPipeline, cache_dir: str | Path | None = None
    ) -> Prompts:
        """Embeds texts as a pipeline does, and the empty one, which stands for a dropped text.

        Args:
            texts (iterable of `str`): of the clips.
            pipe (`UltraFlashStreamingPipeline`): with a text encoder and a tokenizer, or without either.
            cache_dir (`str` or `Path`, *optional*): where embeddings are kept, in files named after text, tokenizer
                and the text encoder's configuration and weights: those that others made are not found.

        Raises:
            ValueError: texts of which the tokenizer knows no word.
        """
        config = pipe.transformer.config
        unique = sorted({"", *texts})
        embeddings: dict[str, torch.Tensor] = {}
        if pipe.text_encoder is not None:
            check_captions(unique, pipe.tokenizer)
            folder = None if cache_dir is None else Path(cache_dir) / "texts" / _encoder_fingerprint(pipe)
            embeddings = _embedded_once(unique, pipe, folder)
        elif len(unique) > 1:
            logger.warning(f"the texts of the clips ({len(unique) - 1}) are not used: there is no text encoder")
        return cls(embeddings, config.text_length, config.text_dim)

    @classmethod
    def none(cls, transformer: UltraFlashSRTransformer) -> Prompts:
        """Those of a transformer without a text encoder."""
        return cls({}, transformer.config.text_length, transformer.config.text_dim)

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Returns float32 `[texts, length, channels]`."""
        padded = torch.zeros(len(texts), self._length, self._channels)
        if self._embeddings:
            for row, text in zip(padded, texts, strict=True):
                row[: len(self._embeddings[text])] = self._embeddings[text]
        return padded


def texts_of(dataset: CropDataset, validation: Sequence[Batch]) -> set[str]:
    """The texts of all clips, held-out ones too."""
    return {clip.text for clip in dataset.clips} | {text for batch in validation for text in batch.texts}


def _embedded_once(
    texts: Sequence[str], pipe: UltraFlashStreamingPipeline, folder: Path | None
) -> dict[str, torch.Tensor]:
    """Embeddings by text: those that are not in the folder are made in batches, and read from it as all others are."""
    if folder is None:
        return {text: embedding for batch in _batches(texts) for text, embedding in _embedded(batch, pipe)}
    files = {text: folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.npy" for text in texts}
    missing = [text for text, file in files.items() if not holds_array(file)]
    for batch in tqdm(_batches(missing), desc="Embedding", unit="batch", disable=None):
        for text, embedding in _embedded(batch, pipe):
            save_array(files[text], embedding.half().numpy())
    # copy on write: torch has no read-only tensors
    return {text: torch.from_numpy(np.load(file, mmap_mode="c")) for text, file in files.items()}


def _batches(texts: Sequence[str]) -> list[Sequence[str]]:
    return [texts[start : start + _BATCH] for start in range(0, len(texts), _BATCH)]


@torch.no_grad()
def _embedded(texts: Sequence[str], pipe: UltraFlashStreamingPipeline) -> Iterator[tuple[str, torch.Tensor]]:
    """Each text with its embedding, float32 `[tokens, text_dim]` on the CPU."""
    for text, embedding in zip(texts, pipe.encode_prompt(list(texts))[0].float().cpu(), strict=True):
        # after a prompt's tokens there are rows of zeros only
        yield text, embedding[: int(embedding.any(dim=1).sum())].clone()


def _encoder_fingerprint(pipe: UltraFlashStreamingPipeline) -> str:
    made_by = f"{weights_fingerprint(pipe.text_encoder)}-{tokenizer_fingerprint(pipe.tokenizer)}"
    return f"{made_by}-{pipe.transformer.config.text_length}"


def text_pipeline(
    text_encoder: str | None,
    transformer: UltraFlashSRTransformer,
    upsampler: CausalLatentUpsampler,
    autoencoder: HRAutoencoder,
    device: torch.device,
) -> UltraFlashStreamingPipeline:
    """Makes a pipeline that embeds texts, if there is an encoder.

    Args:
        text_encoder (`str`, *optional*): pipeline folder or repository with a UMT5 `text_encoder` and a `tokenizer`.
        transformer, upsampler, autoencoder: the pipeline's networks.
        device (`torch.device`): where the encoder runs.
    """
    scheduler, encoder, tokenizer = FlowMatchEulerDiscreteScheduler(), None, None
    if text_encoder is not None:
        # in the precision in which the large one is used, and half as large, where memory is a GPU's
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        encoder = UMT5EncoderModel.from_pretrained(text_encoder, subfolder="text_encoder").to(device, dtype)
        tokenizer = AutoTokenizer.from_pretrained(text_encoder, subfolder="tokenizer")
    return UltraFlashStreamingPipeline(transformer, upsampler, autoencoder, scheduler, encoder, tokenizer)
