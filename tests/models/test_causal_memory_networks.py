"""The causal memory networks: latent upsampler and HR autoencoder, streamed, batched, tiled, saved and compiled."""

import itertools
import json

import pytest
import torch
from accelerate import cpu_offload
from diffusers.hooks import apply_group_offloading
from hypothesis import given, settings
from hypothesis import strategies as st

from ultraflash_diffusers.models import causal_memory
from ultraflash_diffusers.models.causal_latent_upsampler import CausalLatentUpsampler
from ultraflash_diffusers.models.causal_memory import CausalMemoryBlock, CausalMemoryState
from ultraflash_diffusers.models.hr_autoencoder import AutoencoderStreamState, HRAutoencoder

UPSAMPLERS = {
    "v1 x2": {"channels": (8,), "num_blocks": (2,)},
    "v1 x3 residual": {"channels": (8,), "num_blocks": (2,), "scale": 3, "residual": True, "memory_init": "zero"},
    "v1 x4": {"channels": (8,), "num_blocks": (1,), "scale": 4, "activation": "silu"},
    "v3 x2": {"layout": "v3", "channels": (8, 6, 4), "num_blocks": (1, 2, 1)},
    "v3 x4 and time": {
        "layout": "v3",
        "channels": (8, 6, 4),
        "num_blocks": (1, 1, 1),
        "scale": 4,
        "temporal_scale": 2,
        "residual": True,
        "residual_scale": 0.5,
    },
    "with a trunk": {"channels": (8,), "num_blocks": (2,), "trunk_channels": 6, "trunk_blocks": 2, "residual": True},
}
SMALL = {"encoder_channels": (8, 8, 8), "encoder_blocks": (1, 1, 1), "decoder_channels": (8, 6, 4)}
SMALL |= {"decoder_blocks": (1, 2, 1), "latent_channels": 4}
AUTOENCODERS = {
    "tiny": {"variant": "tiny", **SMALL},
    "ultra": {"variant": "ultra", **SMALL},
    "v3": {"variant": "v3", **SMALL},
    "patched": {
        "variant": "ultra",
        "latent_channels": 6,
        "patch_size": 2,
        "encoder_channels": (8,),
        "encoder_blocks": (1,),
        "encoder_spatial_strides": (2,),
        "encoder_temporal_strides": (4,),
        "decoder_channels": (8, 6),
        "decoder_blocks": (1, 1),
        "decoder_spatial_strides": (2, 1),
        "decoder_temporal_strides": (2, 2),
        "linear_shortcut": True,
        "latent_space": "small",
        "activation": "silu",
    },
}


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_pixel_shuffle_is_torchs(factor: int) -> None:
    frames = torch.randn(2, 5 * factor**2, 3, 4, requires_grad=True)
    shuffled, expected = causal_memory.pixel_shuffle(frames, factor), torch.pixel_shuffle(frames, factor)
    assert torch.equal(shuffled, expected)
    direction = torch.randn_like(expected)
    assert torch.equal(*[torch.autograd.grad((each * direction).sum(), frames)[0] for each in (shuffled, expected)])


def make_upsampler(name: str) -> CausalLatentUpsampler:
    torch.manual_seed(0)
    return CausalLatentUpsampler(in_channels=4, out_channels=4, **UPSAMPLERS[name]).eval()


def make_autoencoder(name: str) -> HRAutoencoder:
    torch.manual_seed(0)
    return HRAutoencoder(**AUTOENCODERS[name]).eval()


def make_decoder_alone() -> HRAutoencoder:
    return HRAutoencoder(**{**AUTOENCODERS["v3"], "encoder_channels": ()})


def public_config(network) -> dict:
    """What JSON makes of the configuration, without diffusers' own bookkeeping."""
    return json.loads(json.dumps({key: value for key, value in network.config.items() if key[0] != "_"}))


