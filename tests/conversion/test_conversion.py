# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Published checkpoints through the converter: recorded cases, released layouts, other sizes, files, and refusals."""

from __future__ import annotations

import io
import json
import pickle
import re
import struct
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from helpers.small_disk import small_disk
from helpers.wan_cases import REFERENCE, TOLERANCE, Case, relative_error
from reference.deterministic import fill_layout
from safetensors.torch import save_file

from ultraflash_diffusers import CausalLatentUpsampler, CausalWanTransformer, HRAutoencoder, UltraFlashSRTransformer
from ultraflash_diffusers.conversion import convert_files, from_original, read_checkpoint


def layout(name: str) -> dict[str, torch.Tensor]:
    return fill_layout(REFERENCE / "layouts" / f"{name}.json")


def meta_layout(name: str) -> dict[str, torch.Tensor]:
    shapes = json.loads((REFERENCE / "layouts" / f"{name}.json").read_text())
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def without(config: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in names}


def public_config(network: Any) -> dict[str, Any]:
    """What JSON makes of the configuration, without diffusers' own bookkeeping."""
    return json.loads(json.dumps({key: value for key, value in network.config.items() if key[0] != "_"}))


def same_network(network: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Whether two networks have one class, config and weights."""
    weights, others = network.state_dict(), other.state_dict()
    return (
        type(network) is type(other)
        and public_config(network) == public_config(other)
        and weights.keys() == others.keys()
        and all(torch.equal(weights[key], others[key]) for key in weights)
    )


# --- recorded cases -------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", ["upsampler_v1_x2", "upsampler_v1_x3", "upsampler_v3_x2"])
def test_recorded_upsampler(name):
    case = Case(name)
    network = from_original(layout(name), **without(case.config, "stream_split", "inputs"))
    latents, split = case.input("latents"), case.config["stream_split"]
    first = network(latents[:, :, :split])
    second = network(latents[:, :, split:], state=first.state)
    assert relative_error(network(latents).sample, case.outputs["sample"]) < TOLERANCE
    assert relative_error(torch.cat([first.sample, second.sample], dim=2), case.outputs["sample"]) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("name", ["tiny_decoder", "ultra_decoder", "ultra_decoder_v3"])
def test_recorded_decoder(name):
    case = Case(name)
    network = from_original(layout(name), **without(case.config, "inputs"))
    latents = case.input("latents")
    first = network.decode(latents[:, :, :2])
    pixels = torch.cat([first.sample, network.decode(latents[:, :, 2:], state=first.state).sample], dim=2)
    raw = pixels if name == "ultra_decoder_v3" else pixels / 2 + 0.5
    assert relative_error(raw, case.outputs["decoded"]) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("name", ["tiny_decoder", "ultra_decoder"])
def test_recorded_encoder(name):
    case = Case(name)
    network = from_original(layout(name))
    pixels = case.input("pixels") * 2 - 1
    first = network.encode(pixels[:, :, :4])
    latents = torch.cat([first.latents, network.encode(pixels[:, :, 4:], state=first.state).latents], dim=2)
    assert relative_error(latents, case.outputs["encoded"]) < TOLERANCE


def test_recorded_transformers_have_the_published_settings():
    """That their outputs are the recorded ones is in the transformers' own tests, which convert them alike."""
    network = Case("sr_sparse_stream_chunk4").network()
    assert isinstance(network, UltraFlashSRTransformer)
    assert (network.config.num_attention_heads, network.config.attention_head_dim) == (2, 64)
    assert (network.config.chunk_size, network.config.local_range, network.config.reference_tokens) == (4, 5, 96)
    assert (network.config.use_sparse_attention, network.config.text_length) == (True, 16)
    network = Case("sr_dense_stream").network()
    assert (network.config.use_sparse_attention, network.config.reference_tokens) == (False, None)
    network = Case("generator_rolling_long").network()
    assert isinstance(network, CausalWanTransformer)
    assert (network.config.window_frames, network.config.sink_frames) == (12, 3)
    assert Case("generator_global").network().config.window_frames is None


# --- recognition ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, network_class, parameters",
    [
        ("released_sr_dit_sparse", UltraFlashSRTransformer, 1_419_095_104),
        ("released_self_forcing_dmd", CausalWanTransformer, 1_418_996_800),
        ("released_latent_upsampler", CausalLatentUpsampler, 4_814_352),
    ],
)
def test_released_layouts_map_key_by_key(name, network_class, parameters):
    state_dict = meta_layout(name)
    network = from_original(state_dict)
    assert type(network) is network_class
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert len(network.state_dict()) == len(state_dict)
    with torch.device("meta"):
        assert public_config(network) == public_config(network_class())


@pytest.mark.parametrize("prefix", ["", "model.", "module.", "model.diffusion_model.", "module._orig_mod.", "net."])
@pytest.mark.parametrize("name", ["upsampler_v1_x3", "upsampler_v3_x2", "generator_global"])
def test_prefixes(name, prefix):
    state_dict = layout(name)
    wrapped = {prefix + key: tensor for key, tensor in state_dict.items()}
    assert same_network(from_original(wrapped), from_original(state_dict))


def test_wrappers_in_the_middle_of_keys():
    state_dict = layout("sr_dense_full")
    wrapped = {
        "model._fsdp_wrapped_module."
        + re.sub(r"^blocks\.(\d+)\.", r"blocks.\1._checkpoint_wrapped_module._orig_mod.", key): tensor
        for key, tensor in state_dict.items()
    }
    assert same_network(from_original(wrapped), from_original(state_dict))


