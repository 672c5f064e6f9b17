# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Code for a GPU that is not here: the kernels that Inductor writes, and the wrapper that launches them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.paths import ROOT

pytest.importorskip("triton")

WRAPPER = """
triton_poi_fused_gelu_0 = async_compile.triton('triton_poi_fused_gelu_0', '''
import triton
''', device_str='cuda')

def call(self, args):
    buf0 = empty_strided_cuda((4, 8), (8, 1), torch.bfloat16)
    extern_kernels.addmm(arg0_1, arg1_1, arg2_1, out=buf0)
    triton_poi_fused_gelu_0.run(buf0, 32, stream=stream0)
    buf1 = torch.ops.aten._scaled_dot_product_cudnn_attention.default(buf0, buf0, buf0)
    buf2 = torch.ops.ultraflash_diffusers.attend_triton.default(buf1)
    buf3 = extern_kernels.convolution(buf2, arg3_1)
    buf4 = torch.ops.aten.topk.default(buf3, 3)
    triton_poi_fused_gelu_0.run(buf4, 32, stream=stream0)
"""


def test_launches_are_counted_by_what_they_are() -> None:
    from benchmarks.inductor_code import GraphCode

    graph = GraphCode.of(WRAPPER)
    assert graph.kernels == {"triton_poi_fused_gelu_0": "\nimport triton\n"}
    expected = {"fused": 2, "products": 1, "convolutions": 1, "attentions": 2, "others": 1}
    assert graph.by_kind() == expected and graph.launches["triton_poi_fused_gelu_0"] == 2


@pytest.mark.slow
def test_a_generator_block_is_compiled_for_a_gpu_that_is_not_here(tmp_path: Path) -> None:
    """At the size of 1K, in a process of its own, whose torch is told of an H200."""
    report = tmp_path / "code.json"
    command = [sys.executable, "-m", "benchmarks.inductor_code", "--networks", "generator", "--json", str(report)]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "| generator block, denoising |" in run.stdout
    result = json.loads(report.read_text())["networks"]["generator"]
    launches = result["launches"]
    assert (launches["products"], launches["attentions"]) == (8, 2) and launches["fused"] < 12
    assert {kernel["kernel"] for kernel in result["kernels"]} <= result["names"].keys()
    for kernel in result["kernels"]:
        assert kernel["spilled_bytes"] == 0 and kernel["programs"] >= 1, kernel
        assert 0 < kernel["registers"] <= 255, kernel
