# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Kills a run at every file-system event and at random moments, and resumes it: upscaling, generating, training.

    python -m benchmarks.faults --events 1 --moments 20 upscale clip.mp4 --num-frames 100
    python -m benchmarks.faults generate "a red ball" --num-frames 100
    python -m benchmarks.faults train train_sr --train_data_dir clips --max_train_steps 8 --checkpointing_steps 2 ...

Every resumed run must leave the very files of one that nothing has happened to, and no others. Runs are forked from
this process, which has imported what they share.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ultraflash_diffusers.pipelines.video_files  # noqa: F401
from ultraflash_diffusers.cli import main as ultraflash

_EVENTS = {"open", "os.link", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"}
# what must be equal to the last byte; of other files, such as logs with their times, the names
_RESULTS = {".mp4", ".mkv", ".npy", ".safetensors"}


@dataclass(frozen=True)
class Work:
    """What is killed.

    Args:
        start (`Callable`): runs it in this process, with everything that it writes in the given folder; raises where
            it fails.
        resume (`Callable`): likewise, going on with what is there.
    """

    start: Callable[[Path], object]
    resume: Callable[[Path], object]


def main() -> None:
    """Parses the command line, runs both campaigns and prints what has come of them; exits with 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1, metavar="N", help="kill at every N-th event; 0 at none")
    parser.add_argument("--moments", type=int, default=20, help="kill at so many random moments")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("command", choices=("upscale", "generate", "train"))
    parser.add_argument("words", nargs=argparse.REMAINDER, help="what follows it, without where to write")
    options = parser.parse_args()
    work = training(options.words) if options.command == "train" else video(options.command, options.words)
    with tempfile.TemporaryDirectory(prefix="ultraflash-faults-") as folder:
        outcomes = campaign(work, options, Path(folder))
    for name, count in sorted(outcomes.items()):
        print(f"{count:5} {name}")
    sys.exit(any("unequal" in name for name in outcomes))


def video(command: str, words: list[str]) -> Work:
    """`ultraflash upscale` or `ultraflash generate`, which saves what it can go on from as often as it can."""
    first, *others = words

    def run(folder: Path, *more: str) -> None:
        output = str(folder / "out.mp4")
        place = ["--output", output] if command == "generate" else [output]
        if ultraflash([command, first, *place, *others, "--save-every", "0", "--json", *more]) != 0:
            raise SystemExit(1)

    return Work(run, lambda folder: run(folder, "--resume"))


def training(words: list[str]) -> Work:
    """A script of `training/`, whose cache lies in its output folder."""
    name, *others = words
    path = Path(__file__).parents[1] / "training" / f"{name}.py"
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None and specification.loader is not None
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)

    def run(folder: Path, *more: str) -> None:
        places = ["--output_dir", str(folder), "--cache_dir", str(folder / "cache")]
        script.main(script.parse_arguments([*others, *places, *more]))

    return Work(run, lambda folder: run(folder, "--resume_from_checkpoint", "latest"))


def campaign(work: Work, options: argparse.Namespace, folder: Path) -> Counter[str]:
    """Lets the work end once, then kills it again and again; returns how often what happened."""
    whole = folder / "whole"
    whole.mkdir()
    start = time.perf_counter()
    if run(work.start, whole) != 0:
        raise SystemExit(f"it fails by itself: {(folder / 'log').read_text()}")
    seconds = time.perf_counter() - start
    expected = contents(whole)
    outcomes: Counter[str] = Counter()
    event = options.events
    while event and killed_and_resumed(work, folder, expected, outcomes, f"event {event}", event=event):
        event += options.events
    dice = random.Random(options.seed)
    for _ in range(options.moments):
        moment = dice.uniform(0, seconds)
        killed_and_resumed(work, folder, expected, outcomes, f"moment {moment:.3f} s", moment=moment)
    return outcomes


def killed_and_resumed(
    work: Work,
    folder: Path,
    expected: dict[str, bytes],
    outcomes: Counter[str],
    name: str,
    event: int | None = None,
    moment: float | None = None,
) -> bool:
    """Kills one run, resumes it and compares; returns whether it was killed before its end."""
    place = folder / "killed"
    place.mkdir()
    killed = run(work.start, place, event, moment) == -signal.SIGKILL
    if killed:
        run(work.resume, place)  # which says so where all was done and only a lock was left
        found = contents(place)
        differing = sorted(each for each in {*found, *expected} if found.get(each) != expected.get(each))
        kind = "event" if moment is None else "moment"
        equal = not differing
        if not equal:
            print(f"{name}: {(folder / 'log').read_text()[-2000:]}", file=sys.stderr)
        outcomes[f"killed at {kind}s: resumed equal" if equal else f"killed at {name}: unequal, {differing}"] += 1
    shutil.rmtree(place)
    return killed


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder by name: the bytes of results, nothing of others."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() if path.suffix in _RESULTS else b"" for path in files}


def run(action: Callable[[Path], object], folder: Path, event: int | None = None, moment: float | None = None) -> int:
    """Runs in a fork, which kills itself at an event or a moment; returns how it ended."""
    child = os.fork()
    if child == 0:
        with (folder.parent / "log").open("w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        if event is not None:
            kill_at_event(event, str(folder))
        if moment is not None:
            threading.Timer(moment, os.kill, (os.getpid(), signal.SIGKILL)).start()
        code = 1
        try:
            action(folder)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at_event(number: int, folder: str) -> None:
    """Lets this process kill itself just before its `number`-th event in the folder."""
    seen = 0

    def count(event: str, values: tuple[object, ...]) -> None:
        nonlocal seen
        if event in _EVENTS and any(folder in str(value) for value in values):
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


if __name__ == "__main__":
    main()
