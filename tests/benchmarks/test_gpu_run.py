# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The run for a rented GPU, dry: on a CPU, with tiny networks."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from helpers.paths import ROOT

from benchmarks import gpu_report, gpu_run, gpu_travel
from benchmarks.gpu import decoder, kernels, rates, streams
from benchmarks.gpu.results import Report, append, read_predictions


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def values_of(out: Path) -> dict[str, float]:
    return {line["name"]: line["value"] for line in lines_of(out) if "name" in line}


def dry(out: Path, stage: str) -> Report:
    return Report(out, stage, dry=True)


@pytest.mark.slow
@torch.no_grad()
def test_every_stage_runs_dry(tmp_path: Path) -> None:
    """In one process, since each child would import torch anew; whatever failed would be a line."""
    torch.compiler.reset()
    rates.measure_rates(dry(tmp_path, "rates"))
    streams.compare_with_the_cpu(dry(tmp_path, "tiny"))
    streams.run_preset(dry(tmp_path, "1k"), "1k", eager=True)
    streams.run_preset(dry(tmp_path, "1k_gelu"), "1k", variant="fused_gelu")
    streams.run_packaged(dry(tmp_path, "packaged"))
    kernels.time_sparse_attention(dry(tmp_path, "sparse"))
    decoder.time_memory_blocks(dry(tmp_path, "decoder"))
    assert [line for line in lines_of(tmp_path) if "failed" in line] == []
    values = values_of(tmp_path)
    assert values["rates.product"] > 0 and values["tiny.sdpa_from_the_cpu"] == 0 and values["sparse.4k_gather"] > 0
    assert values["decoder.256_plain"] > 0 and values["decoder.64_split"] > 0
    labels = (
        "eager",
        "compiled",
        "three_steps",
        "tuned_convolutions",
        "in_turns",
        "one_block",
        "no_context_passes",
        "chunk_room",
    )
    for label in labels:
        assert values[f"1k.{label}.fps"] > 0 and values[f"1k.{label}.decoder"] > 0
    assert values["1k_gelu.fused_gelu.fps"] > 0 and 0 < values["1k_gelu.fused_gelu.latent_error"] < 1e-2
    assert values["1k.compiled.latent_error"] < 1e-4 and values["1k.compiled.first_frame"] > 0
    assert values["packaged.optimized.latent_error"] < 1e-4 and values["packaged.optimized.psnr"] > 80
    page, folder = tmp_path / "page.md", tmp_path / "page"
    append(tmp_path, {"predictions": read_predictions()})
    gpu_report.main([str(tmp_path / "results.jsonl"), "--folder", str(folder)])
    text = page.read_text()
    assert (
        "| 1k.eager | 18 |" in text and "1k.compiled.fps | 25.5 FPS |" in text and "## What failed\n\nNothing." in text
    )
    assert {path.name for path in folder.iterdir()} == {"speed.svg", "stages.svg", "kernels.svg"}
    for path in folder.iterdir():
        ElementTree.parse(path)


def test_the_command_writes_each_result_at_once(tmp_path: Path) -> None:
    """As a command: predictions first, a stage in its own process, how it ended, and what there was no time for."""
    command = [sys.executable, "benchmarks/gpu_run.py", "--dry", "--out", str(tmp_path), "--stages", "rates", "tests"]
    run = subprocess.run([*command, "--budget", "60"], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    first, *results, last = lines_of(tmp_path)
    assert first["predictions"]["1k.compiled.fps"]["value"] == 25.5
    ended = next(line for line in results if "exit" in line)
    assert ended["stage"] == "rates" and ended["exit"] == 0, ended.get("tail")
    assert any(line.get("name") == "rates.copy" for line in results)
    assert last["stage"] == "tests" and ("skipped" in last or last["exit"] == 0)


def test_a_stage_ends_at_its_limit(tmp_path: Path) -> None:
    options = gpu_run.parse_arguments(["--dry", "--out", str(tmp_path)])
    begin = time.monotonic()
    gpu_run.start_stage("4k", 0.5, options)
    (line,) = lines_of(tmp_path)
    assert line["exit"] == "limit" and line["seconds"] < 30 and "at most 0 s" in line["tail"]
    assert time.monotonic() - begin < 30


def test_an_error_is_a_result(tmp_path: Path) -> None:
    report = dry(tmp_path, "1k")

    def fail() -> None:
        raise torch.OutOfMemoryError("no room")

    assert report.attempt("eager", fail) is None and report.attempt("next", lambda: 3) == 3
    assert lines_of(tmp_path) == [{"stage": "1k", "failed": "eager", "error": "OutOfMemoryError: no room"}]


def test_the_run_s_parent_never_imports_torch() -> None:
    code = "import sys, benchmarks.gpu_run; print({'torch', 'numpy', 'ultraflash_diffusers'} & sys.modules.keys())"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT) == "set()\n"


def test_predictions_are_of_stages_that_there_are() -> None:
    for name, prediction in read_predictions().items():
        assert name.split(".")[0] in gpu_run.STAGES and set(prediction) == {"value", "unit", "from"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stages", "8k"], "invalid choice: '8k'"),
        (["--budget", "0"], "--budget 0 is no time"),
        (["--cache", "/nowhere"], "--cache /nowhere: no such folder"),
    ],
)
def test_wrong_words_are_named(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu_run.parse_arguments(words)
    assert message in capsys.readouterr().err


def test_a_cut_file_of_results_is_read(tmp_path: Path) -> None:
    append(tmp_path, {"stage": "1k", "name": "1k.eager.fps", "value": 18.0, "unit": "FPS"})
    path = tmp_path / "results.jsonl"
    with path.open("a") as file:
        file.write('{"stage": "1k", "na')
    assert gpu_report.Results(path).values["1k.eager.fps"]["value"] == 18
    with path.open("a") as file:
        file.write("\n{}\n")
    with pytest.raises(ValueError, match="line 2 is no JSON"):
        gpu_report.Results(path)


def test_what_travels_fits(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    gpu_travel.main([])
    assert "MiB  src\n" in capsys.readouterr().out
    (tmp_path / "large-1.0-py3-none-any.whl").write_bytes(bytes(2**20))
    assert gpu_travel.wheel_bytes(tmp_path) == {"large-1.0-py3-none-any.whl": 2**20}
    with pytest.raises(SystemExit, match="MiB too much"):
        gpu_travel.main(["--limit", "3"])
