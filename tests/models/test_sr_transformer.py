"""The super-resolution transformer: parity with the recorded cases, streams, training, saving, LoRA, compiling."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from diffusers import WanTransformer3DModel
from diffusers.models.attention_dispatch import attention_backend
from helpers.wan_cases import REFERENCE, TOLERANCE, Case, relative_error
from helpers.wan_networks import (
    CHANNELS,
    TEXT_DIM,
    TEXT_LENGTH,
    TINY,
    latents,
    make_generator,
    make_sr,
    no_recompile,
    prompt,
)
from peft import LoraConfig

from ultraflash_diffusers.models import token_parts
from ultraflash_diffusers.models.attention.backends import in_blocks
from ultraflash_diffusers.models.ultraflash_sr_transformer import SRStreamState, UltraFlashSRTransformer

SR_CASES = sorted(path.stem for path in (REFERENCE / "cases").glob("sr_*"))
WAN_LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]
both_kinds = pytest.mark.parametrize("kind", ["sparse", "dense"])


def sr_input(frames: int, **size: Any) -> torch.Tensor:
    return latents(frames, 2 * CHANNELS, **size)


def one_step(batch: int = 1) -> torch.Tensor:
    return torch.full((batch,), 1000.0)


def run_stream(
    network: UltraFlashSRTransformer,
    groups: Sequence[torch.Tensor],
    text: torch.Tensor,
    state: SRStreamState | None = None,
) -> tuple[list[torch.Tensor], SRStreamState]:
    state = network.new_stream() if state is None else state
    samples = []
    for group in groups:
        output = network(group, one_step(group.shape[0]), text, state=state)
        samples.append(output.sample)
        state = output.state
    return samples, state


def assert_same(
    actual: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], tolerance: float = TOLERANCE
) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert relative_error(one, other) < tolerance


# parity


@pytest.mark.parametrize("name", SR_CASES)
@torch.no_grad()
def test_matches_the_published_network(name: str) -> None:
    case = Case(name)
    network, timestep, text = case.network(), torch.tensor([case.config["timestep"]]), case.input("context")
    if "groups" not in case.config:
        hidden_states = torch.cat([case.input("noise"), case.input("condition")], dim=1)
        errors = [relative_error(network(hidden_states, timestep, text).sample, case.outputs["flow"])]
    else:
        errors = []
        state = network.new_stream(kv_cache_blocks=case.config["kv_len"])
        for group in range(len(case.config["groups"])):
            hidden_states = torch.cat([case.input(f"noise_{group}"), case.input(f"condition_{group}")], dim=1)
            output = network(hidden_states, timestep, text, state=state)
            state = output.state
            errors.append(relative_error(output.sample, case.outputs[f"flow_{group}"]))
    assert max(errors) < TOLERANCE, errors


# streams


@both_kinds
@torch.no_grad()
def test_one_streamed_group_is_the_full_forward(kind: str) -> None:
    network, hidden_states = make_sr(kind), sr_input(6)
    full = network(hidden_states, one_step(), prompt()).sample
    assert_same(run_stream(network, [hidden_states], prompt())[0], [full])


@pytest.mark.parametrize("groups", [(2, 2, 2, 2), (4, 4), (2, 4, 2), (6, 2)])
@torch.no_grad()
def test_streamed_is_the_full_forward_where_all_pairs_are_kept(groups: tuple[int, ...]) -> None:
    network = make_sr(top_k_ratio=1.0, local_range=1)  # a narrow window leaves fewer pairs than may be kept
    hidden_states = sr_input(8)
    full = network(hidden_states, one_step(), prompt()).sample
    samples, _ = run_stream(network, hidden_states.split(groups, dim=2), prompt(), network.new_stream(4))
    assert relative_error(torch.cat(samples, dim=2), full) < TOLERANCE


@torch.no_grad()
def test_future_frames_leave_past_outputs_alone() -> None:
    network, hidden_states = make_sr(chunk_size=4), sr_input(12)
    edited = hidden_states.clone()
    edited[:, :, 8:] += 1
    before, after = (network(x, one_step(), prompt()).sample for x in (hidden_states, edited))
    assert torch.equal(before[:, :, :8], after[:, :, :8])
    assert relative_error(after[:, :, 8:], before[:, :, 8:]) > 0.01


@both_kinds
@torch.no_grad()
def test_a_batch_is_its_samples(kind: str) -> None:
    network, groups, text = make_sr(kind), [sr_input(4, batch=3, seed=seed) for seed in range(3)], prompt(3)
    together, _ = run_stream(network, groups, text)
    for index in range(3):
        single, _ = run_stream(network, [group[index : index + 1] for group in groups], text[index : index + 1])
        assert_same([sample[index : index + 1] for sample in together], single)


@both_kinds
@torch.no_grad()
def test_two_streams_interleave(kind: str) -> None:
    network = make_sr(kind)
    streams = [[sr_input(4, seed=10 * stream + group) for group in range(3)] for stream in range(2)]
    alone = [run_stream(network, groups, prompt(seed=stream))[0] for stream, groups in enumerate(streams)]
    states = [network.new_stream(), network.new_stream()]
    for index in range(3):
        for stream in range(2):
            output = network(streams[stream][index], one_step(), prompt(seed=stream), state=states[stream])
            states[stream] = output.state
            assert torch.equal(output.sample, alone[stream][index])


@both_kinds
@torch.no_grad()
def test_several_steps_from_one_state(kind: str) -> None:
    network, groups = make_sr(kind), [sr_input(4, seed=seed) for seed in range(4)]
    expected, _ = run_stream(network, groups, prompt())
    _, state = run_stream(network, groups[:2], prompt())
    network(sr_input(4, seed=50), one_step() / 2, prompt(), state=state)
    first = network(groups[2], one_step(), prompt(), state=state)
    second = network(groups[2], one_step(), prompt(), state=state)
    assert torch.equal(first.sample, second.sample)
    assert torch.equal(second.sample, expected[2])
    assert torch.equal(run_stream(network, groups[3:], prompt(), second.state)[0][0], expected[3])
    with pytest.raises(ValueError, match="newest state"):
        network(groups[2], one_step(), prompt(), state=state)


@both_kinds
@torch.no_grad()
def test_a_stream_for_a_single_use_is_the_stream(kind: str, tmp_path: Path) -> None:
    """A window that narrows, a state that is saved in between: equal to the last bit."""
    network, groups = make_sr(kind), [sr_input(4, seed=seed) for seed in range(6)]
    usual, lean = network.new_stream(2), network.new_stream(2, single_use=True)
    for index, group in enumerate(groups):
        if index == 4:
            usual, lean = usual.with_kv_cache_blocks(1), lean.with_kv_cache_blocks(1)
        expected = network(group, one_step(), prompt(), state=usual)
        output = network(group, one_step(), prompt(), state=lean)
        assert torch.equal(output.sample, expected.sample)
        usual, lean = expected.state, output.state
        if index == 2:
            lean.save(tmp_path / "state.safetensors")
            lean = SRStreamState.load(tmp_path / "state.safetensors")
            assert lean.single_use
    if kind == "sparse":
        assert [cache.slots for cache in lean.cache] == [2, 2]
        assert [cache.slots for cache in usual.cache] == [4, 4]


@both_kinds
@torch.no_grad()
def test_a_state_for_a_single_use_is_used_once(kind: str) -> None:
    network, groups = make_sr(kind), [sr_input(4, seed=seed) for seed in range(3)]
    _, state = run_stream(network, groups[:1], prompt(), network.new_stream(single_use=True))
    branch = state.clone()
    with pytest.raises(ValueError, match="`hidden_states`"):  # bad input uses nothing up
        network(groups[1].half(), one_step(), prompt(), state=state)
    output = network(groups[1], one_step(), prompt(), state=state)
    for used in (state, state.with_kv_cache_blocks(1), state.clone()):
        with pytest.raises(ValueError, match="single use and has been used.*clone"):
            network(groups[1], one_step(), prompt(), state=used)
    assert torch.equal(network(groups[1], one_step(), prompt(), state=branch).sample, output.sample)
    network(groups[2], one_step(), prompt(), state=output.state)


@both_kinds
@torch.no_grad()
def test_the_past_and_the_window_matter(kind: str) -> None:
    network, groups = make_sr(kind), [sr_input(4, seed=seed) for seed in range(4)]
    _, state = run_stream(network, groups[:3], prompt())
    wide = network(groups[3], one_step(), prompt(), state=state).sample
    narrow = network(groups[3], one_step(), prompt(), state=state.with_kv_cache_blocks(1)).sample
    alone = network(groups[3], one_step(), prompt()).sample
    assert relative_error(narrow, wide) > 1e-3
    assert relative_error(alone, narrow) > 1e-3
    # a narrowed stream is one that was narrow all along, apart from what the cached values themselves have seen
    _, state = run_stream(network, groups[:1], prompt(), network.new_stream(3))
    _, narrow_state = run_stream(network, groups[:1], prompt(), network.new_stream(1))
    expected, _ = run_stream(network, groups[1:], prompt(), narrow_state)
    actual, _ = run_stream(network, groups[1:], prompt(), state.with_kv_cache_blocks(1))
    assert_same(actual, expected)


@both_kinds
@torch.no_grad()
def test_groups_may_differ_in_length(kind: str) -> None:
    network, groups = make_sr(kind), [sr_input(frames, seed=frames) for frames in (2, 6, 1, 4)]
    lazily, _ = run_stream(network, groups, prompt())
    roomy = network.new_stream(3, batch_size=1, frames=8, height=8, width=12)
    assert_same(run_stream(network, groups, prompt(), roomy)[0], lazily)


@both_kinds
@torch.no_grad()
def test_state_saved_cloned_and_moved_in_mid_stream(kind: str, tmp_path: Path) -> None:
    network, groups = make_sr(kind), [sr_input(4, seed=seed) for seed in range(4)]
    expected, _ = run_stream(network, groups, prompt())
    _, state = run_stream(network, groups[:2], prompt())
    state.save(tmp_path / "state.safetensors")
    clone = state.clone()
    assert_same(run_stream(network, groups[2:], prompt(), state)[0], expected[2:], 1e-9)
    # `state` has been overwritten by now, its copies have not
    assert_same(run_stream(network, groups[2:], prompt(), clone.to("cpu"))[0], expected[2:], 1e-9)
    loaded = SRStreamState.load(tmp_path / "state.safetensors")
    assert_same(run_stream(network, groups[2:], prompt(), loaded)[0], expected[2:], 1e-9)


@both_kinds
@torch.no_grad()
def test_the_prompt_may_change_in_mid_stream(kind: str) -> None:
    network, groups = make_sr(kind), [sr_input(4, seed=seed) for seed in range(2)]
    _, state = run_stream(network, groups[:1], prompt(seed=0))
    other = network(groups[1], one_step(), prompt(seed=1), state=state).sample
    same = network(groups[1], one_step(), prompt(seed=0), state=state).sample
    assert relative_error(other, same) > 1e-3


@both_kinds
@torch.no_grad()
def test_tokens_taken_in_parts_give_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, groups = make_sr(kind), [sr_input(4, batch=2, seed=seed) for seed in range(2)]
    expected, _ = run_stream(network, groups, prompt(2))
    monkeypatch.setattr(token_parts, "_PART_TOKENS", 37)
    parts = []
    hook = network.blocks[0].ffn.register_forward_hook(lambda module, inputs, output: parts.append(output.shape[1]))
    actual, _ = run_stream(network, groups, prompt(2))
    hook.remove()
    assert_same(actual, expected, 1e-6)
    tokens = 4 * 4 * 6
    assert len(parts) == 2 * -(-tokens // 37) and max(parts) <= 37 and sum(parts) == 2 * tokens


@both_kinds
@torch.no_grad()
def test_positions_never_run_out(kind: str) -> None:
    network, group = make_sr(kind), sr_input(4)
    start = network.new_stream()
    near = network(group, one_step(), prompt(), state=start).sample
    far_state = dataclasses.replace(network.new_stream(), position=torch.tensor(100_000))
    far = network(group, one_step(), prompt(), state=far_state)
    # only distances count
    assert relative_error(far.sample, near) < 1e-4
    assert int(far.state.position) == 100_004


@torch.no_grad()
def test_short_prompts_are_padded_before_their_embedding() -> None:
    network, text = make_sr(), prompt(tokens=3)
    padded = torch.cat([text, torch.zeros(1, TEXT_LENGTH - 3, TEXT_DIM)], dim=1)
    short, full = (network(sr_input(2), one_step(), x).sample for x in (text, padded))
    assert torch.equal(short, full)


# from_wan, prediction types


def make_wan(**overrides: Any) -> WanTransformer3DModel:
    torch.manual_seed(1)
    return WanTransformer3DModel(**{**TINY, "in_channels": CHANNELS, "rope_max_seq_len": 32, **overrides}).eval()


@pytest.mark.parametrize("source", ["model", "folder", "pipeline folder"])
@torch.no_grad()
def test_from_wan_is_the_text_to_video_model(source: str, tmp_path: Path) -> None:
    wan = make_wan()
    wan.save_pretrained(tmp_path / "transformer")
    given = {"model": wan, "folder": tmp_path / "transformer", "pipeline folder": str(tmp_path)}[source]
    network = UltraFlashSRTransformer.from_wan(given, text_length=TEXT_LENGTH)
    text, timestep = prompt(2, tokens=TEXT_LENGTH), torch.tensor([900.0, 350.0])
    noisy, condition = latents(3, CHANNELS, batch=2), 10 * latents(3, CHANNELS, batch=2, seed=1)
    expected = wan(noisy, timestep, text).sample
    actual = network(torch.cat([noisy, condition], dim=1), timestep, text).sample
    assert relative_error(actual, expected) < 1e-4  # diffusers embeds timesteps in float32
    assert not network.training


def test_from_wan_copies_the_weights_and_takes_overrides() -> None:
    wan = make_wan()
    network = UltraFlashSRTransformer.from_wan(wan, use_sparse_attention=True, local_range=5)
    assert (network.config.use_sparse_attention, network.config.local_range) == (True, 5)
    with torch.no_grad():
        network.proj_out.weight.zero_()
    assert wan.proj_out.weight.abs().sum() > 0


def test_from_wan_rejects_other_wans() -> None:
    with pytest.raises(ValueError, match="image-to-video"):
        UltraFlashSRTransformer.from_wan(make_wan(image_dim=8, added_kv_proj_dim=48))
    with pytest.raises(ValueError, match="9 input and 4 output"):
        UltraFlashSRTransformer.from_wan(make_wan(in_channels=9))


@both_kinds
@torch.no_grad()
def test_detail_prediction_corrects_the_condition(kind: str) -> None:
    network, raw_network = make_sr(kind, prediction_type="detail"), make_sr(kind)
    noisy, condition = latents(2, CHANNELS, batch=2), latents(2, CHANNELS, batch=2, seed=1)
    hidden_states, text = torch.cat([noisy, condition], dim=1), prompt(2)
    for timestep in (one_step(2), torch.tensor([250, 800])):
        raw = raw_network(hidden_states, timestep, text).sample
        flow = network(hidden_states, timestep, text, state=network.new_stream()).sample
        clean = noisy - (timestep / 1000).view(-1, 1, 1, 1, 1) * flow
        torch.testing.assert_close(clean, condition + raw, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="`timestep`.*1.0, 0.0"):
        network(hidden_states, torch.tensor([1.0, 0.0]), text)


# as any diffusers model


@both_kinds
@torch.no_grad()
def test_save_and_load(kind: str, tmp_path: Path) -> None:
    network = make_sr(kind)
    expected = network(sr_input(4), one_step(), prompt()).sample
    network.save_pretrained(tmp_path / "plain")
    network.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    network.save_pretrained(tmp_path / "variant", variant="fp32")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    for folder, options in (("plain", {}), ("sharded", {}), ("variant", {"variant": "fp32"})):
        loaded = UltraFlashSRTransformer.from_pretrained(tmp_path / folder, **options)
        assert_same([loaded(sr_input(4), one_step(), prompt()).sample], [expected], 1e-6)
        assert loaded.config["use_sparse_attention"] == (kind == "sparse")
    assert json.loads((tmp_path / "plain" / "config.json").read_text())["_class_name"] == "UltraFlashSRTransformer"


@both_kinds
@torch.no_grad()
def test_bfloat16_keeps_what_must_be_precise(kind: str, tmp_path: Path) -> None:
    network = make_sr(kind)
    network.save_pretrained(tmp_path)
    loaded = UltraFlashSRTransformer.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert loaded.dtype == loaded.proj_out.weight.dtype == torch.bfloat16
    assert loaded.blocks[0].scale_shift_table.dtype == loaded.blocks[0].norm2.weight.dtype == torch.float32
    groups = [sr_input(4, seed=seed).bfloat16() for seed in range(2)]
    samples, state = run_stream(loaded, groups, prompt().bfloat16())
    assert samples[1].dtype == torch.bfloat16
    expected, _ = run_stream(network, [group.float() for group in groups], prompt())
    assert relative_error(samples[0].float(), expected[0]) < 0.3
    with pytest.raises(ValueError, match="`hidden_states`.*float32.*bfloat16"):
        loaded(groups[0].float(), one_step(), prompt(), state=state)


@both_kinds
@pytest.mark.parametrize("streamed", [False, True])
def test_gradient_checkpointing_changes_no_gradient(kind: str, streamed: bool) -> None:
    gradients = []
    for checkpointing in (False, True):
        network = make_sr(kind).train()
        if checkpointing:
            network.enable_gradient_checkpointing()
        if streamed:
            groups = [sr_input(4, seed=seed) for seed in range(4)]  # the ring buffers go round
            samples, _ = run_stream(network, groups, prompt(), network.new_stream(1))
            sum(sample.square().mean() for sample in samples).backward()
        else:
            network(sr_input(4), one_step(), prompt()).sample.square().mean().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    assert all(gradient is not None for gradient in gradients[0])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain, atol=1e-6, rtol=1e-4)


@both_kinds
def test_autocast(kind: str) -> None:
    network, groups = make_sr(kind).train(), [sr_input(4, seed=seed) for seed in range(2)]
    expected, _ = run_stream(network, groups, prompt())
    with torch.autocast("cpu", torch.bfloat16):
        full = network(groups[0], one_step(), prompt()).sample
        samples, _ = run_stream(network, groups, prompt())
    assert 0 < relative_error(samples[0].float(), expected[0]) < 0.2
    assert relative_error(full.float(), expected[0]) < 0.2
    samples[1].float().square().mean().backward()


@both_kinds
def test_training_steps_reduce_the_loss(kind: str) -> None:
    network, hidden_states, target = make_sr(kind).train(), sr_input(4), latents(4, CHANNELS, seed=9)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        loss = (network(hidden_states, one_step(), prompt()).sample - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(("kind", "backend"), [("sparse", "gather"), ("sparse", "sdpa"), ("dense", "auto")])
def test_a_streamed_lora_trains_through_several_groups(kind: str, backend: str) -> None:
    network = make_sr(kind).train()
    network.requires_grad_(False)
    network.set_sparse_backend(backend)
    network.add_adapter(LoraConfig(r=2, target_modules=["blocks.0.attn1.to_q"]))  # keys and values need no gradient
    samples, _ = run_stream(network, [sr_input(4, seed=seed) for seed in range(3)], prompt(), network.new_stream(1))
    sum(sample.square().mean() for sample in samples).backward()
    assert network.blocks[0].attn1.to_q.lora_B["default"].weight.grad.abs().sum() > 0


@both_kinds
@torch.no_grad()
def test_a_wan_lora_loads_unchanged(kind: str, tmp_path: Path) -> None:
    wan = make_wan()
    wan.add_adapter(LoraConfig(r=2, target_modules=WAN_LORA_TARGETS))
    for name, parameter in wan.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(3))
    wan.save_lora_adapter(tmp_path)
    network = make_sr(kind)
    plain = network(sr_input(2), one_step(), prompt()).sample
    network.load_lora_adapter(
        tmp_path, weight_name="pytorch_lora_weights.safetensors", prefix=None, adapter_name="style"
    )
    styled = network(sr_input(2), one_step(), prompt()).sample
    assert relative_error(styled, plain) > 0.01
    for index, block in enumerate(wan.blocks):
        ours = network.blocks[index].attn2.to_k.lora_B["style"].weight
        assert torch.equal(ours, block.attn2.to_k.lora_B["default"].weight)
    network.set_adapters("style", 0.5)
    assert 0 < relative_error(network(sr_input(2), one_step(), prompt()).sample, styled)
    network.disable_lora()
    assert torch.equal(network(sr_input(2), one_step(), prompt()).sample, plain)


@torch.no_grad()
def test_a_wan_lora_does_to_a_widened_model_what_it_does_to_wan(tmp_path: Path) -> None:
    wan = make_wan()
    network = UltraFlashSRTransformer.from_wan(wan, text_length=TEXT_LENGTH)
    wan.add_adapter(LoraConfig(r=2, target_modules=WAN_LORA_TARGETS, init_lora_weights=False))
    wan.save_lora_adapter(tmp_path)
    network.load_lora_adapter(tmp_path, weight_name="pytorch_lora_weights.safetensors", prefix=None)
    text, noisy = prompt(tokens=TEXT_LENGTH), latents(2, CHANNELS)
    expected = wan(noisy, one_step(), text).sample
    actual = network(torch.cat([noisy, noisy], dim=1), one_step(), text).sample
    assert relative_error(actual, expected) < 1e-4


@torch.no_grad()
def test_lora_round_trip(tmp_path: Path) -> None:
    network = make_sr()
    network.add_adapter(LoraConfig(r=2, target_modules=WAN_LORA_TARGETS, init_lora_weights=False))
    expected = network(sr_input(2), one_step(), prompt()).sample
    network.save_lora_adapter(tmp_path)
    other = make_sr()
    other.load_lora_adapter(tmp_path, weight_name="pytorch_lora_weights.safetensors", prefix=None)
    assert_same([other(sr_input(2), one_step(), prompt()).sample], [expected])


@both_kinds
@torch.no_grad()
def test_layerwise_casting_and_offloading(kind: str) -> None:
    groups = [sr_input(4, seed=seed) for seed in range(2)]
    expected, _ = run_stream(make_sr(kind), groups, prompt())

    network = make_sr(kind)
    network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert network.blocks[0].attn1.to_q.weight.dtype == torch.float8_e4m3fn
    assert network.dtype == torch.float32
    casted, _ = run_stream(network, groups, prompt())
    assert 0 < relative_error(casted[0], expected[0]) < 0.5

    for options in ({"offload_type": "block_level", "num_blocks_per_group": 1}, {"offload_type": "leaf_level"}):
        network = make_sr(kind)
        network.enable_group_offload(onload_device=torch.device("cpu"), **options)
        assert_same(run_stream(network, groups, prompt())[0], expected, 1e-9)

    network = cpu_offload(make_sr(kind), execution_device=torch.device("cpu"))
    state = network.new_stream(batch_size=1, frames=4, height=8, width=12, device="cpu")
    assert_same(run_stream(network, groups, prompt(), state)[0], expected, 1e-9)


@both_kinds
@torch.no_grad()
def test_fused_projections(kind: str) -> None:
    network = make_sr(kind)
    expected = network(sr_input(2), one_step(), prompt()).sample
    network.fuse_qkv_projections()
    assert_same([network(sr_input(2), one_step(), prompt()).sample], [expected])


@torch.no_grad()
def test_attention_backends_are_its_own() -> None:
    network, hidden_states = make_sr(), sr_input(4)
    expected = network(hidden_states, one_step(), prompt()).sample
    with attention_backend("_native_cudnn"):  # what another pipeline may have chosen: it cannot run on a CPU
        with pytest.raises(RuntimeError):
            make_wan()(latents(2, CHANNELS), one_step(), prompt())
        assert torch.equal(network(hidden_states, one_step(), prompt()).sample, expected)
    for backend in ("sdpa", "gather", "auto"):
        network.set_sparse_backend(backend)
        assert_same([network(hidden_states, one_step(), prompt()).sample], [expected])
    assert "sparse_backend" not in str(network.config)
    with pytest.raises(ValueError, match="`backend`.*'cuda'"):
        network.set_sparse_backend("cuda")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "regional", "single_use"),
    [("sparse", False, False), ("sparse", True, False), ("dense", False, False), ("dense", True, False)]
    + [("sparse", False, True), ("sparse", True, True)],
)
@torch.no_grad()
def test_compiles_once_for_all_groups(kind: str, regional: bool, single_use: bool) -> None:
    torch.compiler.reset()
    groups = [sr_input(4, seed=seed) for seed in range(6)]
    network = make_sr(kind)
    expected, _ = run_stream(network, groups, prompt())
    if regional:
        network.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
    else:
        network.compile(fullgraph=True, backend="aot_eager")
    state = network.new_stream(3, batch_size=1, frames=4, height=8, width=12, single_use=single_use)
    samples, state = run_stream(network, groups[:1], prompt(), state)
    with no_recompile():
        later, state = run_stream(network, groups[1:4], prompt(), state)
        assert_same(samples + later, expected[:4])
        run_stream(network, groups[4:], prompt(), state.with_kv_cache_blocks(2))


@pytest.mark.slow
@torch.no_grad()
def test_parts_compile_as_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """What large frames bring with them: tokens in parts, heads in parts, both inside a compiled block."""
    torch.compiler.reset()
    groups = [sr_input(4, seed=seed) for seed in range(4)]
    network = make_sr(num_attention_heads=4, attention_head_dim=12)
    expected, _ = run_stream(network, groups, prompt())
    monkeypatch.setattr(token_parts, "_PART_TOKENS", 37)
    monkeypatch.setattr(in_blocks, "_WHOLE_ELEMENTS", 0)
    network.compile_repeated_blocks(fullgraph=True, dynamic=False, backend="aot_eager")
    state = network.new_stream(3, batch_size=1, frames=4, height=8, width=12, single_use=True)
    samples, state = run_stream(network, groups[:1], prompt(), state)
    with no_recompile():
        samples += run_stream(network, groups[1:], prompt(), state)[0]
    assert_same(samples, expected)


# bad input


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hidden_states": torch.zeros(1, 4, 2, 8, 12)}, "`hidden_states`.*8 channels, got 4"),
        ({"hidden_states": torch.zeros(1, 8, 8, 12)}, "`hidden_states`.*shape"),
        ({"hidden_states": torch.zeros(1, 8, 2, 8, 12).half()}, "`hidden_states`.*float16.*float32"),
        ({"hidden_states": torch.zeros(1, 8, 2, 7, 12)}, r"`hidden_states`.*\(2, 7, 12\).*`patch_size` \(1, 2, 2\)"),
        ({"timestep": torch.zeros(1, 2)}, r"`timestep`.*\[1\], got \[1, 2\]"),
        ({"timestep": torch.tensor(1000)}, r"`timestep`.*\[1\], got \[\]"),
        ({"encoder_hidden_states": torch.zeros(1, 7, 16)}, "`encoder_hidden_states` has 7 tokens.*`text_length` is 6"),
        ({"encoder_hidden_states": torch.zeros(1, 5, 15)}, r"`encoder_hidden_states`.*16\].*got \[1, 5, 15\]"),
        ({"encoder_hidden_states": torch.zeros(2, 5, 16)}, r"`encoder_hidden_states`.*got \[2, 5, 16\]"),
        ({"encoder_hidden_states": torch.zeros(1, 5, 16).double()}, "`encoder_hidden_states`.*float64"),
    ],
)
def test_bad_inputs_are_named(changed: dict[str, torch.Tensor], message: str) -> None:
    good = {"hidden_states": torch.zeros(1, 8, 2, 8, 12), "timestep": one_step(), "encoder_hidden_states": prompt()}
    with pytest.raises(ValueError, match=message):
        make_sr()(**{**good, **changed})


@both_kinds
@torch.no_grad()
def test_foreign_states_are_refused(kind: str) -> None:
    network = make_sr(kind)
    _, state = run_stream(network, [sr_input(4)], prompt())
    other_kind = make_sr("dense" if kind == "sparse" else "sparse")
    with pytest.raises(ValueError, match="`state` was made for .*batch"):
        network(sr_input(4, batch=2), one_step(2), prompt(2), state=state)
    with pytest.raises(ValueError, match="`state` was made for .*token rows.*"):
        network(sr_input(4, height=12, width=8), one_step(), prompt(), state=state)
    with pytest.raises(ValueError, match="`state`.*layers"):
        make_sr(kind, num_layers=3)(sr_input(4), one_step(), prompt(), state=state)
    with pytest.raises(ValueError, match="`state` was made for .*heads"):
        make_sr(kind, num_attention_heads=3)(sr_input(4), one_step(), prompt(), state=state)
    with pytest.raises(ValueError, match=f"`state` was made by a network with {kind} attention"):
        other_kind(sr_input(4), one_step(), prompt(), state=state)
    with pytest.raises(ValueError, match="`state` holds torch.float64"):
        network(sr_input(4), one_step(), prompt(), state=state.to(dtype=torch.float64))
    with pytest.raises(ValueError, match="`state` must be an SRStreamState.*CausalWanStreamState"):
        network(sr_input(4), one_step(), prompt(), state=make_generator().new_stream())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"in_channels": 5}, "`in_channels` must be twice `out_channels` 4.*got 5"),
        ({"prediction_type": "noise"}, "`prediction_type`.*'noise'"),
        ({"qk_norm": None}, "`qk_norm`.*None"),
        ({"patch_size": (2, 2)}, "`patch_size`"),
        ({"local_range": 0}, "`local_range`.*0"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_sr(**settings)


def test_bad_streams_are_named() -> None:
    network = make_sr()
    with pytest.raises(ValueError, match="`kv_cache_blocks`.*got 0"):
        network.new_stream(0)
    with pytest.raises(ValueError, match="`batch_size`, `frames`, `height`, `width`.*None"):
        network.new_stream(batch_size=1, frames=4)
    with pytest.raises(ValueError, match=r"\(4, 7, 12\).*`patch_size`"):
        network.new_stream(batch_size=1, frames=4, height=7, width=12)
    with pytest.raises(ValueError, match="`kv_cache_blocks` must be 1 to 3.*got 4"):
        network.new_stream(3).with_kv_cache_blocks(4)
