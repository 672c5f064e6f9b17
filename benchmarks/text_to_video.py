# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""How good are videos from text? Text and seed decide them, so each is compared with the scene that they describe.

    python -m benchmarks.text_to_video --checkpoint outputs/pipeline --count 200 --json result.json --sheet sheet.png

A pipeline whose generator was trained on `ultraflash_diffusers.training.data.world` (`train_seeded_generator.py`)
makes videos of texts and seeds that training has not seen. What colour, kind and motion each thing has, and how many
there are, is read off by comparison: of the scenes that differ in one of these, the nearest is what is seen.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from tqdm import tqdm

from benchmarks.metrics import laplacian_variance, luma, psnr, seam_ratio
from ultraflash_diffusers import UltraFlashStreamingPipeline
from ultraflash_diffusers.models.seed_code import clock
from ultraflash_diffusers.pipelines.noise import SeededFrameNoise, draw_seeds
from ultraflash_diffusers.pipelines.sources.text_generator import TextGeneratorSource
from ultraflash_diffusers.tables import markdown_table
from ultraflash_diffusers.training.data.drawing import area_resize
from ultraflash_diffusers.training.data.world import COLORS, KINDS, MOTIONS, WorldScene, WorldThing, draw_scene
from ultraflash_diffusers.video_io import tensor_to_frames

# frames, uint8 [frames, height, width, 3], of a prompt, a seed and a number of frames
Generate = Callable[[str, int, int], np.ndarray]

READ: dict[str, Collection[str]] = {"color": COLORS, "kind": KINDS, "motion": MOTIONS}
_READ_SIZE = (96, 160)
_HALF_WIDTH = 5 / 6 - 0.05  # of a frame, less what makes sure that a middle is in it
_FLAT = 2.0  # levels between a pixel and its neighbourhood in the truth, up to which it counts as flat
_RIGHT = (*READ, "number")
_LONG = 48  # first and last frames of a long stream


@dataclass(frozen=True)
class Request:
    """What is asked for: a text and a seed, and the scene and the clock that follow from both.

    Args:
        text (`str`): the prompt.
        seed (`int`): of the stream's `torch.Generator`.
        scene (`WorldScene`): what the text says, and the seed's code.
        moments (`np.ndarray`): `[frames]`, how much of the clock's period has passed.
    """

    text: str
    seed: int
    scene: WorldScene
    moments: np.ndarray

    def render(self, height: int, width: int) -> np.ndarray:
        """Draws the scene as it should be, uint8 `[frames, height, width, 3]`."""
        return np.rint(255 * self.scene.render(self.moments, height, width)).astype(np.uint8)


