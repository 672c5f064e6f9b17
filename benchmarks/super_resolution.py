# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What super-resolution transformers make of upsampled latents: several of them, with any number of steps, in a table.

    python -m benchmarks.super_resolution --clips FOLDER --transformer teacher=outputs/sr_teacher:20 student=outputs/sr
    python -m benchmarks.super_resolution --generator FOLDER --transformer aigc=outputs/aigc classic=outputs/classic

Each one follows the stream group by group with its cache, as in the pipeline, from the same noise; colours are not
corrected. The input is clips as the quality benchmark prepares them, clips through a degradation, or what a generator
makes of the texts of composed scenes, of which the renderings at high resolution are the truth.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks import metrics, tables
from benchmarks.clips import SCALE, ClipPair, prepare_clip
from benchmarks.quality import CLIPS, HEIGHT, WIDTH
from benchmarks.text_to_video import SeedCodes, generator_videos
from ultraflash_diffusers import UltraFlashSRTransformer, UltraFlashStreamingPipeline, default_checkpoint
from ultraflash_diffusers.pipelines.noise import SeededFrameNoise
from ultraflash_diffusers.rewards import Reward, load_reward
from ultraflash_diffusers.training.data.inputs import load_degradation
from ultraflash_diffusers.training.losses.details import detail_ratio
from ultraflash_diffusers.training.stages.cascade_rollout import SRStream, clip_source, rollout_groups
from ultraflash_diffusers.training.starting_points.networks import load_network
from ultraflash_diffusers.video_io import frames_to_tensor, tensor_to_frames

UPSAMPLER = "upsampler alone"
TRUTH = "truth"


@dataclass(frozen=True)
class Candidate:
    """A transformer with its number of denoising steps and the share of noise in its condition."""

    transformer: UltraFlashSRTransformer
    steps: int
    condition_noise: float


@torch.inference_mode()
def upscale(
    pipe: UltraFlashStreamingPipeline, frames: np.ndarray, candidate: Candidate | None
) -> tuple[np.ndarray, float]:
    """Upscales a clip, and says how many seconds a group took in the transformer; `None` is the upsampler alone."""
    noise = SeededFrameNoise([0], 1)
    embeds = [torch.zeros(1, 1, pipe.transformer.config.text_dim)]
    stream = None
    if candidate is not None:
        steps, condition_noise = candidate.steps, candidate.condition_noise
        stream = SRStream(pipe, candidate.transformer, noise, embeds, steps, condition_noise=condition_noise)
    latents, seconds = [], []
    for group in rollout_groups(pipe, clip_source(pipe, frames_to_tensor(frames))):
        start = time.perf_counter()
        latents.append(group.condition if stream is None else stream.advance(group)[:, :, : group.condition.shape[2]])
        seconds.append(time.perf_counter() - start)
    pixels = pipe.autoencoder.decode(torch.cat(latents, dim=2)).sample
    return tensor_to_frames(pixels), float(np.median(seconds))


@torch.inference_mode()
def describe(frames: np.ndarray, clip: ClipPair, motion: metrics.Motion, reward: Reward) -> dict[str, float]:
    """The measures of one clip's output."""
    pixels, truth = (frames_to_tensor(each) for each in (frames, clip.truth))
    scores = [reward(part.transpose(0, 1) * 0.5 + 0.5) for part in pixels[0].split(4, dim=1)]
    return {
        "psnr": metrics.psnr(frames, clip.truth),
        "detail": detail_ratio(pixels, truth).item(),
        "sharpness": metrics.laplacian_variance(frames) / metrics.laplacian_variance(clip.truth),
        "quality": torch.cat(scores).mean().item(),
        "warping": metrics.warping_error(frames, motion),
    }


