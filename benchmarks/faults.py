# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Kills `ultraflash upscale` or `generate` at every file-system event and at random moments, and resumes it.

    python -m benchmarks.faults --events 1 --moments 20 upscale clip.mp4 --num-frames 100
    python -m benchmarks.faults generate "a red ball" --num-frames 100

Every resumed run must give the very bytes of one that nothing has happened to, and leave nothing behind. Runs are
forked from this process, which has imported what they share.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import ultraflash_diffusers.pipelines.video_files  # noqa: F401
from ultraflash_diffusers import UltraFlashStreamingPipeline
from ultraflash_diffusers.cli import main as ultraflash

_EVENTS = {"open", "os.link", "os.rename", "os.remove", "os.truncate"}


def main() -> None:
    """Parses the command line, runs both campaigns and prints what has come of them; exits with 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1, metavar="N", help="kill at every N-th event; 0 at none")
    parser.add_argument("--moments", type=int, default=20, help="kill at so many random moments")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("command", choices=("upscale", "generate"))
    parser.add_argument("words", nargs=argparse.REMAINDER, help="what follows it, without the output")
    options = parser.parse_args()
    assert UltraFlashStreamingPipeline is not None  # imported before the forks
    with tempfile.TemporaryDirectory(prefix="ultraflash-faults-") as folder:
        outcomes = campaign(options, Path(folder))
    for name, count in sorted(outcomes.items()):
        print(f"{count:5} {name}")
    sys.exit(any("unequal" in name for name in outcomes))


def campaign(options: argparse.Namespace, folder: Path) -> Counter[str]:
    """Runs the command whole, then kills it again and again; returns how often what happened."""
    whole = folder / "whole.mp4"
    start = time.perf_counter()
    if run(arguments(options, whole)) != 0:
        raise SystemExit("the command fails by itself")
    seconds = time.perf_counter() - start
    outcomes: Counter[str] = Counter()
    event = options.events
    while event and killed_and_resumed(options, whole, outcomes, f"event {event}", event=event):
        event += options.events
    dice = random.Random(options.seed)
    for _ in range(options.moments):
        moment = dice.uniform(0, seconds)
        killed_and_resumed(options, whole, outcomes, f"moment {moment:.3f} s", moment=moment)
    return outcomes


def killed_and_resumed(
    options: argparse.Namespace,
    whole: Path,
    outcomes: Counter[str],
    name: str,
    event: int | None = None,
    moment: float | None = None,
) -> bool:
    """Kills one run, resumes it and compares; returns whether it was killed before its end."""
    output = whole.with_name("out.mp4")
    killed = run(arguments(options, output), event, moment) == -signal.SIGKILL
    kind = "event" if moment is None else "moment"
    if killed:
        run([*arguments(options, output), "--resume"])
        left = sorted(path.name for path in whole.parent.iterdir())
        equal = output.exists() and output.read_bytes() == whole.read_bytes() and left == ["out.mp4", "whole.mp4"]
        outcomes[f"killed at {kind}s: resumed equal" if equal else f"killed at {name}: unequal, {left}"] += 1
    for path in whole.parent.glob("out.mp4*"):
        path.unlink()
    return killed


def arguments(options: argparse.Namespace, output: Path) -> list[str]:
    """The words of the command that writes `output` and saves what it can go on from as often as it can."""
    place = ["--output", str(output)] if options.command == "generate" else [str(output)]
    first, *others = options.words
    return [options.command, first, *place, *others, "--save-every", "0", "--json"]


def run(words: Sequence[str], event: int | None = None, moment: float | None = None) -> int:
    """Runs the command in a fork, which kills itself at an event or a moment; returns how it ended."""
    child = os.fork()
    if child == 0:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
        output = next(word for word in words if word.endswith((".mp4",)) and "ultraflash-faults-" in word)
        if event is not None:
            kill_at_event(event, output)
        if moment is not None:
            threading.Timer(moment, os.kill, (os.getpid(), signal.SIGKILL)).start()
        os._exit(ultraflash(words))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at_event(number: int, output: str) -> None:
    """Lets this process kill itself just before its `number`-th event at the output or what lies beside it."""
    seen = 0

    def count(event: str, values: tuple[object, ...]) -> None:
        nonlocal seen
        if event in _EVENTS and any(output in str(value) for value in values):
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


if __name__ == "__main__":
    main()
