# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Makes the picture of a LoRA's weights, by `examples/style_lora.py`.

python docs/lora_picture.py        # trains for some minutes, writes docs/lora_weights.webp
"""

from __future__ import annotations

import runpy
import tempfile
from pathlib import Path

from PIL import Image

EXAMPLE = Path(__file__).parents[1] / "examples" / "style_lora.py"
PICTURE = Path(__file__).with_name("lora_weights.webp")
WIDTH = 1344


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        runpy.run_path(str(EXAMPLE))["main"](["--output", folder])
        sheet = Image.open(Path(folder) / "style_lora.png").convert("RGB")
    sheet.resize((WIDTH, round(sheet.height * WIDTH / sheet.width)), Image.Resampling.LANCZOS).save(
        PICTURE, quality=72, method=6
    )
    print(f"{PICTURE}: {PICTURE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
