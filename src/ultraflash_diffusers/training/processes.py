# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Waiting for other processes: patiently where one prepares for all, and never for one that is gone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache

from accelerate import Accelerator
from torch import distributed

# for what one process does for all: clips to decode, a large checkpoint to write, an upload
PATIENCE = timedelta(days=2)


@cache
def _patient_group() -> distributed.ProcessGroup:
    return distributed.new_group(backend="gloo", timeout=PATIENCE)


def wait_patiently() -> None:
    """Waits until all processes are here; collectives of training give up much earlier."""
    if distributed.is_initialized():
        distributed.barrier(_patient_group())


@contextmanager
def local_main_process_first(accelerator: Accelerator) -> Iterator[None]:
    """Lets the first process of each machine go through the block before the others.

    Args:
        accelerator (`Accelerator`): of the run.
    """
    if not accelerator.is_local_main_process:
        wait_patiently()
    yield
    if accelerator.is_local_main_process:
        wait_patiently()


@contextmanager
def naming_lost_processes() -> Iterator[None]:
    """Says that another process is gone where a collective fails for it.

    Raises:
        RuntimeError: a process has ended, or did not answer in time.
    """
    try:
        yield
    except RuntimeError as error:
        if distributed.is_initialized() and _is_of_a_collective(error):
            raise RuntimeError(
                f"another process has ended or no longer answers ({error}); this one ends too. Find out why, and go "
                "on with --resume_from_checkpoint latest"
            ) from error
        raise


def _is_of_a_collective(error: RuntimeError) -> bool:
    return isinstance(error, distributed.DistError) or "gloo" in str(error)
