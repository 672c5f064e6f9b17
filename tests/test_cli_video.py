"""The commands that run the cascade: files in, files out, whatever happens in between."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from tiny import make_tiny_pipeline

from ultraflash_diffusers import default_checkpoint
from ultraflash_diffusers.cli import main
from ultraflash_diffusers.video_io import VideoReader

ROOT = Path(__file__).parent.parent
HEIGHT, WIDTH = 16, 24
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    make_tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", frames=60)


def write_clip(path: Path, frames: int) -> Path:
    """A clip in motion at 12 frames a second, with a tone."""
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=12)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        audio = container.add_stream("aac", rate=8000)
        for number in range(frames):
            picture = av.VideoFrame.from_ndarray(np.roll(pixels, number, axis=1), format="rgb24")
            container.mux(video.encode(picture))
        tone = np.sin(np.arange(8000 * frames // 12) / 5).astype(np.float32)[None]
        sound = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
        sound.sample_rate = 8000
        container.mux(audio.encode(sound))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))
    return path


def words(checkpoint: Path, clip: Path, output: Path, *more: str) -> list[str]:
    return ["upscale", str(clip), str(output), "--checkpoint", str(checkpoint), "--device", "cpu", *more]


def failure(capsys, arguments: list[str]) -> str:
    """Runs a command that must fail, and returns what it says."""
    assert main(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("ultraflash: error: ")
    return lines[-1]


def test_upscale_keeps_everything(checkpoint, clip, tmp_path, capsys):
    output = tmp_path / "out.mp4"
    assert main(words(checkpoint, clip, output, "--json")) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["frames"] == report["frames_made"] == 60
    assert (report["width"], report["height"]) == (2 * WIDTH, 2 * HEIGHT)
    assert report["fps"] > 0
    assert {"encoder", "upsampler", "transformer", "decoder", "color_correction"} <= report["stage_seconds"].keys()
    before, after = VideoReader(clip), VideoReader(output)
    assert [f.pts * before.info.time_base for f in before] == [f.pts * after.info.time_base for f in after]
    assert after.info.has_audio and (after.info.width, after.info.height) == (2 * WIDTH, 2 * HEIGHT)
    assert list(tmp_path.iterdir()) == [output], "nothing but the result is left behind"


def test_upscale_of_the_first_frames_with_a_seed(checkpoint, clip, tmp_path, capsys):
    outputs = [tmp_path / f"{number}.mp4" for number in range(3)]
    for output, seed in zip(outputs, ("1", "1", "2"), strict=True):
        assert main(words(checkpoint, clip, output, "--num-frames", "7", "--seed", seed)) == 0
    assert "7 frames of 48x32" in capsys.readouterr().out
    assert outputs[0].read_bytes() == outputs[1].read_bytes() != outputs[2].read_bytes()


def test_killed_and_resumed_equals_uninterrupted(checkpoint, tmp_path):
    clip = write_clip(tmp_path / "long.mp4", frames=400)
    whole, output = tmp_path / "whole.mp4", tmp_path / "out.mp4"
    assert main(words(checkpoint, clip, whole)) == 0
    command = [sys.executable, "-m", "ultraflash_diffusers.cli", *words(checkpoint, clip, output)]
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("out.mp4.partial.*.state")) and process.poll() is None:
        assert time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    kept = len(list(VideoReader(tmp_path / "out.mp4.partial.mp4")))
    assert 0 < kept < 400 and not output.exists()
    assert main(words(checkpoint, clip, output, "--resume")) == 0
    assert output.read_bytes() == whole.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"long.mp4", "whole.mp4", "out.mp4"}


def test_resume_without_an_earlier_run_starts_anew(checkpoint, clip, tmp_path):
    assert main(words(checkpoint, clip, tmp_path / "out.mp4", "--resume", "--num-frames", "3")) == 0
    assert len(list(VideoReader(tmp_path / "out.mp4"))) == 3


def test_mistakes_are_one_line_before_any_work(checkpoint, clip, tmp_path, capsys):
    output, text = tmp_path / "out.mp4", tmp_path / "text.mp4"
    text.write_text("not a video")
    (tmp_path / "empty.mp4").touch()
    for name in ("nothing.mp4", "text.mp4", "empty.mp4"):
        assert name in failure(capsys, words(checkpoint, tmp_path / name, output))
    assert "--scale 3: this checkpoint upscales 2 times" in failure(
        capsys, words(checkpoint, clip, output, "--scale", "3")
    )
    assert "'out.gif'" in failure(capsys, words(checkpoint, clip, Path("out.gif")))
    assert "no folder" in failure(capsys, words(checkpoint, clip, tmp_path / "missing" / "out.mp4"))
    assert "`crf`" in failure(capsys, words(checkpoint, clip, output, "--crf", "99"))
    assert "no-such-device" in failure(capsys, [*words(checkpoint, clip, output)[:-1], "no-such-device"])
    output.write_bytes(b"precious")
    assert "exists already" in failure(capsys, words(checkpoint, clip, output))
    assert output.read_bytes() == b"precious"
    assert {path.name for path in tmp_path.iterdir()} == {"out.mp4", "text.mp4", "empty.mp4"}


def test_a_missing_checkpoint_is_named(clip, tmp_path, capsys):
    assert "nowhere" in failure(capsys, words(tmp_path / "nowhere", clip, tmp_path / "out.mp4"))


def test_generate(checkpoint, tmp_path, capsys):
    output = tmp_path / "out.mp4"
    size = ["--height", "30", "--width", "42", "--num-frames", "9"]
    arguments = ["generate", "a red ball", "--output", str(output), "--checkpoint", str(checkpoint), *size, "--json"]
    assert main([*arguments, "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["frames"] == 9
    reader = VideoReader(output)
    assert (reader.info.width, reader.info.height, reader.info.fps, len(list(reader))) == (42, 30, 16, 9)


def test_generate_without_a_generator_says_what_to_do(tmp_path, capsys):
    make_tiny_pipeline(text=False, generator=False).save_pretrained(tmp_path / "checkpoint")
    arguments = ["generate", "a red ball", "--checkpoint", str(tmp_path / "checkpoint"), "--device", "cpu"]
    message = failure(capsys, arguments)
    assert "no generator_transformer, text_encoder, tokenizer" in message and "--checkpoint" in message
    assert "PROMPT is empty" in failure(capsys, ["generate", "  "])


def test_benchmark(checkpoint, capsys):
    arguments = ["benchmark", "--checkpoint", str(checkpoint), "--device", "cpu", "--height", "32", "--width", "48"]
    assert main([*arguments, "--chunks", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["chunks"] == 2 and result["fps_slowest_chunk"] <= result["fps"] <= result["fps_fastest_chunk"]
    assert result["threads"] == torch.get_num_threads() and all(result["stage_ms_per_frame"].values())
    assert main([*arguments, "--chunks", "1"]) == 0
    assert "FPS: median of 1 chunks" in capsys.readouterr().out
    assert "multiples of the scale" in failure(capsys, [*arguments, "--height", "33"])


def test_the_example_streams_with_the_packaged_checkpoint(tmp_path):
    assert (default_checkpoint() / "model_index.json").is_file()
    clip = write_clip(tmp_path / "clip.mp4", frames=9)
    command = [sys.executable, str(ROOT / "examples" / "generate.py"), str(clip), "--output", str(tmp_path / "made")]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert "9 frames of 48x32" in result.stdout
    assert len(list(VideoReader(tmp_path / "made" / "clip_2x.mp4"))) == 9
    assert (tmp_path / "made" / "clip_side_by_side.png").stat().st_size > 0
