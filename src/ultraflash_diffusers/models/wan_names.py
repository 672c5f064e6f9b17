# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""How diffusers (and so our networks) and the original Wan code call the same weights and layers."""

from __future__ import annotations

import re
from collections.abc import Sequence

_BLOCK_NAMES = (
    ("attn1.to_q.", "self_attn.q."),
    ("attn1.to_k.", "self_attn.k."),
    ("attn1.to_v.", "self_attn.v."),
    ("attn1.to_out.0.", "self_attn.o."),
    ("attn1.", "self_attn."),
    ("attn2.to_q.", "cross_attn.q."),
    ("attn2.to_k.", "cross_attn.k."),
    ("attn2.to_v.", "cross_attn.v."),
    ("attn2.to_out.0.", "cross_attn.o."),
    ("attn2.", "cross_attn."),
    # the norms are counted in another order: the affine one in front of cross-attention is the original's third
    ("norm2.", "norm3."),
    ("ffn.net.0.proj.", "ffn.0."),
    ("ffn.net.2.", "ffn.2."),
    ("scale_shift_table", "modulation"),
)
# diffusers' and the original beginnings of names; `*` is a block's number
WAN_NAMES = (
    ("condition_embedder.text_embedder.linear_1.", "text_embedding.0."),
    ("condition_embedder.text_embedder.linear_2.", "text_embedding.2."),
    ("condition_embedder.time_embedder.linear_1.", "time_embedding.0."),
    ("condition_embedder.time_embedder.linear_2.", "time_embedding.2."),
    ("condition_embedder.time_proj.", "time_projection.1."),
    ("scale_shift_table", "head.modulation"),
    ("proj_out.", "head.head."),
    *((f"blocks.*.{diffusers}", f"blocks.*.{original}") for diffusers, original in _BLOCK_NAMES),
)
_NUMBER = re.compile(r"(?<=^blocks\.)\d+(?=\.)")


def renamed(name: str, names: Sequence[tuple[str, str]]) -> str:
    """Replaces the beginning of `name` by the first pair of `names` whose first part it starts with.

    Args:
        name (`str`): of a weight or a layer.
        names (`Sequence[tuple[str, str]]`): pairs of beginnings, old and new; in both `*` is a block's number.
    """
    number = _NUMBER.search(name)
    general = _NUMBER.sub("*", name)
    for old, new in names:
        if general.startswith(old):
            general = new + general[len(old) :]
            break
    return general.replace("*", number[0], 1) if number else general
