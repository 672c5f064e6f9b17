# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Tiny real diffusers pipelines of every kind that can be a source."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AnyFlowFARPipeline,
    AnyFlowFARTransformer3DModel,
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    FlowMapEulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeliosPipeline,
    HeliosPyramidPipeline,
    HeliosScheduler,
    HeliosTransformer3DModel,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    SkyReelsV2DiffusionForcingPipeline,
    SkyReelsV2Transformer3DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.pipelines.ltx2 import LTX2TextConnectors
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

WAN_TRANSFORMER = dict(
    num_attention_heads=2, attention_head_dim=12, text_dim=16, freq_dim=32, ffn_dim=32, num_layers=1, in_channels=16
)


PROMPT_EMBEDS = dict(prompt_embeds=torch.zeros(1, 4, 16), negative_prompt_embeds=torch.zeros(1, 4, 16))


def wan_vae(**config):
    torch.manual_seed(0)
    return AutoencoderKLWan(**{**dict(base_dim=3, num_res_blocks=1, dim_mult=[1, 1, 1, 1]), **config})


def wan_pipeline(**vae_config):
    torch.manual_seed(0)
    transformer = WanTransformer3DModel(**WAN_TRANSFORMER, out_channels=16, rope_max_seq_len=32)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=7.0)
    return WanPipeline(None, None, wan_vae(**vae_config), scheduler, transformer)


def ltx_pipeline():
    torch.manual_seed(0)
    transformer = LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=4, attention_head_dim=8, cross_attention_dim=32,
        num_layers=1, caption_channels=32,
    )  # fmt: skip
    vae = AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False), decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=1, patch_size_t=1, encoder_causal=True, decoder_causal=False,
    )  # fmt: skip
    pipeline = LTXPipeline(FlowMatchEulerDiscreteScheduler(), vae, None, None, transformer)
    embeds = dict(prompt_embeds=torch.zeros(1, 4, 32), prompt_attention_mask=torch.ones(1, 4))
    return pipeline, embeds | dict(guidance_scale=1.0, height=32, width=32, num_frames=9)


def ltx2_pipeline():
    """Video of 24 frames a second with stereo sound of 16000 samples a second."""
    torch.manual_seed(0)
    transformer = LTX2VideoTransformer3DModel(
        in_channels=4, out_channels=4, patch_size=1, patch_size_t=1, num_attention_heads=2, attention_head_dim=8,
        cross_attention_dim=16, audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2,
        audio_attention_head_dim=4, audio_cross_attention_dim=8, num_layers=1, caption_channels=8,
        rope_double_precision=False, rope_type="split",
    )  # fmt: skip
    connectors = LTX2TextConnectors(
        caption_channels=8, text_proj_in_factor=2, video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=4, video_connector_num_layers=1, audio_connector_num_attention_heads=2,
        video_connector_num_learnable_registers=None, audio_connector_num_learnable_registers=None,
        audio_connector_attention_head_dim=4, audio_connector_num_layers=1, connector_rope_base_seq_len=16,
        rope_double_precision=False, rope_type="split",
    )  # fmt: skip
    vae = AutoencoderKLLTX2Video(
        latent_channels=4, block_out_channels=(8,), decoder_block_out_channels=(8,), layers_per_block=(1,),
        decoder_layers_per_block=(1, 1), spatio_temporal_scaling=(True,), decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False), downsample_type=("spatial",), upsample_residual=(False,),
        upsample_factor=(1,), patch_size=1, patch_size_t=1, encoder_causal=True, decoder_causal=False,
    )  # fmt: skip
    audio_vae = AutoencoderKLLTX2Audio(
        base_channels=4, output_channels=2, ch_mult=(1,), num_res_blocks=1, attn_resolutions=None, in_channels=2,
        resolution=32, latent_channels=2, mid_block_add_attention=False, mel_bins=8,
    )  # fmt: skip
    vocoder = LTX2Vocoder(
        in_channels=16, hidden_channels=16, upsample_kernel_sizes=[16, 20], upsample_factors=[8, 20],
        resnet_kernel_sizes=[3], resnet_dilations=[[1, 3]], output_sampling_rate=16000,
    )  # fmt: skip
    pipeline = LTX2Pipeline(
        FlowMatchEulerDiscreteScheduler(), vae, audio_vae, None, None, connectors, transformer, vocoder
    )
    embeds = dict(prompt_embeds=torch.zeros(1, 16, 16), prompt_attention_mask=torch.ones(1, 16, dtype=torch.long))
    guidance: dict[str, Any] = dict(guidance_scale=1.0, stg_scale=0.0, modality_scale=1.0, audio_guidance_scale=1.0)
    guidance |= dict(audio_stg_scale=0.0, audio_modality_scale=1.0, spatio_temporal_guidance_blocks=None)
    return pipeline, embeds | guidance | dict(num_inference_steps=1, use_cross_timestep=False)


