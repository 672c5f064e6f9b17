# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The demo in a browser: the page plays each video by itself while it is made, over the server's realtime protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import Depends

from ..pipelines.color_correction import COLOR_CORRECTIONS
from ..pipelines.pipeline_ultraflash import UltraFlashStreamingPipeline
from ..serving.app import realtime_router
from ..serving.served_models import ServedModel
from ..serving.server import Server
from ..serving.settings import ServerSettings
from .player import player_html
from .streams import LARGEST_RESULT, LARGEST_SEED, Programs
from .zero_gpu import GpuTurns, as_gradio_call, on_zero_gpu

_STREAMS_AT_ONCE = 2
_LARGEST_UPLOAD = 256  # MiB
_CLEANING = (600, 3600)  # every so many seconds, files older than this leave Gradio's cache
_VISITORS_KEPT = 64  # whose components' values Gradio keeps in memory
_CAMERA_WIDTHS = (160, 240, 320)
_ASSETS = Path(__file__).with_name("assets")
_MOST_FRAMES = 480

_TITLE = """
# Ultra Flash
High-resolution video **while it is being generated**: it plays as it is made.
"""
# what the packaged generator knows
_PROMPTS = (
    "A red ball bounces and a blue cube glides to the right over sand at sunset",
    "A yellow cone floats over water at night",
    "A purple cube sways on snow under a blue sky",
    "A white sphere hovers and an orange cone rests on a meadow",
    "A green ball moves left on grass on a cloudy day",
)
_NO_GENERATOR = """
### This checkpoint has no text generator
It sharpens videos that you bring: see **Upscale**. To type prompts, load a pipeline that also holds a
`generator_transformer` and a `text_encoder`, from a folder or the Hub:

    ultraflash demo --checkpoint FOLDER
"""
_CAMERA = "Your camera's pictures go to this server alone, are sharpened, and come back. Nothing is kept."
_NO_CAMERA = "A camera's pictures cannot come in: the checkpoint has no encoder, or the Space no GPU of its own."
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


class DemoPage(gr.Blocks):
    """The page, and the server of its live streams.

    Args:
        server ([`Server`]): checkpoints, the first of which the page starts with.
        options: of `gr.Blocks`.
    """

    def __init__(self, server: Server, **options: Any) -> None:
        super().__init__(**options)
        self.live = server
        self.programs: Programs | None = None

    def end(self) -> None:
        """Ends all streams after their current chunk, and then the page."""
        if self.programs is not None:
            self.programs.stops.end()
        self.close(verbose=False)
        self.live.close()


class Demo(Programs):
    """What the page needs to know of its first checkpoint.

    Args:
        pipe ([`UltraFlashStreamingPipeline`]): the checkpoint.
        server ([`Server`]): of the page's streams; one of its own by default.
    """

    def __init__(self, pipe: UltraFlashStreamingPipeline, server: Server | None = None) -> None:
        self.server = server or _server({"ultraflash": pipe})
        super().__init__(pipe, self.server.runner)

    def offer(self, clip: str | None) -> str:
        """Lets a live stream of the page work on a clip that was uploaded; returns the token of it."""
        if not clip:
            gr.Warning("Choose a video first: upload one, or take an example")
            return ""
        return self.server.offer(Path(clip))


