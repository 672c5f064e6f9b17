# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The streaming pipeline as one call: sizes, seeds, prompts, steps, outputs, checkpoints; on real tiny networks."""

import json

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from diffusers.pipelines.pipeline_loading_utils import _get_custom_components_and_folders
from helpers.tiny import (
    TEMPORAL_RATIO,
    TEXT_DIM,
    TEXT_LENGTH,
    make_tiny_autoencoder,
    make_tiny_pipeline,
    make_tiny_text_encoder,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model_state_dict

from ultraflash_diffusers import DynamicCacheManagement, UltraFlashStreamingPipeline
from ultraflash_diffusers.pipelines.noise import SeededFrameNoise, draw_seeds
from ultraflash_diffusers.pipelines.sources import Source, SourceChunk, SourceEndedError

PIPE = make_tiny_pipeline()


def seed(number=0):
    return torch.Generator().manual_seed(number)


def clip(frames=33, height=8, width=12, batch=1, number=0):
    return torch.rand(batch, frames, 3, height, width, generator=seed(number))


def run(source=None, pipe=PIPE, generator=0, **arguments):
    """The video as a tensor, from a seed or from one for each video of the batch."""
    generators = [seed(number) for number in generator] if isinstance(generator, list) else seed(generator)
    return pipe(source=source, **{"output_type": "pt", "generator": generators, **arguments}).frames


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def differ(one, other):
    return (one - other).abs().max() > 1e-4


# ---- sizes and counts


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 19),
    width=st.integers(1, 19),
    frames=st.integers(1, 40),
    batch=st.integers(1, 2),
    scale=st.sampled_from([2, 3]),
    per_chunk=st.integers(1, 9),
)
def test_any_size_and_frame_count_comes_out_exactly(height, width, frames, batch, scale, per_chunk):
    pipe = SCALES[scale]
    chunks = list(pipe.stream(source=clip(frames, height, width, batch), frames_per_chunk=per_chunk, output_type="pt"))
    assert all(chunk.frames.shape == (batch, chunk.num_frames, 3, scale * height, scale * width) for chunk in chunks)
    edges = [edge for chunk in chunks for edge in chunk.frame_range]
    assert edges[0] == 0 and edges[-1] == frames and edges[1:-1:2] == edges[2::2]


SCALES = {scale: make_tiny_pipeline(scale=scale, generator=False, text=False) for scale in (2, 3)}


@settings(max_examples=10, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), frames=st.integers(1, 40))
def test_text_makes_exactly_the_size_and_frames_asked_for(height, width, frames):
    assert run(prompt="cat", height=height, width=width, num_frames=frames).shape == (1, frames, 3, height, width)


def test_text_uses_the_default_size_and_length():
    assert run(prompt="cat").shape == (1, 9, 3, 32, 48)
    assert run(prompt="cat", num_frames=1).shape == (1, 1, 3, 32, 48)


def test_num_frames_shortens_a_source():
    video = clip(33)
    assert run(video, num_frames=18).shape[1] == 18
    latents = PIPE.autoencoder.encode(video.transpose(1, 2)).latents
    assert run(latents, num_frames=18).shape[1] == 18


def test_padding_to_what_the_networks_divide_does_not_shift_the_picture():
    wide = clip(5, 8, 12)
    narrow = wide[..., :11]
    difference = (run(wide)[..., :22] - run(narrow)).abs().amax(dim=(0, 1, 2, 3))
    assert difference[:2].max() < difference[-2:].max()


def test_a_short_last_group_leaves_the_groups_before_it_alone():
    video = clip(33)
    group = 1 + TEMPORAL_RATIO * (PIPE.config.group_frames - 1)
    assert_close(run(video[:, : group + 2])[:, :group], run(video)[:, :group])


def test_the_future_never_changes_the_past():
    video = clip(33)
    changed = video.clone()
    changed[:, 20:] = 1 - changed[:, 20:]
    group = 1 + TEMPORAL_RATIO * (PIPE.config.group_frames - 1)
    assert group <= 20
    one, other = run(video), run(changed)
    assert torch.equal(one[:, :group], other[:, :group])
    assert differ(one[:, group:], other[:, group:])


# ---- what a video depends on


