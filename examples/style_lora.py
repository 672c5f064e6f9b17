"""Teaches the packaged checkpoint a look with LoRA: trains, saves, loads, weighs, fuses and takes it out again.

    python examples/style_lora.py                          # autumn, painted over the clip beside this file
    python examples/style_lora.py --clips FOLDER           # the look of your own clips

What a look is, layers learn from pairs: a clip as it was, small, and the same clip in the look, large. The folder's
`metadata.jsonl` says which belong together. Clips alone do, too: then training makes their small versions itself, and
the LoRA learns to draw what these have lost. Needs the `train` extra; minutes on a CPU.
"""

import argparse
import json
import runpy
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ultraflash_diffusers import UltraFlashStreamingPipeline, default_checkpoint
from ultraflash_diffusers.video_io import VideoReader, VideoWriter, write_side_by_side_png

CLIP = Path(__file__).parent / "big_buck_bunny_192x336.mp4"
TRAIN_SR = Path(__file__).parent.parent / "training" / "train_sr.py"
WEIGHTS = (0.0, 0.5, 1.0, 1.5)
# what becomes of red, green and blue: leaves and grass turn
AUTUMN = np.array([[0.25, 0.85, 0.0], [0.25, 0.40, 0.05], [0.0, 0.10, 0.60]])
# the last one alone looks at one place at a time, at any size, and what it adds grows as the weight does
LAYERS = ["proj_out"]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, help="folder of clips in the look to learn")
    parser.add_argument("--checkpoint", default=str(default_checkpoint()), help="pipeline's folder")
    parser.add_argument("--output", type=Path, default=Path("outputs/style_lora"), help="folder to write to")
    parser.add_argument("--source", type=Path, default=CLIP, help="low-resolution clip to try it on")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--crops", default="5x128x160", help="frames, height and width that training sees")
    options = parser.parse_args(arguments)
    if find_spec("cv2") is None:
        parser.error("training needs the extra `train`: pip install 'ultraflash_diffusers[train]'")
    clips = options.clips or paint_clips(options.output / "clips")
    train(options, clips)
    try_it(options)


def paint_clips(folder: Path) -> Path:
    """Writes the clip beside this file as if it were autumn, and the clip as it is at half its size."""
    (folder / "plain").mkdir(parents=True, exist_ok=True)
    reader = VideoReader(CLIP)
    width, height, fps = reader.info.width, reader.info.height, reader.info.fps
    with (
        VideoWriter(folder / "autumn.mp4", width, height, fps=fps, crf=10, overwrite=True) as painted,
        VideoWriter(folder / "plain" / "small.mp4", width // 2, height // 2, fps=fps, crf=10, overwrite=True) as small,
    ):
        for frame in reader:
            painted.write(np.clip(frame.pixels @ AUTUMN.T, 0, 255).round().astype(np.uint8)[None])
            half = Image.fromarray(frame.pixels).resize((width // 2, height // 2), Image.Resampling.BOX)
            small.write(np.asarray(half)[None])
    pair = {"file_name": "autumn.mp4", "low_resolution_file_name": "plain/small.mp4"}
    (folder / "metadata.jsonl").write_text(json.dumps(pair) + "\n")
    return folder


def train(options: argparse.Namespace, clips: Path) -> None:
    """Trains LoRA layers beside the frozen transformer and saves them to the output folder."""
    networks = ("pretrained_model_name_or_path", "autoencoder", "latent_upsampler")
    flags = [part for name in networks for part in (f"--{name}", options.checkpoint)]
    flags += ["--train_data_dir", str(clips), "--output_dir", str(options.output / "lora")]
    flags += ["--rank", str(options.rank), "--lora_target_modules", *LAYERS, "--learning_rate", "1e-2"]
    flags += ["--max_train_steps", str(options.steps), "--checkpointing_steps", str(options.steps)]
    flags += ["--crops", options.crops, "--train_batch_size", "1", "--lr_warmup_steps", "5"]
    flags += ["--temporal_loss", "difference", "--decode_linearly"]  # the losses that cost little
    print("python training/train_sr.py", *flags)
    script = runpy.run_path(str(TRAIN_SR))
    script["main"](script["parse_arguments"](flags))


def try_it(options: argparse.Namespace) -> None:
    """Loads the LoRA and shows one frame without it, at several weights, and fused."""
    pipe = UltraFlashStreamingPipeline.from_pretrained(options.checkpoint, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pictures = {"without": last_frame(pipe, options.source)}

    pipe.load_lora_weights(options.output / "lora", adapter_name="style")
    for weight in WEIGHTS:
        pipe.set_adapters("style", weight)
        pictures[f"weight {weight}"] = last_frame(pipe, options.source)

    pipe.set_adapters("style", 1.0)
    pipe.fuse_lora()  # into the weights themselves: as fast as without
    pictures["fused"] = last_frame(pipe, options.source)
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    pictures["taken out"] = last_frame(pipe, options.source)

    for name, picture in pictures.items():
        change = np.abs(picture.astype(float) - pictures["without"]).mean()
        print(f"{name:10s} differs from the result without it by {change:.2f} of 255")
    shown = [f"weight {weight}" for weight in WEIGHTS]
    path = options.output / "style_lora.png"
    write_side_by_side_png(path, [pictures[name] for name in shown], shown)
    print(f"{path}: the same frame at each weight")


def last_frame(pipe: UltraFlashStreamingPipeline, source: Path) -> np.ndarray:
    """The fifth frame of the upscaled clip, uint8."""
    chunks = pipe.stream(
        source=str(source),
        num_frames=5,
        generator=torch.Generator().manual_seed(0),
        color_correction="none",  # which would bring the source's colours back
        output_type="uint8",
    )
    return np.asarray(list(chunks)[-1].frames[0])[-1]


if __name__ == "__main__":
    main()
