# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Jobs over HTTP: made in the background, and finished also by another server than the one that began."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from helpers.realtime import running, wait_until
from helpers.server_process import server_process
from helpers.tiny import make_tiny_pipeline

from ultraflash_diffusers.serving import JobStore, ServedModel, Server, ServerSettings, create_app
from ultraflash_diffusers.video_io import VideoReader, VideoWriter

WIDTH, HEIGHT = 48, 32
LONG = 20_000  # frames that no test waits for


@pytest.fixture(scope="module")
def pipe():
    return make_tiny_pipeline()


@pytest.fixture(scope="module")
def client(pipe, tmp_path_factory) -> Iterator[httpx.Client]:
    server = Server([ServedModel("tiny", pipe)], ServerSettings(max_queue=2, max_upload=2**20))
    with (
        running(create_app(server, JobStore(tmp_path_factory.mktemp("jobs")))) as address,
        httpx.Client(base_url=f"http://{address}", timeout=30) as client,
    ):
        yield client


@pytest.fixture(autouse=True)
def no_jobs_left(request) -> Iterator[None]:
    yield
    if "client" in request.fixturenames:
        client = request.getfixturevalue("client")
        for job in client.get("/v1/videos").json()["data"]:
            client.delete(f"/v1/videos/{job['id']}")


def finished(client: httpx.Client, job: dict) -> dict:
    def status() -> dict:
        return client.get(f"/v1/videos/{job['id']}").json()

    wait_until(lambda: status()["status"] in ("completed", "failed"), 60)
    return status()


def pixels(path: Path) -> np.ndarray:
    return np.stack([frame.pixels for frame in VideoReader(path)])


def fetched(client: httpx.Client, job: dict, path: Path) -> np.ndarray:
    path.write_bytes(client.get(f"/v1/videos/{job['id']}/content").raise_for_status().content)
    return pixels(path)


def expected(pipe, folder: Path, settings: dict, **arguments) -> np.ndarray:
    frames = pipe(**arguments, generator=torch.Generator().manual_seed(3), output_type="uint8").frames[0]
    with VideoWriter(folder / "expected.mp4", frames.shape[2], frames.shape[1], **settings) as writer:
        writer.write(frames)
    return pixels(folder / "expected.mp4")


def test_a_job_from_text(client, pipe, tmp_path):
    body = {"prompt": "a red ball", "seconds": "2", "seed": 3, "model": "tiny", "size": "48x32"}
    job = client.post("/v1/videos", json=body).raise_for_status().json()
    assert (job["object"], job["status"], job["num_frames"], job["seed"]) == ("video", "queued", 24, 3)
    done = finished(client, job)
    assert (done["status"], done["progress"], done["error"]) == ("completed", 100, None)
    wanted = expected(pipe, tmp_path, {"fps": 12}, prompt="a red ball", num_frames=24)
    assert np.array_equal(fetched(client, job, tmp_path / "got.mp4"), wanted)
    assert [each["id"] for each in client.get("/v1/videos").json()["data"]] == [job["id"]]
    assert client.delete(f"/v1/videos/{job['id']}").json()["deleted"]
    assert client.get(f"/v1/videos/{job['id']}").status_code == 404


