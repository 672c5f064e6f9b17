# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""A few minutes on a rented GPU in one command: what matters most comes first, each stage with a limit of its own.

    python benchmarks/gpu_run.py --out OUT --budget 470 --stages rates tiny 1k 1k_fp8 packaged sparse decoder
    python benchmarks/gpu_run.py --out OUT --budget 250 --stages 2k 4k --cache OUT/cache    # what is left
    python benchmarks/gpu_report.py OUT/results.jsonl --folder benchmarks/results/first_gpu  # tables and plots

Every result is a line of OUT/results.jsonl, on disk when it is known: a stage that fails, hangs or runs into its limit
costs only what it had not written yet. What was predicted is the first line, written before anything runs. `--dry`
runs all stages with tiny networks on a CPU, to test this command itself.

This process never imports torch; a stage is a child process, so that no memory, no broken CUDA context and no setting
goes from one to the next. What torch compiles is kept for later stages and, in OUT/cache, for later calls.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if not __package__:  # run as a file
    sys.path.insert(0, str(ROOT))

from benchmarks.gpu.results import Report, append, read_predictions  # noqa: E402

_LOG_TAIL = 1500  # bytes of a failed stage's output that go into the results


@dataclass(frozen=True)
class Stage:
    """A part of the run.

    Args:
        seconds (`int`): after which it is killed.
        function (`str`): module of `benchmarks.gpu` and name; called with a [`Report`].
        about (`str`): what it finds out.
        arguments (`dict`): further ones.
    """

    seconds: int
    function: str
    about: str
    arguments: dict[str, Any] = field(default_factory=dict)


# in the order of their worth
STAGES = {
    "rates": Stage(45, "rates.measure_rates", "what the chip and PyTorch's kernels reach at the cascade's shapes"),
    "tiny": Stage(60, "streams.compare_with_the_cpu", "tiny networks: the CPU's frames, overlapped and in turns"),
    "1k": Stage(
        210,
        "streams.run_preset",
        "1K eager, compiled, by lever, and its kernels",
        {"preset_name": "1k", "eager": True},
    ),
    "1k_fp8": Stage(150, "streams.run_preset", "1K with FP8 linear layers", {"preset_name": "1k", "variant": "fp8"}),
    "packaged": Stage(90, "streams.run_packaged", "the packaged checkpoint: accuracy, and whether CUDA graphs pay"),
    "sparse": Stage(60, "kernels.time_sparse_attention", "one layer's sparse attention by backend and launch setting"),
    "decoder": Stage(45, "decoder.time_memory_blocks", "the decoder's memory block, computed in other ways"),
    "1k_gelu": Stage(
        120,
        "streams.run_preset",
        "1K with GELU in the feed-forward's first product",
        {"preset_name": "1k", "variant": "fused_gelu"},
    ),
    "2k": Stage(150, "streams.run_preset", "2K compiled, by lever", {"preset_name": "2k"}),
    "4k": Stage(200, "streams.run_preset", "4K compiled, by lever", {"preset_name": "4k"}),
    "1k_two_step": Stage(
        120,
        "streams.run_preset",
        "1K with a frame-wise generator of two steps",
        {"preset_name": "1k", "generator": "two-step"},
    ),
    "1k_one_step": Stage(
        120,
        "streams.run_preset",
        "1K with a frame-wise generator of one step",
        {"preset_name": "1k", "generator": "one-step"},
    ),
    "tests": Stage(120, "kernels.run_tests", "the tests that need a GPU"),
}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu"), help="folder (default: %(default)s)")
    parser.add_argument("--budget", type=float, default=470, help="seconds for all stages (default: %(default)s)")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), metavar="STAGE")
    parser.add_argument("--cache", type=Path, help="what an earlier call compiled: its OUT/cache")
    parser.add_argument("--dry", action="store_true", help="tiny networks on a CPU")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)  # what a child is told
    options = parser.parse_args(arguments)
    if options.budget <= 0:
        parser.error(f"--budget {options.budget:g} is no time: expected seconds above 0")
    if options.cache is not None and not options.cache.is_dir():
        parser.error(f"--cache {options.cache}: no such folder")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.stage:
        run_stage(options)
        return
    append(options.out, {"predictions": read_predictions()})
    begin = time.monotonic()
    for name in options.stages:
        left = options.budget - (time.monotonic() - begin)
        if left < STAGES[name].seconds / 2:
            append(options.out, {"stage": name, "skipped": f"{left:.0f} of {options.budget:.0f} s left"})
            continue
        start_stage(name, min(STAGES[name].seconds, left), options)
    print(options.out / "results.jsonl")


def start_stage(name: str, limit: float, options: argparse.Namespace) -> None:
    """Runs a stage in a child for `limit` seconds at most, and writes how it ended."""
    command = [sys.executable, "-u", __file__, "--stage", name, "--out", str(options.out)]
    command += ["--dry"] * options.dry + (["--cache", str(options.cache)] if options.cache else [])
    log, begin = options.out / "log.txt", time.monotonic()
    with log.open("ab") as output:
        output.write(f"\n==== {name}, at most {limit:.0f} s: {STAGES[name].about}\n".encode())
        output.flush()
        # a process group of its own, to which torch's compile workers belong, too
        child = subprocess.Popen(command, stdout=output, stderr=output, env=environment(options.dry), process_group=0)
        try:
            code: int | str = child.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            code = "limit"
        finally:
            end_group(child)
    line: dict[str, Any] = {"stage": name, "exit": code, "seconds": round(time.monotonic() - begin, 1)}
    if code != 0:
        line["tail"] = log.read_bytes()[-_LOG_TAIL:].decode(errors="replace")
    append(options.out, line)


def end_group(child: subprocess.Popen[bytes]) -> None:
    """Ends a child and all that it has started."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # nothing of it is left
    child.wait()


def environment(dry: bool) -> dict[str, str]:
    """What children inherit: where the code lies, and where all of them keep what is compiled."""
    folder = Path(tempfile.gettempdir()) / "ultraflash_compiled"
    paths = [ROOT / "src", ROOT, ROOT / "tests", *filter(None, [os.environ.get("PYTHONPATH")])]
    settings = {
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "TORCHINDUCTOR_CACHE_DIR": str(folder),
        "TRITON_CACHE_DIR": str(folder / "triton"),
        "TORCHINDUCTOR_FX_GRAPH_CACHE": "1",
        "TORCHINDUCTOR_AUTOGRAD_CACHE": "1",
    }
    return os.environ | settings | ({"TRITON_INTERPRET": "1"} if dry else {})


def run_stage(options: argparse.Namespace) -> None:
    """The child's part."""
    begin = time.perf_counter()
    import torch

    from benchmarks.gpu import compile_cache

    if not options.dry and not torch.cuda.is_available():
        sys.exit("no CUDA device: --dry runs all stages on a CPU")
    stage, report = STAGES[options.stage], Report(options.out, options.stage, options.dry)
    torch.manual_seed(0)
    torch.zeros(1, device=report.device)
    report.detail(started_after=time.perf_counter() - begin)
    if options.cache:
        report.attempt("load what was compiled", compile_cache.load, options.cache)
    module, function = stage.function.split(".")
    with torch.no_grad():
        getattr(importlib.import_module(f"benchmarks.gpu.{module}"), function)(report, **stage.arguments)
    report.attempt("save what was compiled", compile_cache.save, options.out / "cache", options.stage)


if __name__ == "__main__":
    main()