def real_clips(options: argparse.Namespace) -> Iterator[ClipPair]:
    """Held-out clips, cropped around the centre, as they are prepared for the quality benchmark or degraded anew."""
    for name in options.names:
        clip = prepare_clip(options.clips / f"{name}.mp4", HEIGHT, WIDTH, options.cache)
        low, truth = _centre(clip.low, options.height // SCALE, options.width // SCALE), clip.truth
        truth = _centre(truth, options.height, options.width)
        if options.degradation is not None:
            rng = np.random.default_rng(0)
            low = load_degradation(options.degradation, SCALE)(truth[: options.frames], rng)
        yield ClipPair(name, truth[: options.frames], low[: options.frames])


def _centre(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    top, left = (frames.shape[1] - height) // 2, (frames.shape[2] - width) // 2
    return frames[:, top : top + height, left : left + width]


def generated_clips(options: argparse.Namespace) -> Iterator[ClipPair]:
    """What a generator makes of texts and seeds, and the scenes that these mean at high resolution."""
    generator = UltraFlashStreamingPipeline.from_pretrained(options.generator)
    generate = generator_videos(generator)
    for request in SeedCodes.of(generator).draw(options.count, options.frames, seed=0):
        low = generate(request.text, request.seed, options.frames)
        height, width = low.shape[1:3]
        yield ClipPair(request.text, request.render(SCALE * height, SCALE * width), low)


def run(
    pipe: UltraFlashStreamingPipeline, clips: list[ClipPair], candidates: dict[str, Candidate | None], reference: str
) -> dict[str, dict[str, float]]:
    """Measures every transformer on every clip: means over the clips, the truth being a row of its own."""
    reward = load_reward(["packaged"])
    rows: dict[str, list[dict[str, float]]] = {}
    for clip in clips:
        motion = metrics.estimate_motion(clip.truth)
        outputs = {name: upscale(pipe, clip.low, candidate) for name, candidate in candidates.items()}
        for name, (frames, seconds) in outputs.items():
            distance = {} if name == reference else {"distance": metrics.psnr(frames, outputs[reference][0])}
            measures = describe(frames, clip, motion, reward)
            rows.setdefault(name, []).append(measures | distance | {"milliseconds": 1000 * seconds})
        rows.setdefault(TRUTH, []).append(describe(clip.truth, clip, motion, reward))
        print(clip.name, file=sys.stderr)
    return {name: {key: float(np.mean([row[key] for row in each])) for key in each[0]} for name, each in rows.items()}


# Title: what it means, how a row shows it.
COLUMNS = {
    "PSNR dB": ("to the truth, over R, G, B", "{psnr:.2f}"),
    "PSNR to reference": ("to the output of --reference", "{distance:.2f}"),
    "detail": ("mean absolute Haar detail band, relative to the truth's", "{detail:.3f}"),
    "sharpness": ("variance of the luma's Laplacian, relative to the truth's", "{sharpness:.2f}"),
    "quality": ("by the packaged no-reference scorer", "{quality:.3f}"),
    "warping error": ("along the truth's optical flow, 8-bit units; come near to the truth's own", "{warping:.2f}"),
    "ms a group": ("median time in the transformer alone, all of its steps", "{milliseconds:.0f}"),
}


def _candidate(text: str) -> tuple[str, Path, int]:
    name, _, rest = text.partition("=")
    folder, _, steps = rest.partition(":")
    if not name or not folder or not Path(folder).is_dir() or not (steps or "1").isdigit() or int(steps or 1) < 1:
        raise argparse.ArgumentTypeError(f"must be NAME=FOLDER or NAME=FOLDER:STEPS, the folder there, got {text!r}")
    return name, Path(folder), int(steps or 1)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--clips", type=Path, help="folder with the validation clips")
    source.add_argument("--generator", help="pipeline whose generator has a seed code; of its own size")
    parser.add_argument("--transformer", type=_candidate, nargs="+", required=True, metavar="NAME=FOLDER[:STEPS]")
    parser.add_argument("--reference", default=UPSAMPLER, help="what outputs are compared with (default: %(default)s)")
    parser.add_argument("--checkpoint", default=str(default_checkpoint()), help="the pipeline around (default: ours)")
    parser.add_argument("--condition_noise", type=float, default=0.0, help="share of it (default: %(default)s)")
    parser.add_argument("--flow_shift", type=float, help="of the steps' noise levels (default: the checkpoint's)")
    parser.add_argument("--degradation", help="makes the low-resolution clips: aigc, classic, mild or a JSON file")
    parser.add_argument("--names", nargs="+", default=CLIPS, help="clips, without .mp4 (default: %(default)s)")
    parser.add_argument("--count", type=int, default=6, help="generated scenes (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=33, help="of each clip, 4 n + 1 (default: %(default)s)")
    parser.add_argument("--height", type=int, default=192, help="of the output, a crop (default: %(default)s)")
    parser.add_argument("--width", type=int, default=320, help="likewise (default: %(default)s)")
    parser.add_argument("--cache", type=Path, help="folder for prepared clips (default: prepare them anew)")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args(arguments)
    names = [name for name, _, _ in options.transformer]
    if options.reference not in [UPSAMPLER, *names]:
        parser.error(f"--reference {options.reference}: must be one of {UPSAMPLER!r}, {', '.join(names)}")
    if options.frames < 5 or options.frames % 4 != 1:
        parser.error(f"--frames {options.frames}: must be 4 n + 1, and at least 5")
    return options


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    options = parse(arguments)
    pipe = UltraFlashStreamingPipeline.from_pretrained(options.checkpoint, dtype=torch.float32)
    if options.flow_shift is not None:
        pipe.scheduler = pipe.scheduler.from_config(pipe.scheduler.config, shift=options.flow_shift)
    candidates: dict[str, Candidate | None] = {UPSAMPLER: None}
    for name, folder, steps in options.transformer:
        transformer = load_network(UltraFlashSRTransformer, str(folder), "transformer").float().eval()
        candidates[name] = Candidate(transformer, steps, options.condition_noise)
    clips = list(real_clips(options) if options.generator is None else generated_clips(options))
    rows = run(pipe, clips, candidates, options.reference)
    given = sys.argv[1:] if arguments is None else arguments
    facts: dict[str, object] = {
        "command": "python -m benchmarks.super_resolution " + shlex.join(given),
        "clips": f"{len(clips)} of {options.frames} frames, {options.height}x{options.width}",
        "threads": torch.get_num_threads(),
    }
    print(tables.markdown("method", rows, COLUMNS, (), facts))
    if options.json is not None:
        options.json.write_text(json.dumps({"facts": facts, "rows": rows}, indent=2) + "\n")
    return rows


if __name__ == "__main__":
    main()