@dataclass(frozen=True)
class SeedCodes:
    """How a generator turns seeds into scenes.

    Args:
        size (`int`): values of a code.
        period (`float`): of the clock, in latent frames.
        compression (`int`): frames that a latent frame stands for.
    """

    size: int
    period: float
    compression: int

    @classmethod
    def of(cls, pipe: UltraFlashStreamingPipeline) -> SeedCodes:
        """Those of a pipeline's generator.

        Raises:
            ValueError: it has no seed code.
        """
        config = None if pipe.generator_transformer is None else pipe.generator_transformer.config
        if config is None or not config.seed_code_dim:
            raise ValueError("the pipeline's generator has no seed code: nothing is known of what it should show")
        return cls(config.seed_code_dim, config.seed_code_period, pipe.autoencoder.temporal_compression_ratio)

    def request(self, scene: WorldScene, text: str, seed: int, num_frames: int) -> Request:
        """What a text and a seed ask for; the scene's own code counts for nothing."""
        noise = SeededFrameNoise(draw_seeds(torch.Generator().manual_seed(seed)), 1)
        code = noise("seed_code", 0, 1, (self.size, 1, 1)).flatten(1)
        latents = -(-(num_frames - 1) // self.compression) + 1
        times = clock(code, torch.zeros((), dtype=torch.int64), latents, self.period, self.compression)
        moments = times.flatten()[self.compression - 1 :][:num_frames].numpy()
        return Request(text, seed, dataclasses.replace(scene, code=code[0].double().numpy()), moments)

    def draw(self, count: int, num_frames: int, seed: int) -> list[Request]:
        """Draws texts, each with a seed of its own."""
        rng = np.random.default_rng((seed, 2))
        scenes = [draw_scene(rng) for _ in range(count)]
        return [self.request(scene, scene.text(rng), 1000 * seed + n, num_frames) for n, scene in enumerate(scenes)]


def read(frames: np.ndarray, request: Request) -> dict[str, tuple[str, ...]]:
    """Says what the frames show of what the text names, by comparison with scenes that differ in one thing.

    Args:
        frames (`np.ndarray`): uint8 `[frames, height, width, 3]`, of the request's moments.
        request (`Request`): what was asked for; what its scene leaves to the code is not read.

    Returns:
        `dict[str, tuple[str, ...]]`: what `asked` says of the request, if the frames show it.
    """
    every = slice(None, None, max(1, len(frames) // 3))
    shown = dataclasses.replace(request, moments=request.moments[every])
    things, seen, found = request.scene.things, _seen(request), {}
    for name in READ:
        numbers = [number for number in seen if getattr(things[number], name) is not None]
        found[name] = tuple(read_thing(frames[every], shown, number, name) for number in numbers)
    if len(seen) < len(things):
        return found | {"number": ()}
    return found | {"number": (str(len(_likeliest(frames[every], shown, _counts(things)))),)}


def read_thing(frames: np.ndarray, request: Request, number: int, name: str) -> str:
    """Says what frames show of a thing, its `name` of `READ`; arguments as for `read`."""
    others = [_changed(request.scene.things, number, name, option) for option in READ[name]]
    return str(getattr(_likeliest(frames, request, others)[number], name))


def _likeliest(
    frames: np.ndarray, request: Request, candidates: Iterable[tuple[WorldThing, ...]]
) -> tuple[WorldThing, ...]:
    """The things with which the scene is nearest to the frames."""
    small = np.stack([area_resize(frame, *_READ_SIZE) for frame in frames])

    def likeness(things: tuple[WorldThing, ...]) -> float:
        scene = dataclasses.replace(request.scene, things=things)
        return psnr(small, dataclasses.replace(request, scene=scene).render(*_READ_SIZE))

    return max(candidates, key=likeness)


def asked(request: Request) -> dict[str, tuple[str, ...]]:
    """Colours, kinds and motions that the text names, and the number of things, as far as they show."""
    things, seen = request.scene.things, _seen(request)
    values = {name: [getattr(things[number], name) for number in seen] for name in READ}
    count = (str(len(things)),) if len(seen) == len(things) else ()
    return {name: tuple(value for value in all_of if value) for name, all_of in values.items()} | {"number": count}


def _seen(request: Request) -> list[int]:
    """Numbers of the things whose middle is in the frame at some moment: those that move leave it for a while."""
    columns = request.scene.anchors(request.moments)[:, :, 0]
    return [n for n in range(len(request.scene.things)) if (np.abs(columns[:, n]) < _HALF_WIDTH).any()]


def _changed(things: tuple[WorldThing, ...], number: int, name: str, value: str) -> tuple[WorldThing, ...]:
    change: dict[str, Any] = {name: value}
    return tuple(dataclasses.replace(thing, **change) if own == number else thing for own, thing in enumerate(things))


def _counts(things: tuple[WorldThing, ...]) -> list[tuple[WorldThing, ...]]:
    """The things that were asked for, and likewise one less, or one more of each kind and colour."""
    if len(things) > 1:
        return [things, things[:1]]
    return [*((*things, WorldThing(kind, color)) for kind in KINDS for color in COLORS), things]


@dataclass(frozen=True)
class Measures:
    """What is measured of a video.

    Args:
        psnr (`float`): to the scene, dB.
        sharpness (`float`): variance of the luma's Laplacian, relative to the scene's.
        seams (`float`): mean step across borders of latents, relative to that across other pixels, over the same of
            the scene; 1 where no tiles show.
        chunk_seams (`float`): likewise of the change from frame to frame at borders of latent frames.
        flat (`float`): mean difference between a pixel and its neighbourhood where the scene is flat, levels.
        right (`dict[str, bool]`): whether colours, kinds, motions and number are what the text says.
    """

    psnr: float
    sharpness: float
    seams: float
    chunk_seams: float
    flat: float
    right: dict[str, bool]


def measure(frames: np.ndarray, request: Request, latent_pixels: int, compression: int) -> Measures:
    """Measures a video.

    Args:
        frames (`np.ndarray`): uint8 `[frames, height, width, 3]`.
        request (`Request`): what was asked for.
        latent_pixels (`int`): pixels of a generated latent, along each side.
        compression (`int`): frames that a latent frame stands for.
    """
    truth = request.render(*frames.shape[1:3])
    found, wanted = read(frames, request), asked(request)
    return Measures(
        psnr=psnr(frames, truth),
        sharpness=laplacian_variance(frames) / laplacian_variance(truth),
        seams=seam_ratio(frames, latent_pixels) / seam_ratio(truth, latent_pixels),
        chunk_seams=_chunk_seams(frames, compression) / _chunk_seams(truth, compression),
        flat=_unevenness(frames, truth),
        right={name: found[name] == wanted[name] for name in wanted if wanted[name]},
    )


def _chunk_seams(frames: np.ndarray, compression: int) -> float:
    """Mean change between frames across latent frames, relative to that inside; still scenes hardly change."""
    changes = np.abs(np.diff(luma(frames), axis=0)).mean(axis=(1, 2)) + 0.05
    borders = np.arange(len(changes)) % compression == 0
    return float(changes[borders].mean() / changes[~borders].mean())


def _unevenness(frames: np.ndarray, truth: np.ndarray) -> float:
    result, flat = _fine(frames), _fine(truth) < _FLAT
    return float(result[flat].mean())


def _fine(frames: np.ndarray) -> np.ndarray:
    """How far each pixel's luma is from the mean of the 9x9 around it, levels."""
    return np.stack([np.abs(y - cv2.blur(y, (9, 9))) for y in luma(frames).astype(np.float32)])


def seed_likeness(generate: Generate, requests: Iterable[Request], seeds: int) -> list[float]:
    """PSNR between the first frames of one text's videos with different seeds, dB, for each pair."""
    values: list[float] = []
    for request in requests:
        frames = [generate(request.text, request.seed + 7919 * n, 1) for n in range(seeds)]
        values += [psnr(one, other) for one, other in combinations(frames, 2)]
    return values


def long_stream(generate: Generate, codes: SeedCodes, request: Request, num_frames: int) -> tuple[float, float]:
    """PSNR to the scene at the beginning and at the end of a long stream, dB."""
    whole = codes.request(request.scene, request.text, request.seed, num_frames)
    frames = generate(request.text, request.seed, num_frames)
    ends = []
    for part in (slice(_LONG), slice(num_frames - _LONG, None)):
        truth = dataclasses.replace(whole, moments=whole.moments[part]).render(*frames.shape[1:3])
        ends.append(psnr(frames[part], truth))
    return ends[0], ends[1]


def pipeline_videos(pipe: UltraFlashStreamingPipeline) -> Generate:
    """High-resolution videos of a pipeline, at its default size."""

    def generate(prompt: str, seed: int, num_frames: int) -> np.ndarray:
        generator = torch.Generator().manual_seed(seed)
        video: Any = pipe(prompt, num_frames=num_frames, generator=generator, output_type="uint8")
        return video.frames[0]

    return generate


def generator_videos(pipe: UltraFlashStreamingPipeline) -> Generate:
    """What the generator alone makes, decoded at the size of its own."""
    multiple = pipe.autoencoder.spatial_compression_ratio
    height, width = (multiple * side for side in pipe.generator_transformer.config.sample_size)

    @torch.no_grad()
    def generate(prompt: str, seed: int, num_frames: int) -> np.ndarray:
        source = TextGeneratorSource(
            pipe.generator_transformer,
            pipe.autoencoder,
            pipe.encode_prompt(prompt, max_sequence_length=pipe.generator_transformer.config.text_length)[0],
            SeededFrameNoise(draw_seeds(torch.Generator().manual_seed(seed)), 1),
            height=height,
            width=width,
            multiple_of=multiple,
            num_frames=num_frames,
        )
        latents = torch.cat([chunk.latents for chunk in source.chunks()], dim=2)
        return tensor_to_frames(pipe.autoencoder.decode(latents).sample)[:num_frames]

    return generate


def table(rows: dict[str, list[Measures]]) -> str:
    """A row for each kind of video: means, and shares that are right."""
    cells = []
    for name, all_of in rows.items():
        numbers = {key: np.mean([getattr(each, key) for each in all_of]) for key in _COLUMNS}
        right = [[each.right[attribute] for each in all_of if attribute in each.right] for attribute in _RIGHT]
        shares = [f"{np.mean(values):.1%}" for values in right] + [
            f"{np.mean([all(each.right.values()) for each in all_of]):.1%}"
        ]
        cells.append([name, len(all_of), *(f"{value:.2f}" for value in numbers.values()), *shares])
    return markdown_table(("", "videos", *_COLUMNS.values(), *_RIGHT, "all named"), cells)


_COLUMNS = {
    "psnr": "PSNR dB",
    "sharpness": "sharpness",
    "seams": "seam ratio",
    "chunk_seams": "seams in time",
    "flat": "unevenness",
}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="pipeline, its generator with a seed code")
    parser.add_argument("--count", type=int, default=200, help="texts and seeds (default: %(default)s)")
    parser.add_argument("--num_frames", type=int, default=25, help="of each video (default: %(default)s)")
    parser.add_argument("--long_frames", type=int, default=600, help="of one long stream (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=9, help="of the choice of texts and of the videos")
    parser.add_argument("--sheet", type=Path, help="PNG of first and last frames, with the scenes under them")
    parser.add_argument("--json", type=Path, help="also writes the results to this file")
    return parser.parse_args(arguments)


def picture(pairs: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Videos' last frames with their scenes under them, four beside each other."""
    tiles = [np.concatenate([made, truth]) for made, truth in pairs]
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % 4)
    return np.concatenate([np.concatenate(tiles[row : row + 4], axis=1) for row in range(0, len(tiles), 4)])


def main(arguments: argparse.Namespace) -> dict[str, list[Measures]]:
    pipe = UltraFlashStreamingPipeline.from_pretrained(arguments.checkpoint)
    pipe.set_progress_bar_config(disable=True)
    codes, latent_pixels = SeedCodes.of(pipe), pipe.autoencoder.spatial_compression_ratio
    requests = codes.draw(arguments.count, arguments.num_frames, arguments.seed)
    rows: dict[str, list[Measures]] = {"the scenes themselves": [], "generator alone": [], "whole cascade": []}
    whole, alone = pipeline_videos(pipe), generator_videos(pipe)
    pairs = []
    for request in tqdm(requests, desc="Generating", unit="video", disable=None):
        wanted = (request.text, request.seed, arguments.num_frames)
        low, high = alone(*wanted), whole(*wanted)
        truth = request.render(*high.shape[1:3])
        scale = latent_pixels * high.shape[1] // low.shape[1]
        rows["the scenes themselves"].append(measure(truth, request, scale, codes.compression))
        rows["generator alone"].append(measure(low, request, latent_pixels, codes.compression))
        rows["whole cascade"].append(measure(high, request, scale, codes.compression))
        pairs.append((high[-1], truth[-1]))
    print(table(rows))
    likeness = seed_likeness(whole, requests[:10], 4)
    print(f"seeds of one text: {np.mean(likeness):.1f} dB from each other, at most {max(likeness):.1f}")
    first, last = long_stream(whole, codes, requests[0], arguments.long_frames)
    print(f"a stream of {arguments.long_frames} frames: {first:.1f} dB in its first {_LONG}, {last:.1f} in its last")
    if arguments.sheet is not None:
        cv2.imwrite(str(arguments.sheet), picture(pairs[:24])[..., ::-1])
    if arguments.json is not None:
        wrong = [
            {"text": request.text, "seed": request.seed, "right": each.right}
            for request, each in zip(requests, rows["whole cascade"], strict=True)
            if not all(each.right.values())
        ]
        results = {name: [asdict(each) for each in all_of] for name, all_of in rows.items()}
        extra = {"seed_likeness": likeness, "long_stream": [first, last], "wrong": wrong}
        arguments.json.write_text(json.dumps({"videos": results} | extra, indent=2) + "\n")
    return rows


if __name__ == "__main__":
    main(parse_arguments())