@pytest.mark.parametrize("keys", ["model", "generator", "generator_ema", "model.generator", "state_dict"])
def test_state_dicts_inside_of_training_checkpoints(keys):
    state_dict: dict[str, Any] = layout("upsampler_v1_x3")
    checkpoint = state_dict
    for key in reversed(keys.split(".")):
        checkpoint = {key: checkpoint, "step": 3, "optimizer": {"lr": 1e-3}}
    assert same_network(from_original(checkpoint), from_original(state_dict))


def test_where_the_weights_were_found_is_told(tmp_path):
    path = write(tmp_path / "training.pt", {"step": 1, "generator": {"model": layout("upsampler_v1_x3")}})
    (converted,) = convert_files([path], tmp_path / "out")
    assert converted.description.endswith("found under `generator.model`")


def test_averaged_weights_come_first():
    state_dict = layout("upsampler_v1_x3")
    averaged = {f"model.{key}": tensor + 1 for key, tensor in state_dict.items()}
    network = from_original({"generator": state_dict, "critic": {}, "generator_ema": averaged})
    assert torch.equal(network.final.bias, state_dict["final.bias"] + 1)


def both_sets(averaged_prefix: str = "model._fsdp_wrapped_module.") -> dict[str, Any]:
    """What a generator's trainer saves: the weights, their average, and what only training needs."""
    weights = layout("generator_rolling_sink")
    return {
        "generator": {f"model.{key}": tensor for key, tensor in weights.items()},
        "generator_ema": {f"{averaged_prefix}{key}": tensor + 1 for key, tensor in weights.items()},
        "critic": {"model.patch_embedding.weight": torch.zeros(3)},
        "generator_optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-5}]},
        "step": 600,
    }


@pytest.mark.parametrize("use_ema, added", [(True, 1), (False, 0), (None, 1)])
def test_which_of_two_sets_of_weights_is_meant(use_ema, added):
    settings = {} if use_ema is None else {"use_ema": use_ema}
    network = from_original(both_sets(), num_heads=2, **settings)
    expected = layout("generator_rolling_sink")["head.head.bias"] + added
    assert torch.equal(network.proj_out.bias, expected)


def test_averaged_weights_that_are_not_there(tmp_path):
    checkpoint = both_sets()
    alone = {"generator_ema": checkpoint.pop("generator_ema")}
    with pytest.raises(ValueError, match="`use_ema` is True, but there are no averaged weights .* are `generator`"):
        from_original(checkpoint, num_heads=2, use_ema=True)
    with pytest.raises(ValueError, match="`use_ema` is True, but there are no averaged weights .* are bare tensors"):
        from_original(layout("upsampler_v1_x3"), use_ema=True)
    with pytest.raises(ValueError, match="`use_ema` is False, but .* averaged weights alone, under 'generator_ema'"):
        from_original(alone, num_heads=2, use_ema=False)
    with pytest.raises(ValueError, match="setting `use_ema` is 'yes'; expected True or False"):
        from_original(alone, num_heads=2, use_ema="yes")
    files = [write(tmp_path / "generator.pt", alone), write(tmp_path / "upsampler.pth", layout("upsampler_v1_x3"))]
    generator, upsampler = convert_files(files, tmp_path / "out", {"num_heads": 2, "use_ema": True})
    assert generator.description.endswith("found under `generator_ema`")
    assert "found" not in upsampler.description


SCHEDULES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "released": ({}, {"first_chunk_frames": None, "denoising_steps": [1000, 750, 500, 250], "flow_shift": 5.0}),
    "long": (
        {"independent_first_frame": True, "num_frame_per_block": 3, "local_attn_size": 12, "sink_size": 3},
        {"first_chunk_frames": 1, "frames_per_chunk": 3, "window_frames": 12, "sink_frames": 3},
    ),
    "frame by frame": (
        {"num_frame_per_block": 1, "independent_first_frame": False, "local_attn_size": -1},
        {"first_chunk_frames": None, "frames_per_chunk": 1, "window_frames": None},
    ),
    "two steps": (
        {"denoising_step_list": [1000, 500], "denoising_step_list_first_chunk": [1000, 750, 500, 250]},
        {"denoising_steps": [1000, 500], "first_chunk_denoising_steps": [1000, 750, 500, 250]},
    ),
    "shift": ({"timestep_shift": 8, "warp_denoising_step": True}, {"flow_shift": 8.0}),
    "steps as they are": ({"warp_denoising_step": False}, {"flow_shift": 1.0}),
    "context noise": ({"context_noise": 100}, {"context_noise": 100.0}),
    "sink kept": ({"global_sink": True}, {"recompute_on_prompt_change": True, "recompute_sink": False}),
    "sink replaced": ({"global_sink": False}, {"recompute_on_prompt_change": True, "recompute_sink": True}),
    "prompt change": ({"recompute_on_prompt_change": True}, {"recompute_on_prompt_change": True}),
    "no prompt change": ({}, {"recompute_on_prompt_change": False}),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_published_options_of_the_schedule(name):
    published, ours = SCHEDULES[name]
    network = from_original(meta_layout("generator_global"), num_heads=2, **published)
    assert {key: public_config(network)[key] for key in ours} == ours
    again = from_original(meta_layout("generator_global"), num_heads=2, **ours)
    assert public_config(again) | ours == public_config(network) | ours


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"denoising_step_list": [250, 500]}, r"`denoising_steps` must decrease inside \(0, 1000\], got \(250, 500\)"),
        ({"denoising_step_list": []}, "`denoising_steps` must decrease"),
        ({"denoising_step_list": 1000}, "`denoising_step_list` is 1000; expected a list of numbers"),
        ({"denoising_step_list": ["1000"]}, r"`denoising_step_list` is \('1000',\); expected a list of numbers"),
        ({"denoising_step_list_first_chunk": [1000, 1000]}, "`first_chunk_denoising_steps` must decrease"),
        ({"local_attn_size": 5, "sink_size": 3}, "`window_frames` must hold `sink_frames` 3 and a chunk .* 3, got 5"),
        ({"independent_first_frame": True, "first_chunk_frames": 3}, "contradict each other"),
        ({"global_sink": True, "recompute_sink": True}, "`recompute_sink` .True. and `global_sink` .True. contradict"),
        ({"denoising_steps": [1000], "denoising_step_list": [1000, 500]}, "contradict each other"),
        ({"timestep_shift": 0}, "`flow_shift` must be positive"),
        ({"independent_first_frame": 1}, "`independent_first_frame` is 1; expected a value like True"),
    ],
)
def test_schedules_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        from_original(meta_layout("generator_global"), num_heads=2, **settings)


