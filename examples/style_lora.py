"""Teaches the packaged checkpoint a look with LoRA: trains, saves, loads, weighs, fuses and takes it out again.

    python examples/style_lora.py                          # a look made up from the clip beside this file
    python examples/style_lora.py --clips FOLDER           # the look of your own clips

The clips should show the look in high resolution: training makes the small versions itself, and the LoRA learns to
draw that look where the checkpoint would draw its own. Needs the `train` extra. The few steps here show the mechanism
on a CPU; a look that one would use takes some thousand.
"""

import argparse
import runpy
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter

from ultraflash_diffusers import UltraFlashStreamingPipeline, default_checkpoint
from ultraflash_diffusers.video_io import VideoReader, VideoWriter, write_side_by_side_png

CLIP = Path(__file__).parent / "big_buck_bunny_192x336.mp4"
TRAIN_SR = Path(__file__).parent.parent / "training" / "train_sr.py"
WEIGHTS = (0.0, 0.5, 1.0, 1.5)
AMPLIFIED = 20


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, help="folder of clips in the look to learn")
    parser.add_argument("--checkpoint", default=str(default_checkpoint()), help="pipeline's folder")
    parser.add_argument("--output", type=Path, default=Path("outputs/style_lora"), help="folder to write to")
    parser.add_argument("--source", type=Path, default=CLIP, help="low-resolution clip to try it on")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--crops", default="5x128x160", help="frames, height and width that training sees")
    options = parser.parse_args(arguments)
    if find_spec("cv2") is None:
        parser.error("training needs the extra `train`: pip install 'ultraflash_diffusers[train]'")
    clips = options.clips or draw_clips(options.output / "clips")
    train(options, clips)
    try_it(options)


def draw_clips(folder: Path) -> Path:
    """Writes the clip beside this file as if it had been drawn with a hard pencil."""
    folder.mkdir(parents=True, exist_ok=True)
    reader = VideoReader(CLIP)
    with VideoWriter(
        folder / "crisp.mp4", reader.info.width, reader.info.height, source=reader, crf=10, overwrite=True
    ) as writer:
        for frame in reader:
            crisp = Image.fromarray(frame.pixels).filter(ImageFilter.UnsharpMask(radius=1.5, percent=200, threshold=0))
            writer.write(np.asarray(crisp)[None])
    return folder


def train(options: argparse.Namespace, clips: Path) -> None:
    """Trains LoRA layers beside the frozen transformer and saves them to the output folder."""
    networks = ("pretrained_model_name_or_path", "autoencoder", "latent_upsampler")
    flags = [part for name in networks for part in (f"--{name}", options.checkpoint)]
    flags += ["--train_data_dir", str(clips), "--output_dir", str(options.output / "lora")]
    flags += ["--rank", str(options.rank), "--learning_rate", "3e-2", "--lr_warmup_steps", "5"]
    flags += ["--max_train_steps", str(options.steps), "--checkpointing_steps", str(options.steps)]
    flags += ["--crops", options.crops, "--train_batch_size", "1", "--temporal_loss", "difference"]
    flags += ["--wavelet_weight", "0.3", "--contrast_weight", "0.3"]
    flags += ["--color_correction_levels", "5"]  # the losses see what the pipeline gives back
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
        print(f"{name:10s} differs from the result without it by {change:.3f} of 255")
    change = pictures["weight 1.0"].astype(float) - pictures["without"]
    pictures[f"{AMPLIFIED} x its change"] = np.clip(128 + AMPLIFIED * change, 0, 255).astype(np.uint8)
    path = options.output / "style_lora.png"
    write_side_by_side_png(path, [middle(picture) for picture in pictures.values()], list(pictures))
    print(f"{path}: the middle of the same frame each time")


def last_frame(pipe: UltraFlashStreamingPipeline, source: Path) -> np.ndarray:
    """The fifth frame of the upscaled clip, uint8."""
    generator = torch.Generator().manual_seed(0)
    chunks = list(pipe.stream(source=str(source), num_frames=5, generator=generator, output_type="uint8"))
    return np.asarray(chunks[-1].frames[0])[-1]


def middle(picture: np.ndarray) -> np.ndarray:
    """The middle quarter of a picture."""
    height, width = picture.shape[:2]
    return picture[height // 4 : height - height // 4, width // 4 : width - width // 4]


if __name__ == "__main__":
    main()
