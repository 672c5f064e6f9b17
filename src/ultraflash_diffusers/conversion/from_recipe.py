# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""From the Hub to a pipeline's folder: what a recipe needs is downloaded, converted part by part, and put in place.

The folder grows beside its place, hidden. Each part is there when it is whole, and the folder when all are: a run that
was killed goes on with the part that it was at, and nothing half-written loads.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.utils import logging

from ..hub_files import Hub
from ..pipelines.habits import class_reference, write_pipeline_file
from ..pipelines.lora.fitting import misfits
from ..pipelines.lora.layers import lora_layers
from ..weight_files import read_checkpoint
from .convert import check_averaged, recognize, save_network
from .folders import check_output, install, partial_folder
from .model_card import UsedFile, model_card
from .recipes import RECIPES, Part, Recipe, Source
from .recognition import Recognition

logger = logging.get_logger(__name__)

TextFiles = Literal["copy", "link", "none"]
_ORDER = "order.json"  # what the parts in a growing folder were made for
_SR_SHIFT = 1.5  # of the SR steps; one step goes from 1 to 0 with any
# folders of a diffusers repository, and the components that they are here
_TEXT_PARTS = {"text_encoder": "text_encoder", "tokenizer": "tokenizer"}
_ENCODER = {"vae": "encoder"}


def convert_recipe(
    name: str,
    output: str | Path,
    *,
    settings: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    text_files: TextFiles = "copy",
    hub: Hub | None = None,
    revisions: Mapping[str, str] | None = None,
    say: Callable[[str], None] = logger.warning,
) -> Path:
    """Makes a folder that `UltraFlashStreamingPipeline.from_pretrained` loads of what is published.

    Args:
        name (`str`): one of `RECIPES`.
        output (`str` or `Path`): the folder, which must not be there yet.
        settings (`Mapping[str, Any]`, *optional*): in place of the recipe's, see [`from_original`]; each network takes
            those that it knows.
        dtype (`torch.dtype`, *optional*): to save the networks in, but for weights that are kept in float32; as in the
            files by default.
        text_files (`str`, *optional*, defaults to `"copy"`): text encoder and tokenizer of the Wan repository:
            `"copy"`, `"link"` to the files in the Hub's cache, which take no room twice (the encoder's, too), or
            `"none"`.
        hub ([`Hub`], *optional*): cache, token and whether to be offline.
        revisions (`Mapping[str, str]`, *optional*): branch, tag or commit by repository; main branches by default.
        say (`Callable[[str], None]`, *optional*): gets a line for each thing that the user should know, licences
            before the download; by default warnings of the log.

    Returns:
        `Path`: the folder.

    Raises:
        ValueError: an unknown recipe or setting, a file of another network, one that is damaged or not finite.
        FileExistsError: `output` is there.
        OSError: a file is not there or cannot be downloaded, the folder cannot be written. Parts that were finished
            stay, hidden, and are not made again by the next run.
    """
    recipe, output, hub = _recipe(name), Path(output), hub or Hub()
    if text_files not in ("copy", "link", "none"):
        raise ValueError(f"`text_files` must be 'copy', 'link' or 'none', got {text_files!r}")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"`output` {str(output)!r} is there already: name a new folder")
    check_output(output)
    _say_terms(recipe, say)
    partial = _begin(partial_folder(output), _order(name, settings, dtype, text_files, revisions))
    kitchen = _Kitchen(partial, settings or {}, dtype, hub, revisions or {}, say)
    try:
        used = [file for part in recipe.parts for file in kitchen.convert(part)]
        kitchen.check_settings()
        if text_files != "none":
            used += kitchen.take_folders(recipe.text, _TEXT_PARTS, text_files)
        if recipe.encoder:
            used += kitchen.take_folders(recipe.encoder, _ENCODER, "copy" if text_files == "none" else text_files)
        _finish(name, recipe, partial, used)
        install(partial, output)
    except Exception:
        if [path.name for path in partial.glob("*")] == [_ORDER]:  # nothing to go on from
            shutil.rmtree(partial)
        raise
    return output


def _recipe(name: str) -> Recipe:
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}; there are {', '.join(RECIPES)}")
    return RECIPES[name]


