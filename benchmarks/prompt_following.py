# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Does the text generator follow prompts? Colour, object and motion are read off the frames by classical means.

    python benchmarks/prompt_following.py --generator outputs/generator --autoencoder outputs/autoencoder
    python benchmarks/prompt_following.py --pipeline FOLDER --json result.json

The prompts are of combinations that training has held out. First, the measurement is checked on rendered scenes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from ultraflash_diffusers import CausalWanTransformer, HRAutoencoder, UltraFlashStreamingPipeline
from ultraflash_diffusers.pipelines.noise import SeededFrameNoise
from ultraflash_diffusers.pipelines.sources.text_generator import TextGeneratorSource
from ultraflash_diffusers.training.scenes import COLORS, MOTIONS, OBJECTS, Scene, all_scenes
from ultraflash_diffusers.training.text_encoding import TextEncoding

# frames, uint8 [frames, height, width, 3], of a prompt and a seed
Generate = Callable[[str, int], np.ndarray]

ATTRIBUTES = ("color", "object", "motion")
# largest minus smallest of a pixel's RGB, in [0, 1]: objects are above, backgrounds below
LEAST_CHROMA = 0.42
# of the frame's area
LEAST_AREA = 0.008
# of the frame's height, between the first and the last frame in which the object is seen
LEAST_WAY = 0.06


@dataclass(frozen=True)
class Reading:
    """What the frames show; `None` where nothing can be made out."""

    color: str | None
    object: str | None
    motion: str | None


