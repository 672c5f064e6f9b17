# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Errors that a client is told, and what of other errors may be told."""

from __future__ import annotations

import logging
from pathlib import Path

logger = logging.getLogger(__name__)


class ClientError(Exception):
    """Something that the client did, or that concerns it alone: told in full.

    Args:
        code (`str`): a name for programs, such as `"invalid_request"`.
        message (`str`): the argument, its value and what would fit.
        status (`int`, *optional*, defaults to 400): of an HTTP answer.
    """

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status


def as_client_error(error: BaseException, *folders: Path) -> ClientError:
    """Returns what a client may know of an error: never a place on this machine, never a stack.

    Args:
        error (`BaseException`): the pipeline's errors about arguments are told; of all others only that there was one,
            while the server's log has it whole.
        folders (`Path`): where the client's own files are kept; their names are told without them.
    """
    if isinstance(error, ClientError):
        return error
    if isinstance(error, (ValueError, TypeError)) and not isinstance(error, UnicodeError):
        message = str(error)
        for folder in folders:
            message = message.replace(f"{folder}/", "")
        return ClientError("invalid_request", message)
    logger.error("a stream failed", exc_info=error)
    return ClientError("internal_error", "the server failed to make this video; its log says why", status=500)