def test_what_has_no_effect_is_named(tmp_path):
    path = write(tmp_path / "generator.pt", layout("generator_rolling_sink"))
    given: dict[str, Any] = {
        "num_heads": 2,
        "global_sink": True,
        "recompute_on_prompt_change": False,
        "rope_max_seq_len": 1024,
    }
    given |= {"warp_denoising_step": False, "timestep_shift": 5.0}
    (converted,) = convert_files([path], tmp_path / "out", given)
    assert set(converted.without_effect) == {"global_sink", "rope_max_seq_len", "timestep_shift"}
    (converted,) = convert_files([path], tmp_path / "out", {"num_heads": 2, "global_sink": True})
    assert converted.without_effect == ()


def original_wan_spelling(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """diffusers' spelling of Wan weights to the original one, independently of the converter."""
    pairs = [
        (r"condition_embedder\.text_embedder\.linear_1", "text_embedding.0"),
        (r"condition_embedder\.text_embedder\.linear_2", "text_embedding.2"),
        (r"condition_embedder\.time_embedder\.linear_1", "time_embedding.0"),
        (r"condition_embedder\.time_embedder\.linear_2", "time_embedding.2"),
        (r"condition_embedder\.time_proj", "time_projection.1"),
        (r"^scale_shift_table", "head.modulation"),
        (r"^proj_out", "head.head"),
        (r"scale_shift_table", "modulation"),
        (r"attn1", "self_attn"),
        (r"attn2", "cross_attn"),
        (r"to_([qkv])\.", r"\1."),
        (r"to_out\.0", "o"),
        (r"\.norm2\.", ".norm3."),
        (r"ffn\.net\.0\.proj", "ffn.0"),
        (r"ffn\.net\.2", "ffn.2"),
    ]
    renamed = {}
    for key, tensor in state_dict.items():
        for ours, published in pairs:
            key = re.sub(ours, published, key)
        renamed[key] = tensor
    return renamed


@torch.no_grad()
def test_any_wan_checkpoint_in_both_spellings_gives_the_numbers_of_diffusers():
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 3, "attention_head_dim": 24, "in_channels": 4, "out_channels": 4, "text_dim": 10}
    wan = WanTransformer3DModel(**sizes, freq_dim=32, ffn_dim=40, num_layers=2, rope_max_seq_len=64).eval()
    latents, text = torch.randn(2, 4, 3, 8, 6), torch.randn(2, 7, 10)
    expected = wan(latents, torch.tensor([700, 300]), text, return_dict=False)[0]
    for state_dict in (wan.state_dict(), original_wan_spelling(wan.state_dict())):
        network = from_original(state_dict, num_heads=3, text_len=7)
        assert isinstance(network, CausalWanTransformer)
        actual = network(latents, torch.tensor([700, 300]), text).sample
        assert relative_error(actual, expected) < TOLERANCE


@pytest.mark.parametrize("cross_attn_norm", [True, False])
@pytest.mark.parametrize("network_class", [UltraFlashSRTransformer, CausalWanTransformer])
def test_transformers_of_other_sizes(network_class, cross_attn_norm):
    channels = {"in_channels": 10 if network_class is UltraFlashSRTransformer else 5, "out_channels": 5}
    sizes = {"patch_size": (2, 1, 2), "attention_head_dim": 128, "num_attention_heads": 1, "text_dim": 9}
    sizes |= {"freq_dim": 12, "ffn_dim": 20, "num_layers": 11, "cross_attn_norm": cross_attn_norm}
    network = network_class(**channels, **sizes).eval()
    assert same_network(from_original(original_wan_spelling(network.state_dict())), network)