def test_the_seed_decides():
    video = clip()
    assert torch.equal(run(video, generator=1), run(video, generator=1))
    assert differ(run(video, generator=1), run(video, generator=2))


def test_without_a_generator_the_global_seed_decides():
    video = clip(5)
    results = []
    for number in (3, 3, 4):
        torch.manual_seed(number)
        results.append(PIPE(source=video, output_type="pt").frames)
    assert torch.equal(results[0], results[1])
    assert differ(results[0], results[2])


def test_a_generator_moves_on():
    generator = seed()
    assert draw_seeds(generator) != draw_seeds(generator)


def test_a_batch_is_its_videos_made_alone():
    videos = clip(batch=3)
    together = run(videos, prompt="a red ball", generator=[0, 1, 2])
    for number in range(3):
        alone = run(videos[number : number + 1], prompt="a red ball", generator=number)
        assert_close(together[number : number + 1], alone)


def test_a_batch_of_prompts_is_their_videos_made_alone():
    prompts = ["a red ball", "a blue cat"]
    together = run(prompt=prompts, num_frames=20, generator=[0, 1])
    for number, prompt in enumerate(prompts):
        assert_close(together[number : number + 1], run(prompt=prompt, num_frames=20, generator=number))


def test_one_generator_gives_the_videos_of_a_batch_different_noise():
    video = clip(9).expand(2, -1, -1, -1, -1)
    both = run(video)
    assert differ(both[0], both[1])
    assert_close(both[:1], run(video[:1]))


@pytest.mark.parametrize("pieces", [[1] * 33, [5, 28], [16, 16, 1]])
def test_the_delivery_of_frames_does_not_matter(pieces):
    video = clip(33)
    assert_close(run(iter(video[0].split(pieces))), run(video))


@pytest.mark.parametrize("pieces", [[1] * 9, [4, 5], [7, 2]])
def test_the_delivery_of_latents_does_not_matter(pieces):
    latents = torch.randn(2, 4, 9, 2, 3, generator=seed())
    assert_close(run(iter(latents.split(pieces, dim=2))), run(latents))


def test_the_prompt_reaches_both_networks():
    latents = torch.randn(1, 4, 5, 2, 3, generator=seed())
    assert differ(run(latents, prompt="a red ball"), run(latents, prompt="the cat"))
    assert torch.equal(run(latents), run(latents, prompt=""))
    assert differ(run(prompt="cat", num_frames=5), run(prompt="ball", num_frames=5))


def test_embeddings_stand_for_the_prompt():
    video = clip(9)
    embeds, none = PIPE.encode_prompt("a red ball")
    assert embeds.shape == (1, TEXT_LENGTH, TEXT_DIM) and none is None
    assert_close(run(video, prompt_embeds=embeds), run(video, prompt="a red ball"))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(PIPE.encode_prompt("a red ball")[0], embeds)


def test_padding_of_the_prompt_is_zero():
    embeds, _ = PIPE.encode_prompt(["a", "a red ball"])
    assert not embeds[0, 1:].any() and embeds[1, :3].all(dim=-1).all()
    assert PIPE.encode_prompt("a", max_sequence_length=2)[0].shape[1] == 2


def test_long_prompts_and_unknown_words_are_said(caplog):
    from diffusers.utils import logging

    logging.enable_propagation()
    embeds, _ = PIPE.encode_prompt("a red ball rolls over the table")
    assert embeds.shape[1] == TEXT_LENGTH
    PIPE.encode_prompt("a red ball rolls over the zebra")  # which is cut off
    assert "7 tokens" in caplog.text and "does not know" not in caplog.text
    PIPE.encode_prompt("a zebra rolls over cat mandu")
    assert "does not know 'zebra', 'mandu'" in caplog.text
    logging.disable_propagation()


# ---- the steps


def one_group():
    latents = torch.randn(1, 4, 4, 2, 4, generator=seed())
    condition = PIPE.latent_upsampler(latents).sample
    noise = SeededFrameNoise(draw_seeds(seed()), 1)
    shape = (4, *condition.shape[3:])
    return latents, condition, noise("sr", 0, 4, shape), noise("condition", 0, 4, shape)


def flow(noisy, condition, timestep, embeds):
    inputs = torch.cat([noisy, condition], dim=1)
    return PIPE.transformer(inputs, torch.tensor([timestep]), embeds, state=PIPE.transformer.new_stream()).sample


