# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The script of the pictures from text, with small networks and few frames."""

from __future__ import annotations

from helpers.tiny import make_tiny_pipeline
from PIL import Image

from docs import text_pictures

GAP = 16
WIDE, HIGH = 4 * (24 + GAP) - GAP, 2 * (16 + GAP) - GAP  # halves of 48x32 and what is between them


def test_it_writes_all_pictures(tmp_path, monkeypatch):
    make_tiny_pipeline().save_pretrained(tmp_path / "pipe")
    prompt, seed, _ = text_pictures.LONG
    changed = {"FOLDER": tmp_path, "default_checkpoint": lambda: tmp_path / "pipe", "FRAMES": 7}
    for name, value in (changed | {"LONG": (prompt, seed, (1, 2, 3, 5, 6))}).items():
        monkeypatch.setattr(text_pictures, name, value)
    text_pictures.main()
    sizes = {path.stem: Image.open(path).size for path in tmp_path.glob("*.webp")}
    assert sizes == {"from_text": (48, 32)} | {f"text_{name}": (WIDE, HIGH) for name in ("prompts", "seeds", "long")}
    assert Image.open(tmp_path / "from_text.webp").n_frames == 3


def test_pictures_of_a_sheet_stand_in_their_order():
    greys = [(50 * number,) * 3 for number in range(5)]
    sheet = text_pictures.sheet([Image.new("RGB", (48, 32), grey) for grey in greys])
    middles = [(12 + (24 + GAP) * (number % 4), 8 + (16 + GAP) * (number // 4)) for number in range(5)]
    assert sheet.size == (WIDE, HIGH) and [sheet.getpixel(place) for place in middles] == greys
    assert {sheet.getpixel(place) for place in ((26, 8), (12, 18), (60, 40))} == {(255, 255, 255)}
