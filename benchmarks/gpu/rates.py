# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the chip and PyTorch's own kernels reach at the shapes of the cascade: the floor that all else stands on."""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.benchmark import Timer

from benchmarks.gpu.results import Report

# tokens of a pass of the generator at 1K and 4K, and of the SR transformer's parts of tokens
_TOKENS = (4680, 10800, 12288)
# output and input channels: projections, the feed-forward's two
_LAYERS = ((1536, 1536), (8960, 1536), (1536, 8960))
# queries and keys: the generator's at 1K and at 4K, cross-attention
_ATTENTION = ((4680, 18720), (10800, 43200), (12288, 512))
# channels in and out, height, width: the decoder's at 1K
_CONVOLUTIONS = ((256, 256, 120, 208), (64, 64, 480, 832), (64, 64, 960, 1664), (64, 3, 960, 1664))
_BACKENDS = {
    "chosen": None,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def measure_rates(report: Report) -> None:
    """The stage `rates`."""
    describe_machine(report)
    side = 8192 // _shrink(report)
    product = _Product(report, side, side, side)
    report.value("product", product.rate(), "TFLOP/s")
    for tokens in _TOKENS:
        for outer, inner in _LAYERS:
            report.attempt("product", _time_product, report, tokens, outer, inner)
    for queries, keys in _ATTENTION:
        _time_attention(report, queries, keys)
    for shape in _CONVOLUTIONS:
        for benchmark in (False, True):
            report.attempt("convolution", _time_convolution, report, shape, benchmark)
    source = torch.empty(2**30 // _shrink(report) ** 2, dtype=torch.bfloat16, device=report.device)
    target = torch.empty_like(source)
    moved = 2e-9 * source.nbytes
    report.value("copy", moved / milliseconds(lambda: target.copy_(source), report.device), "TB/s")


def describe_machine(report: Report) -> None:
    """Writes down what it is."""
    report.detail(torch=torch.__version__, device=report.device)
    if not report.dry:
        query = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.sm,power.limit", "--format=csv,noheader"]
        report.detail(gpu=subprocess.run(query, capture_output=True, text=True).stdout.strip())
        report.detail(cudnn=torch.backends.cudnn.version(), multiprocessors=_properties().multi_processor_count)


def milliseconds(function: Callable[[], Any], device: str, repeats: int = 12) -> float:
    """Median time of a call on the device, after two that do not count; on a CPU that of one call."""
    if device == "cpu":
        timer = Timer("function()", globals={"function": function})
        return 1000 * timer.timeit(1).median
    for _ in range(2):
        function()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for start, end in events:
        start.record()
        function()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in events)


def _shrink(report: Report) -> int:
    """By what a dry run divides the lengths."""
    return 64 if report.dry else 1


def _properties() -> Any:
    return torch.cuda.get_device_properties(0)


def _random(report: Report, *shape: int) -> torch.Tensor:
    return torch.randn(shape, device=report.device, dtype=torch.bfloat16)


class _Product:
    """A linear layer of `outer` and `inner` channels over some rows."""

    def __init__(self, report: Report, rows: int, outer: int, inner: int) -> None:
        self.device, self.shape = report.device, (rows, outer, inner)
        self.left, self.right = _random(report, rows, inner), _random(report, outer, inner)
        self.bias = _random(report, outer)

    def rate(self, call: Callable[[], torch.Tensor] | None = None) -> float:
        """TFLOP/s of a call, by default PyTorch's layer in bfloat16."""
        rows, outer, inner = self.shape
        operations = 2e-9 * rows * outer * inner
        return operations / milliseconds(call or (lambda: F.linear(self.left, self.right, self.bias)), self.device)

    def with_gelu(self) -> torch.Tensor:
        """GELU in the product's epilogue."""
        return torch._addmm_activation(self.bias, self.left, self.right.t(), use_gelu=True)

    def in_fp8(self) -> Callable[[], torch.Tensor]:
        """Scaled by row, as torchao does it; what scaling costs is not in it."""
        left, right = self.left.to(torch.float8_e4m3fn), self.right.to(torch.float8_e4m3fn)
        rows, columns = (torch.ones(shape, device=self.device) for shape in ((len(left), 1), (1, len(right))))

        def multiply() -> torch.Tensor:
            return torch._scaled_mm(
                left, right.t(), rows, columns, self.bias, out_dtype=torch.bfloat16, use_fast_accum=True
            )

        return multiply


def _time_product(report: Report, tokens: int, outer: int, inner: int) -> None:
    shape = [max(16, length // _shrink(report) // 16 * 16) for length in (tokens, outer, inner)]
    product = _Product(report, *shape)
    rates = {"bf16": product.rate()}
    if not report.dry:
        rates["fp8"] = report.attempt("fp8", lambda: product.rate(product.in_fp8())) or 0.0
        rates["gelu_epilogue"] = report.attempt("gelu_epilogue", product.rate, product.with_gelu) or 0.0
    report.detail(product=[tokens, outer, inner], tflops={name: round(rate, 1) for name, rate in rates.items()})


def _time_attention(report: Report, queries: int, keys: int) -> None:
    query = _random(report, 1, 12, queries // _shrink(report), 128)
    key, value = (_random(report, 1, 12, max(1, keys // _shrink(report)), 128) for _ in range(2))
    operations = 4e-9 * 12 * 128 * query.shape[2] * key.shape[2]

    def attend(backend: SDPBackend | None) -> torch.Tensor:
        if backend is None:
            return F.scaled_dot_product_attention(query, key, value)
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(query, key, value)

    def measured(backend: SDPBackend | None) -> float:
        return operations / milliseconds(lambda: attend(backend), report.device)

    for name, backend in _BACKENDS.items():
        if report.dry and backend is not None:
            continue
        rate = report.attempt(f"attention by {name}", measured, backend)
        if rate is not None:
            report.value(f"attention_{queries}x{keys}_{name}", rate, "TFLOP/s")


def _time_convolution(report: Report, shape: tuple[int, int, int, int], benchmark: bool) -> None:
    channels, outer, height, width = shape
    features = _random(report, 1, channels, height // _shrink(report), width // _shrink(report))
    features = features.to(memory_format=torch.channels_last)
    weight = _random(report, outer, channels, 3, 3).to(memory_format=torch.channels_last)
    operations = 18e-9 * outer * features.numel()
    with torch.backends.cudnn.flags(benchmark=benchmark):
        rate = operations / milliseconds(lambda: F.conv2d(features, weight, padding=1), report.device)
    report.detail(convolution=list(shape), cudnn_benchmark=benchmark, tflops=rate)
