"""High resolution after a diffusers video pipeline.

    python examples/after_any_pipeline.py MODEL "a red ball rolls over a wooden table" --output ball.mp4

MODEL is a folder or Hub name of any text-to-video pipeline, for instance Wan-AI/Wan2.1-T2V-1.3B-Diffusers. Pipelines
with Wan 2.1's latents hand these on to checkpoints that speak them; of all others the frames are taken.
"""

import argparse
import itertools
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline

from ultraflash_diffusers import UltraFlashStreamingPipeline, default_checkpoint
from ultraflash_diffusers.video_io import VideoWriter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the base pipeline")
    parser.add_argument("prompt")
    parser.add_argument("--checkpoint", default=str(default_checkpoint()), help="ours (default: the packaged one)")
    parser.add_argument("--num-frames", type=int, default=81)
    parser.add_argument("--fps", type=float, help="the model's own, if it has one, or else 16")
    parser.add_argument("--output", type=Path, default=Path("upscaled.mp4"))
    options = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    base = DiffusionPipeline.from_pretrained(options.model, dtype=dtype).to(device)
    pipe = UltraFlashStreamingPipeline.from_pretrained(options.checkpoint, dtype=dtype).to(device)

    with pipe.stream(options.prompt, source=base, num_frames=options.num_frames, output_type="np") as stream:
        first = next(stream)
        height, width = stream.size
        fps = options.fps or stream.frame_rate or 16
        with VideoWriter(options.output, width, height, fps=fps, overwrite=True) as writer:
            for chunk in itertools.chain([first], stream):
                if chunk.audio is not None:  # of models that make sound
                    writer.write_audio(chunk.audio[0], chunk.audio_sample_rate)
                writer.write(np.rint(chunk.frames[0] * 255).astype(np.uint8))
                print(f"frames {chunk.frame_range[0]} to {chunk.frame_range[1] - 1}")


if __name__ == "__main__":
    main()
