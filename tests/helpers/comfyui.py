# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The part of ComfyUI's documented interface that our nodes use, as modules: V3 nodes, VIDEO, progress, memory."""

from __future__ import annotations

import shutil
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

# arguments of inputs and outputs as the documentation of V3 nodes lists them
_SHARED = {"display_name", "optional", "tooltip", "lazy", "advanced"}
_ARGUMENTS = {
    "STRING": _SHARED | {"default", "multiline", "placeholder"},
    "INT": _SHARED | {"default", "min", "max", "step", "control_after_generate"},
    "COMBO": _SHARED | {"default", "options", "control_after_generate"},
    "VIDEO": _SHARED,
}


class Interrupted(Exception):
    """What ComfyUI raises in a node when the user stops it."""


@dataclass
class Host:
    """What a test says about ComfyUI, and what it sees of a run.

    Args:
        temporary (`Path`): ComfyUI's temporary folder.
    """

    temporary: Path
    device: torch.device = torch.device("cpu")
    free: int = 0
    freed: list[int] = field(default_factory=list)
    progress: list[tuple[int, int]] = field(default_factory=list)
    stop_after: int | None = None


class VideoInput(ABC):
    """A VIDEO between nodes."""

    @abstractmethod
    def save_to(self, path: str) -> None: ...


class VideoFromFile(VideoInput):
    def __init__(self, file: str) -> None:
        self.file = file

    def get_stream_source(self) -> str:
        return self.file

    def save_to(self, path: str) -> None:
        shutil.copyfile(self.file, path)


class ComfyNode:
    """Base class of nodes: `define_schema` and `execute` are class methods."""


class ComfyExtension(ABC):
    @abstractmethod
    async def get_node_list(self) -> list[type[ComfyNode]]: ...


class NodeOutput:
    def __init__(self, *args: Any) -> None:
        self.args = args


@dataclass
class Schema:
    node_id: str
    display_name: str
    category: str
    inputs: list[Any]
    outputs: list[Any]
    description: str = ""


def custom(io_type: str) -> SimpleNamespace:
    """A type of sockets, with its inputs and outputs."""

    def make_input(id: str, **arguments: Any) -> SimpleNamespace:
        unknown = arguments.keys() - _ARGUMENTS.get(io_type, _SHARED)
        assert not unknown, f"{io_type} inputs have no {unknown}"
        return SimpleNamespace(id=id, io_type=io_type, **arguments)

    def make_output(id: str | None = None, display_name: str | None = None, tooltip: str | None = None) -> Any:
        return SimpleNamespace(id=id, io_type=io_type, display_name=display_name)

    return SimpleNamespace(Input=make_input, Output=make_output)


def install(monkeypatch: pytest.MonkeyPatch, temporary: Path) -> Host:
    """Makes the modules importable for a test."""
    host = Host(temporary)

    class ProgressBar:
        def __init__(self, total: int) -> None:
            self.total = total

        def update_absolute(self, value: int, total: int | None = None) -> None:
            host.progress.append((value, self.total if total is None else total))

    def throw_exception_if_processing_interrupted() -> None:
        if host.stop_after is not None and len(host.progress) >= host.stop_after:
            raise Interrupted

    def free_memory(memory_required: float, device: torch.device) -> None:
        host.freed.append(int(memory_required))

    io = SimpleNamespace(
        ComfyNode=ComfyNode,
        Schema=Schema,
        NodeOutput=NodeOutput,
        Custom=custom,
        String=custom("STRING"),
        Int=custom("INT"),
        Combo=custom("COMBO"),
        Video=custom("VIDEO"),
    )
    contents: dict[str, dict[str, Any]] = {
        "comfy": {},
        "comfy.utils": {"ProgressBar": ProgressBar},
        "comfy.model_management": {
            "get_torch_device": lambda: host.device,
            "get_free_memory": lambda device: host.free,
            "free_memory": free_memory,
            "throw_exception_if_processing_interrupted": throw_exception_if_processing_interrupted,
        },
        "folder_paths": {"get_temp_directory": lambda: str(temporary)},
        "comfy_api": {},
        "comfy_api.latest": {
            "io": io,
            "ComfyExtension": ComfyExtension,
            "Input": SimpleNamespace(Video=VideoInput),
            "InputImpl": SimpleNamespace(VideoFromFile=VideoFromFile),
        },
    }
    modules = {name: ModuleType(name) for name in contents}
    for name, module in modules.items():
        vars(module).update(contents[name])
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, module)
        monkeypatch.setitem(sys.modules, name, module)
    return host
