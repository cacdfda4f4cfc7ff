"""The Diffusers library's pipelines, built from the weights of ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffsynth.core.saving import to_layout
from diffsynth.models import autoencoder_kl, clip, unet
from diffsynth.models.clip.model import ClipText
from diffsynth.models.unet.config import UNetConfig
from diffsynth.models.unet.control import ControlNet
from diffsynth.models.unet.model import UNet

from .toy import Pipeline

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def make_unet(ours: UNet) -> Any:
    """Return a denoiser as Diffusers builds it."""
    from diffusers import UNet2DConditionModel

    config: UNetConfig = ours.config
    attends = [bool(depth) for depth in config.depths]
    heads = [config.heads(width) for width in config.channels]
    extra: dict[str, Any] = {}
    if config.label_size:
        extra = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": config.number_size,
            "projection_class_embeddings_input_dim": config.label_size,
        }
    theirs = UNet2DConditionModel(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        block_out_channels=config.channels,
        down_block_types=["CrossAttnDownBlock2D" if each else "DownBlock2D" for each in attends],
        up_block_types=["CrossAttnUpBlock2D" if each else "UpBlock2D" for each in reversed(attends)],
        layers_per_block=config.layers_per_block,
        transformer_layers_per_block=[max(depth, 1) for depth in (*config.depths[:-1], config.mid_depth)],
        attention_head_dim=heads,
        cross_attention_dim=config.context_size,
        use_linear_projection=not config.conv_projections,
        norm_num_groups=config.norm_groups,
        time_embedding_dim=config.time_size,
        sample_size=16,
        **extra,
    )
    theirs.load_state_dict(to_layout(ours, unet.FAMILY.layout("diffusers"), config))
    return theirs.eval()


def make_control_net(ours: ControlNet) -> Any:
    """Return a control network as Diffusers builds it."""
    from diffusers import ControlNetModel, ControlNetUnionModel

    config = ours.config
    extra: dict[str, Any] = {}
    if config.label_size:
        extra = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": config.number_size,
            "projection_class_embeddings_input_dim": config.label_size,
        }
    if config.types:
        width = config.channels[0]
        extra |= {"num_control_type": config.types, "num_trans_channel": width, "num_proj_channel": width}
        extra["num_trans_head"] = config.type_heads
    kind: Any = ControlNetUnionModel if config.types else ControlNetModel
    theirs = kind(
        block_out_channels=config.channels,
        down_block_types=["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in config.depths],
        layers_per_block=config.layers_per_block,
        transformer_layers_per_block=[max(depth, 1) for depth in (*config.depths[:-1], config.mid_depth)],
        attention_head_dim=[config.heads(width) for width in config.channels],
        cross_attention_dim=config.context_size,
        use_linear_projection=not config.conv_projections,
        conditioning_embedding_out_channels=config.hint_channels,
        **extra,
    )
    theirs.load_state_dict(to_layout(ours, unet.CONTROLNET_FAMILY.layout("diffusers"), config))
    return theirs.eval()


def make_vae(ours: Any, scale: float) -> Any:
    """Return an autoencoder as Diffusers builds it."""
    from diffusers import AutoencoderKL

    config, levels = ours.config, len(ours.config.channels)
    theirs = AutoencoderKL(
        block_out_channels=config.channels,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_groups,
        scaling_factor=scale,
        force_upcast=False,
    )
    theirs.load_state_dict(to_layout(ours, autoencoder_kl.FAMILY.layout("diffusers"), config))
    return theirs.eval()


def make_encoder(ours: ClipText) -> nn.Module:
    """Return a text encoder as the transformers library builds it."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = ours.config
    kind: Any = CLIPTextModelWithProjection if config.projection_size else CLIPTextModel
    theirs = kind(
        CLIPTextConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.mlp_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            max_position_embeddings=config.max_positions,
            projection_dim=config.projection_size or 512,
            hidden_act="quick_gelu" if config.quick_gelu else "gelu",
            eos_token_id=config.end_token,
            bos_token_id=config.end_token - 1,
            pad_token_id=0,
        )
    )
    state = to_layout(ours, clip.FAMILY.layout("transformers"), config)
    known = theirs.state_dict()
    renamed = {key if key in known else key.removeprefix("text_model."): value for key, value in state.items()}
    theirs.load_state_dict({key: value for key, value in renamed.items() if key in known})
    encoder: nn.Module = theirs.eval()
    if not hasattr(encoder, "text_model"):  # a level that is gone, and that Diffusers asks for with a clip skip
        encoder.__dict__["text_model"] = encoder
    return encoder


