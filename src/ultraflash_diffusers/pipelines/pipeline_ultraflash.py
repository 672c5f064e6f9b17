# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The streaming pipeline: any source of low-resolution video in, high-resolution frames out while they are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKLWan, SchedulerMixin
from diffusers.video_processor import VideoProcessor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..models.causal_latent_upsampler import CausalLatentUpsampler
from ..models.causal_wan_transformer import CausalWanTransformer
from ..models.hr_autoencoder import HRAutoencoder
from ..models.ultraflash_sr_transformer import UltraFlashSRTransformer
from .argument_kinds import check_choice, check_type, checked_number, checked_whole, optional_whole
from .arguments import (
    LONGEST_SIDE,
    MOST_STEPS,
    MOST_VIDEOS,
    StepEndCallback,
    check_components,
    checked_scale,
    requested_size,
    step_callback,
    stream_seeds,
)
from .cache_management import DynamicCacheManagement
from .color_correction import COLOR_CORRECTIONS, ColorCorrection
from .detail import DetailSettings
from .execution.compilation import GuardedCalls
from .execution.plan import ExecutionPlan
from .execution_mixin import ExecutionMixin
from .group_maker import StreamSettings
from .habits import FamiliarPipeline, one_source, scaled_lora, several_videos
from .lora import UltraFlashLoraLoaderMixin
from .pipeline_output import OUTPUT_TYPES, OutputType, UltraFlashPipelineOutput, whole_output
from .pipeline_state import PipelineStreamState
from .prompt_encoding import PromptEncodingMixin
from .stages import SRSettings
from .stream_start import open_source, start_stream, starting_state
from .video_stream import VideoStream


