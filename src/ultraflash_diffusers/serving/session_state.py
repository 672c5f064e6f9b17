# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""A session as bytes: exported from one server, and gone on with on any other that has the same checkpoint."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..models.stream_state import StreamState
from ..pipelines.video_stream import PipelineStreamState
from .errors import ClientError
from .served_models import ServedModel


@dataclass
class SessionState(StreamState):
    """What a client takes from one session to another.

    Args:
        fingerprint (`str`): of the checkpoint.
        arguments (`dict`): those of `session.start` that decide the frames.
        stream ([`PipelineStreamState`]): of the stream.
    """

    fingerprint: str
    arguments: dict[str, Any]
    stream: PipelineStreamState

    def to_bytes(self) -> bytes:
        """Returns the safetensors file that [`~SessionState.of_client`] reads."""
        with tempfile.TemporaryDirectory(prefix="ultraflash-state-") as folder:
            path = Path(folder) / "state.safetensors"
            self.save(path)
            return path.read_bytes()

    @classmethod
    def of_client(cls, path: Path, model: ServedModel) -> SessionState:
        """Reads a state that a client has sent.

        Args:
            path (`Path`): the safetensors file.
            model ([`ServedModel`]): that shall go on with it.

        Raises:
            ClientError: the file is damaged, something else, or of another checkpoint.
        """
        try:
            state = cls.load(path)
        except Exception as error:  # whatever the reader of a crafted file comes upon
            raise ClientError("invalid_state", "state: what was sent is no state of a session") from error
        if not isinstance(state.arguments, dict) or not isinstance(state.stream, PipelineStreamState):
            raise ClientError("invalid_state", "state: it lacks the arguments or the stream")
        if state.fingerprint != model.fingerprint:
            raise ClientError("invalid_state", f"state: it is of another checkpoint than {model.name!r}")
        if any(not tensor.isfinite().all() for tensor in _tensors(state.stream)):
            raise ClientError("invalid_state", "state: it has values that are not finite")
        return state


def _tensors(state: StreamState) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor)
        return tensor

    state.map_tensors(note)
    return found
