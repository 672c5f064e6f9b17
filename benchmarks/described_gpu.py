# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""A GPU that is not there, described well enough for PyTorch's compiler to make code for it.

Nothing runs on it: tensors on `"cuda"` are fake ones, with shapes and no contents. What the compiler asks of a device
is answered from the description, and which attention PyTorch would choose is decided here, since a CPU build of it
does not know: cuDNN's, as on Hopper.
"""

from __future__ import annotations

import ctypes
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton.runtime
from torch import nn
from torch._dynamo import device_interface
from torch._inductor import config
from torch._inductor.codecache import CppCodeCache
from torch._inductor.runtime import triton_helpers
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._triton import has_triton
from triton.backends.compiler import GPUTarget

from benchmarks.machine_code import REGISTERS, Gpu

# with an index, since nobody can be asked which device is the current one
DEVICE = torch.device("cuda:0")
# PyTorch's own guard for tests, which switches between devices by doing nothing; CPU builds have none for CUDA
_GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
namespace {
constexpr auto cuda = c10::DeviceType::CUDA;
c10::impl::NoOpDeviceGuardImpl<cuda> guard;
c10::impl::DeviceGuardImplRegistrar registrar(cuda, &guard);
}
"""
_ATTENTION = torch.library.Library("aten", "IMPL")  # what is registered ends with it


def describe(gpu: Gpu) -> None:
    """Makes this process compile for `gpu` as for its device 0, from now on: there is no way back.

    Raises:
        RuntimeError: there is a real one.
    """
    if torch.cuda.is_available():
        raise RuntimeError("this machine has a GPU: a described one cannot stand beside it")
    if not torch.backends.cuda.is_built():
        ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"), mode=ctypes.RTLD_GLOBAL)
        CppCodeCache.load(_GUARD)
    properties = types.SimpleNamespace(
        name=gpu.name,
        major=gpu.capability // 10,
        minor=gpu.capability % 10,
        total_memory=gpu.memory,
        multi_processor_count=gpu.multiprocessors,
        regs_per_multiprocessor=REGISTERS,
        max_threads_per_multi_processor=gpu.threads,
        max_threads_per_block=1024,
        warp_size=32,
        shared_memory_per_block_optin=gpu.shared_memory_limit,
    )
    answers: list[tuple[Any, str, Callable[..., Any]]] = [
        (torch.cuda, "get_device_properties", lambda device=None: properties),
        (torch.cuda, "get_device_capability", lambda device=None: (properties.major, properties.minor)),
        (triton_helpers, "set_driver_to_gpu", lambda: None),
    ]
    for module, name, answer in answers:
        setattr(module, name, answer)
    device_interface.init_device_reg()
    for name in ("cuda", str(DEVICE)):
        device_interface.register_interface_for_device(name, _interface(gpu, properties))
    target = GPUTarget("cuda", gpu.capability, 32)
    triton.runtime.driver.set_active(types.SimpleNamespace(get_current_target=lambda: target))
    has_triton.cache_clear()  # whoever has asked before was told that there is no device for it
    config.compile_threads = 1
    config.use_static_cuda_launcher = False
    config.force_disable_caches = True
    config.joint_graph_constant_folding = False  # which computes on the device
    config.shape_padding = False  # whether that gains is measured there
    for key in ("CUDA", "AutogradCUDA"):
        _ATTENTION.impl("scaled_dot_product_attention", _attend, key)


def _interface(gpu: Gpu, properties: Any) -> Any:
    base: Any = device_interface.CudaInterface
    known: dict[str, Callable[..., Any]] = {
        "get_device_properties": lambda device=None: properties,
        "current_device": lambda: 0,
    }
    answers = known | {
        "get_compute_capability": lambda device=None: gpu.capability,
        "device_count": lambda: 1,
        "is_available": lambda: True,
        "is_bf16_supported": lambda including_emulation=True: True,
        "is_triton_capable": lambda device=None: True,
        "raise_if_triton_unavailable": lambda device=None: None,
        "get_raw_stream": lambda device: 0,
    }
    worker = type("Worker", (base.Worker,), {name: staticmethod(each) for name, each in known.items()})
    members: dict[str, Any] = {name: staticmethod(each) for name, each in answers.items()}
    return type(base)("Described", (base,), members | {"Worker": worker})


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    attend = torch.ops.aten._scaled_dot_product_cudnn_attention
    return attend(query, key, value, attn_mask, False, dropout_p, is_causal, scale=scale)[0]


def to_device(network: nn.Module, fake: FakeTensorMode) -> None:
    """Puts fakes on the described device in the place of a network's parameters and buffers, in place."""

    def twin(tensor: torch.Tensor) -> torch.Tensor:
        with fake:
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=DEVICE)

    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(twin(parameter), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = twin(buffer)
