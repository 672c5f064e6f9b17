# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""LoRA for both transformers: every spelling, addressed or found by fit, weighed, fused, swapped, saved, refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.hub_cache import fill_hub_cache
from helpers.tiny import TEXT_DIM, make_tiny_generator, make_tiny_pipeline, make_tiny_transformer
from helpers.wan_cases import REFERENCE, TOLERANCE, Case, relative_error
from peft import LoraConfig, get_peft_model_state_dict
from reference.deterministic import fill_layout
from safetensors.torch import save_file

from ultraflash_diffusers import CausalWanTransformer, UltraFlashSRTransformer, UltraFlashStreamingPipeline
from ultraflash_diffusers.pipelines.lora.fitting import misfits
from ultraflash_diffusers.pipelines.lora.layers import lora_layers

Tensors = dict[str, torch.Tensor]
RANK = 2
# layers of a tiny block: diffusers' name, the original one, output and input width
BLOCK = (
    *(
        (f"attn{n}.{own}", f"{kind}_attn.{published}", 24, 24)
        for n, kind in ((1, "self"), (2, "cross"))
        for own, published in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "o"))
    ),
    ("ffn.net.0.proj", "ffn.0", 32, 24),
    ("ffn.net.2", "ffn.2", 24, 32),
)
OUTER = (
    ("condition_embedder.text_embedder.linear_1", "text_embedding.0", 24, TEXT_DIM),
    ("condition_embedder.time_proj", "time_projection.1", 144, 24),
)


def make_pipeline(**components: Any) -> UltraFlashStreamingPipeline:
    """Both transformers have two blocks of the same widths, as the released ones have thirty."""
    return make_tiny_pipeline(generator_transformer=make_tiny_generator(num_layers=2), **components)


def pairs(
    blocks: int = 2, outer: bool = False, seed: int = 0
) -> dict[tuple[str, str], tuple[torch.Tensor, torch.Tensor]]:
    """Down and up matrices by both names of their layer."""
    layers = [
        (f"blocks.{n}.{own}", f"blocks.{n}.{name}", *sizes) for n in range(blocks) for own, name, *sizes in BLOCK
    ]
    generator = torch.Generator().manual_seed(seed)
    return {
        (own, published): (
            torch.randn(RANK, columns, generator=generator),
            torch.randn(rows, RANK, generator=generator),
        )
        for own, published, rows, columns in [*layers, *(OUTER if outer else ())]
    }


def peft_names(prefix: str = "", adapter: str = "", **options: Any) -> Tensors:
    tensors: Tensors = {}
    for (own, _), (down, up) in pairs(**options).items():
        tensors |= {f"{prefix}{own}.lora_A{adapter}.weight": down, f"{prefix}{own}.lora_B{adapter}.weight": up}
    return tensors


def original_names(prefix: str, halves: tuple[str, str] = ("lora_A", "lora_B"), **options: Any) -> Tensors:
    tensors: Tensors = {}
    for (_, published), (down, up) in pairs(**options).items():
        tensors |= {f"{prefix}{published}.{halves[0]}.weight": down, f"{prefix}{published}.{halves[1]}.weight": up}
    return tensors


def flat_names(prefix: str, own_names: bool, alpha: float | None, dot_alpha: str = ".alpha") -> Tensors:
    tensors: Tensors = {}
    for (own, published), (down, up) in pairs().items():
        name = prefix + (own if own_names else published).replace(".", "_")
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        tensors |= {} if alpha is None else {name + dot_alpha: torch.tensor(alpha)}
    return tensors


def changed(network: torch.nn.Module, before: Tensors) -> Tensors:
    """What fusing added to each layer's weight."""
    changes = {}
    for name, parameter in network.named_parameters():
        plain = name.replace(".base_layer", "")
        if plain in before and not torch.equal(parameter, before[plain]):
            changes[plain.removesuffix(".weight")] = parameter - before[plain]
    return changes


def weights_of(network: torch.nn.Module) -> Tensors:
    return {name: parameter.clone() for name, parameter in network.named_parameters()}


