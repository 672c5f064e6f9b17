# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The package: public names, quick import, and its registration with diffusers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from diffusers import ModelMixin, SchedulerMixin
from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES, _get_custom_components_and_folders
from helpers.tiny import make_tiny_pipeline

import ultraflash_diffusers
from ultraflash_diffusers import UltraFlashStreamingPipeline

ROOT = Path(__file__).parents[1]


def run(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    return result.stdout.strip()


def test_importing_the_package_imports_nothing_else():
    heavy = "{'torch', 'diffusers', 'transformers', 'numpy', 'av'} & sys.modules.keys()"
    assert run(f"import sys, ultraflash_diffusers; print({heavy})") == "set()"


def test_public_names():
    names = set(ultraflash_diffusers.__all__)
    assert names >= {"UltraFlashStreamingPipeline", "UltraFlashSRTransformer", "CausalLatentUpsampler"}
    assert names >= {"HRAutoencoder", "CausalWanTransformer", "DynamicCacheManagement", "StreamState"}
    assert names <= set(dir(ultraflash_diffusers))
    for name in names:
        value = getattr(ultraflash_diffusers, name)
        assert getattr(value, "__name__", name) == name
    with pytest.raises(AttributeError, match="no attribute 'WarpDrive'"):
        _ = ultraflash_diffusers.WarpDrive


def test_registration_comes_with_the_networks():
    code = (
        "import ultraflash_diffusers.models.stream_state\n"
        "from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES as classes\n"
        "print(sorted(classes['ultraflash_diffusers']))"
    )
    assert run(code) == "['ModelMixin', 'SchedulerMixin']"


def test_diffusers_finds_the_base_classes_here():
    assert ultraflash_diffusers.ModelMixin is ModelMixin
    assert ultraflash_diffusers.SchedulerMixin is SchedulerMixin
    for name, methods in LOADABLE_CLASSES["ultraflash_diffusers"].items():
        assert all(hasattr(getattr(ultraflash_diffusers, name), method) for method in methods)


def test_the_index_names_the_package_and_loads(tmp_path):
    pipeline = make_tiny_pipeline()
    pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    ours = {"transformer", "latent_upsampler", "autoencoder", "generator_transformer"}
    assert {
        name for name, entry in index.items() if isinstance(entry, list) and str(entry[0]).startswith("ultra")
    } == ours
    assert {index[name][0] for name in ours} == {"ultraflash_diffusers"}

    files = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()]
    custom, folders = _get_custom_components_and_folders("someone/checkpoint", index, files)
    assert custom == {} and ours < set(folders)

    loaded = UltraFlashStreamingPipeline.from_pretrained(tmp_path)
    for name in ours:
        component, expected = getattr(loaded, name), getattr(pipeline, name)
        assert type(component) is type(expected)
        weights = component.state_dict()
        assert all(torch.equal(weights[key], tensor) for key, tensor in expected.state_dict().items())


def test_default_checkpoint_is_there_or_says_so():
    if (ROOT / "src" / "ultraflash_diffusers" / "checkpoint" / "model_index.json").is_file():
        assert (ultraflash_diffusers.default_checkpoint() / "model_index.json").is_file()
    else:
        with pytest.raises(FileNotFoundError, match="no packaged checkpoint"):
            ultraflash_diffusers.default_checkpoint()


def test_versions_are_pinned_for_everything_that_is_required():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    extras = project["optional-dependencies"]
    required = [*project["dependencies"], *extras["dev"], *extras["demo"], *extras["serve"], *extras["docs"]]
    names = {re.split(r"[\[>=;]", requirement)[0].replace("_", "-") for requirement in required}
    assert names - {project["name"].replace("_", "-")} <= pinned


def test_the_packaged_checkpoint_is_small_and_whole():
    folder = ultraflash_diffusers.default_checkpoint()
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 16e6
    index = json.loads((folder / "model_index.json").read_text())
    for name, entry in index.items():
        if isinstance(entry, list) and name != "_class_name":
            assert (folder / name).is_dir() and any(path.suffix == ".json" for path in (folder / name).iterdir())


@pytest.mark.slow
@pytest.mark.skipif(torch.version.cuda is not None, reason="where there is CUDA, torchao's notices are of use")
def test_torchao_says_nothing_on_a_cpu_build() -> None:
    pytest.importorskip("torchao")
    code = (
        "import logging, ultraflash_diffusers; ultraflash_diffusers.UltraFlashStreamingPipeline; import torchao; "
        "logging.getLogger('torchao').warning('something else')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (result.stdout + result.stderr).strip() == "something else"
