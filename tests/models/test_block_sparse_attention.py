# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Block-sparse attention against a slow, independent reading of the published rule, one query token at a time."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from helpers.paths import ROOT

from ultraflash_diffusers.models.attention import backends
from ultraflash_diffusers.models.attention.backends import in_blocks, triton_kernel
from ultraflash_diffusers.models.attention.backends.in_blocks import attend_in_blocks
from ultraflash_diffusers.models.attention.backends.masked import attend_masked
from ultraflash_diffusers.models.attention.block_kv_cache import BlockKVCache
from ultraflash_diffusers.models.attention.block_layout import BlockLayout, BlockSparseSettings
from ultraflash_diffusers.models.attention.block_selection import BlockSelection
from ultraflash_diffusers.models.attention.block_sparse_attention import block_sparse_attention

HEADS, CHANNELS = 2, 8
SMALL = BlockSparseSettings(block_size=(2, 2, 2), local_range=3, top_k_ratio=0.3, reference_tokens=None)
WIDER = dataclasses.replace(SMALL, block_size=(2, 2, 4))  # the smallest blocks that FlexAttention takes on a CPU


class SlowStream:
    """The published rule in plain loops for one sample: lists of blocks, concatenated and cut after each group."""

    def __init__(self, settings: BlockSparseSettings) -> None:
        self.settings = settings
        self.cached: list[tuple[torch.Tensor, torch.Tensor]] = []  # a temporal block: keys, values [S, V, H, D]
        self.kept_pairs = 0
        self.all_pairs = 0

    def blocks(self, tokens: torch.Tensor, grid: tuple[int, int, int]) -> list[torch.Tensor]:
        """[L, H, D] -> for each temporal block [S, V, H, D], padded with zeros."""
        (bt, bh, bw), (t, h, w) = self.settings.block_size, grid
        video = tokens.reshape(t, h, w, *tokens.shape[1:])
        blocks = []
        for t0 in range(0, t, bt):
            frame = []
            for h0 in range(0, h, bh):
                for w0 in range(0, w, bw):
                    block = tokens.new_zeros(bt, bh, bw, *tokens.shape[1:])
                    part = video[t0 : t0 + bt, h0 : h0 + bh, w0 : w0 + bw]
                    block[: part.shape[0], : part.shape[1], : part.shape[2]] = part
                    frame.append(block.flatten(0, 2))
            blocks.append(torch.stack(frame))
        return blocks

    def allowed(self, grid: tuple[int, int, int], before: int, index: int) -> list[list[int]]:
        """For each spatial query block of temporal block `index` of the group: the key blocks that it may see."""
        (bt, bh, bw), (t, h, w) = self.settings.block_size, grid
        rows, columns, reach = -(-h // bh), -(-w // bw), self.settings.local_range
        chunk = max(1, self.settings.chunk_size // bt)
        end = min(((before + index) // chunk + 1) * chunk, before + -(-t // bt))
        result = []
        for row in range(rows):
            for column in range(columns):
                seen = []
                for temporal in range(end):
                    for key_row in range(rows):
                        for key_column in range(columns):
                            near = key_row in range(row - reach // 2, row - reach // 2 + reach)
                            near = near and key_column in range(column - reach // 2, column - reach // 2 + reach)
                            if near:
                                seen.append((temporal * rows + key_row) * columns + key_column)
                result.append(seen)
        return result

    def select(
        self, queries: torch.Tensor, keys: torch.Tensor, allowed: list[list[int]], top_k: int
    ) -> list[list[int]]:
        """One head, one temporal query block: pooled queries [S, D], keys [K, D] -> kept key blocks of each query."""
        probabilities = torch.zeros(len(queries), len(keys))
        for query, seen in enumerate(allowed):
            scores = torch.stack([queries[query] @ keys[block] for block in seen]) / math.sqrt(CHANNELS)
            probabilities[query, seen] = scores.softmax(0)
        ranked = probabilities.flatten().sort(descending=True).values
        threshold = ranked[min(top_k, len(ranked) - 1)]
        return [[b for b in seen if probabilities[q, b] >= threshold] or [seen[0]] for q, seen in enumerate(allowed)]

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, grid: tuple[int, int, int], kv_len: int = 0
    ) -> torch.Tensor:
        query_blocks = self.blocks(query, grid)
        group = list(zip(self.blocks(key, grid), self.blocks(value, grid), strict=True))
        held = self.cached + group
        keys, values = (torch.cat([pair[i] for pair in held]) for i in (0, 1))
        spatial = len(query_blocks[0])
        ratio = self.settings.top_k_ratio
        if self.settings.reference_tokens:
            ratio = ratio * self.settings.reference_tokens / (grid[1] * grid[2])
        top_k = max(1, min(int(spatial**2 * ratio), spatial**2 * len(group) - 1))
        outputs = []
        for index, queries in enumerate(query_blocks):
            allowed = self.allowed(grid, len(self.cached), index)
            output = torch.zeros_like(queries)
            for head in range(HEADS):
                kept = self.select(queries[:, :, head].mean(1), keys[:, :, head].mean(1), allowed, top_k)
                for block, chosen in enumerate(kept):
                    own = index * spatial + block
                    if not self.cached and own not in chosen:
                        chosen = [*chosen, own]
                    k, v = keys[chosen, :, head].flatten(0, 1), values[chosen, :, head].flatten(0, 1)
                    output[block, :, head] = (queries[block, :, head] @ k.T / math.sqrt(CHANNELS)).softmax(-1) @ v
                    self.kept_pairs += len(chosen)
            self.all_pairs += HEADS * spatial * len(keys)
            outputs.append(output)
        self.cached = held[-kv_len:] if kv_len else []
        return self.to_tokens(outputs, grid)

    def to_tokens(self, blocks: list[torch.Tensor], grid: tuple[int, int, int]) -> torch.Tensor:
        (bt, bh, bw), (t, h, w) = self.settings.block_size, grid
        columns = -(-w // bw)
        tokens = []
        for frame in range(t):
            for row in range(h):
                for column in range(w):
                    block = blocks[frame // bt][row // bh * columns + column // bw]
                    tokens.append(block[(frame % bt * bh + row % bh) * bw + column % bw])
        return torch.stack(tokens)


def random_qkv(seed: int, grid: tuple[int, int, int], batch: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, math.prod(grid), HEADS, CHANNELS)
    return [2 * torch.randn(shape, generator=generator) for _ in range(3)]


def relative_error(result: torch.Tensor, expected: torch.Tensor) -> float:
    assert result.shape == expected.shape
    return float((result - expected).norm() / expected.norm())


def allocate(grid: tuple[int, int, int], settings: BlockSparseSettings = SMALL, batch: int = 1, window: int = 3):
    return BlockKVCache.allocate(batch, HEADS, CHANNELS, grid, settings, kv_cache_blocks=window)


FULL_CASES = [
    ((4, 6, 8), SMALL),
    ((5, 7, 9), SMALL),  # padded on all three axes
    ((6, 8, 10), BlockSparseSettings((2, 2, 2), local_range=2, top_k_ratio=0.1, reference_tokens=None)),  # even window
    ((7, 5, 6), BlockSparseSettings((1, 2, 3), local_range=9, chunk_size=3, top_k_ratio=0.2, reference_tokens=None)),
    ((8, 6, 6), BlockSparseSettings((2, 2, 2), local_range=5, chunk_size=4, top_k_ratio=1.0, reference_tokens=6)),
    ((4, 4, 4), BlockSparseSettings((2, 2, 2), local_range=1, top_k_ratio=0.01, reference_tokens=None)),  # top_k 1
    ((2, 2, 2), BlockSparseSettings((2, 2, 2))),  # one single block
    ((3, 2, 20), BlockSparseSettings((2, 2, 2), local_range=3, top_k_ratio=50.0)),  # more pairs than there are
]


@pytest.mark.parametrize("backend", ["sdpa", "gather"])
@pytest.mark.parametrize(("grid", "settings"), FULL_CASES)
def test_full_forward_follows_the_published_rule(grid, settings, backend):
    query, key, value = random_qkv(0, grid)
    output, state = block_sparse_attention(query, key, value, grid, settings, backend=backend)
    slow = SlowStream(settings)
    assert state is None
    assert relative_error(output[0], slow(query[0], key[0], value[0], grid)) < 2e-6


CHUNKED = BlockSparseSettings((2, 2, 2), local_range=5, chunk_size=4, top_k_ratio=0.2, reference_tokens=None)
WIDE_CHUNKS = BlockSparseSettings((2, 2, 2), local_range=9, chunk_size=6, top_k_ratio=1.0, reference_tokens=9)
STREAMS = [  # frames of the groups, kv window, settings
    ([6] * 8, 3, SMALL),
    ([6, 3, 6, 1, 5, 6, 2, 6, 3], 2, SMALL),
    ([6, 6, 2, 6], 2, CHUNKED),
    ([2, 4, 8, 2, 10, 4], 5, SMALL),  # longer groups than were allocated
    ([6, 6, 6, 6, 10, 6, 12, 6], 3, SMALL),  # the same once the ring has gone round
    ([2] * 9, 1, WIDE_CHUNKS),
]


@pytest.mark.parametrize("backend", ["sdpa", "gather"])
@pytest.mark.parametrize(("lengths", "window", "settings"), STREAMS)
def test_stream_follows_the_published_rule(lengths, window, settings, backend):
    state, slow = allocate((lengths[0], 6, 7), settings, window=window), SlowStream(settings)
    for index, length in enumerate(lengths):
        grid = (length, 6, 7)
        query, key, value = random_qkv(index, grid)
        output, state = block_sparse_attention(query, key, value, grid, settings, state, backend=backend)
        assert relative_error(output[0], slow(query[0], key[0], value[0], grid, kv_len=window)) < 2e-6, index
    assert slow.kept_pairs < 0.6 * slow.all_pairs


def stream(lengths, settings=SMALL, window=3, backend="sdpa", seed=0, state=None, batch=1):
    """Runs groups of 6 x 7 tokens through a cache; the outputs and the last state."""
    state = state or allocate((max(lengths), 6, 7), settings, batch, window)
    outputs = []
    for index, length in enumerate(lengths):
        grid = (length, 6, 7)
        group = random_qkv(seed + index, grid, batch)
        output, state = block_sparse_attention(*group, grid, settings, state, backend=backend)
        outputs.append(output)
    return outputs, state


@pytest.mark.parametrize("as_tensor", [False, True])
def test_a_narrower_window_is_as_if_the_cache_held_only_that_much(as_tensor):
    state, slow = allocate((6, 6, 7), CHUNKED), SlowStream(CHUNKED)
    for index, (length, window) in enumerate([(6, 3), (6, 3), (6, 2), (4, 1), (6, 1), (2, 3), (6, 3), (6, 2), (3, 3)]):
        grid = (length, 6, 7)
        query, key, value = random_qkv(index, grid)
        limit = torch.tensor(window) if as_tensor else window
        output, state = block_sparse_attention(query, key, value, grid, CHUNKED, state, limit)
        slow.cached = slow.cached[-window:]
        assert relative_error(output[0], slow(query[0], key[0], value[0], grid, kv_len=window)) < 2e-6, index


def test_a_window_tensor_beyond_what_was_allocated_means_all_of_it():
    grid, states = (6, 6, 7), [allocate((6, 6, 7), CHUNKED, window=2) for _ in range(2)]
    for seed in range(3):
        group = random_qkv(seed, grid)
        output, states[0] = block_sparse_attention(*group, grid, CHUNKED, states[0], torch.tensor(9))
        expected, states[1] = block_sparse_attention(*group, grid, CHUNKED, states[1])
        assert torch.equal(output, expected)


@pytest.mark.parametrize("backend", ["sdpa", "gather"])
@pytest.mark.parametrize(("lengths", "window", "settings"), STREAMS)
def test_a_cache_for_a_single_use_gives_the_same_in_the_window_s_memory(lengths, window, settings, backend):
    usual = allocate((lengths[0], 6, 7), settings, window=window)
    lean = BlockKVCache.allocate(1, HEADS, CHANNELS, (lengths[0], 6, 7), settings, window, single_use=True)
    buffers = [tensor.data_ptr() for tensor in (lean.keys, lean.values, lean.pooled_keys)]
    for index, length in enumerate(lengths):
        group, grid = random_qkv(index, (length, 6, 7)), (length, 6, 7)
        limit = torch.tensor(1 if index % 5 == 3 else window)  # now and then narrower
        expected, usual = block_sparse_attention(*group, grid, settings, usual, limit, backend=backend)
        with torch.no_grad():
            output, lean = block_sparse_attention(*group, grid, settings, lean, limit, backend=backend)
        # where the groups differ in length, the sums run in another order
        same = torch.equal(output, expected) if len(set(lengths)) == 1 else relative_error(output, expected) < 1e-6
        assert same, index
        assert lean.keys.shape[2] == window
        assert [tensor.data_ptr() for tensor in (lean.keys, lean.values, lean.pooled_keys)] == buffers
        assert (int(lean.position), int(lean.count)) == (int(usual.position), int(usual.count))


def test_a_cache_for_a_single_use_is_refused_the_second_time():
    grid, group = (6, 6, 7), random_qkv(0, (6, 6, 7))
    first = BlockKVCache.allocate(1, HEADS, CHANNELS, grid, SMALL, single_use=True)
    branch = first.clone()
    output, second = block_sparse_attention(*group, grid, SMALL, first)
    with pytest.raises(ValueError, match="`cache` is the state after 0 temporal blocks.*after 3.*clone"):
        block_sparse_attention(*group, grid, SMALL, first)
    assert torch.equal(block_sparse_attention(*group, grid, SMALL, branch)[0], output)
    block_sparse_attention(*group, grid, SMALL, second)


@pytest.mark.parametrize("single_use", [False, True])
@pytest.mark.parametrize("heads", [1, 2, 5, 8])
def test_heads_taken_in_parts_give_the_same(heads, single_use, monkeypatch):
    grid, generator = (6, 6, 7), torch.Generator().manual_seed(0)
    outputs = []
    for limit in (in_blocks._WHOLE_ELEMENTS, 0):
        monkeypatch.setattr(in_blocks, "_WHOLE_ELEMENTS", limit)
        generator.manual_seed(0)
        state = BlockKVCache.allocate(2, heads, CHANNELS, grid, SMALL, 2, single_use=single_use)
        for _ in range(3):
            group = [torch.randn(2, math.prod(grid), heads, CHANNELS, generator=generator) for _ in range(3)]
            with torch.no_grad():
                output, state = block_sparse_attention(*group, grid, SMALL, state, backend="sdpa")
            outputs.append(output)
    for whole, parts in zip(outputs[:3], outputs[3:], strict=True):
        assert relative_error(parts, whole) < 1e-6


def test_gradients_reach_a_group_that_a_single_use_cache_takes_in():
    grid, grads = (6, 6, 7), []
    for single_use in (False, True):
        state = BlockKVCache.allocate(1, HEADS, CHANNELS, grid, SMALL, single_use=single_use)
        groups = [[tensor.requires_grad_() for tensor in random_qkv(seed, grid)] for seed in range(3)]
        total = torch.zeros(())
        for group in groups:
            output, state = block_sparse_attention(*group, grid, SMALL, state, backend="sdpa")
            total = total + output.square().mean()
        total.backward()
        grads.append([tensor.grad for group in groups for tensor in group])
    for usual, lean in zip(*grads, strict=True):
        torch.testing.assert_close(lean, usual, atol=1e-7, rtol=1e-5)


def test_a_batch_of_three_equals_three_singles():
    grid = (6, 6, 7)
    groups = [random_qkv(seed, grid, batch=3) for seed in range(3)]
    for cached in (False, True):
        together = allocate(grid, batch=3) if cached else None
        singles = [allocate(grid) if cached else None for _ in range(3)]
        for group in groups:
            output, together = block_sparse_attention(*group, grid, SMALL, together)
            for sample in range(3):
                alone = [tensor[sample : sample + 1] for tensor in group]
                expected, singles[sample] = block_sparse_attention(*alone, grid, SMALL, singles[sample])
                assert relative_error(output[sample : sample + 1], expected) < 1e-6


@pytest.mark.parametrize("backend", ["sdpa", "gather"])
def test_full_density_equals_dense_attention(backend):
    grid = (4, 8, 6)
    settings = BlockSparseSettings((2, 2, 2), local_range=99, chunk_size=4, top_k_ratio=99.0)
    query, key, value = random_qkv(0, grid)
    dense = F.scaled_dot_product_attention(*(tensor.transpose(1, 2) for tensor in (query, key, value))).transpose(1, 2)
    output, _ = block_sparse_attention(query, key, value, grid, settings, backend=backend)
    assert relative_error(output, dense) < 1e-6


@pytest.mark.parametrize("ratio", [0.03, 0.3, 1.0])
def test_backends_agree_at_the_released_block_size(ratio):
    """Large enough that both work in several steps, small enough to be quick."""
    grid, settings = (4, 28, 40), BlockSparseSettings(top_k_ratio=ratio, reference_tokens=None)
    group = random_qkv(0, grid)
    expected, _ = block_sparse_attention(*group, grid, settings, backend="sdpa")
    output, _ = block_sparse_attention(*group, grid, settings, backend="gather")
    assert relative_error(output, expected) < 1e-6


def test_the_future_changes_nothing_in_the_past():
    grid = (8, 6, 7)
    group = random_qkv(0, grid)
    output, _ = block_sparse_attention(*group, grid, SMALL)
    for tensor in group:
        tensor[:, 4 * 42 :] = 5.0
    edited, _ = block_sparse_attention(*group, grid, SMALL)
    assert torch.equal(output[:, : 4 * 42], edited[:, : 4 * 42])
    assert not torch.equal(output[:, 4 * 42 :], edited[:, 4 * 42 :])


def test_the_share_of_pairs_follows_the_frame_size():
    settings = BlockSparseSettings()
    assert settings.count_blocks((6, 60, 104)) == (3, 8, 13)
    assert settings.top_k((6, 60, 104)) == 104**2 * 1560 // 6240  # 1K has four times the reference's tokens
    assert settings.top_k((6, 30, 52)) == 28**2
    assert settings.top_k((2, 8, 8)) == 1
    assert settings.top_k((2, 16, 8)) == 3  # all pairs but one


def test_calling_again_from_a_state_gives_the_same():
    grid = (6, 6, 7)
    _, state = stream([6, 6])
    first, after_first = block_sparse_attention(*random_qkv(7, grid), grid, SMALL, state)
    block_sparse_attention(*random_qkv(8, grid), grid, SMALL, state)  # another denoising step over the same frames
    again, after_again = block_sparse_attention(*random_qkv(7, grid), grid, SMALL, state)
    assert torch.equal(first, again)
    expected, _ = stream([6, 6, 6, 6], seed=0)
    next_first, _ = block_sparse_attention(*random_qkv(9, grid), grid, SMALL, after_first)
    next_again, _ = block_sparse_attention(*random_qkv(9, grid), grid, SMALL, after_again)
    assert torch.equal(next_first, next_again)


def test_interleaved_streams_do_not_see_each_other():
    alone, _ = stream([6] * 5, seed=100)
    mine, other, outputs = None, None, []
    for index in range(5):
        output, mine = stream([6], seed=100 + index, state=mine)
        _, other = stream([6], seed=900 + index, state=other)
        outputs += output
    assert all(torch.equal(a, b) for a, b in zip(outputs, alone, strict=True))


def test_nothing_grows_over_a_long_stream():
    _, state = stream([6])
    pointers = [tensor.data_ptr() for tensor in (state.keys, state.values, state.pooled_keys)]
    _, later = stream([6, 3, 6, 1, 6, 6, 2, 6, 6], state=state)
    assert later.keys.shape[2] == 3 + 3
    assert [tensor.data_ptr() for tensor in (later.keys, later.values, later.pooled_keys)] == pointers
    assert int(later.position) == 3 + 3 + 2 + 3 + 1 + 3 + 3 + 1 + 3 + 3
    assert int(later.count) == 3
    _, longer = stream([10], state=later)
    assert longer.keys.shape[2] == 3 + 5
    _, again = stream([10, 6, 10], state=longer)
    assert again.keys.data_ptr() == longer.keys.data_ptr()


def test_a_superseded_state_is_refused_and_a_clone_branches():
    _, old = stream([6, 6])
    branch = old.clone()
    newer = stream([6], seed=5, state=old)[1]
    stream([6], seed=6, state=newer)
    with pytest.raises(ValueError, match="`cache` is the state after 6 temporal blocks.*clone"):
        stream([6], seed=5, state=old)
    expected = stream([6, 6])[1]
    assert torch.equal(stream([6], seed=9, state=branch)[0][0], stream([6], seed=9, state=expected)[0][0])


def test_a_state_can_be_saved_moved_and_cloned(tmp_path):
    _, state = stream([6, 3, 6])
    state.save(tmp_path / "cache.safetensors")
    copies = [BlockKVCache.load(tmp_path / "cache.safetensors"), state.clone(), state.to("cpu")]
    expected, _ = stream([6, 6], seed=50, state=state.clone())
    for copy in copies:
        outputs, _ = stream([6, 6], seed=50, state=copy)
        assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))


def test_a_state_follows_the_dtype_of_the_network():
    grid = (6, 6, 7)
    _, state = stream([6, 6])
    half = state.to(dtype=torch.bfloat16)
    output, half = block_sparse_attention(*(t.bfloat16() for t in random_qkv(5, grid)), grid, SMALL, half)
    assert output.dtype == half.keys.dtype == torch.bfloat16
    assert half.position.dtype == torch.int64
    double, expected = state.to(dtype=torch.float64), stream([6], seed=5, state=state)[0][0]
    output, _ = block_sparse_attention(*(t.double() for t in random_qkv(5, grid)), grid, SMALL, double)
    assert relative_error(output.float(), expected) < 1e-6


@pytest.mark.parametrize("cached", [False, True])
def test_gradients_agree(cached):
    """Of the slow rule, the dense and the gathering backend; what a cache holds from before counts as constant."""
    grid = (5, 6, 7)
    results = []
    for backend in ("slow", "sdpa", "gather"):
        state = stream([6, 6])[1] if cached else None
        group = [tensor.requires_grad_() for tensor in random_qkv(5, grid)]
        if backend == "slow":
            slow = SlowStream(SMALL)
            for seed in (0, 1) if cached else ():
                slow(*(tensor[0] for tensor in random_qkv(seed, (6, 6, 7))), (6, 6, 7), kv_len=3)
            output = slow(*(tensor[0] for tensor in group), grid)[None]
        else:
            output, state = block_sparse_attention(*group, grid, SMALL, state, backend=backend)
        if state is not None:
            with torch.no_grad():  # the stream goes on before the backward pass
                stream([6, 6], state=state)
        output.square().mean().backward()
        results.append([tensor.grad for tensor in group])
    for result in results[1:]:
        assert all(relative_error(a, b) < 3e-6 for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize(("backend", "compiler"), [("auto", "aot_eager"), ("sdpa", "aot_eager"), ("flex", "eager")])
def test_compiles_once_for_a_whole_stream(backend, compiler):
    torch._dynamo.reset()
    compiled = torch.compile(block_sparse_attention, fullgraph=True, backend=compiler)
    grid, settings = (6, 6, 7), WIDER if backend == "flex" else SMALL
    state, eager_state = allocate(grid, settings), allocate(grid, settings)
    with torch.no_grad():
        for index, window in enumerate([3, 3, 3, 2, 2, 1, 3, 3]):
            group, limit = random_qkv(index, grid), torch.tensor(window)
            expected, eager_state = block_sparse_attention(*group, grid, settings, eager_state, limit, "sdpa")
            with torch._dynamo.config.patch(error_on_recompile=index > 0):
                output, state = compiled(*group, grid, settings, state, limit, backend)
            assert relative_error(output, expected) < 1e-6
    assert int(state.position) == int(eager_state.position) == 24


def test_compiled_gradients_agree():
    torch._dynamo.reset()
    compiled = torch.compile(block_sparse_attention, fullgraph=True, backend="aot_eager")
    grid, gradients = (4, 6, 7), []
    for function in (block_sparse_attention, compiled):
        group = [tensor.requires_grad_() for tensor in random_qkv(5, grid)]
        output, _ = function(*group, grid, SMALL)
        output.square().mean().backward()
        gradients.append(torch.cat([tensor.grad.flatten() for tensor in group]))
    assert relative_error(gradients[1], gradients[0]) < 1e-6


def test_flex_follows_the_dense_reference():
    """Compiled for the CPU, for one shape and then for all others; the mask truly takes effect."""
    lengths, settings = [6, 6, 6, 3, 6, 2, 6, 6], WIDER
    results, references = stream(lengths, settings, backend="flex")[0], stream(lengths, settings)[0]
    for result, reference in zip(results, references, strict=True):
        assert relative_error(result, reference) < 1e-6
    dense, _ = stream(lengths[:2], dataclasses.replace(settings, top_k_ratio=99.0), backend="flex")
    assert relative_error(results[1], dense[1]) > 0.1


TRITON = pytest.mark.skipif(not triton_kernel.AVAILABLE, reason="Triton is not installed")


def random_attention(
    grid: tuple[int, int, int], settings: BlockSparseSettings, heads: int, channels: int, single_use: bool | None
) -> tuple[list[torch.Tensor], BlockSelection, BlockLayout, BlockKVCache | None]:
    """A group of two samples and a full cache, of the given kind, in the middle of a stream; any pairs are kept."""
    generator, layout = torch.Generator().manual_seed(0), BlockLayout(grid, settings)
    cache, slots = None, layout.temporal
    if single_use is not None:
        cache = BlockKVCache.allocate(2, heads, channels, grid, settings, 3, single_use=single_use)
        for buffer in (cache.keys, cache.values):
            buffer.normal_(generator=generator)
        cache.position.fill_(7)
        slots = cache.joint_slots(layout.temporal)
    group = [torch.randn(2, math.prod(grid), heads, channels, generator=generator) for _ in range(3)]
    key_block = torch.stack(
        [torch.randperm(slots * layout.spatial, generator=generator) for _ in range(layout.spatial)]
    )
    kept = torch.rand(2, heads, layout.temporal, *key_block.shape, generator=generator) < 0.3
    kept[:, 0, 0, 0] = False  # one list is short, none is empty
    kept[..., -1] |= ~kept.any(dim=-1)
    return group, BlockSelection(kept, key_block, slots * layout.spatial), layout, cache


def on_device(state: BlockKVCache | None, device: torch.device, dtype: torch.dtype) -> BlockKVCache | None:
    return None if state is None else state.clone().to(device, dtype)


@TRITON
@pytest.mark.parametrize("single_use", [None, False, True])
@pytest.mark.parametrize(
    ("block", "grid", "dtype"),
    [
        ((2, 2, 4), (4, 4, 8), torch.float32),
        ((2, 2, 4), (3, 5, 7), torch.float16),  # padded on all three axes
        ((2, 8, 8), (2, 9, 12), torch.float16),
    ],
)
def test_the_triton_kernel_follows_the_dense_reference(block, grid, dtype, single_use):
    """All ways to cut it, in Triton's interpreter (which cannot multiply bfloat16) where there is no GPU."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings = BlockSparseSettings(block)
    group, selection, layout, cache = random_attention(grid, settings, 1, 16, single_use)
    group = [tensor.to(dtype) for tensor in group]
    before = on_device(cache, "cpu", dtype)
    reference = on_device(before, "cpu", torch.float32)
    expected = attend_in_blocks(attend_masked, *(tensor.float() for tensor in group), selection, layout, reference)
    chosen = BlockSelection(selection.kept.to(device), selection.key_block.to(device), selection.key_blocks)
    for launch in triton_kernel.launch_choices(device, settings.volume, 16, dtype):
        after = on_device(before, device, dtype)
        output = triton_kernel.attend(*(tensor.to(device) for tensor in group), chosen, layout, after, launch).cpu()
        assert output.dtype == dtype
        assert relative_error(output.float(), expected) < (1e-6 if dtype == torch.float32 else 2e-3), launch
        if after is not None:
            assert torch.equal(after.keys.cpu().float(), reference.keys)
            assert torch.equal(after.values.cpu().float(), reference.values)


@torch.no_grad()
def test_lists_name_each_kept_block_and_the_longest_come_first():
    _, selection, layout, cache = random_attention((4, 5, 7), WIDER, 3, 16, True)
    order, counts, lists = triton_kernel.make_lists(selection, layout, cache)
    pairs = selection.pairs().flatten(0, 2)
    assert sorted(order.tolist()) == list(range(len(pairs)))
    assert torch.equal(counts, pairs.sum(dim=-1, dtype=torch.int32))
    assert (counts[order.long()].diff() <= 0).all() and counts.max() > counts.min() == 1
    where = cache.sources(layout.temporal)
    for row, count, own in zip(lists.tolist(), counts.tolist(), pairs, strict=True):
        expected = set()
        for block in own.nonzero().flatten().tolist():
            source, spatial = int(where[block // layout.spatial]), block % layout.spatial
            own_block = (-1 - source) * layout.spatial + spatial
            expected.add(source * layout.spatial + spatial if source >= 0 else -1 - own_block)
        assert set(row[:count]) == expected and len(expected) == count


@pytest.mark.slow
@TRITON
def test_the_triton_kernel_compiles_for_gpus_that_are_not_here(tmp_path):
    """At the released sizes: Hopper's matrix and copy instructions, enough registers and shared memory.

    In a process of its own, since this one may interpret the kernel.
    """
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "benchmarks.triton_code", "--json", str(report)]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run(command, check=True, env=environment, cwd=ROOT)
    kernels = json.loads(report.read_text())["kernels"]
    assert {kernel["gpu"] for kernel in kernels} == {"A100", "RTX 4090", "H200"}
    for kernel in kernels:
        assert kernel["spilled_bytes"] == 0, kernel
        assert kernel["shared_memory"] <= kernel["shared_memory_limit"], kernel
        half = kernel["dtype"] == "bfloat16"
        assert bool(kernel["instructions"]["HGMMA"]) == (half and kernel["gpu"] == "H200"), kernel
        assert bool(kernel["instructions"]["HMMA"]) == (half and kernel["gpu"] != "H200"), kernel
        assert kernel["instructions"]["LDGSTS"] > 0, kernel
    for balance in json.loads(report.read_text())["balance"]:
        assert balance["longest_first"] >= 0.95 and balance["longest_first"] > balance["in_raster_order"], balance


@TRITON
@torch.no_grad()
def test_a_stream_by_triton_follows_the_dense_reference():
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = BlockSparseSettings((2, 2, 4), local_range=3, top_k_ratio=0.3, reference_tokens=None)
    grid, outputs = (4, 5, 11), {}
    for backend in ("sdpa", "triton"):
        state = BlockKVCache.allocate(1, 2, 16, grid, settings, device=device)
        generator = torch.Generator().manual_seed(1)
        for _ in range(3):
            group = [torch.randn(1, 4 * 5 * 11, 2, 16, generator=generator).to(device) for _ in range(3)]
            outputs[backend], state = block_sparse_attention(*group, grid, settings, state, backend=backend)
    assert relative_error(outputs["triton"], outputs["sdpa"]) < 1e-6


@pytest.mark.slow
@TRITON
@torch.no_grad()
def test_the_triton_kernel_compiles_as_one_operator():
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings, grid = BlockSparseSettings((2, 2, 4), top_k_ratio=0.3, reference_tokens=None), (2, 4, 8)
    group = [torch.randn(1, 64, 2, 16, device=device) for _ in range(3)]
    attend = torch.compile(block_sparse_attention, fullgraph=True, backend="aot_eager")
    expected, _ = block_sparse_attention(*group, grid, settings, backend="sdpa")
    assert relative_error(attend(*group, grid, settings, backend="triton")[0], expected) < 1e-6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("single_use", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_triton_follows_the_dense_reference_on_a_gpu(dtype, single_use):
    """At the released block and head size, every way to cut the kernel."""
    group, selection, layout, cache = random_attention((5, 20, 36), BlockSparseSettings(), 3, 128, single_use)
    group = [tensor.to("cuda", dtype) for tensor in group]
    before = on_device(cache, "cuda", dtype)
    chosen = BlockSelection(selection.kept.cuda(), selection.key_block.cuda(), selection.key_blocks)
    reference = on_device(before, "cuda", torch.float32)
    expected = attend_in_blocks(attend_masked, *(tensor.float() for tensor in group), chosen, layout, reference)
    for launch in triton_kernel.launch_choices(torch.device("cuda"), 128, 128, dtype):
        output = triton_kernel.attend(*group, chosen, layout, on_device(before, "cuda", dtype), launch)
        assert relative_error(output.float(), expected) < (1e-4 if dtype == torch.float32 else 2e-2), launch


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flex_follows_the_dense_reference_on_a_gpu(dtype):
    grid, settings, results = (5, 40, 44), BlockSparseSettings(top_k_ratio=0.5, reference_tokens=None), {}
    for backend in ("sdpa", "flex"):
        generator = torch.Generator("cuda").manual_seed(0)
        state = BlockKVCache.allocate(2, 3, 64, grid, settings, device="cuda", dtype=dtype)
        outputs = []
        for _ in range(3):
            group = [torch.randn(2, 5 * 40 * 44, 3, 64, generator=generator, device="cuda") for _ in range(3)]
            group = [tensor.to(dtype).requires_grad_() for tensor in group]
            output, state = block_sparse_attention(*group, grid, settings, state, backend=backend)
            output.float().square().mean().backward()
            outputs += [output.float(), *(tensor.grad.float() for tensor in group)]
        results[backend] = outputs
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    for result, reference in zip(results["flex"], results["sdpa"], strict=True):
        assert relative_error(result, reference) < tolerance


@pytest.mark.slow
def test_sparse_attention_takes_at_most_a_third_of_dense_attention(tmp_path):
    """The benchmark with one head; the bound is four times what it measures, so that a busy machine passes."""
    script = ROOT / "benchmarks" / "attention.py"
    report = tmp_path / "report.json"
    arguments = ["--heads", "1", "--density", "0.05", "--backends", "gather", "--repeats", "3", "--json", str(report)]
    subprocess.run([sys.executable, script, *arguments], check=True)
    (result,) = json.loads(report.read_text())["results"]
    assert 0.04 < result["kept"] < 0.07
    assert result["selection_ms"] < 0.2 * result["total_ms"]
    assert result["share_of_dense"] < 1 / 3


def test_a_kernel_that_fails_gives_way_to_the_plain_path(monkeypatch, caplog):
    def fails(*args):
        calls.append(args)
        attend_in_blocks(attend_masked, *args)  # after it has written into the cache
        raise RuntimeError("out of resources: shared memory")

    monkeypatch.setattr(backends, "_FAILED", set())
    group, calls = random_qkv(0, GRID), []
    expected, _ = block_sparse_attention(*group, GRID, SMALL, allocate(GRID), backend="sdpa")
    monkeypatch.setattr(backends, "_function_of", lambda *args: fails)
    for _ in range(2):
        output, _ = block_sparse_attention(*group, GRID, SMALL, allocate(GRID), backend="auto")
        torch.testing.assert_close(output, expected, rtol=0, atol=0)
    assert len(calls) == 1 and caplog.text.count("is computed by 'sdpa' from here on: out of resources") == 1


GRID = (4, 6, 7)
BAD_INPUTS = [
    (
        {"backend": "cuda"},
        "`backend` must be one of 'auto', 'flex', 'flex_flash', 'gather', .*'triton', got 'cuda'",
    ),
    ({"backend": "flex"}, "`backend` 'flex' on a CPU needs blocks of 16 n tokens, got 8"),
    ({"backend": "flex_flash"}, "`backend` 'flex_flash' needs a CUDA device, got cpu"),
    ({"backend": "triton"}, "`backend` 'triton' cannot run here .*blocks of 8 tokens, 8 channels"),
    ({"grid": (4, 6, 6)}, r"`query` must have shape \[batch, 144, heads, channels\].*got \(1, 168, 2, 8\)"),
    ({"grid": (4, 42)}, r"`grid` must be three positive token counts.*got \(4, 42\)"),
    ({"key": torch.zeros(1, 168, 1, 8)}, r"`key` \(1, 168, 1, 8\).*differs from `query` \(1, 168, 2, 8\)"),
    ({"value": torch.zeros(1, 168, 2, 8).double()}, "`value` .*float64"),
    ({"cache": allocate(GRID, batch=2)}, "`cache` was made for .*the input needs"),
    ({"cache": allocate((4, 7, 6))}, "frames of 7 x 6 tokens.*and 6 x 7"),
    ({"cache": allocate((4, 8, 8))}, "frames of 8 x 8 tokens.*and 6 x 7"),
    ({"cache": BlockKVCache.allocate(1, 4, CHANNELS, GRID, SMALL)}, r"\(1, 4, 5, 12, 8, 8\).*\(1, 2, 5, 12, 8, 8\)"),
    ({"cache": allocate(GRID).to(dtype=torch.float64)}, "`cache` is torch.float64 on cpu, `query` is torch.float32"),
    ({"cache": allocate(GRID), "kv_cache_blocks": 4}, "`kv_cache_blocks` must be 1 to 3, .*got 4"),
    ({"cache": allocate(GRID), "kv_cache_blocks": 0}, "`kv_cache_blocks` must be 1 to 3, .*got 0"),
    ({"kv_cache_blocks": 2}, "`kv_cache_blocks` 2 was given without a `cache`"),
]


@pytest.mark.parametrize(("change", "message"), BAD_INPUTS)
def test_bad_input_is_named(change, message):
    arguments = dict(zip(("query", "key", "value"), random_qkv(0, GRID), strict=True), grid=GRID, settings=SMALL)
    with pytest.raises(ValueError, match=message):
        block_sparse_attention(**(arguments | change))


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="`local_range` must be positive, got 0"):
        BlockSparseSettings(local_range=0)
    with pytest.raises(ValueError, match="`top_k_ratio` must be positive, got -1.0"):
        BlockSparseSettings(top_k_ratio=-1.0)
    with pytest.raises(ValueError, match=r"`block_size` must be three positive integers.*got \(2, 8\)"):
        BlockSparseSettings(block_size=(2, 8))
    with pytest.raises(ValueError, match="`kv_cache_blocks` must be at least 1, got 0"):
        allocate(GRID, window=0)
    with pytest.raises(ValueError, match="`backend` 'flex' has no gradients on a CPU"):
        group = [tensor.requires_grad_() for tensor in random_qkv(0, GRID)]
        block_sparse_attention(*group, GRID, SMALL, backend="flex")
