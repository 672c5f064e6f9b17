# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Running streams: cutting, resuming, changing the prompt, failing, closing; with and without overlapped decoding."""

import gc
import itertools
import subprocess
import sys
import textwrap
import threading
import weakref
from fractions import Fraction

import pytest
import torch
from helpers.paths import ROOT
from helpers.tiny import make_tiny_pipeline

from benchmarks.memory import measure
from ultraflash_diffusers import DynamicCacheManagement, UltraFlashStreamingPipeline
from ultraflash_diffusers.pipelines.execution.background import background
from ultraflash_diffusers.pipelines.execution.plan import ExecutionPlan
from ultraflash_diffusers.pipelines.execution.workers import _IDLE
from ultraflash_diffusers.pipelines.pipeline_state import PipelineStreamState
from ultraflash_diffusers.pipelines.sources import Source, SourceChunk, SourceEndedError

PIPE = make_tiny_pipeline()
FRAMES = 45
STAGES = ("upsampler", "transformer", "decoder", "output")


@pytest.fixture(params=["in turns", "overlapped"], autouse=True)
def overlap(request, monkeypatch):
    """A CPU decodes and denoises in turns; the worker thread that GPUs get is tested all the same."""
    monkeypatch.setattr(UltraFlashStreamingPipeline, "can_overlap_decoding", request.param == "overlapped")
    return request.param == "overlapped"


def seed(number=0):
    return torch.Generator().manual_seed(number)


def clip(frames=FRAMES, number=0):
    return torch.rand(1, frames, 3, 8, 12, generator=seed(number))


def latents(frames=12, number=0):
    return torch.randn(1, 4, frames, 2, 3, generator=seed(number))


def start(source=None, pipe=PIPE, **arguments):
    generator = None if "state" in arguments else seed()
    return pipe.stream(source=source, **{"output_type": "pt", "generator": generator, **arguments})


def workers():
    """Threads that work for a stream. Idle ones, which were given back, wait for the next stream."""
    idle = {thread for given_back in _IDLE.values() for worker in given_back for thread in worker._thread._threads}
    return [each.name for each in threading.enumerate() if each.name.startswith("ultraflash") and each not in idle]


def joined(chunks):
    return torch.cat([chunk.frames for chunk in chunks], dim=1)


KINDS = {
    "pixels": {"source": clip()},
    "latents": {"source": latents(), "num_frames": FRAMES},
    "text": {"prompt": "a red ball", "num_frames": FRAMES, "height": 16, "width": 20},
    "guided": {
        "source": latents(),
        "num_frames": FRAMES,
        "prompt": "cat",
        "negative_prompt": "ball",
        "guidance_scale": 3.0,
        "num_inference_steps": 2,
    },
    "managed": {
        "prompt": "a red ball",
        "num_frames": FRAMES,
        "height": 16,
        "width": 20,
        "cache_management": DynamicCacheManagement(sr_warmup_groups=0),
    },
}


