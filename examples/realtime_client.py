# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Takes a video from a server while it is made, and changes the prompt on the way.

Where the server keeps its sessions (`--sessions`), a lost connection is taken up again: the file has each frame once.

ultraflash serve &
python examples/realtime_client.py "A red ball glides to the left over sand" --then "A blue ball" --output ball.mp4
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

ATTEMPTS = 120  # in a row that bring nothing, a second apart


class Player:
    """Runs a video's sessions and writes what comes, which plays at any time."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.start: dict[str, Any] = {
            "prompt": options.prompt,
            "num_frames": options.num_frames,
            "seed": options.seed,
        }
        self.then = options.then
        self.frames = 0
        self.done = False

    async def play(self) -> None:
        """Takes the video to its end."""
        attempts = ATTEMPTS
        while not self.done:
            before = self.frames
            try:
                await self.session()
            except (ConnectionClosed, InvalidStatus, OSError) as error:
                if "resume_token" not in self.start:
                    raise SystemExit(f"the connection was lost: {error}") from error
                attempts = attempts - 1 if self.frames == before else ATTEMPTS
                if not attempts:
                    raise SystemExit(f"the connection cannot be taken up again: {error}") from error
                print("the connection was lost, trying again at frame", self.frames)
                await asyncio.sleep(1)

    async def session(self) -> None:
        """Runs one session: the whole video, if nothing happens to its server."""
        options = self.options
        headers = {"Authorization": f"Bearer {options.api_key}"} if options.api_key else {}
        async with connect(options.url, additional_headers=headers, max_size=None) as socket:
            await socket.send(json.dumps({"type": "session.start"} | self.start))
            metadata: dict[str, Any] = {}
            while not self.done:
                message = await socket.recv()
                if isinstance(message, bytes):
                    self.write(message, metadata)
                else:
                    metadata = json.loads(message)
                    await self.told(socket, metadata)

    def write(self, data: bytes, metadata: dict[str, Any]) -> None:
        """Adds a chunk to the file, which has one initialisation segment: the first session's."""
        with self.options.output.open("ab" if self.frames else "wb") as file:
            file.write(without_header(data) if self.frames else data)
        self.frames = metadata["first_frame"] + metadata["num_frames"]
        if "resume_token" in self.start:
            self.start["next_frame"] = self.frames

    async def told(self, socket: ClientConnection, message: dict[str, Any]) -> None:
        """Shows what the server says; after a few chunks asks for another prompt, until one was named as begun."""
        match message["type"]:
            case "video.start":
                print("started:", message["config"])
                if "resume_token" in message:
                    self.start = {"resume_token": message["resume_token"], "next_frame": self.frames}
            case "video.chunk_metadata":
                begun = message["started_event_ids"]
                new = f", from here on {begun}" if begun else ""
                print(
                    f"{message['num_frames']} frames at {message['fps']} frames/s, {message['byte_length']} bytes{new}"
                )
                self.then = None if "then" in begun else self.then
                if self.then and (message["generation_chunk_index"] == 1 or self.is_again(message)):
                    change = {"event_id": "then", "event": {"prompt": self.then}}
                    await socket.send(json.dumps({"type": "session.interaction", "interaction": change}))
            case "error":
                raise SystemExit(f"{message['code']}: {message['message']}")
            case "session.done":
                self.done = True
                print({key: value for key, value in message.items() if key != "request_id"})
            case _:
                print({key: value for key, value in message.items() if key != "request_id"})

    def is_again(self, message: dict[str, Any]) -> bool:
        """Whether this is the first chunk after a lost connection: what was asked for then may be lost, too."""
        return message["transport_chunk_index"] == 0 and message["generation_chunk_index"] > 1


def without_header(data: bytes) -> bytes:
    """Returns the fragment of a session's first chunk without the boxes in front of it."""
    start = 0
    while data[start + 4 : start + 8] != b"moof":
        start += int.from_bytes(data[start : start + 4], "big")
    return data[start:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt")
    parser.add_argument("--then", help="another prompt, from the third chunk on")
    parser.add_argument("--num-frames", type=int, default=69)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("live.mp4"))
    parser.add_argument("--url", default="ws://127.0.0.1:8000/v1/realtime/video")
    parser.add_argument("--api-key", default=os.environ.get("ULTRAFLASH_API_KEY"))
    asyncio.run(Player(parser.parse_args()).play())


if __name__ == "__main__":
    main()
