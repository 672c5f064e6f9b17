# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Sources: every kind gives the right latents, frame counts and errors, with real (tiny) networks and pipelines."""

import threading
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import (
    WanPipeline,
)
from diffusers.callbacks import PipelineCallback
from helpers.source_pipelines import (
    PROMPT_EMBEDS,
    anyflow_pipeline,
    cogvideox_pipeline,
    helios_pipeline,
    helios_pyramid_pipeline,
    hunyuan_pipeline,
    live_call,
    ltx_pipeline,
    quiet,
    skyreels_pipeline,
    wan_pipeline,
)
from PIL import Image

from ultraflash_diffusers.models.causal_wan_transformer import CausalWanTransformer
from ultraflash_diffusers.models.hr_autoencoder import HRAutoencoder
from ultraflash_diffusers.models.stream_state import StreamState
from ultraflash_diffusers.pipelines.noise import SeededFrameNoise
from ultraflash_diffusers.pipelines.sources import (
    LatentsSource,
    SourceEndedError,
    frames_to_pixels,
    has_wan_latents,
    make_source,
)
from ultraflash_diffusers.pipelines.sources.video_file import VideoFileSource
from ultraflash_diffusers.video_io import VideoReader


def tiny_autoencoder(**config):
    torch.manual_seed(0)
    sizes = dict(encoder_channels=(8, 8, 8), encoder_blocks=(1, 1, 1), decoder_channels=(8, 8, 8))
    return HRAutoencoder(**{**sizes, "decoder_blocks": (1, 1, 1), **config}).eval()


AUTOENCODER = tiny_autoencoder()
OTHER_SPACE = tiny_autoencoder(latent_space="another")


def source_of(source, autoencoder=AUTOENCODER, **arguments):
    return make_source(source, **{**dict(autoencoder=autoencoder, multiple_of=16, latent_frames=2), **arguments})


