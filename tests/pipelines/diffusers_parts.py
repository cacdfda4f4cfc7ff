"""The Diffusers library's HunyuanDiT pipeline, built from the weights of one of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffsynth import HunyuanDiTImagePipeline
from diffsynth.core.saving import to_layout
from diffsynth.models import autoencoder_kl, bert_clip, hunyuan_dit, mt5
from tests import diffusers_networks

BETAS = {"beta_start": 0.00085, "beta_schedule": "scaled_linear", "prediction_type": "v_prediction"}


def make_scheduler(name: str, beta_end: float) -> Any:
    """Return a scheduler set as Tencent's program sets it."""
    import diffusers

    betas = {**BETAS, "beta_end": beta_end}
    match name:
        case "ddpm":
            return diffusers.DDPMScheduler(**betas, steps_offset=1, clip_sample=False, timestep_spacing="leading")
        case "ddim":
            return diffusers.DDIMScheduler(**betas, steps_offset=1, clip_sample=False)
        case "dpmms":
            return diffusers.DPMSolverMultistepScheduler(**betas, solver_order=2, algorithm_type="dpmsolver++")
        case "dpmms of 2023":
            return diffusers.DPMSolverMultistepScheduler(
                **betas, solver_order=2, algorithm_type="dpmsolver++", final_sigmas_type="sigma_min"
            )
    raise ValueError(name)


def make_transformer(ours: HunyuanDiTImagePipeline) -> Any:
    """Return the denoiser as Diffusers builds it."""
    config = ours.denoiser.config
    theirs = diffusers_networks.hunyuan_dit(config)
    state = to_layout(ours.denoiser, hunyuan_dit.FAMILY.layout("diffusers"), config)
    for name, module in list(theirs.named_modules()):  # theirs derives the widths of two small networks from others
        if isinstance(module, nn.Linear) and module.weight.shape != (shape := state[f"{name}.weight"].shape):
            theirs.set_submodule(name, nn.Linear(shape[1], shape[0]))
    theirs.load_state_dict(state)
    return theirs.eval()


def make_vae(ours: HunyuanDiTImagePipeline) -> Any:
    """Return the autoencoder as Diffusers builds it."""
    from diffusers import AutoencoderKL

    config = ours.vae.config
    levels = len(config.channels)
    theirs = AutoencoderKL(
        latent_channels=config.latent_channels,
        block_out_channels=config.channels,
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.norm_groups,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        scaling_factor=ours.latent_scale,
    )
    theirs.load_state_dict(to_layout(ours.vae, autoencoder_kl.FAMILY.layout("diffusers"), config))
    return theirs.eval()


def make_text_encoders(ours: HunyuanDiTImagePipeline) -> tuple[Any, Any]:
    """Return both text encoders as the transformers library builds them."""
    from transformers import BertConfig, BertModel, T5Config, T5EncoderModel

    clip, t5 = ours.prompt_encoder.clip.config, ours.prompt_encoder.t5.config
    bert = BertModel(
        BertConfig(
            vocab_size=clip.vocab_size,
            hidden_size=clip.hidden_size,
            num_hidden_layers=clip.num_layers,
            num_attention_heads=clip.num_heads,
            intermediate_size=clip.mlp_size,
            max_position_embeddings=clip.max_positions,
        ),
        add_pooling_layer=False,
    )
    bert.load_state_dict(to_layout(ours.prompt_encoder.clip, bert_clip.FAMILY.layout("transformers"), clip))
    encoder = T5EncoderModel(
        T5Config(
            vocab_size=t5.vocab_size,
            d_model=t5.d_model,
            d_kv=t5.d_kv,
            d_ff=t5.d_ff,
            num_layers=t5.num_layers,
            num_heads=t5.num_heads,
            relative_attention_num_buckets=t5.buckets,
            feed_forward_proj="gated-gelu",
        )
    )
    state = to_layout(ours.prompt_encoder.t5, mt5.FAMILY.layout("transformers"), t5)
    lacking, unknown = encoder.load_state_dict(state, strict=False)
    assert set(lacking) <= {"encoder.embed_tokens.weight"}, lacking  # the same table as shared.weight
    assert not unknown, unknown
    return bert.eval(), encoder.eval()


def make_tokenizers(folder: Path) -> tuple[Any, Any]:
    """Return both tokenizers of the transformers library from the vocabularies under ``t2i/``."""
    from transformers import BertTokenizer, T5Tokenizer

    return BertTokenizer.from_pretrained(folder / "tokenizer"), T5Tokenizer.from_pretrained(folder / "mt5")


def make_control_networks(ours: HunyuanDiTImagePipeline) -> list[Any]:
    """Return the control networks as Diffusers builds them."""
    networks = []
    for entry in ours.controlnets.loaded:
        theirs = diffusers_networks.hunyuan_dit_controlnet(entry.config)
        layout = hunyuan_dit.CONTROLNET_FAMILY.layout("diffusers")
        theirs.load_state_dict(to_layout(entry.module, layout, entry.config))
        networks.append(theirs.eval())
    return networks


def make_pipeline(
    ours: HunyuanDiTImagePipeline, scheduler: str, *, perturbed: bool = False, steered: bool = False
) -> Any:
    """Return the whole pipeline of Diffusers, with the weights of ours."""
    from diffusers import HunyuanDiTControlNetPipeline, HunyuanDiTPAGPipeline, HunyuanDiTPipeline

    extra: dict[str, Any] = {}
    if steered:
        networks = make_control_networks(ours)
        extra["controlnet"] = networks if len(networks) > 1 else networks[0]
    kind = HunyuanDiTControlNetPipeline if steered else HunyuanDiTPAGPipeline if perturbed else HunyuanDiTPipeline
    bert, t5 = make_text_encoders(ours)
    words, pieces = make_tokenizers(ours.models[1].path.parent.parent)
    theirs = kind(
        vae=make_vae(ours),
        text_encoder=bert,
        tokenizer=words,
        transformer=make_transformer(ours),
        scheduler=make_scheduler(scheduler, ours.beta_end),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        text_encoder_2=t5,
        tokenizer_2=pieces,
        **extra,
    )
    theirs.set_progress_bar_config(disable=True)
    return theirs


def generators(*seeds: int) -> list[torch.Generator]:
    """Return a generator on the CPU for every seed."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]
