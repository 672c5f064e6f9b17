# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What a server allows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServerSettings:
    """Limits of a server, each of which a client that asks for more is told by its name.

    Args:
        max_streams (`int`, *optional*, defaults to 2): streams that run at once, a chunk of each in turn.
        max_queue (`int`, *optional*, defaults to 32): clients that wait for a place; more are refused.
        max_pixels (`int`, *optional*, defaults to 9437184): of a frame, 4096 x 2304.
        max_frames (`int`, *optional*, defaults to 100000): of a video; streams without end stop there too.
        max_seconds (`float`, *optional*, defaults to 3600.0): for which a stream may hold its place.
        max_upload (`int`, *optional*, defaults to 268435456): bytes of a video or of a stream's state.
        max_prompt (`int`, *optional*, defaults to 4096): characters.
        idle_seconds (`float`, *optional*, defaults to 60.0): without progress or a message of the client, after which
            its session ends.
        stall_seconds (`float`, *optional*, defaults to 40.0): for which a client may take nothing of what is sent.
        save_every (`float`, *optional*, defaults to 5.0): least seconds between two saved states of a job, and of a
            session.
        keep_hours (`float`, *optional*, defaults to 24.0): for which the result of a job is kept.
        api_key (`str`, *optional*): that clients must show.
        allowed_origins (`tuple[str, ...]`, *optional*, defaults to `()`): pages of other hosts that may use the
            server, such as `"https://example.org"`; pages of the same host always may.
    """

    max_streams: int = 2
    max_queue: int = 32
    max_pixels: int = 4096 * 2304
    max_frames: int = 100_000
    max_seconds: float = 3600.0
    max_upload: int = 256 * 2**20
    max_prompt: int = 4096
    idle_seconds: float = 60.0
    stall_seconds: float = 40.0
    save_every: float = 5.0
    keep_hours: float = 24.0
    api_key: str | None = None
    allowed_origins: tuple[str, ...] = ()
