# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Running sessions as files, from which another server goes on with them when theirs has died."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from .errors import ClientError
from .session_state import SessionState

_KEPT_STATES = 3  # clients have not yet read all that was made: the newest state may be ahead of them
_BEGINNING, _PROMPTS, _OWNER = "session.json", "prompts.jsonl", "owner"


@dataclass(frozen=True)
class PromptNote:
    """A change of the prompt, such that it can be made again.

    Args:
        prompt (`str`): the new one.
        name (`str`): of the interaction.
        chunk (`int`): number of the first chunk that shows it.
        at_frame (`int`): number of that chunk's first frame.
        transition_chunks (`int`): for which the interaction is reported as active.
    """

    prompt: str
    name: str
    chunk: int
    at_frame: int
    transition_chunks: int


@dataclass(frozen=True)
class SavedPoint:
    """A place in a stream from which it can go on.

    Args:
        chunk, frame (`int`): numbers of the first ones to be made.
        prompts (`int`): changes of the prompt that the state has in it.
        path (`Path`, *optional*): of the state; the stream's beginning has none.
    """

    chunk: int = 0
    frame: int = 0
    prompts: int = 0
    path: Path | None = None


class SessionRecord:
    """What is kept of one session: its request, all changes of the prompt, and its newest states.

    It belongs to the server that has opened it last: a former one that lives on can write no more.

    Args:
        folder (`Path`): of its files.

    Raises:
        OSError: of all that writes: the folder cannot be written, or another server has gone on with the session.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # a thread whose session has just ended may still be writing, and would bring the folder back
        self._writing = Lock()
        self._noted = len(self.prompts())
        self._owner = secrets.token_hex(8)
        (folder / _OWNER).write_text(self._owner)

    @property
    def beginning(self) -> dict[str, Any]:
        """The checkpoint's `fingerprint`, and the request as `start`."""
        return json.loads((self._folder / _BEGINNING).read_text())

    def prompts(self) -> list[PromptNote]:
        """All changes of the prompt."""
        path = self._folder / _PROMPTS
        lines = path.read_text().split("\n")[:-1] if path.exists() else []  # a line that was cut off never took effect
        return [PromptNote(**json.loads(line)) for line in lines]

    def note(self, change: PromptNote) -> None:
        """Notes a change of the prompt; to be called before the chunk that shows it is made."""
        with self._writing:
            self._check_owner()
            with (self._folder / _PROMPTS).open("a") as file:
                file.write(json.dumps(asdict(change)) + "\n")
            self._noted += 1

    def save(self, state: SessionState, chunk: int) -> None:
        """Keeps the state before chunk number `chunk`, and lets the oldest one go."""
        with self._writing:
            self._check_owner()
            state.save(self._folder / f"{chunk}-{state.stream.frames_done}-{self._noted}.safetensors")
            os.utime(self._folder)
            _drop(self._points()[1:-_KEPT_STATES])

    def point_before(self, frame: int) -> SavedPoint:
        """Returns the newest point that is not behind this frame, else the beginning."""
        first, *later = self._points()
        return max((point for point in later if point.frame <= frame), key=_frame, default=first)

    @property
    def first_frame(self) -> int:
        """Number of the session's first frame: not 0 where it began with a state."""
        return self._points()[0].frame

    def forget_after(self, frame: int) -> None:
        """Drops the states behind this frame, to which the stream may come with other prompts now."""
        _drop([point for point in self._points()[1:] if point.frame > frame])

    def remove(self) -> None:
        """Forgets the session, once what is being written of it is written."""
        with self._writing:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _check_owner(self) -> None:
        if (self._folder / _OWNER).read_text() != self._owner:
            raise OSError("another server has gone on with this session")

    def _points(self) -> list[SavedPoint]:
        points = []
        for path in self._folder.glob("*.safetensors"):
            chunk, frame, prompts = map(int, path.stem.split("-"))
            points.append(SavedPoint(chunk, frame, prompts, path))
        points.sort(key=_frame)
        return points if points and points[0].chunk == 0 else [SavedPoint(), *points]


class SessionStore:
    """A folder that outlives a server: of one machine, or one that several share.

    Args:
        folder (`Path`): is made where it is missing.
        keep_seconds (`float`, *optional*, defaults to 3600.0): for which the files of a session stay that was left
            without an end.
    """

    def __init__(self, folder: Path, keep_seconds: float = 3600.0) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder = folder
        self._keep_seconds = keep_seconds

    def create(self, fingerprint: str, start: dict[str, Any]) -> tuple[str, SessionRecord]:
        """Returns a new record, and the secret by which its client finds it again."""
        self._forget_old()
        token = secrets.token_urlsafe(24)
        folder = self._of(token)
        folder.mkdir(mode=0o700)
        (folder / _BEGINNING).write_text(json.dumps({"fingerprint": fingerprint, "start": start}))
        return token, SessionRecord(folder)

    def find(self, token: str) -> SessionRecord:
        """Returns the record of a secret.

        Raises:
            ClientError: there is none, or its time is over.
        """
        folder = self._of(token)
        if not (folder / _BEGINNING).exists():
            raise ClientError("not_found", "resume_token: no session is kept under it, or it has ended", 404)
        os.utime(folder)
        return SessionRecord(folder)

    def _of(self, token: str) -> Path:
        return self._folder / hashlib.sha256(token.encode()).hexdigest()[:40]  # so that no path is made of it

    def _forget_old(self) -> None:
        oldest = time.time() - self._keep_seconds
        for folder in self._folder.iterdir():
            try:
                if folder.stat().st_mtime < oldest:
                    shutil.rmtree(folder, ignore_errors=True)
            except FileNotFoundError:  # another server was faster
                continue


def _frame(point: SavedPoint) -> int:
    return point.frame


def _drop(points: list[SavedPoint]) -> None:
    for point in points:
        if point.path is not None:
            point.path.unlink(missing_ok=True)