def _say_terms(recipe: Recipe, say: Callable[[str], None]) -> None:
    for source in (source for part in recipe.parts for source in (*part.sources, *part.lora)):
        if not source.is_commercial:
            say(f"{source.repository} is under {source.license}; what derives from it may be, too")


def _order(
    name: str,
    settings: Mapping[str, Any] | None,
    dtype: torch.dtype | None,
    text_files: str,
    revisions: Mapping[str, str] | None,
) -> dict[str, Any]:
    """What finished parts must have been made for to be used again."""
    return {
        "recipe": name,
        "settings": {key: repr(value) for key, value in (settings or {}).items()},
        "dtype": str(dtype),
        "text_files": text_files,
        "revisions": dict(revisions or {}),
        "version": version("ultraflash_diffusers"),
    }


def _begin(partial: Path, order: Mapping[str, Any]) -> Path:
    note = partial / _ORDER
    if not note.is_file() or json.loads(note.read_text()) != order:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        note.write_text(json.dumps(order))
    return partial


@dataclass
class _Kitchen:
    """Where the parts of one folder are made, and what they need."""

    partial: Path
    settings: Mapping[str, Any]
    dtype: torch.dtype | None
    hub: Hub
    revisions: Mapping[str, str]
    say: Callable[[str], None]
    unknown: list[set[str]] = field(default_factory=list)  # settings that a network did not know

    def convert(self, part: Part) -> list[UsedFile]:
        """Makes one network, if it is not there; only one is in memory at a time."""
        used = [self.locate(part.component, sources) for sources in (part.sources, part.lora) if sources]
        folder = self.partial / part.component
        if folder.is_dir():
            self.unknown.append(set())
            return used
        self.say(f"{part.component}: {used[0].name} of {used[0].source.repository}")
        unfinished = self.partial / f"{part.component}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        recognition = _recognized(part, used[0], self.settings)
        self.unknown.append(recognition.settings.unknown())
        for lora in used[1:]:
            recognition = _with_lora(recognition, lora)
        save_network(recognition, unfinished, self.dtype)
        os.replace(unfinished, folder)
        return used

    def check_settings(self) -> None:
        """Refuses settings that no network knows (as far as networks were made in this run)."""
        if unknown := sorted(set.intersection(*self.unknown)):
            raise ValueError(f"unknown setting {', '.join(map(repr, unknown))} for the networks of this recipe")

    def locate(self, component: str, sources: tuple[Source, ...]) -> UsedFile:
        """Finds and downloads the file of a part."""
        missing: list[str] = []
        for source in sources:
            try:
                name, path = _of_github(source) if "://" in source.repository else self._of_hub(source)
                return UsedFile(component, source, name, path)
            except FileNotFoundError as error:
                missing.append(str(error))
        raise FileNotFoundError(
            f"the {component} was not found: {'; '.join(missing)}. If you have the files, "
            "`ultraflash convert FILE ...` takes them from where they are"
        )

    def _of_hub(self, source: Source) -> tuple[str, Path]:
        hub = self._hub(source)
        if len(source.files) == 1 and "*" not in source.files[0]:
            return source.files[0], hub.file(source.repository, source.files[0])
        names = hub.names(source.repository)
        for pattern in source.files:
            found = [name for name in names if fnmatch(name, pattern) or fnmatch(name.rpartition("/")[2], pattern)]
            if len(found) > 1:
                raise ValueError(f"{source.repository!r} has several files for {pattern!r}: {', '.join(found)}")
            if found:
                return found[0], hub.file(source.repository, found[0])
        there = ", ".join(names) or "nothing (without a network: nothing in the cache)"
        raise FileNotFoundError(f"{source.repository!r} has none of {', '.join(source.files)}; it has {there}")

    def _hub(self, source: Source) -> Hub:
        return dataclasses.replace(self.hub, revision=self.revisions.get(source.repository))

    def take_folders(self, source: Source, folders: Mapping[str, str], how: TextFiles) -> list[UsedFile]:
        """Copies or links folders of a diffusers repository, as far as their files are not there."""
        hub, used = self._hub(source), []
        names = [name for name in hub.names(source.repository) if any(fnmatch(name, each) for each in source.files)]
        absent = [part for part in folders if not any(name.startswith(f"{part}/") for name in names)]
        if absent:
            raise FileNotFoundError(
                f"{source.repository!r} has no files of {' and '.join(absent)} (without a network: in the cache)"
            )
        for name in names:
            folder, _, file = name.partition("/")
            path, target = hub.file(source.repository, name).resolve(), self.partial / folders[folder] / file
            used.append(UsedFile(folders[folder], source, name, path))
            if not target.exists():
                self.say(f"{name} of {source.repository}")
                _put(path, target, how)
        return used


