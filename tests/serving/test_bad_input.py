# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What clients do wrong, or with bad intent: a named error, a clean end, and nothing of others touched."""

from __future__ import annotations

import json
import socket
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from helpers.realtime import PATH, Client, running, wait_until
from helpers.tiny import make_tiny_pipeline
from safetensors.numpy import save
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from ultraflash_diffusers.serving import ServedModel, Server, ServerSettings, create_app

ENDLESS = {"prompt": "a red ball", "num_frames": None, "seed": 3}
SETTINGS = ServerSettings(
    max_pixels=200 * 200, max_frames=1000, max_upload=2**20, max_prompt=100, idle_seconds=4, stall_seconds=3
)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        # looked into by `nothing_stays`, while other modules' sessions run in other processes
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))
        yield Server([ServedModel("tiny", make_tiny_pipeline())], SETTINGS)


@pytest.fixture(scope="module")
def address(server) -> Iterator[str]:
    with running(create_app(server)) as address:
        yield address


@pytest.fixture
def client(address) -> Iterator[Client]:
    with Client(address) as client:
        yield client


@pytest.fixture(autouse=True)
def nothing_stays(server) -> Iterator[None]:
    yield
    wait_until(lambda: server.places.running + server.places.waiting == 0)
    wait_until(lambda: not list(Path(tempfile.gettempdir()).glob("ultraflash-session-*")))


def refusal(client: Client) -> dict:
    """The error with which a session ends; its connection is closed after it, cleanly."""
    while (message := client.read())["type"] != "error":
        pass
    with pytest.raises(ConnectionClosed) as closed:
        client.read()
    assert closed.value.rcvd is not None and closed.value.rcvd.code in (1008, 1011)
    text = json.dumps(message)
    assert tempfile.gettempdir() not in text and "Traceback" not in text and "site-packages" not in text
    return message


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("{", "invalid_json", "no JSON"),
        ("[" * 50_000, "invalid_json", "no JSON"),
        ("[1]", "invalid_json", "expected an object"),
        ("null", "invalid_json", "expected an object"),
        ("{}", "invalid_request", "type"),
        ('{"type": "session.begin"}', "invalid_request", "session.begin"),
        ('{"type": ["session.start"]}', "invalid_request", "type"),
        ('{"type": "session.stop"}', "not_started", "before session.start"),
        ('{"type": "session.export"}', "not_started", "before session.start"),
        ('{"type": "session.interaction", "interaction": {"event": {"prompt": "a"}}}', "not_started", "before"),
        ('{"type": "session.start", "prompt": "' + "a" * 70_000 + '"}', "message_too_large", "70039 characters"),
    ],
)
def test_messages_that_are_none(text, code, words, client):
    client.socket.send(text)
    error = refusal(client)
    assert error["code"] == code and words in error["message"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "prompt: None"),
        ({"prompt": ""}, "prompt: ''"),
        ({"prompt": " \n"}, "prompt: ' \\n'"),
        ({"prompt": "a " * 60}, "prompt: 120 characters, at most 100"),
        ({"prompt": 5}, "prompt: Input should be a valid string, got 5"),
        ({"prompt": "a", "steps": 4}, "steps is no known field"),
        ({"prompt": "a", "extra_params": {"cfg": 1}}, "extra_params.cfg is no known field"),
        ({"prompt": "a", "width": 48}, "width is 48 and height is None"),
        ({"prompt": "a", "width": "48", "height": 32}, "width: Input should be a valid integer, got '48'"),
        ({"prompt": "a", "width": 47, "height": 32}, "47x32, both must be even"),
        ({"prompt": "a", "width": 400, "height": 400}, "400x400, this server makes at most 40000 pixels"),
        ({"prompt": "a", "width": 10**9, "height": 10**9}, "width: Input should be less than or equal to 16384"),
        ({"prompt": "a", "num_frames": 0}, "num_frames: Input should be greater than or equal to 1, got 0"),
        ({"prompt": "a", "num_frames": 1001}, "num_frames: 1001, this server makes at most 1000"),
        ({"prompt": "a", "num_frames": True}, "num_frames: Input should be a valid integer, got True"),
        ({"prompt": "a", "fps": 0}, "fps: Input should be greater than 0, got 0"),
        ({"prompt": "a", "fps": float("nan")}, "fps"),
        ({"prompt": "a", "seed": 2**63}, "seed: Input should be less than"),
        ({"prompt": "a", "seed": -1}, "seed: Input should be greater than or equal to 0, got -1"),
        ({"prompt": "a", "guidance_scale": float("inf")}, "guidance_scale"),
        ({"prompt": "a", "format": "webm"}, "format: Input should be 'm4s', got 'webm'"),
        ({"prompt": "a", "source": "/etc/passwd"}, "source: Input should be 'text', 'pipeline', 'video' or 'frames'"),
        ({"prompt": "a", "source": "pipeline"}, "'tiny' cannot start from 'pipeline'"),
        ({"prompt": "a", "video": "/etc/passwd"}, "video: Input should be"),
        ({"source": "video", "video": "http://127.0.0.1/a.mp4"}, "video: Input should be"),
        ({"source": "video"}, "video: None, with source 'video'"),
        ({"source": "video", "video": {"byte_length": 2**21}}, "2097152 bytes, this server takes at most 1048576"),
        ({"source": "frames"}, "width, height: None"),
        ({"source": "frames", "width": 150, "height": 150}, "300x300, this server makes at most 40000 pixels"),
        ({"prompt": "a", "state_byte_length": 2**21}, "2097152 bytes, this server takes at most"),
    ],
)
def test_starts_that_cannot_be(fields, words, client):
    client.start(**fields)
    error = refusal(client)
    assert words in error["message"]
    assert error["code"] in ("invalid_request", "limit_exceeded", "unsupported_source")


