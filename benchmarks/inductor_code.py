# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What Inductor makes of the networks for a GPU that need not be there, down to the machine code of its kernels.

    python -m benchmarks.inductor_code --json code.json
    python -m benchmarks.inductor_code --preset 2k --networks sr_triton decoder

The networks of the published cascade run on tensors without contents, in the middle of a stream, and are compiled as
`pipe.optimize` does it: one block of each transformer, the upsampler and the decoder as a whole. For each graph: the
kernels that a call launches, by what they are; and of those that Inductor writes itself (by Triton), compiled in all
the ways that would be tried on the GPU, the most registers and spilled bytes of a thread, the most shared memory of a
program and the fewest programs that a multiprocessor holds at once. Nothing is executed; neither a GPU nor a CUDA
build of PyTorch is needed.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch._inductor.codecache import PyCodeCache
from torch._inductor.compile_fx import compile_fx
from torch._inductor.graph import GraphLowering
from torch._inductor.utils import fresh_cache
from torch._subclasses.fake_tensor import FakeTensorMode
from tqdm import tqdm

from benchmarks.described_gpu import DEVICE, describe, to_device
from benchmarks.machine_code import GPUS, Gpu, read_usage
from ultraflash_diffusers import UltraFlashStreamingPipeline
from ultraflash_diffusers.profiling.presets import PRESETS, build_pipeline
from ultraflash_diffusers.tables import markdown_table

_TRITON = re.compile(r"async_compile\.triton\('(\w+)', '''(.*?)''', device_str='cuda'\)", re.DOTALL)
_LAUNCH = re.compile(r"^ +(?:\w+ = )?(?:(\w+)\.run|extern_kernels\.(\w+)|torch\.ops\.\w+\.(\w+)\.\w+)\(", re.MULTILINE)
# what a launch that is not Triton's is called by its name
_KINDS = {
    "products": re.compile(r"^(add)?b?mm|_scaled_mm"),
    "convolutions": re.compile("convolution"),
    "attentions": re.compile("attention|attend"),
}
_DTYPE = torch.bfloat16


@dataclasses.dataclass
class GraphCode:
    """What Inductor wrote for one graph.

    Args:
        kernels (`dict`): source of each Triton kernel, by name.
        launches (`Counter`): how often a call launches each kernel, Triton's and others, by name.
    """

    kernels: dict[str, str]
    launches: Counter[str]

    @classmethod
    def of(cls, wrapper: str) -> GraphCode:
        """Reads the Python code that calls the kernels."""
        calls = (triton or library or operator for triton, library, operator in _LAUNCH.findall(wrapper))
        return cls(dict(_TRITON.findall(wrapper)), Counter(calls))

    def by_kind(self) -> Counter[str]:
        """Launches of `"fused"` kernels, Inductor's own, of those of `_KINDS`, and of `"others"`."""
        counts: Counter[str] = Counter()
        for name, number in self.launches.items():
            kinds = (kind for kind, pattern in _KINDS.items() if pattern.search(name))
            counts["fused" if name in self.kernels else next(kinds, "others")] += number
        return counts


class Recorder:
    """A backend of `torch.compile` that keeps what Inductor writes, and computes as if nothing were compiled."""

    def __init__(self) -> None:
        self.graphs: list[GraphCode] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        with mock.patch.object(GraphLowering, "compile_to_module", lambda lowering: self._keep(lowering)):
            compile_fx(copy.deepcopy(graph), inputs)
        return graph.forward

    def _keep(self, lowering: GraphLowering) -> Any:
        self.graphs.append(GraphCode.of(lowering.codegen()[0].value))
        return mock.Mock()  # in the place of the module that would run the kernels


