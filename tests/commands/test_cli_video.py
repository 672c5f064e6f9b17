# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The commands that run the cascade: files in, files out, whatever happens in between."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from helpers.clips import make_clip
from helpers.paths import ROOT
from helpers.small_disk import small_disk
from helpers.tiny import make_tiny_pipeline
from PIL import Image

from benchmarks.metrics import psnr
from benchmarks.text_to_video import SeedCodes, read_thing
from ultraflash_diffusers import UltraFlashStreamingPipeline, default_checkpoint
from ultraflash_diffusers.cli import main
from ultraflash_diffusers.training.data.world import CODE_SIZE, WorldScene, WorldThing
from ultraflash_diffusers.video_io import VideoReader, VideoWriter

WIDTH, HEIGHT = SIZE = 32, 16
LONG = 600  # frames of what is interrupted
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def pipe():
    return make_tiny_pipeline()


@pytest.fixture(scope="module")
def checkpoint(pipe, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    return make_clip(path, 60, size=SIZE, audio="aac", subtitles="mov_text", seconds_of_audio=2.4)


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "long.mp4", LONG, size=SIZE)


def words(checkpoint: Path, clip: Path, output: Path, *more: object) -> list[str]:
    options = ["--checkpoint", str(checkpoint), "--device", "cpu", "--crf", "1"]
    return ["upscale", str(clip), str(output), *options, *map(str, more)]


def generate_words(checkpoint: Path, output: Path, *more: object) -> list[str]:
    options = ["--output", str(output), "--checkpoint", str(checkpoint), "--device", "cpu", "--crf", "1"]
    return ["generate", "a red ball", *options, *map(str, more)]


def failure(capsys, arguments: list[str]) -> str:
    """Runs a command that must fail, and returns what it says."""
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ultraflash: error: ")
    return line


