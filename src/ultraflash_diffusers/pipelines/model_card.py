# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The card of a pipeline that a user saves or shares: what it holds, and how to run it."""

from __future__ import annotations

from typing import Any

from diffusers import DiffusionPipeline
from torch import nn

from ..tables import markdown_table

_CARD = """---
library_name: diffusers
pipeline_tag: {task}
tags:
- ultraflash
- video-super-resolution
---

# {title}

A pipeline of `ultraflash_diffusers`: {summary}

```python
from diffusers.utils import export_to_video
from ultraflash_diffusers import UltraFlashStreamingPipeline

pipe = UltraFlashStreamingPipeline.from_pretrained({name!r})
export_to_video({call}.frames[0], "video.mp4", fps={fps})
```

{components}

{settings}

What the networks were trained on, and their licences: to be added by whoever shares them.
"""


def pipeline_card(pipe: DiffusionPipeline, name: str) -> str:
    """Returns the text of a `README.md`.

    Args:
        pipe ([`UltraFlashStreamingPipeline`]): what the card is about.
        name (`str`): folder or repository that it is loaded from.
    """
    networks = {each: part for each, part in pipe.components.items() if isinstance(part, nn.Module)}
    settings = {each: value for each, value in pipe.components.items() if isinstance(value, int | float)}
    scale, from_text = pipe.latent_upsampler.config.scale, pipe.generator_transformer is not None
    parts = [(f"`{each}`", f"`{type(part).__name__}`", _size(part)) for each, part in networks.items()]
    summary = f"video {scale} times as large, chunk by chunk, while it arrives"
    return _CARD.format(
        task="text-to-video" if from_text else "video-to-video",
        title=name.rstrip("/").rpartition("/")[2],
        summary=f"{summary}; from text, too." if from_text else f"{summary}.",
        name=name,
        call='pipe("a prompt")' if from_text else 'pipe(source="clip.mp4")',
        fps=pipe.config.default_fps,
        components=markdown_table(("component", "class", "parameters"), parts, text_columns=2),
        settings=markdown_table(
            ("setting", "value"), [(f"`{each}`", value) for each, value in sorted(settings.items())]
        ),
    )


def _size(network: Any) -> str:
    return f"{sum(parameter.numel() for parameter in network.parameters()) / 1e6:.2f} M"
