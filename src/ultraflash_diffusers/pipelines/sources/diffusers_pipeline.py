# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Any diffusers video pipeline as the source: its latents where they fit, else its frames."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKLWan, DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import BaseOutput

from ...models.hr_autoencoder import HRAutoencoder
from ...models.stream_state import StreamState
from ...models.video_encoder import VideoEncoder
from ..execution.background import Channel, ReaderLeft, background
from ..execution.compilation import is_compiled
from .base import SourceInterrupted, checked_state
from .frames import frames_to_pixels
from .latents import LatentsSource, LatentsSourceState
from .pipeline_audio import audio_of, call_frame_rate
from .pixels import PixelSource, PixelSourceState, TimedPixels

WAN_LATENT_SPACE = "wan2.1"
_WAN_LATENTS_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
_WAN_LATENTS_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)
# pipelines with the Wan 2.1 autoencoder whose `output_type="latent"` is not the finished video's normalised latents
_OTHER_LATENTS = {
    "ChronoEditPipeline": "the frames of temporal reasoning are still on",
    "Cosmos2TextToImagePipeline": "scaled by sigma_data",
    "Cosmos2VideoToWorldPipeline": "scaled by sigma_data",
    "Cosmos2_5_PredictBasePipeline": "its safety checker looks at frames",
    "Cosmos2_5_TransferPipeline": "its safety checker looks at frames",
    "Cosmos3OmniPipeline": "its safety checker looks at frames",
    "SkyReelsV2DiffusionForcingImageToVideoPipeline": "the frames of `last_image` are still on",
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline": "the given video's frames are missing",
    "WanAnimatePipeline": "the last segment alone",
    "WanVACEPipeline": "reference frames are still on",
}


@dataclass(frozen=True)
class LiveChunks:
    """How a chunked autoregressive pipeline shows a finished chunk in `callback_kwargs["latents"]`.

    Args:
        independent (`bool`): each chunk is a clip of its own for the decoder; otherwise the video's latents go on.
        frames_first (`bool`, *optional*, defaults to `False`): `[batch, frames, channels, height, width]` instead of
            `[batch, channels, frames, height, width]`.
        not_with (`tuple[str, ...]`, *optional*): call arguments that put frames into the video which no callback
            shows; with one of them the whole video is taken at the end.
        forced (`bool`, *optional*, defaults to `False`): diffusion forcing, where each latent frame has a timestep of
            its own: not chunks are shown but windows of the video, whose frames pass on as they are finished.
    """

    independent: bool
    frames_first: bool = False
    not_with: tuple[str, ...] = ()
    forced: bool = False


LIVE_CHUNKS: dict[str, LiveChunks] = {
    "AnyFlowFARPipeline": LiveChunks(independent=False, frames_first=True, not_with=("video", "video_latents")),
    "HeliosPipeline": LiveChunks(independent=True),
    "HeliosPyramidPipeline": LiveChunks(independent=True),
    "SkyReelsV2DiffusionForcingPipeline": LiveChunks(independent=False, forced=True),
}
"""By class name, inherited by subclasses; add your own pipeline's here."""


def has_wan_latents(pipeline: DiffusionPipeline) -> bool:
    """Whether the autoencoder of `pipeline` is the Wan 2.1 one, by what it computes and not by any name.

    Class, channels, compression, mean and standard deviation must be those of Wan 2.1 (which Wan 2.2 A14B,
    SkyReels-V2, AnyFlow and Helios share, and Wan 2.2 5B does not).
    """
    return is_wan_autoencoder(pipeline.components.get("vae"))


def is_wan_autoencoder(vae: Any) -> bool:
    """Whether `vae` is the Wan 2.1 autoencoder, see [`has_wan_latents`]."""
    if not isinstance(vae, AutoencoderKLWan):
        return False
    config = vae.config
    return (
        (config.z_dim, config.scale_factor_spatial, config.scale_factor_temporal) == (16, 8, 4)
        and config.patch_size is None
        and tuple(config.latents_mean) == _WAN_LATENTS_MEAN
        and tuple(config.latents_std) == _WAN_LATENTS_STD
    )


