# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Sessions that lose their server and go on on another one."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import av
import numpy as np
import pytest
import torch
from helpers.paths import ROOT
from helpers.realtime import PATH, Client, encoded, is_played, play_to_the_end, running, wait_until
from helpers.server_process import server_process
from helpers.tiny import make_tiny_pipeline
from starlette.websockets import WebSocket

from ultraflash_diffusers import UltraFlashStreamingPipeline
from ultraflash_diffusers.serving import ServedModel, Server, ServerSettings, SessionStore, create_app
from ultraflash_diffusers.serving.messages import SessionStart
from ultraflash_diffusers.serving.playback import Playback
from ultraflash_diffusers.serving.session import serve_session
from ultraflash_diffusers.serving.session_state import SessionState
from ultraflash_diffusers.serving.session_store import SessionRecord

FPS = 12
SIZES = [1, 12, 16, 16, 16, 16, 16, 7]  # frames of the chunks of a video of 100
STREAM = {"prompt": "a red ball", "num_frames": 100, "seed": 3}


@pytest.fixture(scope="module")
def pipe() -> UltraFlashStreamingPipeline:
    return make_tiny_pipeline()


@pytest.fixture
def store(tmp_path) -> Path:
    return tmp_path / "sessions"


@pytest.fixture
def addresses(pipe, store) -> Iterator[tuple[str, str]]:
    """Two servers with one checkpoint and one folder."""
    settings = ServerSettings(save_every=0)
    with (
        running(create_app(Server([ServedModel("tiny", pipe)], settings, SessionStore(store)))) as first,
        running(create_app(Server([ServedModel("tiny", pipe)], settings, SessionStore(store)))) as second,
    ):
        yield first, second


def lost(address: str, chunks: int, **start) -> tuple[Client, str, int]:
    """A session of which so many chunks came before its connection broke, its token, and its frames."""
    client = Client(address)
    client.start(**start)
    token = client.read_until("video.start")["resume_token"]
    for _ in range(chunks):
        client.read_until("video.chunk_metadata")
    return client, token, sum(metadata["num_frames"] for metadata, _ in client.received.chunks)


def break_off(client: Client) -> None:
    client.socket.socket.close()  # no closing handshake: as if one of the two machines were gone


def without_header(video: bytes) -> bytes:
    """Drops the initialisation segment, as a client does that goes on with a file."""
    start = 0
    while video[start + 4 : start + 8] != b"moof":
        start += int.from_bytes(video[start : start + 4], "big")
    return video[start:]


def made(pipe, frames: int = 100, prompt: str = "a red ball", seed: int = 3) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    return pipe(prompt, num_frames=frames, generator=generator, output_type="uint8").frames[0]


@pytest.mark.parametrize("chunks", [1, 4])
def test_a_session_goes_on_on_another_server_with_the_frames_that_follow(chunks, addresses, pipe, store):
    client, token, frames = lost(addresses[0], chunks, **STREAM)
    break_off(client)
    with Client(addresses[1]) as other:
        other.start(resume_token=token, next_frame=frames)
        received = other.finish()
    first = received.chunks[0][0]
    assert (first["first_frame"], first["generation_chunk_index"], first["transport_chunk_index"]) == (
        frames,
        chunks,
        0,
    )
    assert received.of_type("video.start")[0]["config"]["seed"] == 3
    expected = made(pipe)
    assert [data for _, data in client.received.chunks] == encoded(expected[:frames], SIZES[:chunks], FPS)
    assert [data for _, data in received.chunks] == encoded(expected[frames:], SIZES[chunks:], FPS, frames)
    with av.open(io.BytesIO(client.received.video + without_header(received.video))) as file:
        assert [round(frame.time * FPS) for frame in file.decode(video=0)] == list(range(100))
    wait_until(lambda: not any(store.iterdir()))  # it has come to its end