def compositions(total: int):
    """All ways to cut `total` frames into consecutive chunks."""
    for cuts in itertools.product((False, True), repeat=total - 1):
        sizes, run = [], 1
        for cut in cuts:
            if cut:
                sizes.append(run)
                run = 1
            else:
                run += 1
        yield [*sizes, run]


def stream(step, video: torch.Tensor, sizes: list[int], key: str) -> torch.Tensor:
    outputs, state = [], None
    for chunk in video.split(sizes, dim=2):
        result = step(chunk, state=state)
        outputs.append(result[key])
        state = result.state
    return torch.cat(outputs, dim=2)


@pytest.mark.parametrize("name", UPSAMPLERS)
@torch.no_grad()
def test_upsampler_streamed_equals_one_call_for_every_split(name):
    network, latents = make_upsampler(name), torch.randn(1, 4, 5, 3, 4)
    whole = network(latents).sample
    scale, time = network.config.scale, network.config.temporal_scale
    assert whole.shape == (1, 4, 5 * time, 3 * scale, 4 * scale)
    for sizes in compositions(5):
        torch.testing.assert_close(stream(network, latents, sizes, "sample"), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", AUTOENCODERS)
@torch.no_grad()
def test_decoding_streamed_equals_one_call_for_every_split(name):
    network = make_autoencoder(name)
    latents = torch.randn(1, network.config.latent_channels, 5, 3, 4)
    whole = network.decode(latents).sample
    ratio = network.spatial_compression_ratio
    assert whole.shape == (1, 3, 17, 3 * ratio, 4 * ratio)
    for sizes in compositions(5):
        torch.testing.assert_close(stream(network.decode, latents, sizes, "sample"), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", AUTOENCODERS)
@pytest.mark.parametrize("sizes", [[1, 12], [5, 8], [9, 4], [1, 4, 8], [1, 1, 1, 1, 1, 8], [5, 3, 2, 3], [1, 2, 7, 3]])
@torch.no_grad()
def test_encoding_streamed_equals_one_call(name, sizes):
    network, frames = make_autoencoder(name), torch.rand(1, 3, 13, 16, 24) * 2 - 1
    whole = network.encode(frames).latents
    assert whole.shape[2] == 4
    torch.testing.assert_close(stream(network.encode, frames, sizes, "latents"), whole, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_frames_that_complete_no_latent_wait_in_the_state():
    network, frames = make_autoencoder("tiny"), torch.rand(1, 3, 4, 16, 16)
    first = network.encode(frames[:, :, :1])
    second = network.encode(frames[:, :, 1:], state=first.state)
    assert second.latents.shape[2] == 0 and second.state.pending.shape[2] == 3
    third = network.encode(frames[:, :, :1], state=second.state)
    assert third.latents.shape[2] == 1 and third.state.pending is None


@pytest.mark.parametrize("name", AUTOENCODERS)
@torch.no_grad()
def test_the_future_does_not_change_the_past(name):
    network = make_autoencoder(name)
    latents = torch.randn(1, network.config.latent_channels, 4, 3, 3)
    changed = latents.clone()
    changed[:, :, 2:] += 1
    before, after = network.decode(latents).sample, network.decode(changed).sample
    torch.testing.assert_close(before[:, :, :5], after[:, :, :5])
    assert not torch.allclose(before[:, :, 5:], after[:, :, 5:])
    frames = torch.rand(1, 3, 9, 16, 16)
    later = frames.clone()
    later[:, :, 5:] = 0
    torch.testing.assert_close(network.encode(frames).latents[:, :, :2], network.encode(later).latents[:, :, :2])


@pytest.mark.parametrize("name", UPSAMPLERS)
@torch.no_grad()
def test_upsampler_is_causal_and_batches(name):
    network, latents = make_upsampler(name), torch.randn(3, 4, 3, 4, 4)
    batch = network(latents).sample
    singles = torch.cat([network(latents[i : i + 1]).sample for i in range(3)])
    torch.testing.assert_close(batch, singles, rtol=1e-4, atol=1e-5)
    changed = latents.clone()
    changed[:, :, 2] += 1
    time = network.config.temporal_scale
    torch.testing.assert_close(network(changed).sample[:, :, : 2 * time], batch[:, :, : 2 * time])


@torch.no_grad()
def test_batch_of_three_equals_three_singles():
    network, latents = make_autoencoder("ultra"), torch.randn(3, 4, 3, 3, 3)
    singles = torch.cat([network.decode(latents[i : i + 1]).sample for i in range(3)])
    torch.testing.assert_close(network.decode(latents).sample, singles, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_two_interleaved_streams_do_not_touch_each_other():
    network = make_upsampler("v1 x2")
    videos, states = torch.randn(2, 1, 4, 4, 4, 4), [None, None]
    outputs = [[], []]
    for frame in range(4):
        for index in (0, 1):
            result = network(videos[index][:, :, frame : frame + 1], state=states[index])
            states[index] = result.state
            outputs[index].append(result.sample)
    for index in (0, 1):
        alone = network(videos[index]).sample
        torch.testing.assert_close(torch.cat(outputs[index], dim=2), alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_state_can_be_saved_cloned_and_moved(tmp_path):
    network, latents = make_autoencoder("ultra"), torch.randn(1, 4, 4, 3, 3)
    first = network.decode(latents[:, :, :2])
    expected = network.decode(latents[:, :, 2:], state=first.state).sample
    first.state.save(tmp_path / "state.safetensors")
    loaded = AutoencoderStreamState.load(tmp_path / "state.safetensors")
    for state in (loaded, first.state.clone(), first.state.to("cpu", torch.float32)):
        assert torch.equal(network.decode(latents[:, :, 2:], state=state).sample, expected)
    with pytest.raises(ValueError, match="CausalMemoryState"):
        CausalMemoryState.load(tmp_path / "state.safetensors")
    with pytest.raises(FileNotFoundError, match="nothing.safetensors"):
        CausalMemoryState.load(tmp_path / "nothing.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"not a state")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        CausalMemoryState.load(tmp_path / "bad.safetensors")


@pytest.mark.parametrize("name", AUTOENCODERS)
@torch.no_grad()
def test_tiles_are_exact(name):
    network = make_autoencoder(name)
    ratio = network.spatial_compression_ratio
    latents = torch.randn(1, network.config.latent_channels, 3, 30, 22)
    frames = torch.rand(1, 3, 9, 30 * ratio, 22 * ratio) * 2 - 1
    decoded, encoded = network.decode(latents).sample, network.encode(frames).latents
    network.enable_tiling(tile_sample_min_size=8 * ratio)
    state = network.decode(latents).state
    assert len(state.stacks) == 12 and state.stacks[0].input_size[1] < 30, "the call was not tiled"
    torch.testing.assert_close(network.decode(latents).sample, decoded, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network.encode(frames).latents, encoded, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(stream(network.decode, latents, [1, 2], "sample"), decoded, rtol=1e-4, atol=1e-5)
    network.disable_tiling()
    with pytest.raises(ValueError, match="12 tiles"):
        network.decode(latents, state=state)


@pytest.mark.parametrize(
    "make,name", [(make_upsampler, name) for name in UPSAMPLERS] + [(make_autoencoder, name) for name in AUTOENCODERS]
)
@torch.no_grad()
def test_save_and_load(make, name, tmp_path):
    network = make(name)
    network.save_pretrained(tmp_path / "whole")
    network.save_pretrained(tmp_path / "sharded", max_shard_size="5KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    for folder in ("whole", "sharded"):
        loaded = type(network).from_pretrained(tmp_path / folder)
        assert public_config(loaded) == public_config(network)
        for key, value in network.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], value)
    half = type(network).from_pretrained(tmp_path / "whole", dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize("name", AUTOENCODERS)
@torch.no_grad()
def test_layers_run_in_another_order_and_in_bands_give_the_same(name, monkeypatch):
    """Against the layers as they are listed, all frames at a time."""
    autoencoder = make_autoencoder(name)
    latents = torch.randn(2, autoencoder.config.latent_channels, 3, 4, 5)
    frames, states = latents.transpose(1, 2), []
    for layer in autoencoder.decoder:
        if isinstance(layer, CausalMemoryBlock):
            frames, state = layer(frames, None)
            states.append(state)
        else:
            frames = layer(frames.flatten(0, 1)).unflatten(0, (2, -1))
    for large, bands in ((causal_memory._LARGE_FRAME, 1), (1, 1), (1, 3), (1, 99)):
        monkeypatch.setattr(causal_memory, "_LARGE_FRAME", large)
        monkeypatch.setattr(causal_memory, "_BANDS", bands)
        output, state = autoencoder.decoder(latents.transpose(1, 2))
        torch.testing.assert_close(output, frames, atol=1e-6, rtol=1e-5)
        for memory, expected in zip(state.memories, states, strict=True):
            torch.testing.assert_close(memory, expected, atol=1e-6, rtol=1e-5)
            assert memory.untyped_storage().nbytes() == memory.nbytes  # and not the whole chunk's


def test_gradient_checkpointing_gives_the_same_gradients():
    network, latents = make_upsampler("v1 x2").train(), torch.randn(1, 4, 3, 4, 4)
    network(latents).sample.square().mean().backward()
    expected = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}
    network.zero_grad()
    network.enable_gradient_checkpointing()
    assert network.blocks.gradient_checkpointing
    network(latents).sample.square().mean().backward()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


@torch.no_grad()
def test_accelerate_offload_hooks_run():
    network, latents = make_upsampler("v1 x2"), torch.randn(1, 4, 2, 4, 4)
    expected = network(latents).sample
    cpu_offload(network, execution_device=torch.device("cpu"))
    result = network(latents)
    torch.testing.assert_close(result.sample, expected)
    torch.testing.assert_close(network(latents, state=result.state).sample.shape, expected.shape)


@torch.no_grad()
def test_group_offloading_and_layerwise_casting_run():
    network, latents = make_autoencoder("ultra"), torch.randn(1, 4, 2, 3, 3)
    expected = network.decode(latents).sample
    apply_group_offloading(
        network, onload_device=torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1
    )
    torch.testing.assert_close(network.decode(latents).sample, expected)
    cast = make_upsampler("v1 x2")
    cast.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    assert cast.final.weight.dtype == torch.bfloat16
    assert cast(torch.randn(1, 4, 2, 4, 4)).sample.dtype == torch.float32


@torch.no_grad()
def test_compiles_as_one_graph_without_recompiling_from_chunk_to_chunk():
    torch._dynamo.reset()
    upsampler, autoencoder = make_upsampler("v1 x2"), make_autoencoder("ultra")
    video = torch.randn(1, 4, 10, 4, 4)
    expected = autoencoder.decode(upsampler(video).sample).sample

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(latents, states):
        high = upsampler(latents, state=states[0])
        frames = autoencoder.decode(high.sample, state=states[1])
        return frames.sample, (high.state, frames.state)

    frames, states = step(video[:, :, :2], (None, None))
    outputs = [frames]
    for index, chunk in enumerate(video[:, :, 2:].split(2, dim=2)):
        # the start of a stream and its steady state are two graphs; from then on there must be no third
        with torch._dynamo.config.patch(error_on_recompile=index > 0):
            frames, states = step(chunk, states)
        outputs.append(frames)
    torch.testing.assert_close(torch.cat(outputs, dim=2), expected, rtol=1e-4, atol=1e-5)


BAD_CALLS = [
    (lambda u, a: u(torch.randn(1, 5, 2, 4, 4)), "`latents` must have 4 channels, got 5"),
    (lambda u, a: u(torch.randn(1, 4, 4, 4)), "`latents` must have shape"),
    (lambda u, a: u(torch.randn(1, 4, 2, 4, 4).double()), "dtype torch.float64"),
    (lambda u, a: u(torch.randn(1, 4, 0, 4, 4)), "is empty"),
    (lambda u, a: u(torch.randn(2, 4, 1, 4, 4), state=u(torch.randn(1, 4, 1, 4, 4)).state), "`state` belongs to"),
    (lambda u, a: u(torch.randn(1, 4, 1, 4, 5), state=u(torch.randn(1, 4, 1, 4, 4)).state), "`state` belongs to"),
    (lambda u, a: a.decode(torch.randn(1, 3, 1, 4, 4)), "`z` must have 4 channels, got 3"),
    (lambda u, a: a.decode(torch.randn(1, 4, 1, 4, 4), state=a.encode(torch.randn(1, 3, 1, 32, 32)).state), "another"),
    (lambda u, a: a.decode(torch.randn(2, 4, 1, 4, 4), state=a.decode(torch.randn(1, 4, 1, 4, 4)).state), "stream of"),
    (lambda u, a: a.encode(torch.randn(1, 3, 1, 30, 32)), "height 30 and width 32; both must be multiples of 8"),
    (lambda u, a: a.encode(torch.randn(1, 3, 7, 32, 32)), "`x` has 7 frames"),
    (lambda u, a: a.enable_tiling(12), "positive multiple of 8, got 12"),
    (lambda u, a: CausalLatentUpsampler(layout="v2"), "`layout` must be 'v1' or 'v3', got 'v2'"),
    (lambda u, a: CausalLatentUpsampler(scale=0), "`scale` must be a positive integer, got 0"),
    (lambda u, a: CausalLatentUpsampler(layout="v3", channels=(4, 4, 4), num_blocks=(1, 1, 1), scale=3), "1, 2, 4, 8"),
    (lambda u, a: CausalLatentUpsampler(layout="v3", channels=(4, 4, 4), num_blocks=(1, 1)), "`num_blocks`"),
    (lambda u, a: CausalLatentUpsampler(trunk_channels=8), "both positive, or None and 0: got 8 and 0"),
    (lambda u, a: CausalLatentUpsampler(trunk_blocks=1), "both positive, or None and 0: got None and 1"),
    (
        lambda u, a: CausalLatentUpsampler(
            layout="v3", channels=(4, 4, 4), num_blocks=(1, 1, 1), trunk_channels=8, trunk_blocks=1
        ),
        "`trunk_channels` is of the v1 layout",
    ),
    (lambda u, a: CausalLatentUpsampler(activation="tanh"), "`activation` must be one of"),
    (lambda u, a: CausalLatentUpsampler(memory_init="ones"), "`memory_init` must be"),
    (lambda u, a: HRAutoencoder(variant="huge"), "`variant` must be one of"),
    (lambda u, a: HRAutoencoder(encoder_spatial_strides=(2, 2, 1)), "`encoder_spatial_strides`"),
    (lambda u, a: make_decoder_alone().encode(torch.randn(1, 3, 1, 8, 8)), "decoder alone"),
]


@pytest.mark.parametrize("call,message", BAD_CALLS, ids=[message for _, message in BAD_CALLS])
@torch.no_grad()
def test_bad_input(call, message):
    with pytest.raises(ValueError) as error:
        call(make_upsampler("v1 x2"), make_autoencoder("ultra"))
    assert message in str(error.value)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 2), st.integers(1, 4), st.integers(1, 7), st.integers(1, 7))
@torch.no_grad()
def test_any_size_gives_exactly_the_expected_frames(batch, frames, height, width):
    upsampler, autoencoder = make_upsampler("v1 x3 residual"), make_autoencoder("ultra")
    high = upsampler(torch.randn(batch, 4, frames, height, width)).sample
    video = autoencoder.decode(high).sample
    assert video.shape == (batch, 3, 4 * frames - 3, height * 24, width * 24)
    assert autoencoder.encode(video).latents.shape == high.shape