def random_frames(count, height=16, width=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def all_latents(chunks):
    return torch.cat([chunk.latents for chunk in chunks], dim=2)


@torch.no_grad()
def encoded(frames, autoencoder=AUTOENCODER):
    """What one call of the encoder makes of `t n + 1` whole frames."""
    return autoencoder.encode(frames_to_pixels(frames)).latents


# ---- pixels


def test_every_layout_of_the_same_frames_gives_the_same_pixels():
    frames = random_frames(3)
    as_float = torch.from_numpy(frames).permute(0, 3, 1, 2) / 255
    images = [Image.fromarray(frame) for frame in frames]
    expected = torch.from_numpy(frames).float().permute(3, 0, 1, 2)[None] / 127.5 - 1
    for layout in (frames, frames[None], frames / 255.0, as_float, as_float[None], images, [images], list(as_float)):
        torch.testing.assert_close(frames_to_pixels(layout), expected, atol=1e-6, rtol=0)
    batch = frames_to_pixels([images, images[::-1]])
    assert batch.shape == (2, 3, 3, 16, 16)
    torch.testing.assert_close(batch[1:], expected.flip(2), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("frame", "error", "message"),
    [
        (np.zeros((16, 16, 4), np.uint8), ValueError, "shape"),
        (np.zeros((16, 16, 3), np.int64), TypeError, "int64"),
        (np.full((16, 16, 3), 200.0), ValueError, "200"),
        (np.full((16, 16, 3), np.nan), ValueError, "nan"),
        (torch.zeros(16, 16, 3), ValueError, "shape"),
        (torch.full((3, 16, 16), -1.0), ValueError, "-1"),
        (Image.new("RGBA", (16, 16)), ValueError, "RGBA"),
        ([], ValueError, "empty"),
        ([np.zeros((16, 16, 3), np.uint8), np.zeros((16, 8, 3), np.uint8)], ValueError, "sizes"),
        ("frame.png", TypeError, "str"),
    ],
)
def test_frames_that_are_none_are_refused(frame, error, message):
    with pytest.raises(error, match=message):
        frames_to_pixels(frame)


@pytest.mark.parametrize("count", [1, 2, 5, 8, 12, 21])
@pytest.mark.parametrize("latent_frames", [1, 3])
def test_streamed_frames_equal_one_call_whatever_their_count(count, latent_frames):
    frames = random_frames(count)
    chunks = list(source_of(iter(frames), latent_frames=latent_frames).chunks())
    filled = np.concatenate([frames, np.repeat(frames[-1:], -(count - 1) % 4, axis=0)])
    torch.testing.assert_close(all_latents(chunks), encoded(filled), atol=1e-5, rtol=1e-5)
    assert sum(chunk.num_frames for chunk in chunks) == count
    torch.testing.assert_close(torch.cat([chunk.pixels for chunk in chunks], dim=2), frames_to_pixels(filled))
    assert not any(chunk.restart for chunk in chunks)
    assert all(chunk.timings["encoder"] > 0 for chunk in chunks)


def test_sizes_that_do_not_fit_are_padded_with_the_edge():
    source = source_of(iter(random_frames(5, height=18, width=31)))
    (chunk,) = source.chunks()
    assert chunk.latents.shape == (1, 16, 2, 4, 4)
    assert (source.height, source.width, source.batch_size) == (18, 31, 1)
    torch.testing.assert_close(chunk.pixels[..., 18:, :31], chunk.pixels[..., 17:18, :31].expand(-1, -1, -1, 14, -1))
    torch.testing.assert_close(chunk.pixels[..., 31], chunk.pixels[..., 30])


def test_live_frames_are_encoded_as_they_come():
    given = []

    def camera():
        for frame in random_frames(9):
            given.append(frame)
            yield frame

    chunks = source_of(camera()).chunks()
    assert next(chunks).num_frames == 5
    assert len(given) == 5


def test_num_frames_ends_an_endless_source():
    def camera():
        while True:
            yield random_frames(1)[0]

    chunks = list(source_of(camera(), num_frames=7).chunks())
    assert [chunk.num_frames for chunk in chunks] == [5, 2]


@pytest.mark.parametrize("num_frames", [None, 20])
def test_a_source_that_fails_gives_what_it_had_first(num_frames):
    def camera():
        yield from random_frames(6)
        raise OSError("unplugged")

    delivered = []
    with pytest.raises(OSError, match="unplugged"):
        for chunk in source_of(camera(), num_frames=num_frames).chunks():
            delivered.append(chunk.num_frames)
    assert delivered == [5, 1]


def test_a_source_that_ends_too_early_gives_what_it_had_first():
    delivered = []
    with pytest.raises(SourceEndedError, match="ended after 6 frames, `num_frames` is 9"):
        for chunk in source_of(iter(random_frames(6)), num_frames=9).chunks():
            delivered.append(chunk.num_frames)
    assert delivered == [5, 1]


def test_changing_frame_sizes_are_an_error_after_the_frames_before():
    frames = [*random_frames(6), *random_frames(2, height=32)]
    delivered = []
    with pytest.raises(ValueError, match="frame 6 .*height 32 .*expected .*height 16"):
        for chunk in source_of(frames).chunks():
            delivered.append(chunk.num_frames)
    assert delivered == [5, 1]


def test_a_source_is_read_once():
    frames = iter(random_frames(1))
    source = source_of(frames)
    list(source.chunks())
    with pytest.raises(RuntimeError, match="already read"):
        source.chunks()
    with pytest.raises(ValueError, match="empty"):
        source_of(frames)


@pytest.mark.parametrize(
    ("source", "arguments", "error", "message"),
    [
        ([], {}, ValueError, "empty"),
        (7, {}, TypeError, "int"),
        ({"frames": 1}, {}, TypeError, "dict"),
        (iter(random_frames(1)), dict(num_frames=0), ValueError, "`num_frames`"),
        (iter(random_frames(1)), dict(multiple_of=12), ValueError, "`multiple_of`"),
        (iter(random_frames(1)), dict(source_kwargs={"steps": 1}), ValueError, "steps"),
        (iter(random_frames(1)), dict(autoencoder=tiny_autoencoder(encoder_channels=())), ValueError, "decoder alone"),
        (None, {}, ValueError, "generator"),
        ("missing.mp4", {}, FileNotFoundError, "missing.mp4"),
    ],
)
def test_sources_that_are_none_are_refused(source, arguments, error, message):
    with pytest.raises(error, match=message):
        source_of(source, **arguments)


def resumed_latents(make, cut, tmp_path):
    """Streams `cut` chunks, saves the state, and goes on in a new source."""
    source = make(None)
    chunks = source.chunks()
    head = [next(chunks) for _ in range(cut)]
    source.state().save(tmp_path / "state.safetensors")
    source.close()
    resumed = make(StreamState.load(tmp_path / "state.safetensors"))
    return head + list(resumed.chunks())


def test_frames_go_on_from_a_saved_state(tmp_path):
    frames = random_frames(19)
    expected = list(source_of(iter(frames)).chunks())
    for cut in (1, 2):
        chunks = resumed_latents(lambda state: source_of(iter(frames), state=state), cut, tmp_path)
        assert torch.equal(all_latents(chunks), all_latents(expected))
        assert [chunk.num_frames for chunk in chunks] == [chunk.num_frames for chunk in expected]


# ---- video files


@pytest.fixture
def clip(tmp_path):
    """A losslessly coded clip of 11 frames, 24 x 40, at 12.5 frames a second."""
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=Fraction(25, 2))
        stream.width, stream.height, stream.pix_fmt = 40, 24, "bgr0"
        for frame in random_frames(11, 24, 40):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_video_file_equals_its_frames(clip, tmp_path):
    source = source_of(clip)
    assert isinstance(source, VideoFileSource)
    assert (source.height, source.width, source.frame_rate) == (24, 40, Fraction(25, 2))
    chunks = list(source.chunks())
    expected = list(source_of(iter(random_frames(11, 24, 40))).chunks())
    assert torch.equal(all_latents(chunks), all_latents(expected))
    assert sum(chunk.num_frames for chunk in chunks) == 11
    resumed = resumed_latents(lambda state: source_of(VideoReader(clip), state=state), 1, tmp_path)
    assert torch.equal(all_latents(resumed), all_latents(expected))