def _put(path: Path, target: Path, how: TextFiles) -> None:
    target.parent.mkdir(exist_ok=True)
    unfinished = target.with_name(f"{target.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    if how == "link":
        unfinished.symlink_to(path)
    else:
        shutil.copyfile(path, unfinished)
    os.replace(unfinished, target)


def _recognized(part: Part, file: UsedFile, settings: Mapping[str, Any]) -> Recognition:
    given = {**part.settings, **settings}
    try:
        recognition = recognize(read_checkpoint(file.path), given)
        if part.component == "generator_transformer":
            check_averaged([recognition], given)
    except ValueError as error:
        raise ValueError(f"{file.name} of {file.source.repository}: {error}") from error
    if recognition.component != part.component:
        raise ValueError(
            f"{file.name} of {file.source.repository} holds a {recognition.description}, expected the {part.component}"
        )
    return recognition


def _with_lora(recognition: Recognition, file: UsedFile) -> Recognition:
    """Adds a LoRA to the network's weights, in float32."""
    network = recognition.build()
    layers = {
        name: layer
        for part in lora_layers(read_checkpoint(file.path), {}, None).values()
        for name, layer in part.items()
    }
    if problems := misfits(layers, network):
        raise ValueError(f"{file.name} of {file.source.repository} does not fit: {', '.join(problems[:5])}")
    for name, layer in layers.items():
        weight = network.get_submodule(name).weight
        change = layer.up.flatten(1).float() @ layer.down.flatten(1).float()
        weight.data = (weight.data.float() + change.view_as(weight)).to(weight.dtype)
    weights = dict(network.state_dict())
    return dataclasses.replace(recognition, weights=weights, names=())


def _of_github(source: Source) -> tuple[str, Path]:
    """By torch.hub's cache, as GitHub's files are no repository of the Hub's."""
    name = source.files[0]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        address = f"{source.repository}/raw/main/{name}"
        try:
            torch.hub.download_url_to_file(address, str(path))
        except OSError as error:
            raise FileNotFoundError(f"{address} could not be downloaded to {str(path)!r}: {error}") from error
    return name, path


def _finish(name: str, recipe: Recipe, partial: Path, used: list[UsedFile]) -> None:
    """Writes what makes of parts a pipeline."""
    FlowMatchEulerDiscreteScheduler(shift=_SR_SHIFT).save_pretrained(partial / "scheduler")
    write_pipeline_file(partial)
    index: dict[str, Any] = {"_class_name": class_reference("UltraFlashStreamingPipeline")}
    index["_diffusers_version"] = version("diffusers")
    index["scheduler"] = ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    for part in recipe.parts:
        config = json.loads((partial / part.component / "config.json").read_text())
        index[part.component] = ["ultraflash_diffusers", config["_class_name"]]
    for text_part in _TEXT_PARTS:
        folder = partial / text_part
        index[text_part] = ["transformers", _text_class(folder)] if folder.is_dir() else [None, None]
    if recipe.encoder:
        config = json.loads((partial / "encoder" / "config.json").read_text())
        index["encoder"] = ["diffusers", config["_class_name"]]
    index |= recipe.pipeline
    (partial / "README.md").write_text(model_card(name, recipe, used))
    (partial / _ORDER).unlink()
    (partial / "model_index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _text_class(folder: Path) -> str:
    """The class of transformers that loads the folder: configs name it."""
    name = "tokenizer_config.json" if folder.name == "tokenizer" else "config.json"
    config = json.loads((folder / name).read_text())
    return config["tokenizer_class"] if folder.name == "tokenizer" else config["architectures"][0]