@torch.no_grad()
def test_one_step_is_noise_minus_flow():
    latents, condition, noise, _ = one_group()
    embeds, _ = PIPE.encode_prompt("")
    clean = noise - flow(noise, condition, 1000.0, embeds)
    assert_close(run(latents, output_type="latent"), clean)


@torch.no_grad()
def test_steps_guidance_and_condition_noise_follow_their_formulas():
    latents, condition, noise, other_noise = one_group()
    condition = 0.7 * condition + 0.3 * other_noise
    embeds = PIPE.encode_prompt("a red ball", "cat", True)
    sigmas = [1.5 * sigma / (1 + 0.5 * sigma) for sigma in (1, 2 / 3, 1 / 3)] + [0]  # the scheduler's shift is 1.5
    for sigma, next_sigma in zip(sigmas, sigmas[1:], strict=False):
        guided, unguided = (flow(noise, condition, 1000 * sigma, each) for each in embeds)
        noise = noise + (next_sigma - sigma) * (unguided + 4.0 * (guided - unguided))
    arguments = {"num_inference_steps": 3, "guidance_scale": 4.0, "condition_noise": 0.3}
    result = run(latents, prompt="a red ball", negative_prompt="cat", output_type="latent", **arguments)
    assert_close(result, noise)


def test_guidance_carries_a_cache_for_each_prompt():
    latents = torch.randn(1, 4, 9, 2, 3, generator=seed())
    arguments = {"prompt": "a red ball", "output_type": "latent"}
    plain = run(latents, **arguments)
    same = run(latents, guidance_scale=3.0, negative_prompt="a red ball", **arguments)
    assert_close(same, plain)
    assert differ(run(latents, guidance_scale=3.0, negative_prompt="cat", **arguments), plain)


def test_the_default_condition_noise_is_the_config_s():
    latents = torch.randn(1, 4, 4, 2, 3, generator=seed())
    noisy = make_tiny_pipeline(generator=False, condition_noise=0.5)
    assert torch.equal(run(latents, pipe=noisy), run(latents, condition_noise=0.5))
    assert differ(run(latents, pipe=noisy), run(latents))


def test_the_cache_policy_narrows_the_sr_window():
    latents = torch.randn(1, 4, 24, 2, 4, generator=seed())
    policy = DynamicCacheManagement(sr_warmup_groups=1)
    chunks = list(PIPE.stream(source=latents, cache_management=policy, generator=seed(), output_type="pt"))
    assert [chunk.statistics["sr_kv_cache_blocks"] for chunk in chunks] == [[3], [3], [2], [1], [1], [1]]
    managed = torch.cat([chunk.frames for chunk in chunks], dim=1)
    assert torch.equal(managed[:, :29], run(latents)[:, :29])
    assert differ(managed[:, 29:], run(latents)[:, 29:])


def test_the_cache_policy_reaches_the_generator():
    passes = []
    for policy in (None, DynamicCacheManagement(later_chunk_steps=2)):
        stream = PIPE.stream("cat", num_frames=36, cache_management=policy)
        passes.append([count for chunk in stream for count in chunk.statistics["generator_passes"]])
    assert passes == [[5, 5, 5, 5], [5, 3, 3, 3]]


# ---- clips that start anew


class TwoClips(Source):
    """Two independent clips of 5 latent frames, 17 pixel frames each but for the first one's last 2."""

    height, width = 8, 12

    def __init__(self, first):
        self.latents = [first, torch.randn(1, 4, 5, 2, 3, generator=seed(1))]

    def _chunks(self):
        yield SourceChunk(self.latents[0], 15)
        yield SourceChunk(self.latents[1], 17, restart=True)


def test_an_independent_clip_does_not_see_the_one_before():
    clips = [run(TwoClips(torch.randn(1, 4, 5, 2, 3, generator=seed(number)))) for number in (2, 3)]
    assert clips[0].shape[1] == 15 + 17
    assert differ(clips[0][:, :15], clips[1][:, :15])
    assert torch.equal(clips[0][:, 15:], clips[1][:, 15:])


# ---- after another pipeline


