#!/usr/bin/env bash
# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
#
# The packaged checkpoint from nothing, on a CPU, from the repository's root:
#
#     bash training/recipes/packaged_checkpoint.sh CLIPS HELD_OUT [OUTPUT]
#
# CLIPS and HELD_OUT are folders of videos of 384 lines or more. The pipeline ends up in OUTPUT/pipeline. On two idle cores: 36
# minutes for steps 1 to 3, 21 for 4, 63 for 5, 160 for 6, 225 for 7 and 26 for 8. An interrupted run goes on where it was if
# the command that was running gets --resume_from_checkpoint latest.
# What each step gained, and how the weights that ship differ: training/results. Folders' names must not hold spaces.
# shellcheck disable=SC2086  # lists of flags are to be split
set -euo pipefail

clips="${1:?a folder of clips}"
held_out="${2:?a folder of held-out clips}"
out="${3:-outputs/packaged}"

# A pipeline of what was trained: assemble FOLDER TRANSFORMER UPSAMPLER AUTOENCODER [GENERATOR]. Without texts in training, the
# transformer has to be made deaf to them.
assemble() {
    python - "$@" <<'PYTHON'
import sys

from diffusers import FlowMatchEulerDiscreteScheduler
from transformers import AutoTokenizer, UMT5EncoderModel

from ultraflash_diffusers import (
    CausalLatentUpsampler,
    CausalWanTransformer,
    HRAutoencoder,
    UltraFlashSRTransformer,
    UltraFlashStreamingPipeline,
)
from ultraflash_diffusers.training.starting_points.text_free import absorb_empty_text

folder, transformer, upsampler, autoencoder, *generator = sys.argv[1:]
transformer = UltraFlashSRTransformer.from_pretrained(transformer)
absorb_empty_text(transformer)
from_text = {
    "generator_transformer": CausalWanTransformer.from_pretrained(generator[0], subfolder="generator_transformer"),
    "text_encoder": UMT5EncoderModel.from_pretrained(generator[0], subfolder="text_encoder"),
    "tokenizer": AutoTokenizer.from_pretrained(generator[0], subfolder="tokenizer"),
} if generator else {}
UltraFlashStreamingPipeline(
    transformer=transformer,
    latent_upsampler=CausalLatentUpsampler.from_pretrained(upsampler),
    autoencoder=HRAutoencoder.from_pretrained(autoencoder),
    scheduler=FlowMatchEulerDiscreteScheduler(shift=1.5),
    group_frames=2,
    kv_cache_blocks=1,
    default_height=384,
    default_width=640,
    default_num_frames=69,
    default_fps=24,
    color_correction_levels=5,
    **from_text,
).save_pretrained(folder)
PYTHON
}

data="--train_data_dir $clips --resolution 384 --cache_dir $out/cache"
common="$data --validation_data_dir $held_out --temporal_loss difference --use_ema --max_train_steps 100000"
pixels="--temporal_weight 0.3 --wavelet_weight 0.1 --ssim_weight 0.5 --lr_warmup_steps 40 --ema_decay 0.99 --adam_beta2 0.99 --max_grad_norm 0.5 --reconstruction_every 20"

# 1. The latent space: it begins, and as good as ends, at the principal components of space-time patches.
python training/train_hr_autoencoder.py --network_config training/configs/small_autoencoder.json --linear_init $common \
    --max_train_seconds 420 --learning_rate 3e-4 --lr_warmup_steps 50 --adam_beta2 0.99 --ema_decay 0.99 \
    --crops 9x128x128 --train_batch_size 3 --output_dir $out/autoencoder

# 2. Upsampler and decoder together, from bicubic interpolation.
python training/train_latent_upsampler.py --network_config training/configs/small_latent_upsampler.json $common \
    $pixels --autoencoder $out/autoencoder --train_decoder --latent_weight 0 \
    --max_train_seconds 1080 --learning_rate 1e-4 --decoder_learning_rate 1e-3 \
    --crops 5x96x96 --train_batch_size 4 --output_dir $out/upsampler