UPSAMPLERS: dict[str, dict[str, Any]] = {
    "x1": {"scale": 1, "channels": (7,), "num_blocks": (2,), "residual": True},
    "x2 deep": {"scale": 2, "channels": (6,), "num_blocks": (12,), "in_channels": 5, "out_channels": 3},
    "x4": {"scale": 4, "channels": (9,), "num_blocks": (1,), "memory_init": "zero", "activation": "silu"},
    "x6": {"scale": 6, "channels": (5,), "num_blocks": (1,), "residual": True, "residual_scale": 0.25},
    "v3 x1": {"layout": "v3", "scale": 1, "channels": (6, 5, 4), "num_blocks": (1, 1, 1), "residual": True},
    "v3 x4": {"layout": "v3", "scale": 4, "temporal_scale": 2, "channels": (6, 5, 4), "num_blocks": (2, 1, 3)},
    "v3 x8": {"layout": "v3", "scale": 8, "temporal_scale": 8, "channels": (4, 4, 4), "num_blocks": (1, 1, 1)}
    | {"residual": True, "activation": "gelu"},
}
NOT_SHOWN = ("activation", "memory_init", "residual_scale")


def published_spelling(network: torch.nn.Module, v3: bool) -> dict[str, torch.Tensor]:
    """The keys of a causal memory network as the published code calls them, read off the modules."""
    upsampling = {name for name, module in network.named_modules() if type(module).__name__ == "PixelShuffleUpsample"}
    renamed = {}
    for key, tensor in network.state_dict().items():
        layer = key.rpartition(".conv.")[0]
        if layer in upsampling:
            key = key.replace(f"{layer}.conv.", f"{layer}.{'block' if v3 else 'up'}.0.")
        if v3 and key.startswith("decoder."):
            key = key.replace("decoder.", "net.", 1)
        renamed[key] = tensor
    return renamed


@pytest.mark.parametrize("name", UPSAMPLERS)
def test_upsamplers_of_other_sizes(name):
    config = UPSAMPLERS[name]
    network = CausalLatentUpsampler(**config).eval()
    state_dict = published_spelling(network, v3=True)
    if name == "v3 x1":
        state_dict = {key.replace("skip_up.0.", "skip_up."): tensor for key, tensor in state_dict.items()}
    settings = {key: value for key, value in config.items() if key in NOT_SHOWN}
    assert same_network(from_original(state_dict, **settings), network)


def test_published_and_own_names_of_what_tensors_show():
    settings = {"in_channels": 16, "out_channels": 3, "stage_channels": [256, 128, 64], "blocks_per_stage": 3}
    settings |= {"spatial_scale": 8, "temporal_scale": 4, "temporal_stage_factors": [1, 2, 2], "residual": False}
    network = from_original(meta_layout("ultra_decoder_v3"), **settings)
    for name in ("tiny_decoder", "ultra_decoder", "ultra_decoder_v3", "upsampler_v1_x2", "sr_dense_full"):
        network = from_original(meta_layout(name))
        own = {key: value for key, value in network.config.items() if key[0] != "_"}
        if name == "ultra_decoder_v3":  # `in_channels` is what its published class calls the latents'
            del own["in_channels"]
        assert public_config(from_original(meta_layout(name), **own)) == public_config(network)


def test_an_upsampler_with_a_trunk():
    network = CausalLatentUpsampler(channels=(6,), num_blocks=(1,), trunk_channels=5, trunk_blocks=2, residual=True)
    converted = from_original(network.state_dict())
    assert same_network(converted, network.eval())
    assert (converted.config.in_channels, converted.config.trunk_channels, converted.config.trunk_blocks) == (16, 5, 2)
    with pytest.raises(ValueError, match="`trunk_blocks` is 3, but the checkpoint's tensors show 2"):
        from_original(network.state_dict(), trunk_blocks=3)


@pytest.mark.parametrize("variant", ["tiny", "ultra", "v3"])
@pytest.mark.parametrize("patch_size", [1, 2])
def test_autoencoders_of_other_sizes(variant, patch_size):
    config = {"variant": variant, "latent_channels": 5, "patch_size": patch_size, "decoder_channels": (9, 7, 6)}
    config |= {"decoder_blocks": (1, 2, 3), "encoder_channels": (4, 5, 6), "encoder_blocks": (2, 1, 1)}
    if variant == "v3":  # published without an encoder
        config |= {"encoder_channels": (), "encoder_blocks": ()}
        config |= {"encoder_spatial_strides": (), "encoder_temporal_strides": ()}
    network = HRAutoencoder(**config).eval()
    converted = from_original(published_spelling(network, v3=variant == "v3"))
    assert same_network(converted, network)
    assert converted.has_encoder is (variant != "v3")


@pytest.mark.parametrize("name", ["tiny_decoder", "ultra_decoder"])
def test_decoder_alone(name):
    alone = {key: tensor for key, tensor in layout(name).items() if key.startswith("decoder.")}
    network, whole = from_original(alone), from_original(layout(name))
    assert not network.has_encoder
    latents = torch.randn(1, 16, 2, 2, 3)
    with torch.no_grad():
        assert torch.equal(network.decode(latents).sample, whole.decode(latents).sample)


def test_last_rows_of_older_wider_temporal_grow_weights():
    state_dict = layout("tiny_decoder")
    for layer, rows in ((7, 512), (13, 512), (19, 128)):
        weight = state_dict[f"decoder.{layer}.conv.weight"]
        state_dict[f"decoder.{layer}.conv.weight"] = torch.cat([torch.full_like(weight, 9.0)[:rows], weight])[-rows:]
    assert same_network(from_original(state_dict), from_original(layout("tiny_decoder")))


