# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What lies where the output is to be, or comes there meanwhile; and what an interrupted run has left."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.clips import HEIGHT, WIDTH, copy_through, make_clip, number_of, picture

from ultraflash_diffusers.video_io import VideoReader, VideoWriter

FRAMES = np.stack([picture(index) for index in range(5)])
SIDECARS = "partial.*"


def open_writer(path: Path, **options: object) -> VideoWriter:
    return VideoWriter(path, WIDTH, HEIGHT, fps=24, preset="ultrafast", **options)


def interrupted(path: Path, frames: int = 5, state: bool = False) -> None:
    """Leaves what a run that was killed after a checkpoint leaves."""
    writer = open_writer(path, overwrite=True)
    writer.write(FRAMES[:frames])
    writer.checkpoint((lambda place: place.write_text("state")) if state else None)
    writer.abort()


def numbers(path: Path) -> list[int]:
    return [number_of(frame.pixels) for frame in VideoReader(path)]


def leftovers(path: Path) -> set[str]:
    return {found.name for found in path.parent.glob(f"{path.name}.{SIDECARS}")}


@pytest.mark.parametrize("length", [234, 240, 251])
def test_a_name_too_long_for_what_lies_beside_it_is_refused_at_once(tmp_path: Path, length: int) -> None:
    path = tmp_path / ("x" * (length - 4) + ".mp4")
    with pytest.raises(OSError, match="its name is too long, at most 2[0-9]+ bytes fit"):
        open_writer(path)
    assert not list(tmp_path.iterdir())


def test_the_longest_name_works_to_the_end(tmp_path: Path) -> None:
    path = tmp_path / ("ä" * 100 + "x" * 10 + ".mp4")
    with open_writer(path) as writer:
        writer.write(FRAMES)
        writer.checkpoint(lambda place: place.write_text("state"))
    assert numbers(path) == [0, 1, 2, 3, 4] and not leftovers(path)


def test_of_a_link_the_target_is_written_and_the_link_stays(tmp_path: Path) -> None:
    target, link = tmp_path / "target.mp4", tmp_path / "link.mp4"
    link.symlink_to(target)  # leads to nothing yet
    with open_writer(link) as writer:
        writer.write(FRAMES)
    assert link.is_symlink() and not target.is_symlink() and numbers(target) == [0, 1, 2, 3, 4]
    with pytest.raises(FileExistsError, match="overwrite=True"):
        open_writer(link)
    with open_writer(link, overwrite=True) as writer:
        writer.write(FRAMES[1:])
    assert link.is_symlink() and numbers(target) == [1, 2, 3, 4]


def test_a_link_in_a_circle_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").symlink_to(tmp_path / "b.mp4")
    (tmp_path / "b.mp4").symlink_to(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match="a.mp4' is a symbolic link that leads in a circle"):
        open_writer(tmp_path / "a.mp4")


@pytest.fixture
def special_files(tmp_path: Path) -> Iterator[list[Path]]:
    pipe, plug = tmp_path / "pipe.mp4", tmp_path / "plug.mp4"
    os.mkfifo(pipe)
    (tmp_path / "null.mp4").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(tmp_path)  # names of sockets are short
        server.bind(plug.name)
        os.chdir(here)
        yield [pipe, plug]


def test_what_is_no_regular_file_is_neither_replaced_nor_read(special_files: list[Path]) -> None:
    for path in special_files:
        kind = path.lstat().st_mode
        for options in ({}, {"overwrite": True}, {"resume": True}):
            with pytest.raises(ValueError, match=f"{path.name}' is a pipe, a socket or a device"):
                open_writer(path, **options)
        with pytest.raises(ValueError, match=f"{path.name}' is a pipe, a socket or a device"):
            VideoReader(path)
        assert path.lstat().st_mode == kind and not leftovers(path)


def test_an_output_that_appears_meanwhile_is_not_replaced_and_the_work_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    writer = open_writer(path)
    writer.write(FRAMES)
    path.write_bytes(b"somebody else's")
    with pytest.raises(FileExistsError, match="out.mp4' has appeared meanwhile; all 5 frames are in .*overwrite=True"):
        writer.finish()
    assert path.read_bytes() == b"somebody else's" and numbers(writer.partial_path) == [0, 1, 2, 3, 4]
    with pytest.raises(FileExistsError, match="exists already"):
        open_writer(path, resume=True)
    with open_writer(path, resume=True, overwrite=True) as again:
        assert again.complete
    assert numbers(path) == [0, 1, 2, 3, 4] and not leftovers(path)


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}])
def test_two_runs_cannot_write_one_output(tmp_path: Path, options: dict[str, bool]) -> None:
    path = tmp_path / "out.mp4"
    first = open_writer(path)
    first.write(FRAMES)
    with pytest.raises(FileExistsError, match="out.mp4' is being written by another run"):
        open_writer(path, **options)
    first.finish()
    assert numbers(path) == [0, 1, 2, 3, 4] and not leftovers(path)