def test_changes_of_the_prompt_are_made_again_where_they_were(addresses, pipe):
    """Those before the state that is gone on from, those after it, and one that the client has not seen."""
    client, token, _ = lost(addresses[0], 1, **STREAM)
    for name, prompt in {"first": "a blue cat", "second": "the table"}.items():
        client.send("session.interaction", interaction={"event_id": name, "event": {"prompt": prompt}})
        while name not in client.read_until("video.chunk_metadata")["started_event_ids"]:
            pass
    chunks = client.received.of_type("video.chunk_metadata")
    starts = {name: chunk["first_frame"] for chunk in chunks for name in chunk["started_event_ids"]}
    break_off(client)
    kept = SIZES[0]  # of what has come the client has written down no more than this
    with Client(addresses[1]) as other:
        other.start(resume_token=token, next_frame=kept)
        # as a client does that has not seen its start
        other.send("session.interaction", interaction={"event_id": "second", "event": {"prompt": "the table"}})
        received = other.finish()
    again = {
        name: metadata["first_frame"] for metadata, _ in received.chunks for name in metadata["started_event_ids"]
    }
    assert again == starts
    frames = []
    with pipe.stream(
        "a red ball",
        num_frames=100,
        generator=torch.Generator().manual_seed(3),
        first_chunk_frames=1,
        output_type="uint8",
    ) as s:
        for chunk_start in np.cumsum([0, *SIZES[:-1]]):
            if chunk_start == starts["first"]:
                s.set_prompt("a blue cat")
            if chunk_start == starts["second"]:
                s.set_prompt("the table")
            frames.append(next(s).frames[0])
    assert [data for _, data in received.chunks] == encoded(np.concatenate(frames)[kept:], SIZES[1:], FPS, kept)


def test_a_change_after_the_first_frame_is_made_again_where_it_was(pipe):
    """The generator's chunks are no groups: one that was made before the change must not follow it the next time."""
    start = SessionStart(type="session.start", prompt="a red ball", num_frames=60, seed=3)

    def played(chunks_before: int, at_frame: int) -> np.ndarray:
        playback = Playback(ServedModel("tiny", pipe), start, ServerSettings())
        chunks = [playback.next_chunk() for _ in range(chunks_before)]
        playback.set_prompt("a blue cat", at_frame)
        while chunks[-1:] != [None]:
            chunks.append(playback.next_chunk())
        assert playback.next_group(1) == 13 and playback.next_group(13) == 13
        return np.concatenate([chunk.frames for chunk in chunks[:-1]])

    assert np.array_equal(played(1, 0), played(0, 13))


def test_a_new_prompt_waits_until_the_client_has_been_caught_up_with(addresses, pipe):
    client, token, _ = lost(addresses[0], 4, **STREAM)
    break_off(client)
    with Client(addresses[1]) as other:
        other.start(resume_token=token, next_frame=29)
        other.send("session.interaction", interaction={"event_id": "cat", "event": {"prompt": "a blue cat"}})
        received = other.finish()
    starts = [metadata["first_frame"] for metadata, _ in received.chunks if metadata["started_event_ids"] == ["cat"]]
    assert starts and starts[0] >= 29
    before = (starts[0] - 29) // 16
    assert [data for _, data in received.chunks][:before] == encoded(made(pipe)[29:], SIZES[3:], FPS, 29)[:before]


def test_a_session_that_was_left_on_purpose_or_is_unknown_is_not_gone_on_with(addresses, store):
    client, token, frames = lost(addresses[0], 1, **STREAM)
    client.close()
    wait_until(lambda: not any(store.iterdir()))
    for wrong in (token, "../../etc/passwd", "x" * 200):
        with Client(addresses[1]) as other:
            other.start(resume_token=wrong, next_frame=frames)
            assert other.read()["code"] == "not_found"


def test_leaving_on_purpose_counts_though_a_chunk_was_being_sent(pipe, store):
    """The send fails, and only what is received after it has the client's code."""
    start = {"type": "session.start"} | STREAM
    received = iter([{"type": "websocket.connect"}, {"type": "websocket.receive", "text": json.dumps(start)}])
    failed = asyncio.Event()

    async def receive() -> dict:
        if (message := next(received, None)) is not None:
            return message
        if not failed.is_set():
            await asyncio.Event().wait()
        return {"type": "websocket.disconnect", "code": 1000}

    async def send(message: dict) -> None:
        if "bytes" in message:
            assert any(store.iterdir())
            failed.set()
            raise OSError

    async def session() -> None:
        socket = WebSocket({"type": "websocket"}, receive, send)
        await socket.accept()
        server = Server([ServedModel("tiny", pipe)], ServerSettings(), SessionStore(store))
        await serve_session(socket, server)
        server.close()

    asyncio.run(session())
    assert failed.is_set() and not any(store.iterdir())


def test_what_is_being_written_does_not_bring_a_forgotten_session_back(pipe, store):
    with pipe.stream("a red ball", num_frames=13, output_type="uint8") as stream:
        next(stream)
        state = SessionState("checkpoint", {}, stream.state())
    kept = SessionStore(store)
    for _ in range(200):
        _, record = kept.create("checkpoint", {})
        writing = threading.Thread(target=_saves, args=(record, state))
        writing.start()
        record.remove()
        writing.join(30)
        assert not any(store.iterdir())