def test_decoders_that_grow_less():
    alone = {key: tensor for key, tensor in layout("tiny_decoder").items() if key.startswith("decoder.")}
    network = from_original(alone, decoder_time_upscale=[False, True], decoder_space_upscale=[True, True, False])
    assert (network.temporal_compression_ratio, network.spatial_compression_ratio) == (2, 4)
    weight = alone["decoder.13.conv.weight"]
    assert torch.equal(network.decoder[13].conv.weight, weight[-128:])


def test_parameters_are_the_given_tensors():
    state_dict = layout("upsampler_v1_x2")
    network = from_original(state_dict)
    assert network.final.weight.data_ptr() == state_dict["final.weight"].data_ptr()
    assert not network.training


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["upsampler_v1_x2", "upsampler_v3_x2", "ultra_decoder", "ultra_decoder_v3"])
def test_each_missing_key_is_named(name):
    shapes = meta_layout(name)
    first_of_family = {"pre_shuffle.0.weight", "net.0.weight", "decoder.1.weight"}
    for key in shapes:
        expected = "holds no network" if key in first_of_family else "missing keys: .*" + re.escape(f"`{key}`")
        with pytest.raises(ValueError, match=expected):
            from_original({other: tensor for other, tensor in shapes.items() if other != key})


@pytest.mark.parametrize("name", ["sr_dense_full", "generator_global"])
def test_each_missing_transformer_key_is_named(name):
    shapes = meta_layout(name)
    for key in shapes:
        expected = "holds no network" if key == "patch_embedding.weight" else "missing keys: " + re.escape(f"`{key}`")
        if ".norm3." not in key:  # without it there is no such norm; then its other half is left over
            with pytest.raises(ValueError, match=expected):
                from_original({other: tensor for other, tensor in shapes.items() if other != key})
    shapes.pop("blocks.0.norm3.bias")
    with pytest.raises(ValueError, match="missing keys: `blocks.0.norm3.bias`"):
        from_original(shapes)


@pytest.mark.parametrize(
    "name", ["upsampler_v1_x2", "upsampler_v3_x2", "tiny_decoder", "ultra_decoder_v3", "sr_dense_full"]
)
def test_left_over_keys_are_listed(name):
    shapes = meta_layout(name)
    shapes |= {"img_emb.proj.0.weight": torch.empty(3), "blocks.99.unknown": torch.empty(3)}
    with pytest.raises(ValueError, match="`img_emb.proj.0.weight`"):
        from_original(shapes)


def test_wrong_shapes_and_dtypes_are_named():
    shapes = meta_layout("upsampler_v1_x2")
    with pytest.raises(ValueError, match=r"`final.bias` has shape \(15,\), expected \(16,\)"):
        from_original(shapes | {"final.bias": torch.empty(15)})
    with pytest.raises(ValueError, match=r"`final.bias` has dtype torch.int8"):
        from_original(shapes | {"final.bias": torch.empty(16, dtype=torch.int8)})
    with pytest.raises(ValueError, match=r"`final.weight` has shape \(16,\), expected 4 axes"):
        from_original(shapes | {"final.weight": torch.empty(16)})


@pytest.mark.parametrize(
    "name, settings, message",
    [
        ("upsampler_v1_x2", {"upsample_scale": 3}, r"`upsample_scale` is 3, but the checkpoint's tensors show 2"),
        ("upsampler_v1_x2", {"mid_channels": 32}, r"`mid_channels` is 32, but .* show \(24,\)"),
        ("upsampler_v1_x2", {"num_blocks": 8}, "`num_blocks` is 8"),
        ("upsampler_v1_x2", {"residual": True}, "`residual` is True"),
        ("upsampler_v1_x2", {"variant": "v3"}, "`variant` is 'v3'"),
        ("upsampler_v1_x2", {"memory_init": 0}, "`memory_init` is 0; expected a value like 'replicate'"),
        ("upsampler_v1_x2", {"memory_init": "ones"}, "`memory_init`"),
        ("upsampler_v1_x2", {"num_heads": 2}, "unknown setting `num_heads` for v1 latent upsampler; known: .*scale"),
        ("upsampler_v3_x2", {"stage_channels": [24, 16, 9]}, r"show \(24, 16, 8\)"),
        ("upsampler_v3_x2", {"blocks_per_stage": 2}, "`blocks_per_stage` is 2"),
        ("upsampler_v3_x2", {"temporal_scale": 2}, "`temporal_scale` is 2"),
        ("ultra_decoder", {"variant": "tiny"}, "`variant` is 'tiny'"),
        ("tiny_decoder", {"memory_init": "replicate"}, "`memory_init` is 'replicate'; only 'zero'"),
        ("tiny_decoder", {"decoder_time_upscale": [True, True, True]}, "expected a value like"),
        ("tiny_decoder", {"decoder_temporal_strides": [2, 2, 2]}, r"strides \(2, 2, 2\) were asked for"),
        ("sr_dense_full", {"num_heads": 3}, "`num_attention_heads` is 3, which does not divide the width 128"),
        ("sr_dense_full", {"num_heads": 2, "num_attention_heads": 4}, "contradict each other"),
        ("sr_dense_full", {"num_heads": 2, "attention_head_dim": 32}, "do not give the width 128"),
        ("sr_dense_full", {"num_heads": 0}, "`num_attention_heads` is 0"),
        ("sr_dense_full", {"text_dim": 4096}, "`text_dim` is 4096, but the checkpoint's tensors show 48"),
        ("sr_dense_full", {"dim": 1536}, "`dim` is 1536"),
        ("sr_dense_full", {"model_type": "i2v"}, "only 't2v' is supported"),
        ("sr_dense_full", {"sparse_top_k": 4}, "`sparse_top_k` is 4; only None"),
        ("sr_dense_full", {"sparse_causal": False}, "`sparse_causal` is False; only True"),
        ("sr_dense_full", {"sparse_local_range": 9.5}, "`sparse_local_range` is 9.5; expected a value like 9"),
        ("sr_dense_full", {"sink_size": 3}, "unknown setting `sink_size` for SR transformer"),
        ("generator_global", {"sparse_local_range": 9}, "unknown setting `sparse_local_range` for streaming"),
        ("generator_global", {"local_attn_size": 2}, "`window_frames`"),
    ],
)
def test_settings_that_do_not_fit(name, settings, message):
    with pytest.raises(ValueError, match=message):
        from_original(meta_layout(name), **settings)


