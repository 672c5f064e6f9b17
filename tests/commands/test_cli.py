# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The `ultraflash` command: its frame and `convert`."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from helpers.paths import ROOT, TESTS
from reference.deterministic import fill_layout

from ultraflash_diffusers import CausalLatentUpsampler, CausalWanTransformer, __version__
from ultraflash_diffusers.cli import main
from ultraflash_diffusers.conversion import from_original

LAYOUTS = TESTS / "reference" / "layouts"
SOURCE = ROOT / "src"


@pytest.fixture
def upsampler_file(tmp_path):
    path = tmp_path / "1K-ultraLatentUpsampler.pth"
    torch.save({"model": fill_layout(LAYOUTS / "upsampler_v1_x2.json"), "step": 19900}, path)
    return path


@pytest.fixture
def generator_file(tmp_path):
    path = tmp_path / "longlive_base.pt"
    weights = fill_layout(LAYOUTS / "generator_rolling_sink.json")
    torch.save({"generator": {f"model.{key}": tensor for key, tensor in weights.items()}}, path)
    return path


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    words = [sys.executable, "-m", "ultraflash_diffusers.cli", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(SOURCE)})


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from ultraflash_diffusers.cli import main\n"
        "try: main(['convert', '--help'])\n"
        "except SystemExit: print(sorted({'torch', 'diffusers', 'numpy'} & sys.modules.keys()))"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert "--setting" in result.stdout
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "words",
    [["--recipe", "list", "--json"], ["--recipe", "list"], ["nothing.pt", "--output", "x", "--json"]],
    ids=["json", "text", "error"],
)
def test_results_that_nobody_reads_end_without_a_traceback(words):
    command = [sys.executable, "-m", "ultraflash_diffusers.cli", "convert", *words]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, env=environment) as process:
        process.stdout.close()
        told = process.stderr.read()
    assert process.returncode == 141
    assert "Traceback" not in told and "Exception ignored" not in told


def test_version(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--version"])
    assert exit.value.code == 0
    assert capsys.readouterr().out == f"ultraflash {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["transmogrify"], ["convert"], ["convert", "a.pth", "--output"]])
def test_wrong_words_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert "usage: ultraflash" in capsys.readouterr().err


@pytest.mark.slow
def test_convert_in_a_process(upsampler_file, tmp_path):
    result = run("convert", upsampler_file, "--output", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert "v1 latent upsampler (x2, 3 blocks of 24 channels), found under `model`, 79,816" in result.stdout
    network = CausalLatentUpsampler.from_pretrained(tmp_path / "out")
    expected = fill_layout(LAYOUTS / "upsampler_v1_x2.json")
    assert torch.equal(network.final.weight, expected["final.weight"])


def test_convert_prints_json(upsampler_file, generator_file, tmp_path, capsys):
    settings = ("--setting", "num_heads=2", "--setting", "local_attn_size=6", "--setting", "sink_size=3")
    files = (str(upsampler_file), str(generator_file))
    assert main(["convert", *files, "--output", str(tmp_path / "out"), *settings, "--json"]) == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    upsampler, generator = json.loads(output)["components"]
    assert upsampler["file"] == str(upsampler_file)
    assert upsampler["component"] == "latent_upsampler"
    assert generator["class"] == "CausalWanTransformer"
    assert generator["folder"] == str(tmp_path / "out" / "generator_transformer")
    assert generator["config"]["window_frames"] == 6
    network = CausalWanTransformer.from_pretrained(generator["folder"])
    assert (network.config.num_attention_heads, network.config.sink_frames) == (2, 3)
    assert generator["parameters"] == network.num_parameters()


@pytest.mark.parametrize(
    "setting, value",
    [
        ("memory_init=zero", {"memory_init": "zero"}),
        ("residual=False", {"residual": False}),
        ("residual=false", {"residual": False}),
        ("residual_scale=0.5", {"residual_scale": 0.5}),
        ("out_channels=null", {"out_channels": None}),
        ("channels=[24]", {"channels": (24,)}),
        ("channels=24,", {"channels": (24,)}),
        ("activation='silu'", {"activation": "silu"}),
    ],
)
def test_values_of_settings(setting, value, upsampler_file, tmp_path):
    assert main(["convert", str(upsampler_file), "--output", str(tmp_path / "out"), "--setting", setting]) == 0
    network = CausalLatentUpsampler.from_pretrained(tmp_path / "out")
    expected = from_original(fill_layout(LAYOUTS / "upsampler_v1_x2.json"), **value)
    names = ("memory_init", "residual", "residual_scale", "channels", "activation", "out_channels")
    for name in names:
        shown, wanted = network.config[name], expected.config[name]
        assert (list(shown) if isinstance(shown, (list, tuple)) else shown) == (
            list(wanted) if isinstance(wanted, (list, tuple)) else wanted
        )


def test_dtype(upsampler_file, tmp_path):
    assert main(["convert", str(upsampler_file), "--output", str(tmp_path / "out"), "--dtype", "bfloat16"]) == 0
    network = CausalLatentUpsampler.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    weight = fill_layout(LAYOUTS / "upsampler_v1_x2.json")["final.weight"]
    assert torch.equal(network.final.weight, weight.bfloat16())


@pytest.mark.parametrize(
    "name, content, settings, message",
    [
        ("missing.pth", None, [], "is not there"),
        ("empty.pth", b"", [], "is empty"),
        ("noise.pth", b"noise" * 100, [], "not a readable PyTorch checkpoint"),
        ("noise.safetensors", b"noise" * 100, [], "not a readable safetensors file"),
        ("upsampler", "real", ["--setting", "upsample_scale=3"], "`upsample_scale` is 3"),
        ("upsampler", "real", ["--setting", "colour=3"], "unknown setting `colour`"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_mistakes_are_one_line_and_exit_code_2(
    name, content, settings, message, as_json, upsampler_file, tmp_path, capsys
):
    path = upsampler_file if content == "real" else tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    arguments = ["convert", str(path), "--output", str(tmp_path / "out"), *settings, *["--json"][: int(as_json)]]
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("ultraflash: error: ") and message in printed.err
    assert printed.err.count("\n") == 1
    assert (message in json.loads(printed.out)["error"]) if as_json else printed.out == ""
    assert not (tmp_path / "out").exists()


def test_output_that_is_a_file(upsampler_file, capsys):
    assert main(["convert", str(upsampler_file), "--output", str(upsampler_file)]) == 2
    assert "is a file" in capsys.readouterr().err


def test_setting_without_a_value(upsampler_file, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["convert", str(upsampler_file), "--output", str(tmp_path), "--setting", "num_heads"])
    assert exit.value.code == 2
    assert "'num_heads' is not KEY=VALUE" in capsys.readouterr().err
