# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Saved states: where they may be written, and what damaged ones end in."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from helpers.small_disk import small_disk
from safetensors.torch import save_file

from ultraflash_diffusers import StreamState


@dataclass
class Remembered(StreamState):
    """As networks have them."""

    values: torch.Tensor
    count: int = 3


STATE = Remembered(torch.arange(50_000.0))


def test_nothing_but_an_earlier_state_is_replaced(tmp_path: Path) -> None:
    pipe, door, holiday, folder = (tmp_path / name for name in ("pipe", "socket", "holiday.mp4", "folder"))
    os.mkfifo(pipe)
    folder.mkdir()
    holiday.write_bytes(b"precious")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(door))
        for path, message in (
            (pipe, "is a pipe, a socket or a device"),
            (door, "is a pipe, a socket or a device"),
            (Path(os.devnull), "is a pipe, a socket or a device"),
            (holiday, "holds no stream state"),
        ):
            with pytest.raises(ValueError, match=message):
                STATE.save(path)
        with pytest.raises(IsADirectoryError, match="is a folder"):
            STATE.save(folder)
        assert pipe.is_fifo() and door.is_socket()
    assert holiday.read_bytes() == b"precious"
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "state")
    for count in (1, 2):
        Remembered(STATE.values, count).save(link)
    assert link.is_symlink() and Remembered.load(tmp_path / "state").count == 2
    assert {path.name for path in tmp_path.iterdir()} == {"pipe", "socket", "holiday.mp4", "folder", "link", "state"}


def test_a_full_disk_leaves_the_earlier_state(tmp_path: Path) -> None:
    path = tmp_path / "state"
    STATE.save(path)
    with small_disk(1000), pytest.raises(OSError, match="cannot be saved"):
        Remembered(STATE.values, 4).save(path)
    assert Remembered.load(path).count == 3 and len(list(tmp_path.iterdir())) == 1


FIELDS = {"values": {"tensor": "state.values"}, "count": {"value": 3}}
WHOLE = {"state": "Remembered", "fields": FIELDS}


@pytest.mark.parametrize(
    "structure",
    [
        "{",
        "[]",
        "{}",
        json.dumps(WHOLE | {"state": "Forgotten"}),
        json.dumps(WHOLE | {"fields": FIELDS | {"more": {"value": 1}}}),
        json.dumps(WHOLE | {"fields": {"count": {"value": 3}}}),
        json.dumps(WHOLE | {"fields": {"values": {"tensor": "lost"}}}),
        json.dumps({"state": "Remembered"}),
        json.dumps({"fraction": "1/0"}),
        '{"list": [' * 20_000 + "]}" * 20_000,
    ],
)
def test_damaged_structures_are_named(structure: str, tmp_path: Path) -> None:
    save_file({"state.values": STATE.values}, tmp_path / "state", metadata={"stream_state": structure})
    with pytest.raises(ValueError, match=r"state' holds a damaged stream state"):
        Remembered.load(tmp_path / "state")
