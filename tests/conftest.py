# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Settings for all tests. They are made before torch is imported, which reads some of them only once."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

# Ctrl-C interrupts, also where a shell has started pytest in its background, with Ctrl-C ignored
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
if not os.path.exists("/dev/nvidiactl"):
    os.environ["TRITON_INTERPRET"] = "1"  # Triton's kernels then run on the CPU, slowly

import pytest  # noqa: E402
import torch  # noqa: E402


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m gpu`, files without such a test are not imported: what they need may be missing beside a GPU."""
    if config.option.markexpr == "gpu" and collection_path.suffix == ".py":
        return "@pytest.mark.gpu" not in collection_path.read_text() or None
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips the tests marked `gpu` where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(scope="module", autouse=True)
def servers_end_their_threads() -> Iterator[None]:
    """A module that leaves a server's thread behind fails itself, not a later one that looks at threads."""
    yield
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("ultraflash-streams")]
