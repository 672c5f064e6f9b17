# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Whether a checkpoint fits a GPU is found out from its configs, before any weights are read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny

from ultraflash_diffusers.commands.pipeline_options import pipeline_index
from ultraflash_diffusers.commands.preflight import check_room
from ultraflash_diffusers.pipelines.memory_settings import UNPLANNED_BYTES, plan_settings


def test_what_does_not_fit_is_told_with_what_does(tmp_path: Path) -> None:
    pipe = tiny.make_tiny_pipeline(text=False)
    planned = [each.device_bytes for each in plan_settings(pipe, 320, 480)]
    pipe.save_pretrained(tmp_path)
    for path in tmp_path.rglob("*.safetensors"):
        path.unlink()
    arguments: tuple[Any, ...] = (str(tmp_path), pipeline_index(str(tmp_path)), torch.float32, (320, 480), "cuda:1")
    check_room(*arguments, planned[0])
    with pytest.raises(ValueError, match=r"--device 'cuda:1' has 0\.\d GB free, but frames of 320x480") as error:
        check_room(*arguments, planned[0] - 1)
    fitting = re.search(r"this fits: --memory ([\d.]+)GB \(`kv_cache_blocks` \d, in turns", str(error.value))
    assert fitting is not None and float(fitting[1]) * 1e9 < planned[0]
    with pytest.raises(ValueError, match=r"0\.8 GB are too little for frames of 320x480"):
        check_room(*arguments, UNPLANNED_BYTES)
