# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""A disk that is full, for as long as a `with` block lasts."""

from __future__ import annotations

import contextlib
import resource
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def small_disk(file_bytes: int) -> Iterator[None]:
    """Writing a file past `file_bytes` fails as on a full disk.

    The limit is the whole process's. No fixture can be made of it: between a test and the fixture's end pytest itself
    writes, and to a log longer than the limit it could not.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, former)
