# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Quality and speed of 2x upscaling on validation clips, all methods in one run and one table.

    python -m benchmarks.quality --clips FOLDER --cache FOLDER --json result.json --png strip.png

See benchmarks/README.md for what each figure is.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import time
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from benchmarks import metrics, tables
from benchmarks.clips import CRF, ClipPair, prepare_clip
from benchmarks.ours import ours
from benchmarks.peers import Method, peers
from ultraflash_diffusers import default_checkpoint
from ultraflash_diffusers.training.losses.perceptual import PerceptualLoss

CLIPS = ("clip_10", "clip_12", "clip_16")
HEIGHT, WIDTH = 384, 640
WARM_UP_FRAMES = 5
CROP, ZOOM = 96, 3


def measure(
    method: Method, clip: ClipPair, motion: metrics.Motion, lpips: PerceptualLoss | None = None
) -> tuple[dict[str, float], np.ndarray]:
    """Runs one method on one clip: its figures, and the output's frames."""
    source = clip.truth if method.source == "truth" else clip.low
    start = time.perf_counter()
    frames = method.upscale(source)
    seconds = time.perf_counter() - start
    return {"frames": len(frames), "seconds": seconds, **compare(frames, clip.truth, motion, lpips)}, frames


def compare(
    frames: np.ndarray, truth: np.ndarray, motion: metrics.Motion, lpips: PerceptualLoss | None = None
) -> dict[str, float]:
    """All measures of one clip's output."""
    return {
        **({} if lpips is None else {"lpips": metrics.perceptual_distance(frames, truth, lpips)}),
        "psnr": metrics.psnr(frames, truth),
        "ssim": metrics.ssim(frames, truth),
        "ms_ssim": metrics.ms_ssim(frames, truth),
        **describe(frames, motion),
    }


def describe(frames: np.ndarray, motion: metrics.Motion) -> dict[str, float]:
    """The measures that the truth has too."""
    return {
        "warping_error": metrics.warping_error(frames, motion),
        "sharpness": metrics.laplacian_variance(frames),
    }


