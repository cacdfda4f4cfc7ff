"""Networks of the Diffusers library in the sizes of ours, without weights; each test brings those it compares."""

from __future__ import annotations

from typing import Any

from diffsynth.models.hunyuan_dit.config import HunyuanDiTConfig


def hunyuan_dit(config: HunyuanDiTConfig) -> Any:
    """Return a denoiser of random weights."""
    from diffusers import HunyuanDiT2DModel

    return HunyuanDiT2DModel(**_sizes(config), num_layers=config.depth, learn_sigma=True)


def hunyuan_dit_controlnet(config: HunyuanDiTConfig) -> Any:
    """Return a control network of random weights."""
    from diffusers import HunyuanDiT2DControlNetModel

    return HunyuanDiT2DControlNetModel(**_sizes(config), transformer_num_layers=config.depth)


def _sizes(config: HunyuanDiTConfig) -> dict[str, Any]:
    return {
        "num_attention_heads": config.num_heads,
        "attention_head_dim": config.head_dim,
        "in_channels": config.in_channels,
        "patch_size": config.patch_size,
        "sample_size": 16,
        "hidden_size": config.hidden_size,
        "mlp_ratio": config.mlp_size / config.hidden_size,
        "cross_attention_dim": config.text_dim,
        "cross_attention_dim_t5": config.t5_dim,
        "pooled_projection_dim": config.text_dim,
        "text_len": config.text_len,
        "text_len_t5": config.t5_len,
        "use_style_cond_and_image_meta_size": config.size_conditioning,
    }
