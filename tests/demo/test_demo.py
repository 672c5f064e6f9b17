# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The demo, driven over its HTTP interface as a browser drives it, with real small networks."""

from __future__ import annotations

import gc
import os
import re
import runpy
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import httpx
import numpy as np
import pytest
import torch
from helpers.paths import ROOT
from helpers.server_process import server_process
from helpers.strangers import address_without_visitors, huge_files, lists
from helpers.tiny import make_tiny_pipeline
from PIL import Image

from ultraflash_diffusers.pipelines.video_stream import VideoStream
from ultraflash_diffusers.video_io import VideoReader, VideoWriter

gradio_client = pytest.importorskip("gradio_client")
demo_module = pytest.importorskip("ultraflash_diffusers.demo.page")

WIDTH, HEIGHT, FRAMES = 24, 16, 30
LONG = 4000


def write_clip(path: Path, frames: int) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (frames, HEIGHT, WIDTH, 3), np.uint8)
    with VideoWriter(path, WIDTH, HEIGHT, fps=12) as writer:
        writer.write(pixels)
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "noise.mp4", FRAMES)


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory) -> Path:
    """So long that no test reaches its end by itself."""
    return write_clip(tmp_path_factory.mktemp("clips") / "long.mp4", LONG)


def serve(pipe, examples=()):
    page = demo_module.build_demo(pipe, examples)
    _, url, _ = demo_module.launch_demo(page, examples, prevent_thread_lock=True, quiet=True)
    return page, url


@pytest.fixture(scope="module")
def url(clip, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))  # looked into by `nothing_runs`
        patch.setenv("GRADIO_HEARTBEAT_INTERVAL", "1")  # how soon a closed page is noticed
        page, url = serve(make_tiny_pipeline(), [clip])
        yield url
        page.end()


@pytest.fixture
def client(url, tmp_path):
    client = gradio_client.Client(url, verbose=False, download_files=str(tmp_path / "downloads"))
    yield client
    client.close()


def upload(path: Path):
    return gradio_client.handle_file(str(path))


def submit_upscale(client, path: Path, color_correction: str = "wavelet", seed: int = 0):
    return client.submit(upload(path), 2, color_correction, seed, api_name="/upscale")


def pixels(path: str | Path) -> np.ndarray:
    return np.stack([frame.pixels for frame in VideoReader(path)])


def encoded(frames: np.ndarray, folder: Path, **settings) -> np.ndarray:
    """What is left of frames in [0, 1] after they have been a file."""
    with VideoWriter(folder / "expected.mp4", frames.shape[2], frames.shape[1], **settings) as writer:
        writer.write((255 * frames).round().astype(np.uint8))
    return pixels(folder / "expected.mp4")


def test_frames_arrive_before_the_end_and_the_video_is_what_the_pipeline_makes(client, clip, tmp_path):
    *during, last = submit_upscale(client, clip)
    assert len(during) >= 2
    counts = [int(re.search(r"(\d+) of 30 frames · [\d.]+ FPS", status).group(1)) for _, _, status, _ in during]
    assert counts == sorted(counts) and counts[0] < FRAMES == counts[-1]
    assert all(video is None and comparison is None for _, video, _, comparison in during)
    for (preview, *_), start, end in zip(during, [0, *counts], counts, strict=False):
        with Image.open(preview) as picture:
            assert (picture.size, picture.n_frames) == ((2 * WIDTH, 2 * HEIGHT), end - start)

    _, video, status, comparison = last
    assert "Done · 30 frames of 48 × 32" in status
    info = VideoReader(video).info
    assert (info.width, info.height, info.fps, info.num_frames) == (2 * WIDTH, 2 * HEIGHT, 12, FRAMES)
    assert Path(video).name == "noise-2x.mp4"
    before, after = (np.asarray(Image.open(path).convert("RGB"), np.float32) for path in comparison)
    assert before.shape == after.shape == (2 * HEIGHT, 2 * WIDTH, 3)

    expected = make_tiny_pipeline()(source=str(clip), generator=torch.Generator().manual_seed(0), output_type="np")
    assert np.array_equal(pixels(video), encoded(expected.frames[0], tmp_path, source=VideoReader(clip)))
    original = Image.fromarray(pixels(clip)[-1]).resize((2 * WIDTH, 2 * HEIGHT), Image.Resampling.BICUBIC)
    result = 255 * expected.frames[0][-1]
    assert np.abs(before - np.asarray(original, np.float32)).mean() < np.abs(before - result).mean() / 2
    assert np.abs(after - result).mean() < np.abs(after - np.asarray(original, np.float32)).mean() / 2


