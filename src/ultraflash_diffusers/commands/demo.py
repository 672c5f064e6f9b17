# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""`ultraflash demo`: the demo in a browser."""

from __future__ import annotations

import argparse
import json
import signal
from typing import TYPE_CHECKING

from .pipeline_options import add_pipeline_options, load_pipeline, port

if TYPE_CHECKING:
    SubParsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_demo(commands: SubParsers) -> argparse.ArgumentParser:
    """Declares the sub-command and returns its parser."""
    command = commands.add_parser(
        "demo",
        help="the demo in a browser",
        description="Starts the demo and prints its address; open that in a browser. Ctrl+C ends it.",
    )
    add_pipeline_options(command)
    command.add_argument(
        "--also",
        metavar="CHECKPOINT",
        action="append",
        default=[],
        help="another folder or Hub name that the page lets visitors choose; may be given several times",
    )
    command.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 lets other machines in")
    command.add_argument("--port", type=port, help="port to listen at; the first free one from 7860 by default")
    command.add_argument("--share", action="store_true", help="make a public link, by way of Gradio's servers")
    command.set_defaults(run=_run)
    return command


def _run(options: argparse.Namespace) -> None:
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ValueError("the demo needs Gradio: pip install 'ultraflash_diffusers[demo]'") from error
    from ..demo.page import build_demo, example_clips, launch_demo

    examples = example_clips()
    others = {name: load_pipeline(argparse.Namespace(**vars(options) | {"checkpoint": name})) for name in options.also}
    page = build_demo(load_pipeline(options), examples, others, options.checkpoint or "packaged")
    where = {"server_name": options.host, "server_port": options.port, "share": options.share}
    _, local, public = launch_demo(page, examples, prevent_thread_lock=True, quiet=True, **where)
    url = public or local
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    print(json.dumps({"url": url}) if options.json else f"The demo runs at {url}", flush=True)
    try:
        page.block_thread()
    finally:
        page.end()