def test_a_second_start(client):
    client.start(**ENDLESS)
    client.read_until("video.start")
    client.start(**ENDLESS)
    assert refusal(client)["code"] == "already_started"


@pytest.mark.parametrize("started", [False, True])
def test_bytes_that_nobody_expects(started, client):
    if started:
        client.start(**ENDLESS)
        client.read_until("video.start")
    client.socket.send(b"\x00" * 10)
    assert refusal(client)["code"] == "unexpected_binary"


def test_a_message_beyond_all_limits_closes_the_connection(client):
    client.start(source="frames", width=48, height=32)
    client.read_until("video.start")
    with pytest.raises(ConnectionClosed) as closed:
        client.socket.send(b"\x00" * (65 * 2**20))
        client.read()
        client.read()
    assert closed.value.rcvd is None or closed.value.rcvd.code == 1009


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        (b"no picture", "invalid_frame", "no JPEG, WebP or PNG"),
        (b"GIF89a" + bytes(100), "invalid_frame", "no JPEG, WebP or PNG"),
        # the header of a PNG picture of 16000 x 16000: refused before a pixel is
        (
            b"\x89PNG\r\n\x1a\n" + b"\x00\x00\x00\rIHDR" + struct.pack(">IIBBBBB", 16000, 16000, 8, 2, 0, 0, 0)
            + b"\xb3\x8f\xcb\xe5",
            "invalid_frame",
            "",
        ),
    ],
)  # fmt: skip
def test_frames_that_are_none(data, code, words, client):
    client.start(source="frames", width=48, height=32)
    client.read_until("video.start")
    client.socket.send(data)
    error = refusal(client)
    assert error["code"] == code and words in error["message"]


def test_raw_frames_of_another_size_and_frames_without_end(address, client):
    client.start(source="frames", width=48, height=32, frame_format="raw")
    client.socket.send(bytes(48 * 32 * 3 - 1))
    assert "4607 bytes, 48x32 RGB are 4608" in refusal(client)["message"]
    with Client(address) as other:
        other.start(source="frames", width=48, height=32, frame_format="raw")
        other.send("session.pause")
        for _ in range(121):
            other.socket.send(bytes(48 * 32 * 3))
        assert refusal(other)["code"] == "too_many_frames"


@pytest.mark.parametrize(
    "content",
    [
        b"not a video at all" * 100,
        b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"",
    ],
)
@pytest.mark.parametrize("name", ["a.mp4", "../../etc/x.m3u8", "x" * 200 + ".mkv", "a.\x00\n"])
def test_files_that_are_no_videos(content, name, client):
    client.start(source="video", video={"byte_length": max(1, len(content)), "name": name})
    client.socket.send(content or b"\x00")
    error = refusal(client)
    assert error["code"] == "invalid_request" and "passwd" not in error["message"]


def test_more_bytes_than_announced(client):
    client.start(source="video", video={"byte_length": 10})
    client.socket.send(bytes(11))
    assert refusal(client)["code"] == "invalid_upload"


def exported(address: str) -> bytes:
    with Client(address) as client:
        client.start(**ENDLESS)
        client.read_until("video.chunk_metadata")
        client.send("session.export")
        client.read_until("session.state")
        return client.received.states[0][1]


def test_states_that_are_damaged_or_of_another_checkpoint(address, server):
    state, fingerprint = exported(address), server.models["tiny"].fingerprint.encode()
    damaged = {
        "cut off": state[:-100],
        "noise": np.random.default_rng(0).bytes(1000),
        "a header without end": struct.pack("<Q", 2**60) + state[8:],
        "other tensors": save({"weight": np.zeros(3, np.float32)}),
        "another structure": state.replace(b'"PipelineStreamState', b'"PipelineStreamStatf'),
        "another checkpoint": state.replace(fingerprint, fingerprint[::-1]),
    }
    for name, data in damaged.items():
        with Client(address) as other:
            other.start(state_byte_length=len(data))
            other.socket.send(data)
            assert refusal(other)["code"] == "invalid_state", name


def test_a_state_of_another_checkpoint(address):
    other_pipe = make_tiny_pipeline(kv_cache_blocks=2)
    with running(create_app(Server([ServedModel("tiny", other_pipe)]))) as elsewhere:
        state = exported(elsewhere)
    with Client(address) as client:
        client.start(state_byte_length=len(state))
        client.socket.send(state)
        assert "another checkpoint" in refusal(client)["message"]