def test_seed_and_color_correction_reach_the_stream(client, clip):
    def made(*arguments):
        return pixels(list(submit_upscale(client, clip, *arguments))[-1][1])

    first = made()
    assert np.array_equal(first, made())
    assert not np.array_equal(first, made("wavelet", 1))
    assert not np.array_equal(first, made("none", 0))


def test_uneven_timestamps_are_kept(client, tmp_path):
    path, pts = tmp_path / "uneven.mp4", [0, 1, 4, 5, 9, 10, 12, 15, 16]
    with VideoWriter(path, WIDTH, HEIGHT, fps=Fraction(12)) as writer:
        writer.write(np.zeros((9, HEIGHT, WIDTH, 3), np.uint8), pts)
    source = VideoReader(path)
    result = VideoReader(list(submit_upscale(client, path))[-1][1])
    seconds = [[frame.pts * reader.info.time_base for frame in reader] for reader in (source, result)]
    assert seconds[0] == seconds[1]


def test_stop_keeps_what_was_made_and_frees_the_stream(client, long_clip):
    job = submit_upscale(client, long_clip)
    wait_for(lambda: len(job.outputs()) >= 2)
    assert not job.done()
    client.predict(api_name="/stop_upscale")
    _, video, status, _ = job.result(timeout=30)
    frames = len(pixels(video))
    assert "Stopped · " in status and f" {frames} frames" in status
    assert 10 < frames < LONG
    assert_nothing_runs()


def test_a_result_that_cannot_be_finished_is_handed_out_as_it_is(client, long_clip):
    job = submit_upscale(client, long_clip)
    wait_for(lambda: len(job.outputs()) >= 2)
    for uploaded in Path(os.environ["GRADIO_TEMP_DIR"]).rglob(long_clip.name):
        uploaded.unlink()  # whose sound is read at the end
    client.predict(api_name="/stop_upscale")
    _, video, status, _ = job.result(timeout=30)
    assert f" {len(pixels(video))} frames" in status and len(pixels(video)) > 10
    assert_nothing_runs()


def test_a_visitor_who_leaves_ends_the_stream(url, long_clip, tmp_path):
    client = gradio_client.Client(url, verbose=False, download_files=str(tmp_path))
    job = submit_upscale(client, long_clip)
    wait_for(lambda: len(job.outputs()) >= 1)
    client.close()
    wait_for(nothing_runs)


def test_two_visitors_at_once_each_get_their_own(url, clip, long_clip, tmp_path):
    alone, patient = (gradio_client.Client(url, verbose=False, download_files=str(tmp_path / name)) for name in "ab")
    expected = pixels(list(submit_upscale(alone, clip))[-1][1])
    long_job = submit_upscale(patient, long_clip)
    wait_for(lambda: len(long_job.outputs()) >= 1)
    before = len(long_job.outputs())
    assert np.array_equal(pixels(list(submit_upscale(alone, clip))[-1][1]), expected)
    wait_for(lambda: len(long_job.outputs()) > before)  # goes on meanwhile
    alone.predict(api_name="/stop_upscale")  # is not theirs to stop
    before = len(long_job.outputs())
    wait_for(lambda: len(long_job.outputs()) > before + 1)
    patient.predict(api_name="/stop_upscale")
    assert "Stopped" in long_job.result(timeout=30)[2]
    for client in (alone, patient):
        client.close()