def read_frames(frames: np.ndarray) -> Reading:
    """Reads a clip's object off its frames.

    Args:
        frames (`np.ndarray`): uint8 `[frames, height, width, 3]`.
    """
    found = [(mask, frame) for frame in frames if (mask := _object_mask(frame)) is not None]
    if len(found) < max(1, len(frames) // 2):
        return Reading(None, None, None)
    pixels = np.concatenate([frame[_inner(mask)] for mask, frame in found[:: max(1, len(found) // 8)]])
    shapes = np.array([_shape(mask) for mask, _ in found[:: max(1, len(found) // 8)]])
    places = [np.argwhere(mask).mean(0) for mask, _ in found]
    ends = max(1, len(found) // 10)
    way = (np.mean(places[-ends:], axis=0) - np.mean(places[:ends], axis=0)) / frames.shape[1]
    return Reading(_color(pixels), _nearest(np.median(shapes, axis=0), _shapes_of_objects()), _motion(way))


def _object_mask(frame: np.ndarray) -> np.ndarray | None:
    """The largest connected saturated region, holes filled."""
    saturated = (np.ptp(frame.astype(np.int16), axis=2) > 255 * LEAST_CHROMA).astype(np.uint8)
    saturated = cv2.morphologyEx(saturated, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    outlines, _ = cv2.findContours(saturated, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    largest = max(outlines, key=cv2.contourArea, default=None)
    if largest is None or cv2.contourArea(largest) < LEAST_AREA * saturated.size:
        return None
    return cv2.drawContours(np.zeros_like(saturated), [largest], -1, 1, cv2.FILLED).astype(bool)


def _inner(mask: np.ndarray) -> np.ndarray:
    """The part of a mask that no mixed edge pixels reach."""
    eroded = cv2.erode(mask.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
    return eroded if eroded.any() else mask


def _color(pixels: np.ndarray) -> str:
    """The colour whose hue is nearest to the median one."""
    median = np.median(pixels, axis=0).astype(np.uint8)
    distances = {}
    for name, rgb in COLORS.items():
        difference = abs(_hue(median) - _hue(np.rint(np.array(rgb) * 255).astype(np.uint8)))
        distances[name] = min(difference, 360 - difference)
    return min(distances, key=distances.__getitem__)


def _hue(rgb: np.ndarray) -> float:
    return float(cv2.cvtColor((rgb[None, None] / 255).astype(np.float32), cv2.COLOR_RGB2HSV)[0, 0, 0])


def _shape(mask: np.ndarray) -> np.ndarray:
    """Area relative to the convex hull, the smallest rectangle, the smallest circle and the smallest triangle."""
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    outline = max(outlines, key=cv2.contourArea)
    area = mask.sum()
    _, (width, height), _ = cv2.minAreaRect(outline)
    _, radius = cv2.minEnclosingCircle(outline)
    triangle, _ = cv2.minEnclosingTriangle(outline)
    around = (cv2.contourArea(cv2.convexHull(outline)), width * height, np.pi * radius**2, triangle)
    return np.array([area / max(1.0, size) for size in around])


_known_shapes: dict[str, np.ndarray] = {}


def _shapes_of_objects() -> dict[str, np.ndarray]:
    """What [`_shape`] gives for each object as it is drawn."""
    if not _known_shapes:
        for name in OBJECTS:
            mask = _object_mask(Scene("red", name, "still", "night").render(1)[0])
            if mask is not None:
                _known_shapes[name] = _shape(mask)
    return _known_shapes


def _nearest(value: np.ndarray, known: dict[str, np.ndarray]) -> str:
    return min(known, key=lambda name: float(np.square(value - known[name]).sum()))


def _motion(way: np.ndarray) -> str:
    """The direction of a way, rows down and columns to the right, in heights of the frame."""
    down, right = way
    if max(abs(down), abs(right)) < LEAST_WAY:
        return "still"
    step = (int(np.sign(right)), 0) if abs(right) > abs(down) else (0, int(np.sign(down)))
    return next(name for name, direction in MOTIONS.items() if direction == step)


@dataclass(frozen=True)
class Result:
    """Shares of right readings over a list of scenes."""

    scenes: int
    color: float
    object: float
    motion: float
    all: float


def score(scenes: Iterable[Scene], readings: Iterable[Reading]) -> Result:
    """Compares what was asked for with what was read."""
    hits = np.array(
        [
            [getattr(scene, name) == getattr(reading, name) for name in ATTRIBUTES]
            for scene, reading in zip(scenes, readings, strict=True)
        ]
    )
    return Result(len(hits), *hits.mean(0).tolist(), float(hits.all(1).mean()))


def load_generate(arguments: argparse.Namespace) -> Generate:
    """Makes the function that is measured: the low-resolution generator alone, or a whole pipeline."""
    if arguments.pipeline is not None:
        pipe = UltraFlashStreamingPipeline.from_pretrained(arguments.pipeline)
        pipe.set_progress_bar_config(disable=True)

        def whole(prompt: str, seed: int) -> np.ndarray:
            generator = torch.Generator().manual_seed(seed)
            frames = pipe(prompt, num_frames=arguments.num_frames, generator=generator, output_type="np").frames[0]
            return np.rint(frames * 255).astype(np.uint8)

        return whole
    generator = CausalWanTransformer.from_pretrained(arguments.generator, subfolder="generator_transformer")
    autoencoder = HRAutoencoder.from_pretrained(arguments.autoencoder)
    text = TextEncoding.load(arguments.generator, generator.config.text_length)

    @torch.no_grad()
    def low_resolution(prompt: str, seed: int) -> np.ndarray:
        source = TextGeneratorSource(
            generator,
            autoencoder,
            text([prompt]),
            SeededFrameNoise([seed], 1),
            height=arguments.height,
            width=arguments.width,
            multiple_of=autoencoder.spatial_compression_ratio,
            num_frames=arguments.num_frames,
        )
        latents = torch.cat([chunk.latents for chunk in source.chunks()], dim=2)
        pixels = autoencoder.decode(latents).sample[0].clamp(-1, 1).add(1).mul(127.5).round().byte()
        frames = pixels.permute(1, 2, 3, 0).numpy()
        return frames[: arguments.num_frames, : arguments.height, : arguments.width]

    return low_resolution


def print_table(rows: dict[str, Result]) -> None:
    print(f"| {'':24} | scenes | colour | object | motion | all three |")
    print("|---|---|---|---|---|---|")
    for name, row in rows.items():
        shares = " | ".join(f"{100 * value:5.1f} %" for value in (row.color, row.object, row.motion, row.all))
        print(f"| {name:24} | {row.scenes} | {shares} |")


def choose(scenes: list[Scene], count: int, seed: int) -> list[Scene]:
    """Draws scenes without replacement; all of them if there are not more."""
    order = np.random.default_rng(seed).permutation(len(scenes))[:count]
    return [scenes[index] for index in order]


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--pipeline", help="folder or repository of a whole pipeline, measured at high resolution")
    model.add_argument("--generator", help="folder with generator_transformer, text_encoder and tokenizer")
    parser.add_argument("--autoencoder", help="folder or repository of the generator's autoencoder")
    parser.add_argument("--height", type=int, default=192, help="of the generator's frames (default: %(default)s)")
    parser.add_argument("--width", type=int, default=320, help="of the generator's frames (default: %(default)s)")
    parser.add_argument("--num_frames", type=int, default=45, help="of each video (default: %(default)s)")
    parser.add_argument("--count", type=int, default=120, help="held-out scenes (default: %(default)s)")
    parser.add_argument("--trained_count", type=int, default=0, help="scenes of the training split, to compare")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of prompts and of the videos")
    parser.add_argument("--sheet", type=Path, help="PNG with the first, middle and last frame of each video")
    parser.add_argument("--json", type=Path, help="also writes the results to this file")
    parsed = parser.parse_args(arguments)
    if parsed.generator is not None and parsed.autoencoder is None:
        parser.error("--generator needs its --autoencoder")
    return parsed


def measure(
    generate: Generate, scenes: list[Scene], seed: int, sheet: list[np.ndarray] | None = None
) -> list[Reading]:
    """Generates a video for one of each scene's texts and reads it."""
    rng, readings = np.random.default_rng(seed), []
    for number, scene in enumerate(tqdm(scenes, desc="Generating", unit="video", disable=None)):
        prompts = scene.prompts()
        frames = generate(prompts[rng.integers(len(prompts))], seed + number)
        readings.append(read_frames(frames))
        if sheet is not None:
            sheet.append(np.concatenate([frames[0], frames[len(frames) // 2], frames[-1]], axis=1))
    return readings


def main(arguments: argparse.Namespace) -> dict[str, Result]:
    held_out = choose(all_scenes(held_out=True), arguments.count, arguments.seed)
    calibration = held_out[:60]
    rendered = [read_frames(scene.render(arguments.num_frames)) for scene in calibration]
    rows = {"rendered (calibration)": score(calibration, rendered)}
    generate, pictures = load_generate(arguments), []
    readings = measure(generate, held_out, arguments.seed, pictures)
    rows["held-out combinations"] = score(held_out, readings)
    if arguments.trained_count:
        trained = choose(all_scenes(held_out=False), arguments.trained_count, arguments.seed)
        rows["trained combinations"] = score(trained, measure(generate, trained, arguments.seed))
    print_table(rows)
    if arguments.sheet is not None:
        cv2.imwrite(str(arguments.sheet), np.concatenate(pictures[:24])[..., ::-1])
    if arguments.json is not None:
        wrong = [
            {"scene": asdict(scene), "read": asdict(reading)}
            for scene, reading in zip(held_out, readings, strict=True)
            if any(getattr(scene, name) != getattr(reading, name) for name in ATTRIBUTES)
        ]
        results = {name: asdict(row) for name, row in rows.items()}
        arguments.json.write_text(json.dumps({"results": results, "wrong": wrong}, indent=2) + "\n")
    return rows


if __name__ == "__main__":
    main(parse_arguments())
