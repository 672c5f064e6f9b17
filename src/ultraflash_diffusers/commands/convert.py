# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""`ultraflash convert`: published checkpoints, here or by a recipe from the Hub, to folders that load."""

from __future__ import annotations

import argparse
import ast
import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    SubParsers = argparse._SubParsersAction[argparse.ArgumentParser]

_DTYPES = ("float32", "float16", "bfloat16")


def add_convert(commands: SubParsers) -> argparse.ArgumentParser:
    """Declares the sub-command and returns its parser."""
    command = commands.add_parser(
        "convert",
        help="published checkpoints to folders that from_pretrained loads",
        description="Converts published checkpoints (Ultra Flash, Self-Forcing, LongLive, Causal-Forcing, TAEHV, Wan "
        "2.1) to folders that from_pretrained loads: files that are here, whose tensors tell what they hold, or by "
        "--recipe all that a pipeline needs, from the Hub.",
    )
    command.add_argument(
        "files", nargs="*", type=Path, metavar="FILE", help=".pth, .pt, .ckpt, .bin, .safetensors (or its .index.json)"
    )
    command.add_argument(
        "--recipe", metavar="NAME", help="what to make from the Hub; --recipe list shows what there is"
    )
    command.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="where to write; with several files each component gets a sub-folder",
    )
    command.add_argument(
        "--setting",
        action="append",
        default=[],
        type=_setting,
        metavar="KEY=VALUE",
        help="what tensors do not show, in our spelling or the published one, e.g. local_attn_size=12; repeatable",
    )
    command.add_argument("--dtype", choices=_DTYPES, help="precision to save in; as in the file by default")
    recipe = command.add_argument_group("with --recipe")
    recipe.add_argument(
        "--text-encoder",
        choices=("copy", "link", "none"),
        default="copy",
        help="text encoder and tokenizer: copied, links into the Hub's cache, or left out (default: %(default)s)",
    )
    recipe.add_argument(
        "--revision",
        action="append",
        default=[],
        type=_revision,
        metavar="REPOSITORY=REVISION",
        help="branch, tag or commit of a repository; repeatable",
    )
    recipe.add_argument("--token", help="for repositories that are not public; that of `hf auth login` by default")
    recipe.add_argument("--cache-dir", type=Path, metavar="FOLDER", help="the Hub's cache; the usual one by default")
    recipe.add_argument("--offline", action="store_true", help="take all from the cache")
    command.set_defaults(run=partial(_run, command))
    return command


def _run(command: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.recipe == "list":
        _list_recipes(options.json)
        return
    if bool(options.files) == bool(options.recipe):
        command.error("name files to convert, or a --recipe (one of both; --recipe list shows what there is)")
    if options.output is None:
        command.error("--output is missing: name the folder to write")
    if options.recipe:
        _convert_recipe(options)
    else:
        _convert_files(options)


def _list_recipes(as_json: bool) -> None:
    from ..conversion.recipes import RECIPES

    if as_json:
        print(json.dumps({"recipes": {name: recipe.description for name, recipe in RECIPES.items()}}))
        return
    for name, recipe in RECIPES.items():
        print(f"{name}: {recipe.description}")


def _convert_recipe(options: argparse.Namespace) -> None:
    from ..conversion import convert_recipe
    from ..hub_files import Hub

    folder = convert_recipe(
        options.recipe,
        options.output,
        settings=dict(options.setting),
        dtype=_dtype(options.dtype),
        text_files=options.text_encoder,
        hub=Hub(token=options.token, cache_dir=options.cache_dir, local_files_only=options.offline),
        revisions=dict(options.revision),
        say=lambda line: print(f"ultraflash: {line}", file=sys.stderr),
    )
    print(json.dumps({"folder": str(folder)}) if options.json else f"{options.recipe} -> {folder}")


def _convert_files(options: argparse.Namespace) -> None:
    from ..conversion import convert_files

    converted = convert_files(options.files, options.output, dict(options.setting), _dtype(options.dtype))
    if options.json:
        components = [
            {
                "file": str(item.file),
                "component": item.component,
                "class": item.class_name,
                "folder": str(item.folder),
                "description": item.description,
                "parameters": item.parameters,
                "config": item.config,
                "without_effect": item.without_effect,
            }
            for item in converted
        ]
        print(json.dumps({"components": components}))
        return
    for item in converted:
        print(f"{item.file}: {item.description}, {item.parameters:,} parameters -> {item.folder} ({item.class_name})")
        if item.without_effect:
            print(f"{item.file}: settings without effect: {', '.join(item.without_effect)}")


def _dtype(name: str | None) -> torch.dtype | None:
    import torch

    return getattr(torch, name) if name else None


def _setting(text: str) -> tuple[str, Any]:
    """Reads `key=value`; a value that is no number, list, true, false or null is a string."""
    key, equals, value = text.partition("=")
    if not key.strip() or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    words = {"true": True, "false": False, "null": None, "none": None}
    if value.strip().lower() in words:
        return key.strip(), words[value.strip().lower()]
    try:
        return key.strip(), ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return key.strip(), value.strip()


def _revision(text: str) -> tuple[str, str]:
    repository, equals, revision = text.partition("=")
    if not (repository and equals and revision):
        raise argparse.ArgumentTypeError(f"{text!r} is not REPOSITORY=REVISION")
    return repository, revision
