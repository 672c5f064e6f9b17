# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Self-attention of the two transformers: dense over frames, and sparse over blocks of tokens.

Each has its cache (`frame_kv_cache`, `block_kv_cache`) and what attends to it (`dense_attention`,
`block_sparse_attention`). The sparse one stands on three more: how tokens lie in blocks (`block_layout`), which blocks
attend to which (`block_selection`), and how that is computed (`backends`).
"""