def test_text_to_video(client, tmp_path):
    arguments = ("a red ball", "48 × 32", 21, 0)
    *during, (_, video, status) = client.submit(*arguments, api_name="/generate")
    assert during and "Done · 21 frames of 48 × 32" in status
    pipe = make_tiny_pipeline()
    expected = pipe("a red ball", num_frames=21, generator=torch.Generator().manual_seed(0), output_type="np")
    assert np.array_equal(pixels(video), encoded(expected.frames[0], tmp_path, fps=12))
    assert VideoReader(video).info.fps == 12
    upright = client.submit("a red ball", "32 × 48", 5, 0, api_name="/generate").result()
    assert pixels(upright[1]).shape == (5, 48, 32, 3)


def test_stop_on_one_tab_leaves_the_other_alone(client, clip, long_clip):
    job = submit_upscale(client, long_clip)
    wait_for(lambda: len(job.outputs()) >= 1)
    client.predict(api_name="/stop_generate")
    before = len(job.outputs())
    wait_for(lambda: len(job.outputs()) > before + 1)
    client.predict(api_name="/stop_upscale")
    assert "Stopped" in job.result(timeout=30)[2]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("text.mp4", b"hello " * 50, "'text.mp4' is no video file"),
        ("empty.mp4", b"", "'empty.mp4' is empty"),
        ("half.mp4", None, "'half.mp4'"),
    ],
)
def test_bad_files(name, content, message, client, clip, tmp_path):
    path = tmp_path / name
    path.write_bytes(clip.read_bytes()[:200] if content is None else content)
    with pytest.raises(gradio_client.exceptions.AppError, match=re.escape(message)):
        submit_upscale(client, path).result(timeout=30)
    assert_nothing_runs()


def test_files_that_name_others_and_huge_claims(client, clip, tmp_path):
    with address_without_visitors() as address:
        named = lists(clip, address)
        for name in (
            "file_list.mp4",
            "web_list.m3u8",
            "web_concat.mp4",
            "file_list.mkv",
            "web_key.m3u8",
            "session.mp4",
        ):
            (tmp_path / name).write_text(named[name])
            with pytest.raises(gradio_client.exceptions.AppError, match=f"'{name}' is no video file"):
                submit_upscale(client, tmp_path / name).result(timeout=30)
    start = time.perf_counter()
    for path in huge_files(tmp_path).values():
        with pytest.raises(gradio_client.exceptions.AppError, match="more than the|no picture|not one frame"):
            submit_upscale(client, path).result(timeout=30)
    assert time.perf_counter() - start < 10, "nothing was decoded"
    assert_nothing_runs()


def test_an_upload_beyond_the_limit_is_refused_as_it_comes(url):
    def flood():
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.mp4"\r\n\r\n'
        for _ in range(demo_module._LARGEST_UPLOAD + 16):
            yield bytes(2**20)

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = httpx.post(f"{url}gradio_api/upload", content=flood(), headers=headers, timeout=60)
    assert answer.status_code == 413
    folders = Path(os.environ["GRADIO_TEMP_DIR"]), Path(tempfile.gettempdir())
    kept = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert max(path.stat().st_size for path in kept) < 2**25, "of what came nothing is left"


@pytest.mark.parametrize(
    "endpoint, arguments, message",
    [
        ("/upscale", (None, 2, "wavelet", 0), "Choose a video first"),
        ("/upscale", ("clip", 2, "wavelet", None), "Seed must be a whole number"),
        ("/upscale", ("clip", 2, "wavelet", -1), "less than minimum"),
        ("/generate", ("  ", "48 × 32", 5, 0), "Describe what the video shall show"),
        ("/generate", ("a cat", "48 × 32", 0, 0), "less than minimum"),
        ("/generate", ("a cat", "1 × 1", 5, 0), "not in the list of choices"),
    ],
)
def test_bad_input(endpoint, arguments, message, client, clip):
    arguments = [upload(clip) if argument == "clip" else argument for argument in arguments]
    with pytest.raises(gradio_client.exceptions.AppError, match=message):
        client.submit(*arguments, api_name=endpoint).result(timeout=30)


def test_clips_that_would_become_too_large_are_refused_before_any_work(client, tmp_path):
    path = tmp_path / "huge.mp4"
    with VideoWriter(path, 4096, 2160, fps=12, preset="ultrafast") as writer:
        writer.write(np.zeros((1, 2160, 4096, 3), np.uint8))
    with pytest.raises(gradio_client.exceptions.AppError, match="8192 × 4320 pixels, more than this demo makes"):
        submit_upscale(client, path).result(timeout=60)


