# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""From published checkpoints to networks, and to folders that `from_pretrained` loads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import logging
from safetensors import SafetensorError

from ..weight_files import read_checkpoint, shorten
from .causal_memory import recognize_autoencoder, recognize_upsampler_v1, recognize_v3
from .folders import check_output, whole_folder
from .reading import find_network, is_averaged
from .recognition import Recognition
from .settings import check_known
from .wan import recognize_transformer

logger = logging.get_logger(__name__)

# The key by which each family is known. Whatever stands before it is a wrapper's prefix, common to all keys.
_FAMILIES: dict[str, Callable[[Mapping[str, torch.Tensor], Mapping[str, Any]], Recognition]] = {
    "patch_embedding.weight": recognize_transformer,
    "pre_shuffle.0.weight": recognize_upsampler_v1,
    "net.0.weight": recognize_v3,
    "decoder.1.weight": recognize_autoencoder,
}


@dataclass(frozen=True)
class ConvertedFile:
    """What became of one file.

    Args:
        file (`Path`): the published checkpoint.
        component (`str`): the pipeline component that it serves as: `"transformer"`, `"latent_upsampler"`,
            `"autoencoder"` or `"generator_transformer"`.
        class_name (`str`): our class.
        folder (`Path`): where it was saved.
        description (`str`): what was found, in words.
        parameters (`int`): number of parameters.
        config (`dict[str, Any]`): sizes and settings of the network.
        without_effect (`tuple[str, ...]`): settings that were given and change nothing.
    """

    file: Path
    component: str
    class_name: str
    folder: Path
    description: str
    parameters: int
    config: dict[str, Any]
    without_effect: tuple[str, ...]


def from_original(state_dict: Mapping[str, Any], **settings: Any) -> ModelMixin:
    """Makes the network that a published checkpoint holds.

    What it is and its sizes are read off keys and shapes: an SR transformer, a streaming generator (also any Wan 2.1
    text-to-video transformer, in the original or the diffusers spelling), a latent upsampler (v1, v3) or a decoder
    (tiny, ultra, v3) with or without its encoder. The network's parameters are the given tensors, not copies.

    Args:
        state_dict (`Mapping[str, Any]`): bare, or under `generator_ema`, `model_ema`, `ema`, `generator`, `model` or
            `state_dict` (the first of these that is there, or what `use_ema` says), with any prefix common to all
            keys. What training keeps beside it is left out.
        settings: what tensors do not show, under our config's names or the published ones, with the released values
            as defaults: for transformers `num_attention_heads` (`num_heads`; heads of 128 channels), `text_length`
            (`text_len`, 512), `eps` (1e-6); for the SR transformer `use_sparse_attention` (`use_sparse_attn`,
            `True`), `block_size` (`sparse_block_size`, `(2, 8, 8)`), `top_k_ratio` (`sparse_top_k_ratio`, 1.0),
            `local_range` (`sparse_local_range`, 9), `chunk_size` (`stream_chunk_size`, 2), `reference_tokens`
            (`sparse_ref_spatial_tokens`, 1560), `prediction_type` (`"flow"`), `condition_noise`; for the generator,
            whose schedule is part of its config, `window_frames` (`local_attn_size`, global), `sink_frames`
            (`sink_size`, 0), `frames_per_chunk` (`num_frame_per_block`, 3), `first_chunk_frames` (1 by
            `independent_first_frame`), `denoising_steps` (`denoising_step_list`, 1000, 750, 500, 250),
            `first_chunk_denoising_steps` (`denoising_step_list_first_chunk`), `flow_shift` (`timestep_shift`, 5; 1 by
            `warp_denoising_step=False`), `context_noise` (0), `recompute_on_prompt_change` and `recompute_sink` (both
            by `global_sink`); for upsamplers `activation` (`"relu"`), `memory_init` (`"replicate"`), `residual_scale`
            (1.0); for decoders `variant`, `decoder_spatial_strides` (`decoder_space_upscale`),
            `decoder_temporal_strides` (`decoder_time_upscale`), `encoder_spatial_strides`, `latent_space`; for all
            `use_ema`: whether averaged weights or those beside them are meant. Settings that tensors do show may be
            given too, and have to agree.

    Returns:
        `ModelMixin`: an `UltraFlashSRTransformer`, `CausalWanTransformer`, `CausalLatentUpsampler` or `HRAutoencoder`
        in evaluation mode.

    Raises:
        ValueError: no known network, missing or left-over keys, wrong shapes, or a setting that is unknown or that the
            tensors contradict.
    """
    recognition = recognize(state_dict, settings)
    check_recognized([recognition], settings)
    if ignored := recognition.settings.ignored:
        logger.warning(f"settings without effect: {', '.join(ignored)} ({recognition.settings.network})")
    return recognition.build()


