# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The demo in a browser: text to video and upscaling, with frames that show up while they are made."""

from __future__ import annotations

import html
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, cast

import gradio as gr
import numpy as np
import torch
from PIL import Image

from ..pipelines.color_correction import COLOR_CORRECTIONS
from ..pipelines.pipeline_output import StreamChunk
from ..pipelines.pipeline_ultraflash import UltraFlashStreamingPipeline
from ..pipelines.video_stream import VideoStream
from ..video_io import DecodedFrame, VideoReader, VideoWriter

_LARGEST_RESULT = 4096 * 2304  # pixels of a frame; one visitor must not take all of the memory
_LARGEST_SEED = 2**32 - 1
_STREAMS_AT_ONCE = 2
_CLEANING = (600, 3600)  # every so many seconds, files older than this leave Gradio's cache
_SLOWEST_PREVIEW = 0.5  # seconds a frame

_TITLE = """
# Ultra Flash
High-resolution video **while it is being generated**: frames show up as they are made.
"""
# kinds of scenes and clips that the packaged generator knows
_PROMPTS = (
    "A purple star floats upwards in the night sky",
    "A red ball glides to the left over sand",
    "A blue triangle rises in front of a wooden wall",
    "A mountain lake at night with a small boat",
    "A raccoon as a detective",
)
_NO_GENERATOR = """
### This checkpoint has no text generator
It sharpens videos that you bring: see **Upscale**. To type prompts, load a pipeline that also holds a
`generator_transformer` and a `text_encoder`, from a folder or the Hub:

    ultraflash demo --checkpoint FOLDER
"""
_THEME = gr.themes.Soft(
    primary_hue="indigo",
    secondary_hue="indigo",
    neutral_hue="slate",
    font=["system-ui", "sans-serif"],  # of the visitor's system: nothing is fetched from elsewhere
    font_mono=["ui-monospace", "monospace"],
).set(
    background_fill_primary="*neutral_50",  # `set` forgets Soft's
    block_title_background_fill="none",
    block_title_text_color="*body_text_color",
    block_title_padding="0",
    block_label_text_color="*body_text_color",
    block_title_text_color_dark="*body_text_color",
    block_label_text_color_dark="*body_text_color",
    block_label_background_fill="*block_background_fill",
    block_label_background_fill_dark="*block_background_fill",
)
_CSS = """
.gradio-container { width: 100%; max-width: 1180px !important; margin: 0 auto !important; }
.gradio-container main { width: 100%; }
/* trimming would fetch FFmpeg from another host */
button[aria-label="Trim video to selection"] { display: none; }
.uf-status { display: flex; flex-direction: column; gap: 8px; min-height: 34px; }
.uf-status .track { height: 6px; border-radius: 3px; overflow: hidden; background: var(--border-color-primary); }
.uf-status .bar { height: 100%; border-radius: 3px; background: var(--primary-500); transition: width .4s; }
.uf-status .text { font-variant-numeric: tabular-nums; color: var(--body-text-color-subdued); }
"""


@dataclass
class StreamJob:
    """One video to make.

    Args:
        arguments (`dict`): for [`UltraFlashStreamingPipeline.stream`].
        writer ([`VideoWriter`]): takes the frames.
        num_frames (`int`, *optional*): frames to come, as far as known.
        clip_frames (`deque`): frames of a clip that were read and whose results are still to come.
    """

    arguments: dict[str, Any]
    writer: VideoWriter
    num_frames: int | None
    clip_frames: deque[DecodedFrame] = field(default_factory=deque)


@dataclass(frozen=True)
class Update:
    """What a step of a stream changes on the page.

    Args:
        status (`str`): HTML.
        preview (`Path`, *optional*): animated picture of the newest frames.
        video (`Path`, *optional*): the video, at the end.
        comparison (`tuple`, *optional*): a frame of the clip, interpolated to the result's size, and the result.
    """

    status: str
    preview: Path | None = None
    video: Path | None = None
    comparison: tuple[Image.Image, Image.Image] | None = None