def build_demo(
    pipe: UltraFlashStreamingPipeline,
    examples: Sequence[str | Path] = (),
    others: Mapping[str, UltraFlashStreamingPipeline] | None = None,
    name: str = "packaged",
) -> DemoPage:
    """Builds the page: a tab for text, one for upscaling a video, one for a camera.

    Two streams run at once, a chunk of each in turn; further visitors wait in a queue. Named endpoints, for
    `gradio_client`: `/generate`, `/upscale`, `/stop_generate`, `/stop_upscale`; live streams over
    `/v1/realtime/video`.

    Args:
        pipe ([`UltraFlashStreamingPipeline`]): where it has no text generator or its autoencoder no encoder, the tab
            that needs it says so.
        examples (sequence of `str` or `Path`, *optional*, defaults to `()`): clips to offer on the upscale tab.
        others (`Mapping`, *optional*): further checkpoints to choose from, by their names.
        name (`str`, *optional*, defaults to `"packaged"`): of `pipe`, beside them.

    Returns:
        [`DemoPage`]: a `gr.Blocks`, to be started by [`launch_demo`].
    """
    server = _server({name: pipe} | dict(others or {}))
    demo = Demo(pipe, server)
    with DemoPage(server, title="Ultra Flash", analytics_enabled=False, delete_cache=_CLEANING) as page:
        gr.Markdown(_TITLE)
        names = list(server.models)
        model = gr.Dropdown(names, value=names[0], label="Checkpoint", visible=len(names) > 1)
        with gr.Tabs(selected="generate" if demo.can_generate else "upscale"):
            with gr.Tab("Text to video", id="generate"):
                _add_text_tab(page, demo, model)
            with gr.Tab("Upscale a video", id="upscale"):
                _add_upscale_tab(demo, model, [str(path) for path in examples])
            with gr.Tab("Live", id="live"):
                _add_live_tab(demo, model)
        page.unload(demo.leave)
    page.programs = demo
    return page.queue(default_concurrency_limit=_STREAMS_AT_ONCE)


def launch_demo(page: DemoPage, examples: Sequence[str | Path] = (), **options: Any) -> Any:
    """Starts the page that [`build_demo`] made.

    Args:
        page ([`DemoPage`]): the page.
        examples (sequence of `str` or `Path`, *optional*, defaults to `()`): the clips it offers; no other file beside
            them is served.
        options: of Gradio's `launch`, for instance `server_name`, `server_port`, `share`, `prevent_thread_lock`.
    """
    blocks = not options.pop("prevent_thread_lock", False)
    script = (_ASSETS / "player.js").read_text()
    started = page.launch(
        theme=_THEME,
        css=(_ASSETS / "page.css").read_text(),
        head=f"<script>{script}</script>",
        footer_links=[],
        ssr_mode=False,
        allowed_paths=[str(Path(path).resolve()) for path in examples],
        max_file_size=f"{_LARGEST_UPLOAD}mb",
        state_session_capacity=_VISITORS_KEPT,
        prevent_thread_lock=True,
        **options,
    )
    started[0].include_router(realtime_router(page.live), dependencies=[Depends(as_gradio_call)])
    if blocks:
        page.block_thread()
    return started


def example_clips() -> list[Path]:
    """Returns the clips in `examples/` of the checkout that this package runs from; none where it is installed."""
    return sorted((Path(__file__).parents[3] / "examples").glob("*.mp4"))


def _server(pipes: Mapping[str, UltraFlashStreamingPipeline]) -> Server:
    turns = on_zero_gpu()  # a turn may wait for a GPU, and others would with it
    settings = ServerSettings(
        max_streams=1 if turns else _STREAMS_AT_ONCE,
        max_pixels=LARGEST_RESULT,
        max_upload=_LARGEST_UPLOAD * 2**20,
    )
    models = [
        ServedModel(name, pipe, open_stream=GpuTurns(pipe).stream if turns else None) for name, pipe in pipes.items()
    ]
    return Server(models, settings)


def _add_text_tab(page: DemoPage, demo: Demo, model: gr.Dropdown) -> None:
    active, config = demo.can_generate, demo.pipe.config
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            if not active:
                gr.Markdown(_NO_GENERATOR)
            prompt = gr.Textbox(
                label="Prompt",
                lines=3,
                info="While a video runs, a changed prompt turns it",
                placeholder="A red ball glides to the left over grass",
                interactive=active,
            )
            with gr.Row():
                generate = gr.Button("Generate", variant="primary", interactive=active)
                change = gr.Button("Change prompt", interactive=active)
            if active:
                gr.Examples([[text] for text in _PROMPTS], [prompt], label="Examples")
            size = gr.Dropdown(list(demo.sizes), label="Size", interactive=active)
            info = f"{config.default_fps} a second"
            frames = gr.Slider(
                1, _MOST_FRAMES, config.default_num_frames, step=1, label="Frames", info=info, interactive=active
            )
            endless = gr.Checkbox(label="Endless", info="until you stop it", interactive=active)
            seed = _seed(active)
            link = gr.Button("Copy a link to these settings", size="sm")
        with gr.Column(scale=3, min_width=300):
            gr.HTML(player_html("text", "Your video appears here while it is made"))
    settings = [prompt, size, frames, endless, seed]
    _in_browser(generate.click, [model, *settings], "(...values) => { ultraflash.generate(...values); }")
    for event in (change.click, prompt.submit):
        _in_browser(event, [prompt], "(prompt) => { ultraflash.change(prompt); }")
    _in_browser(link.click, settings, "(...values) => { ultraflash.link(...values); }")
    page.load(None, settings, settings, js="(...values) => ultraflash.settings(...values)")
    _add_endpoints(demo, "generate", [prompt, size, frames, seed])


