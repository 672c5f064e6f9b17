# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The realtime protocol, spoken with a real server over loopback."""

from __future__ import annotations

import io
from collections.abc import Iterator

import av
import httpx
import numpy as np
import pytest
import torch
from helpers.clips import make_clip
from helpers.realtime import Client, decoded, encoded, running, wait_until
from helpers.tiny import make_tiny_pipeline
from PIL import Image

from ultraflash_diffusers import UltraFlashStreamingPipeline
from ultraflash_diffusers.serving import ServedModel, Server, ServerSettings, create_app
from ultraflash_diffusers.video_io import VideoWriter

WIDTH, HEIGHT, FPS = 48, 32, 12
CHUNK = 16  # frames: four latent frames of four
ENDLESS = {"prompt": "a red ball", "num_frames": None, "seed": 3}


@pytest.fixture(scope="module")
def pipe() -> UltraFlashStreamingPipeline:
    return make_tiny_pipeline()


@pytest.fixture(scope="module")
def server(pipe) -> Server:
    return Server([ServedModel("tiny", pipe)], ServerSettings(max_streams=2, max_queue=2))


@pytest.fixture(scope="module")
def address(server) -> Iterator[str]:
    with running(create_app(server)) as address:
        yield address


@pytest.fixture(autouse=True)
def nothing_stays(request) -> Iterator[None]:
    """Whatever a session came to, its place is free soon."""
    yield
    server = request.getfixturevalue("server")
    wait_until(lambda: server.places.running + server.places.waiting == 0)


@pytest.fixture
def client(address) -> Iterator[Client]:
    with Client(address) as client:
        yield client


def made(pipe, frames: int, prompt: str = "a red ball", seed: int = 3, **arguments) -> np.ndarray:
    """What the pipeline makes without a server."""
    generator = torch.Generator().manual_seed(seed)
    arguments = {"prompt": prompt, "num_frames": frames, "generator": generator, "output_type": "uint8"} | arguments
    return pipe(**arguments).frames[0]


def test_a_stream_from_text_is_what_the_pipeline_makes(client, pipe):
    client.start(model="any", prompt="a red ball", num_frames=40, seed=3)
    received = client.finish()
    kinds = [message["type"] for message in received.messages]
    assert kinds == ["video.start", *["video.chunk_metadata"] * 4, "session.done"]
    start, *chunks, done = received.messages
    assert start["format"] == "m4s" and start["mime_type"].startswith('video/mp4; codecs="avc1.')
    expected = {"model": "tiny", "width": WIDTH, "height": HEIGHT, "fps": FPS, "num_frames": 40, "seed": 3}
    assert expected.items() <= start["config"].items()
    assert [chunk["num_frames"] for chunk in chunks] == [1, 12, 16, 11]
    assert [chunk["first_frame"] for chunk in chunks] == [0, 1, 13, 29]
    assert [chunk["transport_chunk_index"] for chunk in chunks] == [0, 1, 2, 3]
    assert all(chunk["kind"] == "media" and chunk["fps"] > 0 for chunk in chunks)
    assert {"transformer", "decoder", "video_encoder"} <= chunks[0]["stage_seconds"].keys()
    assert (done["chunks"], done["stopped"], done["ended_by"]) == (4, False, "end")
    assert {message["request_id"] for message in received.messages} == {start["request_id"]}
    assert [data for _, data in received.chunks] == encoded(made(pipe, 40), [1, 12, 16, 11], FPS)


def test_the_first_chunk_plays_alone_and_all_of_them_are_one_file(client):
    client.start(prompt="a red ball", num_frames=40, seed=3)
    received = client.finish()
    assert len(decoded(received.chunks[0][1])) == 1
    assert len(decoded(received.video)) == 40


def test_each_message_has_its_answer_and_a_seed_is_drawn_where_none_is_given(client):
    client.send("session.ping")
    assert client.read()["type"] == "session.pong"
    client.start(prompt="a red ball", num_frames=5)
    assert client.read_until("video.start")["config"]["seed"] >= 0
    client.finish()


