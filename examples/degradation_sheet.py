"""A picture of what each degradation of training does: one row for each, some frames of one clip in every row.

    python examples/degradation_sheet.py --output degradations.png

Strong settings, so that each shows; the last three rows are whole presets, with the frames enlarged again.
"""

import argparse
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ultraflash_diffusers.video_io import VideoReader

try:
    from ultraflash_diffusers.degradation import (
        H264,
        PRESETS,
        Compose,
        CutMix,
        FrameDrop,
        GaussianBlur,
        GaussianNoise,
        GridWarp,
        Jpeg,
        MotionBlur,
        Rescale,
        TemporalMorph,
        Transform,
        UnsharpMask,
        aigc_artifacts,
        degradation_preset,
        spatial_artifacts,
    )
except ModuleNotFoundError as error:
    raise SystemExit(
        f"{error}: degradations need the extra `train`: pip install 'ultraflash_diffusers[train]'"
    ) from None

FRAMES, COLUMNS, LABEL = 17, 5, 140
ROWS: dict[str, Transform] = {
    "the clip": Compose(),
    "temporal morphing": TemporalMorph((0.2, 0.6)),
    "frame drops, filled": FrameDrop(probability=0.7),
    "motion blur": MotionBlur((8, 15)),
    "grid warp": GridWarp(14.0, radius=(0.5, 0.7)),
    "H.264, CRF 30": H264(30),
    "unsharp mask": UnsharpMask(2.0, 2.0),
    "Gaussian blur": GaussianBlur(3.0, kernel_size=(15, 37)),
    "rescale, 0.25": Rescale(0.25),
    "noise": GaussianNoise(15.0),
    "JPEG, 20": Jpeg(20),
    "CutMix (of noise)": CutMix(Compose(), GaussianNoise(30.0), share=0.6),
    "stage 1": aigc_artifacts(),
    "stage 2": spatial_artifacts(),
    **{f'preset "{name}"': degradation_preset(name) for name in PRESETS},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    clip = Path(__file__).parent / "big_buck_bunny_192x336.mp4"
    parser.add_argument("--input", type=Path, default=clip, help=f"a video of {FRAMES} frames or more, of even size")
    parser.add_argument("--output", type=Path, default=Path("degradations.png"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    frames = np.stack([frame.pixels for frame in islice(VideoReader(options.input), FRAMES)])
    height, width = frames.shape[1:3]
    sheet = Image.new("RGB", (LABEL + COLUMNS * width, len(ROWS) * height), "white")
    for row, (name, degrade) in enumerate(ROWS.items()):
        ImageDraw.Draw(sheet).text((8, row * height + height // 2), name, fill="black", font_size=14)
        degraded = degrade(frames, np.random.default_rng(options.seed))
        for column, t in enumerate(np.linspace(0, len(degraded) - 1, COLUMNS).astype(int)):
            picture = Image.fromarray(degraded[t]).resize((width, height), Image.Resampling.BICUBIC)
            sheet.paste(picture, (LABEL + column * width, row * height))
    sheet.save(options.output)
    print(f"{options.output}: {len(ROWS)} rows, frames 0 to {len(frames) - 1} from left to right")


if __name__ == "__main__":
    main()