# 3. The transformer with both.
python training/train_sr.py --network_config training/configs/small_sr_transformer.json $common $pixels \
    --autoencoder $out/upsampler/autoencoder --latent_upsampler $out/upsampler --train_decoder \
    --train_latent_upsampler --max_train_seconds 380 --learning_rate 7.5e-4 --decoder_learning_rate 5e-4 \
    --latent_upsampler_learning_rate 5e-5 --contrast_weight 0.4 \
    --crops 9x128x128 --train_batch_size 2 --output_dir $out/sr

assemble "$out/from_clips" "$out/sr/transformer" "$out/sr/latent_upsampler" "$out/sr/autoencoder"
networks="--autoencoder $out/from_clips --latent_upsampler $out/from_clips"

# 4. A teacher of several steps: dense, and half as wide again.
python - training/configs/small_sr_transformer.json "$out/teacher.json" <<'PYTHON'
import json
import sys
from pathlib import Path

student, teacher = map(Path, sys.argv[1:])
dense = {"num_attention_heads": 3, "ffn_dim": 384, "use_sparse_attention": False}
teacher.write_text(json.dumps(json.loads(student.read_text()) | dense, indent=2))
PYTHON
small="$networks $data --weigh_channels --condition_noise 0 0 --lr_warmup_steps 40 --adam_beta2 0.99 --use_ema --crops 9x128x128 5x128x128 --train_batch_size 1 2 --max_train_steps 100000"
python training/train_sr.py --objective flow_matching --network_config $out/teacher.json $small --condition_dropout 0 --text_dropout 0 \
    --flow_shift 0.3 --learning_rate 1e-3 --max_train_seconds 780 --output_dir $out/first_teacher
python training/train_sr.py --objective flow_matching --pretrained_model_name_or_path $out/first_teacher $small \
    --condition_dropout 0 --text_dropout 0 --flow_shift 2.5 --learning_rate 7e-4 --max_train_seconds 480 \
    --output_dir $out/sr_teacher

# 5. One sparse step, the decoder trained along. The perceptual loss needs the extra `perceptual`.
python training/distill_sr.py --teacher $out/sr_teacher --pretrained_model_name_or_path $out/from_clips $networks $data \
    --guidance_scale 1 --guidance_drops condition \
    --condition_noise 0 0 --weigh_channels --fake_updates 1 --fake_learning_rate 5e-4 --matching_weight 0.2 \
    --matching_levels 0.02 0.3 --temporal_loss difference --temporal_weight 1.2 --charbonnier_weight 1 --mse_weight 2 \
    --ssim_weight 0.3 --wavelet_weight 1 --perceptual_loss st_lpips_vgg --perceptual_weight 0.7 --reward packaged \
    --reward_weight 0.0005 --judged_frames 1 --train_decoder --decoder_learning_rate 5e-4 --reconstruction_every 20 \
    --learning_rate 5e-4 --lr_warmup_steps 40 --adam_beta2 0.99 --max_grad_norm 0.5 --use_ema --ema_decay 0.99 \
    --crops 5x128x128 9x128x128 --train_batch_size 2 1 --max_train_steps 100000 --max_train_seconds 3800 \
    --output_dir $out/sr_one_step
assemble "$out/distilled" "$out/sr_one_step/transformer" "$out/from_clips/latent_upsampler" "$out/sr_one_step/autoencoder"

# 6. All kinds of input: text, drawn films and grain beside the clips, these at up to 640 lines. The upsampler gets a trunk,
# the transformer is a new one of a single layer with one head, the decoder goes on; the encoder, and so the latent space, stays.
mkdir -p "$out/kinds"
ln -sfn "$(realpath "$clips")" "$out/kinds/clips"
python training/draw_clips.py --output $out/kinds/drawn --count 60 --seed 1
python training/draw_clips.py --output $out/kinds/world --count 40 --seed 7 --frames 13 --kinds world
python training/draw_clips.py --output $out/kinds/grain --grain $clips --seed 1 --frames 17
python - "$out/kinds" training/configs/small_sr_transformer.json <<'PYTHON'
import json
import sys
from pathlib import Path

