# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the documentation shows runs: each page's code in one session from top to bottom, and its commands."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from diffusers import WanTransformer3DModel
from helpers.clips import make_clip
from helpers.snippets import commands, snippets
from helpers.source_pipelines import WAN_TRANSFORMER, wan_pipeline
from helpers.tiny import TEXT_DIM, make_tiny_pipeline, make_tiny_text_encoder, make_tiny_transformer
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from ultraflash_diffusers import UltraFlashStreamingPipeline, cli
from ultraflash_diffusers.video_io import VideoReader

ROOT = Path(__file__).parents[2]
OWN = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")]
MANUALS = [ROOT / name / "README.md" for name in ("training", "benchmarks", "demo", "examples")]
CARD = ROOT / "src" / "ultraflash_diffusers" / "checkpoint" / "README.md"
PAGES = [*OWN, *MANUALS, CARD]
WITH_CODE = [page for page in [*OWN, CARD] if any(snippet.language == "python" for snippet in snippets(page))]

# What a reader has and a test has not: a GPU, and time
REPLACED = {
    '"cuda"': '"cpu"',
    "use_stream=True": "use_stream=False",
    "pipe.optimize()": "pipe.optimize(compile=False)",
    "source=wan, num_frames=81": "source=wan, num_frames=5, height=32, width=64",
    'num_frames=81, output="videos"': 'num_frames=5, height=32, width=64, num_inference_steps=1, output="videos"',
    "num_frames=81": "num_frames=5",
    "num_frames=25": "num_frames=9",
    'sand").frames': 'sand", num_frames=9, height=64, width=96).frames',
    'clip.mp4").frames': 'clip.mp4", num_frames=9).frames',
    "range(96)": "range(9)",
    "> 240": "> 12",
    ">= 24": ">= 8",
    "> 40": "> 24",
}


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture
def readers_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the pages take for granted, small: a clip, converted weights, a Wan pipeline, LoRA layers."""
    make_clip(tmp_path / "clip.mp4", 9, audio="aac")
    make_tiny_pipeline().save_pretrained(tmp_path / "ultraflash-1k")
    base, (text_encoder, tokenizer) = wan_pipeline(), make_tiny_text_encoder()
    config = WAN_TRANSFORMER | {"text_dim": TEXT_DIM, "out_channels": 16, "rope_max_seq_len": 32}
    base.register_modules(text_encoder=text_encoder, tokenizer=tokenizer, transformer=WanTransformer3DModel(**config))
    base.save_pretrained(tmp_path / "Wan-AI" / "Wan2.1-T2V-1.3B-Diffusers")
    transformer = make_tiny_transformer()
    transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k"], init_lora_weights=False))
    layers = get_peft_model_state_dict(transformer)
    UltraFlashStreamingPipeline.save_lora_weights(tmp_path / "outputs" / "lora", layers)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_CODE, ids=name)
def test_code_of_a_page_runs_from_top_to_bottom(page: Path, readers_folder: Path) -> None:
    session: dict[str, Any] = {"__name__": "__main__"}
    for snippet in snippets(page):
        if snippet.language == "python":
            code = snippet.text
            for shown, run in REPLACED.items():
                code = code.replace(shown, run)
            exec(compile("\n" * (snippet.line - 1) + code, str(page), "exec"), session)
    files = set(re.findall(r'"(\w+\.mp4)"', "".join(snippet.text for snippet in snippets(page))))
    for file in files:
        assert VideoReader(readers_folder / file).info.num_frames


SHORT = {
    "generate": ["--num-frames", "5", "--height", "64", "--width", "96", "--overwrite"],
    "upscale": ["--num-frames", "5", "--overwrite"],
    "benchmark": ["--height", "64", "--width", "96"],
}


@pytest.mark.slow
def test_commands_of_the_pages_run(readers_folder: Path, capsys: pytest.CaptureFixture) -> None:
    shown = {tuple(words) for page in OWN for words in commands(page, "ultraflash", "bash")}
    assert {words[0] for words in shown} >= set(SHORT)
    for words in sorted(shown):
        if words[0] in SHORT:
            assert cli.main([*words, *SHORT[words[0]]]) == 0, capsys.readouterr().err
    before, after = (VideoReader(readers_folder / name).info for name in ("clip.mp4", "clip_2x.mp4"))
    assert (after.width, after.height) == (2 * before.width, 2 * before.height)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_are_understood(page: Path) -> None:
    for words in commands(page, "ultraflash"):
        cli._parser().parse_args([word.replace("FILE...", "FILE") for word in words])


def test_what_commands_name_is_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for page in PAGES:
        for words in commands(page, "make"):
            assert words[0] in targets, f"{name(page)}: make {words[0]}"
        for words in [*commands(page, "python"), *commands(page, "bash")]:
            script = Path(words[1].replace(".", "/") + ".py") if words[0] == "-m" else Path(words[0])
            assert (ROOT / script).exists() or words[1] in {"pytest", "build", "twine"}, f"{name(page)}: {script}"
        for extras in re.findall(r"pip install .*\[([\w,]+)\]", page.read_text()):
            unknown = set(extras.split(",")) - project["optional-dependencies"].keys()
            assert not unknown, f"{name(page)}: extras {unknown}"


def test_a_broken_snippet_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("text\n\n```bash\nmake \\\n    tea  # hot\n```\n\n```python\n1 / 0\n```\n")
    shown = snippets(page)
    assert [(snippet.language, snippet.line) for snippet in shown] == [("bash", 4), ("python", 9)]
    assert commands(page, "make") == [["tea"]]
    assert commands(page, "make", "text") == []


@pytest.mark.slow
@pytest.mark.parametrize("example", ["degradation_sheet", "style_lora"])
def test_examples_that_need_an_extra_say_so(example: str) -> None:
    path = str(ROOT / "examples" / f"{example}.py")
    without = "import runpy, sys; sys.modules['cv2'] = None; sys.argv = ['x']; "
    code = f"{without}runpy.run_path({path!r}, run_name='__main__')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode != 0
    assert "pip install 'ultraflash_diffusers[train]'" in result.stderr
    assert "Traceback" not in result.stderr
