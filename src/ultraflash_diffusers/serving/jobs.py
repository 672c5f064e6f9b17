# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Videos made in the background, written down so that they survive the server."""

from __future__ import annotations

import fcntl
import json
import shutil
import sqlite3
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

QUEUED, IN_PROGRESS, COMPLETED, FAILED = "queued", "in_progress", "completed", "failed"
_TABLE = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY,
    created_at REAL NOT NULL,
    completed_at REAL,
    status TEXT NOT NULL,
    progress REAL NOT NULL DEFAULT 0,
    request TEXT NOT NULL,
    error TEXT
)
"""


@dataclass(frozen=True)
class Job:
    """A video to make, or made.

    Args:
        id (`str`): its name for clients.
        created_at, completed_at (`float`): seconds since 1970.
        status (`str`): `"queued"`, `"in_progress"`, `"completed"` or `"failed"`.
        progress (`float`): share of its frames that is made, 0 to 1.
        request (`dict`): what decides its frames; with `"upload"`, the name of the client's file in its folder.
        error (`dict`, *optional*): `code` and `message` of what went wrong.
        folder (`Path`): of its files.
    """

    id: str
    created_at: float
    completed_at: float | None
    status: str
    progress: float
    request: dict[str, Any]
    error: dict[str, str] | None
    folder: Path

    @property
    def video(self) -> Path:
        """The result, once it is completed."""
        return self.folder / "video.mp4"

    @property
    def upload(self) -> Path | None:
        """The client's file."""
        name = self.request.get("upload")
        return None if name is None else self.folder / name


class JobStore:
    """Jobs in an SQLite file, and a folder for each of them beside it. One server at a time has it.

    Args:
        folder (`Path`): is made where it is missing. Jobs that were in progress when their server ended are queued
            again; their files tell how far they came.

    Raises:
        OSError: the folder cannot be written, or another server has it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._held = (folder / "lock").open("w")
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OSError(f"the jobs in {str(folder)!r} are those of another server that runs") from error
        self._database = sqlite3.connect(folder / "jobs.sqlite", check_same_thread=False)
        self._database.row_factory = sqlite3.Row
        self._lock = threading.Lock()
        self._execute(_TABLE)
        self._execute("UPDATE jobs SET status = ? WHERE status = ?", QUEUED, IN_PROGRESS)

    def new_folder(self) -> tuple[str, Path]:
        """Returns the name and the folder of a job to come."""
        name = f"video_{uuid.uuid4().hex}"
        (self.folder / name).mkdir()
        return name, self.folder / name

    def add(self, name: str, request: dict[str, Any]) -> Job:
        """Queues a job."""
        self._execute(
            "INSERT INTO jobs (id, created_at, status, request) VALUES (?, ?, ?, ?)",
            *(name, time.time(), QUEUED, json.dumps(request)),
        )
        job = self.get(name)
        assert job is not None
        return job

    def get(self, name: str) -> Job | None:
        """Returns the job of that name."""
        return next(iter(self._jobs("SELECT * FROM jobs WHERE id = ?", name)), None)

    def all(self) -> list[Job]:
        """Returns all jobs, the newest first."""
        return self._jobs("SELECT * FROM jobs ORDER BY created_at DESC")

    def count(self, *statuses: str) -> int:
        """Returns how many jobs have one of these statuses."""
        return sum(job.status in statuses for job in self.all())

    def take(self) -> Job | None:
        """Returns the job that has waited longest, now in progress."""
        jobs = self._jobs("SELECT * FROM jobs WHERE status = ? ORDER BY created_at LIMIT 1", QUEUED)
        if not jobs:
            return None
        self._execute("UPDATE jobs SET status = ? WHERE id = ?", IN_PROGRESS, jobs[0].id)
        return self.get(jobs[0].id)

    def set_progress(self, name: str, progress: float) -> None:
        """Notes how much is done."""
        self._execute("UPDATE jobs SET progress = ? WHERE id = ?", progress, name)

    def end(self, name: str, error: dict[str, str] | None = None) -> None:
        """Notes that a job is completed or, with an error, has failed."""
        status, progress = (COMPLETED, 1.0) if error is None else (FAILED, None)
        self._execute(
            "UPDATE jobs SET status = ?, progress = COALESCE(?, progress), completed_at = ?, error = ? WHERE id = ?",
            *(status, progress, time.time(), json.dumps(error) if error else None, name),
        )

    def forget(self, job: Job) -> None:
        """Strikes a job off the list; its files stay."""
        self._execute("DELETE FROM jobs WHERE id = ?", job.id)

    def delete(self, job: Job) -> None:
        """Forgets a job and deletes its files."""
        self.forget(job)
        shutil.rmtree(job.folder, ignore_errors=True)

    def close(self) -> None:
        """Gives the folder free for another server."""
        with self._lock:
            self._database.close()
        self._held.close()

    def _execute(self, statement: str, *values: Any) -> Sequence[sqlite3.Row]:
        with self._lock, self._database:
            return self._database.execute(statement, values).fetchall()

    def _jobs(self, statement: str, *values: Any) -> list[Job]:
        return [self._job(dict(row)) for row in self._execute(statement, *values)]

    def _job(self, row: dict[str, Any]) -> Job:
        row["request"] = json.loads(row["request"])
        row["error"] = json.loads(row["error"]) if row["error"] else None
        return Job(**row, folder=self.folder / row["id"])