def test_a_new_prompt_shows_from_the_chunk_that_names_it(client, pipe):
    client.start(**ENDLESS)
    client.read_until("video.chunk_metadata")
    event = {"event_id": "blue", "event": {"prompt": "a blue cat"}, "transition_chunks": 2}
    client.send("session.interaction", interaction=event)
    assert client.read_until("session.interaction.queued")["event_id"] == "blue"
    while "blue" not in client.read_until("video.chunk_metadata")["completed_event_ids"]:
        pass
    client.send("session.stop")
    done = client.finish().messages[-1]
    assert (done["stopped"], done["ended_by"]) == (True, "stop")
    chunks = client.received.of_type("video.chunk_metadata")
    started = [index for index, chunk in enumerate(chunks) if chunk["started_event_ids"] == ["blue"]]
    active = [index for index, chunk in enumerate(chunks) if chunk["active_event_ids"] == ["blue"]]
    assert len(started) == 1 and active == [started[0], started[0] + 1]

    frames = []
    seed = torch.Generator().manual_seed(3)
    with pipe.stream("a red ball", generator=seed, first_chunk_frames=1, output_type="uint8") as stream:
        for index in range(len(chunks)):
            if index == started[0]:
                stream.set_prompt("a blue cat")
            frames.append(next(stream).frames[0])
    assert client.received.video == b"".join(encoded(np.concatenate(frames), [len(part) for part in frames], FPS))


def test_a_paused_stream_makes_nothing_until_it_is_resumed(client, server):
    client.start(**ENDLESS)
    client.read_until("video.chunk_metadata")
    client.send("session.pause")
    client.read_until("session.paused")
    client.send("session.ping")
    client.read_until("session.pong")
    last = len(client.received.chunks)
    with pytest.raises(TimeoutError):
        while True:  # at most what was under way
            client.read(timeout=0.5)
    assert len(client.received.chunks) - last <= 3
    client.send("session.resume")
    client.read_until("session.resumed")
    client.read_until("video.chunk_metadata")


def test_an_exported_stream_goes_on_with_equal_frames(client, address, pipe):
    client.start(**ENDLESS | {"num_frames": 400})
    client.read_until("video.chunk_metadata")
    client.send("session.export")
    exported = client.read_until("session.state")
    (_, state), done = client.received.states[0], exported["frames_done"]
    assert done == sum(chunk["num_frames"] for chunk, _ in client.received.chunks)
    client.close()
    with Client(address) as other:
        other.start(num_frames=done + 30, state_byte_length=len(state))
        for start in range(0, len(state), 100_000):
            other.socket.send(state[start : start + 100_000])
        received = other.finish()
    assert received.chunks[0][0]["first_frame"] == done
    expected = made(pipe, done + 30)[done:]
    assert [data for _, data in received.chunks] == encoded(expected, [16, 14], FPS)


def test_prompt_size_and_seed_of_a_state_are_told(client, address):
    client.start(**ENDLESS)
    client.read_until("video.chunk_metadata")
    client.send("session.export")
    client.read_until("session.state")
    state = client.received.states[0][1]
    with Client(address) as other:
        other.start(state_byte_length=len(state), seed=4)
        other.socket.send(state)
        assert other.read()["message"] == "seed: given beside a state, which decides it"


