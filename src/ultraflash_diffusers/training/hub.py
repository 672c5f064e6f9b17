# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Sharing what was trained on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData, create_repo, upload_folder

# what stays at home
PRIVATE = ["cache/**", "checkpoint-*/**", "ultraflash/**", "wandb/**"]


def create_repository(name: str | None, output_dir: Path) -> str:
    """Creates the repository, or finds it.

    Args:
        name (`str`, *optional*): repository; the output folder's name in the user's own space by default.
        output_dir (`Path`): the output folder.

    Returns:
        `str`: the repository's full name.
    """
    return create_repo(name or output_dir.resolve().name, exist_ok=True).repo_id


def upload(name: str, output_dir: Path, steps: int, measures: dict[str, float]) -> None:
    """Uploads weights, log and settings, with a model card where there is none yet.

    Args:
        name (`str`): repository.
        output_dir (`Path`): what to upload, without checkpoints and cache.
        steps (`int`): optimiser steps done, for the card.
        measures (`dict[str, float]`): the last validation's measures, for the card.
    """
    card = output_dir / "README.md"
    if not card.is_file():
        card.write_text(str(model_card(name, steps, measures)))
    upload_folder(repo_id=name, folder_path=output_dir, ignore_patterns=PRIVATE, commit_message="Trained weights")


def model_card(name: str, steps: int, measures: dict[str, float]) -> ModelCard:
    """Makes a card that says what was measured; what the clips were and their licences has to be added by hand."""
    data = ModelCardData(library_name="diffusers", tags=["ultraflash", "video-super-resolution"])
    rows = "".join(f"| {measure} | {value:.3f} |\n" for measure, value in measures.items())
    table = f"\n| measure | value |\n|---|---|\n{rows}" if rows else ""
    return ModelCard(
        f"---\n{data.to_yaml()}\n---\n\n# {name.split('/')[-1]}\n\nTrained for {steps} steps with "
        f"`ultraflash_diffusers`; the settings are in `training_arguments.json`, the course in `log.jsonl`.\n{table}"
    )
