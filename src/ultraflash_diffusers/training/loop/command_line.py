# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""A training script's command line: flags, some of which a YAML file may give, and errors without a traceback."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from ...allocation import keep_freed_memory
from ..files import replace_text

# what a file does not say for another run
_OF_THIS_CALL = {"config", "dry_run", "resume_from_checkpoint"}
# what people get wrong, or their disk and environment do; anything else is a fault of ours, and shows where it is
_EXPECTED = (ValueError, OSError, ImportError, FloatingPointError)


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Tells defaults, but for those that are decided later."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        decided = action.default is not None and action.default is not False
        return super()._get_help_string(action) if decided else action.help


class TrainingParser(argparse.ArgumentParser):
    """A parser whose `--config FILE.yaml` gives values of flags, as if they stood before those of the command line.

    A result has `given`: what file and command line say, as YAML can hold it, for [`write_config`].

    Args:
        description (`str`): what the script does.
    """

    def __init__(self, description: str) -> None:
        super().__init__(description=description, formatter_class=_Help, allow_abbrev=False)
        self.add_argument(
            "--config",
            type=Path,
            help="YAML file of values of the flags below, by their names without dashes, such as an earlier run's "
            "config.yaml; the command line wins",
        )

    def parse_args(self, args: Sequence[str] | None = None, namespace: None = None) -> argparse.Namespace:  # type: ignore[override]
        """Parses flags; see the class."""
        words = list(sys.argv[1:] if args is None else args)
        first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        first.add_argument("--config", type=Path)
        file = first.parse_known_args(words)[0].config
        if file is not None:
            words = [*self._words_of(file), *words]
        parsed = super().parse_args(words)
        unset = object()
        marked = super().parse_args(words, argparse.Namespace(**dict.fromkeys(vars(parsed), unset)))
        given = {name: plain(value) for name, value in vars(marked).items() if value is not unset}
        parsed.given = {name: value for name, value in given.items() if name not in _OF_THIS_CALL}
        return parsed

    def _words_of(self, file: Path) -> list[str]:
        """The command line that a file stands for."""
        flags = {action.dest: action for action in self._actions if action.option_strings and action.dest != "help"}
        words: list[str] = []
        for name, value in self._read(file).items():
            if name not in flags or name in _OF_THIS_CALL:
                near = get_close_matches(name, flags.keys() - _OF_THIS_CALL, 1)
                self.error(f"--config {file}: no flag is called {name!r}" + (f"; near: {near[0]!r}" if near else ""))
            words += self._flag_words(file, flags[name], value)
        return words

    def _read(self, file: Path) -> Mapping[str, Any]:
        try:
            # all scalars as they are written: what they mean is the flags' matter, as on a command line
            values = yaml.load(file.read_text("utf-8"), yaml.BaseLoader) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            self.error(f"--config {file}: {error}")
        if not isinstance(values, dict):
            self.error(f"--config {file}: must hold flags' names and values, one a line, got {str(values)[:60]!r}")
        return values

    def _flag_words(self, file: Path, flag: argparse.Action, value: Any) -> list[str]:
        name, values = flag.option_strings[0], value if isinstance(value, list) else [value]
        if not all(isinstance(each, str) for each in values):
            self.error(f"--config {file}: {flag.dest} must be a value or a list of values, got {value}")
        if value in ("", "null", "~"):
            return []
        if flag.nargs == 0:
            if value not in ("true", "false"):
                self.error(f"--config {file}: {flag.dest} must be true or false, got {value}")
            return [name] if value == "true" else []
        if flag.nargs is None and len(values) != 1:
            self.error(f"--config {file}: {flag.dest} must be one value, got {value}")
        return [f"{name}={values[0]}"] if len(values) == 1 and flag.nargs != 2 else [name, *values]


def write_config(path: Path, arguments: argparse.Namespace) -> None:
    """Writes what a run was told, so that `--config` tells it again.

    Args:
        path (`Path`): the YAML file.
        arguments (`argparse.Namespace`): of a [`TrainingParser`].
    """
    replace_text(path, yaml.safe_dump(arguments.given, sort_keys=True))


def plain(value: Any) -> Any:
    """A setting as JSON and YAML can hold it."""
    if isinstance(value, list):
        return [plain(entry) for entry in value]
    return value if isinstance(value, (int, float, str, bool, type(None))) else str(value)


def run_script(main: Callable[[argparse.Namespace], object], parse: Callable[[], argparse.Namespace]) -> None:
    """Runs a script; what it refuses is one line, with exit code 1.

    Args:
        main (`Callable`): the script, of parsed arguments.
        parse (`Callable`): parses the command line.
    """
    keep_freed_memory()
    try:
        main(parse())
    except _EXPECTED as error:
        sys.exit(f"{Path(sys.argv[0]).name}: error: {error}")
