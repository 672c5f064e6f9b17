# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What users of diffusers try on any pipeline: other names of the same things, folders that diffusers itself loads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from diffusers.utils.peft_utils import scale_lora_layers, unscale_lora_layers

from .argument_kinds import check_type, checked_number
from .model_card import pipeline_card

# beside a saved pipeline: whoever has the package loads the folder by DiffusionPipeline and `trust_remote_code=True`
_PIPELINE_FILE = "pipeline.py"
_CARD_FILE = "README.md"
# what diffusers writes on a card that nobody has filled
_EMPTY_CARD = "[More Information Needed]"
_PIPELINE_CODE = '''"""For `DiffusionPipeline.from_pretrained`. Needs `pip install ultraflash_diffusers`."""

from ultraflash_diffusers import UltraFlashStreamingPipeline

__all__ = ["UltraFlashStreamingPipeline"]
'''


class FamiliarPipeline(DiffusionPipeline):
    """A pipeline that has an `autoencoder`."""

    autoencoder: Any
    # set by a callback, it ends a stream after the chunk at hand
    _interrupt: bool = False

    @property
    def vae(self) -> Any:
        """The autoencoder, by the name that it has in most pipelines."""
        return self.autoencoder

    @property
    def interrupt(self) -> bool:
        """Whether a callback has asked to stop, by `pipe._interrupt = True`."""
        return self._interrupt

    @property
    def components(self) -> dict[str, Any]:
        """Networks, tokenizer, scheduler, and the settings: all that makes an equal pipeline."""
        settings = {name: value for name, value in self.config.items() if not name.startswith("_")}
        networks: dict[str, Any] = super().components
        return {name: value for name, value in settings.items() if name not in networks} | networks

    def enable_vae_tiling(self) -> None:
        """Decodes in tiles: less memory, some of the work twice."""
        if not hasattr(self.autoencoder, "enable_tiling"):
            raise ValueError(f"`autoencoder` is a {type(self.autoencoder).__name__}, which cannot decode in tiles")
        self.autoencoder.enable_tiling()

    def disable_vae_tiling(self) -> None:
        """Decodes whole frames again."""
        self.autoencoder.disable_tiling()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | PathLike[str], subfolder: str | None = None, **keywords: Any
    ) -> Any:
        """Loads the pipeline as diffusers does; also from a folder inside of a local one, as modular workflows ask.

        Raises:
            ValueError: a `subfolder` of what is no local folder.
        """
        if subfolder:
            if not Path(pretrained_model_name_or_path).is_dir():
                raise ValueError(
                    f"`subfolder` is {subfolder!r}, but {str(pretrained_model_name_or_path)!r} is no local folder: "
                    "huggingface_hub.snapshot_download makes one of a repository"
                )
            pretrained_model_name_or_path = Path(pretrained_model_name_or_path) / subfolder
        return super().from_pretrained(pretrained_model_name_or_path, **keywords)

    def save_pretrained(self, save_directory: str | PathLike[str], *arguments: Any, **keywords: Any) -> None:
        """Saves the pipeline as diffusers does, so that `DiffusionPipeline` can load it, too."""
        folder = Path(save_directory)
        if not folder.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            write_pipeline_file(folder)  # before: `push_to_hub` uploads at the end
            if not (folder / _CARD_FILE).exists():
                (folder / _CARD_FILE).write_text(pipeline_card(self, str(save_directory)))
        super().save_pretrained(str(save_directory), *arguments, **keywords)  # which takes no `Path` where it uploads

    def _upload_folder(self, working_dir: str | PathLike[str], repo_id: str, **keywords: Any) -> Any:
        """Uploads a saved pipeline as diffusers does, with a filled card in place of its empty one."""
        card = Path(working_dir) / _CARD_FILE
        if _EMPTY_CARD in card.read_text():
            card.write_text(pipeline_card(self, repo_id))
        return super()._upload_folder(working_dir, repo_id, **keywords)

    def to_json_string(self) -> str:
        """The configuration as JSON, with the class by the file that names it."""
        config = json.loads(super().to_json_string())
        config["_class_name"] = class_reference(type(self).__name__)
        return json.dumps(config, indent=2, sort_keys=True) + "\n"

    @classmethod
    def _dict_from_json_file(cls, json_file: str | PathLike[str]) -> dict[str, Any]:
        """Reads a configuration; that this class loads it needs no code from the folder."""
        config: dict[str, Any] = super()._dict_from_json_file(json_file)
        if isinstance(config.get("_class_name"), list):
            config["_class_name"] = config["_class_name"][-1]
        return config


def write_pipeline_file(folder: Path) -> None:
    """Writes the file by which `DiffusionPipeline` finds the class that an index names by [`class_reference`]."""
    (folder / _PIPELINE_FILE).write_text(_PIPELINE_CODE)


def class_reference(name: str) -> list[str]:
    """How a `model_index.json` names a pipeline's class by the file beside it."""
    return [Path(_PIPELINE_FILE).stem, name]


def one_source(source: Any, video: Any) -> Any:
    """Returns what was given as `source` or, by its other name, as `video`."""
    if source is not None and video is not None:
        raise ValueError("`source` and `video` were both given: they are two names for the same thing")
    return video if source is None else source


def several_videos(source: Any, count: int, source_kwargs: dict[str, Any] | None) -> dict[str, Any] | None:
    """Checks that each prompt can have several videos, and has a source pipeline make them.

    Returns:
        `dict`, *optional*: `source_kwargs` of a pipeline, with the number.

    Raises:
        ValueError: the source is one video.
    """
    if count == 1 or source is None:
        return source_kwargs
    if not isinstance(source, DiffusionPipeline):
        raise ValueError(f"`num_videos_per_prompt` is {count}, but this source is one video, not made from a prompt")
    return {"num_videos_per_prompt": count, **(source_kwargs or {})}


@contextmanager
def scaled_lora(pipe: DiffusionPipeline, attention_kwargs: dict[str, Any] | None) -> Iterator[None]:
    """Weighs all LoRA layers, beyond their own weights, by `attention_kwargs={"scale": ...}` as long as it is open."""
    check_type("attention_kwargs", attention_kwargs, Mapping)
    arguments = dict(attention_kwargs or {})
    scale = checked_number("scale", arguments.pop("scale", 1.0))
    if arguments:
        raise ValueError(f"`attention_kwargs` has {', '.join(map(repr, arguments))}, expected 'scale' alone")
    networks = [network for network in (pipe.transformer, pipe.generator_transformer) if network is not None]
    for network in networks:
        scale_lora_layers(network, scale)
    try:
        yield
    finally:
        for network in networks:
            unscale_lora_layers(network, scale)