@pytest.mark.parametrize(
    "checkpoint, message",
    [
        ({}, "holds no tensors"),
        ({"model": {}}, "holds no tensors under 'model'"),
        ({"weight": torch.empty(3)}, "holds no network that is known: of its 1 keys 0 end with"),
        ({"epoch": 3, "optimizer": {}}, "neither a state dict .* it has `epoch`, `optimizer`"),
        ({"patch_embedding.weight": torch.empty(8, 36, 1, 2, 2), "head.head.weight": torch.empty(64, 8)}, "36 input"),
        ({"a.net.0.weight": torch.empty(1), "b.net.0.weight": torch.empty(1)}, "2 end with"),
        ({"a.net.0.weight": torch.empty(1), "b.x": torch.empty(1)}, "left-over keys, without the prefix `a.`"),
        ({"net.0.weight": torch.empty(1), "_orig_mod.net.0.weight": torch.empty(1)}, "is there twice"),
    ],
)
def test_foreign_state_dicts(checkpoint, message):
    with pytest.raises(ValueError, match=message):
        from_original(checkpoint)


def test_the_clip_of_a_wan_image_encoder_is_foreign():
    with pytest.raises(ValueError, match="left-over|holds no network"):
        from_original({"visual.patch_embedding.weight": torch.empty(8, 3, 14, 14), "log_scale": torch.empty(1)})


def test_v3_upsampler_with_other_stage_factors():
    with torch.device("meta"):
        state_dict = published_spelling(CausalLatentUpsampler("v3", channels=(4, 4, 4), num_blocks=(1, 1, 1)), v3=True)
    moved = {key.replace("net.3.block", "net.7.block"): tensor for key, tensor in state_dict.items()}
    with pytest.raises(ValueError, match=r"spatial factors \(1, 2, 1\); only \(2, 1, 1\)"):
        from_original(moved)


# --- files ----------------------------------------------------------------------------------------------------------


def write(path: Path, state_dict: dict[str, Any]) -> Path:
    if path.suffix == ".safetensors":
        save_file(state_dict, path)
    else:
        torch.save(state_dict, path)
    return path


def write_shards(folder: Path, state_dict: dict[str, torch.Tensor]) -> Path:
    keys = sorted(state_dict)
    shards = {"a-00001-of-00002.safetensors": keys[::2], "a-00002-of-00002.safetensors": keys[1::2]}
    for name, part in shards.items():
        save_file({key: state_dict[key] for key in part}, folder / name)
    index = folder / "a.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {key: name for name, part in shards.items() for key in part}}))
    return index


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".bin", ".safetensors"])
def test_files_convert_to_what_from_pretrained_loads(suffix, tmp_path):
    state_dict = layout("upsampler_v1_x3")
    path = write(tmp_path / f"published{suffix}", state_dict)
    (converted,) = convert_files([path], tmp_path / "a" / "b", {"upsample_scale": 3})
    assert (converted.component, converted.class_name) == ("latent_upsampler", "CausalLatentUpsampler")
    assert converted.description == "v1 latent upsampler (x3, 2 blocks of 16 channels)"
    assert same_network(CausalLatentUpsampler.from_pretrained(tmp_path / "a" / "b"), from_original(state_dict))