def assert_changes(network: torch.nn.Module, before: Tensors, scale: float = 1.0, **options: Any) -> None:
    changes = changed(network, before)
    expected = {own: scale * up @ down for (own, _), (down, up) in pairs(**options).items()}
    assert changes.keys() == expected.keys()
    for name, change in changes.items():
        assert relative_error(change, expected[name]) < 1e-4, name


# --- spellings ------------------------------------------------------------------------------------------------------

SPELLINGS: dict[str, tuple[Tensors, float]] = {
    "PEFT, bare": (peft_names(), 1),
    "PEFT, with the adapter's name": (peft_names(adapter=".default"), 1),
    "PEFT, of another adapter's name": (peft_names("base_model.model.", adapter=".style"), 1),
    "PEFT's save_pretrained": (peft_names("base_model.model."), 1),
    "PEFT with original names": (original_names("base_model.model."), 1),
    "original, all layers": (original_names("diffusion_model.", outer=True), 1),
    "original, kohya's halves": (original_names("diffusion_model.", ("lora_down", "lora_up")), 1),
    "original, bare": (original_names(""), 1),
    "original, dotted alpha": (
        original_names("diffusion_model.") | {f"diffusion_model.{k[1]}.alpha": torch.tensor(1.0) for k in pairs()},
        0.5,
    ),
    "diffusers, older": (
        {k.replace("lora_A", "lora.down").replace("lora_B", "lora.up"): v for k, v in peft_names().items()},
        1,
    ),
    "musubi": (flat_names("lora_unet_", False, 6.0), 3),
    "musubi without alpha": (flat_names("lora_unet_", False, None), 1),
    "kohya with diffusers' names": (flat_names("lora_transformer_", True, 1.0), 0.5),
    "wrapped": (
        {k.replace("blocks.0.", "blocks.0._orig_mod."): v for k, v in peft_names("_fsdp_wrapped_module.").items()},
        1,
    ),
    "under state_dict": ({"state_dict": peft_names(), "step": 3}, 1),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("component", ["transformer", "generator_transformer"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings(spelling, component):
    content, scale = SPELLINGS[spelling]
    pipe = make_pipeline()
    others = {"transformer": "generator_transformer", "generator_transformer": "transformer"}
    network, other = getattr(pipe, component), getattr(pipe, others[component])
    before, untouched = weights_of(network), weights_of(other)
    pipe.load_lora_weights(dict(content), component=component)
    pipe.fuse_lora()
    assert_changes(network, before, scale, outer=spelling == "original, all layers")
    assert not changed(other, untouched)


def test_what_the_generators_trainer_saves(tmp_path):
    """The critic's layers and the step are of training, and the place says for which network the others are."""
    layers = original_names("base_model.model.")
    critic = {name: tensor + 1 for name, tensor in layers.items()}
    torch.save({"generator_lora": layers, "critic_lora": critic, "step": 3000}, tmp_path / "lora.pt")
    pipe = make_pipeline()
    before = weights_of(pipe.generator_transformer)
    pipe.load_lora_weights(tmp_path / "lora.pt", adapter_name="long")
    assert pipe.get_list_adapters() == {"generator_transformer": ["long"]}
    pipe.fuse_lora()
    assert_changes(pipe.generator_transformer, before)


def test_alphas_of_layers_and_of_the_caller():
    content: Tensors = {}
    expected = {}
    for index, ((own, published), (down, up)) in enumerate(pairs().items()):
        name, alpha = f"lora_unet_{published.replace('.', '_')}", float(index + 1)
        content |= {
            f"{name}.lora_down.weight": down,
            f"{name}.lora_up.weight": up,
            f"{name}.alpha": torch.tensor(alpha),
        }
        expected[own] = alpha / RANK * up @ down
    pipe = make_pipeline()
    before = weights_of(pipe.transformer)
    pipe.load_lora_weights(content, component="transformer")
    pipe.fuse_lora()
    for name, change in changed(pipe.transformer, before).items():
        assert relative_error(change, expected[name]) < 1e-4

    pipe = make_pipeline()
    before = weights_of(pipe.transformer)
    pipe.load_lora_weights(peft_names(), component="transformer", lora_alpha=5)
    pipe.fuse_lora()
    assert_changes(pipe.transformer, before, 2.5)


def test_pefts_own_folder(tmp_path):
    """`save_pretrained` of a PEFT model: names without the adapter's, alpha and rslora in a file beside it."""
    from peft import get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(
        r=4, lora_alpha=6, use_rslora=True, target_modules=["to_q", "ffn.net.2"], init_lora_weights=False
    )
    config.alpha_pattern = {"ffn.net.2": 3}
    get_peft_model(make_tiny_transformer(), config).save_pretrained(tmp_path)
    saved = {p.name for p in tmp_path.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json"} <= saved
    pipe = make_pipeline()
    before = weights_of(pipe.transformer)
    pipe.load_lora_weights(tmp_path, component="transformer")
    state, _ = pipe.lora_state_dict(tmp_path)
    pipe.fuse_lora()
    changes = changed(pipe.transformer, before)
    assert len(changes) == 6
    assert relative_error(changes["blocks.1.ffn.net.2"], _product(tmp_path, "blocks.1.ffn.net.2") * 3 / 2) < 1e-4
    assert relative_error(changes["blocks.1.attn1.to_q"], _product(tmp_path, "blocks.1.attn1.to_q") * 6 / 2) < 1e-4
    assert "blocks.1.attn1.to_q.lora_A.weight" in state


def _product(folder: Path, layer: str) -> torch.Tensor:
    from safetensors.torch import load_file

    tensors = load_file(folder / "adapter_model.safetensors")
    prefix = f"base_model.model.{layer}.lora_"
    return tensors[f"{prefix}B.weight"] @ tensors[f"{prefix}A.weight"]


def test_biases_and_dora():
    """Added to the output as they are (`diff_b`), or PEFT's, which its scale multiplies."""
    pipe = make_pipeline()
    layer = "blocks.0.attn1.to_q"
    tensors = {f"{layer}.lora_down.weight": torch.zeros(1, 24), f"{layer}.lora_up.weight": torch.zeros(24, 1)}
    pipe.load_lora_weights(
        tensors | {f"{layer}.diff_b": torch.arange(24.0), f"{layer}.alpha": torch.tensor(7.0)}, component="transformer"
    )
    bias = pipe.transformer.get_submodule(layer).base_layer.bias.clone()
    pipe.fuse_lora()
    assert torch.allclose(pipe.transformer.get_submodule(layer).base_layer.bias - bias, torch.arange(24.0), atol=1e-5)

    network = make_tiny_transformer()
    network.add_adapter(LoraConfig(r=2, lora_alpha=4, use_dora=True, target_modules=["to_q"], init_lora_weights=False))
    state = get_peft_model_state_dict(network)
    assert any("magnitude" in name for name in state)
    pipe = make_pipeline()
    pipe.load_lora_weights(state, component="transformer", lora_alpha=4)
    network.fuse_lora()
    pipe.fuse_lora()
    expected = network.get_submodule(layer).base_layer.weight
    assert relative_error(pipe.transformer.get_submodule(layer).base_layer.weight, expected) < 1e-5


@torch.no_grad()
def test_the_recorded_generator_with_its_lora():
    case = Case("generator_longlive_lora")
    network = case.network()
    pipe = make_tiny_pipeline(generator_transformer=network)
    noise, text = case.input("noise_0"), case.input("context")
    timestep = torch.tensor([1000.0])

    def flow() -> torch.Tensor:
        return network(noise, timestep, text, state=network.new_stream()).sample

    assert relative_error(flow(), case.outputs["first_flow"]) > 0.1
    lora = fill_layout(REFERENCE / "layouts" / f"{case.config['lora_layout']}.json")
    content: dict[str, Any] = {"generator_lora": lora, "step": 1}
    pipe.load_lora_weights(content, lora_alpha=case.config["lora_alpha"])
    assert relative_error(flow(), case.outputs["first_flow"]) < TOLERANCE
    pipe.fuse_lora()
    assert relative_error(flow(), case.outputs["first_flow"]) < TOLERANCE


def test_the_released_layout_fits_both_networks_of_full_size():
    shapes = json.loads((REFERENCE / "layouts" / "released_longlive_lora.json").read_text())
    assert len(shapes) == 600
    content = {name: torch.ones(1).expand(shape) for name, shape in shapes.items()}
    (layers,) = lora_layers(content, {}, None).values()
    assert len(layers) == 300 and {layer.rank for layer in layers.values()} == {256}
    with torch.device("meta"):
        assert not misfits(layers, CausalWanTransformer())
        assert not misfits(layers, UltraFlashSRTransformer())


# --- which network --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["PEFT, bare", "PEFT's save_pretrained", "original, bare", "musubi"])
def test_what_fits_both_needs_the_callers_word(spelling):
    pipe = make_pipeline()
    with pytest.raises(ValueError, match="fits 'transformer' and 'generator_transformer' alike.*`component="):
        pipe.load_lora_weights(dict(SPELLINGS[spelling][0]))
    assert pipe.get_list_adapters() == {}


def test_what_fits_one_goes_there():
    pipe = make_tiny_pipeline(generator_transformer=make_tiny_generator(num_layers=3))
    pipe.load_lora_weights(peft_names(blocks=3), "long")
    assert pipe.get_list_adapters() == {"generator_transformer": ["long"]}


def test_names_that_say_the_component():
    for component in ("transformer", "generator_transformer"):
        pipe = make_pipeline()
        pipe.load_lora_weights(peft_names(f"{component}."), "named")
        assert pipe.get_list_adapters() == {component: ["named"]}


def test_the_caller_is_right_about_names_of_other_pipelines():
    """In a Wan pipeline the generator's network is the `transformer`."""
    pipe = make_pipeline()
    pipe.load_lora_weights(peft_names("transformer."), "wan", component="generator_transformer")
    assert pipe.get_list_adapters() == {"generator_transformer": ["wan"]}


def test_both_together_and_one_of_them():
    content = peft_names("transformer.") | peft_names("generator_transformer.", seed=1)
    pipe = make_pipeline()
    before = {name: weights_of(getattr(pipe, name)) for name in ("transformer", "generator_transformer")}
    pipe.load_lora_weights(dict(content), "both")
    assert pipe.get_list_adapters() == {"transformer": ["both"], "generator_transformer": ["both"]}
    pipe.fuse_lora()
    assert_changes(pipe.transformer, before["transformer"])
    assert_changes(pipe.generator_transformer, before["generator_transformer"], seed=1)
    pipe = make_pipeline()
    pipe.load_lora_weights(dict(content), "one", component="generator_transformer")
    assert pipe.get_list_adapters() == {"generator_transformer": ["one"]}


# --- life of an adapter ---------------------------------------------------------------------------------------------


def frames(pipe: UltraFlashStreamingPipeline) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    (video,) = pipe("a red ball", num_frames=9, generator=generator, output_type="pt", return_dict=False)
    assert isinstance(video, torch.Tensor)
    return video


def small(component: str, seed: int = 0) -> Tensors:
    return {name: 0.2 * tensor for name, tensor in peft_names(f"{component}.", seed=seed).items()}


def test_weights_fusing_and_unloading():
    pipe = make_pipeline()
    plain = frames(pipe)
    pipe.load_lora_weights(small("generator_transformer"), "motion")
    moved = frames(pipe)
    pipe.load_lora_weights(small("transformer", 1), "style")
    pipe.set_adapters(["style", "motion"])
    both = frames(pipe)
    assert set(pipe.get_active_adapters()) == {"style", "motion"}
    assert relative_error(moved, plain) > 1e-3 and relative_error(both, moved) > 1e-3

    pipe.set_adapters(["style", "motion"], [0.0, 1.0])
    assert relative_error(frames(pipe), moved) < TOLERANCE
    pipe.set_adapters(["style", "motion"], {"generator_transformer": 0.0, "transformer": 0.0})
    assert relative_error(frames(pipe), plain) < TOLERANCE
    pipe.set_adapters("motion")
    assert pipe.get_active_adapters() == ["motion"]
    assert relative_error(frames(pipe), moved) < TOLERANCE
    pipe.disable_lora()
    assert relative_error(frames(pipe), plain) < TOLERANCE
    pipe.enable_lora()

    pipe.set_adapters(["style", "motion"])
    pipe.fuse_lora()
    assert pipe.num_fused_loras == 2
    assert relative_error(frames(pipe), both) < TOLERANCE
    pipe.unfuse_lora()
    pipe.fuse_lora(["generator_transformer"], lora_scale=0.5)
    pipe.unfuse_lora()
    assert pipe.num_fused_loras == 0
    assert relative_error(frames(pipe), both) < TOLERANCE

    pipe.delete_adapters("style")
    assert pipe.get_list_adapters() == {"generator_transformer": ["motion"]}
    assert relative_error(frames(pipe), moved) < TOLERANCE
    pipe.unload_lora_weights()
    assert relative_error(frames(pipe), plain) < TOLERANCE
    assert not any("lora" in name for name, _ in pipe.generator_transformer.named_parameters())


def test_hotswap():
    pipe = make_pipeline()
    pipe.load_lora_weights(small("generator_transformer"), "motion")
    parameters = dict(pipe.generator_transformer.named_parameters())
    other = {
        k.replace("generator_transformer.", "lora_unet_"): v for k, v in small("generator_transformer", 1).items()
    }
    other = {
        f"{name.removesuffix(end).replace('.', '_')}.lora_{half}.weight": tensor
        for name, tensor in other.items()
        for end, half in ((".lora_A.weight", "down"), (".lora_B.weight", "up"))
        if name.endswith(end)
    }
    alphas = {name.replace(".lora_up.weight", ".alpha"): torch.tensor(6.0) for name in other if ".lora_up" in name}
    pipe.load_lora_weights(other | alphas, "motion", hotswap=True, component="generator_transformer")
    assert all(parameters[name] is parameter for name, parameter in pipe.generator_transformer.named_parameters())
    fresh = make_pipeline()
    fresh.load_lora_weights(other | alphas, "motion", component="generator_transformer")
    assert relative_error(frames(pipe), frames(fresh)) < TOLERANCE


def test_saving_both(tmp_path):
    pipe = make_pipeline()
    torch.manual_seed(3)
    for network, targets in ((pipe.transformer, ["to_q"]), (pipe.generator_transformer, ["to_v", "ffn.net.2"])):
        network.add_adapter(LoraConfig(r=3, lora_alpha=6, target_modules=targets, init_lora_weights=False), "trained")
    expected = frames(pipe)
    pipe.save_lora_weights(
        tmp_path,
        get_peft_model_state_dict(pipe.transformer, adapter_name="trained"),
        transformer_lora_adapter_metadata=pipe.transformer.peft_config["trained"].to_dict(),
        generator_transformer_lora_layers=get_peft_model_state_dict(
            pipe.generator_transformer, adapter_name="trained"
        ),
        generator_transformer_lora_adapter_metadata=pipe.generator_transformer.peft_config["trained"].to_dict(),
    )
    other = make_pipeline()
    other.load_lora_weights(tmp_path)
    assert relative_error(frames(other), expected) < TOLERANCE
    with pytest.raises(ValueError, match="both empty"):
        pipe.save_lora_weights(tmp_path)
    with pytest.raises(NotADirectoryError, match="`save_directory` is the file"):
        pipe.save_lora_weights(tmp_path / "pytorch_lora_weights.safetensors", {"a": torch.zeros(1)})


# --- files ----------------------------------------------------------------------------------------------------------


def test_files_and_folders(tmp_path):
    save_file(peft_names("transformer."), tmp_path / "a.safetensors")
    for source in (tmp_path / "a.safetensors", str(tmp_path / "a.safetensors"), tmp_path, str(tmp_path)):
        pipe = make_pipeline()
        pipe.load_lora_weights(source)
        assert list(pipe.get_list_adapters()) == ["transformer"]
    save_file(peft_names("generator_transformer."), tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match="holds a.safetensors, b.safetensors: say by `weight_name`"):
        make_pipeline().load_lora_weights(tmp_path)
    pipe = make_pipeline()
    pipe.load_lora_weights(tmp_path, weight_name="b.safetensors")
    assert list(pipe.get_list_adapters()) == ["generator_transformer"]
    save_file(peft_names("transformer."), tmp_path / "pytorch_lora_weights.safetensors")
    make_pipeline().load_lora_weights(tmp_path)


@pytest.mark.parametrize("source", ["missing.safetensors", "/nowhere/lora.pt", "owner/name"])
def test_missing_files_are_named(source, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((OSError, ValueError), match=source) as error:
        make_pipeline().load_lora_weights(source, cache_dir=tmp_path / "cache")
    assert "weight_name" not in str(error.value) or source == "owner/name"


def test_repositories_of_the_hub(tmp_path):
    save_file(peft_names("generator_transformer."), tmp_path / "lora.safetensors")
    torch.save({"generator_lora": original_names("base_model.model.")}, tmp_path / "lora.pt")
    files = {"sub/lora.safetensors": tmp_path / "lora.safetensors", "models/lora.pt": tmp_path / "lora.pt"}
    fill_hub_cache(tmp_path / "cache", "owner/name", files)
    for subfolder, name in (("sub", None), ("models", "lora.pt"), ("models", None)):
        pipe = make_pipeline()
        pipe.load_lora_weights("owner/name", subfolder=subfolder, weight_name=name, cache_dir=tmp_path / "cache")
        assert list(pipe.get_list_adapters()) == ["generator_transformer"]
    with pytest.raises(
        FileNotFoundError, match="'other.pt' of 'owner/name' is not in the cache.*there are models/lora.pt"
    ):
        make_pipeline().load_lora_weights("owner/name", weight_name="other.pt", cache_dir=tmp_path / "cache")


# --- refusals -------------------------------------------------------------------------------------------------------


def spoiled(edit: dict[str, torch.Tensor], drop: str = "") -> Tensors:
    return {k: v for k, v in (peft_names("transformer.") | edit).items() if not drop or drop not in k}


Q = "transformer.blocks.0.attn1.to_q"
DOWN = f"{Q}.lora_A.weight"
TWICE = {f"{prefix}.lora_A.weight": torch.ones(2, 24) for prefix in ("transformer.blocks.0.self_attn.q", Q)}
TEXT_ENCODER = {"lora_te_mlp.lora_down.weight": torch.ones(1, 4), "lora_te_mlp.lora_up.weight": torch.ones(4, 1)}
REFUSED: dict[str, tuple[Tensors, str]] = {
    "nothing": ({}, "no LoRA.*holds nothing"),
    "weights": ({"transformer.blocks.0.weight": torch.zeros(1)}, "no LoRA.*`transformer.blocks.0.weight`"),
    "LoHa": (spoiled({"blocks.0.attn1.to_q.hada_w1_a": torch.zeros(1)}), "another kind.*hada_w1_a"),
    "LoKr": (spoiled({"lora_unet_blocks_0_attn1_to_q.lokr_w1": torch.zeros(1)}), "another kind.*lokr_w1"),
    "whole differences": (spoiled({"transformer.blocks.0.norm2.diff": torch.zeros(24)}), "another kind.*norm2.diff"),
    "no up": (spoiled({}, drop="blocks.1.ffn.net.2.lora_B"), "no up matrix .* for the layer `blocks.1.ffn.net.2`"),
    "no down": (spoiled({}, drop="blocks.1.ffn.net.2.lora_A"), "no down matrix .* the layer `blocks.1.ffn.net.2`"),
    "NaN": (spoiled({DOWN: torch.full((2, 24), math.nan)}), "down matrix of `blocks.0.attn1.to_q` holds .*finite"),
    "two ranks": (spoiled({DOWN: torch.zeros(3, 24)}), r"`blocks.0.attn1.to_q` have shapes \(3, 24\) and"),
    "another width": (spoiled({DOWN: torch.ones(2, 25)}), "does not fit the transformer: `blocks.0.attn1.to_q` chang"),
    "more blocks": (
        peft_names("transformer.", blocks=3),
        "fit the transformer: there is no layer `blocks.2.attn1.to_q",
    ),
    "no network": (peft_names(blocks=3), "fits no network of the pipeline .transformer: there is no layer `blocks.2"),
    "text encoder": (TEXT_ENCODER, "fits no network of the pipeline"),
    "zeros": ({name: torch.zeros_like(tensor) for name, tensor in peft_names().items()}, "adds nothing"),
    "NaN alpha": (spoiled({f"{Q}.alpha": torch.tensor(math.nan)}), "alpha of `blocks.0.attn1.to_q` is nan"),
    "two alphas": (spoiled({f"{Q}.alpha": torch.zeros(2)}), r"alpha of `blocks.0.attn1.to_q` has shape \(2,\)"),
    "one layer twice": (spoiled(TWICE), "twice, in two spellings"),
    "two adapters": (peft_names(adapter=".one") | peft_names(adapter=".two"), "holds the adapters one, two"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    content, message = REFUSED[name]
    pipe = make_pipeline()
    with pytest.raises(ValueError, match=message):
        pipe.load_lora_weights(content)
    assert pipe.get_list_adapters() == {}
    assert not any("lora" in name for name, _ in pipe.transformer.named_parameters())


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"component": "autoencoder"}, "`component` is 'autoencoder', but a LoRA can go into 'transformer' and"),
        ({"lora_alpha": 0}, "`lora_alpha` must be positive, got 0"),
        ({"hotswap": True}, "say by `adapter_name` which"),
        (
            {"hotswap": True, "adapter_name": "new"},
            "`adapter_name` is 'new', but the transformer has no adapter to replace",
        ),
        ({"adapter_name": "style"}, "`adapter_name` is 'style', but the transformer already has an adapter"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    pipe = make_pipeline()
    pipe.load_lora_weights(peft_names("transformer."), "style")
    with pytest.raises(ValueError, match=message):
        pipe.load_lora_weights(peft_names("transformer."), **arguments)
    with pytest.raises(TypeError, match="unexpected arguments for a LoRA: colour"):
        pipe.load_lora_weights(peft_names("transformer."), colour=1)


def test_an_alpha_that_the_file_contradicts():
    content = spoiled({f"{Q}.alpha": torch.tensor(1.0)})
    with pytest.raises(
        ValueError, match="`lora_alpha` is 4, but the LoRA's own alpha of `blocks.0.attn1.to_q` is 1.0"
    ):
        make_pipeline().load_lora_weights(content, lora_alpha=4)


def test_a_hint_where_the_other_network_fits():
    pipe = make_tiny_pipeline(generator_transformer=make_tiny_generator(num_layers=3))
    with pytest.raises(
        ValueError, match="does not fit the transformer.*fits the generator_transformer: pass `component"
    ):
        pipe.load_lora_weights(peft_names("transformer.", blocks=3))
    with pytest.raises(ValueError, match="LoRA is for the generator_transformer, which this pipeline does not have"):
        make_tiny_pipeline(generator=False).load_lora_weights(peft_names("generator_transformer."))


def test_adapters_that_are_not_there():
    pipe = make_pipeline()
    with pytest.raises(ValueError, match="no LoRA is loaded"):
        pipe.fuse_lora()
    pipe.load_lora_weights(peft_names("transformer."), "style")
    with pytest.raises(ValueError, match=r"`adapter_names` has \['other'\]"):
        pipe.fuse_lora(adapter_names=["other"])
    with pytest.raises(ValueError, match=r"`components` has \['generator_transformer'\], but LoRA layers are in"):
        pipe.fuse_lora(["generator_transformer"])
    with pytest.raises(ValueError, match=r"`adapter_weights` names \['unet'\]"):
        pipe.set_adapters("style", {"unet": 1.0})
    with pytest.raises(
        ValueError, match=r"`adapter_weights` names \['generator_transformer'\], expected some of \['tr"
    ):
        pipe.set_adapters(["style"], [{"generator_transformer": 1.0}])
    with pytest.raises(ValueError, match="2"):
        pipe.set_adapters(["style"], [1.0, 0.5])
    with pytest.raises(ValueError, match="other"):
        pipe.set_adapters("other")


class Exploit:
    def __reduce__(self):
        return print, ("code ran",)


def test_pickles_are_not_run(tmp_path, capfd):
    torch.save({"generator_lora": Exploit()}, tmp_path / "lora.pt")
    with pytest.raises(ValueError, match="more than tensors and plain containers"):
        make_pipeline().load_lora_weights(tmp_path / "lora.pt")
    assert "code ran" not in capfd.readouterr().out