def recognize(checkpoint: Mapping[str, Any], settings: Mapping[str, Any]) -> Recognition:
    """Finds out what a checkpoint holds; see [`from_original`]."""
    if not isinstance(checkpoint, Mapping):
        raise TypeError(f"`state_dict` must be a dictionary of tensors, got {type(checkpoint).__name__}")
    use_ema = settings.get("use_ema")
    if not isinstance(use_ema, bool | None):
        raise ValueError(f"setting `use_ema` is {use_ema!r}; expected True or False")
    weights, found_under = find_network(checkpoint, use_ema)
    found = [(key, anchor) for key in weights for anchor in _FAMILIES if f".{key}".endswith(f".{anchor}")]
    if len(found) != 1:
        anchors = ", ".join(f"`{anchor}`" for anchor in _FAMILIES)
        raise ValueError(
            f"the checkpoint holds no network that is known: of its {len(weights)} keys {len(found)} end with one of "
            f"{anchors}, expected one; it has {shorten(sorted(weights), limit=5)}"
        )
    key, anchor = found[0]
    prefix = key[: len(key) - len(anchor)]
    if foreign := sorted(name for name in weights if not name.startswith(prefix)):
        raise ValueError(f"left-over keys, without the prefix `{prefix}` that `{key}` has: {shorten(foreign)}")
    recognition = _FAMILIES[anchor]({name[len(prefix) :]: tensor for name, tensor in weights.items()}, settings)
    recognition.settings.known.add("use_ema")
    if not found_under:
        return recognition
    description = f"{recognition.description}, found under `{found_under}`"
    return dataclasses.replace(recognition, description=description, found_under=found_under)


def check_recognized(recognitions: Sequence[Recognition], settings: Mapping[str, Any]) -> None:
    """Refuses settings that mean nothing for what was recognised.

    Raises:
        ValueError: no network knows one of them, or averaged weights are asked for and there are none.
    """
    check_known([recognition.settings for recognition in recognitions])
    check_averaged(recognitions, settings)


def check_averaged(recognitions: Sequence[Recognition], settings: Mapping[str, Any]) -> None:
    """Refuses `use_ema` where there are no averaged weights.

    Raises:
        ValueError: so it is.
    """
    if settings.get("use_ema") and not any(is_averaged(each.found_under) for each in recognitions):
        there = ", ".join(f"`{each.found_under}`" for each in recognitions if each.found_under) or "bare tensors"
        raise ValueError(f"`use_ema` is True, but there are no averaged weights (EMA); there are {there}")


