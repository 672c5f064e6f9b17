# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Does the text generator follow prompts? Colour, object and motion are read off the frames by classical means.

    python -m benchmarks.prompt_following --generator outputs/generator --autoencoder outputs/autoencoder
    python -m benchmarks.prompt_following --pipeline FOLDER --clips FOLDER --json result.json

The prompts are of combinations that training has held out. First, the measurement is checked on rendered scenes.
Videos are compared with these, too: where a text leaves little open, they can equal them. Clips with captions that it
was trained on are compared with what it makes of the captions.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from benchmarks.clips import area_resize, centre_crop
from benchmarks.metrics import psnr
from ultraflash_diffusers import CausalWanTransformer, HRAutoencoder, UltraFlashStreamingPipeline
from ultraflash_diffusers.pipelines.noise import SeededFrameNoise
from ultraflash_diffusers.pipelines.sources.text_generator import TextGeneratorSource
from ultraflash_diffusers.tables import markdown_table
from ultraflash_diffusers.training.data.scenes import COLORS, MOTIONS, OBJECTS, Scene, all_scenes
from ultraflash_diffusers.training.starting_points.networks import load_network
from ultraflash_diffusers.training.starting_points.text_encoding import TextEncoding
from ultraflash_diffusers.video_io.opening import open_container

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
    color, object, motion = hits.mean(0).tolist()
    return Result(len(hits), color, object, motion, float(hits.all(1).mean()))


def whole_pipeline(folder: str, num_frames: int) -> Generate:
    """High-resolution videos of a pipeline, at its default size."""
    pipe = UltraFlashStreamingPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)

    def generate(prompt: str, seed: int) -> np.ndarray:
        generator = torch.Generator().manual_seed(seed)
        frames = pipe(prompt, num_frames=num_frames, generator=generator, output_type="np").frames[0]
        return np.rint(frames * 255).astype(np.uint8)

    return generate


def generator_alone(folder: str, autoencoder_folder: str, height: int, width: int, num_frames: int) -> Generate:
    """Low-resolution videos of a generator."""
    generator = CausalWanTransformer.from_pretrained(folder, subfolder="generator_transformer")
    autoencoder = load_network(HRAutoencoder, autoencoder_folder, "autoencoder")
    text = TextEncoding.load(folder, generator.config.text_length)

    @torch.no_grad()
    def generate(prompt: str, seed: int) -> np.ndarray:
        source = TextGeneratorSource(
            generator,
            autoencoder,
            text([prompt]),
            SeededFrameNoise([seed], 1),
            height=height,
            width=width,
            multiple_of=autoencoder.spatial_compression_ratio,
            num_frames=num_frames,
        )
        latents = torch.cat([chunk.latents for chunk in source.chunks()], dim=2)
        pixels = autoencoder.decode(latents).sample[0].clamp(-1, 1).add(1).mul(127.5).round().byte()
        return pixels.permute(1, 2, 3, 0).numpy()[:num_frames, :height, :width]

    return generate


def load_generate(arguments: argparse.Namespace) -> Generate:
    """What is measured."""
    if arguments.pipeline is not None:
        return whole_pipeline(arguments.pipeline, arguments.num_frames)
    size = (arguments.height, arguments.width, arguments.num_frames)
    return generator_alone(arguments.generator, arguments.autoencoder, *size)


@dataclass(frozen=True)
class Recital:
    """Clips that a generator was trained on, generated from their captions.

    Args:
        clips (`int`): how many.
        right (`float`): share of those that come nearer to their own clip than to any other.
        psnr (`float`): mean of the videos' PSNR to their clips, dB.
    """

    clips: int
    right: float
    psnr: float


def recite(
    generate: Generate, folder: Path, num_frames: int, seed: int, sheet: list[np.ndarray] | None = None
) -> Recital:
    """Generates from the captions of a folder's clips, and compares the videos with all of them."""
    captions = read_captions(folder)
    generated = [generate(text, seed) for text in tqdm(captions.values(), desc="Reciting", unit="video", disable=None)]
    height, width = generated[0].shape[1:3]
    clips = [read_clip(folder / name, height, width, num_frames) for name in captions]
    likeness = np.array([[psnr(video[: len(clip)], clip) for clip in clips] for video in generated])
    if sheet is not None:
        sheet += [
            np.concatenate([video[0], video[-1], clip[len(video) - 1]], axis=1)
            for video, clip in zip(generated, clips, strict=True)
        ]
    own = likeness.argmax(axis=1) == np.arange(len(clips))
    return Recital(len(clips), float(own.mean()), float(likeness.diagonal().mean()))