def pipeline_source(
    pipeline: DiffusionPipeline,
    autoencoder: HRAutoencoder,
    encoder: VideoEncoder,
    *,
    latent_frames: int,
    multiple_of: int,
    prompt: str | list[str] | None = None,
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
    state: StreamState | None = None,
    call_kwargs: dict[str, Any] | None = None,
) -> LatentsSource | PixelSource:
    """Makes a source of a diffusers video pipeline, which runs in a worker thread.

    Latents are taken over as they are where both sides speak Wan 2.1's: the pipeline's autoencoder has its values
    ([`has_wan_latents`]) and `autoencoder.config.latent_space` is `"wan2.1"`. Otherwise the frames are encoded. An
    `output_type` among `call_kwargs` overrides the choice: `"latent"` insists on latents, `"pt"`, `"np"` and `"pil"`
    take frames.

    The chunks of a chunked autoregressive pipeline ([`LIVE_CHUNKS`]) pass on while it still works on the next one; of
    any other the video comes when it is done. Closing the source stops the pipeline at its next step. Sound that comes
    with frames goes with them, cut to them. A pipeline that is interrupted (`pipeline._interrupt = True`, by a
    callback or from another thread) ends the source after the chunks that it had finished; what was half denoised is
    left out.

    Args:
        pipeline (`DiffusionPipeline`): the base pipeline, loaded and on its device.
        autoencoder ([`HRAutoencoder`]): the stream's.
        encoder ([`VideoEncoder`]): encodes frames, where latents do not fit.
        latent_frames (`int`): latent frames a chunk, where frames are encoded.
        multiple_of (`int`): pixels; height and width are padded to this multiple.
        prompt (`str` or `list[str]`, *optional*): passed to `pipeline`, unless `call_kwargs` has `prompt_embeds`.
        height, width (`int`, *optional*): passed to `pipeline`.
        num_frames (`int`, *optional*): pixel frames wanted. `pipeline` is asked for the next larger number that its
            temporal compression allows, and what is too much is left out.
        state (`StreamState`, *optional*): of a stream to go on with; the pipeline runs again and must give the same.
        call_kwargs (`dict`, *optional*): passed to `pipeline`; they take precedence over the arguments above.

    Raises:
        ValueError: `output_type="latent"` from a pipeline with another latent space; while reading: an output that is
            not understood.
        SourceInterrupted: while reading: the pipeline was interrupted.
    """
    run = _PipelineRun(pipeline, autoencoder, prompt, height, width, num_frames, call_kwargs or {})
    networks = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    pieces = background(run, compiled=any(map(is_compiled, networks)))
    if run.gives_latents:
        return LatentsSource(
            pieces,
            autoencoder,
            multiple_of=multiple_of,
            num_frames=num_frames,
            independent=run.live is not None and run.live.independent,
            state=checked_state(state, LatentsSourceState),
        )
    return PixelSource(
        pieces,
        encoder,
        latent_frames=latent_frames,
        multiple_of=multiple_of,
        num_frames=num_frames,
        frame_rate=run.frame_rate,
        state=checked_state(state, PixelSourceState),
    )