def convert_files(
    files: Sequence[str | Path],
    output: str | Path,
    settings: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> list[ConvertedFile]:
    """Converts published checkpoint files to a folder that `from_pretrained` loads.

    Args:
        files (`Sequence[str | Path]`): see [`read_checkpoint`]. One file becomes the folder itself; several become its
            sub-folders `transformer`, `latent_upsampler`, `autoencoder` and `generator_transformer`.
        output (`str` or `Path`): the folder, made where it is not there.
        settings (`Mapping[str, Any]`, *optional*): see [`from_original`]. With several files each network takes those
            that it knows.
        dtype (`torch.dtype`, *optional*): to save in, but for weights that the network keeps in float32; as in the
            file by default.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: see [`read_checkpoint`] and [`from_original`]; or two files serve as one component, the output
            folder would overwrite an input, or weights are not finite, in the file or in `dtype`.
        OSError: the output folder cannot be made or written. Nothing half-written is left.
    """
    if not files:
        raise ValueError("`files` is empty: name at least one checkpoint file")
    paths, output = [Path(file) for file in files], Path(output)
    check_output(output)
    recognitions: list[Recognition] = []
    for path in paths:
        checkpoint = read_checkpoint(path)
        with _naming(path):
            recognitions.append(recognize(checkpoint, settings or {}))
    check_recognized(recognitions, settings or {})
    folders = _folders(paths, recognitions, output)
    for path, recognition in zip(paths, recognitions, strict=True):
        with _naming(path):
            recognition.build()  # all files are checked before the first is written
    with whole_folder(output) as partial:
        for path, recognition, folder in zip(paths, recognitions, folders, strict=True):
            with _naming(path):
                save_network(recognition, partial / folder.relative_to(output), dtype)
    return [_report(*work) for work in zip(paths, recognitions, folders, strict=True)]


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _folders(paths: list[Path], recognitions: list[Recognition], output: Path) -> list[Path]:
    """Where each network goes: nowhere twice, and never over a file that is being read."""
    if len(paths) == 1:
        folders = [output]
    else:
        folders = [output / recognition.component for recognition in recognitions]
    for index, folder in enumerate(folders):
        if folder in folders[:index]:
            first = paths[folders.index(folder)]
            raise ValueError(
                f"{first} and {paths[index]} both hold the component {folder.name!r}: convert them one by one"
            )
        for path in paths:
            if path.resolve().parent == folder.resolve() and path.name.startswith("diffusion_pytorch_model"):
                raise ValueError(f"saving in {str(folder)!r} would replace the input {path.name!r}")
    return folders


def save_network(recognition: Recognition, folder: Path, dtype: torch.dtype | None) -> None:
    """Writes a network to a folder.

    Raises:
        ValueError: a weight is not finite, or would not be in `dtype`.
        OSError: the folder cannot be written.
    """
    network = recognition.build()
    in_dtype(network, dtype)
    try:
        network.save_pretrained(folder)
    except SafetensorError as error:
        raise OSError(f"{str(folder)!r} could not be written: {error}") from error


def in_dtype(network: ModelMixin, dtype: torch.dtype | None) -> None:
    """Brings the weights into `dtype` (as they are if it is `None`), but for those that are kept in float32.

    Raises:
        ValueError: a weight is not finite, or would not be in `dtype`.
    """
    kept = set(network._keep_in_fp32_modules or []) if dtype in (torch.float16, torch.bfloat16) else set()
    for name, parameter in network.named_parameters():
        target = torch.float32 if kept.intersection(name.split(".")) else dtype
        parameter.data = _converted(name, parameter.data, target)


def _converted(name: str, weight: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    converted = weight.to(dtype).contiguous()
    if not converted.isfinite().all():
        if not weight.isfinite().all():
            raise ValueError(f"the weight `{name}` holds values that are not finite")
        raise ValueError(f"the weight `{name}` reaches {weight.abs().max():.3g}, which `dtype` {dtype} cannot hold")
    return converted


def _report(path: Path, recognition: Recognition, folder: Path) -> ConvertedFile:
    return ConvertedFile(
        file=path,
        component=recognition.component,
        class_name=recognition.network_class.__name__,
        folder=folder,
        description=recognition.description,
        parameters=sum(tensor.numel() for tensor in recognition.weights.values()),
        config=recognition.config,
        without_effect=tuple(recognition.settings.ignored),
    )