kinds, transformer = map(Path, sys.argv[1:])
entries = []
for folder in ("clips", "drawn", "world", "grain"):
    named = kinds / folder / "metadata.jsonl"
    if named.is_file():
        rows = [json.loads(line) for line in named.read_text().splitlines()]
    else:
        rows = [{"file_name": path.name} for path in sorted((kinds / folder).iterdir())]
    files = ("file_name", "low_resolution_file_name")
    entries += [{name: f"{folder}/{row[name]}" for name in files if name in row} for row in rows]
(kinds / "metadata.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
small = json.loads(transformer.read_text()) | {"num_layers": 1, "num_attention_heads": 1, "ffn_dim": 128}
(kinds / "transformer.json").write_text(json.dumps(small, indent=2))
PYTHON
kinds="--train_data_dir $out/kinds --validation_data_dir $held_out --resolution 640 --cache_dir $out/cache --clip_frames 29 --degraded_versions 3 \
    --degradation training/configs/kinds_degradation.json --temporal_loss difference --use_ema --ema_decay 0.99 --adam_beta2 0.99 \
    --max_grad_norm 0.5 --lr_warmup_steps 40 --crops 9x128x128 --max_train_steps 100000"
python training/train_latent_upsampler.py --autoencoder $out/distilled --pretrained_model_name_or_path $out/distilled \
    --trunk_channels 96 --trunk_blocks 3 $kinds --decode_linearly --latent_weight 0 --temporal_weight 0.3 --wavelet_weight 0.1 \
    --ssim_weight 0.5 --learning_rate 5e-4 --train_batch_size 4 --max_train_seconds 560 --output_dir $out/upsampler_kinds
python training/train_sr.py --network_config $out/kinds/transformer.json --autoencoder $out/distilled \
    --latent_upsampler $out/upsampler_kinds $kinds --mse_weight 4 --ssim_weight 0.5 --wavelet_weight 0.3 --temporal_weight 0.4 \
    --contrast_weight 0.2 --perceptual_loss st_lpips_vgg --perceptual_weight 0.15 --judged_clips 1 --train_decoder \
    --train_latent_upsampler --reconstruction_every 20 --condition_every 8 --learning_rate 7e-4 --decoder_learning_rate 5e-4 \
    --latent_upsampler_learning_rate 4e-4 --lr_scheduler cosine --train_batch_size 4 --max_train_seconds 9000 --output_dir $out/sr_kinds

# 7. The text generator in the cascade's latent space: a small world that is drawn while it trains. It ships in half precision.
learn_the_world() {
    python training/train_seeded_generator.py --autoencoder $out/distilled --lr_scheduler cosine --lr_warmup_steps 100 \
        --adam_beta2 0.99 --use_ema --ema_decay 0.998 --dataloader_num_workers 1 "$@"
}
learn_the_world --network_config training/configs/seeded_generator.json --learning_rate 1e-3 --max_train_steps 3500 \
    --seed 0 --output_dir $out/generator_1
learn_the_world --pretrained_model_name_or_path $out/generator_1 --learning_rate 1e-3 --max_train_steps 2300 \
    --train_batch_size 12 --more_scenes 228 --places_weight 2 --seed 1 --output_dir $out/generator_2
learn_the_world --pretrained_model_name_or_path $out/generator_2 --learning_rate 1e-3 --max_train_steps 5200 \
    --places_weight 2 --seed 2 --output_dir $out/generator_3
learn_the_world --pretrained_model_name_or_path $out/generator_3 --learning_rate 6e-4 --max_train_steps 5000 \
    --places_weight 2 --seed 3 --output_dir $out/generator
assemble "$out/pipeline" "$out/sr_kinds/transformer" "$out/sr_kinds/latent_upsampler" "$out/sr_kinds/autoencoder" "$out/generator"

# 8. The quality scorer, which is no part of the pipeline.
python training/train_quality_scorer.py --train_data_dir $clips --validation_data_dir $held_out --resolution 384 \
    --learning_rate 2e-3 --adam_beta2 0.99 --ema_decay 0.995 --max_train_steps 1255 --use_ema --output_dir $out/quality_scorer
