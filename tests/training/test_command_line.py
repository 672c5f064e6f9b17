# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""A training script's flags from a YAML file, and what it says of wrong ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers.training_runs import SCRIPTS, script

from ultraflash_diffusers.training.loop.command_line import write_config

GIVEN = {
    "objective": "flow_matching",
    "network_config": "net.json",
    "autoencoder": "ae",
    "latent_upsampler": "up",
    "train_data_dir": "clips",
    "output_dir": "out",
    "mixed_precision": "no",  # a boolean in YAML 1.1
    "learning_rate": "1e-3",  # a string in YAML 1.1
    "condition_noise": [0.1, 0.2],
    "crops": ["5x32x32", "9x32x32"],
    "use_ema": True,
    "gradient_checkpointing": False,
    "rank": None,
}


def test_a_file_s_values_are_those_of_flags_and_are_written_back(tmp_path: Path) -> None:
    file, parse = tmp_path / "run.yaml", script("train_sr").parse_arguments
    file.write_text(yaml.safe_dump(GIVEN))
    parsed = parse(["--config", str(file), "--learning_rate", "2e-3"])
    assert (parsed.learning_rate, parsed.mixed_precision, parsed.use_ema, parsed.rank) == (2e-3, "no", True, None)
    assert parsed.condition_noise == (0.1, 0.2) and [str(crop) for crop in parsed.crops] == GIVEN["crops"]
    write_config(tmp_path / "config.yaml", parsed)
    again = parse(["--config", str(tmp_path / "config.yaml")])
    assert {**vars(again), "config": None} == {**vars(parsed), "config": None}
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()).keys() == GIVEN.keys() - {
        "gradient_checkpointing",
        "rank",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rte: 1", "no flag is called 'learning_rte'; near: 'learning_rate'"),
        ("resume_from_checkpoint: latest", "no flag is called 'resume_from_checkpoint'"),
        ("use_ema: 1", "use_ema must be true or false, got 1"),
        ("seed: [1, 2]", "seed must be one value, got ['1', '2']"),
        ("seed: {a: 1}", "seed must be a value or a list of values"),
        ("seed: x", "argument --seed: invalid int value: 'x'"),
        ("- seed", "must hold flags' names and values"),
        ("seed: [", "while parsing"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    flags = ("--train_data_dir", "x", "--output_dir", "y")
    with pytest.raises(SystemExit):
        script("train_quality_scorer").parse_arguments(["--config", str(file), *flags])
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_script_refuses_without_a_traceback(tmp_path: Path) -> None:
    flags = ("--train_data_dir", str(tmp_path / "nothing"), "--output_dir", str(tmp_path / "out"))
    command = [sys.executable, str(SCRIPTS / "train_quality_scorer.py"), *flags]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert result.stderr.rstrip().endswith("nothing' is not a folder")
