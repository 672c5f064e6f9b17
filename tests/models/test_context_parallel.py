"""Processes that share a network's tokens: what they give together is what one gives alone."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ContextParallelConfig
from diffusers.models._modeling_parallel import TensorParallelConfig
from helpers.paths import TESTS
from helpers.shared_tokens import NETWORKS
from helpers.wan_cases import TOLERANCE
from helpers.wan_networks import latents, make_generator, make_sr, prompt
from torch import distributed

CASES = [f"{name}_{ring}x{ulysses}" for name, (_, degrees) in NETWORKS.items() for ring, ulysses in degrees]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    command = [sys.executable, "-m", "helpers.shared_tokens", str(folder)]
    paths = {"PYTHONPATH": os.pathsep.join(map(str, (TESTS.parent / "src", TESTS)))}
    finished = subprocess.run(command, env=os.environ | paths, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-4000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_clips_gradients_and_streams_are_those_of_one_process(compared: Path, case: str) -> None:
    errors = json.loads((compared / f"{case}.json").read_text())
    assert {"forward", "gradients", "checkpointed", "stream"} <= errors.keys()
    assert max(errors.values()) < TOLERANCE, errors


@pytest.mark.slow
def test_a_pipeline_makes_the_video_that_one_process_makes(compared: Path) -> None:
    found = json.loads((compared / "pipeline.json").read_text())
    assert found["frames"] < TOLERANCE
    assert (
        "`hidden_states` has frames of 1 x 1 tokens, which `ring_degree` 1 times `ulysses_degree` 2"
        in found["refusal"]
    )


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of this process."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("dense", {"ulysses_degree": 4}, "`ulysses_degree` 4 does not divide `num_attention_heads` 2"),
        ("sparse", {"ring_degree": 2}, "`ring_degree` 2 needs dense attention.*`use_sparse_attention`"),
        ("dense", {"ring_degree": 2}, "`ring_degree` 2 times `ulysses_degree` 1 is not the number of processes 1"),
        ("dense", {"ulysses_degree": 2, "ulysses_anything": True}, "`ulysses_anything` is not supported"),
    ],
)
def test_degrees_that_do_not_fit_are_named(alone: None, kind: str, settings: dict[str, Any], message: str) -> None:
    network = make_sr(kind)
    with pytest.raises(ValueError, match=message):
        network.enable_parallelism(config=ContextParallelConfig(**settings))
    # and it works as before
    assert network(latents(2, network.config.in_channels), torch.tensor([1000.0]), prompt()).sample.isfinite().all()


def test_other_ways_are_refused(alone: None) -> None:
    network = make_generator()
    with pytest.raises(ValueError, match="`config` must hold a ContextParallelConfig, got TensorParallelConfig"):
        network.enable_parallelism(config=TensorParallelConfig(tp_degree=2))
    with pytest.raises(ValueError, match="`cp_plan` must be left out"):
        network.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2), cp_plan={"blocks.0": {}})


def test_processes_have_to_know_of_each_other() -> None:
    with pytest.raises(RuntimeError, match="init_process_group"):
        make_generator().enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
