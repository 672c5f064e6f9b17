# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Takes a video from a server while it is made, and changes the prompt on the way.

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


async def play(options: argparse.Namespace) -> None:
    """Runs one session and writes what comes, which plays at any time."""
    headers = {"Authorization": f"Bearer {options.api_key}"} if options.api_key else {}
    start = {"type": "session.start", "prompt": options.prompt, "num_frames": options.num_frames, "seed": options.seed}
    async with connect(options.url, additional_headers=headers, max_size=None) as socket:
        await socket.send(json.dumps(start))
        with options.output.open("wb") as file:
            async for message in socket:
                if isinstance(message, bytes):
                    file.write(message)
                    file.flush()
                else:
                    await told(socket, json.loads(message), options)


async def told(socket: ClientConnection, message: dict[str, Any], options: argparse.Namespace) -> None:
    """Shows what the server says; after a few chunks asks for another prompt."""
    if message["type"] == "video.start":
        print("started:", message["config"])
    elif message["type"] == "video.chunk_metadata":
        new = f", from here on {message['started_event_ids']}" if message["started_event_ids"] else ""
        print(f"{message['num_frames']} frames at {message['fps']} frames/s, {message['byte_length']} bytes{new}")
        if options.then and message["transport_chunk_index"] == 1:
            change = {"event_id": "then", "event": {"prompt": options.then}}
            await socket.send(json.dumps({"type": "session.interaction", "interaction": change}))
    elif message["type"] == "error":
        raise SystemExit(f"{message['code']}: {message['message']}")
    else:
        print({key: value for key, value in message.items() if key != "request_id"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt")
    parser.add_argument("--then", help="another prompt, from the third chunk on")
    parser.add_argument("--num-frames", type=int, default=69)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("live.mp4"))
    parser.add_argument("--url", default="ws://127.0.0.1:8000/v1/realtime/video")
    parser.add_argument("--api-key", default=os.environ.get("ULTRAFLASH_API_KEY"))
    asyncio.run(play(parser.parse_args()))


if __name__ == "__main__":
    main()