class StreamRunner:
    """Runs the streams of several visitors on one pipeline, which makes one chunk of each in turn.

    Args:
        pipe ([`UltraFlashStreamingPipeline`]): the pipeline.
    """

    def __init__(self, pipe: UltraFlashStreamingPipeline) -> None:
        self.pipe = pipe
        self._turn = threading.Lock()
        self._stops: dict[tuple[str, str], threading.Event] = {}

    def announce(self, session: str, tab: str) -> None:
        """Makes a stream that still waits for its turn stoppable."""
        self._stops[session, tab] = threading.Event()

    def stop(self, session: str, tab: str) -> None:
        """Ends a stream after the chunk that is being made; what is done stays."""
        if (session, tab) in self._stops:
            self._stops[session, tab].set()

    def forget(self, session: str) -> None:
        """Ends all streams of a visitor who has left."""
        for key in [key for key in self._stops if key[0] == session]:
            self._stops.pop(key).set()

    @contextmanager
    def stoppable(self, session: str, tab: str) -> Iterator[threading.Event]:
        """Gives the event that [`~StreamRunner.stop`] sets while the block runs."""
        stop = self._stops.setdefault((session, tab), threading.Event())
        try:
            yield stop
        finally:
            self._stops.pop((session, tab), None)

    def run(self, job: StreamJob, stop: threading.Event) -> Iterator[Update]:
        """Streams `job` to its end, or until `stop` is set.

        The last update has the video, also of a stream that was stopped or failed; a failure is raised after it.
        """
        folder, start = job.writer.path.parent, time.monotonic()
        done, preview, comparison, failure = 0, None, None, None
        with ExitStack() as cleanup:
            cleanup.callback(job.writer.abort)
            try:
                stream = cleanup.enter_context(self.pipe.stream(**job.arguments, output_type="pil"))
                while not stop.is_set():
                    chunk, seconds = self._next_chunk(stream)
                    if chunk is None:
                        break
                    pictures = cast(list[Image.Image], chunk.frames[0])
                    comparison = _write(job, pictures)
                    done = chunk.frame_range[1]
                    preview = folder / f"frames-{done}.webp"
                    _save_preview(preview, pictures, seconds / chunk.num_frames, job.writer.settings.fps)
                    yield Update(_progress(done, job.num_frames, time.monotonic() - start), preview)
            except (OSError, RuntimeError, TypeError, ValueError) as error:
                failure = error
            if done:
                status = _summary(job, time.monotonic() - start, stopped=stop.is_set() or failure is not None)
                job.writer.finish()
                yield Update(status, preview, job.writer.path, comparison)
            elif failure is None:
                yield Update(_line("Stopped before the first frames were ready"))
        if failure is not None:
            raise failure

    def _next_chunk(self, stream: VideoStream) -> tuple[StreamChunk | None, float]:
        """Returns the stream's next chunk, `None` after the last one, and the seconds since it was asked for."""
        start = time.monotonic()
        with self._turn:
            chunk = next(stream, None)
        return chunk, time.monotonic() - start