def run(
    methods: list[Method], clips: list[ClipPair], lpips: PerceptualLoss | None = None
) -> tuple[dict[str, dict[str, dict[str, float]]], Image.Image]:
    """Measures every method on every clip.

    The clips are the outer loop, so that a machine that slows down does so for all methods alike.

    Args:
        methods (list of `Method`): what is compared.
        clips (list of `ClipPair`): on what.
        lpips (`PerceptualLoss`, *optional*): adds the perceptual distance.

    Returns:
        Figures as `[method][clip][measure]`, the truth being a method of its own, and the comparison strip.
    """
    results: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    rows = []
    for method in methods:
        method.upscale((clips[0].truth if method.source == "truth" else clips[0].low)[:WARM_UP_FRAMES])
    for clip in clips:
        motion = metrics.estimate_motion(clip.truth)
        crop = most_detailed_crop(clip.truth[len(clip.truth) // 2])
        crops = {}
        for method in methods:
            results[method.name][clip.name], frames = measure(method, clip, motion, lpips)
            crops[method.name] = frames[len(frames) // 2][crop]
            print(f"{clip.name} {method.name}", file=sys.stderr)
        results["truth"][clip.name] = describe(clip.truth, motion)
        crops["truth"] = clip.truth[len(clip.truth) // 2][crop]
        rows.append((clip.name, crops))
    return dict(results), draw_strip(rows)


def summarise(results: dict[str, dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Means over the clips, one row a method; ratios to the truth's own figure are means of the clips' ratios."""
    summary = {}
    for name, clips in results.items():
        columns = {key: np.array([clip[key] for clip in clips.values()]) for key in next(iter(clips.values()))}
        row = {key: float(values.mean()) for key, values in columns.items() if key not in ("frames", "seconds")}
        for key in results["truth"][next(iter(clips))]:
            own = np.array([results["truth"][clip][key] for clip in clips])
            row[f"relative_{key}"] = float((columns[key] / own).mean())
        if "seconds" in columns:
            row["fps"] = float(columns["frames"].sum() / columns["seconds"].sum())
        summary[name] = row
    return summary


# Title: what it means, how a row of the summary shows it.
COLUMNS = {
    "PSNR dB ↑": ("over R, G, B, mean of the frames' values", "{psnr:.2f}"),
    "SSIM ↑": ("luma", "{ssim:.4f}"),
    "MS-SSIM ↑": ("luma, five scales", "{ms_ssim:.4f}"),
    "LPIPS ↓": ("shift-tolerant LPIPS on AlexNet's features, mean of every fifth frame", "{lpips:.4f}"),
    "warping error ↓ (× truth)": (
        "mean difference to the previous frame moved along the truth's optical flow, occlusions masked, 8-bit units; "
        "in brackets relative to the truth's own",
        "{warping_error:.3f} ({relative_warping_error:.2f})",
    ),
    "sharpness × truth": (
        "variance of the luma's Laplacian, relative to the truth's: below 1 is blurred, above 1 too sharp or noisy",
        "{relative_sharpness:.2f}",
    ),
    "FPS ↑": (
        "output frames a wall-clock second, from RGB uint8 in memory to RGB uint8 in memory, after a warm-up; file "
        "reading and measuring excluded",
        "{fps:.2f}",
    ),
}


def markdown(summary: dict[str, dict[str, float]], methods: list[Method], facts: dict[str, object]) -> str:
    """The table, and what each method's time holds."""
    notes = ["", "Means over the clips. Time of each method holds:"]
    notes += [f"- {method.name}: {method.includes}." for method in methods]
    return tables.markdown("method", summary, COLUMNS, notes, facts)


def machine_facts(threads: int) -> dict[str, object]:
    """What the speed depends on, the machine's load before the run among it: a shared machine shows."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "command": "python -m benchmarks.quality " + shlex.join(sys.argv[1:]),
        "CPU": cpu,
        "cores": os.cpu_count(),
        "threads": threads,
        "load before the run": f"{os.getloadavg()[0]:.2f}",
        "torch": torch.__version__,
    }


def most_detailed_crop(frame: np.ndarray) -> tuple[slice, slice]:
    """The CROP x CROP part of a frame with the strongest Laplacian."""
    energy = cv2.boxFilter(cv2.Laplacian(metrics.luma(frame), cv2.CV_32F) ** 2, -1, (CROP, CROP))
    half = CROP // 2
    top, left = np.unravel_index(np.argmax(energy[half:-half, half:-half]), np.subtract(energy.shape, 2 * half))
    return slice(int(top), int(top) + CROP), slice(int(left), int(left) + CROP)


def draw_strip(rows: list[tuple[str, dict[str, np.ndarray]]]) -> Image.Image:
    """One row a clip, one column a method: the same crop of the middle frame, enlarged without smoothing."""
    side, gap, label = CROP * ZOOM, 6, 20
    names = list(rows[0][1])
    strip = Image.new("RGB", (len(names) * (side + gap), label + len(rows) * (side + gap)), "white")
    draw, font = ImageDraw.Draw(strip), ImageFont.load_default(14)
    for column, name in enumerate(names):
        draw.text((column * (side + gap) + 2, 2), name, fill="black", font=font)
        for row, (_, crops) in enumerate(rows):
            tile = Image.fromarray(crops[name]).resize((side, side), Image.Resampling.NEAREST)
            strip.paste(tile, (column * (side + gap), label + row * (side + gap)))
    return strip


def load_lpips() -> PerceptualLoss | None:
    """The perceptual distance, where its weights are installed."""
    try:
        return PerceptualLoss("st_lpips_alex")
    except ImportError as error:
        print(f"without LPIPS: {error}", file=sys.stderr)
        return None


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, required=True, help="folder with the validation clips")
    parser.add_argument("--checkpoint", default=str(default_checkpoint()), help="ours (default: the packaged one)")
    parser.add_argument("--names", nargs="+", default=CLIPS, help="clips to use, without .mp4 (default: %(default)s)")
    parser.add_argument("--cache", type=Path, help="folder for prepared clips (default: prepare them anew)")
    parser.add_argument("--frames", type=int, help="use only the first frames of each clip (default: all)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads (default: all cores)")
    parser.add_argument("--json", type=Path, help="write all figures, clip by clip, to this file")
    parser.add_argument("--png", type=Path, help="write a comparison strip to this file")
    options = parser.parse_args(arguments)
    missing = [name for name in options.names if not (options.clips / f"{name}.mp4").is_file()]
    if missing:
        parser.error(f"--clips {options.clips}: no {', '.join(missing)} (.mp4) there")
    if options.frames is not None and options.frames < 2:
        parser.error(f"--frames {options.frames}: at least 2, to measure motion")
    for file in (options.json, options.png):
        if file is not None and not file.parent.is_dir():
            parser.error(f"cannot write {file}: no folder {file.parent}")
    if options.threads < 1:
        parser.error(f"--threads {options.threads}: at least 1")
    return options


def main() -> None:
    options = parse()
    facts = machine_facts(options.threads)
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    methods = [*peers(options.threads), *ours(options.checkpoint)]
    clips = []
    for name in options.names:
        clip = prepare_clip(options.clips / f"{name}.mp4", HEIGHT, WIDTH, options.cache)
        if options.frames is not None and options.frames > len(clip.truth):
            raise SystemExit(f"--frames {options.frames}: {name} has only {len(clip.truth)}")
        clips.append(ClipPair(clip.name, clip.truth[: options.frames], clip.low[: options.frames]))
    facts["clips"] = ", ".join(f"{clip.name} ({len(clip.truth)} frames)" for clip in clips)
    facts["input"] = f"{HEIGHT // 2}x{WIDTH // 2}, H.264 at CRF {CRF}, to {HEIGHT}x{WIDTH}"
    with torch.inference_mode():
        results, strip = run(methods, clips, load_lpips())
    summary = summarise(results)
    print(markdown(summary, methods, facts))
    if options.json:
        options.json.write_text(json.dumps({"facts": facts, "summary": summary, "clips": results}, indent=2))
    if options.png:
        strip.save(options.png)


if __name__ == "__main__":
    main()