@pytest.fixture(scope="module")
def base():
    text_encoder, tokenizer = make_tiny_text_encoder()
    torch.manual_seed(0)
    wan = WanPipeline(
        tokenizer,
        text_encoder,
        AutoencoderKLWan(base_dim=3, num_res_blocks=1, dim_mult=[1, 1, 1, 1]),
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=12, text_dim=TEXT_DIM, freq_dim=16, ffn_dim=32, num_layers=1
        ),
    )
    wan.set_progress_bar_config(disable=True)
    return wan


def after(base, pipe=PIPE, **arguments):
    source_kwargs = {"num_inference_steps": 2, "max_sequence_length": TEXT_LENGTH}
    sizes = {"height": 64, "width": 96, "num_frames": 21}
    return run(base, pipe, source_kwargs=source_kwargs, **{"prompt": "a red ball", **sizes, **arguments})


def test_the_seed_and_the_prompt_reach_the_base_pipeline(base):
    video = after(base)
    assert video.shape == (1, 21, 3, 64, 96)
    assert_close(after(base), video)
    assert differ(after(base, generator=1), video)
    silent = make_tiny_pipeline(text=False, generator=False)
    assert differ(after(base, silent), after(base, silent, prompt="the cat"))


def test_a_stream_after_another_pipeline_resumes(base):
    whole = after(base)
    source_kwargs = {"num_inference_steps": 2, "max_sequence_length": TEXT_LENGTH}
    arguments = {"prompt": "a red ball", "source": base, "height": 64, "width": 96, "num_frames": 21}
    with PIPE.stream(**arguments, source_kwargs=source_kwargs, generator=seed(), output_type="pt") as stream:
        first = next(stream)
        state = first.state()
    rest = PIPE(**arguments, source_kwargs=source_kwargs, state=state, output_type="pt").frames
    assert_close(torch.cat([first.frames, rest], dim=1), whole)


# ---- outputs, callbacks, progress


def test_output_types():
    video = clip(9, batch=2)
    pt = run(video)
    assert pt.shape == (2, 9, 3, 16, 24) and 0 <= pt.min() and pt.max() <= 1
    np.testing.assert_allclose(run(video, output_type="np"), pt.permute(0, 1, 3, 4, 2).numpy())
    pil = run(video, output_type="pil")
    assert len(pil) == 2 and len(pil[0]) == 9 and isinstance(pil[1][8], PIL.Image.Image)
    assert np.abs(np.asarray(pil[1][8]) / 255 - pt[1, 8].permute(1, 2, 0).numpy()).max() < 1 / 255
    assert run(video, output_type="latent").shape == (2, 4, 3, 4, 6)


def test_latent_output_decodes_to_the_frames():
    video = clip(30)
    latents = run(video, output_type="latent")
    frames = PIPE.autoencoder.decode(latents).sample[:, :, :30]
    decoded = PIPE.video_processor.postprocess_video(frames, "pt")
    assert_close(run(video, color_correction="none"), decoded)


def test_return_dict():
    video = clip(2)
    (frames,) = PIPE(source=video, generator=seed(), output_type="pt", return_dict=False)
    assert torch.equal(frames, run(video))


def test_color_correction_keeps_the_source_s_colours():
    video = clip(9, 32, 32) * 0.2 + torch.tensor([0.7, 0.1, 0.4])[:, None, None]
    colours = video.mean(dim=(1, 3, 4))
    assert (run(video).mean(dim=(1, 3, 4)) - colours).abs().max() < 0.02
    assert (run(video, color_correction="none").mean(dim=(1, 3, 4)) - colours).abs().max() > 0.1


def test_color_correction_takes_as_much_as_the_checkpoint_says():
    video = clip(5, 16, 16)
    bicubic = torch.nn.functional.interpolate(video[0] * 2 - 1, scale_factor=2, mode="bicubic")
    expected = (bicubic / 2 + 0.5).clamp(0, 1)[None]
    for levels, equal in ((0, True), (2, False)):
        result = run(video, make_tiny_pipeline(color_correction_levels=levels))
        assert torch.allclose(result, expected, atol=1e-5) is equal