def test_sharded_and_pre_zip_files(tmp_path):
    state_dict = layout("upsampler_v1_x3")
    index = write_shards(tmp_path, state_dict)
    old = tmp_path / "old.pth"
    torch.save(state_dict, old, _use_new_zipfile_serialization=False)
    for path in (index, old):
        assert same_network(from_original(read_checkpoint(path)), from_original(state_dict))
    (tmp_path / "a-00001-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="a-00001-of-00002"):
        read_checkpoint(index)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux' list of mapped files")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_stay_in_the_file(suffix, tmp_path):
    path = write(tmp_path / f"published{suffix}", layout("upsampler_v1_x2"))
    network = from_original(read_checkpoint(path))
    spans = [line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line]
    mapped = [range(*(int(end, 16) for end in span.split("-"))) for span in spans]
    assert all(any(p.data_ptr() in span for span in mapped) for p in network.parameters())


def test_several_files_become_one_folder(tmp_path):
    names = {"transformer": "sr_dense_full", "generator_transformer": "generator_rolling_sink"}
    names |= {"latent_upsampler": "upsampler_v3_x2", "autoencoder": "ultra_decoder"}
    classes = {"transformer": UltraFlashSRTransformer, "generator_transformer": CausalWanTransformer}
    classes |= {"latent_upsampler": CausalLatentUpsampler, "autoencoder": HRAutoencoder}
    files = [write(tmp_path / f"{name}.pth", {"model": layout(name)}) for name in names.values()]
    settings = {"num_heads": 2, "local_attn_size": 6, "sink_size": 3}
    converted = convert_files(files, tmp_path / "out", settings)
    assert [item.component for item in converted] == list(names)
    for component, name in names.items():
        network = classes[component].from_pretrained(tmp_path / "out" / component)
        known = {"transformer": ("num_heads",), "generator_transformer": tuple(settings)}.get(component, ())
        assert same_network(network, from_original(layout(name), **{key: settings[key] for key in known}))


def test_dtype_keeps_what_the_network_keeps_in_float32(tmp_path):
    path = write(tmp_path / "sr.pth", layout("sr_dense_full"))
    convert_files([path], tmp_path / "out", {"num_heads": 2}, dtype=torch.bfloat16)
    network = UltraFlashSRTransformer.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    expected = from_original(layout("sr_dense_full"), num_heads=2)
    for name, parameter in network.named_parameters():
        original = expected.get_parameter(name)
        kept = set(name.split(".")) & set(network._keep_in_fp32_modules)
        assert parameter.dtype is (torch.float32 if kept else torch.bfloat16)
        assert torch.equal(parameter, original if kept else original.bfloat16())


def crafted_files() -> dict[str, Any]:
    """Files that claim, name or contain more than they are long; none may be followed."""
    loop: dict[str, Any] = {"step": 1}
    loop["model"] = loop
    nested: dict[str, Any] = {}
    for _ in range(200):
        nested = {"model": nested}
    return {
        "loop": loop,
        "nested": nested,
        "strides": {"pre_shuffle.0.weight": torch.zeros(1).expand(10**6, 10**5, 2)},
        "sparse": {"pre_shuffle.0.weight": torch.zeros(10, 10).to_sparse()},
        "meta": {"pre_shuffle.0.weight": torch.empty(10**6, 10**6, device="meta")},
        "block": layout("upsampler_v1_x3") | {"blocks.100000.skip.weight": torch.zeros(1)},
        "layer": layout("upsampler_v3_x2") | {"net.999999999.weight": torch.zeros(8, 8, 3, 3)},
    }


@pytest.mark.parametrize(
    "name, message",
    [
        ("loop", "neither a state dict"),
        ("nested", "more than 16 containers"),
        ("strides", r"`pre_shuffle.0.weight` of shape .* claims 800000000000 bytes, its part of the file has 4"),
        ("sparse", "`pre_shuffle.0.weight` is no plain tensor"),
        ("meta", "`pre_shuffle.0.weight` is no plain tensor"),
        ("block", "left-over keys: `blocks.100000.skip.weight`"),
        ("layer", "does not fit a v3"),
    ],
)
def test_crafted_files_are_refused_at_once(name, message, tmp_path):
    path = write(tmp_path / "crafted.pth", crafted_files()[name])
    start = time.monotonic()
    with pytest.raises(ValueError, match=f"crafted.pth.*{message}"):
        convert_files([path], tmp_path / "out")
    assert time.monotonic() - start < 10
    assert not (tmp_path / "out").exists()


def test_compressed_archives_are_refused(tmp_path):
    """torch.load would map the compressed bytes as if they were weights."""
    plain, packed = write(tmp_path / "plain.pth", layout("upsampler_v1_x3")), tmp_path / "packed.pth"
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    with pytest.raises(ValueError, match="packed.pth.*its entries are compressed"):
        read_checkpoint(packed)


def test_archives_whose_entries_overlap_are_refused(tmp_path):
    path = write(tmp_path / "plain.pth", {"weight": torch.zeros(10_000)})
    content = path.read_bytes()
    central = content.index(b"PK\x01\x02")
    claimed = content.replace(struct.pack("<I", 40_000), struct.pack("<I", 4_000_000_000))
    path.write_bytes(content[:central] + claimed[central:])
    with pytest.raises(ValueError, match="plain.pth"):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["a.safetensors.index.json", "../b.safetensors", "/etc/hostname", "b.pth"])
def test_an_index_names_safetensors_beside_it_alone(name, tmp_path):
    index = tmp_path / "a.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"weight": name}}))
    with pytest.raises(ValueError, match="a.safetensors.index.json.* names `.*expected .safetensors files beside it"):
        read_checkpoint(index)


class Exploit:
    def __reduce__(self):
        return print, ("code ran",)


