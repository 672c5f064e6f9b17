# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The `ultraflash` command.

Each sub-command is one function that declares its arguments and one that runs them; what a sub-command needs is
imported when it runs, so that `--help` answers at once. To add one, write the two and list the first in `_COMMANDS`.
Results go to the standard output (as JSON with `--json`), everything else to the standard error. A mistake of the user
is one line and exit code 2.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from . import __version__
from .commands.benchmark import add_benchmark
from .commands.convert import add_convert
from .commands.demo import add_demo
from .commands.generate import add_generate
from .commands.serve import add_serve
from .commands.upscale import add_upscale

if TYPE_CHECKING:
    SubParsers = argparse._SubParsersAction[argparse.ArgumentParser]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code.

    Args:
        arguments (`Sequence[str]`, *optional*): the words after `ultraflash`; those of the process by default.

    A command that returns a code ends with that, one whose results nobody reads to their end with 141, which is
    `SIGPIPE`'s.
    """
    options = _parser().parse_args(arguments)
    try:
        code = _run(options)
        print(end="", flush=True)
    except BrokenPipeError:
        # what has not been written would be tried once more at the process's end, with a traceback
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return code


def _run(options: argparse.Namespace) -> int:
    try:
        with _plain_warnings():
            return options.run(options) or 0
    except BrokenPipeError:
        raise
    except (ValueError, TypeError, OSError, MemoryError) as error:
        return _fail(options, error)
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ultraflash", description="High-resolution video while it is being generated."
    )
    parser.add_argument("--version", action="version", version=f"ultraflash {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add_command in _COMMANDS:
        command = add_command(commands)
        command.add_argument("--json", action="store_true", help="print the result as JSON, for scripts")
    return parser


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Shows the package's own warnings, which say what happens to a user's file, as one line without its origin."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def show_plainly(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if category is UserWarning and Path(filename).is_relative_to(Path(__file__).parent):
                print(f"ultraflash: warning: {message}", file=sys.stderr)
            else:
                show(message, category, filename, lineno, file, line)

        warnings.showwarning = show_plainly
        yield


def _fail(options: argparse.Namespace, error: Exception) -> int:
    message = " ".join(str(error).split())
    if options.json:
        print(json.dumps({"error": message}))
    print(f"ultraflash: error: {message}", file=sys.stderr)
    return 2


_COMMANDS: tuple[Callable[[SubParsers], argparse.ArgumentParser], ...] = (
    add_generate,
    add_upscale,
    add_convert,
    add_benchmark,
    add_demo,
    add_serve,
)


if __name__ == "__main__":
    sys.exit(main())