def _generator(pipe: UltraFlashStreamingPipeline, recorder: Recorder, size: tuple[int, int], commit: bool) -> None:
    network, scale = pipe.generator_transformer, pipe.latent_upsampler.config.scale
    config, (height, width) = network.config, (side // scale for side in size)
    latents = torch.empty(1, config.in_channels, network.chunk_frames, height, width, dtype=_DTYPE, device=DEVICE)
    text = network.encode_text(torch.empty(1, config.text_length, config.text_dim, dtype=_DTYPE, device=DEVICE))
    state = network.new_stream(None, 1, height, width, DEVICE, _DTYPE, single_use=True)
    timestep = torch.empty(1, device=DEVICE)
    for _ in range(config.window_frames // config.frames_per_chunk):  # until the window is full
        state = network(latents, timestep, text, state, commit=True).state
    network.compile_repeated_blocks(backend=recorder, fullgraph=True, dynamic=False)
    network(latents, timestep, text, state, commit=commit)


def _sr(pipe: UltraFlashStreamingPipeline, recorder: Recorder, size: tuple[int, int], backend: str) -> None:
    network, frames = pipe.transformer, pipe.config.group_frames
    config = network.config
    network.set_sparse_backend(backend)
    latents = torch.empty(1, config.in_channels, frames, *size, dtype=_DTYPE, device=DEVICE)
    text = network.encode_text(torch.empty(1, config.text_length, config.text_dim, dtype=_DTYPE, device=DEVICE))
    state = network.new_stream(pipe.config.kv_cache_blocks, 1, frames, *size, DEVICE, _DTYPE, single_use=True)
    network.compile_repeated_blocks(backend=recorder, fullgraph=True, dynamic=False)
    network(latents, torch.empty(1, device=DEVICE), text, state)


def _upsampler(pipe: UltraFlashStreamingPipeline, recorder: Recorder, size: tuple[int, int]) -> None:
    network = pipe.latent_upsampler
    low = (side // network.config.scale for side in size)
    latents = torch.empty(1, network.config.in_channels, pipe.config.group_frames, *low, dtype=_DTYPE, device=DEVICE)
    state = network(latents).state
    network.compile(backend=recorder, fullgraph=True, dynamic=False)
    network(latents, state)


def _decoder(pipe: UltraFlashStreamingPipeline, recorder: Recorder, size: tuple[int, int]) -> None:
    network = pipe.autoencoder
    latents = torch.empty(1, network.config.latent_channels, 1, *size, dtype=_DTYPE, device=DEVICE)
    state = network.decode(latents).state
    network.decoder.compile(backend=recorder, fullgraph=True, dynamic=False)
    network.decode(latents, state)


# name: what it is, the pipeline's component, how it is run
NETWORKS: dict[str, tuple[str, str, Callable[..., None], dict[str, Any]]] = {
    "generator": ("generator block, denoising", "generator_transformer", _generator, {"commit": False}),
    "generator_commit": ("generator block, context pass", "generator_transformer", _generator, {"commit": True}),
    "sr_triton": ("SR block, Triton attention", "transformer", _sr, {"backend": "triton"}),
    "sr_flex": ("SR block, FlexAttention", "transformer", _sr, {"backend": "flex"}),
    "upsampler": ("upsampler, a group", "latent_upsampler", _upsampler, {}),
    "decoder": ("decoder, a latent frame", "autoencoder", _decoder, {}),
}


def write_code(name: str, preset: str) -> GraphCode:
    """Inductor's code of a network of [`NETWORKS`] at a preset's size."""
    _, component, run, arguments = NETWORKS[name]
    pipe = build_pipeline(PRESETS[preset], "meta", _DTYPE, layers=1)
    network, fake, recorder = getattr(pipe, component), FakeTensorMode(), Recorder()
    if component in ("latent_upsampler", "autoencoder"):
        network.to(memory_format=torch.channels_last)
    to_device(network, fake)
    ratio = pipe.autoencoder.spatial_compression_ratio
    torch.compiler.reset()
    with fake, torch.no_grad():
        run(pipe, recorder, (PRESETS[preset].height // ratio, PRESETS[preset].width // ratio), **arguments)
    (graph,) = recorder.graphs
    return graph


def compile_kernels(graph: GraphCode, gpu: Gpu, about: str) -> list[dict[str, Any]]:
    """What the machine code of each Triton kernel of a graph takes, in each of the ways that Inductor would try."""
    results = []
    for name, source in tqdm(graph.kernels.items(), desc=about, unit="kernel"):
        tuner = getattr(PyCodeCache.load(source), name)
        for choice in tuner.configs:
            usage = read_usage(tuner._precompile_config(choice).kernel, gpu)
            settings = choice.kwargs | {"num_warps": choice.num_warps, "num_stages": choice.num_stages}
            results.append({"kernel": name, "launches": graph.launches[name], "settings": settings} | vars(usage))
    return results


def show(results: dict[str, dict[str, Any]]) -> None:
    """Prints a row a network, then each kernel that spills."""
    kinds = ("fused", *_KINDS, "others")
    titles = ("network", *kinds, "Triton kernels", "compiled", "registers", "spilled", "KiB", "programs")
    rows: list[list[object]] = []
    for result in results.values():
        kernels = result["kernels"]
        worst = [max(each[key] for each in kernels) for key in ("registers", "spilled_bytes", "shared_memory")]
        counts = [result["launches"].get(kind, 0) for kind in kinds]
        numbers = [len({each["kernel"] for each in kernels}), len(kernels)]
        programs = min(each["programs"] for each in kernels)
        rows.append([result["about"], *counts, *numbers, *worst[:2], f"{worst[2] / 1024:.1f}", programs])
    print(markdown_table(titles, rows))
    spilling = [each for result in results.values() for each in result["kernels"] if each["spilled_bytes"]]
    rows = [[each["kernel"], each["settings"], each["registers"], each["spilled_bytes"]] for each in spilling]
    titles = ("what spills", "settings", "registers", "bytes")
    print("\n" + (markdown_table(titles, rows, text_columns=2) if rows else "Nothing spills."))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", choices=GPUS, default="H200", help="(default: %(default)s)")
    parser.add_argument("--preset", choices=PRESETS, default="1k", help="(default: %(default)s)")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NETWORK")
    parser.add_argument("--json", type=Path, help="write everything here as well")
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    gpu = GPUS[options.gpu]
    results: dict[str, dict[str, Any]] = {}
    with fresh_cache():
        describe(gpu)
        for name in options.networks:
            graph, about = write_code(name, options.preset), NETWORKS[name][0]
            kernels = compile_kernels(graph, gpu, about)
            results[name] = {"about": about, "launches": graph.by_kind(), "names": graph.launches, "kernels": kernels}
    show(results)
    if options.json:
        report = {"gpu": gpu.name, "preset": options.preset, "torch": torch.__version__, "networks": results}
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
