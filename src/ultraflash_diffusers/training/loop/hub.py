# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Sharing what was trained on the Hugging Face Hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, create_repo, upload_folder

from ...tables import markdown_table

# what stays at home
PRIVATE = ["cache/**", "checkpoint-*/**", "left_out.jsonl", "ultraflash/**", "validation/**", "wandb/**"]

# what a model card names; the rest is in the settings' file
CARD_SETTINGS = (
    "objective",
    "learning_rate",
    "lr_scheduler",
    "lr_warmup_steps",
    "crops",
    "train_batch_size",
    "gradient_accumulation_steps",
    "mixed_precision",
    "use_ema",
    "rank",
    "seed",
)

_LORA_SNIPPET = """```python
from ultraflash_diffusers import UltraFlashStreamingPipeline

pipe = UltraFlashStreamingPipeline.from_pretrained({base!r})
pipe.load_lora_weights({name!r}, adapter_name="style")
pipe.set_adapters("style", 1.0)  # 0 gives the results without it
```"""


@dataclass(frozen=True)
class FinishedRun:
    """What a model card says of a run.

    Args:
        steps (`int`): optimiser steps done.
        seconds (`float`): time they took.
        processes (`int`): that took part.
        validation_clips (`int`): held-out clips.
        measures (`dict[str, float]`): the last validation's.
        settings (`dict`): the command line's arguments, as JSON can hold them.
    """

    steps: int
    seconds: float
    processes: int
    validation_clips: int
    measures: dict[str, float]
    settings: dict[str, Any]


def create_repository(name: str | None, output_dir: Path) -> str:
    """Creates the repository, or finds it.

    Args:
        name (`str`, *optional*): repository; the output folder's name in the user's own space by default.
        output_dir (`Path`): the output folder.

    Returns:
        `str`: the repository's full name.
    """
    return create_repo(name or output_dir.resolve().name, exist_ok=True).repo_id


def upload(name: str, output_dir: Path, run: FinishedRun) -> None:
    """Uploads weights, log, curves and settings, with a model card where there is none yet.

    Args:
        name (`str`): repository.
        output_dir (`Path`): what to upload, without checkpoints, cache and held-out clips.
        run (`FinishedRun`): for the card.
    """
    card = output_dir / "README.md"
    if not card.is_file():
        card.write_text(str(model_card(name, run)))
    upload_folder(repo_id=name, folder_path=output_dir, ignore_patterns=PRIVATE, commit_message="Trained weights")


def model_card(name: str, run: FinishedRun) -> ModelCard:
    """Makes a card of what was done and measured; where clips in a folder came from has to be added by hand.

    Args:
        name (`str`): repository.
        run (`FinishedRun`): what the card is about.
    """
    settings, lora = run.settings, run.settings.get("rank") is not None
    base, dataset = (_on_the_hub(settings.get(key)) for key in ("pretrained_model_name_or_path", "dataset_name"))
    data = ModelCardData(
        library_name="diffusers",
        tags=["ultraflash", "video-super-resolution", *(["lora"] if lora else [])],
        datasets=dataset,
        base_model=base,
    )
    if dataset is not None:
        source = f"The dataset [{dataset}](https://huggingface.co/datasets/{dataset})."
    else:
        source = "Files that were not published with this model; what they are and their licences: not stated."
    layers = f"LoRA layers of rank {settings['rank']}" if lora else "Weights"
    sections = [
        f"# {name.split('/')[-1]}",
        f"{layers}, trained for {run.steps} steps in {run.seconds / 3600:.1f} h on {run.processes} process(es) with "
        "`ultraflash_diffusers`. All settings: `training_arguments.json`; the course: `log.jsonl`.",
    ]
    if lora:
        sections += ["## Use", _LORA_SNIPPET.format(base=base or "PIPELINE", name=name)]
    if run.measures:
        rows = [(measure.removeprefix("validation/"), f"{value:.3f}") for measure, value in run.measures.items()]
        clips = f"{run.validation_clips} clip(s) that were held out of training, at the end:"
        sections += ["## Measures", clips, _values("measure", rows), "![Curves of training](curves.png)"]
    chosen = [(key, f"`{settings[key]}`") for key in CARD_SETTINGS if settings.get(key) is not None]
    sections += ["## Settings", _values("setting", chosen), "## Data", source]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")


def _values(what: str, rows: list[tuple[str, str]]) -> str:
    return markdown_table((what, "value"), rows, text_columns=2)


def _on_the_hub(name: str | None) -> str | None:
    """A repository's name; `None` for a folder."""
    return None if name is None or Path(name).exists() else name