def test_video_file_of_another_size_is_refused(clip):
    with pytest.raises(ValueError, match="24 pixels high and 40 wide"):
        source_of(str(clip), height=48)


# ---- latents


def test_latents_pass_unchanged_and_are_cut_to_the_frames_wanted():
    latents = torch.randn(2, 16, 5, 4, 6)
    (chunk,) = source_of(latents).chunks()
    assert torch.equal(chunk.latents, latents) and chunk.num_frames == 17 and chunk.pixels is None
    chunks = list(source_of(iter(latents.split(2, dim=2)), num_frames=10).chunks())
    assert [(chunk.latents.shape[2], chunk.num_frames) for chunk in chunks] == [(2, 5), (2, 5)]
    source = source_of(latents, multiple_of=32)
    (chunk,) = source.chunks()
    assert chunk.latents.shape == (2, 16, 5, 4, 8) and (source.height, source.width) == (32, 48)
    assert torch.equal(chunk.latents[..., 7], latents[..., 5])


def test_independent_clips_restart_and_count_their_first_frames():
    def source(state=None):
        pieces = (torch.full((1, 16, 3, 2, 2), float(number)) for number in range(3))
        return LatentsSource(pieces, AUTOENCODER, multiple_of=16, independent=True, num_frames=20, state=state)

    chunks = list(source().chunks())
    assert [(chunk.restart, chunk.num_frames) for chunk in chunks] == [(False, 9), (True, 9), (True, 2)]
    first = source()
    next(first.chunks())
    (*_, last) = source(first.state()).chunks()
    assert last.restart and last.num_frames == 2 and last.latents.unique().tolist() == [2]


def test_a_batch_of_frames_is_not_mistaken_for_latents():
    (chunk, *_) = source_of(torch.rand(1, 16, 3, 16, 16)).chunks()
    assert chunk.pixels is not None
    (chunk,) = source_of(torch.randn(1, 16, 3, 16, 16)).chunks()
    assert chunk.pixels is None