@pytest.mark.parametrize("prompt", ["", "   ", "b" * 101])
def test_prompts_of_interactions(prompt, client):
    client.start(**ENDLESS)
    client.read_until("video.start")
    client.send("session.interaction", interaction={"event": {"prompt": prompt}})
    assert refusal(client)["message"].startswith("prompt: ")


def test_words_that_the_checkpoint_does_not_know_are_told(client):
    client.start(prompt="a zebra", num_frames=5)
    assert "does not know 'zebra'" in client.read_until("video.start")["warnings"][0]
    client.finish()


def test_a_client_that_says_nothing_is_ended(client):
    assert refusal(client)["code"] == "idle_timeout"


def test_a_paused_client_stays_as_long_as_it_pings(client):
    client.start(**ENDLESS)
    client.read_until("video.chunk_metadata")
    client.send("session.pause")
    for _ in range(5):
        time.sleep(1)
        client.send("session.ping")
    client.read_until("session.pong")
    assert refusal(client)["code"] == "idle_timeout"


def raw_client(address: str) -> socket.socket:
    """A session over a plain socket, of which nothing is read after the handshake."""
    host, port = address.split(":")
    connection = socket.create_connection((host, int(port)))
    connection.sendall(
        f"GET {PATH} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    assert b"101" in connection.recv(1000)
    message = json.dumps({"type": "session.start", **ENDLESS, "width": 160, "height": 160}).encode()
    connection.sendall(b"\x81" + bytes([0x80 | 126]) + struct.pack(">H", len(message)) + bytes(4) + message)
    return connection


def test_a_client_that_never_reads_is_ended_and_its_place_is_free(address, server):
    connection = raw_client(address)
    wait_until(lambda: server.places.running == 1)
    wait_until(lambda: server.places.running == 0, 60)
    wait_until(lambda: 'outcome="client_stalled"' in httpx.get(f"http://{address}/metrics").text)
    connection.close()


def test_a_slow_reader_slows_its_own_stream_and_loses_nothing(address, server):
    with Client(address) as slow, Client(address) as quick:
        slow.start(**ENDLESS | {"num_frames": 400, "width": 160, "height": 160})
        slow.read_until("video.chunk_metadata")
        quick.start(**ENDLESS | {"num_frames": 200})
        quick.finish()
        for _ in range(4):
            time.sleep(0.3)
            slow.read_until("video.chunk_metadata")
        received = slow.finish()
    chunks = received.of_type("video.chunk_metadata")
    assert [chunk["transport_chunk_index"] for chunk in chunks] == list(range(len(chunks)))
    assert sum(chunk["num_frames"] for chunk in chunks) == 400


def test_the_key_is_asked_for():
    settings = ServerSettings(api_key="sesame")
    with running(create_app(Server([ServedModel("tiny", make_tiny_pipeline())], settings))) as address:
        for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": "sesame"}):
            with pytest.raises(InvalidStatus) as refused, connect(f"ws://{address}{PATH}", additional_headers=headers):
                pass
            assert refused.value.response.status_code == 401
            assert httpx.get(f"http://{address}/v1/models", headers=headers).status_code == 401
        headers = {"Authorization": "Bearer sesame"}
        assert httpx.get(f"http://{address}/v1/models", headers=headers).status_code == 200
        with Client(address, additional_headers=headers) as client:
            client.start(prompt="a red ball", num_frames=5)
            client.finish()
        with Client(address, subprotocols=["bearer.sesame"]) as client:
            client.send("session.ping")
            assert client.read()["type"] == "session.pong"


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1.evil.example"])
def test_pages_of_other_hosts_are_kept_out(origin, address):
    with pytest.raises(InvalidStatus) as refused, connect(f"ws://{address}{PATH}", origin=origin):
        pass
    assert refused.value.response.status_code == 403
    assert "access-control-allow-origin" not in httpx.get(f"http://{address}/v1/models").headers
    assert httpx.get(f"http://{address}/v1/models", headers={"Origin": origin}).status_code == 403


def test_pages_of_this_host_may_come_from_any_port(address):
    with Client(address, origin="http://localhost:7860") as client:
        client.send("session.ping")
        assert client.read()["type"] == "session.pong"


def test_others_notice_nothing(address, client):
    client.start(**ENDLESS | {"num_frames": 400})
    client.read_until("video.chunk_metadata")
    for wrong in ("{", '{"type": "session.start", "prompt": ""}', b"bytes"):
        with Client(address) as other:
            other.socket.send(wrong)
            refusal(other)
    received = client.finish()
    assert sum(chunk["num_frames"] for chunk, _ in received.chunks) == 400
    alone = made_alone(address)
    assert received.video == alone


def made_alone(address: str) -> bytes:
    with Client(address) as client:
        client.start(**ENDLESS | {"num_frames": 400})
        return client.finish().video
