# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The card of a converted pipeline: what it is made of, and under which terms each part stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..tables import markdown_table
from .recipes import Recipe, Source

_COLUMNS = ("part", "file", "repository", "its licence, as its page states it")
_CARD = """---
library_name: diffusers
pipeline_tag: text-to-video
license: other
tags:
- ultraflash
- video
---

# {name}

{description}. Made by `ultraflash convert --recipe {name}` of published files. Their weights are unchanged but for
names and format{merged}.

```python
from ultraflash_diffusers import UltraFlashStreamingPipeline

pipe = UltraFlashStreamingPipeline.from_pretrained("PATH_OF_THIS_FOLDER")
```

## Sources and licences

{sources}

Each part stays under its own terms. What derives from other weights may inherit their terms, whatever a later page
says.{warning}
"""


@dataclass(frozen=True)
class UsedFile:
    """A published file that a part was made of: where it was found, under which terms, and where it lies here."""

    component: str
    source: Source
    name: str
    path: Path


def model_card(name: str, recipe: Recipe, used: Sequence[UsedFile]) -> str:
    """Returns the text of a `README.md`."""
    rows = dict.fromkeys(
        (file.component, f"`{file.name}`", file.source.repository, file.source.license) for file in used
    )
    restricted = sorted({file.source.repository for file in used if not file.source.is_commercial})
    warning = f"\n\n**{', '.join(restricted)}: no commercial use.**" if restricted else ""
    merged = "; the generator's LoRA is merged into it" if any(part.lora for part in recipe.parts) else ""
    return _CARD.format(
        name=name,
        description=recipe.description,
        merged=merged,
        sources=markdown_table(_COLUMNS, list(rows), text_columns=4),
        warning=warning,
    )
