# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""`ultraflash serve`: video over WebSockets while it is being made, and jobs over HTTP."""

from __future__ import annotations

import argparse
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from .pipeline_options import (
    add_pipeline_options,
    checkpoint_name,
    load_pipeline,
    natural,
    port_or_any,
    positive,
    seconds,
)

if TYPE_CHECKING:
    from ..serving import Server

    SubParsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_serve(commands: SubParsers) -> argparse.ArgumentParser:
    """Declares the sub-command and returns its parser."""
    command = commands.add_parser(
        "serve",
        help="a server that streams video while it is made",
        description="Serves streams over WebSockets at /v1/realtime/video, jobs at /v1/videos, /v1/models, "
        "/health and /metrics, and prints its address when it is ready. Ctrl+C ends it.",
    )
    add_pipeline_options(command)
    command.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 lets other machines in")
    command.add_argument("--port", type=port_or_any, default=8000, help="port to listen at; 0 for any (default: 8000)")
    command.add_argument("--name", help="of the model, as clients see it; by default the checkpoint's")
    command.add_argument(
        "--source-pipeline",
        metavar="FOLDER",
        help="folder or Hub name of a diffusers video pipeline for sessions with the source 'pipeline'",
    )
    command.add_argument(
        "--jobs",
        type=Path,
        metavar="FOLDER",
        help="where jobs and their results are kept; by default ultraflash/serve-PORT in the user's folder for states",
    )
    command.add_argument(
        "--save-every",
        type=seconds,
        default=5.0,
        metavar="SECONDS",
        help="how often to save what a job or a session goes on from (default: %(default)s)",
    )
    command.add_argument(
        "--sessions",
        type=Path,
        metavar="FOLDER",
        help="keeps the states of running sessions there, so that a client whose connection was lost goes on with "
        "equal frames, after a restart or on another server with this folder and checkpoint",
    )
    add_limit_options(command)
    command.add_argument(
        "--api-key",
        metavar="KEY",
        default=os.environ.get("ULTRAFLASH_API_KEY"),
        help="that clients must show; by default the environment's ULTRAFLASH_API_KEY, if it is set",
    )
    command.add_argument(
        "--allow-origin",
        metavar="ORIGIN",
        action="append",
        default=[],
        help="lets pages of another host use the server, such as https://example.org; may be given several times",
    )
    command.set_defaults(run=_run)
    return command


def add_limit_options(command: argparse.ArgumentParser) -> None:
    """Declares what a server allows."""
    from_settings = "(default: %(default)s)"
    command.add_argument("--max-streams", type=positive, default=2, help=f"streams that run at once {from_settings}")
    command.add_argument("--max-queue", type=natural, default=32, help=f"clients that may wait {from_settings}")
    command.add_argument("--max-pixels", type=positive, default=4096 * 2304, help=f"of a frame {from_settings}")
    command.add_argument("--max-frames", type=positive, default=100_000, help=f"of a video {from_settings}")
    command.add_argument("--max-seconds", type=positive, default=3600, help=f"that a stream may run {from_settings}")
    command.add_argument(
        "--max-upload",
        type=positive,
        default=256,
        metavar="MIB",
        help=f"of a video or state, in MiB {from_settings}",
    )


def _run(options: argparse.Namespace) -> None:
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
        import websockets  # noqa: F401
    except ImportError as error:
        raise ValueError(f"the server needs {error.name}: pip install 'ultraflash_diffusers[serve]'") from error
    from ..serving import JobStore, create_app
    from ..serving.running import bind, run_until_signal

    listener = bind(options.host, options.port)
    try:
        jobs = JobStore(options.jobs or _state_folder(options.port))
        app = create_app(_server(options), jobs, _own_names(options))
        host = f"[{options.host}]" if ":" in options.host else options.host
        url = f"http://{host}:{listener.getsockname()[1]}"
        told = json.dumps({"url": url}) if options.json else f"The server runs at {url}"
        run_until_signal(app, listener, lambda: _tell(told))
    finally:
        listener.close()


def _tell(line: str) -> None:
    with suppress(BrokenPipeError):  # a server whose address nobody reads serves all the same
        print(line, flush=True)


def _state_folder(port: int) -> Path:
    """Where programs keep what they have to find again after a restart, by the XDG specification."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "ultraflash" / f"serve-{port}"


def _own_names(options: argparse.Namespace) -> list[str]:
    """Names under which pages may address the server: on the loopback interface only those that mean it."""
    if options.host not in ("127.0.0.1", "localhost"):
        return ["*"]
    return ["127.0.0.1", "localhost", *(urlsplit(origin).hostname or "" for origin in options.allow_origin)]


def _server(options: argparse.Namespace) -> Server:
    from diffusers import DiffusionPipeline

    from ..serving import ServedModel, Server, ServerSettings, SessionStore

    pipe = load_pipeline(options)
    source = None
    if options.source_pipeline is not None:
        source = DiffusionPipeline.from_pretrained(options.source_pipeline, dtype=pipe.dtype).to(pipe.device)
    name = options.name or (Path(checkpoint_name(options)).name if options.checkpoint else "ultraflash")
    settings = ServerSettings(
        max_streams=options.max_streams,
        max_queue=options.max_queue,
        max_pixels=options.max_pixels,
        max_frames=options.max_frames,
        max_seconds=options.max_seconds,
        save_every=options.save_every,
        max_upload=options.max_upload * 2**20,
        api_key=options.api_key or None,
        allowed_origins=tuple(options.allow_origin),
    )
    sessions = None if options.sessions is None else SessionStore(options.sessions)
    return Server([ServedModel(name, pipe, source)], settings, sessions)