def _add_upscale_tab(demo: Demo, model: gr.Dropdown, examples: list[str]) -> None:
    active = demo.can_upscale
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            if not active:
                gr.Markdown("### This checkpoint's autoencoder has no encoder\nIt cannot take videos in.")
            label = f"Video, up to {_LARGEST_UPLOAD} MB"
            clip = gr.Video(label=label, sources=["upload"], height=240, interactive=active)
            if examples and active:
                gr.Examples([[path] for path in examples], [clip], label="Examples")
            with gr.Row():
                scale = gr.Radio([(f"{demo.scale}×", demo.scale)], value=demo.scale, label="Scale", interactive=active)
                color = gr.Radio(
                    list(COLOR_CORRECTIONS), value=COLOR_CORRECTIONS[0], label="Color correction", interactive=active
                )
            seed = _seed(active)
            upscale = gr.Button("Upscale", variant="primary", interactive=active)
            token = gr.Textbox(visible=False)
        with gr.Column(scale=3, min_width=300):
            gr.HTML(player_html("upscale", "The sharpened video appears here while it is made"))
    offered = upscale.click(demo.offer, [clip], [token], api_visibility="private", show_progress="hidden")
    _in_browser(offered.then, [model, token, color, seed, clip], "(...values) => { ultraflash.upscale(...values); }")
    _add_endpoints(demo, "upscale", [clip, scale, color, seed])


def _add_live_tab(demo: Demo, model: gr.Dropdown) -> None:
    active = demo.can_upscale and not on_zero_gpu()
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            gr.Markdown(_CAMERA if active else _NO_CAMERA)
            width = gr.Dropdown(
                [(f"{each} pixels", each) for each in _CAMERA_WIDTHS],
                value=_CAMERA_WIDTHS[0],
                label="Width of the camera's picture",
                interactive=active,
            )
            clip = gr.Video(
                label="A file as if live",
                sources=["upload"],
                height=200,
                interactive=active,
            )
            seed = _seed(active)
            start = gr.Button("Start", variant="primary", interactive=active)
        with gr.Column(scale=3, min_width=300):
            gr.HTML(player_html("live", "What the camera sees appears here, sharpened"))
    _in_browser(start.click, [model, width, clip, seed], "(...values) => { ultraflash.live(...values); }")


def _seed(active: bool) -> gr.Number:
    seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=LARGEST_SEED, interactive=active)
    dice = gr.Button("New seed", size="sm", interactive=active)
    dice.click(None, None, [seed], js="() => ultraflash.dice()", api_visibility="private")
    return seed


def _in_browser(event: Any, inputs: list[Any], script: str) -> None:
    """Lets an event run a script in the visitor's browser, with the components' values."""
    event(None, inputs, None, js=script, api_visibility="private")


def _add_endpoints(demo: Demo, tab: str, inputs: list[Any]) -> None:
    """Offers `demo`'s method named `tab` to programs, and the means to stop it; not with ZeroGPU."""
    if on_zero_gpu():
        return
    results: list[Any] = [
        gr.Image(type="filepath", visible=False),
        gr.Video(visible=False),
        gr.HTML(visible=False),
    ]
    if tab == "upscale":
        results.append(gr.ImageSlider(type="pil", format="jpeg", visible=False))
    run, stop = gr.Button(visible=False), gr.Button(visible=False)
    run.click(getattr(demo, tab), inputs, results, api_name=tab, concurrency_id="streams")

    def interrupt(request: gr.Request) -> None:
        demo.stop(tab, request)

    stop.click(interrupt, queue=False, api_name=f"stop_{tab}")