def cogvideox_pipeline():
    torch.manual_seed(0)
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=4, time_embed_dim=2,
        text_embed_dim=32, num_layers=1, sample_width=2, sample_height=2, sample_frames=9, patch_size=2,
        temporal_compression_ratio=4, max_text_seq_length=16,
    )  # fmt: skip
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2,
        temporal_compression_ratio=4,
    )  # fmt: skip
    pipeline = CogVideoXPipeline(None, None, vae.eval(), transformer, CogVideoXDDIMScheduler())
    embeds = dict(prompt_embeds=torch.zeros(1, 16, 32), guidance_scale=1.0)
    return pipeline, embeds | dict(height=16, width=16, num_frames=9)


def hunyuan_pipeline():
    torch.manual_seed(0)
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, patch_size=1, patch_size_t=1, guidance_embeds=True, text_embed_dim=16,
        pooled_projection_dim=8, rope_axes_dim=(2, 4, 4),
    )  # fmt: skip
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    )
    pipeline = HunyuanVideoPipeline(
        None, None, transformer, vae.eval(), FlowMatchEulerDiscreteScheduler(shift=7.0), None, None
    )
    embeds = dict(
        prompt_embeds=torch.zeros(1, 4, 16),
        prompt_attention_mask=torch.ones(1, 4),
        pooled_prompt_embeds=torch.zeros(1, 8),
    )
    return pipeline, embeds | dict(height=16, width=16, num_frames=9)


def helios_pipeline():
    torch.manual_seed(0)
    transformer = HeliosTransformer3DModel(**WAN_TRANSFORMER, rope_dim=(4, 4, 4))
    return HeliosPipeline(None, None, wan_vae(), HeliosScheduler(stages=1, stage_range=[0, 1]), transformer)


def helios_pyramid_pipeline():
    base = helios_pipeline()
    return HeliosPyramidPipeline(None, None, base.vae, HeliosScheduler(stages=3, gamma=0.3), base.transformer)


def anyflow_pipeline():
    torch.manual_seed(0)
    transformer = AnyFlowFARTransformer3DModel(
        **WAN_TRANSFORMER, out_channels=16, rope_max_seq_len=64, chunk_partition=(1, 2, 2), full_chunk_limit=3
    )
    return AnyFlowFARPipeline(None, None, transformer, wan_vae(), FlowMapEulerDiscreteScheduler(shift=5.0))


def skyreels_pipeline():
    torch.manual_seed(0)
    transformer = SkyReelsV2Transformer3DModel(**WAN_TRANSFORMER, rope_max_seq_len=32, inject_sample_info=True)
    scheduler = UniPCMultistepScheduler(flow_shift=8.0, prediction_type="flow_prediction", use_flow_sigmas=True)
    return SkyReelsV2DiffusionForcingPipeline(None, None, transformer, wan_vae(), scheduler)


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def live_call(pipeline):
    if isinstance(pipeline, AnyFlowFARPipeline):
        return dict(prompt_embeds=PROMPT_EMBEDS["prompt_embeds"], height=16, width=16, num_inference_steps=2)
    return dict(PROMPT_EMBEDS, height=16, width=16, num_inference_steps=2)