class UltraFlashStreamingPipeline(ExecutionMixin, PromptEncodingMixin, FamiliarPipeline, UltraFlashLoraLoaderMixin):
    r"""Streams high-resolution video from text, after another pipeline, or from frames.

    A chain of stages, each with a state of its own that the stream carries (paper, "Ultra Flash"):

        source -> latent upsampler -> SR transformer -> HR decoder -> frames

    The pipeline itself keeps nothing between calls: it can run any number of streams in turns.

    Args:
        transformer ([`UltraFlashSRTransformer`]): refines noise and the upsampled latents in one step (or several).
        latent_upsampler ([`CausalLatentUpsampler`]): low-resolution latents to the condition; its scale is the
            pipeline's.
        autoencoder ([`HRAutoencoder`]): decodes the result, and encodes the frames of pixel sources if it can.
        scheduler ([`FlowMatchEulerDiscreteScheduler`]): the sigmas of the SR steps. One step goes from 1 to 0.
        text_encoder (`PreTrainedModel`, *optional*): UMT5 for the published weights. Without one, prompts are embedded
            by the caller or left out.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): of the text encoder.
        generator_transformer ([`CausalWanTransformer`], *optional*): makes low-resolution video from text.
        encoder (`AutoencoderKLWan` or [`HRAutoencoder`], *optional*): encodes frames in place of `autoencoder`, in the
            same latent space: the published decoders have no encoder.
        group_frames (`int`, *optional*, defaults to 6): latent frames that the SR transformer takes at once. It is
            part of the model: which blocks attend to which depends on it, so another value gives another video.
        first_group_frames (`int`, *optional*): those of a clip's first group (published long cascade, of generator
            chunks of 1, 3, 3, ...: 4). Shorter groups then are refined as they are; without it they are filled.
        kv_cache_blocks (`int`, *optional*, defaults to 3): temporal blocks of earlier groups that a group attends to.
        condition_noise (`float`, *optional*): default share of noise in the condition; by default what the transformer
            was trained with, as its config says, 0 where it says nothing (the released weights: 0; paper: 0.5).
        color_correction_levels (`int`, *optional*, defaults to 5): what color correction takes from the source: all
            that is coarser than about `2**levels` pixels. Few levels suit networks whose latents lose some of the
            source's own detail.
        detail_memory (`float`, *optional*, defaults to 0.0): share of the former frame's detail that stays where a
            source of pixels stands still, in [0, 1): networks that shimmer on stills are calm with 0.97.
        default_height (`int`, *optional*, defaults to 960): height of the frames made from text.
        default_width (`int`, *optional*, defaults to 1664): width of the frames made from text.
        default_num_frames (`int`, *optional*, defaults to 81): frames of a whole video made from text.
        default_fps (`int`, *optional*, defaults to 16): frames a second of the clips that the generator learnt from:
            the rate at which to write what it makes.
    """

    model_cpu_offload_seq = "text_encoder->encoder->generator_transformer->latent_upsampler->transformer->autoencoder"
    _optional_components = ["text_encoder", "tokenizer", "generator_transformer", "encoder"]
    _callback_tensor_inputs = ["latents", "condition", "prompt_embeds", "negative_prompt_embeds"]

    def __init__(
        self,
        transformer: UltraFlashSRTransformer,
        latent_upsampler: CausalLatentUpsampler,
        autoencoder: HRAutoencoder,
        scheduler: SchedulerMixin,
        text_encoder: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        generator_transformer: CausalWanTransformer | None = None,
        encoder: AutoencoderKLWan | HRAutoencoder | None = None,
        group_frames: int = 6,
        first_group_frames: int | None = None,
        kv_cache_blocks: int = 3,
        condition_noise: float | None = None,
        color_correction_levels: int = 5,
        detail_memory: float = 0.0,
        default_height: int = 960,
        default_width: int = 1664,
        default_num_frames: int = 81,
        default_fps: int = 16,
    ) -> None:
        super().__init__()
        if condition_noise is None:
            condition_noise = 0.0 if transformer is None else transformer.config.condition_noise or 0.0
        self.register_modules(
            transformer=transformer,
            latent_upsampler=latent_upsampler,
            autoencoder=autoencoder,
            scheduler=scheduler,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            generator_transformer=generator_transformer,
            encoder=encoder,
        )
        self.register_to_config(
            group_frames=group_frames,
            first_group_frames=first_group_frames,
            kv_cache_blocks=kv_cache_blocks,
            condition_noise=condition_noise,
            color_correction_levels=color_correction_levels,
            detail_memory=detail_memory,
            default_height=default_height,
            default_width=default_width,
            default_num_frames=default_num_frames,
            default_fps=default_fps,
        )
        self.video_processor = VideoProcessor()
        self._text_calls = GuardedCalls()
        self.execution_plan = ExecutionPlan()

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        source: Any = None,
        *,
        video: Any = None,
        negative_prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        scale: int | None = None,
        num_inference_steps: int = 1,
        guidance_scale: float = 1.0,
        condition_noise: float | None = None,
        num_videos_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        max_sequence_length: int | None = None,
        frames_per_chunk: int | None = None,
        cache_management: DynamicCacheManagement | None = None,
        color_correction: ColorCorrection = "wavelet",
        strength: float = 1.0,
        source_kwargs: dict[str, Any] | None = None,
        state: PipelineStreamState | None = None,
        output_type: OutputType = "pil",
        attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
        callback_on_step_end: StepEndCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> UltraFlashPipelineOutput | tuple[Any, ...]:
        """Makes a whole video: all chunks of [`~UltraFlashStreamingPipeline.stream`], joined.

        Args:
            num_frames (`int`, *optional*): frames of the result; `None` takes all that the source has, and from text
                the config's `default_num_frames`.
            attention_kwargs (`dict`, *optional*): `{"scale": 0.7}` weighs all LoRA layers in this call.
            return_dict (`bool`, *optional*, defaults to `True`): a plain tuple instead of the output class if `False`.
            prompt, source and all others: see [`~UltraFlashStreamingPipeline.stream`].

        Returns:
            [`UltraFlashPipelineOutput`] or `tuple`: the frames, and the sound of a source pipeline that makes some.

        Raises:
            ValueError: all that `stream` raises.

        Examples:
        ```python
        >>> pipe = UltraFlashStreamingPipeline.from_pretrained(folder)
        >>> video = pipe(source="clip.mp4").frames[0]
        >>> video = pipe("a red ball", source=wan_pipeline, num_frames=81).frames[0]
        ```
        """
        source = one_source(source, video)
        if source is None and num_frames is None:
            num_frames = self.config.default_num_frames
        stream = self.stream(
            prompt,
            source,
            negative_prompt=negative_prompt,
            height=height,
            width=width,
            num_frames=num_frames,
            scale=scale,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            condition_noise=condition_noise,
            num_videos_per_prompt=num_videos_per_prompt,
            generator=generator,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            max_sequence_length=max_sequence_length,
            frames_per_chunk=frames_per_chunk,
            cache_management=cache_management,
            color_correction=color_correction,
            strength=strength,
            source_kwargs=source_kwargs,
            state=state,
            output_type=output_type,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )
        with stream, scaled_lora(self, attention_kwargs):
            output = whole_output(list(stream), output_type)
        return output if return_dict else output.to_tuple()

    @torch.no_grad()
    def stream(
        self,
        prompt: str | list[str] | None = None,
        source: Any = None,
        *,
        video: Any = None,
        negative_prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        scale: int | None = None,
        num_inference_steps: int = 1,
        guidance_scale: float = 1.0,
        condition_noise: float | None = None,
        num_videos_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        max_sequence_length: int | None = None,
        frames_per_chunk: int | None = None,
        first_chunk_frames: int | None = None,
        cache_management: DynamicCacheManagement | None = None,
        color_correction: ColorCorrection = "wavelet",
        strength: float = 1.0,
        source_kwargs: dict[str, Any] | None = None,
        state: PipelineStreamState | None = None,
        output_type: OutputType = "pil",
        callback_on_step_end: StepEndCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> VideoStream:
        """Starts a stream, which yields the frames as they are made, in constant memory.

        The video depends on the arguments and the seed only, not on how the source delivers nor on
        `frames_per_chunk` and `first_chunk_frames`; it has exactly the frames and the size that were asked for.

        Args:
            prompt (`str` or `list[str]`, *optional*): what to show, one text for each video of the batch or one for
                all. `None` refines without a text. A pipeline as `source` gets it too; where this pipeline has no text
                encoder, only that one.
            source (*optional*): `None` generates from text; a diffusers video pipeline; the path of a video file;
                frames or an iterable of them, which may arrive live; normalised latents; see [`make_source`].
            video (*optional*): another name for `source`.
            negative_prompt (`str` or `list[str]`, *optional*): what not to show, with guidance.
            height, width (`int`, *optional*): pixels of the result. Text takes the config's defaults and makes any
                size; for a pipeline they choose what it is asked for, by default its own size; other sources bring
                theirs, times `scale`.
            num_frames (`int`, *optional*): frames of the result; `None` takes all that the source has, and from text
                goes on until the stream is closed.
            scale (`int`, *optional*): how much larger than the source; only that of the latent upsampler.
            num_inference_steps (`int`, *optional*, defaults to 1): SR steps; more for the multi-step teacher.
            guidance_scale (`float`, *optional*, defaults to 1.0): classifier-free guidance of the SR steps against the
                negative prompt, where above 1.
            condition_noise (`float`, *optional*): share of noise in the condition, 0 to 1; the config's by default.
            num_videos_per_prompt (`int`, *optional*, defaults to 1): of text, and of a pipeline that makes as many.
            generator (`torch.Generator` or `list`, *optional*): seeds the stream; a list holds one for each video of
                the batch, which then are as if made alone.
            prompt_embeds (`torch.Tensor`, *optional*): `[prompts, length, text_dim]` instead of `prompt`.
            negative_prompt_embeds (`torch.Tensor`, *optional*): instead of `negative_prompt`.
            max_sequence_length (`int`, *optional*): tokens of a prompt; the transformer's text length by default.
            frames_per_chunk (`int`, *optional*): latent frames whose pixels a chunk holds; a group's by default.
            first_chunk_frames (`int`, *optional*): those of the first chunk, of which less can be shown earlier; the
                next one then holds what is left of its group.
            cache_management ([`DynamicCacheManagement`], *optional*): spends less on a stream that runs well.
            color_correction (`str`, *optional*, defaults to `"wavelet"`): sources with pixels: `"wavelet"` keeps their
                low frequencies, `"none"` does not.
            strength (`float`, *optional*, defaults to 1.0): sources with pixels: share of the detail that the networks
                add, 0 (the source, resampled bicubically) to 1.
            source_kwargs (`dict`, *optional*): further arguments of a source pipeline's call, or of the text
                generator ([`TextGeneratorSource`]: first frames, window and sink, steps).
            state ([`PipelineStreamState`], *optional*): goes on after the chunk that it was taken from. Pass the same
                arguments as for the stream before; `source` again from its beginning, `num_frames` of the whole video.
                Prompt and seeds come from the state where they are not given.
            output_type (`str`, *optional*, defaults to `"pil"`): `"pil"`, `"np"`, `"pt"`, `"uint8"` or `"latent"`.
            callback_on_step_end (`Callable`, *optional*): called as `callback(pipe, step, timestep, tensors)` after
                each SR step of each group, `step` counting from 0 in each; what it returns replaces the tensors. Where
                decoding overlaps denoising it runs in the worker thread. `pipe._interrupt = True` ends the stream.
            callback_on_step_end_tensor_inputs (`Sequence[str]`, *optional*, defaults to `("latents",)`): which tensors
                it gets, of `_callback_tensor_inputs`.

        Returns:
            [`VideoStream`]: iterate it once; close it, or use it as a context manager, to leave early.

        Raises:
            TypeError, ValueError: arguments that are out of range or contradict each other, the model or the source.
        """
        source, self._interrupt = one_source(source, video), False
        check_components(self)
        height, width = (optional_whole(*side, most=LONGEST_SIDE) for side in (("height", height), ("width", width)))
        num_frames = optional_whole("num_frames", num_frames)
        num_inference_steps = checked_whole("num_inference_steps", num_inference_steps, most=MOST_STEPS)
        num_videos_per_prompt = checked_whole("num_videos_per_prompt", num_videos_per_prompt, most=MOST_VIDEOS)
        frames_per_chunk = optional_whole("frames_per_chunk", frames_per_chunk)
        first_chunk_frames = optional_whole("first_chunk_frames", first_chunk_frames)
        guidance_scale = checked_number("guidance_scale", guidance_scale)
        condition_noise = self.config.condition_noise if condition_noise is None else condition_noise
        condition_noise = checked_number("condition_noise", condition_noise, 0, 1)
        strength = checked_number("strength", strength, 0, 1)
        check_type("cache_management", cache_management, DynamicCacheManagement)
        check_type("source_kwargs", source_kwargs, Mapping)
        check_type("state", state, PipelineStreamState, " (`PipelineStreamState.load` reads a file)")
        check_choice("output_type", output_type, OUTPUT_TYPES)
        check_choice("color_correction", color_correction, COLOR_CORRECTIONS)
        default_size = (self.config.default_height, self.config.default_width) if source is None else None
        size = requested_size(height, width, state, default_size)
        seeds = stream_seeds(generator, state)
        source_kwargs = several_videos(source, num_videos_per_prompt, source_kwargs)
        embeds = self._stream_prompt_embeds(
            prompt,
            source,
            guidance_scale,
            state,
            num_videos_per_prompt,
            negative_prompt=negative_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            max_sequence_length=max_sequence_length,
        )
        on_step = step_callback(self, callback_on_step_end, callback_on_step_end_tensor_inputs)
        settings = StreamSettings(
            sr=SRSettings(
                group_frames=self.config.group_frames,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                condition_noise=condition_noise,
                kv_cache_blocks=self.config.kv_cache_blocks,
                fills_groups=self.config.first_group_frames is None,
            ),
            scale=checked_scale(scale, self.latent_upsampler.config.scale),
            size=size,
            num_frames=num_frames,
            frames_per_chunk=frames_per_chunk,
            first_chunk_frames=first_chunk_frames,
            output_type=output_type,
            correction_levels=self.config.color_correction_levels if color_correction == "wavelet" else None,
            detail=DetailSettings(strength, self.config.detail_memory),
            cache_management=cache_management,
        )
        start = starting_state(state, seeds, embeds, settings)
        opened = open_source(self, source, prompt, settings, start, source_kwargs)
        return start_stream(self, opened, settings, start, on_step)

    @property
    def can_encode(self) -> bool:
        """Whether files and frames can be sources: whether there is an encoder, the autoencoder's or another."""
        return self.encoder is not None or self.autoencoder.has_encoder