@pytest.mark.parametrize("frame_format", ["picture", "raw"])
def test_frames_of_the_client_are_upscaled_as_they_come(frame_format, client, pipe):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (20, HEIGHT // 2, WIDTH // 2, 3), np.uint8)
    client.start(source="frames", width=WIDTH // 2, height=HEIGHT // 2, seed=3, frame_format=frame_format)
    assert client.read_until("video.start")["max_queued_frames"] > 0
    for frame in frames[:13]:
        client.socket.send(frame.tobytes() if frame_format == "raw" else png(frame))
    assert client.read_until("video.chunk_metadata")["num_frames"] == 13
    for frame in frames[13:]:
        client.socket.send(frame.tobytes() if frame_format == "raw" else png(frame))
    client.send("session.frames_end")
    received = client.finish()
    expected = made(pipe, 20, prompt=None, source=frames)
    assert [data for _, data in received.chunks] == encoded(expected, [13, 7], FPS)


def png(frame: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_stream_of_frames_goes_on_without_the_earlier_ones(client, address, pipe):
    frames = np.random.default_rng(0).integers(0, 255, (29, HEIGHT // 2, WIDTH // 2, 3), np.uint8)
    size = {"width": WIDTH // 2, "height": HEIGHT // 2}
    client.start(source="frames", frame_format="raw", seed=3, **size)
    for frame in frames[:13]:
        client.socket.send(frame.tobytes())
    client.read_until("video.chunk_metadata")
    client.send("session.export")
    client.read_until("session.state")
    state = client.received.states[0][1]
    with Client(address) as other:
        other.start(state_byte_length=len(state), frame_format="raw")
        other.socket.send(state)
        other.read_until("video.start")
        for frame in frames[13:]:
            other.socket.send(frame.tobytes())
        other.send("session.frames_end")
        received = other.finish()
    expected = made(pipe, 29, prompt=None, source=frames)[13:]
    assert [data for _, data in received.chunks] == encoded(expected, [16], FPS)


def clip(path, frames: int = 30) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (frames, HEIGHT // 2, WIDTH // 2, 3), np.uint8)
    with VideoWriter(path, WIDTH // 2, HEIGHT // 2, fps=25) as writer:
        writer.write(pixels)
    return path.read_bytes()


def test_a_video_of_the_client_is_upscaled_at_its_own_rate(client, pipe, tmp_path):
    data = clip(tmp_path / "clip.mp4")
    client.start(source="video", video={"byte_length": len(data), "name": "holiday.mp4"}, seed=3)
    for start in range(0, len(data), 1000):
        client.socket.send(data[start : start + 1000])
    assert client.read_until("video.start")["config"]["fps"] == 25
    received = client.finish()
    expected = made(pipe, 30, prompt=None, source=str(tmp_path / "clip.mp4"))
    assert np.array_equal(decoded(received.video), decoded(b"".join(encoded(expected, [13, 16, 1], 25))))


def test_a_video_with_sound_keeps_it(client, tmp_path):
    data = make_clip(tmp_path / "clip.mp4", 20, size=(WIDTH // 2, HEIGHT // 2), audio="aac").read_bytes()
    client.start(source="video", video={"byte_length": len(data), "name": "concert.mp4"}, seed=3)
    client.socket.send(data)
    assert "mp4a.40.2" in client.read_until("video.start")["mime_type"]
    received = client.finish()
    samples = [metadata["num_audio_samples"] for metadata, _ in received.chunks]
    assert {metadata["audio_sample_rate"] for metadata, _ in received.chunks} == {48000}
    with av.open(io.BytesIO(received.video)) as container:
        heard = sum(frame.samples for frame in container.decode(audio=0))
    assert heard == sum(samples) and abs(heard - 0.8 * 48000) <= 1024 and len(decoded(received.video)) == 20


def test_streams_take_turns_and_others_wait_for_a_place(address, server):
    clients = [Client(address) for _ in range(5)]
    try:
        for each in clients[:2]:
            each.start(**ENDLESS)
            each.read_until("video.chunk_metadata")
        for each in clients[2:4]:
            each.start(prompt="a cat", num_frames=5)
            each.read_until("session.queued")
        assert [each.received.of_type("session.queued")[0]["position"] for each in clients[2:4]] == [1, 2]
        clients[4].start(prompt="a cat", num_frames=5)
        assert clients[4].read()["code"] == "server_busy"
        for each in clients[:2]:
            for _ in range(3):
                each.read_until("video.chunk_metadata")
        clients[0].close()
        assert clients[2].finish().messages[-1]["chunks"] == 2
    finally:
        for each in clients:
            each.close()


def test_whoever_disappears_frees_the_place_soon(address, server):
    client = Client(address)
    client.start(**ENDLESS)
    client.read_until("video.chunk_metadata")
    assert server.places.running == 1
    client.socket.socket.close()  # no closing handshake: as if the machine were gone
    wait_until(lambda: server.places.running == 0, 5)


def test_models_health_and_metrics(address, client):
    client.start(prompt="a red ball", num_frames=5)
    client.finish()
    (model,) = httpx.get(f"http://{address}/v1/models").json()["data"]
    assert model["id"] == "tiny" and model["sources"] == ["text", "video", "frames"]
    assert httpx.get(f"http://{address}/health").json()["status"] == "ok"
    metrics = httpx.get(f"http://{address}/metrics").text
    assert 'ultraflash_sessions_total{outcome="done"}' in metrics and "ultraflash_chunk_seconds_bucket" in metrics