def test_a_job_upscales_a_video_that_comes_with_it(client, pipe, tmp_path):
    clip = tmp_path / "clip.mp4"
    with VideoWriter(clip, WIDTH // 2, HEIGHT // 2, fps=25) as writer:
        writer.write(np.random.default_rng(0).integers(0, 255, (20, HEIGHT // 2, WIDTH // 2, 3), np.uint8))
    with clip.open("rb") as file:
        job = client.post("/v1/videos", data={"seed": "3"}, files={"video": ("../x.mp4", file)}).json()
    assert finished(client, job)["status"] == "completed"
    wanted = expected(pipe, tmp_path, {"source": VideoReader(clip)}, source=str(clip))
    assert np.array_equal(fetched(client, job, tmp_path / "got.mp4"), wanted)


def test_a_job_is_deleted_while_it_is_made(client):
    job = client.post("/v1/videos", json={"prompt": "a cat", "num_frames": LONG}).json()
    wait_until(lambda: client.get(f"/v1/videos/{job['id']}").json()["status"] == "in_progress")
    assert client.get(f"/v1/videos/{job['id']}/content").status_code == 409
    client.delete(f"/v1/videos/{job['id']}")
    after = client.post("/v1/videos", json={"prompt": "a cat", "num_frames": 5}).json()
    assert finished(client, after)["status"] == "completed"


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({}, 400, "prompt: None"),
        ({"prompt": " "}, 400, "prompt: ' '"),
        ({"prompt": "a", "input_reference": "http://127.0.0.1/x"}, 400, "input_reference is no known field"),
        ({"prompt": "a", "size": "large"}, 400, "size: "),
        ({"prompt": "a", "size": "9999x9999"}, 400, "9999x9999, this server makes at most"),
        ({"prompt": "a", "seconds": 4, "num_frames": 9}, 400, "seconds: 4.0 beside num_frames"),
        ({"prompt": "a", "num_frames": 10**6}, 400, "num_frames: 1000000, this server makes at most 100000"),
        ({"prompt": "a", "seed": -1}, 400, "seed"),
        ({"prompt": "a", "video": "/etc/passwd"}, 400, "video is no known field"),
        ([1], 400, "no JSON object"),
        ("{", 400, "no JSON"),
        ("[" * 70_000, 413, "more than 65536 bytes"),
    ],
)
def test_bad_requests(client, body, status, words):
    content = body if isinstance(body, str) else json.dumps(body)
    answer = client.post("/v1/videos", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status and words in answer.json()["error"]["message"]
    assert client.get("/v1/videos").json()["data"] == []


@pytest.mark.parametrize(
    ("files", "status", "words"),
    [
        ({"video": ("a.mp4", b"no video")}, 400, "upload.mp4"),
        ({"video": ("a.m3u8", b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n")}, 400, "upload.m3u8"),
        ({"video": ("a.mp4", bytes(2**21))}, 413, "more than"),
        ({"picture": ("a.png", b"x")}, 400, "picture: a file, only 'video' may be one"),
    ],
)
def test_bad_uploads(client, files, status, words):
    answer = client.post("/v1/videos", files=files)
    assert answer.status_code == status and words in answer.text
    assert "/tmp" not in answer.text and "jobs" not in answer.text
    assert client.get("/v1/videos").json()["data"] == []


def test_the_queue_has_an_end(client):
    jobs = [client.post("/v1/videos", json={"prompt": "a cat", "num_frames": LONG}) for _ in range(4)]
    assert [job.status_code for job in jobs] == [200, 200, 200, 503]


def test_names_that_are_none_of_a_job(client):
    for name in ("nothing", "..", "%2e%2e%2fjobs.sqlite", "video_' OR 1=1 --"):
        assert client.get(f"/v1/videos/{name}").status_code == 404
        assert client.get(f"/v1/videos/{name}/content").status_code == 404


def test_two_servers_do_not_share_a_folder(tmp_path):
    store = JobStore(tmp_path)
    with pytest.raises(OSError, match="those of another server"):
        JobStore(tmp_path)
    store.close()
    JobStore(tmp_path).close()


def test_results_are_forgotten_in_the_end(pipe, tmp_path):
    store = JobStore(tmp_path)
    server = Server([ServedModel("tiny", pipe)], ServerSettings(keep_hours=1e-6))
    with running(create_app(server, store)) as address, httpx.Client(base_url=f"http://{address}") as client:
        client.post("/v1/videos", json={"prompt": "a cat", "num_frames": 5})
        wait_until(lambda: not list(tmp_path.glob("video_*")))


@pytest.mark.slow
def test_jobs_of_a_killed_server_are_finished_by_the_next_one(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "pipe")
    words = ["serve", "--checkpoint", str(tmp_path / "pipe"), "--port", "0"]
    words += ["--jobs", str(tmp_path / "jobs"), "--save-every", "0"]
    with server_process(*words) as (process, url), httpx.Client(base_url=url, timeout=30) as client:
        job = client.post("/v1/videos", json={"prompt": "a red ball", "num_frames": 300, "seed": 3}).json()
        partial = tmp_path / "jobs" / job["id"]
        wait_until(lambda: list(partial.glob("*.state")) or finished_early(client, job), 120)
        process.kill()
        process.wait()
    with server_process(*words) as (process, url), httpx.Client(base_url=url, timeout=30) as client:
        assert finished(client, job)["status"] == "completed"
        wanted = expected(pipe, tmp_path, {"fps": 12}, prompt="a red ball", num_frames=300)
        assert np.array_equal(fetched(client, job, tmp_path / "got.mp4"), wanted)
        process.terminate()
        assert process.wait(30) == 0


def finished_early(client: httpx.Client, job: dict) -> bool:
    assert client.get(f"/v1/videos/{job['id']}").json()["status"] != "completed", "too short to be interrupted"
    return False