def _saves(record: SessionRecord, state: SessionState) -> None:
    with suppress(OSError):  # it is gone
        for chunk in range(10):
            record.save(state, chunk)


def test_what_the_session_has_settled_cannot_be_given_again(addresses):
    client, token, _ = lost(addresses[0], 1, **STREAM)
    break_off(client)
    with Client(addresses[1]) as other:
        other.start(resume_token=token, next_frame=13, seed=4)
        assert other.read()["message"] == "seed: given beside a resume_token, which settles it"
    with Client(addresses[1]) as other:
        other.start(resume_token=token, next_frame=14)
        other.read_until("video.start")
        assert other.read()["message"] == "next_frame: 14 is in the middle of a chunk"
    with Client(addresses[1]) as other:
        other.start(prompt="a red ball", next_frame=14)
        assert "next_frame" in other.read()["message"]


def test_a_former_server_that_lives_on_writes_no_more(addresses, store, caplog):
    client, token, frames = lost(addresses[0], 1, **STREAM | {"num_frames": None})
    with Client(addresses[1]) as other:
        other.start(resume_token=token, next_frame=frames)
        other.read_until("video.chunk_metadata")
        for _ in range(5):
            client.read_until("video.chunk_metadata")  # which goes on all the same
        assert "another server has gone on with this session" in caplog.text
    client.close()


def test_sessions_are_kept_for_a_while_and_states_of_them_no_more_than_a_few(store):
    old = SessionStore(store, keep_seconds=0.1)
    token, _ = old.create("checkpoint", {"prompt": "a red ball"})
    assert old.find(token).beginning == {"fingerprint": "checkpoint", "start": {"prompt": "a red ball"}}
    time.sleep(0.2)
    old.create("checkpoint", {})
    assert len(list(store.iterdir())) == 1


def test_a_folder_that_fails_ends_the_keeping_and_not_the_stream(addresses, store, pipe):
    with Client(addresses[0]) as client:
        client.start(**STREAM)
        client.read_until("video.start")
        for folder in store.iterdir():
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
        received = client.finish()
    assert [data for _, data in received.chunks] == encoded(made(pipe), SIZES, FPS)


@pytest.mark.slow
def test_sessions_of_a_killed_server_go_on_when_it_is_back(pipe, tmp_path):
    """With the example client among those who play, whose file has each frame once."""
    pipe.save_pretrained(tmp_path / "pipe")
    words = ["serve", "--checkpoint", str(tmp_path / "pipe"), "--save-every", "0"]
    words += ["--jobs", str(tmp_path / "jobs"), "--sessions", str(tmp_path / "sessions"), "--port"]
    (tmp_path / "temporary").mkdir()  # a killed server leaves what it has there
    temporary = str(tmp_path / "temporary")
    received, came = [], threading.Event()
    start = {"prompt": "a blue cat", "num_frames": 400, "seed": 3}
    video = tmp_path / "video.mp4"
    example = [sys.executable, str(ROOT / "examples" / "realtime_client.py"), "a red ball", "--then", "a blue cat"]
    with server_process(*words, "0", TMPDIR=temporary) as (process, url):
        address = urlsplit(url).netloc
        example += ["--num-frames", "400", "--url", f"ws://{address}{PATH}", "--output", str(video)]
        other = threading.Thread(target=lambda: received.extend(play_to_the_end(address, came.set, 300, **start)))
        other.start()
        client = subprocess.Popen(example, stdout=subprocess.PIPE, text=True)
        wait_until(lambda: came.is_set() and video.exists(), 200)
        process.kill()
        process.wait()
    with server_process(*words, address.rpartition(":")[2], TMPDIR=temporary):
        told = client.communicate(timeout=300)[0]
        other.join(300)
    assert len([each for each in received if each.chunks]) == 2
    # weights in other places of memory may be multiplied with other roundings
    loaded = UltraFlashStreamingPipeline.from_pretrained(tmp_path / "pipe", dtype=torch.float32)
    assert is_played(received, made(loaded, 400, "a blue cat"), FPS)
    assert client.returncode == 0 and "the connection was lost" in told and "from here on ['then']" in told
    with av.open(str(video)) as file:
        assert [round(frame.time * FPS) for frame in file.decode(video=0)] == list(range(400))