@pytest.mark.parametrize(
    ("pieces", "error", "message"),
    [
        ([torch.randn(1, 16, 1, 2, 2), torch.full((1, 16, 1, 2, 2), float("inf"))], ValueError, "not finite .* 1"),
        ([torch.randn(1, 16, 1, 2, 2), torch.randn(1, 16, 1, 4, 2)], ValueError, "height 32 .*expected .*height 16"),
        ([torch.randn(1, 16, 1, 2, 2), torch.randn(1, 8, 1, 2, 2)], ValueError, "1, 8, 1, 2, 2"),
        ([torch.randn(1, 16, 1, 2, 2), "end"], TypeError, "str"),
    ],
)
def test_bad_latents_are_an_error_after_the_good_ones(pieces, error, message):
    chunks = source_of(pieces).chunks()
    next(chunks)
    with pytest.raises(error, match=message):
        next(chunks)


# ---- diffusers pipelines


def seeded():
    return torch.Generator().manual_seed(3)


WAN_CALL = dict(PROMPT_EMBEDS, height=16, width=32, num_inference_steps=2)


def wan_arguments(num_frames=9):
    return dict(num_frames=num_frames, source_kwargs=dict(WAN_CALL, generator=seeded()))


def test_wan_latents_are_told_by_their_values():
    assert has_wan_latents(wan_pipeline())
    assert not has_wan_latents(wan_pipeline(latents_mean=[0.0] * 16))
    assert not has_wan_latents(wan_pipeline(z_dim=16, scale_factor_spatial=16))
    assert not has_wan_latents(ltx_pipeline()[0])


def test_wan_pipeline_hands_its_latents_over():
    pipeline = quiet(wan_pipeline())
    expected = pipeline(**WAN_CALL, num_frames=9, generator=seeded(), output_type="latent").frames
    source = source_of(pipeline, **wan_arguments())
    (chunk,) = source.chunks()
    assert torch.equal(chunk.latents, expected) and chunk.num_frames == 9 and chunk.pixels is None
    assert (source.height, source.width) == (16, 32)