def read_captions(folder: Path) -> dict[str, str]:
    """The captions in a folder's `metadata.jsonl`, by file; the first one of a file that is named several times."""
    captions: dict[str, str] = {}
    for line in (folder / "metadata.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if entry.get("text"):
            captions.setdefault(entry["file_name"], entry["text"])
    return captions


def read_clip(path: Path, height: int, width: int, num_frames: int) -> np.ndarray:
    """The first frames of a video file, centre-cropped and brought to a size, uint8 `[frames, height, width, 3]`."""
    with open_container(path) as container:
        frames = islice(container.decode(video=0), num_frames)
        cropped = (centre_crop(frame.to_ndarray(format="rgb24"), height / width) for frame in frames)
        return np.stack([area_resize(frame, height, width) for frame in cropped])


def print_table(rows: dict[str, Result]) -> None:
    shares = {name: (row.color, row.object, row.motion, row.all) for name, row in rows.items()}
    cells = [[name, rows[name].scenes, *(f"{value:.1%}" for value in values)] for name, values in shares.items()]
    print(markdown_table(("", "scenes", "colour", "object", "motion", "all three"), cells))


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
    parser.add_argument("--clips", type=Path, help="folder of trained clips with a metadata.jsonl of captions")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of prompts and of the videos")
    parser.add_argument("--sheet", type=Path, help="PNG with the first, middle and last frame of each video")
    parser.add_argument("--json", type=Path, help="also writes the results to this file")
    parsed = parser.parse_args(arguments)
    if parsed.generator is not None and parsed.autoencoder is None:
        parser.error("--generator needs its --autoencoder")
    return parsed


def measure(
    generate: Generate, scenes: list[Scene], seed: int, sheet: list[np.ndarray] | None = None
) -> tuple[list[Reading], float]:
    """Generates a video for one of each scene's texts and reads it.

    Returns:
        The readings, and the mean PSNR of the videos to the scenes as they are rendered (192x320), dB.
    """
    rng, readings, likeness = np.random.default_rng(seed), [], []
    for number, scene in enumerate(tqdm(scenes, desc="Generating", unit="video", disable=None)):
        prompts = scene.prompts()
        frames = generate(prompts[rng.integers(len(prompts))], seed + number)
        readings.append(read_frames(frames))
        truth = scene.render(len(frames))
        likeness.append(psnr(np.stack([area_resize(frame, *truth.shape[1:3]) for frame in frames]), truth))
        if sheet is not None:
            sheet.append(np.concatenate([frames[0], frames[len(frames) // 2], frames[-1]], axis=1))
    return readings, float(np.mean(likeness))


def main(arguments: argparse.Namespace) -> dict[str, Result]:
    held_out = choose(all_scenes(held_out=True), arguments.count, arguments.seed)
    calibration = held_out[:60]
    rendered = [read_frames(scene.render(arguments.num_frames)) for scene in calibration]
    rows = {"rendered (calibration)": score(calibration, rendered)}
    generate = load_generate(arguments)
    pictures: list[np.ndarray] = []
    likeness = {}
    readings, likeness["held-out combinations"] = measure(generate, held_out, arguments.seed, pictures)
    rows["held-out combinations"] = score(held_out, readings)
    if arguments.trained_count:
        trained = choose(all_scenes(held_out=False), arguments.trained_count, arguments.seed)
        trained_readings, likeness["trained combinations"] = measure(generate, trained, arguments.seed)
        rows["trained combinations"] = score(trained, trained_readings)
    print_table(rows)
    for name, value in likeness.items():
        print(f"{name}: PSNR {value:.2f} dB to the rendered scenes, at their size")
    recital = None
    if arguments.clips is not None:
        recited: list[np.ndarray] = []
        recital = recite(generate, arguments.clips, arguments.num_frames, arguments.seed, recited)
        pictures = pictures[:12] + recited[:12]
        print(f"{recital.clips} captioned clips: {100 * recital.right:.0f} % recognised, PSNR {recital.psnr:.2f} dB")
    if arguments.sheet is not None:
        cv2.imwrite(str(arguments.sheet), np.concatenate(pictures[:24])[..., ::-1])
    if arguments.json is not None:
        wrong = [
            {"scene": asdict(scene), "read": asdict(reading)}
            for scene, reading in zip(held_out, readings, strict=True)
            if any(getattr(scene, name) != getattr(reading, name) for name in ATTRIBUTES)
        ]
        results = {name: asdict(row) | {"psnr": likeness.get(name)} for name, row in rows.items()}
        if recital is not None:
            results["captioned clips"] = asdict(recital)
        arguments.json.write_text(json.dumps({"results": results, "wrong": wrong}, indent=2) + "\n")
    return rows


if __name__ == "__main__":
    main(parse_arguments())
