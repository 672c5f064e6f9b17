# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""How the pipeline runs: what it is optimized to, and whether groups are decoded beside the next one's making."""

from __future__ import annotations

from typing import Literal

from diffusers import DiffusionPipeline

from .execution.devices import execution_device, is_offloaded
from .execution.optimization import OptimizationReport, OptimizationStep, optimize
from .memory_settings import fit_memory


class ExecutionMixin(DiffusionPipeline):
    """What [`UltraFlashStreamingPipeline`] says about how it runs.

    Args:
        overlap_decoding (`bool`, *optional*, defaults to `True`): whether a group may be decoded while the next one is
            denoised; in turns they take less memory.
    """

    overlap_decoding: bool = True

    def optimize(
        self,
        *,
        cache_text: bool = True,
        channels_last: bool = True,
        fp8: bool | Literal["fastest"] = False,
        attention_backend: str | None = "auto",
        sparse_backend: str | None = "auto",
        size: tuple[int, int] | None = None,
        compile: bool = True,
        compile_backend: str = "inductor",
        cuda_graphs: bool = False,
        memory: str | None = None,
    ) -> OptimizationReport:
        """Makes later streams faster, and reports what it chose, why, and what it costs in accuracy.

        To be called once, when all weights are in place. Without arguments it does what is right for the device: on an
        NVIDIA GPU kernels of attention race at the size of the frames, for some seconds; elsewhere PyTorch's plain
        ones are taken, or those that were measured to be the fastest. A kernel that fails to build or gives other
        numbers than the plain path is left out, and the report says so. A network that cannot be compiled (no C++
        compiler, an error of Inductor or Triton), which shows at its first call, runs as it is, with one warning.

        Compiled code takes one shape: the first chunks of a stream of another size are slow again, for which the
        limit of compiled variants is raised. PyTorch compiles nothing safely while other threads compute, so networks
        run one at a time in all streams of the process until a stream's calls compile nothing more, which takes its
        first two or three groups; then decoding overlaps. What the faster path costs in accuracy,
        [`~accuracy.record`] and [`~accuracy.compare`] tell.

        Networks may be on several GPUs, to be moved before: with `pipe.generator_transformer.to("cuda:1")` the
        generator makes the next group's latents while this group is refined and decoded.

        Args:
            cache_text (`bool`, *optional*, defaults to `True`): computes the keys and values of the prompt once a
                prompt. Exact; adapters that change in mid-stream reach them with the next prompt only.
            channels_last (`bool`, *optional*, defaults to `True`): upsampler and autoencoder work on channels-last
                features.
            fp8 (`bool` or `"fastest"`, *optional*, defaults to `False`): the linear layers inside the transformers'
                blocks in FP8, by torchao; with `"fastest"` where a race on one block's layers shows that it gains.
                Needs a GPU with FP8 units, networks in bfloat16, and adapters fused before.
            attention_backend (`str`, *optional*, defaults to `"auto"`): of the generator's self-attention (and of the
                SR transformer's where that is dense): diffusers' name of a backend, or `"fastest"`: PyTorch's choice,
                cuDNN, FlashAttention 2 and 3 race, as far as they are installed. At 1K more than half of the
                generator's time is this attention. `"auto"` races on NVIDIA GPUs alone, `None` leaves it as it is.
            sparse_backend (`str`, *optional*, defaults to `"auto"`): of the sparse attention, likewise. The masked
                reference, with which all must agree, is computed once, for one head.
            size (`tuple[int, int]`, *optional*): height and width of the frames for races and `memory`; `"fastest"`
                wants it named, else it is the pipeline's default.
            compile (`bool`, *optional*, defaults to `True`): `torch.compile` of the transformers' blocks, which fuses
                norms, modulation and rotary embeddings, of the upsampler and of the decoder.
            compile_backend (`str`, *optional*, defaults to `"inductor"`): of `torch.compile`.
            cuda_graphs (`bool`, *optional*, defaults to `False`): one-step streams replay the SR transformer as a CUDA
                graph from the third group of a clip on. The graph keeps what a group takes to itself. Adapters that
                change in mid-stream do not reach it.
            memory (`str`, *optional*): what a card has, `"8GB"`, `"12GB"`, `"16GB"`, `"24GB"` or the like: streams of
                `size` run by the first setting that is planned to fit, see [`~memory_settings.fit_memory`]. The
                pipeline may still be on the CPU, and is brought to the GPU by it.

        Raises:
            ValueError: `fp8` without torchao, a GPU for it or bfloat16, `cuda_graphs` elsewhere than on a GPU, an
                unknown `attention_backend` or `sparse_backend`, `"fastest"` without `size`, a `memory` that is no size
                or in which nothing fits.
        """
        planned = None
        if memory is not None:
            height, width = size or (self.config.default_height, self.config.default_width)
            planned = fit_memory(self, memory, height, width)
        report = optimize(
            self,
            cache_text=cache_text,
            channels_last=channels_last,
            fp8=fp8,
            attention_backend=attention_backend,
            sparse_backend=sparse_backend,
            size=size,
            compile=compile,
            compile_backend=compile_backend,
            cuda_graphs=cuda_graphs,
        )
        if planned is not None:
            report.steps.insert(0, OptimizationStep("memory", "pipeline", True, str(planned), planned.accuracy))
        return report

    @property
    def can_overlap_decoding(self) -> bool:
        """Whether a group is decoded while the next one is being denoised: on GPUs, if nothing is offloaded.

        `pipe.overlap_decoding = False` leaves it off.
        """
        networks = (self.transformer, self.autoencoder)
        if not self.overlap_decoding or any(is_offloaded(network) for network in networks):
            return False
        devices = [execution_device(network) for network in networks]
        return devices[0].type == "cuda" or devices[0] != devices[1]
