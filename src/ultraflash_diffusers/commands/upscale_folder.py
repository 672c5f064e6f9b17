# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""`ultraflash upscale FOLDER OUTPUT_FOLDER`: all videos of a folder, in turns or by Ray, one file a task."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ..video_io.tracks import OUTPUT_SUFFIXES

if TYPE_CHECKING:
    from ..pipelines.file_stream import Report

VIDEOS = {
    *(".3gp", ".avi", ".dv", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv"),
    *(".ts", ".vob", ".webm", ".wmv"),
}
Upscale = Callable[[Path, Path], "Report"]


@dataclass(frozen=True)
class Task:
    """A file of many.

    Args:
        source (`Path`): the video.
        output (`Path`): what becomes of it.
    """

    source: Path
    output: Path

    @property
    def is_done(self) -> bool:
        """Whether the output is there, and nothing of an interrupted run beside it."""
        return self.output.exists() and not self.output.with_name(f"{self.output.name}.partial.json").exists()


def plan(folder: Path, output_folder: Path) -> list[Task]:
    """Returns a task for each video of a folder and its sub-folders, in the order of their names.

    Outputs have the names of their sources, in sub-folders of the same names; those in containers that are not written
    become `.mp4`.

    Raises:
        ValueError: two of them would become one file.
    """
    videos = sorted(path for path in folder.rglob("*") if path.suffix.lower() in VIDEOS and _is_source(path, folder))
    videos = [path for path in videos if not path.resolve().is_relative_to(output_folder.resolve())]
    tasks: dict[Path, Task] = {}
    for video in videos:
        suffix = video.suffix if video.suffix.lower() in OUTPUT_SUFFIXES else ".mp4"
        output = output_folder / video.relative_to(folder).with_suffix(suffix)
        if output in tasks:
            raise ValueError(f"{str(tasks[output].source)!r} and {str(video)!r} would both become {str(output)!r}")
        tasks[output] = Task(video, output)
    return list(tasks.values())


def _is_source(path: Path, folder: Path) -> bool:
    parts = path.relative_to(folder).parts
    return path.is_file() and not any(part.startswith(".") for part in parts) and ".partial." not in path.name


def upscale_all(
    tasks: list[Task], upscale: Upscale, resume: bool, overwrite: bool, as_json: bool, ray: str | None
) -> int:
    """Upscales files, reports those that fail and goes on with the others.

    Args:
        tasks (`list[Task]`): from [`plan`].
        upscale (`Callable`): makes one file.
        resume (`bool`): leaves out what is there and goes on with what was interrupted.
        overwrite (`bool`): replaces what is there.
        as_json (`bool`): prints the result as JSON, and no progress.
        ray (`str`, *optional*): address of a Ray cluster, `""` for one on this machine; in turns without it.

    Returns:
        `int`: the exit code, 1 where a file has failed.

    Raises:
        FileExistsError: outputs are there, and neither `resume` nor `overwrite` was given.
        ValueError: Ray is asked for, and not installed.
    """
    there = [task for task in tasks if task.output.exists()]
    if there and not (resume or overwrite):
        raise FileExistsError(
            f"{len(there)} of {len(tasks)} outputs exist already, such as {str(there[0].output)!r}: --resume leaves "
            "them as they are and makes the others, --overwrite replaces them"
        )
    done = [task for task in tasks if resume and not overwrite and task.is_done]
    left = [task for task in tasks if task not in done]
    for task in left:
        task.output.parent.mkdir(parents=True, exist_ok=True)
    results = _in_turns(left, upscale) if ray is None else _by_ray(left, upscale, ray)
    failed, reports = dict[str, str](), list[dict[str, Any]]()
    with tqdm(results, total=len(left), unit="file", desc="files", file=sys.stderr, disable=as_json) as bar:
        for task, result in bar:
            if isinstance(result, str):
                failed[str(task.source)] = result
                bar.write(f"ultraflash: {task.source}: {result}", file=sys.stderr)
            else:
                reports.append({"source": str(task.source), **result.as_dict()})
    if as_json:
        print(json.dumps({"files": reports, "already_there": [str(each.output) for each in done], "failed": failed}))
    else:
        there_already = f", {len(done)} were there already" if done else ""
        print(f"{len(tasks)} files: {len(reports)} made{there_already}, {len(failed)} failed")
    return 1 if failed else 0


def _in_turns(tasks: list[Task], upscale: Upscale) -> Iterator[tuple[Task, Report | str]]:
    for task in tasks:
        yield task, attempt(upscale, task)


def attempt(upscale: Upscale, task: Task) -> Report | str:
    """Makes one file; returns what was done, or why it failed."""
    try:
        return upscale(task.source, task.output)
    except Exception as error:  # whatever is wrong with one file, the others go on
        return " ".join(str(error).split()) or type(error).__name__


def _by_ray(tasks: list[Task], upscale: Upscale, address: str) -> Iterator[tuple[Task, Report | str]]:
    """Yields results as they come, from wherever the cluster has made them; paths must mean the same there."""
    try:
        import ray
    except ImportError as error:
        raise ValueError("--ray needs Ray: pip install 'ultraflash_diffusers[ray]'") from error
    ray.init(address=address or None, log_to_driver=False, logging_level="warning")
    try:
        on_gpu = ray.cluster_resources().get("GPU", 0) > 0
        # not tried again by itself: what was interrupted waits for --resume
        remote = ray.remote(num_gpus=1 if on_gpu else 0, max_retries=0)(attempt)
        waiting = {remote.remote(upscale, task): task for task in tasks}
        while waiting:
            (finished, *_), _ = ray.wait(list(waiting))
            task = waiting.pop(finished)
            try:
                yield task, ray.get(finished)
            except ray.exceptions.RayError as error:
                yield task, f"its task was lost ({type(error).__name__}); --resume goes on with it"
    finally:
        ray.shutdown()