@pytest.mark.filterwarnings("ignore:.*timestamps were missing")
def test_a_stream_that_fails_keeps_what_it_made(client, tmp_path):
    path = tmp_path / "changing.h264"
    path.write_bytes(raw_h264(tmp_path, width=24, frames=20) + raw_h264(tmp_path, width=96, frames=10))
    job = submit_upscale(client, path)
    with pytest.raises(gradio_client.exceptions.AppError, match="'changing.h264' changes its frame size at frame 20"):
        job.result(timeout=30)
    _, video, status, _ = job.outputs()[-1]
    assert len(pixels(video)) == 20 and "Stopped · 20 frames" in status
    assert_nothing_runs()


def raw_h264(folder: Path, width: int, frames: int) -> bytes:
    path = folder / f"{width}.h264"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12, options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = width, HEIGHT, "yuv420p"
        for _ in range(frames):
            frame = av.VideoFrame.from_ndarray(np.zeros((HEIGHT, width, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path.read_bytes()


def test_tabs_that_the_checkpoint_cannot_serve_say_so(clip):
    pipe = make_tiny_pipeline(text=False, generator=False)
    page, url = serve(pipe, [clip])
    components = page.config["components"]
    assert any("has no text generator" in str(part["props"].get("value")) for part in components)
    (tabs,) = (part for part in components if part["type"] == "tabs")
    assert tabs["props"]["selected"] == "upscale"
    client = gradio_client.Client(url, verbose=False)
    with pytest.raises(gradio_client.exceptions.AppError, match="no text generator"):
        client.predict("a cat", "48 × 32", 5, 0, api_name="/generate")
    client.close()
    page.end()


def test_sizes_are_those_that_the_generator_can_make():
    pipe = make_tiny_pipeline()
    assert list(demo_module.Demo(pipe).sizes) == ["48 × 32", "32 × 48", "32 × 32", "24 × 16"]
    pipe.generator_transformer.register_to_config(sample_size=(4, 6))
    assert demo_module.Demo(pipe).sizes == {"48 × 32": (48, 32)}


def test_the_page_asks_no_other_host(url):
    import httpx

    body = httpx.get(url).text
    theme = httpx.get(f"{url}theme.css").text
    assert "uf-status" in body
    assert "fonts.googleapis.com" not in body + theme


@pytest.mark.slow
def test_the_command_starts_it_and_prints_where(tmp_path):
    make_tiny_pipeline().save_pretrained(tmp_path / "pipe")
    words = ["demo", "--checkpoint", str(tmp_path / "pipe")]
    with server_process(*words, GRADIO_TEMP_DIR=str(tmp_path / "gradio")) as (_, url):
        client = gradio_client.Client(url, verbose=False, download_files=str(tmp_path))
        assert "Done · 5 frames" in client.predict("a cat", "48 × 32", 5, 0, api_name="/generate")[2]
        client.close()


def test_the_command_reports_a_missing_checkpoint(tmp_path, capsys):
    from ultraflash_diffusers.cli import main

    assert main(["demo", "--checkpoint", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.startswith("ultraflash: error: ")


def test_the_space_builds(tmp_path, monkeypatch):
    make_tiny_pipeline().save_pretrained(tmp_path / "pipe")
    monkeypatch.setenv("ULTRAFLASH_CHECKPOINT", str(tmp_path / "pipe"))
    demo = runpy.run_path(str(ROOT / "demo" / "app.py"))["demo"]
    assert {"generate", "upscale"} <= {function.api_name for function in demo.fns.values()}


def wait_for(condition, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.05)


def nothing_runs() -> bool:
    gc.collect()
    streams = [each for each in gc.get_objects() if isinstance(each, VideoStream) and not each._closed]
    return not streams and not list(Path(tempfile.gettempdir()).glob("ultraflash-demo-*"))


def assert_nothing_runs() -> None:
    wait_for(nothing_runs)