class _PipelineRun:
    """One call of a pipeline, decided in full before it starts; called in the worker thread."""

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        autoencoder: HRAutoencoder,
        prompt: str | list[str] | None,
        height: int | None,
        width: int | None,
        num_frames: int | None,
        call_kwargs: dict[str, Any],
    ) -> None:
        self.pipeline = pipeline
        self.parameters = inspect.signature(pipeline.__call__).parameters
        ours: dict[str, Any] = {"height": height, "width": width}
        if "prompt_embeds" not in call_kwargs:
            ours["prompt"] = prompt
        if num_frames is not None:
            ours["num_frames"] = _allowed_frames(pipeline, num_frames)
        ours = {name: value for name, value in ours.items() if value is not None and name in self.parameters}
        # some have to be told that there is no prompt beside its embeddings
        no_prompt = {"prompt": None} if "prompt" in self.parameters else {}
        self.kwargs = {**no_prompt, **ours, **call_kwargs}
        self.user_callback = self.kwargs.pop("callback_on_step_end", None)
        self.kwargs.pop("return_dict", None)  # by their names, outputs are told apart
        self.frame_rate = call_frame_rate(pipeline, self.kwargs)
        output_type = self.kwargs.pop("output_type", None)
        self.gives_latents = _gives_latents(pipeline, autoencoder, output_type)
        self.output_type = "latent" if self.gives_latents else output_type or "pt"
        self.live = self._live_chunks()
        self.window_frames_done = 0

    def __call__(self, channel: Channel[Any]) -> None:
        if "callback_on_step_end" in self.parameters:
            self.kwargs.update(self._callback(channel))
        try:
            result = self.pipeline(**self.kwargs, output_type=self.output_type)
        except (ReaderLeft, SourceInterrupted):
            # what the pipeline would have done at its end
            self.pipeline.maybe_free_model_hooks()
            raise
        self._check_interrupt()  # the steps that were left were skipped
        if self.live is None:
            channel.put(self._video(result))

    def _live_chunks(self) -> LiveChunks | None:
        live = next((LIVE_CHUNKS[name] for name in _class_names(self.pipeline) if name in LIVE_CHUNKS), None)
        if live is None or any(self.kwargs.get(name) is not None for name in live.not_with):
            return None
        if not self.gives_latents and not (live.independent and has_wan_latents(self.pipeline)):
            # frames that cannot be decoded chunk by chunk: they are taken from the finished video
            return None
        return live

    def _callback(self, channel: Channel[Any]) -> dict[str, Any]:
        user = self.user_callback
        if isinstance(user, (PipelineCallback, MultiPipelineCallbacks)):
            names = list(user.tensor_inputs)
        else:
            names = list(self.kwargs.get("callback_on_step_end_tensor_inputs", ["latents"]))
        if self.live is not None and "latents" not in names:
            names.append("latents")

        def on_step_end(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            with channel.pause():
                changed = user(pipeline, step, timestep, tensors) if user is not None else {}
            if self.live is not None:
                latents = changed.get("latents", tensors["latents"])
                if self.live.forced:
                    latents = self._finished_frames(step, timestep, latents)
                    finished = latents.shape[2] > 0
                else:
                    finished = step == len(pipeline.scheduler.timesteps) - 1
                if finished:
                    self._pass_on(latents, self.live, channel)
            self._check_interrupt()
            return changed

        return {"callback_on_step_end": on_step_end, "callback_on_step_end_tensor_inputs": names}

    def _check_interrupt(self) -> None:
        if getattr(self.pipeline, "_interrupt", False):
            raise SourceInterrupted(type(self.pipeline).__name__)

    def _finished_frames(self, step: int, timesteps: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """The frames of a window that are finished by now and were not passed on yet."""
        first = self.window_frames_done
        if step == 0 and first:  # a window repeats the end of the one before
            first = -(-self.kwargs["overlap_history"] // self.pipeline.vae_scale_factor_temporal)
        self.window_frames_done = max(first, int((timesteps <= self.pipeline.scheduler.timesteps[-1]).sum()))
        return latents[:, :, first : self.window_frames_done]

    def _pass_on(self, latents: torch.Tensor, live: LiveChunks, channel: Channel[Any]) -> None:
        latents = latents.transpose(1, 2) if live.frames_first else latents
        vae = self.pipeline.components["vae"]
        height, width = (self.kwargs.get(name, self.parameters[name].default) for name in ("height", "width"))
        if latents.shape[-2:] != (height // vae.config.scale_factor_spatial, width // vae.config.scale_factor_spatial):
            return  # the last step of a smaller stage
        if self.gives_latents:
            channel.put(latents.clone())
        else:
            channel.put(_decode(vae, latents))

    def _video(self, result: Any) -> torch.Tensor | TimedPixels:
        name = type(self.pipeline).__name__
        named = [field for field in ("frames", "video") if isinstance(result, BaseOutput) and field in result]
        if named:
            video = result[named[0]]
        elif isinstance(result, tuple) and result:
            video = result[0]
        else:
            raise ValueError(f"`source` {name} returned a {type(result).__name__} without `frames`")
        if not self.gives_latents:
            pixels = frames_to_pixels(video, f"source {name}")
            audio = audio_of(self.pipeline, result, pixels.shape[2], self.frame_rate) if named else None
            return TimedPixels(pixels, audio=audio)
        if not isinstance(video, torch.Tensor):
            raise ValueError(f"`source` {name} returned a {type(video).__name__} as latents, expected a tensor")
        return video


def _class_names(pipeline: DiffusionPipeline) -> list[str]:
    return [base.__name__ for base in type(pipeline).__mro__]


def _gives_latents(pipeline: DiffusionPipeline, autoencoder: HRAutoencoder, output_type: str | None) -> bool:
    fits = autoencoder.config.latent_space == WAN_LATENT_SPACE and has_wan_latents(pipeline)
    if output_type is None:
        return fits and not any(name in _OTHER_LATENTS for name in _class_names(pipeline))
    if output_type == "latent" and not fits:
        raise ValueError(
            f"`output_type` is 'latent', but latents of {type(pipeline).__name__} do not fit `autoencoder`, whose "
            f"latent space is {autoencoder.config.latent_space!r}: leave `output_type` out, and the frames are encoded"
        )
    return output_type == "latent"


def _allowed_frames(pipeline: DiffusionPipeline, num_frames: int) -> int:
    """The smallest `t * n + 1` from `num_frames` on, with the temporal compression `t` of the pipeline."""
    names = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio")
    ratio = next((vars(pipeline)[name] for name in names if name in vars(pipeline)), 1)
    return -(-(num_frames - 1) // ratio) * ratio + 1


def _decode(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """Decodes normalised Wan latents of one whole clip to frames in [-1, 1]."""
    mean, std = (
        torch.tensor(values, device=latents.device).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return vae.decode((latents * std + mean).to(vae.dtype), return_dict=False)[0].float()