def damaged_files() -> dict[str, bytes]:
    buffer = io.BytesIO()
    torch.save(layout("upsampler_v1_x3"), buffer)
    whole = buffer.getvalue()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0x40
    pickled = pickle.dumps({"model": Exploit()})
    zipped = io.BytesIO()
    torch.save({"model": Exploit()}, zipped)
    return {
        "empty.pth": b"",
        "empty.safetensors": b"",
        "text.pth": b"Entry not found",
        "html.safetensors": b"<!doctype html>" * 100,
        "truncated.pth": whole[: len(whole) // 2],
        "flipped.pth": bytes(flipped),
        "code.pth": pickled,
        "zipped_code.pth": zipped.getvalue(),
        "truncated.safetensors": b"\x40\0\0\0\0\0\0\0{",
        "index.safetensors.index.json": b'{"weight_map": 3}',
        "other.gguf": b"GGUF",
    }


@pytest.mark.parametrize("name", damaged_files())
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_unreadable_files(name, tmp_path, capfd):
    path = tmp_path / name
    path.write_bytes(damaged_files()[name])
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        convert_files([path], tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert "code ran" not in capfd.readouterr().out
    assert not (tmp_path / "out").exists()


def test_truncated_safetensors(tmp_path):
    path = write(tmp_path / "upsampler.safetensors", layout("upsampler_v1_x3"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated"):
        read_checkpoint(path)


def test_files_without_checksums_are_read(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        path = write(tmp_path / "fast.pth", layout("upsampler_v1_x3"))
    finally:
        torch.serialization.set_crc32_options(before)
    assert same_network(from_original(read_checkpoint(path)), from_original(layout("upsampler_v1_x3")))


def test_a_file_that_holds_no_dictionary(tmp_path):
    with pytest.raises(ValueError, match="holds a list, expected a dictionary"):
        read_checkpoint(write(tmp_path / "list.pth", [1, 2]))  # type: ignore[arg-type]


def test_output_folders_that_cannot_be(tmp_path):
    path = write(tmp_path / "upsampler.pth", layout("upsampler_v1_x3"))
    with pytest.raises(NotADirectoryError, match="is a file"):
        convert_files([path], path)
    with pytest.raises(NotADirectoryError, match="is a file"):
        convert_files([path], path / "below")
    with pytest.raises(OSError, match="cannot be written"):
        convert_files([path], "/proc/ultraflash")


def test_a_full_disk(tmp_path):
    path = write(tmp_path / "upsampler.pth", layout("upsampler_v1_x3"))
    with small_disk(50_000), pytest.raises(OSError, match="could not be written"):
        convert_files([path], tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["upsampler.pth"]


def test_a_failed_conversion_leaves_the_folder_before_it(tmp_path):
    path = write(tmp_path / "upsampler.pth", layout("upsampler_v1_x3"))
    convert_files([path], tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    other = write(tmp_path / "other.pth", layout("upsampler_v1_x2"))
    with small_disk(50_000), pytest.raises(OSError, match="could not be written"):
        convert_files([other], tmp_path / "out")
    assert same_network(
        CausalLatentUpsampler.from_pretrained(tmp_path / "out"), from_original(layout("upsampler_v1_x3"))
    )
    convert_files([other], tmp_path / "out")
    assert same_network(
        CausalLatentUpsampler.from_pretrained(tmp_path / "out"), from_original(layout("upsampler_v1_x2"))
    )
    names = {entry.name for entry in (tmp_path / "out").iterdir()}
    # the module with the class is what `AutoModel` loads by `trust_remote_code`
    network = {"config.json", "diffusion_pytorch_model.safetensors", "causal_latent_upsampler.py"}
    assert names == network | {"notes.txt"}


def test_weights_that_are_not_finite(tmp_path):
    weights = layout("upsampler_v1_x3")
    weights["blocks.0.conv.0.weight"][0, 0, 0, 0] = float("nan")
    broken = write(tmp_path / "broken.pth", weights)
    with pytest.raises(ValueError, match=r"broken.pth: the weight `blocks.0.conv.0.weight` holds values that are not"):
        convert_files([broken], tmp_path / "out")
    weights["blocks.0.conv.0.weight"][0, 0, 0, 0] = 1e5
    large = write(tmp_path / "large.pth", weights)
    with pytest.raises(
        ValueError, match=r"`blocks.0.conv.0.weight` reaches 1e\+05, which `dtype` torch.float16 cannot"
    ):
        convert_files([large], tmp_path / "out", dtype=torch.float16)
    assert not (tmp_path / "out").exists()
    convert_files([large], tmp_path / "out", dtype=torch.bfloat16)


def test_refusals_of_many_files(tmp_path):
    path = write(tmp_path / "upsampler.pth", layout("upsampler_v1_x3"))
    other = write(tmp_path / "other.pth", layout("upsampler_v1_x2"))
    bad = write(tmp_path / "bad.pth", {"weight": torch.zeros(1)})
    missing = tmp_path / "missing.pth"
    with pytest.raises(FileNotFoundError, match="missing.pth"):
        convert_files([path, missing], tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="a folder"):
        convert_files([tmp_path], tmp_path / "out")
    with pytest.raises(ValueError, match="both hold the component 'latent_upsampler'"):
        convert_files([path, other], tmp_path / "out")
    with pytest.raises(ValueError, match="bad.pth: the checkpoint holds no network"):
        convert_files([path, bad], tmp_path / "out")
    with pytest.raises(ValueError, match="`files` is empty"):
        convert_files([], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_is_not_converted_into_itself(tmp_path):
    convert_files([write(tmp_path / "upsampler.pth", layout("upsampler_v1_x3"))], tmp_path / "out")
    weights = tmp_path / "out" / "diffusion_pytorch_model.safetensors"
    with pytest.raises(ValueError, match="would replace the input"):
        convert_files([weights], tmp_path / "out")
    assert same_network(from_original(read_checkpoint(weights)), from_original(layout("upsampler_v1_x3")))