def report_of(capsys, arguments: list[str]) -> dict:
    """Runs a command that must succeed without a word beside its result, and returns that."""
    assert main([*arguments, "--json"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return json.loads(printed.out)


def interrupt(arguments: list[str], sign: signal.Signals) -> subprocess.CompletedProcess[str]:
    """Runs a command in a process of its own and sends `sign` as soon as there is something to resume from."""
    output = Path(arguments[2] if arguments[0] == "upscale" else arguments[3])
    command = [sys.executable, "-m", "ultraflash_diffusers.cli", *arguments, "--save-every", "0"]
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while process.poll() is None and not _saved_frames(output):
        assert time.monotonic() < deadline, "nothing was saved"
        time.sleep(0.002)
    process.send_signal(sign)
    _, errors = process.communicate()
    assert not output.exists(), "it ended before it could be interrupted"
    return subprocess.CompletedProcess(command, process.returncode, "", errors)


def _saved_frames(output: Path) -> int:
    record = output.with_name(f"{output.name}.partial.json")
    return json.loads(record.read_text())["frames"] if record.exists() else 0


def assert_equal_videos(path: Path, expected: Path) -> None:
    """Frames, times and cuts are equal. Not the bytes: now and then x264 chooses otherwise for the same frames."""
    readers = VideoReader(path), VideoReader(expected)
    for frame, other in zip(*readers, strict=True):
        assert frame.pts == other.pts
        assert np.abs(frame.pixels.astype(int) - other.pixels).mean() < 2, f"frame {frame.index}"
    assert keyframes(path) == keyframes(expected)


def keyframes(path: Path) -> list[int]:
    with av.open(str(path)) as container:
        return [packet.pts for packet in container.demux(video=0) if packet.is_keyframe]


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_upscale_keeps_everything(checkpoint, clip, tmp_path, capsys):
    output = tmp_path / "out.mp4"
    report = report_of(capsys, words(checkpoint, clip, output))
    assert report["output"] == str(output)
    assert report["frames"] == report["frames_made"] == 60
    assert (report["width"], report["height"]) == (2 * WIDTH, 2 * HEIGHT)
    assert report["fps"] == pytest.approx(60 / report["seconds"])
    stages = {"source", "encoder", "upsampler", "transformer", "decoder", "color_correction", "output", "writing"}
    assert set(report["stage_seconds"]) == stages and 0 < sum(report["stage_seconds"].values()) <= report["seconds"]
    before, after = VideoReader(clip), VideoReader(output)
    assert [f.pts * before.info.time_base for f in before] == [f.pts * after.info.time_base for f in after]
    assert after.info.has_audio and after.info.has_subtitles
    assert names_in(tmp_path) == {"out.mp4"}, "nothing but the result is left behind"


def test_frames_are_those_of_the_pipeline(pipe, checkpoint, clip, tmp_path, capsys):
    assert main(words(checkpoint, clip, tmp_path / "out.mp4", "--num-frames", 7, "--seed", 3)) == 0
    printed = capsys.readouterr()
    assert "7 frames of 64x32" in printed.out and "7/7" in printed.err and "frame/s" in printed.err
    expected = pipe(source=clip, num_frames=7, generator=torch.Generator().manual_seed(3), output_type="np").frames[0]
    frames = np.stack([frame.pixels for frame in VideoReader(tmp_path / "out.mp4")])
    luma = (0.299, 0.587, 0.114)  # 4:2:0 keeps little of noisy colours
    assert np.abs((frames - expected * 255) @ luma).mean() < 2


def test_the_seed_decides(checkpoint, clip, tmp_path):
    outputs = [tmp_path / f"{number}.mp4" for number in range(3)]
    for output, seed in zip(outputs, (1, 1, 2), strict=True):
        assert main(words(checkpoint, clip, output, "--num-frames", 3, "--seed", seed)) == 0
    first, again, other = (np.stack([frame.pixels for frame in VideoReader(output)]).astype(int) for output in outputs)
    # x264's macroblock tree does not give the same bytes each time
    assert np.abs(first - again).mean() < 0.5 < np.abs(first - other).mean()


def test_fewer_frames_than_asked_for_are_all_there_are(checkpoint, clip, tmp_path, capsys):
    assert report_of(capsys, words(checkpoint, clip, tmp_path / "out.mp4", "--num-frames", 100))["frames"] == 60


@pytest.mark.parametrize(
    "name, settings",
    [
        ("one.mp4", {"frames": 1}),
        ("odd.mkv", {"size": (31, 17), "pixel_format": "yuv444p"}),
        ("ten_bit.mp4", {"codec": "libx265", "pixel_format": "yuv420p10le", "size": (64, 64)}),
        ("alpha.mov", {"codec": "qtrle", "pixel_format": "argb"}),
        ("variable.mp4", {"pts": [0, 500, 1500, 1600, 4000, 4100, 9000], "frames": 7}),
    ],
)
def test_all_kinds_of_clips(name, settings, checkpoint, tmp_path, capsys):
    settings = {"frames": 7, "size": SIZE} | settings
    source = make_clip(tmp_path / name, settings.pop("frames"), **settings)
    assert main(words(checkpoint, source, tmp_path / "out.mp4")) == 0
    before, after = VideoReader(source), VideoReader(tmp_path / "out.mp4")
    assert (after.info.width, after.info.height) == (2 * before.info.width, 2 * before.info.height)
    assert [f.pts * before.info.time_base for f in before] == [f.pts * after.info.time_base for f in after]
    warned = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert warned == (
        [f"ultraflash: warning: {str(source)!r}: its transparency is put on a black background"]
        if name == "alpha.mov"
        else []
    )


@pytest.fixture(scope="module")
def whole(checkpoint, long_clip, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "out.mp4"
    assert main(words(checkpoint, long_clip, output)) == 0
    frames = np.stack([frame.pixels for frame in VideoReader(output)]).astype(int)
    assert np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2, 3)).min() > 2, "a lost frame would not be noticed"
    return output


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(checkpoint, long_clip, whole, tmp_path, capsys):
    output, partial = tmp_path / "out.mp4", tmp_path / "out.mp4.partial.mp4"
    assert interrupt(words(checkpoint, long_clip, output), signal.SIGKILL).returncode == -signal.SIGKILL
    kept = len(list(VideoReader(partial)))
    # as if it had been killed between saving the next state and the record that names it
    saved, (state,) = _saved_frames(output), tmp_path.glob("*.state")
    shutil.copy(state, tmp_path / f"out.mp4.partial.{saved + 48}.state")
    with partial.open("ab") as file:
        file.write(b"half a fragment")
    assert 0 < saved <= kept < LONG
    report = report_of(capsys, words(checkpoint, long_clip, output, "--resume"))
    assert report["frames"] == LONG > report["frames_made"]
    assert_equal_videos(output, whole)
    assert names_in(tmp_path) == {"out.mp4"}


@pytest.mark.slow
def test_interrupted_by_the_user(checkpoint, long_clip, whole, tmp_path, capsys):
    output = tmp_path / "out.mp4"
    result = interrupt(words(checkpoint, long_clip, output), signal.SIGINT)
    assert result.returncode == 130 and "Traceback" not in result.stderr
    kept = len(list(VideoReader(tmp_path / "out.mp4.partial.mp4")))
    assert f"{kept} frames are kept in {output}.partial.mp4, which plays" in result.stderr
    # nothing of it is lost by commands that do not fit
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert "--resume goes on, --overwrite discards it" in failure(capsys, words(checkpoint, long_clip, output))
    others = ["--resume", "--seed", 4, "--color-correction", "none", "--crf", 30]
    message = failure(capsys, words(checkpoint, long_clip, output, *others))
    for difference in ("crf is 30.0, was 1.0", "color_correction is 'none', was 'wavelet'", "seed is 4, was 0"):
        assert difference in message
    assert message.endswith("start anew with --overwrite")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert main(words(checkpoint, long_clip, output, "--resume")) == 0
    assert_equal_videos(output, whole)


def test_a_full_disk_loses_nothing(checkpoint, long_clip, whole, tmp_path, capsys):
    output = tmp_path / "out.mp4"
    with small_disk(whole.stat().st_size // 2):
        assert main(words(checkpoint, long_clip, output, "--save-every", 0)) == 2
    assert "cannot be written" in capsys.readouterr().err.splitlines()[-1]
    assert 0 < len(list(VideoReader(tmp_path / "out.mp4.partial.mp4"))) < LONG and _saved_frames(output)
    assert report_of(capsys, words(checkpoint, long_clip, output, "--resume"))["frames_made"] < LONG
    assert_equal_videos(output, whole)


def test_a_clip_that_breaks_off(checkpoint, tmp_path, capsys):
    """Its frames change their size in mid-stream: what comes before is made and kept."""
    parts = [make_clip(tmp_path / f"{width}.mpg", 40, size=(width, 32)) for width in (40, 48)]
    broken = tmp_path / "broken.mpg"
    broken.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert main(words(checkpoint, broken, tmp_path / "out.mp4")) == 2
    error = capsys.readouterr().err
    assert "changes its frame size at frame 40" in error and "40 frames are kept in" in error
    assert len(list(VideoReader(tmp_path / "out.mp4.partial.mp4"))) == 40


def test_resume_without_an_earlier_run_starts_anew(checkpoint, clip, tmp_path):
    assert main(words(checkpoint, clip, tmp_path / "out.mp4", "--resume", "--num-frames", "3")) == 0
    assert len(list(VideoReader(tmp_path / "out.mp4"))) == 3


def test_mistakes_are_one_line_before_any_work(checkpoint, clip, tmp_path, capsys):
    output, text = tmp_path / "out.mp4", tmp_path / "text.mp4"
    text.write_text("not a video")
    (tmp_path / "empty.mp4").touch()
    for name in ("nothing.mp4", "text.mp4", "empty.mp4"):
        assert name in failure(capsys, words(checkpoint, tmp_path / name, output))
    for options, message in (
        (("--scale", 1000), "`width` must be from 1 to 16384, got 32000"),
        (("--size", "64x32", "--scale", 3), "`scale` is 3.0, and a size is given too"),
        (("--size", "64x32", "--width", 64), "--size 64x32 and --width or --height are both given"),
        (("--video-track", 1), "`track` is 1, but"),
        (("--audio-track", 4), "`audio_tracks` has 4, but the source has 1 sound tracks"),
        (("--fps", 24), "`fps` is 24.0, but"),
        (("--crf", 99), "`crf`"),
        (("--device", "no-such-device"), "--device 'no-such-device' is no device"),
        (("--device", "cuda:99"), "--device 'cuda:99' was not found"),
        (("--checkpoint", tmp_path / "nowhere"), "nowhere': no such folder or Hub name"),
        (("--checkpoint", tmp_path), "its model_index.json is missing"),
        (("--checkpoint", checkpoint / "transformer"), "its model_index.json is missing"),
    ):
        assert message in failure(capsys, words(checkpoint, clip, output, *options))
    assert "'out.gif'" in failure(capsys, words(checkpoint, clip, Path("out.gif")))
    assert "no folder" in failure(capsys, words(checkpoint, clip, tmp_path / "missing" / "out.mp4"))
    output.write_bytes(b"precious")
    assert "give --overwrite to replace it" in failure(capsys, words(checkpoint, clip, output))
    assert output.read_bytes() == b"precious"
    assert names_in(tmp_path) == {"out.mp4", "text.mp4", "empty.mp4"}


def test_a_checkpoint_of_another_kind(clip, checkpoint, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    (other / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    message = failure(capsys, words(other, clip, tmp_path / "out.mp4"))
    assert "holds a WanPipeline, expected a UltraFlashStreamingPipeline" in message


@pytest.fixture(scope="module")
def silent_checkpoint(tmp_path_factory) -> Path:
    """A checkpoint that reads no text."""
    folder = tmp_path_factory.mktemp("silent")
    make_tiny_pipeline(text=False, generator=False).save_pretrained(folder)
    return folder


def test_a_prompt_for_a_checkpoint_without_text_encoder(silent_checkpoint, clip, tmp_path, capsys):
    message = failure(capsys, words(silent_checkpoint, clip, tmp_path / "out.mp4", "--prompt", "a ball"))
    assert "--prompt 'a ball': this checkpoint has no text encoder" in message
    assert not names_in(tmp_path)


def test_generate(checkpoint, tmp_path, capsys):
    output = tmp_path / "out.mp4"
    assert report_of(capsys, generate_words(checkpoint, output))["frames"] == 9
    reader = VideoReader(output)
    assert (reader.info.width, reader.info.height, reader.info.fps, len(list(reader))) == (48, 32, 12, 9)
    size = ["--height", 30, "--width", 42]
    assert report_of(capsys, generate_words(checkpoint, output, *size, "--num-frames", 7, "--fps", 8, "--overwrite"))
    reader = VideoReader(output)
    assert (reader.info.width, reader.info.height, reader.info.fps, len(list(reader))) == (42, 30, 8, 7)
    windowed = tmp_path / "windowed.mp4"
    more = ["--num-frames", 60, "--window-frames", 3, "--sink-frames", 0]
    assert main(generate_words(checkpoint, windowed, *size, *more)) == 0
    assert main(generate_words(checkpoint, output, *size, "--num-frames", 60, "--overwrite")) == 0
    assert windowed.read_bytes() != output.read_bytes()


def test_generate_takes_a_schedule_and_a_picture(checkpoint, pipe, tmp_path, capsys):
    output, picture = tmp_path / "out.mp4", tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(picture)
    schedule = ["--frames-per-chunk", 1, "--first-chunk-frames", 2, "--denoising-steps", "1000,500"]
    schedule += ["--first-chunk-denoising-steps", "1000", "--flow-shift", 3]
    words = generate_words(checkpoint, output, *schedule, "--image", picture, "--resize-mode", "crop")
    assert report_of(capsys, words)["frames"] == 9
    keywords = {"frames_per_chunk": 1, "first_chunk_frames": 2, "denoising_steps": (1000, 500), "flow_shift": 3}
    keywords |= {"first_chunk_denoising_steps": (1000,), "resize_mode": "crop", "first_frames": Image.open(picture)}
    seed = torch.Generator().manual_seed(0)
    video = pipe("a red ball", source_kwargs=keywords, generator=seed, output_type="uint8").frames[0]
    with VideoWriter(tmp_path / "expected.mp4", 48, 32, fps=12, crf=1) as writer:
        writer.write(video)
    assert output.read_bytes() == (tmp_path / "expected.mp4").read_bytes()
    assert main(generate_words(checkpoint, output, *schedule, "--overwrite")) == 0
    assert output.read_bytes() != (tmp_path / "expected.mp4").read_bytes()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--denoising-steps", "500,1000"], "'500,1000' are no timesteps that decrease"),
        (["--denoising-steps", "many"], "'many' are no timesteps"),
        (["--flow-shift", "0"], "'0' is no number of more than 0"),
        (["--frames-per-chunk", "0"], "'0' is no whole number of 1 or more"),
        (["--window-frames", "2"], "`window_frames` 2 must hold `sink_frames` 1 and a chunk of 3 frames: at least 4"),
        (["--resize-mode", "crop"], "--resize-mode crop: there is no --image"),
        (["--image", "absent.png"], "--image 'absent.png' cannot be read"),
        (["--image", "transparent.png"], "put it on a background first"),
    ],
)
def test_schedules_and_pictures_that_cannot_be(more, message, checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGBA", (8, 8), (1, 2, 3, 100)).save("transparent.png")
    with pytest.raises(SystemExit) if message.startswith("'") else nullcontext():
        assert main(generate_words(checkpoint, tmp_path / "out.mp4", *more)) == 2
    assert message in capsys.readouterr().err
    assert names_in(tmp_path) == {"transparent.png"}


@pytest.mark.slow
def test_generate_is_resumed(checkpoint, tmp_path, capsys):
    output, whole, frames = tmp_path / "out.mp4", tmp_path / "whole.mp4", ("--num-frames", LONG)
    assert main(generate_words(checkpoint, whole, *frames)) == 0
    assert interrupt(generate_words(checkpoint, output, *frames), signal.SIGINT).returncode == 130
    capsys.readouterr()
    message = failure(capsys, generate_words(checkpoint, output, *frames, "--resume", "--window-frames", 3))
    assert "window_frames is 3, was None" in message
    assert report_of(capsys, generate_words(checkpoint, output, *frames, "--resume"))["frames_made"] < LONG
    assert_equal_videos(output, whole)


def test_generate_mistakes(checkpoint, silent_checkpoint, tmp_path, capsys):
    message = failure(capsys, generate_words(silent_checkpoint, tmp_path / "out.mp4"))
    assert "no generator_transformer, text_encoder, tokenizer" in message
    assert "--checkpoint" in message and "ultraflash convert" in message
    assert "`prompt` is empty" in failure(capsys, ["generate", "  "])
    assert "`height` is 32" in failure(capsys, generate_words(checkpoint, tmp_path / "out.mp4", "--height", 32))
    assert "'out.gif'" in failure(capsys, generate_words(checkpoint, Path("out.gif")))
    assert not names_in(tmp_path)


def test_benchmark(checkpoint, capsys):
    arguments = ["benchmark", "--checkpoint", str(checkpoint), "--device", "cpu", "--height", "32", "--width", "48"]
    assert main([*arguments, "--chunks", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["chunks"] == 2 and result["fps_slowest_chunk"] <= result["fps"] <= result["fps_fastest_chunk"]
    assert result["threads"] == torch.get_num_threads() and all(result["stage_ms_per_frame"].values())
    assert main([*arguments, "--chunks", "1"]) == 0
    assert "FPS: median of 1 chunks" in capsys.readouterr().out
    assert "multiples of the scale" in failure(capsys, [*arguments, "--height", "33"])


def run_example(name: str, *arguments: object) -> str:
    command = [sys.executable, str(ROOT / "examples" / name), *map(str, arguments)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_the_packaged_checkpoint_upscales_a_clip(tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", 9, size=SIZE)
    assert "9 frames of 64x32" in run_example("upscale.py", clip, "--output", tmp_path / "made")
    assert len(list(VideoReader(tmp_path / "made" / "clip_2x.mp4"))) == 9
    assert (tmp_path / "made" / "clip_side_by_side.png").stat().st_size > 0


@pytest.mark.slow
def test_the_packaged_checkpoint_makes_what_a_text_says(tmp_path):
    text, things = "a red ball sways and a blue cube stays still on sand by day", ("red", "ball", "blue", "cube")
    printed = run_example("generate.py", text, "--seed", 4, "--output", tmp_path)
    assert "69 frames of 640x384" in printed
    reader = VideoReader(tmp_path / "generated.mp4")
    frames = np.stack([frame.pixels for frame in reader])
    assert len(frames) == 69 and reader.info.fps == 24
    pipe = UltraFlashStreamingPipeline.from_pretrained(default_checkpoint(), dtype=torch.float32)
    shown = (WorldThing("ball", "red", "sways"), WorldThing("cube", "blue", "still"))
    request = SeedCodes.of(pipe).request(WorldScene(np.zeros(CODE_SIZE), shown, "sand", "day"), text, 4, 69)
    first = dataclasses.replace(request, moments=request.moments[:24])
    found = [read_thing(frames[:24], first, number, name) for number in (0, 1) for name in ("color", "kind")]
    assert tuple(found) == things and psnr(frames, request.render(384, 640)) > 27
    assert (tmp_path / "generated.png").stat().st_size > 0


@pytest.mark.slow
def test_the_packaged_checkpoint_goes_on_for_ever_and_varies_by_seed():
    pipe = UltraFlashStreamingPipeline.from_pretrained(default_checkpoint(), dtype=torch.float32)
    long, other = (
        pipe(
            "a green cone floats over snow",
            num_frames=count,
            generator=torch.Generator().manual_seed(seed),
            output_type="uint8",
        ).frames[0]
        for count, seed in ((145, 0), (1, 1))
    )
    assert long[-40:].std(axis=(1, 2)).min() > 10 and psnr(long[:1], other) < 24


@pytest.mark.parametrize(
    ("options", "size"),
    [
        (("--scale", 1.5), (48, 24)),
        (("--scale", 3), (96, 48)),
        (("--size", "50x40"), (50, 40)),
        (("--height", 48), (96, 48)),
        (("--width", 60), (60, 30)),
        (("--height", 20), (40, 20)),
    ],
)
def test_any_size(options, size, checkpoint, clip, tmp_path, capsys):
    output = tmp_path / "out.mp4"
    report = report_of(capsys, words(checkpoint, clip, output, "--num-frames", 5, *options, "--crf", 1))
    assert (report["width"], report["height"]) == size
    assert (report["made_width"], report["made_height"]) == (2 * WIDTH, 2 * HEIGHT)
    info = VideoReader(output).info
    assert (info.width, info.height, info.sample_aspect_ratio) == (*size, 1)


def test_a_resampled_result_is_the_networks_own_resampled(checkpoint, clip, tmp_path, capsys):
    for name, more in (("own.mp4", ()), ("small.mp4", ("--size", "32x16"))):
        assert main(words(checkpoint, clip, tmp_path / name, "--num-frames", 5, *more)) == 0
    assert "5 frames of 32x16 (resampled from 64x32)" in capsys.readouterr().out
    for own, small in zip(VideoReader(tmp_path / "own.mp4"), VideoReader(tmp_path / "small.mp4"), strict=True):
        expected = own.pixels.reshape(16, 2, 32, 2, 3).mean(axis=(1, 3))
        assert np.abs(expected - small.pixels).mean() < 12


@pytest.mark.slow
def test_sizes_are_resumed(checkpoint, long_clip, tmp_path, capsys):
    more = ("--size", "40x24")
    assert main(words(checkpoint, long_clip, tmp_path / "whole.mp4", *more)) == 0
    output = tmp_path / "out.mp4"
    interrupt(words(checkpoint, long_clip, output, *more), signal.SIGKILL)
    capsys.readouterr()
    assert "width is 64, was 40" in failure(capsys, words(checkpoint, long_clip, output, "--resume"))
    assert report_of(capsys, words(checkpoint, long_clip, output, *more, "--resume"))["frames"] == LONG
    assert output.read_bytes() == (tmp_path / "whole.mp4").read_bytes()


def test_hdr_stays_hdr_or_is_converted(checkpoint, tmp_path, capsys):
    tags = {"x264-params": "colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc"}
    source = make_clip(tmp_path / "hdr.mp4", 60, size=(64, 64), pixel_format="yuv420p10le", options=tags)
    assert main(words(checkpoint, source, tmp_path / "deep.mp4")) == 0
    assert capsys.readouterr().err.count("warning") == 0
    deep = VideoReader(tmp_path / "deep.mp4", high_bit_depth=True)
    assert (deep.info.codec, deep.info.bit_depth, deep.info.color.hdr, len(list(deep))) == ("hevc", 10, "PQ", 60)
    assert main(words(checkpoint, source, tmp_path / "plain.mp4", "--bit-depth", 8)) == 0
    assert "it is HDR (PQ) and is brought to standard range" in capsys.readouterr().err
    plain = VideoReader(tmp_path / "plain.mp4").info
    assert (plain.codec, plain.bit_depth, plain.stored_color.transfer) == ("h264", 8, 1)


def test_a_folder_of_pictures(checkpoint, clip, tmp_path, capsys):
    folder = tmp_path / "frames"
    folder.mkdir()
    for frame in VideoReader(clip, num_frames=12):
        Image.fromarray(frame.pixels).save(folder / f"{frame.index}.png")
    report = report_of(capsys, words(checkpoint, folder, tmp_path / "out.mp4", "--fps", 12.5))
    assert report["frames"] == 12 and VideoReader(tmp_path / "out.mp4").info.fps == 12.5


def test_without_sound(checkpoint, clip, tmp_path, capsys):
    for name, more, sounds in (("a.mp4", ("--no-audio",), False), ("b.mp4", ("--audio-track", 0), True)):
        assert main(words(checkpoint, clip, tmp_path / name, "--num-frames", 3, *more)) == 0
        assert VideoReader(tmp_path / name).info.has_audio == sounds