def test_callback_sees_and_replaces_tensors():
    latents = torch.randn(1, 4, 6, 2, 4, generator=seed())
    seen = []

    def callback(pipe, step, timestep, tensors):
        assert pipe is PIPE
        seen.append((step, round(timestep.item()), {name: tuple(value.shape) for name, value in tensors.items()}))
        return {"latents": torch.zeros_like(tensors["latents"])}

    result = run(
        latents,
        num_inference_steps=2,
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=["latents", "condition", "prompt_embeds"],
        output_type="latent",
    )
    shapes = {"latents": (1, 4, 4, 4, 8), "condition": (1, 4, 4, 4, 8), "prompt_embeds": (1, TEXT_LENGTH, TEXT_DIM)}
    assert seen == 2 * [(0, 1000, shapes), (1, 600, shapes)]
    assert not result.any()


def test_progress_bar_counts_frames(capsys):
    pipe = make_tiny_pipeline(generator=False)
    pipe.set_progress_bar_config(disable=False, desc="frames")
    run(clip(9), pipe=pipe, num_frames=9)
    assert "9/9" in capsys.readouterr().err
    run(iter(clip(9)[0]), pipe=pipe)
    assert "9it" in capsys.readouterr().err


# ---- checkpoints


def test_save_and_load(tmp_path):
    video = clip(9)
    PIPE.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    for name in ("transformer", "latent_upsampler", "autoencoder", "generator_transformer"):
        assert index[name][0] == "ultraflash_diffusers"
    assert _get_custom_components_and_folders(str(tmp_path), index, filenames=[])[0] == {}
    loaded = UltraFlashStreamingPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.config.group_frames == 4
    assert_close(run(video, pipe=loaded, prompt="a red ball"), run(video, prompt="a red ball"))


def test_save_and_load_without_optional_components(tmp_path):
    video = clip(5)
    small = make_tiny_pipeline(text=False, generator=False, condition_noise=0.2)
    small.save_pretrained(tmp_path)
    loaded = UltraFlashStreamingPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.text_encoder is None and loaded.generator_transformer is None
    assert_close(run(video, pipe=loaded), run(video, pipe=small))


def test_load_in_another_dtype(tmp_path):
    PIPE.save_pretrained(tmp_path)
    loaded = UltraFlashStreamingPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.dtype == torch.bfloat16
    video = clip(9)
    half, full = run(video, pipe=loaded).float(), run(video)
    assert half.shape == full.shape and (half - full).abs().mean() < 0.05
    assert run(prompt="cat", num_frames=5, pipe=loaded).isfinite().all()


def test_networks_may_have_different_dtypes():
    mixed = make_tiny_pipeline(generator=False)
    mixed.transformer.to(torch.bfloat16)
    video = clip(9)
    assert (run(video, pipe=mixed) - run(video)).abs().mean() < 0.05


def test_lora_round_trip(tmp_path):
    pipe, video = make_tiny_pipeline(generator=False), clip(5)
    plain = run(video, pipe=pipe)
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_v"], init_lora_weights=False)
    pipe.transformer.add_adapter(config, "trained")
    adapted = run(video, pipe=pipe)
    assert differ(adapted, plain)
    pipe.save_lora_weights(
        tmp_path,
        get_peft_model_state_dict(pipe.transformer, adapter_name="trained"),
        transformer_lora_adapter_metadata=pipe.transformer.peft_config["trained"].to_dict(),
    )

    other = make_tiny_pipeline(generator=False)
    other.load_lora_weights(tmp_path, adapter_name="style")
    assert other.get_active_adapters() == ["style"]
    assert_close(run(video, pipe=other), adapted)
    other.set_adapters("style", 0.0)
    assert_close(run(video, pipe=other), plain)
    other.set_adapters("style", 1.0)
    other.fuse_lora()
    assert_close(run(video, pipe=other), adapted)
    other.unfuse_lora()
    other.unload_lora_weights()
    assert_close(run(video, pipe=other), plain)


def test_lora_in_the_naming_of_the_original_wan_code():
    pipe, video = make_tiny_pipeline(generator=False), clip(5)
    plain = run(video, pipe=pipe)
    width = 24
    weights = {}
    for block in range(2):
        for attention in ("self_attn", "cross_attn"):
            for layer in "qkvo":
                name = f"diffusion_model.blocks.{block}.{attention}.{layer}"
                weights[f"{name}.lora_down.weight"] = torch.randn(2, width, generator=seed(block))
                weights[f"{name}.lora_up.weight"] = torch.randn(width, 2, generator=seed(block + 2))
    pipe.load_lora_weights(weights)
    assert differ(run(video, pipe=pipe), plain)