def make_tokenizer(folder: Path, padding: str) -> Any:
    """Return a tokenizer of the transformers library."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token=padding, model_max_length=77)


def make_rescaled(name: str) -> Any:
    """Return a sampler for networks that were trained down to no signal, and predict the velocity."""
    import diffusers

    settings: dict[str, Any] = {**BETAS, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    settings["prediction_type"] = "v_prediction"
    match name:
        case "ddim":
            return diffusers.DDIMScheduler(**settings, clip_sample=False, set_alpha_to_one=False)
        case "euler":
            return diffusers.EulerDiscreteScheduler(**settings)
        case "dpm++2m":
            return diffusers.DPMSolverMultistepScheduler(**settings)
    raise ValueError(name)


def make_scheduler(name: str, prediction: str) -> Any:
    """Return a sampler with the settings that the releases came with."""
    import diffusers

    common = {**BETAS, "prediction_type": {"epsilon": "epsilon", "velocity": "v_prediction"}[prediction]}
    leading = {"timestep_spacing": "leading", "steps_offset": 1}
    match name:
        case "pndm":
            return diffusers.PNDMScheduler(**common, skip_prk_steps=True, set_alpha_to_one=False, **leading)
        case "ddim":
            return diffusers.DDIMScheduler(**common, clip_sample=False, set_alpha_to_one=False, **leading)
        case "euler":
            return diffusers.EulerDiscreteScheduler(**common, **leading)
        case "euler_a":
            return diffusers.EulerAncestralDiscreteScheduler(**common, timestep_spacing="trailing")
        case "dpm++2m":
            return diffusers.DPMSolverMultistepScheduler(**common)
        case "dpm++2m_sde":
            return diffusers.DPMSolverMultistepScheduler(**common, algorithm_type="sde-dpmsolver++")
        case "unipc":
            return diffusers.UniPCMultistepScheduler(**common)
    raise ValueError(name)


def make_pipeline(
    ours: Pipeline, kind: str, scheduler: str, *, denoiser: UNet | None = None, controlnets: Sequence[ControlNet] = ()
) -> Any:
    """Return a pipeline of Diffusers by the name of its class, such as ``StableDiffusionPipeline``."""
    import diffusers

    scale = ours.latent_scale
    parts: dict[str, Any] = {
        "unet": make_unet(denoiser or ours.denoiser),
        "vae": make_vae(ours.vae, scale),
        "scheduler": make_rescaled(scheduler) if ours.zero_terminal_snr else make_scheduler(scheduler, ours.prediction),
    }
    if controlnets:
        made = [make_control_net(each) for each in controlnets]
        parts["controlnet"] = made[0] if len(made) == 1 else made
    home = ours.readers[0].tokenizer.source.parent
    if "XL" in kind:
        first = ours.readers[0] if len(ours.readers) == 2 and denoiser is None else None
        parts |= {
            "text_encoder": None if first is None else make_encoder(first.encoder),
            "text_encoder_2": make_encoder(ours.readers[-1].encoder),
            "tokenizer": None if first is None else make_tokenizer(home, "<|endoftext|>"),
            "tokenizer_2": make_tokenizer(home, "!"),
            "force_zeros_for_empty_prompt": first is not None,
        }
        if kind == "StableDiffusionXLPipeline" or controlnets:
            parts["add_watermarker"] = False
        else:
            parts |= {"requires_aesthetics_score": first is None, "add_watermarker": False}
    else:
        parts |= {
            "text_encoder": make_encoder(ours.readers[0].encoder),
            "tokenizer": make_tokenizer(home, "<|endoftext|>"),
            "safety_checker": None,
            "feature_extractor": None,
            "requires_safety_checker": False,
        }
    pipe = getattr(diffusers, kind)(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generator(seed: int) -> torch.Generator:
    """Return a fresh generator on the CPU."""
    return torch.Generator("cpu").manual_seed(seed)
