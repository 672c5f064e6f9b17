"""The streaming generator's network: parity with the recorded cases, streams, training, saving, compiling."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from helpers.wan_cases import TOLERANCE, Case, relative_error
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

from ultraflash_diffusers.models.causal_wan_state import CausalWanStreamState
from ultraflash_diffusers.models.causal_wan_transformer import CausalWanTransformer

KINDS: dict[str, dict[str, Any]] = {"global": {}, "rolling": {"window_frames": 5, "sink_frames": 1}}
both_kinds = pytest.mark.parametrize("kind", list(KINDS))


def make(kind: str, **overrides: Any) -> CausalWanTransformer:
    return make_generator(**KINDS[kind], **overrides)


def clean(batch: int = 1) -> torch.Tensor:
    return torch.zeros(batch)


def chunk(seed: int, frames: int = 2, batch: int = 1, **size: Any) -> torch.Tensor:
    return latents(frames, CHANNELS, batch=batch, seed=seed, **size)


def run_stream(
    network: CausalWanTransformer,
    chunks: Sequence[torch.Tensor],
    text: torch.Tensor,
    state: CausalWanStreamState | None = None,
) -> tuple[list[torch.Tensor], CausalWanStreamState]:
    """One pass over each chunk, which the cache keeps."""
    state = network.new_stream() if state is None else state
    samples = []
    for hidden_states in chunks:
        output = network(hidden_states, clean(hidden_states.shape[0]), text, state=state, commit=True)
        samples.append(output.sample)
        state = output.state
    return samples, state


def assert_same(
    actual: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], tolerance: float = TOLERANCE
) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert relative_error(one, other) < tolerance


# parity


def rollout(case: Case) -> list[float]:
    """Generates as the published code does; returns the error of each recorded output."""
    network, config, outputs = case.network(), case.config, case.outputs
    sigmas = [step / 1000 for step in config["denoising_steps"]]
    shift = config["timestep_shift"]
    sigmas = [shift * sigma / (1 + (shift - 1) * sigma) for sigma in sigmas]
    errors = [relative_error(torch.tensor(sigmas) * 1000, outputs["timesteps"])]
    text, state = case.input("context"), network.new_stream(cache_frames=config["cache_frames"])
    for index in range(config["chunks"]):
        noisy = case.input(f"noise_{index}")
        for step, sigma in enumerate(sigmas):
            flow = network(noisy, torch.full((1, noisy.shape[2]), 1000 * sigma), text, state=state).sample
            if index == step == 0:
                errors.append(relative_error(flow, outputs["first_flow"]))
            denoised = noisy - sigma * flow
            if step + 1 < len(sigmas):
                noise = case.input(f"renoise_{index}_{step}")
                noisy = (1 - sigmas[step + 1]) * denoised + sigmas[step + 1] * noise
        errors.append(relative_error(denoised, outputs[f"denoised_{index}"]))
        state = network(denoised, clean(), text, state=state, commit=True).state
    return errors


@pytest.mark.parametrize("name", ["generator_global", "generator_rolling_sink", "generator_rolling_long"])
@torch.no_grad()
def test_matches_the_published_network(name: str) -> None:
    errors = rollout(Case(name))
    assert max(errors) < TOLERANCE, errors


@torch.no_grad()
def test_one_chunk_of_all_frames_is_wan(tmp_path: Path) -> None:
    torch.manual_seed(1)
    wan = WanTransformer3DModel(**TINY, in_channels=CHANNELS, rope_max_seq_len=32).eval()
    wan.save_pretrained(tmp_path)
    network = CausalWanTransformer.from_config({**wan.config, "text_length": TEXT_LENGTH, "frames_per_chunk": 4})
    network.load_state_dict(wan.state_dict())
    text = prompt(2, tokens=TEXT_LENGTH)
    timestep = torch.tensor([900.0, 350.0])
    expected = wan(chunk(0, 4, batch=2), timestep, text).sample
    assert relative_error(network(chunk(0, 4, batch=2), timestep, text).sample, expected) < 1e-4


# streams


@both_kinds
@pytest.mark.parametrize("frames", [8, 7])
@torch.no_grad()
def test_streamed_is_the_full_forward(kind: str, frames: int) -> None:
    network, hidden_states = make(kind), chunk(0, frames)
    timestep = torch.linspace(0, 1000, frames)[None]
    full = network(hidden_states, timestep, prompt()).sample
    state, samples = network.new_stream(), []
    for part, steps in zip(hidden_states.split(2, dim=2), timestep.split(2, dim=1), strict=True):
        output = network(part, steps, prompt(), state=state, commit=True)
        state = output.state
        samples.append(output.sample)
    assert relative_error(torch.cat(samples, dim=2), full) < TOLERANCE


@both_kinds
@torch.no_grad()
def test_the_full_forward_has_the_first_chunks_own_length(kind: str) -> None:
    network, hidden_states = make(kind, first_chunk_frames=1), chunk(0, 8)
    full = network(hidden_states, clean(), prompt()).sample
    streamed, _ = run_stream(network, hidden_states.split([1, 2, 2, 2, 1], dim=2), prompt())
    assert relative_error(torch.cat(streamed, dim=2), full) < TOLERANCE
    assert relative_error(make(kind)(hidden_states, clean(), prompt()).sample, full) > 1e-3


@both_kinds
@torch.no_grad()
def test_future_frames_leave_past_outputs_alone(kind: str) -> None:
    network, hidden_states = make(kind), chunk(0, 8)
    edited = hidden_states.clone()
    edited[:, :, 4:] += 1
    before, after = (network(x, clean(), prompt()).sample for x in (hidden_states, edited))
    assert torch.equal(before[:, :, :4], after[:, :, :4])
    assert relative_error(after[:, :, 4:], before[:, :, 4:]) > 0.01


@torch.no_grad()
def test_each_frame_has_its_own_timestep() -> None:
    network = make("global")
    timestep = torch.tensor([[100.0, 900.0], [500.0, 500.0]])
    together = network(chunk(0, batch=2), timestep, prompt(2)).sample
    uniform = network(chunk(0, batch=2)[1:], torch.tensor([500.0]), prompt(2)[1:]).sample
    assert relative_error(together[1:], uniform) < TOLERANCE
    swapped = network(chunk(0, batch=2), timestep.flip(1), prompt(2)).sample
    assert relative_error(swapped[:1], together[:1]) > 1e-3


@both_kinds
@torch.no_grad()
def test_a_pass_without_commit_changes_nothing(kind: str) -> None:
    network = make(kind)
    _, state = run_stream(network, [chunk(seed) for seed in range(4)], prompt())
    before = state.clone()
    first = network(chunk(4), torch.tensor([900.0]), prompt(), state=state)
    assert first.state is state
    for name in ("keys", "values"):
        for now, then in zip(getattr(state.cache, name), getattr(before.cache, name), strict=True):
            assert torch.equal(now, then)
    for now, then in ((state.position, before.position), (state.cache.frames, before.cache.frames)):
        assert torch.equal(now, then)
    second = network(chunk(4), torch.tensor([900.0]), prompt(), state=state)
    assert torch.equal(first.sample, second.sample)


@both_kinds
@torch.no_grad()
def test_a_second_commit_replaces_the_first(kind: str) -> None:
    network, chunks = make(kind), [chunk(seed) for seed in range(5)]
    expected, _ = run_stream(network, chunks, prompt())
    _, state = run_stream(network, chunks[:3], prompt())
    # the last denoising step is kept for a moment, then the clean pass takes its place
    network(chunk(99), torch.tensor([625.0]), prompt(), state=state, commit=True)
    actual, _ = run_stream(network, chunks[3:], prompt(), state)
    assert_same(actual, expected[3:], 1e-9)
    with pytest.raises(ValueError, match="newest state"):
        network(chunks[3], clean(), prompt(), state=state, commit=True)


@torch.no_grad()
def test_an_old_state_whose_frames_have_rolled_out_is_refused() -> None:
    network = make("rolling")
    _, state = run_stream(network, [chunk(0), chunk(1)], prompt())
    run_stream(network, [chunk(2), chunk(3)], prompt(), state)
    with pytest.raises(ValueError, match="`state` is the one after 4 frames.*frame 7.*clone"):
        network(chunk(2), clean(), prompt(), state=state)


@torch.no_grad()
def test_the_sink_stays_and_the_oldest_frames_after_it_go() -> None:
    network = make("rolling", num_layers=1)  # one layer: no frame can be seen through another
    original = [chunk(seed) for seed in range(5)]
    expected = run_stream(network, original, prompt())[0][-1]
    for index in range(8):
        edited = torch.cat(original, dim=2)
        edited[:, :, index] += 1
        changed = run_stream(network, edited.split(2, dim=2), prompt())[0][-1]
        # the last chunk, frames 8 and 9, sees 5 frames: the sink 0, then 6 to 9
        assert (relative_error(changed, expected) > 1e-4) == (index in (0, 6, 7)), index


@both_kinds
@torch.no_grad()
def test_a_batch_is_its_samples(kind: str) -> None:
    network, chunks, text = make(kind), [chunk(seed, batch=3) for seed in range(4)], prompt(3)
    together, _ = run_stream(network, chunks, text)
    for index in range(3):
        single, _ = run_stream(network, [part[index : index + 1] for part in chunks], text[index : index + 1])
        assert_same([sample[index : index + 1] for sample in together], single)


@both_kinds
@torch.no_grad()
def test_two_streams_interleave(kind: str) -> None:
    network = make(kind)
    streams = [[chunk(10 * stream + index) for index in range(4)] for stream in range(2)]
    alone = [run_stream(network, chunks, prompt(seed=stream))[0] for stream, chunks in enumerate(streams)]
    states = [network.new_stream(), network.new_stream()]
    for index in range(4):
        for stream in range(2):
            (sample,), states[stream] = run_stream(
                network, streams[stream][index : index + 1], prompt(seed=stream), states[stream]
            )
            assert torch.equal(sample, alone[stream][index])


@both_kinds
@torch.no_grad()
def test_state_saved_cloned_and_moved_in_mid_stream(kind: str, tmp_path: Path) -> None:
    network, chunks = make(kind), [chunk(seed) for seed in range(6)]
    expected, _ = run_stream(network, chunks, prompt())
    _, state = run_stream(network, chunks[:3], prompt())
    state.save(tmp_path / "state.safetensors")
    clone = state.clone()
    assert_same(run_stream(network, chunks[3:], prompt(), state)[0], expected[3:], 1e-9)
    assert_same(run_stream(network, chunks[3:], prompt(), clone.to("cpu"))[0], expected[3:], 1e-9)
    loaded = CausalWanStreamState.load(tmp_path / "state.safetensors")
    assert_same(run_stream(network, chunks[3:], prompt(), loaded)[0], expected[3:], 1e-9)


@torch.no_grad()
def test_buffers_never_grow_or_move() -> None:
    network = make("rolling")
    state = network.new_stream(batch_size=1, height=8, width=12)
    places = [buffer.data_ptr() for buffer in state.cache.keys + state.cache.values]
    _, state = run_stream(network, [chunk(seed) for seed in range(6)], prompt(), state)
    assert [buffer.data_ptr() for buffer in state.cache.keys + state.cache.values] == places
    assert state.cache.keys[0].shape[1] == 5


@pytest.mark.parametrize(
    ("window", "sink", "frames"),
    [(5, 1, 2), (6, 0, 2), (6, 2, 2), (3, 1, 2), (4, 2, 2), (8, 3, 1), (9, 4, 3), (2, 0, 2)],
)
@torch.no_grad()
def test_a_stream_for_a_single_use_is_the_stream(window: int, sink: int, frames: int, tmp_path: Path) -> None:
    """With denoising passes in between; windows that hold nothing of the past, sinks that end inside a chunk."""
    network = make_generator(window_frames=window, sink_frames=sink, frames_per_chunk=frames)
    usual, lean = network.new_stream(), network.new_stream(single_use=True)
    roomy = network.new_stream(single_use=True, room_frames=frames)
    for seed in range(7):
        noisy = chunk(50 + seed, frames)
        outputs = [network(noisy, clean() + 500, prompt(), state=state).sample for state in (usual, lean, roomy)]
        (expected,), usual = run_stream(network, [chunk(seed, frames)], prompt(), usual)
        (sample,), lean = run_stream(network, [chunk(seed, frames)], prompt(), lean)
        (other,), roomy = run_stream(network, [chunk(seed, frames)], prompt(), roomy)
        assert_same([outputs[1], outputs[2], sample, other], [outputs[0], outputs[0], expected, expected], 1e-6)
        assert lean.cache is not None and lean.cache.slots == window - frames
        if seed == 4:
            lean.save(tmp_path / "state.safetensors")
            lean = CausalWanStreamState.load(tmp_path / "state.safetensors")


@torch.no_grad()
def test_a_state_for_a_single_use_commits_once() -> None:
    network = make("rolling")
    _, state = run_stream(network, [chunk(0)], prompt(), network.new_stream(single_use=True))
    branch = state.clone()
    expected, newer = run_stream(network, [chunk(1)], prompt(), state)
    for used in (state, state.clone()):
        for commit in (False, True):
            with pytest.raises(ValueError, match="single use and has committed.*clone"):
                network(chunk(1), clean(), prompt(), state=used, commit=commit)
    assert torch.equal(run_stream(network, [chunk(1)], prompt(), branch)[0][0], expected[0])
    with pytest.raises(ValueError, match="has 1 frames, a state for a single use takes chunks of.*2"):
        network(chunk(2, 1), clean(), prompt(), state=newer)
    with pytest.raises(ValueError, match="`single_use` is True, but the cache is global"):
        make("global").new_stream(single_use=True)
    network.train().enable_gradient_checkpointing()
    with torch.enable_grad(), pytest.raises(ValueError, match="gradient checkpointing"):
        network(chunk(2), clean(), prompt(), state=newer)


@torch.no_grad()
def test_positions_never_run_out() -> None:
    network = make("rolling")
    near = network(chunk(0), clean(), prompt(), state=network.new_stream()).sample
    far_state = network.new_stream(batch_size=1, height=8, width=12)
    assert far_state.cache is not None
    cache = dataclasses.replace(far_state.cache, committed=None)  # what is there must then be asked of the device
    far_state = dataclasses.replace(far_state, position=torch.tensor(100_000), cache=cache)
    far = network(chunk(0), clean(), prompt(), state=far_state, commit=True)
    assert relative_error(far.sample, near) < 1e-4  # only distances count
    following, _ = run_stream(network, [chunk(seed) for seed in range(1, 4)], prompt(), far.state)
    assert all(sample.isfinite().all() for sample in following)


# as any diffusers model


@both_kinds
@torch.no_grad()
def test_save_and_load(kind: str, tmp_path: Path) -> None:
    network = make(kind)
    expected = network(chunk(0, 6), clean(), prompt()).sample
    for name, options in (("plain", {}), ("sharded", {"max_shard_size": "100KB"}), ("variant", {"variant": "fp32"})):
        network.save_pretrained(tmp_path / name, **options)
        variant = {"variant": "fp32"} if name == "variant" else {}
        loaded = CausalWanTransformer.from_pretrained(tmp_path / name, **variant)
        assert loaded.config["window_frames"] == network.config["window_frames"]
        assert_same([loaded(chunk(0, 6), clean(), prompt()).sample], [expected], 1e-6)
    half = CausalWanTransformer.from_pretrained(tmp_path / "plain", torch_dtype=torch.bfloat16)
    assert (half.dtype, half.scale_shift_table.dtype) == (torch.bfloat16, torch.float32)
    samples, _ = run_stream(half, [chunk(0).bfloat16(), chunk(1).bfloat16()], prompt().bfloat16())
    assert samples[1].dtype == torch.bfloat16 and samples[1].isfinite().all()


@both_kinds
@pytest.mark.parametrize("streamed", [False, True])
def test_gradient_checkpointing_changes_no_gradient(kind: str, streamed: bool) -> None:
    gradients = []
    for checkpointing in (False, True):
        network = make(kind).train()
        if checkpointing:
            network.enable_gradient_checkpointing()
        if streamed:
            samples, _ = run_stream(network, [chunk(seed) for seed in range(5)], prompt())
            sum(sample.square().mean() for sample in samples).backward()
        else:
            network(chunk(0, 6), clean(), prompt()).sample.square().mean().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    assert all(gradient is not None for gradient in gradients[0])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain, atol=1e-6, rtol=1e-4)


@both_kinds
def test_training_steps_reduce_the_loss(kind: str) -> None:
    network, target = make(kind).train(), chunk(9, 6)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        loss = (network(chunk(0, 6), clean() + 700, prompt()).sample - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@torch.no_grad()
def test_lora_round_trip(tmp_path: Path) -> None:
    network = make("rolling")
    plain = network(chunk(0), clean(), prompt()).sample
    network.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    expected = network(chunk(0), clean(), prompt()).sample
    assert relative_error(plain, expected) > 1e-3
    network.save_lora_adapter(tmp_path)
    other = make("rolling")
    other.load_lora_adapter(tmp_path, weight_name="pytorch_lora_weights.safetensors", prefix=None)
    assert_same([other(chunk(0), clean(), prompt()).sample], [expected])


@both_kinds
@torch.no_grad()
def test_layerwise_casting_and_group_offload(kind: str) -> None:
    chunks = [chunk(seed) for seed in range(4)]
    expected, _ = run_stream(make(kind), chunks, prompt())
    network = make(kind)
    network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    casted, _ = run_stream(network, chunks, prompt())
    assert 0 < relative_error(casted[0], expected[0]) < 0.5
    network = make(kind)
    network.enable_group_offload(onload_device=torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1)
    assert_same(run_stream(network, chunks, prompt())[0], expected, 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("regional", [False, True])
@pytest.mark.parametrize(("kind", "single_use"), [("global", False), ("rolling", False), ("rolling", True)])
@torch.no_grad()
def test_compiles_once_for_all_chunks(kind: str, regional: bool, single_use: bool) -> None:
    torch.compiler.reset()
    chunks = [chunk(seed) for seed in range(5)]
    network = make(kind)
    expected, _ = run_stream(network, chunks, prompt())
    if regional:
        network.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
    else:
        network.compile(fullgraph=True, backend="aot_eager")
    state = network.new_stream(batch_size=1, height=8, width=12, single_use=single_use)
    samples: list[torch.Tensor] = []
    # blocks that are compiled alone have a graph for each number of filled slots, or one for several, and no mask
    warm_up = 3 if regional else 1
    for index, hidden_states in enumerate(chunks):
        with no_recompile() if index >= warm_up else contextlib.nullcontext():
            network(chunk(51), clean(), prompt(), state=state)  # a denoising step
            (sample,), state = run_stream(network, [hidden_states], prompt(), state)
            samples.append(sample)
    assert_same(samples, expected)


@pytest.mark.parametrize("single_use", [False, True])
@torch.no_grad()
def test_compiled_blocks_take_no_mask(single_use: bool) -> None:
    """A graph for each number of filled slots and each kind of call; attention in it has queries, keys and values."""
    torch.compiler.reset()
    graphs: list[torch.fx.GraphModule] = []

    def record(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    network = make("rolling")  # window 5, of which a chunk takes 2
    network.compile_repeated_blocks(fullgraph=True, dynamic=False, backend=record)
    state = network.new_stream(batch_size=1, height=8, width=12, single_use=single_use)
    for seed in range(5):
        network(chunk(51), clean(), prompt(), state=state)
        _, state = run_stream(network, [chunk(seed)], prompt(), state)
    attention = [node for graph in graphs for node in graph.graph.nodes if "scaled_dot_product" in str(node.target)]
    assert len(graphs) == 2 * 3 and len(attention) == 2 * len(graphs)
    for node in attention:
        assert node.kwargs.get("attn_mask") is None and len(node.args) <= 3, node.format_node()


# bad input


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hidden_states": torch.zeros(1, 8, 2, 8, 12)}, "`hidden_states`.*4 channels, got 8"),
        ({"hidden_states": torch.zeros(4, 2, 8, 12)}, "`hidden_states`.*shape"),
        ({"hidden_states": torch.zeros(1, 4, 2, 8, 12).double()}, "`hidden_states`.*float64.*float32"),
        ({"hidden_states": torch.zeros(1, 4, 2, 8, 11)}, r"`hidden_states`.*\(2, 8, 11\).*`patch_size`"),
        ({"timestep": torch.zeros(1, 3)}, r"`timestep` must have shape \[1\] or \[1, 2\], got \[1, 3\]"),
        ({"timestep": torch.zeros(2)}, r"`timestep`.*got \[2\]"),
        ({"encoder_hidden_states": torch.zeros(1, 7, TEXT_DIM)}, "`encoder_hidden_states` has 7 tokens"),
        ({"encoder_hidden_states": torch.zeros(1, 5, 15)}, "`encoder_hidden_states` must have shape"),
        ({"commit": True}, "`commit` is True without a `state`"),
    ],
)
def test_bad_inputs_are_named(changed: dict[str, Any], message: str) -> None:
    good = {"hidden_states": chunk(0), "timestep": clean(), "encoder_hidden_states": prompt()}
    with pytest.raises(ValueError, match=message):
        make("global")(**{**good, **changed})


@both_kinds
@torch.no_grad()
def test_foreign_states_are_refused(kind: str) -> None:
    network = make(kind)
    _, state = run_stream(network, [chunk(0)], prompt())
    with pytest.raises(ValueError, match="`state` was made for .*batch"):
        network(chunk(1, batch=2), clean(2), prompt(2), state=state)
    with pytest.raises(ValueError, match="`state` was made for .*token rows"):
        network(chunk(1, height=12, width=8), clean(), prompt(), state=state)
    with pytest.raises(ValueError, match="`state` was made for .*layers"):
        make(kind, num_layers=3)(chunk(1), clean(), prompt(), state=state)
    with pytest.raises(ValueError, match="`state` holds torch.float64"):
        network(chunk(1), clean(), prompt(), state=state.to(dtype=torch.float64))
    with pytest.raises(ValueError, match="`state` must be a CausalWanStreamState.*SRStreamState"):
        network(chunk(1), clean(), prompt(), state=make_sr().new_stream())


@torch.no_grad()
def test_a_full_global_cache_says_what_to_do() -> None:
    network = make("global")
    _, state = run_stream(network, [chunk(0), chunk(1)], prompt(), network.new_stream(cache_frames=5))
    with pytest.raises(ValueError, match="2 frames after 4 .*`cache_frames` 5"):
        network(chunk(2), clean(), prompt(), state=state)
    network(chunk(2, frames=1), clean(), prompt(), state=state)


@torch.no_grad()
def test_bad_streams_and_settings_are_named() -> None:
    with pytest.raises(ValueError, match="`cache_frames` is 7.*`window_frames` 5"):
        make("rolling").new_stream(cache_frames=7)
    with pytest.raises(ValueError, match="`cache_frames` must be positive, got 0"):
        make("global").new_stream(cache_frames=0)
    with pytest.raises(ValueError, match="`batch_size`, `height`, `width`.*None"):
        make("global").new_stream(batch_size=1)
    with pytest.raises(ValueError, match="5 frames, more than the 4"):
        make("rolling")(chunk(0, 5), clean(), prompt(), state=make("rolling").new_stream())
    with pytest.raises(ValueError, match="`sink_frames` must be 0 without `window_frames`.*got 2"):
        make_generator(sink_frames=2)
    with pytest.raises(ValueError, match="`window_frames` must hold `sink_frames` 3.*got 4"):
        make_generator(sink_frames=3, window_frames=4)
    with pytest.raises(ValueError, match="`frames_per_chunk`.*0"):
        make_generator(frames_per_chunk=0)


@pytest.mark.parametrize(
    "setting, message",
    [
        ({"first_chunk_frames": 0}, "`first_chunk_frames` must be positive or None, got 0"),
        ({"first_chunk_frames": 4, "window_frames": 6, "sink_frames": 3}, "a first chunk of `first_chunk_frames` 4"),
        ({"denoising_steps": ()}, "`denoising_steps` must decrease"),
        ({"denoising_steps": (500, 1000)}, r"`denoising_steps` must decrease .*\(500, 1000\)"),
        ({"denoising_steps": (1000, 500, 0)}, "`denoising_steps` must decrease"),
        ({"first_chunk_denoising_steps": (1001,)}, "`first_chunk_denoising_steps` must decrease"),
        ({"flow_shift": 0.0}, "`flow_shift` must be positive and finite, got 0.0"),
        ({"flow_shift": float("nan")}, "`flow_shift` must be positive and finite, got nan"),
        ({"context_noise": 1000}, r"`context_noise` must be a timestep in \[0, 1000\), got 1000"),
    ],
)
def test_a_schedule_that_cannot_be_is_named(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_generator(**setting)


def test_the_schedule_is_saved_with_the_network(tmp_path: Path) -> None:
    schedule = {"first_chunk_frames": 1, "denoising_steps": [1000, 500], "first_chunk_denoising_steps": [1000, 750]}
    schedule |= {"flow_shift": 3.0, "context_noise": 20.0, "recompute_on_prompt_change": True, "recompute_sink": False}
    make_generator(**schedule).save_pretrained(tmp_path)
    network = CausalWanTransformer.from_pretrained(tmp_path)
    assert {name: network.config[name] for name in schedule} == schedule
