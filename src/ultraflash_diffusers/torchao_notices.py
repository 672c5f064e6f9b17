# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""diffusers imports torchao where it is installed, which on a CPU build says what has no meaning there."""

from __future__ import annotations

import logging
import sys

_NOTICES = {
    "torchao": "Failed to load",  # kernels for CUDA
    "torch.utils._pytree": "is an Enum subclass",  # how torchao registers its settings
    "diffusers.quantizers.torchao.torchao_quantizer": "Unable to import `torchao` Tensor objects",  # older layouts
}


def hide_on_cpu_builds() -> None:
    """Keeps the notices from the log where PyTorch has no CUDA; everything else that these loggers say stays."""
    for name in _NOTICES:
        logging.getLogger(name).addFilter(_worth_saying)


def _worth_saying(record: logging.LogRecord) -> bool:
    torch = sys.modules["torch"]  # whoever logs this has imported it
    return torch.version.cuda is not None or _NOTICES[record.name] not in str(record.msg)
