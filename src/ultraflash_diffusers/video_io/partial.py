# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The files beside an output while it is being made: names, lock, record of the last checkpoint, and their end."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

from filelock import FileLock, Timeout

from .durable import PIECE, synchronise
from .pictures import picture_files
from .probe import VideoInfo
from .tracks import OUTPUT_SUFFIXES

_VERSION = 2
# Sources up to here are told from others by their whole content, larger ones by pieces from all over them
_WHOLLY_READ = 2**28
ADVICE = "start anew with overwrite=True"


class PartialFiles:
    """What lies beside `NAME.mp4` until it is finished: `NAME.mp4.partial.mp4`, `.json`, `.state` and `.lock`.

    Args:
        path (`Path`): the output.

    Raises:
        OSError: the folder does not take names that long.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.video = self._sidecar("mp4")
        self.audio = self._sidecar("audio")
        self.finishing = self._sidecar(f"finishing{path.suffix}")
        self._record = self._sidecar("json")
        self._lock = FileLock(self._sidecar("lock"))
        longest = self._sidecar("0123456789.state.new").name
        most = os.pathconf(path.parent, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
        if len(os.fsencode(longest)) > most:
            left = most - len(os.fsencode(longest)) + len(os.fsencode(path.name))
            raise OSError(errno.ENAMETOOLONG, f"`path` {str(path)!r}: its name is too long, at most {left} bytes fit")

    def acquire(self) -> None:
        """Takes hold of the output.

        Raises:
            FileExistsError: somebody else is writing it.
        """
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise FileExistsError(f"`path` {str(self.path)!r} is being written by another run") from error

    def release(self) -> None:
        """Lets go of the output. The lock's file goes first, so that nobody finds it unlocked and deletes it later."""
        if self._lock.is_locked:
            Path(self._lock.lock_file).unlink(missing_ok=True)
            self._lock.release()

    def state(self, frames: int) -> Path:
        """Where the caller's state after so many frames lies."""
        return self._sidecar(f"{frames}.state")

    def save_record(self, record: Mapping[str, Any]) -> None:
        """Replaces the record of the last checkpoint in one step."""
        replacement = self._sidecar("json.new")
        content = {"version": _VERSION, **record}
        replacement.write_text(json.dumps(content | {"seal": _seal(content)}, indent=2))
        synchronise(replacement)
        replacement.replace(self._record)

    def load_record(self) -> dict[str, Any] | None:
        """Returns the record of the last checkpoint, `None` where there is none.

        Raises:
            ValueError: it is damaged, or another version's.
        """
        if not self._record.exists():
            return None
        try:
            record = json.loads(self._record.read_text())
        except ValueError:
            record = None
        if not isinstance(record, dict) or record.get("version") != _VERSION or record.pop("seal", 0) != _seal(record):
            raise ValueError(
                f"{str(self._record)!r}, which says where to resume, is damaged or of another version: {ADVICE}"
            )
        return record

    def publish(self, overwrite: bool) -> None:
        """Gives the finished file its name in one step.

        Raises:
            FileExistsError: there is a file of that name, and it may not be replaced.
        """
        if overwrite:
            self.finishing.replace(self.path)
            return
        try:
            os.link(self.finishing, self.path)
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            if self.path.exists():
                raise FileExistsError(errno.EEXIST, "it has appeared meanwhile") from None
            self.finishing.replace(self.path)
            return
        self.finishing.unlink()

    def delete(self) -> None:
        """Deletes all of them but the lock; the record, which says that the output is whole, last."""
        for left_over in self.path.parent.glob(f"{glob.escape(self.path.name)}.partial.*"):
            if left_over not in (self._record, Path(self._lock.lock_file)):
                left_over.unlink(missing_ok=True)
        self._record.unlink(missing_ok=True)

    def _sidecar(self, ending: str) -> Path:
        return self.path.with_name(f"{self.path.name}.partial.{ending}")


def checked_output(path: Path, source: VideoInfo | None) -> Path:
    """Returns where to write: of a symbolic link the place it leads to, so that the link stays.

    Args:
        path (`Path`): the output that was asked for.
        source ([`VideoInfo`], *optional*): the clip that it is made from.

    Raises:
        OSError, ValueError: nothing can be written there.
    """
    given, path = path, Path(os.path.realpath(path)) if path.is_symlink() else path
    if path.is_symlink():
        raise ValueError(f"`path` {str(given)!r} is a symbolic link that leads in a circle")
    if path.suffix.lower() not in OUTPUT_SUFFIXES:
        raise ValueError(f"`path` {str(path)!r} must end in one of {', '.join(OUTPUT_SUFFIXES)}")
    if path.is_dir():
        raise IsADirectoryError(f"`path` {str(path)!r} is a folder, expected a video file to write")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"`path` {str(path)!r}: there is no folder {str(path.parent)!r}")
    if path.exists() and not path.is_file():
        raise ValueError(f"`path` {str(path)!r} is a pipe, a socket or a device, expected a video file to write")
    if source and path.exists() and path.samefile(source.path):
        raise ValueError(f"`path` {str(path)!r} is the source itself")
    return path


def _seal(record: Mapping[str, Any]) -> int:
    """A checksum of a record, by which one with a changed number is told."""
    return crc32(json.dumps(record, sort_keys=True).encode())


def file_mark(path: Path) -> list[int]:
    """Returns what tells a file from others of its name, and stays with it when it is renamed."""
    stat = path.stat()
    return [stat.st_ino, stat.st_size, stat.st_mtime_ns]


def fingerprint(path: Path) -> str:
    """Returns a hash of a clip's content: of the whole up to 256 MiB, else of 256 pieces spread over it."""
    digest = hashlib.blake2b(digest_size=16)
    for file in picture_files(path) if path.is_dir() else [path]:
        digest.update(f"{file.name} {file.stat().st_size}".encode("utf-8", "surrogateescape"))
        for piece in _pieces(file):
            digest.update(piece)
    return digest.hexdigest()


def _pieces(path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    count = -(-size // PIECE)
    step = 1 if size <= _WHOLLY_READ else count / (_WHOLLY_READ // PIECE)
    with path.open("rb") as file:
        for number in range(min(count, _WHOLLY_READ // PIECE)):
            file.seek(round(number * step) * PIECE)
            yield file.read(PIECE)


def differences(now: Mapping[str, Any], then: Mapping[str, Any]) -> Iterator[str]:
    """Yields in words what differs between two records, of the first one's entries."""
    for name, value in now.items():
        former = then.get(name)
        if isinstance(value, dict) and isinstance(former, dict):
            yield from differences(value, former)
        elif value != former:
            yield f"{name} is {value!r}, was {former!r}"