class Demo:
    """What the page's buttons do.

    Args:
        pipe ([`UltraFlashStreamingPipeline`]): the pipeline.
    """

    def __init__(self, pipe: UltraFlashStreamingPipeline) -> None:
        self.pipe = pipe
        self.runner = StreamRunner(pipe)
        self.scale: int = pipe.latent_upsampler.config.scale
        generator = pipe.generator_transformer
        any_size = generator is None or generator.config.sample_size is None
        self.sizes = _sizes(pipe.config.default_width, pipe.config.default_height, any_size)
        self.can_generate = pipe.generator_transformer is not None and pipe.text_encoder is not None
        self.can_upscale = pipe.autoencoder.has_encoder

    def upscale(
        self, clip: str | None, scale: int, color_correction: str, seed: float | None, request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        """Upscales a clip.

        Yields:
            `tuple`: newest frames, finished video, status, and a frame before and after.
        """
        with _reported(clip), self._workplace(request, "upscale") as (stop, folder):
            if not clip:
                raise ValueError("Choose a video first: upload one, or take an example")
            generator = _generator(seed)
            reader = VideoReader(clip)
            width, height = reader.info.width * scale, reader.info.height * scale
            if width * height > _LARGEST_RESULT:
                raise ValueError(
                    f"The result would be {width} × {height} pixels, more than this demo makes: "
                    "use `ultraflash upscale`, or a smaller clip"
                )
            name = f"{Path(clip).stem[:80]}-{scale}x.mp4"
            frames: deque[DecodedFrame] = deque()
            arguments = {
                "source": _clip_pixels(reader, frames),
                "scale": scale,
                "color_correction": color_correction,
                "generator": generator,
            }
            writer = VideoWriter(folder / name, width, height, source=reader)
            job = StreamJob(arguments, writer, reader.info.num_frames, frames)
            for update in self.runner.run(job, stop):
                yield update.preview, update.video, update.status, update.comparison
            if reader.frames_damaged:
                gr.Warning(f"The clip is damaged: {reader.frames_damaged} parts of it were skipped")

    def generate(
        self, prompt: str, size: str, num_frames: int, seed: float | None, request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        """Makes a video from text.

        Yields:
            `tuple`: newest frames, finished video and status.
        """
        with _reported(), self._workplace(request, "generate") as (stop, folder):
            if not self.can_generate:
                raise ValueError("This checkpoint has no text generator: upscale a video instead")
            if not prompt or not prompt.strip():
                raise ValueError("Describe what the video shall show first")
            width, height = self.sizes[size]
            arguments = {
                "prompt": prompt,
                "height": height,
                "width": width,
                "num_frames": num_frames,
                "generator": _generator(seed),
            }
            writer = VideoWriter(folder / "ultraflash.mp4", width, height, fps=self.pipe.config.default_fps)
            for update in self.runner.run(StreamJob(arguments, writer, num_frames), stop):
                yield update.preview, update.video, update.status

    @contextmanager
    def _workplace(self, request: gr.Request, tab: str) -> Iterator[tuple[threading.Event, Path]]:
        """A stop signal, and a folder for the time until Gradio has copied what is shown from it."""
        with (
            self.runner.stoppable(str(request.session_hash), tab) as stop,
            tempfile.TemporaryDirectory(prefix="ultraflash-demo-") as folder,
        ):
            yield stop, Path(folder)

    def leave(self, request: gr.Request) -> None:
        """Ends the streams of a visitor who closed the page."""
        self.runner.forget(str(request.session_hash))


def build_demo(pipe: UltraFlashStreamingPipeline, examples: Sequence[str | Path] = ()) -> gr.Blocks:
    """Builds the page: a tab for text, a tab for upscaling.

    Two streams run at once, each with a state of its own; further visitors wait in a queue. Named endpoints, for
    `gradio_client`: `/generate`, `/upscale`, `/stop_generate`, `/stop_upscale`.

    Args:
        pipe ([`UltraFlashStreamingPipeline`]): where it has no text generator or its autoencoder no encoder, the tab
            that needs it says so.
        examples (sequence of `str` or `Path`, *optional*, defaults to `()`): clips to offer on the upscale tab.

    Returns:
        `gr.Blocks`: to be started by [`launch_demo`], or in any way that Gradio has.
    """
    demo = Demo(pipe)
    with gr.Blocks(title="Ultra Flash", analytics_enabled=False, delete_cache=_CLEANING) as page:
        gr.Markdown(_TITLE)
        with gr.Tabs(selected="generate" if demo.can_generate else "upscale"):
            with gr.Tab("Text to video", id="generate"):
                _add_text_tab(demo)
            with gr.Tab("Upscale", id="upscale"):
                _add_upscale_tab(demo, [str(path) for path in examples])
        page.unload(demo.leave)
    return page.queue(default_concurrency_limit=_STREAMS_AT_ONCE)


def launch_demo(page: gr.Blocks, examples: Sequence[str | Path] = (), **options: Any) -> Any:
    """Starts the page that [`build_demo`] made.

    Args:
        page (`gr.Blocks`): the page.
        examples (sequence of `str` or `Path`, *optional*, defaults to `()`): the clips it offers.
        options: of Gradio's `launch`, for instance `server_name`, `server_port`, `share`, `prevent_thread_lock`.
    """
    folders = sorted({str(Path(path).resolve().parent) for path in examples})
    return page.launch(theme=_THEME, css=_CSS, footer_links=[], ssr_mode=False, allowed_paths=folders, **options)


def example_clips() -> list[Path]:
    """Returns the clips in `examples/` of the checkout that this package runs from; none where it is installed."""
    return sorted((Path(__file__).parents[3] / "examples").glob("*.mp4"))


def _add_text_tab(demo: Demo) -> None:
    active = demo.can_generate
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            if not active:
                gr.Markdown(_NO_GENERATOR)
            prompt = gr.Textbox(
                label="Prompt", lines=3, placeholder="A red ball glides to the left over grass", interactive=active
            )
            if active:
                gr.Examples([[text] for text in _PROMPTS], [prompt], label="Examples")
            size = gr.Dropdown(list(demo.sizes), label="Size", interactive=active)
            frames = gr.Slider(
                1,
                480,
                demo.pipe.config.default_num_frames,
                step=1,
                label="Frames",
                info=f"{demo.pipe.config.default_fps} a second",
                interactive=active,
            )
            seed = _seed(active)
            buttons = _buttons("Generate", active)
        with gr.Column(scale=3, min_width=320):
            results = _results()
    _connect(demo, "generate", buttons, [prompt, size, frames, seed], results)


def _add_upscale_tab(demo: Demo, examples: list[str]) -> None:
    active = demo.can_upscale
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            if not active:
                gr.Markdown("### This checkpoint's autoencoder has no encoder\nIt cannot take videos in.")
            clip = gr.Video(label="Video", sources=["upload"], height=240, interactive=active)
            if examples and active:
                gr.Examples([[path] for path in examples], [clip], label="Examples")
            with gr.Row():
                scale = gr.Radio([(f"{demo.scale}×", demo.scale)], value=demo.scale, label="Scale", interactive=active)
                color = gr.Radio(
                    list(COLOR_CORRECTIONS), value=COLOR_CORRECTIONS[0], label="Color correction", interactive=active
                )
            seed = _seed(active)
            buttons = _buttons("Upscale", active)
        with gr.Column(scale=3, min_width=320):
            results = _results()
            comparison = gr.ImageSlider(
                label="Bicubic | Ultra Flash", type="pil", format="jpeg", interactive=False, visible=False
            )
    _connect(demo, "upscale", buttons, [clip, scale, color, seed], [*results, comparison])


def _seed(active: bool) -> gr.Number:
    return gr.Number(0, label="Seed", precision=0, minimum=0, maximum=_LARGEST_SEED, interactive=active)


def _buttons(action: str, active: bool) -> tuple[gr.Button, gr.Button]:
    with gr.Row():
        return (
            gr.Button(action, variant="primary", interactive=active),
            gr.Button("Stop", variant="stop", interactive=False),
        )


def _results() -> list[Any]:
    return [
        gr.Image(label="Newest frames", type="filepath", height=420, interactive=False, buttons=[]),
        gr.Video(label="Result", height=420, interactive=False, visible=False, autoplay=True, loop=True),
        gr.HTML(_line(""), label="Status", show_label=False),
    ]


def _connect(
    demo: Demo, tab: str, buttons: tuple[gr.Button, gr.Button], inputs: list[Any], results: list[Any]
) -> None:
    """Lets the first button start `demo`'s method named `tab` and the second one stop it."""
    run, stop = buttons
    _, video, _, *comparison = results

    def begin(request: gr.Request) -> list[Any]:
        demo.runner.announce(str(request.session_hash), tab)
        fresh = [gr.Image(None, visible=True), gr.Video(None, visible=False), _line("Waiting for its turn …")]
        hidden = [gr.ImageSlider(None, visible=False) for _ in comparison]
        return [gr.Button(interactive=False), gr.Button(interactive=True), *fresh, *hidden]

    def end(made: str | None, failed: bool = False) -> list[Any]:
        shown = [gr.Image(visible=made is None), gr.Video(visible=made is not None)]
        told = _line("") if failed and made is None else gr.skip()
        compared = [gr.ImageSlider(visible=made is not None) for _ in comparison]
        return [gr.Button(interactive=True), gr.Button(interactive=False), *shown, told, *compared]

    def interrupt(request: gr.Request) -> None:
        demo.runner.stop(str(request.session_hash), tab)

    begun = run.click(begin, None, [run, stop, *results], queue=False, api_visibility="private")
    ended = begun.then(
        getattr(demo, tab), inputs, results, api_name=tab, concurrency_id="streams", show_progress="hidden"
    )
    # Gradio 6's pages do not run what was added by `then` after a failure
    ended.success(end, video, [run, stop, *results], queue=False, api_visibility="private")
    ended.failure(partial(end, failed=True), video, [run, stop, *results], queue=False, api_visibility="private")
    stop.click(interrupt, queue=False, api_name=f"stop_{tab}")


def _sizes(width: int, height: int, any_size: bool) -> dict[str, tuple[int, int]]:
    """Returns the sizes to choose from by their names: the checkpoint's own, upright, square, and half as large.

    All but the first are left out where the generator can only make that. All are even, as most browsers play nothing
    else.
    """
    side = min(width, height)
    sizes = [(width, height)]
    if any_size:
        sizes += [(height, width), (side, side), (width // 4 * 2, height // 4 * 2)]
    return {f"{width} × {height}": (width, height) for width, height in sizes}


def _generator(seed: float | None) -> torch.Generator:
    if seed is None or not 0 <= seed <= _LARGEST_SEED:
        raise ValueError(f"Seed must be a whole number from 0 to {_LARGEST_SEED}, got {seed}")
    return torch.Generator().manual_seed(int(seed))


def _clip_pixels(reader: VideoReader, kept: deque[DecodedFrame]) -> Iterator[np.ndarray]:
    """Yields a clip's frames; `kept` gets them too, for the timestamps of their results."""
    for frame in reader:
        kept.append(frame)
        yield frame.pixels


def _write(job: StreamJob, pictures: list[Image.Image]) -> tuple[Image.Image, Image.Image] | None:
    """Writes finished frames with their clip's timestamps; returns the last one before and after, if of a clip."""
    frames = [np.asarray(picture) for picture in pictures]
    if not job.clip_frames:
        job.writer.write(frames)
        return None
    originals = [job.clip_frames.popleft() for _ in pictures]
    job.writer.write(frames, [frame.pts for frame in originals], [frame.duration for frame in originals])
    before = Image.fromarray(originals[-1].pixels).resize(pictures[-1].size, Image.Resampling.BICUBIC)
    return before, pictures[-1]


def _save_preview(path: Path, pictures: list[Image.Image], pace: float, fps: Fraction) -> None:
    """Saves an animation that plays once, at the pace at which frames are being made if that is slower than `fps`."""
    seconds = max(min(pace, _SLOWEST_PREVIEW), float(1 / fps))
    first, *others = pictures
    first.save(path, save_all=True, append_images=others, duration=round(1000 * seconds), loop=1, quality=80, method=0)


def _progress(done: int, total: int | None, seconds: float) -> str:
    fps = done / seconds
    if total is None or done > total:  # a container's frame count may be an estimate
        return _line(f"{done} frames · {fps:.1f} FPS")
    return _line(f"{done} of {total} frames · {fps:.1f} FPS · {(total - done) / fps:.0f} s left", done / total)


def _summary(job: StreamJob, seconds: float, stopped: bool) -> str:
    writer = job.writer
    size = f"{writer.settings.width} × {writer.settings.height}"
    text = f"{writer.frames_written} frames of {size} in {seconds:.1f} s · {writer.frames_written / seconds:.1f} FPS"
    return _line(f"{'Stopped' if stopped else 'Done'} · {text}", None if stopped else 1.0)


def _line(text: str, share: float | None = None) -> str:
    bar = "" if share is None else f'<div class="track"><div class="bar" style="width: {share:.0%}"></div></div>'
    return f'<div class="uf-status">{bar}<div class="text">{html.escape(text)}</div></div>'


@contextmanager
def _reported(clip: str | None = None) -> Iterator[None]:
    """Shows errors on the page, with the clip's name in place of where the server keeps it."""
    try:
        yield
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        message = str(error).replace(f"{Path(clip).parent}/", "") if clip else str(error)
        raise gr.Error(message, duration=30, print_exception=isinstance(error, RuntimeError)) from error