@pytest.mark.parametrize("num_frames", [8, 10, 11])
def test_wan_pipeline_gives_exactly_the_frames_asked_for(num_frames):
    chunks = list(source_of(quiet(wan_pipeline()), **wan_arguments(num_frames)).chunks())
    assert sum(chunk.num_frames for chunk in chunks) == num_frames
    assert all_latents(chunks).shape[2] == -(-(num_frames - 1) // 4) + 1


SKYREELS_MODES = {
    "all frames at once": dict(num_frames=17),
    "blocks in turns": dict(num_frames=17, num_inference_steps=3, ar_step=2, causal_block_size=1),
    "a long video": dict(num_frames=33, base_num_frames=17, overlap_history=5, addnoise_condition=20),
}


@pytest.mark.parametrize("mode", SKYREELS_MODES)
def test_skyreels_diffusion_forcing_hands_its_latents_over(mode):
    pipeline = quiet(skyreels_pipeline())
    call = WAN_CALL | SKYREELS_MODES[mode]
    num_frames = call["num_frames"]
    torch.manual_seed(0)  # noise on the condition comes from the global generator
    expected = pipeline(None, **call, generator=seeded(), output_type="latent").frames
    torch.manual_seed(0)
    chunks = list(source_of(pipeline, source_kwargs=dict(call, generator=seeded())).chunks())
    assert torch.equal(all_latents(chunks), expected) and expected.isfinite().all()
    assert sum(chunk.num_frames for chunk in chunks) == num_frames
    assert not any(chunk.restart for chunk in chunks)


def test_skyreels_blocks_arrive_while_it_works():
    pipeline = quiet(skyreels_pipeline())
    gate = StepGate(free_steps=3)
    call = WAN_CALL | SKYREELS_MODES["blocks in turns"] | dict(generator=seeded(), callback_on_step_end=gate)
    chunks = source_of(pipeline, source_kwargs=call).chunks()
    assert next(chunks).num_frames == 1
    assert gate.steps == 3  # those of the first block; the last block has not begun
    gate.opened.set()
    assert [chunk.num_frames for chunk in chunks] == [4, 4, 4, 4]


def pixel_bases():
    return {
        "wan, our latents differ": (wan_pipeline(), dict(WAN_CALL, num_frames=9), OTHER_SPACE),
        "wan, its latents differ": (
            wan_pipeline(latents_mean=[0.0] * 16), dict(WAN_CALL, num_frames=9), AUTOENCODER
        ),
        "wan, frames wanted": (
            wan_pipeline(), dict(WAN_CALL, num_frames=9, output_type="pil"), AUTOENCODER
        ),
        "ltx": (*ltx_pipeline(), AUTOENCODER),
        "cogvideox": (*cogvideox_pipeline(), AUTOENCODER),
        "hunyuan": (*hunyuan_pipeline(), AUTOENCODER),
    }  # fmt: skip


@pytest.mark.parametrize("name", pixel_bases())
def test_frames_of_any_pipeline_are_encoded(name):
    pipeline, call, autoencoder = pixel_bases()[name]
    quiet(pipeline)
    call = {"num_inference_steps": 2, "output_type": "np", **call}
    expected = frames_to_pixels(pipeline(**call, generator=seeded()).frames)
    source = source_of(pipeline, autoencoder, source_kwargs={**call, "generator": seeded()})
    chunks = list(source.chunks())
    pixels = torch.cat([chunk.pixels for chunk in chunks], dim=2)
    assert sum(chunk.num_frames for chunk in chunks) == 9
    torch.testing.assert_close(pixels[..., : source.height, : source.width], expected, atol=1e-5, rtol=0)
    with torch.no_grad():
        latents = autoencoder.encode(pixels).latents
    torch.testing.assert_close(all_latents(chunks), latents, atol=1e-4, rtol=1e-4)


class StepGate:
    """A callback of the user's that counts the steps, and from a given one on waits for a permission."""

    def __init__(self, free_steps=10**6):
        self.steps, self.free_steps, self.opened = 0, free_steps, threading.Event()

    def __call__(self, pipeline, step, timestep, tensors):
        if self.steps >= self.free_steps:
            assert self.opened.wait(30)
        self.steps += 1
        return {}


def test_helios_chunks_arrive_while_it_works_and_are_clips_of_their_own():
    pipeline = quiet(helios_pipeline())
    call = live_call(pipeline)
    expected = pipeline(**call, num_frames=66, generator=seeded(), output_type="latent").frames
    gate = StepGate(free_steps=2)
    call |= dict(generator=seeded(), callback_on_step_end=gate)
    source = source_of(pipeline, num_frames=60, source_kwargs=call)
    chunks = source.chunks()
    first = next(chunks)
    assert gate.steps == 2  # the first chunk's steps: the base pipeline stands before the second one
    gate.opened.set()
    (second,) = chunks
    assert torch.equal(first.latents, expected[:, :, :9]) and not first.restart and first.num_frames == 33
    assert torch.equal(second.latents, expected[:, :, 9:17]) and second.restart and second.num_frames == 27


def test_helios_pyramid_passes_only_full_size_chunks_on():
    pipeline = quiet(helios_pyramid_pipeline())
    call = dict(PROMPT_EMBEDS, height=64, width=64, pyramid_num_inference_steps_list=[1, 2, 1])
    expected = pipeline(**call, num_frames=66, generator=seeded(), output_type="latent").frames
    chunks = list(source_of(pipeline, num_frames=66, source_kwargs=call | dict(generator=seeded())).chunks())
    assert [chunk.restart for chunk in chunks] == [False, True]
    assert torch.equal(all_latents(chunks), expected)


def test_helios_frames_arrive_while_it_works():
    pipeline = quiet(helios_pipeline())
    expected = frames_to_pixels(
        pipeline(**live_call(pipeline), num_frames=66, generator=seeded(), output_type="pt").frames
    )
    gate = StepGate(free_steps=2)
    call = live_call(pipeline) | dict(generator=seeded(), callback_on_step_end=gate)
    chunks = source_of(pipeline, OTHER_SPACE, num_frames=65, source_kwargs=call).chunks()
    collected = [next(chunks)]
    assert gate.steps == 2
    gate.opened.set()
    collected += chunks
    assert sum(chunk.num_frames for chunk in collected) == 65 and not any(chunk.restart for chunk in collected)
    pixels = torch.cat([chunk.pixels for chunk in collected], dim=2)
    torch.testing.assert_close(pixels, expected, atol=1e-5, rtol=0)


def test_anyflow_chunks_arrive_while_it_works_and_go_on():
    pipeline = quiet(anyflow_pipeline())
    call = live_call(pipeline)
    expected = pipeline(**call, num_frames=17, generator=seeded(), output_type="latent").frames
    gate = StepGate(free_steps=2)
    call |= dict(generator=seeded(), callback_on_step_end=gate)
    chunks = source_of(pipeline, num_frames=17, source_kwargs=call).chunks()
    collected = [next(chunks)]
    assert gate.steps == 2
    gate.opened.set()
    collected += chunks
    assert [chunk.num_frames for chunk in collected] == [1, 8, 8]
    assert torch.equal(all_latents(collected), expected) and not any(chunk.restart for chunk in collected)


def test_anyflow_with_given_first_frames_is_taken_whole():
    pipeline = quiet(anyflow_pipeline())
    call = dict(live_call(pipeline), video_latents=torch.randn(1, 1, 16, 2, 2))
    expected = pipeline(**call, num_frames=17, generator=seeded(), output_type="latent").frames
    (chunk,) = source_of(pipeline, num_frames=17, source_kwargs=dict(call, generator=seeded())).chunks()
    assert torch.equal(chunk.latents, expected) and chunk.num_frames == 17


def test_the_users_own_callback_is_still_called():
    seen = []

    class Record(PipelineCallback):
        tensor_inputs = ["prompt_embeds"]

        def callback_fn(self, pipeline, step, timestep, tensors):
            seen.append(set(tensors))
            return tensors

    pipeline = quiet(helios_pipeline())
    options = [
        dict(callback_on_step_end=Record()),
        dict(callback_on_step_end=Record().callback_fn, callback_on_step_end_tensor_inputs=["prompt_embeds"]),
    ]
    for option in options:
        (chunk,) = source_of(pipeline, num_frames=33, source_kwargs=live_call(pipeline) | option).chunks()
        assert chunk.num_frames == 33
    assert seen == [{"prompt_embeds", "latents"}] * 4


def source_threads():
    return [thread for thread in threading.enumerate() if thread.name == "ultraflash-source"]


def test_closing_stops_the_pipeline_at_its_next_step():
    pipeline = quiet(helios_pipeline())
    gate = StepGate()
    call = live_call(pipeline) | dict(callback_on_step_end=gate)
    source = source_of(pipeline, num_frames=33 * 20, source_kwargs=call)
    chunks = source.chunks()
    next(chunks)
    assert source_threads()
    source.close()
    assert not source_threads() and gate.steps < 10
    source.close()


def test_errors_of_the_pipeline_pass_on_after_its_chunks():
    def fails_in_third_chunk(pipeline, step, timestep, tensors):
        calls.append(step)
        if len(calls) == 5:
            raise RuntimeError("out of steps")
        return {}

    calls = []
    pipeline = quiet(helios_pipeline())
    call = live_call(pipeline) | dict(callback_on_step_end=fails_in_third_chunk)
    chunks = source_of(pipeline, num_frames=99, source_kwargs=call).chunks()
    assert [next(chunks).num_frames for _ in range(2)] == [33, 33]
    with pytest.raises(RuntimeError, match="out of steps"):
        next(chunks)
    assert not source_threads()


class MutePipeline(WanPipeline):
    def __call__(self, prompt=None, num_frames=None, output_type="np"):
        return {"text": prompt}


def test_output_that_is_not_understood_is_an_error():
    base = wan_pipeline()
    pipeline = MutePipeline(None, None, base.vae, base.scheduler, base.transformer)
    with pytest.raises(ValueError, match="MutePipeline returned a dict without `frames`"):
        list(source_of(pipeline, prompt="a ball", num_frames=5).chunks())


def test_latents_that_do_not_fit_cannot_be_asked_for():
    with pytest.raises(ValueError, match="latent space is 'another'"):
        source_of(wan_pipeline(), OTHER_SPACE, source_kwargs=dict(output_type="latent"))


# ---- text


def tiny_generator(**config):
    torch.manual_seed(0)
    sizes = dict(num_attention_heads=2, attention_head_dim=12, text_dim=16, text_length=4, freq_dim=32, ffn_dim=32)
    return CausalWanTransformer(**{**sizes, "num_layers": 2, **config}).eval()


GENERATOR = tiny_generator()
TEXT = torch.randn(2, 4, 16, generator=seeded())


def text_source(generator=GENERATOR, prompt_embeds=TEXT[:1], state=None, source_kwargs=None, **arguments):
    noise = SeededFrameNoise([5], prompt_embeds.shape[0])
    arguments = dict(height=16, width=16, num_frames=25) | arguments
    return source_of(
        None, generator=generator, prompt_embeds=prompt_embeds, noise=noise, state=state, source_kwargs=source_kwargs,
        **arguments,
    )  # fmt: skip


@pytest.mark.parametrize(("num_frames", "counts"), [(1, [1]), (9, [9]), (10, [9, 1]), (24, [9, 12, 3])])
def test_text_gives_exactly_the_frames_asked_for(num_frames, counts):
    chunks = list(text_source(num_frames=num_frames).chunks())
    assert [chunk.num_frames for chunk in chunks] == counts
    whole = all_latents(text_source(num_frames=33).chunks())
    latents = all_latents(chunks)
    assert torch.equal(latents, whole[:, :, : latents.shape[2]])


def test_odd_sizes_are_generated_larger():
    source = text_source(height=18, width=40, num_frames=1)
    (chunk,) = source.chunks()
    assert chunk.latents.shape == (1, 16, 1, 4, 6) and (source.height, source.width) == (18, 40)


def test_text_goes_on_from_a_saved_state(tmp_path):
    for window in (None, 6):
        options = dict(window_frames=window)
        expected = all_latents(text_source(num_frames=45, source_kwargs=options).chunks())
        make = lambda state: text_source(num_frames=45, source_kwargs=options, state=state)  # noqa: E731, B023
        assert torch.equal(all_latents(resumed_latents(make, 2, tmp_path)), expected)


def test_the_prompt_changes_from_the_next_chunk_on():
    expected = [chunk.latents for chunk in text_source().chunks()]
    source = text_source()
    chunks = source.chunks()
    first = next(chunks).latents
    source.change_prompt(1, TEXT[1:])
    second = next(chunks).latents
    assert torch.equal(first, expected[0]) and not torch.allclose(second, expected[1])
    with pytest.raises(ValueError, match="prompt_embeds"):
        source.change_prompt(2, TEXT)


def test_endless_text_needs_a_window_and_keeps_its_memory():
    with pytest.raises(ValueError, match="window_frames"):
        text_source(num_frames=None)
    source = text_source(num_frames=None, source_kwargs=dict(window_frames=6, sink_frames=3))
    sizes = set()
    for chunk, _ in zip(source.chunks(), range(6), strict=False):
        assert chunk.latents.shape[2] == 3
        sizes.add(sum(key.numel() for key in source.state().network.cache.keys))
    assert len(sizes) == 1


def test_a_window_longer_than_the_video_takes_no_more_memory():
    whole = list(text_source(num_frames=25, source_kwargs=dict(window_frames=100)).chunks())
    source = text_source(num_frames=25, source_kwargs=dict(window_frames=10**9, sink_frames=10**8))
    assert torch.equal(all_latents(source.chunks()), all_latents(whole))
    assert source.state().network.cache.keys[0].shape[1] < 20


def test_the_rolling_window_forgets():
    kept = all_latents(text_source(num_frames=81).chunks())
    rolled = all_latents(text_source(num_frames=81, source_kwargs=dict(window_frames=6)).chunks())
    torch.testing.assert_close(rolled[:, :, :6], kept[:, :, :6])
    assert not torch.allclose(rolled[:, :, 6:], kept[:, :, 6:])


def test_video_starts_with_the_given_frames():
    image = Image.fromarray(random_frames(1)[0])
    chunks = list(text_source(num_frames=25, source_kwargs=dict(first_frames=image)).chunks())
    assert [chunk.num_frames for chunk in chunks] == [1, 12, 12]
    torch.testing.assert_close(chunks[0].latents, encoded(random_frames(1)))
    assert chunks[0].statistics["generator_passes"] == 1
    plain = list(text_source().chunks())
    assert not torch.allclose(chunks[1].latents[:, :, :2], plain[0].latents[:, :, 1:])
    clip = torch.randn(1, 16, 4, 2, 2)
    chunks = list(text_source(prompt_embeds=TEXT, num_frames=21, source_kwargs=dict(first_latents=clip)).chunks())
    assert [chunk.num_frames for chunk in chunks] == [9, 4, 8]
    assert torch.equal(all_latents(chunks)[:, :, :4], clip.expand(2, -1, -1, -1, -1))


def test_pictures_of_any_size_are_brought_to_the_video():
    picture = random_frames(1, height=32, width=64)
    first = lambda **options: next(text_source(source_kwargs=options).chunks()).latents  # noqa: E731
    pixels = frames_to_pixels(picture)[:, :, 0]
    whole = F.interpolate(pixels, (16, 16), mode="bicubic", antialias=True).clamp(-1, 1)
    cut = F.interpolate(pixels, (16, 32), mode="bicubic", antialias=True)[..., 8:24].clamp(-1, 1)
    for expected, options in ((whole, {}), (cut, dict(resize_mode="crop"))):
        with torch.no_grad():
            latents = AUTOENCODER.encode(expected[:, :, None]).latents
        torch.testing.assert_close(first(first_frames=picture, **options), latents, atol=1e-5, rtol=1e-4)
    decoder = tiny_autoencoder(encoder_channels=(), encoder_blocks=())
    with pytest.raises(ValueError, match="decoder alone"):
        text_source(autoencoder=decoder, source_kwargs=dict(first_frames=picture))


def test_a_schedule_of_the_calls_own_is_that_of_a_generator_so_configured():
    schedule = dict(frames_per_chunk=2, first_chunk_frames=1, denoising_steps=(1000, 500), flow_shift=3.0)
    schedule |= dict(first_chunk_denoising_steps=(1000,), context_noise=5.0, window_frames=6, sink_frames=1)
    configured = tiny_generator(**schedule)
    configured.load_state_dict(GENERATOR.state_dict())
    expected = list(text_source(configured).chunks())
    chunks = list(text_source(source_kwargs=schedule).chunks())
    assert [chunk.num_frames for chunk in chunks] == [1, 8, 8, 8]
    assert [chunk.statistics["generator_passes"] for chunk in chunks] == [2, 3, 3, 3]
    torch.testing.assert_close(all_latents(chunks), all_latents(expected), atol=1e-5, rtol=1e-4)
    alike = list(text_source(source_kwargs=dict(frames_per_chunk=1)).chunks())
    assert [chunk.num_frames for chunk in alike] == [1] + [4] * 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(first_frames=random_frames(2)), "4 n \\+ 1"),
        (dict(first_frames=random_frames(1), resize_mode="fill"), "`resize_mode` must be one of 'default', 'crop'"),
        (dict(first_latents=torch.zeros(1, 16, 1, 4, 4)), "first_latents"),
        (dict(first_latents=torch.full((1, 16, 1, 2, 2), float("nan"))), "not finite"),
        (dict(first_latents=torch.zeros(1, 16, 1, 2, 2), first_frames=random_frames(1)), "both"),
        (dict(denoising_steps=(250, 500)), "denoising_steps"),
        (dict(denoising_steps=()), "denoising_steps"),
        (dict(denoising_steps=500), "`denoising_steps` must be a list of timesteps, got 500"),
        (dict(first_chunk_denoising_steps=("a",)), "must be a list of timesteps"),
        (dict(first_chunk_denoising_steps=()), r"must decrease inside \(0, 1000\], got \(\)"),
        (dict(flow_shift=0.0), "flow_shift"),
        (dict(flow_shift=float("nan")), "`flow_shift` must be a finite number"),
        (dict(context_noise=1000), "`context_noise` must be in"),
        (dict(frames_per_chunk=0), "`frames_per_chunk` must be an integer of at least 1"),
        (dict(window_frames=4, sink_frames=3), "a chunk of 3 frames: at least 6"),
        (dict(window_frames=4, frames_per_chunk=6), "a chunk of 6 frames: at least 6"),
        (dict(sink_frames=3), "sink_frames"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        text_source(source_kwargs=options)


def test_a_state_of_another_kind_of_source_is_refused():
    source = source_of(iter(random_frames(5)))
    list(source.chunks())
    with pytest.raises(ValueError, match="PixelSourceState"):
        text_source(state=source.state())