@pytest.mark.parametrize("damage", ["zeros", "beginning", "middle", "text"])
def test_a_damaged_partial_file_is_named_before_resuming(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "out.mp4"
    interrupted(path)
    partial = tmp_path / "out.mp4.partial.mp4"
    whole = partial.read_bytes()
    broken = {
        "zeros": bytes(len(whole)),
        "beginning": bytes(64) + whole[64:],
        "middle": whole[: len(whole) // 2] + b"?" + whole[len(whole) // 2 + 1 :],
        "text": b"no video at all\n" * (len(whole) // 16 + 1),
    }
    partial.write_bytes(broken[damage])
    with pytest.raises(ValueError, match="partial.mp4' is damaged.*start anew with overwrite=True"):
        open_writer(path, resume=True)
    partial.write_bytes(whole)
    with open_writer(path, resume=True) as writer:
        assert writer.frames_done == 5


@pytest.mark.parametrize("content", ["", "{}", "[1]", "null", '{"version": 1}', "not JSON", "\0" * 100])
def test_a_damaged_record_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "out.mp4"
    interrupted(path)
    (tmp_path / "out.mp4.partial.json").write_text(content)
    with pytest.raises(ValueError, match="partial.json'.* is damaged or of another version.*overwrite=True"):
        open_writer(path, resume=True)


@pytest.mark.parametrize("damage", ["changed", "shorter", "missing"])
def test_a_damaged_state_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "out.mp4"
    interrupted(path, state=True)
    state = tmp_path / "out.mp4.partial.5.state"
    if damage == "missing":
        state.unlink()
    else:
        state.write_text("stale" if damage == "changed" else "stat")
    with pytest.raises(ValueError, match="partial.5.state', the state to resume from, is lost or damaged"):
        open_writer(path, resume=True)


def test_a_source_exchanged_for_one_of_equal_size_is_refused(tmp_path: Path) -> None:
    source, output = tmp_path / "source.mp4", tmp_path / "out.mp4"
    make_clip(source, 8, options={"preset": "ultrafast"})
    reader = VideoReader(source)
    writer = VideoWriter(output, WIDTH, HEIGHT, source=reader)
    for frame in reader:
        writer.write([frame.pixels], [frame.pts])
        writer.checkpoint()
    content = bytearray(source.read_bytes())
    content[content.index(b"mdat") + 100] ^= 1
    source.write_bytes(content)
    # at the end of the run, where its sound would be read
    with pytest.raises(ValueError, match="source.mp4' has changed since the run began; all 8 frames are in"):
        writer.finish()
    with pytest.raises(ValueError, match="cannot resume.*content is"):
        VideoWriter(output, WIDTH, HEIGHT, source=VideoReader(source), resume=True)


def test_a_copy_of_the_source_is_the_source(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    source, output = make_clip(tmp_path / "source.mp4", 8), tmp_path / "out.mp4"
    reader = VideoReader(source)
    writer = VideoWriter(output, WIDTH, HEIGHT, source=reader)
    for frame in reader:
        writer.write([frame.pixels], [frame.pts])
    writer.abort()
    copy = VideoReader(shutil.copyfile(source, tmp_path / "copy" / "source.mp4"))
    VideoWriter(output, WIDTH, HEIGHT, source=copy, resume=True).abort()


@pytest.mark.parametrize("deleted", [set(), {"out.mp4.partial.mp4"}])
def test_killed_between_the_last_steps_the_run_is_finished(tmp_path: Path, deleted: set[str]) -> None:
    """The output is there, and some of what lay beside it still is."""
    path, kept = tmp_path / "out.mp4", {}
    writer = open_writer(path)
    writer.write(FRAMES)
    delete = writer._files.delete

    def keep_and_delete() -> None:
        kept.update({found.name: found.read_bytes() for found in tmp_path.glob(f"out.mp4.{SIDECARS}")})
        delete()

    writer._files.delete = keep_and_delete
    writer.finish()
    assert json.loads(kept["out.mp4.partial.json"])["published"]
    for name, content in kept.items():
        if name not in deleted:
            (tmp_path / name).write_bytes(content)
    mark = path.stat().st_mtime_ns
    with open_writer(path, resume=True) as again:
        assert again.complete and again.frames_done == 5
    assert path.stat().st_mtime_ns == mark and numbers(path) == [0, 1, 2, 3, 4] and not leftovers(path)


def test_equal_frames_give_equal_files(tmp_path: Path) -> None:
    """Large enough for the encoder to work on several frames at once."""
    generator = np.random.default_rng(0)
    base = generator.integers(0, 256, (144, 176, 3), dtype=np.uint8)
    frames = np.stack([np.roll(base, index, 1) // 2 + generator.integers(0, 60, base.shape) for index in range(60)])
    for name in ("one.mp4", "two.mp4"):
        with VideoWriter(tmp_path / name, 176, 144, fps=24) as writer:
            writer.write(frames.astype(np.uint8))
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()


def test_ten_bits_are_resumed_equal(tmp_path: Path) -> None:
    frames = np.stack([picture(index) for index in range(60)]).astype(np.uint16) * 257
    options = {"fps": 24, "bit_depth": 10, "preset": "ultrafast"}
    with VideoWriter(tmp_path / "whole.mp4", WIDTH, HEIGHT, **options) as writer:
        writer.write(frames)
    part = VideoWriter(tmp_path / "out.mp4", WIDTH, HEIGHT, **options)
    part.write(frames[:48])
    part.checkpoint()
    part.write(frames[48:50])
    part.abort()
    with VideoWriter(tmp_path / "out.mp4", WIDTH, HEIGHT, resume=True, **options) as writer:
        assert writer.frames_done == 48
        writer.write(frames[48:])
    assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()


def test_copying_names_with_anything_in_them(tmp_path: Path) -> None:
    for name in ("a%03d.mp4", "a*?[x].mp4", "a\nb.mp4", "-i.mp4", "http:a.mp4", "concat:a|b.mp4", "a\udcff.mp4"):
        source = make_clip(tmp_path / "plain.mp4", 3)
        named = source.rename(tmp_path / name)
        copy_through(named, tmp_path / f"out_{name}")
        assert numbers(tmp_path / f"out_{name}") == [0, 1, 2]