def test_foreign_weights_are_no_lora():
    with pytest.raises(ValueError, match="no LoRA.*blocks.0.weight"):
        make_tiny_pipeline().load_lora_weights({"transformer.blocks.0.weight": torch.zeros(1)})


def test_model_offloading_gives_the_same():
    pipe, video = make_tiny_pipeline(), clip(9)
    expected = run(video, prompt="a red ball"), run(prompt="cat", num_frames=20)
    pipe.enable_model_cpu_offload(device="cpu")
    assert not pipe.can_overlap_decoding
    for _ in range(2):  # the hooks are taken off and put on again at the end of each stream
        assert_close(run(video, pipe=pipe, prompt="a red ball"), expected[0])
        assert_close(run(prompt="cat", num_frames=20, pipe=pipe), expected[1])


def test_group_offloading_gives_the_same():
    pipe, video = make_tiny_pipeline(), clip(9)
    expected = run(video, pipe=pipe, prompt="a red ball")
    pipe.enable_group_offload(torch.device("cpu"), torch.device("cpu"), offload_type="leaf_level")
    assert_close(run(video, pipe=pipe, prompt="a red ball"), expected)


# ---- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": 3}, "`scale` is 3.* has scale 2"),
        ({"num_frames": 0}, "`num_frames` must be an integer of at least 1, got 0"),
        ({"num_inference_steps": 1.5}, "`num_inference_steps` must be an integer.*1.5"),
        ({"frames_per_chunk": 0}, "`frames_per_chunk`.*0"),
        ({"condition_noise": 1.2}, "`condition_noise` must be in .*1.2"),
        ({"output_type": "mp4"}, "`output_type`.*'mp4'"),
        ({"color_correction": "yes"}, "`color_correction`.*'yes'"),
        ({"height": 16}, "`height` is 16 and `width` is None"),
        ({"height": 100, "width": 24}, "height 8 .* expected .* height 50"),
        ({"prompt": "a", "prompt_embeds": torch.zeros(1, 1, TEXT_DIM)}, "`prompt` and `prompt_embeds`"),
        ({"prompt_embeds": torch.zeros(1, 1, 3)}, r"`prompt_embeds` must have shape .*\(1, 1, 3\)"),
        ({"prompt": ["a", "a"]}, "2 prompts, `source` gives a batch of 1"),
        ({"max_sequence_length": 99}, "`max_sequence_length` must be 1 to 6, got 99"),
        ({"callback_on_step_end": print, "callback_on_step_end_tensor_inputs": ["x"]}, "'x'"),
        ({"generator": [0, 1]}, "`generator` is a list of 2.* batch of 1"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        run(clip(5), **arguments)


def test_text_needs_a_prompt_and_a_generator():
    with pytest.raises(ValueError, match="`prompt`"):
        run(num_frames=5)
    with pytest.raises(ValueError, match="generator"):
        run(prompt="cat", num_frames=5, pipe=make_tiny_pipeline(generator=False))
    with pytest.raises(TypeError, match="`prompt` must be a text"):
        run(prompt=3, num_frames=5)


def test_a_prompt_needs_a_text_encoder():
    with pytest.raises(ValueError, match="`prompt` is 'cat', but the pipeline has no text encoder"):
        run(clip(5), prompt="cat", pipe=make_tiny_pipeline(text=False))


def test_networks_must_fit_together():
    with pytest.raises(ValueError, match="latent channels.*'autoencoder': 6"):
        run(clip(5), pipe=make_tiny_pipeline(autoencoder=make_tiny_autoencoder(latent_channels=6)))
    with pytest.raises(ValueError, match="`group_frames` must be an integer of at least 1, got 0"):
        run(clip(5), pipe=make_tiny_pipeline(group_frames=0))
    with pytest.raises(ValueError, match="without transformer"):
        run(clip(5), pipe=make_tiny_pipeline(transformer=None))


def test_a_source_that_ends_early_is_an_error():
    with pytest.raises(SourceEndedError, match="ended after 9 frames"):
        run(clip(9), num_frames=10)
