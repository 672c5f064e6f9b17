# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What works on a machine that has PyTorch and diffusers and little else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from helpers.bare_machine import MISSING, run_bare
from helpers.paths import TESTS
from helpers.training_runs import AUTOENCODER, GENERATOR

from ultraflash_diffusers import CausalWanTransformer, HRAutoencoder
from ultraflash_diffusers.training.data.world import ANCHORS, CODE_SIZE, RIDGES

STREAMS = """
import importlib, torch
from helpers import tiny

assert not any(importlib.util.find_spec(name) for name in MISSING)
pipe = tiny.make_tiny_pipeline(text=False)
latents = torch.randn(1, tiny.LATENT_CHANNELS, 5, 4, 6)
prompt = torch.randn(1, tiny.TEXT_LENGTH, tiny.TEXT_DIM)
print(pipe(source=latents, output_type="uint8").frames.shape, pipe(prompt_embeds=prompt).frames[0][0].size)
"""


def test_latents_and_embedded_prompts_stream() -> None:
    result = run_bare(f"MISSING = {MISSING}\n{STREAMS}")
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.split("\n")[0] == "(1, 17, 32, 48, 3) (48, 32)"


@pytest.mark.slow
def test_the_tests_for_gpus_are_collected() -> None:
    """By the marker alone: no file that has none is imported. Training's need PyAV."""
    result = run_bare("import pytest; sys.exit(pytest.main(['-m', 'gpu', '--collect-only', '-q']))")
    assert result.returncode == 0, result.stdout[-2000:]
    marked = {path for path in TESTS.rglob("test_*.py") if re.search(r"^@pytest\.mark\.gpu", path.read_text(), re.M)}
    collected = {line.split("::")[0] for line in result.stdout.splitlines() if "::" in line}
    assert collected == {str(path.relative_to(TESTS.parent)) for path in marked if path.parent.name != "training"}
    assert len(collected) > 2


@pytest.mark.slow
def test_every_training_script_starts() -> None:
    """Clips that are decoded already and composed ones need no PyAV."""
    code = "import runpy, pathlib\nfor path in sorted(pathlib.Path('training').glob('*.py')):\n"
    result = run_bare(code + "    runpy.run_path(str(path), run_name='imported')\n    print(path.name)\n")
    assert result.returncode == 0, result.stderr[-2000:]
    assert {"train_seeded_generator.py", "distill_sr.py"} < set(result.stdout.split())


@pytest.mark.slow
def test_the_packaged_generator_s_script_trains_for_a_given_time(tmp_path: Path) -> None:
    """In bfloat16, from what is in the repository, with a checkpoint to go on from."""
    HRAutoencoder(**AUTOENCODER).save_pretrained(tmp_path / "autoencoder")
    coded = {"window_frames": 1, "seed_code_dim": CODE_SIZE, "reads_latents": False, "denoising_steps": (1000,)}
    things = {"head_ridges": RIDGES, "head_sprites": (8,) * ANCHORS}
    sizes = {"head_channels": 8, "sample_size": (8, 12)} | things
    (tmp_path / "config.json").write_text(json.dumps(GENERATOR | coded | sizes))
    words = f"--network_config {tmp_path}/config.json --autoencoder {tmp_path}/autoencoder --output_dir {tmp_path}/out"
    words += " --max_train_seconds 3 --mixed_precision bf16 --checkpointing_steps 1 --checkpoints_total_limit 1"
    words += " --train_batch_size 2 --validation_batches 1 --logging_steps 1 --window 4 6"
    code = f"import runpy; sys.argv = ['train', *{words.split()}]\n"
    result = run_bare(code + "runpy.run_path('training/train_seeded_generator.py', run_name='__main__')")
    assert result.returncode == 0, result.stderr[-2000:]
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert 3 <= lines[-1].get("seconds", lines[-2].get("seconds")) < 60
    assert list((tmp_path / "out").glob("checkpoint-*/*"))
    CausalWanTransformer.from_pretrained(tmp_path / "out", subfolder="generator_transformer")