# ---- cutting


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_is_the_one_call_video_however_it_is_cut(kind):
    expected = PIPE(**KINDS[kind], output_type="pt", generator=seed()).frames
    assert expected.shape[1] == FRAMES
    for frames_per_chunk in (1, 3, 4, 7, 100):
        chunks = list(start(**KINDS[kind], frames_per_chunk=frames_per_chunk))
        assert torch.equal(joined(chunks), expected)
        assert len(chunks) == -(-12 // frames_per_chunk)
        assert [chunk.frame_range[0] for chunk in chunks] == [0] + [chunk.frame_range[1] for chunk in chunks[:-1]]
        assert all(chunk.num_frames == chunk.frames.shape[1] for chunk in chunks)


@pytest.mark.parametrize("kind", KINDS)
def test_a_first_chunk_may_be_shorter(kind):
    expected = PIPE(**KINDS[kind], output_type="pt", generator=seed()).frames
    arguments = {**KINDS[kind], "first_chunk_frames": 1}
    with start(**arguments) as stream:
        first = next(stream)
        state = first.state()
        others = list(stream)
    # groups of four latents: the second chunk has the other three of the first one
    assert [chunk.frame_range for chunk in [first, *others]] == [(0, 1), (1, 13), (13, 29), (29, FRAMES)]
    assert torch.equal(joined([first, *others]), expected)
    resumed = list(start(**arguments, state=state))
    assert [chunk.frame_range for chunk in resumed] == [chunk.frame_range for chunk in others]
    assert torch.equal(joined([first, *resumed]), expected)


def test_latents_are_cut_as_well():
    expected = PIPE(source=clip(), output_type="latent", generator=seed()).frames
    chunks = list(start(clip(), output_type="latent", frames_per_chunk=5))
    assert torch.equal(torch.cat([chunk.frames for chunk in chunks], dim=2), expected)
    assert [chunk.frame_range for chunk in chunks] == [(0, 17), (17, 37), (37, FRAMES)]


def test_each_chunk_tells_what_it_took():
    for chunk in start(clip()):
        assert set(chunk.timings) - {"source"} == {"encoder", *STAGES, "color_correction"}
        assert all(seconds > 0 for seconds in chunk.timings.values())
        assert chunk.statistics == {"sr_kv_cache_blocks": [3]}
    first = next(start(prompt="cat", num_frames=30))
    assert set(first.timings) == {"generator_steps", "context_pass", *STAGES}
    assert first.statistics["generator_passes"] == [5, 5]


def test_frames_come_before_the_source_has_ended():
    read = []

    def live():
        for frame in clip()[0]:
            read.append(frame)
            yield frame

    stream = start(live())
    chunk = next(stream)
    assert chunk.frame_range == (0, 13) and len(read) <= 13 + 16
    stream.close()


# ---- state


@pytest.mark.parametrize("frames_per_chunk", [3, 4, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_stream_goes_on_with_equal_results(kind, frames_per_chunk, tmp_path):
    arguments = {**KINDS[kind], "frames_per_chunk": frames_per_chunk}
    expected = joined(start(**arguments))
    stream = start(**arguments)
    done = [next(stream)]
    done[-1].state().save(tmp_path / "first.safetensors")
    done.append(next(stream))
    state = done[-1].state()
    next(stream)
    stream.close()
    state.save(tmp_path / "second.safetensors")

    for count, name in ((1, "first"), (2, "second")):
        loaded = PipelineStreamState.load(tmp_path / f"{name}.safetensors")
        assert loaded.frames_done == done[count - 1].frame_range[1]
        rest = list(start(**arguments, state=loaded))
        assert rest[0].frame_range[0] == loaded.frames_done
        assert rest[-1].frame_range[1] == FRAMES
        assert torch.equal(joined(done[:count] + rest), expected)


def test_a_resumed_stream_needs_no_prompt(tmp_path):
    arguments = {"num_frames": FRAMES, "height": 16, "width": 20}
    expected = joined(start(prompt="a red ball", **arguments))
    stream = start(prompt="a red ball", **arguments)
    chunk = next(stream)
    state = stream.state()
    stream.close()
    assert torch.equal(joined([chunk, *start(state=state, num_frames=FRAMES)]), expected)


@pytest.mark.slow
@pytest.mark.parametrize("overlap", ["overlapped"], indirect=True)
def test_a_stream_resumes_in_another_process(tmp_path, overlap):
    expected = joined(start(clip()))
    stream = start(clip())
    first = next(stream)
    first.state().save(tmp_path / "state.safetensors")
    stream.close()
    PIPE.save_pretrained(tmp_path / "pipe")
    torch.save(clip(), tmp_path / "clip.pt")
    script = f"""
        import torch
        from ultraflash_diffusers import UltraFlashStreamingPipeline
        from ultraflash_diffusers.pipelines.pipeline_state import PipelineStreamState
        UltraFlashStreamingPipeline.can_overlap_decoding = {overlap}
        pipe = UltraFlashStreamingPipeline.from_pretrained("pipe")
        state = PipelineStreamState.load("state.safetensors")
        chunks = pipe.stream(source=torch.load("clip.pt"), state=state, output_type="pt")
        torch.save(torch.cat([chunk.frames for chunk in chunks], dim=1), "rest.pt")
    """
    source_folder = ROOT / "src"
    environment = {"PYTHONPATH": str(source_folder), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=tmp_path, env=environment, check=True)
    resumed = torch.cat([first.frames, torch.load(tmp_path / "rest.pt")], dim=1)
    torch.testing.assert_close(resumed, expected, rtol=1e-5, atol=1e-5)


def test_a_saved_state_is_a_copy():
    stream = start(clip())
    state = next(stream).state()
    rests = [joined(stream), joined(start(clip(), state=state)), joined(start(clip(), state=state.clone()))]
    assert torch.equal(rests[0], rests[1]) and torch.equal(rests[0], rests[2])


def test_states_are_refused_where_they_do_not_belong():
    stream = start(clip(), frames_per_chunk=4)
    with pytest.raises(RuntimeError, match="not yielded"):
        stream.state()
    first = next(stream)
    state = first.state()
    next(stream)
    with pytest.raises(RuntimeError, match="past this chunk's end 13"):
        first.state()
    stream.close()
    with pytest.raises(RuntimeError, match="ended or was closed"):
        stream.state()
    with pytest.raises(ValueError, match="`height` and `width` are 20 and 24.*16, 24"):
        start(clip(), state=state, height=20, width=24)
    with pytest.raises(ValueError, match="`generator` and `state`"):
        start(clip(), state=state, generator=seed())
    with pytest.raises(ValueError, match="`guidance_scale` is 2.0.*without"):
        start(clip(), state=state, guidance_scale=2.0)
    with pytest.raises(ValueError, match="`state`"):
        start(latents(), state=state)
    with pytest.raises(ValueError, match="of one SR step.*`num_inference_steps` 2 and no callback"):
        start(clip(), state=state, num_inference_steps=2)
    with pytest.raises(ValueError, match="of one SR step.*`num_inference_steps` 1 and a callback"):
        start(clip(), state=state, callback_on_step_end=lambda *arguments: {})
    with pytest.raises(ValueError, match="`num_frames` is 3, but the stream of `state` has made 13"):
        start(clip(), state=state, num_frames=3)
    for setting, value in (("group_frames", 6), ("kv_cache_blocks", 2)):
        other = make_tiny_pipeline(**{setting: value})
        with pytest.raises(ValueError, match=f"`state` is of a stream with `{setting}` .*, this pipeline has {value}"):
            other.stream(source=clip(), state=state)


@pytest.mark.parametrize("kind", ["pixels", "latents"])
def test_a_source_with_less_than_the_state_has_seen_is_another_one(kind):
    whole = clip() if kind == "pixels" else latents()
    state = next(start(whole)).state()
    shorter = whole[:, :3] if kind == "pixels" else whole[:, :, :1]
    with pytest.raises(ValueError, match="`source` has [13] (latent )?frames, but `state` has seen [0-9]+"):
        joined(start(shorter, state=state))


# ---- times


def test_chunks_carry_the_times_of_a_file_also_where_a_stream_goes_on(tmp_path):
    ticks = [0, 40, 90, 100, 180, 200, 260, 300, 301, 360, 400, 450]
    from helpers.clips import make_clip  # needs PyAV, which a bare machine lacks

    from ultraflash_diffusers.video_io import VideoReader

    path = make_clip(tmp_path / "clip.mp4", len(ticks), pts=ticks, time_base=Fraction(1, 1000))
    tick = VideoReader(path).info.time_base
    expected = [(frame.pts * tick, frame.duration * tick) for frame in VideoReader(path)]
    stream = start(path, frames_per_chunk=1)
    chunks = [next(stream), next(stream)]
    chunks[-1].state().save(tmp_path / "state.safetensors")
    stream.close()
    state = PipelineStreamState.load(tmp_path / "state.safetensors")
    chunks += start(path, frames_per_chunk=5, state=state)
    assert all(len(chunk.times) == len(chunk.timestamps) == chunk.num_frames for chunk in chunks)
    assert [time for chunk in chunks for time in chunk.times] == expected
    assert next(start(clip())).timestamps is None


# ---- several streams, changing prompts


def test_interleaved_streams_are_what_each_gives_alone():
    one, other = start(clip()), start(prompt="cat", num_frames=FRAMES, height=16, width=12)
    pieces = list(zip(one, other, strict=True))
    assert torch.equal(joined([first for first, _ in pieces]), joined(start(clip())))
    alone = start(prompt="cat", num_frames=FRAMES, height=16, width=12)
    assert torch.equal(joined([second for _, second in pieces]), joined(alone))


def test_the_prompt_changes_in_mid_stream(overlap):
    source = {"source": latents(20), "frames_per_chunk": 4}
    unchanged = joined(start(**source, prompt="a red ball"))
    stream = start(**source, prompt="a red ball")
    chunks = [next(stream)]
    stream.set_prompt("the cat")
    chunks += stream
    groups = 2 if overlap else 1  # those that were begun already
    boundary = 16 * groups - 3
    assert torch.equal(joined(chunks)[:, :boundary], unchanged[:, :boundary])
    assert (joined(chunks)[:, boundary:] - unchanged[:, boundary:]).abs().max() > 1e-4
    other = joined(start(**source, prompt="the cat"))
    assert (joined(chunks)[:, boundary:] - other[:, boundary:]).abs().max() > 1e-5  # the past is remembered


def test_a_prompts_keys_and_values_are_never_those_of_the_former_one(monkeypatch):
    def changed():
        stream = start(prompt="a red ball", num_frames=FRAMES, height=16, width=12)
        chunks = [next(stream)]
        stream.set_prompt("the cat")
        return joined([*chunks, *stream])

    computed_each_time = changed()
    monkeypatch.setattr(PIPE, "execution_plan", ExecutionPlan(cache_text=True))
    torch.testing.assert_close(changed(), computed_each_time, atol=1e-5, rtol=0)


def test_the_prompt_change_reaches_the_generator_and_the_saved_state():
    arguments = {"num_frames": FRAMES, "height": 16, "width": 12}
    stream = start(prompt="a red ball", **arguments)
    done = [next(stream)]
    stream.set_prompt("the cat")
    state = done[0].state()
    changed = joined(stream)
    assert torch.equal(joined(start(state=state, num_frames=FRAMES)), changed)
    assert (changed - joined(start(prompt="a red ball", **arguments))[:, 13:]).abs().max() > 1e-4
    with pytest.raises(ValueError, match="2 prompts, this stream started with 1"):
        start(prompt="cat", **arguments).set_prompt(["cat", "cat"])


# ---- failing sources


def failing(frames):
    yield from clip(frames)[0]
    raise OSError("the camera was unplugged")


@pytest.mark.parametrize("frames_per_chunk", [2, 4, 100])
@pytest.mark.parametrize("frames", [6, 20, 29, 31])
def test_all_frames_before_a_failure_are_delivered(frames, frames_per_chunk):
    stream = start(failing(frames), frames_per_chunk=frames_per_chunk)
    chunks = []
    with pytest.raises(OSError, match="unplugged"):
        for chunk in stream:
            chunks.append(chunk)
    assert torch.equal(joined(chunks), joined(start(clip(frames))))
    assert next(stream, None) is None


class Faulty(Source):
    """Gives two good chunks, then one that is not finite."""

    height, width = 8, 12

    def _chunks(self):
        for chunk in range(3):
            value = latents(4, number=chunk)
            value[0, 0, 0, 0, 0] = float("nan") if chunk == 2 else 0.0
            yield SourceChunk(value, 16 if chunk else 13)


class Endless(Source):
    """Chunks of four latent frames, a second clip with chunk 2, and no end."""

    height, width = 8, 12

    def _chunks(self):
        for number in itertools.count():
            starts = number % 2 == 0
            yield SourceChunk(latents(4, number=number), 13 if starts else 16, restart=starts and number > 0)


def test_a_source_of_one_s_own_ends_after_num_frames():
    assert torch.equal(joined(start(Endless(), num_frames=9)), joined(start(latents(4), num_frames=9)))
    whole = joined(start(Endless(), num_frames=45))
    assert whole.shape[1] == 45
    assert torch.equal(joined(start(Endless(), num_frames=29)), whole[:, :29])
    assert PIPE(source=Endless(), num_frames=35, output_type="pt").frames.shape[1] == 35


def test_a_source_of_one_s_own_is_handed_over_again_to_go_on(tmp_path):
    whole = joined(start(Endless(), num_frames=45))
    stream = start(Endless(), num_frames=45)
    begun = [next(stream), next(stream)]
    begun[-1].state().save(tmp_path / "state.safetensors")
    stream.close()
    state = PipelineStreamState.load(tmp_path / "state.safetensors")
    rest = joined(start(Endless(), num_frames=45, state=state))
    assert torch.equal(torch.cat([joined(begun), rest], dim=1), whole)


def test_a_source_of_one_s_own_that_ends_early_or_cuts_otherwise_is_named():
    with pytest.raises(SourceEndedError, match="`source` ended after 61 frames, `num_frames` is 62"):
        joined(start(TwoChunks(), num_frames=62))
    stream = start(Endless(), num_frames=45)
    state = next(stream).state()
    stream.close()
    with pytest.raises(ValueError, match="hand the same source over, from its beginning"):
        joined(start(TwoChunks(first=2), num_frames=45, state=state))


class TwoChunks(Source):
    height, width = 8, 12

    def __init__(self, first=4):
        self.first = first

    def _chunks(self):
        yield SourceChunk(latents(self.first), 4 * self.first - 3)
        yield SourceChunk(latents(12), 48)


def test_latents_that_are_not_finite_are_an_error_naming_the_chunk():
    stream = start(Faulty())
    chunks = [next(stream), next(stream)]
    with pytest.raises(ValueError, match="not finite in its chunk 2"):
        next(stream)
    assert joined(chunks).isfinite().all()


def test_a_network_that_fails_does_not_break_the_pipeline():
    def fail(pipe, step, timestep, tensors):
        raise RuntimeError("no more memory")

    with pytest.raises(RuntimeError, match="no more memory"):
        list(start(clip(), callback_on_step_end=fail))
    assert not workers()
    assert joined(start(clip())).shape[1] == FRAMES


def test_a_group_that_fails_ahead_leaves_the_state_as_it_was():
    """With overlapping, the next group has failed already when the state is asked for."""
    calls = []

    def fail(pipe, step, timestep, tensors):
        calls.append(step)
        if len(calls) == 2:
            raise RuntimeError("no more memory")

    stream = start(clip(), callback_on_step_end=fail)
    first = next(stream)
    state = first.state()
    with pytest.raises(RuntimeError, match="no more memory"):
        next(stream)
    expected = joined(start(clip()))
    assert torch.equal(joined([first, *start(clip(), state=state)]), expected)


def test_a_network_that_fails_ahead_takes_its_state_with_it(overlap):
    """One step writes over the state that it starts from: better none than a broken one."""
    calls, block = [], PIPE.transformer.blocks[-1]

    def fail(module, inputs):
        calls.append(module)
        if len(calls) == 2:
            raise RuntimeError("no more memory")

    hook = block.register_forward_pre_hook(fail)
    try:
        stream = start(clip())
        first = next(stream)
        if overlap:
            with pytest.raises(RuntimeError, match="failed half-way and has overwritten the state"):
                first.state()
        else:
            assert first.state().groups_done == 1
        with pytest.raises(RuntimeError, match="no more memory"):
            next(stream)
    finally:
        hook.remove()


# ---- the end


def test_a_stream_is_iterated_once():
    stream = start(clip())
    assert len(list(stream)) == 3
    assert next(stream, None) is None
    with pytest.raises(RuntimeError, match="already iterated"):
        list(stream)
    half = start(clip())
    for _ in half:
        break
    with pytest.raises(RuntimeError, match="already iterated"):
        list(half)
    half.close()


@pytest.mark.parametrize("leave", ["close", "with", "forget"])
def test_leaving_early_frees_everything(leave):
    closed = []

    class Camera(Source):
        height, width = 8, 12

        def _chunks(self):
            yield SourceChunk(latents(4), 13)
            while True:
                yield SourceChunk(latents(4), 16)

        def close(self):
            closed.append(True)

    camera = Camera()
    source = weakref.ref(camera)
    stream = start(camera)
    del camera
    next(stream)
    chunk = next(stream)
    memories = [weakref.ref(memory) for memory in stream._current.now.upsampler.memories]
    caches = [weakref.ref(cache.keys) for state in stream._current.now.sr for cache in state.cache]
    assert all(reference() is not None for reference in [source, *memories, *caches])
    if leave == "close":
        stream.close()
        stream.close()
        assert next(stream, None) is None
    elif leave == "with":
        with stream:
            pass
    else:
        del stream, chunk
    gc.collect()
    assert closed and all(reference() is None for reference in [source, *memories, *caches])
    assert not workers()


def test_streams_one_after_the_other_share_a_worker(overlap):
    """What cuDNN and the allocator keep by thread and by CUDA stream serves the next one, too."""
    if not overlap:
        pytest.skip("there is no worker")
    threads = []
    for _ in range(3):
        with start(clip(), callback_on_step_end=lambda *_: threads.append(threading.get_ident()) or {}) as stream:
            next(stream)
    assert len(threads) >= 3 and len(set(threads)) == 1 and threads[0] != threading.get_ident()


def test_an_endless_stream_takes_constant_memory():
    stream = start(prompt="a red ball", num_frames=None, height=16, width=20, frames_per_chunk=4)
    totals = {}
    for number, chunk in enumerate(stream):
        if number in (10, 20, 60):
            gc.collect()
            stream.state()  # waits for what is being made
            # real ones: what torch.compile traced in other tests has symbols for sizes
            tensors = (value for value in gc.get_objects() if type(value) is torch.Tensor)
            totals[number] = sum(value.untyped_storage().nbytes() for value in tensors)
        if chunk.frame_range[1] > 960:
            break
    stream.close()
    assert totals[20] == pytest.approx(totals[10], rel=0.02)
    assert totals[60] == pytest.approx(totals[20], rel=0.02)


@pytest.mark.parametrize("kind", ["pixels", "text"])
def test_autocast_holds_in_all_threads(kind, overlap, monkeypatch):
    with torch.autocast("cpu", torch.bfloat16):
        frames = joined(start(**KINDS[kind]))
        monkeypatch.setattr(UltraFlashStreamingPipeline, "can_overlap_decoding", not overlap)
        assert torch.equal(joined(start(**KINDS[kind])), frames)
        (of_source,) = background(lambda channel: channel.put(torch.is_autocast_enabled("cpu")))
    assert of_source and not torch.equal(joined(start(**KINDS[kind])), frames)


# ---- devices


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_devices_and_offloading_give_the_same(overlap):
    video = clip()
    expected = joined(start(video, prompt="a red ball"))

    def check(pipe):
        actual = joined(start(video, pipe=pipe, prompt="a red ball")).cpu()
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)

    pipe = make_tiny_pipeline().to("cuda")
    check(pipe)
    pipe.autoencoder.to("cpu")
    check(pipe)
    pipe = make_tiny_pipeline()
    pipe.enable_group_offload(torch.device("cuda"), torch.device("cpu"), offload_type="leaf_level")
    if not overlap:
        check(pipe)
        for enable in ("enable_model_cpu_offload", "enable_sequential_cpu_offload"):
            pipe = make_tiny_pipeline()
            getattr(pipe, enable)()
            check(pipe)


@pytest.mark.slow
@pytest.mark.parametrize("overlap", ["in turns"], indirect=True)
def test_ten_thousand_frames_take_the_memory_of_the_first(overlap):
    usage = measure(make_tiny_pipeline(), 10_000, height=8, width=12, settled_after=20)
    assert usage["end"]["resident"] == pytest.approx(usage["settled"]["resident"], rel=0.02)
